"""The derivative of a solution, by implicit differentiation of the optimality conditions (OptNet, eqs. 4-8).

**The linear system.** Write the sides of the inequalities as one list C z ≤ d, with C = (G; −I; I) and
d = (h; −lb; ub), their multipliers y = (lam, lam_lb, lam_ub) and slacks s = d − C z. The optimality conditions are

    Q z + q + Cᵀy + Aᵀnu = 0,      y∘(C z − d) = 0,      A z = b                                            (4)

and their differential, with dv = (dz, dy, dnu) for the answer and the data on the right, is (5, 6)

    Q dz + Cᵀdy + Aᵀdnu  =  r_z  = −(dQ z + dq + dCᵀy + dAᵀnu)
    y∘(C dz) − s∘dy      =  y∘r_y,    r_y = dd − dC z
    A dz                 =  r_nu = db − dA z.

`kkt_solve` of a backend maps r to v; call this map M. An active side (y > 0, s = 0) is an equality C v_z = r_y there,
an inactive one (y = 0, s > 0) has v_y = 0. A weakly active side (y = s = 0) counts as inactive; where active rows are
linearly dependent or the curvature vanishes, M is the pseudo-inverse of a consistent system (least norm).

**Both directions.** Dividing the second line by y shows that M is symmetric. Forward mode is dv = M r. Reverse mode,
with the gradients of the loss g = (g_z, g_y, g_nu), is v = M g, because ⟨g, M r⟩ = ⟨M g, r⟩, and reading off the
coefficients of the data in ⟨v, r⟩ gives (8)

    grad_q = −v_z      grad_Q = −½ (v_z zᵀ + z v_zᵀ)
    grad_h = v_lam     grad_G = −(lam v_zᵀ + v_lam zᵀ)        grad_lb = −v_lb
    grad_b = v_nu      grad_A = −(nu v_zᵀ + v_nu zᵀ)          grad_ub = v_ub.

The slack is s = h − G z: its gradient g_s adds −Gᵀg_s to g_z, g_s to grad_h, −g_s zᵀ to grad_G.

**Second derivatives.** v = M r solves a linear system with the same matrix K, so dv = M (dr − dK v), and for
gradients w̄ of v, with w = M w̄,

    ⟨w̄, dv⟩ = ⟨w, dr⟩ − ⟨w, dK v⟩:     grad_r = w,    grad_Q = −½ (w_z v_zᵀ + v_z w_zᵀ),    and as above for G and A

with (v_z, v_lam, v_nu) in place of (z, lam, nu) and w in place of v. On a fixed active set K holds nothing else. So
`_KKT` is a differentiable function whose derivatives are `_KKT` again; derivatives of every order follow.

**Smoothed.** With Settings(gradient="smoothed", smoothing=κ) all of this happens at the solution of the relaxed problem
y∘s = κ in place of the exact one, whose value is returned all the same. There s/y = κ/y² moves with the data, and
⟨w, dK v⟩ has one more term: grad_y = −2κ w_y∘v_y / y³ for second derivatives.

Members that were not solved, and sides with infinite d, have zero gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from optlayer import kkt, ops
from optlayer.backends.base import Adjoint, Backend
from optlayer.call import VALUES, VERDICT, Call, Fold, kkt_vmap, transformed
from optlayer.point import Point
from optlayer.problem import Diagonal, Problem
from optlayer.settings import Settings
from optlayer.solution import Status


def solve(problem: Problem, settings: Settings, engine: Backend | str, check: bool) -> Point:
    """The point, differentiable where the problem's tensors require it.

    Args:
        problem, settings: what, how exactly.
        engine: the backend, or its name while a graph is compiled: it is chosen when the graph runs.
        check: raise SolveError from within, where a transform forbids that the caller looks at the status.
    """
    tensors = problem.tensors()
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    watched = transformed()
    if not watched and not keep:
        assert not isinstance(engine, str)
        return engine.solve(problem, settings, False)
    call = Call(problem.form, settings, engine, check and watched, watched)
    if torch.compiler.is_compiling():
        if forward_ad._current_level >= 0:
            raise NotImplementedError("torch.compile around forward mode: take jvp of the uncompiled function")
        return call.solution(ops.solve(call, tensors, keep))
    return call.solution(_apply(_Solve, call, *tensors))


# --- the two directions ----------------------------------------------------------------------------------------------


def pullback(
    call: Call, tensors: Sequence[Any], outputs: Sequence[Tensor], upstream: Sequence[Any], need: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the tensors (where `need`) from those of the outputs: eq. 8."""
    point = call.point(outputs)
    g_z, g_rest = upstream[:VALUES]
    if call.smoothed:  # the relaxed point is an output as well, used by second derivatives
        relaxed_z, relaxed_rest = upstream[VALUES + VERDICT : call.fields]
        g_z, g_rest = _sum(g_z, relaxed_z), _sum(g_rest, relaxed_rest)
    if g_rest is None and g_z is not None and len(point.z) and call.eager():
        fused = call.pullback(tensors, point, g_z, need)
        if fused is not None:
            return fused
    solved = _solved(point)
    if solved is not None:
        g_z, g_rest = (None if g is None else torch.where(solved, g, 0.0) for g in (g_z, g_rest))
    parts = (point.lam, point.nu, point.lam_lb, point.lam_ub)
    g_s, *g_parts = [None, *map(torch.zeros_like, parts)] if g_rest is None else g_rest.split(call.form.widths, -1)
    G = tensors[2]
    if g_s is not None and G is not None:
        g_s = torch.where(point.s.isinf(), 0.0, g_s)
        g_z = _sum(g_z, -kkt.mul_t(G, g_s))
    v = _kkt(call, tensors, point, Adjoint(torch.zeros_like(point.z) if g_z is None else g_z, *g_parts))
    z, lam, nu = point.z, point.lam, point.nu
    if solved is not None:
        v = Adjoint(*(torch.where(solved, x, 0.0) for x in v))
        z, lam, nu = (torch.where(solved, x, 0.0) for x in (z, lam, nu))
    v = v._replace(lam=_sum(g_s, v.lam))
    found: list[Tensor | None] = [None] * 8
    found[0], found[2], found[4] = matrix_gradients(call, tensors, need[:5:2], z, lam, nu, v)
    if need[1]:
        found[1] = _shared(tensors[1], -v.z)
    if need[3]:
        found[3] = _shared(tensors[3], v.lam)
    if need[5]:
        found[5] = _shared(tensors[5], v.nu)
    if need[6]:
        found[6] = _shared(tensors[6], -v.lam_lb)
    if need[7]:
        found[7] = _shared(tensors[7], v.lam_ub)
    return found


