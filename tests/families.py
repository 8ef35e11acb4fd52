"""Problem families with known structure, most of them made from their solution.

    z, s, lam, nu are chosen first, with lam∘s = 0;
    then  q = −(Q z + Gᵀlam + Aᵀnu − lam_lb + lam_ub),  h = G z + s,  b = A z.

`FAMILIES[name](generator, dtype)` gives a Case. Strict families have exactly one of lam, s zero on each side and a
unique solution with unique multipliers, so that derivatives exist. `INFEASIBLE`, `UNBOUNDED`, `INVALID`, `CONCAVE` hold
the problems without solution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optlayer import Diagonal

BATCH = 3


@dataclass
class Case:
    """Arguments of `solve` by name, and what is known of the answer."""

    data: dict[str, Any]
    z: Tensor | None = None  # the solution, where it is unique
    known: dict[str, Tensor] = field(default_factory=dict)  # multipliers, where they are unique
    strict: bool = False

    def to(self, device: str) -> Case:
        def move(x: Any) -> Any:
            return Diagonal(x.d.to(device)) if isinstance(x, Diagonal) else x.to(device)

        data, known = ({name: move(x) for name, x in part.items()} for part in (self.data, self.known))
        return Case(data, None if self.z is None else move(self.z), known, self.strict)


Make = Callable[[torch.Generator, torch.dtype], Case]
FAMILIES: dict[str, Make] = {}


def family(make: Make) -> Make:
    FAMILIES[make.__name__] = make
    return make


def generate(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class _Random:
    """Random tensors of one generator and dtype."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype) -> None:
        self.generator, self.dtype = generator, dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def uniform(self, *shape: int, low: float = 0.5, high: float = 1.5) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=self.generator, dtype=torch.float64)).to(self.dtype)

    def chance(self, probability: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator) < probability

    def definite(self, *shape: int) -> Tensor:
        W = self.normal(*shape, shape[-1])
        return W @ W.mT / shape[-1] + 0.5 * torch.eye(shape[-1], dtype=self.dtype)


