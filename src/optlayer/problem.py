"""The problem: its tensors, checked once at the door.

    minimise    ½ zᵀQz + qᵀz
    subject to  A z = b,   G z ≤ h,   lb ≤ z ≤ ub
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Diagonal:
    """A diagonal matrix given by its diagonal.

    Args:
        d: the diagonal, shape (…, n).
    """

    __slots__ = ("d",)

    def __init__(self, d: Tensor) -> None:
        self.d = d

    def dense(self) -> Tensor:
        """The matrix itself, shape (…, n, n)."""
        return torch.diag_embed(self.d)

    def __repr__(self) -> str:
        return f"Diagonal({tuple(self.d.shape)})"


NAMES = ("Q", "q", "G", "h", "A", "b", "lb", "ub")
_SHAPES = {"Q": "nn", "q": "n", "G": "pn", "h": "p", "A": "mn", "b": "m", "lb": "n", "ub": "n"}
_DTYPES = (torch.float32, torch.float64)


class Form:
    """What all problems of the same shapes have in common; found once for them.

    Attributes:
        n, m, p: variables, equalities, rows of G.
        batch: members; None when no tensor has a batch dimension, and neither have the results.
        dtype, device: of all tensors.
        diagonal: whether Q is given by its diagonal.
        sparse: whether some matrix is sparse (in CSR layout).
        ranks: dimensions of the eight tensors without the batch.
        widths: columns of s, lam, nu, lam_lb and lam_ub.
    """

    __slots__ = ("batch", "device", "diagonal", "dtype", "m", "n", "p", "ranks", "sparse", "widths")

    def __init__(
        self, tensors: Sequence[Tensor | None], n: int, m: int, p: int, batch: int | None, diagonal: bool
    ) -> None:
        self.n, self.m, self.p, self.diagonal = n, m, p, diagonal
        self.ranks = (1 if diagonal else 2, 1, 2, 1, 2, 1, 1, 1)
        self.widths = (p, p, m, 0 if tensors[6] is None else n, 0 if tensors[7] is None else n)
        self.batch = batch
        self._fit(tensors)

    def _fit(self, tensors: Sequence[Tensor | None]) -> None:
        q = tensors[1]
        assert q is not None
        self.dtype, self.device = q.dtype, q.device
        self.sparse = any(x is not None and x.layout != torch.strided for x in tensors)

    def with_batch(self, batch: int | None) -> Form:
        """The same with another batch."""
        other = copy.copy(self)
        other.batch = batch
        return other


class Problem:
    """A checked batch of quadratic programs; absent parts are None, shared tensors have no batch dimension.

    Not to be changed. (A frozen dataclass would say so, but takes as long to make as a small problem to solve.)
    """

    __slots__ = (*NAMES, "form")

    def __init__(
        self, Q: Tensor | Diagonal, q: Tensor, G: Tensor | None, h: Tensor | None, A: Tensor | None, b: Tensor | None,
        lb: Tensor | None, ub: Tensor | None, form: Form,
    ) -> None:  # fmt: skip
        self.Q, self.q, self.G, self.h, self.A, self.b, self.lb, self.ub = Q, q, G, h, A, b, lb, ub
        self.form = form

    n = property(lambda self: self.form.n)
    m = property(lambda self: self.form.m)
    p = property(lambda self: self.form.p)
    batch = property(lambda self: self.form.batch)
    dtype = property(lambda self: self.form.dtype)
    device = property(lambda self: self.form.device)
    widths = property(lambda self: self.form.widths)
    sparse = property(lambda self: self.form.sparse)

    @classmethod
    def of(cls, tensors: Sequence[Any], form: Form) -> Problem:
        """The problem of eight tensors in the order of NAMES (the diagonal where Q is diagonal)."""
        Q, q, G, h, A, b, lb, ub = tensors
        return cls(Diagonal(Q) if form.diagonal else Q, q, G, h, A, b, lb, ub, form)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The eight tensors in the order of NAMES (the diagonal where Q is diagonal)."""
        Q = self.Q.d if isinstance(self.Q, Diagonal) else self.Q
        return (Q, self.q, self.G, self.h, self.A, self.b, self.lb, self.ub)

    def rank(self, name: str) -> int:
        """Dimensions of tensor `name` without the batch."""
        rank: int = self.form.ranks[NAMES.index(name)]
        return rank

    def select(self, members: Tensor | list[int]) -> Problem:
        """The problem of some members, in the order given."""
        picked: list[Tensor | None] = []
        for tensor, rank in zip(self.tensors(), self.form.ranks, strict=True):
            batched = tensor is not None and tensor.dim() > rank
            picked.append(tensor[members] if batched else tensor)  # type: ignore[index]
        return self.replace(picked, len(members))

    def member(self, index: int) -> Problem:
        """The problem of one member, as a batch of one."""
        return self.select([index])

    def replace(self, tensors: list[Tensor | None] | tuple[Tensor | None, ...], batch: int | None) -> Problem:
        """The same problem with other tensors (order of NAMES, same kinds) and batch."""
        form = self.form.with_batch(batch)
        form._fit(tensors)
        return Problem.of(tensors, form)


