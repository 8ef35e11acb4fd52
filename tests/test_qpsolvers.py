"""Other solvers in the forward pass: they agree with the reference, and sparse problems have sparse gradients."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer import Diagonal, Settings, Status, backends, kkt

package = pytest.importorskip("qpsolvers", reason="the extra `qpsolvers` is not installed")
sparse = pytest.importorskip("scipy.sparse")

SOLVERS = [name for name in ("clarabel", "daqp", "piqp", "osqp", "proxqp") if name in package.available_solvers]
if not SOLVERS:
    pytest.skip("qpsolvers finds no solver", allow_module_level=True)
FIRST = "qpsolvers:" + SOLVERS[0]
NAMES = ("Q", "q", "G", "h", "A", "b", "lb", "ub")


@pytest.fixture(autouse=True)
def _no_beta_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        yield


def random_tensors(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Three members that share all but q and h; some sides of every kind are active."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    n, m, p, batch = 8, 2, 6, 3
    L, G, A, z = normal(n, n), normal(p, n), normal(m, n), 0.1 * normal(n)
    h = G @ z + 0.5 * torch.rand(batch, p, generator=rng, dtype=torch.float64)
    tensors = {
        "Q": L @ L.T + torch.eye(n), "q": 10 * normal(batch, n), "G": G, "h": h, "A": A, "b": A @ z,
        "lb": torch.full((n,), -0.3), "ub": torch.full((n,), 0.2),
    }
    return {name: x.to(dtype) for name, x in tensors.items()}


def chain(n: int, seed: int = 0) -> dict[str, Tensor]:
    """One sparse problem: three entries in a row of A, four in one of G, a banded Q."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    def rows(count: int, width: int) -> Tensor:
        row = torch.arange(count).repeat_interleave(width)
        column = (row * (n // count) + 7 * torch.arange(width).repeat(count)) % n
        return torch.sparse_coo_tensor(torch.stack([row, column]), normal(count * width), (count, n)).coalesce()

    B, G, A, z = rows(n, 3), rows(n // 2, 4), rows(n // 4, 3), 0.1 * normal(n)
    places = torch.arange(n).expand(2, n)
    Q = B.T @ B + torch.sparse_coo_tensor(places, torch.full((n,), 0.1, dtype=torch.float64), (n, n))
    return {
        "Q": Q.coalesce().to_sparse_csr(), "q": normal(n),
        "G": G.to_sparse_csr(), "h": G @ z + torch.rand(n // 2, generator=rng, dtype=torch.float64),
        "A": A.to_sparse_csr(), "b": A @ z,
        "lb": torch.full((n,), -1.0, dtype=torch.float64), "ub": torch.full((n,), 0.5, dtype=torch.float64),
    }


def gradients(tensors: dict[str, Tensor], backend: str) -> tuple[Tensor, list[Tensor]]:
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    solution = optlayer.solve(**leaves, backend=backend)
    rng = torch.Generator().manual_seed(9)

    def weight(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x.dtype)

    loss = sum((weight(x) * x).sum() for x in (solution.z, solution.lam, solution.nu, solution.lam_ub))
    assert isinstance(loss, Tensor)
    return solution.z.detach(), list(torch.autograd.grad(loss, list(leaves.values())))


@pytest.mark.parametrize("solver", SOLVERS)
def test_solution_and_gradients_are_those_of_the_reference(solver: str) -> None:
    tensors = random_tensors(0)
    z, mine = gradients(tensors, f"qpsolvers:{solver}")
    exact, theirs = gradients(tensors, "reference")
    assert torch.allclose(z, exact, atol=1e-7)
    for name, a, b in zip(tensors, mine, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name
        assert b.abs().max() > 1e-3, f"{name} does not matter here"


@pytest.mark.parametrize("solver", SOLVERS)
def test_polish_reaches_the_last_digits(solver: str) -> None:
    tensors = random_tensors(1)
    solution = optlayer.solve(**tensors, backend=f"qpsolvers:{solver}")
    parts = (solution.z, solution.lam, solution.nu, solution.lam_lb, solution.lam_ub)
    assert float(kkt.residuals(solution.problem, *parts).relative.max()) < 1e-12
    rough = optlayer.solve(**tensors, backend=f"qpsolvers:{solver}", settings=Settings(polish=False))
    assert torch.allclose(rough.z, solution.z, atol=1e-4)


@pytest.mark.parametrize("kind", ["diagonal", "no constraints", "bounds only", "equalities only", "infinite sides"])
def test_every_kind_of_problem(kind: str) -> None:
    t: dict[str, Tensor | Diagonal] = dict(random_tensors(2))
    kept = {"no constraints": "Qq", "bounds only": ("Q", "q", "lb", "ub"), "equalities only": "QqAb"}.get(kind, NAMES)
    t = {name: x for name, x in t.items() if name in kept}
    if kind == "diagonal":
        t["Q"] = Diagonal(torch.arange(1.0, 9.0, dtype=torch.float64))
    if kind == "infinite sides":
        assert isinstance(t["h"], Tensor)
        assert isinstance(t["ub"], Tensor)
        t["h"][:, 1], t["ub"][3], t["lb"] = torch.inf, torch.inf, torch.full((8,), -torch.inf, dtype=torch.float64)
    mine, exact = (optlayer.solve(**t, backend=backend) for backend in (FIRST, "reference"))
    for name in ("z", "lam", "nu", "lam_lb", "lam_ub"):
        assert torch.allclose(getattr(mine, name), getattr(exact, name), atol=1e-6), name
    assert torch.equal(mine.s.isinf(), exact.s.isinf()) or kind != "infinite sides"


def test_float32_in_float32_out() -> None:
    solution = optlayer.solve(**random_tensors(3, torch.float32), backend=FIRST)
    exact = optlayer.solve(**random_tensors(3), backend="reference")
    assert solution.z.dtype == torch.float32
    assert torch.allclose(solution.z.double(), exact.z, atol=1e-5)


def test_statuses_are_our_own_and_members_independent() -> None:
    tensors = random_tensors(4)
    good = optlayer.solve(**tensors, backend=FIRST)
    for name in ("b", "lb"):
        tensors[name] = tensors[name].expand(3, -1).clone()
    tensors["h"][0, 0] = torch.nan
    tensors["lb"][2] = 0.5  # above ub: infeasible
    tensors["q"].requires_grad_()
    solution = optlayer.solve(**tensors, backend=FIRST, check=False)
    assert int(solution.status[0]) == Status.INVALID_INPUT
    assert int(solution.status[1]) == Status.SOLVED
    assert int(solution.status[2]) not in (Status.SOLVED, Status.INVALID_INPUT)
    assert torch.equal(solution.z[1], good.z[1])
    (gradient,) = torch.autograd.grad(solution.z[1].sum(), tensors["q"])
    assert gradient[1].abs().max() > 0
    assert torch.equal(gradient[[0, 2]], torch.zeros(2, 8, dtype=torch.float64))


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_not_convex(form: str) -> None:
    Q = torch.diag(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64))
    one = torch.ones(3, dtype=torch.float64)
    if form == "sparse":
        Q = Q.to_sparse_csr()
    solution = optlayer.solve(Q, 0 * one, lb=-one, ub=one, backend=FIRST, check=False)
    assert int(solution.status) == Status.NOT_CONVEX


def test_linear_program_at_a_vertex() -> None:
    q = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    G = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)  # the same row twice
    h = torch.tensor([1.0, 1.0], dtype=torch.float64)
    solution = optlayer.solve(
        torch.zeros(2, 2, dtype=torch.float64), q, G, h, lb=torch.zeros(2, dtype=torch.float64), backend=FIRST
    )
    assert torch.allclose(solution.z, torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-9)
    assert torch.allclose(solution.lam.sum(), torch.tensor(2.0, dtype=torch.float64), atol=1e-8)
    (gradient,) = torch.autograd.grad(solution.z.sum(), q)
    assert gradient.abs().max() < 1e-8


@pytest.mark.parametrize("solver", SOLVERS)
def test_variables_without_freedom(solver: str) -> None:
    """lb = ub, where the multiplier may be of either side, and rows that say the same again."""
    tensors = random_tensors(5)
    tensors["lb"][:3] = tensors["ub"][:3] = torch.tensor([0.1, -0.2, 0.05])
    tensors["A"], tensors["b"] = tensors["A"][:1], tensors["b"][:1]
    tensors["A"] = torch.cat([tensors["A"], 2 * tensors["A"]])
    tensors["b"] = torch.cat([tensors["b"], 2 * tensors["b"]])
    mine, exact = (optlayer.solve(**tensors, backend=backend) for backend in (f"qpsolvers:{solver}", "reference"))
    assert torch.allclose(mine.z, exact.z, atol=1e-9)
    assert torch.equal(mine.z[:, :3], tensors["lb"][:3].expand(3, -1))
    assert torch.allclose(mine.lam_ub - mine.lam_lb, exact.lam_ub - exact.lam_lb, atol=1e-7)


def test_derivatives_are_those_of_our_own_backend() -> None:
    """Of second order, forward, and smoothed."""
    tensors = random_tensors(6)

    def z(q: Tensor, backend: str = FIRST, **settings: Any) -> Tensor:
        return optlayer.solve(**{**tensors, "q": q}, backend=backend, settings=Settings(**settings)).z

    q = tensors["q"].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(z, (q,))
    given = (tensors["q"],), (torch.ones_like(tensors["q"]),)
    forward = [torch.func.jvp(lambda q, name=name: z(q, name), *given)[1] for name in (FIRST, "reference")]
    assert torch.allclose(*forward, atol=1e-8)
    smoothed = [
        torch.autograd.grad(z(q, name, gradient="smoothed").square().sum(), q)[0] for name in (FIRST, "reference")
    ]
    assert torch.allclose(*smoothed, atol=1e-7)


def test_what_the_solver_leaves_is_done_by_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(7)
    exact = optlayer.solve(**tensors)

    def refuse(*_: Any, **__: Any) -> None:
        raise package.exceptions.SolverError

    monkeypatch.setattr(package, "solve_problem", refuse)
    assert torch.equal(optlayer.solve(**tensors, backend=FIRST).z, exact.z)


def test_wrong_claims_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of other problems: the active sets are put right, or the members solved here."""
    tensors = random_tensors(8)
    exact, solve = optlayer.solve(**tensors), package.solve_problem

    def lie(problem: Any, *args: Any, **options: Any) -> Any:
        return solve(package.Problem(problem.P, problem.q[::-1].copy(), *problem.unpack()[2:]), *args, **options)

    monkeypatch.setattr(package, "solve_problem", lie)
    assert torch.allclose(optlayer.solve(**tensors, backend=FIRST).z, exact.z, atol=1e-10)


# --- sparse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_sparse_gradients_are_the_dense_ones_on_the_pattern(layout: str) -> None:
    tensors = chain(60)
    dense = {name: x.to_dense() if x.layout != torch.strided else x for name, x in tensors.items()}
    if layout == "coo":
        tensors = {name: x if x.layout == torch.strided else x.to_sparse_coo() for name, x in tensors.items()}
    z, mine = gradients(tensors, FIRST)
    exact, theirs = gradients(dense, FIRST)
    assert torch.allclose(z, exact, atol=1e-9)
    for name, a, b in zip(tensors, mine, theirs, strict=True):
        assert a.layout == tensors[name].layout
        if a.layout != torch.strided:
            pattern = tensors[name].to_dense() != 0
            assert a._nnz() == tensors[name]._nnz()
            a, b = a.to_dense(), torch.where(pattern, b, 0.0)
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9 * float(b.abs().max())), name


def test_sparse_gradients_of_a_batch_are_summed() -> None:
    tensors = chain(40)
    q = torch.stack([tensors["q"], -tensors["q"]])
    A = tensors["A"].clone().requires_grad_()
    optlayer.solve(**{**tensors, "q": q, "A": A}, backend=FIRST).z.sum().backward()
    total = torch.zeros(40 // 4, 40, dtype=torch.float64)
    for one in q:
        alone = tensors["A"].clone().requires_grad_()
        optlayer.solve(**{**tensors, "q": one, "A": alone}, backend=FIRST).z.sum().backward()
        assert alone.grad is not None
        total += alone.grad.to_dense()
    assert A.grad is not None
    assert torch.allclose(A.grad.to_dense(), total, atol=1e-9)


def test_two_thousand_variables_against_finite_differences() -> None:
    tensors, n = chain(2000), 2000
    rng = torch.Generator().manual_seed(7)
    weight = torch.randn(n, generator=rng, dtype=torch.float64)
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    (optlayer.solve(**leaves, backend=FIRST).z * weight).sum().backward()

    def moved(x: Tensor, direction: Tensor) -> Tensor:
        if x.layout == torch.strided:
            return x + direction
        return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), x.values() + direction, x.shape)

    step = 1e-6
    for name in ("Q", "q", "G", "A", "b", "ub"):
        x, gradient = tensors[name], leaves[name].grad
        assert gradient is not None
        values = gradient if gradient.layout == torch.strided else gradient.values()
        direction = torch.randn(values.shape, generator=rng, dtype=torch.float64)
        ahead, behind = (
            optlayer.solve(**{**tensors, name: moved(x, sign * step * direction)}, backend=FIRST).z for sign in (1, -1)
        )
        slope, exact = float(weight @ (ahead - behind)) / (2 * step), float((values * direction).sum())
        assert slope == pytest.approx(exact, rel=1e-5, abs=1e-5), name


def test_scipy_matrices_are_taken_as_constants() -> None:
    tensors = chain(40)
    q = tensors["q"].clone().requires_grad_()
    matrices = {
        name: sparse.csr_matrix(
            (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy()), shape=tuple(x.shape)
        ).tocsc()
        for name, x in tensors.items()
        if x.layout != torch.strided
    }
    solution = optlayer.solve(**{**tensors, **matrices, "q": q}, backend=FIRST)
    assert torch.allclose(solution.z, optlayer.solve(**tensors, backend=FIRST).z, atol=1e-12)
    solution.z.sum().backward()
    assert q.grad is not None
    assert q.grad.abs().max() > 0


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["auto", "reference"])
def test_our_own_backends_take_the_same_sparse_matrices(wanted: str) -> None:
    tensors = chain(8)
    mine, theirs = (optlayer.solve(**tensors, backend=name).z for name in (wanted, FIRST))
    assert torch.allclose(mine, theirs, atol=1e-8)


def test_sparse_matrices_have_no_batch() -> None:
    tensors = chain(8)
    Q = torch.stack([tensors["Q"].to_dense()] * 2).to_sparse()
    with pytest.raises(ValueError, match="shared by the batch"):
        optlayer.solve(Q, tensors["q"], backend=FIRST)


def test_unknown_solvers_are_named_with_those_installed() -> None:
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"'nosuch'; installed are: .*{SOLVERS[0]}.*pip install qpsolvers\[nosuch\]"):
        optlayer.solve(torch.diag(one), one, backend="qpsolvers:nosuch")


def test_a_missing_package_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "qpsolvers" else found(name, *args)
    )
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"qpsolvers not installed: pip install optlayer\[qpsolvers\]"):
        optlayer.solve(torch.diag(one), one, backend=FIRST)
    assert "reference" in backends.available()
