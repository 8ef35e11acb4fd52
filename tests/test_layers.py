"""Each ready layer against a closed form or an independent solver, and its gradient against differences."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import optlayer
from optlayer import nn

F64 = torch.float64


@pytest.fixture(autouse=True)
def _float64() -> None:
    torch.manual_seed(1)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def close(actual: Tensor, expected: object, atol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


def slsqp(objective, z0, constraints=(), bounds=None):  # type: ignore[no-untyped-def]
    """An active-set method of scipy's: nothing in common with ours."""
    for ftol in (1e-14, 1e-12, 1e-10):  # too small, and its line search ends without a word of success
        options = {"ftol": ftol, "maxiter": 1000}
        result = scipy.optimize.minimize(
            objective, z0, method="SLSQP", bounds=bounds, constraints=constraints, options=options
        )
        if result.success:
            return result.x
    raise AssertionError(result.message)


# --- projections: closed forms ------------------------------------------------------------------------------


def sorted_simplex(y: Tensor, radius: float = 1.0) -> Tensor:
    """Sort, find the threshold, cut (Held, Wolfe and Crowder, 1974)."""
    u = y.sort(dim=-1, descending=True).values
    tau = (u.cumsum(-1) - radius) / torch.arange(1, y.shape[-1] + 1).to(y)
    count = (u > tau).sum(-1, keepdim=True)
    return (y - tau.gather(-1, count - 1)).clamp(min=0)


def test_simplex() -> None:
    y = 2 * normal(50, 7)
    close(nn.SimplexProjection(1.5)(y), sorted_simplex(y, 1.5))


def test_sparsemax_along_any_dimension() -> None:
    y = 2 * normal(4, 6, 3)
    z = nn.Sparsemax(dim=1)(y)
    close(z, sorted_simplex(y.movedim(1, -1)).movedim(-1, 1))
    close(z.sum(1), torch.ones(4, 3))


def test_box_and_its_learnable_bounds() -> None:
    y = normal(30, 5)
    lb, ub = torch.nn.Parameter(-torch.rand(5, dtype=F64)), torch.rand(5, dtype=F64)
    layer = nn.BoxProjection(lb, ub)
    close(layer(y), y.clamp(lb.detach(), ub))
    layer(y).sum().backward()
    close(lb.grad, (y < lb.detach()).sum(0))
    close(nn.BoxProjection(-0.5, 1)(y), y.clamp(-0.5, 1))


def test_linf_ball() -> None:
    y = normal(30, 5)
    close(nn.LInfBallProjection(0.3)(y), y.clamp(-0.3, 0.3))


def test_l1_ball_inside_and_outside() -> None:
    y = torch.cat([normal(30, 6), 0.01 * normal(5, 6)])
    outside = y.abs().sum(-1, keepdim=True) > 1.2
    assert outside.any()
    assert not outside.all()
    expected = torch.where(outside, y.sign() * sorted_simplex(y.abs(), 1.2), y)
    close(nn.L1BallProjection(1.2)(y), expected)


def test_one_halfspace() -> None:
    y, g = normal(30, 4), normal(1, 4)
    excess = (y @ g[0] - 0.5).clamp(min=0) / (g @ g.mT).squeeze()
    close(nn.HalfspaceProjection(g, torch.tensor([0.5], dtype=F64))(y), y - excess[:, None] * g)


def test_several_halfspaces() -> None:
    G, h = normal(6, 4), torch.rand(6, dtype=F64)
    y = 2 * normal(5, 4)
    z = nn.HalfspaceProjection(G, h)(y)
    for target, found in zip(y.numpy(), z, strict=True):
        constraint = {"type": "ineq", "fun": lambda z: h.numpy() - G.numpy() @ z, "jac": lambda z: -G.numpy()}
        close(found, slsqp(lambda z, y=target: 0.5 * np.sum((z - y) ** 2), np.zeros(4), [constraint]), 1e-5)


def test_birkhoff() -> None:
    y = normal(3, 2, 4, 4)
    z = nn.BirkhoffProjection()(y)
    close(z.sum(-1), torch.ones(3, 2, 4))
    close(z.sum(-2), torch.ones(3, 2, 4))
    assert z.min() > -1e-9
    # A large factor leaves the best assignment.
    close(nn.BirkhoffProjection()(50 * y[0, 0]), assignment(y[0, 0]))
    with pytest.raises(ValueError, match="k, k"):
        nn.BirkhoffProjection()(normal(2, 3))


