"""What another solver answers: which members it may see, its points polished, rounded and judged, the rest done here.

**Polish** is one step of Newton's method on the active set, the sides that have a multiplier larger than their slack.
With these as equalities and the others left out, the optimality conditions are linear; their matrix is that of the
derivative, so `kkt_solve` of our own backend takes the step, dense or sparse, all members at once. Where a multiplier
comes out negative its side is released, where a side is violated it is added, and the step is taken again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from optlayer import kkt, matrices
from optlayer.backends import cpu, reference
from optlayer.backends.base import Adjoint, Backend
from optlayer.core.settings import Settings
from optlayer.core.status import Status
from optlayer.core.structure import NAMES, Structure
from optlayer.matrices import Matrix
from optlayer.point import Point
from optlayer.problem import Problem

ROUNDS = 8  # corrections of the active set
ROUNDING = 1e-12  # of a side that is violated or pulls, relative to the largest, that is no reason to correct it
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}  # relative residual of what is exact but for rounding
_PLAIN = Settings()
_MAY_BE = {"h": torch.inf, "ub": torch.inf, "lb": -torch.inf, "h_lower": -torch.inf}  # infinite: no constraint


class Answer(NamedTuple):
    """What a solver says about all members, each (B, columns); absent parts have none. NaN where it has no answer."""

    z: Tensor
    lam: Tensor
    nu: Tensor
    lam_lb: Tensor
    lam_ub: Tensor

    @classmethod
    def empty(cls, problem: Problem) -> Answer:
        """NaN everywhere, float64, to be filled."""
        size, (p, _, m, lower, upper) = problem.structure.members, problem.widths
        return cls(*(torch.full((size, k), torch.nan, dtype=torch.float64) for k in (problem.n, p, m, lower, upper)))


def members(problem: Problem) -> Iterator[tuple[Tensor | None, ...]]:
    """Q, q, G, h, A, b, lb, ub of each member: float64, every matrix full, no batch dimension."""
    structure = problem.structure
    full: list[Tensor | None] = []
    for name, x in zip(NAMES, (getattr(problem, name) for name in NAMES), strict=True):
        full.append(None if x is None else (matrices.dense(x) if name in "QGA" else x).detach().double().resolve_neg())
    for i in range(structure.members):
        yield tuple(
            x if x is None or x.dim() == (2 if name in "QGA" else 1) else x[i]
            for name, x in zip(NAMES[:8], full, strict=False)
        )


def ours(problem: Problem) -> Backend:
    """The backend of this package that takes what another one leaves: the compiled core where it can."""
    return cast(Backend, reference if cpu.unavailable() or cpu.refuses(problem) else cpu)


def sound(problem: Problem) -> Tensor:
    """The members that a solver may see, bool (B,): their data are numbers, their bounds do not cross, Q is convex."""
    structure = problem.structure
    good = torch.ones(structure.members, dtype=torch.bool, device=problem.device)
    for name, x, rank in zip(NAMES, problem.tensors(), structure.ranks, strict=True):
        if x is not None:
            good = good & (x.isfinite() | (x == _MAY_BE.get(name, torch.nan))).flatten(x.dim() - rank).all(-1)
    if problem.lb is not None and problem.ub is not None:
        good = good & (problem.lb <= problem.ub).all(-1)
    Q, kind = problem.tensors()[0], structure.kinds[0]
    assert Q is not None
    alone = structure.plans.get("Q alone")
    if alone is None:
        shape = (len(Q),) if Q.dim() > kind.rank else ()
        alone = structure.plans["Q alone"] = Structure(
            structure.n, 0, 0, shape, (kind, *structure.kinds[1:]), lower=False, upper=False, dtype=structure.dtype,
            device=structure.device,
        )  # fmt: skip
    convex = Problem.of([Q, Q.new_zeros(structure.n), *[None] * 7], alone)
    return good & (ours(problem).solve(convex, _PLAIN, False).status == int(Status.SOLVED))


def report(
    problem: Problem, settings: Settings, answer: Answer, iterations: Tensor | None = None, *,
    fit: Tensor | None = None, tolerance: float | None = None, polish: bool = True,
) -> Point:  # fmt: skip
    """The Point of a solver's answers: vetted, polished, rounded, judged; what is no solution then is left to our own
    backend, which finds it or a proof that there is none.

    Args:
        problem, settings: what was asked.
        answer: for every member, valid or not; members without solution may hold anything.
        iterations: (B,), if the solver counts.
        fit: the members that are `sound`, if known.
        tolerance: of the relative residual; None: exact but for rounding.
        polish: whether the answers are polished.
    """
    exact, own, kept = _double(problem), ours(problem), _Kept(problem)
    tolerance = EXACT[problem.dtype] if tolerance is None else tolerance
    fit = sound(problem) if fit is None else fit
    members = (fit & answer.z.isfinite().all(-1)).nonzero().flatten()
    raw = _Guess.of(exact, answer)

    def left(most: float) -> Tensor:
        return members[~(kept.relative[members] <= most)]

    if problem.dtype is torch.float32:  # whose rounding is mostly larger than what there is to polish
        kept.offer(raw.select(members), members)
    if polish and len(rest := left(EXACT[problem.dtype])):
        _polished(raw.select(rest), rest, kept, own)
    if len(rest := left(tolerance)):
        kept.offer(raw.select(rest), rest)
    good = kept.relative <= tolerance
    point = kept.point(exact, good, iterations)
    rest = (~good).nonzero().flatten()
    if len(rest):
        point.take(rest, own.solve(problem.select(rest), settings, False))
    return point


def _double(problem: Problem) -> Problem:
    """The same in float64, its structure made once."""
    structure = problem.structure
    wide = structure.plans.get("double")
    if wide is None:
        same = problem.dtype is torch.float64
        wide = structure.plans["double"] = structure if same else structure.changed(dtype=torch.float64)
    return Problem.of([None if x is None else x.detach().double() for x in problem.tensors()], wide)


class _Guess(NamedTuple):
    """Points of a problem; `y`, multipliers, and `active` are of all sides: G z ≤ h, then z ≥ lb, then z ≤ ub.

    A variable with lb = ub is held by its lower side, whose multiplier may then have either sign.
    """

    problem: Any
    z: Tensor
    y: Tensor
    nu: Tensor
    active: Tensor

    @classmethod
    def of(cls, problem: Problem, answer: Answer) -> _Guess:
        """A solver's answer, with multipliers on the active sides only."""
        z, lam, nu, lam_lb, lam_ub = (torch.where(x.isfinite(), x, 0.0) for x in answer)
        y = torch.cat([lam, lam_lb, lam_ub], -1).clamp(min=0)
        active = y * _most(z) > _slack(problem, z) * torch.maximum(_most(y), _most(nu))
        if (held := _held(problem)) is not None:
            lower, upper = (slice(-2 * problem.n, -problem.n), slice(-problem.n, None))
            y[:, lower] -= torch.where(held, y[:, upper], 0.0)
            active[:, lower] |= held
            active[:, upper] &= ~held
        return cls(problem, z, torch.where(active, y, 0.0), nu, active)

    def select(self, members: Tensor) -> _Guess:
        """Some members."""
        if len(members) == len(self.z):
            return self
        return _Guess(self.problem.select(members), *(x[members] for x in self[1:]))

    def answer(self) -> Answer:
        """The same with a multiplier, not negative, for each side."""
        lam, lower, upper = self.y.split(_widths(self.problem), -1)
        if (held := _held(self.problem)) is not None:
            upper = torch.where(held, -lower, upper)
        return Answer(self.z, lam.clamp(min=0), self.nu, lower.clamp(min=0), upper.clamp(min=0))

    def on_bounds(self) -> Tensor:
        """z, exactly on its active bounds."""
        _, lower, upper = self.active.split(_widths(self.problem), -1)
        z = self.z if self.problem.lb is None else torch.where(lower, self.problem.lb, self.z)
        return z if self.problem.ub is None else torch.where(upper, self.problem.ub, z)

    def step(self, own: Backend) -> _Guess:
        """Newton's step to the point where the active sides are equalities."""
        problem, z, nu, active = self.problem, self.on_bounds(), self.nu, self.active
        slack, widths = _slack(problem, z), _widths(problem)
        s, *_ = torch.where(active, 0.0, slack.clamp(min=0)).split(widths, -1)
        lam, lower, upper = active.to(z).split(widths, -1)
        status, none = torch.zeros(len(z), dtype=torch.int32), z.new_zeros(len(z))
        at = Point.of(z, s, lam, nu, lower, upper, status, status, none, none, none)
        r_lam, r_lower, r_upper = torch.where(active, slack, 0.0).split(widths, -1)
        r_nu = nu if problem.A is None else problem.b - matrices.times(_own(problem.A, z), z)
        v = own.kkt_solve(problem, _PLAIN, at, Adjoint(-self._gradient(z), r_lam, r_nu, r_lower, r_upper))
        y = torch.where(active, self.y + torch.cat([v.lam, v.lam_lb, v.lam_ub], -1), 0.0)
        found = _Guess(problem, z + v.z, y, nu + v.nu, active)
        return found._replace(z=found.on_bounds())

    def _gradient(self, z: Tensor) -> Tensor:
        """Q z + q + Gᵀlam + Aᵀnu − lam_lb + lam_ub."""
        problem = self.problem
        lam, lower, upper = self.y.split(_widths(problem), -1)
        total = matrices.symmetric_times(_own(problem.Q, z), z) + problem.q
        for M, y in ((problem.G, lam), (problem.A, self.nu)):
            total = total if M is None else total + matrices.times_t(_own(M, z), y)
        total = total if problem.lb is None else total - lower
        return total if problem.ub is None else total + upper

    def wrong(self) -> Tensor:
        """Active sides that pull, and others that are violated, bool."""
        slack, held = _slack(self.problem, self.z), _held(self.problem)
        least, furthest = (-ROUNDING * (1 + _most(x)) for x in (self.y, self.z))
        rows, lower, upper = (self.y < least).split(_widths(self.problem), -1)
        pulls = torch.cat([rows, lower if held is None else lower & ~held, upper], -1)
        return torch.where(self.active, pulls, slack < furthest)


