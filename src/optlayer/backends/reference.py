"""The reference: the paper's primal-dual interior point (OptNet §3.1) in plain batched torch.

The oracle that faster backends are tested against, and the backend where there is none of them: it takes every problem,
on any device, and gives every member a verdict that was verified. It steers its loop from the host, so it does
synchronise a GPU.

Everything is computed in float64, whatever the dtype of the problem; float32 answers are rounded at the end, and judged
after rounding. Inside, every problem has one form: all tensors present, dense, batched, padded with fixed variables
and absent rows to multiples of 8 (BLAS rounds differently when a matrix does not start on a cache line, and then the
bits of a member would depend on its place in the batch). Inequalities and bounds are one list of *sides*

    C z + s = d,   C = (G; −I; I),   d = (h; −lb; ub),   s, lam ≥ 0,

of which those with infinite d are off: lam = 0, s = 1.

The way of a member: `_standard` form → `_vet` (finite? convex? lb ≤ ub? rows of zeros?) → `_equilibrate` → `_interior`
(the loop of the paper) → `_polish` (the active set alone) → judged by `kkt.residuals` in the user's units. What is then
not solved is tried again in other units, and at last goes to `_certify`: the closest point to feasibility, or the
steepest ray, proves that there is no solution.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from optlayer import kkt
from optlayer.backends.base import Adjoint, Answer, Backend
from optlayer.core.settings import Settings, tolerance_of
from optlayer.core.status import Status
from optlayer.core.structure import DENSE, Structure
from optlayer.matrices import Diagonal
from optlayer.point import Point
from optlayer.problem import Problem

name, automatic, sparse, two_sided, closest = "reference", True, True, False, False

# In equilibrated units:
REGULARISATION = 1e-11  # of both diagonal blocks of the KKT matrix; refinement removes it
CENTRALITY = 0.1  # no product s lam falls below this part of their mean
ACCURACY = 1e-13  # at which the interior point ends ...
ENOUGH = 1e-10  # ... or without progress in two iterations, once it is as good as this: rounding may allow no more
FAR = 1e10  # a side so far beyond the nearest one may as well not be there; the judge sees it
PATIENCE = 15  # iterations without progress before a member is given up
SINGULAR = 1e-10  # eigenvalues of the KKT matrix that count as zero in derivatives
ROUNDING = (1e-8, 1e-7)  # of float32's data: rows contradict each other by so much, or the objective falls by so much
CURVATURE = {torch.float64: 1e-9, torch.float32: 1e-5}  # −λ/‖Q‖ that rounding may cause in a semidefinite Q


def unavailable() -> str | None:
    """None: it always works."""
    return None


def refuses(problem: Problem) -> str | None:
    """None: it takes everything."""
    return None


# --- one form for every problem -------------------------------------------------------------------------------------


class _Standard(NamedTuple):
    """All tensors in float64, dense and symmetric, batched, padded to multiples of 8."""

    Q: Tensor
    q: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor
    lb: Tensor
    ub: Tensor

    def select(self, members: Tensor) -> _Standard:
        return _Standard(*(x[members] for x in self))

    def problem(self) -> Problem:
        """As a Problem, for the functions of kkt.py."""
        (batch, p, n), m = self.G.shape, self.A.shape[-2]
        structure = Structure(
            n, m, p, (batch,), (DENSE,) * 3, lower=True, upper=True, dtype=self.q.dtype, device=self.q.device
        )
        return Problem(*self, structure)

    @property
    def fixed(self) -> Tensor:
        """Variables with lb = ub: constants, not unknowns."""
        return self.lb == self.ub


def _standard(problem: Problem) -> _Standard:
    n, m, p = problem.n, problem.m, problem.p
    batch = 1 if problem.batch is None else problem.batch
    Q, q, G, h, A, b, lb, ub, _ = (None if x is None else x.detach().double() for x in problem.dense().tensors())
    assert Q is not None
    assert q is not None
    Q = torch.diag_embed(Q) if isinstance(problem.Q, Diagonal) else 0.5 * (Q + Q.mT)
    more_n, more_m, more_p = -n % 8, -m % 8, -p % 8
    inf = torch.inf

    def full(x: Tensor | None, shape: tuple[int, ...], more: tuple[int, ...], absent: float, value: float) -> Tensor:
        x = q.new_full(shape, absent) if x is None else x
        x = _pad(x, more, value)
        return x.expand(batch, *x.shape[-len(shape) :]).contiguous()

    return _Standard(
        full(Q, (n, n), (more_n, more_n), 0.0, 0.0), full(q, (n,), (more_n,), 0.0, 0.0),
        full(G, (p, n), (more_p, more_n), 0.0, 0.0), full(h, (p,), (more_p,), inf, inf),
        full(A, (m, n), (more_m, more_n), 0.0, 0.0), full(b, (m,), (more_m,), 0.0, 0.0),
        full(lb, (n,), (more_n,), -inf, 0.0), full(ub, (n,), (more_n,), inf, 0.0),
    )  # fmt: skip


def _pad(x: Tensor, more: tuple[int, ...], value: float) -> Tensor:
    """x with `more` entries behind its last dimensions. torch's own pad, in 2.6, refuses a result without entries."""
    kept = x.shape[-len(more) :]
    wide = x.new_full((*x.shape[: -len(more)], *(a + b for a, b in zip(kept, more, strict=True))), value)
    corner: Any = (..., *(slice(size) for size in kept))
    wide[corner] = x
    return wide


class _Answer(NamedTuple):
    """A point in the user's units, of a standard problem."""

    z: Tensor
    s: Tensor  # of the rows of G
    lam: Tensor
    nu: Tensor
    lam_lb: Tensor
    lam_ub: Tensor


