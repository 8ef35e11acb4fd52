"""The optimality conditions, written once: residuals that judge any point, whoever computed it.

    stationarity       Qz + q + Gᵀlam + Aᵀnu − lam_lb + lam_ub = 0
    feasibility        A z = b,   G z + s = h,   lb ≤ z ≤ ub   (two-sided rows: as (G; −G) z ≤ (h; −h_lower))
    complementarity    lam, s ≥ 0,  lam∘s = 0   (equivalently a duality gap of zero)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from optlayer import matrices
from optlayer.matrices import Diagonal, Matrix, magnitude
from optlayer.problem import Problem

mul_Q, mul, mul_t = matrices.symmetric_times, matrices.times, matrices.times_t


def largest(x: Tensor) -> Tensor:
    """Max-norm of each member, 0 for no entries."""
    return x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])


def finite(bound: Tensor) -> Tensor:
    """The bound with 0 in place of ±inf, whose multiplier is 0."""
    return torch.where(bound.isinf(), 0.0, bound)


def wrong(multiplier: Tensor, side: Tensor) -> Tensor:
    """What a multiplier must not have: negative values, and any value where the side is infinite."""
    return torch.where(side.isinf(), multiplier, multiplier.clamp(max=0))


class Residuals(NamedTuple):
    """Max-norm residuals per member in the problem's units, and the largest relative to its terms."""

    primal: Tensor
    dual: Tensor
    gap: Tensor
    relative: Tensor


CANCELLED = 1e4  # terms beyond this many times the data count as that much: more digits than four may not cancel


def _allowed(terms: Tensor, data: Tensor) -> Tensor:
    """What a residual is divided by: one plus the largest term that enters it, within reason.

    Without the limit, multipliers that run off to 1e90, as those of a problem without solution do, would excuse
    anything.
    """
    return 1 + torch.minimum(terms, CANCELLED * (1 + data))


def one_sided(problem: Problem, lam: Tensor, lam_lower: Tensor | None) -> tuple[Problem, Tensor]:
    """A problem with two-sided rows as one with one-sided ones, (G; −G) z ≤ (h; −h_lower), and its multipliers."""
    return (problem, lam) if lam_lower is None else (problem.stacked(), torch.cat([lam, lam_lower], -1))


def residuals(
    problem: Problem, z: Tensor, lam: Tensor, nu: Tensor, lam_lb: Tensor, lam_ub: Tensor,
    lam_lower: Tensor | None = None,
) -> Residuals:  # fmt: skip
    """Residuals of a point; `relative` divides each by one plus the largest term that enters it.

    The term of Q z is |Q||z|, what it would be if nothing cancelled: rounding z changes Q z by that times the rounding.
    Every constraint has its own terms: what enters one excuses no violation of another. Terms beyond CANCELLED times
    the data (q and Q z; the constraint's side) count as that much, and what rounding may have hidden in a sum of such
    terms counts as residual: multipliers of 1e16 can cancel to zero by chance.

    Args:
        problem: the problem, of batch B.
        z, lam, nu, lam_lb, lam_ub: the point, with batch dimension; absent parts have no columns.

    Returns:
        Residuals with tensors of shape (B,). NaN in the point gives inf.
    """
    problem, lam = one_sided(problem, lam, lam_lower)
    Q, q = problem.Q, problem.q
    Qz, nothing, size, rounding = mul_Q(Q, z), z.new_zeros(len(z)), z.abs(), torch.finfo(z.dtype).eps
    data = torch.maximum(largest(Qz), largest(q.expand_as(z)))
    terms = [data, largest(mul_Q(magnitude(Q), size))]
    stationarity, primal, off, signs = Qz + q, nothing, nothing, nothing
    zQz, qz = (z * Qz).sum(-1), (z * q).sum(-1)
    constants = [nothing]
    for M, side, y, equality in ((problem.G, problem.h, lam, False), (problem.A, problem.b, nu, True)):
        if M is None or side is None or not side.shape[-1]:
            continue
        stationarity, sizes = stationarity + mul_t(M, y), magnitude(M)
        terms.append(largest(mul_t(sizes, y.abs())))
        violation = mul(M, z) - side
        if equality:
            violation = violation.abs()
        there = finite(side).abs().expand_as(violation)
        entering = torch.maximum(mul(sizes, size), there)
        primal = torch.maximum(primal, violation.amax(-1))
        off = torch.maximum(off, ((violation + rounding * entering) / _allowed(entering, there)).amax(-1))
        constants.append((finite(side) * y).sum(-1))
        if not equality:
            signs = torch.maximum(signs, largest(wrong(y, side)))
    for bound, multiplier, sign in ((problem.lb, lam_lb, -1.0), (problem.ub, lam_ub, 1.0)):
        if bound is not None:
            stationarity, terms = stationarity + sign * multiplier, [*terms, largest(multiplier)]
            signs = torch.maximum(signs, largest(wrong(multiplier, bound)))
            violation, there = (sign * (z - bound)).clamp(min=0), finite(bound).abs()
            primal = torch.maximum(primal, violation.amax(-1))
            off = torch.maximum(off, (violation / _allowed(torch.maximum(size, there), there)).amax(-1))
            constants.append((sign * finite(bound) * multiplier).sum(-1))
    dual = torch.maximum(largest(stationarity), signs)
    gap = (zQz + qz + sum(constants)).abs()
    parts = torch.stack([zQz.abs(), qz.abs(), *(part.abs() for part in constants)]).amax(0)
    entering = torch.stack(terms).amax(0)
    relative = torch.stack([(dual + rounding * entering) / _allowed(entering, data), off, gap / (1 + parts)]).amax(0)
    return Residuals(primal, dual, gap, torch.where(relative >= 0, relative, torch.inf))


