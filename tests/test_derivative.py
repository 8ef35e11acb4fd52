"""The derivative: finite differences, closed forms, promises, over backends × sharing × constraints × outputs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import optlayer
from optlayer import Diagonal, Settings, matrices
from optlayer.backends import cpu, reference
from optlayer.core.structure import NAMES
from optlayer.point import Point
from optlayer.problem import check

BACKENDS = [name for name in ("cpu", "reference") if optlayer.available()[name] is None]
OUTPUTS = ("z", "s", "lam", "nu", "lam_lb", "lam_ub")
F64 = torch.float64


@pytest.fixture(autouse=True)
def _where_the_backend_works(request: pytest.FixtureRequest) -> Iterator[None]:
    """New tensors lie on the GPU in tests of backend cuda."""
    on_gpu = "backend" in request.fixturenames and request.getfixturevalue("backend") == "cuda"
    with torch.device("cuda" if on_gpu else "cpu"):
        yield


def outputs(tensors: dict[str, Tensor], backend: str, **options: object) -> tuple[Tensor, ...]:
    Q = Diagonal(tensors["Q"]) if options.pop("diagonal", False) else tensors["Q"]
    sol = optlayer.solve(**{**tensors, "Q": Q}, backend=backend, **options)
    return tuple(getattr(sol, name) for name in OUTPUTS)


def draw(
    batched: str = "", parts: str = "GAlu", diagonal: bool = False, n: int = 4, batch: int = 2, margin: float = 0.02
) -> dict[str, Tensor]:
    """A random problem with some active sides, redrawn until every multiplier or its slack exceeds `margin`.

    batched: names of the tensors with a batch dimension, separated by spaces. parts: G, A, l(b), u(b).
    """
    torch.manual_seed(0)
    names = batched.split()

    def size(name: str, *shape: int) -> tuple[int, ...]:
        return (batch, *shape) if name in names else shape

    for _ in range(200):
        L = torch.randn(size("Q", n, n), dtype=F64)
        data = {"Q": torch.rand(size("Q", n), dtype=F64) + 0.5 if diagonal else L @ L.mT + torch.eye(n)}
        data["q"] = 2 * torch.randn(size("q", n), dtype=F64)
        z0 = torch.randn(n, dtype=F64)
        if "G" in parts:
            data["G"] = torch.randn(size("G", 3, n), dtype=F64)
            side = data["G"] @ z0 if "h" in names or "G" not in names else (data["G"] @ z0).amax(0)
            data["h"] = side.expand(size("h", 3)) + 0.3 * torch.rand(size("h", 3), dtype=F64)
        if "A" in parts:
            data["A"] = torch.randn(size("A", 1, n), dtype=F64)
            side = data["A"] @ z0 if "b" in names or "A" not in names else (data["A"] @ z0).mean(0)
            data["b"] = side.expand(size("b", 1)).clone()
        if "l" in parts:
            data["lb"] = z0 - 0.5 - torch.rand(size("lb", n), dtype=F64)
        if "u" in parts:
            data["ub"] = z0 + 0.5 + torch.rand(size("ub", n), dtype=F64)
        Q = Diagonal(data["Q"]) if diagonal else data["Q"]
        sol = optlayer.solve(**{**data, "Q": Q}, backend="reference", check=False)
        if not bool(sol.solved.all()):
            continue
        sides = [(sol.s, sol.lam)]
        sides += [(sol.z - data["lb"], sol.lam_lb)] if "l" in parts else []
        sides += [(data["ub"] - sol.z, sol.lam_ub)] if "u" in parts else []
        gap = min((float((s + lam).min()) for s, lam in sides if s.numel()), default=1.0)
        if gap > margin:
            return data
    raise AssertionError("no strictly complementary problem found")


def checked(data: dict[str, Tensor], backend: str, second: bool = True, **options: object) -> None:
    """gradcheck (reverse and forward) and gradgradcheck with respect to all tensors, of all outputs."""
    names, tensors = list(data), [x.clone().requires_grad_() for x in data.values()]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        found = outputs(dict(zip(names, values, strict=True)), backend, **options)
        return tuple(x for x in found if x.numel())

    assert gradcheck(function, tensors, atol=1e-6, rtol=1e-5, check_forward_ad=True)
    if second:
        assert gradgradcheck(function, tensors, atol=1e-5, rtol=1e-4)


# --- finite differences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", ["", "q", "Q q h", "q G h A b", "Q q G h A b lb ub"])
def test_first_and_second_derivatives_of_everything(batched: str) -> None:
    checked(draw(batched, n=3), BACKENDS[0])


def test_first_and_second_derivatives_by_every_backend(backend: str) -> None:
    """Of a small problem: `gradgradcheck` asks some hundred times."""
    data = draw("", "Gl", n=2)
    checked({name: data[name] for name in ("q", "G", "h", "lb")} | {"Q": data["Q"]}, backend)


@pytest.mark.parametrize("batched", ["", "Q q"])
def test_diagonal_Q(batched: str) -> None:
    checked(draw(batched, diagonal=True, n=3), BACKENDS[0], diagonal=True)


@pytest.mark.parametrize("parts", ["", "G", "A", "l", "u", "Gl", "Au", "lu"])
def test_absent_parts(parts: str) -> None:
    checked(draw("q", parts), BACKENDS[0])


def along(
    data: dict[str, Tensor], backend: str, step: float, quadratic: float = 0.1, **options: object
) -> tuple[list[Tensor], dict[str, float]]:
    """First and second derivatives along random directions of the data, of a random function of all outputs.

    Returns the gradients, and the worst errors of (gradient, direction) and of the gradient's derivative along the
    direction against central differences, by tensor.
    """
    torch.manual_seed(1)
    weights = [torch.randn_like(x) for x in outputs(data, backend, **options)]
    directions = {name: torch.randn_like(x) for name, x in data.items()}

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        found = outputs(tensors, backend, **options)
        return torch.stack([(w * x + quadratic * x**2).sum() for w, x in zip(weights, found, strict=True)]).sum()

    def gradients(at: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        leaves = {name: x.detach().clone().requires_grad_() for name, x in at.items()}
        return leaves, torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)

    leaves, first = gradients(data)
    flat = sum((g * directions[name]).sum() for name, g in zip(data, first, strict=True))
    second = torch.autograd.grad(flat, list(leaves.values()))
    ends = [gradients({name: x + sign * step * directions[name] for name, x in data.items()})[1] for sign in (1, -1)]
    errors = {}
    for name, hessian, up, down in zip(data, second, *ends, strict=True):
        slope = (up - down) / (2 * step)
        errors[name] = float((hessian - slope).abs().max() / (1 + slope.abs().max()))
    return [x.detach() for x in first], errors


def in_words(errors: dict[str, float]) -> str:
    return ", ".join(f"{name} {error:.0e}" for name, error in errors.items())


def test_backends_agree_on_larger_problems() -> None:
    """And with central differences along random directions, whose worst errors are printed for the record."""
    data = draw("q h", n=20)
    found = {}
    for backend in BACKENDS:
        found[backend], errors = along(data, backend, 1e-6)
        print(f"{backend}: second derivatives against central differences: {in_words(errors)}")
        assert max(errors.values()) < 1e-5
    for mine, theirs in zip(*found.values(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("diagonal", [False, True])
def test_gradients_against_central_differences(backend: str, diagonal: bool) -> None:
    data = draw("q G", diagonal=diagonal, n=3)
    names, step = list(data), 1e-6
    leaves = [x.clone().requires_grad_() for x in data.values()]
    found = outputs(dict(zip(names, leaves, strict=True)), backend, diagonal=diagonal)
    weights = [torch.randn_like(x) for x in found]
    grads = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, found, strict=True)), leaves)
    errors = {}
    for name, gradient in zip(names, grads, strict=True):
        direction = torch.randn_like(data[name])
        ends = [outputs({**data, name: data[name] + x * direction}, backend, diagonal=diagonal) for x in (step, -step)]
        slope = sum(float((w * (up - down)).sum()) for w, up, down in zip(weights, *ends, strict=True)) / (2 * step)
        errors[name] = abs(slope - float((gradient * direction).sum())) / (1 + abs(slope))
    print(f"{backend}: gradients against central differences: {in_words(errors)}")
    assert max(errors.values()) < 1e-6


def test_float32_gradients_are_those_of_float64(backend: str) -> None:
    data = draw("q", n=6)
    found = []
    for dtype in (torch.float32, F64):
        leaves = [x.to(dtype).requires_grad_() for x in data.values()]
        z = outputs(dict(zip(data, leaves, strict=True)), backend)[0]
        found.append(torch.autograd.grad(z.square().sum(), leaves))
    for single, double in zip(*found, strict=True):
        assert single.dtype == torch.float32
        assert torch.allclose(single.double(), double, atol=2e-3, rtol=2e-3)


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_without_constraints_it_is_a_linear_system(backend: str) -> None:
    data = draw(parts="")
    inverse = torch.linalg.inv(data["Q"])
    J = torch.func.jacrev(lambda q: optlayer.solve(data["Q"], q, backend=backend).z)(data["q"])
    assert torch.allclose(J, -inverse)


def test_projection_onto_a_halfspace(backend: str) -> None:
    """min ½‖z − c‖² s.t. aᵀz ≤ 1: ∂z/∂c = I − aaᵀ/aᵀa, ∂z/∂h = a/aᵀa, lam = (aᵀc − 1)/aᵀa."""
    a = torch.tensor([1.0, 2.0, -1.0], dtype=F64)
    c, h = torch.tensor([2.0, 1.0, 0.5], dtype=F64), torch.ones(1, dtype=F64)

    def solution(c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        sol = optlayer.solve(torch.eye(3, dtype=F64), -c, a[None], h, backend=backend)
        return sol.z, sol.lam

    (z_c, z_h), (lam_c, lam_h) = torch.func.jacrev(solution, argnums=(0, 1))(c, h)
    aa = a @ a
    assert torch.allclose(z_c, torch.eye(3, dtype=F64) - torch.outer(a, a) / aa)
    assert torch.allclose(z_h[:, 0], a / aa)
    assert torch.allclose(lam_c[0], a / aa)
    assert torch.allclose(lam_h, -1 / aa[None, None])


def test_box_passes_gradients_to_whoever_holds_the_variable(backend: str) -> None:
    c = torch.tensor([-2.0, 0.5, 2.0], dtype=F64)
    lb, ub = -torch.ones(3, dtype=F64), torch.ones(3, dtype=F64)
    Q = Diagonal(torch.ones(3, dtype=F64))

    def solution(c: Tensor, lb: Tensor, ub: Tensor) -> Tensor:
        return optlayer.solve(Q, -c, lb=lb, ub=ub, backend=backend).z

    J = torch.func.jacrev(solution, (0, 1, 2))(c, lb, ub)
    for found, held in zip(J, ([0, 1, 0], [1, 0, 0], [0, 0, 1]), strict=True):
        assert torch.allclose(found, torch.diag(torch.tensor(held, dtype=F64)))


# --- what is promised about the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES[:8])
def test_shared_tensors_get_the_sum_over_the_batch(name: str, backend: str) -> None:
    data = draw("q")
    batch = 2
    apart = {key: x if x.dim() > (2 if key in "QGA" else 1) else x.expand(batch, *x.shape) for key, x in data.items()}
    grads = []
    for tensors in (data, apart):
        leaf = tensors[name].clone().requires_grad_()
        found = outputs({**tensors, name: leaf}, backend)
        grads.append(torch.autograd.grad(sum(x.square().sum() for x in found), leaf)[0])
    together, each = grads
    assert together.shape == data[name].shape
    assert torch.allclose(together, each if together.dim() == each.dim() else each.sum(0), atol=1e-9)


def test_only_what_is_needed_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    formed: list[torch.Size] = []
    original = matrices.outer_products

    def spy(kind: object, M: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        formed.append(M.shape)
        return original(kind, M, *pairs)

    monkeypatch.setattr(matrices, "outer_products", spy)
    data = draw("q")
    for name, shapes in (("q", []), ("h", []), ("lb", []), ("G", [data["G"].shape]), ("A", [data["A"].shape])):
        formed.clear()
        leaf = data[name].clone().requires_grad_()
        outputs({**data, name: leaf}, "reference")[0].sum().backward()
        assert formed == shapes


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled core")
def test_backward_gets_the_factor_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, used = [], []
    solve = cpu.solve

    def spy_solve(*args: object) -> object:
        point = solve(*args)
        kept.append([x.data_ptr() for x in point.factor])
        return point

    def spy(name: str) -> None:
        function = getattr(cpu, name)

        def inner(problem: object, settings: object, point: Point, *others: object) -> object:
            used.append([x.data_ptr() for x in point.factor])
            return function(problem, settings, point, *others)

        monkeypatch.setattr(cpu, name, inner)

    monkeypatch.setattr(cpu, "solve", spy_solve)
    spy("kkt_solve"), spy("pullback")
    data = draw("q")
    leaf = data["q"].requires_grad_()
    z = outputs(data, "cpu")[0]
    for _ in range(2):
        z.sum().backward(retain_graph=True)
    torch.autograd.grad(torch.autograd.grad(z.square().sum(), leaf, create_graph=True)[0].sum(), leaf)
    assert kept[0]
    assert len(used) > 2
    assert used == kept * len(used)
    assert len(kept) == 1
    kept.clear()
    with torch.no_grad():
        outputs(data, "cpu")
    assert kept == [[]]  # nothing is kept where no gradient is asked for


def test_infinite_sides_have_zero_gradients(backend: str) -> None:
    inf = torch.inf
    leaves = {
        "Q": torch.eye(2, dtype=F64), "q": torch.tensor([-2.0, -1.0], dtype=F64),
        "G": torch.ones(2, 2, dtype=F64), "h": torch.tensor([1.0, inf], dtype=F64),
        "lb": torch.tensor([-inf, 0.0], dtype=F64), "ub": torch.tensor([inf, inf], dtype=F64),
    }  # fmt: skip
    for x in leaves.values():
        x.requires_grad_()
    sol = optlayer.solve(**leaves, backend=backend)
    assert sol.s[1] == inf
    total = sum((getattr(sol, name) ** 2).nan_to_num(0, 0).sum() for name in OUTPUTS)
    grads = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    assert all(bool(g.isfinite().all()) for g in grads.values())
    assert grads["h"][1] == 0
    assert not grads["G"][1].any()
    assert not grads["ub"].any()
    assert grads["lb"][0] == 0
    fixed = {name: x.detach() for name, x in leaves.items()}
    tangent = torch.func.jvp(
        lambda q: optlayer.solve(**{**fixed, "q": q}, backend=backend).s, (fixed["q"],), (torch.ones(2, dtype=F64),)
    )[1]
    assert tangent[1] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_failing_members_have_zero_gradients_whatever_flows_in(value: float, backend: str) -> None:
    """Member 1 is infeasible, member 2 has NaN data, and their upstream gradients are not finite."""
    n = 2
    q = torch.randn(3, n, dtype=F64)
    q[2, 0] = torch.nan
    lb = torch.zeros(3, n, dtype=F64)
    lb[1] = 2.0
    shared = {"Q": torch.eye(n, dtype=F64), "G": torch.ones(1, n, dtype=F64), "h": torch.ones(1, dtype=F64)}
    leaves = {**shared, "q": q, "lb": lb}
    for x in leaves.values():
        x.requires_grad_()
    sol = optlayer.solve(**leaves, backend=backend, check=False)
    assert sol.status[0] == optlayer.Status.SOLVED
    assert (sol.status[1:] != optlayer.Status.SOLVED).all()
    upstream = [torch.full_like(x, value) for x in (sol.z, sol.s, sol.lam)]
    for x in upstream:
        x[0] = 1.0
    found = torch.autograd.grad((sol.z, sol.s, sol.lam), list(leaves.values()), upstream, retain_graph=True)
    grads = dict(zip(leaves, found, strict=True))
    assert not grads["q"][1:].any()
    assert not grads["lb"][1:].any()
    (first,) = torch.autograd.grad(sol.z[0].square().sum() + sol.s[1:].sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), q)
    assert not second[1:].any()
    alone = {k: (x if k in shared else x[:1]).detach().requires_grad_() for k, x in leaves.items()}
    one = optlayer.solve(**alone, backend=backend)
    expected = torch.autograd.grad((one.z.sum() + one.s.sum() + one.lam.sum()), list(alone.values()))
    for (name, mine), theirs in zip(grads.items(), expected, strict=True):
        assert torch.allclose(mine if name in shared else mine[:1], theirs, atol=1e-10), name


# --- where the solution map has kinks --------------------------------------------------------------------------------


def test_at_a_kink_the_weakly_active_side_is_inactive_or_active(backend: str) -> None:
    """z = max(c, 0) at c = 0: an element of the generalised Jacobian's ends, and finite."""
    c = torch.zeros(1, dtype=F64, requires_grad=True)
    z = optlayer.solve(torch.ones(1, 1, dtype=F64), -c, lb=torch.zeros(1, dtype=F64), backend=backend).z
    z.sum().backward()
    assert abs(float(z)) < 1e-9
    assert min(abs(float(c.grad)), abs(float(c.grad) - 1)) < 1e-6


