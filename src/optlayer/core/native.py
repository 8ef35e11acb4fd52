"""The border to the compiled core: its library, and Args, the struct of addresses, strides and sizes (kernels/args.h).

Nothing here knows what a tensor is; whoever calls brings addresses.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optlayer.core.settings import Settings, tolerance_of
from optlayer.core.structure import NAMES, PARTS, Structure

NUMBERS = (
    "n", "m", "p", "batch", "single", "diagonal", "method", "lanes", "threads", "max_iterations", "polish", "keep",
    "closest", "given",
)  # int32 each, then `tolerance` and `smoothing` as doubles
TENSORS = (
    "Q", "q", "G", "h", "A", "b", "lb", "ub", "h_lower",
    "z", "s", "lam", "nu", "lam_lb", "lam_ub", "lam_lower",
    "status", "iterations", "primal_residual", "dual_residual", "gap",
    "r_z", "r_lam", "r_nu", "r_lb", "r_ub", "r_lower",
    "v_z", "v_lam", "v_nu", "v_lb", "v_ub", "v_lower", "v_least",
    "factor",
)  # address and stride between members (in elements; 0: shared) each
ADJOINT = ("v_z", "v_lam", "v_nu", "v_lb", "v_ub")
_INTERRUPTED = -2
METHODS = ("auto", "schur", "normal", "diagonal", "null_space", "active")

_FORMAT = struct.Struct(f"={len(NUMBERS)}i2d{2 * len(TENSORS)}q")
SIZE = _FORMAT.size
_Buffer = ctypes.c_char * SIZE


def pack(
    numbers: Sequence[int], tolerance: float, tensors: Sequence[int], smoothing: float = 0.0
) -> ctypes.Array[ctypes.c_char]:
    """Args with `numbers` and address-stride pairs `tensors` in the order of NUMBERS and TENSORS."""
    buffer = _Buffer()
    _FORMAT.pack_into(buffer, 0, *numbers, tolerance, smoothing, *tensors)
    return buffer


def number(buffer: ctypes.Array[ctypes.c_char], name: str) -> int:
    """Value of an integer field, as the kernels left it."""
    value: int = struct.unpack_from("=i", buffer, 4 * NUMBERS.index(name))[0]
    return value


def factor(buffer: ctypes.Array[ctypes.c_char]) -> tuple[int, int]:
    """Address and size of the block with the factors."""
    address, size = struct.unpack_from("=2q", buffer, SIZE - 16)
    return address, size


def run(function: Callable[..., int], structure: Structure, *args: Any) -> int:
    """What a function of the core returns. After Ctrl-C, Python's own handler runs between two calls, and raises."""
    while (left := function(*args)) == _INTERRUPTED:
        pass
    if left < 0:
        raise MemoryError(
            f"the compiled core ran out of memory on a batch of {structure.batch} with "
            f"n={structure.n}, m={structure.m}, p={structure.p}"
        )
    return left


