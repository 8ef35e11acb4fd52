"""Projections: the nearest point of a convex set, `argmin ½‖z − y‖²`, over the last dimension of the input.

Each takes `y (…, n)` of a floating dtype and returns `z` of the same shape; leading dimensions are a batch.
Keywords that are not named here (`settings`, `backend`, `check`) go to `optlayer.solve`, which also raises
the errors. Source: Boyd and Vandenberghe, Convex Optimization, 2004, §8.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..matrices import Diagonal
from ..solve import solve
from .common import constant, like

__all__ = [
    "BirkhoffProjection",
    "BoxProjection",
    "HalfspaceProjection",
    "L1BallProjection",
    "LInfBallProjection",
    "MonotoneProjection",
    "SimplexProjection",
]


class _Projection(nn.Module):
    """Holds the keywords for `solve`, and flattens leading dimensions into one batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def project(self, y: Tensor, **constraints: Any) -> Tensor:
        rows = y.reshape(-1, y.shape[-1])
        return solve(Diagonal(torch.ones_like(rows[0])), -rows, **constraints, **self.options).z.view(y.shape)


class SimplexProjection(_Projection):
    """The nearest point of the simplex of size `radius`.

        minimise ½‖z − y‖²  subject to  1ᵀz = radius, z ≥ 0

    Args:
        radius: The sum of the result, positive.
    """

    def __init__(self, radius: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.radius = radius

    def forward(self, y: Tensor) -> Tensor:
        one = y.new_ones(1, y.shape[-1])
        return self.project(y, A=one, b=self.radius * one[:, 0], lb=torch.zeros_like(one[0]))


class BoxProjection(_Projection):
    """The nearest point of a box.

        minimise ½‖z − y‖²  subject to  lb ≤ z ≤ ub

    Args:
        lb, ub: Bounds, numbers or tensors `(n,)`; learnable if they are parameters.
    """

    lb: float | Tensor
    ub: float | Tensor

    def __init__(self, lb: float | Tensor, ub: float | Tensor, **options: Any) -> None:
        super().__init__(**options)
        constant(self, "lb", lb)
        constant(self, "ub", ub)

    def forward(self, y: Tensor) -> Tensor:
        ones = y.new_ones(y.shape[-1])
        return self.project(y, lb=like(self.lb, y) * ones, ub=like(self.ub, y) * ones)


class LInfBallProjection(BoxProjection):
    """The nearest point with entries of size `radius` at most.

        minimise ½‖z − y‖²  subject to  ‖z‖∞ ≤ radius

    Args:
        radius: The size of the ball, positive.
    """

    def __init__(self, radius: float = 1.0, **options: Any) -> None:
        super().__init__(-radius, radius, **options)


class L1BallProjection(_Projection):
    """The nearest point whose entries' sizes have the sum `radius` at most.

        minimise ½‖z − y‖²  subject to  ‖z‖₁ ≤ radius

    Signs do not change under this projection, so it is one of |y|, with bounds and a single inequality:
    `z = sign(y) ∘ argmin {½‖w − |y|‖² : 1ᵀw ≤ radius, w ≥ 0}`.

    Args:
        radius: The size of the ball, positive.

    Source: Duchi et al., Efficient projections onto the ℓ1-ball, 2008.
    """

    def __init__(self, radius: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.radius = radius

    def forward(self, y: Tensor) -> Tensor:
        one = y.new_ones(1, y.shape[-1])
        size = self.project(y.abs(), G=one, h=self.radius * one[:, 0], lb=torch.zeros_like(one[0]))
        return y.sign() * size


class HalfspaceProjection(_Projection):
    """The nearest point of a polyhedron, the intersection of half-spaces.

        minimise ½‖z − y‖²  subject to  G z ≤ h

    Args:
        G: Normals `(p, n)`; learnable if a parameter.
        h: Offsets `(p,)`; learnable if a parameter.
    """

    G: Tensor
    h: Tensor

    def __init__(self, G: Tensor, h: Tensor, **options: Any) -> None:
        super().__init__(**options)
        constant(self, "G", G)
        constant(self, "h", h)

    def forward(self, y: Tensor) -> Tensor:
        return self.project(y, G=self.G.to(y), h=self.h.to(y))


class BirkhoffProjection(_Projection):
    """The nearest doubly stochastic matrix: a differentiable relaxation of an assignment.

        minimise ½‖Z − Y‖²  subject to  Z 1 = 1, Zᵀ1 = 1, Z ≥ 0

    Takes and returns matrices `(…, k, k)`.

    Source: Birkhoff, Tres observaciones sobre el álgebra lineal, 1946.
    """

    def forward(self, y: Tensor) -> Tensor:
        k = y.shape[-1]
        if y.shape[-2] != k:
            raise ValueError(f"a matrix (…, k, k) is needed, not {tuple(y.shape)}")
        eye, ones = torch.eye(k).to(y), torch.ones(1, k).to(y)
        # Rows, then columns; the last column's sum follows from the others.
        A = torch.cat([torch.kron(eye, ones), torch.kron(ones, eye)[:-1]])
        flat = y.reshape(*y.shape[:-2], k * k)
        return self.project(flat, A=A, b=torch.ones_like(A[:, 0]), lb=torch.zeros_like(A[0])).view(y.shape)


class MonotoneProjection(_Projection):
    """The nearest non-decreasing sequence: isotonic regression.

        minimise ½‖z − y‖²  subject to  z₁ ≤ z₂ ≤ … ≤ zₙ

    Source: Best and Chakravarti, Active set algorithms for isotonic regression, 1990.
    """

    def forward(self, y: Tensor) -> Tensor:
        falls = -torch.eye(y.shape[-1]).to(y).diff(dim=0)  # row i: z_i − z_{i+1}
        return self.project(y, G=falls, h=torch.zeros_like(falls[:, 0]))
