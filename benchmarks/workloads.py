"""The benchmark's problems, each drawn from a seed.

    minimise ½ zᵀQz + qᵀz   subject to   A z = b,   G z ≤ h

Bounds are rows of G, as every peer accepts them. A tensor without batch dimension is shared by the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

Arrays = dict[str, np.ndarray]
NAMES = ("Q", "q", "G", "h", "A", "b")
RANK = {"Q": 2, "q": 1, "G": 2, "h": 1, "A": 2, "b": 1}


@dataclass(frozen=True)
class Workload:
    """A batch of problems that some layer solves in every step."""

    name: str
    batch: int
    draw: Callable[[Generator, int], Arrays]

    @property
    def what(self) -> str:
        """One line about it."""
        return f"{(self.draw.__doc__ or '').strip().splitlines()[0]} Batch {self.batch}."

    def data(self, seed: int = 0) -> Arrays:
        """The tensors, float64; absent parts are missing."""
        tensors = self.draw(np.random.default_rng(seed), self.batch)
        return {name: np.ascontiguousarray(tensors[name]) for name in NAMES if name in tensors}

    def upstream(self, seed: int = 1) -> np.ndarray:
        """The gradient of a loss with respect to z, random normal, (batch, n)."""
        n = self.data()["q"].shape[-1]
        return np.random.default_rng(seed).standard_normal((self.batch, n))


def shares_matrices(tensors: Arrays) -> bool:
    """Whether the whole batch has one Q, G or A."""
    return any(name in tensors and tensors[name].ndim == 2 for name in ("Q", "G", "A"))


def _feasible(G: np.ndarray, z: np.ndarray) -> np.ndarray:
    """G z for every member."""
    return (G @ z[..., None])[..., 0]


def random_dense(n: int, figure: int) -> Callable[[Generator, int], Arrays]:
    def draw(rng: Generator, batch: int) -> Arrays:
        U = rng.uniform(size=(batch, n, n))
        G = rng.standard_normal((batch, n, n))
        h = _feasible(G, rng.standard_normal((batch, n))) + rng.uniform(size=(batch, n))
        return {"Q": U.mT @ U + 1e-3 * np.eye(n), "q": rng.standard_normal((batch, n)), "G": G, "h": h}

    draw.__doc__ = f"OptNet §4.1, fig. {figure}: random, dense, {n} variables and inequalities, nothing shared."
    return draw


def sudoku(rng: Generator, batch: int) -> Arrays:
    """OptNet §4.4: 4×4 Sudoku, z ≥ 0, learned equalities; half of the 16 cells are given."""
    n, m = 64, 40
    A = rng.standard_normal((m, n)) / 8
    clues = np.zeros((batch, 16, 4))
    for clue in clues:
        cells = rng.permutation(16)[:8]
        clue[cells, rng.integers(4, size=8)] = 1
    return {
        "Q": 0.1 * np.eye(n), "q": -clues.reshape(batch, n), "G": -np.eye(n), "h": np.zeros(n),
        "A": A, "b": A @ rng.uniform(0.05, 0.95, size=n),
    }


def denoise(dense: bool) -> Callable[[Generator, int], Arrays]:
    def draw(rng: Generator, batch: int) -> Arrays:
        n, k = 100, 99
        D = 0.3 * rng.standard_normal((k, n)) if dense else np.diff(np.eye(n), axis=0)
        jumps = np.where(rng.uniform(size=(batch, n)) < 0.06, 3 * rng.standard_normal((batch, n)), 0)
        y = jumps.cumsum(1) + 0.5 * rng.standard_normal((batch, n))
        Q = np.diag(np.concatenate([np.ones(n), np.full(k, 1e-4)]))
        weight = np.full((batch, k), 0.15 if dense else 1.0)
        G = np.block([[D, -np.eye(k)], [-D, -np.eye(k)]])
        return {"Q": Q, "q": np.concatenate([-y, weight], 1), "G": G, "h": np.zeros(2 * k)}

    matrix = "a dense matrix, as it is learned" if dense else "first differences"
    draw.__doc__ = f"OptNet §4.2: total variation of a signal, ½‖z − y‖² + w‖Dz‖₁, with t ≥ |Dz|; D: {matrix}."
    return draw


def mnist(rng: Generator, batch: int) -> Arrays:
    """OptNet §4.3: a layer of ten variables behind a network; all shared but q."""
    n = 10
    L = np.tril(rng.uniform(size=(n, n)))
    G = rng.uniform(-1, 1, size=(n, n))
    h = G @ rng.standard_normal(n) + 1
    return {"Q": L @ L.T + 1e-2 * np.eye(n), "q": 2 * rng.standard_normal((batch, n)), "G": G, "h": h}


def safety(rng: Generator, batch: int) -> Arrays:
    """Control-barrier filter: the nearest safe command to a nominal one; nothing shared."""
    n, p = 4, 8
    W = rng.standard_normal((batch, n, n))
    Q = W @ W.mT + np.eye(n) * rng.uniform(0.5, 2, size=(batch, 1, n))
    command = rng.standard_normal((batch, n))
    G = rng.standard_normal((batch, p, n))
    h = _feasible(G, rng.standard_normal((batch, n))) + rng.uniform(0.2, 2, size=(batch, p))
    return {"Q": Q, "q": -_feasible(Q, command), "G": G, "h": h}


def metaopt(rng: Generator, batch: int) -> Arrays:
    """MetaOptNet's 5-way 5-shot support vector machine in the dual; only Q and q vary."""
    examples, ways, features = 25, 5, 512
    labels = np.eye(ways)[np.arange(examples) % ways].reshape(-1)
    X = rng.standard_normal((batch, examples, features)) / np.sqrt(features)
    Q = np.stack([np.kron(gram, np.eye(ways)) for gram in X @ X.mT]) + np.eye(examples * ways)
    q = np.broadcast_to(-labels, (batch, examples * ways))
    A = np.kron(np.eye(examples), np.ones((1, ways)))
    return {"Q": Q, "q": q, "G": np.eye(examples * ways), "h": 0.1 * labels, "A": A, "b": np.zeros(examples)}


