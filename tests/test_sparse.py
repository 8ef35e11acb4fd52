"""Sparse problems: solutions, statuses and derivatives are the dense ones, on the pattern."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import sparse as measured
from benchmarks import sparse_workloads
from torch import Tensor

import optlayer
from optlayer import Diagonal, Settings, Sparse, Status, kkt, solve
from optlayer.backends import sparse as backend

sp = pytest.importorskip("scipy.sparse")
pytest.importorskip("scipy.sparse.linalg")
linprog = pytest.importorskip("scipy.optimize").linprog
pytestmark = pytest.mark.skipif(optlayer.available()["cpu"] is not None, reason="no compiled core")

NAMES = ("Q", "q", "G", "h", "A", "b", "lb", "ub")


def masked(rng: np.random.Generator, rows: int, columns: int, entries: int) -> np.ndarray:
    """A pattern with so many entries a row."""
    mask = np.zeros((rows, columns), bool)
    for row in mask:
        row[rng.choice(columns, entries, replace=False)] = True
    return mask


def problem(
    seed: int = 0, n: int = 14, m: int = 4, p: int = 9, batch: int = 5, same: bool = True, bounds: bool = True
) -> dict[str, Any]:
    """Dense tensors with zeros, feasible and strictly convex; matrices shared or not."""
    rng = np.random.default_rng(seed)
    lead = () if same else (batch,)
    B = rng.standard_normal((*lead, n, n)) * masked(rng, n, n, 2)
    Q = 0.1 * B @ np.swapaxes(B, -1, -2) + np.eye(n)
    G, A = (rng.standard_normal((*lead, k, n)) * masked(rng, k, n, 3) for k in (p, m))
    z = rng.standard_normal((batch, n))
    t = {
        "Q": Q, "q": 3 * rng.standard_normal((batch, n)), "G": G, "A": A,
        "h": (G @ z[..., None])[..., 0] + rng.random((batch, p)), "b": (A @ z[..., None])[..., 0],
    }  # fmt: skip
    if bounds:
        t |= {"lb": np.where(rng.random(n) < 0.3, -np.inf, z.min(0) - 0.1), "ub": z + 0.3}
    return {key: torch.tensor(x) for key, x in t.items()}


def sparsely(t: dict[str, Any], which: str = "QGA") -> dict[str, Any]:
    """The same with sparse matrices."""
    return {key: Sparse.from_dense(x) if key in which and len(key) == 1 else x for key, x in t.items()}


def tensors(t: dict[str, Any]) -> dict[str, Tensor]:
    return {key: x.values if isinstance(x, Sparse) else x.d if isinstance(x, Diagonal) else x for key, x in t.items()}


def with_gradients(t: dict[str, Any]) -> dict[str, Any]:
    """Leaves."""
    made: dict[str, Any] = {}
    for key, x in t.items():
        if isinstance(x, Sparse):
            made[key] = x.with_values(x.values.clone().requires_grad_())
        else:
            leaf = (x.d if isinstance(x, Diagonal) else x).clone().requires_grad_()
            made[key] = Diagonal(leaf) if isinstance(x, Diagonal) else leaf
    return made


def on_pattern(M: Any, gradient: Tensor) -> Tensor:
    """What a gradient of the full matrix is at the entries."""
    return gradient[..., M.pattern.rows, M.pattern.columns] if isinstance(M, Sparse) else gradient


def compare(
    t: dict[str, Any], dense: dict[str, Any], loss: Any = None, tolerance: float = 1e-8, **options: Any
) -> None:
    """Solutions and gradients of a sparse problem are those of the dense one by the reference."""
    loss = loss or (lambda s: (s.z * torch.linspace(-1, 2, s.z.shape[-1], dtype=s.z.dtype)).sum())
    mine, theirs = with_gradients(t), with_gradients(dense)
    found, wanted = solve(**mine, **options), solve(**theirs, **(options | {"backend": "reference"}))
    assert (found.z - wanted.z).abs().max() < tolerance
    assert (found.status == 0).all()
    grads = torch.autograd.grad(loss(found), list(tensors(mine).values()))
    exact = torch.autograd.grad(loss(wanted), list(tensors(theirs).values()))
    for key, a, b in zip(t, grads, exact, strict=True):
        assert (a - on_pattern(t[key], b)).abs().max() < 10 * tolerance * (1 + b.abs().max()), key


# --- solutions and gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("which", ["QGA", "Q", "G", "A"])
def test_solutions_and_gradients_are_the_dense_ones(which: str, same: bool) -> None:
    for seed in range(3):
        dense = problem(seed, same=same)
        compare(sparsely(dense, which), dense)


@pytest.mark.parametrize("same", [True, False])
def test_vertices_that_no_curvature_holds_have_their_derivative(same: bool) -> None:
    """Linear programs with equalities, in which the pivots of an elimination without curvature are rounding."""
    rng, batch, n, m = np.random.default_rng(0), 4, 16, 6
    lead = () if same else (batch,)
    A, G = rng.standard_normal((*lead, m, n)), rng.standard_normal((*lead, n, n))
    z, nu, active = rng.standard_normal((batch, n)), rng.standard_normal((batch, m)), np.arange(n) < n - m
    y, s = (rng.uniform(0.1, 2, (batch, n)) * here for here in (active, ~active))
    force = np.einsum("...ij,...i->...j", G, y) + np.einsum("...ij,...i->...j", A, nu)
    data = {"Q": np.zeros((n, n)), "q": -force, "G": G, "h": (G @ z[..., None])[..., 0] + s}
    dense = {key: torch.tensor(x) for key, x in (data | {"A": A, "b": (A @ z[..., None])[..., 0]}).items()}
    compare(sparsely(dense, "GA") | {"Q": Diagonal(torch.zeros(n, dtype=torch.float64))}, dense)


@pytest.mark.parametrize("absent", ["G", "A", "GA", "lb", "lb ub"])
def test_parts_may_be_absent(absent: str) -> None:
    gone = {"G": ("G", "h"), "A": ("A", "b"), "GA": ("G", "h", "A", "b")}.get(absent, tuple(absent.split()))
    dense = {key: x for key, x in problem(1).items() if key not in gone}
    compare(sparsely(dense), dense)


def test_a_diagonal_and_a_dense_matrix_beside_a_sparse_one() -> None:
    dense = problem(2)
    dense["Q"] = torch.diag(dense["Q"].diagonal())
    t = sparsely(dense, "A") | {"Q": Diagonal(dense["Q"].diagonal())}
    mine, theirs = with_gradients(t), with_gradients(dense)
    found, wanted = solve(**mine), solve(**theirs, backend="reference")
    a = torch.autograd.grad(found.z.sum(), [mine["Q"].d, mine["G"], mine["A"].values])
    b = torch.autograd.grad(wanted.z.sum(), [theirs["Q"], theirs["G"], theirs["A"]])
    assert torch.allclose(a[0], b[0].diagonal(), atol=1e-8)
    assert torch.allclose(a[1], b[1], atol=1e-8)
    assert torch.allclose(a[2], on_pattern(t["A"], b[2]), atol=1e-8)


@pytest.mark.parametrize("same", [True, False])
def test_rows_with_two_sides(same: bool) -> None:
    dense = problem(14, same=same)
    dense["h_lower"] = dense["h"] - 1.2
    compare(sparsely(dense), dense)
    compare(sparsely(dense), dense, lambda s: s.z.square().sum() + s.lam.sum() + (s.lam_lower * s.lam_lower).sum())


def test_all_outputs_have_gradients() -> None:
    def loss(s: Any) -> Tensor:
        parts = (s.z, s.lam, s.nu, s.lam_lb, s.lam_ub, s.s)
        return sum((x * torch.linspace(1, 2, x.shape[-1], dtype=x.dtype)).sum() for x in parts)  # type: ignore[return-value]

    dense = problem(3, same=False)
    compare(sparsely(dense), dense, loss)


def test_one_triangle_of_q_stands_for_both() -> None:
    dense = problem(4)
    for mask in (torch.tril, torch.triu):
        t = with_gradients(sparsely(dense, "GA") | {"Q": Sparse.from_dense(mask(dense["Q"]))})
        both = with_gradients(sparsely(dense))
        a, b = (torch.autograd.grad(solve(**x).z.sum(), x["Q"].values)[0] for x in (t, both))
        half, whole = t["Q"].with_values(a).dense(), both["Q"].with_values(b).dense()
        assert torch.allclose(half, mask(whole + whole.mT - torch.diag(whole.diagonal())), atol=1e-9)


def test_no_batch_and_many_batch_dimensions() -> None:
    dense = problem(5, batch=6)
    t = sparsely(dense)
    whole = solve(**t).z
    one = solve(**{key: x[0] if key in ("q", "h", "b", "ub") else x for key, x in t.items()})
    assert torch.equal(one.z, whole[0])
    grid = {key: x.reshape(2, 3, -1) if key in ("q", "h", "b", "ub") else x for key, x in t.items()}
    assert torch.equal(solve(**grid).z, whole.reshape(2, 3, -1))


@pytest.mark.parametrize("layout", ["csr", "coo", "csc", "scipy"])
def test_layouts_of_others(layout: str) -> None:
    dense = problem(6)
    wanted = solve(**dense, backend="reference")
    change = {
        "csr": lambda M: M.to_sparse_csr(), "coo": lambda M: M.to_sparse_coo(), "csc": lambda M: M.to_sparse_csc(),
        "scipy": lambda M: sp.csc_matrix(M.numpy()),
    }[layout]  # fmt: skip
    given = {key: change(x) if len(key) == 1 and key in "QGA" else x for key, x in dense.items()}
    assert (solve(**given).z - wanted.z).abs().max() < 1e-8
    if layout in ("csr", "coo"):  # (torch knows no gradient of the others' values)
        A = given["A"].clone().requires_grad_()
        solve(**(given | {"A": A})).z.sum().backward()
        reference = dense["A"].clone().requires_grad_()
        solve(**(dense | {"A": reference}), backend="reference").z.sum().backward()
        assert A.grad is not None
        assert reference.grad is not None
        mask = dense["A"] != 0
        assert torch.allclose(A.grad.to_dense()[mask], reference.grad[mask], atol=1e-8)


@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("same", [True, False])
def test_float32_is_solved_and_differentiated_in_double(same: bool, batch: int) -> None:
    """Every gradient is that of float64, whose data the same numbers are."""
    single = {key: x.float() for key, x in problem(7, same=same, batch=batch).items()}
    results = []
    for dtype in (torch.float32, torch.float64):
        t = with_gradients(sparsely({key: x.to(dtype) for key, x in single.items()}))
        s = solve(**t)
        assert s.z.dtype is dtype
        weights = torch.randn(s.z.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        (s.z * weights).sum().backward()
        grads = {key: x.grad for key, x in tensors(t).items()}
        assert all(x is not None and x.dtype is dtype for x in grads.values())
        results.append({"z": s.z, **grads})
    for key, x in results[1].items():
        assert (results[0][key].double() - x).abs().max() < 1e-4 * (1 + x.abs().max()), key


def test_a_dense_row_and_an_epigraph() -> None:
    """A sum over all variables, and a variable that is in all rows: neither fills the factor."""
    n = 300
    ones = torch.ones(n + 1, dtype=torch.float64)
    G = torch.cat([torch.eye(n, dtype=torch.float64), -ones[:n, None]], 1)
    q = torch.randn(4, n + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = {
        "Q": Diagonal(ones), "q": q, "G": Sparse.from_dense(G), "h": 0 * ones[:n],
        "A": Sparse.from_dense(ones[None]), "b": ones[:1], "lb": -5 * ones,
    }  # fmt: skip
    structure = optlayer.problem.check(**t).structure
    core = optlayer.backends.cpu._core()
    assert backend.plan_of(core, structure).entries < 12 * n
    s = solve(**t)
    wanted = solve(**t, backend="reference")
    assert (s.z - wanted.z).abs().max() < 1e-8


def test_dependent_active_rows_have_the_nearest_multipliers() -> None:
    """Each equality twice: the multipliers are halves, and the gradient of q is that without the copy."""
    dense = problem(8, bounds=False)
    single = sparsely({key: x for key, x in dense.items() if key not in "Gh"})
    double = single | {"A": Sparse.from_dense(torch.cat([dense["A"]] * 2)), "b": torch.cat([dense["b"]] * 2, -1)}
    a, b = solve(**single), solve(**double)
    assert (a.z - b.z).abs().max() < 1e-9
    assert torch.allclose(b.nu[:, :4] + b.nu[:, 4:], a.nu, atol=1e-7)
    grads = []
    for t in (single, double):
        q = t["q"].clone().requires_grad_()
        solve(**(t | {"q": q})).z.square().sum().backward()
        grads.append(q.grad)
    assert torch.allclose(*grads, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_zero_but_for_rounding_is_zero(seed: int) -> None:
    """Inputs that cost nothing hold a system at rest: states and multipliers are zero, only rounding moves them."""
    r, steps, states, inputs = np.random.default_rng(seed), 10, 4, 6
    B, move = r.standard_normal((states, inputs)), np.eye(states) + 0.1 * r.standard_normal((states, states))
    A = np.hstack([np.kron(np.eye(steps, k=-1), move) - np.eye(steps * states), np.kron(np.eye(steps), B)])
    b = np.tile(B @ (5 + r.random(inputs)), steps)
    curvature = np.repeat([10.0, 0.0], [steps * states, steps * inputs])
    lower = np.where(curvature > 0, -np.inf, 0.0)
    q, A, b, curvature, lower = (torch.tensor(x) for x in (0 * curvature, A, b, curvature, lower))
    s = solve(Diagonal(curvature), q, A=Sparse.from_dense(A), b=b, lb=lower, ub=20.0)
    assert s.z[: steps * states].abs().max() < 1e-9


def legged(offset: float, batch: int, steps: int = 6, feet: int = 4, seed: int = 0) -> dict[str, Any]:
    """A body on feet: positions and velocities, forces in the cones of friction, which cost nothing; near to rest."""
    r, inertia, dt, mass = np.random.default_rng(seed), np.diag([30.0, 20.0, 15.0]), 0.02, 2.5
    move = np.eye(12) + dt * np.eye(12, k=6)
    push = np.zeros((12, 3 * feet))
    for foot, (x, y) in enumerate([(0.2, 0.15), (0.2, -0.15), (-0.2, 0.15), (-0.2, -0.15)]):
        x, y, z = x + 0.01 * r.standard_normal(), y, -0.3
        lever = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        push[6:, 3 * foot : 3 * foot + 3] = dt * np.vstack([np.eye(3) / mass, inertia @ lever])
    A = np.hstack([np.eye(12 * steps) - np.kron(np.eye(steps, k=-1), move), -np.kron(np.eye(steps), push)])
    b = np.tile(np.where(np.arange(12) == 8, -9.81 * dt, 0.0), (batch, steps))
    b[:, :12] += offset * r.standard_normal((batch, 12)) @ move.T
    cone = np.kron(np.eye(steps * feet), [[1, 0, -0.5], [-1, 0, -0.5], [0, 1, -0.5], [0, -1, -0.5]])
    G = np.hstack([np.zeros((len(cone), 12 * steps)), cone])
    weights = np.concatenate([np.tile([2, 2, 10, 0.25, 0.25, 10, *[0.2] * 6], steps), np.zeros(3 * feet * steps)])
    up = np.where(np.arange(len(weights)) % 3 == 2, 25.0, np.inf)
    up[: 12 * steps] = np.inf
    b, weights, up = (torch.tensor(x) for x in (b, weights, up))
    return {
        "Q": Diagonal(weights), "q": 0 * weights, "G": Sparse.from_dense(torch.tensor(G)), "h": 0.0,
        "A": Sparse.from_dense(torch.tensor(A)), "b": b, "lb": torch.where(up < 30, 0.0, -torch.inf).double(), "ub": up,
    }  # fmt: skip


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("offset", [0, 1e-14, 1e-8, 1e-2])
def test_a_body_that_stands(offset: float, batch: int) -> None:
    """No force of the objective is left at rest, so none can be the measure of rounding; near to rest hardly any."""
    s = solve(**legged(offset, batch))
    assert s.solved.all()
    assert s.dual_residual.max() < 1e-12
    assert s.primal_residual.max() < 1e-11


@pytest.mark.parametrize("seed", range(3))
def test_a_body_near_to_rest(seed: int) -> None:
    """At any distance: what rounding might do to states as large as the forces is no measure of what it did."""
    for distance in 10.0 ** np.arange(-14, -4, 0.5):
        data = legged(distance, 4, seed=seed)
        s = solve(**data)  # (raises if some member is not solved)
        assert torch.allclose(s.z[:, :6], data["b"][:, :6], rtol=1e-12, atol=0)  # no force moves the first positions
        assert s.dual_residual.max() < 1e-8 * distance


def shape_constrained(n: int, degree: int, batch: int) -> dict[str, Any]:
    """The nearest sequences whose differences of a degree never fall below zero (as LISWET of Maros and Mészáros)."""
    x, r = np.linspace(0, 1, n), np.random.default_rng(0)
    wave = 0.1 * np.sin(np.arange(n))
    y = [np.sqrt(x) + wave, 1 / (1 + x) + 0.1 * r.standard_normal(n), abs(x - 0.3) + wave]
    difference = np.poly1d([1.0, -1.0]) ** degree
    rows, entries = n - degree, torch.tensor(-difference.coeffs).repeat(n - degree)
    columns = (torch.arange(rows)[:, None] + torch.arange(degree + 1)).flatten()
    G = Sparse(torch.arange(0, rows * (degree + 1) + 1, degree + 1), columns, entries, (rows, n))
    q = -torch.tensor(np.stack(y[:batch]))
    return {"Q": Diagonal(torch.ones(n, dtype=torch.float64)), "q": q, "G": G, "h": 0.0}


@pytest.mark.parametrize(("n", "degree"), [(2000, 2), (10000, 2), (1000, 3)])
def test_rows_that_nearly_depend_on_each_other(n: int, degree: int) -> None:
    """A long run of active rows is as good as singular: what holds the factor must not hold the solution."""
    data = shape_constrained(n, degree, 3)
    s = solve(**data)
    assert s.primal_residual.max() < 1e-14  # of multipliers of 1e6, which make much of little
    assert s.dual_residual.max() < 1e-9
    assert s.gap.max() < 1e-8
    one = solve(**{**data, "q": data["q"][1:2]})
    assert torch.equal(one.z[0], s.z[1])
    assert torch.equal(one.lam[0], s.lam[1])


def test_long_runs_of_equal_values_are_their_mean() -> None:
    """Isotonic regression whose answer is a constant: small distances to ten thousand rows must not add up."""
    n = 10000
    data = shape_constrained(n, 1, 1)
    s = solve(**data)  # (of what rises, the nearest that falls)
    assert (s.z - s.z.mean()).abs().max() < 1e-13
    assert (s.z.mean() + data["q"].mean()).abs() < 1e-13


@pytest.mark.parametrize("units", [0.0, 2.0])
@pytest.mark.parametrize("curved", [0.0, 1.0])
def test_degenerate_problems_with_dependent_active_rows(curved: float, units: float) -> None:
    """Built from solutions: rows that are sums of others, bounds with slack and multiplier zero."""
    n, m, p, batch = 120, 50, 30, 4
    for seed in range(3):
        rng = np.random.default_rng(seed)
        A, G = (rng.standard_normal((k, n)) * (rng.random((k, n)) < 0.1) for k in (m, p))
        A[-10:], G[-10:] = A[:10] + A[10:20], G[:10] - A[:10]
        row, column = (10.0 ** rng.uniform(-units, units, k) for k in (m, n))
        A, G = row[:, None] * A / column, G / column
        z = np.where(rng.random((batch, n)) < 0.25, column * rng.random((batch, n)), 0)
        lam_lb = np.where((z == 0) & (rng.random((batch, n)) < 0.6), rng.random((batch, n)) / column, 0)
        slack = np.where(rng.random(p) < 0.5, 0, rng.random(p))
        lam = np.where((slack == 0) & (rng.random(p) < 0.7), rng.random(p), 0)
        d = curved * rng.random(n) / column**2
        q = -(d * z + lam @ G + (rng.standard_normal(m) / row) @ A - lam_lb)
        t = {key: torch.tensor(x) for key, x in {"q": q, "b": z @ A.T, "h": z @ G.T + slack, "lb": np.zeros(n)}.items()}
        A_, G_ = Sparse.from_dense(torch.tensor(A)), Sparse.from_dense(torch.tensor(G))
        s = solve(Diagonal(torch.tensor(d)), A=A_, G=G_, **t)
        forces = [torch.tensor(d) * s.z, t["q"], A_.times_t(s.nu), G_.times_t(s.lam), -s.lam_lb]
        sizes = torch.tensor(column) * sum(x.abs() for x in forces)
        assert (torch.tensor(column) * sum(forces)).abs().max() < 1e-8 * sizes.max()
        assert ((A_.times(s.z) - t["b"]) / torch.tensor(row)).abs().max() < 1e-8
        assert (G_.times(s.z) - t["h"]).max() < 1e-8
        assert min(s.z.min(), s.lam.min(), s.lam_lb.min()) >= 0
        assert max((s.z * s.lam_lb).abs().max(), ((t["h"] - G_.times(s.z)) * s.lam).abs().max()) < 1e-8


# --- statuses and other promises -------------------------------------------------------------------------------------


def test_statuses() -> None:
    eye = Sparse.from_dense(torch.eye(3, dtype=torch.float64))
    one = torch.ones(3, dtype=torch.float64)
    infeasible = solve(eye, one, eye, -one, eye, one, check=False)  # z ≤ −1, z = 1
    assert infeasible.status == Status.PRIMAL_INFEASIBLE
    assert infeasible.certificate_residual < 1e-8
    flat = Sparse.from_dense(torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)), torch.eye(3) > 0)
    unbounded = solve(flat, one, check=False)
    assert unbounded.status == Status.DUAL_INFEASIBLE
    assert unbounded.certificate_residual < 1e-8
    saddle = Sparse.from_dense(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
    assert solve(saddle, one[:2], lb=-one[:2], ub=one[:2], check=False).status == Status.NOT_CONVEX
    values = torch.tensor([1.0, torch.nan, 1.0], dtype=torch.float64)
    assert solve(eye.with_values(values), one, check=False).status == Status.INVALID_INPUT
    batch = solve(eye.with_values(torch.stack([values, one, -one])), one, check=False)
    assert batch.status.tolist() == [Status.INVALID_INPUT, Status.SOLVED, Status.NOT_CONVEX]
    assert torch.allclose(batch.z[1], -one)


def test_bits_depend_neither_on_batch_nor_place_nor_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for same, flat in ((True, False), (False, False), (True, True), (False, True)):
        dense = problem(9, n=40, p=30, m=9, batch=21, same=same)
        if flat:  # nearly a linear program: directions are refined, some members need more than others
            dense["Q"], dense["lb"] = dense["Q"] * 1e-4, dense["lb"].clamp(min=-10)
            dense["Q"][..., :20, :] = dense["Q"][..., :, :20] = 0
        t = sparsely(dense)
        per_member = ("q", "h", "b", "ub") if same else ("Q", "q", "G", "h", "A", "b", "ub")

        def pick(members: list[int], t: dict[str, Any] = t, which: tuple[str, ...] = per_member) -> dict[str, Any]:
            def take(x: Any) -> Any:
                return x.with_values(x.values[members]) if isinstance(x, Sparse) else x[members]

            return {key: take(x) if key in which else x for key, x in t.items()}

        def run(t: dict[str, Any], threads: int) -> tuple[Tensor, Tensor]:
            torch.set_num_threads(threads)
            try:
                q = t["q"].clone().requires_grad_()
                s = solve(**(t | {"q": q}))
                return s.z.detach(), torch.autograd.grad(s.z.sum(), q)[0]
            finally:
                torch.set_num_threads(1)

        whole = run(t, 1)
        for members, threads in (([3], 1), ([20, 4, 0], 2), (list(range(20, -1, -1)), 2), (list(range(9)), 1)):
            for mine, all_of_it in zip(run(pick(members), threads), whole, strict=True):
                assert torch.equal(mine, all_of_it[members])


def test_second_derivatives_forward_mode_and_vmap() -> None:
    t = sparsely(problem(10, n=6, m=2, p=4, batch=2))

    def z(q: Tensor, values: Tensor) -> Tensor:
        return solve(**(t | {"q": q, "A": t["A"].with_values(values)})).z

    q, values = t["q"].clone().requires_grad_(), t["A"].values.clone().requires_grad_()
    assert torch.autograd.gradcheck(z, (q, values), check_forward_ad=True, atol=1e-6)
    assert torch.autograd.gradgradcheck(z, (q, values), atol=1e-5)
    mapped = torch.vmap(lambda v: z(t["q"], v))(torch.stack([values.detach(), 1.01 * values.detach()]))
    assert torch.allclose(mapped[1], z(t["q"], 1.01 * values.detach()), atol=1e-9)


def test_smoothed_gradients() -> None:
    dense = problem(11)
    compare(sparsely(dense), dense, tolerance=1e-6, settings=Settings(gradient="smoothed", smoothing=1e-2))


@pytest.mark.slow
def test_compiled() -> None:
    t = sparsely(problem(12))

    @torch.compile(fullgraph=True)
    def z(values: Tensor) -> Tensor:
        return solve(**(t | {"A": t["A"].with_values(values)})).z

    values = t["A"].values.clone().requires_grad_()
    compiled = torch.autograd.grad(z(values).sum(), values)[0]
    eager = torch.autograd.grad(solve(**(t | {"A": t["A"].with_values(values)})).z.sum(), values)[0]
    assert torch.allclose(compiled, eager, atol=1e-9)


@pytest.mark.parametrize("same", [True, False])
def test_backend_of_another_solver(same: bool) -> None:
    pytest.importorskip("qpsolvers")
    dense = problem(13, same=same)
    compare(sparsely(dense), dense, backend="qpsolvers:piqp")
    assert (solve(**sparsely(dense), backend="reference").z - solve(**dense).z).abs().max() < 1e-9


def test_what_the_engine_leaves_is_done_by_the_dense_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    found = backend.found

    def without_some(*args: Any) -> Any:
        point = found(*args)
        point.status[::2] = int(Status.NUMERICAL_ERROR)
        point.z[::2] = torch.nan
        point.unsolved = len(point.status.nonzero())
        return point

    monkeypatch.setattr(backend, "found", without_some)
    dense = problem(15)
    compare(sparsely(dense), dense)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("keep", [True, False])
def test_what_is_no_number_from_above_reaches_its_member_as_nan(value: float, keep: bool) -> None:
    t = sparsely(problem(15))
    q = t["q"].requires_grad_()
    z = solve(**t, check=False).z
    ones = torch.ones_like(z)
    (clean,) = torch.autograd.grad(z, q, ones, retain_graph=True)
    upstream = ones.clone()
    upstream[1, 0] = value
    (found,) = torch.autograd.grad(z, q, upstream, create_graph=keep)
    assert found[1].isnan().all()
    rest = torch.arange(len(found)) != 1
    assert torch.equal(found[rest], clean[rest])


@pytest.mark.parametrize("same", [True, False])
def test_the_judge_says_the_same_of_a_sparse_problem(same: bool) -> None:
    """Of points that are no solutions too, and without ever making a matrix dense."""
    dense = problem(14, same=same)
    t, rng = sparsely(dense), torch.Generator().manual_seed(1)
    found = solve(**dense)
    given, full = solve(**t).problem, found.problem
    for size in (0.0, 1e-9, 1e-3, 1.0):
        point = [
            x + size * torch.randn(x.shape, generator=rng, dtype=x.dtype)
            for x in (found.z, found.lam, found.nu, found.lam_lb, found.lam_ub)
        ]
        for mine, theirs in zip(kkt.residuals(given, *point), kkt.residuals(full, *point), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-12)


# --- the type --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "columns", "size", "message"),
    [
        ([0, 1, 1], [0, 1], None, "number of entries"),
        ([0, 2], [1, 0], None, "ascend"),
        ([0, 2], [1, 1], None, "ascend"),
        ([0, 1], [3], (1, 3), "between 0 and 2"),
        ([0, 1], [0], (2, 2), "rows \\+ 1"),
        ([1, 1], [], None, "run from 0"),
    ],
)
def test_a_pattern_that_is_none(first: list[int], columns: list[int], size: Any, message: str) -> None:
    columns_ = torch.tensor(columns, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        Sparse(torch.tensor(first), columns_, torch.ones(len(columns)), size)


@pytest.mark.parametrize("slope", [1e-8, 1e-9, 1e-10])
def test_forces_without_curvature_go_to_their_bounds_whatever_they_cost(slope: float) -> None:
    """x = Σ a_i u_i, a curved cost of x, costs of u that are linear and tiny: u is at a vertex, found in few steps."""
    for seed in range(10):
        torch.manual_seed(seed)
        n = 6
        Q = torch.zeros(n + 1, n + 1, dtype=torch.float64)
        Q[0, 0] = 1
        A = torch.cat([torch.ones(1, dtype=torch.float64), -1 - 0.01 * torch.randn(n, dtype=torch.float64)])[None]
        q = torch.cat([-torch.ones(1, dtype=torch.float64), slope * (1 + torch.rand(n, dtype=torch.float64))])
        ub = 1 + torch.rand(n + 1, dtype=torch.float64)
        ub[0] = 100
        s = solve(Sparse.from_dense(Q), q, A=Sparse.from_dense(A), b=torch.zeros(1, dtype=torch.float64), lb=-ub, ub=ub)
        assert (s.z[1:].abs() == ub[1:]).sum() == n - 1
        assert abs(s.z[0] - 1) <= 10 * slope
        assert s.iterations <= 8


@pytest.mark.parametrize("seed", [2, 8])
def test_the_controllers_redundant_forces(seed: int) -> None:
    """A walking quadruped's: contact forces without a cost, models that differ between the members of a batch."""
    batch = sparse_workloads.make("controller", "values", 32, seed)
    s = solve(**measured.tensors(batch))
    assert measured.residual(batch, s) < 1e-9
    assert s.iterations.max() < 25


