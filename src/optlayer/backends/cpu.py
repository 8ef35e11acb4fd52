"""Backend `cpu`: the compiled core, called through a plain C interface."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from optlayer.backends import args
from optlayer.backends.base import Adjoint, Point
from optlayer.problem import Diagonal, Problem
from optlayer.settings import Settings
from optlayer.solution import Status

name = "cpu"

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_MATRICES = {"Q": 2, "G": 2, "A": 2}  # dimensions without the batch; vectors have one


class Core:
    """The library for the best instruction set of this processor, and its functions."""

    def __init__(self) -> None:
        folders = [Path(__file__).resolve().parent.parent / "lib", *_installed()]
        wanted = os.environ.get("OPTLAYER_CPU")
        variants = [wanted] if wanted else _variants()
        for variant in variants:
            for folder in folders:
                path = folder / f"core_{variant}{_SUFFIX}"
                if path.exists():
                    self.variant, self.path = variant, path
                    self._load()
                    return
        tried = ", ".join(str(folder) for folder in folders)
        raise OSError(
            f"no compiled core for {'/'.join(variants)} in {tried}: "
            "optlayer was installed without a C++ compiler; install one and reinstall"
        )

    def _load(self) -> None:
        library = ctypes.CDLL(str(self.path))  # calls release the GIL
        library.optlayer_args_size.restype = ctypes.c_int64
        library.optlayer_factor_bytes.restype = ctypes.c_int64
        for call in ("optlayer_factor_bytes", "optlayer_solve", "optlayer_kkt_solve"):
            getattr(library, call).argtypes = [ctypes.c_char_p]
        if library.optlayer_args_size() != args.SIZE:
            raise OSError(f"{self.path} is of another version: its Args has {library.optlayer_args_size()} bytes, not {args.SIZE}")
        self.factor_bytes = library.optlayer_factor_bytes
        self.solve = library.optlayer_solve
        self.kkt_solve = library.optlayer_kkt_solve


def _variants() -> list[str]:
    """Instruction sets of this processor, best first."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        return ["avx512", "avx2", "baseline"]
    return ["avx2", "baseline"] if capability.startswith("AVX2") else ["baseline"]


def _installed() -> list[Path]:
    """lib/ of an editable install, whose libraries lie in site-packages."""
    return [Path(folder) / "optlayer" / "lib" for folder in sys.path if folder.endswith("site-packages")]


@functools.cache
def _core() -> Core | str:
    try:
        return Core()
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


def _place(tensor: Tensor | None, vector_dims: int, keep: list[Tensor], out: list[int]) -> None:
    """Append address and stride between members (0: shared); keep alive what had to be copied."""
    if tensor is None or tensor.numel() == 0:
        out += (0, 0)
        return
    if tensor.dim() > vector_dims and tensor.stride(0) == 0:
        tensor = tensor[0]  # an expanded tensor is a shared one
    if not tensor.is_contiguous():
        inner = tensor if tensor.dim() == vector_dims else tensor[0]
        if not inner.is_contiguous():
            tensor = tensor.contiguous()
    keep.append(tensor)
    out += (tensor.data_ptr(), tensor.stride(0) if tensor.dim() > vector_dims else 0)


class _Args:
    """Args of one problem: data and settings once, outputs as they come."""

    def __init__(self, problem: Problem, settings: Settings, keep_factor: bool) -> None:
        Q = problem.Q
        diagonal = isinstance(Q, Diagonal)
        self.keep: list[Tensor] = []
        self.data: list[int] = []
        _place(Q.d if isinstance(Q, Diagonal) else Q, 1 if diagonal else 2, self.keep, self.data)
        for tensor, dims in (
            (problem.q, 1), (problem.G, 2), (problem.h, 1), (problem.A, 2), (problem.b, 1), (problem.lb, 1), (problem.ub, 1),
        ):
            _place(tensor, dims, self.keep, self.data)
        self.batch = problem.batch or (1 if problem.batch is None else 0)
        single = problem.dtype == torch.float32
        self.numbers = [
            problem.n, problem.m, problem.p, self.batch, int(single), int(diagonal), 0, 0,
            torch.get_num_threads(), settings.max_iterations, int(settings.polish), int(keep_factor),
        ]
        self.tolerance = settings.tolerance or (1e-5 if single else 1e-9)

    def pack(self, point: list[Tensor], rhs: list[Tensor | None], answer: list[Tensor | None], factor: Tensor | None):
        tensors = list(self.data)
        for tensor in (*point, *rhs, *answer):
            if tensor is None or tensor.numel() == 0:
                tensors += (0, 0)
            else:
                tensors += (tensor.data_ptr(), tensor.stride(0))
        tensors += (factor.data_ptr() if factor is not None else 0, 0)
        return args.pack(self.numbers, self.tolerance, tensors)


def solve(problem: Problem, settings: Settings, keep_factor: bool) -> Point:
    """Solve every member; what the core does not certify as solved is left to the reference backend."""
    core = _core()
    assert isinstance(core, Core)
    call = _Args(problem, settings, keep_factor)
    batch, n, m, p, dtype = call.batch, problem.n, problem.m, problem.p, problem.dtype
    empty = torch.empty
    values = [
        empty((batch, n), dtype=dtype), empty((batch, p), dtype=dtype), empty((batch, p), dtype=dtype),
        empty((batch, m), dtype=dtype),
        empty((batch, n if problem.lb is not None else 0), dtype=dtype),
        empty((batch, n if problem.ub is not None else 0), dtype=dtype),
        empty(batch, dtype=torch.int32), empty(batch, dtype=torch.int32),
        empty(batch, dtype=dtype), empty(batch, dtype=dtype), empty(batch, dtype=dtype),
    ]
    factor: tuple[Tensor, ...] = ()
    if batch:
        nothing: list[Tensor | None] = [None] * 5
        kept = None
        if keep_factor:
            kept = empty(core.factor_bytes(call.pack(values, nothing, nothing, None)), dtype=torch.uint8)
            factor = (kept,)
        code = core.solve(call.pack(values, nothing, nothing, kept))
        if code:
            raise MemoryError(f"the compiled core ran out of memory on a problem with n={n}, m={m}, p={p}, batch={batch}")
    point = Point(*values, factor)
    unsolved = values[6] != int(Status.SOLVED)
    if batch and bool(unsolved.any()):
        _ask_reference(problem, settings, point, unsolved.nonzero().flatten())
    return point


def _ask_reference(problem: Problem, settings: Settings, point: Point, members: Tensor) -> None:
    """Give the members that the core did not solve the reference's verdict, one by one (no member sees another)."""
    from optlayer.backends import reference

    for member in members.tolist():
        verdict = reference.solve(problem.member(member), settings, False)
        for mine, theirs in zip(point[:-1], verdict[:-1], strict=True):
            mine[member] = theirs[0]


def kkt_solve(problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
    """Solve the KKT system at `point` for `rhs` with the factorisation of the forward pass."""
    core = _core()
    assert isinstance(core, Core)
    call = _Args(problem, settings, bool(point.factor))
    given = [part.contiguous() for part in rhs]
    answer: list[Tensor | None] = [torch.empty_like(part) for part in given]
    if call.batch:
        order = (0, 1, 2, 3, 4)
        code = core.kkt_solve(
            call.pack(list(point[:-1]), [given[i] for i in order], [answer[i] for i in order], point.factor[0] if point.factor else None)
        )
        if code:
            raise MemoryError("the compiled core ran out of memory in the backward pass")
    return Adjoint(*answer)
