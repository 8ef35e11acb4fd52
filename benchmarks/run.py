"""Time every peer on every workload: one process each, in turns, on the same core.

    python -m benchmarks.run                                  everything, then docs/benchmarks.md
    python -m benchmarks.run -w mnist_b64 -p optlayer -p daqp   a part, for a quick look
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks import accuracy
from benchmarks.peers import PEERS
from benchmarks.worker import Failure, Worker
from benchmarks.workloads import NAMES, RANK, WORKLOADS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
OURS = "optlayer"
ROUNDS = 3
SLOW = 4.0
"""Seconds from which on a first call is not repeated."""
console = Console()


def main(
    workload: Annotated[list[str] | None, typer.Option("-w", help="workloads; all when absent")] = None,
    peer: Annotated[list[str] | None, typer.Option("-p", help="peers; all when absent")] = None,
    name: Annotated[str, typer.Option(help="results are written to benchmarks/results/NAME.json")] = "cpu",
    seconds: Annotated[float, typer.Option(help="time for each peer, workload and kind of call")] = 0.5,
    limit: Annotated[float, typer.Option(help="seconds after which a call is given up")] = 30.0,
    report: Annotated[bool | None, typer.Option(help="write docs/benchmarks.md; by default after a full run")] = None,
) -> None:
    """Run the benchmark."""
    started = time.time()
    for variable in THREADS:
        os.environ[variable] = "1"  # inherited by the workers
    cores = sorted(os.sched_getaffinity(0))
    chosen = [PEERS[one] for one in peer or PEERS]
    workers = {one.name: Worker(one.name, set(cores[-one.threads :])) for one in chosen}
    helper = Worker("", set(cores))  # exact solutions, while nothing is measured
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.run", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        **_commit(),
        "machine": _machine(len(cores)),
        "versions": _versions(sorted({one.package for one in chosen})),
        "options": {"seconds": seconds, "limit": limit, "rounds": ROUNDS},
        "workloads": {},
    }
    path = RESULTS / f"{name}.json"
    try:
        for worker in (*workers.values(), helper):
            worker.start()
        for one in workload or list(WORKLOADS):
            result["workloads"][one] = _run(one, workers, helper, seconds, limit)
            _write(path, result, started)
        ours = result["workloads"].get("fig2_b128", {}).get("peers", {}).get(OURS, {})
        if "residuals" in ours:
            result["floor"] = workers[OURS].ask("floor", ours["residuals"]["iterations"], limit=limit)
    finally:
        for worker in (*workers.values(), helper):
            worker.stop()
    _write(path, result, started)
    console.print(f"{path.relative_to(ROOT)} after {result['minutes']} minutes")
    if report or (report is None and workload is None and peer is None):
        from benchmarks.report import write

        write(path)


def _write(path: Path, result: dict[str, Any], started: float) -> None:
    """What is measured so far: a run that is cut off keeps it."""
    result["minutes"] = round((time.time() - started) / 60, 1)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def _run(name: str, workers: dict[str, Worker], helper: Worker, seconds: float, limit: float) -> dict[str, Any]:
    """All peers on one workload."""
    workload = WORKLOADS[name]
    tensors = workload.data()
    shapes = {key: value.shape[value.ndim - RANK[key] :] for key, value in tensors.items()}
    entry: dict[str, Any] = {
        "batch": workload.batch,
        "n": shapes["q"][0], "p": shapes["h"][0], "m": shapes["b"][0] if "b" in shapes else 0,
        "shared": [key for key in NAMES if key in tensors and tensors[key].ndim == RANK[key]],
        "peers": {},
    }
    console.print(f"[bold]{name}[/] n={entry['n']} p={entry['p']} m={entry['m']} batch={entry['batch']}")
    exact = {}
    for dtype in sorted({PEERS[peer].dtype for peer in workers}, reverse=True):
        try:
            exact[dtype], error = helper.ask("exact", name, dtype == "float32", limit=20 * limit)
            if error is not None:
                entry["finite_differences"] = error
        except Failure as failure:
            console.print(f"  no exact solution in {dtype}: {failure}")
    running = []
    for peer, worker in workers.items():
        if workload.batch < PEERS[peer].smallest_batch:
            continue
        entry["peers"][peer] = row = {}
        try:
            row["setup"] = worker.ask("prepare", name, limit=limit)
            first = worker.ask("warm", limit=2 * limit)
            if PEERS[peer].dtype in exact:
                row["accuracy"] = worker.ask("judge", exact[PEERS[peer].dtype], limit=limit)
            if PEERS[peer].package == OURS:
                row["residuals"] = worker.ask("residuals", limit=limit)
            if "backward_failure" in first:
                row["backward_failure"] = first["backward_failure"]
            running.append((peer, first))
        except Failure as failure:
            row["failure"] = str(failure)
    samples = _interleave(running, workers, entry["peers"], seconds, limit)
    for peer, kinds in samples.items():
        row = entry["peers"][peer]
        row |= {kind: _summary([whole for _, whole in times]) for kind, times in kinds.items() if times}
        parts = [(part, whole) for part, whole in kinds["both"] if part is not None]
        if parts:
            row["backward_share"] = float(np.median([(whole - part) / part for part, whole in parts]))
    for peer, row in entry["peers"].items():
        _print(peer, row)
        if workers[peer].process is not None:
            workers[peer].ask("forget", limit=limit)
    return entry


def _interleave(
    running: list[tuple[str, dict[str, Any]]],
    workers: dict[str, Worker],
    rows: dict[str, Any],
    seconds: float,
    limit: float,
) -> dict[str, dict[str, list[Any]]]:
    """Samples (forward part, whole) of every peer and kind of call, measured in turns.

    A first call that took very long is taken for the measurement: what is that slow has no warm-up to speak of.
    """
    samples: dict[str, dict[str, list[Any]]] = {}
    for peer, first in running:
        samples[peer] = {"forward": [], "both": []}
        if first["forward"] > SLOW:
            samples[peer]["forward"].append((None, first["forward"]))
        if "both" in first and first["both"][1] > SLOW:
            samples[peer]["both"].append(first["both"])
    for _ in range(ROUNDS):
        for peer, first in running:
            for kind in ("forward", "both"):
                times = samples[peer][kind]
                spent = sum(whole for _, whole in times)
                if kind not in first or "failure" in rows[peer] or (times and spent >= seconds):
                    continue
                try:
                    times += workers[peer].ask("measure", kind == "both", seconds / ROUNDS, limit=limit)
                except Failure as failure:
                    rows[peer]["failure"] = str(failure)
    return samples


def _summary(times: list[float]) -> dict[str, float]:
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high), "count": len(times)}


def _print(peer: str, row: dict[str, Any]) -> None:
    def milliseconds(kind: str) -> str:
        return f"{1e3 * row[kind]['median']:10.3f}" if kind in row else " " * 10

    marks = row.get("failure", "")
    if "accuracy" in row:
        found = row["accuracy"]
        if not accuracy.solution_is_correct(found):
            marks += " wrong solution"
        if "gradients" in found:
            marks += f" gradients {accuracy.gradient_error(found):.0e}"
    console.print(f"  {peer:<17}{milliseconds('forward')}{milliseconds('both')}  {marks}", highlight=False)


def _commit() -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return {"commit": git("rev-parse", "--short=12", "HEAD"), "changed": bool(git("status", "--porcelain", "src"))}


def _machine(cores: int) -> dict[str, Any]:
    import torch

    from optlayer.backends import cpu

    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "processor": model,
        "cores": cores,
        "instructions": cpu.variant(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _versions(packages: list[str]) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}


if __name__ == "__main__":
    typer.run(main)
