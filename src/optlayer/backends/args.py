"""Args: the struct of addresses, strides and sizes that the compiled kernels receive (mirror of kernels/args.h)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

NUMBERS = (
    "n", "m", "p", "batch", "single", "diagonal", "method", "lanes", "threads", "max_iterations", "polish", "keep",
)  # int32 each, then `tolerance` as a double
TENSORS = (
    "Q", "q", "G", "h", "A", "b", "lb", "ub",
    "z", "s", "lam", "nu", "lam_lb", "lam_ub",
    "status", "iterations", "primal_residual", "dual_residual", "gap",
    "r_z", "r_lam", "r_nu", "r_lb", "r_ub",
    "v_z", "v_lam", "v_nu", "v_lb", "v_ub",
    "factor",
)  # address and stride between members (in elements; 0: shared) each
METHODS = ("auto", "schur", "normal", "diagonal", "null_space", "active")

_FORMAT = struct.Struct(f"={len(NUMBERS)}id{2 * len(TENSORS)}q")
SIZE = _FORMAT.size


def pack(numbers: Sequence[int], tolerance: float, tensors: Sequence[int]) -> ctypes.Array[ctypes.c_char]:
    """Args with `numbers` and address-stride pairs `tensors` in the order of NUMBERS and TENSORS."""
    buffer = ctypes.create_string_buffer(SIZE)
    _FORMAT.pack_into(buffer, 0, *numbers, tolerance, *tensors)
    return buffer


def number(buffer: ctypes.Array[ctypes.c_char], name: str) -> int:
    """Value of an integer field, as the kernels left it."""
    value: int = struct.unpack_from("=i", buffer, 4 * NUMBERS.index(name))[0]
    return value


def factor(buffer: ctypes.Array[ctypes.c_char]) -> tuple[int, int]:
    """Address and size of the block with the factors."""
    address, size = struct.unpack_from("=2q", buffer, SIZE - 16)
    return address, size
