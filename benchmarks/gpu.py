"""Everything that a GPU can tell, by one command: `make gpu`.

1. times of the workloads, forward and with the derivative: ours, and qpth, qpax, Moreau and cuPIQP (0.1.0, its layer
   for PyTorch) where they can be imported, on the same inputs, each with its errors;
2. the roofline: counted operations and bytes, the floor they give with the card's measured rates, the achieved share;
3. the paper's figure 1, first calls, CUDA graphs, and the sizes from which on another team or the reference is faster;
4. the targets, reached or missed;
5. compute-sanitizer (memcheck, racecheck) on a small run, where it is installed, and the suite on the backend `cuda`.

Tables go to stdout, everything to benchmarks/results/gpu.json with the machine and the commit. Without a GPU,
`--device cpu --quick` rehearses it with the backend `cpu` on smaller problems: the numbers then mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_report, gpu_tasks
from benchmarks.peers import RIVALS
from optlayer.backends import cuda, nvrtc

ROOT = Path(__file__).parents[1]
CASES = (  # workload, dtype, whether the rivals run
    ("fig2_b128", "float64", True),
    ("fig1_n10_b128", "float64", True),
    ("fig1_n50_b128", "float64", True),
    ("fig1_n500_b16", "float64", True),
    ("sudoku_b150", "float64", True),
    ("safety_b4096", "float64", True),
    ("safety_b1000000", "float32", False),
    ("fig2_b4096", "float64", True),  # (what takes rivals longest, last)
    ("safety_b1000000", "float64", True),
)
CROSSOVER = (64, 100, 128, 200, 300, 500)  # n = p, batch 128: the kernels against the reference
TEAMS = (4, 8, 16, 32, 48, 64, 100)  # n = p, batch 4096: the teams of cuda.TABLE against each other
PACKAGES = ("qpth", "qpax", "jax", "moreau", "moreau-cuda12", "moreau-cuda13", "cupiqp", "warp-lang", "numpy")


@dataclass
class Run:
    """Where and how to measure, and what is measured so far."""

    device: str
    quick: bool
    together: bool
    out: Path
    seconds: float = 0.5  # for each time
    rivals: list[str] = field(default_factory=lambda: list(RIVALS))
    result: dict[str, Any] = field(default_factory=dict)

    def workload(self, name: str) -> str:
        """The workload, or a small one of its kind for a rehearsal."""
        if not self.quick:
            return name
        name = re.sub(r"fig2|fig1_n(\d\d+)", "fig1_n10", name)
        return re.sub(r"_b\d+", "_b8", name)

    def ask(
        self, task: str, apart: dict[str, str] | None = None, limit: float = 300, **arguments: Any
    ) -> dict[str, Any]:
        """The answer of a task, or {"error": …, "trace": …}.

        Args:
            task: a function of gpu_tasks.
            apart: changes of the environment, for which the task needs a process of its own in any case.
            limit: seconds until it is given up.
            arguments: of the task, beside `device`.
        """
        arguments["device"] = self.device
        if self.together and apart is None:
            try:
                return gpu_tasks.TASKS[task](**arguments)
            except Exception as error:
                return {"error": f"{type(error).__name__}: {error}"[:200], "trace": traceback.format_exc()}
        command = [sys.executable, "-m", "benchmarks.gpu_tasks", task, json.dumps(arguments)]
        environment = {**os.environ, **(apart or {})}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, env=environment, cwd=ROOT, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"more than {limit} s"}
        if done.returncode == 0:
            answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return answer
        lines = done.stderr.strip().splitlines()[-20:] or [f"ended with code {done.returncode}"]
        return {"error": lines[-1][:200], "trace": "\n".join(lines)}

    def keep(self, name: str, what: Any) -> None:
        """Write down a part of the result: a run that is cut off keeps it."""
        self.result[name] = what
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.result, indent=1) + "\n")


# ---- the parts -------------------------------------------------------------------------------------------------------


def workloads(run: Run, only: list[str]) -> dict[str, Any]:
    """Ours and the rivals on every workload."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype, rivals in CASES:
            if only and name not in only:
                continue
            work, answer, key = run.workload(name), f"{folder}/{name}.npz", f"{name} {dtype}"
            say(key)
            here: dict[str, Any] = {"seconds": run.seconds, "name": work, "answer": answer if rivals else None}
            rows[key] = row = run.ask("ours", dtype=dtype, **here)
            if "error" not in row:
                row["roofline"] = roofline(row, run.result["ceilings"])
            row["rivals"] = {peer: run.ask("rival", peer=peer, **here) for peer in run.rivals} if rivals else {}
            Path(answer).unlink(missing_ok=True)
            run.keep("workloads", rows)
    return rows


