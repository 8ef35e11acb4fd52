"""A filter that lets a controller do what it wants, as long as that is safe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..matrices import Diagonal
from ..solve import solve
from .common import constant, like

__all__ = ["SafetyFilter"]


class SafetyFilter(nn.Module):
    """The safe input that is nearest to the wanted one, by control barrier functions.

    A system ẋ = f(x) + g(x) u stays where all barriers c_i(x) ≥ 0 if none falls faster than `gain · c_i`:

        minimise ½‖u − wanted‖²  subject to  ∇c·f + ∇c·g u ≥ −gain · c,  |u| ≤ limit

    Args:
        gain: How fast a barrier may be approached, positive. It is a parameter.
        limit: The largest size of an entry of u, a number or `(n,)`; none by default.
        options: `settings`, `backend`, `check` for `optlayer.solve`.

    `forward(wanted (…, n), barrier (…, p), drift (…, p), control (…, p, n))`, with `barrier` the values c,
    `drift` = ∇c·f and `control` = ∇c·g, returns u `(…, n)`.

    Source: Ames et al., Control barrier functions: theory and applications, 2019.
    """

    limit: float | Tensor

    def __init__(self, gain: float = 1.0, limit: float | Tensor = float("inf"), **options: Any) -> None:
        super().__init__()
        self.gain, self.options = nn.Parameter(torch.tensor(float(gain))), options
        constant(self, "limit", limit)

    def forward(self, wanted: Tensor, barrier: Tensor, drift: Tensor, control: Tensor) -> Tensor:
        p, n = control.shape[-2:]
        u = wanted.reshape(-1, n)
        limit = like(self.limit, u) * torch.ones_like(u[0])
        sol = solve(
            Diagonal(torch.ones_like(u[0])), -u,
            G=-control.reshape(-1, p, n), h=(drift + self.gain.to(u) * barrier).reshape(-1, p),
            lb=-limit, ub=limit, **self.options,
        )
        return sol.z.view(wanted.shape)