def pushforward(
    call: Call, tensors: Sequence[Any], outputs: Sequence[Tensor], tangents: Sequence[Any]
) -> tuple[Any, ...]:
    """Tangents of the outputs from those of the tensors: eqs. 5 and 6."""
    point = call.point(outputs)
    dQ, dq, dG, dh, dA, db, dlb, dub = tangents
    r_z, r_lam, r_nu = matrix_tangents(call, dQ, dG, dA, point.z, point.lam, point.nu)
    r = Adjoint(
        r_z if dq is None else r_z - dq,
        r_lam if dh is None else r_lam + dh,
        r_nu if db is None else r_nu + db,
        torch.zeros_like(point.lam_lb) if dlb is None else (-dlb).expand_as(point.lam_lb),
        torch.zeros_like(point.lam_ub) if dub is None else dub.expand_as(point.lam_ub),
    )
    solved = (point.status == int(Status.SOLVED)).unsqueeze(-1)
    v = _kkt(call, tensors, point, Adjoint(*(torch.where(solved, x, 0.0) for x in r)))
    ds = torch.zeros_like(point.s)
    if tensors[2] is not None:
        ds = torch.where(solved & ~point.s.isinf(), r.lam - kkt.mul(tensors[2], v.z), 0.0)
    values = (v.z, torch.cat([ds, *v[1:]], -1))
    nothing = (None,) * (len(outputs) - call.fields)
    return (*values, *(None,) * VERDICT, *(values if call.smoothed else ()), *nothing)


