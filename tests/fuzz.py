"""Random problems with a known verdict, by the hundred thousand: `make fuzz ARGS="--count 100000 --seed 0"`.

Every member of every batch is drawn as one of KINDS and made so that its verdict is known: from its solution, or from
its certificate. Sizes, sharing, scales, duplicated and zero rows, weakly active sides, fixed and free variables are
random; every third batch is of a kind of tests/hard.py. What is returned is verified here in numpy, by nothing that the
solver uses:

    SOLVED             exact for data that differ, entry by entry, by 3e-9; the objective is that of the known solution
    PRIMAL_INFEASIBLE  the multipliers are a Farkas certificate
    DUAL_INFEASIBLE    z is a ray of descent
    INVALID_INPUT, NOT_CONVEX   the member was made so

Anything else than the true verdict is *wrong*; MAX_ITERATIONS and NUMERICAL_ERROR are no claim: counted as given up.
"""

from __future__ import annotations

import argparse
import collections
import time
from typing import Any

import numpy as np
import torch
from tests import hard

from optlayer import Diagonal, Settings, Status, solve
from optlayer.solution import Solution

BATCH = 40
KINDS = ("solvable", "infeasible", "invalid", "concave", "unbounded")
VERDICT = {
    "solvable": Status.SOLVED, "infeasible": Status.PRIMAL_INFEASIBLE, "invalid": Status.INVALID_INPUT,
    "concave": Status.NOT_CONVEX, "unbounded": Status.DUAL_INFEASIBLE,
}
KIND_OF = {verdict: name for name, verdict in VERDICT.items()}
GIVEN_UP = (Status.MAX_ITERATIONS, Status.NUMERICAL_ERROR)


