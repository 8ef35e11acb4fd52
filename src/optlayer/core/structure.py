"""The structure: what all problems of one form have in common, found once for them.

It knows sizes, kinds of matrices and what is shared, and no numbers. A new kind of matrix starts here: a `Kind` says
which tensor stands for the matrix (a sparse one: its values, with the pattern as a part of the kind), `matrices.py`
multiplies by it, and the door (`problem.py`) recognises it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """How a matrix is stored.

    Args:
        name: for messages.
        rank: dimensions of its tensor without the batch.
    """

    name: str
    rank: int

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.name.upper()  # copies and pickles are the kind itself, which is told by identity


DENSE = Kind("dense", 2)
DIAGONAL = Kind("diagonal", 1)


@dataclass(frozen=True)
class Patterned(Kind):
    """A sparse matrix: its tensor holds the values at the entries of a pattern.

    Args:
        pattern: where the entries are; equal patterns are equal, and hash alike (sparse.py).
    """

    pattern: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.rank, self.pattern)


NAMES = ("Q", "q", "G", "h", "A", "b", "lb", "ub", "h_lower")
"""The tensors of a problem, in the order that all of the package uses."""
MATRICES = (0, 2, 4)
"""Where the matrices are among them."""
PARTS = ("s", "lam", "nu", "lam_lb", "lam_ub", "lam_lower")
"""The parts of a point beside z, in the order of `Structure.widths`; the last where rows have lower sides."""


class Structure:
    """What all problems of the same form have in common.

    Attributes:
        n, m, p: variables, equalities, rows of G.
        shape: the batch dimensions of the results; () where no tensor has one.
        batch: members, all dimensions together; None where there is no batch dimension.
        kinds: of Q, G and A.
        dtype, device: of all tensors, as the array library calls them.
        ranks: dimensions of the tensors without the batch, in the order of NAMES.
        widths: columns of s, lam, nu, lam_lb and lam_ub, and of lam_lower where rows have two sides.
    """

    __slots__ = ("batch", "device", "dtype", "kinds", "m", "n", "p", "plans", "ranks", "shape", "widths")

    # (`kinds` has no default: torch.compile of torch 2.7 to 2.11 cannot read one.)
    def __init__(
        self, n: int, m: int, p: int, shape: Sequence[int], kinds: tuple[Kind, Kind, Kind], *,
        lower: bool, upper: bool, two_sided: bool = False, dtype: Any, device: Any,
    ) -> None:  # fmt: skip
        self.n, self.m, self.p = n, m, p
        self.widths = (p, p, m, n if lower else 0, n if upper else 0, *([p] if two_sided else []))
        self.dtype, self.device = dtype, device
        self.plans: dict[Any, Any] = {}
        self._set_shape(shape)
        self._set_kinds(kinds)

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """Without the plans, which hold addresses of this process."""
        return None, {name: {} if name == "plans" else getattr(self, name) for name in self.__slots__}

    @property
    def forms(self) -> tuple[str, ...]:
        """The sizes of each tensor without the batch, as letters."""
        Q, G, A = (kind.rank for kind in self.kinds)
        return "nn"[:Q], "n", "pn"[-G:], "p", "mn"[-A:], "m", "n", "n", "p"

    def _set_shape(self, shape: Sequence[int]) -> None:
        self.shape, size = tuple(shape), 1
        for extent in self.shape:
            size *= extent
        self.batch = size if self.shape else None

    def _set_kinds(self, kinds: tuple[Kind, Kind, Kind]) -> None:
        self.kinds, self.ranks = kinds, (kinds[0].rank, 1, kinds[1].rank, 1, kinds[2].rank, 1, 1, 1, 1)

    @property
    def members(self) -> int:
        """Problems to be solved: one where there is no batch."""
        return 1 if self.batch is None else self.batch

    @property
    def two_sided(self) -> bool:
        """Whether the rows of G have lower sides."""
        return len(self.widths) == len(PARTS)

    @property
    def row_widths(self) -> tuple[int, ...]:
        """Columns of the multipliers of the rows of G: of the upper sides, and of the lower ones if there are any."""
        return (self.p, self.p) if self.two_sided else (self.p,)

    @property
    def adjoint_widths(self) -> tuple[int, ...]:
        """Columns of a right-hand side: z, the sides of the rows (all upper ones first), nu, lam_lb, lam_ub."""
        _, p, m, lower, upper, *below = self.widths
        return self.n, p + sum(below), m, lower, upper

    @property
    def diagonal(self) -> bool:
        """Whether Q is given by its diagonal."""
        return self.kinds[0] is DIAGONAL

    @property
    def sparse(self) -> bool:
        """Whether some matrix is sparse."""
        return any(type(kind) is Patterned for kind in self.kinds)

    def changed(self, **to: Any) -> Structure:
        """The same with another `shape`, `dtype`, `device` or `kinds`."""
        other = copy.copy(self)
        if "shape" in to:
            other._set_shape(to.pop("shape"))
        if "kinds" in to:
            other._set_kinds(to.pop("kinds"))
        for name, value in to.items():
            setattr(other, name, value)
        return other


@dataclass(frozen=True)
class Names:
    """What the user calls variables and rows, for messages.

    Args:
        variables, inequalities, equalities: names of the entries of z, the rows of G and those of A; None: by number.
    """

    variables: tuple[str, ...] | None = None
    inequalities: tuple[str, ...] | None = None
    equalities: tuple[str, ...] | None = None

    def variable(self, i: int) -> str:
        """What variable i is called."""
        return f"z[{i}]" if self.variables is None else f"{self.variables[i]} (z[{i}])"

    def row(self, matrix: str) -> Callable[[int], str]:
        """What the rows are called: those of "G" and "A", and of G as lower sides ("below")."""
        given = self.equalities if matrix == "A" else self.inequalities
        relation = {"G": "G z <= h", "below": "h_lower <= G z", "A": "A z = b"}[matrix]
        return lambda i: f"row {i} of {relation}" if given is None else f"{given[i]} (row {i} of {relation})"
