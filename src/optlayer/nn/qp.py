"""The two general layers: one that owns nothing, and one that learns its whole problem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..problem import Diagonal
from ..solve import solve

__all__ = ["OptNetLayer", "QPLayer"]


class QPLayer(nn.Module):
    """`solve` as a module without parameters.

        z = argmin ½ zᵀQz + qᵀz  subject to  A z = b, G z ≤ h, lb ≤ z ≤ ub

    Args:
        options: `settings`, `backend`, `check` for `optlayer.solve`.

    `forward` takes the tensors of `optlayer.solve` and returns z `(…, n)`.

    Source: Amos and Kolter, OptNet, 2017, eq. 2.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, Q: Tensor | Diagonal, q: Tensor, **constraints: Tensor | None) -> Tensor:
        return solve(Q, q, **constraints, **self.options).z


class OptNetLayer(nn.Module):
    """The generic learnable layer of the paper, feasible by construction.

        z = argmin ½ zᵀQz + qᵀz  subject to  A z = A z₀,  G z ≤ G z₀ + s₀,  lb ≤ z ≤ ub

    The input is q. Q = L Lᵀ + εI, G, A, z₀ and log s₀ are parameters: whatever they become, z₀ is feasible.

    Args:
        variables: n.
        inequalities: p, rows of G.
        equalities: m, rows of A.
        Q: "full" learns the lower triangular L, "diagonal" a positive diagonal; a number fixes Q to that multiple of I.
        epsilon: ε, the least curvature where Q is learned.
        lb, ub: fixed bounds, numbers or tensors `(n,)`; none by default. z₀ starts inside.
        options: `settings`, `backend`, `check` for `optlayer.solve`.

    `forward(q (…, n))` returns z `(…, n)`.

    Source: Amos and Kolter, OptNet, 2017, §3.2 and §4.
    """

    def __init__(
        self, variables: int, inequalities: int = 0, equalities: int = 0, *, Q: str | float = "full",
        epsilon: float = 1e-4, lb: float | Tensor | None = None, ub: float | Tensor | None = None,
        dtype: torch.dtype | None = None, device: torch.device | str | None = None, **options: Any,
    ) -> None:
        super().__init__()
        n, kind = variables, {"dtype": dtype, "device": device}
        self.epsilon, self.options = epsilon, options
        if Q == "full":
            self.L = nn.Parameter(torch.eye(n, **kind) + torch.rand(n, n, **kind).tril() / n)
        elif Q == "diagonal":
            self.log_d = nn.Parameter(torch.zeros(n, **kind))
        elif isinstance(Q, (int, float)):
            self.register_buffer("d", torch.full((n,), float(Q), **kind))
        else:
            raise ValueError(f'Q is "full", "diagonal" or a number, not {Q!r}')
        for name, bound in (("lb", lb), ("ub", ub)):
            value = None if bound is None else torch.as_tensor(bound, **kind).expand(n).clone()
            self.register_buffer(name, value)
        self.G = nn.Parameter(torch.randn(inequalities, n, **kind) / n**0.5) if inequalities else None
        self.log_s0 = nn.Parameter(torch.zeros(inequalities, **kind)) if inequalities else None
        self.A = nn.Parameter(torch.rand(equalities, n, **kind)) if equalities else None
        self.z0 = nn.Parameter(self._start(n, kind)) if inequalities or equalities else None

    def _start(self, n: int, kind: dict[str, Any]) -> Tensor:
        """A point well inside the bounds."""
        low = torch.full((n,), -torch.inf, **kind) if self.lb is None else self.lb
        high = torch.full((n,), torch.inf, **kind) if self.ub is None else self.ub
        inside = torch.where(low.isfinite(), low + 1, torch.where(high.isfinite(), high - 1, 0.0))
        return torch.where(low.isfinite() & high.isfinite(), (low + high) / 2, inside)

    def quadratic(self) -> Tensor | Diagonal:
        """Q as `optlayer.solve` takes it."""
        if hasattr(self, "L"):
            L = self.L.tril()
            return L @ L.mT + self.epsilon * torch.eye(len(L)).to(L)
        return Diagonal(self.log_d.exp() + self.epsilon if hasattr(self, "log_d") else self.d)

    def forward(self, q: Tensor) -> Tensor:
        flat = q.reshape(-1, q.shape[-1])
        G, A, z0 = self.G, self.A, self.z0
        h = None if G is None else G @ z0 + self.log_s0.exp()
        b = None if A is None else A @ z0
        sol = solve(self.quadratic(), flat, G, h, A, b, self.lb, self.ub, **self.options)
        return sol.z.view(q.shape)
