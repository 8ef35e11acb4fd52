"""The problem: its tensors, checked once at the door.

    minimise    ½ zᵀQz + qᵀz
    subject to  A z = b,   h_lower ≤ G z ≤ h,   lb ≤ z ≤ ub

Behind the door there is at most one batch dimension: others, and those that are broadcast, are folded into it here and
unfolded by `Solution`, by operations that autograd sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from optlayer import _torch, matrices
from optlayer.core.structure import DENSE, MATRICES, NAMES, Kind, Patterned, Structure
from optlayer.matrices import STORED, Diagonal, Matrix
from optlayer.sparse import Sparse

_SHAPES = {"Q": "nn", "q": "n", "G": "pn", "h": "p", "A": "mn", "b": "m", "lb": "n", "ub": "n", "h_lower": "p"}
_DTYPES = (torch.float32, torch.float64)
_FILLED = {"h": "p", "b": "m", "lb": "n", "ub": "n", "h_lower": "p"}
"""What may be a number, and its size."""


class Problem:
    """A checked batch of quadratic programs; absent parts are None, shared tensors have no batch dimension.

    Not to be changed. (A frozen dataclass would say so, but takes as long to make as a small problem to solve.)
    """

    __slots__ = (*NAMES, "structure")

    def __init__(
        self, Q: Matrix, q: Tensor, G: Matrix | None, h: Tensor | None, A: Matrix | None, b: Tensor | None,
        lb: Tensor | None, ub: Tensor | None, structure: Structure, h_lower: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.h_lower = h_lower
        self.Q, self.q, self.G, self.h, self.A, self.b, self.lb, self.ub = Q, q, G, h, A, b, lb, ub
        self.structure = structure

    @property
    def n(self) -> int:
        return self.structure.n

    @property
    def m(self) -> int:
        return self.structure.m

    @property
    def p(self) -> int:
        return self.structure.p

    @property
    def batch(self) -> int | None:
        return self.structure.batch

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.structure.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self.structure.device
        return device

    @property
    def widths(self) -> tuple[int, ...]:
        return self.structure.widths

    @property
    def sparse(self) -> bool:
        return self.structure.sparse

    @classmethod
    def of(cls, tensors: Sequence[Any], structure: Structure) -> Problem:
        """The problem of tensors in the order of NAMES, each standing for its matrix."""
        Q, q, G, h, A, b, lb, ub, h_lower = tensors
        kind_Q, kind_G, kind_A = structure.kinds
        return cls(
            matrices.wrap(kind_Q, Q), q, matrices.wrap(kind_G, G), h, matrices.wrap(kind_A, A), b, lb, ub, structure,
            h_lower,
        )  # fmt: skip

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors in the order of NAMES; of a matrix, what stands for it (the diagonal, the values)."""
        Q: Any = self.Q
        G: Any = self.G
        A: Any = self.A
        return (
            Q.values if type(Q) in STORED else Q, self.q, G.values if type(G) in STORED else G, self.h,
            A.values if type(A) in STORED else A, self.b, self.lb, self.ub, self.h_lower,
        )  # fmt: skip

    def rank(self, name: str) -> int:
        """Dimensions of tensor `name` without the batch."""
        rank: int = self.structure.ranks[NAMES.index(name)]
        return rank

    def select(self, members: Tensor | list[int]) -> Problem:
        """The problem of some members, in the order given."""
        picked: list[Tensor | None] = []
        for tensor, rank in zip(self.tensors(), self.structure.ranks, strict=True):
            batched = tensor is not None and tensor.dim() > rank
            picked.append(tensor[members] if batched else tensor)  # type: ignore[index]
        return self.replace(picked, len(members))

    def member(self, index: int) -> Problem:
        """The problem of one member, as a batch of one."""
        return self.select([index])

    def reshaped(self, shape: tuple[int, ...]) -> Problem:
        """The same with other batch dimensions of the results, of as many members; () of one drops the batch."""
        tensors = self.tensors()
        if not shape:
            pairs = zip(tensors, self.structure.ranks, strict=True)
            tensors = tuple(x if x is None or x.dim() == rank else x[0] for x, rank in pairs)
        return Problem.of(tensors, self.structure.changed(shape=shape))

    def stacked(self) -> Problem:
        """The same with one-sided rows (G; −G) z ≤ (h; −h_lower)."""
        structure = self.structure
        if not structure.two_sided:
            return self
        assert self.G is not None and self.h is not None and self.h_lower is not None  # noqa: PT018
        h, below = torch.broadcast_tensors(self.h, -self.h_lower)
        tensors = list(self.tensors())
        kind, tensors[2] = matrices.of("G", matrices.opposed(self.G))
        tensors[3], tensors[8] = torch.cat([h, below], -1), None
        kinds = (structure.kinds[0], kind, structure.kinds[2])
        wide = Structure(
            structure.n, structure.m, 2 * structure.p, structure.shape, kinds, lower=self.lb is not None,
            upper=self.ub is not None, dtype=structure.dtype, device=structure.device,
        )
        return Problem.of(tensors, wide)

    def replace(self, tensors: Sequence[Tensor | None], batch: int | None) -> Problem:
        """The same problem with other tensors (order of NAMES, same kinds) and batch."""
        q = tensors[1]
        assert q is not None
        shape = () if batch is None else (batch,)
        return Problem.of(tensors, self.structure.changed(shape=shape, dtype=q.dtype, device=q.device))

    def dense(self) -> Problem:
        """The same with full matrices in place of sparse ones."""
        tensors, kinds = list(self.tensors()), list(self.structure.kinds)
        for k, i in enumerate(MATRICES):
            tensor = tensors[i]
            if type(kinds[k]) is Patterned and tensor is not None:
                tensors[i], kinds[k] = matrices.wrap(kinds[k], tensor).dense(), DENSE
        return Problem.of(tensors, self.structure.changed(kinds=tuple(kinds)))


