"""Backend `qpsolvers:NAME`: another solver's forward pass with our derivative on top, member by member.

The package qpsolvers (pip install optlayer[qpsolvers]) speaks to Clarabel, DAQP, Gurobi, HiGHS, OSQP, PIQP, ProxQP and
others. What they return is polished and then judged (`base.report`), whatever they claim; the derivative is that of our
own backends. Q, G and A may be sparse: they are brought into the solver's form once for what is shared.

Tolerance: these solvers stop at about 1e-6, so that is the default tolerance of this backend; polishing mostly ends
below 1e-12.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optlayer import matrices
from optlayer.backends.base import Adjoint, Answer, Backend, ours, report
from optlayer.core.settings import Settings
from optlayer.core.status import Status
from optlayer.core.structure import DENSE
from optlayer.matrices import Matrix
from optlayer.point import Point
from optlayer.problem import Problem
from optlayer.sparse import Pattern, Sparse

try:
    import numpy as np
    from scipy.sparse import csc_matrix, csr_matrix
except ImportError:  # `unavailable` says so
    pass

PREFIX = "qpsolvers:"
TOLERANCE = 1e-6
_HINT = "pip install optlayer[qpsolvers]"

# How each solver is told the accuracy that it shall reach. Those without an entry have no such option.
_ACCURACY: dict[str, tuple[str, ...]] = {
    "clarabel": ("tol_feas", "tol_gap_abs", "tol_gap_rel"),
    "cvxopt": ("feastol", "abstol", "reltol"),
    "daqp": ("primal_tol", "dual_tol"),
    "ecos": ("feastol", "abstol", "reltol"),
    "gurobi": ("FeasibilityTol", "OptimalityTol", "BarConvTol"),
    "highs": ("primal_feasibility_tolerance", "dual_feasibility_tolerance"),
    "osqp": ("eps_abs", "eps_rel"),
    "piqp": ("eps_abs", "eps_rel", "eps_duality_gap_abs", "eps_duality_gap_rel"),
    "proxqp": ("eps_abs", "eps_rel", "eps_duality_gap_abs", "eps_duality_gap_rel"),
    "qpalm": ("eps_abs", "eps_rel"),
    "scs": ("eps_abs", "eps_rel"),
}
# First-order methods need more iterations than they allow themselves.
_EXTRA: dict[str, dict[str, Any]] = {"osqp": {"max_iter": 100_000}, "scs": {"max_iters": 100_000}}


def unavailable() -> str | None:
    """None, or why there are no other solvers."""
    missing = [name for name in ("qpsolvers", "scipy") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: {_HINT}" if missing else None


def solvers() -> list[str]:
    """The solvers that the package finds, with their versions."""
    found = []
    for name in _package().available_solvers:
        try:
            found.append(f"{name} {importlib.metadata.version(_PACKAGES.get(name, name))}")
        except importlib.metadata.PackageNotFoundError:
            found.append(name)
    return found


_PACKAGES = {"gurobi": "gurobipy", "highs": "highspy", "jaxopt_osqp": "jaxopt", "proxqp": "proxsuite"}
"""Whose name is another."""


@dataclass
class Engine(Backend):
    """The backend for one of the solvers; `name` is `qpsolvers:NAME`."""

    name: str
    sparse = True

    @property
    def solver(self) -> str:
        """What the package calls it."""
        return self.name.removeprefix(PREFIX)

    def unavailable(self) -> str | None:
        """None, or why this solver cannot be used."""
        reason = unavailable()
        if reason is None:
            installed = _package().available_solvers
            if self.solver not in installed:
                reason = (
                    f"qpsolvers does not find {self.solver!r}; installed are: {', '.join(installed) or 'none'}; "
                    f"pip install qpsolvers[{self.solver}]"
                )
        return reason

    def solve(self, problem: Problem, settings: Settings, keep_factor: bool) -> Point:
        """Solve every member; the derivative factors anew, so that nothing is kept."""
        answer = Answer.empty(problem)
        tolerance = settings.tolerance or max(TOLERANCE, 1e-5 if problem.dtype == torch.float32 else 0.0)
        ask = self._asking(min(tolerance, TOLERANCE))
        rows = [x.numpy() for x in answer]
        members = _Members(problem, self.solver in _package().sparse_solvers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about conversions, and about what we judge ourselves
            for i in _open(problem).nonzero().flatten().tolist():
                data, on = members.member(i)
                found = ask(data)
                if found is not None and found.x is not None:
                    _fill([x[i] for x in rows], found, on)
        return report(problem, settings, answer, tolerance=tolerance)

    def _asking(self, accuracy: float) -> Callable[[Sequence[Any]], Any]:
        """What the solver returns for P, q, G, h, A, b, lb, ub; None where it gives up."""
        package = _package()
        options = dict.fromkeys(_ACCURACY.get(self.solver, ()), accuracy) | _EXTRA.get(self.solver, {})
        refusals = (ArithmeticError, AttributeError, RuntimeError, ValueError, TypeError, package.exceptions.QPError)

        def ask(data: Sequence[Any]) -> Any:
            try:
                return package.solve_problem(package.Problem(*data), self.solver, **options)
            except refusals:  # each solver has its own ways to say that it did not succeed
                return None

        return ask

    def kkt_solve(self, problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
        return ours(problem).kkt_solve(problem, settings, point, rhs)

    def pullback(
        self, problem: Problem, settings: Settings, point: Point, grad_z: Tensor, need: Sequence[bool]
    ) -> list[Tensor | None] | None:
        return ours(problem).pullback(problem, settings, point, grad_z, need)

    def relax(self, problem: Problem, settings: Settings, point: Point, keep_factor: bool) -> Point:
        return ours(problem).relax(problem, settings, point, keep_factor)


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when it finds no solver; we say so ourselves
        import qpsolvers

    return qpsolvers


def _open(problem: Problem) -> Tensor:
    """The members that a solver may see, bool (B,): their data do not decide alone, their bounds do not cross."""
    nothing = ours(problem).judge(problem, _UNPOLISHED, Answer.empty(problem), TOLERANCE)
    found: Tensor = nothing.status == int(Status.NUMERICAL_ERROR)
    if problem.lb is not None and problem.ub is not None:
        found = found & (problem.lb <= problem.ub).all(-1)
    return found


_UNPOLISHED = Settings(polish=False)


class _Members:
    """The members of a problem in the form of qpsolvers: float64, matrices dense, or sparse by columns."""

    def __init__(self, problem: Problem, sparse: bool) -> None:
        sparse = sparse and any(kind is not DENSE for kind in problem.structure.kinds)
        pairs = (problem.Q, True), (problem.G, False), (problem.A, False)
        self.P, self.G, self.A = (_each(M, sparse, symmetric) for M, symmetric in pairs)
        vectors = (problem.q, problem.h, problem.b, problem.lb, problem.ub)
        self.vectors: list[Any] = [None if x is None else _numbers(x) for x in vectors]
        h = self.vectors[1]
        self.bounded = h is None or not np.isinf(h).any()

    def member(self, i: int) -> tuple[tuple[Any, ...], Any]:
        """P, q, G, h, A, b, lb, ub of a member, without rows of infinite h; and the rows that are left."""
        q, h, b, lb, ub = (x if x is None or x.ndim == 1 else x[i] for x in self.vectors)
        G, on = self.G(i), slice(None)
        if not self.bounded:
            on = np.isfinite(h)
            G, h = G[on], h[on]
        G, h = (G, h) if h is not None and len(h) else (None, None)
        A, b = (self.A(i), b) if b is not None and len(b) else (None, None)
        return (self.P(i), q, G, h, A, b, lb, ub), on


def _each(M: Matrix | None, sparse: bool, symmetric: bool) -> Callable[[int], Any]:
    """The matrix of each member, or its symmetric part; what the members share is made once."""
    if sparse and isinstance(M, matrices.Diagonal):
        M = Sparse.of(_diagonal(M.d.shape[-1]), M.d)
    if sparse and isinstance(M, Sparse):
        order, indices, starts = _by_columns(M.pattern)
        values = M.values[..., order]
        data = _numbers((M.values + values) / 2 if symmetric else values)  # (rows of the pattern are its columns)
        one = csc_matrix((data if data.ndim == 1 else data[0], indices, starts), M.pattern.size)

        def member(i: int) -> Any:
            one.data = data if data.ndim == 1 else data[i]
            return one

        return member
    if M is None:
        return lambda i: None
    full = matrices.dense(M)
    found = _numbers((full + full.mT) / 2 if symmetric else full)
    form = csc_matrix if sparse else np.asarray
    if found.ndim == 2:
        found = form(found)
        return lambda i: found
    return lambda i: form(found[i])


def _numbers(x: Tensor) -> np.ndarray:
    return x.detach().double().resolve_neg().contiguous().numpy()


@functools.lru_cache(maxsize=64)
def _by_columns(pattern: Pattern) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Which value comes when, column by column; and the indices of that form."""
    given = (np.arange(pattern.entries), pattern.columns.numpy(), pattern.first.numpy())
    turned = csr_matrix(given, pattern.size).tocsc()
    return torch.from_numpy(turned.data), turned.indices, turned.indptr


@functools.lru_cache(maxsize=64)
def _diagonal(n: int) -> Pattern:
    return Pattern(torch.arange(n + 1), torch.arange(n), (n, n), passing=True)


def _fill(rows: Sequence[np.ndarray], found: Any, on: Any) -> None:
    """The rows z, lam, nu, lam_lb and lam_ub of a member from a solver's answer, which may lack parts."""
    z, lam, nu, lower, upper = rows
    z[:] = found.x
    if found.z is not None and len(found.z):
        lam[on] = found.z
    if found.y is not None and len(found.y):
        nu[:] = found.y
    if found.z_box is not None and len(found.z_box):
        lower[:], upper[:] = (-found.z_box).clip(min=0)[: len(lower)], found.z_box.clip(min=0)[: len(upper)]
