"""Threads, forks, workers, nested autograd, memory: what a library meets in the field."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import optlayer

N, P, BATCH = 12, 8, 24


def problem(seed: int) -> dict[str, Tensor]:
    """A batch of random problems with a strictly feasible point each."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    L, G = normal(BATCH, N, N), normal(BATCH, P, N)
    h = (G @ normal(BATCH, N, 1)).squeeze(-1) + torch.rand(BATCH, P, generator=generator, dtype=torch.float64)
    return {"Q": L @ L.mT + 0.1 * torch.eye(N, dtype=torch.float64), "q": normal(BATCH, N), "G": G, "h": h}


def solution_and_gradient(seed: int) -> tuple[Tensor, Tensor]:
    data = problem(seed)
    data["q"].requires_grad_()
    z = optlayer.solve(**data).z
    (gradient,) = torch.autograd.grad(z.square().sum(), data["q"])
    return z.detach(), gradient


def same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_several_python_threads_at_once() -> None:
    expected = [solution_and_gradient(seed) for seed in range(8)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            found = list(pool.map(solution_and_gradient, range(8)))
            assert all(same(x, y) for x, y in zip(expected, found, strict=True))


def test_backward_from_another_thread() -> None:
    data = problem(0)
    data["q"].requires_grad_()
    z = optlayer.solve(**data).z
    worker = threading.Thread(target=lambda: z.square().sum().backward())
    worker.start()
    worker.join()
    assert torch.equal(data["q"].grad, solution_and_gradient(0)[1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_threads_changes_no_bit(threads: int) -> None:
    before = torch.get_num_threads()
    expected = solution_and_gradient(1)
    try:
        torch.set_num_threads(threads)
        assert same(expected, solution_and_gradient(1))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_after_use() -> None:
    """The child has none of its parent's threads, and must not wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        data = problem(2)  # not in the child: torch's own threads, for products and autograd, do not survive a fork
        with torch.no_grad():
            expected = optlayer.solve(**data).z
            child = os.fork()
            if child == 0:
                fine = torch.equal(expected, optlayer.solve(**data).z)
                os._exit(0 if fine else 1)
        for _ in range(300):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            threading.Event().wait(0.1)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        torch.set_num_threads(before)


class Solutions(Dataset[Tensor]):
    """Solves in the workers."""

    def __init__(self) -> None:
        self.problems = [problem(seed) for seed in range(6)]

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> Tensor:
        return optlayer.solve(**self.problems[index]).z


def test_data_loader_workers() -> None:
    solutions = Solutions()
    expected = [solutions[i] for i in range(6)]
    loader: Any = DataLoader(solutions, batch_size=None, num_workers=2)
    assert same(tuple(expected), tuple(loader))


def test_nested_autograd() -> None:
    """A gradient taken inside of another computation that is differentiated: a learned step of gradient descent."""
    data = problem(3)
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss_after_a_step(rate: Tensor) -> Tensor:
        q = data["q"].clone().requires_grad_()
        first = optlayer.solve(**{**data, "q": q}).z.square().sum()
        (gradient,) = torch.autograd.grad(first, q, create_graph=True)
        return optlayer.solve(**{**data, "q": q - rate * gradient}).z.square().sum()

    (found,) = torch.autograd.grad(loss_after_a_step(rate), rate)
    step = 1e-6
    with torch.enable_grad():
        difference = (loss_after_a_step(rate + step) - loss_after_a_step(rate - step)) / (2 * step)
    torch.testing.assert_close(found, difference.detach(), rtol=1e-5, atol=1e-7)


def test_backward_twice_and_out_of_order() -> None:
    first, second = problem(4), problem(5)
    first["q"].requires_grad_()
    second["q"].requires_grad_()
    one, two = optlayer.solve(**first).z, optlayer.solve(**second).z
    two.square().sum().backward()
    one.square().sum().backward(retain_graph=True)
    once = first["q"].grad.clone()
    one.square().sum().backward()
    torch.testing.assert_close(first["q"].grad, 2 * once)
    assert torch.equal(second["q"].grad, solution_and_gradient(5)[1])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("backward", [False, True])
def test_memory_does_not_grow(backward: bool) -> None:
    """10⁴ calls, after a warm-up; one leaked batch in ten calls would show."""
    torch.manual_seed(0)
    q, G, h = torch.randn(16, 4), torch.randn(6, 4), torch.ones(6)

    def call() -> None:
        sol = optlayer.solve(torch.eye(4), q.requires_grad_(backward), G, h, check=False)
        if backward:
            sol.z.sum().backward()
            q.grad = None

    for _ in range(1000):
        call()
    gc.collect()
    before = resident_bytes()
    for _ in range(5000):
        call()
    gc.collect()
    assert resident_bytes() - before < 4_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("length", "batch"), [(60000, 1), (200, 3000)])
def test_ctrl_c_ends_a_sparse_call(length: int, batch: int) -> None:
    """A call for one large member ends between two factorisations, one for many between two groups of members."""
    k = torch.arange(length - 1)
    columns = torch.stack([k, k + 1, length + k], 1).flatten()  # |z[k] − z[k+1]| ≤ t[k]
    values = torch.tensor([[1.0, -1, -1], [-1, 1, -1]], dtype=torch.float64).repeat_interleave(len(k), 0).flatten()
    rows = torch.arange(0, len(values) + 1, 3)
    G = optlayer.Sparse(rows, columns.repeat(2), values, (2 * len(k), length + len(k)))
    curvature = torch.ones(length + len(k), dtype=torch.float64)
    curvature[length:] = 1e-6
    signal_ = torch.randn(batch, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(1)
    q = torch.cat([signal_, torch.ones(batch, len(k), dtype=torch.float64)], 1)

    def solve() -> Tensor:
        return optlayer.solve(optlayer.Diagonal(curvature), q, G, torch.zeros(2 * len(k), dtype=torch.float64)).z

    wanted, start = solve(), perf_counter()
    solve()
    whole, start = perf_counter() - start, perf_counter()
    timer = threading.Timer(whole / 10, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        solve()
    assert perf_counter() - start < 0.6 * whole
    timer.join()
    assert torch.equal(solve(), wanted)
