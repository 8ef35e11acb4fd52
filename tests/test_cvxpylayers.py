"""Models of CVXPY's, through cvxpylayers, on this solver: closed forms, finite differences, and diffcp's answers."""

import importlib
import subprocess
import sys
from functools import partial
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
Theirs = importlib.import_module("cvxpylayers.torch").CvxpyLayer
compat = importlib.import_module("optlayer.compat.cvxpylayers")
Solver, CvxpyLayer = compat.Solver, compat.CvxpyLayer


def on_solver(problem: Any, parameters: list[Any], variables: list[Any], **options: Any) -> Any:
    """The layer of cvxpylayers, on our solver."""
    return Theirs(problem, parameters, variables, solver=Solver(**options))


BOTH = pytest.mark.parametrize("Layer", [CvxpyLayer, on_solver], ids=["layer", "solver"])


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


@BOTH
def test_agrees_with_diffcp_in_points_duals_and_gradients(Layer: Any) -> None:
    given, found = values(), []
    for layer in (Layer, partial(Theirs, solver_args={"eps": 1e-11})):
        outputs = layer(*projection())(*given)
        weights = [torch.linspace(-1, 2, x.numel(), dtype=F64).reshape(x.shape) for x in outputs]
        total = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
        found.append([*outputs, *torch.autograd.grad(total, given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@BOTH
def test_gradients_against_finite_differences(Layer: Any) -> None:
    layer = Layer(*projection())
    assert torch.autograd.gradcheck(lambda *given: layer(*given), values(3))


@BOTH
@pytest.mark.parametrize("limit", [50, None], ids=["limited", "unconstrained"])
def test_a_parametrised_quadratic_form(Layer: Any, limit: float | None) -> None:
    x, P, c = cp.Variable(4), cp.Parameter((4, 4), PSD=True), cp.Parameter(4)
    rows = [] if limit is None else [x <= limit]
    layer = Layer(cp.Problem(cp.Minimize(cp.quad_form(x, P) + c @ x), rows), [P, c], [x])

    def solve(L: Tensor, c: Tensor) -> Tensor:
        return layer(L @ L.mT + torch.eye(4, dtype=F64), c)[0]

    given = normal(3, 4, 4).requires_grad_(), normal(3, 4).requires_grad_()
    P_values = given[0] @ given[0].mT + torch.eye(4, dtype=F64)
    torch.testing.assert_close(solve(*given), torch.linalg.solve(-2 * P_values, given[1]))
    assert torch.autograd.gradcheck(solve, given)


@BOTH
def test_one_member_mixed_batches_and_only_equations(Layer: Any) -> None:
    x, a, c = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), [a @ x == 0])
    layer = Layer(problem, [a, c], [x])
    ones, c_values = torch.ones(3, dtype=F64), normal(6, 3)
    expected = c_values - c_values.mean(-1, keepdim=True)
    torch.testing.assert_close(layer(ones, c_values)[0], expected)
    torch.testing.assert_close(layer(ones, c_values[2])[0], expected[2])


@BOTH
def test_a_linear_program_with_positive_variables(Layer: Any) -> None:
    x, c = cp.Variable(4), cp.Parameter(4)
    layer = Layer(cp.Problem(cp.Minimize(c @ x), [x >= 0, cp.sum(x) == 1]), [c], [x])
    costs = normal(5, 4)
    (found,) = layer(costs)
    torch.testing.assert_close(found, torch.nn.functional.one_hot(costs.argmin(-1), 4).to(F64))


@BOTH
def test_sparse_and_dense_agree(Layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n, handed = 60, []
    x, c, step = cp.Variable(n), cp.Parameter(n), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) - 2 * c @ x), [cp.diff(x) <= step, x >= 0])
    solve = compat.solve
    monkeypatch.setattr(compat, "solve", lambda Q, *rest, **options: (handed.append(Q), solve(Q, *rest, **options))[1])
    given = normal(3, n).requires_grad_(), torch.rand(3, dtype=F64).requires_grad_()
    found = []
    for share in (0.4, 0.0):
        monkeypatch.setattr(compat, "DENSE_SHARE", share)
        (z,) = Layer(problem, [c, step], [x])(*given)
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
        layers.append(Theirs(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]), [c], [x], solver=solver))
    for n, layer in zip((2, 5), layers, strict=True):
        c_values = normal(3, n)
        torch.testing.assert_close(layer(c_values)[0], c_values.clamp(min=0))


