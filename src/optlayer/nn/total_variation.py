"""Denoising by total variation, in one and two dimensions, with differences that can be learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..solution import Solution
from ..solve import Options, solve
from .common import Layer, positive, shaped

__all__ = ["TotalVariation"]


class TotalVariation(Layer):
    """The signal that is near the input and whose differences are few.

        minimise ½‖z − y‖² + weight · ‖D z‖₁

    It is solved in its dual, which has bounds only: `z = y − Dᵀu` with
    `u = argmin ½‖Dᵀu − y‖²` subject to `−weight ≤ u ≤ weight`.

    Args:
        shape: The length of a signal, or the two sizes of a small grid.
        weight: The price of a jump, positive. It is a parameter.
        learn_differences: D, which starts as the first differences, is a parameter too.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    Takes and returns signals `(…, length)` or grids `(…, rows, columns)`.

    Source: Rudin, Osher and Fatemi, Nonlinear total variation, 1992; learned D: Amos and Kolter, OptNet,
        2017, §4.2.
    """

    D: Tensor
    shown = ("shape", "weight")

    def __init__(
        self, shape: int | tuple[int, int], weight: float = 1.0, *,
        learn_differences: bool = False, **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        positive(weight=weight)
        self.shape = (shape,) if isinstance(shape, int) else shape
        self.weight = nn.Parameter(torch.tensor(float(weight)))
        D = torch.eye(self.shape[0]).diff(dim=0)
        if len(self.shape) == 2:
            rows, columns = self.shape
            D = torch.cat([
                torch.kron(D, torch.eye(columns)), torch.kron(torch.eye(rows), torch.eye(columns).diff(dim=0))
            ])
        if learn_differences:
            self.D = nn.Parameter(D)
        else:
            self.register_buffer("D", D)

    def solution(self, y: Tensor) -> Solution:
        """The Solution of the dual, u (…, rows of D)."""
        shaped("the input", y, *self.shape)
        D = self.D.to(y)
        bound = self.weight.to(y)
        return solve(D @ D.mT, -(y.flatten(-len(self.shape)) @ D.mT), lb=-bound, ub=bound, **self.options)

    def forward(self, y: Tensor) -> Tensor:
        """The denoised y, of the same shape."""
        step = self.solution(y).z @ self.D.to(y)
        return y - step.view(y.shape)
