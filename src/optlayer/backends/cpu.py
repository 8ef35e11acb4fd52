"""Backend `cpu`: the compiled core, called through a plain C interface."""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from optlayer.backends import args
from optlayer.backends.base import Adjoint, Backend
from optlayer.core.native import VARIANTS, Core
from optlayer.core.settings import Settings
from optlayer.core.status import Status
from optlayer.point import Point
from optlayer.problem import Problem

name, automatic, sparse = "cpu", True, False

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


class _Call:
    """Args of one problem: data and settings; the tensors of the answer are added to them.

    `smoothed`: about the relaxed problem, if the settings have one.
    """

    __slots__ = ("batch", "data", "keep", "numbers", "smoothing", "tolerance")

    def __init__(self, problem: Problem, settings: Settings, keep_factor: bool, smoothed: bool = True) -> None:
        structure = problem.structure
        single = structure.dtype is torch.float32
        self.keep: list[Tensor] = []
        self.data = args.place_data(self.keep, problem)
        self.batch = 1 if structure.batch is None else structure.batch
        self.numbers = (
            structure.n, structure.m, structure.p, self.batch, single, structure.diagonal, METHOD, LANES,
            torch.get_num_threads(), settings.max_iterations, settings.polish, keep_factor,
        )
        self.tolerance = settings.tolerance or (1e-5 if single else 1e-9)
        self.smoothing = settings.smoothing if smoothed and settings.gradient == "smoothed" else 0.0

    def pack(self, tensors: list[int]) -> ctypes.Array[ctypes.c_char]:
        return args.pack(self.numbers, self.tolerance, self.data + tensors, self.smoothing)

    def pack_adjoint(self, point: Point, rhs: list[int], v: Tensor) -> ctypes.Array[ctypes.c_char]:
        """With a point, the right-hand side's places, and v, whose parts lie side by side."""
        answer = args.place_parts(v, (point.z.shape[1], *point.widths[1:]))
        factor = args.address(point.factor[0]) if point.factor else 0
        return self.pack([*args.place_point(self.keep, point), *rhs, *answer, factor, 0])


# What a test may force: an elimination (args.METHODS) and the lanes (1: one problem at a time; more: one in each lane).
METHOD, LANES = 0, 0


def solve(problem: Problem, settings: Settings, keep_factor: bool) -> Point:
    """Solve every member; what the core neither solves nor refutes, the reference backend tries."""
    core = _core()
    assert isinstance(core, Core)
    point = _found(core, _Call(problem, settings, keep_factor, smoothed=False), problem, keep_factor)
    if point.unsolved:
        _ask_reference(problem, settings, point)
    return point


def relaxing() -> Backend:
    """The backend of the relaxed problem: this one."""
    return cast(Backend, sys.modules[__name__])


def relax(problem: Problem, settings: Settings, point: Point, keep_factor: bool) -> Point:
    """The relaxed point of the members that are solved; what the core cannot relax, the reference backend does."""
    core = _core()
    assert isinstance(core, Core)
    relaxed = _found(core, _Call(problem, settings, keep_factor), problem, keep_factor)
    if relaxed.unsolved:
        rest = relaxed.status != int(Status.SOLVED)
        relaxed.take(rest, point.select(rest))
        left = rest & (point.status == int(Status.SOLVED))
        if left.any():
            from optlayer.backends import reference

            for members in _few(problem, left):
                at = point.select(members)
                relaxed.take(members, reference.relax(problem.select(members), settings, at, False))
    return relaxed


def _found(core: Core, call: _Call, problem: Problem, keep_factor: bool) -> Point:
    """What the core finds for the members, and how many it leaves."""
    point = args.empty_point(problem, call.batch)
    point.unsolved = 0
    if call.batch:
        packed = call.pack(args.place_point(call.keep, point) + _NO_ADJOINT)
        point.unsolved = _or_memory_error(core.solve(packed), problem)
        if keep_factor:
            point.factor = (_adopt(core, *args.factor(packed)),)
    elif keep_factor:
        point.factor = (torch.empty(0, dtype=torch.uint8),)
    return point


