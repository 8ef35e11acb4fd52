"""A quadratic program with absolute values, positive parts and maxima, written term by term."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..matrices import Diagonal
from ..solution import Solution
from ..solve import Options, solve

__all__ = ["Builder"]


class Builder:
    """A quadratic program to which piecewise-linear terms are added, one by one.

        minimise ½ zᵀQz + qᵀz + Σ terms  subject to  A z = b, h_lower ≤ G z ≤ h, lb ≤ z ≤ ub, and limits

    Each term brings variables t of its own, with rows that keep them above what they stand for: `t ≥ |F z − g|` is
    `F z − t ≤ g` and `−F z − t ≤ −g`. Where a term's weight is positive, t is equal to it at the solution, and the
    answer is that of the program with the term. F, g and the weights may have leading batch dimensions, and are
    differentiated like everything else.

    Args:
        Q, q, G, h, A, b, lb, ub, h_lower: tensors as in `optlayer.solve`; Q is a tensor or a `Diagonal`.

    Every method returns the builder itself, so that terms can be chained.

    Source: Boyd and Vandenberghe, Convex Optimization, 2004, §4.1.3 and §6.1.1.
    """

    def __init__(
        self, Q: Tensor | Diagonal, q: Tensor, G: Tensor | None = None, h: Tensor | None = None,
        A: Tensor | None = None, b: Tensor | None = None, lb: Tensor | None = None, ub: Tensor | None = None,
        *, h_lower: Tensor | None = None,
    ) -> None:
        if not isinstance(Q, (Tensor, Diagonal)):
            raise TypeError(f"Q is a tensor or a Diagonal here, not {type(Q).__name__}")
        self.variables = q.shape[-1]
        self.Q, self.q, self.A, self.b, self.lb, self.ub = Q, q, A, b, lb, ub
        self.G, self.h, self.h_lower = G, h, h_lower
        if G is not None and h is None:
            self.h = q.new_full((G.shape[-2],), torch.inf)

    def add_abs(self, weight: float | Tensor = 1.0, F: Tensor | None = None, g: Tensor | None = None) -> Builder:
        """Add `Σᵢ weightᵢ |F z − g|ᵢ`, a weighted 1-norm; F is the identity and g zero by default.

        Args:
            weight: a number or `(…, k)`, positive.
            F: `(…, k, n)`.
            g: `(…, k)`.
        """
        F, g = self._affine(F, g)
        t = self._new(g.shape[-1], weight)
        self._rows(F, -t, g)
        self._rows(-F, -t, -g)
        return self

    def add_pos(self, weight: float | Tensor = 1.0, F: Tensor | None = None, g: Tensor | None = None) -> Builder:
        """Add `Σᵢ weightᵢ max(F z − g, 0)ᵢ`: violation at a price, or a hinge loss. Arguments as for `add_abs`."""
        F, g = self._affine(F, g)
        self._rows(F, -self._new(g.shape[-1], weight, least=0.0), g)
        return self

    def add_max(self, weight: float | Tensor = 1.0, F: Tensor | None = None, g: Tensor | None = None) -> Builder:
        """Add `weight · maxᵢ (F z − g)ᵢ`; weight is a number or `(…, 1)`, the rest as for `add_abs`."""
        F, g = self._affine(F, g)
        t = self._new(1, weight)
        self._rows(F, -t.expand(g.shape[-1], -1), g)
        return self

    def limit_abs(
        self, radius: float | Tensor, F: Tensor | None = None, g: Tensor | None = None, weight: float | Tensor = 0.0
    ) -> Builder:
        """Demand `Σᵢ |F z − g|ᵢ ≤ radius`, a number or `(…, 1)`; the rest as for `add_abs`, weight 0 by default."""
        F, g = self._affine(F, g)
        t = self._new(g.shape[-1], weight)
        self._rows(F, -t, g)
        self._rows(-F, -t, -g)
        self._rows(self.q.new_zeros(1, self.variables), t.sum(0, keepdim=True), self._like(radius, 1))
        return self

    def solution(self, **options: Unpack[Options]) -> Solution:
        """The Solution of the whole program: its z begins with the n variables, then come those of the terms.

        Args:
            options: `settings`, `backend`, `check`, `names` for `optlayer.solve`.
        """
        sides = (self.G, self.h, self.A, self.b, self.lb, self.ub)
        return solve(self.Q, self.q, *sides, h_lower=self.h_lower, **options)

    def solve(self, **options: Unpack[Options]) -> Tensor:
        """The minimiser z `(…, n)`; options as for `solution`."""
        return self.solution(**options).z[..., : self.variables]

    def add_rows(self, G: Tensor, h: Tensor, h_lower: Tensor | None = None) -> Builder:
        """Demand `h_lower ≤ G z ≤ h`, G `(…, k, n)`, h and h_lower `(…, k)`."""
        G, h = self._affine(G, h)
        new = self.q.new_zeros(h.shape[-1], self.q.shape[-1] - self.variables)
        self._rows(G, new, h, None if h_lower is None else self._affine(G, h_lower)[1])
        return self

    # --- what the terms are made of

    def _affine(self, F: Tensor | None, g: Tensor | None) -> tuple[Tensor, Tensor]:
        """F (…, k, n) and g (…, k)."""
        n = self.variables
        F = torch.eye(n).to(self.q) if F is None else F
        if F.dim() < 2 or F.shape[-1] != n:
            raise ValueError(f"F has shape {tuple(F.shape)}, and must be (…, k, n) with n = {n}")
        g = self.q.new_zeros(F.shape[-2]) if g is None else g
        if g.dim() < 1 or g.shape[-1] != F.shape[-2]:
            raise ValueError(f"g has shape {tuple(g.shape)}, and must be (…, k) with k = {F.shape[-2]}, the rows of F")
        return F, g

    def _like(self, value: float | Tensor, size: int) -> Tensor:
        value = torch.as_tensor(value, dtype=self.q.dtype, device=self.q.device)
        return value.expand(*value.shape[:-1], size) if value.dim() else value.expand(size)

    def _new(self, k: int, weight: float | Tensor, least: float = -torch.inf) -> Tensor:
        """Append k variables with a linear cost; returns the rows that pick them out of all new ones, (k, all)."""
        self.q = _beside(self.q, self._like(weight, k))
        if isinstance(self.Q, Diagonal):
            self.Q = Diagonal(_beside(self.Q.d, self.Q.d.new_zeros(k)))
        else:
            self.Q = torch.nn.functional.pad(self.Q, (0, k, 0, k))
        self.G, self.A = (M if M is None else torch.nn.functional.pad(M, (0, k)) for M in (self.G, self.A))
        if self.lb is not None or least == 0:
            lb = self.q.new_full((self.q.shape[-1] - k,), -torch.inf) if self.lb is None else self.lb
            self.lb = _beside(lb, self.q.new_full((k,), least))
        if self.ub is not None:
            self.ub = _beside(self.ub, self.q.new_full((k,), torch.inf))
        return torch.eye(k, self.q.shape[-1] - self.variables).to(self.q).roll(-k, 1)

    def _rows(self, F: Tensor, T: Tensor, h: Tensor, h_lower: Tensor | None = None) -> None:
        """Append the rows h_lower ≤ F z + T t ≤ h, with t all new variables."""
        rows = _beside(F, T)
        if self.h_lower is not None or h_lower is not None:
            none = self.q.new_full((1,), -torch.inf)
            below = none.expand(h.shape[-1]) if h_lower is None else h_lower
            before = none.expand(0 if self.h is None else self.h.shape[-1]) if self.h_lower is None else self.h_lower
            self.h_lower = _beside(before, below)
        self.G = rows if self.G is None else torch.cat(_alike(self.G, rows, 2), -2)
        self.h = h if self.h is None else _beside(self.h, h)


def _alike(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Both with the same batch, where one lacks it."""
    batch = torch.broadcast_shapes(a.shape[:-rank], b.shape[:-rank])
    return a.expand(*batch, *a.shape[-rank:]), b.expand(*batch, *b.shape[-rank:])


def _beside(a: Tensor, b: Tensor) -> Tensor:
    """Side by side: vectors (…, n), or matrices (…, k, n) of which either may lack the batch."""
    rank = 1 if min(a.dim(), b.dim()) < 2 else 2
    return torch.cat(_alike(a, b, rank), -1)