def assignment(y: Tensor) -> Tensor:
    rows, columns = scipy.optimize.linear_sum_assignment(-y.numpy())
    result = torch.zeros_like(y)
    result[rows, columns] = 1
    return result


def test_isotonic_regression() -> None:
    y = normal(20, 15)
    expected = [scipy.optimize.isotonic_regression(row).x for row in y.numpy()]
    close(nn.MonotoneProjection()(y), np.stack(expected))


# --- total variation ----------------------------------------------------------------------------------------


def test_total_variation_satisfies_the_taut_string() -> None:
    """z minimises if and only if the running sum of y − z stays within ±weight, and touches where z jumps."""
    y, weight = normal(8, 30).cumsum(-1), 0.7
    z = nn.TotalVariation(30, weight).to(F64)(y)
    string = (y - z).cumsum(-1)
    close(string[:, -1], torch.zeros(8))
    assert string.abs().max() < weight + 1e-7
    jumps = z.diff(dim=-1)
    where = jumps.abs() > 1e-6
    close(string[:, :-1][where], -weight * jumps.sign()[where])


def test_total_variation_of_a_grid() -> None:
    y, weight = normal(4, 5), 0.4
    z = nn.TotalVariation((4, 5), weight).to(F64)(y)

    def objective(v: np.ndarray) -> float:  # variables: z, t ≥ |differences|
        return float(0.5 * np.sum((v[:20] - y.numpy().ravel()) ** 2) + weight * v[20:].sum())

    D = nn.TotalVariation((4, 5)).D.to(F64).numpy()
    M = np.block([[-D, np.eye(len(D))], [D, np.eye(len(D))]])
    v = slsqp(objective, np.ones(20 + len(D)), [{"type": "ineq", "fun": lambda v: M @ v, "jac": lambda v: M}])
    close(z.flatten(), v[:20], 1e-4)


@pytest.mark.parametrize("shape", [(60,), (6, 7)])
def test_total_variation_of_many_entries_is_sparse(shape: tuple[int, ...]) -> None:
    """Value and gradients are those of dense matrices."""
    y = normal(5, *shape).requires_grad_()
    large = nn.TotalVariation(shape, 0.15).to(F64)
    dense = nn.TotalVariation(shape, 0.15, learn_differences=True).to(F64)
    assert large.differences(y).pattern.entries == 2 * len(dense.D)
    close(large.differences(y).dense(), dense.D)
    found, wanted = large(y), dense(y)
    close(found, wanted, 1e-8)
    close(nn.TotalVariation(shape, 0.15, backend="reference").to(F64)(y), wanted, 1e-7)
    weights = normal(5, *shape)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), [y, large.weight]),
        torch.autograd.grad((wanted * weights).sum(), [y, dense.weight]),
        strict=True,
    ):
        close(a, b, 1e-7)


def test_total_variation_joins_what_is_flat() -> None:
    """A step edge in a noiseless image: each side moves by weight × its border over its size."""
    y, weight = torch.zeros(12, 10, dtype=F64), 0.6
    y[:, 5:] = 1.0
    z = nn.TotalVariation((12, 10), weight).to(F64)(y)
    close(z, torch.where(y > 0, 1 - weight / 5, weight / 5))


def test_total_variation_learns_its_differences() -> None:
    layer = nn.TotalVariation(6, 0.3, learn_differences=True).to(F64)
    layer(normal(4, 6)).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.abs().max() > 0
    with pytest.raises(ValueError, match=r"\(…, 6\) is needed, not \(4, 7\)"):
        layer(normal(4, 7))


# --- heads and controllers ----------------------------------------------------------------------------------


def test_svm_head_solves_the_primal() -> None:
    """The dual's scores are those of the primal: weights W, ½‖W‖² + C Σ slack, with margins of one."""
    torch.manual_seed(3)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    x = normal(6, 3) + 2 * torch.nn.functional.one_hot(labels, 3)
    queries = normal(5, 3)
    C = 0.5
    scores = nn.SVMHead(3, C=C, regularisation=0.0)(x, labels, queries)

    def objective(v: np.ndarray) -> float:
        return float(0.5 * np.sum(v[:9] ** 2) + C * v[9:].sum())

    rows = []  # ⟨w_y − w_c, x⟩ + slack ≥ 1 − [c = y]
    offsets = []
    for i, (xi, yi) in enumerate(zip(x.numpy(), labels.tolist(), strict=True)):
        for c in range(3):
            W, slack = np.zeros((3, 3)), np.zeros(6)
            W[yi] += xi
            W[c] -= xi
            slack[i] = 1
            rows.append(np.concatenate([W.ravel(), slack]))
            offsets.append(float(c != yi))
    M, o = np.stack(rows), np.array(offsets)
    v = slsqp(objective, np.ones(15), [{"type": "ineq", "fun": lambda v: M @ v - o, "jac": lambda v: M}])
    close(scores, queries.numpy() @ v[:9].reshape(3, 3).T, 1e-4)


