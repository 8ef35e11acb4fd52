"""The general layers, the elastic one, and piecewise-linear functions as quadratic programs."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer import kkt, nn

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def close(actual: Tensor, expected: object, atol: float = 1e-8) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


def worst_residual(sol: optlayer.Solution) -> float:
    """The optimality conditions, evaluated here, relative."""
    parts = (sol.z, sol.lam, sol.nu, sol.lam_lb, sol.lam_ub)
    return kkt.residuals(sol.problem, *parts).relative.max().item()


def gradcheck(module: torch.nn.Module, *inputs: Tensor) -> bool:
    """The gradients of a module's first output for its inputs and parameters against differences."""
    names = [name for name, _ in module.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]

    def function(*arguments: Tensor) -> Any:
        state = dict(zip(names, arguments[len(inputs) :], strict=True))
        return torch.func.functional_call(module, state, arguments[: len(inputs)])

    given = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.gradcheck(function, (*given, *parameters), atol=1e-6)


# --- QPLayer --------------------------------------------------------------------------------------------------


def test_qp_layer_is_solve() -> None:
    Q, q, A, b = torch.eye(3, dtype=F64), normal(4, 3), torch.ones(1, 3, dtype=F64), torch.ones(1, dtype=F64)
    layer = nn.QPLayer()
    close(layer(Q, q, A=A, b=b), -q + (1 + q.sum(-1, keepdim=True)) / 3)
    close(layer(Q, q, ub=0 * q[0]), (-q).clamp(max=0))
    assert not list(layer.parameters())


def test_qp_layer_passes_its_options_on() -> None:
    G, h = torch.tensor([[1.0], [-1.0]]), torch.tensor([-1.0, -1.0])  # z ≤ −1 and z ≥ 1
    arguments = torch.eye(1), torch.ones(1, 1), G, h
    with pytest.raises(optlayer.SolveError):
        nn.QPLayer()(*arguments)
    assert nn.QPLayer(check=False, backend="cpu")(*arguments).shape == (1, 1)


# --- OptNetLayer ----------------------------------------------------------------------------------------------

COSTS = ("full", "diagonal", 0.5)
BOUNDS: dict[str, dict[str, Any]] = {
    "no bounds": {},
    "below": {"lb": 0.0},
    "above": {"ub": torch.tensor([1.0, 2.0, 3.0, 4.0])},
    "both": {"lb": -1, "ub": 1},
    "mixed": {
        "lb": torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0]),
        "ub": torch.tensor([torch.inf, torch.inf, 0.0, 1.0]),
    },
}


def optnet(cost: str | float = "full", bounds: str = "mixed", p: int = 5, m: int = 2) -> nn.OptNetLayer:
    return nn.OptNetLayer(4, p, m, Q=cost, dtype=F64, **BOUNDS[bounds])


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("cost", COSTS)
def test_optnet_is_feasible_whatever_its_parameters_become(cost: str | float, bounds: str) -> None:
    layer = optnet(cost, bounds)
    for size in (0.0, 1.0, 3.0):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(size * torch.randn_like(parameter))
        z0 = layer.z0.detach()
        assert layer.h is not None
        assert (layer.G @ z0 < layer.h).all()
        if layer.lb is not None:
            assert (z0 >= layer.lb).all()
        if layer.ub is not None:
            assert (z0 <= layer.ub).all()
        sol = layer.solution(normal(6, 4))
        assert worst_residual(sol) < 1e-8
        close(sol.z @ layer.A.mT, layer.b.expand(6, 2), 1e-6)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("cost", COSTS)
def test_optnet_gradients_are_those_of_differences(cost: str | float, bounds: str) -> None:
    assert gradcheck(optnet(cost, bounds, p=3, m=1), normal(3, 4))


