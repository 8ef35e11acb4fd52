"""The leaves of autograd.py as torch operators, for whoever traces or compiles: `optlayer::solve` and
`optlayer::kkt_solve`. (The derivative of the first is registered in autograd.py.)

An operator takes and returns tensors and plain values only, so the settings travel one by one and the backend by its
name; it is chosen when the graph runs. Eager calls never come here: an operator in Python costs 50 µs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from optlayer import _torch, matrices
from optlayer.backends.base import Adjoint
from optlayer.call import DATA, VALUES, VERDICT, Call, Fold, kkt_vmap
from optlayer.core.settings import Settings
from optlayer.core.structure import DENSE, DIAGONAL, MATRICES, Kind, Patterned
from optlayer.point import Point
from optlayer.problem import check as check_problem
from optlayer.sparse import Pattern

_DATA = "Tensor Q, Tensor q, Tensor? G, Tensor? h, Tensor? A, Tensor? b, Tensor? lb, Tensor? ub, Tensor? h_lower"
_POINT = "Tensor z, Tensor rest, Tensor counts, Tensor residuals, Tensor factor"
_RHS = "Tensor r_z, Tensor r_lam, Tensor r_nu, Tensor r_lb, Tensor r_ub"
_TYPES = {"float | None": "float?", "int": "int", "bool": "bool", "float": "float"}  # others are words
_SETTINGS = [f"{_TYPES.get(str(field.type), 'str')} {field.name}" for field in fields(Settings)]
_NAMES = tuple(field.name for field in fields(Settings))
_OPTIONS = ", ".join(["int[] kinds", *_SETTINGS, "str backend", "bool check", "bool keep_factor"])
OPTIONS = 4 + len(_SETTINGS)

# Outputs of solve: Point, its factor (one tensor of bytes, empty: none), and the relaxed point (empty: not smoothed).
_RETURNS = ", ".join(["Tensor"] * (2 * VALUES + VERDICT + 1))
torch.library.define("optlayer::solve", f"({_DATA}, {_OPTIONS}) -> ({_RETURNS})")
torch.library.define("optlayer::kkt_solve", f"({_DATA}, {_POINT}, {_RHS}, {_OPTIONS}) -> ({', '.join(['Tensor'] * 5)})")


def _number(kind: Kind) -> int:
    """Kinds of matrices by number: dense, diagonal, then patterns by theirs."""
    return 2 + kind.pattern.number if type(kind) is Patterned else int(kind is DIAGONAL)


def _kind(number: int) -> Kind:
    return (DENSE, DIAGONAL)[number] if number < 2 else Patterned("sparse", 1, Pattern.numbered(number - 2))


def _options(call: Call, keep_factor: bool) -> tuple[Any, ...]:
    """The plain arguments of a call."""
    name = call.engine if isinstance(call.engine, str) else call.engine.name
    settings = [getattr(call.settings, name) for name in _NAMES]
    return ([_number(kind) for kind in call.structure.kinds], *settings, name, call.check, keep_factor)


def call_of(tensors: Sequence[Any], chosen: Sequence[Any]) -> Call:
    """The call of flat arguments; its backend stays a name."""
    kinds, *settings, backend, check, _ = chosen
    given = list(tensors)
    for i, number in zip(MATRICES, kinds, strict=True):
        given[i] = matrices.wrap(_kind(number), given[i])
    structure = check_problem(*given).structure
    return Call(structure, Settings(*settings), backend, check, _torch.transformed())


def _split(args: Sequence[Any]) -> tuple[Call, Sequence[Any], Point, Adjoint]:
    """The flat arguments of kkt_solve."""
    at = DATA + VALUES + VERDICT
    call = call_of(args[:DATA], args[at + 6 :])
    return call, *call.split((*args[:at], *_factor(args[at]), *args[at + 1 : at + 6]))


def _factor(factor: Tensor) -> tuple[Tensor, ...]:
    """An operator returns one tensor, empty where there is none."""
    return (factor,) if factor.numel() else ()


def solve(call: Call, tensors: Sequence[Any], keep_factor: bool) -> tuple[Tensor, ...]:
    """call.solve by the operator.

    torch.compile breaks the graph at a tensor, the factor, whose size is known only when it runs, except with
    `fullgraph=True` in newer versions (in 2.13, not in 2.6). There the factor is not kept, and the derivative makes it
    anew.
    """
    keep = keep_factor and call.structure.device.type != "meta" and _torch.dynamic_output_sizes()
    return outputs(call, torch.ops.optlayer.solve(*tensors, *_options(call, keep)))


def kkt_solve(call: Call, tensors: Sequence[Any], point: Point, rhs: Sequence[Tensor]) -> Adjoint:
    """call.kkt_solve by the operator."""
    factor = point.factor[0] if point.factor else point.z.new_empty(0, dtype=torch.uint8)
    values = point.tensors()[: VALUES + VERDICT]
    return Adjoint(*torch.ops.optlayer.kkt_solve(*tensors, *values, factor, *rhs, *_options(call, False)))


# --- what they compute -----------------------------------------------------------------------------------------------


@torch.library.impl("optlayer::solve", ("CPU", "CUDA"))
def _solve(*args: Any) -> tuple[Tensor, ...]:
    tensors, chosen = args[:DATA], args[DATA:]
    call = call_of(tensors, chosen)
    found = [x.clone() for x in call.solve(tensors, chosen[-1])]  # an operator's outputs share no memory
    q = tensors[1]
    nothing = q.new_empty(0, dtype=torch.uint8)
    at = VALUES + VERDICT
    point, relaxed, factor = found[:at], found[at : call.fields], found[call.fields :]
    single = factor[0] if len(factor) == 1 and factor[0].dtype == torch.uint8 else nothing
    return (*point, single, *(relaxed or [q.new_empty(0) for _ in range(VALUES)]))


@torch.library.impl("optlayer::kkt_solve", ("CPU", "CUDA"))
def _kkt_solve(*args: Any) -> tuple[Tensor, ...]:
    call, tensors, point, rhs = _split(args)
    return tuple(x.clone() for x in call.kkt_solve(tensors, point, rhs))


# --- what a tracer must know: shapes, derivatives, vmap --------------------------------------------------------------


@torch.library.register_fake("optlayer::solve")
def _(*args: Any) -> tuple[Tensor, ...]:
    tensors, chosen = args[:DATA], args[DATA:]
    call, q = call_of(tensors, chosen), tensors[1]
    batch = call.structure.members
    columns = (call.structure.n, sum(call.structure.widths))
    values = [q.new_empty(batch, width) for width in columns]
    verdict = (q.new_empty(batch, 2, dtype=torch.int32), q.new_empty(batch, 3))
    size = torch.library.get_ctx().new_dynamic_size() if chosen[-1] else 0
    relaxed = [q.new_empty(batch, width) if call.smoothed else q.new_empty(0) for width in columns]
    return (*values, *verdict, q.new_empty(size, dtype=torch.uint8), *relaxed)


@torch.library.register_fake("optlayer::kkt_solve")
def _(*args: Any) -> tuple[Tensor, ...]:
    at = DATA + VALUES + VERDICT + 1
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in args[at : at + 5])


def outputs(call: Call, flat: Sequence[Any]) -> tuple[Any, ...]:
    """Outputs of the operator as those of Call.solve."""
    at = VALUES + VERDICT
    return (*flat[:at], *flat[at + 1 : at + 1 + VALUES * call.smoothed], flat[at])


@torch.library.register_vmap("optlayer::solve")
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    tensors, chosen = args[:DATA], args[DATA:]
    folded = Fold(info.batch_size, _logical(tensors, in_dims, chosen))
    found = torch.ops.optlayer.solve(*folded.tensors(tensors, in_dims[:DATA]), *chosen)
    at = VALUES + VERDICT
    values, dims = folded.unfold(found[:at], at)
    relaxed, more = folded.unfold(found[at + 1 :], VALUES if folded.call.smoothed else 0)
    return (*values, found[at], *relaxed), (*dims, None, *more)


@torch.library.register_vmap("optlayer::kkt_solve")
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    at = DATA + VALUES + VERDICT
    tensors, factor = args[:DATA], _factor(args[at])
    dims = (*in_dims[:at], *([None] * len(factor)), *in_dims[at + 1 : at + 6])
    call = _logical(tensors, dims, args[at + 6 :])
    return kkt_vmap(info.batch_size, dims, call, (*args[:at], *factor, *args[at + 1 : at + 6]), kkt_solve)


def _logical(tensors: Sequence[Any], dims: Sequence[Any], chosen: Sequence[Any]) -> Call:
    """The call as the vmapped function sees it."""
    seen = [x if d is None else x.select(d, 0) for x, d in zip(tensors, dims[:DATA], strict=True)]
    return call_of(seen, chosen)
