"""What a solve returns: the point, its multipliers, and a verdict for each member."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from optlayer import kkt
from optlayer.point import Point
from optlayer.problem import Problem


class Status(IntEnum):
    """Verdict on one member of the batch."""

    SOLVED = 0
    MAX_ITERATIONS = 1
    PRIMAL_INFEASIBLE = 2
    DUAL_INFEASIBLE = 3
    NUMERICAL_ERROR = 4
    INVALID_INPUT = 5
    NOT_CONVEX = 6

    @property
    def explanation(self) -> str:
        """What happened, and what to try."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    Status.SOLVED: "the optimality conditions hold to the tolerance.",
    Status.MAX_ITERATIONS: (
        "the iterations ended before the tolerance was met. Likely an extremely scaled or nearly infeasible problem: "
        "scale the rows and the objective to about 1, raise max_iterations, or accept a larger tolerance."
    ),
    Status.PRIMAL_INFEASIBLE: (
        "no point satisfies the constraints; the multipliers hold the proof (a Farkas certificate). Relax a constraint "
        "that explain() names, parametrise the problem so that a point is always feasible (nn.OptNetLayer), or allow "
        "violation at a price (nn.ElasticQPLayer)."
    ),
    Status.DUAL_INFEASIBLE: (
        "the objective falls without limit along the ray in z. Bound the variables, or add curvature to Q."
    ),
    Status.NUMERICAL_ERROR: (
        "rounding stopped the iterations before the tolerance was met. Scale the data, use float64, or accept a larger "
        "tolerance."
    ),
    Status.INVALID_INPUT: (
        "the data hold NaN, or an infinity where none is allowed (only h, lb and ub may be infinite, on the side that "
        "means no constraint). Look for the first layer that produced it."
    ),
    Status.NOT_CONVEX: (
        "Q is not positive semidefinite: the problem may have several local minima. Use Q = LLᵀ + εI."
    ),
}


class Solution:
    """The solution of a batch of quadratic programs.

    Attributes:
        z: minimiser (…, n).
        s: slack h − G z (…, p), inf where h is.
        lam: multipliers of G z ≤ h (…, p).
        nu: multipliers of A z = b (…, m).
        lam_lb: multipliers of lb ≤ z (…, n).
        lam_ub: multipliers of z ≤ ub (…, n). Absent parts have no columns. All six are differentiable with respect
            to whatever requires a gradient.
        status: Status of each member, int32, shape (…).
        iterations: interior-point iterations of each member.
        primal_residual: max-norm residual of the constraints, for each member, in the problem's units.
        dual_residual: that of stationarity.
        gap: that of complementarity.
    """

    def __init__(self, problem: Problem, point: Point) -> None:
        self.problem, self.point = problem, point
        self._made: dict[str, Tensor] = {}

    def _field(self, name: str) -> Tensor:
        """A part of the point, made once, without the batch dimension if the problem has none."""
        found = self._made.get(name)
        if found is None:
            found = getattr(self.point, name)
            found = self._made[name] = found[0] if self.problem.batch is None else found
        return found

    z = property(lambda self: self._field("z"))
    s = property(lambda self: self._field("s"))
    lam = property(lambda self: self._field("lam"))
    nu = property(lambda self: self._field("nu"))
    lam_lb = property(lambda self: self._field("lam_lb"))
    lam_ub = property(lambda self: self._field("lam_ub"))
    status = property(lambda self: self._field("status"))
    iterations = property(lambda self: self._field("iterations"))
    primal_residual = property(lambda self: self._field("primal_residual"))
    dual_residual = property(lambda self: self._field("dual_residual"))
    gap = property(lambda self: self._field("gap"))

    @property
    def solved(self) -> Tensor:
        """Whether each member is SOLVED, bool, shape (…)."""
        return self.status == int(Status.SOLVED)

    @property
    def objective(self) -> Tensor:
        """½ zᵀQz + qᵀz, shape (…), differentiable."""
        z = self.z if self.z.dim() == 2 else self.z[None]
        value = (z * (0.5 * kkt.mul_Q(self.problem.Q, z) + self.problem.q)).sum(-1)
        return value if self.z.dim() == 2 else value[0]

    @property
    def certificate_residual(self) -> Tensor:
        """How exact the proofs are that no solution exists, shape (…); nan where no certificate applies.

        Of PRIMAL_INFEASIBLE members `kkt.farkas_residual` of the multipliers, of DUAL_INFEASIBLE ones
        `kkt.ray_residual` of z: 0 is exact, 1e-9 excellent.
        """
        values = [x.detach().double() for x in (self.z, self.lam, self.nu, self.lam_lb, self.lam_ub)]
        status, problem = self.status, self.problem
        if problem.batch is None:
            values, status = [x[None] for x in values], status[None]
        z, *multipliers = values
        dense = (x.to_dense() if x is not None and x.layout != torch.strided else x for x in problem.tensors())
        data = [None if x is None else x.detach().double() for x in dense]
        problem = problem.replace(data, len(status))
        found = torch.full_like(z[:, 0], torch.nan)
        found = torch.where(
            status == int(Status.PRIMAL_INFEASIBLE), kkt.farkas_residual(problem, *multipliers), found
        )
        found = torch.where(status == int(Status.DUAL_INFEASIBLE), kkt.ray_residual(problem, z), found)
        return found if self.problem.batch is not None else found[0]

    def explain(self, member: int = 0) -> str:
        """The verdict on one member in words."""
        from optlayer.explain import explain

        return explain(self, member)

    def __repr__(self) -> str:
        statuses = self.status.reshape(-1)
        found = {status: int((statuses == status).sum()) for status in Status}
        counts = ", ".join(f"{status.name}: {count}" for status, count in found.items() if count)
        problem = self.problem
        size = f"n={problem.n}, m={problem.m}, p={problem.p}, batch={problem.batch}"
        residuals = (self.primal_residual, self.dual_residual, self.gap)
        worst = max((float(x.max()) for x in residuals if x.numel()), default=0.0)
        return f"Solution({size}; {counts}; largest residual {worst:.1e})"


class SolveError(RuntimeError):
    """Members of the batch were not solved.

    Attributes:
        solution: the whole Solution; the other members are valid.
        members: indices of the members that were not solved.
    """

    def __init__(self, solution: Solution) -> None:
        statuses = solution.status.reshape(-1)
        self.solution = solution
        self.members: list[int] = (statuses != int(Status.SOLVED)).nonzero().flatten().tolist()
        lines = [f"{len(self.members)} of {statuses.numel()} members were not solved"]
        for status in Status:
            those = [i for i in self.members if int(statuses[i]) == status]
            if those:
                shown = ", ".join(map(str, those[:10])) + (", …" if len(those) > 10 else "")
                lines.append(f"  {status.name} (member {shown}): {status.explanation}")
        lines.append("solve(…, check=False) returns statuses instead; unsolved members then have zero gradient.")
        super().__init__("\n".join(lines))


