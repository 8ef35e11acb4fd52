"""Sparse workloads: batches of QPs that share a pattern, from control, statistics, images, games and power flow.

Two variants of each: "shared", whose matrices are those of all members, and "values", the same pattern with other
numbers in each. Q is always changed to D Q D with D = I + 0.05 diag(normal); what else, the workload says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

Arrays = dict[str, np.ndarray]
DATA = Path(__file__).parent / "data"


@dataclass
class Batch:
    """QPs with one pattern: `patterns` of Q, G and A (CSR), `values` of each, (nnz,) or (B, nnz), and the vectors.

    `unique`: the tensors whose gradient is unique.
    """

    patterns: dict[str, sp.csr_matrix]
    values: Arrays
    vectors: Arrays
    batch: int
    unique: tuple[str, ...] = ("Q", "q", "G", "h", "A", "b", "lb", "ub")

    def member(self, i: int) -> dict[str, Any]:
        """Matrices and vectors of one member."""
        found: dict[str, Any] = {}
        for name, pattern in self.patterns.items():
            values = self.values[name]
            matrix = pattern.copy()
            matrix.data = values if values.ndim == 1 else values[i]
            found[name] = matrix
        for name, vector in self.vectors.items():
            found[name] = vector if vector.ndim == 1 else vector[i]
        return found


@dataclass
class _Model:
    """One problem, how the vectors of a batch differ, and how its matrices do in the variant "values"."""

    Q: Any
    vectors: Arrays
    G: Any = None
    A: Any = None
    noise: dict[str, float] = field(default_factory=dict)  # of each entry of a matrix, relative
    vary: Callable[[np.random.Generator, Arrays], None] | None = None  # anything else: changes the values
    unique: tuple[str, ...] = Batch.unique


def make(name: str, variant: str, batch: int = 32, seed: int = 0) -> Batch:
    """The batch of workload `name`, variant "shared" or "values"."""
    rng = np.random.default_rng(seed)
    model = WORKLOADS[name](rng, batch)
    patterns = {key: _csr(M) for key, M in (("Q", model.Q), ("G", model.G), ("A", model.A)) if M is not None}
    values = {key: M.data for key, M in patterns.items()}
    if variant == "values":
        Q = patterns["Q"]
        rows = np.repeat(np.arange(Q.shape[0]), np.diff(Q.indptr))
        D = 1 + 0.05 * rng.standard_normal((batch, Q.shape[0]))
        values["Q"] = Q.data * D[:, rows] * D[:, Q.indices]
        for key, size in model.noise.items():
            values[key] = patterns[key].data * (1 + size * rng.standard_normal((batch, patterns[key].nnz)))
        if model.vary is not None:
            values |= {key: np.tile(x, (batch, 1)) for key, x in values.items() if x.ndim == 1}
            everything = values | model.vectors
            model.vary(rng, everything)
            values = {key: everything[key] for key in values}
            model.vectors = {key: everything[key] for key in model.vectors}
    return Batch(patterns, values, model.vectors, batch, model.unique)


def _csr(M: Any) -> sp.csr_matrix:
    M = sp.csr_matrix(M)
    M.sort_indices()
    return M


def _mpc(steps: int) -> Callable[[np.random.Generator, int], _Model]:
    """Linear model predictive control: 12 states, 4 inputs, z = (u_0, x_1, u_1, …, x_T)."""

    def model(rng: np.random.Generator, batch: int) -> _Model:
        nx, nu = 12, 4
        F = np.eye(nx) + 0.1 * rng.standard_normal((nx, nx)) / np.sqrt(nx) * (rng.random((nx, nx)) < 0.3)
        F *= 0.99 / max(1.0, abs(np.linalg.eigvals(F)).max())
        B = 0.3 * rng.standard_normal((nx, nu)) * (rng.random((nx, nu)) < 0.5)
        width = nx + nu
        rows = []
        for k in range(steps):
            row = sp.lil_matrix((nx, steps * width))
            row[:, k * width : k * width + nu] = -B
            row[:, k * width + nu : (k + 1) * width] = np.eye(nx)
            if k:
                row[:, (k - 1) * width + nu : k * width] = -F
            rows.append(row)
        weights = np.tile(np.concatenate([0.1 * np.ones(nu), np.ones(nx)]), steps)
        bound = np.tile(np.concatenate([0.3 * np.ones(nu), 4.0 * np.ones(nx)]), steps)
        b = np.zeros((batch, steps * nx))
        b[:, :nx] = rng.standard_normal((batch, nx)) @ F.T
        q = 0.05 * rng.standard_normal((batch, steps * width))
        vectors = {"q": q, "b": b, "lb": -bound, "ub": bound}
        return _Model(sp.diags(weights), vectors, A=sp.vstack(rows), noise={"A": 0.003})

    return model


def _differences(D: sp.spmatrix, y: np.ndarray, weight: float, unique: tuple[str, ...]) -> _Model:
    """min ½‖z − y‖² + weight 1ᵀt + ½ 1e-6 ‖t‖² s.t. ±Dz ≤ t, in the variables (z, t)."""
    k, n = D.shape
    Q = sp.diags(np.concatenate([np.ones(n), 1e-6 * np.ones(k)]))
    G = sp.bmat([[D, -sp.eye(k)], [-D, -sp.eye(k)]])
    q = np.concatenate([-y, np.full((len(y), k), weight)], axis=1)

    def vary(rng: np.random.Generator, t: Arrays) -> None:  # each difference's weight by 10 %
        t["q"] = t["q"].copy()
        t["q"][:, n:] *= 1 + 0.1 * rng.standard_normal((len(y), k))

    return _Model(Q, {"q": q, "h": np.zeros(2 * k)}, G=G, vary=vary, unique=unique)


def _tv(rng: np.random.Generator, batch: int) -> _Model:
    n = 1000
    steps = np.repeat(rng.standard_normal((batch, 20)) * 3, n // 20, axis=1)
    D = sp.diags([-np.ones(n - 1), np.ones(n - 1)], [0, 1], shape=(n - 1, n))
    return _differences(D, steps + rng.standard_normal((batch, n)), 20.0, ("q", "Q", "G", "h"))


def _tv2d(rng: np.random.Generator, batch: int) -> _Model:
    side = 24
    d = sp.diags([-np.ones(side - 1), np.ones(side - 1)], [0, 1], shape=(side - 1, side))
    D = sp.vstack([sp.kron(d, sp.eye(side)), sp.kron(sp.eye(side), d)])
    image = np.zeros((batch, side, side))
    for picture in image:
        for _ in range(4):
            i, j = rng.integers(0, side - 6, 2)
            picture[i : i + 8, j : j + 8] += rng.standard_normal()
    y = image.reshape(batch, -1) + 0.3 * rng.standard_normal((batch, side * side))
    return _differences(D, y, 0.6, ("q", "Q"))  # active rows depend on each other: cycles


def _sudoku9(rng: np.random.Generator, batch: int) -> _Model:
    """OptNet's Sudoku layer with the true rules: cells, rows, columns, blocks (75 rows depend on the others)."""
    cell, digit = np.divmod(np.arange(729), 9)
    i, j = np.divmod(cell, 9)
    groups = [cell, i * 9 + digit, j * 9 + digit, (i // 3 * 3 + j // 3) * 9 + digit]
    A = sp.vstack([sp.csr_matrix((np.ones(729), (group, np.arange(729))), (81, 729)) for group in groups])
    solution = (i * 3 + i // 3 + j) % 9
    given = (rng.random((batch, 81)) < 0.4)[:, cell]
    q = -1.0 * given * (digit == solution) + 0.05 * rng.standard_normal((batch, 729))
    rows = np.repeat(np.arange(324), np.diff(_csr(A).indptr))

    def vary(rng: np.random.Generator, t: Arrays) -> None:  # rows (with b) and columns of A scaled by 5 %
        left, right = 1 + 0.05 * rng.standard_normal((batch, 324)), 1 + 0.05 * rng.standard_normal((batch, 729))
        t["A"] = t["A"] * left[:, rows] * right[:, _csr(A).indices]
        # a point that is feasible after the columns have been scaled is a feasible one divided by the scales
        t["b"] = left * np.ones(324)

    return _Model(0.1 * sp.eye(729), {"q": q, "b": np.ones((batch, 324)), "lb": np.zeros(729)}, A=A, vary=vary,
                  unique=("Q", "q", "lb"))  # fmt: skip


def _factor(rng: np.random.Generator, batch: int) -> _Model:
    """A portfolio of 500 assets with 20 factors f as variables: Fᵀx = f, 1ᵀx = 1, x ≥ 0."""
    assets, factors = 500, 20
    F = rng.standard_normal((assets, factors)) * (rng.random((assets, factors)) < 0.3)
    Q = sp.diags(np.concatenate([rng.random(assets) * np.sqrt(factors) * 0.1, np.ones(factors)]))
    A = sp.bmat([[sp.csr_matrix(F.T), -sp.eye(factors)], [sp.csr_matrix(np.ones((1, assets))), None]])
    b = np.zeros(factors + 1)
    b[-1] = 1.0
    q = np.concatenate([-0.1 * rng.standard_normal((batch, assets)), np.zeros((batch, factors))], axis=1)
    lb = np.concatenate([np.zeros(assets), np.full(factors, -np.inf)])
    return _Model(Q, {"q": q, "b": b, "lb": lb}, A=A, noise={"A": 0.02})


def _dcopf(buses: int) -> Callable[[np.random.Generator, int], _Model]:
    """DC optimal power flow: angles, generation, unserved load at a price of 40; flows in the rows."""

    def model(rng: np.random.Generator, batch: int) -> _Model:
        case = np.load(DATA / f"case{buses}.npz")
        load, gens, lines = case["load"], len(case["gen_bus"]), len(case["x"])
        asks = np.flatnonzero(load > 0)
        ends = sp.csr_matrix(
            (np.concatenate([np.ones(lines), -np.ones(lines)]),
             (np.tile(np.arange(lines), 2), np.concatenate([case["from"], case["to"]]))), (lines, buses)
        )  # fmt: skip
        flow = sp.diags(1 / case["x"]) @ ends
        limited = np.isfinite(case["rate"])
        zero = sp.csr_matrix((limited.sum(), gens + len(asks)))
        G = sp.bmat([[flow[limited], zero], [-flow[limited], zero]])
        at_gen = sp.csr_matrix((np.ones(gens), (case["gen_bus"], np.arange(gens))), (buses, gens))
        at_load = sp.csr_matrix((np.ones(len(asks)), (asks, np.arange(len(asks)))), (buses, len(asks)))
        slack = sp.csr_matrix(([1.0], ([0], [int(case["slack"])])), (1, buses))
        A = sp.bmat([[ends.T @ flow, -at_gen, -at_load], [slack, None, None]])
        curvature = np.concatenate([np.zeros(buses), np.maximum(case["c2"], 1e-4), np.ones(len(asks))])
        Q = sp.csr_matrix((curvature[buses:], (np.arange(buses, len(curvature)),) * 2), (len(curvature),) * 2)
        prices = np.concatenate([case["c1"], np.full(len(asks), 40.0)])
        prices = prices * (1 + 0.1 * rng.standard_normal((batch, gens + len(asks))))
        demand = load * (1 + 0.05 * rng.standard_normal((batch, buses)))
        rate = np.tile(case["rate"][limited], 2)
        free = np.full(buses, np.inf)
        return _Model(Q, {
            "q": np.concatenate([np.zeros((batch, buses)), prices], axis=1), "h": rate,
            "b": np.concatenate([-demand, np.zeros((batch, 1))], axis=1),
            "lb": np.concatenate([-free, case["pmin"], np.zeros(len(asks))]),
            "ub": np.concatenate([free, case["pmax"], 1.5 * load[asks]]),
        }, G=G, A=A, vary=_reactances(case, G, A, limited))  # fmt: skip

    return model


def _reactances(case: Any, G: Any, A: Any, limited: np.ndarray) -> Callable[[np.random.Generator, Arrays], None]:
    """Reactances differ by 2 %: flows and balances follow."""

    def vary(rng: np.random.Generator, t: Arrays) -> None:
        buses, lines = len(case["load"]), len(case["x"])
        batch = len(t["A"])
        ends = sp.csr_matrix(
            (np.concatenate([np.ones(lines), -np.ones(lines)]),
             (np.tile(np.arange(lines), 2), np.concatenate([case["from"], case["to"]]))), (lines, buses)
        )  # fmt: skip
        first_G, first_A = _csr(G), _csr(A)
        for i in range(batch):
            flow = sp.diags(1 / (case["x"] * (1 + 0.02 * rng.standard_normal(lines)))) @ ends
            both = _csr(sp.vstack([flow[limited], -flow[limited]]))
            t["G"][i] = both[_rows(first_G), first_G.indices]
            balance = _csr(ends.T @ flow)
            of_angles = (_rows(first_A) < buses) & (first_A.indices < buses)
            t["A"][i, of_angles] = balance[_rows(first_A)[of_angles], first_A.indices[of_angles]]

    return vary


def _rows(M: sp.csr_matrix) -> np.ndarray:
    return np.repeat(np.arange(M.shape[0]), np.diff(M.indptr))


def _lasso(rng: np.random.Generator, batch: int) -> _Model:
    """The elastic net as CVXPY writes it: variables (w, t, r), Xw − r = y, ±w ≤ t."""
    features, samples = 300, 100
    X = rng.standard_normal((samples, features))
    w = rng.standard_normal((batch, features)) * (rng.random((batch, features)) < 0.05)
    y = w @ X.T + 0.5 * rng.standard_normal((batch, samples))
    Q = sp.csr_matrix(
        (np.concatenate([0.1 * np.ones(features), np.ones(samples)]),
         (np.concatenate([np.arange(features), np.arange(2 * features, 2 * features + samples)]),) * 2),
        (2 * features + samples,) * 2,
    )  # fmt: skip
    eye = sp.eye(features)
    G = sp.bmat([[eye, -eye, sp.csr_matrix((features, samples))], [-eye, -eye, None]])
    A = sp.bmat([[sp.csr_matrix(X), sp.csr_matrix((samples, features)), -sp.eye(samples)]])
    q = np.concatenate([np.zeros(features), np.full(features, 8.0), np.zeros(samples)])
    return _Model(Q, {"q": q, "h": np.zeros(2 * features), "b": y}, G=G, A=A, noise={"A": 0.05, "G": 0.02})


def quadruped(curvature: float = 1e-3) -> dict[str, Any]:
    """The controller's problem: matrices, vectors; `curvature` where Q has none."""
    d = np.load(DATA / "quadruped.npz")
    p: dict[str, Any] = {key: d[key] for key in ("q", "h", "b", "lb", "ub")}
    for key in "QGA":
        p[key] = _csr(sp.csr_matrix((d[key + "_val"], (d[key + "_row"], d[key + "_col"])), shape=d[key + "_shape"]))
    if curvature:
        p["Q"] = _csr(p["Q"] + sp.diags(np.where(p["Q"].diagonal() == 0, curvature, 0.0)))
    return p


def _quadruped(curvature: float) -> Callable[[np.random.Generator, int], _Model]:
    """The controller with q and the initial state perturbed; of the one as it comes, member 0 is undisturbed."""

    def model(rng: np.random.Generator, batch: int) -> _Model:
        p = quadruped(curvature)
        moved = np.arange(batch)[:, None] >= (curvature == 0)
        known = p["Q"].diagonal() > 1e-2
        q = p["q"] + moved * known * 0.05 * np.abs(p["q"]).max() * rng.standard_normal((batch, len(p["q"])))
        b = np.tile(p["b"], (batch, 1))
        b[:, :12] += moved * 0.01 * rng.standard_normal((batch, 12))
        return _Model(p["Q"], {"q": q, "h": p["h"], "b": b, "lb": p["lb"], "ub": p["ub"]}, G=p["G"], A=p["A"],
                      noise={"A": 0.001, "G": 0.01},
                      unique=("Q", "q", "A", "b", "lb", "ub") if curvature else ())  # fmt: skip

    return model


WORKLOADS: dict[str, Callable[[np.random.Generator, int], _Model]] = {
    "mpc20": _mpc(20), "mpc50": _mpc(50), "tv": _tv, "tv2d": _tv2d, "sudoku9": _sudoku9, "factor": _factor,
    "dcopf118": _dcopf(118), "dcopf300": _dcopf(300), "lasso": _lasso, "quadruped": _quadruped(1e-3),
    "controller": _quadruped(0.0),
}  # fmt: skip
VARIANTS = ("shared", "values")