@pytest.mark.parametrize("seed", [12, 328])
def test_no_gradient_from_a_factor_that_growth_has_spoilt(seed: int) -> None:
    """Rank 6 of 22: steps that grow from round to round, with residuals that are small beside them."""
    torch.manual_seed(seed)
    n, p, m = 22, 11, 6
    M, G, A, z = (torch.randn(*size, dtype=torch.float64) for size in ((6, n), (p, n), (m, n), (n,)))
    Q, lam = M.mT @ M, torch.rand(p, dtype=torch.float64) * (torch.rand(p) < 0.3)
    slack, upstream = torch.rand(p, dtype=torch.float64) * (lam == 0), Q @ torch.randn(n, dtype=torch.float64)
    q = (-(Q @ z) - lam @ G - torch.randn(m, dtype=torch.float64) @ A).requires_grad_()
    Q_, G_, A_ = (Sparse.from_dense(x) for x in (Q, G, A))
    box = torch.full((n,), 1e4, dtype=torch.float64)
    s = solve(Q_, q, G_, G @ z + slack, A_, A @ z, lb=-box, ub=box)
    (grad,) = torch.autograd.grad(s.z, q, upstream)
    rows = torch.cat([A, G[s.lam > 0]])
    allowed = torch.linalg.svd(rows).Vh[len(rows) :]  # directions along which they do not change
    assert (allowed @ (Q @ grad + upstream)).abs().max() < 1e-8


