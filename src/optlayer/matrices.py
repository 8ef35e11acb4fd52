"""Matrices of a problem, one of several kinds: products with vectors, and outer products on what they store.

A new kind adds a class with `values`, `times`, `times_t`, `magnitude` and `dense` as `Diagonal` has them, a line in
`wrap`, `of` and `outer_products`, and its `Kind` in `core/structure.py`.
"""

from __future__ import annotations

import warnings
from typing import Any, Union

import torch
from torch import Tensor

from optlayer import _torch
from optlayer.core.structure import CSR, DENSE, DIAGONAL, Kind


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


Matrix = Union[Tensor, Diagonal]  # noqa: UP007 (a value, not only a hint)


def of(name: str, given: Any) -> tuple[Kind, Any]:
    """The kind of what a user gives as matrix `name`, and the tensor that stands for it.

    A sparse tensor of torch's (differentiable) or a matrix of scipy's (a constant) is brought to CSR layout. What is
    no matrix is returned as it is, for the door to complain.
    """
    if isinstance(given, Tensor):
        if given.layout == torch.strided:
            return DENSE, given
        if given.dim() != 2:
            raise ValueError(f"{name} is sparse with {given.dim()} dimensions: a sparse matrix is shared by the batch")
        return CSR, given if given.layout == torch.sparse_csr else given.to_sparse_csr()
    if isinstance(given, Diagonal) and name in ("Q", ""):
        return DIAGONAL, given.d
    if type(given).__module__.startswith("scipy.sparse"):
        csr = given.tocsr()
        first, columns, values = (torch.as_tensor(part) for part in (csr.indptr, csr.indices, csr.data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch: CSR is in beta state
            return CSR, torch.sparse_csr_tensor(first, columns, values, csr.shape)
    return DENSE, given


def wrap(kind: Kind, tensor: Any) -> Any:
    """The matrix of this kind for which a tensor stands."""
    return Diagonal(tensor) if kind is DIAGONAL and tensor is not None else tensor


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
    if isinstance(M, Tensor):
        return M if M.layout == torch.strided else M.to_dense()
    return M.dense()


def opposed(M: Matrix) -> Tensor:
    """The rows of M, and below them the same with the other sign: (M; −M)."""
    assert isinstance(M, Tensor)
    if M.layout == torch.strided:
        return torch.cat([M, -M], -2)
    first, values = M.crow_indices(), M.values()
    rows = torch.cat([first, first[1:] + first[-1]])
    size = (2 * M.shape[0], M.shape[1])
    return torch.sparse_csr_tensor(rows, M.col_indices().repeat(2), torch.cat([values, -values]), size)


def outer_products(kind: Kind, like: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """−Σ left rightᵀ at the entries that a matrix of this kind stores: the gradient of the tensor `like`.

    left (B, r), right (B, c). Summed over the batch where `like` is shared, never forming the terms.
    """
    if kind is DIAGONAL:
        total = _sum_of([left * right for left, right in pairs]).neg()
        return total.sum(0) if total.dim() > like.dim() else total
    if kind is CSR:
        return _on_pattern(like, *pairs)
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


def _on_pattern(M: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """The same at the entries that a sparse M (CSR) has, as a sparse matrix."""
    first, columns = M.crow_indices(), M.col_indices()
    rows = torch.repeat_interleave(torch.arange(len(first) - 1, device=first.device), first.diff())
    values = _sum_of([(left[:, rows] * right[:, columns]).sum(0) for left, right in pairs])
    return torch.sparse_csr_tensor(first, columns, -values, M.shape)


def _sum_of(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