@dataclass(slots=True)
class _Scaled:
    """A standard problem equilibrated: z = origin + D ẑ, rows and objective scaled. D = 0 on fixed variables."""

    Q: Tensor
    q: Tensor
    G: Tensor
    A: Tensor
    b: Tensor
    d: Tensor  # right-hand sides of the sides, 0 where off
    on: Tensor  # 1.0 or 0.0 for each side
    soft: Tensor  # (B, 1): rows may be violated by soft times their multiplier; 0 but for `_certify` and `_attempt`
    D: Tensor
    origin: Tensor
    rows: Tensor  # scales of A's rows: Â = rows A D
    sides: Tensor  # scales of the sides
    cost: Tensor  # scale of the objective (B, 1)

    def select(self, members: Tensor) -> _Scaled:
        return _Scaled(*(getattr(self, field.name)[members] for field in fields(self)))

    def C(self, z: Tensor) -> Tensor:
        """C z, 0 where off."""
        return self.on * torch.cat([kkt.mul(self.G, z), -z, z], -1)

    def Ct(self, y: Tensor) -> Tensor:
        """Cᵀ y, without what is off."""
        p, n = self.G.shape[-2:]
        rows, lower, upper = (self.on * y).split([p, n, n], -1)
        return kkt.mul_t(self.G, rows) - lower + upper

    @property
    def give(self) -> Tensor:
        """How far each side gives per unit of its multiplier: soft for rows of G, 0 for bounds."""
        p, n = self.G.shape[-2:]
        return torch.cat([self.soft.expand(-1, p), self.soft.new_zeros(len(self.soft), 2 * n)], -1)

    def answer(self, problem: _Standard, point: _Iterate) -> _Answer:
        """The point in the user's units, inside its bounds."""
        p, n = self.G.shape[-2:]
        z = (self.origin + self.D * point.z).clamp(problem.lb, problem.ub)
        nu = self.rows * point.nu / self.cost
        rows, lower, upper = (self.sides * point.lam * self.on / self.cost).split([p, n, n], -1)
        force = kkt.mul(problem.Q, z) + problem.q + kkt.mul_t(problem.G, rows) + kkt.mul_t(problem.A, nu)
        lower = torch.where(problem.fixed, force.clamp(min=0), lower)
        upper = torch.where(problem.fixed, (-force).clamp(min=0), upper)
        slack = (problem.h - kkt.mul(problem.G, z)).clamp(min=0)
        exact = (rows > 0) & (point.s[:, :p] == 0)
        return _Answer(z, torch.where(exact, 0.0, slack), rows, nu, lower, upper)


    def iterate(self, problem: _Standard, answer: _Answer) -> _Iterate:
        """The reverse of `answer`: the point in equilibrated units."""
        z = torch.where(self.D > 0, (answer.z - self.origin) / self.D, 0.0)
        nu = torch.where(self.rows > 0, answer.nu * self.cost / self.rows, 0.0)
        slack = torch.cat([answer.s, answer.z - problem.lb, problem.ub - answer.z], -1).clamp(min=0)
        lam = torch.cat([answer.lam, answer.lam_lb, answer.lam_ub], -1)
        on = self.on > 0
        s, lam = torch.where(on, slack * self.sides, 1.0), torch.where(on, lam * self.cost / self.sides, 0.0)
        return _Iterate(z, nu, torch.where(lam > 0, 0.0, s.clamp(min=1e-300)), lam)


def _equilibrate(
    problem: _Standard, rounds: int = 10, anew: bool = False, by_curvature: bool = False
) -> _Scaled:
    """Ruiz: scale variables and rows until every row of the KKT matrix has largest entry 1; then the objective.

    `by_curvature`, of a derivative: each variable by its own, whatever its rows are, and the objective by Q alone.
    `anew`, where the first has not led to the solution: variables so; then all in the unit of the nearest side, without
    those that are FAR.
    """
    Q, q, G, h, A, b, lb, ub = problem
    fixed = problem.fixed
    origin = torch.where(fixed, lb, 0.0)
    q, b, h = q + kkt.mul(Q, origin), b - kkt.mul(A, origin), h - kkt.mul(G, origin)
    D = torch.where(fixed, 0.0, 1.0).to(q)
    E, F = torch.ones_like(b), torch.ones_like(h)
    own = (anew or by_curvature) & (Q.diagonal(dim1=-2, dim2=-1) > 0)

    def root(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 1.0).rsqrt()

    def scaled(left: Tensor, M: Tensor, right: Tensor) -> Tensor:
        return left.unsqueeze(-1) * M * right.unsqueeze(-2)

    for _ in range(rounds):
        parts = [abs(scaled(D, Q, D)), abs(scaled(E, A, D)), abs(scaled(F, G, D))]
        column = torch.stack([x.amax(-2) for x in parts if x.shape[-2]]).amax(0)
        column = torch.where(own, parts[0].diagonal(dim1=-2, dim2=-1), column)
        D = D * root(column)
        E = E * root(parts[1].amax(-1))
        F = F * root(parts[2].amax(-1))
    if anew:
        across = torch.where(D > 0, 1 / D, 0.0)
        distances = torch.cat([E * b, F * h, across * lb, across * ub], -1).abs()
        nearest = torch.where(distances > 0, distances, torch.inf).amin(-1, keepdim=True)
        unit = torch.where(nearest.isfinite(), nearest, 1.0)
        D, E, F = unit * D, E / unit, F / unit
    Q, A, G, q, b = scaled(D, Q, D), scaled(E, A, D), scaled(F, G, D), D * q, E * b
    size = Q.abs().amax(-1).mean(-1, keepdim=True)
    if not by_curvature:
        size = torch.maximum(size, q.abs().amax(-1, keepdim=True))
    cost = torch.where(size > 0, size, 1.0).reciprocal()
    Q, q = cost.unsqueeze(-1) * Q + torch.diag_embed(fixed.to(q)), cost * q
    across = 1 / torch.where(fixed, 1.0, D)
    sides = torch.cat([F, across, across], -1)
    d = sides * torch.cat([h, -lb, ub], -1)
    constant = torch.cat([torch.zeros_like(h, dtype=torch.bool), fixed, fixed], -1)
    on = (d.abs() < (FAR if anew else torch.inf)) & ~constant
    d = torch.where(on, d, 0.0)
    return _Scaled(Q, q, G, A, b, d, on.to(q), torch.zeros_like(cost), D, origin, E, sides, cost)


# --- the symmetric system -------------------------------------------------------------------------------------------