def test_svm_head_batches() -> None:
    x, queries = normal(2, 6, 4), normal(2, 3, 4)
    labels = torch.tensor([0, 0, 1, 1, 2, 2]).repeat(2, 1)
    together = nn.SVMHead(3)(x, labels, queries)
    alone = torch.stack([nn.SVMHead(3)(*part) for part in zip(x, labels, queries, strict=True)])
    close(together, alone)


def test_mpc_without_limits_is_the_linear_quadratic_regulator() -> None:
    F, B = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=F64), torch.tensor([[0.0], [0.1]], dtype=F64)
    Q, R, T = torch.diag(torch.tensor([2.0, 0.5], dtype=F64)), torch.tensor([[0.3]], dtype=F64), 12
    P = Q  # Riccati's recursion, backwards
    for _ in range(T):
        K = torch.linalg.solve(R + B.mT @ P @ B, B.mT @ P @ F)
        P = Q + F.mT @ P @ (F - B @ K)
    x0 = normal(7, 2)
    inputs, states = nn.LinearMPC(F, B, T, Q.diagonal(), R.diagonal())(x0)
    close(inputs[:, 0], -x0 @ K.mT)
    x = x0
    for t in range(T):
        x = x @ F.mT + inputs[:, t] @ B.mT
        close(states[:, t], x)


def test_mpc_keeps_limits_and_reaches_its_target() -> None:
    F, B = torch.eye(1, dtype=F64), torch.eye(1, dtype=F64)
    controller = nn.LinearMPC(F, B, 8, input_cost=torch.tensor([1e-6], dtype=F64), input_limit=0.5)
    inputs, states = controller(torch.zeros(1, dtype=F64), torch.tensor([2.0], dtype=F64))
    close(states[:, 0], [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0], 1e-4)
    close(inputs[:4, 0], [0.5] * 4, 1e-4)


