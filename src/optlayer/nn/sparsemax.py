"""Sparsemax: a softmax with exact zeros."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .projections import SimplexProjection

__all__ = ["Sparsemax"]


class Sparsemax(SimplexProjection):
    """Probabilities with exact zeros, from scores.

        sparsemax(y) = argmin ½‖z − y‖²  subject to  1ᵀz = 1, z ≥ 0

    Args:
        dim: The dimension of the classes.
        options: `settings`, `backend`, `check` for `optlayer.solve`.

    Takes scores of any shape with `dim`, returns probabilities of that shape.

    Source: Martins and Astudillo, From softmax to sparsemax, 2016.
    """

    def __init__(self, dim: int = -1, **options: Any) -> None:
        super().__init__(1.0, **options)
        self.dim = dim

    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y.movedim(self.dim, -1)).movedim(-1, self.dim)
