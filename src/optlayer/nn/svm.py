"""A support vector machine as the last layer of a few-shot classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..solution import Solution
from ..solve import Options, solve
from .common import Layer, positive, shaped

__all__ = ["SVMHead"]


class SVMHead(Layer):
    """Scores of queries by the multi-class support vector machine of a few labelled examples.

    With K the Gram matrix of the examples and Y their one-hot labels, one multiplier for each example and
    class:

        minimise ½ Σ_c α_cᵀ (K + regularisation · I) α_c − ⟨Y, α⟩  subject to  Σ_c α_ic = 0, α ≤ C · Y

    and the score of a query x for class c is `Σ_i ⟨x, x_i⟩ α_ic`.

    Args:
        classes: Number of classes.
        C: The largest multiplier, positive.
        regularisation: Added to the Gram matrix, zero or more, which has not full rank if features are few.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(examples (…, k, d), labels (…, k) of integers, queries (…, r, d))` returns scores `(…, r,
    classes)`.

    Source: Crammer and Singer, 2001; as a layer: Lee et al., Meta-learning with differentiable convex
    optimization, 2019.
    """

    shown = ("classes", "C", "regularisation")

    def __init__(
        self, classes: int, C: float = 0.1, regularisation: float = 1.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        if classes < 2:
            raise ValueError(f"classes ≥ 2 is needed, not {classes}")
        positive(C=C)
        if regularisation < 0:
            raise ValueError(f"regularisation ≥ 0 is needed, not {regularisation}")
        self.classes, self.C, self.regularisation = classes, C, regularisation

    def solution(self, examples: Tensor, labels: Tensor) -> Solution:
        """The Solution for the multipliers α, flat: (…, k · classes), example by example."""
        shaped("examples", examples, None, None)
        k, c = examples.shape[-2], self.classes
        if labels.is_floating_point() or labels.shape != examples.shape[:-1]:
            raise ValueError(f"labels: integers {tuple(examples.shape[:-1])} are needed, not {tuple(labels.shape)}")
        one_hot = nn.functional.one_hot(labels, c).to(examples).flatten(-2)
        eye_k, eye_c = torch.eye(k).to(examples), torch.eye(c).to(examples)
        Gram = examples @ examples.mT + self.regularisation * eye_k
        Q = torch.einsum("...ij,cd->...icjd", Gram, eye_c).flatten(-4, -3).flatten(-2)
        A = torch.kron(eye_k, torch.ones_like(eye_c[:1]))
        return solve(Q, -one_hot, A=A, b=0.0, ub=self.C * one_hot, **self.options)

    def forward(self, examples: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        """Scores (…, r, classes) of queries (…, r, d) by examples (…, k, d) with labels (…, k)."""
        shaped("queries", queries, None, examples.shape[-1])
        alpha = self.solution(examples, labels).z
        return queries @ examples.mT @ alpha.unflatten(-1, (examples.shape[-2], self.classes))
