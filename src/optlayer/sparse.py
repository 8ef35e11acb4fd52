"""Sparse matrices: a pattern, which all members of a batch share, and the values at its entries.

The pattern is found once and kept with the structure of the problem; the values are one tensor, which autograd, vmap
and compilers see as they see a dense matrix.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from optlayer import _torch


class Pattern:
    """Where a sparse matrix has entries, in rows (CSR). Two patterns are equal if their entries are.

    Args:
        first: where each row begins among the entries, and their number, int64 (rows + 1).
        columns: of each entry, int64 (nnz), ascending within a row.
        size: rows and columns.
        passing: it gets no number, and is not kept.

    Attributes:
        rows: of each entry, int64 (nnz).
        number: the same for equal patterns.
        both: of a square matrix, the pattern of both triangles and which value each of its entries has (None: its own);
            or, if it has entries in both triangles but one without mirror image, a description of that.
    """

    __slots__ = ("_arrays", "_digest", "_hash", "both", "columns", "first", "number", "rows", "size", "twice")
    _all: ClassVar[dict[bytes, Pattern]] = {}

    def __init__(self, first: Tensor, columns: Tensor, size: tuple[int, int], passing: bool = False) -> None:
        self.first, self.columns, self.size = first, columns, size
        self.rows = torch.repeat_interleave(torch.arange(size[0]), first.diff())
        content = hashlib.blake2b(first.numpy().tobytes(), digest_size=16)
        content.update(columns.numpy().tobytes())
        content.update(repr(size).encode())
        self.twice: Pattern | None = None
        self._arrays = self.rows.numpy(), columns.numpy()
        self._digest = content.digest()
        self._hash = hash(self._digest)
        known = self if passing else Pattern._all.setdefault(self._digest, self)
        self.number: int = -1 if passing else len(Pattern._all) - 1 if known is self else known.number
        self.both = _both_triangles(self) if size[0] == size[1] else "rows and columns of different number"

    @staticmethod
    def numbered(number: int) -> Pattern:
        """The pattern of a number, by which a graph of torch's refers to it."""
        return next(pattern for pattern in Pattern._all.values() if pattern.number == number)

    @property
    def entries(self) -> int:
        """How many there are."""
        return len(self.columns)

    def places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of each entry, as tensors that x can be indexed by: a tracer wants constants of its own."""
        if _torch.dispatch_modes() > 0:
            return tuple(torch.tensor(at.tolist(), device=x.device) for at in self._arrays)  # type: ignore[return-value]
        return self.rows.to(x.device), self.columns.to(x.device)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Pattern) and self._digest == other._digest)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return Pattern, (self.first, self.columns, self.size)  # copies get the number that holds where they are

    def __repr__(self) -> str:
        return f"Pattern({self.size[0]}x{self.size[1]}, {self.entries} entries)"


class Sparse:
    """A sparse matrix, or a batch of them that share a pattern, as argument of `solve` for Q, G and A.

    Args:
        crow_indices: where each row begins among the entries, and their number, integers (rows + 1).
        col_indices: column of each entry, ascending within a row, integers (nnz).
        values: (nnz,), shared by the batch, or (…, nnz).
        size: rows and columns; None: as many columns as are needed. (The order of `torch.sparse_csr_tensor`.)

    Gradients are those of the values: of entries that are stored, zeros among them. A symmetric matrix Q may store both
    triangles, or one (with the diagonal), whose entries then stand for both.

    Raises:
        TypeError: for indices that are no integers.
        ValueError: for a pattern that is none: rows that run backward, columns out of range, out of order or twice.
    """

    __slots__ = ("pattern", "values")

    def __init__(self, crow_indices: Any, col_indices: Any, values: Tensor, size: Sequence[int] | None = None) -> None:
        self.pattern = _pattern_of(crow_indices, col_indices, None if size is None else tuple(size))
        self.values = values
        if not isinstance(values, Tensor) or values.dim() < 1 or values.shape[-1] != self.pattern.entries:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"values must be a tensor (…, {self.pattern.entries}), one for each entry; got {got}")

    @classmethod
    def of(cls, pattern: Pattern, values: Tensor) -> Sparse:
        """The matrix of a pattern that is known."""
        made = object.__new__(cls)
        made.pattern, made.values = pattern, values
        return made

    @classmethod
    def from_dense(cls, M: Tensor, mask: Tensor | None = None) -> Sparse:
        """The entries of M (…, r, c) where mask (r, c) is true; without a mask, where some member is not zero."""
        if mask is None:
            mask = (M.detach() != 0).reshape(-1, *M.shape[-2:]).any(0)
        first, columns = _rows_of(mask)
        rows = torch.repeat_interleave(torch.arange(len(mask)), first.diff())
        made = cls(first, columns, M[..., rows.to(M.device), columns.to(M.device)], mask.shape)
        return made

    @classmethod
    def from_torch(cls, M: Tensor) -> Sparse:
        """A matrix (r, c) of torch's, in any sparse layout, or dense."""
        if M.layout == torch.strided:
            return cls.from_dense(M)
        if M.dim() != 2 and M.layout != torch.sparse_csr:
            raise ValueError(
                f"a sparse tensor in layout {M.layout} has {M.dim()} dimensions: a pattern is shared by the batch; "
                "Sparse(…) with values (…, nnz)"
            )
        if M.layout == torch.sparse_coo:  # row by row
            M = M.coalesce()
            rows, columns = M.indices().cpu()
            first = torch.zeros(M.shape[0] + 1, dtype=torch.int64)
            first[1:] = torch.bincount(rows, minlength=M.shape[0]).cumsum(0)
            return cls(first, columns, M.values(), M.shape)
        if M.layout == torch.sparse_csr:
            crow, col, values = M.crow_indices(), M.col_indices(), M.values()
            if values.dim() > 1:  # a batch of matrices: one pattern is asked for
                crow, col = crow.reshape(-1, crow.shape[-1]), col.reshape(-1, col.shape[-1])
                if (crow != crow[0]).any() or (col != col[0]).any():
                    raise ValueError("the members of a sparse batch have different patterns; store their union in all")
                crow, col = crow[0], col[0]
            return cls(crow, col, values, M.shape[-2:])
        if M.layout == torch.sparse_csc:  # the transpose of a matrix in rows
            at, columns = M.row_indices(), torch.arange(M.shape[1], device=M.device)
            columns = torch.repeat_interleave(columns, M.ccol_indices().diff())
            order = torch.argsort(at * M.shape[1] + columns)
            first = torch.zeros(M.shape[0] + 1, dtype=torch.int64)
            first[1:] = torch.bincount(at.cpu(), minlength=M.shape[0]).cumsum(0)
            return cls(first, columns[order], M.values()[order], M.shape)
        raise ValueError(f"a sparse matrix in layout {M.layout} is not supported: .to_sparse_csr()")

    @classmethod
    def from_scipy(cls, M: Any, dtype: torch.dtype | None = None) -> Sparse:
        """A matrix of scipy's (a constant); zeros that it stores stay entries."""
        csr = M.tocsr()
        if not csr.has_sorted_indices or not csr.has_canonical_format:
            csr = csr.copy()
            csr.sum_duplicates()
        first, columns, values = (torch.as_tensor(x) for x in (csr.indptr, csr.indices, csr.data))
        return cls(first, columns, values.to(dtype), csr.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """(…, rows, columns)."""
        return (*self.values.shape[:-1], *self.pattern.size)

    def with_values(self, values: Tensor) -> Sparse:
        """The same pattern with other values."""
        return Sparse.of(self.pattern, values)

    def times(self, x: Tensor) -> Tensor:
        """The matrix times x (B, c)."""
        rows, columns = self.pattern.places(x)
        return _sums(self.values * at(x, columns), rows, self.pattern.size[0])

    def times_t(self, y: Tensor) -> Tensor:
        """The transpose times y (B, r)."""
        rows, columns = self.pattern.places(y)
        return _sums(self.values * at(y, rows), columns, self.pattern.size[1])

    def magnitude(self) -> Sparse:
        """|M|, entry by entry."""
        return Sparse.of(self.pattern, self.values.abs())

    def opposed(self) -> Sparse:
        """(M; −M)."""
        if self.pattern.twice is None:
            first, (rows, columns) = self.pattern.first, self.pattern.size
            both = torch.cat([first, first[1:] + first[-1]]), self.pattern.columns.repeat(2)
            self.pattern.twice = Pattern(*both, (2 * rows, columns))
        return Sparse.of(self.pattern.twice, torch.cat([self.values, -self.values], -1))

    def diagonal(self) -> Tensor:
        """The diagonal, (…, r); 0 where no entry is stored."""
        rows, columns = self.pattern.places(self.values)
        return _sums(torch.where(rows == columns, self.values, 0.0), rows, self.pattern.size[0])

    def row_sizes(self) -> Tensor:
        """The largest entry of each row, by magnitude, (…, r); 0 where it has none."""
        rows, _ = self.pattern.places(self.values)
        sizes = self.values.new_zeros(*self.values.shape[:-1], self.pattern.size[0])
        return sizes.scatter_reduce(-1, rows.expand(self.values.shape), self.values.abs(), "amax")

    def dense(self) -> Tensor:
        """The matrix with all its entries, (…, r, c)."""
        rows, columns = self.pattern.places(self.values)
        size = self.pattern.size
        flat = self.values.new_zeros(*self.values.shape[:-1], size[0] * size[1])
        return flat.index_add(-1, rows * size[1] + columns, self.values).unflatten(-1, size)

    def symmetric(self) -> Sparse:
        """Both triangles of a symmetric matrix that stores one, or both.

        Raises:
            ValueError: if an entry is stored whose mirror image is not, in a matrix that has entries in both triangles.
        """
        found = self.pattern.both
        if isinstance(found, str):
            raise ValueError(f"Q stores {found}")
        both, source = found
        return self if source is None else Sparse.of(both, self.values[..., source.to(self.values.device)])

    def __repr__(self) -> str:
        return f"Sparse({self.shape}, {self.pattern.entries} entries)"


def outer_products(pattern: Pattern, shared: bool, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """−Σ left rightᵀ at the entries of a pattern, (B, nnz), or summed over the batch. left (B, r), right (B, c)."""
    rows, columns = pattern.places(pairs[0][0])
    total: Tensor | None = None
    for left, right in pairs:
        term = at(left, rows) * at(right, columns)
        total = term if total is None else total + term
    assert total is not None
    return -(total.sum(0) if shared else total)


def at(x: Tensor, places: Tensor) -> Tensor:
    """x[..., places], in half of the time."""
    return x.gather(-1, places.expand(*x.shape[:-1], -1))


def _sums(terms: Tensor, where: Tensor, size: int) -> Tensor:
    """Terms (B, nnz) added up where they belong, (B, size)."""
    return terms.new_zeros(*terms.shape[:-1], size).index_add(-1, where, terms)


# --- patterns --------------------------------------------------------------------------------------------------------

_known: dict[tuple[Any, ...], tuple[Any, Any, Pattern]] = {}


def _pattern_of(first: Any, columns: Any, size: tuple[int, ...] | None) -> Pattern:
    """The pattern of these indices; the same tensors are not looked at twice."""
    key = None
    if isinstance(first, Tensor) and isinstance(columns, Tensor):
        key = (id(first), first._version, id(columns), columns._version, size)
        known = _known.get(key)
        if known is not None and known[0]() is first and known[1]() is columns:
            return known[2]
    made = _checked(torch.as_tensor(first), torch.as_tensor(columns), size)
    if key is not None:
        if len(_known) >= 1000:
            _known.clear()
        _known[key] = weakref.ref(first), weakref.ref(columns), made
    return made


def _checked(first: Tensor, columns: Tensor, size: tuple[int, ...] | None) -> Pattern:
    for name, x in (("crow_indices", first), ("col_indices", columns)):
        if x.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} has dtype {x.dtype}; indices are int32 or int64")
        if x.dim() != 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: the pattern is one, shared by the batch")
    first, columns = (x.detach().to("cpu", torch.int64).contiguous() for x in (first, columns))
    if size is None:
        size = (len(first) - 1, int(columns.max()) + 1 if len(columns) else 0)
    if len(size) != 2 or len(first) != size[0] + 1:
        raise ValueError(f"crow_indices has {len(first)} entries; a matrix of size {tuple(size)} needs rows + 1")
    if len(first) == 0 or first[0] != 0 or first[-1] != len(columns) or (first.diff() < 0).any():
        raise ValueError(f"crow_indices must run from 0 up to the number of entries, {len(columns)}")
    if len(columns) and (columns.min() < 0 or columns.max() >= size[1]):
        raise ValueError(f"col_indices must lie between 0 and {size[1] - 1}")
    follows = torch.ones(len(columns), dtype=torch.bool)
    follows[first[first < len(columns)]] = False  # the first of a row
    if (columns.diff() <= 0)[follows[1:]].any():
        raise ValueError("col_indices must ascend within a row, without repetition")
    return Pattern(first, columns, (int(size[0]), int(size[1])))


def _rows_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row beginnings and columns of the true entries of a mask (r, c)."""
    mask = mask.cpu()
    first = torch.zeros(len(mask) + 1, dtype=torch.int64)
    first[1:] = mask.sum(1).cumsum(0)
    return first, mask.nonzero()[:, 1].contiguous()


def _both_triangles(pattern: Pattern) -> tuple[Pattern, Tensor | None] | str:
    """The pattern of both triangles and which value each of its entries has; None if they are the pattern's own; or why
    there is none.
    """
    rows, columns, n = pattern.rows, pattern.columns, pattern.size[1]
    key, mirrored = rows * n + columns, columns * n + rows
    off = rows != columns
    upper = rows < columns
    if off.any() and (not (off & ~upper).any() or not upper.any()):  # one triangle
        key, order = torch.cat([key, mirrored[off]]).sort()
        source = torch.cat([torch.arange(len(rows)), off.nonzero().flatten()])[order]
        first = torch.zeros(pattern.size[0] + 1, dtype=torch.int64)
        first[1:] = torch.bincount(key // n, minlength=pattern.size[0]).cumsum(0)
        return Pattern(first, key % n, pattern.size), source
    if not torch.equal(mirrored.sort().values, key):
        k = int((~torch.isin(mirrored, key)).nonzero()[0])
        i, j = int(rows[k]), int(columns[k])
        return f"the entry ({i}, {j}) but not ({j}, {i}): store one triangle, or both"
    return pattern, None
