"""Model-predictive control of a linear system, as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..matrices import Diagonal
from ..solve import solve

__all__ = ["LinearMPC"]


class LinearMPC(nn.Module):
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
        options: `settings`, `backend`, `check` for `optlayer.solve`.

    `forward(x0 (…, nx), target (…, nx) = 0)` returns the inputs `(…, horizon, nu)` and the states that they
    lead to, `(…, horizon, nx)`.

    Source: Rawlings, Mayne and Diehl, Model Predictive Control, 2017, ch. 1; as a layer: Amos et al.,
    Differentiable MPC, 2018.
    """

    limit: Tensor

    def __init__(
        self, F: Tensor, B: Tensor, horizon: int, state_cost: Tensor | None = None,
        input_cost: Tensor | None = None, input_limit: float | Tensor = float("inf"),
        state_limit: float | Tensor = float("inf"), **options: Any,
    ) -> None:
        super().__init__()
        nx, nu = B.shape
        if F.shape != (nx, nx):
            raise ValueError(f"F (nx, nx) and B (nx, nu) are needed, not {tuple(F.shape)}, {tuple(B.shape)}")
        self.horizon, self.options = horizon, options
        self.F, self.B = nn.Parameter(F.detach().clone()), nn.Parameter(B.detach().clone())
        ones = F.new_ones(nx + nu)
        self.log_state_cost = nn.Parameter((ones[:nx] if state_cost is None else state_cost.detach()).log())
        self.log_input_cost = nn.Parameter((ones[nx:] if input_cost is None else input_cost.detach()).log())
        self.register_buffer("limit", torch.cat([state_limit * ones[:nx], input_limit * ones[nx:]]))

    def forward(self, x0: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        (nx, nu), T = self.B.shape, self.horizon
        start = x0.reshape(-1, nx)
        eye = torch.eye(T).to(self.F)

        # z = (x_1 … x_T, u_0 … u_{T−1}); block t of A z = b: x_{t+1} − F x_t − B u_t = 0, F x_0 being known.
        before = torch.diag(torch.ones_like(eye[1:, 0]), -1)
        A = torch.cat([torch.eye(T * nx).to(eye) - torch.kron(before, self.F), -torch.kron(eye, self.B)], 1)
        b = torch.cat([start @ self.F.mT, start.new_zeros(len(start), (T - 1) * nx)], 1)
        state_cost = self.log_state_cost.exp().repeat(T)
        d = torch.cat([state_cost, self.log_input_cost.exp().repeat(T)])
        goal = torch.zeros_like(start) if target is None else target.expand(x0.shape).reshape(-1, nx)
        q = torch.cat([-state_cost * goal.repeat(1, T), start.new_zeros(len(start), T * nu)], 1)
        limit = torch.cat([self.limit[:nx].repeat(T), self.limit[nx:].repeat(T)])

        z = solve(Diagonal(d), q, A=A, b=b, lb=-limit, ub=limit, **self.options).z
        states, inputs = z.split([T * nx, T * nu], dim=1)
        return inputs.reshape(*x0.shape[:-1], T, nu), states.reshape(*x0.shape[:-1], T, nx)
