"""What `make gpu` measures, a task to a process: a crash, a hang or a lost GPU costs one row of its tables.

    python -m benchmarks.gpu_tasks TASK '{"argument": value}'

prints what the task returns as its last line, in JSON. Times are seconds of the clock on the wall, of a call and the
wait for it, medians. `device` is "cuda", or "cpu" for a rehearsal without a GPU, with the backend of that name.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks import accuracy, truth
from benchmarks.peers import RIVALS, optlayer
from benchmarks.workloads import WORKLOADS, Arrays, Workload, random_dense, safety, shares_matrices, sudoku
from benchmarks.workloads import first as leading
from optlayer import SolveError, kkt, solve
from optlayer.backends import cuda, nvrtc

TABLE: tuple[Any, ...] = cuda.TABLE
DRAWS = {"fig2": random_dense(100, 2), "sudoku": sudoku, "safety": safety}


def workload(name: str) -> Workload:
    """One of the list, or FAMILY_bBATCH of another batch, FAMILY one of DRAWS or fig1_nN."""
    if name in WORKLOADS:
        return WORKLOADS[name]
    family, batch = name.rsplit("_b", 1)
    size = re.fullmatch(r"fig1_n(\d+)", family)
    return Workload(name, int(batch), random_dense(int(size[1]), 1) if size else DRAWS[family])


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def waited(call: Callable[[], object], device: str) -> Callable[[], None]:
    """The call, and the wait for what it has queued."""

    def run() -> None:
        call()
        wait(device)

    return run


def timed(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


def median(call: Callable[[], object], seconds: float) -> float:
    """Median of repeated calls, which wait for the device themselves; one more before for what only a first pays."""
    call()
    samples = [timed(call)]
    while sum(samples) < seconds and len(samples) < 500:
        samples.append(timed(call))
    return statistics.median(samples)


# ---- ours and theirs on a workload -----------------------------------------------------------------------------------


def ours(
    name: str,
    dtype: str,
    device: str,
    seconds: float,
    backend: str | None = None,
    team: list[int] | None = None,
    answer: str | None = None,
) -> dict[str, Any]:
    """Times, residuals and counts of one workload.

    Args:
        name, dtype, device, seconds: what is solved, where, and for how long.
        backend: instead of the device's.
        team: a `cuda.Variant` for every size, instead of cuda.TABLE.
        answer: file for the solution, which `rival` compares with.
    """
    table: Any = TABLE if team is None else ((10**9, 10**9, 1, cuda.Variant(*team)),)
    cuda.TABLE = table
    work, backend = workload(name), backend or device
    tensors, upstream = work.data(), work.upstream()
    case = optlayer(tensors, upstream, backend, dtype, device)
    assert case.both is not None
    row: dict[str, Any] = {"dtype": dtype, "batch": work.batch, "first": timed(case.forward)}
    row |= {"forward": median(case.forward, seconds), "both": median(case.both, seconds)}
    row |= {"rate": work.batch / row["forward"], "backward_share": row["both"] / row["forward"] - 1}
    row |= judged(tensors, dtype, device, backend)
    row |= counted(tensors, work.batch, row["iterations"], 4 if dtype == "float32" else 8)
    if device == "cuda":
        row["kernels"] = {
            f"{kernel.name}, {dict(defines)['OPTLAYER_THREADS']} threads": kernel.resources()  # type: ignore[call-overload]
            for (_, defines, _), kernel in nvrtc._kernels.items()
        }
    if answer is not None:
        save(answer, work, case.forward(), case.gradients(case.both()[2]))
    return row


def judged(tensors: Arrays, dtype: str, device: str, backend: str) -> dict[str, float]:
    """The share of members solved, the share that the kernel has left to the core, their iterations, and the largest
    residual of the optimality conditions."""
    kind = {"dtype": getattr(torch, dtype), "device": device}
    there: dict[str, Any] = {name: torch.tensor(x, **kind) for name, x in tensors.items()}
    left = (~solve(**there, backend=backend, check=False).solved).double().mean()
    try:
        found = solve(**there, backend=backend)  # what the kernel leaves is settled
    except SolveError as error:
        found = error.solution
    residuals = kkt.residuals(found.problem, found.z, found.lam, found.nu, found.lam_lb, found.lam_ub)
    return {
        "solved": float(found.solved.double().mean()),
        "left": float(left),
        "iterations": float(found.iterations.double().mean()),
        "residual": float(residuals.relative.max()),
    }


def save(answer: str, work: Workload, z: torch.Tensor, gradients: Arrays) -> None:
    """z of all members; z and gradients of those that `accuracy.compare` looks at."""
    everything, count = z.cpu().numpy(), truth.members(work)
    named: dict[str, Any] = {f"grad_{name}": x for name, x in leading(gradients, count).items()}
    np.savez(answer, all=everything, z=everything[:count], **named)


def rival(peer: str, name: str, device: str, seconds: float, answer: str) -> dict[str, Any]:
    """Times of a rival in float64, and how far it is from our answer."""
    work = workload(name)
    tensors = work.data()
    case = RIVALS[peer](tensors, work.upstream(), device=device)
    z = on_host(case.forward())
    assert case.both is not None
    gradients = case.gradients(case.both()[2])
    row: dict[str, Any] = {"forward": median(case.forward, seconds), "both": median(case.both, seconds)}
    if Path(answer).exists():
        found = accuracy.compare(tensors, z, gradients, Path(answer))
        with np.load(answer) as exact:
            difference = np.abs(z - exact["all"]).max() / (1 + np.abs(exact["all"]).max())
        right = {"forward": accuracy.solution_is_correct(found), "both": accuracy.gradient_is_correct(found)}
        row |= {"accuracy": found, "z_error": float(difference), "right": right}
    return row


def on_host(z: Any) -> np.ndarray:
    """A copy of what torch or JAX returned."""
    return np.array(z.cpu().numpy() if isinstance(z, torch.Tensor) else z)


def counted(tensors: Arrays, batch: int, iterations: float, size: int) -> dict[str, float]:
    """Operations of the cheaper elimination, and bytes if everything is read and written once (size: of an entry)."""
    n, p = tensors["q"].shape[-1], tensors["h"].shape[-1]
    m = tensors["b"].shape[-1] if "b" in tensors else 0
    once = n**3 / 3 + n * n * (p + m) + n * (p + m) ** 2
    schur = iterations * (p**3 / 3 + 10 * p * p)
    normal = iterations * (n**3 / 3 + p * n * n + m * n * n + m * m * n + m**3 / 3 + 12 * n * (n + p + m))
    polish = 12 * n * (n + p + m)
    if shares_matrices(tensors):
        flops = batch * (min(schur, normal) + polish) + once
    else:
        flops = batch * (min(schur + once, normal) + polish)
    read = sum(x.size for x in tensors.values()) * size
    return {"flops": flops, "bytes": read + batch * ((n + 2 * p + m + 3) * size + 8)}


# ---- the rest of the table -------------------------------------------------------------------------------------------


def linear(n: int, batch: int, device: str, seconds: float) -> dict[str, float]:
    """A linear layer, beside which the paper's figure 1 shows the QP layer; float32."""
    x, weight = torch.randn(2, batch, n, device=device)
    layer = torch.nn.Linear(n, n, device=device)
    x.requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def both() -> None:
        torch.autograd.grad(layer(x), [x, *layer.parameters()], weight)

    return {kind.__name__: median(waited(kind, device), seconds) for kind in (forward, both)}


