"""Hard problems: the Maros-Mészáros set, one row for each problem and solver.

    python -m benchmarks.maros FOLDER [--solver cpu sparse piqp …] [--only NAME ...] [--limit SECONDS] [--out FILE.json]

FOLDER holds NAME.npz files: Q, G, A as triplets (`Q_row Q_col Q_val Q_shape`), the vectors q, h, b, lb, ub (±inf where
absent), the constant r and the optimal value obj where it is known. `sparse`: the `cpu` backend with `optlayer.Sparse`;
piqp and clarabel get sparse matrices too, with tolerances of 1e-9. Every answer is judged here by the same residuals:
primal, dual and gap in the problem's units, and the largest relative to one plus the largest term that enters it. Each
solver has a process of its own for each problem, so that time is that of a first call, analysis of the pattern
included, and memory can be told; it is stopped at the limit. Of several solvers, each is set beside the last one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from optlayer import Sparse, backends
from optlayer.core.settings import Settings
from optlayer.core.status import Status
from optlayer.problem import Problem, check

MARKS = {"abs 1e-3": 1e-3, "abs 1e-6": 1e-6, "abs 1e-9": 1e-9}
RELATIVE = 1e-9


@dataclass
class Instance:
    """One problem: vectors, sparse matrices, the constant of the objective, and the optimal value or NaN."""

    name: str
    data: dict[str, Any]
    constant: float
    objective: float

    def problem(self, sparse: bool) -> Problem:
        """The problem in torch, without constraints that it does not have."""
        tensors: dict[str, Any] = {}
        for key, value in self.data.items():
            if key in "QGA":
                tensors[key] = Sparse.from_scipy(value) if sparse else torch.tensor(value.toarray())
            else:
                tensors[key] = torch.tensor(value)
        for matrix, side in (("G", "h"), ("A", "b")):
            if not len(tensors[side]):
                del tensors[matrix], tensors[side]
        return check(**tensors)


def load(path: Path) -> Instance:
    """Read one NAME.npz."""
    with np.load(path) as file:
        data: dict[str, Any] = {key: file[key] for key in ("q", "h", "b", "lb", "ub")}
        for key in "QGA":
            values, row, column, shape = (file[f"{key}_{part}"] for part in ("val", "row", "col", "shape"))
            data[key] = sp.csr_matrix((values, (row, column)), shape)
        return Instance(path.stem, data, float(file["r"]), float(file["obj"]) if "obj" in file else np.nan)


@dataclass
class Row:
    """What one solver did with one problem."""

    problem: str
    solver: str
    status: str
    iterations: int
    seconds: float
    megabytes: float  # beyond what the process had before
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


def optlayer(backend: str, sparse: bool = False) -> Solver:
    """One of our backends at its default settings."""

    def solve(instance: Instance) -> tuple[float, Answer]:
        problem = instance.problem(sparse)
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
    solver = piqp.SparseSolver()
    solver.settings.eps_abs, solver.settings.eps_rel = 1e-9, 1e-10
    Q, A, G = (sp.csc_matrix(data[name]) for name in "QAG")
    start = perf_counter()
    low = np.full(len(data["h"]), -np.inf)
    solver.setup(sp.triu(Q, format="csc"), data["q"], A, data["b"], G, low, data["h"], data["lb"], data["ub"])
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
    Q, A, G = (data[name].toarray() for name in "QAG")
    start = perf_counter()
    solver.init(Q, data["q"], A, data["b"], G, low, data["h"], *bounds)
    solver.solve()
    seconds = perf_counter() - start
    result = solver.results
    side = result.z[p:] if len(result.z) == p + n else result.si
    status = str(result.info.status).split(".")[-1]
    parts = result.x, result.z[:p], result.y, np.maximum(-side, 0), np.maximum(side, 0)
    return seconds, (status, int(result.info.iter), *parts)


def clarabel(instance: Instance) -> tuple[float, Answer]:
    import clarabel

    data = instance.data
    n, m, p = len(data["q"]), len(data["b"]), len(data["h"])
    lower, upper = np.isfinite(data["lb"]), np.isfinite(data["ub"])
    eye = sp.eye(n, format="csr")
    rows = sp.vstack([data["A"], data["G"], -eye[lower], eye[upper]], format="csc")
    sides = np.concatenate([data["b"], data["h"], -data["lb"][lower], data["ub"][upper]])
    cones = [clarabel.ZeroConeT(m), clarabel.NonnegativeConeT(len(sides) - m)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    start = perf_counter()
    solver = clarabel.DefaultSolver(sp.triu(data["Q"], format="csc"), data["q"], rows, sides, cones, settings)
    result = solver.solve()
    seconds = perf_counter() - start
    y = np.asarray(result.z)
    lam_lb, lam_ub = np.zeros(n), np.zeros(n)
    lam_lb[lower], lam_ub[upper] = np.split(y[m + p :], [lower.sum()])
    parts = np.asarray(result.x), y[m : m + p], y[:m], lam_lb, lam_ub
    return seconds, (str(result.status), int(result.iterations), *parts)


PEERS: dict[str, Solver] = {"piqp": piqp, "proxqp": proxqp, "clarabel": clarabel}


def solver_named(name: str) -> Solver:
    """A peer, `sparse`, or a backend with dense matrices."""
    return PEERS.get(name) or (optlayer("cpu", True) if name == "sparse" else optlayer(name))


# --- measuring and telling ------------------------------------------------------------------------------------------


def residuals(data: dict[str, Any], z: np.ndarray, *multipliers: np.ndarray) -> tuple[float, float, float, float]:
    """Primal, dual, gap, and the largest of these relative to one plus the largest term that enters it.

    In long double: of an answer of double precision the rounding of its own sums is no fault.
    """
    data = {key: value.astype(np.longdouble) for key, value in data.items()}
    z, lam, nu, lower, upper = (np.asarray(x, np.longdouble) for x in (z, *multipliers))
    Qz, below, above = data["Q"] @ z, np.isfinite(data["lb"]), np.isfinite(data["ub"])
    forces = [Qz, data["q"], data["G"].T @ lam, data["A"].T @ nu, -lower, upper]
    sides = (
        (data["G"] @ z, data["h"], lam, np.isfinite(data["h"])), (-z, -data["lb"], lower, below),
        (z, data["ub"], upper, above), (data["A"] @ z, data["b"], nu, None),
    )  # fmt: skip
    values, primal, terms = [z @ Qz, data["q"] @ z], 0.0, 1.0
    for value, side, y, there in sides:
        off = np.abs(value - side) if there is None else np.where(there, value - side, -1.0)
        primal = max(primal, off.max(initial=0.0), 0.0 if there is None else (-y).max(initial=0.0))
        finite = side if there is None else np.where(there, side, 0.0)
        terms = max(terms, 1 + np.abs(value).max(initial=0.0), 1 + np.abs(finite).max(initial=0.0))
        values.append(finite @ y)
    dual, gap = np.abs(sum(forces)).max(initial=0.0), abs(sum(values))
    force = max(np.abs(x).max(initial=0.0) for x in forces)
    relative = max(primal / terms, dual / (1 + force), gap / (1 + max(map(abs, values))))
    found = [float(x) if np.isfinite(x) else np.inf for x in (primal, dual, gap, relative)]
    return found[0], found[1], found[2], found[3]


def measure(instance: Instance, name: str) -> Row:
    """Run one solver on one problem and judge its answer."""
    data, before = instance.data, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        seconds, (status, iterations, *arrays) = solver_named(name)(instance)
    except Exception as error:  # a peer that raises has not solved the problem; the table says why
        return Row(instance.name, name, f"{type(error).__name__}: {error}"[:40], 0, np.nan, 0, *[np.inf] * 5)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    x, *_ = arrays = [np.asarray(array, dtype=float) for array in arrays]
    value = 0.5 * x @ (data["Q"] @ x) + data["q"] @ x + instance.constant
    difference = abs(value - instance.objective) / max(1.0, abs(instance.objective))
    return Row(instance.name, name, status, iterations, seconds, memory, *residuals(data, *arrays), difference)


def _child(path: Path, name: str, answer: Any) -> None:
    torch.set_num_threads(1)
    eye, one = sp.eye(3, format="csr"), np.ones(3)
    data = {"Q": eye, "q": one, "G": eye, "h": one, "A": eye[:1], "b": np.zeros(1), "lb": -one, "ub": one}
    small = Instance("", data, 0.0, 0.0)
    measure(small, name)  # what is loaded at first use
    answer.send(measure(load(path), name))


def alone(path: Path, name: str, limit: float) -> Row:
    """`measure` in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(False)
    process = spawn.Process(target=_child, args=(path, name, theirs))
    process.start()
    theirs.close()
    try:
        row: Row = ours.recv() if ours.poll(limit) else Row(path.stem, name, "time out", 0, limit, 0, *[np.inf] * 5)
    except EOFError:
        row = Row(path.stem, name, "ended early", 0, np.nan, 0, *[np.inf] * 5)
    process.kill()
    process.join()
    return row


