"""Args: the struct of addresses, strides and sizes that the compiled kernels receive (mirror of kernels/args.h)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from optlayer.problem import Problem

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


# ---- tensors and their places, for every compiled backend


def place(out: list[int], keep: list[Tensor], tensor: Tensor | None, rank: int) -> None:
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


def widths(problem: Problem) -> tuple[int, ...]:
    """Columns of z, s, lam, nu, lam_lb and lam_ub."""
    n, p = problem.n, problem.p
    return (n, p, p, problem.m, n if problem.lb is not None else 0, n if problem.ub is not None else 0)


def pieces(
    dtype: torch.dtype, device: torch.device, batch: int, widths: tuple[int, ...], vectors: int = 0
) -> tuple[list[Tensor], list[int]]:
    """Tensors (batch, width), then vectors (batch), in one allocation, with their addresses and strides."""
    flat = torch.empty(batch * (sum(widths) + vectors), dtype=dtype, device=device)
    address, size = flat.data_ptr(), flat.element_size()
    pieces: list[Tensor] = []
    places: list[int] = []
    at = 0
    for width in widths:
        pieces.append(flat.as_strided((batch, width), (width, 1), at))
        places += (address + at * size if width else 0, width)
        at += batch * width
    for _ in range(vectors):
        pieces.append(flat.as_strided((batch,), (1,), at))
        places += (address + at * size, 1)
        at += batch
    return pieces, places


def place_rows(out: list[int], keep: list[Tensor], tensors: Sequence[Tensor], widths: tuple[int, ...]) -> None:
    """Append addresses and strides of tensors (batch, width)."""
    for tensor, width in zip(tensors, widths, strict=True):
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
            keep.append(tensor)
        out += (tensor.data_ptr() if width else 0, width)