def mpc_by_slsqp(layer: nn.LinearMPC, x0: Tensor, target: Tensor, limits: tuple[float, float]) -> np.ndarray:
    """The inputs of a time-varying affine problem, all states being functions of them; hard limits."""
    F, B, c = (M.detach().numpy() for M in (layer.F, layer.B, layer.c))
    W, V, last = (layer.cost(f"{name}_cost").detach().numpy() for name in ("state", "input", "terminal"))
    T, (_, nu) = layer.horizon, layer.sizes

    def states(v: np.ndarray) -> np.ndarray:
        x, found = x0.numpy(), []
        for t, u in enumerate(v.reshape(T, nu)):
            x = F[t] @ x + B[t] @ u + c[t]
            found.append(x)
        return np.array(found)

    def objective(v: np.ndarray) -> float:
        e, u = states(v) - target.numpy(), v.reshape(T, nu)
        stages = np.sum(W * e[:-1] ** 2) + np.einsum("ti,ij,tj", u, V, u)
        return float(0.5 * (stages + e[-1] @ last @ e[-1]))

    lower, upper = limits
    room = {"type": "ineq", "fun": lambda v: np.concatenate([states(v)[:, 0] - lower, upper - states(v)[:, 0]])}
    done = scipy.optimize.minimize(
        objective, np.zeros(T * nu), method="SLSQP", bounds=[(-0.3, 0.6)] * (T * nu),
        constraints=[room], options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert done.success
    return np.asarray(done.x).reshape(T, nu)


def stages(horizon: int, **more: Any) -> nn.LinearMPC:
    """A controller with all that it can have: stages, affine, full and terminal costs, unequal limits."""
    torch.manual_seed(5)
    F = torch.eye(2, dtype=F64) + 0.1 * normal(horizon, 2, 2)
    B, c = normal(horizon, 2, 2), 0.1 * normal(horizon, 2)
    full, last = (M @ M.mT + torch.eye(2, dtype=F64) for M in normal(2, 2, 2))
    state = torch.tensor([1.0, 2.0], dtype=F64)
    inf = torch.inf
    limits = torch.tensor([-0.2, -inf], dtype=F64), torch.tensor([0.5, inf], dtype=F64)
    more = {"state_limit": limits, "c": c, "terminal_cost": last, **more}
    return nn.LinearMPC(F, B, horizon, state, full, (-0.3, 0.6), **more)


def test_mpc_of_stages() -> None:
    layer = stages(5)
    x0, target = torch.tensor([0.3, -0.8], dtype=F64), torch.tensor([0.7, 0.4], dtype=F64)
    inputs, states = layer(x0, target)
    close(inputs, mpc_by_slsqp(layer, x0, target, (-0.2, 0.5)), 1e-5)
    assert states[:, 0].min() > -0.2 - 1e-7
    assert (layer.solution(x0, target).lam_lb + layer.solution(x0, target).lam_ub).max() > 1e-3  # limits are felt


@pytest.mark.parametrize("more", [{}, {"soft": 2.0}])
def test_mpc_of_many_stages_is_sparse(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and all gradients are those of dense matrices."""
    layer = stages(20, **more)
    x0 = (0.3 * normal(6, 2)).requires_grad_()
    found = []
    monkeypatch.setattr("optlayer.nn.mpc.DENSE", 0)
    for taken in (lambda M, options: M, lambda M, options: M.dense()):
        monkeypatch.setattr("optlayer.nn.mpc.taken", taken)
        inputs, states = layer(x0, torch.ones(2, dtype=F64))
        gradients = torch.autograd.grad(inputs.square().sum() + states.sum(), [x0, *layer.parameters()])
        found.append([inputs, states, *gradients])
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-6)


def test_soft_limits_are_the_hard_ones_at_a_high_price_and_always_have_an_answer() -> None:
    x0, target = torch.tensor([0.3, -0.8], dtype=F64), torch.tensor([0.7, 0.4], dtype=F64)
    for a, b in zip(stages(5, soft=100.0)(x0, target), stages(5)(x0, target), strict=True):
        close(a, b, 1e-6)
    F = B = torch.eye(1, dtype=F64)
    arguments = {"input_limit": 0.5, "state_limit": 1.0}
    start = torch.tensor([3.0], dtype=F64)
    assert not nn.LinearMPC(F, B, 2, check=False, **arguments).solution(start).solved.any()
    soft = nn.LinearMPC(F, B, 2, soft=10.0, **arguments)
    close(soft(start)[1][:, 0], [2.5, 2.0])  # as fast as the input can
    close(soft.solution(start).z[4:], [1.5, 1.0, 0.0, 0.0])  # violations, above and below


@pytest.mark.parametrize(
    ("make", "shape"), [(lambda: nn.TotalVariation((6, 7), 0.3), (6, 7)), (lambda: stages(16, soft=1.0), (2,))]
)
def test_sparse_layers_compile_and_batch(make, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    layer = make().to(F64)
    y = normal(3, *shape)
    expected = first(layer(y))
    close(first(torch.compile(layer, backend="aot_eager")(y)), expected)
    close(torch.func.vmap(lambda v: first(layer(v)))(y), expected)
    ensemble = {name: torch.stack([p.detach()] * 2) for name, p in layer.named_parameters()}
    together = torch.func.vmap(lambda p: first(torch.func.functional_call(layer, p, (y,))))(ensemble)
    close(together[1], expected)


def test_safety_filter_with_one_barrier() -> None:
    wanted, drift, barrier = normal(40, 3), normal(40, 1), torch.rand(40, 1, dtype=F64)
    control = normal(40, 1, 3)
    u = nn.SafetyFilter(gain=2.0)(wanted, barrier, drift, control)
    lack = (-drift - 2 * barrier - (control @ wanted[..., None])[..., 0]).clamp(min=0)
    close(u, wanted + lack / control.square().sum(-1) * control[:, 0])
    close(nn.SafetyFilter(limit=0.1)(wanted, barrier + 100, drift, control), wanted.clamp(-0.1, 0.1))


def test_a_barrier_gives_way_at_its_price() -> None:
    """One barrier: the multiplier is what is lacking over |∇c·g|², and at most the price."""
    wanted, drift, barrier = normal(40, 3), normal(40, 1), torch.rand(40, 1, dtype=F64)
    control, slack = normal(40, 1, 3), 0.3
    filtered = nn.SafetyFilter(gain=2.0, slack=slack)
    u = filtered(wanted, barrier, drift, control)
    lack = (-drift - 2 * barrier - (control @ wanted[..., None])[..., 0]).clamp(min=0)
    size = control.square().sum(-1)
    close(u, wanted + (lack / size).clamp(max=slack) * control[:, 0])
    close(filtered.violation(u, barrier, drift, control), (lack - slack * size).clamp(min=0))
    close(filtered.solution(wanted, barrier, drift, control).z[:, 3:], (lack - slack * size).clamp(min=0))
    assert (lack / size > slack).any()
    assert ((lack > 0) & (lack / size < slack)).any()


def test_a_filter_that_cannot_be_safe_does_what_it_can() -> None:
    """Limits of 0.1 and a barrier that asks for 1: the input is at its limit, and the violation has a gradient."""
    one = torch.ones(1, 1, dtype=F64)
    filtered = nn.SafetyFilter(limit=0.1, slack=10.0)
    wanted = torch.zeros(1, 1, dtype=F64)
    barrier = (-one).requires_grad_()
    u = filtered(wanted, barrier, 0 * one, one[..., None])
    close(u, [[0.1]])
    filtered.violation(u, barrier, 0 * one, one[..., None]).sum().backward()
    close(barrier.grad, [[-1.0]])
    with pytest.raises(ValueError, match="slack > 0"):
        nn.SafetyFilter(slack=-1.0)


def test_portfolio_with_diagonal_covariance() -> None:
    """w = max(0, (returns − tau) / (risk_aversion · variance)), tau such that the sum is one."""
    returns, variance = 0.1 * normal(6), 0.5 + torch.rand(6, dtype=F64)
    w = nn.Portfolio(risk_aversion=3.0)(returns, torch.diag(variance))

    def excess(tau: float) -> float:
        return float(((returns - tau).clamp(min=0) / (3.0 * variance)).sum() - 1)

    tau = scipy.optimize.brentq(excess, -100, 100)
    close(w, (returns - tau).clamp(min=0) / (3.0 * variance))
    eager = nn.Portfolio(risk_aversion=1e-3, largest=0.25)  # nothing but returns counts: the best four, in full
    expected = torch.zeros_like(returns).index_fill(0, returns.topk(4).indices, 0.25)
    close(eager(returns.expand(3, 6), torch.diag(variance)), expected.expand(3, 6))


@pytest.mark.parametrize("case", ["cost", "turnover", "cost turnover", "groups", "own", "cost turnover groups own"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_portfolio_with_everything(case: str, seed: int) -> None:
    """Against scipy, over what is bought and what is sold."""
    torch.manual_seed(seed)
    n, risk, none = 6, 2.0, torch.zeros(6, dtype=F64)
    L, returns, held = normal(n, n), 0.3 * normal(n), torch.rand(n, dtype=F64)
    covariance, held = L @ L.mT / n + 0.1 * torch.eye(n, dtype=F64), held / held.sum()
    cost = 0.05 + 0.1 * torch.rand(n, dtype=F64) if "cost" in case else none
    turnover = 0.3 if "turnover" in case else None
    groups = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]], dtype=F64)
    least, most = groups @ held - 0.02, groups @ held + torch.tensor([0.05, 0.01], dtype=F64)
    G = normal(2, n)
    h = G @ held + 0.01
    options: dict = {"cost": cost, "turnover": turnover}
    options |= {"groups": groups, "least": least, "most": most} if "groups" in case else {}
    options |= {"G": G, "h": h} if "own" in case else {}
    w = nn.Portfolio(risk, 0.5, **options)(returns, covariance, held)

    C, r, w0, c = (each.numpy() for each in (covariance, returns, held, cost))
    moves = np.concatenate([np.eye(n), -np.eye(n)], 1)  # from bought and sold to changes

    def objective(x: np.ndarray) -> float:
        w = w0 + moves @ x
        return 0.5 * risk * w @ C @ w - r @ w + c @ x.reshape(2, n).sum(0)

    rows = [(moves, w0), (-moves, 0.5 - w0)]  # M x + s ≥ 0
    if "groups" in case:
        rows += [(groups.numpy() @ moves, np.full(2, 0.02)), (-groups.numpy() @ moves, np.array([0.05, 0.01]))]
    if "own" in case:
        rows += [(-G.numpy() @ moves, np.full(2, 0.01))]
    if turnover is not None:
        rows += [(-np.ones((1, 2 * n)), np.array([turnover]))]
    M, s = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    constraints = [{"type": "ineq", "fun": lambda x: M @ x + s}, {"type": "eq", "fun": lambda x: (moves @ x).sum()}]
    x = slsqp(objective, np.full(2 * n, 1e-3), constraints, [(0, None)] * 2 * n)
    close(w, w0 + moves @ x, 1e-5)


def test_portfolio_learns_from_what_it_holds() -> None:
    """Gradients with respect to returns, holdings and a cost that is learned."""
    n = 4
    L = normal(n, n)
    cost = torch.nn.Parameter(torch.full((n,), 0.02, dtype=F64))
    layer = nn.Portfolio(1.0, cost=cost, turnover=0.8)
    held = torch.tensor([0.4, 0.3, 0.2, 0.07], dtype=F64, requires_grad=True)  # the rest is cash
    returns = (0.3 * normal(2, n)).requires_grad_()
    covariance = L @ L.mT + torch.eye(n, dtype=F64)
    assert torch.autograd.gradcheck(lambda r, w, _: layer(r, covariance, w), (returns, held, cost), atol=1e-5)
    with pytest.raises(ValueError, match="give `held`"):
        layer(returns, covariance)
    with pytest.raises(ValueError, match="G and h go together"):
        nn.Portfolio(G=torch.ones(1, 4))


# --- what all have in common --------------------------------------------------------------------------------

LAYERS = {
    "simplex": (nn.SimplexProjection, (5,)),
    "box": (lambda: nn.BoxProjection(-0.3, 0.4), (5,)),
    "l1": (lambda: nn.L1BallProjection(0.8), (5,)),
    "linf": (lambda: nn.LInfBallProjection(0.5), (5,)),
    "halfspaces": (lambda: nn.HalfspaceProjection(torch.eye(5) - 0.3, 0.2 * torch.ones(5)), (5,)),
    "birkhoff": (nn.BirkhoffProjection, (3, 3)),
    "monotone": (nn.MonotoneProjection, (5,)),
    "sparsemax": (nn.Sparsemax, (5,)),
    "total variation": (lambda: nn.TotalVariation(5, 0.3), (5,)),
    "total variation, learned": (lambda: nn.TotalVariation(5, 0.3, learn_differences=True), (5,)),
    "grid": (lambda: nn.TotalVariation((2, 3), 0.3), (2, 3)),
    "image": (lambda: nn.TotalVariation((5, 6), 0.3), (5, 6)),
    "mpc": (lambda: nn.LinearMPC(torch.eye(2) + 0.1, torch.ones(2, 1), 3, input_limit=0.4), (2,)),
    "mpc of stages": (lambda: stages(3, state_limit=20.0), (2,)),
    "mpc, sparse and soft": (lambda: stages(16, soft=1.0), (2,)),
}


@pytest.fixture(params=LAYERS)
def layer_and_shape(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, tuple[int, ...]]:
    make, shape = LAYERS[request.param]
    return make(), shape


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def test_gradient_is_that_of_differences(layer_and_shape) -> None:  # type: ignore[no-untyped-def]
    layer, shape = layer_and_shape
    layer = layer.to(F64)
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    inputs = (normal(3, *shape).requires_grad_(), *parameters)

    def function(y: Tensor, *parameters: Tensor) -> Tensor:
        return first(torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (y,)))

    assert torch.autograd.gradcheck(function, inputs, atol=1e-5)


def test_leading_dimensions_are_a_batch(layer_and_shape) -> None:  # type: ignore[no-untyped-def]
    layer, shape = layer_and_shape
    layer = layer.to(F64)
    y = normal(2, 3, *shape)
    together = first(layer(y))
    alone = torch.stack([torch.stack([first(layer(v)) for v in row]) for row in y])
    close(together, alone)


def test_float32_copies_and_pickles(layer_and_shape) -> None:  # type: ignore[no-untyped-def]
    layer, shape = layer_and_shape
    y = normal(4, *shape)
    expected = first(layer.to(F64)(y))
    single = layer.to(torch.float32)
    assert first(single(y.float())).dtype == torch.float32
    close(first(single(y.float())), expected, 1e-4)
    for twin in (copy.deepcopy(single), pickle.loads(pickle.dumps(single))):
        close(first(twin(y.float())), first(single(y.float())))


# --- what all layers share ------------------------------------------------------------------------------------

ARGUMENTS = {
    "BirkhoffProjection": ((), ((2, 3, 3),)),
    "BoxProjection": ((-1.0, 1.0), ((2, 3),)),
    "HalfspaceProjection": ((torch.eye(3), torch.ones(3)), ((2, 3),)),
    "L1BallProjection": ((), ((2, 3),)),
    "LInfBallProjection": ((), ((2, 3),)),
    "LinearMPC": ((torch.eye(2), torch.ones(2, 1), 3), ((2, 2),)),
    "MaxOfLinear": ((torch.eye(3),), ((2, 3),)),
    "MonotoneProjection": ((), ((2, 3),)),
    "OptNetLayer": ((3, 2), ((2, 3),)),
    "PiecewiseLinear": ((torch.tensor([0.0]), torch.tensor([0.0, 1.0])), ((2, 3),)),
    "Portfolio": ((), ((2, 3), (3, 3))),
    "QPLayer": ((), ((3, 3), (2, 3))),
    "ReLULayer": ((torch.eye(3), torch.zeros(3)), ((2, 3),)),
    "SafetyFilter": ((), ((2, 3), (2, 1), (2, 1), (2, 1, 3))),
    "SimplexProjection": ((), ((2, 3),)),
    "Sparsemax": ((), ((2, 3),)),
    "TotalVariation": ((3,), ((2, 3),)),
    "ElasticQPLayer": ((), ((3, 3), (2, 3))),
    "SVMHead": ((3,), ()),
}


def inputs_of(name: str, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    if name == "SVMHead":
        return [torch.randn(2, 6, 3), torch.tensor([0, 0, 1, 1, 2, 2]).repeat(2, 1), torch.randn(2, 2, 3)]
    return [torch.eye(shape[0]) if len(set(shape)) == 1 else torch.randn(*shape) for shape in shapes]


def test_every_layer_is_in_the_table() -> None:
    assert ARGUMENTS.keys() == set(nn.__all__) - {"Builder"}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_layers_return_the_whole_solution(name: str) -> None:
    arguments, shapes = ARGUMENTS[name]
    layer = getattr(nn, name)(*arguments)
    inputs = inputs_of(name, shapes)
    sol = layer.solution(*inputs[: 2 if name == "SVMHead" else None])
    lead = (2, 3) if name == "PiecewiseLinear" else (2,)
    assert sol.status.shape == lead
    assert sol.solved.all()
    out = layer(*inputs)
    assert (out[0] if isinstance(out, tuple) else out).shape[0] == 2
    for method in (type(layer).forward, type(layer).solution, type(layer)):
        assert method.__doc__, name


@pytest.mark.parametrize("name", ARGUMENTS)
def test_layers_check_their_options_when_they_are_made(name: str) -> None:
    arguments, _ = ARGUMENTS[name]
    make = getattr(nn, name)
    with pytest.raises(TypeError, match=r"settings is a dict, not Settings \(Settings\(\*\*settings\)\?\)"):
        make(*arguments, settings={"tolerance": 1e-6})
    with pytest.raises(TypeError, match="unexpected keyword 'tolerance'; solve takes settings, backend, check"):
        make(*arguments, tolerance=1e-6)
    with pytest.raises(TypeError, match="check is a str, not bool"):
        make(*arguments, check="no")
    assert "backend='reference'" in repr(make(*arguments, backend="reference"))


def test_representations_show_the_arguments() -> None:
    assert repr(nn.SimplexProjection(2.0)) == "SimplexProjection(radius=2)"
    assert repr(nn.BoxProjection(torch.zeros(3), 1.0)) == "BoxProjection(lb=tensor(3,), ub=1)"
    assert repr(nn.Portfolio(largest=0.5)) == "Portfolio(risk_aversion=1, largest=0.5, cost=0)"
    assert repr(nn.OptNetLayer(3, 2)) == "OptNetLayer(variables=3, inequalities=2, equalities=0)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.SimplexProjection(0.0), "radius > 0 is needed, not 0.0"),
        (lambda: nn.L1BallProjection(-1.0), "radius > 0"),
        (lambda: nn.LInfBallProjection(-1.0), "radius > 0"),
        (lambda: nn.BoxProjection(1.0, 0.0), "lb ≤ ub"),
        (lambda: nn.HalfspaceProjection(torch.eye(3), torch.ones(2)), r"not \(3, 3\), \(2,\)"),
        (lambda: nn.Portfolio(0.0), "risk_aversion > 0"),
        (lambda: nn.Portfolio(largest=0.1)(torch.ones(3), torch.eye(3)), "3 × 0.1 < 1"),
        (lambda: nn.Portfolio()(torch.ones(3), torch.eye(2)), r"covariance \(…, 3, 3\) is needed, not \(2, 2\)"),
        (lambda: nn.SafetyFilter(gain=-1.0), "gain > 0"),
        (lambda: nn.TotalVariation(3, -1.0), "weight > 0"),
        (lambda: nn.TotalVariation((2, 3))(torch.ones(3, 2)), r"\(…, 2, 3\) is needed, not \(3, 2\)"),
        (lambda: nn.SVMHead(1), "classes ≥ 2"),
        (lambda: nn.LinearMPC(torch.eye(2), torch.ones(2, 1), 0), "horizon ≥ 1"),
        (lambda: nn.LinearMPC(torch.ones(4, 2, 2), torch.ones(2, 1), 3), r"or \(horizon, nx, nx\), not \(4, 2, 2\)"),
        (lambda: nn.LinearMPC(torch.eye(2), torch.ones(2, 1), 3, -torch.eye(2)), "state_cost is not symmetric and pos"),
        (lambda: nn.LinearMPC(torch.eye(2), torch.ones(2, 1), 3, state_limit=(1.0, 0.0)), "state_limit: lower ≤ upper"),
        (lambda: nn.LinearMPC(torch.eye(2), torch.ones(2, 1), 3, soft=0.0), "soft > 0"),
        (lambda: nn.LinearMPC(torch.eye(2), torch.ones(2, 1), 3)(torch.ones(3)), r"x0 \(…, 2\) is needed, not \(3,\)"),
        (lambda: nn.OptNetLayer(3)(torch.ones(4)), r"\(…, 3\) is needed, not \(4,\)"),
        (lambda: nn.MaxOfLinear(torch.eye(3))(torch.ones(2)), r"\(…, 3\) is needed, not \(2,\)"),
    ],
)
def test_layers_speak_of_their_own_arguments(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_take_names() -> None:
    layer = nn.Portfolio(largest=0.5, names={"z": ["gold", "wood", "salt"]}, check=False)
    returns = torch.tensor([1.0, torch.nan, 0.0])
    assert "q[1]" in layer.solution(returns, torch.eye(3)).explain()
    covariance = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    assert "along wood (z[1])" in layer.solution(torch.zeros(3), covariance).explain()


def test_integers_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"the input has dtype torch\.int64"):
        nn.Sparsemax()(torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="the input is a list"):
        nn.SimplexProjection()([1.0])
    with pytest.raises(IndexError, match="dim=3"):
        nn.Sparsemax(dim=3)(torch.ones(3, 2))


# --- bounds hold exactly --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["f64", "f32"])
def test_sparsemax_is_entmaxs_with_true_zeros(dtype: torch.dtype) -> None:
    entmax = pytest.importorskip("entmax")
    y = (2 * torch.randn(1000, 10, generator=torch.Generator().manual_seed(0), dtype=F64)).to(dtype)
    mine, theirs = y.clone().requires_grad_(), y.clone().requires_grad_()
    z, expected = nn.Sparsemax()(mine), entmax.sparsemax(theirs, dim=-1)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(z, expected, atol=50 * eps, rtol=0)
    assert torch.equal(z == 0, expected == 0)
    assert not (z < 0).any()
    assert not z.detach().log().isnan().any()
    assert (z.sum(-1) - 1).abs().max() <= 4 * eps
    weights = torch.arange(10.0, dtype=dtype)
    for out in (z, expected):
        (out * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e3 * eps, rtol=0)


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("form", ["bounds", "rows", "numbers"])
def test_no_entry_is_beyond_its_bound(form: str, dtype: torch.dtype) -> None:
    """Active entries are their bounds, and slack or multiplier is zero, exactly."""
    g = torch.Generator().manual_seed(0)
    L, q, G = (torch.randn(*shape, generator=g, dtype=F64).to(dtype) for shape in ((60, 8, 8), (60, 8), (3, 8)))
    Q, lb, ub, eye = L @ L.mT + torch.eye(8, dtype=dtype), -torch.rand(8), torch.rand(8), torch.eye(8, dtype=dtype)
    lb, ub = (torch.full((8,), x, dtype=dtype) for x in (-0.3, 0.7)) if form == "numbers" else (lb.to(q), ub.to(q))
    if form == "rows":
        sol = optlayer.solve(Q, 4 * q, torch.cat([G, eye, -eye]), torch.cat([G[:, 0] * 0 + 0.5, ub, -lb]))
        upper, lower = sol.lam[:, 3:11], sol.lam[:, 11:]
    else:
        sides = {"lb": -0.3, "ub": 0.7} if form == "numbers" else {"lb": lb, "ub": ub}
        sol = optlayer.solve(Q, 4 * q, G, 0.5, **sides)
        upper, lower = sol.lam_ub, sol.lam_lb
    assert (sol.z >= lb).all()
    assert (sol.z <= ub).all()
    assert (sol.z == lb)[lower > 0].all()
    assert (sol.z == ub)[upper > 0].all()
    assert (lower > 0).any()
    assert (upper > 0).any()
    assert ((sol.s == 0) | (sol.lam == 0)).all()
