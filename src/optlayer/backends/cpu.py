"""Backend `cpu`: the compiled core, called through a plain C interface."""

from __future__ import annotations

import ctypes
import functools
import sys
from array import array
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from optlayer.backends import args, zeros
from optlayer.backends import sparse as by_pattern
from optlayer.backends.base import FITS_DENSE, Adjoint, Answer, Backend
from optlayer.core.native import VARIANTS, Core, Plan, run
from optlayer.core.settings import Settings
from optlayer.core.status import Status
from optlayer.core.structure import NAMES, Structure
from optlayer.point import Point
from optlayer.problem import Problem

name, automatic, sparse, two_sided, closest = "cpu", True, True, True, True


def _variants() -> list[str]:
    """Instruction sets of this processor, best first."""
    capability = torch.backends.cpu.get_cpu_capability()
    return list(VARIANTS[0 if capability.startswith("AVX512") else 1 if capability.startswith("AVX2") else 2 :])


@functools.cache
def _core() -> Core | str:
    try:
        return Core(_variants())
    except OSError as error:
        return str(error)


def _loaded() -> Core:
    core = _core()
    assert isinstance(core, Core)
    return core


def unavailable() -> str | None:
    """None, or why the compiled core cannot be used here."""
    core = _core()
    return core if isinstance(core, str) else None


def variant() -> str:
    """The instruction set in use."""
    core = _core()
    return core.variant if isinstance(core, Core) else "none"


def refuses(problem: Problem) -> str | None:
    """None, or why this backend cannot solve `problem`."""
    return None if problem.device.type == "cpu" else f"tensors are on {problem.device}, not on a CPU"


# What a test may force: an elimination (args.METHODS) and the lanes (1: one problem at a time; more: one in each lane).
METHOD, LANES = 0, 0


def _plan(structure: Structure, settings: Settings, keep: bool, smoothed: bool) -> Plan:
    """The plan for a structure, made once: training asks the same question again and again."""
    key = (id(settings), keep, smoothed, METHOD, LANES, torch.get_num_threads())
    found: Plan | None = structure.plans.get(key)
    if found is None:
        if len(structure.plans) >= 100:
            structure.plans.clear()
        smoothing = settings.smoothing if smoothed and settings.gradient == "smoothed" else 0.0
        found = structure.plans[key] = Plan(
            structure, settings, structure.dtype is torch.float32, (METHOD, LANES, key[-1], keep), smoothing
        )
    return found


def solve(problem: Problem, settings: Settings, keep_factor: bool) -> Point:
    """Solve every member."""
    if problem.sparse:
        point = by_pattern.found(_loaded(), _adopt, problem, settings, keep_factor, False)
        if point.unsolved and problem.n + problem.m + problem.p <= FITS_DENSE:
            _ask_dense(problem, settings, point)
        return point
    alike = None if METHOD else zeros.found(_loaded(), problem, settings)
    if alike is None:
        return _found(problem, settings, keep_factor, False)
    point = _marked(by_pattern.found(_loaded(), _adopt_marked, alike, settings, keep_factor, False), alike)
    if point.unsolved:
        _ask_dense(problem, settings, point)
    return point


def _marked(point: Point, alike: Problem) -> Point:
    """The same; its factor says to what structure it belongs, whatever becomes of the zeros before the derivative."""
    if point.factor:
        point.factor[0].structure = alike.structure
    return point


def _ask_dense(problem: Problem, settings: Settings, point: Point) -> None:
    """What the sparse engine leaves, by the dense methods; the derivative makes its factor anew."""
    left = point.left
    if settings.infeasible == "closest":
        left |= point.status == int(Status.PRIMAL_INFEASIBLE)
    rest = left.nonzero().flatten()
    if len(rest):
        point.take(rest, _found(problem.select(rest).dense(), settings, False, False))
        point.factor, point.unsolved = (), int((~point.answered).sum())


def _closest(problem: Problem, settings: Settings, point: Point) -> tuple[Tensor, Problem, Point] | None:
    """Members of a sparse problem that are at their closest points, as a dense problem: that is how they were found."""
    if settings.infeasible != "closest":
        return None
    rest = (point.status == int(Status.CLOSEST)).nonzero().flatten()
    return (rest, problem.select(rest).dense(), point.select(rest)) if len(rest) else None