def test_duplicated_rows_share_their_multiplier(backend: str) -> None:
    """The gradient of z is that without the copy; that of h is split over the copies, evenly by the reference."""
    G, h, q = (torch.tensor(x, dtype=F64) for x in ([[1.0, 1.0]], [1.0], [-2.0, -1.0]))
    Q = torch.eye(2, dtype=F64)
    found = []
    for copies in (1, 2):
        leaves = [q.clone().requires_grad_(), G.repeat(copies, 1).requires_grad_(), h.repeat(copies).requires_grad_()]
        z = optlayer.solve(Q, *leaves, backend=backend).z
        found.append(torch.autograd.grad((z * torch.tensor([1.0, 3.0])).sum(), leaves))
    (q1, G1, h1), (q2, G2, h2) = found
    assert torch.allclose(q1, q2, atol=1e-8)
    assert torch.allclose(h2.sum(), h1[0], atol=1e-7)
    if backend == "reference":
        assert torch.allclose(h2, h1.expand(2) / 2, atol=1e-7)
    assert torch.allclose(G2.sum(0), G1[0], atol=1e-7)


def test_duplicated_equalities(backend: str) -> None:
    A, b, q = (torch.tensor(x, dtype=F64) for x in ([[1.0, 1.0, 0.0]], [1.0], [-2.0, -1.0, 0.5]))
    Q = torch.eye(3, dtype=F64)
    found = []
    for copies in (1, 2):
        leaves = [q.clone().requires_grad_(), A.repeat(copies, 1), b.repeat(copies).requires_grad_()]
        z = optlayer.solve(Q, leaves[0], A=leaves[1], b=leaves[2], backend=backend).z
        found.append(torch.autograd.grad((z * torch.tensor([1.0, 3.0, 1.0])).sum(), [leaves[0], leaves[2]]))
    (q1, b1), (q2, b2) = found
    assert torch.allclose(q1, q2, atol=1e-8)
    assert torch.allclose(b2.sum(), b1[0], atol=1e-7)
    if backend == "reference":
        assert torch.allclose(b2, b1.expand(2) / 2, atol=1e-7)


