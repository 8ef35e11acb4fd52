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
        for call in (library.optlayer_solve, library.optlayer_kkt_solve):
            call.argtypes = [ctypes.c_char_p]
        library.optlayer_release.argtypes = [ctypes.c_void_p]
        library.optlayer_release.restype = None
        if library.optlayer_args_size() != args.SIZE:
            raise OSError(
                f"{self.path} is of another version: "
                f"its Args has {library.optlayer_args_size()} bytes, not {args.SIZE}"
            )
        self.solve = library.optlayer_solve
        self.kkt_solve = library.optlayer_kkt_solve
        self.release = library.optlayer_release


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


def _place(out: list[int], keep: list[Tensor], tensor: Tensor | None, rank: int) -> None:
    """Append address and stride between members (0: shared); keep alive what had to be copied."""
    if tensor is None or tensor.numel() == 0:
        out += (0, 0)
        return
    batched = tensor.dim() > rank
    if batched and tensor.stride(0) == 0:
        tensor, batched = tensor[0], False  # an expanded tensor is a shared one
    if not (tensor[0] if batched else tensor).is_contiguous():
        tensor = tensor.contiguous()
    keep.append(tensor)
    out += (tensor.data_ptr(), tensor.stride(0) if batched else 0)


class _Call:
    """Args of one problem: data and settings; the tensors of the answer are added to them."""

    __slots__ = ("batch", "data", "keep", "numbers", "tolerance")

    def __init__(self, problem: Problem, settings: Settings, keep_factor: bool) -> None:
        Q, q, G, h, A, b, lb, ub = problem.tensors()
        diagonal = isinstance(problem.Q, Diagonal)
        single = problem.dtype == torch.float32
        self.keep: list[Tensor] = []
        self.data: list[int] = []
        for tensor, rank in (
            (Q, 1 if diagonal else 2), (q, 1), (G, 2), (h, 1), (A, 2), (b, 1), (lb, 1), (ub, 1),
        ):
            _place(self.data, self.keep, tensor, rank)
        self.batch = 1 if problem.batch is None else problem.batch
        self.numbers = (
            problem.n, problem.m, problem.p, self.batch, single, diagonal, METHOD, LANES,
            torch.get_num_threads(), settings.max_iterations, settings.polish, keep_factor,
        )
        self.tolerance = settings.tolerance or (1e-5 if single else 1e-9)

    def pack(self, tensors: list[int]) -> ctypes.Array[ctypes.c_char]:
        return args.pack(self.numbers, self.tolerance, self.data + tensors)


# What a test may force: an elimination (args.METHODS) and the lanes (1: one problem at a time; more: one in each lane).
METHOD, LANES = 0, 0


def _pieces(dtype: torch.dtype, batch: int, widths: tuple[int, ...]) -> tuple[list[Tensor], list[int]]:
    """Tensors (batch, width) in one allocation, and their addresses and strides."""
    flat = torch.empty(batch * sum(widths), dtype=dtype)
    address, size = flat.data_ptr(), flat.element_size()
    pieces, places, at = [], [], 0
    for width in widths:
        pieces.append(flat.as_strided((batch, width), (width, 1), at))
        places += (address + at * size, width) if width else (0, 0)
        at += batch * width
    return pieces, places


def solve(problem: Problem, settings: Settings, keep_factor: bool) -> Point:
    """Solve every member; what the core does not certify as solved is left to the reference backend."""
    core = _core()
    assert isinstance(core, Core)
    call = _Call(problem, settings, keep_factor)
    batch, n, m, p = call.batch, problem.n, problem.m, problem.p
    lower, upper = n if problem.lb is not None else 0, n if problem.ub is not None else 0
    values, places = _pieces(problem.dtype, batch, (n, p, p, m, lower, upper))
    verdict = torch.empty((2, batch), dtype=torch.int32)
    residuals = torch.empty((3, batch), dtype=problem.dtype)
    size, at = residuals.element_size() * batch, residuals.data_ptr()
    places += (verdict.data_ptr(), 1, verdict.data_ptr() + 4 * batch, 1, at, 1, at + size, 1, at + 2 * size, 1)
    factor: tuple[Tensor, ...] = ()
    if batch:
        packed = call.pack(places + _NO_ADJOINT)
        if core.solve(packed):
            raise MemoryError(f"the compiled core ran out of memory on a problem with {n=}, {m=}, {p=}, {batch=}")
        if keep_factor:
            factor = (_adopt(core, *args.factor(packed)),)
    elif keep_factor:
        factor = (torch.empty(0, dtype=torch.uint8),)
    point = Point(*values, verdict[0], verdict[1], residuals[0], residuals[1], residuals[2], factor)
    if batch and int(verdict[0].amax()) != int(Status.SOLVED):
        _ask_reference(problem, settings, point, verdict[0].nonzero().flatten())
    return point


_NO_ADJOINT = [0] * (2 * 11)  # right-hand side, answer and factor


@functools.cache
def _block_type(core: Core, size: int) -> type[ctypes.Array[ctypes.c_char]]:
    """Memory of the core, given back when the last tensor that lies in it is gone."""

    def give_back(self: ctypes.Array[ctypes.c_char]) -> None:
        core.release(ctypes.addressof(self))

    return type("Block", (ctypes.c_char * size,), {"__del__": give_back})


def _adopt(core: Core, address: int, size: int) -> Tensor:
    return torch.frombuffer(_block_type(core, size).from_address(address), dtype=torch.uint8)


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
    call = _Call(problem, settings, bool(point.factor))
    given = [part.contiguous() for part in rhs]
    answer, places = _pieces(problem.dtype, call.batch, tuple(part.shape[-1] for part in given))
    if call.batch:
        tensors: list[int] = []
        for tensor in (*point[:-1], *given):
            rank = tensor.dim() - 1
            _place(tensors, call.keep, tensor, rank)
        # order of Adjoint is z, lam, nu, lam_lb, lam_ub: that of Args
        address = point.factor[0].data_ptr() if point.factor else 0
        if core.kkt_solve(call.pack([*tensors, *places, address, 0])):
            raise MemoryError("the compiled core ran out of memory in the backward pass")
    return Adjoint(*answer)
