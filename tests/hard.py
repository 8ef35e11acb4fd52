"""Kinds of problems on which solvers fall off a cliff, each drawn at any size with its verdict known.

A kind is a function of a generator and a number of variables. Solutions are planted: multiples of 1/8 for z, integers
for the matrices and multipliers, so that q, h and b, which make them optimal, are exact; or they are closed forms.
The shapes depend on n alone: members of one kind and size make a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from optlayer import Status

Arrays = dict[str, np.ndarray]
SOLVED, INFEASIBLE, UNBOUNDED = Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE


@dataclass
class Hard:
    """Data of one problem; its verdict; a solution; whether it is the only one, and to how many of its digits."""

    data: Arrays
    verdict: Status = SOLVED
    z: np.ndarray | None = None
    unique: bool = True
    digits: float = 1e-9  # of each component, relative to `unit`
    unit: np.ndarray | None = None  # default: the largest component


Kind = Callable[[Generator, int], Hard]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    KINDS[make.__name__] = make
    return make


def integers(r: Generator, *shape: int, largest: int = 8) -> np.ndarray:
    return r.integers(-largest, largest + 1, shape).astype(float)


def definite(r: Generator, n: int, rank: int | None = None) -> np.ndarray:
    """W Wᵀ in small integers; + I where the rank is full."""
    W = integers(r, n, n if rank is None else rank, largest=2)
    return W @ W.T + (np.eye(n) if rank is None else 0)


def planted(
    r: Generator, Q: np.ndarray, *, G: np.ndarray | None = None, A: np.ndarray | None = None, active: int = 0,
    box: bool = False, z: np.ndarray | None = None, **known: Any,
) -> Hard:  # fmt: skip
    """The problem that a z of eighths solves, strictly complementary; of G and the box, `active` sides are active."""
    n = len(Q)
    z = integers(r, n, largest=16) / 8 if z is None else z
    data, force = {"Q": Q}, Q @ z
    p = 0 if G is None else len(G)
    on = np.zeros(p + n, bool)
    on[r.permutation(p + n * box)[:active]] = True
    y, s = np.where(on, r.integers(1, 9, p + n), 0.0), np.where(on, 0.0, r.integers(1, 9, p + n) / 8)
    if G is not None:
        data |= {"G": G, "h": G @ z + s[:p]}
        force = force + G.T @ y[:p]
    if A is not None:
        data |= {"A": A, "b": A @ z}
        force = force + A.T @ integers(r, len(A))
    if box:
        low = r.random(n) < 0.5
        data |= {"lb": np.where(low, z - s[p:], z - 2), "ub": np.where(low, z + 2, z + s[p:])}
        force = force + np.where(low, -1, 1) * y[p:]
    return Hard(data | {"q": -force}, z=z, **known)


def in_units(
    case: Hard, variables: np.ndarray, rows: np.ndarray | float = 1.0, cost: float = 1.0,
    equalities: np.ndarray | float = 1.0,
) -> Hard:  # fmt: skip
    """The same problem with z = variables·ẑ, inequalities, equalities and objective multiplied."""
    D, d = variables, dict(case.data)
    d["Q"], d["q"] = cost * d["Q"] / D / D[:, None], cost * d["q"] / D
    if "G" in d:
        d["G"], d["h"] = (d["G"].T * rows).T / D, rows * d["h"]
    if "A" in d:
        d["A"], d["b"] = (d["A"].T * equalities).T / D, equalities * d["b"]
    d |= {name: D * d[name] for name in ("lb", "ub") if name in d}
    z = None if case.z is None else D * case.z
    return Hard(d, case.verdict, z, case.unique, case.digits, D * (1 if case.unit is None else case.unit))


def powers(r: Generator, size: int, largest: int, base: float = 2.0) -> np.ndarray:
    return base ** r.integers(-largest, largest + 1, size)


def in_any_units(r: Generator, case: Hard, largest: int) -> Hard:
    """All units powers of two, up to 2^±largest."""
    n, p, m = (len(case.data.get(name, ())) for name in ("q", "h", "b"))
    D, E, F = (powers(r, size, largest) for size in (n, p, m))
    return in_units(case, D, E, float(powers(r, 1, largest)[0]), F)


# --- units, wide data -----------------------------------------------------------------------------------------------


def ordinary(r: Generator, n: int) -> Hard:
    G = integers(r, n, n)
    return planted(r, definite(r, n), G=G, A=integers(r, n // 4, n) if n >= 4 else None, active=n // 3, box=True)


@kind
def units_2_20(r: Generator, n: int) -> Hard:
    """Units of variables, rows and objective over 2^±20, about a million."""
    return in_units(ordinary(r, n), powers(r, n, 20), powers(r, n, 20), float(powers(r, 1, 20)[0]))


@kind
def units_2_40(r: Generator, n: int) -> Hard:
    """The same over 2^±40."""
    return in_units(ordinary(r, n), powers(r, n, 40), powers(r, n, 40), float(powers(r, 1, 40)[0]))


@kind
def wide_diagonal(r: Generator, n: int) -> Hard:
    """Curvatures over 2^±33, separable, in a box that is sometimes active."""
    curvature = powers(r, n, 33)
    z = r.integers(1, 9, n) / 4 / curvature
    high = z * np.where(r.random(n) < 0.3, 0.5, 8)
    data = {"Q": np.diag(curvature), "q": -curvature * z, "lb": high / 1024, "ub": high}
    return Hard(data, z=np.minimum(z, high), unit=z)


@kind
def huge_bounds(r: Generator, n: int) -> Hard:
    """1e20 written for `no bound`."""
    case, far = planted(r, definite(r, n), G=integers(r, n, n), active=n // 3), np.full(n, 1e20)
    return Hard(case.data | {"lb": -far, "ub": far}, z=case.z)


@kind
def large_rank_one(r: Generator, n: int) -> Hard:
    """Q = c w wᵀ with c from 1e8 to 1e10 in a box, all but the last variable at a bound; wᵀz = 0: q is small."""
    w, z = r.integers(1, 4, n).astype(float), integers(r, n, largest=16) / 8
    w[-1], z[-1] = 1, -w[:-1] @ z[:-1]
    side = r.choice([-1, 1], n)
    low, high = np.where(side < 0, z, z - 2), np.where(side < 0, z + 2, z)
    low[-1], high[-1] = z[-1] - 1, z[-1] + 1
    y = np.append(r.integers(1, 9, n - 1), 0)
    Q = 10.0 ** r.integers(8, 11) * np.outer(w, w)
    return Hard({"Q": Q, "q": -1.0 * side * y, "lb": low, "ub": high}, z=z, unit=np.full(n, max(1, np.abs(z).max())))


# --- kernels --------------------------------------------------------------------------------------------------------


def svm_dual(r: Generator, n: int, kernel: Callable[[np.ndarray], np.ndarray], features: np.ndarray) -> Hard:
    """Box [0, 1], one equality, 0 feasible: solvable. The optimum is not planted."""
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    K = kernel(features) * np.outer(y, y)
    data = {"Q": (K + K.T) / 2, "q": -np.ones(n), "A": y[None], "b": np.zeros(1), "lb": np.zeros(n), "ub": np.ones(n)}
    return Hard(data)


@kind
def svm_raw_features(r: Generator, n: int) -> Hard:
    """Dual of a linear support vector machine whose features were not scaled."""
    return svm_dual(r, n, lambda X: X @ X.T, 10 ** r.uniform(2, 4) * r.standard_normal((n, 3)))


@kind
def polynomial_kernel(r: Generator, n: int) -> Hard:
    return svm_dual(r, n, lambda X: (X @ X.T + 1) ** 3, 10 ** r.uniform(0, 1) * r.standard_normal((n, 3)))


@kind
def gaussian_kernel(r: Generator, n: int) -> Hard:
    """Numerically singular: smooth kernel, close points."""

    def kernel(X: np.ndarray) -> np.ndarray:
        return np.exp(-((X[:, None] - X) ** 2).sum(-1) / 2)

    return svm_dual(r, n, kernel, r.standard_normal((n, 2)))


# --- ill-conditioned constraints ------------------------------------------------------------------------------------


@kind
def near_parallel_rows(r: Generator, n: int) -> Hard:
    """Pairs of rows that differ by 2^-20 to 2^-26 of their size, both active."""
    half = max(1, n // 3)
    G = integers(r, half, n)
    G = np.concatenate([G, G + 2.0 ** -r.integers(20, 27) * integers(r, half, n, largest=1)])
    case = planted(r, definite(r, n), G=G, active=0)
    y = r.integers(1, 9, 2 * half)
    return Hard(case.data | {"h": G @ case.z, "q": -(case.data["Q"] @ case.z + G.T @ y)}, z=case.z, digits=1e-4)


@kind
def hilbert(r: Generator, n: int) -> Hard:
    """Q and G are Hilbert's matrix, n ≤ 10: with more rows, rounding its entries makes it indefinite."""
    n = min(n, 10)
    i = np.arange(n)
    H = 1 / (i[:, None] + i + 1.0)
    return planted(r, H, G=H, active=n // 3, unique=False)


@kind
def minimum_snap(r: Generator, n: int) -> Hard:
    """Trajectory through n / 8 segments, 8 coefficients each, on the polynomial that is optimal from end to end."""
    K = max(1, n // 8)

    def row(x: float, k: int) -> np.ndarray:
        falling = [np.prod(np.arange(j - k + 1, j + 1.0)) if j >= k else 0.0 for j in range(8)]
        return np.array([f * x ** max(j - k, 0) for j, f in enumerate(falling)])

    start, end = r.standard_normal(2)
    rise = (
        np.poly1d([-20.0, 70, -84, 35, 0, 0, 0, 0]) * (end - start) + start
    )  # velocity, acceleration, jerk: 0 at both ends
    pieces = [np.poly1d(rise)(np.poly1d([1 / K, k / K])).coeffs[::-1] for k in range(K)]
    z = np.concatenate([np.pad(c, (0, 8 - len(c))) for c in pieces])
    weight = np.array([24.0, 120, 360, 840])
    snap = np.zeros((8, 8))
    snap[4:, 4:] = weight[:, None] * weight / (np.arange(4)[:, None] + np.arange(4) + 1)
    A = []
    for k in range(K):
        for there in (0.0, 1.0):
            A.append(np.kron(np.eye(K)[k], row(there, 0)))
        if k + 1 < K:
            A += [np.kron(np.eye(K)[k], row(1.0, d)) - np.kron(np.eye(K)[k + 1], row(0.0, d)) for d in range(1, 5)]
    A += [
        np.kron(np.eye(K)[at], row(float(at > 0 or (K == 1 and last)), d))
        for d in (1, 2, 3)
        for at, last in ((0, False), (K - 1, True))
    ]
    rows = np.array(A)
    b = np.where(np.arange(len(rows)) >= 0, rows @ z, 0)
    b[np.abs(b) < 1e-9] = 0
    return Hard({"Q": np.kron(np.eye(K), snap), "q": np.zeros(8 * K), "A": rows, "b": b}, z=z, digits=1e-6)


@kind
def dependent_equalities(r: Generator, n: int) -> Hard:
    """Equalities, each twice, and sums of them: consistent."""
    A = integers(r, max(1, n // 3), n)
    A = np.concatenate([A, A, A[:1] + A[-1:], integers(r, 1, len(A)) @ A])
    return planted(r, definite(r, n), A=A, G=integers(r, n, n), active=n // 3)


@kind
def equalities_as_rows(r: Generator, n: int) -> Hard:
    """Equalities, each as two opposite rows, the second one in units of its own: equal but for rounding."""
    C, units = integers(r, max(1, n // 3), n) + 0.5, -(10 ** r.uniform(-3, 3, max(1, n // 3)))
    case = planted(r, definite(r, n), G=integers(r, n, n), active=n // 3, box=True)
    assert case.z is not None
    value, multiplier = C @ case.z, integers(r, len(C))
    G = np.concatenate([case.data["G"], C, units[:, None] * C])
    h = np.concatenate([case.data["h"], value, units * value])
    return Hard(case.data | {"G": G, "h": h, "q": case.data["q"] - C.T @ multiplier}, z=case.z)


@kind
def constant_potential(r: Generator, n: int) -> Hard:
    """Laplacian of a weighted graph, q = 0, some nodes held at one value: but for rounding all forces cancel."""
    W = np.triu(r.random((n, n)) * (r.random((n, n)) < 0.3), 1) + np.diag(r.uniform(0.3, 1, n - 1), 1)
    W = W + W.T
    held, value = r.permutation(n)[: max(1, n // 4)], r.standard_normal() * 10.0 ** r.integers(-4, 5)
    data = {"Q": np.diag(W.sum(1)) - W, "q": np.zeros(n), "A": np.eye(n)[held], "b": np.full(len(held), value)}
    return Hard(data, z=np.full(n, value))


# --- contradictions -------------------------------------------------------------------------------------------------


def beside(
    r: Generator, n: int, G: np.ndarray | None = None, h: Any = None, A: np.ndarray | None = None, b: Any = None
) -> Hard:
    """Contradictory rows beside feasible ones."""
    case = planted(r, definite(r, n), G=integers(r, n, n), A=integers(r, 1, n), active=n // 3)
    for M, side, more, value in (("G", "h", G, h), ("A", "b", A, b)):
        if more is not None:
            case.data[M] = np.concatenate([case.data[M], more])
            case.data[side] = np.concatenate([case.data[side], np.asarray(value, float)])
    return Hard(case.data, INFEASIBLE)


def gap_of(r: Generator) -> float:
    """1 … 1e-6, above the tolerance of rows whose terms add up to a hundred."""
    return float(10.0 ** -r.integers(0, 7))


@kind
def opposite_rows(r: Generator, n: int) -> Hard:
    """c·z ≤ 0 and c·z ≥ 1 … 1e-6."""
    c = integers(r, 1, n) + 0.5
    return beside(r, n, G=np.concatenate([c, -c]), h=[0, -gap_of(r)])


@kind
def crossing_bounds(r: Generator, n: int) -> Hard:
    case, gap = ordinary(r, n), gap_of(r)
    case.data["lb"][0] = case.data["ub"][0] + gap
    return Hard(case.data, INFEASIBLE)


@kind
def zero_row(r: Generator, n: int) -> Hard:
    """0·z ≤ −1 … −1e-6."""
    return beside(r, n, G=np.zeros((1, n)), h=[-gap_of(r)])


@kind
def zero_equality_beside_duplicates(r: Generator, n: int) -> Hard:
    A = np.repeat(integers(r, 1, n) + 0.5, 2, 0)
    return beside(r, n, A=np.concatenate([A, 0 * A[:1]]), b=[0, 0, gap_of(r)])


@kind
def contradictory_equalities(r: Generator, n: int) -> Hard:
    """c·z = 0 and c·z = 1 … 1e-6."""
    A = np.repeat(integers(r, 1, n) + 0.5, 2, 0)
    return beside(r, n, A=A, b=[0, gap_of(r)])


@kind
def three_rows(r: Generator, n: int) -> Hard:
    """Rows whose sum reads 0 ≤ −1 … −1e-6, none of them parallel."""
    c, d = integers(r, 1, n), integers(r, 1, n) + 0.5
    return beside(r, n, G=np.concatenate([c, d, -c - d]), h=[0, 0, -gap_of(r)])


@kind
def barrier_against_box(r: Generator, n: int) -> Hard:
    """A control-barrier filter whose box cannot meet the barrier."""
    c = r.uniform(0.1, 1, (1, n))
    half = np.full(n, 0.5)
    return Hard(
        {
            "Q": np.eye(n),
            "q": r.standard_normal(n),
            "G": c,
            "h": -(1 + gap_of(r)) * 0.5 * c.sum(1),
            "lb": -half,
            "ub": half,
        },
        INFEASIBLE,
    )


@kind
def infeasible_lp(r: Generator, n: int) -> Hard:
    """Q = 0 and z₀ ≤ 0, z₀ ≥ 1 … 1e-6 written as rows."""
    e = np.eye(n)[:1]
    return Hard(
        {
            "Q": np.zeros((n, n)),
            "q": np.ones(n),
            "G": np.concatenate([e, -e]),
            "h": np.array([0, -gap_of(r)]),
            "lb": -np.ones(n),
        },
        INFEASIBLE,
    )


@kind
def transport_float32(r: Generator, n: int) -> Hard:
    """Transport polytope of k × k, weights normalised in float32, both as equalities: contradicts itself by 1e-7."""
    k = max(2, int(np.sqrt(n)))
    u, v = (r.random((2, k)) + 0.1).astype(np.float32)
    u, v = u * np.float32(k) / u.sum(), v * np.float32(k) / v.sum()
    eye, one = np.eye(k), np.ones((1, k))
    if abs(u.astype(float).sum() - v.astype(float).sum()) < 3e-8 * k:
        v[0] += np.float32(1e-6)
    A, b = np.concatenate([np.kron(eye, one), np.kron(one, eye)]), np.concatenate([u, v]).astype(float)
    data = {"Q": 0.01 * np.eye(k * k), "q": r.random(k * k), "A": A, "b": b, "lb": np.zeros(k * k)}
    return Hard(data, INFEASIBLE)


# --- linear programs ------------------------------------------------------------------------------------------------


@kind
def klee_minty(r: Generator, n: int) -> Hard:
    """A path over all corners of a cube lies on the way; right sides up to 5^n, n ≤ 12."""
    n = min(n, 12)
    i = np.arange(n)
    G = np.where(i[:, None] > i, 2.0 ** np.maximum(i[:, None] - i + 1, 0), np.eye(n))
    z = np.concatenate([np.zeros(n - 1), [5.0**n]])
    return Hard({"Q": np.zeros((n, n)), "q": -(2.0 ** i[::-1]), "G": G, "h": 5.0 ** (i + 1), "lb": np.zeros(n)}, z=z)


@kind
def integer_ties(r: Generator, n: int) -> Hard:
    """LP in small integers: many rows meet at the solution with multiplier 0, the optimum is a face."""
    G, z = integers(r, 2 * n, n, largest=2), integers(r, n, largest=2)
    y = np.where(r.random(2 * n) < 0.3, r.integers(1, 3, 2 * n), 0)
    slack = np.where((y > 0) | (r.random(2 * n) < 0.4), 0, r.integers(1, 3, 2 * n))
    return Hard({"Q": np.zeros((n, n)), "q": -G.T @ y, "G": G, "h": G @ z + slack}, z=z, unique=False)


@kind
def unbounded_lp(r: Generator, n: int) -> Hard:
    """Falls along a ray of integers that leaves every row, and is feasible at 0."""
    ray = integers(r, n, largest=2)
    ray[0] = 1
    G = integers(r, n, n, largest=2)
    G[:, 0] -= np.maximum(G @ ray, 0)
    q = integers(r, n, largest=2)
    q[0] -= q @ ray + 1
    return Hard({"Q": np.zeros((n, n)), "q": q, "G": G, "h": r.integers(0, 3, n).astype(float)}, UNBOUNDED)


@kind
def unbounded_qp(r: Generator, n: int) -> Hard:
    """The same with a Q of half rank that the ray does not feel."""
    case = unbounded_lp(r, n)
    ray = np.zeros(n)
    ray[0] = 1
    case.data["G"][:, 0] = -r.integers(0, 3, n)
    W = integers(r, n, max(1, n // 2), largest=2)
    W[0] = 0
    case.data["q"][0] = -1
    return Hard(case.data | {"Q": W @ W.T}, UNBOUNDED)