def test_vertex_of_an_lp_does_not_move_with_the_cost(backend: str) -> None:
    q = torch.tensor([-1.0, -2.0], dtype=F64, requires_grad=True)
    h = torch.tensor([1.0], dtype=F64, requires_grad=True)
    zero = torch.zeros(2, 2, dtype=F64)
    z = optlayer.solve(zero, q, torch.ones(1, 2, dtype=F64), h, lb=torch.zeros(2, dtype=F64), backend=backend).z
    assert torch.allclose(z, torch.tensor([0.0, 1.0], dtype=F64), atol=1e-8)
    (grad_q, grad_h) = torch.autograd.grad(z[1] + 3 * z[0], [q, h])
    assert torch.allclose(grad_q, torch.zeros(2, dtype=F64), atol=1e-7)
    assert torch.allclose(grad_h, torch.ones(1, dtype=F64), atol=1e-7)


def gradients_in_units(data: dict[str, Tensor], seed: int, largest: int, backend: str) -> dict[str, Tensor]:
    """Gradients of all outputs, weighted, where variables, rows and objective are in units over 2^±largest.

    The problem is scaled exactly, and its outputs back, so that they are those of `data`, whatever the units are.
    """
    r = torch.Generator("cpu").manual_seed(seed)
    leaves = {name: x.clone().requires_grad_() for name, x in data.items()}
    n, p, m = data["q"].shape[-1], *(len(data.get(name, ())) for name in "GA")

    def powers(count: int) -> Tensor:
        return 2.0 ** torch.randint(-largest, largest + 1, (count,), generator=r, device="cpu").to(data["q"])

    D, E, F, c = powers(n), powers(p), powers(m), powers(1)
    scales = {
        "Q": c * D * D[:, None], "q": c * D, "G": E[:, None] * D, "h": E, "A": F[:, None] * D, "b": F, "lb": 1 / D,
        "ub": 1 / D,
    }  # fmt: skip
    moved: dict[str, Any] = {name: scales[name] * x for name, x in leaves.items()}
    if backend == "sparse":
        moved |= {name: optlayer.Sparse.from_dense(moved[name]) for name in "QGA" if name in moved}
    sol = optlayer.solve(**moved, backend="cpu" if backend == "sparse" else backend)
    back = {"z": D, "nu": F / c, "lam": E / c, "lam_lb": 1 / (c * D), "lam_ub": 1 / (c * D)}
    total = torch.zeros((), dtype=F64)
    for name, unit in back.items():
        if getattr(sol, name).numel():
            total = total + (unit * getattr(sol, name) * torch.linspace(1, 2, len(unit), dtype=F64)).sum()
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


