"""Where autograd meets the mathematics of `adjoint.py`: the two differentiable functions, and the operators' formulas.

`_Eager` is the short way of a call that nobody transforms: the answer, then the gradients of its data. `_Solve` is the
same for torch.func, forward mode and tracers, which want every intermediate value as a tensor. `_KKT` is v = M r; its
derivatives are `_KKT` again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from optlayer import _torch, adjoint, ops
from optlayer.backends.base import Adjoint, Backend, settled
from optlayer.call import DATA, VALUES, VERDICT, Call, Fold, kkt_vmap
from optlayer.core.settings import Settings
from optlayer.point import Point
from optlayer.problem import Problem

RHS = len(Adjoint._fields)


def solve(problem: Problem, settings: Settings, engine: Backend | str, check: bool) -> Point:
    """The point, differentiable where the problem's tensors require it.

    Args:
        problem, settings: what, how exactly.
        engine: the backend, or its name while a graph is made: it is chosen when the graph runs.
        check: raise SolveError from within, where a transform forbids that the caller looks at the status.
    """
    tensors = problem.tensors()
    keep = False
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                keep = True
                break
    watched = _torch.transformed()
    if isinstance(engine, str):
        call = Call(problem.structure, settings, engine, check, True)
        if torch.compiler.is_compiling() and _torch.forward_mode():
            raise NotImplementedError("torch.compile around forward mode: take jvp of the uncompiled function")
        return call.solution(ops.solve(call, tensors, keep))
    if not watched and not keep:
        return settled(engine, problem, settings, False, check)
    call = Call(problem.structure, settings, engine, check and watched, watched)
    call.waits = check
    if watched or call.smoothed:
        return call.solution(_apply(_Solve, call, *tensors))
    found: list[Point] = []
    _eager(call, problem, found, *tensors)
    return found[0]


def pullback(
    call: Call, tensors: Sequence[Any], point: Point, g_z: Tensor | None, g_rest: Tensor | None, need: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the tensors (where `need`): by the backend's own function where nobody watches, or adjoint.py's."""
    if g_rest is None and g_z is not None and len(point.block) and call.eager():
        problem = call.problem(tensors)
        fused = call.backend(problem).pullback(problem, call.settings, point, g_z, need)
        if fused is not None:
            return fused
    if g_z is not None and g_z.dim() != 2:
        g_z = g_z.reshape(-1, g_z.shape[-1])
    return adjoint.pullback(
        call.structure, tensors, point, g_z, g_rest, need, functools.partial(kkt, call, tensors, point)
    )


def kkt(call: Call, tensors: Sequence[Any], point: Point, rhs: Adjoint) -> Adjoint:
    """v = M r, differentiable."""
    if call.eager():
        return call.kkt_solve(tensors, point, rhs)
    return Adjoint(*_apply(_KKT, call, *tensors, *point.tensors(), *rhs))


def _apply(function: type[torch.autograd.Function], call: Call, *args: Any) -> Any:
    plain = not (call.transformed or _torch.transformed())
    return _torch.applier(function)(call, *args) if plain else function.apply(call, *args)


def _full_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Products in the dtype of their factors, whatever autocast would make of them."""

    @functools.wraps(method)
    def inner(ctx: Any, *args: Any) -> Any:
        if not _torch.autocast_enabled():
            return method(ctx, *args)
        with torch.autocast(ctx.call.structure.device.type, enabled=False):
            return method(ctx, *args)

    return inner


def _nested(method: Callable[..., Any]) -> Callable[..., Any]:
    """Forward mode on inside a jvp: torch turns it off for all levels, and an outer one would see constants.

    The level of this jvp itself is taken off the saved tensors instead.
    """

    @functools.wraps(method)
    def inner(ctx: Any, _: None, *tangents: Any) -> Any:
        with _torch.forward_mode_on():
            saved = [x if x is None else forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors]
            return method(ctx, saved, *tangents)

    return inner


class _Eager(torch.autograd.Function):
    """(call, problem, list for the Point, its tensors) → z, block. The verdict and the factor need no autograd."""

    @staticmethod
    def forward(ctx: Any, call: Call, problem: Problem, found: list[Point], *tensors: Tensor | None) -> Any:
        engine: Any = call.engine
        point = settled(engine, problem, call.settings, True, call.waits)
        ctx.call, ctx.others = call, point.others()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, point.shaped, point.block)
        point.factor = ()
        found.append(point)
        return point.shaped, point.block

    @staticmethod
    def backward(ctx: Any, g_z: Tensor | None, g_block: Tensor | None) -> tuple[Tensor | None, ...]:
        if g_z is None and g_block is None:
            return (None,) * (3 + DATA)
        *tensors, z, block = ctx.saved_tensors
        call: Call = ctx.call
        point, need = Point(z, block, *ctx.others), ctx.needs_input_grad[3:]
        if g_block is not None:
            g_block = g_block.narrow(-1, 0, sum(point.widths))
        if _torch.autocast_enabled():
            with torch.autocast(call.structure.device.type, enabled=False):
                grads = pullback(call, tensors, point, g_z, g_block, need)
        else:
            grads = pullback(call, tensors, point, g_z, g_block, need)
        if not _torch.graph_is_kept():
            ctx.others = None
        return (None, None, None, *grads)


_eager = _torch.applier(_Eager)


class _Solve(torch.autograd.Function):
    """(call, tensors) → outputs of Call.solve."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return ops.solve(call, tensors, True) if _torch.dispatch_modes() > 0 else call.solve(tensors, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[VALUES : VALUES + VERDICT], *output[ctx.call.fields :])
        ctx.save_for_backward(*tensors, *output)
        if ctx.call.transformed:
            ctx.save_for_forward(*tensors, *output)

    @staticmethod
    @_full_precision
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        return (None, *_from_outputs(ctx.call, saved[:DATA], saved[DATA:], upstream, ctx.needs_input_grad[1:]))

    @staticmethod
    @_full_precision
    @_nested
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        call, tensors, outputs = ctx.call, saved[:DATA], saved[DATA:]
        point = call.point(outputs)
        M = functools.partial(kkt, call, tensors, point)
        values = adjoint.pushforward(call.structure, tensors, point, tangents, M)
        nothing = (None,) * (len(outputs) - call.fields)
        return (*values, *(None,) * VERDICT, *(values if call.smoothed else ()), *nothing)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Tensor | None) -> tuple[Any, Any]:
        folded = Fold(info.batch_size, call)
        outputs = _apply(_Solve, folded.call, *folded.tensors(tensors, in_dims[1:]))
        return folded.unfold(outputs, call.fields)


