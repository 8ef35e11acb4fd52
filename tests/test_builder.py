"""Programs built term by term: against closed forms, an independent solver, and differences."""

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer import nn

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(2)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def near(y: Tensor) -> nn.Builder:
    """½‖z − y‖², to which terms are added."""
    return nn.Builder(optlayer.Diagonal(torch.ones(y.shape[-1], dtype=F64)), -y)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-8, rtol=0)


def test_absolute_values_threshold_softly() -> None:
    y = normal(20, 5)
    close(near(y).add_abs(0.5).solve(), torch.nn.functional.softshrink(y, 0.5))
    weight, g = torch.rand(5, dtype=F64), normal(20, 5)
    shifted = y - g
    close(near(y).add_abs(weight, g=g).solve(), g + shifted.sign() * (shifted.abs() - weight).clamp(min=0))


def test_positive_parts_give_way_until_the_price_is_paid() -> None:
    y = normal(20, 5)
    close(near(y).add_pos(0.5).solve(), torch.where(y > 0.5, y - 0.5, y.clamp(max=0)))


def test_a_maximum_takes_from_the_largest() -> None:
    """Moreau: y − z is the projection of y onto the simplex of that weight."""
    y = normal(20, 5)
    close(near(y).add_max(0.7).solve(), y - nn.SimplexProjection(0.7)(y))


def test_a_limit_is_a_ball() -> None:
    y = normal(20, 5)
    close(near(y).limit_abs(1.5).solve(), nn.L1BallProjection(1.5)(y))
    centre, radius = normal(20, 5), 0.5 + torch.rand(20, 1, dtype=F64)
    z = near(y).limit_abs(radius, g=centre).solve()
    assert ((z - centre).abs().sum(1) <= radius[:, 0] + 1e-9).all()
    close(near(y).limit_abs(100.0).solve(), y)


def test_terms_add_up_against_another_formulation() -> None:
    """Total variation in a ball, every part of a program in use: the answer has no cheaper neighbour."""
    n = 6
    y, D = normal(3, n), torch.eye(n, dtype=F64).diff(dim=0)
    L = normal(n, n)
    Q = L @ L.mT + torch.eye(n, dtype=F64)
    W, w = normal(2, 4, n), normal(4)
    A, b = torch.ones(1, n, dtype=F64), torch.zeros(3, 1, dtype=F64)
    lb, ub = -torch.ones(n, dtype=F64), torch.ones(n, dtype=F64)

    def cost(z: Tensor) -> Tensor:
        hinge = (torch.einsum("kn,...n->...k", W[0], z) - w).clamp(min=0).sum(-1)
        top = (torch.einsum("kn,...n->...k", W[1], z)).amax(-1)
        smooth = 0.5 * torch.einsum("...i,ij,...j->...", z, Q, z) - (y * z).sum(-1)
        return smooth + 0.3 * (z @ D.mT).abs().sum(-1) + 0.2 * hinge + 0.4 * top

    build = nn.Builder(Q, -y, A=A, b=b, lb=lb, ub=ub).add_abs(0.3, D).add_pos(0.2, W[0], w).add_max(0.4, W[1])
    solution = build.limit_abs(2.0).solution()
    z = solution.z[:, :n]
    assert (solution.status == 0).all()
    assert z.abs().sum(1).max() <= 2 + 1e-9
    assert z.sum(1).abs().max() < 1e-9
    for size in (1e-4, 1e-2, 1.0):
        step = size * normal(200, 1, n)
        step = step - step.mean(-1, keepdim=True)
        other = (z + step).clamp(-1, 1)
        fits = (other.sum(-1).abs() < 1e-12) & (other.abs().sum(-1) <= 2)
        assert fits.any() or size == 1
        assert (cost(other)[fits] >= cost(z).expand(200, 3)[fits] - 1e-9).all()


@pytest.mark.parametrize("term", ["add_abs", "add_pos", "add_max", "limit_abs", "loose limit"])
def test_gradients_of_everything(term: str) -> None:
    n, k = 4, 3
    L, F = normal(n, n), normal(2, k, n)
    Q = (L @ L.mT + torch.eye(n, dtype=F64)).requires_grad_()
    weight = torch.tensor([{"loose limit": 50.0}.get(term, 0.8)], dtype=F64, requires_grad=True)
    inputs = (Q, normal(2, n).requires_grad_(), weight, F.requires_grad_(), normal(2, k).requires_grad_())

    def z(Q: Tensor, q: Tensor, weight: Tensor, F: Tensor, g: Tensor) -> Tensor:
        return getattr(nn.Builder(Q, q), "limit_abs" if "limit" in term else term)(weight, F, g).solve()

    assert torch.autograd.gradcheck(z, inputs, atol=1e-5)


def test_rows_have_two_sides_and_may_come_between_terms() -> None:
    n = 4
    y, G = normal(5, n), normal(2, n)
    low, high = -0.1 * torch.ones(2, dtype=F64), torch.tensor([0.1, torch.inf], dtype=F64)
    build = nn.Builder(torch.eye(n, dtype=F64), -y, G[:1], h_lower=low[:1]).add_abs(0.3).add_rows(G, high, low)
    z = build.add_max(0.2).solve()
    one_sided = nn.Builder(torch.eye(n, dtype=F64), -y).add_rows(-G, -low).add_max(0.2).add_rows(G[:1], high[:1])
    close(z, one_sided.add_abs(0.3).solve())
    assert (z @ G.mT >= low - 1e-9).all()
    assert ((z @ G.mT)[:, 0] <= 0.1 + 1e-9).all()


def test_a_batch_may_come_late() -> None:
    """Where only a term has a batch, the answer has it."""
    y, g = normal(5), normal(3, 5)
    together = near(y).add_abs(0.2).add_abs(0.5, g=g).solve()
    apart = torch.stack([near(y).add_abs(0.2).add_abs(0.5, g=each).solve() for each in g])
    close(together, apart)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"F has shape \(2, 3\), and must be \(…, k, n\) with n = 4"):
        near(normal(4)).add_abs(1.0, normal(2, 3))
    with pytest.raises(ValueError, match=r"g has shape \(3,\), and must be \(…, k\) with k = 2"):
        near(normal(4)).add_max(1.0, normal(2, 4), normal(3))