# --- the door --------------------------------------------------------------------------------------------------------


def check(
    Q: Any, q: Any, G: Any = None, h: Any = None, A: Any = None, b: Any = None, lb: Any = None, ub: Any = None,
    h_lower: Any = None,
) -> Problem:  # fmt: skip
    """The checked Problem of these tensors.

    Raises:
        TypeError: for what is not a floating-point tensor (numbers are, for h, b, lb and ub), or mixed dtypes.
        ValueError: for shapes or devices that do not fit; the message shows every argument.
    """
    if h is None and h_lower is not None:
        h = torch.inf
    if matrices.is_sparse(Q) or matrices.is_sparse(G) or matrices.is_sparse(A):
        dtype = q.dtype if isinstance(q, Tensor) else torch.float64
        pairs = zip("QGA", (Q, G, A), strict=True)
        Q, G, A = (matrices.sparse(name, M, dtype) if matrices.is_sparse(M) else M for name, M in pairs)
    values = (
        Q.values if type(Q) in STORED else Q, q, G.values if type(G) is Sparse else G, h,
        A.values if type(A) is Sparse else A, b, lb, ub, h_lower,
    )  # fmt: skip
    key = None if torch.compiler.is_compiling() else _key((Q, G, A), values)
    known = None if key is None else _known.get(key)
    if known is None:
        return _checked((Q, q, G, h, A, b, lb, ub, h_lower), key)
    structure, folds = known
    if folds is None:
        return Problem(Q, q, G, h, A, b, lb, ub, structure, h_lower)
    return Problem.of(_folded(values, folds, structure), structure)


_Folds = tuple["tuple[tuple[int, ...] | None, tuple[int, ...]] | None", ...]
_known: dict[Any, tuple[Structure, _Folds | None]] = {}
"""The structure of what has passed the check: training asks the same question again and again."""


def _key(given: tuple[Any, Any, Any], values: Sequence[Any]) -> Any:
    """All that the check looks at; None where it cannot be a key: symbolic sizes, numbers, wrong types."""
    try:
        key = (
            *[M.pattern if type(M) is Sparse else type(M) is Diagonal for M in given],
            *[x if x is None else (x.shape, x.dtype, x.device, x.layout, type(x)) for x in values],
        )
        hash(key)
    except (AttributeError, TypeError):
        return None
    return key


def _checked(values: Sequence[Any], key: Any) -> Problem:
    kinds, given = [], list(values)
    for i in MATRICES:
        kind, given[i] = matrices.of(NAMES[i], given[i])
        kinds.append(kind)
    door = _Door(given, kinds)
    structure, folds = door.structure()
    if key is not None and _torch.tracing_script() is None:
        if len(_known) >= 1000:
            _known.clear()
        _known[key] = structure, folds
    tensors = given if folds is None else _folded(given, folds, structure)
    return Problem.of(tensors, structure)