def mpc(rng: Generator, batch: int) -> Arrays:
    """Linear model predictive control: 4 states, 2 inputs, 20 steps; the dynamics vary, cost and box are shared."""
    states, inputs, horizon = 4, 2, 20
    width = states + inputs  # variables of a step: u_t, then x_{t+1}
    n, m = width * horizon, states * horizon
    F = np.eye(states) + 0.1 * rng.standard_normal((batch, states, states))  # x_{t+1} = F x_t + B u_t
    F /= np.maximum(1, np.abs(np.linalg.eigvals(F)).max(1))[:, None, None]  # else the box is soon out of reach
    B = 0.3 * rng.standard_normal((batch, states, inputs))
    A, b = np.zeros((batch, m, n)), np.zeros((batch, m))
    for t in range(horizon):
        row, column = slice(t * states, (t + 1) * states), t * width
        A[:, row, column : column + inputs] = -B
        A[:, row, column + inputs : column + width] = np.eye(states)
        if t:
            A[:, row, column - states : column] = -F
    b[:, :states] = _feasible(F, rng.uniform(-1, 1, size=(batch, states)))
    cost = np.tile(np.concatenate([np.full(inputs, 0.1), np.ones(states)]), horizon)
    box = np.tile(np.concatenate([np.full(inputs, 0.5), np.full(states, 3.0)]), horizon)
    q = 0.1 * rng.standard_normal((batch, n))  # a reference to follow
    G = np.concatenate([np.eye(n), -np.eye(n)])
    return {"Q": np.diag(cost), "q": q, "G": G, "h": np.concatenate([box, box]), "A": A, "b": b}


def call(rng: Generator, batch: int) -> Arrays:
    """Two variables, two inequalities: what a call costs beside the arithmetic."""
    return {"Q": np.eye(2), "q": np.array([[-1.0, -0.5]]), "G": np.eye(2), "h": np.array([0.5, 1.0])}


def portfolio(rng: Generator, batch: int) -> Arrays:
    """Markowitz: 50 assets, a covariance per member, long only, fully invested."""
    n = 50
    W = rng.standard_normal((batch, n, 2 * n)) / np.sqrt(2 * n)
    return {
        "Q": W @ W.mT + 1e-2 * np.eye(n), "q": -0.1 * rng.standard_normal((batch, n)),
        "G": -np.eye(n), "h": np.zeros(n), "A": np.ones((1, n)), "b": np.ones(1),
    }


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("call_b1", 1, call),
        Workload("fig1_n10_b128", 128, random_dense(10, 1)),
        Workload("fig1_n50_b128", 128, random_dense(50, 1)),
        Workload("fig1_n500_b16", 16, random_dense(500, 1)),
        Workload("fig2_b1", 1, random_dense(100, 2)),
        Workload("fig2_b8", 8, random_dense(100, 2)),
        Workload("fig2_b32", 32, random_dense(100, 2)),
        Workload("fig2_b128", 128, random_dense(100, 2)),
        Workload("fig2_b512", 512, random_dense(100, 2)),
        Workload("sudoku_b150", 150, sudoku),
        Workload("denoise_b150", 150, denoise(dense=False)),
        Workload("denoiseD_b150", 150, denoise(dense=True)),
        Workload("mnist_b64", 64, mnist),
        Workload("mnist_b1024", 1024, mnist),
        Workload("safety_b4096", 4096, safety),
        Workload("metaopt_b8", 8, metaopt),
        Workload("metaopt_b32", 32, metaopt),
        Workload("mpc_b64", 64, mpc),
        Workload("portfolio_b256", 256, portfolio),
    )
}


def first(tensors: Arrays, count: int) -> Arrays:
    """The problem of the first members."""
    return {name: value[:count] if value.ndim > RANK[name] else value for name, value in tensors.items()}
