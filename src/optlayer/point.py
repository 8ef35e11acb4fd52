"""The point of a batch: what a backend returns, and a Solution shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optlayer import _torch
from optlayer.core.status import Status

FIELDS = (
    "z", "s", "lam", "nu", "lam_lb", "lam_ub", "status", "iterations", "primal_residual", "dual_residual", "gap",
)


class Point:
    """Solution of a batch B; absent parts have no columns.

    Four tensors instead of eleven: a small solve costs less than it takes autograd to handle so many. Or even two: the
    block that holds s to lam_ub may hold residuals and counts behind them in each row.

    Args:
        z: (B, n), or with the batch dimensions of the results in place of B.
        block: s, lam, nu, lam_lb and lam_ub side by side, (B, Σ widths); without `counts`, residuals and counts behind
            them, the counts in the room of one or two numbers.
        counts: status and iterations, int32, (B, 2).
        residuals: primal and dual residual and gap, (B, 3).
        widths: columns of the parts of `block` (`Structure.widths`).
        factor: the backend's own, for `kkt_solve`: tensors; () when not kept.
        unsolved: number of members that are not solved, where it is known without reading `counts`.
    """

    __slots__ = ("_counts", "_residuals", "block", "factor", "shaped", "unsolved", "widths")

    def __init__(
        self, z: Tensor, block: Tensor, counts: Tensor | None, residuals: Tensor | None, widths: tuple[int, ...],
        factor: tuple[Any, ...] = (), unsolved: int | None = None,
    ) -> None:  # fmt: skip
        self.shaped, self.block, self._counts, self._residuals = z, block, counts, residuals
        self.widths, self.factor, self.unsolved = widths, factor, unsolved

    @classmethod
    def of(
        cls, z: Tensor, s: Tensor, lam: Tensor, nu: Tensor, lam_lb: Tensor, lam_ub: Tensor, status: Tensor,
        iterations: Tensor, primal_residual: Tensor, dual_residual: Tensor, gap: Tensor,
    ) -> Point:  # fmt: skip
        """The point of its fields."""
        parts = (s, lam, nu, lam_lb, lam_ub)
        z = z.data if _torch.is_view(z) else z  # autograd must not see what it is a part of
        counts = torch.stack([status, iterations], -1)
        residuals = torch.stack([primal_residual, dual_residual, gap], -1)
        return cls(z, torch.cat(parts, -1), counts, residuals, tuple(x.shape[-1] for x in parts))

    @property
    def z(self) -> Tensor:
        """(B, n)."""
        z = self.shaped
        return z if z.dim() == 2 else z.reshape(-1, z.shape[-1])

    @property
    def packed(self) -> bool:
        """Whether residuals and counts are in the block."""
        return self._counts is None

    @property
    def rest(self) -> Tensor:
        """s, lam, nu, lam_lb and lam_ub side by side, (B, Σ widths)."""
        return self.block.narrow(-1, 0, sum(self.widths)) if self.packed else self.block

    @property
    def counts(self) -> Tensor:
        """Status and iterations, int32, (B, 2)."""
        if self._counts is None:
            return self.block.detach()[:, sum(self.widths) + 3 :].view(torch.int32)
        return self._counts

    @property
    def residuals(self) -> Tensor:
        """Primal and dual residual and gap, (B, 3)."""
        if self._residuals is None:
            return self.block.detach().narrow(-1, sum(self.widths), 3)
        return self._residuals

    def others(self) -> tuple[Any, ...]:
        """The arguments of Point after z and the block."""
        return self._counts, self._residuals, self.widths, self.factor, self.unsolved

    def part(self, i: int) -> Tensor:
        """Part i of `rest`, in the order of core.structure.PARTS."""
        return self.block.narrow(-1, sum(self.widths[:i]), self.widths[i])

    s = property(lambda self: self.part(0))
    lam = property(lambda self: self.part(1))
    nu = property(lambda self: self.part(2))
    lam_lb = property(lambda self: self.part(3))
    lam_ub = property(lambda self: self.part(4))
    lam_lower = property(lambda self: self.part(5) if len(self.widths) > 5 else self.block[:, :0])
    status = property(lambda self: self.counts[..., 0])
    iterations = property(lambda self: self.counts[..., 1])
    primal_residual = property(lambda self: self.residuals[..., 0])
    dual_residual = property(lambda self: self.residuals[..., 1])
    gap = property(lambda self: self.residuals[..., 2])

    @property
    def answered(self) -> Tensor:
        """Which members have a point with a derivative, SOLVED or CLOSEST, bool, (B,)."""
        status = self.status
        return (status == int(Status.SOLVED)) | (status == int(Status.CLOSEST))

    @property
    def left(self) -> Tensor:
        """Which members have no verdict, bool, (B,)."""
        status = self.status
        return (status == int(Status.MAX_ITERATIONS)) | (status == int(Status.NUMERICAL_ERROR))

    def fields(self) -> tuple[Tensor, ...]:
        """The parts named in FIELDS, which leave out lam_lower."""
        return tuple(getattr(self, name) for name in FIELDS)

    def tensors(self) -> tuple[Tensor, ...]:
        """What autograd must know of where it sees everything; no views."""
        values = (self.z, self.rest, self.counts, self.residuals)
        return (*((x.clone() for x in values) if self.packed else values), *self.factor)

    def select(self, members: Tensor) -> Point:
        """Some members, without factor."""
        return Point(self.z[members], self.rest[members], self.counts[members], self.residuals[members], self.widths)

    def take(self, members: Tensor | slice, other: Point) -> None:
        """Overwrite some members by those of another point; the factor stays."""
        self.z[members] = other.z.to(self.z)
        self.rest[members] = other.rest.to(self.z)
        self.counts[members] = other.counts
        self.residuals[members] = other.residuals.to(self.z)