def test_optnet_has_gradients_for_each_parameter_and_none_that_are_not_finite() -> None:
    layer = optnet()
    assert layer.w0 is not None
    with torch.no_grad():
        layer.w0[0] = 1e4  # where its logarithm would overflow, if z₀ were not this entry itself
    layer(normal(50, 4)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_optnet_without_rows_has_no_point_to_learn() -> None:
    layer = nn.OptNetLayer(3, Q=2.0, lb=0.0, dtype=F64)
    assert not list(layer.parameters())
    q = normal(2, 5, 3)
    close(layer(q), (-q / 2).clamp(min=0))


@pytest.mark.parametrize("cost", COSTS)
def test_soft_equations_are_a_cost(cost: str | float) -> None:
    """Without other constraints the answer is (Q + AᵀWA)⁻¹ (AᵀWA z₀ − q); with large weights that of hard ones."""
    layer = nn.OptNetLayer(5, equalities=2, Q=cost, soft=3.0, dtype=F64)
    with torch.no_grad():
        for parameter in (layer.w0, layer.log_w):
            parameter.add_(torch.randn_like(parameter))
    q = normal(2, 3, 5)
    pull = layer.A.mT @ (layer.log_w.exp()[:, None] * layer.A)
    Q = torch.diag(layer.Q.d) if isinstance(layer.Q, optlayer.Diagonal) else layer.Q
    expected = torch.linalg.solve(Q + pull, (pull @ layer.z0 - q)[..., None])[..., 0]
    close(layer(q), expected, 1e-9)
    hard = nn.OptNetLayer(5, equalities=2, Q=cost, dtype=F64)
    hard.load_state_dict({name: each for name, each in layer.state_dict().items() if name != "log_w"})
    with torch.no_grad():
        layer.log_w.fill_(20.0)
    close(layer(q), hard(q), 1e-6)
    assert gradcheck(nn.OptNetLayer(4, 1, 2, Q=cost, soft=1.0, lb=0.0, dtype=F64), normal(3, 4))


def test_optnet_starts_as_documented() -> None:
    layer = nn.OptNetLayer(30, 200, 3, dtype=F64)
    close(layer.z0, torch.zeros(30))
    close(layer.h, torch.ones(200))
    close(layer.Q, torch.eye(30), 0.15)
    active = (layer.solution(normal(64, 30)).lam > 1e-6).to(F64).mean()
    assert 0.02 < active < 0.2
    close(nn.OptNetLayer(2, 1, lb=torch.tensor([1.0, -4.0]), ub=torch.tensor([torch.inf, 2.0])).z0, [2.0, -1.0])


def test_optnet_repeats_with_its_seed_and_starts_anew() -> None:
    torch.manual_seed(7)
    first = optnet()
    torch.manual_seed(7)
    second = optnet()
    q = normal(3, 4)
    assert torch.equal(first(q), second(q))
    second.reset_parameters()
    assert not torch.equal(first(q), second(q))


def test_optnet_copies_pickles_saves_and_moves() -> None:
    layer, q = optnet(), normal(3, 4)
    expected = layer(q)
    assert torch.equal(copy.deepcopy(layer)(q), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(q), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = optnet()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(q), expected)
    single = layer.to(torch.float32)
    assert single(q.float()).dtype == torch.float32
    close(single(q.float()), expected.float(), 1e-4)
    assert "inequalities=5" in repr(layer)


def test_optnet_learns_from_another() -> None:
    """A student with the same form comes near its teacher's answers."""
    teacher, student = (nn.OptNetLayer(3, 4, 1, dtype=F64) for _ in range(2))
    q = 2 * normal(64, 3)
    answers = teacher(q).detach()
    optimiser = torch.optim.Adam(student.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        loss = (student(q) - answers).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variables": 0}, "variables ≥ 1"),
        ({"variables": 2, "inequalities": -1}, "inequalities ≥ 0"),
        ({"variables": 2, "Q": "sparse"}, "diagonal"),
        ({"variables": 2, "lb": 1.0, "ub": 0.0}, "lb ≤ ub"),
        ({"variables": 2, "equalities": 1, "soft": 0.0}, "soft > 0"),
    ],
)
def test_optnet_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.OptNetLayer(**arguments)


# --- ElasticQPLayer -------------------------------------------------------------------------------------------


def feasible_problem(batch: int = 5) -> dict[str, Tensor]:
    """Four variables, five inequalities, one equality; z₀ satisfies them."""
    L, z0, G, A = normal(4, 4), normal(4), normal(5, 4), normal(1, 4)
    return {
        "Q": L @ L.mT + torch.eye(4, dtype=F64), "q": 2 * normal(batch, 4),
        "G": G, "h": G @ z0 + 0.3, "A": A, "b": A @ z0,
    }


@pytest.mark.parametrize("epsilon", [0.0, 2.0])
def test_elastic_is_exact_where_the_weight_exceeds_the_multipliers(epsilon: float) -> None:
    problem = feasible_problem()
    hard = optlayer.solve(**problem)
    weight = 1.5 * max(float(hard.lam.max()), float(hard.nu.abs().max()))
    z, violation = nn.ElasticQPLayer(weight, epsilon)(**problem)
    close(z, hard.z)
    close(violation, torch.zeros(5, 6))
    # And below them, the price is paid.
    _, violation = nn.ElasticQPLayer(0.2 * weight, epsilon)(**problem)
    assert violation.max() > 1e-3


