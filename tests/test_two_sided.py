"""Rows with two sides, h_lower ≤ G z ≤ h: the same as the rows twice, everywhere, and the limits of either side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jvp, vmap

from optlayer import Diagonal, Settings, SolveError, solve

F64 = torch.float64


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "cuda":
        pytest.skip("tensors of the CPU")


def draw(batch: int = 5, n: int = 4, p: int = 3, seed: int = 0, dtype: torch.dtype = F64) -> dict[str, Tensor]:
    """Rows of which some are active above, some below, some not; bounds and an equality."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    L, G, A, z = normal(n, n), normal(p, n), normal(1, n), 0.3 * normal(n)
    middle = G @ z
    data = {
        "Q": L @ L.mT + torch.eye(n, dtype=F64), "q": 4 * normal(batch, n), "G": G, "h": middle + 0.3, "A": A,
        "b": A @ z, "lb": z - 2, "ub": z + 2, "h_lower": (middle - 0.2).expand(batch, p) - 0.1 * normal(batch, p).abs(),
    }
    return {name: x.to(dtype) for name, x in data.items()}


def twice(data: dict[str, Any]) -> dict[str, Any]:
    """The same problem with the rows twice."""
    given = dict(data)
    below = given.pop("h_lower")
    h, below = torch.broadcast_tensors(given["h"], below)
    return given | {"G": torch.cat([given["G"], -given["G"]], -2), "h": torch.cat([h, -below], -1)}


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["f64", "f32"])
def test_is_the_problem_with_the_rows_twice(backend: str, dtype: torch.dtype) -> None:
    data = draw(dtype=dtype)
    sol, expected = solve(**data, backend=backend), solve(**twice(data), backend="reference")
    close = {"atol": 1e-9 if dtype == F64 else 1e-4, "rtol": 1e-9 if dtype == F64 else 1e-4}
    torch.testing.assert_close(sol.z, expected.z, **close)
    torch.testing.assert_close(torch.cat([sol.lam, sol.lam_lower], -1), expected.lam, **close)
    torch.testing.assert_close(sol.s, expected.s[:, :3], **close)
    for name in ("nu", "lam_lb", "lam_ub"):
        torch.testing.assert_close(getattr(sol, name), getattr(expected, name), **close)
    assert (sol.lam_lower > 0).any()
    assert (sol.lam > 0).any()
    assert ((sol.lam == 0) | (sol.lam_lower == 0)).all()
    assert sol.lam_lower.shape == (5, 3)


def test_gradients_are_those_of_the_rows_twice(backend: str) -> None:
    found = []
    for run in (lambda **x: solve(**x, backend=backend), lambda **x: solve(**twice(x), backend="reference")):
        leaves = {name: x.clone().requires_grad_() for name, x in draw().items()}
        sol = run(**leaves)
        rows = torch.cat([sol.lam, sol.lam_lower], -1)
        weights = torch.arange(1.0, 5.0, dtype=F64)
        value = (sol.z * weights).sum() + (rows**2).sum() + (sol.s[:, :3] * weights[:3]).sum() + sol.lam_ub.sum()
        found.append(torch.autograd.grad(value, list(leaves.values())))
        leaves = {name: x.clone().requires_grad_() for name, x in draw().items()}
        found[-1] += torch.autograd.grad((run(**leaves).z * weights).sum(), list(leaves.values()))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=1e-8)


def test_first_and_second_derivatives_against_differences(backend: str) -> None:
    data = draw(2, n=3, p=2, seed=3)
    names, leaves = list(data), [x.clone().requires_grad_() for x in data.values()]

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        sol = solve(**dict(zip(names, tensors, strict=True)), backend=backend)
        return sol.z, sol.s, sol.lam, sol.lam_lower, sol.nu

    sol = solve(**data, backend=backend)
    assert (sol.lam_lower > 0).any()
    assert torch.autograd.gradcheck(outputs, leaves, atol=1e-6, rtol=1e-5, check_forward_ad=backend == "cpu")
    if backend == "cpu":  # of the formulas, which all backends share; each asks some hundred times
        assert torch.autograd.gradgradcheck(outputs, leaves, atol=1e-5, rtol=1e-4)


