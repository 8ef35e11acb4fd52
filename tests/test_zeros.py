"""Dense matrices that are mostly zeros: the sparse engine solves them, and everything else is as for dense ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.hard import KINDS
from torch import Tensor

import optlayer
from optlayer import Settings, Sparse, Status, problem, solve
from optlayer.backends import cpu, zeros

pytestmark = pytest.mark.skipif(optlayer.available()["cpu"] is not None, reason="no compiled core")

GIVEN = Settings(zeros="given")


def steps(n: int = 60, batch: int | None = 3, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """As CVXPY writes it: ‖r‖²/2 with x − r = c, steps of x limited, x ≥ about 0, and so a Q that is semidefinite."""
    rng = np.random.default_rng(n)
    lead, eye, D = () if batch is None else (batch,), np.eye(n), np.diff(np.eye(n), axis=0)
    nothing = np.zeros((n, n))
    G = np.block([[D, np.zeros((n - 1, n))], [-D, np.zeros((n - 1, n))], [-eye, nothing]])
    found = {
        "Q": np.block([[nothing, nothing], [nothing, eye]]), "q": 0.1 * rng.standard_normal((*lead, 2 * n)),
        "G": G, "h": np.concatenate([rng.uniform(0.5, 1, 2 * n - 2), rng.uniform(0, 0.1, n)]),
        "A": np.block([[eye, -eye]]), "b": 3 * rng.standard_normal((*lead, n)),
    }  # fmt: skip
    return {name: torch.tensor(x, dtype=dtype) for name, x in found.items()}


def routed(t: dict[str, Any], settings: Settings = Settings()) -> bool:  # noqa: B008
    core = cpu._core()
    assert not isinstance(core, str)
    return zeros.found(core, problem.check(**t), settings) is not None


def gradients(t: dict[str, Tensor], settings: Settings = Settings()) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: B008
    leaves = {name: x.clone().requires_grad_() for name, x in t.items()}
    z = solve(**leaves, settings=settings).z
    weights = torch.linspace(-1, 2, z.shape[-1], dtype=z.dtype)
    return z.detach(), dict(zip(leaves, torch.autograd.grad((z * weights).sum(), list(leaves.values())), strict=True))


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("gradient", ["exact", "smoothed"])
def test_answers_and_dense_gradients_are_those_of_the_dense_methods(batch: int | None, gradient: Any) -> None:
    t = steps(batch=batch)
    assert routed(t)
    assert not routed(t, GIVEN)
    z, mine = gradients(t, Settings(gradient=gradient))
    known, theirs = gradients(t, Settings(gradient=gradient, zeros="given"))
    assert (z - known).abs().max() < 1e-9
    for name, x in theirs.items():
        assert mine[name].shape == t[name].shape
        assert (mine[name] - x).abs().max() <= 1e-7 * (1 + x.abs().max()), name


def test_the_derivative_where_a_matrix_is_zero() -> None:
    """Against central differences; the shifted matrices are solved by the dense methods."""
    t = steps(40)
    _, found = gradients(t)
    weights = torch.linspace(-1, 2, t["q"].shape[-1], dtype=torch.float64)
    rng = np.random.default_rng(0)
    for name in "QGA":
        there = t[name] == 0
        there[: 40 * (name == "Q")], there[:, : 40 * (name == "Q")] = False, False  # (what else is moved is not convex)
        places = there.nonzero()
        largest = found[name][there].abs().argsort(descending=True)[: len(places) // 20].numpy()
        for i, j in places[torch.from_numpy(rng.choice(largest, 4, replace=False))].tolist():
            values = []
            for step in (1e-5, -1e-5):
                moved = t[name].clone()
                moved[i, j] += step
                values.append(float((solve(**(t | {name: moved}), settings=GIVEN).z * weights).sum()))
            slope = (values[0] - values[1]) / 2e-5
            assert slope != 0
            assert abs(float(found[name][i, j]) - slope) < 1e-5 * (1 + abs(slope)), (name, i, j)


def test_values_and_zeros_that_change_in_place() -> None:
    t = steps()
    solve(**t)
    t["A"][0, 0] = 2.0
    assert (solve(**t).z - solve(**t, settings=GIVEN).z).abs().max() < 1e-9
    t["A"][0, 5] = 0.5  # an entry where there was none
    assert routed(t)
    assert (solve(**t).z - solve(**t, settings=GIVEN).z).abs().max() < 1e-9
    with torch.no_grad():  # and a matrix without zeros
        t["G"] += 1e-3
        t["A"] += 1e-3
        t["Q"] += 1e-3
    assert not routed(t)
    assert (solve(**t).z - solve(**t, settings=GIVEN).z).abs().max() < 1e-8


def test_a_matrix_that_changes_before_its_derivative() -> None:
    """A write that autograd cannot see gives the derivative of other data, but no other memory."""
    t = {name: x.clone().requires_grad_() for name, x in steps().items()}
    z = solve(**t).z
    t["G"].data += 1.0
    z.sum().backward()
    assert t["q"].grad is not None


def test_a_learned_matrix_is_looked_at_each_time() -> None:
    t = steps()
    G = t["G"].clone().requires_grad_()
    solve(**(t | {"G": G}))
    G.data[0] += torch.linspace(0, 0.01, G.shape[1], dtype=torch.float64)
    assert (solve(**(t | {"G": G})).z - solve(**(t | {"G": G}), settings=GIVEN).z).abs().max() < 1e-9


def test_unsymmetric_q_diagonal_and_float32() -> None:
    t = steps()
    upper = t["Q"].clone()
    upper[60, 61], t["Q"][60, 61], t["Q"][61, 60] = 0.5, 0.25, 0.25
    assert (solve(**(t | {"Q": upper})).z - solve(**t, settings=GIVEN).z).abs().max() < 1e-9
    single = solve(**{name: x.float() for name, x in (t | {"Q": upper}).items()})
    assert (single.z.double() - solve(**t).z).abs().max() < 1e-4
    d = optlayer.Diagonal(t["Q"].diagonal().clone())
    assert (solve(**(t | {"Q": d})).z - solve(d, t["q"], t["G"], t["h"], t["A"], t["b"]).z).abs().max() == 0


def test_transforms() -> None:
    t = steps(40)
    rest = {name: t[name] for name in "GhA"}

    def function(Q: Tensor, q: Tensor, b: Tensor, settings: Settings) -> Tensor:
        return solve(Q, q, b=b, settings=settings, check=False, **rest).z.square().sum()

    for take in (torch.func.grad(function), torch.func.vmap(torch.func.grad(function), (None, 0, 0, None))):
        lead = () if take.__name__ == "grad" else (3,)
        q, b = (t[name] if lead else t[name][0] for name in "qb")
        mine, theirs = (take(t["Q"], q, b, settings) for settings in (Settings(), GIVEN))
        assert (mine - theirs).abs().max() < 1e-7


def test_statuses() -> None:
    t = steps()
    far = t | {"h": torch.cat([t["h"][:-60], torch.full((60,), -1.0, dtype=torch.float64)])}
    far["b"] = far["b"].clone()
    solution = solve(**(far | {"ub": torch.zeros(120, dtype=torch.float64)}), check=False)
    assert (solution.status == int(Status.PRIMAL_INFEASIBLE)).all()
    t["q"][1, 3] = torch.nan
    assert solve(**t, check=False).status.tolist() == [0, int(Status.INVALID_INPUT), 0]


def test_the_dense_way_stays_where_it_is_quicker() -> None:
    """Few variables, no zeros, matrices of each member, and few sides of constraints."""
    small = steps(20)
    few = {"A": small["A"][:1], "b": small["b"][:, :1]}
    assert not routed({"Q": small["Q"], "q": small["q"]} | few)
    t = steps()
    assert not routed(t | {name: t[name].expand(3, -1, -1) for name in "QGA"})
    assert not routed(t, Settings(infeasible="closest"))
    assert routed(t | {"A": torch.cat([t["A"], torch.ones(1, 120)]), "b": torch.cat([t["b"], t["b"][:, :1]], -1)})


def test_sparse_and_dense_say_the_same() -> None:
    t = steps()
    given = {name: Sparse.from_dense(x) if name in "QGA" else x for name, x in t.items()}
    assert torch.equal(solve(**t).z, solve(**given).z)


def test_large_members_of_their_own_matrices() -> None:
    """What the dense methods give up, the core tries with the pattern of that member."""
    t = steps(120)
    differ = t | {name: t[name].expand(3, -1, -1).clone() for name in "QGA"}
    assert not routed(differ)
    assert (solve(**differ).z - solve(**t).z).abs().max() < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_diverging_multipliers_excuse_nothing(seed: int) -> None:
    """A contradiction by 1e-7: whatever is said of it, it is not solved to 1e-9."""
    case = KINDS["transport_float32"](np.random.default_rng([100, seed]), 100)
    t = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in case.data.items()}
    given = {name: Sparse.from_dense(x) if name in "QA" else x for name, x in t.items()}
    for data in (t, given):
        assert int(solve(**data, check=False).status) != int(Status.SOLVED)
