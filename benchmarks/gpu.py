"""Everything that a GPU can tell, by one command: `make gpu`.

1. the suite on the backend `cuda`, and the tests marked `gpu`;
2. compute-sanitizer (memcheck, racecheck) on a small run, where it is installed;
3. times of the workloads: ours, and qpth, qpax and Moreau where they can be imported, on the same inputs;
4. the roofline: counted operations and bytes, the floor they give with the card's measured rates, the achieved share.

Tables go to stdout, everything to benchmarks/results/gpu.json with the machine and the commit.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import optlayer
from benchmarks.workloads import WORKLOADS, Workload, random_dense, safety, sudoku
from optlayer.backends import args as core_args
from optlayer.backends import cuda, nvrtc

RESULTS = Path(__file__).parent / "results" / "gpu.json"
RIVALS = ("qpth", "qpax", "moreau")
CASES = (  # workload, dtype, whether the rivals run
    (Workload("fig2_b128", 128, random_dense(100)), "float64", True),
    (Workload("fig2_b4096", 4096, random_dense(100)), "float64", False),
    (WORKLOADS["fig1_n10_b128"], "float64", True),
    (WORKLOADS["fig1_n50_b128"], "float64", True),
    (WORKLOADS["fig1_n500_b16"], "float64", True),
    (Workload("sudoku_b150", 150, sudoku), "float64", True),
    (Workload("safety_b4096", 4096, safety), "float64", True),
    (Workload("safety_b1000000", 10**6, safety), "float32", False),
)


# ---- times ---------------------------------------------------------------------------------------------------------


def median(call: Callable[[], object], least: float = 0.5, most: int = 200) -> float:
    """Median seconds of `call`, by events of the device, after a warm-up."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < 5 or (time.perf_counter() - begin < least and len(seconds) < most):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds)


def tensors_of(workload: Workload, dtype: str) -> dict[str, torch.Tensor]:
    return {k: torch.as_tensor(v, device="cuda", dtype=getattr(torch, dtype)) for k, v in workload.data().items()}


def with_gradient(
    solve: Callable[..., Any], tensors: dict[str, torch.Tensor], upstream: torch.Tensor
) -> Callable[[], None]:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}

    def run() -> None:
        for leaf in leaves.values():
            leaf.grad = None
        solve(**leaves).backward(upstream)

    return run


def ours(**tensors: torch.Tensor) -> torch.Tensor:
    return optlayer.solve(**tensors, backend="cuda", check=False).z


