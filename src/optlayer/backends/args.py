"""Args: the struct of addresses, strides and sizes that the compiled kernels receive (mirror of kernels/args.h)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from optlayer.point import Point
from optlayer.problem import Diagonal, Problem

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
ROUGH = 7  # a status within the core: solved, but better can be hoped for
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


# ---- tensors and their places, for every compiled backend


def ranks(problem: Problem) -> tuple[int, ...]:
    """Dimensions of the eight tensors without the batch."""
    return _DIAGONAL if isinstance(problem.Q, Diagonal) else _DENSE


_DENSE, _DIAGONAL = (2, 1, 2, 1, 2, 1, 1, 1), (1, 1, 2, 1, 2, 1, 1, 1)


def place(out: list[int], keep: list[Tensor], tensor: Tensor | None, rank: int) -> None:
    """Append address and stride between members (0: shared); keep alive what had to be copied."""
    if tensor is None:
        out += (0, 0)
        return
    batched = tensor.dim() > rank
    if not tensor.is_contiguous():
        if batched and tensor.stride(0) == 0:
            tensor, batched = tensor[0], False  # an expanded tensor is a shared one
        if not (tensor[0] if batched and len(tensor) else tensor).is_contiguous():
            tensor = tensor.contiguous()
            keep.append(tensor)
    out += (tensor.data_ptr(), tensor.stride(0) if batched else 0)


def empty_point(problem: Problem, batch: int) -> Point:
    """A point to be filled by the kernels."""
    dtype, device, widths = problem.dtype, problem.device, problem.widths
    z, rest = empty(batch, problem.n, dtype, device), empty(batch, sum(widths), dtype, device)
    counts, residuals = empty(batch, 2, torch.int32, device), empty(batch, 3, dtype, device)
    return Point(z, rest, counts, residuals, widths)


def empty(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.empty, in two thirds of its time."""
    return torch.empty_strided((rows, columns), (columns, 1), dtype=dtype, device=device)


def place_point(keep: list[Tensor], point: Point) -> list[int]:
    """Addresses and strides of the parts of a point, from z to the gap."""
    tensors = point.tensors()[:4]
    if not all(x.is_contiguous() for x in tensors):
        tensors = tuple(x.contiguous() for x in tensors)
        keep += tensors
    z, rest, counts, residuals = tensors
    places = [z.data_ptr(), z.shape[1]]
    at, size, stride = rest.data_ptr(), rest.element_size(), rest.shape[1]
    for width in point.widths:
        places += (at if width else 0, stride)
        at += width * size
    at, first = counts.data_ptr(), residuals.data_ptr()
    places += (at, 2, at + 4, 2, first, 3, first + size, 3, first + 2 * size, 3)
    return places


def place_rows(keep: list[Tensor], tensors: Sequence[Tensor]) -> list[int]:
    """Addresses and strides of tensors (batch, width)."""
    places: list[int] = []
    for tensor in tensors:
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
            keep.append(tensor)
        width = tensor.shape[1]
        places += (tensor.data_ptr() if width else 0, width)
    return places