@pytest.mark.parametrize("form", [*BACKENDS, "sparse"])
@pytest.mark.parametrize("largest", [20, 40])
@pytest.mark.parametrize("parts", ["", "l", "G", "A", "lu", "GAlu"])
def test_units_decide_no_gradient(parts: str, largest: int, form: str) -> None:
    if form == "sparse" and "cpu" not in BACKENDS:
        pytest.skip("the core is not compiled")
    data = draw(parts=parts)
    right = gradients_in_units(data, 0, 0, form)
    for seed in range(10):
        for name, gradient in gradients_in_units(data, seed, largest, form).items():
            assert torch.allclose(gradient, right[name], rtol=1e-6, atol=1e-6 * float(right["q"].abs().max())), name


def test_units_of_three_variables(backend: str) -> None:
    """Q = D W D, q = −D 1: D dq = −W⁻¹ w of the loss w'D z, whatever D is."""
    W = torch.tensor([[2, 0.5, 0.3], [0.5, 1, 0.2], [0.3, 0.2, 1.5]], dtype=F64)
    w = torch.tensor([1.0, 2.0, -1.0], dtype=F64)
    for power in (4, 5, 6, 9):
        D = torch.tensor([10.0**-power, 1.0, 10.0**power], dtype=F64)
        q = (-D).requires_grad_()
        (D * optlayer.solve(D * W * D[:, None], q, backend=backend).z @ w).backward()
        assert q.grad is not None
        assert torch.allclose(D * q.grad, -torch.linalg.solve(W, w), rtol=1e-9)


