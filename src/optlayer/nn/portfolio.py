"""Choosing a portfolio, as a layer: for decisions that are learned together with forecasts."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from ..solution import Solution
from ..solve import Options, solve
from .common import Layer, positive, shaped

__all__ = ["Portfolio"]


class Portfolio(Layer):
    """The weights of a long-only portfolio that trade expected return against variance.

        minimise ½ · risk_aversion · wᵀ covariance w − returnsᵀw  subject to  1ᵀw = 1, 0 ≤ w ≤ largest

    Args:
        risk_aversion: Price of variance, positive.
        largest: Upper bound on each weight, at least 1/n.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(returns (…, n), covariance (…, n, n))` returns weights `(…, n)`; the leading dimensions are broadcast, so
    that a covariance may be shared. It raises ValueError where n weights of `largest` have not the sum one.

    Source: Markowitz, Portfolio selection, 1952.
    """

    shown = ("risk_aversion", "largest")

    def __init__(self, risk_aversion: float = 1.0, largest: float = 1.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        positive(risk_aversion=risk_aversion, largest=largest)
        self.risk_aversion, self.largest = risk_aversion, largest

    def solution(self, returns: Tensor, covariance: Tensor) -> Solution:
        """The Solution, with the multipliers of the budget and the bounds."""
        shaped("returns", returns, None)
        n = returns.shape[-1]
        shaped("covariance", covariance, n, n)
        if n * self.largest < 1:
            raise ValueError(
                f"{n} × {self.largest:g} < 1: {n} assets of at most {self.largest:g} each cannot make a portfolio; "
                f"largest ≥ 1/{n} is needed"
            )
        ones = returns.new_ones(1, n)
        return solve(
            self.risk_aversion * covariance, -returns, A=ones, b=1.0, lb=0.0, ub=self.largest, **self.options
        )

    def forward(self, returns: Tensor, covariance: Tensor) -> Tensor:
        """Weights (…, n) for returns (…, n) and covariance (…, n, n)."""
        return self.solution(returns, covariance).z