def table(rows: list[Row]) -> str:
    """All rows, and how many problems each solver solves at each mark."""
    lines = [f"{'problem':<10} {'solver':<10} {'status':<22} {'it':>5} {'ms':>9} {'MB':>6} {'primal':>8} {'dual':>8}"
             f" {'gap':>8} {'relative':>8} {'objective':>9}"]
    lines += [line(row) for row in rows]
    lines += ["", f"{'solver':<10} {'of':>4} " + " ".join(f"{mark:>9}" for mark in MARKS)
              + f" {f'rel {RELATIVE:.0e}':>9} {'total s':>9} {'slowest s':>9}"]
    for solver in dict.fromkeys(row.solver for row in rows):
        own = [row for row in rows if row.solver == solver]
        counts = " ".join(f"{sum(row.absolute <= limit for row in own):>9}" for limit in MARKS.values())
        relative = sum(row.relative <= RELATIVE for row in own)
        seconds = np.array([row.seconds for row in own])
        times = f"{np.nansum(seconds):>9.2f} {np.nanmax(seconds):>9.2f}"
        lines.append(f"{solver:<10} {len(own):>4} {counts} {relative:>9} {times}")
    return "\n".join(lines + beside(rows))


def beside(rows: list[Row]) -> list[str]:
    """Times and peak memory over those of the last solver: median, and the largest with their problems."""
    solvers = list(dict.fromkeys(row.solver for row in rows))
    lines = []
    for solver, (what, least) in product(solvers[:-1], (("seconds", 1e-6), ("megabytes", 1.0))):
        ended = [row for row in rows if row.relative < np.inf]
        ours, theirs = ({row.problem: max(getattr(row, what), least) for row in ended if row.solver == name}
                        for name in (solver, solvers[-1]))  # fmt: skip
        found = sorted((ours[problem] / theirs[problem], problem) for problem in ours.keys() & theirs.keys())
        if found:
            most = ", ".join(f"{problem} {ratio:.2f}" for ratio, problem in found[:-6:-1])
            lines.append(f"{solver} / {solvers[-1]}, {what}: median {found[len(found) // 2][0]:.2f}, most {most}")
    return lines


def line(row: Row) -> str:
    """One row of the table."""
    return (
        f"{row.problem:<10} {row.solver:<10} {row.status:<22} {row.iterations:>5} {1e3 * row.seconds:>9.1f} "
        f"{row.megabytes:>6.0f} "
        f"{row.primal:>8.1e} {row.dual:>8.1e} {row.gap:>8.1e} {row.relative:>8.1e} {row.objective:>9.1e}"
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    return {"cpu": cpu, "platform": platform.platform(), "torch": torch.__version__, "commit": commit,
            "threads": 1}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maros", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--solver", nargs="+", default=["cpu"], help=f"sparse, a backend, or {', '.join(PEERS)}")
    parser.add_argument("--only", nargs="+", help="names of problems")
    parser.add_argument("--limit", type=float, default=100.0, help="seconds for each problem")
    parser.add_argument("--out", type=Path, help="write machine and rows as JSON")
    options = parser.parse_args()
    rows: list[Row] = []
    for path in sorted(options.folder.glob("*.npz")):
        if options.only and path.stem not in options.only:
            continue
        for name in options.solver:
            rows.append(alone(path, name, options.limit))
            print(line(rows[-1]), flush=True)
    print("\n" + table(rows).split("\n\n")[-1])
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