def test_smoothed_gradient_is_that_of_the_rows_twice() -> None:
    settings = Settings(gradient="smoothed", smoothing=1e-2)
    found = []
    for run in (lambda **x: solve(**x, settings=settings), lambda **x: solve(**twice(x), settings=settings)):
        leaves = {name: x.clone().requires_grad_() for name, x in draw().items()}
        grads = torch.autograd.grad(run(**leaves).z.pow(2).sum(), list(leaves.values()), create_graph=True)
        found.append((*grads, *torch.autograd.grad(sum(g.pow(2).sum() for g in grads), list(leaves.values()))))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_infinite_sides_mean_no_constraint(backend: str) -> None:
    data = draw()
    inf = torch.full_like(data["h"], torch.inf)
    one = {name: x for name, x in data.items() if name != "h_lower"}
    torch.testing.assert_close(solve(**(data | {"h_lower": -inf}), backend=backend).z, solve(**one).z)
    above = solve(**{name: x for name, x in data.items() if name != "h"}, backend=backend)
    expected = solve(**(one | {"G": -data["G"], "h": -data["h_lower"]}))
    torch.testing.assert_close(above.z, expected.z)
    torch.testing.assert_close(above.lam_lower, expected.lam)
    assert not above.lam.any()
    assert above.s.isposinf().all()
    free = solve(**(data | {"h": inf, "h_lower": -inf}), backend=backend)
    torch.testing.assert_close(free.z, solve(**{k: x for k, x in one.items() if k not in ("G", "h")}).z)


def test_equal_sides_are_an_equality(backend: str) -> None:
    data = draw()
    del data["A"], data["b"]
    side = (data["h"] - 0.1).requires_grad_()
    rows = data | {"h": side, "h_lower": side}
    sol = solve(**rows, backend=backend)
    without = {k: x for k, x in data.items() if k not in ("G", "h", "h_lower")}
    expected = solve(**without, A=data["G"], b=side)
    torch.testing.assert_close(sol.z, expected.z, atol=1e-8, rtol=0)
    torch.testing.assert_close(sol.lam - sol.lam_lower, expected.nu, atol=1e-7, rtol=0)
    grads = [torch.autograd.grad(x.z.pow(2).sum(), side)[0] for x in (sol, expected)]
    torch.testing.assert_close(*grads, atol=1e-7, rtol=0)


def test_diagonal_without_batch_and_numbers() -> None:
    d, y = torch.ones(3, dtype=F64), torch.tensor([2.0, -0.5, -3.0], dtype=F64)
    eye = torch.eye(3, dtype=F64)
    sol = solve(Diagonal(d), -y, eye, h_lower=-1.0, h=1)
    assert torch.equal(sol.z, y.clamp(-1, 1))
    torch.testing.assert_close(sol.lam, (y - 1).clamp(min=0))
    torch.testing.assert_close(sol.lam_lower, (-1 - y).clamp(min=0))
    grid = solve(Diagonal(d), -y.expand(2, 1, 3), eye, h_lower=-torch.rand(4, 1, dtype=F64).expand(4, 3))
    assert grid.lam_lower.shape == (2, 4, 3)


def test_under_transforms() -> None:
    data = draw()
    expected = solve(**data).z
    q, below = data.pop("q"), data.pop("h_lower")

    def z(q: Tensor, below: Tensor) -> Tensor:
        return solve(q=q, h_lower=below, **data).z

    torch.testing.assert_close(vmap(z)(q, below), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(z, backend="aot_eager", fullgraph=True)(q, below), expected)
    direction = torch.ones_like(below)
    step = 1e-6
    change = (z(q, below + step * direction) - z(q, below - step * direction)) / (2 * step)
    torch.testing.assert_close(jvp(lambda x: z(q, x), (below,), (direction,))[1], change, atol=1e-7, rtol=0)
    torch.testing.assert_close(torch.jit.trace(z, (q, below))(q, below), expected)


