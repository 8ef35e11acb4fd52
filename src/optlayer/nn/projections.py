"""Projections: the nearest point of a convex set, `argmin ½‖z − y‖²`, over the last dimension of the input.

Each takes `y (…, n)` of a floating dtype and returns `z` of the same shape; leading dimensions are a batch. Keywords
that are not named here (`settings`, `backend`, `check`, `names`) go to `optlayer.solve`, which also raises the errors.
Source: Boyd and Vandenberghe, Convex Optimization, 2004, §8.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..matrices import Diagonal
from ..solution import Solution
from ..solve import Options, solve
from .common import Layer, constant, like, positive, shaped

__all__ = [
    "BirkhoffProjection",
    "BoxProjection",
    "HalfspaceProjection",
    "L1BallProjection",
    "LInfBallProjection",
    "MonotoneProjection",
    "SimplexProjection",
]


class _Projection(Layer):
    """The nearest point under constraints on y (…, n)."""

    def constraints(self, y: Tensor) -> dict[str, Any]:
        """Keywords for `solve`."""
        raise NotImplementedError

    def solution(self, y: Tensor) -> Solution:
        """The Solution of the projection of y (…, n), with its multipliers."""
        shaped("the input", y, None)
        return solve(Diagonal(y.new_ones(y.shape[-1])), -y, **self.constraints(y), **self.options)

    def forward(self, y: Tensor) -> Tensor:
        """The nearest point of y (…, n), of the same shape."""
        return self.solution(y).z


class SimplexProjection(_Projection):
    """The nearest point of the simplex of size `radius`.

        minimise ½‖z − y‖²  subject to  1ᵀz = radius, z ≥ 0

    No entry is negative, and those that are zero are so exactly.

    Args:
        radius: The sum of the result, positive.
    """

    shown = ("radius",)

    def __init__(self, radius: float = 1.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        positive(radius=radius)
        self.radius = radius

    def constraints(self, y: Tensor) -> dict[str, Any]:
        return {"A": y.new_ones(1, y.shape[-1]), "b": self.radius, "lb": 0.0}

    def forward(self, y: Tensor) -> Tensor:
        """The nearest point of y (…, n), of the same shape."""
        return self.summed(self.solution(y).z)

    def summed(self, z: Tensor) -> Tensor:
        """z with what rounding left of the sum spread over the entries above zero, which moves no zero."""
        held = z > 0
        rest = (self.radius - z.sum(-1, keepdim=True)) / held.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(held, (z + rest).clamp(min=0), z)


class BoxProjection(_Projection):
    """The nearest point of a box.

        minimise ½‖z − y‖²  subject to  lb ≤ z ≤ ub

    Args:
        lb, ub: Bounds, numbers or tensors `(n,)`; learnable if they are parameters.
    """

    lb: float | Tensor
    ub: float | Tensor
    shown = ("lb", "ub")

    def __init__(self, lb: float | Tensor, ub: float | Tensor, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        low, high = torch.as_tensor(lb), torch.as_tensor(ub)
        if bool((low.detach().to(high) > high.detach()).any()):
            raise ValueError("lb ≤ ub is needed")
        constant(self, "lb", lb)
        constant(self, "ub", ub)

    def constraints(self, y: Tensor) -> dict[str, Any]:
        return {"lb": like(self.lb, y), "ub": like(self.ub, y)}


class LInfBallProjection(BoxProjection):
    """The nearest point with entries of size `radius` at most.

        minimise ½‖z − y‖²  subject to  ‖z‖∞ ≤ radius

    Args:
        radius: The size of the ball, positive.
    """

    def __init__(self, radius: float = 1.0, **options: Unpack[Options]) -> None:
        positive(radius=radius)
        super().__init__(-radius, radius, **options)


class L1BallProjection(_Projection):
    """The nearest point whose entries' sizes have the sum `radius` at most.

        minimise ½‖z − y‖²  subject to  ‖z‖₁ ≤ radius

    Signs do not change under this projection, so it is one of |y|, with bounds and a single inequality:
    `z = sign(y) ∘ argmin {½‖w − |y|‖² : 1ᵀw ≤ radius, w ≥ 0}`. `solution` is that of w.

    Args:
        radius: The size of the ball, positive.

    Source: Duchi et al., Efficient projections onto the ℓ1-ball, 2008.
    """

    shown = ("radius",)

    def __init__(self, radius: float = 1.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        positive(radius=radius)
        self.radius = radius

    def constraints(self, y: Tensor) -> dict[str, Any]:
        return {"G": y.new_ones(1, y.shape[-1]), "h": self.radius, "lb": 0.0}

    def solution(self, y: Tensor) -> Solution:
        """The Solution of the projection of |y|."""
        return super().solution(y.abs())

    def forward(self, y: Tensor) -> Tensor:
        """The nearest point of y (…, n), of the same shape."""
        return y.sign() * self.solution(y).z


class HalfspaceProjection(_Projection):
    """The nearest point of a polyhedron, the intersection of half-spaces.

        minimise ½‖z − y‖²  subject to  G z ≤ h

    Args:
        G: Normals `(p, n)`; learnable if a parameter.
        h: Offsets `(p,)`; learnable if a parameter.
    """

    G: Tensor
    h: Tensor
    shown = ("G", "h")

    def __init__(self, G: Tensor, h: Tensor, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        if G.dim() != 2 or h.shape != G.shape[:1]:
            raise ValueError(f"G (p, n) and h (p,) are needed, not {tuple(G.shape)}, {tuple(h.shape)}")
        constant(self, "G", G)
        constant(self, "h", h)

    def constraints(self, y: Tensor) -> dict[str, Any]:
        shaped("the input", y, self.G.shape[1])
        return {"G": self.G.to(y), "h": self.h.to(y)}


class BirkhoffProjection(_Projection):
    """The nearest doubly stochastic matrix: a differentiable relaxation of an assignment.

        minimise ½‖Z − Y‖²  subject to  Z 1 = 1, Zᵀ1 = 1, Z ≥ 0

    Takes and returns matrices `(…, k, k)`. In `solution`, z is flat: (…, k²).

    Source: Birkhoff, Tres observaciones sobre el álgebra lineal, 1946.
    """

    def constraints(self, y: Tensor) -> dict[str, Any]:
        k = round(y.shape[-1] ** 0.5)
        eye, ones = torch.eye(k).to(y), torch.ones(1, k).to(y)
        # Rows, then columns; the last column's sum follows from the others.
        return {"A": torch.cat([torch.kron(eye, ones), torch.kron(ones, eye)[:-1]]), "b": 1.0, "lb": 0.0}

    def solution(self, y: Tensor) -> Solution:
        """The Solution of the projection of y (…, k, k)."""
        shaped("the input", y, None, None)
        if y.shape[-2] != y.shape[-1]:
            raise ValueError(f"a matrix (…, k, k) is needed, not {tuple(y.shape)}")
        return super().solution(y.flatten(-2))

    def forward(self, y: Tensor) -> Tensor:
        """The nearest doubly stochastic matrix of y (…, k, k)."""
        return self.solution(y).z.view(y.shape)


class MonotoneProjection(_Projection):
    """The nearest non-decreasing sequence: isotonic regression.

        minimise ½‖z − y‖²  subject to  z₁ ≤ z₂ ≤ … ≤ zₙ

    Source: Best and Chakravarti, Active set algorithms for isotonic regression, 1990.
    """

    def constraints(self, y: Tensor) -> dict[str, Any]:
        return {"G": -torch.eye(y.shape[-1]).to(y).diff(dim=0), "h": 0.0}  # row i: z_i − z_{i+1}