SLOTS = {name: SIZE // 8 - 2 * (len(TENSORS) - i) for i, name in enumerate(TENSORS)}
"""Where the address of a tensor is in Args, counted in words of eight bytes; its stride is in the next word."""
DATA_SLOTS = tuple(SLOTS[name] for name in NAMES)


class Plan:
    """Args of one structure, settings and number of threads: what does not change from call to call is in its place.

    A call copies `words` and fills in addresses (and the strides of batched data).

    Args:
        structure, settings: of the problem, how exactly.
        single: whether its numbers have four bytes.
        numbers: method, lanes, threads, keep of Args.
        smoothing: 0: the solution itself.

    Attributes:
        words: Args.
        z: shape and strides of z.
        block: shape and strides of the parts beside it, with the residuals and the counts (two int32) behind them, and
            (slot, offset in bytes) for each.
        v: numbers in an adjoint, and (slot, offset) for each of its parts.
        sizes: numbers in a member of each tensor of the problem.
    """

    __slots__ = ("block", "block_slots", "settings", "sizes", "v", "v_slots", "words", "z")

    def __init__(
        self, structure: Structure, settings: Settings, single: bool, numbers: tuple[int, int, int, bool],
        smoothing: float,
    ) -> None:  # fmt: skip
        n, m, p, batch, widths = structure.n, structure.m, structure.p, structure.members, structure.widths
        method, lanes, threads, keep = numbers
        self.settings = settings  # kept alive: a call finds its plan by the identity of the settings
        tolerance = tolerance_of(settings, single)
        sizes = (n, m, p, batch, single, structure.diagonal, method, lanes, threads)
        head = (*sizes, settings.max_iterations, settings.polish, keep, settings.infeasible == "closest", 0)
        self.words = array("q", bytes(pack(head, tolerance, [0] * 2 * len(TENSORS), smoothing)))
        size, columns = 4 if single else 8, sum(widths)
        self.z = (*structure.shape, n), _contiguous((*structure.shape, n))
        row, residuals = columns + 3 + 8 // size, ("primal_residual", "dual_residual", "gap")
        self.block = (batch, row), (row, 1)
        names = (*PARTS[: len(widths)], *residuals)
        self.block_slots = self._parts(names, (*widths, 1, 1, 1), row, size)
        self.block_slots += [(SLOTS["status"], (columns + 3) * size), (SLOTS["iterations"], (columns + 3) * size + 4)]
        self._strides(("z",), n)
        self._strides(("status", "iterations"), row * size // 4)
        names, parts = ADJOINT, structure.adjoint_widths
        if structure.two_sided:
            names, parts = (names[0], names[1], "v_lower", *names[2:]), (n, p, p, *parts[2:])
        self.v = batch * sum(parts)
        self.v_slots = self._parts(names, parts, sum(parts), size)
        inner = {"n": n, "m": m, "p": p}
        self.sizes = [math.prod(inner[letter] for letter in form) for form in structure.forms]

    def _strides(self, names: Sequence[str], stride: int) -> None:
        for name in names:
            self.words[SLOTS[name] + 1] = stride

    def _parts(self, names: Sequence[str], widths: Sequence[int], row: int, size: int) -> list[tuple[int, int]]:
        """Slots and offsets of parts that lie side by side in rows, but for those without columns."""
        found, at = [], 0
        for name, width in zip(names, widths, strict=True):
            if width:
                found.append((SLOTS[name], at * size))
                self._strides((name,), row)
            at += width
        return found


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.insert(0, step)
        step *= max(extent, 1)
    return tuple(strides)


# --- the library -----------------------------------------------------------------------------------------------------

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
VARIANTS = ("avx512", "avx2", "baseline")
"""Instruction sets that the core is compiled for, best first."""
FORCE = "OPTLAYER_CPU"
"""The environment variable that names one of them."""


class Core:
    """The library for the best of some instruction sets that is installed, and its functions.

    Args:
        variants: what this processor can run, best first; the environment variable OPTLAYER_CPU overrides it.

    Raises:
        OSError: if there is none; the message says where it was sought.
        ValueError: if OPTLAYER_CPU names what does not exist.
    """

    def __init__(self, variants: Sequence[str]) -> None:
        folders = [Path(__file__).resolve().parent.parent / "lib", *_installed()]
        wanted = os.environ.get(FORCE)
        there = [x for x in VARIANTS if any((folder / f"core_{x}{_SUFFIX}").exists() for folder in folders)]
        if wanted and wanted not in there:
            raise ValueError(f"{FORCE}={wanted}: there is no such core; installed are {', '.join(there) or 'none'}")
        for variant in [wanted] if wanted else variants:
            for folder in folders:
                path = folder / f"core_{variant}{_SUFFIX}"
                if path.exists():
                    self.variant, self.path = variant, path
                    self._load()
                    return
        tried = ", ".join(dict.fromkeys(map(str, folders)))
        raise OSError(
            f"no compiled core for {'/'.join(variants)} in {tried}: "
            "optlayer was installed without a C++ compiler; install one and reinstall"
        )

    def _load(self) -> None:
        library = ctypes.CDLL(str(self.path))  # calls release the GIL
        library.optlayer_args_size.restype = ctypes.c_int64
        for call in (library.optlayer_solve, library.optlayer_kkt_solve):
            call.argtypes = [ctypes.c_void_p]
        for call in (library.optlayer_pullback, library.optlayer_products):
            call.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        address, bytes_ = ctypes.c_void_p, ctypes.c_char_p
        library.optlayer_sparse_plan.argtypes, library.optlayer_sparse_plan.restype = [address], address
        library.optlayer_sparse_free.argtypes, library.optlayer_sparse_free.restype = [address], None
        library.optlayer_sparse_cost.argtypes, library.optlayer_sparse_cost.restype = [address, address], None
        for call in (library.optlayer_sparse_solve, library.optlayer_sparse_kkt_solve):
            call.argtypes = [address, bytes_]
        library.optlayer_sparse_pullback.argtypes = [address, bytes_, bytes_]
        library.optlayer_take.argtypes, library.optlayer_take.restype = [ctypes.c_int64], ctypes.c_void_p
        library.optlayer_release.argtypes = [ctypes.c_void_p]
        library.optlayer_release.restype = None
        if library.optlayer_args_size() != SIZE:
            raise OSError(
                f"{self.path} is of another version: its Args has {library.optlayer_args_size()} bytes, not {SIZE}"
            )
        self.solve = library.optlayer_solve
        self.kkt_solve = library.optlayer_kkt_solve
        self.pullback = library.optlayer_pullback
        self.products = library.optlayer_products
        self.sparse_plan, self.sparse_free = library.optlayer_sparse_plan, library.optlayer_sparse_free
        self.sparse_cost = library.optlayer_sparse_cost
        self.sparse_solve, self.sparse_kkt_solve = library.optlayer_sparse_solve, library.optlayer_sparse_kkt_solve
        self.sparse_pullback = library.optlayer_sparse_pullback
        self.take = library.optlayer_take
        self.release = library.optlayer_release


def _installed() -> list[Path]:
    """lib/ of an editable install, whose libraries lie in site-packages."""
    return [Path(folder) / "optlayer" / "lib" for folder in sys.path if folder.endswith("site-packages")]
