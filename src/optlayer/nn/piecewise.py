"""Piecewise-linear functions as quadratic programs: the paper's Theorems 2 and 3, made.

They show what such a layer can express. Use `torch.relu` where a ReLU is all you want.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..matrices import Diagonal
from ..solution import Solution
from ..solve import Options, solve
from .common import Layer, constant, like, shaped

__all__ = ["MaxOfLinear", "PiecewiseLinear", "ReLULayer"]


class ReLULayer(Layer):
    """A linear layer and its ReLU, as one quadratic program.

        max(W x + b, 0) = argmin ½‖z − (W x + b)‖²  subject to  z ≥ 0

    Args:
        W: `(m, n)`, becomes a parameter.
        b: `(m,)`, becomes a parameter.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(x (…, n))` returns `(…, m)`.

    Source: Amos and Kolter, OptNet, 2017, Theorem 2.
    """

    def __init__(self, W: Tensor, b: Tensor, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        shaped("W", W, None, None)
        shaped("b", b, None)
        if W.dim() != 2 or b.shape != W.shape[:1]:
            raise ValueError(f"W (m, n) and b (m,) are needed, not {tuple(W.shape)}, {tuple(b.shape)}")
        self.W, self.b = nn.Parameter(W.detach().clone()), nn.Parameter(b.detach().clone())

    def solution(self, x: Tensor) -> Solution:
        """The Solution: `lam_lb` is what the ReLU cuts off."""
        shaped("the input", x, self.W.shape[1], weight=self.W)
        return solve(Diagonal(torch.ones_like(self.b)), -(x @ self.W.mT + self.b), lb=0.0, **self.options)

    def forward(self, x: Tensor) -> Tensor:
        """max(W x + b, 0) (…, m) of x (…, n)."""
        return self.solution(x).z.to(x.dtype)  # autocast adds in the wider type

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [f"W={tuple(self.W.shape)}", super().extra_repr()]))


class PiecewiseLinear(Layer):
    """A continuous piecewise-linear function of each entry, as a quadratic program with k + 1 variables for k kinks.

    The function is a line and a bend at each breakpoint, with w_i = slope_i − slope_{i−1}:

        f(x) = l(x) + Σ_i w_i max(x − breakpoint_i, 0),    l(x) = value + slope_0 (x − breakpoint_1)

    and its quadratic program has the variables z and t, a ramp for each bend:

        minimise ½ ‖t‖² + ½ (z − l(x) − wᵀt)²  subject to  t_i ≥ x − breakpoint_i

    The second term is zero at the minimum because z is free; the first makes each t_i as small as its constraint
    and zero allow. So t_i = max(x − breakpoint_i, 0), and z = f(x).

    Args:
        breakpoints: `(k,)`, ascending; k ≥ 1.
        slopes: `(k + 1,)`, from left to right.
        value: f at the first breakpoint.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    The first three learn if they are parameters. Takes `x` of any shape, and returns f of each entry.

    Source: Amos and Kolter, OptNet, 2017, Theorem 2.
    """

    breakpoints: Tensor
    slopes: Tensor
    value: float | Tensor
    shown = ("breakpoints", "slopes", "value")

    def __init__(
        self, breakpoints: Tensor, slopes: Tensor, value: float | Tensor = 0.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        if breakpoints.dim() != 1 or not len(breakpoints) or slopes.shape != (len(breakpoints) + 1,):
            shapes = tuple(breakpoints.shape), tuple(slopes.shape)
            raise ValueError(f"breakpoints (k,) with k ≥ 1 and slopes (k + 1,) are needed, not {shapes}")
        if bool((breakpoints.diff() < 0).any()):
            raise ValueError("breakpoints must ascend")
        for name, given in (("breakpoints", breakpoints), ("slopes", slopes), ("value", value)):
            constant(self, name, given)

    def solution(self, x: Tensor) -> Solution:
        """The Solution with z = (f(x), t), in the shape of x."""
        shaped("the input", x)
        column = x.unsqueeze(-1)
        breakpoints, slopes = self.breakpoints.to(x), self.slopes.to(x)
        line = like(self.value, x) + slopes[0] * (column - breakpoints[0])
        # With e = (1, −w), the terms are ½ ‖t‖² + ½ (eᵀ(z, t) − l)².
        e = torch.cat([torch.ones_like(slopes[:1]), -slopes.diff()])
        Q = torch.outer(e, e) + torch.cat([torch.zeros_like(e[:1]), torch.ones_like(breakpoints)]).diag()
        lb = torch.cat([torch.full_like(column, -torch.inf), column - breakpoints], -1)
        return solve(Q, -line * e, lb=lb, **self.options)

    def forward(self, x: Tensor) -> Tensor:
        """f of each entry of x, in its shape."""
        return self.solution(x).z[..., 0]


class MaxOfLinear(Layer):
    """The largest of k linear functions, as a quadratic program with one variable.

        max_i (W x + b)_i = argmin ½ (z − mean_i (W x + b)_i)²  subject to  (W x + b)_i ≤ z

    The mean is never above the largest, so the constraints push z up from it to the largest, and no further. No
    network with one hidden layer of ReLUs equals the maximum of three such functions of two inputs: the creases of
    such a network are whole lines, those of the maximum are rays that meet (the paper's Theorem 3).

    Args:
        W: `(k, n)`, becomes a parameter.
        b: `(k,)`, becomes a parameter; zeros by default.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(x (…, n))` returns `(…)`.

    Source: Amos and Kolter, OptNet, 2017, Theorem 3.
    """

    def __init__(self, W: Tensor, b: Tensor | None = None, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        shaped("W", W, None, None)
        if W.dim() != 2 or (b is not None and b.shape != W.shape[:1]):
            shapes = tuple(W.shape), None if b is None else tuple(b.shape)
            raise ValueError(f"W (k, n) and b (k,) are needed, not {shapes}")
        self.W = nn.Parameter(W.detach().clone())
        self.b = nn.Parameter(torch.zeros_like(W[:, 0]) if b is None else b.detach().clone())

    def solution(self, x: Tensor) -> Solution:
        """The Solution: `lam` is above zero for the function that is the largest."""
        shaped("the input", x, self.W.shape[1], weight=self.W)
        y = x @ self.W.mT + self.b
        one = torch.ones_like(self.b)
        return solve(Diagonal(one[:1]), -y.mean(-1, keepdim=True), -one[:, None], -y, **self.options)

    def forward(self, x: Tensor) -> Tensor:
        """The largest of the functions (…) of x (…, n)."""
        return self.solution(x).z[..., 0].to(x.dtype)  # autocast takes means in float32

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [f"W={tuple(self.W.shape)}", super().extra_repr()]))
