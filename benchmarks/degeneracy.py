"""Gradients at degenerate points, and what float32 holds: two tables, in Markdown.

    python -m benchmarks.degeneracy [--instances N] [--backend cpu reference] [--only KIND ...] [--write]

Every kind of degeneracy is made from a regular problem whose solution, multipliers and active sides are known: rows
are repeated, rescaled, made dependent; an equality is written as two inequalities; and so on. What changes nothing for
z may not change its derivative either, so the truth is that of the regular problem in closed form,

    K v = (w, 0, 0),   K = (Q Aᵀ Cᵀ; A 0 0; C 0 0),   C: the rows of G that are active,

solved by least squares in float64, for the gradient of wᵀz with random w. The leaves that gradients are taken of are
the regular problem's tensors. Errors are largest entries of differences, relative to one plus the largest entry.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from benchmarks.maros import machine
from benchmarks.workloads import WORKLOADS
from optlayer import Status, kkt, solve
from optlayer.problem import check

Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


@dataclass
class Case:
    """A batch of one kind: leaves, how the arguments of solve are made of them, w, and the gradients that are right."""

    leaves: Arrays
    build: Callable[[Tensors], Tensors]
    w: np.ndarray
    truths: list[Arrays]  # more than one at a kink: each is the derivative from one side


Make = Callable[[Generator, int, int], Case]
KINDS: dict[str, Make] = {}


def kind(name: str) -> Callable[[Make], Make]:
    def note(make: Make) -> Make:
        KINDS[name] = make
        return make

    return note


# --- regular problems with their derivative -------------------------------------------------------------------------


@dataclass
class Regular:
    """A batch of problems with their solution; the first `active` rows of G are active."""

    data: Arrays
    z: np.ndarray
    lam: np.ndarray
    nu: np.ndarray
    active: int

    def gradients(self, w: np.ndarray, held: list[int] | None = None) -> Arrays:
        """Of wᵀz, with the rows `held` of G as equalities (default: the active ones)."""
        held = list(range(self.active)) if held is None else held
        Q, G, A = (self.data[name] for name in "QGA")
        (batch, n), m, k = self.z.shape, A.shape[1], len(held)
        v_z, v_nu, v_lam = np.zeros((batch, n)), np.zeros((batch, m)), np.zeros_like(self.lam)
        for i in range(batch):
            rows = np.concatenate([A[i], G[i, held]])
            K = np.block([[Q[i], rows.T], [rows, np.zeros((m + k, m + k))]])
            v = np.linalg.lstsq(K, np.concatenate([w[i], np.zeros(m + k)]), rcond=None)[0]
            v_z[i], v_nu[i], v_lam[i, held] = np.split(v, [n, n + m])

        def outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return a[:, :, None] * b[:, None, :]

        return {
            "Q": -0.5 * (outer(v_z, self.z) + outer(self.z, v_z)), "q": -v_z,
            "G": -outer(self.lam, v_z) - outer(v_lam, self.z), "h": v_lam,
            "A": -outer(self.nu, v_z) - outer(v_nu, self.z), "b": v_nu,
        }  # fmt: skip

    def case(
        self, rng: Generator, build: Callable[[Tensors], Tensors] = lambda x: x, helds: list[list[int]] | None = None
    ) -> Case:
        """As it is, or changed by `build`."""
        w = rng.standard_normal(self.z.shape)
        return Case(self.data, build, w, [self.gradients(w, held) for held in helds or [list(range(self.active))]])


def regular(
    rng: Generator, batch: int, n: int, p: int, m: int, active: int, rank: int | None = None, weak: int = 0,
    grid: float = 0.0,
) -> Regular:
    """Drawn from the solution: multipliers and slacks between 1/2 and 3/2, `weak` of the active rows with lam = 0.

    Multipliers, Q, G and A are multiples of `grid`, if it is given.
    """
    rank = n if rank is None else rank
    W = rng.standard_normal((batch, n, rank))
    Q = W @ W.mT / n + (0.5 * np.eye(n) if rank == n else 0)
    G, A, z = (rng.standard_normal((batch, *shape)) for shape in ((p, n), (m, n), (n,)))
    lam, s = rng.uniform(0.5, 1.5, (2, batch, p))
    lam[:, active - weak :], s[:, :active] = 0, 0
    nu = rng.standard_normal((batch, m))
    if grid:
        Q, G, A, lam, nu = (grid * np.round(x / grid) for x in (Q, G, A, lam, nu))
    h, b = (np.einsum("bij,bj->bi", M, z) for M in (G, A))
    q = -np.einsum("bij,bj->bi", Q, z) - np.einsum("bij,bi->bj", G, lam) - np.einsum("bij,bi->bj", A, nu)
    return Regular({"Q": Q, "q": q, "G": G, "h": h + s, "A": A, "b": b}, z, lam, nu, active)


def combined(x: Tensors, names: tuple[str, str], C: np.ndarray, instead: bool = False) -> Tensors:
    """The rows C M z ≤ C side beside those of M, or instead of them."""
    M, side = names
    mix = torch.tensor(C).to(x[M])
    rows, sides = mix @ x[M], (mix @ x[side].unsqueeze(-1))[..., 0]
    if instead:
        return x | {M: rows, side: sides}
    return x | {M: torch.cat([x[M], rows], -2), side: torch.cat([x[side], sides], -1)}


@kind("none")
def nondegenerate(rng: Generator, batch: int, n: int) -> Case:
    return regular(rng, batch, n, 2 * n, n // 4, n // 2).case(rng)


@kind("weakly active row (lam = 0 and s = 0)")
def weakly_active(rng: Generator, batch: int, n: int) -> Case:
    problem, weak = regular(rng, batch, n, 2 * n, n // 4, n // 2, weak=2), [n // 2 - 2, n // 2 - 1]
    strong = list(range(n // 2 - 2))
    sides = [[row for row, held in zip(weak, some, strict=True) if held] for some in product([0, 1], repeat=2)]
    return problem.case(rng, helds=[strong + some for some in sides])


@kind("dependent active rows")
def dependent_rows(rng: Generator, batch: int, n: int) -> Case:
    """Two more rows, positive combinations of active ones."""
    problem = regular(rng, batch, n, 2 * n, n // 4, n // 2)
    C = np.zeros((batch, 2, 2 * n))
    C[:, :, : n // 2] = rng.uniform(0.1, 1, (batch, 2, n // 2))
    return problem.case(rng, lambda x: combined(x, ("G", "h"), C))


@kind("duplicated rows")
def duplicated_rows(rng: Generator, batch: int, n: int) -> Case:
    """Every row of G twice more, once times 3; every row of A twice."""
    problem = regular(rng, batch, n, 2 * n, n // 4, n // 2)
    once, twice = np.eye(2 * n), np.eye(n // 4)
    C = np.broadcast_to(np.concatenate([once, 3 * once]), (batch, 4 * n, 2 * n))
    D = np.broadcast_to(twice, (batch, *twice.shape))
    return problem.case(rng, lambda x: combined(combined(x, ("G", "h"), C), ("A", "b"), D))


@kind("redundant equalities")
def redundant_equalities(rng: Generator, batch: int, n: int) -> Case:
    problem = regular(rng, batch, n, 2 * n, n // 4 + 1, n // 2)
    C = rng.standard_normal((batch, 2, n // 4 + 1))
    return problem.case(rng, lambda x: combined(x, ("A", "b"), C))


@kind("an equality as two inequalities")
def two_inequalities(rng: Generator, batch: int, n: int) -> Case:
    """No point is strictly feasible."""
    m = n // 4
    problem = regular(rng, batch, n, n, m, n // 2)

    def build(x: Tensors) -> Tensors:
        G, h = torch.cat([x["G"], x["A"], -x["A"]], -2), torch.cat([x["h"], x["b"], -x["b"]], -1)
        return {"Q": x["Q"], "q": x["q"], "G": G, "h": h}

    return problem.case(rng, build)


@kind("linear program, a vertex")
def vertex(rng: Generator, batch: int, n: int) -> Case:
    m = n // 4
    return regular(rng, batch, n, 2 * n, m, n - m, rank=0).case(rng)


@kind("linear program, a face of solutions")
def face(rng: Generator, batch: int, n: int) -> Case:
    """In a box; w lies in the span of the active rows, without which wᵀz would not be a function of the data.

    Rows and multipliers are multiples of 1/16, so that q and w lie in that span in float32, too.
    """
    m, active = n // 4, n // 2
    problem = regular(rng, batch, n, n, m, active, rank=0, grid=1 / 16)
    u = rng.integers(-4, 5, (batch, active)).astype(float)
    w = np.einsum("bij,bi->bj", problem.data["G"][:, :active], u)
    far = np.abs(problem.z).max() + 1
    fixed = {name: torch.tensor(problem.data[name]) for name in ("Q", "G", "A")}

    def build(x: Tensors) -> Tensors:
        box = torch.full_like(x["q"], far)
        return {name: M.to(x["q"]) for name, M in fixed.items()} | x | {"lb": -box, "ub": box}

    truth = problem.gradients(w)
    leaves = {name: problem.data[name] for name in ("q", "h", "b")}
    return Case(leaves, build, w, [{name: truth[name] for name in leaves}])


@kind("semidefinite Q, one solution")
def semidefinite(rng: Generator, batch: int, n: int) -> Case:
    m, rank = n // 4, n // 3
    return regular(rng, batch, n, 2 * n, m, n - m - rank + 1, rank=rank).case(rng)


@kind("fixed variables (lb = ub)")
def fixed_variables(rng: Generator, batch: int, n: int) -> Case:
    """A third of them, fixed at a leaf c; in the truth they are equalities."""
    m, fixed = n // 4, n // 3
    problem = regular(rng, batch, n, 2 * n, m + fixed, n // 3)
    A, b, nu = problem.data["A"], problem.data["b"], problem.nu
    free = problem.data["q"] + np.einsum("bij,bi->bj", A, nu)
    A[:, m:] = np.eye(n)[:fixed]
    b[:, m:] = problem.z[:, :fixed]
    problem.data["q"] = free - np.einsum("bij,bi->bj", A, nu)
    case = problem.case(rng)
    z = torch.tensor(problem.z)
    case.leaves = {**problem.data, "A": A[:, :m], "b": b[:, :m], "c": b[:, m:]}
    truth = case.truths[0]
    case.truths = [truth | {"A": truth["A"][:, :m], "b": truth["b"][:, :m], "c": truth["b"][:, m:]}]

    def build(x: Tensors) -> Tensors:
        c, rest = x["c"], z.to(x["c"])[:, fixed:]
        bounds = {"lb": torch.cat([c, rest - 2], -1), "ub": torch.cat([c, rest + 2], -1)}
        return {name: x[name] for name in "QqGhAb"} | bounds

    case.build = build
    return case


@kind("zero rows")
def zero_rows(rng: Generator, batch: int, n: int) -> Case:
    """0ᵀz ≤ 0, 0ᵀz ≤ 1 and 0ᵀz = 0."""

    def build(x: Tensors) -> Tensors:
        none = torch.zeros_like(x["G"][:, :2])
        sides = torch.stack([torch.zeros_like(x["h"][:, 0]), torch.ones_like(x["h"][:, 0])], -1)
        return x | {
            "G": torch.cat([none, x["G"]], -2), "h": torch.cat([sides, x["h"]], -1),
            "A": torch.cat([x["A"], none[:, :1]], -2), "b": torch.cat([x["b"], 0 * sides[:, :1]], -1),
        }  # fmt: skip

    return regular(rng, batch, n, 2 * n, n // 4, n // 2).case(rng, build)


@kind("rows scaled by 1e-8 to 1e8")
def scaled_rows(rng: Generator, batch: int, n: int) -> Case:
    def scales(rows: int) -> np.ndarray:
        return 10 ** rng.uniform(-8, 8, (batch, rows, 1)) * np.eye(rows)

    C, D = scales(2 * n), scales(n // 4)
    problem = regular(rng, batch, n, 2 * n, n // 4, n // 2)
    return problem.case(rng, lambda x: combined(combined(x, ("G", "h"), C, True), ("A", "b"), D, True))


@kind("no inequalities")
def equalities_only(rng: Generator, batch: int, n: int) -> Case:
    problem = regular(rng, batch, n, 0, n // 4, 0)
    return problem.case(rng, lambda x: {name: x[name] for name in ("Q", "q", "A", "b")})


@kind("no constraints")
def unconstrained(rng: Generator, batch: int, n: int) -> Case:
    return regular(rng, batch, n, 0, 0, 0).case(rng, lambda x: {name: x[name] for name in ("Q", "q")})


@kind("one variable")
def one_variable(rng: Generator, batch: int, n: int) -> Case:
    return regular(rng, batch, 1, 3, 0, 1).case(rng, lambda x: {name: x[name] for name in ("Q", "q", "G", "h")})


# --- what we make of them -------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How many members were solved; the worst error of their gradients, and the medium one."""

    solved: int
    members: int
    worst: float
    median: float

    def __str__(self) -> str:
        missing = self.members - self.solved
        return f"{self.worst:.0e}" + (f" ({missing} of {self.members} unsolved)" if missing else "")


