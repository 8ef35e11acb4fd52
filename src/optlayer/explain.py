"""The verdict on one member in words: which constraints conflict, which variable runs away, which number is not one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optlayer import matrices
from optlayer.core.status import Status
from optlayer.core.structure import NAMES, Names
from optlayer.matrices import Diagonal
from optlayer.point import Point
from optlayer.problem import Problem

NEGLIGIBLE = 1e-6  # entries of a certificate below this part of its largest are rounding
SHOWN = 12  # constraints or variables listed before "and … more"


def explain(
    problem: Problem, point: Point, member: int | Sequence[int] | None = None, names: Names | None = None
) -> str:
    """What happened to one member of the batch, and what to try.

    Args:
        problem, point: of the batch.
        member: index in the batch, one for each of its dimensions; None: the first one without an answer, or the first.
        names: of rows and variables.

    Returns:
        Some sentences.

    Raises:
        IndexError: when the batch has no such member.
    """
    shape, place = problem.structure.shape, ""
    if member is None:
        failed = (~point.answered).nonzero().flatten().tolist()
        member = member_at(failed[0] if failed else 0, shape)
        place = f" (member {member})" if shape else ""
    i = flat_index(member, shape)
    one, names = problem.member(i), names or Names()
    parts = (point.z, point.lam, point.nu, point.lam_lb, point.lam_ub, point.lam_lower)
    values = [x[i].detach() for x in parts]
    status = Status(int(point.status[i]))
    residuals = dict(zip(_ADVICE, (float(x) for x in point.residuals[i]), strict=True))
    words = ", ".join(f"{name} {value:.1e}" for name, value in residuals.items())
    tell: dict[Status, Callable[[], str]] = {
        Status.SOLVED: lambda: f"Residuals: {words}.",
        Status.PRIMAL_INFEASIBLE: lambda: _conflict(values, names),
        Status.DUAL_INFEASIBLE: lambda: _runaway(values[0], names),
        Status.INVALID_INPUT: lambda: _invalid(problem, one, member if shape else ()),
        Status.NOT_CONVEX: lambda: _curvature(one, names),
    }
    if status in tell:
        detail = tell[status]()
    else:
        worst = max(residuals, key=lambda key: residuals[key])
        detail = f"Residuals: {words}; the largest is {worst}: {_ADVICE[worst]}."
    return f"{status}{place}: {status.explanation}\n{detail}"


_ADVICE = {
    "primal (feasibility)": "the constraints may leave almost no room, or their rows differ much in scale",
    "dual (stationarity)": "the objective may be almost unbounded, or Q and q differ much in scale",
    "gap (complementarity)": "more iterations, or an objective of moderate size, may help",
}


def flat_index(member: int | Sequence[int], shape: Sequence[int]) -> int:
    """The place of a member among all, whatever the batch dimensions."""
    index = (member,) if isinstance(member, int) else tuple(member)
    extents = tuple(shape) or (1,)
    if len(index) == 1 and len(extents) > 1:  # the member's number
        extents = (torch.Size(shape).numel(),)
    if len(index) != len(extents) or not all(-size <= i < size for i, size in zip(index, extents, strict=True)):
        raise IndexError(f"member {member} of a batch of {extents[0] if len(extents) == 1 else extents}")
    flat = 0
    for i, size in zip(index, extents, strict=True):
        flat = flat * size + i % size
    return flat


def member_at(flat: int, shape: Sequence[int]) -> Any:
    """The reverse: a tuple where the batch has several dimensions, else the number itself."""
    return tuple(map(int, torch.unravel_index(torch.tensor(flat), tuple(shape)))) if len(shape) > 1 else flat


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _named(x: Tensor, name: Callable[[int], str]) -> list[tuple[float, str]]:
    return [(abs(float(x[i])), name(i)) for i in range(len(x)) if float(x[i]) != 0]


def _conflict(values: list[Tensor], names: Names) -> str:
    _, lam, nu, lam_lb, lam_ub, lam_lower = values
    entries = [
        *_named(lam, names.row("G")),
        *_named(lam_lower, names.row("below")),
        *_named(nu, names.row("A")),
        *_named(lam_lb, lambda i: f"lower bound of {names.variable(i)}"),
        *_named(lam_ub, lambda i: f"upper bound of {names.variable(i)}"),
    ]
    largest = max((size for size, _ in entries), default=0.0)
    entries = [entry for entry in entries if entry[0] > NEGLIGIBLE * largest]
    listed = _listed([name for _, name in entries])
    if len(entries) == 1:
        return f"This constraint cannot hold for any z: {listed}."
    return f"These {len(entries)} constraints contradict each other: {listed}. Relax one of them."


def _runaway(z: Tensor, names: Names) -> str:
    largest = float(z.abs().max())
    moving = (z.abs() > NEGLIGIBLE * largest).nonzero().flatten().tolist()
    listed = _listed([f"{names.variable(i)} {'up' if z[i] > 0 else 'down'}" for i in moving])
    return f"The objective falls for ever along: {listed}. Bound one of these variables, or give it curvature."


def _invalid(batch: Problem, problem: Problem, member: int | Sequence[int]) -> str:
    allowed = {"h": torch.inf, "h_lower": -torch.inf, "lb": -torch.inf, "ub": torch.inf}
    for name, whole, x in zip(NAMES, batch.tensors(), problem.tensors(), strict=True):
        if x is None or whole is None:
            continue
        label = "Q.d" if name == "Q" and batch.structure.diagonal else name
        x = x.detach()
        shared = whole.dim() == batch.rank(name)
        x = x if shared else x[0]
        bad = (~(x.isfinite() | (x == allowed.get(name, torch.nan)))).nonzero()
        if len(bad):
            index = tuple(bad[0].tolist())
            full = index if shared else (*((member,) if isinstance(member, int) else member), *index)
            place = f"{label}[{', '.join(map(str, full))}] = {float(x[index])}"
            count = "1 entry is" if len(bad) == 1 else f"{len(bad)} entries are"
            return f"The first such entry is {place}; {count} not valid in {label}."
    return "Every entry is valid now: the data changed after the solve."


def _curvature(problem: Problem, names: Names) -> str:
    Q = problem.Q
    if isinstance(Q, Diagonal):
        d = Q.d.detach().reshape(-1)
        return f"The most negative entry of the diagonal is Q.d[{int(d.argmin())}] = {float(d.min()):.3g}."
    Q = matrices.dense(Q).detach().double()
    Q = Q if Q.dim() == 2 else Q[0]
    values, vectors = torch.linalg.eigh(0.5 * (Q + Q.mT))
    v = vectors[:, 0]
    largest = float(v.abs().max())
    parts = [names.variable(i) for i in v.abs().argsort(descending=True).tolist() if abs(float(v[i])) > 1e-3 * largest]
    extremes = f"The smallest eigenvalue of Q is {float(values[0]):.3g}, the largest {float(values[-1]):.3g}"
    return f"{extremes}; the curvature is negative along {_listed(parts)}."