class Draw:
    """One batch: data (as numpy, all float64 values exactly representable in its dtype), kinds, known minima."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.moved: set[int] = set()
        self.single = rng.random() < 0.2
        self.n = n = int(rng.choice([1, 2, 3, 5, 8, 13, 24, 40], p=[0.05, 0.1, 0.15, 0.2, 0.2, 0.15, 0.1, 0.05]))
        self.m = m = int(rng.integers(0, max(1, n // 2) + 1)) if rng.random() < 0.5 else 0
        p = int(rng.integers(0, 2 * n + 2)) if rng.random() < 0.8 else 0
        shared_matrices = rng.random() < 0.4
        members = 1 if shared_matrices else BATCH
        spread = 1.0 if self.single else 3.0

        self.diagonal = rng.random() < 0.25
        self.Q = self.quadratic(members, n)
        self.A = rng.standard_normal((members, m, n))
        self.G = rng.standard_normal((members, p, n))
        if p > 1 and rng.random() < 0.3:  # duplicated and zero rows
            self.G[:, -1] = self.G[:, 0] * rng.choice([1.0, -1.0, 2.0])
        if p > 2 and rng.random() < 0.1:
            self.G[:, 1] = 0
        if m > 1 and rng.random() < 0.2:
            self.A[:, -1] = 2 * self.A[:, 0]
        if rng.random() < 0.3:
            self.G *= 10 ** rng.uniform(-spread, spread, (members, p, 1))
        self.kinds = rng.choice(4, BATCH, p=[0.93, 0.04, 0.015, 0.015])
        if not rng.random() < 0.5 or shared_matrices or self.diagonal:
            self.kinds[self.kinds == KINDS.index("concave")] = 0

        # the solution, its multipliers and slacks: y∘s = 0
        z = rng.standard_normal((BATCH, n)) * 10 ** rng.uniform(-1, 1)
        self.lower, self.upper = rng.random() < 0.4, rng.random() < 0.4
        sides = p + n * (self.lower + self.upper)
        active = rng.random((BATCH, sides)) < rng.uniform(0, min(1.0, 0.7 * n / max(sides, 1)))
        if self.lower and self.upper:
            active[:, p + n :] &= ~active[:, p : p + n]
        weak = active & (rng.random((BATCH, sides)) < (0.1 if rng.random() < 0.3 else 0.0))
        y = np.where(active & ~weak, rng.uniform(0.1, 2, (BATCH, sides)), 0)
        s = np.where(active, 0, rng.uniform(0.1, 2, (BATCH, sides)))
        nu = rng.standard_normal((BATCH, m))
        lam, bounds = y[:, :p], y[:, p:]
        Gz, Az = np.einsum("bij,bj->bi", self.G, z), np.einsum("bij,bj->bi", self.A, z)
        if p > 1:  # the same row twice must have the same side to stay solvable; a zero row has 0 ≤ h
            size = np.abs(self.G).max(-1, keepdims=True)[..., 0]
            s[:, :p] *= np.where(size > 0, size, 1)
        self.h, self.b = Gz + s[:, :p], Az
        self.lb = z - s[:, p : p + n] if self.lower else None
        self.ub = z + s[:, sides - n :] if self.upper else None
        force = np.einsum("bij,bj->bi", self.Q, z)
        force += np.einsum("bij,bi->bj", self.G, lam) + np.einsum("bij,bi->bj", self.A, nu)
        if self.lower:
            force -= bounds[:, :n]
        if self.upper:
            force += bounds[:, -n:]
        self.q = -force
        if self.lower and self.upper and rng.random() < 0.2:  # fixed variables; their multiplier may be anything
            fixed = rng.random(n) < 0.3
            self.lb[:, fixed] = self.ub[:, fixed] = z[:, fixed]
            self.q[:, fixed] += rng.standard_normal((BATCH, int(fixed.sum())))
        for name, share in (("h", 0.2), ("lb", 0.3), ("ub", 0.3)):  # absent where inactive
            side = getattr(self, name)
            if side is not None and rng.random() < 0.3:
                start = {"h": 0, "lb": p, "ub": sides - n}[name]
                inactive = (y[:, start : start + side.shape[1]] == 0) & (rng.random(side.shape) < share)
                if name != "h" and self.lower and self.upper:
                    inactive &= self.lb != self.ub
                side[inactive] = -np.inf if name == "lb" else np.inf
        if rng.random() < 0.15 and not self.single:  # rounded to float32, Q d = 0 and G d ≤ 0 would not hold
            self.unbound()
        if rng.random() < 0.2:
            cost = 10 ** rng.uniform(-spread, spread)
            self.Q, self.q = cost * self.Q, cost * self.q
        self.z = z
        self.spoil()

    def quadratic(self, members: int, n: int) -> np.ndarray:
        rng = self.rng
        if self.diagonal:
            curved = rng.random((members, n)) < rng.choice([1.0, 0.7, 0.0], p=[0.6, 0.2, 0.2])
            return (rng.uniform(0.1, 2, (members, n)) * curved)[:, :, None] * np.eye(n)
        rank = int(rng.choice([n, max(1, n // 2), 0], p=[0.7, 0.2, 0.1]))
        W = rng.standard_normal((members, n, rank))
        return W @ W.transpose(0, 2, 1) / max(n, 1) + (0.1 * np.eye(n) if rank == n else 0)

    def unbound(self) -> None:
        """Half of the members get a ray of descent: no bounds, Q d = 0, A d = 0, G d ≤ 0, qᵀd < 0."""
        rng, n = self.rng, self.n
        chosen = np.flatnonzero((np.arange(BATCH) % 2 == 0) & (self.kinds == 0))
        if self.diagonal or len(self.Q) == 1 or len(self.G) == 1:
            return
        self.lb = self.ub = None
        self.lower = self.upper = False
        for k in chosen:
            d = rng.standard_normal(n)
            d /= np.linalg.norm(d)
            P = np.eye(n) - np.outer(d, d)
            self.Q[k], self.A[k] = P @ self.Q[k] @ P, self.A[k] @ P
            self.b[k] = self.A[k] @ rng.standard_normal(n)
            self.G[k] -= np.outer(np.maximum(self.G[k] @ d, 0) + (rng.random(len(self.G[k])) < 0.5) * 0.1, d)
            self.q[k] = P @ self.q[k] - rng.uniform(0.1, 2) * d
            # a feasible point: far along d the rows with G d < 0 hold; the others are made to
            x = np.linalg.pinv(self.A[k]) @ self.b[k] if self.m else np.zeros(n)
            self.h[k] = np.maximum(self.h[k], self.G[k] @ x)
        self.kinds[chosen] = KINDS.index("unbounded")
        rest = np.setdiff1d(np.arange(BATCH), chosen)  # their bounds were taken away: add curvature
        self.Q[rest] += 0.1 * np.eye(n)
        self.moved = set(rest.tolist())  # members whose minimum is elsewhere

    def spoil(self) -> None:
        """Members of the other kinds."""
        rng, n = self.rng, self.n
        for k in np.flatnonzero(self.kinds == KINDS.index("infeasible")):
            if self.m and (not self.G.shape[1] or rng.random() < 0.3):  # an equality out of the range of a second one
                i = self.m - 1
                if self.m > 1 and np.allclose(self.A[k % len(self.A), i], 2 * self.A[k % len(self.A), 0]):
                    self.b[k, i] = 2 * self.b[k, 0] + rng.uniform(0.01, 1)
                    continue
            if self.lower and self.upper:
                j = rng.integers(n)
                top = np.where(np.isfinite(self.ub[k, j]), self.ub[k, j], 0.0)
                self.ub[k, j], self.lb[k, j] = top, top + rng.uniform(0.01, 1) * max(1.0, abs(top))
                continue
            G = self.G[k % len(self.G)]
            pair = [i for i in range(1, len(G)) if np.any(G[i]) and np.allclose(G[i], -G[0])]
            if pair:
                gap = rng.uniform(0.01, 1) * np.abs(G[0]).max()
                base = np.where(np.isfinite(self.h[k, 0]), self.h[k, 0], 0.0)
                self.h[k, 0], self.h[k, pair[0]] = base, -base - gap
                continue
            self.kinds[k] = 0
        for k in np.flatnonzero(self.kinds == KINDS.index("invalid")):
            self.q[k, rng.integers(n)] = rng.choice([np.nan, np.inf])
        for k in np.flatnonzero(self.kinds == KINDS.index("concave")):
            v = rng.standard_normal(n)
            size = np.abs(self.Q[k]).max() + 1e-3
            v /= np.linalg.norm(v)
            self.Q[k] = self.Q[k] - (v @ self.Q[k] @ v + rng.uniform(0.01, 1) * size) * np.outer(v, v)

    def arguments(self, device: str = "cpu") -> dict[str, Any]:
        """Arguments of solve; data rounded to the dtype, and rounded here as well."""
        dtype = torch.float32 if self.single else torch.float64
        Q = np.diagonal(self.Q, axis1=1, axis2=2).copy() if self.diagonal else self.Q
        data: dict[str, Any] = {"Q": Q, "q": self.q}
        if self.G.shape[1]:
            data |= {"G": self.G, "h": self.h}
        if self.m:
            data |= {"A": self.A, "b": self.b}
        data |= {name: x for name in ("lb", "ub") if (x := getattr(self, name)) is not None}
        tensors = {name: torch.from_numpy(x[0] if len(x) == 1 else x).to(dtype) for name, x in data.items()}
        if self.single:
            for name, x in tensors.items():
                value = x.double().numpy()
                if name == "Q" and self.diagonal:
                    value = value[..., None] * np.eye(self.n)
                matrix = name in ("Q", "G", "A")
                setattr(self, name, value[None] if value.ndim == (2 if matrix else 1) else value)
        tensors = {name: x.to(device) for name, x in tensors.items()}
        return tensors | ({"Q": Diagonal(tensors["Q"])} if self.diagonal else {})


class HardDraw(Draw):
    """One batch of a kind of tests/hard.py."""

    def __init__(self, seed: int, name: str | None = None) -> None:
        rng = np.random.default_rng(seed)
        chosen = str(rng.choice(sorted(hard.KINDS)))
        self.name = name or chosen
        size = int(rng.choice([2, 3, 4, 6, 9, 16, 25], p=[0.1, 0.2, 0.2, 0.2, 0.15, 0.1, 0.05]))
        cases = [hard.KINDS[self.name](rng, size) for _ in range(BATCH)]
        self.data = {name: np.stack([case.data[name] for case in cases]) for name in cases[0].data}
        self.single, self.diagonal, self.n = False, False, self.data["q"].shape[1]
        nothing = {"G": (BATCH, 0, self.n), "h": (BATCH, 0), "A": (BATCH, 0, self.n), "b": (BATCH, 0)}
        for name in ("Q", "q", "G", "h", "A", "b", "lb", "ub"):
            setattr(self, name, self.data.get(name, np.zeros(nothing[name]) if name in nothing else None))
        self.m = self.A.shape[1]
        self.kinds = np.array([KINDS.index(KIND_OF[case.verdict]) for case in cases])
        self.moved = {k for k, case in enumerate(cases) if case.z is None}
        self.z = np.stack([np.zeros(self.n) if case.z is None else case.z for case in cases])

    def arguments(self, device: str = "cpu") -> dict[str, Any]:
        return {name: torch.from_numpy(x).to(device) for name, x in self.data.items()}


def row(x: np.ndarray, k: int) -> np.ndarray:
    return x[0] if len(x) == 1 else x[k]


CANCELLED = 10.0  # terms count as at most so many times what is left of them


def share(off: np.ndarray, left: np.ndarray, terms: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Residuals relative to the terms of their own sums, less what rounding hides in them; 0 / 0 is 0."""
    off = np.maximum(np.abs(off) - hidden - 1e-280, 0)  # less than what float64 can hold in full
    size = np.minimum(terms, CANCELLED * left)
    return np.where(off > 0, off / np.where(size > 0, size, 1e-300), 0)