@pytest.mark.parametrize("unit", [1.0, 2.0**-10, 2.0**-20])
def test_the_bound_without_a_multiplier_gets_no_gradient(unit: float, backend: str) -> None:
    """A linear program between bounds, which is all at one of them; a row of zeros says nothing."""
    lb, ub = (torch.tensor([x * unit], dtype=F64, requires_grad=True) for x in (2.2, 3.5))
    q = torch.tensor([[1.8], [-3.2], [-2.6]], dtype=F64) / unit
    h = torch.tensor([[0.4], [0.2], [0.1]], dtype=F64) * unit
    G = torch.zeros(1, 1, dtype=F64)
    z = optlayer.solve(torch.zeros(1, 1, dtype=F64), q, G, h, lb=lb, ub=ub, backend=backend).z
    (z[:, 0] @ torch.tensor([-1.0, 0.5, 0.25], dtype=F64)).backward()
    assert float(lb.grad) == pytest.approx(-1)
    assert float(ub.grad) == pytest.approx(0.75)


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("rank", [2, 5])
def test_flat_directions_do_not_blow_a_gradient_up(rank: int, dtype: torch.dtype, form: str) -> None:
    """Qz = c has many solutions: what asks for the part of z that c does not determine gets nothing for it."""
    for seed in range(12):
        torch.manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(6, 6, dtype=F64)).Q[:, :rank]
        Q = (basis * torch.logspace(0, -1, rank, dtype=F64)) @ basis.mT
        determined, any_direction = Q @ torch.randn(6, dtype=F64), torch.randn(6, dtype=F64)
        data, ones = Q.to(dtype), torch.ones(6, dtype=dtype)
        q = (Q @ torch.randn(6, dtype=F64)).to(dtype).requires_grad_()
        Q_given = data if form == "dense" else optlayer.Sparse.from_dense(data)
        z = optlayer.solve(Q_given, q, lb=-100 * ones, ub=100 * ones, backend="cpu").z
        (grad,) = torch.autograd.grad(z, q, determined.to(dtype), retain_graph=True)
        torch.testing.assert_close(Q @ grad.to(F64), -determined, rtol=0, atol=1e-9 if dtype is F64 else 2e-5)
        (grad,) = torch.autograd.grad(z, q, any_direction.to(dtype))
        assert grad.norm() < 100 * any_direction.norm(), (seed, grad)