def test_contradictions_name_the_side(backend: str) -> None:
    G, Q = torch.eye(2, dtype=F64)[:1], torch.eye(2, dtype=F64)
    sol = solve(Q, torch.zeros(2, dtype=F64), G, h_lower=1.0, h=9.0, ub=0.0, check=False, backend=backend)
    text = sol.explain()
    assert sol.status_names() == "PRIMAL_INFEASIBLE"
    assert "row 0 of h_lower <= G z" in text
    assert "upper bound of z[0]" in text
    assert "row 0 of G z <= h" not in text
    assert sol.certificate_residual < 1e-9
    crossed = solve(Q, torch.zeros(2, dtype=F64), G, h_lower=1.0, h=0.5, check=False, backend=backend)
    assert crossed.status_names() == "PRIMAL_INFEASIBLE"
    assert "row 0 of h_lower <= G z, " in crossed.explain() or ", row 0 of h_lower <= G z" in crossed.explain()
    nan = solve(Q, torch.zeros(2, dtype=F64), G, h_lower=torch.full((1,), torch.nan, dtype=F64), check=False)
    assert "h_lower[0] = nan" in nan.explain()
    with pytest.raises(SolveError, match="h_lower <= G z"):
        solve(Q, torch.zeros(2, dtype=F64), G, h_lower=1.0, ub=0.0, backend=backend)


def test_errors_at_the_door() -> None:
    G, Q, q = torch.ones(2, 3), torch.eye(3), torch.ones(3)
    with pytest.raises(ValueError, match="G and h must be given together"):
        solve(Q, q, h_lower=0.0)
    with pytest.raises(ValueError, match=r"h_lower has shape \(3,\): p = 3, but another argument has p = 2"):
        solve(Q, q, G, h_lower=torch.ones(3))
    with pytest.raises(TypeError, match=r"h_lower has dtype torch\.float64"):
        solve(Q, q, G, 1.0, h_lower=torch.ones(2).double())


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("n", [3, 30])
def test_sides_without_room_are_equalities_whether_they_press_or_not(
    backend: str, n: int, dtype: torch.dtype, sparse: bool
) -> None:
    """Where the objective is least on the row by itself, both multipliers are 0; z can leave it no more than else."""
    if sparse and backend != "cpu":
        pytest.skip("a way of the CPU")
    g = torch.Generator().manual_seed(n)
    row, z = torch.randint(1, 4, (1, n), generator=g).double(), torch.randint(-8, 9, (n,), generator=g).double() / 8
    pull = torch.tensor([0.0, 1, 0, -2, 0, 0, 0, 1, 0, 0, 0], dtype=F64)  # multipliers of the members' equality
    Q: Any = torch.eye(n, dtype=dtype) * 2
    above = torch.randn(len(pull), n, generator=g).to(dtype)

    def gradients(**equality: Any) -> list[Tensor]:
        fixed = equality.get("lb")
        rows = row if fixed is None else torch.eye(n).double()[:1]
        q = (-2 * z - pull[:, None] * rows).to(dtype).requires_grad_()
        value = equality.pop("value").clone().requires_grad_()
        given = {name: value if x is None else x for name, x in equality.items() if name != "lb"}
        if fixed is not None:
            others = torch.full((n - 1,), 9.0)
            given |= {"lb": torch.cat([value, -others]), "ub": torch.cat([value, others])}
        sol = solve(Q.to_sparse_csr() if sparse else Q, q, **given, backend=backend)
        assert sol.status.max() == 0
        return list(torch.autograd.grad(sol.z, [q, value], above))

    A, first, value, start = row.to(dtype), torch.eye(n, dtype=dtype)[:1], (row @ z).to(dtype), z[:1].to(dtype)
    close = {"atol": 1e-9 if dtype == F64 else 1e-4, "rtol": 1e-9 if dtype == F64 else 1e-4}
    if backend != "daqp":  # (which gets the rows twice)
        made, right = gradients(G=A, h=None, h_lower=None, value=value), gradients(A=A, b=None, value=value)
        torch.testing.assert_close(made, right, **close)
    made, right = gradients(lb=True, value=start), gradients(A=first, b=None, value=start)
    torch.testing.assert_close(made, right, **close)