def check(
    Q: Tensor | Diagonal,
    q: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    lb: Tensor | None = None,
    ub: Tensor | None = None,
) -> Problem:
    """The checked Problem of these tensors.

    Raises:
        TypeError: for what is not a floating-point tensor, or mixed dtypes.
        ValueError: for shapes or devices that do not fit; the message shows every argument.
    """
    key = _key(Q, q, G, h, A, b, lb, ub)
    known = None if key is None else _known.get(key)
    if known is not None:
        return Problem(Q, q, G, h, A, b, lb, ub, known)
    problem = _checked(Q, q, G, h, A, b, lb, ub)
    if key is not None and not problem.sparse:
        if len(_known) >= 1000:
            _known.clear()
        _known[key] = problem.form
    return problem


_known: dict[Any, Form] = {}
"""The form of what has passed the check: training asks the same question again and again."""


def _key(Q: Any, *others: Any) -> Any:
    """All that the check looks at; None where it cannot be a key: symbolic sizes, wrong types, tracing."""
    if torch.compiler.is_compiling():
        return None
    diagonal = type(Q) is Diagonal
    tensors = (Q.d if diagonal else Q, *others)
    try:
        key = (diagonal, *[x if x is None else (x.shape, x.dtype, x.device, x.layout) for x in tensors])
        hash(key)
    except (AttributeError, TypeError):  # not a tensor; sizes that are symbols
        return None
    return key


def _checked(Q: Any, q: Any, G: Any, h: Any, A: Any, b: Any, lb: Any, ub: Any) -> Problem:
    diagonal = isinstance(Q, Diagonal)
    if not diagonal:
        Q = _dense_or_csr("Q", Q)
    G, A = _dense_or_csr("G", G), _dense_or_csr("A", A)
    values = (Q.d if isinstance(Q, Diagonal) else Q, q, G, h, A, b, lb, ub)
    for name, value in zip(NAMES, values, strict=True):
        if value is None:
            if name in ("Q", "q"):
                raise TypeError(f"{name} is required\n{_table(values, diagonal)}")
        elif not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}, not a tensor\n{_table(values, diagonal)}")
    if (G is None) != (h is None) or (A is None) != (b is None):
        pair = "G and h" if (G is None) != (h is None) else "A and b"
        raise ValueError(f"{pair} must be given together\n{_table(values, diagonal)}")
    dtype, device = q.dtype, q.device
    if dtype not in _DTYPES:
        raise TypeError(f"q has dtype {dtype}; float32 and float64 are supported\n{_table(values, diagonal)}")
    sizes = {"n": q.shape[-1]} if q.dim() else {}  # q sets the size; others are measured by it
    batch: int | None = None
    for name, value in zip(NAMES, values, strict=True):
        if value is None:
            continue
        if value.dtype != dtype:
            raise TypeError(f"{name} has dtype {value.dtype}, q has {dtype}\n{_table(values, diagonal)}")
        if value.device != device:
            raise ValueError(f"{name} is on {value.device}, q on {device}\n{_table(values, diagonal)}")
        form = "n" if diagonal and name == "Q" else _SHAPES[name]
        extra = value.dim() - len(form)
        if extra not in (0, 1):
            raise ValueError(
                f"{name} has {value.dim()} dimensions; expected {len(form)}, or {len(form) + 1} with a batch"
                f"\n{_table(values, diagonal)}"
            )
        shape = value.shape
        if extra:
            if batch is None:
                batch = shape[0]
            elif batch != shape[0]:
                raise ValueError(f"{name} has batch {shape[0]}, another argument {batch}\n{_table(values, diagonal)}")
        for letter, size in zip(form, shape[extra:], strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"{name} has shape {tuple(shape)}: {letter} = {size}, but another argument has "
                    f"{letter} = {sizes[letter]}\n{_table(values, diagonal)}"
                )
    if sizes["n"] < 1:
        raise ValueError(f"the problem has no variable\n{_table(values, diagonal)}")
    tensors = (Q.d if isinstance(Q, Diagonal) else Q, q, G, h, A, b, lb, ub)
    return Problem.of(tensors, Form(tensors, sizes["n"], sizes.get("m", 0), sizes.get("p", 0), batch, diagonal))


def _dense_or_csr(name: str, matrix: Any) -> Any:
    """The matrix; in CSR layout if it is sparse, torch's (differentiable) or scipy's (a constant)."""
    if not isinstance(matrix, Tensor) and hasattr(matrix, "tocsr"):
        csr = matrix.tocsr()
        first, columns, values = (torch.as_tensor(part) for part in (csr.indptr, csr.indices, csr.data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch: CSR is in beta state
            return torch.sparse_csr_tensor(first, columns, values, csr.shape)
    if not isinstance(matrix, Tensor) or matrix.layout == torch.strided:
        return matrix
    if matrix.dim() != 2:
        raise ValueError(f"{name} is sparse and has {matrix.dim()} dimensions: a sparse matrix is shared by the batch")
    return matrix if matrix.layout == torch.sparse_csr else matrix.to_sparse_csr()


def _table(values: tuple[object, ...], diagonal: bool) -> str:
    """Every argument beside what is expected of it."""
    lines = ["arguments (… is an optional batch dimension, the same for all that have it):"]
    for name, value in zip(NAMES, values, strict=True):
        form = "n" if diagonal and name == "Q" else _SHAPES[name]
        label = "Q.d" if diagonal and name == "Q" else name
        wanted = f"(…, {', '.join(form)})"
        if isinstance(value, Tensor):
            form = "" if value.layout == torch.strided else "sparse "
            given = f"{form}{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
        else:
            given = "absent" if value is None else type(value).__name__
        lines.append(f"  {label:<4} expected {wanted:<10} got {given}")
    return "\n".join(lines)