@pytest.mark.parametrize("kind", ["second-order", "semidefinite", "exponential", "power"])
@BOTH
def test_other_cones_are_refused_when_the_layer_is_made(Layer: Any, kind: str) -> None:
    x, c = cp.Variable(3), cp.Parameter(3)
    row = {
        "second-order": lambda: cp.norm2(x) <= 1,
        "semidefinite": lambda: cp.diag(x) << 1,
        "exponential": lambda: cp.ExpCone(x[0], x[1], x[2]),
        "power": lambda: cp.PowCone3D(x[0], x[1], x[2], 0.5),
    }[kind]()
    with pytest.raises(ValueError, match=f"this model has {kind} cones"):
        Layer(cp.Problem(cp.Minimize(c @ x), [row]), [c], [x])


def limited() -> tuple[Any, list[Any], list[Any]]:
    """The smallest x between c and 1."""
    x, c = cp.Variable(2), cp.Parameter(2)
    return cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= c, x <= 1]), [c], [x]


def test_infeasible_members_and_options() -> None:
    layer = on_solver(*limited())
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


# --- what cvxpylayers' own layer cannot do ---------------------------------------------------------------------------


def test_every_member_has_a_status() -> None:
    layer = CvxpyLayer(*limited(), check=False)
    limits = torch.tensor([[0.5, 0.5], [2.0, 0.0]], dtype=F64, requires_grad=True)
    solution = layer.solve(limits)
    assert solution.status_names() == ["SOLVED", "PRIMAL_INFEASIBLE"]
    (z,) = layer.values(solution)
    z.sum().backward()
    torch.testing.assert_close(limits.grad, torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=F64))
    with pytest.raises(SolveError):
        layer(limits, check=True)
    with pytest.raises(TypeError, match="unexpected keyword 'eps'"):
        CvxpyLayer(*limited(), eps=1e-3)


def test_second_derivatives_forward_mode_and_vmap() -> None:
    problem, parameters, variables = projection()
    layer = CvxpyLayer(problem, parameters, variables)
    given = tuple(values(3))
    assert torch.autograd.gradgradcheck(lambda *x: layer(*x)[0], given)
    one = [x[0].detach() for x in given]
    forward, reverse = (jac(lambda c: layer(*one[:2], c)[0])(one[2]) for jac in (torch.func.jacfwd, torch.func.jacrev))
    torch.testing.assert_close(forward, reverse)
    found = torch.vmap(layer)(*(x.detach() for x in given))
    for mine, theirs in zip(found, layer(*given), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_depends_on_one_member_only_is_shared() -> None:
    layer = CvxpyLayer(*projection())
    F, g, c = (x.detach() for x in values(6))
    mixed = layer.solve(F[0], g[0], c.reshape(2, 3, 5))
    assert mixed.z.shape[:2] == (2, 3)
    assert mixed.problem.structure.kinds == layer.solve(F[0], g[0], c[0]).problem.structure.kinds
    assert mixed.problem.tensors()[2].dim() < layer.solve(F, g, c).problem.tensors()[2].dim()
    expected = layer(F[:1].expand(6, -1, -1), g[:1].expand(6, -1), c)
    for mine, theirs in zip(layer.values(mixed), expected, strict=True):
        torch.testing.assert_close(mine.flatten(0, 1), theirs)


@BOTH
def test_matrices_column_by_column_and_symmetric_ones(Layer: Any) -> None:
    """The nearest matrix X ≥ 0 to C, whose columns sum to 1 as the columns of a simplex; and a symmetric one."""
    X, C = cp.Variable((3, 4)), cp.Parameter((3, 4))
    C_values = normal(2, 3, 4)
    rows = [X >= 0, cp.sum(X, axis=0) == 1]
    (found,) = Layer(cp.Problem(cp.Minimize(cp.sum_squares(X - C)), rows), [C], [X])(C_values)
    torch.testing.assert_close(found, optlayer.nn.Sparsemax(dim=-2)(C_values))
    S, D = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    D_values = normal(2, 3, 3)
    D_values = D_values + D_values.mT
    (found,) = Layer(cp.Problem(cp.Minimize(cp.sum_squares(S - D)), [S >= 0]), [D], [S])(D_values)
    torch.testing.assert_close(found, D_values.clamp(min=0))


def test_values_of_other_shapes() -> None:
    layer = CvxpyLayer(*projection())
    F, g, c = values(2)
    with pytest.raises(ValueError, match=r"3 parameters; got 2 tensors"):
        layer(F, g)
    with pytest.raises(ValueError, match=r"parameter 1 has shape \(2, 5\); expected \(…, 3\)"):
        layer(F, c, c)
    x, a = cp.Variable(2), cp.Parameter(2)
    squared = cp.Problem(cp.Minimize(cp.sum_squares(x)), [cp.multiply(a, a) @ x == 1])
    with pytest.raises(ValueError, match="DPP"):
        CvxpyLayer(squared, [a], [x])


def test_a_model_without_parameters() -> None:
    x = cp.Variable(3)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [cp.sum(x) == 0]), [], [x])
    torch.testing.assert_close(layer()[0], torch.zeros(3, dtype=F64), atol=1e-12, rtol=0)
