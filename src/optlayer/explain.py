"""The verdict on one member in words: which constraints conflict, which variable runs away, which number is not one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optlayer.problem import NAMES, Problem

if TYPE_CHECKING:
    from optlayer.solution import Solution

NEGLIGIBLE = 1e-6  # entries of a certificate below this part of its largest are rounding
SHOWN = 12  # constraints or variables listed before "and … more"


def explain(solution: Solution, member: int = 0) -> str:
    """What happened to one member of the batch, and what to try.

    Args:
        solution: the solution of the batch.
        member: index in the batch; 0 where there is none.

    Returns:
        Some sentences.

    Raises:
        IndexError: when the batch has no such member.
    """
    from optlayer.solution import Status

    batch = solution.problem.batch
    size = 1 if batch is None else batch
    if not -size <= member < size:
        raise IndexError(f"member {member} of a batch of {size}")
    member %= size
    problem = solution.problem.member(member)
    values = [
        (x if batch is None else x[member]).detach()
        for x in (solution.z, solution.lam, solution.nu, solution.lam_lb, solution.lam_ub)
    ]
    status = Status(int(solution.status if batch is None else solution.status[member]))
    tell: dict[Status, Callable[[], str]] = {
        Status.SOLVED: lambda: f"Residuals: {_residuals(solution, member)}.",
        Status.PRIMAL_INFEASIBLE: lambda: _conflict(problem, values),
        Status.DUAL_INFEASIBLE: lambda: _runaway(values[0]),
        Status.INVALID_INPUT: lambda: _invalid(solution.problem, problem, member),
        Status.NOT_CONVEX: lambda: _curvature(problem),
    }
    if status in tell:
        detail = tell[status]()
    else:
        detail = f"Residuals: {_residuals(solution, member)}; the largest is {_worst(solution, member)}."
    return f"{status.name}: {status.explanation}\n{detail}"


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _named(x: Tensor, name: Callable[[int], str]) -> list[tuple[float, str]]:
    return [(abs(float(x[i])), name(i)) for i in range(len(x)) if float(x[i]) != 0]


def _conflict(problem: Problem, values: list[Tensor]) -> str:
    _, lam, nu, lam_lb, lam_ub = values
    entries = [
        *_named(lam, lambda i: f"row {i} of G z <= h"),
        *_named(nu, lambda i: f"row {i} of A z = b"),
        *_named(lam_lb, lambda i: f"lower bound of z[{i}]"),
        *_named(lam_ub, lambda i: f"upper bound of z[{i}]"),
    ]
    largest = max((size for size, _ in entries), default=0.0)
    entries = [entry for entry in entries if entry[0] > NEGLIGIBLE * largest]
    names = _listed([name for _, name in entries])
    if len(entries) == 1:
        return f"This constraint cannot hold for any z: {names}."
    return f"These {len(entries)} constraints contradict each other: {names}. Relax one of them."


def _runaway(z: Tensor) -> str:
    largest = float(z.abs().max())
    moving = (z.abs() > NEGLIGIBLE * largest).nonzero().flatten().tolist()
    names = _listed([f"z[{i}] {'up' if z[i] > 0 else 'down'}" for i in moving])
    return f"The objective falls for ever along: {names}. Bound one of these variables, or give it curvature."


def _invalid(batch: Problem, problem: Problem, member: int) -> str:
    allowed = {"h": torch.inf, "lb": -torch.inf, "ub": torch.inf}
    for name, whole, x in zip(NAMES, batch.tensors(), problem.tensors(), strict=True):
        if x is None or whole is None:
            continue
        label = "Q.d" if name == "Q" and batch.rank("Q") == 1 else name
        x = (x.to_dense() if x.layout != torch.strided else x).detach()
        shared = whole.dim() == batch.rank(name)
        x = x if shared else x[0]
        bad = (~(x.isfinite() | (x == allowed.get(name, torch.nan)))).nonzero()
        if len(bad):
            index = tuple(bad[0].tolist())
            full = index if shared else (member, *index)
            place = f"{label}[{', '.join(map(str, full))}] = {float(x[index])}"
            count = "1 entry is" if len(bad) == 1 else f"{len(bad)} entries are"
            return f"The first such entry is {place}; {count} not valid in {label}."
    return "Every entry is valid now: the data changed after the solve."


def _curvature(problem: Problem) -> str:
    Q = problem.tensors()[0]
    assert Q is not None
    Q = (Q.to_dense() if Q.layout != torch.strided else Q).detach().double()
    if problem.rank("Q") == 1:
        d = Q.reshape(-1)
        return f"The most negative entry of the diagonal is Q.d[{int(d.argmin())}] = {float(d.min()):.3g}."
    Q = Q if Q.dim() == 2 else Q[0]
    values, vectors = torch.linalg.eigh(0.5 * (Q + Q.mT))
    v = vectors[:, 0]
    largest = float(v.abs().max())
    parts = [f"z[{i}]" for i in v.abs().argsort(descending=True).tolist() if abs(float(v[i])) > 1e-3 * largest]
    extremes = f"The smallest eigenvalue of Q is {float(values[0]):.3g}, the largest {float(values[-1]):.3g}"
    return f"{extremes}; the curvature is negative along {_listed(parts)}."


def _numbers(solution: Solution, member: int) -> dict[str, float]:
    parts = {
        "primal (feasibility)": solution.primal_residual,
        "dual (stationarity)": solution.dual_residual,
        "gap (complementarity)": solution.gap,
    }
    return {name: float(x.reshape(-1)[member]) for name, x in parts.items()}


def _residuals(solution: Solution, member: int) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in _numbers(solution, member).items())


def _worst(solution: Solution, member: int) -> str:
    numbers = _numbers(solution, member)
    name = max(numbers, key=lambda key: numbers[key])
    advice = {
        "primal (feasibility)": "the constraints may leave almost no room, or their rows differ much in scale",
        "dual (stationarity)": "the objective may be almost unbounded, or Q and q differ much in scale",
        "gap (complementarity)": "more iterations, or an objective of moderate size, may help",
    }
    return f"{name}: {advice[name]}"
