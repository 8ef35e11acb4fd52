"""Choosing a portfolio, as a layer: for decisions that are learned together with forecasts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..solve import solve

__all__ = ["Portfolio"]


class Portfolio(nn.Module):
    """The weights of a long-only portfolio that trade expected return against variance.

        minimise ½ · risk_aversion · wᵀ covariance w − returnsᵀw  subject to  1ᵀw = 1, 0 ≤ w ≤ largest

    Args:
        risk_aversion: Price of variance, positive.
        largest: Upper bound on each weight, at least 1/n.
        options: `settings`, `backend`, `check` for `optlayer.solve`.

    `forward(returns (…, n), covariance (…, n, n))` returns weights `(…, n)`. The covariance may be
    shared by the batch: `(n, n)`.

    Source: Markowitz, Portfolio selection, 1952.
    """

    def __init__(self, risk_aversion: float = 1.0, largest: float = 1.0, **options: Any) -> None:
        super().__init__()
        self.risk_aversion, self.largest, self.options = risk_aversion, largest, options

    def forward(self, returns: Tensor, covariance: Tensor) -> Tensor:
        n = returns.shape[-1]
        ones = returns.new_ones(1, n)
        Q = self.risk_aversion * covariance
        sol = solve(
            Q if Q.dim() == 2 else Q.reshape(-1, n, n), -returns.reshape(-1, n), A=ones, b=ones[:, 0],
            lb=torch.zeros_like(ones[0]), ub=self.largest * ones[0], **self.options,
        )
        return sol.z.view(returns.shape)