@pytest.mark.parametrize("form", ["dense", "diagonal"])
def test_elastic_of_contradicting_inequalities(form: str) -> None:
    """z ≤ −1 against z ≥ 1: between them the violation is 2 in all and the price w₁ (z + 1) + w₂ (1 − z)."""
    one = torch.ones(1, dtype=F64)
    G, h = torch.tensor([[1.0], [-1.0]], dtype=F64), torch.tensor([-1.0, -1.0], dtype=F64)
    q = torch.linspace(-9, 9, 37, dtype=F64)[:, None]
    layer = nn.ElasticQPLayer(torch.tensor([4.0, 3.0], dtype=F64))
    z, violation = layer(one.diag() if form == "dense" else optlayer.Diagonal(one), q, G, h)
    # Slopes of the price: −w₂ left of −1, w₁ − w₂ between, w₁ right of 1.
    left, middle, right = -q + 3, -q - 1, -q - 4
    expected = torch.where(left < -1, left, torch.where(right > 1, right, middle.clamp(-1, 1)))
    close(z, expected)
    close(violation, torch.cat([z + 1, 1 - z], 1).clamp(min=0))


def test_elastic_of_contradicting_equalities() -> None:
    """z = 0 and z = 1 at the same price: any z between costs the same, so that the objective decides."""
    A, b = torch.ones(2, 1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    q = torch.linspace(-3, 3, 13, dtype=F64)[:, None]
    z, violation = nn.ElasticQPLayer(50.0)(torch.eye(1, dtype=F64), q, A=A, b=b)
    close(z, (-q).clamp(0, 1))
    close(violation, (z - b).abs())


def test_elastic_with_curvature_shares_the_violation() -> None:
    """With z fixed by two equalities, t = (residual): the price's derivative is weight + ε t, which pulls z."""
    one, b = torch.ones(1, 1, dtype=F64), torch.tensor([5.0], dtype=F64)
    z, violation = nn.ElasticQPLayer(1.0, 0.5)(one, torch.zeros(1, dtype=F64), A=one, b=b)
    # minimise ½z² + (5 − z) + ¼ (5 − z)²: z − 1 − ½ (5 − z) = 0
    close(z, [3.5 / 1.5])
    close(violation, [5 - 3.5 / 1.5])


def test_elastic_rows_can_be_chosen() -> None:
    one = torch.eye(1, dtype=F64)
    G, h = torch.tensor([[1.0], [-1.0]], dtype=F64), torch.tensor([-1.0, -1.0], dtype=F64)
    z, violation = nn.ElasticQPLayer(inequalities=[1])(one, torch.zeros(2, 1, dtype=F64), G, h)
    close(z, [[-1.0], [-1.0]])
    close(violation, [[2.0], [2.0]])
    with pytest.raises(optlayer.SolveError, match="PRIMAL_INFEASIBLE"):
        nn.ElasticQPLayer(inequalities=False)(one, torch.zeros(2, 1, dtype=F64), G, h)
    rest = feasible_problem()
    rest["b"] = rest["b"].expand(5, 1)
    z, violation = nn.ElasticQPLayer(1e-3, inequalities=False, equalities=[0])(**rest)
    assert violation.shape == (5, 1)
    assert (z @ rest["G"].mT - rest["h"]).max() < 1e-9
    close(violation, (z @ rest["A"].mT - rest["b"]).abs())


def test_elastic_keeps_bounds() -> None:
    problem = feasible_problem()
    lb, ub = torch.full((4,), -0.1, dtype=F64), torch.full((5, 4), 0.1, dtype=F64)
    z, violation = nn.ElasticQPLayer(10.0)(**problem, lb=lb, ub=ub)
    assert (z >= lb - 1e-9).all()
    assert (z <= ub + 1e-9).all()
    inequalities = (z @ problem["G"].mT - problem["h"]).clamp(min=0)
    close(violation, torch.cat([inequalities, (z @ problem["A"].mT - problem["b"]).abs()], 1))


@pytest.mark.parametrize("epsilon", [0.0, 0.7])
def test_elastic_gradients_are_those_of_differences(epsilon: float) -> None:
    problem = feasible_problem(4)
    problem["h"] = problem["h"] - torch.tensor([[0.0], [0.2], [1.5], [3.0]], dtype=F64)  # ever less room
    layer = nn.ElasticQPLayer(torch.nn.Parameter(torch.full((6,), 3.0, dtype=F64)), epsilon)
    _, violation = layer(**problem)
    assert (violation[0] < 1e-9).any()
    assert (violation[3] > 1e-2).any()
    assert gradcheck(layer, *(problem[name] for name in ("Q", "q", "G", "h", "A", "b")))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_elastic_gradient_of_contradicting_inequalities(backend: str, dtype: torch.dtype) -> None:
    """Between z ≤ 1 and z ≥ 3 the violations are z − 1 and 3 − z, and z = −q."""
    # A test of the backend too: rows that depend on each other in z, and slack variables without curvature.
    Q, G = torch.eye(1, dtype=dtype), torch.tensor([[1.0], [-1.0]], dtype=dtype)
    h = torch.tensor([1.0, -3.0], dtype=dtype, requires_grad=True)
    q = torch.tensor([[-1.5], [-2.0], [-2.8]], dtype=dtype, requires_grad=True)
    if backend == "cuda":
        Q, G, h, q = (x.detach().cuda().requires_grad_() for x in (Q, G, h, q))
    z, violation = nn.ElasticQPLayer(10.0, backend=backend)(Q, q, G, h)
    close(z, -q, 1e-5)
    up = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 2.0]]).to(z)
    grad_h, grad_q = torch.autograd.grad(violation, [h, q], up)
    close(grad_h.cpu(), [-2.0, -3.0], 1e-4)
    close(grad_q.cpu(), [[0.0], [-1.0], [2.0]], 1e-4)