def measure(case: Case, backend: str, dtype: torch.dtype) -> list[float]:
    """The error of each member; nan where it was not solved."""
    leaves = {name: torch.tensor(x, dtype=dtype, requires_grad=True) for name, x in case.leaves.items()}
    solution = solve(**case.build(leaves), backend=backend, check=False)  # type: ignore[arg-type]
    weighted = (solution.z * torch.tensor(case.w, dtype=dtype)).sum()
    found = torch.autograd.grad(weighted, list(leaves.values()), allow_unused=True)
    errors = np.full((len(case.truths), len(case.w)), 0.0)
    for number, truth in enumerate(case.truths):
        for name, gradient in zip(leaves, found, strict=True):
            if gradient is None or not gradient.numel():
                continue
            right, flat = truth[name].reshape(len(case.w), -1), gradient.double().numpy().reshape(len(case.w), -1)
            if name == "Q":  # only its symmetric part counts
                flat = (0.5 * (gradient + gradient.mT)).double().numpy().reshape(len(case.w), -1)
            error = np.abs(flat - right).max(1) / (1 + np.abs(right).max(1))
            errors[number] = np.maximum(errors[number], np.where(error >= 0, error, np.inf))
    return np.where(solution.solved.numpy(), errors.min(0), np.nan).tolist()