def _from_outputs(
    call: Call, tensors: Sequence[Any], outputs: Sequence[Tensor], upstream: Sequence[Any], need: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the tensors from those of the outputs of Call.solve."""
    g_z, g_rest = upstream[:VALUES]
    if call.smoothed:  # the relaxed point is an output as well, used by second derivatives
        relaxed_z, relaxed_rest = upstream[VALUES + VERDICT : call.fields]
        g_z, g_rest = adjoint.added(g_z, relaxed_z), adjoint.added(g_rest, relaxed_rest)
    return pullback(call, tensors, call.point(outputs), g_z, g_rest, need)


class _KKT(torch.autograd.Function):
    """(call, tensors, point, factor…, right-hand side) → v."""

    @staticmethod
    def forward(call: Call, *args: Any) -> tuple[Tensor, ...]:
        tensors, point, rhs = call.split(args)
        solve = ops.kkt_solve if _torch.dispatch_modes() > 0 else Call.kkt_solve
        solved = adjoint.is_solved(point)
        return tuple(torch.where(solved, x, 0.0) for x in solve(call, tensors, point, rhs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *args = inputs
        ctx.save_for_backward(*args, *output)
        ctx.save_for_forward(*args, *output)

    @staticmethod
    @_full_precision
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        tensors, point, _ = call.split(ctx.saved_tensors[:-RHS])
        v = Adjoint(*ctx.saved_tensors[-RHS:])
        w = kkt(call, tensors, point, Adjoint(*upstream))
        need, net = ctx.needs_input_grad[1:], functools.partial(adjoint.net, call.structure)
        grads: list[Tensor | None] = [None] * len(need)
        grads[0], grads[2], grads[4] = adjoint.matrix_gradients(
            call.structure, tensors, need[0:5:2], v.z, net(v.lam), v.nu, w._replace(lam=net(w.lam))
        )
        if call.smoothed and need[DATA + 1]:
            slopes = adjoint.slopes(call.settings.smoothing, tensors, point, v)
            grads[DATA + 1] = adjoint.joined(call.structure, torch.zeros_like(point.s), *adjoint.along(slopes, w))
        grads[-RHS:] = w
        return (None, *grads)

    @staticmethod
    @_full_precision
    @_nested
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> tuple[Tensor, ...]:
        call: Call = ctx.call
        (tensors, point, _), v = call.split(saved[:-RHS]), Adjoint(*saved[-RHS:])
        dt, d_rest, dr = tangents[:DATA], tangents[DATA + 1], tangents[-RHS:]
        lam = adjoint.net(call.structure, v.lam)
        d_z, d_lam, d_nu = adjoint.matrix_tangents(call.structure, dt[0], dt[2], dt[4], v.z, lam, v.nu)
        r = [torch.zeros_like(x) if y is None else y for x, y in zip(v, dr, strict=True)]
        r[0], r[1], r[2] = r[0] + d_z, r[1] + adjoint.both(call.structure, d_lam), r[2] + d_nu
        if call.smoothed and d_rest is not None:
            _, *changes = adjoint.sides(call.structure, d_rest)
            slopes = adjoint.slopes(call.settings.smoothing, tensors, point, v)
            r[1:] = [x + y for x, y in zip(r[1:], adjoint.along(slopes, Adjoint(r[0], *changes)), strict=True)]
        return tuple(kkt(call, tensors, point, Adjoint(*r)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *args: Any) -> tuple[Any, Any]:
        return kkt_vmap(info.batch_size, in_dims[1:], call, args, kkt)


# --- the operator's derivative ---------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.call = ops.call_of(inputs[:DATA], inputs[DATA:])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[VALUES : VALUES + VERDICT + 1])
    ctx.save_for_backward(*inputs[:DATA], *output)


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    tensors, flat = ctx.saved_tensors[:DATA], ctx.saved_tensors[DATA:]
    outputs = ops.outputs(ctx.call, flat)
    grads = _from_outputs(ctx.call, tensors, outputs, ops.outputs(ctx.call, upstream), ctx.needs_input_grad[:DATA])
    return (*grads, *(None,) * ops.OPTIONS)


torch.library.register_autograd("optlayer::solve", _backward, setup_context=_setup_context)
