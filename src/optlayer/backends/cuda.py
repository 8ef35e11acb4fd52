"""Backend `cuda`: the kernels of the CPU core, compiled for the GPU at run time, one QP to a team of threads.

One launch for a solve (and one before it where the batch shares all matrices), one for a derivative; nothing waits for
the GPU. Outputs, factors and scratch come from torch's allocator on the current stream, so that CUDA graphs capture
a call once its kernels are loaded. See docs/cuda.md.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from optlayer.backends import args, cpu, nvrtc, reference
from optlayer.backends.base import Adjoint, settle_here
from optlayer.core.settings import Settings, tolerance_of
from optlayer.point import Point
from optlayer.problem import Problem

name, automatic, sparse, two_sided, closest = "cuda", True, False, False, False

_PLAN = struct.Struct("=2q8q5i4x")  # DevicePlan of kernels/device.h
_LIMITS = struct.Struct("=2q4i")  # DeviceLimits
_WARP = 32
_OLDEST = (7, 5)  # compute capability


class Variant(NamedTuple):
    """How many threads solve a QP, how many QPs share a block of threads, how many blocks registers must allow."""

    threads: int
    teams: int
    resident: int


# Registers are worth more than resident blocks: with 255 of them a thread keeps the block that it factors there.
# The crossovers are chosen by counting; `make gpu` measures them.
# (largest n, largest order of the factored matrices, smallest batch, variant), the first that fits.
TABLE = (
    (8, 16, 4096, Variant(1, 128, 6)),  # (whose memory is local: more of them hide its latency)
    (32, 48, 1, Variant(_WARP, 4, 4)),
    (64, 96, 1, Variant(128, 1, 2)),
    (192, 256, 1, Variant(256, 1, 1)),
)
PREPARE = Variant(256, 1, 1)
ENTRIES = ("optlayer_solve", "optlayer_kkt_solve", "optlayer_prepare")
"""The kernels, each compiled when it is first needed."""


def variant(n: int, m: int, p: int, batch: int) -> Variant | None:
    """The team for a size; None where batched factorisations of the whole GPU (the reference) are better."""
    for most, order, least, choice in TABLE:
        if n <= most and max(n, m + p) <= order and batch >= least:
            return choice
    return None


def unavailable() -> str | None:
    """None, or why no GPU can be used here."""
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA; see pytorch.org for a build with it"
    found = nvrtc.driver()
    if isinstance(found, str):
        return found
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device (nvidia-smi lists them; CUDA_VISIBLE_DEVICES may hide them)"
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if max(capabilities) < _OLDEST:
        return f"the kernels need compute capability {_OLDEST[0]}.{_OLDEST[1]}, the GPU has {max(capabilities)}"
    compiler = nvrtc.compiler()
    if isinstance(compiler, str):
        return compiler
    planner = _planner()
    return planner if isinstance(planner, str) else None


@functools.cache
def _planner() -> ctypes.CDLL | str:
    """The compiled core, which knows how much room a QP takes."""
    core = cpu._core()
    if isinstance(core, str):
        return f"the compiled core is needed to plan the kernels: {core}"
    library = ctypes.CDLL(str(core.path))
    library.optlayer_device_plan_size.restype = ctypes.c_int64
    if library.optlayer_device_plan_size() != _PLAN.size:
        return f"{core.path} is of another version: its DevicePlan has {library.optlayer_device_plan_size()} bytes"
    library.optlayer_device_plan.argtypes = [ctypes.c_char_p] * 3
    library.optlayer_device_plan.restype = None
    return library


def refuses(problem: Problem) -> str | None:
    """None, or why this backend cannot solve `problem`."""
    return None if problem.device.type == "cuda" else f"tensors are on {problem.device}, not on a GPU"


pullback, relaxing, relax = reference.pullback, reference.relaxing, reference.relax
settle = settle_here


class Plan(NamedTuple):
    """DevicePlan, decided from sizes and sharing alone."""

    shared_block: int
    scratch: int
    shared_bytes: int
    prepare_bytes: int
    fast_bytes: int
    vector_bytes: int
    slow_bytes: int
    keep_bytes: int
    factor_bytes: int
    hot_bytes: int
    method: int
    threads: int
    lower: int
    upper: int
    keep: int

    def pack(self, shared_block: int, scratch: int) -> ctypes.Array[ctypes.c_char]:
        """The struct, with the two addresses that a call brings."""
        buffer = ctypes.create_string_buffer(_PLAN.size)
        _PLAN.pack_into(buffer, 0, shared_block, scratch, *self[2:])
        return buffer


def room(choice: Variant, single: bool) -> int:
    """Bytes that the threads of a team exchange values in (Block::room)."""
    if choice.threads == 1:
        return 0
    return -((choice.threads + 2 * choice.threads // _WARP) * (4 if single else 8) // -16) * 16


def plan(
    packed: ctypes.Array[ctypes.c_char], choice: Variant, multiprocessors: int, block: int, multiprocessor: int
) -> Plan:
    """Elimination and room for the problem of `packed` Args.

    Args:
        packed: Args, of which sizes, strides and null addresses are read.
        choice: the team.
        multiprocessors: of the device.
        block, multiprocessor: bytes of shared memory that a block may have, and that a multiprocessor has.
    """
    library = _planner()
    assert isinstance(library, ctypes.CDLL)
    fast = block // choice.teams if choice.threads > 1 else 1 << 30
    most = choice.resident * choice.teams if choice.threads > 1 else 1
    limits = ctypes.create_string_buffer(
        _LIMITS.pack(fast, multiprocessor, multiprocessors, most, _WARP, 0), _LIMITS.size
    )
    result = ctypes.create_string_buffer(_PLAN.pack(*[0] * 11, choice.threads, 0, 0, 0), _PLAN.size)
    library.optlayer_device_plan(packed, limits, result)
    return Plan(*_PLAN.unpack(result.raw))


def defines(plan: Plan, choice: Variant, single: bool, entry: str) -> tuple[tuple[str, str | int], ...]:
    """The macros that entry.cu asks for."""
    local = -(plan.fast_bytes // -256) * 256 if choice.threads == 1 else 0
    return (
        ("OPTLAYER_T", "float" if single else "double"), ("OPTLAYER_THREADS", choice.threads),
        ("OPTLAYER_TEAMS", choice.teams), ("OPTLAYER_RESIDENT", choice.resident), ("OPTLAYER_LOCAL", local),
        ("OPTLAYER_SCHUR", int(args.METHODS[plan.method] == "schur")), ("OPTLAYER_ENTRY", ENTRIES.index(entry)),
    )


def numbers(problem: Problem, settings: Settings, keep_factor: bool) -> tuple[int, ...]:
    """The numbers of Args."""
    return (
        problem.n, problem.m, problem.p, problem.structure.members, problem.dtype == torch.float32,
        problem.structure.diagonal, METHOD, 1, 1, settings.max_iterations, settings.polish, keep_factor, 0, 0,
    )


class _Call:
    """Args, plan and kernels of one problem."""

    def __init__(self, problem: Problem, settings: Settings, keep_factor: bool, choice: Variant) -> None:
        self.problem, self.choice, self.keep_factor = problem, choice, keep_factor
        self.single = problem.dtype == torch.float32
        self.keep: list[Tensor] = []
        self.data = args.place_data(self.keep, problem)
        self.batch = problem.structure.members
        self.numbers = numbers(problem, settings, keep_factor)
        self.tolerance = tolerance_of(settings, self.single)
        self.device = nvrtc.device(_index(problem.device))
        self.plan = self._plan()

    def _plan(self) -> Plan:
        shared = tuple(stride == 0 for stride in self.data[1::2])
        key = (self.numbers[:8], self.keep_factor, shared, self.choice, self.device.index,
               self.problem.lb is None, self.problem.ub is None)
        found = _plans.get(key)
        if found is None:
            gpu = self.device
            found = _plans[key] = plan(
                self.pack([0] * _ANSWERS, 0), self.choice, gpu.multiprocessors, gpu.shared_block,
                gpu.shared_multiprocessor,
            )
        return found

    def pack(self, tensors: list[int], factor: int) -> ctypes.Array[ctypes.c_char]:
        return args.pack(self.numbers, self.tolerance, [*self.data, *tensors, factor, 0])

    def _kernels(self, *wanted: tuple[str, Variant]) -> list[nvrtc.Kernel]:
        macros = ((entry, defines(self.plan, choice, self.single, entry)) for entry, choice in wanted)
        return nvrtc.kernels(self.device.index, *macros)

    def launch(self, entry: str, packed: ctypes.Array[ctypes.c_char], factor: Tensor | None, prepare: bool) -> None:
        """Queue `entry`, and before it, if asked and needed, the preparation of what the batch shares."""
        how, choice = self.plan, self.choice
        prepare = prepare and how.shared_bytes > 0
        first = [("optlayer_prepare", PREPARE)] if prepare else []
        *preparation, kernel = self._kernels(*first, (entry, choice))
        shared = choice.teams * (room(choice, self.single) + how.fast_bytes) if choice.threads > 1 else 0
        threads = choice.threads * choice.teams
        resident = max(1, kernel.resident(threads, shared))
        blocks = min(-(self.batch // -choice.teams), self.device.multiprocessors * resident)
        scratch = max(how.slow_bytes * blocks * choice.teams, how.prepare_bytes if prepare else 0, 256)
        own = how.shared_bytes if factor is None else 0
        memory = torch.empty(own + scratch, dtype=torch.uint8, device=self.problem.device)
        self.keep.append(memory)
        flags = -(self.batch // -64) * 64
        at = args.address(memory) if factor is None else args.address(factor) + flags
        bundle = how.pack(at if how.shared_bytes else 0, args.address(memory) + own)
        stream = torch.cuda.current_stream(self.problem.device).cuda_stream
        for once in preparation:
            once.launch(1, PREPARE.threads, 0, stream, packed, bundle)
        kernel.launch(blocks, threads, shared, stream, packed, bundle)


_ANSWERS = 2 * 25  # addresses and strides between the data and the factor
_NO_ADJOINT = [0] * (2 * 13)
_plans: dict[tuple[object, ...], Plan] = {}
METHOD = 0
"""An elimination that a test may force (args.METHODS)."""


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _variant(problem: Problem) -> Variant | None:
    batch = problem.structure.members
    return variant(problem.n, problem.m, problem.p, batch) if batch else None


def solve(problem: Problem, settings: Settings, keep_factor: bool) -> Point:
    """Solve every member. Large ones go to the reference backend, on the GPU as well."""
    choice = _variant(problem)
    if choice is None:
        return reference.solve(problem, settings, keep_factor)
    with torch.cuda.device(problem.device):
        call = _Call(problem, settings, keep_factor, choice)
        point = args.empty_point(problem, call.batch)
        kept = None
        if keep_factor:
            kept = torch.empty(call.plan.factor_bytes, dtype=torch.uint8, device=problem.device)
            point.factor = (kept,)
        places = args.place_point(call.keep, point) + _NO_ADJOINT
        packed = call.pack(places, 0 if kept is None else args.address(kept))
        call.launch("optlayer_solve", packed, kept, prepare=True)
    return point


def kkt_solve(problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
    """Solve the KKT system at `point` for `rhs` with the factorisation of the forward pass."""
    choice = _variant(problem)
    if choice is None:
        return reference.kkt_solve(problem, settings, point, rhs)
    with torch.cuda.device(problem.device):
        kept = point.factor[0] if point.factor else None
        call = _Call(problem, settings, kept is not None, choice)
        answer = Adjoint(*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in rhs))
        places = args.place_point(call.keep, point)
        places += [*args.place_rows(call.keep, rhs), 0, 0, *args.place_rows(call.keep, answer), 0, 0, 0, 0]
        packed = call.pack(places, 0 if kept is None else args.address(kept))
        call.launch("optlayer_kkt_solve", packed, kept, prepare=kept is None)
    return answer
