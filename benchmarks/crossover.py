"""Where the sparse engine overtakes the dense methods on dense matrices that are mostly zeros: moves backends/zeros.py.

    python -m benchmarks.crossover [WORKLOAD ...]

Workloads of sparse_workloads.py with shared matrices; random problems of N variables, `random:N` with the identity for
Q, `half:N` with half of it; a problem alone, and a batch of 32. Times of each member in ms, the best of several calls
on one thread, and what `Settings(zeros="found")` takes.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.sparse import tensors
from benchmarks.sparse_workloads import make
from optlayer import Settings, Sparse, solve
from optlayer.backends import cpu, zeros
from optlayer.problem import check

DEFAULT = ("random:40", "random:80", "random:160", "half:40", "half:80", "half:160", "mpc20", "mpc50", "quadruped",
           "factor", "dcopf118", "sudoku9")  # fmt: skip


def random(n: int, definite: bool, batch: int) -> dict[str, Any]:
    """Rows of about four entries, all kinds of constraints; Q the identity, or half of it."""
    rng = np.random.default_rng(n)
    A, G = (rng.standard_normal((k, n)) * (rng.random((k, n)) < 3 / n) + np.eye(k, n) for k in (n // 4, n))
    z = rng.standard_normal(n)
    return {
        "Q": torch.diag(torch.arange(n) < (n if definite else n // 2)).double(),
        "q": torch.tensor(rng.standard_normal((batch, n))), "G": torch.tensor(G), "A": torch.tensor(A),
        "h": torch.tensor(G @ z + rng.random(n)), "b": torch.tensor(A @ z), "lb": torch.tensor(z - 1),
        "ub": torch.tensor(z + 1),
    }  # fmt: skip


def best(t: dict[str, Any], settings: Settings) -> float:
    """Of at least three calls, in ms."""
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 0.3 and len(times) < 50):
        start = perf_counter()
        solve(**t, settings=settings, check=False)
        times.append(perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    torch.set_num_threads(1)
    core = cpu._core()
    assert not isinstance(core, str)
    for name in sys.argv[1:] or DEFAULT:
        kind, _, size = name.partition(":")
        for batch in (None, 32):
            t = random(int(size), kind == "random", batch or 1) if size else tensors(make(name, "shared", batch or 1))
            t = {key: x.dense() if isinstance(x, Sparse) else x for key, x in t.items()}
            if batch is None:
                t = {key: x[0] if key not in "QGA" and x.dim() > 1 else x for key, x in t.items()}
            dense, found = best(t, Settings(zeros="given")), best(t, Settings())
            sparse = best({k: Sparse.from_dense(x) if k in "QGA" else x for k, x in t.items()}, Settings())
            taken = "sparse" if zeros.found(core, check(**t), Settings()) else "dense"
            each = " ".join(f"{label} {x / (batch or 1):8.3f}" for label, x in
                            (("dense", dense), ("sparse", sparse), ("found", found)))  # fmt: skip
            print(f"{name:12} {'alone' if batch is None else batch:>5}  {each}  takes {taken}", flush=True)


if __name__ == "__main__":
    main()
