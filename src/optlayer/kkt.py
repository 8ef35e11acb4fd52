"""The optimality conditions, written once: residuals that judge any point, whoever computed it.

    stationarity       Qz + q + Gᵀlam + Aᵀnu − lam_lb + lam_ub = 0
    feasibility        A z = b,   G z + s = h,   lb ≤ z ≤ ub
    complementarity    lam, s ≥ 0,  lam∘s = 0   (equivalently a duality gap of zero)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from optlayer.problem import Diagonal, Problem


def mul_Q(Q: Tensor | Diagonal, z: Tensor) -> Tensor:
    """Q z with the symmetric part of Q; z (B, n)."""
    if isinstance(Q, Diagonal):
        return Q.d * z
    return 0.5 * (mul(Q, z) + mul_t(Q, z))


def mul(M: Tensor, x: Tensor) -> Tensor:
    """M x for M (r, c) or (B, r, c) and x (B, c)."""
    return x @ M.mT if M.dim() == 2 else (M @ x.unsqueeze(-1)).squeeze(-1)


def mul_t(M: Tensor, y: Tensor) -> Tensor:
    """Mᵀ y for M (r, c) or (B, r, c) and y (B, r)."""
    return y @ M if M.dim() == 2 else (y.unsqueeze(-2) @ M).squeeze(-2)


def largest(x: Tensor) -> Tensor:
    """Max-norm of each member, 0 for no entries."""
    return x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])


def finite(bound: Tensor) -> Tensor:
    """The bound with 0 in place of ±inf, whose multiplier is 0."""
    return torch.where(bound.isinf(), 0.0, bound)


class Residuals(NamedTuple):
    """Max-norm residuals per member in the problem's units, and the largest relative to its terms."""

    primal: Tensor
    dual: Tensor
    gap: Tensor
    relative: Tensor


def residuals(problem: Problem, z: Tensor, lam: Tensor, nu: Tensor, lam_lb: Tensor, lam_ub: Tensor) -> Residuals:
    """Residuals of a point; `relative` divides each by one plus the largest term that enters it.

    Args:
        problem: the problem, of batch B.
        z, lam, nu, lam_lb, lam_ub: the point, with batch dimension; absent parts have no columns.

    Returns:
        Residuals with tensors of shape (B,). NaN in the point gives inf.
    """
    Qz = mul_Q(problem.Q, z)
    stationarity, terms = Qz + problem.q, [Qz, problem.q.expand_as(z)]
    primal, sides = z.new_zeros(len(z)), [z.new_zeros(len(z))]
    zQz, qz = (z * Qz).sum(-1), (z * problem.q).sum(-1)
    constants = [z.new_zeros(len(z))]
    if problem.G is not None and problem.h is not None and problem.p:
        Gz, force = mul(problem.G, z), mul_t(problem.G, lam)
        stationarity, terms = stationarity + force, [*terms, force]
        primal = torch.maximum(primal, (Gz - problem.h).amax(-1))
        sides += [largest(finite(problem.h).expand_as(Gz)), largest(Gz)]
        constants.append((finite(problem.h) * lam).sum(-1))
    if problem.A is not None and problem.b is not None and problem.m:
        Az, force = mul(problem.A, z), mul_t(problem.A, nu)
        stationarity, terms = stationarity + force, [*terms, force]
        primal = torch.maximum(primal, largest(Az - problem.b))
        sides += [largest(problem.b.expand_as(Az)), largest(Az)]
        constants.append((problem.b * nu).sum(-1))
    for bound, multiplier, sign in ((problem.lb, lam_lb, -1.0), (problem.ub, lam_ub, 1.0)):
        if bound is not None:
            stationarity, terms = stationarity + sign * multiplier, [*terms, multiplier]
            primal = torch.maximum(primal, (sign * (z - bound)).amax(-1))
            sides += [largest(finite(bound).expand_as(z)), largest(z)]
            constants.append((sign * finite(bound) * multiplier).sum(-1))
    dual = largest(stationarity)
    gap = (zQz + qz + sum(constants)).abs()
    top = torch.stack([largest(term) for term in terms]).amax(0)
    parts = torch.stack([zQz.abs(), qz.abs(), *(part.abs() for part in constants)]).amax(0)
    relative = torch.stack([dual / (1 + top), primal / (1 + torch.stack(sides).amax(0)), gap / (1 + parts)]).amax(0)
    return Residuals(primal, dual, gap, torch.where(relative >= 0, relative, torch.inf))