def _alike(problem: Problem, settings: Settings, point: Point) -> Problem | None:
    """The problem that the sparse engine differentiates in place of a dense one: what it has solved, if known."""
    if METHOD:
        return None
    if point.factor:
        if point.factor[0].dtype is torch.uint8:
            return None  # a factor of the dense methods
        made = getattr(point.factor[0], "structure", None)
        if made is not None:
            return zeros.at(made, problem)
        point.factor = ()
    return zeros.found(_loaded(), problem, settings)


def judge(problem: Problem, settings: Settings, answer: Answer, tolerance: float) -> Point:
    """The Point of another solver's answers: polished on their active sets (interior.h, `improve`), rounded, judged."""
    core = _loaded()
    alike = None if problem.sparse else zeros.found(core, problem, settings)
    return by_pattern.judge(core, problem if alike is None else alike, settings, answer, tolerance)


def settle(problem: Problem, settings: Settings, point: Point) -> None:
    """`solve` leaves nothing to others."""


def relaxing() -> Backend:
    """The backend of the relaxed problem: this one."""
    return cast(Backend, sys.modules[__name__])


def relax(problem: Problem, settings: Settings, point: Point, keep_factor: bool) -> Point:
    """The relaxed point of the members that are solved."""
    if problem.sparse:
        return by_pattern.relax(_loaded(), _adopt, problem, settings, point, keep_factor)
    alike = None if METHOD else zeros.found(_loaded(), problem, settings)
    if alike is not None:
        return _marked(by_pattern.relax(_loaded(), _adopt_marked, alike, settings, point, keep_factor), alike)
    relaxed = _found(problem, settings, keep_factor, True)
    if relaxed.unsolved:
        rest = relaxed.status != int(Status.SOLVED)
        relaxed.take(rest, point.select(rest))
    return relaxed


def _found(problem: Problem, settings: Settings, keep_factor: bool, smoothed: bool) -> Point:
    """What the core finds for the members, and how many it leaves."""
    core = _loaded()
    plan, kept = _plan(problem.structure, settings, keep_factor, smoothed), []  # type: tuple[Plan, list[Tensor]]
    words = plan.words[:]
    point = args.new_point(words, plan, problem.structure)
    point.unsolved = 0
    if problem.structure.batch != 0:
        args.fill_data(words, plan, problem, kept)
        point.unsolved = run(core.solve, problem.structure, words.buffer_info()[0])
        if keep_factor:
            point.factor = (_adopt(core, words[_FACTOR], words[_FACTOR + 1]),)
    elif keep_factor:
        point.factor = (torch.empty(0, dtype=torch.uint8),)
    return point


_FACTOR = args.SLOTS["factor"]


@functools.cache
def _block_type(core: Core, size: int) -> type[ctypes.Array[ctypes.c_char]]:
    """Memory of the core, given back when the last tensor that lies in it is gone."""

    def give_back(self: ctypes.Array[ctypes.c_char]) -> None:
        core.release(ctypes.addressof(self))

    return type("Block", (ctypes.c_char * size,), {"__del__": give_back})


