"""Denoising by total variation, in one and two dimensions, with differences that can be learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..matrices import Matrix, times, times_t
from ..solution import Solution
from ..solve import Options, solve
from ..sparse import Sparse
from .common import DENSE, Layer, positive, shaped, taken

__all__ = ["TotalVariation"]


class TotalVariation(Layer):
    """The signal or image that is near the input and whose differences are few.

        minimise ½‖z − y‖² + weight · ‖D z‖₁

    D takes the differences of neighbours: of an image those along both axes (anisotropically). It is solved in its
    dual, which has bounds only: `z = y − Dᵀu` with `u = argmin ½‖Dᵀu − y‖²` subject to `−weight ≤ u ≤ weight`. Of a
    long signal or an image, D and D Dᵀ are `Sparse`.

    Args:
        shape: The length of a signal, or rows and columns of an image.
        weight: The price of a jump, positive. It is a parameter.
        learn_differences: D, which starts as the differences of neighbours, is a parameter, too, and dense: for signals
            and images of a few hundred entries.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    Takes and returns signals `(…, length)` or images `(…, rows, columns)`.

    Raises:
        ValueError: for a weight that is not positive, or a shape that is not one or two positive sizes.

    Source: Rudin, Osher and Fatemi, Nonlinear total variation, 1992; the dual: Chambolle, An algorithm for total
        variation minimization, 2004; learned D: Amos and Kolter, OptNet, 2017, §4.2.
    """

    D: Tensor
    gram: Tensor
    shown = ("shape", "weight")

    def __init__(
        self, shape: int | tuple[int, int], weight: float = 1.0, *,
        learn_differences: bool = False, **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        positive(weight=weight)
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if len(self.shape) not in (1, 2) or min(self.shape) < 1:
            raise ValueError(f"shape is the length of a signal, or rows and columns of an image, not {shape}")
        self.weight = nn.Parameter(torch.tensor(float(weight)))
        D = _differences(self.shape)
        self.patterns = None if learn_differences or D.shape[0] <= DENSE else (D.pattern, (gram := _gram(D)).pattern)
        if learn_differences:
            self.D = nn.Parameter(D.dense())
        elif self.patterns is None:
            self.register_buffer("D", D.dense())
        else:
            self.register_buffer("D", D.values, persistent=False)
            self.register_buffer("gram", gram.values, persistent=False)

    def differences(self, y: Tensor) -> Matrix:
        """D (differences, entries of y) in the dtype and on the device of y; `Sparse` if large and not learned."""
        return self.D.to(y) if self.patterns is None else Sparse.of(self.patterns[0], self.D.to(y))

    def solution(self, y: Tensor) -> Solution:
        """The Solution of the dual, u (…, differences)."""
        shaped("the input", y, *self.shape)
        D = self.differences(y)
        Q: Matrix
        if isinstance(D, Tensor):
            Q = D @ D.mT
        else:
            assert self.patterns is not None
            Q = taken(Sparse.of(self.patterns[1], self.gram.to(y)), self.options)
        bound = self.weight.to(y)
        return solve(Q, -times(D, y.flatten(-len(self.shape))), lb=-bound, ub=bound, **self.options)

    def forward(self, y: Tensor) -> Tensor:
        """The denoised y, of the same shape."""
        return y - times_t(self.differences(y), self.solution(y).z).view(y.shape)


def _differences(shape: tuple[int, ...]) -> Sparse:
    """z[b] − z[a] of all neighbours a, b along each axis."""
    at = torch.arange(math.prod(shape)).view(shape)
    pairs = [
        torch.stack([at.narrow(axis, 0, size - 1), at.narrow(axis, 1, size - 1)], -1).view(-1, 2)
        for axis, size in enumerate(shape)
    ]
    columns = torch.cat(pairs)
    rows = len(columns)
    return Sparse(
        torch.arange(0, 2 * rows + 1, 2), columns.flatten(), torch.tensor([-1.0, 1.0]).repeat(rows), (rows, at.numel())
    )


def _gram(D: Sparse) -> Sparse:
    """D Dᵀ on its pattern: each column of D is an outer product with itself."""
    order = D.pattern.columns.argsort(stable=True)
    columns, rows, values = D.pattern.columns[order], D.pattern.rows[order], D.values[order]
    counts = columns.bincount(minlength=D.shape[1])
    place = torch.arange(len(columns)) - (counts.cumsum(0) - counts)[columns]
    size = (D.shape[1], int(counts.max()))  # no entry of D has more than four neighbours
    row = torch.zeros(size, dtype=torch.int64).index_put((columns, place), rows)
    value = torch.zeros(size).index_put((columns, place), values)
    at = torch.stack([x.expand(*size, size[1]).flatten() for x in (row[:, :, None], row[:, None, :])])
    terms = (value[:, :, None] * value[:, None, :]).flatten()
    at, terms = at[:, terms != 0], terms[terms != 0]
    return Sparse.from_torch(torch.sparse_coo_tensor(at, terms, (D.shape[0],) * 2, check_invariants=True))
