"""What a backend is: the contract, and helpers to keep it.

A backend gets a checked `Problem` with at most one batch dimension and returns a `Point`. It

- **vets** every member: data with NaN, or an infinity that is no absent constraint, are INVALID_INPUT; a Q with a
  negative eigenvalue is NOT_CONVEX; lb > ub is PRIMAL_INFEASIBLE;
- **solves** the others, each for itself: no member may see another, so the bits of its answer depend neither on its
  place in the batch nor on what else is there (**isolates**);
- **rounds** the answer to the problem's dtype, and only then
- **judges** it by `kkt.residuals` in the problem's own units: SOLVED where `relative` is at most the tolerance,
  whatever the solver claims. Multipliers are not negative, and exactly 0 on inactive sides and where a side is
  infinite; the slack is 0 on active rows, and inf where h is;
- **certifies** what has no solution: multipliers that prove it (`kkt.farkas_value` −1) for PRIMAL_INFEASIBLE, a ray in
  z (qᵀz = −1) for DUAL_INFEASIBLE. The rest is MAX_ITERATIONS or NUMERICAL_ERROR, with finite numbers.

`report` does all of this for a backend that has nothing but the answers of a solver. A backend never touches autograd.

A module with the names of `Backend` is a backend too; a class inherits what it does not define.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from optlayer import matrices
from optlayer.core.settings import Settings, tolerance_of
from optlayer.core.status import Status
from optlayer.core.structure import NAMES
from optlayer.point import Point
from optlayer.problem import Problem

FITS_DENSE = 1000
"""Rows and columns of a sparse problem up to which the dense methods do what the sparse engine leaves, and the
closest point: a second's work at most, a fifth for the 640 of a power network."""


class Adjoint(NamedTuple):
    """Right-hand side and solution of the symmetric KKT system at a point (see adjoint.py).

    Q v_z + Gᵀv_lam + Aᵀv_nu − v_lb + v_ub = r_z
    lam∘(G v_z) − s∘v_lam = lam∘r_lam          (active row: G v_z = r_lam; inactive row: v_lam = 0)
    A v_z = r_nu
    and for the bounds as for G, whose rows they are: −I for lb, I for ub. Where rows have two sides, `lam` has 2p
    columns: the upper sides, then the lower ones, whose rows are −G.
    """

    z: Tensor
    lam: Tensor
    nu: Tensor
    lam_lb: Tensor
    lam_ub: Tensor


