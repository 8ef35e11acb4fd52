"""What a solve returns: the point, its multipliers, and a verdict for each member."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optlayer import kkt
from optlayer.core.status import Status
from optlayer.core.structure import Names
from optlayer.explain import explain, member_at
from optlayer.point import Point
from optlayer.problem import Problem

__all__ = ["Solution", "SolveError", "Status"]


class Solution:
    """The solution of a batch of quadratic programs.

    Attributes:
        z: minimiser (…, n).
        s: slack h − G z (…, p), inf where h is.
        lam: multipliers of G z ≤ h (…, p).
        nu: multipliers of A z = b (…, m).
        lam_lb: multipliers of lb ≤ z (…, n).
        lam_ub: multipliers of z ≤ ub (…, n).
        lam_lower: multipliers of h_lower ≤ G z (…, p). Absent parts have no columns. All seven are differentiable with
            respect to whatever requires a gradient.
        status: Status of each member, int32, shape (…).
        iterations: interior-point iterations of each member.
        primal_residual: max-norm residual of the constraints, for each member, in the problem's units.
        dual_residual: that of stationarity.
        gap: that of complementarity.
    """

    def __init__(self, problem: Problem, point: Point, names: Names | None = None) -> None:
        self.problem, self.point, self.names = problem, point, names
        self._made: dict[str, Tensor] = {}

    def _field(self, name: str) -> Tensor:
        """A part of the point with the batch dimensions of the results, made once."""
        found = self._made.get(name)
        if found is None:
            found, shape = getattr(self.point, name), self.problem.structure.shape
            if len(shape) != 1:
                found = found.reshape((*shape, *found.shape[1:]))
            self._made[name] = found
        return found

    @property
    def z(self) -> Tensor:
        """Minimiser (…, n)."""
        z, shape = self.point.shaped, self.problem.structure.shape
        return z if z.dim() == len(shape) + 1 and len(shape) < 2 else self._field("z")

    @property
    def s(self) -> Tensor:
        """Slack h − G z (…, p), inf where h is."""
        return self._field("s")

    @property
    def lam(self) -> Tensor:
        """Multipliers of G z ≤ h (…, p)."""
        return self._field("lam")

    @property
    def nu(self) -> Tensor:
        """Multipliers of A z = b (…, m)."""
        return self._field("nu")

    @property
    def lam_lb(self) -> Tensor:
        """Multipliers of lb ≤ z (…, n)."""
        return self._field("lam_lb")

    @property
    def lam_ub(self) -> Tensor:
        """Multipliers of z ≤ ub (…, n)."""
        return self._field("lam_ub")

    @property
    def lam_lower(self) -> Tensor:
        """Multipliers of h_lower ≤ G z (…, p)."""
        return self._field("lam_lower")

    @property
    def status(self) -> Tensor:
        """Status of each member, int32, (…)."""
        return self._field("status")

    @property
    def iterations(self) -> Tensor:
        """Iterations of each member, int32, (…)."""
        return self._field("iterations")

    @property
    def primal_residual(self) -> Tensor:
        """Largest residual of the constraints, (…)."""
        return self._field("primal_residual")

    @property
    def dual_residual(self) -> Tensor:
        """Largest residual of stationarity, (…)."""
        return self._field("dual_residual")

    @property
    def gap(self) -> Tensor:
        """Residual of complementarity, (…)."""
        return self._field("gap")

    @property
    def solved(self) -> Tensor:
        """Whether each member is SOLVED, bool, shape (…)."""
        return self.status == int(Status.SOLVED)

    @property
    def objective(self) -> Tensor:
        """½ zᵀQz + qᵀz, shape (…), differentiable."""
        z = self.point.z
        value = (z * (0.5 * kkt.mul_Q(self.problem.Q, z) + self.problem.q)).sum(-1)
        return value.reshape(self.problem.structure.shape)

    @property
    def certificate_residual(self) -> Tensor:
        """How exact the proofs are that no solution exists, shape (…); nan where no certificate applies.

        Of PRIMAL_INFEASIBLE members `kkt.farkas_residual` of the multipliers, of DUAL_INFEASIBLE ones
        `kkt.ray_residual` of z: 0 is exact, 1e-9 excellent.
        """
        point, problem = self.point, self.problem
        names = ("z", "lam", "nu", "lam_lb", "lam_ub", *(("lam_lower",) if problem.structure.two_sided else ()))
        z, *multipliers = (getattr(point, name).detach().double() for name in names)
        data = [None if x is None else x.detach().double() for x in problem.tensors()]
        problem = problem.replace(data, len(z))
        found = torch.full_like(z[:, 0], torch.nan)
        infeasible, unbounded = (point.status == int(x) for x in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE))
        found = torch.where(infeasible, kkt.farkas_residual(problem, *multipliers), found)
        found = torch.where(unbounded, kkt.ray_residual(problem, z), found)
        return found.reshape(self.problem.structure.shape)

    def status_names(self) -> Any:
        """The statuses as words: a string, or lists of strings for the batch dimensions."""
        return _words(self.status.tolist())

    def explain(self, member: int | Sequence[int] | None = None) -> str:
        """The verdict on one member in words: that with this index, or the first without an answer, if there is one."""
        return explain(self.problem, self.point, member, self.names)

    def __len__(self) -> int:
        shape = self.problem.structure.shape
        if not shape:
            raise TypeError("a solution without batch has no length")
        return int(shape[0])

    def __getitem__(self, index: Any) -> Solution:
        """Some members as a Solution: an index, a slice, a mask or several of them, as for a tensor."""
        shape = self.problem.structure.shape
        if not shape:
            raise TypeError("a solution without batch has no members to choose from")
        chosen = torch.arange(len(self.point.z), device=self.z.device).reshape(shape)[index]
        if chosen.dim() > len(shape):
            raise IndexError(f"more indices than the batch dimensions {tuple(shape)}")
        problem = self.problem.select(chosen.flatten())
        return Solution(problem.reshaped(tuple(chosen.shape)), self.point.select(chosen.flatten()), self.names)

    def __iter__(self) -> Iterator[Solution]:
        return (self[i] for i in range(len(self)))

    def _each(self, change: Any) -> Solution:
        """The same with changed tensors, the problem's as well."""
        problem, point = self.problem, self.point
        tensors = [None if x is None else change(x) for x in problem.tensors()]
        q = change(problem.q)
        same = Problem.of(tensors, problem.structure.changed(dtype=q.dtype, device=q.device))
        counts = point.counts.to(q.device)
        changed = Point(change(point.z), change(point.rest), counts, change(point.residuals), point.widths)
        return Solution(same, changed, self.names)

    def detach(self) -> Solution:
        """The same values without derivatives."""
        return self._each(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> Solution:
        """The same on another device or in another dtype, as `Tensor.to`; the verdict is not judged again."""
        return self._each(lambda x: x.to(*args, **kwargs))

    def __repr__(self) -> str:
        problem, point = self.problem, self.point
        found = {status: int((point.status == status).sum()) for status in Status}
        shape = problem.structure.shape
        if shape:
            counts = ", ".join(f"{status}: {count}" for status, count in found.items() if count) or "no members"
        else:
            counts = str(Status(int(point.status[0])))
        size = f"n={problem.n}, m={problem.m}, p={problem.p}"
        size += f", batch={shape[0] if len(shape) == 1 else shape}" if shape else ""
        worst = f"; largest residual {float(point.residuals.max()):.1e}" if point.residuals.numel() else ""
        return f"Solution({size}; {counts}{worst})"


def _words(statuses: Any) -> Any:
    return [_words(x) for x in statuses] if isinstance(statuses, list) else Status(statuses).name


class SolveError(RuntimeError):
    """Members of the batch were not solved.

    Attributes:
        solution: the whole Solution; the other members are valid.
        members: indices of the members that were not solved; tuples where the batch has several dimensions.
    """

    def __init__(self, solution: Solution) -> None:
        shape = solution.problem.structure.shape
        statuses = solution.point.status
        self.solution = solution
        flat = (~solution.point.answered).nonzero().flatten().tolist()
        self.members: list[Any] = [member_at(i, shape) for i in flat]
        lines = [f"{len(flat)} of {statuses.numel()} members were not solved"]
        for status in Status:
            those = [member for i, member in zip(flat, self.members, strict=True) if int(statuses[i]) == status]
            if those:
                shown = ", ".join(map(str, those[:10])) + (", …" if len(those) > 10 else "")
                lines.append(f"  {status}{f' (member {shown})' if shape else ''}: {status.explanation}")
        if flat:
            detail = explain(solution.problem, solution.point, self.members[0], solution.names).split("\n", 1)[1]
            lines.append(f"Member {self.members[0]}: {detail}" if shape else detail)
        lines.append("solve(…, check=False) returns statuses instead; unsolved members then have zero gradient.")
        super().__init__("\n".join(lines))
