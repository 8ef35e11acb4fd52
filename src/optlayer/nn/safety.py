"""A filter that lets a controller do what it wants, as long as that is safe."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..matrices import Diagonal
from ..solution import Solution
from ..solve import Options, solve
from .common import Layer, constant, like, positive, shaped

__all__ = ["SafetyFilter"]


class SafetyFilter(Layer):
    """The safe input that is nearest to the wanted one, by control barrier functions.

    A system ẋ = f(x) + g(x) u stays where all barriers c_i(x) ≥ 0 if none falls faster than `gain · c_i`:

        minimise ½‖u − wanted‖²  subject to  ∇c·f + ∇c·g u ≥ −gain · c,  |u| ≤ limit

    Args:
        gain: How fast a barrier may be approached, positive. It is a parameter.
        limit: The largest size of an entry of u, a number or `(n,)`; none by default.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(wanted (…, n), barrier (…, p), drift (…, p), control (…, p, n))`, with `barrier` the values c,
    `drift` = ∇c·f and `control` = ∇c·g, returns u `(…, n)`; leading dimensions are broadcast.

    Source: Ames et al., Control barrier functions: theory and applications, 2019.
    """

    limit: float | Tensor
    shown = ("gain", "limit")

    def __init__(
        self, gain: float = 1.0, limit: float | Tensor = float("inf"), **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        positive(gain=gain, limit=limit)
        self.gain = nn.Parameter(torch.tensor(float(gain)))
        constant(self, "limit", limit)

    def solution(self, wanted: Tensor, barrier: Tensor, drift: Tensor, control: Tensor) -> Solution:
        """The Solution: a multiplier above zero names the barrier that holds the input back."""
        shaped("control", control, None, None)
        p, n = control.shape[-2:]
        shaped("wanted", wanted, n)
        shaped("barrier", barrier, p)
        shaped("drift", drift, p)
        limit = like(self.limit, wanted)
        h = drift + self.gain.to(wanted) * barrier
        return solve(Diagonal(wanted.new_ones(n)), -wanted, G=-control, h=h, lb=-limit, ub=limit, **self.options)

    def forward(self, wanted: Tensor, barrier: Tensor, drift: Tensor, control: Tensor) -> Tensor:
        """The input u (…, n)."""
        return self.solution(wanted, barrier, drift, control).z