def roofline(row: dict[str, Any], rates: dict[str, float]) -> dict[str, Any]:
    """The floor that counted operations and bytes give, and what bounds: neither of them where the share is small."""
    if "error" in rates:
        return {}
    arithmetic, traffic = row["flops"] / rates[row["dtype"]], row["bytes"] / rates["bytes"]
    floor = max(arithmetic, traffic)
    share = floor / row["forward"]
    bound = "latency" if share < 0.3 else "arithmetic" if arithmetic > traffic else "bytes"
    return {"floor": floor, "share": share, "bound": bound}


def figure1(run: Run) -> dict[str, Any]:
    """The paper's figure 1: a QP layer of n variables beside a linear layer, float32, batch 128."""
    result: dict[str, Any] = {}
    for n in (10, 50, 100, 500):
        say(f"figure 1, n = {n}")
        qp = run.ask("ours", name=run.workload(f"fig1_n{n}_b128"), dtype="float32", seconds=run.seconds)
        plain = run.ask("linear", n=10 if run.quick else n, batch=8 if run.quick else 128, seconds=run.seconds)
        ratios = {k: qp[k] / plain[k] for k in ("forward", "both")} if not {"error"} & {*qp, *plain} else {}
        result[str(n)] = {"linear": plain, "qp": qp, **ratios}
    return result


def first_calls(run: Run) -> dict[str, Any]:
    """The first call of a process with an empty cache of kernels, and of the next process, which finds it filled."""
    name = run.workload("fig2_b128")
    with tempfile.TemporaryDirectory() as folder:
        return {
            kind: run.ask("first", apart={"XDG_CACHE_HOME": folder}, name=name) for kind in ("compiling", "cached")
        }


def graphs(run: Run) -> dict[str, Any]:
    """Calls captured in CUDA graphs: what is saved is time of the host."""
    return {
        name: {
            kind: run.ask("graph", name=run.workload(name), kind=kind, seconds=run.seconds)
            for kind in ("forward", "both")
        }
        for name in ("fig2_b128", "safety_b4096")
    }


def crossover(run: Run) -> dict[str, Any]:
    """Kernels and the reference backend on the same problems, by size."""
    last = list(cuda.TABLE[-1][-1]) if run.device == "cuda" else None
    ways: dict[str, dict[str, Any]] = {"kernels": {"team": last}, "reference": {"backend": "reference"}}
    return by_size(run, (4,) if run.quick else CROSSOVER, 128, ways)


def teams(run: Run) -> dict[str, Any]:
    """The teams of cuda.TABLE on the same problems, by size; one thread only where its local memory holds them."""
    sizes = TEAMS[:1] if run.quick else TEAMS
    ways = {f"{team.threads}": {"team": list(team)} for *_, team in cuda.TABLE}
    if run.device != "cuda":
        ways = {"1": {}}
    return by_size(run, sizes, 4096, ways, skip=lambda n, way: way == "1" and n > 16)


def by_size(run: Run, sizes: tuple[int, ...], batch: int, ways: dict[str, Any], skip: Any = None) -> dict[str, Any]:
    """Times of n = p in float64 for every way of solving."""
    result: dict[str, Any] = {}
    for n in sizes:
        say(f"n = {n}, batch {batch}: {', '.join(ways)}")
        name = f"fig1_n{n}_b{8 if run.quick else batch}"
        result[str(n)] = {
            way: run.ask("ours", name=name, dtype="float64", seconds=run.seconds, **arguments)
            for way, arguments in ways.items()
            if skip is None or not skip(n, way)
        }
    return result


MORE = {"figure1": figure1, "first_calls": first_calls, "graph": graphs, "crossover": crossover, "teams": teams}
PARTS = ["workloads", *MORE, "checks"]


# ---- suite and sanitizer ---------------------------------------------------------------------------------------------


