"""Sparse batches beside their peers: `make bench-sparse` writes results/sparse.json and docs/sparse-benchmark.md.

Batches of 32 that share a pattern, one core, float64; times of each member in ms, medians of calls in turn with the
peers'. A peer is a row of `PEERS`: it takes the batch and an upstream gradient, and gives calls; without its package it
is left out. Checked are every member's KKT residual, relative to the largest terms, the derivative along two random
directions of q against central differences, and how far a peer's z is from ours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

import optlayer
from benchmarks import hpipm
from benchmarks.maros import machine
from benchmarks.peers import Case, Unsuitable, moreau_case
from benchmarks.sparse_workloads import VARIANTS, WORKLOADS, Batch, make
from optlayer import Sparse, solve

RESULTS = Path(__file__).parent / "results" / "sparse.json"
PAGE = Path(__file__).parents[1] / "docs" / "sparse-benchmark.md"
EXACT = 1e-3
"""A peer's z or gradient that is farther off, relative to its size, is marked."""


def tensors(batch: Batch) -> dict[str, Any]:
    """The arguments of solve."""
    found: dict[str, Any] = {}
    for name, pattern in batch.patterns.items():
        first, columns = torch.tensor(pattern.indptr), torch.tensor(pattern.indices)
        found[name] = Sparse(first, columns, torch.tensor(batch.values[name]), pattern.shape)
    return found | {name: torch.tensor(x) for name, x in batch.vectors.items()}


def leaves(t: dict[str, Any]) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """The same, requiring gradients, and what they are required of."""
    made: dict[str, Any] = {}
    for name, x in t.items():
        leaf = (x.values if isinstance(x, Sparse) else x).clone().requires_grad_()
        made[name] = x.with_values(leaf) if isinstance(x, Sparse) else leaf
    return made, [x.values if isinstance(x, Sparse) else x for x in made.values()]


