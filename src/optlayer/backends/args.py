"""Args: the struct of addresses, strides and sizes that the compiled kernels receive (mirror of kernels/args.h)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from optlayer.point import Point
from optlayer.problem import Problem

NUMBERS = (
    "n", "m", "p", "batch", "single", "diagonal", "method", "lanes", "threads", "max_iterations", "polish", "keep",
)  # int32 each, then `tolerance` and `smoothing` as doubles
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


# ---- tensors and their places, for every compiled backend


def place_data(keep: list[Tensor], problem: Problem) -> list[int]:
    """Addresses of the problem's tensors and strides between members (0: shared); keeps alive what had to be copied."""
    places: list[int] = []
    for tensor, rank in zip(problem.tensors(), problem.form.ranks, strict=True):
        if tensor is None:
            places += (0, 0)
            continue
        batched = tensor.dim() > rank
        if not tensor.is_contiguous():
            if batched and tensor.stride(0) == 0:
                tensor, batched = tensor[0], False  # an expanded tensor is a shared one
            if not (tensor[0] if batched and len(tensor) else tensor).is_contiguous():
                tensor = tensor.contiguous()
                keep.append(tensor)
        places += (tensor.data_ptr(), tensor.stride(0) if batched else 0)
    return places


def empty_point(problem: Problem, batch: int) -> Point:
    """A point to be filled by the kernels."""
    form = problem.form
    dtype, device, widths, n = form.dtype, form.device, form.widths, form.n
    columns, empty = sum(widths), torch.empty_strided  # (torch.empty takes half as long again)
    return Point(
        empty((batch, n), (n, 1), dtype=dtype, device=device),
        empty((batch, columns), (columns, 1), dtype=dtype, device=device),
        empty((batch, 2), (2, 1), dtype=torch.int32, device=device),
        empty((batch, 3), (3, 1), dtype=dtype, device=device),
        widths,
    )


def place_point(keep: list[Tensor], point: Point) -> list[int]:
    """Addresses and strides of the parts of a point, from z to the gap."""
    z, rest, counts, residuals = point.z, point.rest, point.counts, point.residuals
    if not (z.is_contiguous() and rest.is_contiguous() and counts.is_contiguous() and residuals.is_contiguous()):
        z, rest, counts, residuals = copies = [x.contiguous() for x in (z, rest, counts, residuals)]
        keep += copies
    status, first, size = counts.data_ptr(), residuals.data_ptr(), rest.element_size()
    return [
        z.data_ptr(), z.shape[1], *place_parts(rest, point.widths),
        status, 2, status + 4, 2, first, 3, first + size, 3, first + 2 * size, 3,
    ]  # fmt: skip


def place_parts(rows: Tensor, widths: Sequence[int]) -> list[int]:
    """Addresses and strides of parts that lie side by side in contiguous rows; 0 for those without columns."""
    places: list[int] = []
    at, size, stride = rows.data_ptr(), rows.element_size(), rows.shape[1]
    for width in widths:
        places += (at, stride) if width else (0, 0)
        at += width * size
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
