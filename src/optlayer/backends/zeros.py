"""Zeros that nobody told us of: dense matrices that are mostly zeros, and which engine of the core takes their problem.

Where the batch shares a dense Q, G or A that is mostly zeros, its pattern is looked at, and the sparse engine takes the
problem if its symbolic factorisation says that this is cheaper. The problem stays dense for everybody else: its
gradient is the outer product of eq. 8, with entries where the matrix has zeros. What decides depends on sizes and
patterns, never on the number of members, so a member's bits do not depend on its batch.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optlayer.backends import args
from optlayer.backends import sparse as by_pattern
from optlayer.core.native import Core
from optlayer.core.settings import Settings
from optlayer.core.structure import DENSE, MATRICES, Kind, Patterned, Structure
from optlayer.problem import Problem
from optlayer.sparse import Pattern

# Measured by `python -m benchmarks.crossover` (one core); what decides is only which of two times is less.
SMALL = 100
"""Variables and rows below which dense matrices are always as fast."""
_SHARE, _SAMPLE = 2, 97
"""A matrix is mostly zeros if at most one entry in so many is none; so many entries show it of most full matrices."""
_PIVOTS = 2.5e-8
"""ms of the dual active set for each side of a constraint and square of the free dimensions: its pivots."""
_FACTOR = 3e-8
"""ms for each multiply-add of what a batch prepares once, and a problem alone by itself."""
_ITERATIONS = 1e-6
"""ms for each multiply-add of one iteration of the dense interior point: there are about 20."""
_ROW, _ENTRY, _FLOP = 4e-4, 4e-5, 1.5e-6
"""ms of the sparse engine for each variable and row, entry of L and multiply-add of a factorisation."""
_ALONE, _CALL = 1.6, 0.1
"""A problem alone has no lanes to share; what its call costs more, in ms."""


def found(core: Core, problem: Problem, settings: Settings) -> Problem | None:
    """The problem with patterns, if the sparse engine is the better one for it; None: it stays dense."""
    structure = problem.structure
    if structure.n + structure.m + structure.p < SMALL or settings.zeros == "given" or settings.infeasible == "closest":
        return None
    tensors = problem.tensors()
    patterns = [_pattern(tensors[i], kind, i == 0) for i, kind in zip(MATRICES, structure.kinds, strict=True)]
    if not any(patterns):
        return None
    differ = [_differs(tensors[i], kind) for i, kind in zip(MATRICES, structure.kinds, strict=True)]
    sides = structure.p * len(structure.row_widths) + sum(_finite(x) for x in (problem.lb, problem.ub))
    key = ("zeros", *patterns, any(differ), sides)
    if key not in structure.plans:
        if len(structure.plans) >= 100:
            structure.plans.clear()
        wanted = _structure(structure, patterns)
        structure.plans[key] = wanted if _cheaper(core, wanted, any(differ), sides) else None
    return None if structure.plans[key] is None else at(structure.plans[key], problem)


def at(wanted: Structure, problem: Problem) -> Problem:
    """The problem in a structure that `found` has made for it."""
    tensors: list[Any] = list(problem.tensors())
    for i, kind, dense in zip(MATRICES, wanted.kinds, problem.structure.kinds, strict=True):
        if kind is not dense:
            tensors[i] = tensors[i].detach().flatten()[_places(kind.pattern)]  # type: ignore[attr-defined]
    return Problem.of(tensors, wanted)


def add_gradients(
    structure: Structure, to: Sequence[Tensor | None], dense: Sequence[Tensor | None], members: Tensor
) -> None:
    """Add gradients of some members' dense tensors to those of all members' tensors: of a pattern, what is stored."""
    kinds = dict(zip(MATRICES, structure.kinds, strict=True))
    for i, (mine, theirs, rank) in enumerate(zip(to, dense, structure.ranks, strict=True)):
        if mine is None or theirs is None:
            continue
        kind = kinds.get(i)
        if isinstance(kind, Patterned):
            theirs = theirs.flatten(-2)[..., _places(kind.pattern)]
        if mine.dim() > rank:
            mine[members] += theirs
        else:
            mine += theirs


def _differs(x: Tensor | None, kind: Kind) -> bool:
    """Whether the members have matrices of their own."""
    return x is not None and x.dim() > kind.rank


def _structure(structure: Structure, patterns: Sequence[Pattern | None]) -> Structure:
    pairs = zip(structure.kinds, patterns, strict=True)
    kinds = [kind if pattern is None else Patterned("sparse", 1, pattern) for kind, pattern in pairs]
    _, _, _, lower, upper, *below = structure.widths
    return Structure(
        structure.n, structure.m, structure.p, structure.shape, tuple(kinds),  # type: ignore[arg-type]
        lower=lower > 0, upper=upper > 0, two_sided=bool(below), dtype=structure.dtype, device=structure.device,
    )  # fmt: skip


def _cheaper(core: Core, wanted: Structure, differ: bool, sides: int) -> bool:
    """Whether a member is estimated to take less time by the sparse engine than by the dense methods.

    differ: some matrix is one of each member; sides: of constraints, finite ones.
    """
    n, m, p, alone = wanted.n, wanted.m, wanted.p, wanted.batch is None
    if _may_be_definite(wanted.kinds[0]):
        dense = _PIVOTS * sides * max(n - m, 0) ** 2 + (_FACTOR * n**3 if alone or differ else 0)
    else:
        dense = _ITERATIONS * n * n * (n / 6 + (m + p) / 2)
    cost = _ROW * (n + m + p)
    if cost < dense:
        plan = by_pattern.plan_of(core, wanted)
        cost += _ENTRY * plan.entries + _FLOP * plan.flops
    return (_ALONE * cost + _CALL if alone else cost) < dense


def _may_be_definite(Q: Kind) -> bool:
    """Whether the diagonal of Q has no zero."""
    return type(Q) is not Patterned or int((Q.pattern.rows == Q.pattern.columns).sum()) == Q.pattern.size[0]


# ---- the pattern of a tensor ----------------------------------------------------------------------------------------

_looked: dict[int, tuple[Any, int, int, Any]] = {}  # by id: the tensor, its version and address, what was found


def _once(x: Tensor, look: Callable[[Tensor, Any], Any]) -> Any:
    """look(x, what was found before): once for a tensor that is neither learned nor changed."""
    known = _looked.get(id(x))
    if known is not None and known[0]() is not x:
        known = None
    version = -1 if x.requires_grad or x.is_inference() else x._version
    if known is not None and version >= 0 and known[1:3] == (version, args.address(x)):
        return known[3]
    value = look(x.detach(), None if known is None else known[3])
    if len(_looked) >= 1000:
        _looked.clear()
    _looked[id(x)] = weakref.ref(x), version, args.address(x), value
    return value


def _finite(x: Tensor | None) -> int:
    """Entries of a bound that are some; all where each member has its own."""
    if x is None or x.dim() > 1:
        return 0 if x is None else x.shape[-1]
    return int(_once(x, lambda x, _: int(x.isfinite().sum())))


def _pattern(x: Tensor | None, kind: Kind, symmetric: bool) -> Pattern | None:
    """The pattern of a dense matrix that is shared and mostly zeros."""
    if x is None or kind is not DENSE or x.dim() > 2:
        return None
    found: Pattern | None = _once(x, functools.partial(_look, symmetric=symmetric))
    return found


def _look(x: Tensor, before: Any, symmetric: bool) -> Pattern | None:
    most = x.numel() // _SHARE
    sample = x.reshape(-1)[:: max(1, x.numel() // _SAMPLE | 1)]
    if int(sample.count_nonzero()) > 0.8 * len(sample):
        return None
    entries = int(x.count_nonzero())
    if entries > most:
        return None
    if isinstance(before, Pattern) and before.entries == entries == int(x.flatten()[_places(before)].count_nonzero()):
        return before
    mask = x != 0
    rows, columns = (mask | mask.mT if symmetric else mask).nonzero(as_tuple=True)
    first = torch.zeros(len(x) + 1, dtype=torch.int64)
    first[1:] = torch.bincount(rows, minlength=len(x)).cumsum(0)
    return Pattern(first, columns.contiguous(), (x.shape[0], x.shape[1]), passing=True)


def _places(pattern: Pattern) -> Tensor:
    """Where its entries lie among those of the full matrix."""
    return pattern.rows * pattern.size[1] + pattern.columns