class Backend(Protocol):
    """The whole contract; `solve` is all that a new backend must define.

    Attributes:
        name: what the user says.
        automatic: whether `backend="auto"` may choose it.
        sparse: whether it takes sparse matrices.
        two_sided: whether it takes rows with lower sides; for others they are stacked (`Stacked`).
        closest: whether it knows Settings(infeasible="closest").
    """

    name: str
    automatic: bool = False
    sparse: bool = False
    two_sided: bool = False
    closest: bool = False

    def unavailable(self) -> str | None:
        """None, or why it cannot work on this machine."""
        return None

    def refuses(self, problem: Problem) -> str | None:
        """None, or why it cannot solve this problem."""
        return None if problem.device.type == "cpu" else f"tensors are on {problem.device}, not on a CPU"

    def solve(self, problem: Problem, settings: Settings, keep_factor: bool) -> Point:
        """Solve every member; `keep_factor`: a derivative will be asked for, `Point.factor` may help it."""
        raise NotImplementedError

    def settle(self, problem: Problem, settings: Settings, point: Point) -> None:
        """Settle, in `point`, what `solve` has left, where the caller waits for the verdict (check=True).

        For a backend that works asynchronously (its `Point.unsolved` is None); the default has left nothing.
        """
        return None

    def kkt_solve(self, problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
        """Solve the KKT system at `point`, which may come from elsewhere and then has no factor; zero for members that
        are not solved, the least-norm solution where active rows are dependent.

        The default is the reference's.
        """
        return _reference().kkt_solve(problem, settings, point, rhs)

    def pullback(
        self, problem: Problem, settings: Settings, point: Point, grad_z: Tensor, need: Sequence[bool]
    ) -> list[Tensor | None] | None:
        """Gradients of the tensors (where `need`) from that of z, in one go: `kkt_solve` and the products of eq. 8.

        None, the default: adjoint.py does it by torch's operations.
        """
        return None

    def relaxing(self) -> Backend:
        """The backend whose `relax` and `kkt_solve` serve the smoothed gradient. The default is the reference."""
        return _reference()

    def relax(self, problem: Problem, settings: Settings, point: Point, keep_factor: bool) -> Point:
        """The point with lam∘s = settings.smoothing on every finite side, for the members solved in `point`."""
        return self.relaxing().relax(problem, settings, point, keep_factor)


def _reference() -> Any:
    from optlayer.backends import reference  # it imports this module

    return reference


class Stacked(Backend):
    """A backend that knows one-sided rows only, for problems with two-sided ones: (G; −G) z ≤ (h; −h_lower)."""

    two_sided = True

    def __init__(self, engine: Backend) -> None:
        self.engine, self.name, self.sparse = engine, engine.name, engine.sparse

    def refuses(self, problem: Problem) -> str | None:
        return self.engine.refuses(problem)

    def solve(self, problem: Problem, settings: Settings, keep_factor: bool) -> Point:
        return self._merged(problem, self.engine.solve(problem.stacked(), settings, keep_factor))

    def settle(self, problem: Problem, settings: Settings, point: Point) -> None:
        self.engine.settle(problem, settings, point)

    def kkt_solve(self, problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
        at = self._split(problem, point, settings.gradient == "smoothed")
        return self.engine.kkt_solve(problem.stacked(), settings, at, rhs)

    def relaxing(self) -> Backend:
        inner = self.engine.relaxing()
        return self if inner is self.engine else inner if inner.two_sided else Stacked(inner)

    def relax(self, problem: Problem, settings: Settings, point: Point, keep_factor: bool) -> Point:
        found = self.engine.relax(problem.stacked(), settings, self._split(problem, point, False), keep_factor)
        return self._merged(problem, found)

    def _merged(self, problem: Problem, point: Point) -> Point:
        p = problem.p
        rest = torch.cat([point.s[:, :p], point.lam[:, :p], point.nu, point.lam_lb, point.lam_ub, point.lam[:, p:]], -1)
        return Point(
            point.shaped, rest, point.counts.clone(), point.residuals.clone(), problem.widths, point.factor,
            point.unsolved,
        )  # fmt: skip

    def _split(self, problem: Problem, point: Point, relaxed: bool) -> Point:
        assert problem.G is not None and problem.h_lower is not None  # noqa: PT018
        below = (matrices.times(problem.G, point.z) - problem.h_lower).clamp(min=0)
        if not relaxed:
            below = torch.where(point.lam_lower > 0, 0.0, below)
        lam = torch.cat([point.lam, point.lam_lower], -1)
        rest = torch.cat([point.s, below, lam, point.nu, point.lam_lb, point.lam_ub], -1)
        widths = problem.stacked().widths
        return Point(point.shaped, rest, point.counts, point.residuals, widths, point.factor, point.unsolved)


# --- helpers ---------------------------------------------------------------------------------------------------------


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


def ours(problem: Problem) -> Any:
    """The backend of this package that judges, differentiates and does what another one leaves."""
    from optlayer.backends import cpu, reference  # they import this module

    return reference if cpu.unavailable() or cpu.refuses(problem) else cpu


def settled(engine: Backend, problem: Problem, settings: Settings, keep_factor: bool, waits: bool) -> Point:
    """The backend's point; `waits`: the caller waits for the verdict, so that what is left can be settled."""
    point = engine.solve(problem, settings, keep_factor)
    if waits and point.unsolved is None:
        engine.settle(problem, settings, point)
    return point


def settle_here(problem: Problem, settings: Settings, point: Point) -> None:
    """Settle what a backend on another device has left: by our own, on the CPU. Waits for the device."""
    rest = point.left.nonzero().flatten()
    if not len(rest):
        return
    some = problem.select(rest)
    tensors = [None if x is None else x.detach().cpu() for x in some.tensors()]
    here = Problem.of(tensors, some.structure.changed(device=torch.device("cpu")))
    found = ours(here).solve(here, settings, False)
    z, block, counts, residuals = (x.to(point.z.device) for x in (found.z, found.rest, found.counts, found.residuals))
    point.take(rest, Point(z, block, counts, residuals, found.widths))


def report(
    problem: Problem, settings: Settings, answer: Answer, iterations: Tensor | None = None,
    tolerance: float | None = None,
) -> Point:  # fmt: skip
    """The Point of a solver's answers: vetted, polished, rounded, judged; what is no solution then is left to our own
    backend, which finds one or a proof that there is none.

    Args:
        problem, settings: what was asked.
        answer: for every member, valid or not; members without solution may hold anything.
        iterations: (B,), if the solver counts.
        tolerance: of the relative residual; None: that of the settings, or what our own solutions have.
    """
    own = ours(problem)
    tolerance = tolerance or tolerance_of(settings, problem.dtype is torch.float32)
    point = own.judge(problem, settings, answer, tolerance)
    if iterations is not None:
        point.counts[:, 1] = iterations
    left = (point.status == int(Status.NUMERICAL_ERROR)) | (point.status == int(Status.PRIMAL_INFEASIBLE))
    rest = left.nonzero().flatten()
    if len(rest):
        point.take(rest, own.solve(problem.select(rest), settings, False))
    return point