def dynamics(rng: np.random.Generator, growth: float, steps: int, states: int, inputs: int) -> tuple[Any, Any]:
    """A and b of x[k+1] = M x[k] + B u[k], variables (u, x) step by step, from a small x[0]."""
    M = rng.standard_normal((states, states))
    M *= growth / np.abs(np.linalg.eigvals(M)).max()
    B = rng.standard_normal((states, inputs))
    stay = sp.kron(sp.eye(steps), np.hstack([-B, np.eye(states)]))
    move = sp.kron(sp.eye(steps, k=-1), np.hstack([np.zeros((states, inputs)), -M]))
    b = np.zeros(steps * states)
    b[:states] = M @ (1e-2 * rng.standard_normal(states))
    return sp.csr_matrix(stay + move), b


@pytest.mark.parametrize("seed", [0, 4, 8])
@pytest.mark.parametrize(("growth", "steps"), [(1.0, 90), (1.3, 375)])
def test_linear_programs_over_long_dynamics(growth: float, steps: int, seed: int) -> None:
    """Costs of inputs and states alone, which are bounded, and dynamics that grow: a vertex, where an LDLᵀ in a static
    order loses all its digits unless R is larger, and where R may then hide what holds the last variables."""
    rng = np.random.default_rng(seed)
    states, inputs = 6, 2
    n = steps * (states + inputs)
    A, b = dynamics(rng, growth, steps, states, inputs)
    q = rng.standard_normal((2, n))
    leaves = {"q": torch.tensor(q, requires_grad=True), "b": torch.tensor(b).repeat(2, 1).requires_grad_()}
    one = torch.ones(n, dtype=torch.float64)
    solution = solve(Diagonal(0 * one), A=A, lb=-one, ub=one, **leaves)
    assert (solution.status == Status.SOLVED).all()
    for k in range(2):
        alone = solve(Diagonal(0 * one), torch.tensor(q[k]), A=A, b=torch.tensor(b), lb=-one, ub=one)
        assert torch.equal(alone.z, solution.z[k])
    r = rng.standard_normal((2, n))
    (solution.z * torch.tensor(r)).sum().backward()
    for k in range(2):
        z, nu = (x[k].detach().numpy() for x in (solution.z, solution.nu))
        held = (solution.lam_lb + solution.lam_ub)[k].detach().numpy() > 0
        force = q[k] + A.T @ nu
        assert np.abs(A @ z - b).max() <= 1e-12
        assert np.abs(z).max() <= 1
        assert np.abs(z[held]).min() == 1
        assert np.abs(force[~held]).max() <= 1e-9
        assert (force * z)[held].max() <= 0
        assert (~held).sum() == len(b)  # not degenerate: A of the free variables is square, dz/db its inverse
        basis = sp.csc_matrix(A[:, ~held])
        v = sp.linalg.splu(sp.csc_matrix(basis.T)).solve(r[k][~held])
        assert np.abs(leaves["b"].grad[k].numpy() - v).max() <= 1e-6 * (1 + np.abs(v).max())
        assert np.abs(leaves["q"].grad[k].numpy()).max() <= 1e-9 * (1 + np.abs(v).max())


