"""The optimality conditions, written once: residuals that judge any point, whoever computed it.

    stationarity       Qz + q + Gᵀlam + Aᵀnu − lam_lb + lam_ub = 0
    feasibility        A z = b,   G z + s = h,   lb ≤ z ≤ ub   (two-sided rows: as (G; −G) z ≤ (h; −h_lower))
    complementarity    lam, s ≥ 0,  lam∘s = 0   (equivalently a duality gap of zero)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from optlayer import matrices
from optlayer.matrices import Diagonal, Matrix, magnitude
from optlayer.problem import Problem
from optlayer.sparse import Sparse, at

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


CANCELLED = 10.0
"""How many times what is left of some terms they may excuse: more digits than that may not cancel."""
FINE = 1e-11
"""A residual below this, relative to what is left of its terms, needs no excuse."""


def one_sided(problem: Problem, lam: Tensor, lam_lower: Tensor | None) -> tuple[Problem, Tensor]:
    """A problem with two-sided rows as one with one-sided ones, (G; −G) z ≤ (h; −h_lower), and its multipliers."""
    return (problem, lam) if lam_lower is None else (problem.stacked(), torch.cat([lam, lam_lower], -1))


def residuals(
    problem: Problem, z: Tensor, lam: Tensor, nu: Tensor, lam_lb: Tensor, lam_ub: Tensor,
    lam_lower: Tensor | None = None, rounded: bool = False,
) -> Residuals:  # fmt: skip
    """Residuals of a point; `relative` is its componentwise backward error (Oettli and Prager 1964), as in verdict.h.

        |Qz + q + Gᵀlam + …|_j  by  (|Q||z| + |q| + |G|ᵀ|lam| + …)_j,      |Az − b|_i  by  (|A||z| + |b|)_i

    Every entry has its own terms, so units of variables, rows and objective decide nothing. A side with a positive
    multiplier must be an equality in this sense, or its multiplier as small beside the terms of every entry of
    stationarity that it enters. Three things keep that honest: what rounding z and the terms can cause is no residual;
    terms excuse no more than CANCELLED times what is left of them; and where rounding may hide a thousandth of the
    objective's terms, or of the largest side, the point is none.

    Args:
        problem: the problem, of batch B.
        z, lam, nu, lam_lb, lam_ub: the point, with batch dimension; absent parts have no columns.
        rounded: whether the point holds float32's numbers, whatever its dtype.

    Returns:
        Residuals with tensors of shape (B,). NaN in the point gives inf.
    """
    problem, lam = one_sided(problem, lam, lam_lower)
    single = rounded or z.dtype == torch.float32
    narrow = z.dtype == torch.float32
    if narrow:  # what float32 holds is judged in float64, or the judge's own rounding would count
        doubles = [None if x is None else x.double() for x in problem.tensors()]
        problem = Problem.of(doubles, problem.structure.changed(dtype=torch.float64))
        z, lam, nu, lam_lb, lam_ub = (x.double() for x in (z, lam, nu, lam_lb, lam_ub))
    Q, q, size = problem.Q, problem.q, z.abs()
    noise = 1e-6 if single else torch.finfo(z.dtype).eps * (8 + z.shape[-1])
    Qz, sizes = mul_Q(Q, z), magnitude(Q)
    diagonal = matrices.diagonal(Q).expand_as(z)
    left, full, forces = Qz.abs() + q.abs(), mul_Q(sizes, size) + q.abs(), torch.zeros_like(z)
    rows: list[tuple[Any, Tensor, Tensor, bool, float]] = []  # matrix (None: bounds), side, multiplier, equality, sign
    for M, side, y, equality in ((problem.G, problem.h, lam, False), (problem.A, problem.b, nu, True)):
        if M is None or side is None or not side.shape[-1]:
            continue
        rows.append((M, side, y, equality, 1.0))
        forces, full = forces + mul_t(M, y), full + mul_t(magnitude(M), y.abs())
    for bound, y, sign in ((problem.lb, lam_lb, -1.0), (problem.ub, lam_ub, 1.0)):
        if bound is not None:
            rows.append((None, sign * bound, y, False, sign))
            forces, full = forces + sign * y, full + y.abs()
    stationarity, left = Qz + q + forces, left + forces.abs()
    # How large rounding may see each variable: as a Newton step; without curvature, as the rows that it enters allow.
    reached = [size if M is None else mul(magnitude(M), size) for M, *_ in rows]  # the terms of each row
    step, flat = torch.zeros_like(z), diagonal == 0
    if flat.any():
        for (M, *_), around in zip(rows, reached, strict=True):
            step = step if M is None else torch.maximum(step, _steps(M, around))
    scale = torch.maximum(size, torch.where(flat, step, left / diagonal.where(~flat, 1.0)))
    scale = torch.maximum(scale, 1e-20 * largest(scale).unsqueeze(-1))  # where all terms are zero but for rounding
    seen = scale  # in rows of G also as the equality that knows it best sees it (rounded, it is known by itself)
    for (M, side, _, equality, _), around in zip(rows, reached, strict=True):
        if equality and not single:
            seen = torch.maximum(scale, _steps(M, around + side.abs(), "amin"))

    def share(off: Tensor, left: Tensor, full: Tensor, rounded: Tensor) -> Tensor:
        terms = torch.minimum(full, CANCELLED * left)
        off = (off - noise * (full + rounded)).clamp(min=0)
        return torch.where(off == 0, 0.0, off / terms)

    def blurs(off: Tensor, found: Tensor, left: Tensor, full: Tensor, rounded: Tensor) -> Tensor:
        return (found <= FINE) & (share(off, left, full, torch.zeros_like(rounded)) > FINE) & (off > FINE * left)

    unit = torch.where(diagonal > 0, diagonal.rsqrt(), 1.0)
    # without a linear term every point is a solution that Q does not feel: there its own terms count
    level = largest(unit * torch.where((q == 0).all(-1, keepdim=True), mul_Q(sizes, size), left))
    # without an objective of its own, and beside the largest forces no more than their rounding: zero
    of_step = (step > 0) & (step * full <= noise * largest(size * left).unsqueeze(-1))
    nothing = (q == 0) & torch.where(flat, of_step, unit * full <= noise * level.unsqueeze(-1))
    worst = [largest(torch.where(nothing, 0.0, share(stationarity.abs(), left, full, mul_Q(sizes, scale))))]
    dual, primal = largest(stationarity), z.new_zeros(len(z))
    gap = (z * (Qz + q)).sum(-1)
    # what rounding may hide, of the largest force and of the largest side; what a blurred point may excuse
    most, most_of_sides, most_blurred = (1.0, 10.0, 1e-6) if single else (1e-3, 1e-5, 1e-10)
    lost = noise * largest(unit * full) > most * level
    # in units of the rows: the largest terms that excuse residuals, the largest side, and the largest distance to a row
    # that only a blurred point explains: it counts beside the largest variable or side, for small curvatures blur much
    reach, level, excused = primal, primal, primal
    for (M, side, y, equality, sign), around in zip(rows, reached, strict=True):
        absent, side = side.isinf(), finite(side)
        there = side.abs().expand_as(y)
        if M is None:
            value, blurred, top = sign * z, scale, torch.ones_like(z[:, :1])
        else:
            value, blurred, top = mul(M, z), mul(magnitude(M), scale if equality else seen), matrices.row_sizes(M)
        over, unit = value - side, torch.where(absent | (top == 0), 0.0, 1 / top)
        terms = value.abs() + there, around + there, blurred
        if equality:
            broken = off = over.abs()
        else:
            over = torch.where(absent, -torch.inf, over)
            broken, pressed, weight = over.clamp(min=0), y > 0, torch.where(y == 0, 0.0, y.abs() * _weights(M, left))
            off = torch.where(pressed, over.abs(), broken)
        found = share(off, *terms)
        excused = torch.maximum(excused, torch.where(blurs(off, found, *terms), unit * off, 0.0).amax(-1))
        if not equality:
            found = torch.where(pressed & (over < 0), torch.minimum(found, weight), found)
            worst.append(torch.where((y < 0) | absent, weight, 0.0).amax(-1))
        worst.append(found.amax(-1))
        primal, gap = torch.maximum(primal, broken.amax(-1)), gap + (side * y).sum(-1)
        reach = torch.maximum(reach, torch.where(off > FINE * terms[0], unit * around, 0.0).amax(-1))
        level = torch.maximum(level, (unit * there).amax(-1))
    lost = lost | ((level > 0) & (noise * reach > most_of_sides * level))
    far = torch.maximum(largest(size), torch.where(level > 0, level, 1.0))  # (of a cone any size is as good)
    worst += [torch.where(excused > most_blurred * far, excused / far, 0.0), torch.where(lost, 1.0, 0.0).to(z)]
    relative = torch.stack(worst).amax(0)
    good = (relative >= 0) & (dual + primal + gap.abs()).isfinite()
    judged = Residuals(primal, dual, gap.abs(), torch.where(good, relative, torch.inf))
    return Residuals(*(x.float() for x in judged)) if narrow else judged


def _weights(M: Matrix | None, left: Tensor) -> Tensor:
    """The largest part of any entry of stationarity that a unit of each multiplier makes up, (B, rows)."""
    if M is None:
        return 1 / left
    if isinstance(M, Sparse):
        return M.with_values(_over(M.values, at(left, M.pattern.places(left)[1]))).row_sizes()
    return _over(matrices.dense(M).abs(), left.unsqueeze(-2)).amax(-1)


def _steps(M: Matrix, levels: Tensor, which: str = "amax") -> Tensor:
    """How large each variable would be, did it make up all the terms of a row: the largest such value, or the smallest
    ("amin"), (B, n); 0 where it is in no row."""
    none = 0.0 if which == "amax" else torch.inf
    if isinstance(M, Sparse):
        rows, columns = M.pattern.places(levels)
        steps = torch.where(M.values == 0, none, at(levels, rows) / M.values.abs())
        sizes = levels.new_full((*steps.shape[:-1], M.pattern.size[1]), none)
        sizes = sizes.scatter_reduce(-1, columns.expand(steps.shape), steps, which)
    else:
        entries = matrices.dense(M).abs()
        sizes = getattr(torch.where(entries == 0, none, levels.unsqueeze(-1) / entries), which)(-2)
    return torch.where(sizes == none, 0.0, sizes)


def _over(entries: Tensor, terms: Tensor) -> Tensor:
    """entries / terms, where 0/0 is 0."""
    return torch.where(entries == 0, 0.0, entries / terms)


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
