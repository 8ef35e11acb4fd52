"""The price of a call: what Python and torch take around a solve of two variables, by thread CPU time.

    python -m benchmarks.border

The floor is an autograd function that takes the same tensors, returns two tensors of the same sizes and saves all of
them, without doing anything else. Run by itself, in a loop, it finds all its code in the processor's first cache;
beside a solve, whose Python drives it out, the same function takes longer. The median of some rounds, microseconds;
only the time of this thread counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import optlayer

ROUNDS, CALLS = 15, 1000


class Nothing(torch.autograd.Function):
    """The floor: the tensors of a call, and nothing done with them."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        z, block = torch.empty(2), torch.empty(1, 10)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, z, block)
        return z, block

    @staticmethod
    def backward(ctx: Any, g_z: Tensor, g_block: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        return (None, g_z, *[None] * 7)


def microseconds(call: Callable[[], object]) -> float:
    """Thread CPU time of a call, the median of some rounds."""
    for _ in range(200):
        call()
    times = []
    for _ in range(ROUNDS):
        start = time.thread_time_ns()
        for _ in range(CALLS):
            call()
        times.append((time.thread_time_ns() - start) / CALLS / 1e3)
    return statistics.median(times)


def measure() -> dict[str, float]:
    """Times of calls with two variables and three rows, without a batch."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    Q, G = torch.tensor([[2.0, 0.5], [0.5, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    q, h, up = torch.ones(2), torch.tensor([0.0, 0.0, 1.0]), torch.ones(2)
    leaf = q.clone().requires_grad_()

    def floor() -> None:
        z, _ = Nothing.apply(Q, leaf, G, h, None, None, None, None, None)
        leaf.grad = None
        z.backward(up)

    def both() -> None:
        z = optlayer.solve(Q, leaf, G, h).z
        leaf.grad = None
        z.backward(up)

    def forward() -> Tensor:
        return optlayer.solve(Q, q, G, h).z

    def beside() -> None:
        forward()
        floor()

    times = {"forward alone": microseconds(forward), "with gradient of q": microseconds(both)}
    times |= {"floor": microseconds(floor), "floor beside a solve": microseconds(beside) - times["forward alone"]}
    for name in ("floor", "floor beside a solve"):
        times[f"ratio to the {name}"] = times["with gradient of q"] / times[name]
    return times


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:<30} {value:6.1f}{'' if 'ratio' in name else ' µs'}")
