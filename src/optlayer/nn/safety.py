"""A filter that lets a controller do what it wants, as long as that is safe."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..matrices import Diagonal
from ..solution import Solution
from ..solve import Options
from .builder import Builder
from .common import Layer, constant, like, positive, shaped

__all__ = ["SafetyFilter"]


class SafetyFilter(Layer):
    """The safe input that is nearest to the wanted one, by control barrier functions.

    A system ẋ = f(x) + g(x) u stays where all barriers c_i(x) ≥ 0 if none falls faster than `gain · c_i`:

        minimise ½‖u − wanted‖²  subject to  ∇c·f + ∇c·g u ≥ −gain · c,  |u| ≤ limit

    Limits and barriers may contradict each other. With `slack` a barrier gives way where it must, at that price:

        minimise ½‖u − wanted‖² + slack·1ᵀt  subject to  ∇c·f + ∇c·g u ≥ −gain · c − t,  t ≥ 0,  |u| ≤ limit

    which always has an answer, and the same one, with t = 0, where the multipliers of the barriers are below `slack`.

    Args:
        gain: How fast a barrier may be approached, positive. It is a parameter.
        limit: The largest size of an entry of u, a number or `(n,)`; none by default.
        slack: The price of a unit of violation, positive, a number or `(p,)`; None for barriers that never give way.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(wanted (…, n), barrier (…, p), drift (…, p), control (…, p, n))`, with `barrier` the values c,
    `drift` = ∇c·f and `control` = ∇c·g, returns u `(…, n)`; leading dimensions are broadcast.
    `violation(u, barrier, drift, control)` returns the least t `(…, p)` with which u is allowed.

    Source: Ames et al., Control barrier functions: theory and applications, 2019, §II-C and §III-B.
    """

    limit: float | Tensor
    slack: float | Tensor | None
    shown = ("gain", "limit", "slack")

    def __init__(
        self, gain: float = 1.0, limit: float | Tensor = float("inf"), slack: float | Tensor | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        positive(gain=gain, limit=limit)
        self.gain = nn.Parameter(torch.tensor(float(gain)))
        constant(self, "limit", limit)
        if slack is None:
            self.slack = None
        else:
            positive(slack=slack)
            constant(self, "slack", slack)

    def solution(self, wanted: Tensor, barrier: Tensor, drift: Tensor, control: Tensor) -> Solution:
        """A multiplier above zero names the barrier that holds the input back; with `slack`, z is u, t."""
        shaped("control", control, None, None)
        p, n = control.shape[-2:]
        shaped("wanted", wanted, n)
        shaped("barrier", barrier, p)
        shaped("drift", drift, p)
        limit = like(self.limit, wanted) * wanted.new_ones(n)
        build = Builder(Diagonal(wanted.new_ones(n)), -wanted, lb=-limit, ub=limit)
        G, h = -control, drift + self.gain.to(wanted) * barrier
        build = build.add_rows(G, h) if self.slack is None else build.add_pos(self.slack, G, h)
        return build.solution(**self.options)

    def forward(self, wanted: Tensor, barrier: Tensor, drift: Tensor, control: Tensor) -> Tensor:
        """The input u (…, n)."""
        return self.solution(wanted, barrier, drift, control).z[..., : wanted.shape[-1]]

    def violation(self, u: Tensor, barrier: Tensor, drift: Tensor, control: Tensor) -> Tensor:
        """How much each barrier falls too fast under u: max(0, −gain · c − ∇c·f − ∇c·g u), `(…, p)`."""
        rate = drift + (control @ u[..., None])[..., 0]
        return (-self.gain.to(u) * barrier - rate).clamp(min=0)
