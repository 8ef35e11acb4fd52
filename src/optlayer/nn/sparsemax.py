"""Sparsemax: a softmax with exact zeros."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from ..solution import Solution
from ..solve import Options
from .common import shaped
from .projections import SimplexProjection

__all__ = ["Sparsemax"]


class Sparsemax(SimplexProjection):
    """Probabilities with exact zeros, from scores.

        sparsemax(y) = argmin ½‖z − y‖²  subject to  1ᵀz = 1, z ≥ 0

    Args:
        dim: The dimension of the classes.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    Takes scores of any shape with `dim`, returns probabilities of that shape. In `solution`, the classes are the last
    dimension.

    Source: Martins and Astudillo, From softmax to sparsemax, 2016.
    """

    shown = ("dim",)

    def __init__(self, dim: int = -1, **options: Unpack[Options]) -> None:
        super().__init__(1.0, **options)
        self.dim = dim

    def solution(self, y: Tensor) -> Solution:
        """The Solution, with the classes in its last dimension."""
        shaped("the input", y, None)
        if not -y.dim() <= self.dim < y.dim():
            raise IndexError(f"the input has {y.dim()} dimensions, but dim={self.dim}")
        return super().solution(y.movedim(self.dim, -1))

    def forward(self, y: Tensor) -> Tensor:
        """Probabilities of the scores y, of the same shape."""
        return self.summed(self.solution(y).z).movedim(-1, self.dim)
