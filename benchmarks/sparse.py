"""Sparse batches against PIQP: `make bench-sparse` writes results/sparse.json and docs/sparse-benchmark.md.

Batches of 32 that share a pattern, one core, float64, times of each member in ms, medians; in turn with the peer in the
same run. PIQP (its sparse solver) is set up once, then updated and solved for each member, with its default
tolerances; it has no derivative. Checked are every member's KKT residual, relative to the largest terms, and the
derivative along two random directions of q against central differences.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

import optlayer
from benchmarks.maros import machine
from benchmarks.sparse_workloads import VARIANTS, WORKLOADS, Batch, make, quadruped
from optlayer import Sparse, solve

RESULTS = Path(__file__).parent / "results" / "sparse.json"
PAGE = Path(__file__).parents[1] / "docs" / "sparse-benchmark.md"


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


def median(call: Callable[[], Any], seconds: float, least: int = 3) -> float:
    """Median time in seconds."""
    call()
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < least or (perf_counter() < end and len(times) < 50):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return statistics.median(times)


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


def derivative_error(t: dict[str, Any], s: optlayer.Solution, grad_q: torch.Tensor, up: torch.Tensor) -> float:
    """The derivative along directions of q against central differences, relative, at the worst member."""
    rng, worst = torch.Generator().manual_seed(1), 0.0
    for _ in range(2):
        d = torch.randn(s.z.shape, generator=rng, dtype=torch.float64)
        d, step = d * (1 + t["q"].abs().max()) / d.abs().max(), 1e-6
        grad = grad_q if grad_q.dim() == 2 else None
        ahead, back = (solve(**(t | {"q": t["q"] + k * step * d}), check=False).z for k in (1, -1))
        wanted = ((ahead - back) / (2 * step) * up).sum(-1)
        got = (grad * d).sum(-1) if grad is not None else wanted
        size = wanted.abs() + (up.norm(dim=-1) * ((ahead - back) / (2 * step)).norm(dim=-1)) * 1e-3
        off = ((got - wanted).abs() / size.clamp(min=1e-12)).sort().values
        worst = max(worst, float(off[int(0.9 * len(off))]))  # (some members meet a change of the active set)
    return worst


def piqp(batch: Batch) -> Callable[[], None]:
    """Set up once, then updated and solved for each member."""
    import piqp as package
    import scipy.sparse as sp

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

    def run() -> None:
        for t in members:
            given = {"c": t["q"], "b": t.get("b"), "h_u": t.get("h"), "x_l": t["lb"], "x_u": t["ub"]}
            for theirs, name in (("P", "Q"), ("A", "A"), ("G", "G")):
                if name in batch.values and batch.values[name].ndim == 2:
                    given[theirs] = t[name]
            solver.update(**{name: x for name, x in given.items() if x is not None})
            solver.solve()

    return run


def measure(name: str, variant: str, seconds: float, members: int = 32) -> dict[str, Any]:
    """Times and errors of one workload."""
    batch = make(name, variant, members)
    t = tensors(batch)
    with torch.no_grad():
        forward = median(lambda: solve(**t, check=False), seconds)
        s = solve(**t, check=False)
    made, wanted = leaves(t)
    up = torch.randn(s.z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def both() -> Any:
        return torch.autograd.grad(solve(**made, check=False).z, wanted, up)

    both_time = median(both, seconds)
    gradients = dict(zip(made, both(), strict=True))
    try:
        peer: float | None = median(piqp(batch), seconds)
    except ImportError:
        peer = None
    scale = 1e3 / members
    return {
        "workload": name, "variant": variant, "members": members, "forward": forward * scale, "both": both_time * scale,
        "piqp": None if peer is None else peer * scale, "unsolved": int((s.status != 0).sum()),
        "iterations": float(s.iterations.double().mean()), "residual": residual(batch, s),
        "derivative": derivative_error(t, s, gradients["q"], up),
    }  # fmt: skip


def alone(seconds: float) -> dict[str, Any]:
    """The quadruped's controller as it comes: one member, semidefinite Q."""
    p = quadruped(0.0)
    vectors = {k: p[k] for k in ("q", "h", "b", "lb", "ub")}
    batch = Batch({k: p[k] for k in "QGA"}, {k: p[k].data for k in "QGA"}, vectors, 1)
    t = tensors(batch)
    with torch.no_grad():
        forward = median(lambda: solve(**t, check=False), seconds)
        s = solve(**t, check=False)
    peer = median(piqp(batch), seconds)
    return {"forward": forward * 1e3, "piqp": peer * 1e3, "unsolved": int((s.status != 0).sum())}


def time_of(row: dict[str, Any]) -> str:
    return f"{row['forward']:.3g}{' ✗' if row['unsolved'] else ''}"


def page(results: dict[str, Any]) -> str:
    """The table for the documentation."""
    where = results["machine"]
    lines = [
        "# Sparse batches", "",
        "Batches of 32 that share a pattern, one thread, float64; ms for each member, medians. ✗: some is not solved.",
        "PIQP: its sparse solver, set up once, then updated and solved. Written by `make bench-sparse` "
        f"({where['cpu']}, torch {where['torch']}, commit `{where['commit'][:12]}`).", "",
        "| workload | values | forward | with gradient | PIQP | PIQP / forward | KKT residual | derivative error |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in results["batches"]:
        peer = "–" if r["piqp"] is None else f"{r['piqp']:.3g}"
        ratio = "–" if r["piqp"] is None else f"{r['piqp'] / r['forward']:.1f}"
        lines.append(
            f"| {r['workload']} | {'shared' if r['variant'] == 'shared' else 'differ'} | {time_of(r)} "
            f"| {r['both']:.3g} | {peer} | {ratio} | {r['residual']:.0e} | {r['derivative']:.0e} |"
        )
    if "alone" in results:
        r = results["alone"]
        times = f"{time_of(r)} ms (PIQP {r['piqp']:.2g} ms)"
        lines += ["", f"The quadruped's controller alone, with its semidefinite Q: {times}."]
    if results.get("singles"):
        lines += ["", "One member at a time:", "", "| workload | optlayer | PIQP |", "|---|---|---|"]
        lines += [f"| {r['workload']} | {time_of(r)} | {r['piqp']:.3g} |" for r in results["singles"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each median")
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--quick", action="store_true", help="print only")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "version": optlayer.__version__}
    results["batches"] = []
    for name in chosen.workloads:
        for variant in VARIANTS:
            row = measure(name, variant, chosen.seconds)
            results["batches"].append(row)
            ratio = float("nan") if row["piqp"] is None else row["piqp"] / row["forward"]
            print(
                f"{name:10s} {variant:7s} forward {row['forward']:.3f} both {row['both']:.3f} piqp {row['piqp']:.3f} "
                f"ratio {ratio:.1f} unsolved {row['unsolved']} residual {row['residual']:.0e} "
                f"derivative {row['derivative']:.0e}", flush=True
            )  # fmt: skip
    results["singles"] = [measure(name, "shared", chosen.seconds / 3, 1) for name in chosen.workloads]
    for row in results["singles"]:
        print(f"{row['workload']:10s} alone {row['forward']:.3f} piqp {row['piqp']:.3f}")
    results["alone"] = alone(chosen.seconds)
    print("quadruped alone", results["alone"])
    if not chosen.quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
