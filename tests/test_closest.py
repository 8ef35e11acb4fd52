"""Settings(infeasible="closest"): the best point among those of least violation, and its derivative."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from optlayer import Settings, Sparse, Status, solve
from optlayer.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
CLOSEST = Settings(infeasible="closest")
F64 = torch.float64
EYE = torch.eye(3, dtype=F64)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=F64)


def test_between_two_rows() -> None:
    """z₀ ≤ 0 and z₀ ≥ 1: z₀ = ½, and the rest as if the rows were not there."""
    G, h = tensor([[1.0, 0, 0], [-1, 0, 0]]), tensor([0.0, -1]).requires_grad_()
    solution = solve(EYE, tensor([0.3, -2.0, 1.0]), G, h, settings=CLOSEST)
    assert int(solution.status) == Status.CLOSEST
    torch.testing.assert_close(solution.z, tensor([0.5, 2.0, -1.0]))
    (slope,) = torch.autograd.grad(solution.z[0], h)
    torch.testing.assert_close(slope, tensor([0.5, -0.5]))


def test_bounds_are_kept() -> None:
    """A barrier that the box cannot meet: the corner that violates it least, active bounds exact."""
    G, h = tensor([[0.9, 0.1, 0.0]]), tensor([-1.0]).requires_grad_()
    lb = tensor([-0.5, -0.5, -1]).requires_grad_()
    solution = solve(EYE, tensor([-0.3, 0.0, 0.2]), G, h, lb=lb, ub=0.5, settings=CLOSEST)
    assert int(solution.status) == Status.CLOSEST
    assert solution.z.tolist()[:2] == [-0.5, -0.5]
    torch.testing.assert_close(solution.z[2], tensor(-0.2))
    (slope,) = torch.autograd.grad(solution.z.sum(), lb)
    torch.testing.assert_close(slope, tensor([1.0, 1.0, 0.0]))


def test_equalities_out_of_range() -> None:
    """A z = b with b outside the range of A: A z is the projection of b, z the least norm that gives it."""
    A = tensor([[1.0, 2, 0], [2, 4, 0], [0, 0, 1]])
    b = tensor([1.0, 1, 3]).requires_grad_()
    solution = solve(EYE, torch.zeros(3, dtype=F64), A=A, b=b, settings=CLOSEST)
    assert int(solution.status) == Status.CLOSEST
    # (units of the rows decide how the violation is shared between the first two)
    torch.testing.assert_close(solution.z[2], tensor(3.0))
    first = solution.z[0] + 2 * solution.z[1]
    assert 0.5 < float(first) < 1
    torch.testing.assert_close(solution.z[:2].detach(), first.detach() * tensor([0.2, 0.4]))


def test_feasible_members_do_not_change_by_a_bit() -> None:
    r = torch.Generator().manual_seed(0)
    q, h = torch.randn(64, 3, generator=r, dtype=F64), torch.ones(64, 2, dtype=F64)
    h[5] = tensor([0.0, -1.0])
    G = tensor([[1.0, 2, 0], [-1, -2, 0]])
    leaves = [[x.clone().requires_grad_() for x in (q, h)] for _ in range(2)]
    kinds = zip(leaves, (Settings(), CLOSEST), strict=True)
    found = [solve(EYE, a, G, b, settings=settings, check=False) for (a, b), settings in kinds]
    others = torch.arange(64) != 5
    assert torch.equal(found[0].z[others], found[1].z[others])
    assert found[1].status.tolist() == [7 if i == 5 else 0 for i in range(64)]
    for solution in found:
        solution.z.sum().backward()
    for a, b in zip(*leaves, strict=True):
        assert torch.equal(a.grad[others], b.grad[others])
    assert bool(leaves[1][0].grad[5].any())
    assert not bool(leaves[0][0].grad[5].any())


def contradictory(seed: int) -> dict[str, Tensor]:
    """Rows, equalities and bounds that press against each other, in general position."""
    r = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=r, dtype=F64)

    W, G = normal(4, 4), normal(4, 4)
    G[1] = -G[0] + 0.05 * normal(4)
    return {
        "Q": W @ W.mT + torch.eye(4, dtype=F64), "q": normal(4), "G": G, "h": tensor([-1.0, -1, 0.5, 2]),
        "A": normal(1, 4), "b": normal(1),
        "lb": torch.full((4,), -0.6, dtype=F64), "ub": torch.full((4,), 0.7, dtype=F64),
    }


@pytest.mark.parametrize("seed", range(6))
def test_the_derivative_is_that_of_differences(seed: int) -> None:
    data = contradictory(seed)
    weight = torch.linspace(-1, 2, 4, dtype=F64)

    def value(data: dict[str, Tensor]) -> Tensor:
        solution = solve(**data, settings=CLOSEST)
        assert int(solution.status) == Status.CLOSEST
        return (weight * solution.z).sum()

    leaves = {name: x.clone().requires_grad_() for name, x in data.items()}
    value(leaves).backward()
    for name, x in data.items():
        wanted = differences(lambda moved, name=name: float(value({**data, name: moved})), x)
        if name == "Q":
            wanted = (wanted + wanted.mT) / 2
        torch.testing.assert_close(leaves[name].grad, wanted, rtol=1e-5, atol=1e-6, msg=name)


def differences(f: Callable[[Tensor], float], x: Tensor, step: float = 1e-6) -> Tensor:
    found = torch.zeros_like(x)
    for i in range(x.numel()):
        move = torch.zeros_like(x).view(-1)
        move[i] = step
        found.view(-1)[i] = (f(x + move.view_as(x)) - f(x - move.view_as(x))) / (2 * step)
    return found


def test_weights_normalised_in_float32() -> None:
    """A transport polytope that contradicts itself by rounding: value and gradient are those of the exact problem."""
    r = torch.Generator().manual_seed(3)
    u, v = (torch.rand(3, generator=r) + 0.1 for _ in range(2))
    u, v = (3 * u / u.sum()).double(), (3 * v / v.sum()).double()
    total = min(float(u.sum()), float(v.sum()))
    eye, one = torch.eye(3, dtype=F64), torch.ones(1, 3, dtype=F64)
    G = torch.cat([torch.kron(eye, one), torch.kron(one, eye)])
    grads, points = [], []
    for b in (total, total * (1 + 4e-8)):
        q = torch.rand(9, generator=torch.Generator().manual_seed(4), dtype=F64).requires_grad_()
        solution = solve(
            0.01 * torch.eye(9, dtype=F64), q, G, torch.cat([u, v]), torch.ones(1, 9, dtype=F64), tensor([b]), lb=0.0,
            settings=CLOSEST,
        )  # fmt: skip
        (solution.z * torch.arange(9)).sum().backward()
        points.append(solution.z.detach())
        grads.append(q.grad)
    assert int(solution.status) == Status.CLOSEST
    torch.testing.assert_close(points[1], points[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-5)


def test_float32() -> None:
    G, h = torch.tensor([[1.0, 0, 0], [-1, 0, 0]]), torch.tensor([0.0, -1]).requires_grad_()
    solution = solve(torch.eye(3), torch.tensor([0.3, -2.0, 1.0]), G, h, settings=CLOSEST)
    assert int(solution.status) == Status.CLOSEST
    torch.testing.assert_close(solution.z, torch.tensor([0.5, 2.0, -1.0]))
    (slope,) = torch.autograd.grad(solution.z[0], h)
    torch.testing.assert_close(slope, torch.tensor([0.5, -0.5]))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("batch", [(), (5,)])
def test_sparse_matrices(shared: bool, batch: tuple[int, ...]) -> None:
    """The point of the dense matrices, and their gradients at the entries; feasible members beside it as ever."""
    r = torch.Generator().manual_seed(7)
    own, (n, p, m) = () if shared else batch, (8, 7, 3)

    def entries(rows: int) -> Tensor:
        mask = torch.rand(rows, n, generator=r) < 0.5
        mask[-1] = mask[0]
        return torch.randn(*own, rows, n, generator=r, dtype=F64) * mask

    def normal(size: int) -> Tensor:
        return torch.randn(*batch, size, generator=r, dtype=F64)

    full = {"Q": torch.diag_embed(1 + torch.rand(*own, n, generator=r, dtype=F64)), "G": entries(p), "A": entries(m)}
    full["G"][..., -1, :] = -full["G"][..., 0, :]
    full |= {"q": normal(n), "h": normal(p).abs(), "b": normal(m) / 10, "lb": torch.full((n,), -3.0, dtype=F64)}
    full["h"].view(-1, p)[::2, [0, -1]] = -1.0  # g₀'z ≤ −1 and −g₀'z ≤ −1
    up, patterns = normal(n), {name: Sparse.from_dense(full[name]) for name in "QGA"}
    leaves = {name: (patterns[name].values if name in patterns else x).clone() for name, x in full.items()}
    for x in (*full.values(), *leaves.values()):
        x.requires_grad_()
    given = {name: patterns[name].with_values(x) if name in patterns else x for name, x in leaves.items()}
    wanted, found = solve(**full, settings=CLOSEST), solve(**given, settings=CLOSEST)
    assert found.status.tolist() == wanted.status.tolist()
    assert found.status.view(-1)[::2].eq(int(Status.CLOSEST)).all()
    torch.testing.assert_close(found.z, wanted.z)
    theirs = dict(zip(full, torch.autograd.grad(wanted.z, list(full.values()), up), strict=True))
    mine = dict(zip(full, torch.autograd.grad(found.z, list(leaves.values()), up), strict=True))
    for name, M in patterns.items():
        theirs[name] = theirs[name][..., M.pattern.rows, M.pattern.columns]
    torch.testing.assert_close(mine, theirs)


def test_large_sparse_problems_have_none() -> None:
    eye = Sparse(torch.arange(1002), torch.arange(1001), torch.ones(1001, dtype=F64), (1001, 1001))
    with pytest.raises(ValueError, match="sparse matrices of more than 1000"):
        solve(eye, torch.zeros(1001, dtype=F64), settings=CLOSEST)


def test_backends_that_do_not_know_it_say_so() -> None:
    with pytest.raises(ValueError, match="closest"):
        solve(EYE, torch.zeros(3, dtype=F64), backend="reference", settings=CLOSEST)