@pytest.mark.parametrize("seed", range(6))
def test_states_that_decay_over_many_decades(seed: int) -> None:
    """The sum of |x| as the cost of states that decay to nothing at a kink: beside its own terms hardly any row there
    can be right, beside the largest all are."""
    rng = np.random.default_rng(seed)
    steps, states, inputs = 70, 8, 2
    n, k = steps * (states + inputs), steps * states
    A, b = dynamics(rng, 0.9, steps, states, inputs)
    X = sp.kron(sp.eye(steps), np.hstack([np.zeros((states, inputs)), np.eye(states)]))
    G = sp.csr_matrix(sp.bmat([[X, -sp.eye(k)], [-X, -sp.eye(k)]]))  # |x| ≤ t
    A = sp.csr_matrix(sp.hstack([A, sp.csr_matrix((k, k))]))
    q = np.r_[0.1 * rng.standard_normal(n) * np.tile(np.r_[np.ones(inputs), np.zeros(states)], steps), np.ones(k)]
    lb = np.r_[np.tile(np.r_[-np.ones(inputs), np.full(states, -np.inf)], steps), np.zeros(k)]
    ub = np.r_[-lb[:n], np.full(k, np.inf)]
    Q = Diagonal(torch.zeros(n + k, dtype=torch.float64))
    h = torch.zeros(2 * k, dtype=torch.float64)

    def at(b: Any) -> Any:
        return solve(Q, torch.tensor(q), G, h, A, b, lb=torch.tensor(lb), ub=torch.tensor(ub))

    leaf = torch.tensor(b).repeat(3, 1).requires_grad_()
    found = at(leaf)
    exact = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    truth = linprog(q, A_ub=G, b_ub=h.numpy(), A_eq=A, b_eq=b, bounds=np.c_[lb, ub], method="highs-ds", options=exact)
    assert torch.equal(found.z[0], at(torch.tensor(b)).z)  # alone and in a batch
    assert abs(q @ found.z[0].detach().numpy() - truth.fun) <= 2e-8 * (abs(q) @ abs(truth.x))  # (HiGHS' own digits)
    r = torch.tensor(rng.standard_normal(n + k))
    along = torch.tensor(np.where(b, rng.standard_normal(k), 0) * np.abs(b).max())
    (found.z[0] @ r).backward()
    step = 1e-6
    wanted = (at(torch.tensor(b) + step * along).z - at(torch.tensor(b) - step * along).z) @ r / (2 * step)
    assert leaf.grad is not None
    assert abs(leaf.grad[0] @ along - wanted) <= 1e-5 * (1 + abs(wanted))


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_a_point_at_zero_is_found_in_few_steps(copies: int) -> None:
    """Nothing but sides holds z, at zero; each may be there more than once. Refinement makes z smaller for ever."""
    for seed in range(20):
        torch.manual_seed(seed)
        n = 5
        y = -torch.rand(n, dtype=torch.float64) * 10.0 ** torch.randint(-3, 4, (n,))
        eye = torch.eye(n, dtype=torch.float64)
        zero = torch.zeros(copies * n, dtype=torch.float64)
        G = torch.cat([-eye.repeat(copies, 1), zero[:, None].repeat(1, n)], 1)
        A = torch.cat([eye, -eye], 1)  # r = z - y
        Q = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat_interleave(n)
        s = solve(Diagonal(Q), 0 * Q, Sparse.from_dense(G), zero, Sparse.from_dense(A), y)
        assert s.z[:n].abs().max() <= 1e-15 * y.abs().max()
        assert torch.allclose(s.z[n:], -y, rtol=1e-14)
        assert s.iterations <= 9


def test_errors_name_what_is_wrong() -> None:
    eye, q = Sparse.from_dense(torch.eye(3, dtype=torch.float64)), torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="one for each entry"):
        Sparse(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(2))
    with pytest.raises(ValueError, match="sparse, 2 entries"):
        solve(eye, q, A=Sparse.from_dense(torch.eye(2, dtype=torch.float64)), b=torch.ones(2, dtype=torch.float64))
    half = Sparse.from_dense(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\(0, 1\) but not \(1, 0\)"):
        solve(half, q)
    with pytest.raises(TypeError, match="int32 or int64"):
        Sparse(torch.tensor([0.0, 1.0]), torch.tensor([0]), torch.ones(1))


def test_products_and_shapes() -> None:
    M = torch.randn(4, 3, 5, dtype=torch.float64) * (torch.rand(3, 5) < 0.5)
    S = Sparse.from_dense(M)
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert S.shape == (4, 3, 5)
    assert torch.equal(S.dense(), M)
    assert torch.allclose(S.times(x), (M @ x[..., None])[..., 0])
    assert torch.allclose(S.times_t(y), (M.mT @ y[..., None])[..., 0])
    assert torch.equal(S.row_sizes(), M.abs().amax(-1))
