"""The GPU backend: what can be promised without a GPU (compiling, planning, caching, messages), and with one the rest.

The algorithms of the kernels run on the CPU in csrc/tests/test_block.cpp (`make sanitize`).
"""

from __future__ import annotations

import ctypes
import os
import threading
from types import SimpleNamespace

import pytest
import torch

from optlayer import Settings, kkt, solve
from optlayer.backends import args, cpu, cuda, nvrtc, reference
from optlayer.backends.base import Adjoint
from optlayer.core.status import Status
from optlayer.matrices import Diagonal
from optlayer.problem import Problem, check

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
H200 = (132, 232448, 233472)  # multiprocessors; bytes of shared memory to a block, to a multiprocessor
needs_nvrtc = pytest.mark.skipif(isinstance(nvrtc.compiler(), str), reason="NVRTC is not installed (extra `test`)")
needs_core = pytest.mark.skipif(cpu.unavailable() is not None, reason="the compiled core is missing")
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(cuda.unavailable() is not None, reason=f"no GPU: {cuda.unavailable()}")


def random_problem(
    n: int, m: int, p: int, batch: int, dtype: torch.dtype = torch.float64, *, shared: bool = False,
    diagonal: bool = False, bounds: bool = False, device: str = "cpu",
) -> Problem:
    """Made feasible from a point; `shared`: Q, G and A without a batch dimension."""
    generator = torch.Generator().manual_seed(n + 10 * m + 100 * p)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sets = () if shared else (batch,)
    L, z = normal(*sets, n, n), normal(batch, n)
    G, A = normal(*sets, p, n), normal(*sets, m, n)
    Q = L @ L.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
    h, b = kkt.mul(G, z) + normal(batch, p).abs(), kkt.mul(A, z)
    tensors = {"q": normal(batch, n), "G": G, "h": h, "A": A, "b": b}
    if bounds:
        tensors |= {"lb": z - normal(batch, n).abs(), "ub": z + normal(batch, n).abs()}
    tensors = {name: x.to(device, dtype) for name, x in tensors.items() if x.numel()}
    Q = Q.to(device, dtype)
    return check(Diagonal(Q.diagonal(dim1=-2, dim2=-1).contiguous()) if diagonal else Q, **tensors)


def planned(problem: Problem, choice: cuda.Variant, keep: bool = True) -> cuda.Plan:
    """The plan for a problem on an H200, whose tensors may be on the CPU."""
    data = args.place_data([], problem)
    numbers = (
        problem.n, problem.m, problem.p, problem.batch or 1, problem.dtype == torch.float32,
        isinstance(problem.Q, Diagonal), 0, 1, 1, 60, 1, keep, 0, 0,
    )
    packed = args.pack(numbers, 1e-9, [*data, *[0] * cuda._ANSWERS, 0, 0])
    return cuda.plan(packed, choice, *H200)


# ---- compiling -----------------------------------------------------------------------------------------------------


def macros(choice: cuda.Variant, single: bool, schur: bool, entry: str) -> dict[str, str | int]:
    method = args.METHODS.index("schur" if schur else "normal")
    plan = cuda.Plan(*[0] * 4, 2048, *[0] * 5, method, choice.threads, 0, 0, 0)
    return dict(cuda.defines(plan, choice, single, entry))