def _polished(guess: _Guess, members: Tensor, kept: _Kept, own: Backend) -> None:
    """Steps of the members, each until its active set is right, and then as long as they help."""
    for rounds in range(ROUNDS, 0, -1):
        guess = guess.step(own)
        wrong = guess.wrong()
        again = wrong.any(-1) if rounds > 1 else torch.zeros_like(wrong[:, :1]).any(-1)
        ends = (~again).nonzero().flatten()
        helped = kept.offer(guess.select(ends), members[ends])
        again[ends] = helped & (kept.relative[members[ends]] > EXACT[torch.float64])
        left = again.nonzero().flatten()
        if not len(left):
            break
        members, guess = members[left], guess._replace(active=guess.active ^ wrong).select(left)


class _Kept:
    """The best answer of each member so far, as its receiver will have it, with its residuals."""

    def __init__(self, problem: Problem) -> None:
        size = problem.structure.members
        self.dtype, self.answer = problem.dtype, Answer(*(x.zero_() for x in Answer.empty(problem)))
        self.residuals = torch.full((size, 4), torch.inf, dtype=torch.float64)  # primal, dual, gap, relative
        self.relative = self.residuals[:, 3]

    def offer(self, guess: _Guess, members: Tensor) -> Tensor:
        """Keep what is better than before; `guess` is of these members. Returns where it is, bool."""
        rounded = Answer(*(x.to(self.dtype).double() for x in guess.answer()))
        judged = kkt.residuals(guess.problem, *rounded, None, self.dtype is torch.float32)
        better = judged.relative < self.relative[members]
        self.residuals[members[better]] = torch.stack(judged, -1)[better]
        for whole, part in zip(self.answer, rounded, strict=True):
            whole[members[better]] = part[better]
        return better

    def point(self, problem: Any, good: Tensor, iterations: Tensor | None) -> Point:
        """The answers of a problem in float64."""
        z, lam, nu, lam_lb, lam_ub = self.answer
        rows = z[:, :0] if problem.G is None else problem.h - matrices.times(problem.G, z)
        s = torch.where(lam > 0, 0.0, rows.clamp(min=0))
        status = torch.where(good, int(Status.SOLVED), int(Status.NUMERICAL_ERROR)).to(torch.int32)
        counts = torch.zeros_like(status) if iterations is None else iterations.to(status)
        z, s, lam, nu, lam_lb, lam_ub = (x.to(self.dtype) for x in (z, s, lam, nu, lam_lb, lam_ub))
        primal, dual, gap, _ = self.residuals.to(self.dtype).unbind(-1)
        return Point.of(z, s, lam, nu, lam_lb, lam_ub, status, counts, primal, dual, gap)


def _widths(problem: Problem) -> tuple[int, int, int]:
    """Sides of the rows of G, of lb and of ub."""
    p, _, _, lower, upper = problem.widths
    return p, lower, upper


def _slack(problem: Any, z: Tensor) -> Tensor:
    """Of all sides, inf where there is no constraint."""
    parts = [] if problem.G is None else [problem.h - matrices.times(_own(problem.G, z), z)]
    parts += [] if problem.lb is None else [z - problem.lb]
    parts += [] if problem.ub is None else [problem.ub - z]
    return torch.cat(parts, -1) if parts else z[:, :0]


def _own(M: Matrix, z: Tensor) -> Matrix:
    """A matrix of each member, so that BLAS gives a member the same bits in every batch."""
    return M.expand(len(z), -1, -1) if isinstance(M, Tensor) else M


def _most(x: Tensor) -> Tensor:
    """The largest of each member, (B, 1); 0 for no entries."""
    return kkt.largest(x).unsqueeze(-1)


def _held(problem: Problem) -> Tensor | None:
    """Which variables have lb = ub; None if there are no such bounds."""
    if problem.lb is None or problem.ub is None:
        return None
    held = problem.lb == problem.ub
    return held if bool(held.any()) else None