def test_elastic_gradient_leads_to_feasibility() -> None:
    """Contradicting constraints are moved until the hard problem has an answer."""
    G = torch.nn.Parameter(normal(6, 2))
    h = torch.nn.Parameter(-torch.rand(6, dtype=F64) - 0.5)
    Q, q, layer = torch.eye(2, dtype=F64), normal(3, 2), nn.ElasticQPLayer(10.0)
    hard = optlayer.solve(Q, q, G.detach(), h.detach(), check=False)
    assert not hard.solved.any()
    optimiser = torch.optim.SGD([G, h], lr=0.05)
    for _ in range(200):
        _, violation = layer(Q, q, G, h)
        if float(violation.sum()) < 1e-9:
            break
        optimiser.zero_grad()
        violation.sum().backward()
        optimiser.step()
    assert optlayer.solve(Q, q, G.detach(), h.detach()).solved.all()


def test_elastic_refuses_a_price_that_is_none() -> None:
    for weight, epsilon in ((0.0, 0.0), (-1.0, 0.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match=r"weight > 0 is needed|epsilon ≥ 0 is needed"):
            nn.ElasticQPLayer(weight, epsilon)


# --- piecewise-linear functions -------------------------------------------------------------------------------


def test_relu_layer_and_all_its_gradients() -> None:
    W, b, x = normal(5, 3), normal(5), normal(7, 2, 3).requires_grad_()
    layer = nn.ReLULayer(W, b)
    truth = torch.nn.Linear(3, 5, dtype=F64)
    truth.load_state_dict({"weight": W, "bias": b})
    up = normal(7, 2, 5)
    expected = torch.relu(truth(x))
    z = layer(x)
    close(z, expected)
    mine = torch.autograd.grad(z, [x, layer.W, layer.b], up)
    theirs = torch.autograd.grad(expected, [x, truth.weight, truth.bias], up)
    for ours, true in zip(mine, theirs, strict=True):
        close(ours, true)


def interpolate(x: Tensor, breakpoints: Tensor, slopes: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Piece by piece: the function and its slope, by looking up the piece that each x lies on."""
    heights = value + torch.cat([torch.zeros(1, dtype=F64), (slopes[1:-1] * breakpoints.diff()).cumsum(0)])
    piece = torch.searchsorted(breakpoints, x)
    corner = (piece - 1).clamp(min=0)
    return heights[corner] + slopes[piece] * (x - breakpoints[corner]), slopes[piece]


@pytest.mark.parametrize("kinks", [1, 2, 6])
def test_piecewise_linear_and_its_slope(kinks: int) -> None:
    breakpoints, slopes = normal(kinks).sort().values, 2 * normal(kinks + 1)
    x = (3 * normal(40, 5)).requires_grad_()
    z = nn.PiecewiseLinear(breakpoints, slopes, 0.7)(x)
    expected, slope = interpolate(x.detach(), breakpoints, slopes, 0.7)
    close(z, expected)
    close(torch.autograd.grad(z.sum(), x)[0], slope)


def test_piecewise_linear_learns() -> None:
    parameters = [torch.nn.Parameter(part) for part in (torch.tensor([-1.0, 0.5], dtype=F64), normal(3), normal(1)[0])]
    layer = nn.PiecewiseLinear(*parameters)
    assert len(list(layer.parameters())) == 3
    assert gradcheck(layer, torch.tensor([-2.0, -0.3, 0.1, 0.9], dtype=F64))
    assert not list(nn.PiecewiseLinear(torch.zeros(1), torch.ones(2)).parameters())


def test_piecewise_linear_names_functions_we_know() -> None:
    x = 3 * normal(30)
    zero, clamp = torch.zeros(1, dtype=F64), torch.tensor([-1.0, 1.0], dtype=F64)
    close(nn.PiecewiseLinear(zero, torch.tensor([0.1, 1.0]))(x), torch.nn.functional.leaky_relu(x, 0.1), 1e-7)
    close(nn.PiecewiseLinear(zero, torch.tensor([-1.0, 1.0], dtype=F64))(x), x.abs())
    close(nn.PiecewiseLinear(clamp, torch.tensor([0.0, 1.0, 0.0], dtype=F64), -1.0)(x), x.clamp(-1, 1))


@pytest.mark.parametrize(
    ("breakpoints", "slopes"), [([], [1.0]), ([0.0], [1.0]), ([1.0, 0.0], [1.0, 2.0, 3.0]), ([[0.0]], [1.0, 2.0])]
)
def test_piecewise_linear_refuses(breakpoints: list[Any], slopes: list[float]) -> None:
    with pytest.raises(ValueError, match="breakpoints"):
        nn.PiecewiseLinear(torch.tensor(breakpoints), torch.tensor(slopes))


@pytest.mark.parametrize("pieces", [1, 2, 3, 10])
def test_max_of_linear_and_its_gradients(pieces: int) -> None:
    layer, x = nn.MaxOfLinear(normal(pieces, 3), normal(pieces)), normal(8, 5, 3).requires_grad_()
    z = layer(x)
    y = x @ layer.W.mT + layer.b
    close(z, y.amax(-1))
    up = normal(8, 5)
    mine = torch.autograd.grad(z, [x, layer.W, layer.b], up)
    for ours, true in zip(mine, torch.autograd.grad(y.amax(-1), [x, layer.W, layer.b], up), strict=True):
        close(ours, true)


def test_layers_return_what_they_were_given_under_autocast() -> None:
    W, x = torch.eye(2), torch.ones(2, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.MaxOfLinear(W)(x).dtype == nn.ReLULayer(W, torch.zeros(2))(x).dtype == torch.bfloat16
        assert {part.dtype for part in nn.LinearMPC(W, W, horizon=2)(x)} == {torch.bfloat16}


def test_max_of_linear_at_its_creases() -> None:
    """Where pieces tie, even all of them, the value is right and the gradient finite."""
    layer = nn.MaxOfLinear(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=F64))
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.5]], dtype=F64, requires_grad=True)
    z = layer(x)
    close(z, [0.0, 1.0, 0.5])
    assert torch.autograd.grad(z.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("name", ["relu", "piecewise", "max", "elastic"])
def test_float32_copies_and_pickles(name: str) -> None:
    make: dict[str, tuple[torch.nn.Module, tuple[Tensor, ...]]] = {
        "relu": (nn.ReLULayer(normal(3, 2), normal(3)), (normal(4, 2),)),
        "piecewise": (nn.PiecewiseLinear(torch.zeros(1, dtype=F64), torch.ones(2, dtype=F64)), (normal(4, 2),)),
        "max": (nn.MaxOfLinear(normal(3, 2)), (normal(4, 2),)),
        "elastic": (nn.ElasticQPLayer(5.0), tuple(feasible_problem().values())),
    }
    module, inputs = make[name]

    def output(module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
        z = module.to(dtype)(*(x.to(dtype) for x in inputs))
        return z if isinstance(z, Tensor) else z[0]

    expected = output(module, F64)
    close(output(module), expected.float(), 1e-4)
    assert output(module).dtype == torch.float32
    assert torch.equal(output(copy.deepcopy(module)), output(module))
    assert torch.equal(output(pickle.loads(pickle.dumps(module))), output(module))