def first(name: str, device: str) -> dict[str, float]:
    """Seconds of the first calls of this process; `loading` is what later calls do not pay for.

    The device, torch's allocator and its autograd are awake before.
    """
    work = workload(name)
    tensors, upstream = work.data(), work.upstream()
    x = torch.ones(1000, device=device, requires_grad=True)
    torch.autograd.grad(2 * x, x, torch.ones_like(x))
    wait(device)
    case = optlayer(tensors, upstream, device, device=device)
    assert case.both is not None
    forward, both = timed(case.forward), timed(case.both)
    return {"forward": forward, "both": both, "loading": forward - median(case.forward, 0.1)}


def graph(name: str, kind: str, device: str, seconds: float) -> dict[str, Any]:
    """A CUDA graph of a solve (`kind` "forward") or of a solve and its derivative ("both"): eager calls and replays.

    Without CUDA nothing is captured, and the call itself is repeated.
    """
    work = workload(name)
    leaves: dict[str, Any] = {k: torch.tensor(x, device=device).requires_grad_() for k, x in work.data().items()}
    fixed: dict[str, Any] = {key: leaf.detach() for key, leaf in leaves.items()}
    weight = torch.tensor(work.upstream(), device=device)

    def forward() -> tuple[torch.Tensor, ...]:
        return (solve(**fixed, backend=device, check=False).z,)

    def both() -> tuple[torch.Tensor, ...]:
        z = solve(**leaves, backend=device, check=False).z
        return (z.detach(), *torch.autograd.grad(z, list(leaves.values()), weight))

    call = {"forward": forward, "both": both}[kind]
    wanted = [x.clone() for x in call()]
    again, found = capture(call) if device == "cuda" else (call, call())
    waited(again, device)()
    return {
        "captured": device == "cuda",
        "difference": max(difference(a, b) for a, b in zip(found, wanted, strict=True)),
        "eager": median(waited(call, device), seconds),
        "replay": median(waited(again, device), seconds),
    }


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference; inf where nothing was written."""
    return float((a - b).abs().nan_to_num(nan=torch.inf).max())


def capture(call: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[Callable[[], object], tuple[torch.Tensor, ...]]:
    """Replay of `call`, and what it writes to, emptied."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        found = call()
    for x in found:
        x.fill_(float("nan"))
    return recorded.replay, found


def ceilings(device: str, seconds: float, size: int) -> dict[str, float]:
    """Bytes/s of a large copy, flop/s of products of order `size`: what the machine can do."""
    source = torch.ones(16 * size * size, device=device)
    target = torch.empty_like(source)
    rates = {"bytes": 2 * source.numel() * 4 / median(waited(lambda: target.copy_(source), device), seconds)}
    for dtype in ("float32", "float64"):
        a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
        rates[dtype] = 2 * size**3 / median(waited(partial(torch.mm, a, a), device), seconds)
    return rates


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    task.__name__: task for task in (ours, rival, linear, first, graph, ceilings)
}


if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))