def rival(name: str, tensors: dict[str, torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The rival's solve, as a function of the same tensors; raises ImportError where it cannot be had."""
    if name == "qpth":
        from qpth.qp import QPFunction

        empty = tensors["q"].new_empty(0)

        def run(**t: torch.Tensor) -> torch.Tensor:
            return QPFunction(verbose=-1)(t["Q"], t["q"], t["G"], t["h"], t.get("A", empty), t.get("b", empty))

        return run
    raise ImportError(f"{name} has no case for the GPU here: its own timings are in docs/benchmarks.md")


def qpax_time(tensors: dict[str, torch.Tensor]) -> float:
    """Seconds of qpax's batched solve (JAX), forward alone."""
    import jax
    import qpax

    jax.config.update("jax_enable_x64", True)
    batch, n = tensors["q"].shape
    full = {}
    for name, shape in (("Q", (n, n)), ("q", (n,)), ("A", (0, n)), ("b", (0,)), ("G", (0, n)), ("h", (0,))):
        x = tensors[name] if name in tensors else tensors["q"].new_zeros(shape)
        full[name] = jax.numpy.asarray(x.expand(batch, *x.shape[-len(shape):]).cpu().numpy())
    run = jax.jit(jax.vmap(qpax.solve_qp))
    order = ("Q", "q", "A", "b", "G", "h")
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        jax.block_until_ready(run(*(full[name] for name in order)))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[3:])


def measure(workload: Workload, dtype: str, rivals: bool) -> dict[str, Any]:
    tensors = tensors_of(workload, dtype)
    upstream = torch.as_tensor(workload.upstream(), device="cuda", dtype=getattr(torch, dtype))
    begin = time.perf_counter()
    solution = optlayer.solve(**tensors, backend="cuda", check=False)
    torch.cuda.synchronize()
    first = time.perf_counter() - begin
    row: dict[str, Any] = {
        "dtype": dtype, "first_call": first, "solved": float(solution.solved.float().mean()),
        "iterations": float(solution.iterations.float().mean()),
        "forward": median(lambda: ours(**tensors)),
        "both": median(with_gradient(ours, tensors, upstream)),
    }
    row["rate"] = workload.batch / row["forward"]
    if rivals:
        for name in RIVALS:
            try:
                if name == "qpax":
                    row[name] = {"forward": qpax_time(tensors)}
                    continue
                solve = rival(name, tensors)
                row[name] = {
                    "forward": median(lambda solve=solve: solve(**tensors), most=20),
                    "both": median(with_gradient(solve, tensors, upstream), most=20),
                }
            except Exception as error:
                row[name] = f"{type(error).__name__}: {error}"[:200]
    row["roofline"] = roofline(tensors, row)
    return row


def linear_ratio(n: int, batch: int = 128) -> dict[str, float]:
    """The paper's figure 1: a QP layer of n variables beside a linear layer."""
    x = torch.randn(batch, n, device="cuda")
    layer = torch.nn.Linear(n, n, device="cuda")
    tensors = tensors_of(Workload("fig1", batch, random_dense(n)), "float32")
    linear, qp = median(lambda: layer(x)), median(lambda: ours(**tensors))
    return {"linear": linear, "qp": qp, "ratio": qp / linear}


# ---- roofline ------------------------------------------------------------------------------------------------------


def ceilings() -> dict[str, float]:
    """Bytes/s of a large copy, flop/s of large products, measured."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    rates = {"bytes": 2 * source.numel() * 4 / median(lambda: target.copy_(source))}
    for dtype in ("float32", "float64"):
        a = torch.randn(4096, 4096, device="cuda", dtype=getattr(torch, dtype))
        rates[dtype] = 2 * 4096**3 / median(lambda a=a: a @ a)
    return rates


def roofline(tensors: dict[str, torch.Tensor], row: dict[str, Any]) -> dict[str, Any]:
    """Flops and bytes of a forward pass (inputs read once, outputs written once), and the floor they give."""
    batch, n = tensors["q"].shape
    p = tensors["G"].shape[-2] if "G" in tensors else 0
    m = tensors["A"].shape[-2] if "A" in tensors else 0
    shared = all(tensors[k].dim() == 2 for k in ("Q", "G", "A") if k in tensors)
    its = row["iterations"]
    choice = cuda.variant(n, m, p, batch)
    schur = choice is not None and choice.threads > 1 and p > 0 and p <= n
    if schur:
        step, once = p**3 / 3 + 10 * p * p, n**3 / 3 + n * n * (p + m) + n * (p + m) ** 2
    else:
        step, once = n**3 / 3 + p * n * n + m * n * n + m * m * n + m**3 / 3 + 12 * n * (n + p + m), n**3 / 3
    polish = step + 3 * 4 * (n * n + n * p + n * m)
    flops = batch * (its * step + polish) + once * (1 if shared else batch)
    size = tensors["q"].element_size()
    read = sum(x.numel() for x in tensors.values()) * size
    written = batch * (n + 2 * p + m + 3) * size + batch * 8
    rates = CEILINGS
    floor = max(flops / rates[row["dtype"]], (read + written) / rates["bytes"])
    bound = "arithmetic" if flops / rates[row["dtype"]] > (read + written) / rates["bytes"] else "bytes"
    share = floor / row["forward"]
    return {"flops": flops, "bytes": read + written, "floor": floor, "share": share, "bound": bound}


CEILINGS: dict[str, float] = {}


# ---- suite and sanitizer -------------------------------------------------------------------------------------------


def run(command: list[str], limit: int) -> dict[str, Any]:
    print("$", " ".join(command), flush=True)
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, text = -1, f"stopped after {limit} s"
    tail = "\n".join(text.strip().splitlines()[-25:])
    print(tail, flush=True)
    return {"command": command, "code": code, "seconds": time.perf_counter() - begin, "tail": tail}


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


def checks(suite: bool) -> list[dict[str, Any]]:
    python, done = sys.executable, []
    if suite:
        done.append(run([python, "-m", "pytest", "-q", "-m", "not slow", "--backend", "cuda", "tests"], 1500))
        done.append(run([python, "-m", "pytest", "-q", "-m", "gpu", "tests"], 900))
    if tool := shutil.which("compute-sanitizer"):
        for which in ("memcheck", "racecheck"):
            done.append(run([tool, "--tool", which, "--error-exitcode", "9", python, "-c", SMALL], 1200))
    else:
        print("compute-sanitizer is not installed: skipped")
    return done


# ---- the report ----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    compiler = nvrtc.compiler()
    return {
        "gpu": torch.cuda.get_device_name(), "architecture": nvrtc.device(0).architecture, "torch": torch.__version__,
        "cuda": torch.version.cuda, "nvrtc": compiler if isinstance(compiler, str) else compiler.version,
        "python": platform.python_version(), "numpy": np.__version__, "commit": commit,
    }


def show(rows: dict[str, dict[str, Any]]) -> None:
    head = ("workload", "dtype", "solved", "its", "forward ms", "both ms", "QPs/s", "floor ms", "share", "rivals ms")
    print("\n| " + " | ".join(head) + " |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, r in rows.items():
        if "error" in r:
            print(f"| {name} | {r['error']} |")
            continue
        rivals = ", ".join(f"{k} {r[k]['forward'] * 1e3:.3g}" for k in RIVALS if isinstance(r.get(k), dict))
        roof = r["roofline"]
        print(
            f"| {name} | {r['dtype']} | {r['solved']:.1%} | {r['iterations']:.1f} | {r['forward'] * 1e3:.3f} "
            f"| {r['both'] * 1e3:.3f} | {r['rate']:.3g} | {roof['floor'] * 1e3:.4f} ({roof['bound']}) "
            f"| {roof['share']:.1%} | {rivals or '–'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-suite", action="store_true", help="times alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if reason := cuda.unavailable():
        raise SystemExit(f"make gpu needs a GPU: {reason}")
    result: dict[str, Any] = {"machine": machine(), "methods": core_args.METHODS}
    CEILINGS.update(ceilings())
    result["ceilings"] = CEILINGS
    rows: dict[str, dict[str, Any]] = {}
    for workload, dtype, rivals in CASES:
        try:
            rows[workload.name] = measure(workload, dtype, rivals)
        except Exception as error:
            rows[workload.name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        torch.cuda.empty_cache()
    result["workloads"] = rows
    result["figure1"] = {n: linear_ratio(n) for n in (10, 50, 100, 500)}
    show(rows)
    print("\nfigure 1, QP layer / linear layer:", {n: round(r["ratio"], 1) for n, r in result["figure1"].items()})
    result["checks"] = checks(not options.no_suite)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))
    print(f"\n{options.out}")
    if any(check["code"] for check in result["checks"]):
        raise SystemExit("a check failed")


if __name__ == "__main__":
    main()
