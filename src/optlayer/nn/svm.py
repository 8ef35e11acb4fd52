"""A support vector machine as the last layer of a few-shot classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..solve import solve

__all__ = ["SVMHead"]


class SVMHead(nn.Module):
    """Scores of queries by the multi-class support vector machine of a few labelled examples.

    With K the Gram matrix of the examples and Y their one-hot labels, one multiplier for each example and
    class:

        minimise ½ Σ_c α_cᵀ (K + regularisation · I) α_c − ⟨Y, α⟩  subject to  Σ_c α_ic = 0, α ≤ C · Y

    and the score of a query x for class c is `Σ_i ⟨x, x_i⟩ α_ic`.

    Args:
        classes: Number of classes.
        C: The largest multiplier, positive.
        regularisation: Added to the Gram matrix, which has not full rank if features are few.
        options: `settings`, `backend`, `check` for `optlayer.solve`.

    `forward(examples (…, k, d), labels (…, k) of integers, queries (…, r, d))` returns scores `(…, r,
    classes)`.

    Source: Crammer and Singer, 2001; as a layer: Lee et al., Meta-learning with differentiable convex
    optimization, 2019.
    """

    def __init__(self, classes: int, C: float = 0.1, regularisation: float = 1.0, **options: Any) -> None:
        super().__init__()
        self.classes, self.C, self.regularisation, self.options = classes, C, regularisation, options

    def forward(self, examples: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        *batch, k, d = examples.shape
        x, c = examples.reshape(-1, k, d), self.classes
        one_hot = nn.functional.one_hot(labels.reshape(-1, k), c).to(x).flatten(1)
        eye_k, eye_c = torch.eye(k).to(x), torch.eye(c).to(x)
        Gram = x @ x.mT + self.regularisation * eye_k
        Q = torch.einsum("bij,cd->bicjd", Gram, eye_c).reshape(-1, k * c, k * c)
        A = torch.kron(eye_k, torch.ones_like(eye_c[:1]))
        sol = solve(Q, -one_hot, A=A, b=torch.zeros_like(A[:, 0]), ub=self.C * one_hot, **self.options)
        scores = queries.reshape(-1, *queries.shape[-2:]) @ x.mT @ sol.z.view(-1, k, c)
        return scores.view(*batch, *scores.shape[1:])
