"""Model-predictive control of a linear system, as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..matrices import Diagonal
from ..solution import Solution
from ..solve import Options, solve
from .common import Layer, positive, shaped

__all__ = ["LinearMPC"]


class LinearMPC(Layer):
    """The best inputs of a linear system for the next `horizon` steps.

        minimise    ½ Σ_t (x_t − target)ᵀ diag(state_cost) (x_t − target) + ½ Σ_t u_tᵀ diag(input_cost) u_t
        subject to  x_{t+1} = F x_t + B u_t,  t = 0 … horizon − 1,
                    |u_t| ≤ input_limit,  |x_t| ≤ state_limit

    The model and the logarithms of the costs are parameters.

    Args:
        F: `(nx, nx)` transition of the state.
        B: `(nx, nu)` effect of the input.
        horizon: Number of steps.
        state_cost: `(nx,)`, positive; ones by default.
        input_cost: `(nu,)`, positive; ones by default.
        input_limit: Number or `(nu,)`; none by default.
        state_limit: Number or `(nx,)`; none by default. It may make a start infeasible.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(x0 (…, nx), target (…, nx) = 0)` returns the inputs `(…, horizon, nu)` and the states that they
    lead to, `(…, horizon, nx)`.

    Source: Rawlings, Mayne and Diehl, Model Predictive Control, 2017, ch. 1; as a layer: Amos et al.,
    Differentiable MPC, 2018.
    """

    limit: Tensor
    shown = ("horizon",)

    def __init__(
        self, F: Tensor, B: Tensor, horizon: int, state_cost: Tensor | None = None,
        input_cost: Tensor | None = None, input_limit: float | Tensor = float("inf"),
        state_limit: float | Tensor = float("inf"), **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        nx, nu = B.shape
        if F.shape != (nx, nx):
            raise ValueError(f"F (nx, nx) and B (nx, nu) are needed, not {tuple(F.shape)}, {tuple(B.shape)}")
        if horizon < 1:
            raise ValueError(f"horizon ≥ 1 is needed, not {horizon}")
        positive(input_limit=input_limit, state_limit=state_limit)
        for name, cost in (("state_cost", state_cost), ("input_cost", input_cost)):
            if cost is not None:
                positive(**{name: cost})
        self.horizon = horizon
        self.F, self.B = nn.Parameter(F.detach().clone()), nn.Parameter(B.detach().clone())
        ones = F.new_ones(nx + nu)
        self.log_state_cost = nn.Parameter((ones[:nx] if state_cost is None else state_cost.detach()).log())
        self.log_input_cost = nn.Parameter((ones[nx:] if input_cost is None else input_cost.detach()).log())
        self.register_buffer("limit", torch.cat([state_limit * ones[:nx], input_limit * ones[nx:]]))

    def solution(self, x0: Tensor, target: Tensor | None = None) -> Solution:
        """The Solution, with z = (x_1 … x_T, u_0 … u_{T−1}) and the multipliers of the dynamics and the limits."""
        (nx, nu), T = self.B.shape, self.horizon
        shaped("x0", x0, nx)
        eye = torch.eye(T).to(self.F)

        # block t of A z = b: x_{t+1} − F x_t − B u_t = 0, F x_0 being known
        before = torch.diag(torch.ones_like(eye[1:, 0]), -1)
        A = torch.cat([torch.eye(T * nx).to(eye) - torch.kron(before, self.F), -torch.kron(eye, self.B)], 1)
        b = torch.cat([x0 @ self.F.mT, x0.new_zeros(*x0.shape[:-1], (T - 1) * nx)], -1)
        state_cost = self.log_state_cost.exp().repeat(T)
        d = torch.cat([state_cost, self.log_input_cost.exp().repeat(T)])
        goal = torch.zeros_like(x0) if target is None else target.expand(x0.shape)
        cost = -state_cost * goal.repeat(*[1] * (x0.dim() - 1), T)
        q = torch.cat([cost, x0.new_zeros(*x0.shape[:-1], T * nu)], -1)
        limit = torch.cat([self.limit[:nx].repeat(T), self.limit[nx:].repeat(T)])
        return solve(Diagonal(d), q, A=A, b=b, lb=-limit, ub=limit, **self.options)

    def forward(self, x0: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs (…, horizon, nu) and states (…, horizon, nx) from x0 (…, nx) towards target (…, nx)."""
        (nx, nu), T = self.B.shape, self.horizon
        states, inputs = self.solution(x0, target).z.split([T * nx, T * nu], dim=-1)
        return inputs.unflatten(-1, (T, nu)), states.unflatten(-1, (T, nx))
