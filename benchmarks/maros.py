"""Hard problems: the Maros-Mészáros set (dense subset), one row for each problem and solver.

    python -m benchmarks.maros FOLDER [--backend reference cpu] [--peers] [--only NAME ...] [--out FILE.json]

FOLDER holds NAME.npz files: Q, G, A as triplets (`Q_row Q_col Q_val Q_shape`), the vectors q, h, b, lb, ub (±inf where
absent), the constant r and the optimal value obj. Every solver is judged by the same residuals (`optlayer.kkt`):
primal, dual and gap in the problem's units, and the largest relative to one plus the largest term that enters it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from optlayer import backends, kkt
from optlayer.core.settings import Settings
from optlayer.core.status import Status
from optlayer.problem import Problem, check

MARKS = {"abs 1e-3": 1e-3, "abs 1e-6": 1e-6, "abs 1e-9": 1e-9}
RELATIVE = 1e-9


@dataclass
class Instance:
    """One problem: dense arrays, the constant of the objective, and the optimal value."""

    name: str
    data: dict[str, np.ndarray]
    constant: float
    objective: float

    def problem(self) -> Problem:
        """The problem in torch, without constraints that it does not have."""
        tensors = {key: torch.tensor(value) for key, value in self.data.items()}
        for matrix, side in (("G", "h"), ("A", "b")):
            if not len(tensors[side]):
                del tensors[matrix], tensors[side]
        return check(**tensors)


def load(path: Path) -> Instance:
    """Read one NAME.npz."""
    with np.load(path) as file:
        data = {key: file[key] for key in ("q", "h", "b", "lb", "ub")}
        for key in "QGA":
            data[key] = np.zeros(file[f"{key}_shape"])
            data[key][file[f"{key}_row"], file[f"{key}_col"]] = file[f"{key}_val"]
        return Instance(path.stem, data, float(file["r"]), float(file["obj"]))


@dataclass
class Row:
    """What one solver did with one problem."""

    problem: str
    solver: str
    status: str
    iterations: int
    seconds: float
    primal: float
    dual: float
    gap: float
    relative: float
    objective: float  # difference to the reference value, relative to max(1, |value|)

    @property
    def absolute(self) -> float:
        """The largest residual in the problem's units."""
        return max(self.primal, self.dual, self.gap)