VARIANTS = [row[-1] for row in cuda.TABLE]


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_preparation_compiles(architecture: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = nvrtc.build(macros(cuda.PREPARE, False, False, "optlayer_prepare"), architecture)
    assert code.startswith(b"\x7fELF")
    assert b"optlayer_prepare" in code


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("entry", cuda.ENTRIES[:2])
@pytest.mark.parametrize("choice", VARIANTS, ids=lambda choice: f"{choice.threads}x{choice.teams}")
def test_every_variant_compiles(
    choice: cuda.Variant, entry: str, single: bool, architecture: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = nvrtc.build(macros(choice, single, choice.threads > 1, entry), architecture)
    assert code.startswith(b"\x7fELF")
    assert entry.encode() in code


@needs_nvrtc
def test_an_error_of_the_compiler_is_shown() -> None:
    compiler = nvrtc.compiler()
    assert isinstance(compiler, nvrtc.Compiler)
    with pytest.raises(nvrtc.CudaError, match="nonsense"):
        compiler.compile("nonsense", "x.cu", {}, ["--gpu-architecture=sm_90"])


# ---- cache ---------------------------------------------------------------------------------------------------------


class Counting:
    """In place of NVRTC: counts, and returns something that looks like machine code."""

    version = (13, 0)

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def compile(self, source: str, name: str, headers: dict[str, str], options: list[str]) -> bytes:
        assert "block.h" in headers
        assert "optlayer_solve" in source
        self.calls.append(options)
        return b"\x7fELF" + bytes(len(self.calls))


@pytest.fixture
def compiler(monkeypatch, tmp_path) -> Counting:
    fake = Counting()
    monkeypatch.setattr(nvrtc, "compiler", lambda: fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return fake


def test_the_second_process_does_not_compile(compiler: Counting, tmp_path) -> None:
    first = nvrtc.build({"A": 1}, "sm_90")
    assert nvrtc.build({"A": 1}, "sm_90") == first
    assert len(compiler.calls) == 1
    assert [path.suffix for path in (tmp_path / "optlayer").iterdir()] == [".cubin"]  # nothing half-written is left


def test_what_changes_the_code_changes_the_key(compiler: Counting, monkeypatch) -> None:
    nvrtc.build({"A": 1}, "sm_90")
    nvrtc.build({"A": 2}, "sm_90")
    nvrtc.build({"A": 1}, "sm_80")
    compiler.version = (12, 9)
    nvrtc.build({"A": 1}, "sm_90")
    files = {**nvrtc.sources(), "team.h": nvrtc.sources()["team.h"] + "\n"}
    monkeypatch.setattr(nvrtc, "sources", lambda: files)
    nvrtc.build({"A": 1}, "sm_90")
    assert len(compiler.calls) == 5


def test_a_cache_that_cannot_be_written_is_done_without(compiler: Counting, monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert nvrtc.build({"A": 1}, "sm_90").startswith(b"\x7fELF")
    assert len(compiler.calls) == 2


def test_a_damaged_entry_is_compiled_again(compiler: Counting, tmp_path) -> None:
    nvrtc.build({"A": 1}, "sm_90")
    (entry,) = (tmp_path / "optlayer").iterdir()
    whole = entry.read_bytes()
    changed = bytes([*whole[:-1], whole[-1] ^ 1])
    for calls, content in enumerate((b"", b"\x7fELF", whole[:-1], changed, whole[32:]), start=2):
        entry.write_bytes(content)
        code = nvrtc.build({"A": 1}, "sm_90")
        assert len(compiler.calls) == calls
        assert code.startswith(b"\x7fELF")
        assert nvrtc.build({"A": 1}, "sm_90") == code, "written anew, whole"
        assert len(compiler.calls) == calls


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are POSIX")
def test_what_others_may_have_written_is_ignored(compiler: Counting, monkeypatch, tmp_path) -> None:
    nvrtc.build({"A": 1}, "sm_90")
    folder = tmp_path / "optlayer"
    (entry,) = folder.iterdir()
    whole = entry.read_bytes()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert entry.stat().st_mode & 0o777 == 0o600

    def calls() -> int:
        before = len(compiler.calls)
        assert nvrtc.build({"A": 1}, "sm_90").startswith(b"\x7fELF")
        return len(compiler.calls) - before

    assert calls() == 0
    entry.chmod(0o666)
    assert calls() == 1, "a file that all may write"
    assert calls() == 0, "has been replaced by our own"
    folder.chmod(0o777)
    assert calls() == calls() == 1, "nothing is read from a folder that all may write, nor put there"
    folder.chmod(0o700)
    (tmp_path / "elsewhere").write_bytes(whole)
    entry.unlink()
    entry.symlink_to(tmp_path / "elsewhere")
    assert calls() == 1, "a link"
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert calls() == calls() == 1, "another user's folder"


def test_kernels_of_a_first_call_are_compiled_at_the_same_time_and_loaded_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    together, called = threading.Barrier(2, timeout=30), []

    class Slow(Counting):
        def compile(self, source: str, name: str, headers: dict[str, str], options: list[str]) -> bytes:
            together.wait()  # breaks unless two are compiled at a time
            return super().compile(source, name, headers, options)

    slow = Slow()
    monkeypatch.setattr(nvrtc, "compiler", lambda: slow)
    monkeypatch.setattr(nvrtc, "device", lambda index: SimpleNamespace(architecture="sm_90"))
    monkeypatch.setattr(nvrtc, "_driver", lambda: SimpleNamespace(call=lambda name, *rest: called.append(name)))
    for store in ("_modules", "_kernels"):
        monkeypatch.setattr(nvrtc, store, {})
    wanted = [("optlayer_prepare", (("A", 1),)), ("optlayer_solve", (("A", 2),))]
    found = nvrtc.kernels(0, *wanted)
    assert [kernel.name for kernel in found] == [name for name, _ in wanted]
    assert nvrtc.kernels(0, *reversed(wanted)) == found[::-1]
    assert len(slow.calls) == 2
    assert sorted(called) == ["cuModuleGetFunction"] * 2 + ["cuModuleLoadData"] * 2


def test_a_module_that_was_not_loaded_is_loaded_again(compiler: Counting, monkeypatch) -> None:
    broken = [True]

    def call(name: str, *rest: object) -> None:
        if name == "cuModuleLoadData" and broken.pop():
            raise nvrtc.CudaError("no memory")

    monkeypatch.setattr(nvrtc, "device", lambda index: SimpleNamespace(architecture="sm_90"))
    monkeypatch.setattr(nvrtc, "_driver", lambda: SimpleNamespace(call=call))
    for store in ("_modules", "_kernels"):
        monkeypatch.setattr(nvrtc, store, {})
    with pytest.raises(nvrtc.CudaError, match="no memory"):
        nvrtc.kernels(0, ("optlayer_solve", (("A", 1),)))
    broken.append(False)
    assert nvrtc.kernels(0, ("optlayer_solve", (("A", 1),)))[0].name == "optlayer_solve"
    assert not broken  # it was asked again


# ---- messages ------------------------------------------------------------------------------------------------------


def test_a_missing_compiler_is_named(monkeypatch) -> None:
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(["libnothing.so"]))
    with pytest.raises(nvrtc.CudaError, match="pip install nvidia-cuda-nvrtc"):
        nvrtc.Compiler()


def test_a_missing_driver_is_named(monkeypatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(nvrtc.ctypes, "CDLL", missing)
    with pytest.raises(nvrtc.CudaError, match="driver was not found"):
        nvrtc.Driver()


def test_a_build_of_torch_without_cuda_is_named(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in (cuda.unavailable() or "")


def test_tensors_on_the_cpu_are_refused() -> None:
    assert "on cpu" in (cuda.refuses(random_problem(3, 0, 2, 1)) or "")


# ---- planning ------------------------------------------------------------------------------------------------------


def test_teams_grow_with_the_problem() -> None:
    sizes = [(4, 8), (10, 10), (32, 40), (64, 64), (100, 100), (192, 200)]
    threads = [choice.threads for n, p in sizes if (choice := cuda.variant(n, 0, p, 10**5))]
    assert len(threads) == len(sizes)
    assert threads == sorted(threads)
    assert cuda.variant(500, 0, 500, 16) is None
    few = cuda.variant(4, 0, 8, 1)
    assert few is not None
    assert few.threads > 1  # one thread of the whole GPU would be slow


@needs_core
@pytest.mark.parametrize(
    ("n", "m", "p", "kind"),
    [(4, 0, 8, {}), (10, 0, 10, {"shared": True}), (64, 40, 0, {"shared": True, "diagonal": True, "bounds": True}),
     (100, 0, 100, {}), (125, 25, 125, {})],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plans_fit_the_device(n: int, m: int, p: int, kind: dict[str, bool], dtype: torch.dtype) -> None:
    problem = random_problem(n, m, p, 40, dtype, **kind)
    for choice in VARIANTS[1:]:
        plan = planned(problem, choice)
        exchange = cuda.room(choice, dtype == torch.float32)
        assert choice.teams * (plan.fast_bytes + exchange) <= H200[1]
        assert plan.vector_bytes <= plan.hot_bytes
        assert (plan.shared_bytes > 0) == bool(kind.get("shared"))
        assert plan.factor_bytes == 64 + plan.shared_bytes + 40 * plan.keep_bytes
        assert not planned(problem, choice, keep=False).factor_bytes
        aligned = (plan.shared_bytes, plan.fast_bytes, plan.slow_bytes, plan.keep_bytes)
        assert all(size % 16 == 0 for size in aligned)


@needs_core
def test_the_elimination_follows_the_shape() -> None:
    def method(problem: Problem) -> str:
        return args.METHODS[planned(problem, VARIANTS[2]).method]

    assert method(random_problem(40, 0, 10, 3)) == "schur"
    assert method(random_problem(10, 0, 60, 3)) == "normal"
    assert method(random_problem(40, 5, 10, 3, bounds=True)) == "normal"
    assert method(random_problem(40, 5, 10, 3, diagonal=True, bounds=True)) == "diagonal"


@needs_core
def test_the_struct_has_one_size_on_both_sides() -> None:
    library = cuda._planner()
    assert isinstance(library, ctypes.CDLL)
    assert library.optlayer_device_plan_size() == cuda._PLAN.size


# ---- on a GPU ------------------------------------------------------------------------------------------------------

SHAPES = [
    (4, 0, 8, {}), (6, 2, 5, {"bounds": True}), (10, 0, 10, {"shared": True}), (20, 5, 30, {}),
    (50, 10, 0, {"diagonal": True, "bounds": True}),
    (64, 40, 64, {"shared": True}), (100, 0, 100, {}), (150, 20, 100, {}), (300, 0, 10, {}),
]


@gpu
@needs_gpu
@pytest.mark.parametrize(("n", "m", "p", "kind"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 33])
def test_parity_with_the_reference(
    n: int, m: int, p: int, kind: dict[str, bool], dtype: torch.dtype, batch: int
) -> None:
    problem = random_problem(n, m, p, batch, dtype, device="cuda", **kind)
    exact = random_problem(n, m, p, batch, **kind)
    settings = Settings()
    ours, theirs = cuda.solve(problem, settings, True), reference.solve(exact, settings, True)
    assert (ours.status == int(Status.SOLVED)).all()
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(ours.z.double().cpu(), theirs.z, **close)
    rhs = Adjoint(*(torch.zeros_like(x) for x in (theirs.z, theirs.lam, theirs.nu, theirs.lam_lb, theirs.lam_ub)))
    rhs.z.copy_(torch.linspace(-1, 1, rhs.z.numel(), dtype=torch.float64).reshape_as(rhs.z))
    ours_v = cuda.kkt_solve(problem, settings, ours, Adjoint(*(x.to(problem.q) for x in rhs)))
    theirs_v = reference.kkt_solve(exact, settings, theirs, rhs)
    loose = {key: 100 * value for key, value in close.items()}
    torch.testing.assert_close(ours_v.z.double().cpu(), theirs_v.z, **loose)


@gpu
@needs_gpu
def test_nothing_waits_for_the_gpu() -> None:
    problem = random_problem(20, 5, 30, 8, device="cuda")
    Q, q, G, h, A, b, *_ = problem.tensors()
    solve(Q, q.requires_grad_(), G, h, A, b, backend="cuda", check=False).z.sum().backward()  # loads the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        solve(Q, q, G, h, A, b, backend="cuda", check=False).z.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@needs_gpu
def test_a_graph_captures_a_solve() -> None:
    problem, settings = random_problem(20, 5, 30, 8, device="cuda"), Settings()
    wanted = cuda.solve(problem, settings, False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        point = cuda.solve(problem, settings, False)
    point.z.fill_(float("nan"))
    graph.replay()
    torch.testing.assert_close(point.z, wanted.z, rtol=0, atol=0)


@gpu
@needs_gpu
def test_streams_do_not_disturb_each_other() -> None:
    problems = [random_problem(30, 0, 30 + i, 16, device="cuda") for i in range(4)]
    wanted = [cuda.solve(problem, Settings(), False).z for problem in problems]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    found = []
    for problem, stream in zip(problems, streams, strict=True):
        with torch.cuda.stream(stream):
            found.append(cuda.solve(problem, Settings(), False).z)
    torch.cuda.synchronize()
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@gpu
@needs_gpu
def test_a_member_does_not_depend_on_the_others() -> None:
    problem = random_problem(10, 0, 12, 9, device="cuda")
    alone = [cuda.solve(problem.member(i), Settings(), False).z[0] for i in range(9)]
    together = cuda.solve(problem, Settings(), False).z
    for i in range(9):
        torch.testing.assert_close(alone[i], together[i], rtol=1e-9, atol=1e-9)