def medians(calls: dict[str, Callable[[], Any]], seconds: float, least: int = 3) -> dict[str, float]:
    """Median time of each call in seconds, in turns whose order is drawn anew: each follows every other one."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)

    def wanting(own: list[float]) -> bool:
        return len(own) < least or (sum(own) < seconds and len(own) < 50)

    for call in calls.values():
        call()
    while turn := [name for name in calls if wanting(times[name])]:
        order.shuffle(turn)
        for name in turn:
            start = perf_counter()
            calls[name]()
            times[name].append(perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def residual(batch: Batch, s: optlayer.Solution) -> float:
    """The largest KKT residual of a member, each relative to one plus its largest term."""
    worst = 0.0
    parts = {name: getattr(s, name).detach().numpy() for name in ("z", "lam", "nu", "lam_lb", "lam_ub")}
    for i in range(batch.batch):
        t, (z, lam, nu, lower, upper) = batch.member(i), (x[i] for x in parts.values())

        def relative(value: np.ndarray, *terms: np.ndarray) -> float:
            size = 1 + max(abs(x[np.isfinite(x)]).max(initial=0) for x in terms)
            return float(abs(value).max(initial=0) / size)

        forces = [t["Q"] @ z, t["q"]]
        found = []
        for matrix, side, y, equality in (("G", "h", lam, False), ("A", "b", nu, True)):
            if matrix in t:
                forces.append(t[matrix].T @ y)
                off = t[matrix] @ z - t[side]
                found.append(relative(off if equality else np.maximum(off, -y), t[side], t[matrix] @ z))
        for name, y, sign in (("lb", lower, -1), ("ub", upper, 1)):
            if name in t:
                forces.append(sign * y)
                found.append(relative(np.maximum(sign * (z - t[name]), -y), z))
        worst = max(worst, *found, relative(sum(forces), *forces))
    return worst


@contextmanager
def one_core() -> Iterator[None]:
    """Here a peer that starts as many threads as it finds cores finds one (on Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


Slopes = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def slopes(t: dict[str, Any], up: torch.Tensor) -> Slopes:
    """Directions of q, the derivative along each by central differences, and the size of an error."""
    rng, found, step = torch.Generator().manual_seed(1), [], 1e-6
    for _ in range(2):
        d = torch.randn(up.shape, generator=rng, dtype=torch.float64)
        d = d * (1 + t["q"].abs().max()) / d.abs().max()
        ahead, back = (solve(**(t | {"q": t["q"] + k * step * d}), check=False).z for k in (1, -1))
        change = (ahead - back) / (2 * step)
        wanted = (change * up).sum(-1)
        found.append((d, wanted, wanted.abs() + up.norm(dim=-1) * change.norm(dim=-1) * 1e-3))
    return found


def derivative_error(known: Slopes, grad: torch.Tensor) -> float:
    """The relative error of the gradient with respect to q along the directions, at the worst member but a tenth."""
    worst = 0.0
    for d, wanted, size in known if grad.dim() == 2 else ():
        off = (((grad * d).sum(-1) - wanted).abs() / size.clamp(min=1e-12)).sort().values
        worst = max(worst, float(off[int(0.9 * len(off))]))  # (some members meet a change of the active set)
    return worst


# --- peers ----------------------------------------------------------------------------------------------------------


def piqp(batch: Batch, upstream: np.ndarray) -> Case:
    """Its sparse solver, set up once, then updated and solved for each member; default tolerances."""
    import piqp as package

    members = [batch.member(i) for i in range(batch.batch)]
    for t in members:
        for name in "QGA":
            if name in t:
                t[name] = sp.csc_matrix(sp.triu(t[name]) if name == "Q" else t[name])
        t["lb"], t["ub"] = (t.get(name) for name in ("lb", "ub"))
    first = members[0]
    solver = package.SparseSolver()
    given = [first.get(name) for name in ("Q", "q", "A", "b", "G")]
    solver.setup(*given, None, first.get("h"), first["lb"], first["ub"])
    z = np.empty_like(upstream)

    def forward() -> np.ndarray:
        for i, t in enumerate(members):
            given = {"c": t["q"], "b": t.get("b"), "h_u": t.get("h"), "x_l": t["lb"], "x_u": t["ub"]}
            for theirs, name in (("P", "Q"), ("A", "A"), ("G", "G")):
                if name in batch.values and batch.values[name].ndim == 2:
                    given[theirs] = t[name]
            solver.update(**{name: x for name, x in given.items() if x is not None})
            solver.solve()
            z[i] = solver.result.x
        return z

    return Case(forward)


def moreau(batch: Batch, upstream: np.ndarray) -> Case:
    """Its interior point with exact derivatives, values shared where they are; its rows are A, G and the bounds."""
    import moreau as package

    t, eye = batch.vectors, sp.eye(upstream.shape[-1], format="csr")
    rows = [(name, side) for name, side in (("A", "b"), ("G", "h")) if side in t]
    parts = [(batch.patterns[name], batch.values[name], t[side]) for name, side in rows]
    for name, sign in (("lb", -1.0), ("ub", 1.0)):
        if name in t:
            there = np.isfinite(t[name])
            parts.append((eye[there], np.full(there.sum(), sign), sign * t[name][there]))
    equalities = t["b"].shape[-1] if "b" in t else 0
    stack = sp.vstack([part for part, *_ in parts], format="csr")
    return moreau_case(
        {"P": (batch.patterns["Q"].indptr, batch.patterns["Q"].indices), "A": (stack.indptr, stack.indices)},
        {"P": batch.values["Q"], "A": _beside([values for _, values, _ in parts])},
        t["q"], _beside([side for *_, side in parts]), equalities, upstream,
        solver="ipm", ipm_settings=package.IPMSettings(diff_method="exact"),
    )  # fmt: skip


def _beside(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenated, with a batch dimension if one of them has it."""
    lead = max((part.shape[:-1] for part in parts), key=len)
    return np.concatenate([np.broadcast_to(part, (*lead, part.shape[-1])) for part in parts], axis=-1)


PEERS: dict[str, Callable[[Batch, np.ndarray], Case]] = {"piqp": piqp, "moreau": moreau}


# --- measuring and telling ------------------------------------------------------------------------------------------


def measure(name: str, variant: str, seconds: float, peers: dict[str, Any], members: int = 32) -> dict[str, Any]:
    """Times, beside those of the peers, and errors of one workload."""
    batch = make(name, variant, members)
    t = tensors(batch)
    made, wanted = leaves(t)
    s = solve(**t, check=False)
    up = torch.randn(s.z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(threads: int = 1) -> Any:
        torch.set_num_threads(threads)
        with torch.no_grad():
            solve(**t, check=False)
        torch.set_num_threads(1)

    def both() -> Any:
        return torch.autograd.grad(solve(**made, check=False).z, wanted, up)

    known = slopes(t, up) if "q" in batch.unique else []
    calls = {"forward": forward, "both": both} | ({"two threads": partial(forward, 2)} if members > 1 else {})
    off, derivative = {}, {"optlayer": derivative_error(known, dict(zip(made, both(), strict=True))["q"])}
    for peer, prepare in peers.items():
        try:
            with one_core():
                case = prepare(batch, up.numpy())
                z, raw = np.asarray(case.forward()), case.both and case.both()[2]
        except (ImportError, Unsuitable):
            continue
        calls[peer] = case.forward
        off[peer] = float(abs(z - s.z.numpy()).max() / (1 + s.z.abs().max()))
        if case.both:
            calls[f"{peer} both"] = case.both
            derivative[peer] = derivative_error(known, raw["q"])
    return {
        "workload": name, "variant": variant, "members": members,
        "ms": {call: 1e3 / members * time for call, time in medians(calls, seconds).items()},
        "unsolved": int((s.status != 0).sum()), "iterations": float(s.iterations.double().mean()),
        "residual": residual(batch, s), "derivative": derivative if known else {}, "off": off if known else {},
    }  # fmt: skip


def cell(row: dict[str, Any], call: str) -> str:
    """A time, marked where the answer is wrong."""
    if call not in row["ms"]:
        return "–"
    peer, _, gradient = call.partition(" ")
    errors = row["derivative"] if gradient else row["off"]
    wrong = row["unsolved"] > 0 if call in OURS else not errors.get(peer, 0.0) <= EXACT  # (NaN is wrong)
    return f"{row['ms'][call]:.3g}{' ✗' if wrong else ''}"


def ratio(row: dict[str, Any], theirs: str, ours: str) -> str:
    return f"{row['ms'][theirs] / row['ms'][ours]:.1f}" if theirs in row["ms"] else "–"


OURS = ("forward", "both", "two threads")
TIMES = {"forward": "forward", "both": "with gradient", "two threads": "two threads", "piqp": "PIQP",
         "moreau": "Moreau", "moreau both": "Moreau, with gradient"}  # fmt: skip
HPIPM = {"hpipm": "speed", "hpipm-balance": "balance", "hpipm-exact": "speed, to 1e-12"}
RATIOS = {"PIQP / forward": ("piqp", "forward"), "Moreau / with gradient": ("moreau both", "both"),
          "one / two threads": ("forward", "two threads")}  # fmt: skip


def table(rows: list[dict[str, Any]], times: dict[str, str], **more: Callable[[dict[str, Any]], str]) -> list[str]:
    """A line for each row: its times, and more."""
    columns = {title: partial(cell, call=call) for call, title in times.items()} | more
    lines = [f"| workload | values | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for r in rows:
        values = "shared" if r["variant"] == "shared" else "differ"
        lines.append(f"| {r['workload']} | {values} | {' | '.join(column(r) for column in columns.values())} |")
    return lines


def page(results: dict[str, Any]) -> str:
    """The tables for the documentation."""
    where = results["machine"]
    ratios = {title: partial(ratio, theirs=a, ours=b) for title, (a, b) in RATIOS.items()}
    errors = {
        "KKT residual": lambda r: f"{r['residual']:.0e}",
        "derivative error": lambda r: f"{r['derivative']['optlayer']:.0e}" if r["derivative"] else "–",
    }
    lines = [
        "# Sparse batches", "",
        "Batches of 32 that share a pattern, float64, one thread but where it says two; ms for each member, medians of",
        "calls in turn. ✗: some is not solved; a peer's solution or gradient that is more than 1e-3 off.",
        "PIQP: its sparse solver, set up once, then updated and solved. Moreau: its interior point, derivatives exact.",
        f"Written by `make bench-sparse` ({where['cpu']}, torch {where['torch']}, commit `{where['commit'][:12]}`).",
        "", *table(results["batches"], TIMES, **ratios, **errors),
    ]  # fmt: skip
    stages = [r for r in results["batches"] if "hpipm" in r["ms"]]
    if stages:
        ahead = {f"{name} / ours": partial(ratio, theirs=call, ours="forward") for call, name in HPIPM.items()}
        lines += ["", "HPIPM, built from source, solves stage by stage, to 1e-8, at which its z is 1e-4 off.",
                  "Its data is set once, outside the time.", "",
                  *table(stages, {"forward": "optlayer"} | HPIPM, **ahead)]  # fmt: skip
    lines += ["", "One member at a time:", "", *table(results["singles"], {"forward": "optlayer", "piqp": "PIQP"})]
    lines += ["", "`controller`: the quadruped's, with its semidefinite Q, as it comes; in a batch with other states."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each median")
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--hpipm", metavar="LIBRARY", help="libhpipm.so, see benchmarks/hpipm.py")
    parser.add_argument("--quick", action="store_true", help="print only")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    peers = dict(PEERS)
    if chosen.hpipm:
        for variant in hpipm.VARIANTS:
            peers[variant] = partial(hpipm.prepare, library=chosen.hpipm, variant=variant)
    results: dict[str, Any] = {"machine": machine(), "version": optlayer.__version__, "batches": [], "singles": []}

    def add(kind: str, *of: Any) -> None:
        row = measure(*of)
        results[kind].append(row)
        times = " ".join(f"{call} {cell(row, call)}" for call in row["ms"])
        errors = f"residual {row['residual']:.0e} derivative {row['derivative'].get('optlayer', np.nan):.0e}"
        print(f"{of[0]:10} {of[1]:6} {row['members']:2} {times} unsolved {row['unsolved']} {errors}", flush=True)

    for name in chosen.workloads:
        for variant in VARIANTS:
            add("batches", name, variant, chosen.seconds, peers)
    for name in chosen.workloads:
        add("singles", name, "shared", chosen.seconds / 3, {"piqp": piqp}, 1)
    if not chosen.quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
