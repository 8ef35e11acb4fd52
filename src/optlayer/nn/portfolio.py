"""Choosing a portfolio, as a layer: for decisions that are learned together with forecasts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..solution import Solution
from ..solve import Options
from .builder import Builder
from .common import Layer, constant, like, positive, shaped

__all__ = ["Portfolio"]


class Portfolio(Layer):
    """The weights of a long-only portfolio that trade expected return against variance and the cost of trading.

        minimise ½ · risk_aversion · wᵀ covariance w − returnsᵀw + costᵀ|w − held|
        subject to  1ᵀw = 1, 0 ≤ w ≤ largest, ‖w − held‖₁ ≤ turnover, least ≤ groups w ≤ most, G w ≤ h

    What is not given is left out: the cost and the turnover, which need the weights that are held; the groups, say
    sectors, of which row i has a one for each asset that belongs to it; and rows G, h of one's own.

    Args:
        risk_aversion: Price of variance, positive.
        largest: Upper bound on each weight, at least 1/n.
        cost: What it costs to buy or sell one, a number or `(n,)`, not negative.
        turnover: The largest sum of what is bought and sold.
        groups: `(k, n)`.
        least, most: Of each group, numbers or `(k,)`.
        G, h: `(p, n)` and `(p,)`.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(returns (…, n), covariance (…, n, n), held (…, n))` returns weights `(…, n)`; the leading dimensions are
    broadcast, so that a covariance may be shared. `held` is left out where trading has neither cost nor limit. It
    raises ValueError where n weights of `largest` have not the sum one, and where `held` is missing.

    Source: Markowitz, Portfolio selection, 1952; Lobo, Fazel and Boyd, Portfolio optimization with linear and fixed
    transaction costs, 2007, §1.2 and §1.3.
    """

    cost: float | Tensor
    groups: Tensor | None
    least: float | Tensor
    most: float | Tensor
    G: Tensor | None
    h: Tensor | None
    shown = ("risk_aversion", "largest", "cost", "turnover")

    def __init__(
        self, risk_aversion: float = 1.0, largest: float = 1.0, *, cost: float | Tensor = 0.0,
        turnover: float | None = None, groups: Tensor | None = None, least: float | Tensor = -torch.inf,
        most: float | Tensor = torch.inf, G: Tensor | None = None, h: Tensor | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        positive(risk_aversion=risk_aversion, largest=largest)
        if (G is None) != (h is None):
            raise ValueError("G and h go together: one of them is missing")
        if bool((torch.as_tensor(cost) < 0).any()) or (turnover is not None and turnover < 0):
            raise ValueError(f"cost ≥ 0 and turnover ≥ 0 are needed, not {cost} and {turnover}")
        self.risk_aversion, self.largest, self.turnover = risk_aversion, largest, turnover
        self.trades = turnover is not None or isinstance(cost, nn.Parameter) or bool((torch.as_tensor(cost) > 0).any())
        for name, value in (("cost", cost), ("least", least), ("most", most)):
            constant(self, name, value)
        for name, tensor in (("groups", groups), ("G", G), ("h", h)):
            if tensor is None:
                setattr(self, name, None)
            else:
                constant(self, name, tensor)

    def solution(self, returns: Tensor, covariance: Tensor, held: Tensor | None = None) -> Solution:
        """The Solution, with the multipliers of the budget and the bounds; its z begins with the weights."""
        shaped("returns", returns, None)
        n = returns.shape[-1]
        shaped("covariance", covariance, n, n)
        if n * self.largest < 1:
            raise ValueError(
                f"{n} × {self.largest:g} < 1: {n} assets of at most {self.largest:g} each cannot make a portfolio; "
                f"largest ≥ 1/{n} is needed"
            )
        ones = returns.new_ones(n)
        build = Builder(
            self.risk_aversion * covariance, -returns, A=ones[None], b=ones[:1], lb=0 * ones, ub=self.largest * ones
        )
        if self.groups is not None:
            groups = self.groups.to(returns)
            limits = returns.new_ones(len(groups))
            build.add_rows(groups, like(self.most, returns) * limits, like(self.least, returns) * limits)
        if self.G is not None and self.h is not None:
            build.add_rows(self.G.to(returns), self.h.to(returns))
        if self.trades:
            if held is None:
                raise ValueError("cost and turnover are counted from the weights that are held: give `held`")
            shaped("held", held, n)
            if self.turnover is None:
                build.add_abs(self.cost, g=held)
            else:
                build.limit_abs(self.turnover, g=held, weight=self.cost)
        return build.solution(**self.options)

    def forward(self, returns: Tensor, covariance: Tensor, held: Tensor | None = None) -> Tensor:
        """Weights (…, n) for returns (…, n), covariance (…, n, n) and held (…, n)."""
        return self.solution(returns, covariance, held).z[..., : returns.shape[-1]]