class _System:
    """The KKT matrix at (lam, s), factored once, solved for any right-hand side with refinement.

        Q v_z + Cᵀv_y + Aᵀv_nu = r_z
        A v_z = r_nu
        a∘(C v_z) − t∘v_y = r_y,     a = lam/(lam + s),  t = s/(lam + s)

    Bounds are eliminated into the diagonal; rows of G are scaled by √a, so that no entry is large. The factored matrix
    has ρ added to its primal and −ρ to its dual diagonal: it is quasi-definite, hence always factorable.
    """

    def __init__(self, problem: _Scaled, lam: Tensor, s: Tensor, factor: tuple[Tensor, ...] = ()) -> None:
        self.problem = problem
        (p, n), m = problem.G.shape[-2:], problem.A.shape[-2]
        total = lam + s
        live = (problem.on > 0) & (total > 0)
        self.a = torch.where(live, lam / total, 0.0)
        self.t = torch.where(live, s / total, 1.0) + self.a * problem.give
        self.pivot = self.t + self.a * REGULARISATION
        self.root = self.a[:, :p].sqrt()
        if factor:
            self.factor, self.pivots = factor
            return
        weight = self.a / self.pivot
        K = lam.new_zeros(len(lam), n + m + p, n + m + p)
        K[:, :n, :n], K[:, n : n + m, :n], K[:, n + m :, :n] = problem.Q, problem.A, self.root.unsqueeze(-1) * problem.G
        diagonal = K.diagonal(dim1=-2, dim2=-1)
        diagonal[:, :n] += weight[:, p : p + n] + weight[:, p + n :] + REGULARISATION
        diagonal[:, n : n + m] = -problem.soft - REGULARISATION
        diagonal[:, n + m :] = -self.pivot[:, :p]
        self.factor, self.pivots, _ = torch.linalg.ldl_factor_ex(K)

    def regularised(self, r_z: Tensor, r_nu: Tensor, r_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The solution with the factored matrix as it is."""
        problem, (p, n), m = self.problem, self.problem.G.shape[-2:], r_nu.shape[-1]
        _, lower, upper = (r_y / self.pivot).split([p, n, n], -1)
        r_rows = torch.where(self.root > 0, r_y[:, :p] / self.root, 0.0)
        right = torch.cat([r_z - lower + upper, r_nu, r_rows], -1).unsqueeze(-1)
        v_z, v_nu, v_rows = torch.linalg.ldl_solve(self.factor, self.pivots, right).squeeze(-1).split([n, m, p], -1)
        v_bounds = (self.a[:, p:] * torch.cat([-v_z, v_z], -1) - r_y[:, p:]) / self.pivot[:, p:]
        return v_z, v_nu, problem.on * torch.cat([self.root * v_rows, v_bounds], -1)

    def solve(self, r_z: Tensor, r_nu: Tensor, r_y: Tensor, rounds: int = 6) -> tuple[Tensor, Tensor, Tensor]:
        """(v_z, v_nu, v_y), refined as long as the residual of a member halves."""
        problem = self.problem
        residual: tuple[Tensor, ...] = (r_z, r_nu, r_y)
        best: tuple[Tensor, ...] = tuple(torch.zeros_like(r) for r in residual)
        size = torch.full_like(r_z[:, 0], torch.inf)
        going = size > 0
        for _ in range(rounds):
            step = self.regularised(*residual)
            v_z, v_nu, v_y = trial = tuple(x + dx for x, dx in zip(best, step, strict=True))
            left = (
                r_z - kkt.mul(problem.Q, v_z) - kkt.mul_t(problem.A, v_nu) - problem.Ct(v_y),
                r_nu - kkt.mul(problem.A, v_z) + problem.soft * v_nu,
                r_y - self.a * problem.C(v_z) + self.t * v_y,
            )
            now = _most(*left)
            better = going & (now < size)
            best, residual = _pick(better, trial, best), _pick(better, left, residual)
            going = better & (now < 0.5 * size)
            size = torch.where(better, now, size)
        v_z, v_nu, v_y = best
        return v_z, v_nu, v_y


def _pick(which: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of each member the new or the old."""
    return tuple(torch.where(which.unsqueeze(-1), x, y) for x, y in zip(new, old, strict=True))


def _most(*parts: Tensor) -> Tensor:
    """Max-norm over all parts of each member."""
    return torch.stack([kkt.largest(part) for part in parts]).amax(0)


# --- the interior point ---------------------------------------------------------------------------------------------


class _Iterate(NamedTuple):
    """A point in equilibrated units; s and lam of all sides."""

    z: Tensor
    nu: Tensor
    s: Tensor
    lam: Tensor


def _interior(problem: _Scaled, iterations: int, aim: Tensor | None = None) -> tuple[_Iterate, Tensor]:
    """Mehrotra's predictor-corrector towards lam∘s = aim; members leave the working batch when they are done.

    Returns:
        The best point of each member, and the iterations that it took.
    """
    on = problem.on
    batch = len(on)
    count = on.sum(-1, keepdim=True).clamp(min=1)
    aim = on.new_zeros(batch, 1) if aim is None else aim
    # start: the problem with lam = s in place of lam∘s = 0, shifted to positive values
    z, nu, y = _System(problem, on, on).solve(-problem.q, problem.b, 0.5 * on * problem.d)
    s, lam = _positive(-y, on), on * _positive(y, on)
    best = _Iterate(*(x.clone() for x in (z, nu, s, lam)))
    merit = z.new_full((batch,), torch.inf)
    taken = torch.zeros(batch, dtype=torch.int32, device=z.device)
    progress = torch.zeros_like(taken)  # iteration of the best point
    members = torch.arange(batch, device=z.device)
    for iteration in range(iterations + 1):
        # residuals of the optimality conditions (4)
        Qz, Cty, Aty, Cz, Az = (
            kkt.mul(problem.Q, z), problem.Ct(lam), kkt.mul_t(problem.A, nu), problem.C(z), kkt.mul(problem.A, z),
        )  # fmt: skip
        r_z = Qz + problem.q + Cty + Aty
        r_nu = Az - problem.b - problem.soft * nu
        r_y = on * (Cz + s - problem.d - problem.give * lam)
        mu = (on * s * lam).sum(-1, keepdim=True) / count
        # how far from the solution: each relative to one plus its largest term
        dual = kkt.largest(r_z) / (1 + _most(Qz, problem.q, Cty, Aty))
        primal = _most(r_nu, r_y) / (1 + _most(Az, problem.b, Cz, on * s, problem.d))
        sizes = [(x * y).sum(-1).abs() for x, y in ((z, Qz), (z, problem.q), (problem.b, nu), (problem.d, lam))]
        gap = (on * (s * lam - aim)).abs().sum(-1) / (1 + torch.stack(sizes).amax(0))
        now = torch.stack([dual, primal, gap]).amax(0)
        now = torch.where(now >= 0, now, torch.inf)
        better = now < merit[members]
        merit[members[better]], progress[members[better]] = now[better], iteration
        for whole, part in zip(best, (z, nu, s, lam), strict=True):
            whole[members[better]] = part[better]
        # who goes on
        waiting = iteration - progress[members]
        waiting_for = torch.where(merit[members] > ENOUGH, PATIENCE, 2)
        live = (now > ACCURACY) & now.isfinite() & (waiting < waiting_for)
        if iteration == iterations or not bool(live.any()):
            break
        if not bool(live.all()):
            members, problem = members[live], problem.select(live)
            z, nu, s, lam, r_z, r_nu, r_y, mu, aim, on, count = (
                x[live] for x in (z, nu, s, lam, r_z, r_nu, r_y, mu, aim, on, count)
            )
        taken[members] = iteration + 1
        system = _System(problem, lam, s)
        residual = (r_z, r_nu, r_y)
        # predictor (9): aim at the end, lam∘s = aim
        dz, dnu, ds, dlam = _direction(problem, system, residual, s, lam, on * (s * lam - aim))
        alpha = torch.minimum(_longest(s, ds), _longest(lam, dlam)).clamp(max=1)
        after = (on * (s + alpha * ds) * (lam + alpha * dlam)).sum(-1, keepdim=True) / count
        sigma = (after / mu.clamp(min=1e-300)).clamp(0, 1) ** 3
        # corrector (10): aim at lam∘s = sigma mu, second order included
        e = on * (s * lam + ds * dlam - torch.maximum(sigma * mu, aim))
        dz, dnu, ds, dlam = _direction(problem, system, residual, s, lam, e)
        alpha = (0.995 * torch.minimum(_longest(s, ds), _longest(lam, dlam))).clamp(max=1)
        z, nu, s, lam = z + alpha * dz, nu + alpha * dnu, s + alpha * ds, lam + alpha * dlam
        # A tiny s beside a large lam would block every further step that repairs rounding in C z + s = d: lift it.
        floor = CENTRALITY * (on * s * lam).sum(-1, keepdim=True) / count
        low = (on > 0) & (s * lam < floor)
        s, lam = torch.where(low & (s < lam), floor / lam, s), torch.where(low & (s >= lam), floor / s, lam)
    return best, taken


def _direction(
    problem: _Scaled, system: _System, residual: tuple[Tensor, Tensor, Tensor], s: Tensor, lam: Tensor, e: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Newton's step (dz, dnu, ds, dlam) that removes the residuals, and e from lam∘s."""
    r_z, r_nu, r_y = residual
    dz, dnu, dlam = system.solve(-r_z, -r_nu, problem.on * (e / (lam + s) - system.a * r_y))
    ds = -problem.on * (r_y + problem.C(dz) - problem.give * dlam)
    return dz, dnu, ds, dlam


def _positive(v: Tensor, on: Tensor) -> Tensor:
    """v shifted as a whole until it is comfortably positive; 1 where off."""
    low = torch.where(on > 0, v, torch.inf).amin(-1, keepdim=True)
    v = v + (-1.5 * low).clamp(min=0)
    return torch.where(on > 0, v + 1, 1.0)


def _longest(v: Tensor, dv: Tensor) -> Tensor:
    """The largest step that keeps v + step dv ≥ 0, at most 2; (B, 1)."""
    return torch.where(dv < 0, -v / dv, 2.0).amin(-1, keepdim=True).clamp(0, 2)


# --- the polish -----------------------------------------------------------------------------------------------------


def _polish(problem: _Scaled, start: _Iterate, rounds: int = 4) -> _Iterate:
    """The solution with the active sides as equalities and without the others; lam = 0 or s = 0 on every side.

    Sides whose multiplier comes out negative are released, and violated ones added, for some rounds.
    """
    on = problem.on > 0
    active = on & (start.lam > start.s)
    best, merit = start, torch.full_like(start.z[:, 0], torch.inf)
    for _ in range(rounds):
        system = _System(problem, active.to(start.z), (on & ~active).to(start.z))
        z, nu, lam = start.z, start.nu, torch.where(active, start.lam, 0.0)
        for _ in range(2):
            r_z = -(kkt.mul(problem.Q, z) + problem.q + problem.Ct(lam) + kkt.mul_t(problem.A, nu))
            r_nu = problem.b - kkt.mul(problem.A, z) + problem.soft * nu
            r_y = system.a * (problem.d - problem.C(z) + problem.give * lam)
            dz, dnu, dlam = system.solve(r_z, r_nu, r_y)
            z, nu, lam = z + dz, nu + dnu, lam + dlam
        slack = problem.d - problem.C(z) + problem.give * lam
        now = _most((-lam).clamp(min=0) / (1 + kkt.largest(lam)).unsqueeze(-1),
                    torch.where(on, -slack, 0.0).clamp(min=0) / (1 + kkt.largest(problem.C(z))).unsqueeze(-1))
        found = (z, nu, torch.where(active, 0.0, torch.where(on, slack.clamp(min=0), 1.0)), lam.clamp(min=0))
        best = _Iterate(*_pick(now < merit, found, best))
        merit = torch.minimum(merit, now)
        if not bool((merit > 1e-14).any()):
            break
        # each member changes its own active set, and only while it has something to repair
        wrong = (merit > 1e-14).unsqueeze(-1)
        active = torch.where(wrong, on & ((active & (lam >= 0)) | (~active & (slack < 0))), active)
    return best


# --- verdicts -------------------------------------------------------------------------------------------------------


def _vet(problem: Problem, standard: _Standard) -> tuple[Tensor, Tensor]:
    """Statuses that the data alone decide (SOLVED: none of them), int32, and the members to be solved, bool."""
    Q, q, G, h, A, b, lb, ub = standard
    matrices = torch.stack([x.isfinite().flatten(1).all(-1) for x in (Q, q, G, A, b)]).all(0)
    sides = torch.stack([(h > -torch.inf).all(-1), (lb < torch.inf).all(-1), (ub > -torch.inf).all(-1)]).all(0)
    valid = matrices & sides
    status = torch.zeros_like(valid, dtype=torch.int32)
    shared = isinstance(problem.Q, Tensor) and problem.Q.dim() == 2
    finite = torch.where(valid[:, None, None], Q, 0.0)
    curved = _convex(finite[:1] if shared and bool(valid.all()) else finite, CURVATURE[problem.dtype])
    status = torch.where((_contradictions(standard) > 0).any(-1), int(Status.PRIMAL_INFEASIBLE), status)
    status = torch.where(curved.expand_as(valid), status, int(Status.NOT_CONVEX))
    status = torch.where(valid, status, int(Status.INVALID_INPUT)).to(torch.int32)
    return status, status == 0


def _contradictions(problem: _Standard) -> Tensor:
    """How far each row of zeros, of G and A, is from its side, and each lb beyond its ub; (B, p + m + n)."""
    rows, equalities = ((M == 0).all(-1) for M in (problem.G, problem.A))
    parts = torch.where(rows, -problem.h, 0.0), torch.where(equalities, problem.b.abs(), 0.0), problem.lb - problem.ub
    return torch.cat(parts, -1).clamp(min=0)


def judge(problem: Problem, settings: Settings, answer: Answer, tolerance: float) -> Point:
    """The Point of another solver's answers, polished on their active sets, rounded, judged. Active are the sides whose
    multiplier is larger than their slack, each relative to the largest.

    Its statuses are SOLVED within the tolerance, those that the data alone decide, or NUMERICAL_ERROR.
    """
    z, lam, nu, lam_lb, lam_ub = answer
    standard = _standard(problem)
    status, sound = _vet(problem, standard)
    there = z.isfinite().all(-1)
    wide = ((z, standard.q), (nu, standard.b), (lam, standard.h), (lam_lb, standard.q), (lam_ub, standard.q))
    z, nu, *multipliers = (torch.where(y.isfinite(), y, 0.0) for y in (_wide(x, like) for x, like in wide))
    slacks = (standard.h - kkt.mul(standard.G, z), z - standard.lb, standard.ub - z)
    far, force = _most(z).unsqueeze(-1), _most(nu, *multipliers).unsqueeze(-1)
    rows, lower, upper = (
        torch.where(y * far > slack * force, y.clamp(min=0), 0.0) for y, slack in zip(multipliers, slacks, strict=True)
    )
    slack = torch.where(rows > 0, 0.0, slacks[0].clamp(min=0))
    found = _Answer(z, torch.where(slack >= 0, slack, 0.0), rows, nu, lower, upper)
    members = (sound & there).nonzero().flatten()
    if settings.polish and len(members):
        work, given = standard.select(members), _Answer(*(x[members] for x in found))
        scaled = _equilibrate(work)
        exact = scaled.answer(work, _polish(scaled, scaled.iterate(work, given)))
        better = _judge(work, exact).relative <= _judge(work, given).relative
        for whole, part in zip(found, _pick(better, exact, given), strict=True):
            whole[members] = part
    found = _Answer(*_pick(status == int(Status.PRIMAL_INFEASIBLE), _nothing(standard, status), found))
    found = _rounded(found, problem.dtype)
    judged = _judge(standard, found, problem.dtype == torch.float32)
    good = there & (judged.relative <= tolerance)
    status = torch.where((status == 0) & ~good, int(Status.NUMERICAL_ERROR), status).to(torch.int32)
    columns = (problem.n, *problem.widths)
    z, s, lam, nu, lam_lb, lam_ub = (x[:, :k].to(problem.dtype) for x, k in zip(found, columns, strict=True))
    primal, dual, gap = (x.to(problem.dtype) for x in judged[:3])
    return Point.of(z, s, lam, nu, lam_lb, lam_ub, status, torch.zeros_like(status), primal, dual, gap)


def _convex(Q: Tensor, threshold: float) -> Tensor:
    """Whether Q, its rows scaled to similar size, has no eigenvalue below −threshold ‖Q‖."""
    size = Q.abs().amax(-1)
    # rows far smaller than the others may be rounding of zero
    D = size.maximum(1e-5 * size.amax(-1, keepdim=True)).clamp(min=1e-300).rsqrt()
    Q = D.unsqueeze(-1) * Q * D.unsqueeze(-2)
    shift = threshold * Q.abs().sum(-1).amax(-1).clamp(min=1e-300)
    _, failed = torch.linalg.cholesky_ex(Q + torch.diag_embed(shift.unsqueeze(-1).expand(-1, Q.shape[-1])))
    return failed == 0


def _judge(problem: _Standard, answer: _Answer, rounded: bool = False) -> kkt.Residuals:
    y = (answer.lam, answer.nu, answer.lam_lb, answer.lam_ub)
    return kkt.residuals(problem.problem(), answer.z, *y, rounded=rounded)


def _optimum(
    problem: _Standard, iterations: int, tolerance: float, polish: bool, soft: float = 0.0, ridge: float = 0.0,
    anew: bool = False,
) -> tuple[_Answer, _Iterate, _Scaled, Tensor]:
    """Interior point and polish; the answer in the user's units, the same in equilibrated units, iterations.

    Args:
        problem, iterations, tolerance, polish: what, how long, how exactly, and whether the polish follows.
        soft: how far rows give for each unit of their multiplier, and
        ridge: what is added to the diagonal of Q, both in equilibrated units, which are found `anew` or not.
    """
    scaled = _equilibrate(problem, anew=anew)
    scaled.soft = torch.full_like(scaled.soft, soft)
    scaled.Q = scaled.Q + ridge * torch.eye(scaled.Q.shape[-1]).to(scaled.Q)
    point, taken = _interior(scaled, iterations)
    answer = scaled.answer(problem, point)
    if polish:
        exact = _polish(scaled, point)
        if soft < 1:  # without an objective every feasible point is a solution: multipliers are zero, not rounding
            pressed = problem.q.any(-1, keepdim=True) | problem.Q.flatten(1).any(-1, keepdim=True)
            exact = exact._replace(nu=exact.nu * pressed, lam=exact.lam * pressed)
        exact_answer = scaled.answer(problem, exact)
        if soft >= 1:  # no residual of the problem itself judges here: trust the polish where the point hardly moves
            good = _most(exact.z - point.z, exact.nu - point.nu, exact.lam - point.lam) <= 1e-5 * (
                1 + _most(point.z, point.nu, point.lam)
            )
        else:
            before, now = _judge(problem, answer).relative, _judge(problem, exact_answer).relative
            good = now <= before.clamp(min=1e-2 * tolerance)
        answer = _Answer(*_pick(good, exact_answer, answer))
        point = _Iterate(*_pick(good, exact, point))
    return answer, point, scaled, taken


def _certify(problem: _Standard, tolerance: float) -> tuple[_Answer, Tensor]:
    """Proofs for members that could not be solved: certificates, and statuses (0 where nothing was proved).

    Infeasible: min ½‖A z − b‖² + ½‖(G z − h)₊‖² within the bounds. Its violations are the multipliers of a Farkas
    certificate, since its stationarity is Aᵀnu + Gᵀlam − lam_lb + lam_ub = 0 with nu = A z − b, lam = (G z − h)₊.

    Unbounded: the projection of −q on the rays of the feasible set in the kernel of Q; feasibility was shown before.
    """
    flat = problem._replace(Q=torch.zeros_like(problem.Q), q=torch.zeros_like(problem.q))
    nearest, _, _, _ = _optimum(flat, 80, tolerance, True, soft=1.0)
    force = kkt.mul_t(problem.G, nearest.lam) + kkt.mul_t(problem.A, nearest.nu)
    nearest = nearest._replace(
        lam_lb=torch.where(problem.lb.isfinite(), force.clamp(min=0), 0.0),
        lam_ub=torch.where(problem.ub.isfinite(), (-force).clamp(min=0), 0.0),
    )
    multipliers = (nearest.lam, nearest.nu, nearest.lam_lb, nearest.lam_ub)
    whole = problem.problem()
    value = kkt.farkas_value(whole, *multipliers)
    unit = torch.where(value < 0, -1 / value, 0.0).unsqueeze(-1)
    proof = nearest._replace(
        lam=unit * nearest.lam, nu=unit * nearest.nu, lam_lb=unit * nearest.lam_lb, lam_ub=unit * nearest.lam_ub
    )
    Gz, Az = kkt.mul(problem.G, nearest.z), kkt.mul(problem.A, nearest.z)
    violation = _most((Gz - problem.h).clamp(min=0), Az - problem.b)
    terms = _most(Gz, kkt.finite(problem.h), Az, problem.b)
    feasible = violation <= tolerance * (1 + terms)
    violated = violation > 1e-2 * tolerance * (1 + terms)  # (near the tolerance a proof says more)
    infeasible = violated & (kkt.farkas_residual(whole, proof.lam, proof.nu, proof.lam_lb, proof.lam_ub) <= 1e-9)

    scaled = _equilibrate(problem)
    p, n = problem.G.shape[-2:]
    fixed, rows = problem.fixed, scaled.on[:, :p]
    cone = _Standard(
        torch.where(fixed.unsqueeze(-1), 0.0, scaled.Q), scaled.q,
        rows.unsqueeze(-1) * scaled.G, torch.zeros_like(rows).masked_fill(rows == 0, torch.inf),
        scaled.A, torch.zeros_like(scaled.b),
        torch.zeros_like(problem.lb).masked_fill(problem.lb.isinf(), -torch.inf),
        torch.zeros_like(problem.ub).masked_fill(problem.ub.isinf(), torch.inf),
    )  # fmt: skip
    kernel = cone._replace(
        Q=torch.eye(n, dtype=cone.q.dtype, device=cone.q.device).expand_as(cone.Q).contiguous(),
        A=torch.cat([cone.A, cone.Q], -2),
        b=torch.cat([cone.b, torch.zeros_like(cone.q)], -1),
    )
    direction = _optimum(kernel, 80, tolerance, True)[0].z
    z = scaled.D * direction
    slope = (problem.q * z).sum(-1)
    z = z * torch.where(slope < 0, -1 / slope, 0.0).unsqueeze(-1)
    steep = kkt.largest(direction) > 1e3 * tolerance
    proved = torch.maximum(kkt.ray_residual(cone.problem(), direction), kkt.ray_residual(whole, z)) <= 1e-9
    unbounded = feasible & ~infeasible & steep & proved

    status = torch.where(infeasible, int(Status.PRIMAL_INFEASIBLE), 0)
    status = torch.where(unbounded, int(Status.DUAL_INFEASIBLE), status).to(torch.int32)
    nothing = [torch.zeros_like(x) for x in proof[2:]]
    return _Answer(*_pick(unbounded, (z, proof.s, *nothing), tuple(proof))), status


# --- the protocol ---------------------------------------------------------------------------------------------------


def solve(problem: Problem, settings: Settings, keep_factor: bool) -> Point:
    """Solve every member; `keep_factor`: a derivative will be asked for."""
    standard = _standard(problem)
    tolerance = tolerance_of(settings, problem.dtype == torch.float32)
    status, sound = _vet(problem, standard)
    answer = _nothing(standard, status)
    iterations = torch.zeros_like(status)
    work, members = standard.select(sound), sound.nonzero().flatten()
    if len(members):
        found, verdict, taken = _attempt(work, settings, tolerance, problem.dtype)
        open_ = (verdict < 0).nonzero().flatten()
        rounded = [(rounding, False) for rounding in ROUNDING if problem.dtype == torch.float32]
        for rounding, anew in (*rounded, (0.0, True)):
            if not len(open_):
                break
            again, retried, _ = _attempt(work.select(open_), settings, tolerance, problem.dtype, rounding, anew)
            solved = retried == int(Status.SOLVED)
            for whole, part in zip(found, again, strict=True):
                whole[open_[solved]] = part[solved]
            verdict[open_] = retried
            open_ = open_[~solved]
        if len(open_):
            proof, proved = _certify(work.select(open_), tolerance)
            gave_up = torch.where(
                taken[open_] >= settings.max_iterations, int(Status.MAX_ITERATIONS), int(Status.NUMERICAL_ERROR)
            )
            verdict[open_] = torch.where(proved > 0, proved, gave_up).to(torch.int32)
            for whole, part in zip(found, proof, strict=True):
                whole[open_] = torch.where((proved > 0).unsqueeze(-1), part, whole[open_])
        status[members], iterations[members] = verdict, taken
        for whole, part in zip(answer, found, strict=True):
            whole[members] = part
    judged = _judge(standard, answer, problem.dtype == torch.float32)
    widths = (problem.n, *problem.widths)
    z, s, lam, nu, lam_lb, lam_ub = (x[:, :width].to(problem.dtype) for x, width in zip(answer, widths, strict=True))
    primal, dual, gap = (x.to(problem.dtype) for x in judged[:3])
    point = Point.of(z, s, lam, nu, lam_lb, lam_ub, status, iterations, primal, dual, gap)
    if keep_factor:
        point.factor = _factor(problem, standard, point)
    return point


def _attempt(
    work: _Standard, settings: Settings, tolerance: float, dtype: torch.dtype, rounding: float = 0.0, anew: bool = False
) -> tuple[_Answer, Tensor, Tensor]:
    """The answer as it will be returned, SOLVED or -1, and iterations."""
    found, _, _, taken = _optimum(work, settings.max_iterations, tolerance, settings.polish, rounding, rounding, anew)
    found = _rounded(found, dtype)
    solved = _judge(work, found, dtype == torch.float32).relative <= tolerance
    if dtype == torch.float32 and rounding == 0:  # multipliers of rows that contradict each other by rounding run off
        forces = kkt.largest(kkt.mul_t(work.G, found.lam) + kkt.mul_t(work.A, found.nu))
        terms = kkt.largest(kkt.mul_t(work.G.abs(), found.lam) + kkt.mul_t(work.A.abs(), found.nu.abs()))
        solved &= terms <= 1e3 * (forces + kkt.largest(work.q))
    return found, torch.where(solved, int(Status.SOLVED), -1).to(torch.int32), taken


def _rounded(answer: _Answer, dtype: torch.dtype) -> _Answer:
    """The answer as its receiver will have it: judged after rounding."""
    return _Answer(*(x.to(dtype).double() for x in answer))


def _nothing(problem: _Standard, status: Tensor) -> _Answer:
    """Zeros; for members that contradict themselves the obvious certificate."""
    n, p, m = problem.q.shape[-1], problem.h.shape[-1], problem.b.shape[-1]
    z, s = (problem.q.new_zeros(len(status), width) for width in (n, p))
    infeasible = (status == int(Status.PRIMAL_INFEASIBLE)).unsqueeze(-1)
    height = torch.where(infeasible, _contradictions(problem), 0.0)
    value, worst = height.max(-1, keepdim=True) if n else (height, height.long())
    proof = torch.zeros_like(height).scatter(-1, worst, torch.where(value > 0, 1 / value, 0.0))
    lam, nu, bounds = proof.split([p, m, n], -1)
    return _Answer(z, s, lam, -problem.b.sign() * nu, bounds, bounds.clone())


def settle(problem: Problem, settings: Settings, point: Point) -> None:
    """`solve` leaves nothing to others."""


def relaxing() -> Backend:
    """The backend of the relaxed problem: this one."""
    return cast(Backend, sys.modules[__name__])


def pullback(problem: Problem, settings: Settings, point: Point, grad_z: Tensor, need: Sequence[bool]) -> None:
    """None: adjoint.py does it."""


def relax(problem: Problem, settings: Settings, point: Point, keep_factor: bool) -> Point:
    """The point of the central path with lam∘s = settings.smoothing on every finite side, where solved; no factor."""
    standard = _standard(problem)
    members = (point.status == int(Status.SOLVED)).nonzero().flatten()
    values = [x.clone() for x in point.fields()]
    if not len(members):
        return Point.of(*values)
    work = standard.select(members)
    scaled = _equilibrate(work)
    found, _ = _interior(scaled, 100, settings.smoothing * scaled.cost)
    answer = scaled.answer(work, found)
    p = standard.h.shape[-1]
    slack = torch.where(scaled.on > 0, found.s / scaled.sides, torch.inf)[:, :p]
    for whole, part in zip(values[:6], answer._replace(s=slack), strict=True):
        whole[members] = part[:, : whole.shape[-1]].to(problem.dtype)
    return Point.of(*values)


def _at(problem: Problem, standard: _Standard, point: Point) -> tuple[_Scaled, Tensor, Tensor]:
    """The equilibrated problem with fixed variables as fixed, and lam and s of all sides at a point."""
    scaled = _equilibrate(standard, by_curvature=True)
    lam = _sides(standard, point.lam, point.lam_lb, point.lam_ub)
    z = _wide(point.z, standard.q)
    slack = _pad(point.s.detach().double(), (standard.h.shape[-1] - problem.p,), torch.inf)
    s = torch.cat([slack, z - standard.lb, standard.ub - z], -1).clamp(min=0)
    on = scaled.on > 0
    return scaled, torch.where(on, lam / scaled.sides * scaled.cost, 0.0), torch.where(on, s * scaled.sides, 1.0)


def _wide(x: Tensor, like: Tensor) -> Tensor:
    return _pad(x.detach().double(), (like.shape[-1] - x.shape[-1],), 0.0)


def _sides(standard: _Standard, rows: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.cat([_wide(rows, standard.h), _wide(lower, standard.q), _wide(upper, standard.q)], -1)


def _factor(problem: Problem, standard: _Standard, point: Point) -> tuple[Tensor, ...]:
    """The factored KKT matrix at the point; of the identity, nearly, for members that are not solved."""
    solved = (point.status == int(Status.SOLVED)).unsqueeze(-1)
    calm = _Standard(*(torch.where(solved if x.dim() == 2 else solved.unsqueeze(-1), x, 0.0) for x in standard))
    scaled, lam, s = _at(problem, calm, point)
    system = _System(scaled, torch.where(solved, lam, 0.0), torch.where(solved, s, 1.0))
    return (system.factor, system.pivots)


def kkt_solve(problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
    """Solve the KKT system at `point` for `rhs`; zero for members that are not solved.

    Where the matrix is singular (dependent active rows, no curvature), the solution of least norm of the least-squares
    problem, in the user's units. A variable with lb = ub stays where it is.
    """
    standard = _standard(problem)
    solved = (point.status == int(Status.SOLVED)).unsqueeze(-1)
    calm = _Standard(*(torch.where(solved if x.dim() == 2 else solved.unsqueeze(-1), x, 0.0) for x in standard))
    scaled, lam, s = _at(problem, calm, point)
    lam, s = torch.where(solved, lam, 0.0), torch.where(solved, s, 1.0)
    if settings.gradient == "smoothed":  # more exact than differences of rounded numbers; 0 where lb = ub
        s = torch.where((lam > 0) & (s > 0), settings.smoothing * scaled.cost / lam, s)
    system = _System(scaled, lam, s, point.factor)
    r_z, r_nu = _wide(rhs.z, standard.q), _wide(rhs.nu, standard.b)
    r_y = _sides(standard, rhs.lam, rhs.lam_lb, rhs.lam_ub)
    r_z, r_nu, r_y = (torch.where(solved, x, 0.0) for x in (r_z, r_nu, r_y))
    # a fixed variable follows its bounds: v = r there, whatever the equations say
    p, n = standard.G.shape[-2:]
    fixed = calm.fixed
    _, r_lb, r_ub = r_y.split([p, n, n], -1)
    lower = _wide(point.lam_lb, standard.q) > 0
    upper = _wide(point.lam_ub, standard.q) > 0
    share = torch.where(upper == lower, 0.5, upper.double())  # of the upper bound
    moved = torch.where(fixed, share * r_ub - (1 - share) * r_lb, 0.0)
    right_z, right_nu = r_z - kkt.mul(calm.Q, moved), r_nu - kkt.mul(calm.A, moved)
    right_y = r_y - torch.cat([kkt.mul(calm.G, moved), torch.zeros_like(r_lb), torch.zeros_like(r_ub)], -1)
    v_z, v_nu, v_y = system.solve(
        scaled.cost * scaled.D * right_z, scaled.rows * right_nu, scaled.on * system.a * scaled.sides * right_y
    )
    v_z = scaled.D * v_z + moved
    v_nu, v_y = scaled.rows * v_nu / scaled.cost, scaled.on * scaled.sides * v_y / scaled.cost
    v_lam, v_lb, v_ub = v_y.split([p, n, n], -1)
    for member in (_singular(system) & solved[:, 0]).nonzero().flatten().tolist():
        v_z[member], v_lam[member], v_nu[member], v_lb[member], v_ub[member] = _least_norm(
            _Standard(*(x[member] for x in calm)), lam[member] * scaled.sides[member] / scaled.cost[member],
            s[member] / scaled.sides[member], scaled.on[member] > 0, moved[member],
            (right_z[member], right_nu[member], right_y[member]),
        )  # fmt: skip
    force = r_z - kkt.mul(calm.Q, v_z) - kkt.mul_t(calm.A, v_nu) - kkt.mul_t(calm.G, v_lam)  # = v_ub − v_lb
    v_lb = torch.where(fixed, (share - 1) * force, v_lb)
    v_ub = torch.where(fixed, share * force, v_ub)
    parts = (v_z, v_lam, v_nu, v_lb, v_ub)
    return Adjoint(
        *(torch.where(solved, x[:, : r.shape[-1]], 0.0).to(problem.dtype) for x, r in zip(parts, rhs, strict=True))
    )


def _singular(system: _System) -> Tensor:
    """Whether the KKT matrix has an eigenvalue that is nearly 0: then the inverse blows up almost any vector."""
    scaled = system.problem

    def probe(x: Tensor) -> Tensor:
        return torch.cos(2.4 * torch.arange(1.0, x.shape[-1] + 1, dtype=x.dtype, device=x.device) ** 1.3).expand_as(x)

    r_z = torch.where(scaled.D > 0, probe(scaled.q), 0.0)
    r_nu = torch.where(scaled.A.abs().amax(-1) > 0, probe(scaled.b), 0.0)
    v = system.regularised(r_z, r_nu, scaled.on * system.a * probe(scaled.d))
    return ~(_most(*v) < 1e-3 / SINGULAR)


def _least_norm(
    problem: _Standard, lam: Tensor, s: Tensor, on: Tensor, moved: Tensor, right: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(v_z, v_lam, v_nu, v_lb, v_ub) of one member by the pseudo-inverse, in the user's units."""
    r_z, r_nu, r_y = right
    (p, n), m = problem.G.shape, len(problem.b)
    free = (~problem.fixed).nonzero().flatten()
    held = (on & (lam > 0)).nonzero().flatten()
    root = (lam / (lam + s))[held].sqrt()
    eye = torch.eye(n, dtype=r_z.dtype, device=r_z.device)
    C = root.unsqueeze(-1) * torch.cat([problem.G, -eye, eye])[held][:, free]
    A = problem.A[:, free]
    zero = C.new_zeros
    K = torch.cat([
        torch.cat([problem.Q[free][:, free], A.mT, C.mT], -1),
        torch.cat([A, zero(m, m), zero(m, len(held))], -1),
        torch.cat([C, zero(len(held), m), torch.diag(-(s / (lam + s))[held])], -1),
    ])  # fmt: skip
    values, vectors = torch.linalg.eigh(K)
    keep = values.abs() > SINGULAR * values.abs().max()
    inverse = torch.where(keep, 1 / values, 0.0)
    v = vectors @ (inverse * (vectors.mT @ torch.cat([r_z[free], r_nu, root * r_y[held]])))
    v_free, v_nu, v_held = v.split([len(free), m, len(held)])
    v_z, v_y = moved.clone(), torch.zeros_like(r_y)
    v_z[free], v_y[held] = v_free, root * v_held
    v_lam, v_lb, v_ub = v_y.split([p, n, n])
    return v_z, v_lam, v_nu, v_lb, v_ub
