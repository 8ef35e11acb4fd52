"""The two general layers: one that owns nothing, and one that learns its whole problem."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..matrices import Diagonal
from ..solution import Solution
from ..solve import Options, solve
from .common import Layer, shaped

__all__ = ["OptNetLayer", "QPLayer"]


class QPLayer(Layer):
    """`solve` as a module without parameters.

        z = argmin ½ zᵀQz + qᵀz  subject to  A z = b, G z ≤ h, lb ≤ z ≤ ub

    Args:
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(Q, q, G, h, A, b, lb, ub)` takes the tensors of `optlayer.solve`, the last six by name or absent, and
    returns z `(…, n)`.

    Source: Amos and Kolter, OptNet, 2017, eq. 2.
    """

    def solution(
        self, Q: Tensor | Diagonal, q: Tensor, G: Tensor | None = None, h: Tensor | float | None = None,
        A: Tensor | None = None, b: Tensor | float | None = None, lb: Tensor | float | None = None,
        ub: Tensor | float | None = None,
    ) -> Solution:
        """The Solution of the problem."""
        return solve(Q, q, G, h, A, b, lb, ub, **self.options)

    def forward(
        self, Q: Tensor | Diagonal, q: Tensor, G: Tensor | None = None, h: Tensor | float | None = None,
        A: Tensor | None = None, b: Tensor | float | None = None, lb: Tensor | float | None = None,
        ub: Tensor | float | None = None,
    ) -> Tensor:
        """The minimiser z (…, n)."""
        return self.solution(Q, q, G, h, A, b, lb, ub).z


class OptNetLayer(Layer):
    """The generic learnable layer of the paper, feasible by construction.

        z = argmin ½ zᵀQz + qᵀz  subject to  A z = A z₀,  G z ≤ G z₀ + s₀,  lb ≤ z ≤ ub

    The input is q. What is learned is Q, G, A, the slack s₀ = exp(`log_s0`) and the point z₀, which lies strictly
    within the bounds whatever its parameter `w0` is: lb + exp(w₀), ub − exp(w₀), lb + (ub − lb)·logistic(w₀), or w₀
    itself, entry by entry. So z₀ satisfies every constraint at each step of training.

    With `soft`, equations are a cost instead: ½ Σᵢ wᵢ (aᵢᵀ(z − z₀))² is added, with learned weights w = exp(`log_w`).
    A hard equation cannot become idle, so their number has to be known; a soft one that is not needed gets no weight.
    Start with more rows than needed. (Rows of A that become nearly dependent do no harm, either: gradients stay small,
    and rates from 10⁻² to 1 learn alike in our mini-Sudoku.)

    It starts with (`reset_parameters`):

    - Q = LLᵀ + εI with L = I plus a small lower triangle, uniform in [0, 1/n]; or the diagonal exp(0) + ε. An
      unconstrained answer has then the size of q.
    - G normal with variance 1/n and s₀ = 1: each inequality is at a distance of about one from z₀, so that with q of
      size one about one in six is active. Inactive inequalities do not learn.
    - A uniform in [0, 1], as in the paper's Sudoku layer; soft rows are scaled to a length of about one.
    - z₀: zero where there are no bounds, one off a single bound, the middle of two.

    Args:
        variables: n.
        inequalities: p, rows of G.
        equalities: m, rows of A.
        Q: "full" learns the lower triangular L, "diagonal" a positive diagonal; a number fixes Q to that multiple
            of I.
        epsilon: ε, the least curvature where Q is learned.
        soft: None for hard equations, or a number: what the weights of soft ones start with, relative to Q.
        lb, ub: fixed bounds, numbers or tensors `(n,)`; none by default.
        dtype, device: of the parameters.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(q (…, n))` returns z `(…, n)`; `solution(q)` the whole `Solution`.

    Source: Amos and Kolter, OptNet, 2017, §3.2 and §4.
    """

    d: Tensor
    lb: Tensor | None
    ub: Tensor | None

    def __init__(
        self, variables: int, inequalities: int = 0, equalities: int = 0, *, Q: str | float = "full",
        epsilon: float = 1e-4, soft: float | None = None,
        lb: float | Tensor | None = None, ub: float | Tensor | None = None,
        dtype: torch.dtype | None = None, device: torch.device | str | None = None, **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        n, p, m = variables, inequalities, equalities
        if min(n, 1 + p, 1 + m) < 1:
            raise ValueError(f"variables ≥ 1, inequalities ≥ 0, equalities ≥ 0 are needed, not {n}, {p}, {m}")
        if isinstance(Q, str) and Q not in ("full", "diagonal"):
            raise ValueError(f'Q is "full", "diagonal" or a number, not {Q!r}')
        if soft is not None and not soft > 0:
            raise ValueError(f"soft > 0 is needed, not {soft}")
        self.variables, self.epsilon, self.soft = n, epsilon, soft

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=dtype, device=device))

        self.L = parameter(n, n) if Q == "full" else None
        self.log_d = parameter(n) if Q == "diagonal" else None
        fixed = None if isinstance(Q, str) else torch.full((n,), float(Q), dtype=dtype, device=device)
        self.register_buffer("d", fixed)
        self.G = parameter(p, n) if p else None
        self.log_s0 = parameter(p) if p else None
        self.A = parameter(m, n) if m else None
        self.log_w = parameter(m) if m and soft else None
        self.w0 = parameter(n) if p or m else None
        for name, bound in (("lb", lb), ("ub", ub)):
            kind = dtype or torch.get_default_dtype()
            value = None if bound is None else torch.as_tensor(bound, dtype=kind, device=device).expand(n).clone()
            self.register_buffer(name, value)
        if self.lb is not None and self.ub is not None and bool((self.lb > self.ub).any()):
            raise ValueError("lb ≤ ub is needed")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew, at random."""
        if self.L is not None:
            n = len(self.L)
            self.L.copy_(torch.rand_like(self.L).tril() / n).diagonal().add_(1)
        if self.G is not None:
            nn.init.normal_(self.G, std=self.G.shape[1] ** -0.5)
        if self.A is not None:
            nn.init.uniform_(self.A)
        if self.A is not None and self.log_w is not None and self.soft is not None:
            self.A.mul_((3 / self.A.shape[1]) ** 0.5)
            nn.init.constant_(self.log_w, math.log(self.soft))
        for zero in (self.log_d, self.log_s0, self.w0):
            if zero is not None:
                nn.init.zeros_(zero)

    @property
    def Q(self) -> Tensor | Diagonal:
        """Q as `optlayer.solve` takes it."""
        if self.L is not None:
            L = self.L.tril()
            return L @ L.mT + self.epsilon * torch.eye(len(L)).to(L)
        return Diagonal(self.d if self.log_d is None else self.log_d.exp() + self.epsilon)

    @property
    def z0(self) -> Tensor:
        """The point that every constraint allows."""
        assert self.w0 is not None, "bounds alone need no such point"
        return inside(self.w0, self.lb, self.ub)

    @property
    def h(self) -> Tensor | None:
        """G z₀ + s₀."""
        return None if self.G is None or self.log_s0 is None else self.G @ self.z0 + self.log_s0.exp()

    @property
    def b(self) -> Tensor | None:
        """A z₀."""
        return None if self.A is None else self.A @ self.z0

    def solution(self, q: Tensor) -> Solution:
        """The Solution for q (…, n)."""
        shaped("the input", q, self.variables)
        Q, A, b = self.Q, self.A, self.b
        if A is not None and self.log_w is not None:
            # ½ Σ wᵢ (aᵢᵀ(z − z₀))² = ½ zᵀSᵀS z − (S z₀)ᵀS z + const, with S = diag(√w) A
            S = (0.5 * self.log_w).exp()[:, None] * A
            Q = (torch.diag(Q.d) if isinstance(Q, Diagonal) else Q) + S.mT @ S
            q, A, b = q - (S @ self.z0) @ S, None, None
        return solve(Q, q, self.G, self.h, A, b, self.lb, self.ub, **self.options)

    def forward(self, q: Tensor) -> Tensor:
        """z (…, n) for the input q (…, n)."""
        return self.solution(q).z

    def extra_repr(self) -> str:
        p, m = (0 if M is None else len(M) for M in (self.G, self.A))
        sizes = f"variables={self.variables}, inequalities={p}, equalities={m}"
        return ", ".join(filter(None, [sizes, super().extra_repr()]))


def inside(w: Tensor, lb: Tensor | None, ub: Tensor | None) -> Tensor:
    """A point strictly within lb and ub for any w (n,); on them where they are equal."""
    low = torch.full_like(w, -torch.inf) if lb is None else lb
    high = torch.full_like(w, torch.inf) if ub is None else ub
    below, above = low.isfinite(), high.isfinite()
    # Zeros stand for what is not used: where() would else make NaN of its infinities in the backward pass.
    step = torch.where(below ^ above, w, 0.0).exp()
    width = torch.where(below & above, high - low, 0.0)
    free = torch.where(below | above, 0.0, w)
    upwards = torch.where(above, width * w.sigmoid(), step)
    start = torch.where(below, low, torch.where(above, high, 0.0))
    return start + torch.where(below, upwards, torch.where(above, -step, free))