def matrix_gradients(
    call: Call, tensors: Sequence[Any], need: Sequence[bool], z: Tensor, lam: Tensor, nu: Tensor, v: Adjoint
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of Q, G, A in −⟨v, dK (z, lam, nu)⟩, those needed."""
    Q, G, A = tensors[0], tensors[2], tensors[4]
    grad_Q = grad_G = grad_A = None
    if need[0] and Q is not None:
        if call.form.diagonal:
            grad_Q = _shared(Q, -v.z * z)
        else:
            half = 0.5 * v.z
            grad_Q = outer_products(Q, (half, z), (z, half))
    if need[1] and G is not None:
        grad_G = outer_products(G, (lam, v.z), (v.lam, z))
    if need[2] and A is not None:
        grad_A = outer_products(A, (nu, v.z), (v.nu, z))
    return grad_Q, grad_G, grad_A


def outer_products(M: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """−Σ left rightᵀ in the form of the matrix M: summed over the batch where M is shared, never forming the terms."""
    if M.layout != torch.strided:
        return _on_pattern(M, *pairs)
    total: Tensor | None = None
    for left, right in pairs:
        if M.dim() == 2:
            left = -left.mT
            total = left @ right if total is None else torch.addmm(total, left, right)
        else:
            left, right = -left.unsqueeze(-1), right.unsqueeze(-2)
            if total is None:
                total = left * right
            elif transformed():
                total = torch.addcmul(total, left, right)
            else:
                total.addcmul_(left, right)  # in place: fresh memory costs several times the arithmetic
    assert total is not None
    return total


def _on_pattern(M: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """The same at the entries that a sparse M (CSR) has, as a sparse matrix."""
    first, columns = M.crow_indices(), M.col_indices()
    rows = torch.repeat_interleave(torch.arange(len(first) - 1, device=first.device), first.diff())
    values = torch.stack([(left[:, rows] * right[:, columns]).sum(0) for left, right in pairs]).sum(0)
    return torch.sparse_csr_tensor(first, columns, -values, M.shape)


def matrix_tangents(
    call: Call, dQ: Tensor | None, dG: Tensor | None, dA: Tensor | None, z: Tensor, lam: Tensor, nu: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """−dK (z, lam, nu)."""
    r_z, r_lam, r_nu = torch.zeros_like(z), torch.zeros_like(lam), torch.zeros_like(nu)
    if dQ is not None:
        r_z = r_z - kkt.mul_Q(Diagonal(dQ) if call.form.diagonal else dQ, z)
    if dG is not None:
        r_z, r_lam = r_z - kkt.mul_t(dG, lam), r_lam - kkt.mul(dG, z)
    if dA is not None:
        r_z, r_nu = r_z - kkt.mul_t(dA, nu), r_nu - kkt.mul(dA, z)
    return r_z, r_lam, r_nu


def _sum(a: Tensor | None, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


def _shared(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient, summed over the batch where x is shared."""
    return grad.sum(0) if grad.dim() > x.dim() else grad


def _solved(point: Point) -> Tensor | None:
    """Which members are solved, (B, 1); None: all, known without waiting for a device."""
    if point.unsolved == 0 and not transformed():
        return None
    return (point.status == int(Status.SOLVED)).unsqueeze(-1)


# --- autograd --------------------------------------------------------------------------------------------------------


def _kkt(call: Call, tensors: Sequence[Any], point: Point, rhs: Adjoint) -> Adjoint:
    """v = M r, differentiable."""
    if call.eager():
        return call.kkt_solve(tensors, point, rhs)
    return Adjoint(*_apply(_KKT, call, *tensors, *point.tensors(), *rhs))


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """function.apply, past its Python wrapper where that has nothing to do: it takes longer than a small solve."""
    if args[0].transformed:
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def _traced() -> bool:
    """Whether a mode watches the operators that run, a tracer's for one."""
    return torch._C._len_torch_dispatch_stack() > 0


def _full_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Products in the dtype of their factors, whatever autocast would make of them."""

    @functools.wraps(method)
    def inner(ctx: Any, *args: Any) -> Any:
        if not torch._C._is_any_autocast_enabled():
            return method(ctx, *args)
        with torch.autocast(ctx.call.form.device.type, enabled=False):
            return method(ctx, *args)

    return inner


def _nested(method: Callable[..., Any]) -> Callable[..., Any]:
    """Forward mode on inside a jvp: torch turns it off for all levels, and an outer one would see constants.

    The level of this jvp itself is taken off the saved tensors instead.
    """

    @functools.wraps(method)
    def inner(ctx: Any, _: None, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [x if x is None else forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors]
            return method(ctx, saved, *tangents)

    return inner


class _Solve(torch.autograd.Function):
    """(call, tensors) → outputs of Call.solve."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return ops.solve(call, tensors, True) if _traced() else call.solve(tensors, True)

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
        return (None, *pullback(ctx.call, saved[:8], saved[8:], upstream, ctx.needs_input_grad[1:]))

    @staticmethod
    @_full_precision
    @_nested
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return pushforward(ctx.call, saved[:8], saved[8:], tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Tensor | None) -> tuple[Any, Any]:
        folded = Fold(info.batch_size, call)
        outputs = _apply(_Solve, folded.call, *folded.tensors(tensors, in_dims[1:]))
        return folded.unfold(outputs, call.fields)


class _KKT(torch.autograd.Function):
    """(call, tensors, point, factor…, right-hand side) → v."""

    @staticmethod
    def forward(call: Call, *args: Any) -> tuple[Tensor, ...]:
        tensors, point, rhs = call.split(args)
        solved = (point.status == int(Status.SOLVED)).unsqueeze(-1)
        v = ops.kkt_solve(call, tensors, point, rhs) if _traced() else call.kkt_solve(tensors, point, rhs)
        return tuple(torch.where(solved, x, 0.0) for x in v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *args = inputs
        ctx.save_for_backward(*args, *output)
        ctx.save_for_forward(*args, *output)

    @staticmethod
    @_full_precision
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        tensors, point, _ = call.split(ctx.saved_tensors[:-5])
        v = Adjoint(*ctx.saved_tensors[-5:])
        w = _kkt(call, tensors, point, Adjoint(*upstream))
        need = ctx.needs_input_grad[1:]
        grads: list[Tensor | None] = [None] * len(need)
        grads[0], grads[2], grads[4] = matrix_gradients(call, tensors, need[0:5:2], v.z, v.lam, v.nu, w)
        if call.smoothed and need[9]:
            grads[9] = torch.cat([torch.zeros_like(point.s), *_along(_slopes(call, tensors, point, v), w)], -1)
        grads[-5:] = w
        return (None, *grads)

    @staticmethod
    @_full_precision
    @_nested
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> tuple[Tensor, ...]:
        call: Call = ctx.call
        (tensors, point, _), v = call.split(saved[:-5]), Adjoint(*saved[-5:])
        dt, dpoint, dr = call.split(tangents)
        d_z, d_lam, d_nu = matrix_tangents(call, dt[0], dt[2], dt[4], v.z, v.lam, v.nu)
        r = [torch.zeros_like(x) if y is None else y for x, y in zip(v, dr, strict=True)]
        r[0], r[1], r[2] = r[0] + d_z, r[1] + d_lam, r[2] + d_nu
        if call.smoothed and dpoint.rest is not None:
            _, *changes = dpoint.rest.split(call.form.widths, -1)
            terms = _along(_slopes(call, tensors, point, v), Adjoint(r[0], *changes))
            r[1:] = [x + y for x, y in zip(r[1:], terms, strict=True)]
        return tuple(_kkt(call, tensors, point, Adjoint(*r)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *args: Any) -> tuple[Any, Any]:
        return kkt_vmap(info.batch_size, in_dims[1:], call, args, _kkt)


def _slopes(call: Call, tensors: Sequence[Any], point: Point, v: Adjoint) -> tuple[Tensor, Tensor, Tensor]:
    """v_y ∂(s/y)/∂y = −2κ v_y / y³ at the relaxed point, for lam, lam_lb, lam_ub; 0 where off, or lb = ub."""
    lb, ub = tensors[6], tensors[7]

    def slope(y: Tensor, v_y: Tensor, moves: Tensor) -> Tensor:
        return torch.where(moves, -2 * call.settings.smoothing / y * (v_y / y) / y, 0.0)

    lower, upper = point.lam_lb > 0, point.lam_ub > 0
    if lb is not None and ub is not None:
        lower, upper = lower & (lb != ub), upper & (lb != ub)
    rows = slope(point.lam, v.lam, point.lam > 0)
    return rows, slope(point.lam_lb, v.lam_lb, lower), slope(point.lam_ub, v.lam_ub, upper)


def _along(slopes: tuple[Tensor, Tensor, Tensor], w: Adjoint) -> tuple[Tensor, ...]:
    """Slopes times w, for lam, nu, lam_lb, lam_ub."""
    rows, lower, upper = slopes
    return w.lam * rows, torch.zeros_like(w.nu), w.lam_lb * lower, w.lam_ub * upper
