"""Models of CVXPY's, through cvxpylayers, on this solver: closed forms, finite differences, and diffcp's answers."""

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer import Settings, SolveError

F64 = torch.float64


def test_without_cvxpylayers_the_import_says_what_is_missing() -> None:
    code = "import sys; sys.modules['cvxpylayers'] = None; import optlayer.compat.cvxpylayers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError: optlayer.compat.cvxpylayers needs cvxpylayers 1.2 or later" in done.stderr


pytest.importorskip("cvxpylayers")
cp = pytest.importorskip("cvxpy")
CvxpyLayer = importlib.import_module("cvxpylayers.torch").CvxpyLayer
Solver = importlib.import_module("optlayer.compat.cvxpylayers").Solver


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def projection() -> tuple[Any, list[Any], list[Any]]:
    """The nearest point to c where F x ≤ g, Σx = 1, x ≥ 0, with the duals of all three."""
    x, F, g, c = cp.Variable(5), cp.Parameter((3, 5)), cp.Parameter(3), cp.Parameter(5)
    rows = [F @ x <= g, cp.sum(x) == 1, x >= 0]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), rows)
    return problem, [F, g, c], [x, *(row.dual_variables[0] for row in rows)]


def values(batch: int = 4) -> list[Tensor]:
    return [x.requires_grad_() for x in (normal(batch, 3, 5), torch.rand(batch, 3, dtype=F64) + 0.1, normal(batch, 5))]


def test_agrees_with_diffcp_in_points_duals_and_gradients() -> None:
    given, found = values(), []
    for solver, arguments in ((Solver(), {}), (None, {"eps": 1e-11})):
        outputs = CvxpyLayer(*projection(), solver=solver)(*given, solver_args=arguments)
        weights = [torch.linspace(-1, 2, x.numel(), dtype=F64).reshape(x.shape) for x in outputs]
        total = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
        found.append([*outputs, *torch.autograd.grad(total, given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_against_finite_differences() -> None:
    layer = CvxpyLayer(*projection(), solver=Solver())
    assert torch.autograd.gradcheck(lambda *given: layer(*given), values(3))


def test_a_parametrised_quadratic_form() -> None:
    x, P, c = cp.Variable(4), cp.Parameter((4, 4), PSD=True), cp.Parameter(4)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.quad_form(x, P) + c @ x), [x <= 50]), [P, c], [x], solver=Solver())

    def solve(L: Tensor, c: Tensor) -> Tensor:
        return layer(L @ L.mT + torch.eye(4, dtype=F64), c)[0]

    given = normal(3, 4, 4).requires_grad_(), normal(3, 4).requires_grad_()
    P_values = given[0] @ given[0].mT + torch.eye(4, dtype=F64)
    torch.testing.assert_close(solve(*given), torch.linalg.solve(-2 * P_values, given[1]))
    assert torch.autograd.gradcheck(solve, given)


def test_one_member_mixed_batches_and_only_equations() -> None:
    x, a, c = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), [a @ x == 0])
    layer = CvxpyLayer(problem, [a, c], [x], solver=Solver())
    ones, c_values = torch.ones(3, dtype=F64), normal(6, 3)
    expected = c_values - c_values.mean(-1, keepdim=True)
    torch.testing.assert_close(layer(ones, c_values)[0], expected)
    torch.testing.assert_close(layer(ones, c_values[2])[0], expected[2])


def test_a_linear_program_with_positive_variables() -> None:
    x, c = cp.Variable(4), cp.Parameter(4)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(c @ x), [x >= 0, cp.sum(x) == 1]), [c], [x], solver=Solver())
    costs = normal(5, 4)
    (found,) = layer(costs)
    torch.testing.assert_close(found, torch.nn.functional.one_hot(costs.argmin(-1), 4).to(F64))


def test_sparse_and_dense_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("optlayer.compat.cvxpylayers")
    n, handed = 60, []
    x, c, step = cp.Variable(n), cp.Parameter(n), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) - 2 * c @ x), [cp.diff(x) <= step, x >= 0])
    solve = module.solve
    monkeypatch.setattr(module, "solve", lambda Q, *rest, **options: (handed.append(Q), solve(Q, *rest, **options))[1])
    given = normal(3, n).requires_grad_(), torch.rand(3, dtype=F64).requires_grad_()
    found = []
    for share in (0.4, 0.0):
        monkeypatch.setattr(module, "DENSE_SHARE", share)
        (z,) = CvxpyLayer(problem, [c, step], [x], solver=Solver())(*given)
        found.append([z, *torch.autograd.grad(z.square().sum(), given)])
    assert isinstance(handed[0], optlayer.Sparse)
    assert not isinstance(handed[1], optlayer.Sparse)
    for sparse, dense in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, atol=1e-7, rtol=1e-7)


def test_one_solver_serves_several_layers() -> None:
    solver = Solver()
    layers = []
    for n in (2, 5):
        x, c = cp.Variable(n), cp.Parameter(n)
        layers.append(CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]), [c], [x], solver=solver))
    for n, layer in zip((2, 5), layers, strict=True):
        c_values = normal(3, n)
        torch.testing.assert_close(layer(c_values)[0], c_values.clamp(min=0))


@pytest.mark.parametrize("kind", ["second-order", "semidefinite", "exponential", "power"])
def test_other_cones_are_refused_when_the_layer_is_made(kind: str) -> None:
    x, c = cp.Variable(3), cp.Parameter(3)
    row = {
        "second-order": lambda: cp.norm2(x) <= 1,
        "semidefinite": lambda: cp.diag(x) << 1,
        "exponential": lambda: cp.ExpCone(x[0], x[1], x[2]),
        "power": lambda: cp.PowCone3D(x[0], x[1], x[2], 0.5),
    }[kind]()
    with pytest.raises(ValueError, match=f"this model has {kind} cones"):
        CvxpyLayer(cp.Problem(cp.Minimize(c @ x), [row]), [c], [x], solver=Solver())


def test_infeasible_members_and_options() -> None:
    x, c = cp.Variable(2), cp.Parameter(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= c, x <= 1]), [c], [x], solver=Solver())
    limits = torch.tensor([[0.5, 0.5], [2.0, 0.0]], dtype=F64, requires_grad=True)
    with pytest.raises(SolveError):
        layer(limits)
    (z,) = layer(limits, solver_args={"check": False, "settings": Settings()})
    z.sum().backward()
    torch.testing.assert_close(z[0], limits[0])
    torch.testing.assert_close(limits.grad, torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=F64))
    with pytest.raises(TypeError, match="unexpected keyword 'eps'"):
        layer(limits, solver_args={"eps": 1e-3})
    with pytest.raises(TypeError, match="settings"):
        Solver(settings={"tolerance": 1e-3})