def check_solved(d: Draw, k: int, z: np.ndarray, y: dict[str, np.ndarray]) -> float:
    """The componentwise backward error of a point and its multipliers: for which changes of the data, relative to each
    entry, it is exact (Oettli and Prager 1964).

    Every component of stationarity and every row is measured against the magnitudes of its own terms; a side with a
    multiplier is an equality in this sense, or the multiplier is that small in each component that it enters. What
    rounding z, by its own size or that of a Newton step, and summing in float64 can cause, is nothing.
    """
    n, (Q, G, A) = d.n, (row(x, k).astype(np.longdouble) for x in (d.Q, d.G, d.A))
    Q, q, size = (Q + Q.T) / 2, d.q[k], np.abs(z)
    noise = 1e-6 if d.single else 2.3e-16 * (8 + n)
    sides = [(G, d.h[k], y["lam"])] if len(G) else []
    sides += [(sign * np.eye(n), sign * bound[k], y[name])
              for name, bound, sign in (("lam_lb", d.lb, -1.0), ("lam_ub", d.ub, 1.0)) if bound is not None]
    pressing = sum((C.T @ multiplier for C, _, multiplier in sides), np.zeros(n))
    pressing_size = sum((np.abs(C).T @ np.abs(multiplier) for C, _, multiplier in sides), np.zeros(n))
    force, force_size = A.T @ y["nu"], np.abs(A).T @ np.abs(y["nu"])
    left = np.abs(Q @ z) + np.abs(q) + np.abs(force + pressing)
    terms = np.abs(Q) @ size + np.abs(q) + force_size + pressing_size
    curvature = np.diagonal(Q)
    step = np.zeros(n)  # without curvature, what the rows that a variable enters would let it be
    for C, side in [(A, d.b[k]), *((C, side) for C, side, _ in sides)]:
        level, entry = np.abs(C) @ size + np.where(np.isfinite(side), np.abs(side), 0), np.abs(C)
        allowed = np.where(entry > 0, level[:, None] / np.where(entry > 0, entry, 1), 0)
        step = np.maximum(step, allowed.max(0, initial=0))
    scale = np.maximum(size, np.where(curvature > 0, left / np.where(curvature > 0, curvature, 1), step))
    hidden = noise * (terms + np.abs(Q) @ scale)
    # A variable without an objective of its own, all of whose forces are rounding beside the largest in units of their
    # curvature, is zero but for that.
    unit = np.where(curvature > 0, 1 / np.sqrt(np.where(curvature > 0, curvature, 1)), 1)
    nothing = (q == 0) & (curvature > 0) & (unit * terms <= noise * (unit * left).max())
    worst = [np.where(nothing, 0, share(Q @ z + q + force + pressing, left, terms, hidden)).max()]

    def of_rows(off: np.ndarray, C: np.ndarray, side: np.ndarray) -> np.ndarray:
        terms = np.abs(C) @ size + np.abs(side)
        return share(off, np.abs(C @ z) + np.abs(side), terms, noise * (terms + np.abs(C) @ scale))

    if d.m:
        worst.append(of_rows(A @ z - d.b[k], A, d.b[k]).max())
    for C, side, multiplier in sides:
        real = np.isfinite(side)
        if multiplier[~real].any() or (multiplier < 0).any():
            return float("inf")
        C, side, multiplier = C[real], side[real], multiplier[real]
        over = C @ z - side
        off = of_rows(np.where(multiplier > 0, over, np.maximum(over, 0)), C, side)
        weight = (np.abs(C) * multiplier[:, None] / np.where(left > 0, left, 1e-300)).max(-1, initial=0)
        worst.append(np.where(over < 0, np.minimum(off, weight), off).max(initial=0))
    return float(max(worst))


