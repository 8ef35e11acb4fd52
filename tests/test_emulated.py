"""The code of the GPU's kernels, run on the CPU (csrc/tests/emulated.cpp): the verdicts are the CPU backend's.

A kernel may leave a member unsettled, which the core then settles where somebody waits; it may not judge it otherwise.
`pytest --register tests/test_emulated.py --backend emulated tests/test_backends.py` runs what every backend promises.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tests import fuzz
from tests.families import FAMILIES, INFEASIBLE, UNBOUNDED, generate, hopeless

from optlayer import Settings, Status, backends, solve
from optlayer.backends import args, base, cuda, reference
from optlayer.backends.base import Adjoint
from optlayer.core.settings import tolerance_of
from optlayer.point import Point
from optlayer.problem import Problem

ROOT = Path(__file__).parents[1]
LEFT = {int(Status.MAX_ITERATIONS), int(Status.NUMERICAL_ERROR)}


@functools.cache
def kernels() -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp())
    compiler = shutil.which("c++") or "c++"
    sources = [ROOT / "csrc" / "tests" / "emulated.cpp", ROOT / "csrc" / "device.cpp"]
    include = [f"-I{ROOT / 'src'}", f"-I{ROOT / 'src' / 'optlayer'}"]
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", "-w"]
    command = [compiler, *flags, *include, *map(str, sources), "-o", str(folder / "emulated.so")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "emulated.so"))
    library.optlayer_emulate.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_bool]
    shutil.rmtree(folder)
    return library


class Emulated(base.Backend):
    """Backend `cuda` without a GPU. Large problems go to the reference, as there."""

    def __init__(self, threads: int = 1) -> None:
        self.name, self.threads = f"emulated{threads if threads > 1 else ''}", threads

    def unavailable(self) -> str | None:
        return None if sys.platform == "linux" else "the emulation is built on Linux"

    def _run(self, problem: Problem, settings: Settings, places: list[int], adjoint: bool) -> None:
        keep: list[torch.Tensor] = []
        tolerance = tolerance_of(settings, problem.dtype == torch.float32)
        tensors = [*args.place_data(keep, problem), *places, 0, 0]
        packed = args.pack(cuda.numbers(problem, settings, False), tolerance, tensors)
        kernels().optlayer_emulate(packed, self.threads, adjoint)

    def solve(self, problem: Problem, settings: Settings, keep_factor: bool) -> Point:
        if cuda._variant(problem) is None:
            return reference.solve(problem, settings, keep_factor)
        point = args.empty_point(problem, problem.structure.members)
        self._run(problem, settings, args.place_point([], point) + cuda._NO_ADJOINT, False)
        return point

    def settle(self, problem: Problem, settings: Settings, point: Point) -> None:
        base.settle_here(problem, settings, point)

    def kkt_solve(self, problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
        if cuda._variant(problem) is None:
            return reference.kkt_solve(problem, settings, point, rhs)
        keep: list[torch.Tensor] = []
        answer = Adjoint(*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in rhs))
        places = [*args.place_point(keep, point), *args.place_rows(keep, rhs), 0, 0]
        self._run(problem, settings, [*places, *args.place_rows(keep, answer), 0, 0, 0, 0], True)
        return answer


if __name__ == "registered":  # by conftest.py
    backends.register(Emulated())


linux = pytest.mark.skipif(sys.platform != "linux", reason="the emulation is built on Linux")


def compare(monkeypatch: pytest.MonkeyPatch, threads: int, dtype: torch.dtype) -> int:
    """Verdicts on every family beside the core's: the same where the kernel has one. Returns how many it has not."""
    engine, left = Emulated(threads), 0
    monkeypatch.setitem(backends._added, engine.name, engine)
    cases = {name: make(generate(1), dtype).data for name, make in FAMILIES.items()}
    cases |= {name: hopeless(values, dtype) for name, values in (INFEASIBLE | UNBOUNDED).items()}
    for curvature in (-1e-10, -1e-20):  # beside 1, but in no unit
        Q = torch.diag(torch.tensor([1, curvature], dtype=dtype))
        cases[f"concave {curvature}"] = {"Q": Q, "q": torch.zeros(2, dtype=dtype)}
    for name, data in cases.items():
        found, core = solve(**data, backend=engine.name, check=False), solve(**data, backend="cpu", check=False)
        status, expected = found.status.reshape(-1).tolist(), core.status.reshape(-1).tolist()
        assert all(a == b or a in LEFT for a, b in zip(status, expected, strict=True)), (name, status, expected)
        left += sum(a in LEFT for a in status)
        if core.solved.all():
            assert solve(**data, backend=engine.name).solved.all(), name
    return left


@linux
def test_kernels_and_core_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one test, for it compiles. What is left in float32: an equality against bounds."""
    assert compare(monkeypatch, 1, torch.float64) == 0
    assert compare(monkeypatch, 1, torch.float32) <= 1
    for seed in range(20, 25):
        assert fuzz.fuzz(fuzz.BATCH, seed, "emulated")["wrong"] == 0
    assert solve(**fuzz.Draw(3).arguments(), backend="emulated", check=False).z.isfinite().all()


@linux
@pytest.mark.slow  # sixteen threads that wait for each other, on two cores
def test_a_block_of_threads_and_the_core_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(monkeypatch, 16, torch.float64) == 0