def _few(problem: Problem, which: Tensor) -> Sequence[Tensor]:
    """The members marked in `which`, so many at a time that the reference's matrices stay small."""
    size = problem.n + problem.m + problem.p
    return which.nonzero().flatten().split(max(1, 4_000_000 // size**2))


def _or_memory_error(left: int, problem: Problem) -> int:
    if left < 0:
        raise MemoryError(
            f"the compiled core ran out of memory on a batch of {problem.batch} with "
            f"n={problem.n}, m={problem.m}, p={problem.p}"
        )
    return left


_NO_ADJOINT = [0] * (2 * 11)  # right-hand side, answer and factor


@functools.cache
def _block_type(core: Core, size: int) -> type[ctypes.Array[ctypes.c_char]]:
    """Memory of the core, given back when the last tensor that lies in it is gone."""

    def give_back(self: ctypes.Array[ctypes.c_char]) -> None:
        core.release(ctypes.addressof(self))

    return type("Block", (ctypes.c_char * size,), {"__del__": give_back})


def _adopt(core: Core, address: int, size: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.frombuffer(_block_type(core, size).from_address(address), dtype=dtype)


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


def _ask_reference(problem: Problem, settings: Settings, point: Point) -> None:
    """Give the members that are left the reference's verdict; a rough solution is replaced only by a solution."""
    rough = point.status == args.ROUGH
    left = rough | (point.status == int(Status.MAX_ITERATIONS)) | (point.status == int(Status.NUMERICAL_ERROR))
    point.counts[rough, 0] = int(Status.SOLVED)
    if left.any():
        from optlayer.backends import reference

        for members in _few(problem, left):
            found = reference.solve(problem.select(members), settings, False)
            better = (found.status == int(Status.SOLVED)) | ~rough[members]
            point.take(members[better], found.select(better))
    point.unsolved = len(point.status.nonzero())


def kkt_solve(problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
    """Solve the KKT system at `point` for `rhs` with the factorisation of the forward pass."""
    core = _core()
    assert isinstance(core, Core)
    call = _Call(problem, settings, bool(point.factor))
    v = _empty_adjoint(problem, call.batch)
    answer = _parts(problem, v)
    if call.batch:
        packed = call.pack_adjoint(point, args.place_rows(call.keep, rhs), v)
        if _or_memory_error(core.kkt_solve(packed), problem):
            _differentiate_rest(problem, settings, point, rhs, answer)
    return answer


def pullback(
    problem: Problem, settings: Settings, point: Point, grad_z: Tensor, need: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the tensors (where `need`) from that of z: `kkt_solve`, and the products of eq. 8."""
    core = _core()
    assert isinstance(core, Core)
    call = _Call(problem, settings, bool(point.factor))
    v = _empty_adjoint(problem, call.batch)
    grads: list[Tensor | None] = []
    wanted: list[int] = []
    for x, needed, rank in zip(problem.tensors(), need, problem.structure.ranks, strict=True):
        if not needed or x is None:
            grads.append(None)
            wanted += (0, 0)
            continue
        grad = _empty_gradient(core, x)
        grads.append(grad)
        wanted += (args.address(grad), grad.stride(0) if grad.dim() > rank else 0)
    rhs = args.place_rows(call.keep, (grad_z,)) + _NO_SIDES
    packed, gradients = call.pack_adjoint(point, rhs, v), _GRADIENTS.pack(*wanted)
    if _or_memory_error(core.pullback(packed, gradients), problem):
        sides = (torch.zeros_like(x) for x in (point.lam, point.nu, point.lam_lb, point.lam_ub))
        _differentiate_rest(problem, settings, point, Adjoint(grad_z, *sides), _parts(problem, v))
        core.products(packed, gradients)
    return grads


_NO_SIDES = [0] * (2 * 4)  # the right-hand side but for z
_GRADIENTS = struct.Struct("=16q")  # address and stride for each tensor of the problem


def _empty_adjoint(problem: Problem, batch: int) -> Tensor:
    """v to be filled by the core, its parts side by side."""
    structure = problem.structure
    columns = structure.n + sum(structure.widths[1:])
    return torch.empty_strided((batch, columns), (columns, 1), dtype=structure.dtype, device=structure.device)


def _parts(problem: Problem, v: Tensor) -> Adjoint:
    return Adjoint(*v.split((problem.n, *problem.widths[1:]), 1))


def _differentiate_rest(problem: Problem, settings: Settings, point: Point, rhs: Adjoint, answer: Adjoint) -> None:
    """The derivative where the core has none, by the reference backend."""
    from optlayer.backends import reference

    members = answer.z[:, 0].isnan().nonzero().flatten()
    at = point.select(members)
    rest = reference.kkt_solve(problem.select(members), settings, at, Adjoint(*(x[members] for x in rhs)))
    for mine, theirs in zip(answer, rest, strict=True):
        mine[members] = theirs
