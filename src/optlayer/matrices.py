"""Matrices of a problem, one of several kinds: products with vectors, and outer products on what they store.

A new kind adds a class with `values`, `times`, `times_t`, `magnitude` and `dense` as `Diagonal` has them, a line in
`wrap`, `of` and `outer_products`, and its `Kind` in `core/structure.py`.
"""

from __future__ import annotations

from typing import Any, Union

import torch
from torch import Tensor

from optlayer import _torch
from optlayer.core.structure import DENSE, DIAGONAL, Kind, Patterned
from optlayer.sparse import Sparse
from optlayer.sparse import outer_products as _on_pattern


class Diagonal:
    """A diagonal matrix given by its diagonal.

    Args:
        d: the diagonal, shape (…, n).
    """

    __slots__ = ("d",)

    def __init__(self, d: Tensor) -> None:
        self.d = d

    @property
    def values(self) -> Tensor:
        """The tensor that stands for the matrix."""
        return self.d

    def times(self, x: Tensor) -> Tensor:
        """The matrix times x (B, n)."""
        return self.d * x

    times_t = times

    def magnitude(self) -> Diagonal:
        """|M|, entry by entry."""
        return Diagonal(self.d.abs())

    def dense(self) -> Tensor:
        """The matrix itself, shape (…, n, n)."""
        return torch.diag_embed(self.d)

    def __repr__(self) -> str:
        return f"Diagonal({tuple(self.d.shape)})"


Matrix = Union[Tensor, Diagonal, Sparse]  # noqa: UP007 (a value, not only a hint)


STORED = (Diagonal, Sparse)
"""What stands for a matrix without being a tensor; `values` is one."""


def is_sparse(given: Any) -> bool:
    """Whether a user gives a sparse matrix: ours, torch's or scipy's."""
    if isinstance(given, Tensor):
        return given.layout is not torch.strided
    if given is None or type(given) in STORED:
        return type(given) is Sparse
    return type(given).__module__.startswith("scipy.sparse")


def sparse(name: str, given: Any, dtype: torch.dtype) -> Sparse:
    """What `is_sparse`, as matrix `name`: the symmetric Q with both triangles, a constant of scipy's in the dtype."""
    if isinstance(given, Tensor):
        given = Sparse.from_torch(given)
    elif type(given) is not Sparse:
        given = Sparse.from_scipy(given, dtype)
    if name == "Q" and given.pattern.size[0] == given.pattern.size[1]:
        return given.symmetric()
    return given


def of(name: str, given: Any) -> tuple[Kind, Any]:
    """The kind of matrix `name` and the tensor that stands for it. What is no matrix is left for the door to refuse."""
    if type(given) is Sparse:
        return Patterned("sparse", 1, given.pattern), given.values
    if type(given) is Diagonal and name == "Q":
        return DIAGONAL, given.d
    return DENSE, given


def wrap(kind: Kind, tensor: Any) -> Any:
    """The matrix of this kind for which a tensor stands."""
    if tensor is None or kind is DENSE:
        return tensor
    return Sparse.of(kind.pattern, tensor) if type(kind) is Patterned else Diagonal(tensor)


def times(M: Matrix, x: Tensor) -> Tensor:
    """M x for M (r, c) or (B, r, c) and x (B, c)."""
    if not isinstance(M, Tensor):
        return M.times(x)
    # Four equal columns: with one, BLAS takes another path for a batch of one, and rounds differently.
    return x @ M.mT if M.dim() == 2 else (M @ x.unsqueeze(-1).expand(-1, -1, 4))[..., 0]


def times_t(M: Matrix, y: Tensor) -> Tensor:
    """Mᵀ y for M (r, c) or (B, r, c) and y (B, r)."""
    if not isinstance(M, Tensor):
        return M.times_t(y)
    return y @ M if M.dim() == 2 else (M.mT @ y.unsqueeze(-1).expand(-1, -1, 4))[..., 0]


def symmetric_times(Q: Matrix, z: Tensor) -> Tensor:
    """Q z with the symmetric part of Q; z (B, n)."""
    if isinstance(Q, Diagonal):
        return Q.times(z)
    return 0.5 * (times(Q, z) + times_t(Q, z))


def magnitude(M: Matrix) -> Matrix:
    """|M|, entry by entry."""
    return M.abs() if isinstance(M, Tensor) else M.magnitude()


def dense(M: Matrix) -> Tensor:
    """The matrix with all its entries."""
    return M if isinstance(M, Tensor) else M.dense()


def diagonal(M: Matrix) -> Tensor:
    """The diagonal of a square matrix, (…, n)."""
    if isinstance(M, Sparse):
        return M.diagonal()
    return M.diagonal(dim1=-2, dim2=-1) if isinstance(M, Tensor) else M.d


def row_sizes(M: Matrix) -> Tensor:
    """The largest entry of each row, by magnitude, (…, r)."""
    if isinstance(M, Sparse):
        return M.row_sizes()
    return M.abs().amax(-1) if isinstance(M, Tensor) else M.d.abs()


def opposed(M: Matrix) -> Matrix:
    """The rows of M, and below them the same with the other sign: (M; −M)."""
    if isinstance(M, Sparse):
        return M.opposed()
    assert isinstance(M, Tensor)
    return torch.cat([M, -M], -2)


def outer_products(kind: Kind, like: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """−Σ left rightᵀ at the entries that a matrix of this kind stores: the gradient of the tensor `like`.

    left (B, r), right (B, c). Summed over the batch where `like` is shared, never forming the terms.
    """
    if kind is DIAGONAL:
        total = _sum_of([left * right for left, right in pairs]).neg()
        return total.sum(0) if total.dim() > like.dim() else total
    if type(kind) is Patterned:
        return _on_pattern(kind.pattern, like.dim() == 1, *pairs)
    found: Tensor | None = None
    for left, right in pairs:
        if like.dim() == 2:
            left = -left.mT
            found = left @ right if found is None else torch.addmm(found, left, right)
        else:
            left, right = -left.unsqueeze(-1), right.unsqueeze(-2)
            if found is None:
                found = left * right
            elif _torch.transformed():
                found = torch.addcmul(found, left, right)
            else:
                found.addcmul_(left, right)  # in place: fresh memory costs several times the arithmetic
    assert found is not None
    return found


def _sum_of(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
