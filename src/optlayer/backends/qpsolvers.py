"""Backend `qpsolvers:NAME`: another solver's forward pass with our derivative on top, member by member.

The package qpsolvers (pip install optlayer[qpsolvers]) speaks to Clarabel, DAQP, Gurobi, HiGHS, OSQP, PIQP, ProxQP and
others. What they return is polished and then judged by `kkt.residuals`, whatever they claim. This is the backend for
problems too large for dense matrices: Q, G and A may be sparse, and so are their gradients.

**Polish and derivative** both live on the active set: with C the active rows of (G; −I; I) and of A,

    [ Q   Cᵀ ] [ v_z ]   [ r_z ]
    [ C   0  ] [ v_y ] = [ r_y ],

one sparse symmetric system for each member, equilibrated, regularised by ±δ on its diagonal so that it has a factor
without row exchanges (it is then quasidefinite), and refined until δ has no more influence. Where the system is
singular and consistent, this converges to a solution whose component in the null space is zero.

Tolerance: these solvers stop at about 1e-6, so that is the default tolerance of this backend; polishing mostly ends
below 1e-12.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optlayer import kkt
from optlayer.backends.base import Adjoint, Backend
from optlayer.core.settings import Settings
from optlayer.core.status import Status
from optlayer.core.structure import MATRICES, NAMES, Patterned
from optlayer.matrices import Diagonal
from optlayer.point import Point
from optlayer.problem import Problem
from optlayer.sparse import Pattern

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csc_matrix

PREFIX = "qpsolvers:"
TOLERANCE = 1e-6
_HINT = "pip install optlayer[qpsolvers]"
_DELTA = 1e-10  # regularisation of the equilibrated KKT matrix
_REFINEMENTS = 20
_ROUNDS = 8  # corrections of the active set while polishing
_SMALL = 600  # rows and columns up to which the reference gives a verdict on what was not solved

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
        batch = 1 if problem.batch is None else problem.batch
        tolerance = settings.tolerance or max(TOLERANCE, 1e-5 if problem.dtype == torch.float32 else 0.0)
        columns = (problem.n, *problem.widths)
        rows: list[tuple[list[Tensor], Status]] = []
        convex: bool | None = None
        for i in range(batch):
            data = _Member.of(problem, i)
            if convex is None or _batched(problem):
                convex = data.convex()
            status = Status.INVALID_INPUT if not data.valid() else Status.NOT_CONVEX if not convex else Status.SOLVED
            values = [torch.full((width,), torch.nan, dtype=torch.float64) for width in columns]
            if status is Status.SOLVED:
                z, lam, nu, lam_lb, lam_ub = self._ask(data, min(tolerance, TOLERANCE))
                found = data.clean(z, lam, nu, lam_lb, lam_ub)
                if settings.polish:
                    found = data.polish(found)
                values = [torch.tensor(x) for x in data.point(found)]
            rows.append((values, status))
        point = _judged(problem, rows, tolerance)
        _ask_reference(problem, settings, point, tolerance)
        return point

    def _ask(self, data: _Member, accuracy: float) -> tuple[np.ndarray | None, ...]:
        """z, lam, nu, lam_lb, lam_ub as the solver returns them; None for what it does not return."""
        package = _package()
        problem = package.Problem(*data.for_solver(self.solver in package.sparse_solvers))
        options = dict.fromkeys(_ACCURACY.get(self.solver, ()), accuracy) | _EXTRA.get(self.solver, {})
        if self.solver == "proxqp" or self.solver == "piqp":
            options["check_duality_gap"] = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about conversions, and about what we judge ourselves
            try:
                answer = package.solve_problem(problem, self.solver, **options)
            except (ArithmeticError, AttributeError, RuntimeError, ValueError, TypeError, package.exceptions.QPError):
                return (None,) * 5  # each solver has its own ways to say that it did not succeed
        box = answer.z_box
        if box is None or not len(box):
            lower = upper = None
        else:
            lower, upper = (-box).clip(min=0), box.clip(min=0)
        return answer.x, answer.z, answer.y, lower, upper

    def kkt_solve(self, problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
        """Solve the KKT system on the active set of each member; zero for members that are not solved."""
        answer = Adjoint(*(torch.zeros_like(part) for part in rhs))
        for i in range(len(point.z)):
            if int(point.status[i]) == Status.SOLVED:
                data = _Member.of(problem, i)
                sides = data.sides(*(x[i].detach().double().numpy() for x in (point.lam, point.lam_lb, point.lam_ub)))
                slack = data.slack(point.z[i].detach().double().numpy())
                r_z, r_lam, r_nu, r_lb, r_ub = (x[i].detach().double().numpy() for x in rhs)
                v_z, v_y, v_nu = data.system(sides > slack.clip(min=0)).solve(r_z, data.sides(r_lam, r_lb, r_ub), r_nu)
                for whole, part in zip(answer, (v_z, *data.split(v_y, v_nu)), strict=True):
                    whole[i] = torch.from_numpy(part)
        return answer


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when it finds no solver; we say so ourselves
        import qpsolvers

    return qpsolvers


def _batched(problem: Problem) -> bool:
    """Whether Q differs from member to member."""
    return problem.tensors()[0].dim() > problem.rank("Q")  # type: ignore[union-attr]


# --- one member ------------------------------------------------------------------------------------------------------

_Found = tuple["np.ndarray", "np.ndarray", "np.ndarray"]  # z, multipliers of all sides, nu


@dataclass
class _Member:
    """The data of one member in float64: matrices sparse, inequalities and bounds as one list of sides C z ≤ d."""

    Q: csc_matrix
    q: np.ndarray
    C: csc_matrix
    d: np.ndarray
    A: csc_matrix
    b: np.ndarray
    given: dict[str, Any]  # G, h, A, b, lb, ub as the solver gets them
    p: int
    lower: int  # bounds that are given: n or 0
    upper: int

    @classmethod
    def of(cls, problem: Problem, i: int) -> _Member:
        import numpy as np
        from scipy import sparse

        def pick(name: str, tensor: Tensor | None) -> Any:
            if tensor is None:
                return None
            if tensor.dim() > problem.rank(name):
                tensor = tensor[i]
            kind = problem.structure.kinds[MATRICES.index(NAMES.index(name))] if name in "QGA" else None
            return _to_scipy(kind.pattern, tensor) if type(kind) is Patterned else tensor.detach().double().numpy()

        given = {name: pick(name, x) for name, x in zip(NAMES[:8], problem.tensors(), strict=False)}
        n, eye = problem.n, sparse.identity(problem.n, format="csc")
        Q, q = given.pop("Q"), given.pop("q")
        if isinstance(problem.Q, Diagonal):
            Q = sparse.diags(Q, format="csc")
        given["P"] = Q = 0.5 * (Q + Q.T)
        rows, sides = [], []
        for name, side, sign, matrix in (("G", "h", 1, given["G"]), ("lb", "lb", -1, -eye), ("ub", "ub", 1, eye)):
            if given[name] is not None:
                rows.append(sparse.csc_matrix(matrix))
                sides.append(sign * given[side])
        C = sparse.vstack(rows, format="csc") if rows else sparse.csc_matrix((0, n))
        A = sparse.csc_matrix((0, n)) if given["A"] is None else sparse.csc_matrix(given["A"])
        return cls(
            sparse.csc_matrix(Q), q, C, np.concatenate(sides) if sides else np.zeros(0),
            A, np.zeros(0) if given["b"] is None else given["b"], given, problem.p,
            n if problem.lb is not None else 0, n if problem.ub is not None else 0,
        )

    def valid(self) -> bool:
        """Whether the data are numbers; h, lb, ub may be infinite on the side that means no constraint."""
        import numpy as np

        finite = all(np.isfinite(x).all() for x in (self.Q.data, self.q, self.C.data, self.A.data, self.b))
        return finite and bool((self.d > -np.inf).all())  # false for NaN

    def convex(self) -> bool:
        """Whether Q is positive semidefinite, by the signs in an LU of Q + δI without row exchanges."""
        import numpy as np
        from scipy.sparse import identity

        n = len(self.q)
        largest = abs(self.Q).max() if self.Q.nnz else 0.0
        if largest == 0 or not np.isfinite(largest):  # NaN and inf have a status of their own
            return True
        if n <= _SMALL and self.Q.nnz > n * n / 10:
            return bool(np.linalg.eigvalsh(self.Q.toarray())[0] >= -1e-9 * largest)
        try:
            factor = _factor(self.Q / largest + 1e-9 * identity(n, format="csc"))
        except RuntimeError:  # exactly singular in spite of δ: an eigenvalue is −δ
            return False
        return bool((factor.perm_r == factor.perm_c).all() and (factor.U.diagonal() > 0).all())

    def for_solver(self, sparse: bool) -> tuple[Any, ...]:
        """P, q, G, h, A, b, lb, ub in the form that qpsolvers wants; rows with infinite h are left out."""
        import numpy as np
        from scipy.sparse import csc_matrix, issparse

        given = dict(self.given)
        if given["h"] is not None:
            on = np.isfinite(given["h"])
            given["G"], given["h"] = (given["G"][on], given["h"][on]) if on.any() else (None, None)
        if given["b"] is not None and not len(given["b"]):
            given["A"] = given["b"] = None
        wanted = any(issparse(given[name]) for name in "PGA")
        for name in "PGA":
            if given[name] is not None:
                if wanted and sparse:
                    given[name] = csc_matrix(given[name])
                elif issparse(given[name]):
                    given[name] = given[name].toarray()
        return (given["P"], self.q, *(given[name] for name in ("G", "h", "A", "b", "lb", "ub")))

    # the sides, together and apart

    def sides(self, lam: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """One vector over all sides."""
        import numpy as np

        return np.concatenate([lam, lower, upper])

    def split(self, y: np.ndarray, nu: np.ndarray) -> tuple[np.ndarray, ...]:
        """lam, nu, lam_lb, lam_ub."""
        return y[: self.p], nu, y[self.p : self.p + self.lower], y[self.p + self.lower :]

    def slack(self, z: np.ndarray) -> np.ndarray:
        """d − C z."""
        return self.d - self.C @ z

    def point(self, found: _Found) -> tuple[np.ndarray, ...]:
        """z, s, lam, nu, lam_lb, lam_ub."""
        z, y, nu = found
        return (z, self.slack(z)[: self.p].clip(min=0), *self.split(y, nu))

    def clean(
        self, z: np.ndarray | None, lam: np.ndarray | None, nu: np.ndarray | None, lower: Any, upper: Any
    ) -> _Found:
        """What the solver returned, with non-negative multipliers for all sides: zero where there is no constraint."""
        import numpy as np

        on = np.isfinite(self.d)
        y = np.zeros(len(self.d))
        if lam is not None:
            y[: self.p][on[: self.p]] = lam
        for values, start, width in ((lower, self.p, self.lower), (upper, self.p + self.lower, self.upper)):
            if values is not None and width:
                y[start : start + width] = values
        z = np.zeros(len(self.q)) if z is None else np.asarray(z, dtype=np.float64)
        nu = np.zeros(len(self.b)) if nu is None or not len(self.b) else np.asarray(nu, dtype=np.float64)
        return z, np.where(on, y, 0.0).clip(min=0), nu

    # the linear system

    def system(self, active: np.ndarray) -> _System:
        return _System(self, active)

    def polish(self, found: _Found) -> _Found:
        """Solve the problem of the active sides alone; correct the set where signs are wrong; keep the best point."""
        import numpy as np

        best, error = found, self.error(found)
        z, y, nu = found
        active = (y > self.slack(z)) & np.isfinite(self.d)
        for _ in range(_ROUNDS):
            try:
                dz, y, dnu = self.system(active).solve(
                    -(self.Q @ z + self.q + self.A.T @ nu), np.where(active, self.slack(z), 0.0), self.b - self.A @ z
                )
            except RuntimeError:  # no factor
                return best
            z, nu = z + dz, nu + dnu
            slack = self.slack(z)
            found = z, y.clip(min=0), nu
            now = self.error(found)
            if now < error:
                best, error = found, now
            size = 1 + np.abs(self.C @ z)
            wrong = (active & (y < 0)) | (~active & (slack < -1e-12 * size))
            if not wrong.any() or not np.isfinite(now):
                break
            active = active ^ wrong
        return best

    def error(self, found: _Found) -> float:
        """The largest violation of the optimality conditions, relative to the terms that enter each."""
        import numpy as np

        z, y, nu = found

        def largest(x: np.ndarray) -> float:
            return float(np.abs(x).max(initial=0.0))

        terms = (self.Q @ z, self.q, self.C.T @ y, self.A.T @ nu)
        on = np.isfinite(self.d)
        Cz, Az = self.C @ z, self.A @ z
        slack = np.where(on, self.d - Cz, np.inf)
        gap = z @ (self.Q @ z), self.q @ z, self.b @ nu, np.where(on, self.d, 0.0) @ y
        parts = (
            largest(self.Q @ z + self.q + self.C.T @ y + self.A.T @ nu) / (1 + max(map(largest, terms))),
            largest(np.minimum(slack, 0)) / (1 + largest(Cz)),
            largest(Az - self.b) / (1 + largest(self.b)),
            largest(np.minimum(y, np.where(on, abs(slack), 0.0))) / (1 + largest(z)),
            abs(sum(gap)) / (1 + max(map(abs, gap))),
        )
        return max(parts) if all(np.isfinite(part) for part in parts) else np.inf


class _System:
    """The KKT matrix of an active set, factored."""

    def __init__(self, member: _Member, active: np.ndarray) -> None:
        import numpy as np
        from scipy import sparse

        self.active, self.n, self.p = active, len(member.q), len(member.d)
        C = sparse.vstack([member.C[active], member.A], format="csc")
        K = sparse.bmat([[member.Q, C.T], [C, sparse.csc_matrix((C.shape[0],) * 2)]], format="csc")
        scale = np.ones(K.shape[0])
        for _ in range(5):  # Ruiz: the largest entry of every row and column becomes 1
            rows = abs(sparse.diags(scale) @ K @ sparse.diags(scale)).max(1).toarray().ravel()
            scale /= np.sqrt(np.where(rows > 0, rows, 1.0))
        self.scale, self.K = scale, (sparse.diags(scale) @ K @ sparse.diags(scale)).tocsc()
        delta = np.where(np.arange(K.shape[0]) < self.n, _DELTA, -_DELTA)
        self.factor = _factor(self.K + sparse.diags(delta, format="csc"))

    def solve(self, r_z: np.ndarray, r_y: np.ndarray, r_nu: np.ndarray) -> tuple[np.ndarray, ...]:
        """v_z, v_y (zero on inactive sides), v_nu; refined while refinement helps."""
        import numpy as np

        r = self.scale * np.concatenate([r_z, r_y[self.active], r_nu])
        v = np.zeros_like(r)
        residual, last = r, np.inf
        for _ in range(_REFINEMENTS):
            step = self.factor.solve(residual)
            new = r - self.K @ (v + step)
            size = np.abs(new).max(initial=0.0)
            if not size < last:
                break
            v, residual, last = v + step, new, size
        v = self.scale * v
        count = int(self.active.sum())
        v_y = np.zeros(self.p)
        v_y[self.active] = v[self.n : self.n + count]
        return v[: self.n], v_y, v[self.n + count :]


def _factor(M: csc_matrix) -> Any:
    """LU of a symmetric quasidefinite matrix, ordered for sparsity, without row exchanges."""
    from scipy.sparse.linalg import splu

    return splu(M, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def _to_scipy(pattern: Pattern, values: Tensor) -> csc_matrix:
    from scipy.sparse import csr_matrix

    parts = (values.detach().double(), pattern.columns, pattern.first)
    return csr_matrix(tuple(x.numpy() for x in parts), shape=pattern.size).tocsc()


# --- the verdict -----------------------------------------------------------------------------------------------------


def _judged(problem: Problem, rows: list[tuple[list[Tensor], Status]], tolerance: float) -> Point:
    """The point of all members, rounded to the problem's dtype, and our verdict on it."""
    widths = (problem.n, *problem.widths)
    columns = [
        torch.stack([values[k] for values, _ in rows]) if rows else torch.zeros(0, width, dtype=torch.float64)
        for k, width in enumerate(widths)
    ]
    z, s, lam, nu, lam_lb, lam_ub = (x.to(problem.dtype) for x in columns)
    exact = problem.replace([None if x is None else x.detach().double() for x in problem.tensors()], problem.batch)
    z64, *y64 = (x.double() for x in (z, lam, nu, lam_lb, lam_ub))
    found = kkt.residuals(exact, z64, y64[0], y64[1], y64[2], y64[3], rounded=problem.dtype == torch.float32)
    claimed = torch.tensor([int(status) for _, status in rows], dtype=torch.int32)
    failed = (claimed == int(Status.SOLVED)) & ~(found.relative <= tolerance)
    status = torch.where(failed, int(Status.MAX_ITERATIONS), claimed).to(torch.int32)
    primal, dual, gap = (x.to(problem.dtype) for x in found[:3])
    return Point.of(z, s, lam, nu, lam_lb, lam_ub, status, torch.zeros_like(status), primal, dual, gap)


def _ask_reference(problem: Problem, settings: Settings, point: Point, tolerance: float) -> None:
    """Give small members that were not solved the reference's verdict: it knows certificates of infeasibility."""
    from optlayer.backends import reference

    if problem.n + problem.m + problem.p > _SMALL:
        return
    for i in (point.status == int(Status.MAX_ITERATIONS)).nonzero().flatten().tolist():
        verdict = reference.solve(problem.dense().member(i), settings, False)
        point.take(slice(i, i + 1), verdict)