def from_solution(
    Q: Any, z: Tensor, random: _Random, *, G: Tensor | None = None, A: Tensor | None = None,
    lower: bool = False, upper: bool = False, active: int | None = None, strict: bool = True,
) -> Case:
    """The problem that z (B, n) solves, strictly complementary, with at most `active` active sides (default n / 2)."""
    n = z.shape[-1]
    dtype, batch = z.dtype, len(z)
    matrix = Q.dense() if isinstance(Q, Diagonal) else Q

    def times(M: Tensor, x: Tensor) -> Tensor:
        return (M @ x.unsqueeze(-1)).squeeze(-1)

    p = 0 if G is None else G.shape[-2]
    total = p + n * (lower + upper)
    wanted = min(n // 2 if active is None else active, total)
    if A is not None:
        wanted = min(wanted, n - A.shape[-2])
    order = torch.rand(batch, total, generator=random.generator).argsort(-1)
    on = order < wanted
    if lower and upper:  # never both bounds of one variable
        on[:, total - n :] &= ~on[:, total - 2 * n : total - n]
    y = torch.where(on, random.uniform(batch, total), 0.0)
    s = torch.where(on, 0.0, random.uniform(batch, total))
    data: dict[str, Any] = {"Q": Q}
    known = {}
    force = times(matrix, z)
    start = 0
    if G is not None:
        known["lam"] = y[:, :p]
        force = force + times(G.mT, y[:, :p])
        data |= {"G": G, "h": times(G, z) + s[:, :p]}
        start = p
    if A is not None:
        known["nu"] = random.normal(batch, A.shape[-2])
        force = force + times(A.mT, known["nu"])
        data |= {"A": A, "b": times(A, z)}
    for name, present, sign in (("lb", lower, -1), ("ub", upper, 1)):
        if present:
            known[f"lam_{name}"] = y[:, start : start + n]
            force = force + sign * known[f"lam_{name}"]
            data[name] = z + sign * s[:, start : start + n]
            start += n
    data["q"] = -force
    assert data["q"].dtype == dtype
    return Case(data, z, known, strict)


@family
def dense(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    G, A = r.normal(BATCH, 8, 7), r.normal(BATCH, 2, 7)
    return from_solution(r.definite(BATCH, 7), r.normal(BATCH, 7), r, G=G, A=A, lower=True, upper=True)


@family
def diagonal(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    Q, z = Diagonal(r.uniform(BATCH, 6)), r.normal(BATCH, 6)
    return from_solution(Q, z, r, G=r.normal(4, 6), A=r.normal(2, 6), lower=True)


@family
def bounds_only(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    return from_solution(r.definite(BATCH, 5), r.normal(BATCH, 5), r, lower=True, upper=True)


@family
def rows_only(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    return from_solution(r.definite(BATCH, 5), r.normal(BATCH, 5), r, G=r.normal(BATCH, 9, 5))


@family
def equality_only(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    return from_solution(r.definite(BATCH, 6), r.normal(BATCH, 6), r, A=r.normal(3, 6))


@family
def unconstrained(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    return from_solution(r.definite(BATCH, 4), r.normal(BATCH, 4), r)


@family
def one_sided(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    return from_solution(r.definite(6), r.normal(BATCH, 6), r, A=r.normal(1, 6), upper=True)


@family
def linear_program(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Q = 0, a vertex: n − m active sides."""
    r = _Random(generator, dtype)
    n = 5
    G, A = r.normal(BATCH, 9, n), r.normal(BATCH, 2, n)
    return from_solution(torch.zeros(n, n, dtype=dtype), r.normal(BATCH, n), r, G=G, A=A, active=n - 2)


@family
def singular_Q(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Rank 3 of 6; the active rows fix the rest."""
    r = _Random(generator, dtype)
    W = r.normal(BATCH, 6, 3)
    return from_solution(W @ W.mT, r.normal(BATCH, 6), r, G=r.normal(BATCH, 8, 6), active=4)


@family
def flat(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Rank 1 and few active rows: many solutions, none of them singled out."""
    r = _Random(generator, dtype)
    w = r.normal(BATCH, 6, 1)
    case = from_solution(w @ w.mT, r.normal(BATCH, 6), r, G=r.normal(BATCH, 4, 6), active=2, strict=False)
    return Case(case.data)


@family
def no_objective(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Any feasible point, with multipliers of zero."""
    r = _Random(generator, dtype)
    n, z = 5, r.normal(BATCH, 5)
    Q, G, A = torch.zeros(n, n, dtype=dtype), r.normal(BATCH, 4, n), r.normal(BATCH, 2, n)
    data = from_solution(Q, z, r, G=G, A=A, active=0).data
    return Case(data | {"q": torch.zeros_like(z), "lb": z - r.uniform(BATCH, n)})


@family
def duplicated_rows(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Every row of G and A twice, one of them scaled."""
    r = _Random(generator, dtype)
    case = from_solution(r.definite(BATCH, 6), r.normal(BATCH, 6), r, G=r.normal(BATCH, 5, 6), A=r.normal(BATCH, 2, 6))
    data = case.data
    for M, side in (("G", "h"), ("A", "b")):
        data[M] = torch.cat([data[M], 2 * data[M]], -2)
        data[side] = torch.cat([data[side], 2 * data[side]], -1)
    return Case(data, case.z)


@family
def zero_rows(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Rows 0ᵀz ≤ 0, 0ᵀz ≤ 1 and 0ᵀz = 0 beside others."""
    r = _Random(generator, dtype)
    case = from_solution(r.definite(BATCH, 5), r.normal(BATCH, 5), r, G=r.normal(BATCH, 4, 5), A=r.normal(BATCH, 1, 5))
    data, zero = case.data, torch.zeros(BATCH, 2, 5, dtype=dtype)
    data["G"], data["A"] = torch.cat([zero, data["G"]], -2), torch.cat([zero[:, :1], data["A"]], -2)
    data["h"] = torch.cat([torch.tensor([[0.0, 1.0]], dtype=dtype).expand(BATCH, 2), data["h"]], -1)
    data["b"] = torch.cat([torch.zeros(BATCH, 1, dtype=dtype), data["b"]], -1)
    return Case(data, case.z)


@family
def no_interior(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """An equality written as two inequalities."""
    r = _Random(generator, dtype)
    A = r.normal(BATCH, 1, 4)
    case = from_solution(r.definite(BATCH, 4), r.normal(BATCH, 4), r, A=A)
    b = case.data["b"]
    data = {"Q": case.data["Q"], "q": case.data["q"], "G": torch.cat([A, -A], -2), "h": torch.cat([b, -b], -1)}
    return Case(data, case.z)


@family
def fixed_variables(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """lb = ub for the first two variables."""
    r = _Random(generator, dtype)
    case = from_solution(r.definite(BATCH, 6), r.normal(BATCH, 6), r, G=r.normal(BATCH, 4, 6), active=2)
    lb, ub = case.z - 2, case.z + 2
    lb[:, :2] = ub[:, :2] = case.z[:, :2]
    case.data["q"][:, :2] += r.normal(BATCH, 2)  # their multiplier
    return Case(case.data | {"lb": lb, "ub": ub}, case.z)


@family
def infinite_entries(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """±inf in h, lb, ub wherever a side is not active, at random."""
    r = _Random(generator, dtype)
    case = from_solution(r.definite(BATCH, 6), r.normal(BATCH, 6), r, G=r.normal(BATCH, 6, 6), lower=True, upper=True)
    for name, y, value in (("h", "lam", torch.inf), ("lb", "lam_lb", -torch.inf), ("ub", "lam_ub", torch.inf)):
        absent = (case.known[y] == 0) & r.chance(0.6, *case.known[y].shape)
        case.data[name] = torch.where(absent, value, case.data[name])
    return case


@family
def weakly_active(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Two active sides with multiplier 0."""
    r = _Random(generator, dtype)
    case = from_solution(r.definite(BATCH, 5), r.normal(BATCH, 5), r, G=r.normal(BATCH, 5, 5), active=0, strict=False)
    case.data["h"][:, :2] = (case.data["G"] @ case.z.unsqueeze(-1)).squeeze(-1)[:, :2]
    return Case(case.data, case.z)


@family
def one_variable(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    return from_solution(r.definite(BATCH, 1), r.normal(BATCH, 1), r, G=r.normal(BATCH, 2, 1), lower=True, active=1)


@family
def shared_but_q(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    n, p, m = 8, 10, 2
    G, A, z = r.normal(p, n), r.normal(m, n), r.normal(n)
    data = {
        "Q": r.definite(n), "q": 2 * r.normal(BATCH, n), "G": G, "h": G @ z + r.uniform(p), "A": A, "b": A @ z,
        "lb": z - r.uniform(n), "ub": z + r.uniform(n),
    }  # fmt: skip
    return Case(data)


@family
def no_batch(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    case = from_solution(r.definite(1, 5), r.normal(1, 5), r, G=r.normal(1, 6, 5), A=r.normal(1, 1, 5), lower=True)
    known = {name: x[0] for name, x in case.known.items()}
    return Case({name: x[0] for name, x in case.data.items()}, case.z[0], known, True)


@family
def sizes_of_a_vector(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """No size a multiple of four."""
    r = _Random(generator, dtype)
    G, A = r.normal(BATCH, 21, 33), r.normal(BATCH, 13, 33)
    return from_solution(r.definite(BATCH, 33), r.normal(BATCH, 33), r, G=G, A=A)


def _rescaled(case: Case, variables: Tensor, rows: Tensor, cost: float) -> Case:
    """z = variables ẑ, rows of G scaled, objective scaled."""
    data = case.data
    D = variables
    data["Q"] = cost * data["Q"] / (D.unsqueeze(-1) * D.unsqueeze(-2))
    data["q"] = cost * data["q"] / D
    data["G"], data["h"] = rows.unsqueeze(-1) * data["G"] / D.unsqueeze(-2), rows * data["h"]
    if "A" in data:
        data["A"] = data["A"] / D.unsqueeze(-2)
    return Case(data, D * case.z)


def _powers(r: _Random, size: int, largest: float) -> Tensor:
    return 10 ** (largest * (2 * r.uniform(BATCH, size, low=0, high=1) - 1))


@family
def scaled_rows(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    case = from_solution(r.definite(BATCH, 5), r.normal(BATCH, 5), r, G=r.normal(BATCH, 6, 5), A=r.normal(BATCH, 1, 5))
    return _rescaled(case, torch.ones(BATCH, 5, dtype=dtype), _powers(r, 6, 8 if dtype == torch.float64 else 3), 1.0)


@family
def scaled_variables(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    case = from_solution(r.definite(BATCH, 5), r.normal(BATCH, 5), r, G=r.normal(BATCH, 6, 5), A=r.normal(BATCH, 1, 5))
    return _rescaled(case, _powers(r, 5, 4 if dtype == torch.float64 else 1), torch.ones(BATCH, 6, dtype=dtype), 1.0)


@family
def large_objective(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    case = from_solution(r.definite(BATCH, 5), r.normal(BATCH, 5), r, G=r.normal(BATCH, 6, 5))
    one = torch.ones(BATCH, 6, dtype=dtype)
    return _rescaled(case, one[:, :5], one, 1e8 if dtype == torch.float64 else 1e4)


@family
def small_objective(generator: torch.Generator, dtype: torch.dtype) -> Case:
    r = _Random(generator, dtype)
    case = from_solution(r.definite(BATCH, 5), r.normal(BATCH, 5), r, G=r.normal(BATCH, 6, 5))
    one = torch.ones(BATCH, 6, dtype=dtype)
    return _rescaled(case, one[:, :5], one, 1e-8 if dtype == torch.float64 else 1e-4)


# --- problems without solution --------------------------------------------------------------------------------------


def _tensors(dtype: torch.dtype, **values: Any) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}


def _two(dtype: torch.dtype, **values: Any) -> dict[str, Tensor]:
    """A problem of two variables, of which the arguments override the strictly convex default."""
    return _tensors(dtype, **({"Q": [[1.0, 0], [0, 1]], "q": [0.0, 0]} | values))


INF, NAN = float("inf"), float("nan")
_FLAT, _ZERO = [[0.0, 0], [0, 0]], [0.0, 0]
INFEASIBLE: dict[str, dict[str, Any]] = {
    "rows": {"G": [[1.0, 0], [-1, 0]], "h": [-1.0, -1]},
    "row against bounds": {"G": [[1.0, 1]], "h": [-1.0], "lb": _ZERO},
    "equalities": {"A": [[1.0, 1], [1, 1]], "b": [0.0, 1]},
    "equality against bounds": {"A": [[1.0, 1]], "b": [5.0], "lb": _ZERO, "ub": [2.0, 2]},
    "zero row of G": {"G": [_ZERO, [1.0, 0]], "h": [-1.0, 1]},
    "zero row of A": {"A": [_ZERO], "b": [1.0]},
    "crossed bounds": {"lb": [0.0, 1], "ub": [0.0, 0.5]},
    "fixed against row": {"lb": [1.0, -INF], "ub": [1.0, INF], "G": [[1.0, 0]], "h": [0.5]},
    "by a thousandth": {"G": [[1.0, 0], [-1, 0]], "h": [0.0, -1e-3]},
    "rows of different scale": {"G": [[1e4, 0], [-1e-4, 0]], "h": [-1e4, -1e-4]},
    "three rows": {"G": [[1.0, 1], [-1, 0], [0, -1]], "h": [-1.0, 0, 0]},
    "and unbounded": {"Q": _FLAT, "q": [-1.0, 0], "G": [[0.0, 1], [0, -1]], "h": [-1.0, -1]},
    "infeasible linear program": {"Q": _FLAT, "q": [1.0, 1], "G": [[-1.0, -1], [1, 1]], "h": [-3.0, 2], "lb": _ZERO},
}
UNBOUNDED: dict[str, dict[str, Any]] = {
    "nothing": {"Q": _FLAT, "q": [-1.0, 0]},
    "half space": {"Q": _FLAT, "q": [-1.0, 0], "G": [[-1.0, 0]], "h": [0.0]},
    "cone": {"Q": _FLAT, "q": [-1.0, -1], "G": [[-1.0, 1]], "h": [1.0], "lb": _ZERO},
    "flat direction": {"Q": [[1.0, 0], [0, 0]], "q": [0.0, -1]},
    "flat direction on an equality": {"Q": [[1.0, -1], [-1, 1]], "q": [-1.0, -1], "A": [[1.0, -1]], "b": [0.0]},
    "one bound infinite": {"Q": _FLAT, "q": [1.0, -1], "lb": _ZERO, "ub": [1.0, INF]},
    "row without effect": {"Q": _FLAT, "q": [-1.0, 0], "G": [[1.0, 0]], "h": [INF]},
}
INVALID: dict[str, dict[str, Any]] = {
    "nan in Q": {"Q": [[NAN, 0], [0, 1]]},
    "nan in q": {"q": [NAN, 0]},
    "nan in G": {"G": [[NAN, 0]], "h": [1.0]},
    "nan in h": {"G": [[1.0, 0]], "h": [NAN]},
    "nan in A": {"A": [[NAN, 0]], "b": [1.0]},
    "nan in b": {"A": [[1.0, 0]], "b": [NAN]},
    "nan in lb": {"lb": [NAN, 0]},
    "nan in ub": {"ub": [NAN, 0]},
    "inf in Q": {"Q": [[INF, 0], [0, 1]]},
    "inf in q": {"q": [INF, 0]},
    "inf in b": {"A": [[1.0, 0]], "b": [INF]},
    "-inf in h": {"G": [[1.0, 0]], "h": [-INF]},
    "inf in lb": {"lb": [INF, 0]},
    "-inf in ub": {"ub": [-INF, 0]},
}
CONCAVE: dict[str, dict[str, Any]] = {
    "one direction": {"Q": [[1.0, 0], [0, -1]], "lb": [-1.0, -1], "ub": [1.0, 1]},
    "off the diagonal": {"Q": [[1.0, 2], [2, 1]], "lb": [-1.0, -1], "ub": [1.0, 1]},
    "small": {"Q": [[1.0, 0], [0, -1e-3]], "lb": [-1.0, -1], "ub": [1.0, 1]},
    "unbounded as well": {"Q": [[-1.0, 0], [0, -1]]},
}


def hopeless(values: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of an entry of the four tables above."""
    return _two(dtype, **values)
