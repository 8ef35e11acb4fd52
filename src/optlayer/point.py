"""The point of a batch: what a backend returns, and a Solution shows."""

from __future__ import annotations

import torch
from torch import Tensor

FIELDS = (
    "z", "s", "lam", "nu", "lam_lb", "lam_ub", "status", "iterations", "primal_residual", "dual_residual", "gap",
)


class Point:
    """Solution of a batch B; absent parts have no columns.

    Four tensors instead of eleven: a small solve costs less than it takes autograd to handle so many.

    Args:
        z: (B, n).
        rest: s, lam, nu, lam_lb and lam_ub side by side, (B, Σ widths).
        counts: status and iterations, int32, (B, 2).
        residuals: primal and dual residual and gap, (B, 3).
        widths: columns of the parts of `rest` (`Problem.widths`).
        factor: the backend's own, for `kkt_solve`; () when not kept.
        unsolved: number of members that are not solved, where it is known without reading `counts`.
    """

    __slots__ = ("counts", "factor", "residuals", "rest", "unsolved", "widths", "z")

    def __init__(
        self, z: Tensor, rest: Tensor, counts: Tensor, residuals: Tensor, widths: tuple[int, ...],
        factor: tuple[Tensor, ...] = (), unsolved: int | None = None,
    ) -> None:  # fmt: skip
        self.z, self.rest, self.counts, self.residuals = z, rest, counts, residuals
        self.widths, self.factor, self.unsolved = widths, factor, unsolved

    @classmethod
    def of(
        cls, z: Tensor, s: Tensor, lam: Tensor, nu: Tensor, lam_lb: Tensor, lam_ub: Tensor, status: Tensor,
        iterations: Tensor, primal_residual: Tensor, dual_residual: Tensor, gap: Tensor,
    ) -> Point:  # fmt: skip
        """The point of its fields."""
        parts = (s, lam, nu, lam_lb, lam_ub)
        z = z.data if z._is_view() else z  # autograd must not see what it is a part of
        counts = torch.stack([status, iterations], -1)
        residuals = torch.stack([primal_residual, dual_residual, gap], -1)
        return cls(z, torch.cat(parts, -1), counts, residuals, tuple(x.shape[-1] for x in parts))

    def _part(self, i: int) -> Tensor:
        return self.rest.narrow(-1, sum(self.widths[:i]), self.widths[i])

    s = property(lambda self: self._part(0))
    lam = property(lambda self: self._part(1))
    nu = property(lambda self: self._part(2))
    lam_lb = property(lambda self: self._part(3))
    lam_ub = property(lambda self: self._part(4))
    status = property(lambda self: self.counts[..., 0])
    iterations = property(lambda self: self.counts[..., 1])
    primal_residual = property(lambda self: self.residuals[..., 0])
    dual_residual = property(lambda self: self.residuals[..., 1])
    gap = property(lambda self: self.residuals[..., 2])

    def fields(self) -> tuple[Tensor, ...]:
        """All parts, in the order of FIELDS."""
        return tuple(getattr(self, name) for name in FIELDS)

    def tensors(self) -> tuple[Tensor, ...]:
        """What autograd must know of."""
        return (self.z, self.rest, self.counts, self.residuals, *self.factor)

    def select(self, members: Tensor) -> Point:
        """Some members, without factor."""
        return Point(self.z[members], self.rest[members], self.counts[members], self.residuals[members], self.widths)

    def take(self, members: Tensor | slice, other: Point) -> None:
        """Overwrite some members by those of another point; the factor stays."""
        for mine, theirs in zip(self.tensors()[:4], other.tensors()[:4], strict=True):
            mine[members] = theirs.to(mine.dtype)