# --- certificates: proofs that there is no solution -----------------------------------------------------------------


def farkas_value(
    problem: Problem, lam: Tensor, nu: Tensor, lam_lb: Tensor, lam_ub: Tensor, lam_lower: Tensor | None = None
) -> Tensor:
    """hᵀlam + bᵀnu − lbᵀlam_lb + ubᵀlam_ub, (B,)."""
    problem, lam = one_sided(problem, lam, lam_lower)
    value = lam.new_zeros(len(lam))
    for side, multiplier, sign in (
        (problem.h, lam, 1.0), (problem.b, nu, 1.0), (problem.lb, lam_lb, -1.0), (problem.ub, lam_ub, 1.0),
    ):
        if side is not None:
            value = value + sign * (finite(side) * multiplier).sum(-1)
    return value


def farkas_residual(
    problem: Problem, lam: Tensor, nu: Tensor, lam_lb: Tensor, lam_ub: Tensor, lam_lower: Tensor | None = None
) -> Tensor:
    """How well multipliers prove that no point is feasible; 0 is exact, inf is no proof.

    With lam, lam_lb, lam_ub ≥ 0, Gᵀlam + Aᵀnu − lam_lb + lam_ub = 0 and hᵀlam + bᵀnu − lbᵀlam_lb + ubᵀlam_ub < 0, the
    sum of the constraints, each times its multiplier, reads 0 < 0 (Farkas).

    Args:
        problem: the problem, of batch B.
        lam, nu, lam_lb, lam_ub: the multipliers, with batch dimension; absent parts have no columns.

    Returns:
        The largest of the vector that should be 0, relative to its largest term, (B,); inf unless the sum is negative.
    """
    problem, lam = one_sided(problem, lam, lam_lower)
    total = lam.new_zeros(len(lam), problem.n)
    sizes = bad = total[:, 0]
    for M, side, multiplier in ((problem.G, problem.h, lam), (problem.A, None, nu)):
        if M is not None:
            total = total + mul_t(M, multiplier)
            sizes = torch.maximum(sizes, largest(mul_t(magnitude(M), multiplier.abs())))
            bad = bad if side is None else torch.maximum(bad, largest(wrong(multiplier, side)))
    for bound, multiplier, sign in ((problem.lb, lam_lb, -1.0), (problem.ub, lam_ub, 1.0)):
        if bound is not None:
            total, sizes = total + sign * multiplier, torch.maximum(sizes, largest(multiplier))
            bad = torch.maximum(bad, largest(wrong(multiplier, bound)))
    found = torch.maximum(largest(total), bad) / torch.where(sizes > 0, sizes, 1.0)
    return torch.where((found >= 0) & (farkas_value(problem, lam, nu, lam_lb, lam_ub) < 0), found, torch.inf)


def ray_residual(problem: Problem, z: Tensor) -> Tensor:
    """How well a ray proves that the objective falls without limit; 0 is exact, inf is no proof.

    With Q z = 0, A z = 0, G z ≤ 0 (where h is finite), z ≥ 0 (where lb is), z ≤ 0 (where ub is) and qᵀz < 0, adding z
    to a feasible point keeps it feasible and lowers the objective.

    Args:
        problem: the problem, of batch B.
        z: the ray (B, n).

    Returns:
        The largest violation, each row relative to its largest entry times the largest of z, (B,); inf unless qᵀz < 0.
    """

    problem = problem.stacked()

    def rows(M: Matrix, values: Tensor) -> Tensor:
        """M z, each row relative to its largest entry."""
        size = matrices.row_sizes(M)
        return values / torch.where(size > 0, size, 1.0)

    Q = 0.5 * (problem.Q + problem.Q.mT) if isinstance(problem.Q, Tensor) else problem.Q
    bad = [largest(z * (Q.d != 0))] if isinstance(Q, Diagonal) else [largest(rows(Q, mul_Q(Q, z)))]
    if problem.A is not None:
        bad.append(largest(rows(problem.A, mul(problem.A, z))))
    if problem.G is not None and problem.h is not None:
        bad.append(largest(torch.where(problem.h.isinf(), 0.0, rows(problem.G, mul(problem.G, z)).clamp(min=0))))
    if problem.lb is not None:
        bad.append(largest(torch.where(problem.lb.isinf(), 0.0, z.clamp(max=0))))
    if problem.ub is not None:
        bad.append(largest(torch.where(problem.ub.isinf(), 0.0, z.clamp(min=0))))
    found = torch.stack(bad).amax(0) / largest(z)
    return torch.where((found >= 0) & ((z * problem.q).sum(-1) < 0), found, torch.inf)