def _adopt(core: Core, address: int, size: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.frombuffer(_block_type(core, size).from_address(address), dtype=dtype)


def _adopt_marked(core: Core, address: int, size: int) -> Tensor:
    """A factor of the sparse engine for a dense problem."""
    return _adopt(core, address, size, torch.int8)


def _empty_gradient(core: Core, x: Tensor) -> Tensor:
    """Contiguous, and if it is large in memory of the core, which is used again: fresh pages would cost most."""
    size = x.nbytes
    if size < _LARGE:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    address = core.take(size)
    if not address:
        raise MemoryError(f"no memory for a gradient of shape {tuple(x.shape)}")
    return _adopt(core, address, size, x.dtype).view(x.shape)


_LARGE = 1 << 17


def _adjoint(
    problem: Problem, settings: Settings, point: Point, kept: list[Any]
) -> tuple[array[int], Tensor | array[float]]:
    """Args of a derivative but for its right-hand side, and room for v, whose parts lie side by side."""
    plan = _plan(problem.structure, settings, bool(point.factor), True)
    words = plan.words[:]
    args.fill_data(words, plan, problem, kept)
    args.fill_point(words, plan, point, kept)
    if point.factor:
        words[_FACTOR] = args.address(point.factor[0])
    v: Tensor | array[float] = (
        _SCRATCH[: plan.v] if plan.v <= len(_SCRATCH) else torch.empty(plan.v, dtype=problem.structure.dtype)
    )
    args.fill_parts(words, plan.v_slots, v.buffer_info()[0] if isinstance(v, array) else args.address(v))
    return words, v


_SCRATCH = array("d", bytes(8 * 256))
"""A small v is copied from here: quicker than torch's allocation."""


def kkt_solve(problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
    """Solve the KKT system at `point` for `rhs` with the factorisation of the forward pass."""
    core = _loaded()
    if problem.sparse:
        found = by_pattern.kkt_solve(core, problem, settings, point, rhs)
        if (closest := _closest(problem, settings, point)) is not None:
            rest, dense, theirs = closest
            more = kkt_solve(dense, settings, theirs, Adjoint(*(r[rest] for r in rhs)))
            for v, part in zip(found, more, strict=True):
                v[rest] = part
        return found
    if (alike := _alike(problem, settings, point)) is not None:
        return by_pattern.kkt_solve(core, alike, settings, point, rhs)
    structure, kept = problem.structure, []  # type: tuple[Structure, list[Tensor]]
    columns = structure.adjoint_widths
    v = torch.empty(structure.members, sum(columns), dtype=structure.dtype)
    answer = Adjoint(*v.split(columns, 1))
    if len(v):
        plan = _plan(structure, settings, bool(point.factor), True)
        words, _ = _adjoint(problem, settings, point, kept)
        args.fill_parts(words, plan.v_slots, args.address(v))
        words[_RHS : _RHS + 2 * len(rhs)] = array("q", args.place_rows(kept, rhs))
        if structure.two_sided:  # beside the upper sides
            upper, lower = args.SLOTS["r_lam"], args.SLOTS["r_lower"]
            words[lower], words[lower + 1] = words[upper] + structure.p * v.element_size(), words[upper + 1]
        run(core.kkt_solve, problem.structure, words.buffer_info()[0])
    return answer


_RHS = args.SLOTS["r_z"]


def pullback(
    problem: Problem, settings: Settings, point: Point, grad_z: Tensor, need: Sequence[bool]
) -> list[Tensor | None] | None:
    """Gradients of the tensors (where `need`) from that of z: `kkt_solve`, and the products of eq. 8. None: the sparse
    engine has solved a dense problem, whose gradient has entries where the matrices have zeros: adjoint.py multiplies.
    """
    core = _loaded()
    if problem.sparse:
        found = by_pattern.pullback(core, problem, settings, point, grad_z, need)
        if (closest := _closest(problem, settings, point)) is not None:
            rest, dense, theirs = closest
            more = pullback(dense, settings, theirs, grad_z.reshape(-1, problem.n)[rest], need) or []
            zeros.add_gradients(problem.structure, found, more, rest)
        return found
    if _alike(problem, settings, point) is not None:
        return None
    structure, kept = problem.structure, []  # type: tuple[Structure, list[Tensor]]
    words, _v = _adjoint(problem, settings, point, kept)
    grads: list[Tensor | None] = [None] * len(need)
    to = _NO_GRADIENTS[:]
    tensors = problem.tensors()
    for i in range(len(need)):
        x = tensors[i] if need[i] else None
        if x is not None:
            grads[i] = grad = _empty_gradient(core, x)
            to[2 * i] = args.address(grad)
            if grad.dim() > structure.ranks[i]:
                to[2 * i + 1] = grad.stride(0)
    if grad_z.is_neg() or not grad_z.is_contiguous():
        grad_z = grad_z.resolve_neg().contiguous()
    words[_RHS], words[_RHS + 1] = args.address(grad_z), structure.n
    run(core.pullback, problem.structure, words.buffer_info()[0], to.buffer_info()[0])
    return grads


_NO_GRADIENTS = array("q", bytes(16 * len(NAMES)))  # address and stride for each tensor of the problem