def check_farkas(d: Draw, k: int, y: dict[str, np.ndarray]) -> float:
    """0 for a perfect certificate, inf for none."""
    G, A = row(d.G, k), row(d.A, k)
    parts = [G.T @ y["lam"], A.T @ y["nu"]]
    equations = ((d.h[k], y["lam"]), (d.b[k], y["nu"]))
    value = sum(float(np.where(np.isfinite(side), side, 0) @ x) for side, x in equations if len(x))
    negative = max(np.maximum(-y["lam"], 0).max(initial=0), 0.0)
    for name, bound, sign in (("lam_lb", d.lb, -1.0), ("lam_ub", d.ub, 1.0)):
        if bound is not None:
            parts.append(sign * y[name])
            value += sign * float(np.where(np.isfinite(bound[k]), bound[k], 0) @ y[name])
            absent = np.abs(y[name][np.isinf(bound[k])]).max(initial=0)
            negative = max(negative, np.maximum(-y[name], 0).max(initial=0), absent)
    size = max(np.abs(x).max(initial=0.0) for x in parts)
    absolute = max(np.abs(G).T @ np.abs(y["lam"]), default=0.0), max(np.abs(A).T @ np.abs(y["nu"]), default=0.0)
    size = max(size, *map(float, absolute), 1e-300)
    return max(float(np.abs(sum(parts)).max()), negative) / size if value < 0 else np.inf


