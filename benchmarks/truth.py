"""Exact solutions and gradients: the reference backend with polish, checked against finite differences.

Those of problems rounded to float32 come from the cpu backend in float64, which the others have judged.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from benchmarks.workloads import RANK, Arrays, Workload, first

FOLDER = Path(__file__).parents[1] / "build" / "benchmarks"
STEP = 1e-5


def members(workload: Workload) -> int:
    """How many members are compared: all where the batch shares something, else as many as a minute allows."""
    tensors = workload.data()
    n = tensors["q"].shape[-1]
    alone = all(value.ndim > RANK[name] for name, value in tensors.items())
    return max(1, min(workload.batch, 1600 // n)) if alone else workload.batch


def rounded(tensors: Arrays) -> Arrays:
    """The problem that float32 can express."""
    return {name: value.astype(np.float32).astype(np.float64) for name, value in tensors.items()}


def answer(workload: Workload, single: bool) -> tuple[Path, float | None]:
    """The file with z and grad_NAME (.npz) of the first members, and how far they are from finite differences.

    Files are kept in build/: what is exact stays so until the data change.

    Args:
        workload: what to solve.
        single: solve the problem rounded to float32, which is what a solver in float32 is given.
    """
    count = members(workload)
    tensors, upstream = first(workload.data(), count), workload.upstream()[:count]
    if single:
        tensors = rounded(tensors)
    digest = hashlib.sha256(upstream.tobytes())
    for value in tensors.values():
        digest.update(value.tobytes())
    path = FOLDER / f"{workload.name}-{digest.hexdigest()[:12]}.npz"
    if not path.exists():
        z, gradients = _solve(tensors, upstream, "cpu" if single else "reference")
        error = np.nan if single else finite_differences(tensors, upstream)
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez(unfinished, z=z, error=error, **{"grad_" + name: value for name, value in gradients.items()})
        unfinished.rename(path)
    return path, None if single else float(np.load(path)["error"])


def finite_differences(tensors: Arrays, upstream: np.ndarray) -> float:
    """Central differences along random directions for the first member; largest relative disagreement.

    A direction moves one tensor as a whole, so that every entry of its gradient takes part.
    """
    one = {name: value if value.ndim == RANK[name] else value[0] for name, value in tensors.items()}
    weight = upstream[:1]
    one["q"] = one["q"][None]  # a batch of one
    _, gradients = _solve(one, weight)
    rng = np.random.default_rng(2)
    worst = 0.0
    for name in one:
        direction = rng.standard_normal(one[name].shape)
        direction *= (1 + np.abs(one[name]).max()) / np.linalg.norm(direction)
        if name == "Q":
            direction = direction + direction.mT
        ends = [_solve({**one, name: one[name] + sign * STEP * direction}, None)[0] for sign in (1, -1)]
        slope = float((weight * (ends[0] - ends[1])).sum() / (2 * STEP))
        exact = float((gradients[name] * direction).sum())
        scale = float(np.linalg.norm(gradients[name]) * np.linalg.norm(direction)) / np.sqrt(direction.size)
        worst = max(worst, abs(slope - exact) / max(abs(exact), scale, 1e-12))
    return worst


def _solve(
    tensors: Arrays, upstream: np.ndarray | None, backend: str = "reference"
) -> tuple[np.ndarray, Arrays]:
    import torch

    from optlayer import solve

    leaves = {name: torch.tensor(value).requires_grad_(upstream is not None) for name, value in tensors.items()}
    z = solve(**leaves, backend=backend).z
    if upstream is None:
        return z.numpy(), {}
    gradients = torch.autograd.grad(z, list(leaves.values()), torch.tensor(upstream))
    return z.detach().numpy(), {name: g.numpy() for name, g in zip(leaves, gradients, strict=True)}