SIZES = (6, 30)  # one QP in each lane of a register, and one QP at a time


def outcome(name: str, backend: str, dtype: torch.dtype, instances: int) -> Outcome:
    errors: list[float] = []
    for n in SIZES:
        errors += measure(KINDS[name](np.random.default_rng(n), instances, n), backend, dtype)
    known = np.array([error for error in errors if not np.isnan(error)])
    return Outcome(len(known), len(errors), float(known.max(initial=0)), float(np.median(known)) if len(known) else 0.0)


def table(rows: list[list[Any]], titles: list[str]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def gradients(backends: list[str], instances: int, kinds: list[str]) -> str:
    """The table of gradient errors."""
    columns = [(backend, dtype) for dtype in (torch.float64, torch.float32) for backend in backends]
    titles = ["degeneracy", *(f"{backend}, {str(dtype)[6:]}" for backend, dtype in columns)]
    return table([[name, *(outcome(name, *column, instances) for column in columns)] for name in kinds], titles)


# --- float32 --------------------------------------------------------------------------------------------------------


def figures(backend: str) -> str:
    """The table of what float32 reaches on the benchmark's workloads."""
    rows = []
    for workload in WORKLOADS.values():
        data = {name: torch.tensor(x) for name, x in workload.data().items()}
        single = {name: x.float() for name, x in data.items()}
        rounded = {name: x.double() for name, x in single.items()}
        exact = solve(**rounded, check=False)  # of the problem that float32 was given
        solution = solve(**single, backend=backend, check=False)
        point = (solution.z, solution.lam, solution.nu, solution.lam_lb, solution.lam_ub)
        found = kkt.residuals(check(**rounded), *(x.double() for x in point)).relative
        both = solution.solved & exact.solved
        error = (solution.z.double() - exact.z).abs().amax(-1) / (1 + exact.z.abs().amax(-1))
        statuses = [Status(int(x)).name for x in solution.status.unique() if int(x)]
        rows.append([
            f"`{workload.name}`", f"{int(solution.solved.sum())} of {len(solution.status)}",
            f"{float(found[both].max()):.0e}", f"{float(error[both].max()):.0e}", ", ".join(statuses) or "–",
        ])  # fmt: skip
    return table(rows, ["workload", "solved", "worst relative residual", "worst relative error of z", "other statuses"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.degeneracy", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", nargs="+", default=["cpu", "reference"])
    parser.add_argument("--instances", type=int, default=50, help="of each kind and size")
    parser.add_argument("--only", nargs="+", default=list(KINDS), help="kinds")
    parser.add_argument("--write", action="store_true", help="put the tables into the documentation")
    options = parser.parse_args()
    info = machine()
    where = f"{info['cpu']}, {info['threads']} thread, torch {info['torch']}, commit `{info['commit'][:12]}`"
    worst = f"The worst of {len(SIZES) * options.instances} problems with {' or '.join(map(str, SIZES))} variables"
    texts = (
        ("differentiation.md", "gradients at degenerate points",
         gradients(options.backend, options.instances, options.only),
         f"{worst}, by `python -m benchmarks.degeneracy` ({where})."),
        ("backends.md", "float32", figures(options.backend[0]), f"By `python -m benchmarks.degeneracy` ({where})."),
    )
    for page, mark, rows, origin in texts:
        print(f"{rows}\n\n{origin}\n")
        if options.write:
            path = Path(__file__).parents[1] / "docs" / page
            before, rest = path.read_text().split(f"<!-- {mark} -->")
            _, after = rest.split("<!-- end -->", 1)
            path.write_text(f"{before}<!-- {mark} -->\n\n{rows}\n\n{origin}\n\n<!-- end -->{after}")


if __name__ == "__main__":
    main()