def check_ray(d: Draw, k: int, z: np.ndarray) -> float:
    """0 for a perfect ray, inf for none."""
    Q, G, A = row(d.Q, k), row(d.G, k), row(d.A, k)
    Q = (Q + Q.T) / 2  # (tiny beside what it was made of, it is not symmetric to the last digits)

    def relative(M: np.ndarray) -> np.ndarray:
        size = np.abs(M).max(-1)
        return M @ z / np.where(size > 0, size, 1)

    bad = [np.abs(relative(Q)), np.abs(relative(A)), np.where(np.isfinite(d.h[k]), np.maximum(relative(G), 0), 0)]
    if d.lb is not None:
        bad.append(np.where(np.isfinite(d.lb[k]), np.maximum(-z, 0), 0))
    if d.ub is not None:
        bad.append(np.where(np.isfinite(d.ub[k]), np.maximum(z, 0), 0))
    found = max(float(x.max(initial=0.0)) for x in bad) / np.abs(z).max()
    return found if d.q[k] @ z < 0 else np.inf


def judge(d: Draw, sol: Solution, k: int) -> str:
    """"right", "gave up", or what is wrong with member k."""
    kind, status = KINDS[d.kinds[k]], Status(int(sol.status[k]))
    if status in GIVEN_UP:
        return "gave up"
    # rounded to float32, a problem may have lost its solution: then a proof is right
    proved = (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE)
    if status != VERDICT[kind] and not (d.single and kind == "solvable" and status in proved):
        return f"{kind} member called {status.name}"
    tolerance = 3e-5 if d.single else 3e-9
    names = ("lam", "nu", "lam_lb", "lam_ub")
    y = {name: getattr(sol, name)[k].detach().double().numpy() for name in names}
    z = sol.z[k].detach().double().numpy()
    if status == Status.SOLVED:
        worst = check_solved(d, k, z, y)
        if not worst <= tolerance:
            return f"SOLVED with relative residual {worst:.1e}"
        if not d.single and k not in d.moved:
            Q = row(d.Q, k)
            value, known = (0.5 * x @ Q @ x + d.q[k] @ x for x in (z, d.z[k]))
            size = np.abs(d.z[k]) @ np.abs(Q) @ np.abs(d.z[k]) + np.abs(d.q[k]) @ np.abs(d.z[k])
            if size > 0 and not abs(value - known) <= 1e-6 * size:
                return f"SOLVED with objective {value:.9g} in place of {known:.9g}"
    elif status == Status.PRIMAL_INFEASIBLE and not (worst := check_farkas(d, k, y)) <= (1e-4 if d.single else 1e-7):
        return f"PRIMAL_INFEASIBLE with certificate residual {worst:.1e}"
    elif status == Status.DUAL_INFEASIBLE and not (worst := check_ray(d, k, z)) <= (1e-4 if d.single else 1e-7):
        return f"DUAL_INFEASIBLE with ray residual {worst:.1e}"
    return "right"


