"""The drop-in for qpth keeps qpth's promises; and, where qpth is installed, agrees with it."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer.compat.qpth import qp as compat
from optlayer.compat.qpth.qp import QPFunction, QPSolvers

F64 = torch.float64
NAMES = "QpGhAb"
EMPTY = torch.Tensor()  # as users write it: one dimension, no entry, float32


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def problem(batch: int = 0, n: int = 6, p: int = 4, m: int = 2, batched: str = "") -> list[Tensor]:
    """Q, p, G, h, A, b around a feasible point; the letters of `batched` have a batch dimension."""
    L, z0, G, A = normal(n, n), normal(n), normal(p, n), normal(m, n)
    tensors = [L @ L.mT + torch.eye(n, dtype=F64), 3 * normal(n), G, G @ z0 + 0.2, A, A @ z0]
    for i, letter in enumerate(NAMES):
        if letter in batched:
            noise = {"Q": 0.0, "p": 2.0}.get(letter, 0.05) * normal(batch, *tensors[i].shape)
            factor = 1 + torch.rand(batch, *[1] * tensors[i].dim(), dtype=F64) * (letter == "Q")
            tensors[i] = factor * tensors[i] + noise
    return tensors


def gradients(function: Any, tensors: list[Tensor], up: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in tensors]
    return torch.autograd.grad(function(*leaves), leaves, up)


# --- conventions ----------------------------------------------------------------------------------------------

PATTERNS = ["", "p", "Qp", "ph", "QpGhAb", "Gh", "pb", "A"]


@pytest.mark.parametrize("batched", PATTERNS)
def test_solution_is_that_of_solve_and_always_has_a_batch(batched: str) -> None:
    tensors = problem(5, batched=batched)
    z = QPFunction(verbose=-1)(*tensors)
    Q, q, G, h, A, b = tensors
    expected = optlayer.solve(Q, q, G, h, A, b).z
    assert z.shape == (5 if batched else 1, 6)
    close(z, expected if batched else expected[None])


@pytest.mark.parametrize("empty", [EMPTY, torch.empty(0, dtype=F64), torch.autograd.Variable(torch.Tensor())])
def test_an_empty_tensor_is_an_absent_part(empty: Tensor) -> None:
    Q, p, G, h, A, b = problem(5, batched="p")
    close(QPFunction()(Q, p, G, h, empty, empty), optlayer.solve(Q, p, G, h).z)
    close(QPFunction()(Q, p, empty, empty, A, b), optlayer.solve(Q, p, A=A, b=b).z)
    close(QPFunction()(Q, p, empty, empty, empty, empty), -torch.linalg.solve(Q, p.mT).mT)
    shaped = torch.empty(5, 0, 6, dtype=F64), torch.empty(5, 0, dtype=F64)
    close(QPFunction()(Q, p, G, h, *shaped), optlayer.solve(Q, p, G, h).z)


def test_the_calls_of_public_code_work() -> None:
    Q, p, G, h, _, _ = problem(3, batched="QpGh")
    expected = optlayer.solve(Q, p, G, h).z
    for options in (
        {"verbose": False}, {"verbose": False, "maxIter": 15}, {"verbose": -1, "check_Q_spd": False, "eps": 1e-3},
        {"eps": 1e-24, "maxIter": 100}, {"eps": 1e-5, "maxIter": 20000}, {"maxIter": 1, "notImprovedLim": 3},
        {"solver": QPSolvers.PDIPM_BATCHED}, {"solver": QPSolvers.CVXPY, "maxIter": 50},
    ):
        close(QPFunction(**options)(Q, p, G, h, EMPTY, EMPTY), expected, 100 * options.get("eps", 1e-10) + 1e-8)
    close(QPFunction(1e-12, -1, 3, 20, QPSolvers.PDIPM_BATCHED, True)(Q, p, G, h, EMPTY, EMPTY), expected)
    single = QPFunction(verbose=-1)(Q.float(), p.float(), G.float(), h.float(), EMPTY, EMPTY)
    assert single.dtype == torch.float32
    close(single, expected.float(), 1e-3)


def test_a_cost_that_is_not_positive_definite_raises_unless_told_not_to() -> None:
    Q, p, G, h, A, b = problem(3, batched="p")
    bad = Q - 100 * torch.eye(6, dtype=F64)
    with pytest.raises(RuntimeError, match="Q is not SPD"):
        QPFunction()(bad, p, G, h, A, b)
    with pytest.raises(RuntimeError, match="Q is not SPD"):
        QPFunction()(torch.stack([Q, bad, Q]), p, G, h, A, b)
    singular = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=F64))
    box = torch.cat([torch.eye(6), -torch.eye(6)]).to(F64), torch.ones(12, dtype=F64)
    with pytest.raises(RuntimeError, match="Q is not SPD"):
        QPFunction()(singular, p, *box, EMPTY, EMPTY)
    z = QPFunction(check_Q_spd=False)(singular, p, *box, EMPTY, EMPTY)
    close(z, -torch.cat([p[:, :5].clamp(-1, 1), p[:, 5:].sign()], 1))


def test_shapes_that_do_not_fit_raise() -> None:
    Q, p, G, h, A, b = problem()
    with pytest.raises(ValueError, match="expected"):
        QPFunction()(Q, p, G, h[:-1], A, b)
    with pytest.raises(ValueError, match="empty"):
        QPFunction()(Q, EMPTY, G, h, A, b)
    with pytest.raises(ValueError, match="shared_gradient"):
        QPFunction(shared_gradient="product")  # type: ignore[arg-type]


# --- members that cannot be solved ----------------------------------------------------------------------------


def infeasible() -> list[Tensor]:
    """Three members of z ≤ h, −z ≤ −1; the second contradicts itself."""
    one = torch.ones(1, 1, dtype=F64)
    h = torch.tensor([[2.0, -1.0], [0.0, -1.0], [1.5, -1.0]], dtype=F64)
    return [one, torch.zeros(1, dtype=F64), torch.cat([one, -one]), h.requires_grad_(), EMPTY, EMPTY]


def test_an_infeasible_member_warns_and_spoils_no_other() -> None:
    tensors = infeasible()
    with pytest.warns(UserWarning, match="member 1 of the batch: no point satisfies the constraints"):
        z = QPFunction()(*tensors)
    close(z[[0, 2]], torch.ones(2, 1, dtype=F64))
    (grad,) = torch.autograd.grad(z.sum(), tensors[3])
    close(z[1], torch.tensor([0.5], dtype=F64))  # the middle between z ≤ 0 and z ≥ 1, which moves with both
    close(grad, torch.tensor([[0.0, -1.0], [0.5, -0.5], [0.0, -1.0]], dtype=F64))


def test_verbose_minus_one_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QPFunction(verbose=-1)(*infeasible())
    assert capfd.readouterr() == ("", "")


# --- gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "p", "m"), [(10, 3, 2), (10, 3, 0), (10, 1, 3), (4, 8, 1)])
def test_gradients_are_those_of_differences(n: int, p: int, m: int) -> None:
    tensors = problem(n=n, p=p, m=m)
    if not m:
        tensors[4:] = [EMPTY, EMPTY]
    inputs = [x.requires_grad_() if x.numel() else x for x in tensors]

    def symmetric(Q: Tensor, *rest: Tensor) -> Tensor:
        return QPFunction()(0.5 * (Q + Q.mT), *rest)

    assert torch.autograd.gradcheck(symmetric, inputs, atol=1e-6)


@pytest.mark.parametrize("letter", NAMES)
def test_a_shared_tensor_receives_the_mean_by_default_and_the_sum_on_request(letter: str) -> None:
    batch, others = 4, NAMES.replace(letter, "")
    tensors, up = problem(batch, batched=others), normal(batch, 6)
    i = NAMES.index(letter)
    each = list(tensors)
    each[i] = tensors[i].expand(batch, *tensors[i].shape)  # a batched tensor: one gradient for each member
    members = gradients(QPFunction(), each, up)[i]
    close(gradients(QPFunction(), tensors, up)[i], members.mean(0))
    close(gradients(QPFunction(shared_gradient="sum"), tensors, up)[i], members.sum(0))
    # Those that have a batch are as they were.
    for kind in ("mean", "sum"):
        function = QPFunction(shared_gradient=kind)  # type: ignore[arg-type]
        for k, other in enumerate(gradients(function, tensors, up)):
            if k != i:
                close(other, gradients(QPFunction(), each, up)[k])


def test_the_mean_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "_said_mean", False)
    tensors, up = problem(3, batched="p"), normal(3, 6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradients(QPFunction(shared_gradient="sum"), tensors, up)
        assert not caught
        gradients(QPFunction(), tensors, up)
        gradients(QPFunction(), tensors, up)
    assert len(caught) == 1
    assert "shared_gradient" in str(caught[0].message)


def test_what_needs_no_gradient_gets_none() -> None:
    Q, p, G, h, A, b = problem(3, batched="p")
    p.requires_grad_()
    z = QPFunction()(Q, p, G, h, A, b)
    z.sum().backward()
    assert p.grad is not None
    assert all(x.grad is None for x in (Q, G, h, A, b))


# --- beside qpth itself ---------------------------------------------------------------------------------------


def of_the_active_set(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """The solution by one linear solve with the active rows as equations, through which autograd differentiates."""
    with torch.no_grad():
        slack = h - (QPFunction(verbose=-1)(Q, p, G, h, A, b)[:, None] @ G.mT)[:, 0]
    answers = []
    for i, active in enumerate(slack < 1e-7):
        batched = zip((Q, p, G, h, A, b), (3, 2) * 3, strict=True)
        Q_, p_, G_, h_, A_, b_ = (x[i] if x.dim() == dim else x for x, dim in batched)
        rows = torch.cat([G_[active], A_]) if A.numel() else G_[active]
        sides = torch.cat([h_[active], b_]) if A.numel() else h_[active]
        zero = rows.new_zeros(len(rows), len(rows))
        K = torch.cat([torch.cat([0.5 * (Q_ + Q_.mT), rows.mT], 1), torch.cat([rows, zero], 1)])
        answers.append(torch.linalg.solve(K, torch.cat([-p_, sides]))[: len(Q_)])
    return torch.stack(answers)


@pytest.mark.parametrize("batched", [pattern for pattern in PATTERNS if pattern])
def test_agrees_with_qpth(batched: str) -> None:
    """Solutions to 1e-8 and gradients to 1e-6 of their size; ours to 1e-9 of the truth.

    qpth keeps slacks at 1e-8 at least when it differentiates, which is what lies between.
    """
    qpth = pytest.importorskip("qpth.qp")
    ours, theirs = QPFunction(verbose=-1), qpth.QPFunction(verbose=-1, maxIter=50)
    for n, p, m in ((6, 4, 2), (10, 5, 0), (8, 10, 3)):
        tensors, given = problem(5, n, p, m, batched), 6 if m else 4
        tensors, rest, up = tensors[:given], [EMPTY, EMPTY][: 6 - given], normal(5, n)
        if all(x.dim() == d for x, d in zip(tensors, (2, 1) * 3, strict=False)):
            continue  # only A has a batch, and there is none
        close(ours(*tensors, *rest), theirs(*tensors, *rest), 1e-8)
        mine, other, truth = (
            gradients(lambda *x, f=f, rest=rest: f(*x, *rest), tensors, up)  # type: ignore[misc]
            for f in (ours, theirs, of_the_active_set)
        )
        for i, x in enumerate(tensors):
            mean = truth[i] if x.dim() == (3, 2)[i % 2] else truth[i] / 5
            size = 1 + mean.abs().max().item()
            close(mine[i], mean, 1e-9 * size)
            close(mine[i], other[i], 1e-6 * size)


# --- what else qpth's users write -----------------------------------------------------------------------------


def test_modules_are_where_qpth_has_them() -> None:
    import optlayer.compat.qpth as qpth

    assert qpth.qp.QPFunction is QPFunction is qpth.QPFunction
    assert optlayer.compat.qpth is qpth


def test_sides_in_another_dtype_are_cast() -> None:
    Q, p, G, h, A, b = problem(3, batched="p")
    leaves = [h.float().requires_grad_(), b.float().requires_grad_()]
    z = QPFunction(verbose=-1)(Q, p, G, leaves[0], A, leaves[1])
    close(z, QPFunction(verbose=-1)(Q, p, G, h.float().double(), A, b.float().double()))
    z.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in leaves)


def test_the_sparse_function_says_what_serves_instead() -> None:
    with pytest.raises(NotImplementedError, match=r"optlayer\.solve"):
        compat.SpQPFunction(None, None, None, None, None, None)