def test_fixed_variables_follow_their_bounds(backend: str) -> None:
    """lb = ub: the variable does not move with q, and moves with its two bounds together."""
    Q = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=F64)
    q, lb, ub = (torch.tensor(x, dtype=F64, requires_grad=True) for x in ([1.0, 1.0], [0.5, -9.0], [0.5, 9.0]))
    z = optlayer.solve(Q, q, lb=lb, ub=ub, backend=backend).z
    assert torch.allclose(z, torch.tensor([0.5, -0.75], dtype=F64))
    grad_q, grad_lb, grad_ub = torch.autograd.grad(z.sum(), [q, lb, ub])
    assert torch.allclose(grad_q, torch.tensor([0.0, -0.5], dtype=F64), atol=1e-8)
    assert torch.allclose(grad_lb + grad_ub, torch.tensor([0.5, 0.0], dtype=F64), atol=1e-8)


# --- the smoothed gradient -------------------------------------------------------------------------------------------


def relaxed(data: dict[str, Tensor], settings: Settings) -> list[Tensor]:
    problem = check(**data)
    point = reference.relax(problem, settings, reference.solve(problem, settings, False), False)
    return [x.squeeze(0) for x in point.fields()[:6]]


def test_smoothed_gradient_in_closed_form(backend: str) -> None:
    """min ½(z − c)² s.t. z ≤ 0: lam = c − z, lam (−z) = κ, hence z = (c − √(c² + 4κ))/2 at the relaxed point."""
    kappa = 0.05
    c = torch.linspace(-2, 2, 9, dtype=F64).unsqueeze(-1).requires_grad_()
    z = optlayer.solve(
        torch.ones(1, 1, dtype=F64), -c, torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64), backend=backend,
        settings=Settings(gradient="smoothed", smoothing=kappa),
    ).z  # fmt: skip
    assert torch.allclose(z, c.clamp(max=0), atol=1e-9)  # the value stays exact
    (slope,) = torch.autograd.grad(z.sum(), c, create_graph=True)
    root = (c**2 + 4 * kappa).sqrt()
    assert torch.allclose(slope, 0.5 * (1 - c / root), atol=1e-8)
    (curve,) = torch.autograd.grad(slope.sum(), c)
    assert torch.allclose(curve, -0.5 * 4 * kappa / root**3, atol=1e-7)


