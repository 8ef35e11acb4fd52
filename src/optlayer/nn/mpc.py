"""Model-predictive control of a linear system, as a layer."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..matrices import Diagonal, Matrix
from ..solution import Solution
from ..solve import Options, solve
from ..sparse import Pattern, Sparse
from .common import DENSE, Layer, positive, shaped, taken

__all__ = ["LinearMPC"]

Limit: TypeAlias = "float | Tensor | tuple[float | Tensor, float | Tensor]"
Places: TypeAlias = "range | tuple[int, ...]"


class LinearMPC(Layer):
    """The best inputs of a linear system for the next `horizon` steps.

        minimise    ½ Σ_t (x_t − target)ᵀ W_t (x_t − target) + ½ Σ_t u_tᵀ V u_t + price Σ (violations of state_limit)
        subject to  x_{t+1} = F_t x_t + B_t u_t + c_t,  t = 0 … horizon − 1,
                    input_lower ≤ u_t ≤ input_upper,  state_lower ≤ x_t ≤ state_upper

    W_t is the state's cost, at the last step the terminal cost; V is the input's. The model and the costs are
    parameters: a cost given by its diagonal as its logarithm, a full one as its Cholesky factor. Of many steps,
    and with soft limits, the matrices are `Sparse`.

    Args:
        F: `(nx, nx)` transition of the state, or `(horizon, nx, nx)`, one for each step.
        B: `(nx, nu)` effect of the input, or `(horizon, nx, nu)`.
        horizon: Number of steps.
        state_cost: `(nx,)`, positive, or `(nx, nx)`, positive definite; ones by default.
        input_cost: `(nu,)` or `(nu, nu)`, likewise.
        input_limit: Number or `(nu,)`, of the magnitude, or a pair of those, (lower, upper); none by default.
        state_limit: Number or `(nx,)`, or a pair, likewise; none by default. It may make a start infeasible.
        c: `(nx,)` or `(horizon, nx)`, the constant part of an affine model; none by default.
        terminal_cost: `(nx,)` or `(nx, nx)`, as state_cost; by default the state's cost.
        soft: Price of a violation of state_limit by one, positive, a number or `(nx,)`; by default limits are hard. If
            the hard problem has an answer and the price exceeds its multipliers, the answer is the same.
        options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.

    `forward(x0 (…, nx), target (…, nx) = 0)` returns the inputs `(…, horizon, nu)` and the states that they
    lead to, `(…, horizon, nx)`.

    Raises:
        ValueError: for shapes that do not fit, costs or a price that are not positive, a lower limit above the upper.

    Source: Rawlings, Mayne and Diehl, Model Predictive Control, 2017, ch. 1; as a layer: Amos et al.,
    Differentiable MPC, 2018; soft limits: Kerrigan and Maciejowski, Soft constraints and exact penalty functions in
    model predictive control, 2000.
    """

    lower: Tensor
    upper: Tensor
    price: Tensor
    rows: Tensor
    shown = ("horizon",)

    def __init__(
        self, F: Tensor, B: Tensor, horizon: int, state_cost: Tensor | None = None,
        input_cost: Tensor | None = None, input_limit: Limit = float("inf"),
        state_limit: Limit = float("inf"), *, c: Tensor | None = None, terminal_cost: Tensor | None = None,
        soft: float | Tensor | None = None, **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        if horizon < 1:
            raise ValueError(f"horizon ≥ 1 is needed, not {horizon}")
        nx, nu = B.shape[-2:] if B.dim() > 1 else (0, 0)
        for name, given, size in (("F", F, (nx, nx)), ("B", B, (nx, nu)), ("c", c, (nx,))):
            if given is not None and given.shape not in (size, (horizon, *size)):
                letters = ", ".join({"F": ("nx", "nx"), "B": ("nx", "nu"), "c": ("nx",)}[name])
                raise ValueError(
                    f"F (nx, nx) and B (nx, nu) are needed, and {name} ({letters}) or (horizon, {letters}), "
                    f"not {tuple(F.shape)}, {tuple(B.shape)}" + ("" if c is None else f", {tuple(c.shape)}")
                )
        self.horizon, self.sizes = horizon, (nx, nu)
        self.F, self.B = nn.Parameter(F.detach().clone()), nn.Parameter(B.detach().clone())
        self.c = None if c is None else nn.Parameter(c.detach().clone())
        self._cost("state_cost", F.new_ones(nx) if state_cost is None else state_cost, nx)
        self._cost("input_cost", F.new_ones(nu) if input_cost is None else input_cost, nu)
        if terminal_cost is not None:
            self._cost("terminal_cost", terminal_cost, nx)
        sides = [_sides(name, limit, F.new_ones(size)) for name, limit, size in
                 (("state_limit", state_limit, nx), ("input_limit", input_limit, nu))]
        for side, name in enumerate(("lower", "upper")):
            self.register_buffer(name, torch.cat([pair[side] for pair in sides]))
        self.limited: list[int] = []  # the states that may leave their limits, at a price
        if soft is not None:
            positive(soft=soft)
            self.limited = (self.lower.isfinite() | self.upper.isfinite())[:nx].nonzero().flatten().tolist()
            self.register_buffer("price", soft * F.new_ones(nx))
        self._lay_out()

    def _cost(self, name: str, cost: Tensor, size: int) -> None:
        """Make the parameter `log_name` or `root_name`."""
        if cost.shape == (size,):
            positive(**{name: cost})
            self.register_parameter(f"log_{name}", nn.Parameter(cost.detach().log()))
        elif cost.shape == (size, size):
            root, failed = torch.linalg.cholesky_ex(cost.detach())
            if failed or not torch.allclose(cost, cost.mT):
                raise ValueError(f"{name} is not symmetric and positive definite")
            self.register_parameter(f"root_{name}", nn.Parameter(root))
        else:
            raise ValueError(f"{name} ({size},) or ({size}, {size}) is needed, not {tuple(cost.shape)}")

    def cost(self, name: str) -> Tensor:
        """The cost `state_cost`, `input_cost` or `terminal_cost`: its diagonal (k,), or all of it (k, k)."""
        if name == "terminal_cost" and not {"log_terminal_cost", "root_terminal_cost"} & self._parameters.keys():
            name = "state_cost"
        if f"log_{name}" in self._parameters:
            return torch.exp(getattr(self, f"log_{name}"))
        root = getattr(self, f"root_{name}").tril()
        return root @ root.mT

    def _lay_out(self) -> None:
        """Find where the blocks of A, Q and G go: once, for it depends on the sizes only."""
        (nx, nu), T = self.sizes, self.horizon
        inputs, slacks = T * nx, T * (nx + nu)
        x, u = range(0, inputs, nx), range(inputs, slacks, nu)  # where stages begin
        rows = tuple(start + k for start in x for k in self.limited)
        p = len(rows)
        n = slacks + 2 * p
        each, above, below = range(p), range(slacks, slacks + p), range(slacks + p, n)
        layouts = {
            "A": _layout((inputs, n), (x, x, nx, nx), (x[1:], x[:-1], nx, nx), (x, u, nx, nu)),
            "Q": _layout((n, n), (x, x, nx, nx), (u, u, nu, nu)),
            "G": _layout((p, n), (each, rows, 1, 1), (each, above, 1, 1), (each, below, 1, 1)),
        }
        self.patterns = {name: pattern for name, (pattern, _) in layouts.items()}
        for name, (_, order) in layouts.items():
            self.register_buffer(f"order_{name}", order, persistent=False)
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.int64), persistent=False)

    def _matrix(self, name: str, *blocks: Tensor) -> Matrix:
        """The matrix of blocks (k, r, c), in the order of the layout: sparse if it is large."""
        values = torch.cat([block.flatten() for block in blocks])[getattr(self, f"order_{name}")]
        M = Sparse.of(self.patterns[name], values)
        large = self.limited or self.sizes[1] * self.horizon > DENSE  # (with soft limits sparse is always faster)
        return taken(M, self.options) if large else M.dense()

    def solution(self, x0: Tensor, target: Tensor | None = None) -> Solution:
        """The Solution, with the multipliers of the dynamics and the limits.

        z = (x_1 … x_T, u_0 … u_{T−1}), and with soft limits the violations of the upper and then the lower ones of the
        states that have any, each (x_1 … x_T).
        """
        (nx, nu), T = self.sizes, self.horizon
        shaped("x0", x0, nx, weight=self.F)
        F, B = (M.expand(T, *M.shape[-2:]) for M in (self.F, self.B))
        lead, p = x0.shape[:-1], T * len(self.limited)

        # block t of A z = b: x_{t+1} − F_t x_t − B_t u_t = c_t, F_0 x_0 being known
        eye = torch.eye(nx).to(F).expand(T, nx, nx)
        A = self._matrix("A", eye, -F[1:], -B)
        b = torch.cat([x0 @ F[0].mT, x0.new_zeros(*lead, (T - 1) * nx)], -1)
        if self.c is not None:
            b = b + self.c.expand(T, nx).flatten()

        state, last, effort = (self.cost(name) for name in ("state_cost", "terminal_cost", "input_cost"))
        free = F.new_zeros(2 * p)
        Q: Matrix
        if state.dim() == last.dim() == effort.dim() == 1:
            Q = Diagonal(torch.cat([state.repeat(T - 1), last, effort.repeat(T), free]))
        else:
            full = [cost if cost.dim() == 2 else cost.diag() for cost in (state, last, effort)]
            Q = self._matrix("Q", full[0].expand(T - 1, nx, nx), full[1], full[2].expand(T, nu, nu))
        goal = torch.zeros_like(x0) if target is None else target.expand(x0.shape)
        towards = [-(cost * goal if cost.dim() == 1 else goal @ cost) for cost in (state, last)]
        q = torch.cat([*towards[:1] * (T - 1), towards[1], x0.new_zeros(*lead, T * nu)], -1)

        lower, upper = (torch.cat([side[:nx].repeat(T), side[nx:].repeat(T)]) for side in (self.lower, self.upper))
        if not self.limited:
            return solve(Q, q, A=A, b=b, lb=lower, ub=upper, **self.options)

        # rows lower ≤ x − above + below ≤ upper, with above, below ≥ 0 at the price
        one = F.new_ones(p)
        G = self._matrix("G", one, -one, one)
        price = self.price.repeat(T)[self.rows].repeat(2).expand(*lead, 2 * p)
        h, h_lower = upper[self.rows], lower[self.rows]
        unlimited = torch.full_like(upper[: T * nx], torch.inf)
        lower = torch.cat([-unlimited, lower[T * nx :], free])
        upper = torch.cat([unlimited, upper[T * nx :], free + torch.inf])
        return solve(
            Q, torch.cat([q, price], -1), G, h, A, b, lb=lower, ub=upper, h_lower=h_lower, **self.options
        )

    def forward(self, x0: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs (…, horizon, nu) and states (…, horizon, nx) from x0 (…, nx) towards target (…, nx)."""
        (nx, nu), T = self.sizes, self.horizon
        z = self.solution(x0, target).z.to(x0.dtype)  # autocast multiplies in a type of its own
        states, inputs = z[..., : T * nx], z[..., T * nx : T * (nx + nu)]
        return inputs.unflatten(-1, (T, nu)), states.unflatten(-1, (T, nx))


def _layout(size: tuple[int, int], *blocks: tuple[Places, Places, int, int]) -> tuple[Pattern, Tensor]:
    """The pattern of a matrix of blocks (where they begin, r, c), and the order of their entries in it."""
    places = []
    for rows, columns, r, c in blocks:
        row = torch.tensor(rows, dtype=torch.int64)[:, None, None] + torch.arange(r)[:, None]
        column = torch.tensor(columns, dtype=torch.int64)[:, None, None] + torch.arange(c)
        places.append((row * size[1] + column).flatten())
    at, order = torch.cat(places).sort()
    first = torch.searchsorted(at, torch.arange(size[0] + 1) * size[1])
    return Pattern(first, at % size[1], size), order


def _sides(name: str, limit: Limit, ones: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper limits (k,)."""
    if not isinstance(limit, tuple):
        positive(**{name: limit})
        return -limit * ones, limit * ones
    if len(limit) != 2:
        raise ValueError(f"{name} is a number, a tensor, or a pair (lower, upper)")
    lower, upper = (side * ones for side in limit)
    if not bool((lower <= upper).all()):
        raise ValueError(f"{name}: lower ≤ upper is needed")
    return lower, upper
