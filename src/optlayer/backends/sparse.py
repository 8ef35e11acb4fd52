"""Sparse problems in the compiled core: a plan for each pattern, made once, and calls with the plan and addresses.

The `cpu` backend hands over what has a sparse matrix. The core computes in double; float32 is brought there and back.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optlayer.backends import args
from optlayer.backends.base import Adjoint, Answer
from optlayer.core.native import ADJOINT, Core, run
from optlayer.core.settings import Settings, tolerance_of
from optlayer.core.status import Status
from optlayer.core.structure import PARTS, Kind, Patterned, Structure
from optlayer.point import Point
from optlayer.problem import Problem

_DATA = args.TENSORS[: args.TENSORS.index("z")]
_VERDICT = ("status", "iterations", "primal_residual", "dual_residual", "gap")
LANES = 0  # what a test may force: 1: one problem at a time; more: one in each lane


class Plan:
    """The core's plan of a pattern.

    Attributes:
        entries: of the factor L, for each member.
        flops: multiply-adds of a factorisation.
        supernodes: dense panels of the factor.
    """

    def __init__(self, core: Core, n: int, m: int, p: int, kinds: tuple[Kind, Kind, Kind]) -> None:
        self.core = core
        sizes = ((n, n), (p, n), (m, n))
        keep: list[Tensor] = []
        places: list[int] = []
        for kind, (rows, columns) in zip(kinds, sizes, strict=True):
            if isinstance(kind, Patterned):
                first, col = kind.pattern.first, kind.pattern.columns
            elif kind.rank == 1:
                places += (0, 0)
                continue
            else:
                first = torch.arange(rows + 1) * columns
                col = torch.arange(columns).repeat(rows)
            keep += (first, col)
            places += (args.address(first), args.address(col))
        handle = core.sparse_plan((ctypes.c_int64 * 9)(n, m, p, *places))
        if not handle:
            raise MemoryError(f"no memory for the plan of a sparse problem with n={n}, m={m}, p={p}")
        self.handle = ctypes.c_void_p(handle)
        cost = (ctypes.c_double * 3)()
        core.sparse_cost(self.handle, cost)
        self.entries, self.flops, self.supernodes = int(cost[0]), cost[1], int(cost[2])

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.core.sparse_free(self.handle)


@functools.lru_cache(maxsize=64)
def _plan(core: Core, n: int, m: int, p: int, kinds: tuple[Kind, Kind, Kind]) -> Plan:
    return Plan(core, n, m, p, kinds)


def plan_of(core: Core, structure: Structure) -> Plan:
    """The plan of a structure, kept with it and among those of equal patterns."""
    plan = structure.plans.get("sparse")
    if plan is None:
        absent = Kind("absent", 2)
        kinds = tuple(absent if not size and i else kind for i, (kind, size) in enumerate(
            zip(structure.kinds, (structure.n, structure.p, structure.m), strict=True)))  # fmt: skip
        plan = structure.plans["sparse"] = _plan(core, structure.n, structure.m, structure.p, kinds)
    return plan


class _Call:
    """Args of a problem in float64, by name, and the plan of its pattern, if it has one."""

    def __init__(self, core: Core, problem: Problem, settings: Settings, keep_factor: bool, smoothed: bool) -> None:
        structure = problem.structure
        self.core, self.structure, self.batch = core, structure, structure.members
        self.keep: list[Tensor] = []
        single = structure.dtype is torch.float32
        self.problem = problem if not single else _in(problem, torch.float64)
        self.numbers = {
            "n": structure.n, "m": structure.m, "p": structure.p, "batch": self.batch, "single": 2 * single,
            "diagonal": structure.diagonal, "lanes": LANES, "threads": torch.get_num_threads(),
            "max_iterations": settings.max_iterations, "polish": int(settings.polish), "keep": int(keep_factor),
        }  # fmt: skip
        self.tolerance = tolerance_of(settings, single)
        self.smoothing = settings.smoothing if smoothed and settings.gradient == "smoothed" else 0.0
        self.places: dict[str, tuple[int, int]] = {}
        self.add(_DATA, args.place_data(self.keep, self.problem))

    @property
    def plan(self) -> Plan:
        return plan_of(self.core, self.structure)

    def add(self, names: Sequence[str], places: Sequence[int]) -> None:
        for i, name in enumerate(names[: len(places) // 2]):
            self.places[name] = (places[2 * i], places[2 * i + 1])

    def add_point(self, point: Point) -> None:
        names = ("z", *PARTS[: len(point.widths)], "no further part", *_VERDICT)
        self.add(names, args.place_point(self.keep, point))

    def pack(self) -> ctypes.Array[ctypes.c_char]:
        tensors = [x for name in args.TENSORS for x in self.places.get(name, (0, 0))]
        return args.pack([self.numbers.get(name, 0) for name in args.NUMBERS], self.tolerance, tensors, self.smoothing)


def _in(problem: Problem, dtype: torch.dtype) -> Problem:
    tensors = [None if x is None else x.to(dtype) for x in problem.tensors()]
    return Problem.of(tensors, problem.structure.changed(dtype=dtype))


def _point_in(point: Point, dtype: torch.dtype) -> Point:
    if point.z.dtype is dtype:
        return point
    z, rest, residuals = (x.to(dtype) for x in (point.z, point.rest, point.residuals))
    return Point(z, rest, point.counts, residuals, point.widths, point.factor, point.unsolved)


def relax(core: Core, adopt: Any, problem: Problem, settings: Settings, point: Point, keep_factor: bool) -> Point:
    """As `cpu.relax`: members that cannot be relaxed keep their exact point."""
    relaxed = found(core, adopt, problem, settings, keep_factor, True)
    if relaxed.unsolved:
        rest = relaxed.status != int(Status.SOLVED)
        relaxed.take(rest, point.select(rest))
    return relaxed


def found(core: Core, adopt: Any, problem: Problem, settings: Settings, keep_factor: bool, smoothed: bool) -> Point:
    """What the engine finds for the members, exactly or relaxed, and how many it leaves."""
    call = _Call(core, problem, settings, keep_factor, smoothed)
    point = args.empty_point(call.problem, call.batch)
    point.unsolved = 0
    factor: tuple[Tensor, ...] = (torch.empty(0, dtype=torch.uint8),) if keep_factor else ()
    if call.batch:
        call.add_point(point)
        packed = call.pack()
        point.unsolved = run(core.sparse_solve, call.structure, call.plan.handle, packed)
        if keep_factor:
            factor = (adopt(core, *args.factor(packed)),)
    return _returned(point, problem, factor)


def judge(core: Core, problem: Problem, settings: Settings, answer: Answer, tolerance: float) -> Point:
    """As `cpu.judge`, for a dense problem too."""
    call = _Call(core, problem, settings, False, False)
    call.numbers["given"], call.tolerance = 1, tolerance
    point = args.empty_point(call.problem, call.batch)
    for mine, theirs in zip((point.z, point.lam, point.nu, point.lam_lb, point.lam_ub), answer, strict=True):
        mine.copy_(theirs)
    if call.batch:
        call.add_point(point)
        if problem.sparse:
            run(core.sparse_solve, call.structure, call.plan.handle, call.pack())
        else:
            run(core.solve, call.structure, call.pack())
    return _returned(point, problem, ())


def _returned(point: Point, problem: Problem, factor: tuple[Tensor, ...]) -> Point:
    """The point of a call as its receiver will have it."""
    point = _point_in(point, problem.dtype)
    return Point(
        point.z.reshape(*problem.structure.shape, problem.n), point.rest, point.counts, point.residuals, point.widths,
        factor, point.unsolved,
    )  # fmt: skip


def _adjoint(
    core: Core, problem: Problem, settings: Settings, point: Point, rhs: Sequence[Tensor]
) -> tuple[_Call, Tensor]:
    """The call of a derivative, and v to be filled: float64, its parts side by side."""
    call = _Call(core, problem, settings, bool(point.factor), True)
    call.add_point(_point_in(point, torch.float64))
    wide = [x.to(torch.float64) for x in rhs]
    call.add([name.replace("v_", "r_") for name in ADJOINT], args.place_rows(call.keep, wide))
    widths = problem.structure.adjoint_widths
    v = torch.zeros(call.batch, sum(widths), dtype=torch.float64)
    call.add(ADJOINT, args.place_parts(v, widths))
    if problem.structure.two_sided:  # beside the upper sides
        for name in ("r", "v"):
            at, stride = call.places.get(f"{name}_lam", (0, 0))
            if at:
                call.places[f"{name}_lower"] = at + problem.p * v.element_size(), stride
    if point.factor and point.factor[0].numel():
        call.places["factor"] = (args.address(point.factor[0]), 0)
    call.keep.append(v)
    return call, v


def kkt_solve(core: Core, problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
    """As `cpu.kkt_solve`."""
    call, v = _adjoint(core, problem, settings, point, rhs)
    if call.batch:
        run(core.sparse_kkt_solve, call.structure, call.plan.handle, call.pack())
    return Adjoint(*v.to(problem.dtype).split(problem.structure.adjoint_widths, 1))


def pullback(
    core: Core, problem: Problem, settings: Settings, point: Point, grad_z: Tensor, need: Sequence[bool]
) -> list[Tensor | None]:
    """As `cpu.pullback`."""
    call, _ = _adjoint(core, problem, settings, point, (grad_z.reshape(-1, problem.n),))
    grads: list[Tensor | None] = []
    wanted: list[int] = []
    for x, needed, rank in zip(call.problem.tensors(), need, problem.structure.ranks, strict=True):
        if not needed or x is None:
            grads.append(None)
            wanted += (0, 0)
            continue
        grad = torch.empty_like(x, memory_format=torch.contiguous_format)
        grads.append(grad)
        wanted += (args.address(grad), grad.stride(0) if grad.dim() > rank else 0)
    wanted += [0] * 16
    gradients = struct.pack(f"={len(wanted)}q", *wanted)
    run(core.sparse_pullback, call.structure, call.plan.handle, call.pack(), gradients)
    return [None if x is None else x.to(problem.dtype) for x in grads]