SMALL = """
import torch, optlayer
torch.manual_seed(0)
for n, p in ((4, 8), (10, 10), (40, 50), (100, 100)):
    for dtype in (torch.float32, torch.float64):
        L = torch.randn(3, n, n, device="cuda", dtype=dtype)
        q = torch.randn(3, n, device="cuda", dtype=dtype, requires_grad=True)
        G, h = torch.randn(3, p, n, device="cuda", dtype=dtype), torch.rand(3, p, device="cuda", dtype=dtype)
        Q = L @ L.mT + torch.eye(n, device="cuda", dtype=dtype)
        optlayer.solve(Q, q, G, h, backend="cuda", check=False).z.sum().backward()
torch.cuda.synchronize()
"""


def execute(command: list[str], limit: int) -> dict[str, Any]:
    print("$", " ".join(command), flush=True)
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT, check=False)
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, text = -1, f"stopped after {limit} s"
    tail = "\n".join(text.strip().splitlines()[-25:])
    print(tail, flush=True)
    return {"command": command, "code": code, "seconds": time.perf_counter() - begin, "tail": tail}


def checks(device: str, suite: bool) -> list[dict[str, Any]]:
    python, done = sys.executable, []
    if device == "cuda" and (tool := shutil.which("compute-sanitizer")):
        for which in ("memcheck", "racecheck"):
            done.append(execute([tool, "--tool", which, "--error-exitcode", "9", python, "-c", SMALL], 1200))
    else:
        print("no compute-sanitizer")
    if suite:
        done.append(execute([python, "-m", "pytest", "-q", "-m", "not slow", "--backend", device, "tests"], 1800))
        done.append(execute([python, "-m", "pytest", "-q", "-m", "gpu", "tests"], 900))
    return done


# ---- all of it -------------------------------------------------------------------------------------------------------


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def machine(device: str) -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    compiler = nvrtc.compiler()
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "architecture": nvrtc.device(0).architecture if device == "cuda" else None,
        "torch": torch.__version__, "cuda": torch.version.cuda,
        "nvrtc": compiler if isinstance(compiler, str) else compiler.version,
        "python": platform.python_version(), "versions": versions,
        "commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "src")),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--quick", action="store_true", help="small problems, few repetitions")
    parser.add_argument("--seconds", type=float, help="for each time; default: 0.5")
    parser.add_argument("--rival", action="append", default=[], choices=RIVALS, help="only these; may be repeated")
    parser.add_argument("--together", action="store_true", help="all in this process: a crash ends it")
    parser.add_argument("--only", action="append", default=[], metavar="WORKLOAD", help="may be repeated")
    parser.add_argument("--part", action="append", default=[], choices=PARTS, help="only these; may be repeated")
    parser.add_argument("--commit", help="of the code, where it is no checkout")
    parser.add_argument("--no-suite", action="store_true", help="without the test suite")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu.json, or build/gpu.json")
    options = parser.parse_args(words)
    if options.device == "cuda" and (reason := cuda.unavailable()):
        raise SystemExit(f"make gpu needs a GPU: {reason} (--device cpu --quick: a rehearsal)")
    real = options.device == "cuda" and not options.quick
    out = options.out or (ROOT / "benchmarks" / "results" if real else ROOT / "build") / "gpu.json"
    seconds = options.seconds or (0.01 if options.quick else Run.seconds)
    rivals = options.rival or list(RIVALS)
    run = Run(options.device, options.quick, options.together, out.resolve(), seconds, rivals)
    run.keep("rehearsal", not real)
    run.keep("machine", machine(options.device) | ({"commit": options.commit} if options.commit else {}))
    run.keep("ceilings", run.ask("ceilings", seconds=run.seconds, size=4096 if real else 128))
    parts = {"workloads": partial(workloads, only=options.only), **MORE}
    wanted = options.part or PARTS
    for name, part in parts.items():
        run.keep(name, part(run) if name in wanted else {})
    run.keep("targets", gpu_report.targets(run.result))
    gpu_report.show(run.result)
    run.keep("checks", checks(options.device, not options.no_suite) if "checks" in wanted else [])
    print(f"\n{run.out}")
    if any(check["code"] for check in run.result["checks"]):
        raise SystemExit("a check failed")
    return run.result


if __name__ == "__main__":
    main()
