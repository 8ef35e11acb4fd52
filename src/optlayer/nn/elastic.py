"""A quadratic program that always has an answer: constraints may give way, at a price."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..matrices import Diagonal
from ..solution import Solution
from ..solve import Options, solve
from .common import Layer, constant, like, positive, shaped

__all__ = ["ElasticQPLayer"]


class ElasticQPLayer(Layer):
    """The quadratic program whose chosen rows may be violated at a price, so that it is always feasible.

        minimise ½ zᵀQz + qᵀz + weight·1ᵀt + ½ ε ‖t‖²
        subject to  G z ≤ h + t,  −t ≤ A z − b ≤ t,  t ≥ 0,  lb ≤ z ≤ ub     (t = 0 in rows that are not elastic)

    The penalty is exact: where the hard problem is feasible and its multipliers are smaller than `weight`, the answer
    is that of the hard problem, to the last digit, with t = 0. Elsewhere t is the violation. Its gradient leads
    towards feasibility: add `violation.sum()` to the loss. With ε > 0 the rows share what violation there must be, and
    z moves with h and b in violated rows also; with ε = 0 only t does, and the violated rows tend to be few.

    Args:
        weight: the price of a unit of violation, positive; a number or a tensor `(k,)`, one for each elastic row.
        epsilon: ε ≥ 0, the curvature of the price.
        inequalities, equalities: the elastic rows: all, none, or a list of indices.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(Q, q, G, h, A, b, lb, ub)` takes the tensors of `optlayer.solve` and returns z `(…, n)` and the violation
    t `(…, k)`, inequalities first.

    Source: Nocedal and Wright, Numerical Optimization, 2006, §17.2.
    """

    weight: float | Tensor
    shown = ("weight", "epsilon", "inequalities", "equalities")

    def __init__(
        self, weight: float | Tensor = 100.0, epsilon: float = 0.0, *, inequalities: bool | list[int] = True,
        equalities: bool | list[int] = True, **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        positive(weight=weight)
        if epsilon < 0:
            raise ValueError(f"epsilon ≥ 0 is needed, not {epsilon}")
        constant(self, "weight", weight)
        self.epsilon, self.inequalities, self.equalities = epsilon, inequalities, equalities

    def solution(
        self, Q: Tensor | Diagonal, q: Tensor, G: Tensor | None = None, h: Tensor | None = None,
        A: Tensor | None = None, b: Tensor | None = None, lb: Tensor | None = None, ub: Tensor | None = None,
    ) -> Solution:
        """The Solution in the variables (z, t of the inequalities, t⁺ and t⁻ of the equalities)."""
        shaped("q", q, None)
        n = q.shape[-1]
        if not isinstance(Q, Diagonal):
            shaped("Q", Q, n, n)
        for name, M in (("G", G), ("A", A)):
            if M is not None:
                shaped(name, M, None, n)
        E = _columns(h, self.inequalities)  # (p, i): which rows have a t
        F = _columns(b, self.equalities)  # (m, j): A z = b + t⁺ − t⁻, and |A z − b| = t⁺ + t⁻
        i, j = E.shape[1], F.shape[1]
        price = like(self.weight, q) * q.new_ones(i + j)
        price = torch.cat([price, price[i:]])
        curve = self.epsilon * torch.ones_like(price)

        if isinstance(Q, Diagonal):
            Q = Diagonal(_beside(Q.d, curve))
        else:
            extra = i + 2 * j
            Q = nn.functional.pad(Q, (0, extra, 0, extra)) + torch.cat([q.new_zeros(n), curve]).diag()
        if G is not None:
            G = _beside(G, -E.to(q), q.new_zeros(len(E), 2 * j))
        if A is not None:
            A = _beside(A, q.new_zeros(len(F), i), -F.to(q), F.to(q))
        lb = _beside(q.new_full((n,), -torch.inf) if lb is None else lb, torch.zeros_like(price))
        ub = None if ub is None else _beside(ub, torch.full_like(price, torch.inf))
        return solve(Q, _beside(q, price), G, h, A, b, lb, ub, **self.options)

    def forward(
        self, Q: Tensor | Diagonal, q: Tensor, G: Tensor | None = None, h: Tensor | None = None,
        A: Tensor | None = None, b: Tensor | None = None, lb: Tensor | None = None, ub: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z (…, n) and the violation (…, k), inequalities first."""
        solution = self.solution(Q, q, G, h, A, b, lb, ub)
        i, j = _columns(h, self.inequalities).shape[1], _columns(b, self.equalities).shape[1]
        z, t, up, down = solution.z.split([q.shape[-1], i, j, j], -1)
        return z, torch.cat([t, up + down], -1)


def _columns(side: Tensor | None, chosen: bool | list[int]) -> Tensor:
    """The columns of the identity that belong to the chosen rows, (rows, chosen)."""
    rows = 0 if side is None else side.shape[-1]
    device = None if side is None else side.device
    eye = torch.eye(rows, device=device)
    return eye[:, (range(rows) if chosen else []) if isinstance(chosen, bool) else chosen]


def _beside(first: Tensor, *others: Tensor) -> Tensor:
    """Concatenated along the last dimension; `first` may have a batch that the others lack."""
    batch = first.shape[: first.dim() - others[0].dim()]
    return torch.cat([first, *(other.expand(*batch, *other.shape) for other in others)], -1)