def draw(seed: int) -> Draw:
    """Every third batch is of one of the kinds of tests/hard.py."""
    return HardDraw(seed) if seed % 3 == 2 else Draw(seed)


def fuzz(
    count: int, seed: int, backend: str = "auto", seconds: float = float("inf"), quiet: bool = True
) -> collections.Counter[str]:
    """Totals by status and judgement; prints each wrong verdict with the seed that makes it again."""
    totals: collections.Counter[str] = collections.Counter()
    started, number, device = time.perf_counter(), seed, "cuda" if backend == "cuda" else "cpu"
    while totals["members"] < count and time.perf_counter() - started < seconds:
        d = draw(number)
        sol = solve(**d.arguments(device), settings=Settings(), backend=backend, check=False).to("cpu")
        for k in range(BATCH):
            verdict = judge(d, sol, k)
            totals["members"] += 1
            totals[f"{KINDS[d.kinds[k]]} → {Status(int(sol.status[k])).name}"] += 1
            if verdict != "right":
                totals["gave up" if verdict == "gave up" else "wrong"] += 1
            if verdict not in ("right", "gave up") or (verdict == "gave up" and not quiet):
                size = f"n={d.n} m={d.m} p={d.G.shape[1]}{' float32' if d.single else ''}"
                name = f"{d.name}, " if isinstance(d, HardDraw) else ""
                print(f"seed {number}, member {k} ({name}{KINDS[d.kinds[k]]}, {size}): {verdict}", flush=True)
        number += 1
    totals["seconds"] = round(time.perf_counter() - started)
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="problems")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--verbose", action="store_true", help="print what was given up, too")
    options = parser.parse_args()
    totals = fuzz(options.count, options.seed, options.backend, options.seconds, not options.verbose)
    for name, number in sorted(totals.items()):
        print(f"{number:8d}  {name}")
    if totals["wrong"]:
        raise SystemExit(f"{totals['wrong']} wrong verdicts")


if __name__ == "__main__":
    main()