def _folded(values: Sequence[Any], folds: _Folds, structure: Structure) -> list[Any]:
    """The tensors with their batch dimensions folded into one, or into none where they are shared."""
    found = []
    for x, fold in zip(values, folds, strict=True):
        if fold is not None:
            expanded, shape = fold
            x = (x if expanded is None else x.expand(expanded)).reshape(shape)
        found.append(x)
    return found


class _Door:
    """The check of one set of arguments. `given` may hold numbers, which are replaced by tensors."""

    def __init__(self, given: list[Any], kinds: list[Kind]) -> None:
        self.given, self.kinds = given, kinds
        self.forms = dict(_SHAPES)
        for i, kind in zip(MATRICES, kinds, strict=True):
            if type(kind) is Patterned:
                self.forms[NAMES[i]] = NAMES[i]  # a letter of its own for its entries
            elif kind.rank == 1:
                self.forms[NAMES[i]] = "n"
        self.sizes: dict[str, Any] = {}
        self.whose: dict[str, str] = {}

    def wrong(self, error: type[Exception], message: str, hint: str = "") -> Exception:
        return error(f"{message}{f' ({hint})' if hint else ''}\n{self.table()}")

    def structure(self) -> tuple[Structure, _Folds | None]:
        """What the arguments have in common, and how their batch dimensions are folded (None: they need not be)."""
        self.types()
        batches = [None if x is None else self.batch_of(i, x) for i, x in enumerate(self.given)]
        if self.sizes["n"] < 1:
            raise self.wrong(ValueError, "the problem has no variable")
        self.fill()
        shape = self.broadcast(batches)
        n, q = self.sizes["n"], self.given[1]
        structure = Structure(
            n, self.sizes.get("m", 0), self.sizes.get("p", 0), shape, tuple(self.kinds),  # type: ignore[arg-type]
            lower=self.given[6] is not None, upper=self.given[7] is not None, two_sided=self.given[8] is not None,
            dtype=q.dtype, device=q.device,
        )
        return structure, self.folds(batches, structure)

    def types(self) -> None:
        """Tensors of one dtype on one device, in pairs."""
        given = self.given
        for i, (name, x) in enumerate(zip(NAMES, given, strict=True)):
            if x is None:
                if name in ("Q", "q"):
                    raise self.wrong(TypeError, f"{name} is required")
            elif isinstance(x, Tensor):
                _plain(name, x)
            elif not (name in _FILLED and isinstance(x, Real) and not isinstance(x, bool)):
                foreign = type(x).__module__.split(".")[0] in ("numpy", "scipy")
                hint = "torch.as_tensor(…)?" if foreign else ""
                hint = "a number is for h, b, lb, ub" if isinstance(x, Real) and not foreign else hint
                raise self.wrong(TypeError, f"{name} is a {type(x).__name__}, not a tensor", hint)
            else:
                given[i] = float(x)
        for matrix, side in (("G", "h"), ("A", "b")):
            if (given[NAMES.index(matrix)] is None) != (given[NAMES.index(side)] is None):
                raise self.wrong(ValueError, f"{matrix} and {side} must be given together")
        q = given[1]
        if q.dtype not in _DTYPES:
            raise self.wrong(TypeError, f"q has dtype {q.dtype}; float32 and float64 are supported")
        for name, x in zip(NAMES, given, strict=True):
            if isinstance(x, Tensor):
                if x.dtype != q.dtype:
                    hint = f"{name}.to(q)?" if x.dtype.is_floating_point else f"{name}.to(q.dtype)?"
                    raise self.wrong(TypeError, f"{name} has dtype {x.dtype}, q has {q.dtype}", hint)
                if x.device != q.device:
                    raise self.wrong(ValueError, f"{name} is on {x.device}, q on {q.device}", f"{name}.to(q)?")

    def batch_of(self, i: int, x: Any) -> tuple[int, ...]:
        """The batch dimensions of an argument, whose other sizes are noted. q sets n; others are measured by it."""
        if i == 0:
            self.note(1, self.given[1])
        return () if isinstance(x, float) or (x.dim() == 0 and NAMES[i] in _FILLED) else self.note(i, x)

    def note(self, i: int, x: Tensor) -> tuple[int, ...]:
        name, form, shape = NAMES[i], self.forms[NAMES[i]], tuple(x.shape)
        extra = len(shape) - len(form)
        if extra < 0:
            hint = "Diagonal(Q)?" if name == "Q" and x.dim() == 1 else f"{name}[None]?" if x.dim() == 1 else ""
            expected = f"{name} has {x.dim()} dimensions; expected {len(form)}, or more with a batch"
            raise self.wrong(ValueError, expected, hint)
        pairs = list(zip(form, shape[extra:], strict=True))
        kind = self.kinds[MATRICES.index(i)] if i in MATRICES else None
        if type(kind) is Patterned:
            shape = (*shape[:extra], *kind.pattern.size)
            pairs = list(zip(_SHAPES[name], kind.pattern.size, strict=True))
        for letter, size in pairs:
            if self.sizes.setdefault(letter, size) != size:
                raise self.wrong(
                    ValueError,
                    f"{name} has shape {tuple(shape)}: {letter} = {size}, but another argument has "
                    f"{letter} = {self.sizes[letter]}",
                )
        return tuple(shape[:extra])

    def fill(self) -> None:
        """Tensors in place of numbers."""
        q = self.given[1]
        for name, letter in _FILLED.items():
            i = NAMES.index(name)
            x = self.given[i]
            if isinstance(x, float):
                self.given[i] = torch.full((self.sizes[letter],), x, dtype=q.dtype, device=q.device)

    def broadcast(self, batches: list[Any]) -> tuple[int, ...]:
        """The batch dimensions of the result, by torch's rule."""
        shape: list[int] = []
        for name, batch in zip(NAMES, batches, strict=True):
            for k, extent in enumerate(reversed(batch or ()), 1):
                if k > len(shape):
                    shape.insert(0, extent)
                elif shape[-k] == 1:
                    shape[-k] = extent
                elif extent not in (1, shape[-k]):
                    others = f"{tuple(shape)} of the others"
                    raise self.wrong(ValueError, f"{name} has batch {batch}, which cannot be broadcast to {others}")
        return tuple(shape)

    def folds(self, batches: list[Any], structure: Structure) -> _Folds | None:
        """For each tensor the shape to expand and the shape to bring it to; None for those that stay."""
        found: list[Any] = []
        shape = structure.shape
        for name, x, batch in zip(NAMES, self.given, batches, strict=True):
            fold: Any = None
            if name in _FILLED and x is not None and x.dim() == 0:
                fold = ((self.sizes[_FILLED[name]],),) * 2
            if batch and (batch != shape or len(shape) > 1):
                core = tuple(x.shape[len(batch) :])
                if all(extent == 1 for extent in batch) and any(extent != 1 for extent in shape):
                    fold = None, core  # shared
                else:
                    fold = (None if batch == shape else (*shape, *core)), (structure.batch, *core)
            found.append(fold)
        return tuple(found) if any(fold is not None for fold in found) else None

    def table(self) -> str:
        """Every argument beside what is expected of it."""
        lines = ["arguments (… stands for any batch dimensions, broadcast as in torch.linalg):"]
        for name, x in zip(NAMES, self.given, strict=True):
            form = self.forms[name]
            if name == "h_lower" and x is None:
                continue  # few know it
            label = "Q.d" if name == "Q" and form == "n" else name
            wanted = f"(…, {', '.join(form)})"
            kind = self.kinds[MATRICES.index(NAMES.index(name))] if name in "QGA" else None
            if isinstance(x, Tensor):
                shape, stored = tuple(x.shape), ""
                if type(kind) is Patterned:
                    shape, stored = (*shape[:-1], *kind.pattern.size), f"sparse, {kind.pattern.entries} entries, "
                    wanted = f"(…, {', '.join(_SHAPES[name])})"
                got = f"{stored}{shape} {str(x.dtype).removeprefix('torch.')} on {x.device}"
            else:
                got = "absent" if x is None else type(x).__name__ if not isinstance(x, float) else f"{x}"
            lines.append(f"  {label:<4} expected {wanted:<10} got {got}")
        return "\n".join(lines)


def _plain(name: str, x: Tensor) -> None:
    """Refuse tensors that are a wrapper of others: operators can be taught to them, addresses cannot."""
    if type(x) is not Tensor and not _torch.has_own_memory(x):
        raise TypeError(
            f"{name} is a {type(x).__name__}, which wraps other tensors; give its local or plain tensor "
            "(`.to_local()`, `.to_tensor(…)`, `.get_data()`)"
        )
