"""What a user of torch tries first: batch dimensions, numbers, tracers, odd tensors, messages, types."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

import optlayer
from optlayer import Diagonal, SolveError, Status, solve

F64 = torch.float64
ROOT = Path(__file__).parents[1]
G = torch.tensor([[-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]], dtype=F64)
H = torch.tensor([0.0, 0.0, 1.0], dtype=F64)
Q = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)


def q(*batch: int, seed: int = 0) -> Tensor:
    return torch.randn(*batch, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


def one_by_one(tensors: dict[str, Tensor], name: str = "z") -> Tensor:
    """The answer of each member of the broadcast batch, solved alone."""
    ranks = {"Q": 2, "G": 2, "A": 2}
    shape = torch.broadcast_shapes(*(x.shape[: x.dim() - ranks.get(k, 1)] for k, x in tensors.items()))
    full = {k: x.expand(*shape, *x.shape[x.dim() - ranks.get(k, 1) :]) for k, x in tensors.items()}
    flat = {k: x.reshape(-1, *x.shape[len(shape) :]) for k, x in full.items()}
    answers = [getattr(solve(**{k: x[i] for k, x in flat.items()}), name) for i in range(flat["q"].shape[0])]
    return torch.stack(answers).reshape(*shape, *answers[0].shape)


# --- batch dimensions ------------------------------------------------------------------------------------------------

BATCHES: dict[str, dict[str, tuple[int, ...]]] = {
    "two": {"q": (4, 2)},
    "three": {"q": (2, 1, 3)},
    "one of one": {"Q": (1,), "q": (3,)},
    "crossed": {"Q": (4, 1), "q": (3,)},
    "each another": {"Q": (2, 1, 1), "q": (3, 1), "h": (4,), "G": (1, 1)},
    "ones": {"Q": (1, 1), "q": (1,)},
    "matrix alone": {"G": (3, 2)},
}


def drawn(batches: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    data = {"Q": Q, "q": q(), "G": G, "h": H, "A": torch.ones(1, 2, dtype=F64), "b": torch.full((1,), 0.4, dtype=F64)}
    for name, batch in batches.items():
        x = data[name]
        noise = 0.1 * torch.rand(*batch, *x.shape, dtype=F64)
        data[name] = x + (noise + noise.mT if name == "Q" else noise)
    return data


@pytest.mark.parametrize("name", BATCHES)
def test_batch_dimensions_are_broadcast(name: str, backend: str) -> None:
    if backend == "cuda":
        pytest.skip("the door is the same")
    data = drawn(BATCHES[name])
    sol = solve(**data, backend=backend)
    torch.testing.assert_close(sol.z, one_by_one(data), atol=1e-9, rtol=0)
    torch.testing.assert_close(sol.lam, one_by_one(data, "lam"), atol=1e-8, rtol=0)
    shape = sol.z.shape[:-1]
    assert sol.status.shape == sol.objective.shape == sol.gap.shape == sol.solved.shape == shape
    assert sol.nu.shape == (*shape, 1)
    assert sol.certificate_residual.shape == shape


@pytest.mark.parametrize("name", BATCHES)
def test_gradients_come_back_in_the_shape_of_each_input(name: str) -> None:
    found = []
    for run in (lambda **x: solve(**x).z, one_by_one):
        leaves = {k: x.clone().requires_grad_() for k, x in drawn(BATCHES[name]).items()}
        z = run(**leaves) if run is not one_by_one else one_by_one(leaves)
        weights = torch.arange(1.0, z.numel() + 1, dtype=F64).reshape(z.shape)
        found.append(torch.autograd.grad((z * weights).sum(), list(leaves.values())))
        assert all(g.shape == x.shape for g, x in zip(found[-1], leaves.values(), strict=True))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=1e-8)


def test_second_derivatives_and_multipliers_with_two_batch_dimensions() -> None:
    leaf = q(2, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: (solve(Q, x, G, H).z, solve(Q, x, G, H).lam), leaf)


def test_diagonal_and_bounds_are_broadcast() -> None:
    d = torch.rand(3, 1, 2, dtype=F64) + 0.5
    x, lb = 3 * q(4), torch.zeros(3, 4, 2, dtype=F64)
    sol = solve(Diagonal(d), -x, lb=lb, ub=1.0)
    torch.testing.assert_close(sol.z, (x / d).clamp(0, 1))
    assert sol.lam_lb.shape == sol.lam_ub.shape == (3, 4, 2)


def test_an_empty_batch_among_others() -> None:
    sol = solve(Q, q(0, 3), G, H)
    assert sol.z.shape == (0, 3, 2)
    assert "no members" in repr(sol)


def test_many_dimensions_under_vmap_and_compile() -> None:
    x = q(5, 4, 3)
    expected = solve(Q, x, G, H).z
    torch.testing.assert_close(vmap(lambda x: solve(Q, x, G, H).z)(x), expected)
    torch.testing.assert_close(vmap(lambda x: solve(Q[None], x, G, H).z, in_dims=1, out_dims=1)(x), expected)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: solve(Q, x, G, H).z, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


def test_failures_are_named_by_their_place() -> None:
    h = H.expand(2, 3, 3).clone()
    h[1, 2, 2] = -1.0
    sol = solve(Q, q(), G, h, check=False)
    assert sol.status_names()[1] == ["SOLVED", "SOLVED", "PRIMAL_INFEASIBLE"]
    assert sol.explain((1, 2)).startswith("PRIMAL_INFEASIBLE")
    assert sol.explain(5) == sol.explain((1, 2)) == sol.explain((-1, -1))
    with pytest.raises(IndexError, match=r"member \(2, 0\) of a batch of \(2, 3\)"):
        sol.explain((2, 0))
    with pytest.raises(SolveError, match=r"member \(1, 2\)") as caught:
        solve(Q, q(), G, h)
    assert caught.value.members == [(1, 2)]


def test_invalid_entries_are_named_by_their_place() -> None:
    x = q(2, 3)
    x[1, 0, 1] = torch.nan
    assert "q[1, 0, 1] = nan" in solve(Q, x, G, H, check=False).explain((1, 0))


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_for_sides() -> None:
    x = q(5)
    same = solve(Q, x, G[2:], 1.0, lb=0, ub=torch.tensor(0.7, dtype=F64))
    tensors = solve(Q, x, G[2:], torch.ones(1, dtype=F64), lb=torch.zeros(2, dtype=F64), ub=0.7 + 0 * x[0])
    assert torch.equal(same.z, tensors.z)
    assert torch.equal(solve(Q, x, A=torch.ones(1, 2, dtype=F64), b=1).z.sum(-1).round(decimals=12), torch.ones(5))


def test_a_scalar_bound_learns() -> None:
    ub = torch.tensor(0.5, dtype=F64, requires_grad=True)
    solve(Diagonal(torch.ones(3, dtype=F64)), -2 * torch.ones(4, 3, dtype=F64), ub=ub).z.sum().backward()
    assert ub.grad == 12


# --- tracers and odd tensors -----------------------------------------------------------------------------------------


def test_jit_trace_records_the_operator() -> None:
    x = q(3)
    traced = torch.jit.trace(lambda x: solve(Q, x, G, H).z.square(), (x,))
    for other in (x, q(3, seed=1), q(5, seed=2)):
        torch.testing.assert_close(traced(other), solve(Q, other, G, H).z.square())
    leaf, same = x.clone().requires_grad_(), x.clone().requires_grad_()
    traced(leaf).sum().backward()
    solve(Q, same, G, H).z.square().sum().backward()
    torch.testing.assert_close(leaf.grad, same.grad)
    assert "optlayer::solve" in str(traced.graph)
    torch.testing.assert_close(torch.jit.trace(lambda x: solve(Q, x, G, H).z, (q(),))(x[0]), solve(Q, x[0], G, H).z)


def test_jit_trace_of_a_layer() -> None:
    layer = optlayer.nn.SimplexProjection()
    x = torch.randn(3, 5)
    torch.testing.assert_close(torch.jit.trace(layer, (x,))(x + 1), layer(x + 1))


def test_shapes_without_work() -> None:
    with FakeTensorMode():
        sol = solve(torch.eye(3), torch.randn(4, 2, 3, requires_grad=True), lb=0.0)
        sol.z.sum().backward()
    assert sol.z.shape == sol.lam_lb.shape == (4, 2, 3)
    meta = solve(torch.eye(3, device="meta"), torch.randn(4, 3, device="meta"), lb=0.0)
    assert meta.z.is_meta
    assert meta.z.shape == meta.lam_lb.shape == (4, 3)


def test_wrappers_are_refused() -> None:
    class Wrapped(Tensor):
        @staticmethod
        def __new__(cls, x: Tensor) -> Any:
            return Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)

        def __repr__(self) -> str:
            return "Wrapped"

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise NotImplementedError

    for given in ({"q": Wrapped(q())}, {"h": Wrapped(H)}, {"Q": Diagonal(Wrapped(H[:2]))}):
        with pytest.raises(TypeError, match="is a Wrapped, which wraps other tensors"):
            solve(**({"Q": Q, "q": q(), "G": G, "h": H} | given))


def test_plain_subclasses_are_welcome() -> None:
    class Plain(Tensor):
        pass

    x = q(3)
    assert torch.equal(torch.Tensor(solve(Q, x.as_subclass(Plain), G, H).z), solve(Q, x, G, H).z)
    layer = torch.nn.Parameter(x)
    assert torch.equal(solve(Q, layer, G, H).z, solve(Q, x, G, H).z)


@pytest.mark.parametrize("name", ["Q", "q", "G", "h"])
def test_lazily_negated_views_are_resolved(name: str, backend: str) -> None:
    if backend == "cuda":
        pytest.skip("tensors of the CPU")
    data = {"Q": Q, "q": q(3), "G": G, "h": H}
    lazy = (1j * -data[name]).conj().imag
    assert lazy.is_neg()
    assert torch.equal(lazy, data[name])
    assert torch.equal(solve(**(data | {name: lazy}), backend=backend).z, solve(**data, backend=backend).z)


def test_lazily_negated_gradients_are_resolved() -> None:
    leaf = q(3).requires_grad_()
    z = solve(Q, leaf, G, H).z
    g = torch.randn(3, 2, dtype=F64)
    lazy = (1j * -g).conj().imag
    expected, found = (torch.autograd.grad(z, leaf, x, retain_graph=True)[0] for x in (g, lazy))
    assert torch.equal(found, expected)


def test_vmap_over_autograd_grad() -> None:
    leaf = (0.1 * q()).requires_grad_()
    z = solve(Q, leaf, G, H).z
    rows = vmap(lambda g: torch.autograd.grad(z, leaf, g, retain_graph=True)[0])(torch.eye(2, dtype=F64))
    expected = torch.func.jacrev(lambda x: solve(Q, x, G, H).z)(leaf.detach())
    torch.testing.assert_close(rows, expected)


def test_the_old_vmap_says_what_to_use() -> None:
    leaf = q().requires_grad_()
    z = solve(Q, leaf, G, H).z
    with pytest.raises((RuntimeError, TypeError), match=r"torch\.func\.jacrev"):
        torch.autograd.grad(z, leaf, torch.eye(2, dtype=F64), is_grads_batched=True)


# --- the solution ----------------------------------------------------------------------------------------------------


def test_statuses_read_as_words() -> None:
    assert str(Status.SOLVED) == f"{Status.SOLVED}" == "SOLVED"
    assert f"{Status.NOT_CONVEX:d}" == "6"
    assert f"{Status.SOLVED:>8}" == "  SOLVED"
    assert solve(Q, q(), G, H).status_names() == "SOLVED"
    assert solve(Q, q(2), G, H).status_names() == ["SOLVED", "SOLVED"]


def test_a_solution_is_cut_moved_and_counted() -> None:
    leaf = q(4, 3).requires_grad_()
    sol = solve(Q, leaf, G, H, lb=-1.0)
    assert len(sol) == 4
    assert [part.z.shape for part in sol] == [(3, 2)] * 4
    mask, every = sol.z[..., 0] > 0, slice(None)
    for index, shape in ((1, (3,)), ((1, 2), ()), (slice(0, 2), (2, 3)), ((every, 0), (4,)), (mask, None)):
        part = sol[index]
        assert shape is None or part.status.shape == shape
        assert torch.equal(part.z, sol.z[index])
        assert torch.equal(part.lam, sol.lam[index])
        assert torch.equal(part.objective, sol.objective[index])
        assert torch.equal(part.gap, sol.gap[index])
        assert part.explain(0 if shape == () else (0,) * part.status.dim()).startswith("SOLVED")
    assert sol[0].z.requires_grad
    assert not sol.detach().z.requires_grad
    single = sol.to(torch.float32)
    assert single.z.dtype == single.objective.dtype == torch.float32
    assert single.status.dtype == torch.int32
    for call in (len, lambda x: x[0]):
        with pytest.raises(TypeError, match="without batch"):
            call(solve(Q, q(), G, H))
    with pytest.raises(IndexError):
        sol[4]


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_explain_looks_at_what_failed(shape: tuple[int, ...]) -> None:
    upper = torch.tensor([1.0, 1.0, -1.0, 1.0]).reshape(*shape, 1)  # the third cannot be above zero
    sol = optlayer.solve(torch.eye(1), torch.ones(1), lb=0.0, ub=upper, check=False)
    place = 2 if len(shape) == 1 else (1, 0)
    assert sol.explain().startswith(f"PRIMAL_INFEASIBLE (member {place}): ")
    assert sol.explain().split(": ", 1)[1] == sol.explain(place).split(": ", 1)[1]
    assert sol.explain(0).startswith("SOLVED: ")
    assert optlayer.solve(torch.eye(1), torch.ones(1), lb=0.0, ub=upper.abs()).explain().startswith("SOLVED (member ")


@pytest.mark.parametrize("Q", [torch.eye(3), optlayer.Diagonal(torch.ones(3)), torch.eye(3).to_sparse()])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_solution_is_copied_and_pickled(Q: Any, copied: Any) -> None:
    sol = optlayer.solve(
        Q, -torch.arange(6.0).reshape(2, 3), A=torch.ones(1, 3), b=1.0, lb=0.0, names={"z": list("abc")}
    )
    other = copied(sol)
    assert repr(other) == repr(sol)
    assert other.explain(1) == sol.explain(1)
    for name in ("z", "nu", "lam_lb", "status", "gap", "objective"):
        assert torch.equal(getattr(other, name), getattr(sol, name))
    again = optlayer.solve(other.problem.Q, other.problem.q, A=other.problem.A, b=other.problem.b, lb=other.problem.lb)
    assert torch.equal(again.z, sol.z)  # kinds and patterns are what they were


def test_representations() -> None:
    assert repr(solve(Q, q(), G, H)).startswith("Solution(n=2, m=0, p=3; SOLVED; largest residual")
    assert repr(solve(Q, q(3), G, H)).startswith("Solution(n=2, m=0, p=3, batch=3; SOLVED: 3; largest residual")
    assert repr(solve(Q, q(2, 2), G, H)).startswith("Solution(n=2, m=0, p=3, batch=(2, 2); SOLVED: 4;")
    assert repr(solve(Q, q(0), G, H)) == "Solution(n=2, m=0, p=3, batch=0; no members)"


def test_errors_quote_the_explanation_with_names() -> None:
    names = {"z": ["bread", "wine"], "G": ["no negative bread", "no negative wine", "budget"]}
    h = torch.tensor([0.0, 0.0, -1.0], dtype=F64)
    with pytest.raises(SolveError) as caught:
        solve(Q, q(), G, h, names=names)
    assert "contradict each other" in str(caught.value)
    assert "budget (row 2 of G z <= h)" in str(caught.value)
    ub = torch.tensor([1.0, torch.inf], dtype=F64)
    unbounded = solve(0 * Q, -torch.eye(2, dtype=F64)[1], ub=ub, check=False, names=names | {"G": []})
    assert "wine (z[1]) up" in unbounded.explain()
    with pytest.raises(ValueError, match=r"names\['z'\] has 1 entries; 2 are needed"):
        solve(Q, q(), G, H, names={"z": ["x"]})
    with pytest.raises(ValueError, match="key 'rows'"):
        solve(Q, q(), G, H, names={"rows": ["x"]})


# --- imports ---------------------------------------------------------------------------------------------------------


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )


def test_parts_are_there_after_the_import() -> None:
    done = run(
        "import sys, optlayer; assert 'optlayer.nn' not in sys.modules\n"
        "print(optlayer.nn.OptNetLayer.__name__, optlayer.compat.qpth.QPFunction.__name__)\n"
        "try: optlayer.nothing\nexcept AttributeError as error: print(error)"
    )
    assert done.stdout.split("\n")[0] == "OptNetLayer QPFunction", done.stderr
    assert "no attribute 'nothing'" in done.stdout


def test_the_import_is_light() -> None:
    """No layer, no experiment, no optional package: what costs time is not there."""
    done = run("import sys, torch; before = set(sys.modules); import optlayer; print(*(set(sys.modules) - before))")
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded <= {"optlayer", *sys.stdlib_module_names, *(x for x in loaded if x.startswith("_"))}, loaded


def test_an_unknown_variant_of_the_core_is_an_error() -> None:
    if optlayer.available()["cpu"] is not None:
        pytest.skip("no compiled core")
    done = run("import optlayer; print(optlayer.available())", OPTLAYER_CPU="avx1024")
    assert done.returncode != 0
    assert "OPTLAYER_CPU=avx1024" in done.stderr
    assert "installed are" in done.stderr


def test_the_command_line_says_versions_and_solvers() -> None:
    pytest.importorskip("typer")
    for arguments in (["--version"], ["info"]):
        done = subprocess.run(
            [sys.executable, "-m", "optlayer", *arguments], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert optlayer.__version__ in done.stdout
    assert "backend qpsolvers:NAME" in done.stdout
    assert "threads" in done.stdout
    pytest.importorskip("qpsolvers")
    from optlayer.backends import qpsolvers

    assert all(solver.split()[0] in " ".join(done.stdout.split()) for solver in qpsolvers.solvers())


# --- types -----------------------------------------------------------------------------------------------------------

USER = """
import torch
from typing_extensions import assert_type

