"""Backend `cpu`: the compiled core, called through a plain C interface."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from optlayer import kkt
from optlayer.backends import args
from optlayer.backends.base import Adjoint, Point
from optlayer.problem import NAMES, Diagonal, Problem
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


class _Call:
    """Args of one problem: data and settings; the tensors of the answer are added to them."""

    __slots__ = ("batch", "data", "keep", "numbers", "tolerance")

    def __init__(self, problem: Problem, settings: Settings, keep_factor: bool, rounded: bool = False) -> None:
        Q, q, G, h, A, b, lb, ub = problem.tensors()
        diagonal = isinstance(problem.Q, Diagonal)
        single = problem.dtype == torch.float32
        self.keep: list[Tensor] = []
        self.data: list[int] = []
        for tensor, rank in (
            (Q, 1 if diagonal else 2), (q, 1), (G, 2), (h, 1), (A, 2), (b, 1), (lb, 1), (ub, 1),
        ):
            args.place(self.data, self.keep, tensor, rank)
        self.batch = 1 if problem.batch is None else problem.batch
        self.numbers = (
            problem.n, problem.m, problem.p, self.batch, 2 if rounded else single, diagonal, METHOD, LANES,
            torch.get_num_threads(), settings.max_iterations, settings.polish, keep_factor,
        )
        self.tolerance = settings.tolerance or (1e-5 if single else 1e-9)

    def pack(self, tensors: list[int]) -> ctypes.Array[ctypes.c_char]:
        return args.pack(self.numbers, self.tolerance, self.data + tensors)


# What a test may force: an elimination (args.METHODS) and the lanes (1: one problem at a time; more: one in each lane).
METHOD, LANES = 0, 0


def solve(problem: Problem, settings: Settings, keep_factor: bool) -> Point:
    """Solve every member.

    What float32 does not certify as solved is solved in float64, and what that does not, by the reference backend.
    """
    point, unsolved = _solve(problem, settings, keep_factor)
    if unsolved and problem.dtype == torch.float32:
        members = point.status.nonzero().flatten()
        for mine, theirs in zip(point[:-1], _in_double(problem, members, settings), strict=True):
            mine[members] = theirs
    if unsolved and len(members := point.status.nonzero().flatten()):
        _ask_reference(problem, settings, point, members)
    return point


def _solve(problem: Problem, settings: Settings, keep_factor: bool, rounded: bool = False) -> tuple[Point, int]:
    """What the core alone makes of it, and the number of members that it has not solved.

    `rounded`: the data were float32's, whose rounding may turn a semidefinite Q slightly indefinite.
    """
    core = _core()
    assert isinstance(core, Core)
    call = _Call(problem, settings, keep_factor, rounded)
    batch = call.batch
    values, places = args.pieces(problem.dtype, problem.device, batch, args.widths(problem), 3)
    verdict = torch.empty((2, batch), dtype=torch.int32)
    status, iterations = verdict.unbind()
    at = verdict.data_ptr()
    places[12:12] = (at, 1, at + 4 * batch, 1)
    factor: tuple[Tensor, ...] = ()
    unsolved = 0
    if batch:
        packed = call.pack(places + _NO_ADJOINT)
        unsolved = core.solve(packed)
        if unsolved < 0:
            raise MemoryError(
                f"the compiled core ran out of memory on a batch of {batch} with "
                f"n={problem.n}, m={problem.m}, p={problem.p}"
            )
        if keep_factor:
            factor = (_adopt(core, *args.factor(packed)),)
    elif keep_factor:
        factor = (torch.empty(0, dtype=torch.uint8),)
    z, s, lam, nu, lam_lb, lam_ub, primal, dual, gap = values
    return Point(z, s, lam, nu, lam_lb, lam_ub, status, iterations, primal, dual, gap, factor), unsolved


def _in_double(problem: Problem, members: Tensor, settings: Settings) -> tuple[Tensor, ...]:
    """Some members of a float32 problem, solved in float64; rounded, and judged after that."""
    doubled = _doubled(problem, members)
    exact, unsolved = _solve(doubled, settings, False, rounded=True)
    if unsolved and settings.tolerance is None:  # two digits beyond float32's tolerance are enough
        left = exact.status.nonzero().flatten()
        again, _ = _solve(doubled.select(left), replace(settings, tolerance=1e-7), False, rounded=True)
        for mine, theirs in zip(exact[:-1], again[:-1], strict=True):
            mine[left] = theirs
    found = [x.to(problem.dtype) if x.is_floating_point() else x for x in exact[:-1]]
    z, s, lam, nu, lam_lb, lam_ub, status, iterations, *_ = found
    whole = [None if x is None else x.expand(len(members), *x.shape[-doubled.rank(name) :])
             for name, x in zip(NAMES, doubled.tensors(), strict=True)]
    point = (x.double() for x in (z, lam, nu, lam_lb, lam_ub))
    *judged, relative = kkt.residuals(doubled.replace(whole, len(members)), *point)
    lost = (status == int(Status.SOLVED)) & ~(relative <= (settings.tolerance or 1e-5))
    status = status.masked_fill(lost, int(Status.NUMERICAL_ERROR))
    return (z, s, lam, nu, lam_lb, lam_ub, status, iterations, *(x.to(problem.dtype) for x in judged))


def _doubled(problem: Problem, members: Tensor) -> Problem:
    """Some members in float64."""
    part = problem.select(members)
    tensors = [x if x is None else x.double() for x in part.tensors()]
    return replace(part.replace(tensors, part.batch), dtype=torch.float64)


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
    batch, widths = call.batch, args.widths(problem)
    sides = (widths[0], *widths[2:])  # in the order of Adjoint, which is that of Args
    answer, places = args.pieces(problem.dtype, problem.device, batch, sides)
    if batch:
        tensors: list[int] = []
        args.place_rows(tensors, call.keep, point[:7], (*widths, 1))
        tensors += _NO_VERDICT
        args.place_rows(tensors, call.keep, rhs, sides)
        factor = point.factor[0].data_ptr() if point.factor else 0
        left = core.kkt_solve(call.pack([*tensors, *places, factor, 0]))
        if left < 0:
            raise MemoryError("the compiled core ran out of memory in the backward pass")
        if left:
            members = answer[0][:, 0].isnan().nonzero().flatten()
            rest = _differentiate_rest(problem, settings, point, rhs, members)
            for mine, theirs in zip(answer, rest, strict=True):
                mine[members] = theirs.to(mine.dtype)
    return Adjoint(*answer)


def _differentiate_rest(problem: Problem, settings: Settings, point: Point, rhs: Adjoint, members: Tensor) -> Adjoint:
    """The derivative where the core has none: in float64 if it was float32, else (or then) by the reference backend."""
    from optlayer.backends import reference

    def by_reference(those: Tensor) -> Adjoint:
        at = Point._make([*(x[those] for x in point[:-1]), ()])
        return reference.kkt_solve(problem.select(those), settings, at, Adjoint(*(x[those] for x in rhs)))

    if problem.dtype != torch.float32:
        return by_reference(members)
    doubled = _doubled(problem, members)
    again, unsolved = _solve(doubled, settings, True, rounded=True)
    answer = kkt_solve(doubled, settings, again, Adjoint(*(x[members].double() for x in rhs)))
    if unsolved:
        lost = again.status.nonzero().flatten()
        for mine, theirs in zip(answer, by_reference(members[lost]), strict=True):
            mine[lost] = theirs.double()
    return answer


_NO_VERDICT = [0] * (2 * 4)  # iterations and residuals
