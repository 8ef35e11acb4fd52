"""The derivative of a solution, by implicit differentiation of the optimality conditions (OptNet, eqs. 4-8)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optlayer import kkt
from optlayer.backends.base import Adjoint, Backend, Point
from optlayer.problem import Diagonal, Problem
from optlayer.settings import Settings


def solve(problem: Problem, settings: Settings, engine: Backend) -> tuple[Tensor, ...]:
    """The fields of Point but the factor, differentiable where the problem's tensors require it."""
    tensors = problem.tensors()
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _Solve.apply(problem, settings, engine, *tensors)  # type: ignore[no-any-return]
    return tuple(engine.solve(problem, settings, False)[:-1])


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, settings: Settings, engine: Backend, *tensors: Tensor | None) -> Any:
        point = engine.solve(problem, settings, True)
        ctx.problem, ctx.settings, ctx.engine, ctx.factor = problem, settings, engine, point.factor
        ctx.save_for_backward(*point[:-1])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*point[6:11])
        return tuple(point[:-1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        problem: Problem = ctx.problem
        point = Point(*ctx.saved_tensors, ctx.factor)
        g_z, g_s, g_lam, g_nu, g_lb, g_ub = (
            torch.zeros_like(value) if grad is None else grad
            for value, grad in zip(point[:6], upstream[:6], strict=True)
        )
        z, lam, nu = point.z, point.lam, point.nu
        if upstream[1] is not None and problem.G is not None:
            g_z = g_z - kkt.mul_t(problem.G, g_s)
        v = ctx.engine.kkt_solve(problem, ctx.settings, point, Adjoint(g_z, g_lam, g_nu, g_lb, g_ub))
        need = ctx.needs_input_grad[3:]
        grads: list[Tensor | None] = [None] * 8
        diagonal = isinstance(problem.Q, Diagonal)
        if need[0]:
            if diagonal:
                grads[0] = -v.z * z
            else:
                grads[0] = -0.5 * (_outer(v.z, z) + _outer(z, v.z))
        if need[1]:
            grads[1] = -v.z
        if need[2]:
            grads[2] = -_outer(lam, v.z) - _outer(v.lam + g_s, z)
        if need[3]:
            grads[3] = v.lam + g_s
        if need[4]:
            grads[4] = -_outer(nu, v.z) - _outer(v.nu, z)
        if need[5]:
            grads[5] = v.nu
        if need[6]:
            grads[6] = -v.lam_lb
        if need[7]:
            grads[7] = v.lam_ub
        for i, x in enumerate(problem.tensors()):
            g = grads[i]
            if g is not None and x is not None:
                grads[i] = g.sum(0) if g.dim() > x.dim() else g
        return (None, None, None, *grads)


def _outer(x: Tensor, y: Tensor) -> Tensor:
    return x.unsqueeze(-1) * y.unsqueeze(-2)