# status, iterations, z, lam, nu, lam_lb, lam_ub
Answer = tuple[str, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Solver = Callable[[Instance], tuple[float, Answer]]


def optlayer(backend: str) -> Solver:
    """One of our backends at its default settings."""

    def solve(instance: Instance) -> tuple[float, Answer]:
        problem = instance.problem()
        engine = backends.choose(problem, backend)
        start = perf_counter()
        point = engine.solve(problem, Settings(), False)
        seconds = perf_counter() - start
        arrays = [x[0].numpy() for x in (point.z, point.lam, point.nu, point.lam_lb, point.lam_ub)]
        return seconds, (Status(int(point.status[0])).name, int(point.iterations[0]), *arrays)

    return solve


# --- peers, at tight tolerances -------------------------------------------------------------------------------------


def piqp(instance: Instance) -> tuple[float, Answer]:
    import piqp

    data = instance.data
    solver = piqp.DenseSolver()
    solver.settings.eps_abs, solver.settings.eps_rel = 1e-9, 1e-10
    start = perf_counter()
    low = np.full(len(data["h"]), -np.inf)
    solver.setup(data["Q"], data["q"], data["A"], data["b"], data["G"], low, data["h"], data["lb"], data["ub"])
    status = solver.solve()
    seconds = perf_counter() - start
    result = solver.result
    parts = result.x, result.z_u, result.y, result.z_bl, result.z_bu
    return seconds, (str(status).split(".")[-1], int(result.info.iter), *parts)


def proxqp(instance: Instance) -> tuple[float, Answer]:
    import proxsuite

    data = instance.data
    n, m, p = len(data["q"]), len(data["b"]), len(data["h"])
    solver = proxsuite.proxqp.dense.QP(n, m, p, True)
    solver.settings.eps_abs, solver.settings.eps_rel, solver.settings.max_iter = 1e-9, 0.0, 20_000
    low = np.full(p, -1e20)
    bounds = np.clip(data["lb"], -1e20, 1e20), np.clip(data["ub"], -1e20, 1e20)
    start = perf_counter()
    solver.init(data["Q"], data["q"], data["A"], data["b"], data["G"], low, data["h"], *bounds)
    solver.solve()
    seconds = perf_counter() - start
    result = solver.results
    side = result.z[p:] if len(result.z) == p + n else result.si
    status = str(result.info.status).split(".")[-1]
    parts = result.x, result.z[:p], result.y, np.maximum(-side, 0), np.maximum(side, 0)
    return seconds, (status, int(result.info.iter), *parts)


def clarabel(instance: Instance) -> tuple[float, Answer]:
    import clarabel
    from scipy import sparse

    data = instance.data
    n, m, p = len(data["q"]), len(data["b"]), len(data["h"])
    lower, upper = np.isfinite(data["lb"]), np.isfinite(data["ub"])
    eye = np.eye(n)
    rows = np.concatenate([data["A"], data["G"], -eye[lower], eye[upper]])
    sides = np.concatenate([data["b"], data["h"], -data["lb"][lower], data["ub"][upper]])
    cones = [clarabel.ZeroConeT(m), clarabel.NonnegativeConeT(len(sides) - m)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    start = perf_counter()
    upper_triangle = sparse.triu(sparse.csc_matrix(data["Q"]), format="csc")
    solver = clarabel.DefaultSolver(upper_triangle, data["q"], sparse.csc_matrix(rows), sides, cones, settings)
    result = solver.solve()
    seconds = perf_counter() - start
    y = np.asarray(result.z)
    lam_lb, lam_ub = np.zeros(n), np.zeros(n)
    lam_lb[lower], lam_ub[upper] = np.split(y[m + p :], [lower.sum()])
    parts = np.asarray(result.x), y[m : m + p], y[:m], lam_lb, lam_ub
    return seconds, (str(result.status), int(result.iterations), *parts)


PEERS: dict[str, Solver] = {"piqp": piqp, "proxqp": proxqp, "clarabel": clarabel}


# --- measuring and telling ------------------------------------------------------------------------------------------


def measure(instance: Instance, name: str, solver: Solver) -> Row:
    """Run one solver on one problem and judge its answer."""
    try:
        seconds, (status, iterations, *arrays) = solver(instance)
    except Exception as error:  # a peer that raises has not solved the problem; the table says why
        return Row(instance.name, name, f"{type(error).__name__}: {error}"[:40], 0, np.nan, *[np.inf] * 5)
    z, *multipliers = (torch.tensor(np.asarray(array), dtype=torch.float64)[None] for array in arrays)
    found = kkt.residuals(instance.problem(), z, *multipliers)
    Q, q, x = instance.data["Q"], instance.data["q"], z[0].numpy()
    value = 0.5 * x @ Q @ x + q @ x + instance.constant
    difference = abs(value - instance.objective) / max(1.0, abs(instance.objective))
    return Row(instance.name, name, status, iterations, seconds, *(float(r) for r in found), difference)


def table(rows: list[Row]) -> str:
    """All rows, and how many problems each solver solves at each mark."""
    lines = [f"{'problem':<10} {'solver':<10} {'status':<22} {'it':>5} {'ms':>9} {'primal':>8} {'dual':>8} {'gap':>8}"
             f" {'relative':>8} {'objective':>9}"]
    for row in rows:
        lines.append(
            f"{row.problem:<10} {row.solver:<10} {row.status:<22} {row.iterations:>5} {1e3 * row.seconds:>9.1f} "
            f"{row.primal:>8.1e} {row.dual:>8.1e} {row.gap:>8.1e} {row.relative:>8.1e} {row.objective:>9.1e}"
        )
    lines += ["", f"{'solver':<10} {'of':>4} " + " ".join(f"{mark:>9}" for mark in MARKS)
              + f" {f'rel {RELATIVE:.0e}':>9} {'total s':>9} {'slowest s':>9}"]
    for solver in dict.fromkeys(row.solver for row in rows):
        own = [row for row in rows if row.solver == solver]
        counts = " ".join(f"{sum(row.absolute <= limit for row in own):>9}" for limit in MARKS.values())
        relative = sum(row.relative <= RELATIVE for row in own)
        seconds = np.array([row.seconds for row in own])
        times = f"{np.nansum(seconds):>9.2f} {np.nanmax(seconds):>9.2f}"
        lines.append(f"{solver:<10} {len(own):>4} {counts} {relative:>9} {times}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    return {"cpu": cpu, "platform": platform.platform(), "torch": torch.__version__, "commit": commit,
            "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maros", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", nargs="+", default=["reference"])
    parser.add_argument("--peers", action="store_true", help="piqp, proxqp and clarabel, those that are installed")
    parser.add_argument("--only", nargs="+", help="names of problems")
    parser.add_argument("--out", type=Path, help="write machine and rows as JSON")
    options = parser.parse_args()
    solvers = {name: optlayer(name) for name in options.backend} | (PEERS if options.peers else {})
    rows: list[Row] = []
    for path in sorted(options.folder.glob("*.npz")):
        if options.only and path.stem not in options.only:
            continue
        instance = load(path)
        rows += [measure(instance, name, solver) for name, solver in solvers.items()]
        print(f"\r{path.stem:<12}", end="", flush=True)
    print("\r" + table(rows))
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
