"""A process for each peer: a crash or an endless loop ends that process, not the benchmark."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import accuracy, truth
from benchmarks.peers import PEERS, Case, Unsuitable
from benchmarks.workloads import WORKLOADS

START = 120
"""Seconds within which a process must have imported what it needs."""
_spawn = multiprocessing.get_context("spawn")


class Failure(Exception):
    """The peer did not answer: it raised, crashed, or ran out of time."""


class Session:
    """What happens inside a peer's process."""

    def __init__(self, peer: str) -> None:
        self.peer = PEERS.get(peer)

    def prepare(self, workload: str) -> float:
        """Draw the data and set up the peer; seconds of the set-up."""
        self.case: Case | None = None
        self.tensors = WORKLOADS[workload].data()
        start = perf_counter()
        assert self.peer is not None
        self.case = self.peer.prepare(self.tensors, WORKLOADS[workload].upstream())
        return perf_counter() - start

    def warm(self) -> dict[str, Any]:
        """The first calls; their results are what is judged."""
        assert self.case is not None
        start = perf_counter()
        self.z = self.case.forward()
        result: dict[str, Any] = {"forward": perf_counter() - start}
        self.raw = None
        if self.case.both is not None:
            try:
                start = perf_counter()
                part, _, self.raw = self.case.both()
                result["both"] = (part, perf_counter() - start)
            except Exception as error:  # the peer's own, of whatever kind: it only loses its backward pass
                result["backward_failure"] = _words(error)
        return result

    def judge(self, exact: Path) -> dict[str, Any]:
        """Errors of the first answers."""
        assert self.case is not None
        assert self.peer is not None
        tensors = truth.rounded(self.tensors) if self.peer.dtype == "float32" else self.tensors
        gradients = None if self.raw is None else self.case.gradients(self.raw)
        self.raw = None
        return accuracy.compare(tensors, self.z, gradients, exact)

    def measure(self, both: bool, seconds: float) -> list[tuple[float | None, float]]:
        """(forward part, whole) of calls repeated for some time, at least one."""
        assert self.case is not None
        call = self.case.both if both else self.case.forward
        assert call is not None
        times: list[tuple[float | None, float]] = []
        begin = perf_counter()
        while not times or (perf_counter() - begin < seconds and len(times) < 500):
            start = perf_counter()
            answer = call()
            times.append((answer[0] if both else None, perf_counter() - start))
        return times

    def forget(self) -> None:
        """Free the workload."""
        self.case = self.z = self.raw = None

    # optlayer's own

    def residuals(self) -> dict[str, float]:
        """The optimality conditions of optlayer's solution, in the problem's units and relative; its iterations."""
        import torch

        from optlayer import kkt, solve

        assert self.peer is not None
        dtype = getattr(torch, self.peer.dtype)
        tensors = {name: torch.tensor(value, dtype=dtype) for name, value in self.tensors.items()}
        solution = solve(**tensors, backend="cpu")
        found = kkt.residuals(
            solution.problem, solution.z, solution.lam, solution.nu, solution.lam_lb, solution.lam_ub
        )
        values = {name: float(value.max()) for name, value in found._asdict().items()}
        return {**values, "iterations": float(solution.iterations.double().mean())}

    def exact(self, workload: str, single: bool) -> tuple[Path, float | None]:
        """The file with the exact solution and gradients, and how far it is from finite differences."""
        return truth.answer(WORKLOADS[workload], single)

    def floor(self, iterations: float) -> dict[str, float]:
        """Seconds that LAPACK needs for what an iteration cannot avoid."""
        from benchmarks import floor

        return floor.measure(iterations)


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0][:200] if isinstance(error, Unsuitable) else f"{type(error).__name__}: {lines[0]}"[:200]


def _serve(connection: Any, peer: str, cores: set[int]) -> None:
    """The peer's process: answer requests until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    import torch

    os.sched_setaffinity(0, cores)  # not before: importing is not measured and may use every core
    torch.set_num_threads(len(cores))
    session = Session(peer)
    connection.send((True, None))
    with suppress(EOFError):
        while True:
            method, arguments = connection.recv()
            try:
                connection.send((True, getattr(session, method)(*arguments)))
            except Exception as error:
                connection.send((False, _words(error)))


class Worker:
    """The benchmark's end of a peer's process; it starts on the first request, and again after a failure."""

    def __init__(self, peer: str, cores: set[int]) -> None:
        self.peer, self.cores = peer, cores
        self.process: Any = None
        self.starting = False

    def ask(self, method: str, *arguments: Any, limit: float) -> Any:
        """The answer, or Failure; `limit` in seconds."""
        if self.process is None:
            self.start()
        if self.starting:
            self._answer(START)
            self.starting = False
        try:
            self.connection.send((method, arguments))
        except OSError:
            raise self._end("crashed") from None
        return self._answer(limit)

    def start(self) -> None:
        """Start the process, without waiting for it."""
        self.connection, theirs = _spawn.Pipe()
        self.process = _spawn.Process(target=_serve, args=(theirs, self.peer, self.cores), daemon=True)
        self.process.start()
        self.starting = True
        theirs.close()

    def _answer(self, limit: float) -> Any:
        if not self.connection.poll(limit):
            raise self._end(f"more than {limit:.0f} s")
        try:
            good, answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._end("crashed") from None
        if not good:
            raise Failure(answer)
        return answer

    def _end(self, reason: str) -> Failure:
        """End the process, which is of no more use."""
        if reason == "crashed":
            self.process.join(5)
            reason += f" (exit code {self.process.exitcode})"
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.process = None
        return Failure(reason)

    def stop(self) -> None:
        if self.process is not None:
            self._end("")


