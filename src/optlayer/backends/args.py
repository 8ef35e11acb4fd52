"""Tensors and their addresses, for every compiled backend: the one place where an address is taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optlayer.core.native import METHODS, NUMBERS, ROUGH, SIZE, TENSORS, factor, number, pack
from optlayer.point import Point
from optlayer.problem import Problem

__all__ = [
    "METHODS", "NUMBERS", "ROUGH", "SIZE", "TENSORS", "address", "empty_point", "factor", "number", "pack",
    "place_data", "place_parts", "place_point", "place_rows",
]  # fmt: skip


# ---- tensors and their places, for every compiled backend


def address(x: Tensor) -> int:
    """Where the numbers of a plain dense tensor lie; 0 for none.

    Raises:
        TypeError: for a tensor that has no memory of its own: a tracer's, a wrapper's, one of the meta device.
    """
    at: int = x.data_ptr()
    if not at and x.numel():
        raise TypeError(f"a {type(x).__name__} on {x.device} has no memory of its own for the compiled core to read")
    return at


def place_data(keep: list[Tensor], problem: Problem) -> list[int]:
    """Addresses of the problem's tensors and strides between members (0: shared); keeps alive what had to be copied."""
    places: list[int] = []
    for tensor, rank in zip(problem.tensors(), problem.structure.ranks, strict=True):
        if tensor is None:
            places += (0, 0)
            continue
        batched = tensor.dim() > rank
        if tensor.is_neg():  # a view that stands for −x, as of x.conj().imag
            tensor = tensor.resolve_neg()
            keep.append(tensor)
        if not tensor.is_contiguous():
            if batched and tensor.stride(0) == 0:
                tensor, batched = tensor[0], False  # an expanded tensor is a shared one
            if not (tensor[0] if batched and len(tensor) else tensor).is_contiguous():
                tensor = tensor.contiguous()
                keep.append(tensor)
        places += (address(tensor), tensor.stride(0) if batched else 0)
    return places


def empty_point(problem: Problem, batch: int) -> Point:
    """A point to be filled by the kernels."""
    structure = problem.structure
    dtype, device, widths, n = structure.dtype, structure.device, structure.widths, structure.n
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
    status, first, size = address(counts), address(residuals), rest.element_size()
    return [
        address(z), z.shape[1], *place_parts(rest, point.widths),
        status, 2, status + 4, 2, first, 3, first + size, 3, first + 2 * size, 3,
    ]  # fmt: skip


def place_parts(rows: Tensor, widths: Sequence[int]) -> list[int]:
    """Addresses and strides of parts that lie side by side in contiguous rows; 0 for those without columns."""
    places: list[int] = []
    at, size, stride = address(rows), rows.element_size(), rows.shape[1]
    for width in widths:
        places += (at, stride) if width else (0, 0)
        at += width * size
    return places


def place_rows(keep: list[Tensor], tensors: Sequence[Tensor]) -> list[int]:
    """Addresses and strides of tensors (batch, width)."""
    places: list[int] = []
    for tensor in tensors:
        if tensor.is_neg() or not tensor.is_contiguous():
            tensor = tensor.resolve_neg().contiguous()
            keep.append(tensor)
        width = tensor.shape[1]
        places += (address(tensor) if width else 0, width)
    return places
