"""Tensors and their addresses, for every compiled backend: the one place where an address is taken."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from optlayer import _torch
from optlayer.core.native import DATA_SLOTS, METHODS, NUMBERS, SIZE, SLOTS, TENSORS, Plan, factor, number, pack
from optlayer.core.structure import Structure
from optlayer.point import Point
from optlayer.problem import Problem

__all__ = [
    "METHODS", "NUMBERS", "SIZE", "SLOTS", "TENSORS", "address", "empty_point", "factor", "number", "pack",
    "place_data", "place_parts", "place_point", "place_rows",
]  # fmt: skip


# ---- tensors and their places, for every compiled backend


def address(x: Tensor) -> int:
    """Where the numbers of a plain dense tensor lie; 0 for none.

    Raises:
        TypeError: for a tensor that has no memory of its own: a tracer's, a wrapper's, one of the meta device.
    """
    try:
        at: int = x.data_ptr()
    except RuntimeError:
        at = 0
    if not at and x.numel():
        hint = "; is_grads_batched=True is torch's old vmap: use torch.func.jacrev, or torch.vmap"
        hint = hint if _torch.legacy_batched(x) else ""
        raise TypeError(f"a {type(x).__name__} on {x.device} has no memory of its own for the compiled core{hint}")
    return at


def _placed(x: Tensor, rank: int, keep: list[Tensor]) -> tuple[int, int]:
    """Address and stride between members (0: shared) of a tensor of a problem; `keep` keeps a copy alive."""
    if x.is_neg():  # a view that stands for −x, as of x.conj().imag
        x = x.resolve_neg()
        keep.append(x)
    batched = x.dim() > rank
    if not x.is_contiguous():
        if batched and x.stride(0) == 0:
            x, batched = x[0], False  # an expanded tensor is a shared one
        if not (x[0] if batched and len(x) else x).is_contiguous():
            x = x.contiguous()
            keep.append(x)
    return address(x), x.stride(0) if batched else 0


def place_data(keep: list[Tensor], problem: Problem) -> list[int]:
    """Addresses of the problem's tensors and strides between members (0: shared); keeps alive what had to be copied."""
    places: list[int] = []
    for tensor, rank in zip(problem.tensors(), problem.structure.ranks, strict=True):
        places += (0, 0) if tensor is None else _placed(tensor, rank, keep)
    return places


def fill_data(words: array[int], plan: Plan, problem: Problem, keep: list[Tensor]) -> None:
    """The same into the words of a plan."""
    for x, slot, rank, size in zip(problem.tensors(), DATA_SLOTS, problem.structure.ranks, plan.sizes):  # noqa: B905
        if x is not None:
            if x.is_contiguous() and not x.is_neg():
                words[slot] = address(x)
                if x.ndim > rank:
                    words[slot + 1] = size
            else:
                words[slot], words[slot + 1] = _placed(x, rank, keep)


def new_point(words: array[int], plan: Plan, structure: Structure) -> Point:
    """A point to be filled by the core: z in the shape that the user will see, and one block."""
    new, dtype, device = torch.empty_strided, structure.dtype, structure.device  # (torch.empty takes longer)
    z = new(*plan.z, dtype=dtype, device=device)
    block = new(*plan.block, dtype=dtype, device=device)
    words[_Z] = address(z)
    fill_parts(words, plan.block_slots, address(block))
    return Point(z, block, None, None, structure.widths)


def fill_point(words: array[int], plan: Plan, point: Point, keep: list[Tensor]) -> None:
    """Addresses of a point, which may come from another backend, into the words of a plan."""
    z, block = point.shaped, point.block
    if not point.packed:
        counts = point.counts.contiguous().view(block.dtype).reshape(len(block), -1)
        block = torch.cat([block, point.residuals.to(block), counts], -1)
        keep.append(block)
    if not (z.is_contiguous() and block.is_contiguous()):
        z, block = z.contiguous(), block.contiguous()
        keep += (z, block)
    words[_Z] = address(z)
    fill_parts(words, plan.block_slots, address(block))


_Z = SLOTS["z"]


def fill_parts(words: array[int], slots: Sequence[tuple[int, int]], at: int) -> None:
    """Addresses of parts that lie side by side from `at`."""
    for slot, offset in slots:
        words[slot] = at + offset


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
    """Addresses and strides of the parts of a point, from z to the gap; keeps them alive."""
    z, rest, counts, residuals = parts = [x.contiguous() for x in (point.z, point.rest, point.counts, point.residuals)]
    keep += parts
    status, first, size = address(counts), address(residuals), rest.element_size()
    return [
        address(z), z.shape[1], *place_parts(rest, point.widths), 0, 0,
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
    """Addresses and strides of tensors (batch, width); keeps them alive, for they may be copies of the caller's."""
    places: list[int] = []
    for tensor in tensors:
        if tensor.is_neg() or not tensor.is_contiguous():
            tensor = tensor.resolve_neg().contiguous()
        keep.append(tensor)
        width = tensor.shape[1]
        places += (address(tensor) if width else 0, width)
    return places