import optlayer
from optlayer import Settings, Solution, nn

sol = optlayer.solve(torch.eye(2), torch.ones(2), lb=0.0, settings=Settings(tolerance=1e-6))
assert_type(sol, Solution)
assert_type(sol.z, torch.Tensor)
assert_type(sol.solved, torch.Tensor)
assert_type(sol[0], Solution)
assert_type(sol.explain(), str)
layer = nn.Sparsemax(settings=Settings(), backend="cpu", check=False)
assert_type(layer.solution(torch.ones(3)), Solution)
assert_type(optlayer.nn.Portfolio(largest=0.5).forward(torch.ones(3), torch.eye(3)), torch.Tensor)
nn.Sparsemax(chekc=False)  # wrong
nn.Sparsemax(settings={"tolerance": 1e-6})  # wrong
optlayer.solve(torch.eye(2), torch.ones(2), settings={})  # wrong
optlayer.solve(torch.eye(2), torch.ones(2), lb="0")  # wrong
"""


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_users_file_is_checked(checker: str, tmp_path: Path) -> None:
    pytest.importorskip(checker)
    path = tmp_path / "user.py"
    path.write_text(USER)
    command = [sys.executable, "-m", checker, str(path)]
    command += ["--pythonpath", sys.executable] if checker == "pyright" else ["--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if "error" in line and "user.py:" in line}
    wanted = {i for i, line in enumerate(USER.splitlines(), 1) if line.endswith("# wrong")}
    if checker == "pyright" and not done.stdout.strip():
        pytest.skip(f"pyright cannot run here: {done.stderr[-200:]}")  # it wants to load its own part
    assert found == wanted, done.stdout