def test_smoothed_gradient_is_that_of_the_relaxed_path(backend: str) -> None:
    data = draw(n=3)
    settings = Settings(gradient="smoothed", smoothing=0.1)
    leaves = [x.clone().requires_grad_() for x in data.values()]
    found = outputs(dict(zip(data, leaves, strict=True)), backend, settings=settings)
    weights = [torch.randn_like(x) for x in found]
    grads = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, found, strict=True)), leaves)
    step = 1e-5
    for name, gradient in zip(data, grads, strict=True):
        direction = torch.randn_like(data[name])
        up, down = (relaxed({**data, name: data[name] + sign * step * direction}, settings) for sign in (1, -1))
        slope = sum(float((w * (a - b)).sum()) for w, a, b in zip(weights, up, down, strict=True)) / (2 * step)
        assert abs(slope - float((gradient * direction).sum())) < 1e-5 * (1 + abs(slope)), name


def test_smoothed_second_derivatives() -> None:
    settings = Settings(gradient="smoothed", smoothing=0.1)
    data = draw(n=3)
    # the loss has exact values and relaxed derivatives, so that only linear terms are consistent: weights alone
    _, errors = along(data, BACKENDS[0], 1e-4, quadratic=0.0, settings=settings)
    print(f"smoothed: second derivatives against central differences: {in_words(errors)}")
    assert max(errors.values()) < 1e-5


def test_smoothed_gradient_with_fixed_and_absent_sides(backend: str) -> None:
    inf = torch.inf
    q, lb, ub, h = (
        torch.tensor(x, dtype=F64, requires_grad=True)
        for x in ([1.0, 1.0, -1.0], [0.5, -9.0, -inf], [0.5, inf, inf], [1.0, inf])
    )
    Q = torch.eye(3, dtype=F64) + 0.5
    settings = Settings(gradient="smoothed", smoothing=1e-2)
    sol = optlayer.solve(Q, q, torch.ones(2, 3, dtype=F64), h, lb=lb, ub=ub, settings=settings, backend=backend)
    grads = torch.autograd.grad(sol.z.square().sum(), [q, lb, ub, h], create_graph=True)
    assert all(bool(g.isfinite().all()) for g in grads)
    assert grads[0][0].abs() < 1e-9
    assert grads[3][1] == 0
    second = torch.autograd.grad(grads[0].sum(), [q, lb, ub, h])
    assert all(bool(g.isfinite().all()) for g in second)
