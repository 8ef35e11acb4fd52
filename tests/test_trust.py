"""It never lies: verdicts are true, members are isolated, failure is reported and harmless.

The problems of known verdict are those of tests/fuzz.py, whose judge uses nothing that the solvers use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.degeneracy import KINDS, outcome
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as some
from tests import fuzz
from tests.families import CONCAVE, FAMILIES, INFEASIBLE, INVALID, UNBOUNDED, generate, hopeless
from torch import Tensor

from optlayer import Diagonal, SolveError, Status, kkt, solve
from optlayer.problem import check

UNIQUE = [name for name in sorted(FAMILIES) if FAMILIES[name](generate(0), torch.float64).z is not None]


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def on_device(backend: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        name: Diagonal(x.d.to(device_of(backend))) if isinstance(x, Diagonal) else x.to(device_of(backend))
        for name, x in data.items()
    }


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 100])
def test_no_wrong_verdict(backend: str, seed: int) -> None:
    totals = fuzz.fuzz(400, seed, backend)
    assert totals["wrong"] == 0
    assert totals["gave up"] <= 8
    assert totals["members"] == 400


@pytest.mark.parametrize(
    "seed",
    [
        0,  # a member with an indefinite Q whose stationary point is easily found
        21,  # again, found by another elimination
        34,  # float32: Q is semidefinite but for rounding
        31024,  # multipliers of 1e94 made every residual small beside the terms that entered it
        401941,  # multipliers of 1e17 cancelled to a residual of exactly 0, by chance
    ],
)
def test_verdicts_that_were_wrong_once(backend: str, seed: int) -> None:
    assert fuzz.fuzz(fuzz.BATCH, seed, backend)["wrong"] == 0


def test_the_judge_is_not_blind() -> None:
    """Every false answer that the fuzzer could meet is called wrong."""
    draw = fuzz.Draw(0)
    solution = solve(**draw.arguments(), backend="reference", check=False)
    solvable = int(np.flatnonzero(draw.kinds == 0)[0])
    concave = int(np.flatnonzero(draw.kinds == fuzz.KINDS.index("concave"))[0])
    assert fuzz.judge(draw, solution, solvable) == fuzz.judge(draw, solution, concave) == "right"
    solution.status[concave] = int(Status.SOLVED)
    assert "concave" in fuzz.judge(draw, solution, concave)
    solution.z[solvable, 0] += 1e-6
    assert "residual" in fuzz.judge(draw, solution, solvable)
    for status in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE, Status.NOT_CONVEX, Status.INVALID_INPUT):
        solution.status[solvable] = int(status)
        assert "called" in fuzz.judge(draw, solution, solvable)
    solution.status[solvable] = int(Status.MAX_ITERATIONS)
    assert fuzz.judge(draw, solution, solvable) == "gave up"


@hypothesis_settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(seed=some.integers(10_000, 10**9))
def test_any_draw_is_judged_rightly(seed: int) -> None:
    assert fuzz.fuzz(fuzz.BATCH, seed)["wrong"] == 0


@hypothesis_settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    family=some.sampled_from(UNIQUE),
    seed=some.integers(0, 10**6),
    cost=some.floats(-3, 3),
    rows=some.floats(-3, 3),
)
def test_rescaling_moves_no_solution(family: str, seed: int, cost: float, rows: float) -> None:
    """The objective times c and each constraint times r: the same z, with other multipliers."""
    case = FAMILIES[family](generate(seed), torch.float64)
    c, r = 10**cost, 10**rows
    data = dict(case.data)
    data["Q"] = Diagonal(c * data["Q"].d) if isinstance(data["Q"], Diagonal) else c * data["Q"]
    data["q"] = c * data["q"]
    data |= {name: r * data[name] for name in ("G", "h", "A", "b") if name in data}
    assert case.z is not None
    solution = solve(**data)
    scale = 1 + float(case.z.abs().max())
    assert float((solution.z - case.z).abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("shift", [-1e-2, -1e-5, -1e-7, 0.0, 1e-7])
@pytest.mark.parametrize("structure", ["dense", "diagonal", "found diagonal"])
@pytest.mark.parametrize("shared", [True, False])
def test_curvature_is_judged_before_optimality(backend: str, shift: float, structure: str, shared: bool) -> None:
    """A box holds a stationary point of any objective, but only a convex one is solved."""
    n, batch = 5, 3
    values = torch.tensor([shift, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generate(1), dtype=torch.float64))
    Q: Any = torch.diag(values) if structure == "found diagonal" else basis @ torch.diag(values) @ basis.mT
    if structure == "diagonal":
        Q = Diagonal(values)
    if not shared:
        Q = Diagonal(values.expand(batch, n)) if structure == "diagonal" else Q.expand(batch, n, n).clone()
    q = 0.1 * torch.randn(batch, n, generator=generate(2), dtype=torch.float64)
    box = torch.ones(n, dtype=torch.float64)
    solution = solve(**on_device(backend, {"Q": Q, "q": q, "lb": -box, "ub": box}), backend=backend, check=False)
    wanted = Status.NOT_CONVEX if shift < 0 else Status.SOLVED
    assert [Status(int(x)) for x in solution.status] == [wanted] * batch


@pytest.mark.parametrize("rank", [1, 3])
def test_rounding_of_float32_is_not_concave(backend: str, rank: int) -> None:
    n, batch = 6, 8
    W = torch.randn(batch, n, rank, generator=generate(rank))
    Q = W @ W.mT
    assert float(torch.linalg.eigvalsh(Q.double()).min()) < -1e-9  # indefinite by rounding
    q = torch.randn(batch, n, generator=generate(5)).requires_grad_()
    box = torch.ones(n)
    data = on_device(backend, {"Q": Q, "q": q, "lb": -box, "ub": box})
    z = solve(**data, backend=backend).z
    z.square().sum().backward()
    assert q.grad is not None
    assert bool(q.grad.isfinite().all())
    # the minimum of the same objective, made convex
    wide = {name: x.detach().double() for name, x in data.items()}
    wide["Q"] = wide["Q"] + 1e-6 * torch.eye(n, dtype=torch.float64, device=wide["Q"].device)
    best = solve(**wide)
    mine = z.detach().double()
    value = 0.5 * ((wide["Q"] @ mine.unsqueeze(-1))[..., 0] * mine).sum(-1) + (wide["q"] * mine).sum(-1)
    assert float((value - best.objective).abs().max()) <= 1e-4


def test_float32_is_judged_by_what_it_can_hold(backend: str) -> None:
    """Entries of z near 1e4 violate the conditions once they are rounded, by no more than their rounding explains."""
    r = generate(12)
    n, batch = 30, 4
    U = torch.rand(batch, n // 2, n, generator=r, dtype=torch.float64)
    Q = U.mT @ U + 1e-4 * torch.eye(n, dtype=torch.float64)
    G = torch.randn(batch, n, n, generator=r, dtype=torch.float64)
    h = torch.rand(batch, n, generator=r, dtype=torch.float64)
    q = torch.randn(batch, n, generator=r, dtype=torch.float64)
    data = on_device(backend, {"Q": Q.float(), "q": q.float(), "G": G.float(), "h": h.float()})
    solution = solve(**data, backend=backend)
    assert float(solution.z.abs().max()) > 5e3
    assert float(solution.dual_residual.max()) > 1e-5
    exact = solve(**{name: x.double() for name, x in data.items()}, backend=backend)
    error = (solution.z.double() - exact.z).abs().amax(-1) / exact.z.abs().amax(-1)
    assert float(error.max()) <= 1e-5


def judged(data: dict[str, Tensor], z: list[float], lam: list[float], nu: list[float]) -> float:
    none = torch.zeros(1, 0, dtype=torch.float64)
    point = (torch.tensor([x], dtype=torch.float64) for x in (z, lam, nu))
    return float(kkt.residuals(check(**data), *point, none, none).relative)


def test_no_term_excuses_everything() -> None:
    """min −z₂ with z₁ = 0 and z₁ ≤ 0 falls without limit; relative to multipliers of 1e94 it looks solved."""
    rows = {"G": [[1.0, 0]], "h": [0.0], "A": [[1.0, 0]], "b": [0.0]}
    data = hopeless({"Q": [[0.0, 0], [0, 0]], "q": [0.0, -1], **rows}, torch.float64)
    assert judged(data, [0.0, 0.0], [1e94], [-1e94]) > 1e-5  # of float32 as of float64
    assert judged(data, [1e15, 1e15], [0.0], [0.0]) > 0.5
    # a residual of 0 that rounding cannot tell from 1
    data = hopeless({"q": [-1.0, 0], "G": [[1.0, 0]], "h": [0.0], "A": [[1.0, 0]], "b": [0.0]}, torch.float64)
    assert judged(data, [0.0, 0.0], [1e16], [2 - 1e16]) > 1e-5
    assert judged(data, [0.0, 0.0], [1e6], [1 - 1e6]) <= 1e-9
    # what enters one constraint excuses no other one
    data = hopeless({"q": [-1e9, -1], "G": [[1.0, 0], [0, 1]], "h": [1e10, 0.5]}, torch.float64)
    assert judged(data, [1e9, 1.0], [0.0, 0.0], []) >= 0.2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gradients_at_degenerate_points(backend: str, kind: str, dtype: torch.dtype) -> None:
    if backend not in ("cpu", "reference"):
        pytest.skip("the benchmark measures ours, on the CPU")
    found = outcome(kind, backend, dtype, 10)
    assert found.solved == found.members
    assert found.worst <= (1e-9 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_float32_gives_no_nan(backend: str, family: str) -> None:
    case = FAMILIES[family](generate(1), torch.float32)
    data = on_device(backend, case.data)
    leaves = [x.d if isinstance(x, Diagonal) else x for x in data.values()]
    for x in leaves:
        x.requires_grad_()
    solution = solve(**data, backend=backend, check=False)
    for x in (solution.z, solution.lam, solution.nu, solution.lam_lb, solution.lam_ub):
        assert bool(x.isfinite().all())
    assert not bool(solution.s.isnan().any())
    gradients = torch.autograd.grad(solution.z.square().sum(), leaves, allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)


# --- isolation ------------------------------------------------------------------------------------------------------


def mixed(backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Five solvable members with inequalities, equalities and bounds."""
    n, m, p, batch = 6, 2, 4, 5
    r = generate(11)
    W = torch.randn(batch, n, n, generator=r, dtype=torch.float64)
    z = torch.randn(batch, n, generator=r, dtype=torch.float64)
    G, A = (torch.randn(batch, k, n, generator=r, dtype=torch.float64) for k in (p, m))
    data = {
        "Q": W @ W.mT / n + 0.1 * torch.eye(n, dtype=torch.float64),
        "q": torch.randn(batch, n, generator=r, dtype=torch.float64),
        "G": G, "h": (G @ z.unsqueeze(-1))[..., 0] + 0.3, "A": A, "b": (A @ z.unsqueeze(-1))[..., 0],
        "lb": z - 0.5, "ub": z + 0.5,
    }  # fmt: skip
    return {name: x.to(device_of(backend), dtype) for name, x in data.items()}


def spoilt(data: dict[str, Tensor], member: int, how: str) -> dict[str, Tensor]:
    data = {name: x.clone() for name, x in data.items()}
    if how == "infeasible":
        data["G"][member, 1], data["h"][member, 1] = -data["G"][member, 0], -data["h"][member, 0] - 1
    elif how == "nan":
        data["q"][member, 0] = torch.nan
    elif how == "nan everywhere":
        for x in data.values():
            x[member] = torch.nan
    elif how == "concave":
        data["Q"][member] *= -1
    elif how == "huge":
        data["q"][member] *= 1e12
    return data


def bits(data: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """The whole answer and every gradient, of a loss that uses z and all multipliers."""
    leaves = {name: x.clone().requires_grad_() for name, x in data.items()}
    solution = solve(**leaves, backend=backend, check=False)
    parts = {name: getattr(solution, name) for name in ("z", "s", "lam", "nu", "lam_lb", "lam_ub")}
    loss = sum(x.square().sum() for name, x in parts.items() if name != "s")
    assert isinstance(loss, Tensor)
    names = [f"grad_{name}" for name in leaves]
    gradients = dict(zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    verdict = ("status", "iterations", "primal_residual", "dual_residual", "gap")
    parts |= gradients | {name: getattr(solution, name) for name in verdict}
    return {name: x.detach() for name, x in parts.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("how", ["infeasible", "nan", "nan everywhere", "concave", "huge", "absent"])
def test_a_member_does_not_see_another_fail(backend: str, how: str, dtype: torch.dtype) -> None:
    data = mixed(backend, dtype)
    before = bits(data, backend)
    assert not before["status"].any()
    victim, others = 2, [0, 1, 3, 4]
    if how == "absent":
        after = bits({name: x[others] for name, x in data.items()}, backend)
    else:
        after = {name: x[others] for name, x in bits(spoilt(data, victim, how), backend).items()}
    for name, x in before.items():
        assert torch.equal(x[others], after[name]), name


# --- failure --------------------------------------------------------------------------------------------------------

REASONS = {
    **{f"infeasible: {name}": (x, Status.PRIMAL_INFEASIBLE) for name, x in INFEASIBLE.items()},
    **{f"unbounded: {name}": (x, Status.DUAL_INFEASIBLE) for name, x in UNBOUNDED.items()},
    **{f"invalid: {name}": (x, Status.INVALID_INPUT) for name, x in INVALID.items()},
    **{f"concave: {name}": (x, Status.NOT_CONVEX) for name, x in CONCAVE.items()},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", sorted(REASONS))
def test_no_gradient_and_no_word_from_a_failing_member(
    backend: str, name: str, dtype: torch.dtype, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    values, status = REASONS[name]
    data = on_device(backend, hopeless(values, dtype))
    for x in data.values():
        x.requires_grad_()
    solution = solve(**data, backend=backend, check=False)
    assert int(solution.status) == status
    loss = sum(x.sum() for x in (solution.z, solution.lam, solution.nu, solution.lam_lb, solution.lam_ub))
    assert isinstance(loss, Tensor)
    for gradient in torch.autograd.grad(loss, list(data.values())):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_the_error_lists_the_members(backend: str) -> None:
    data = mixed(backend, torch.float64)
    data = spoilt(spoilt(spoilt(data, 1, "infeasible"), 3, "nan"), 4, "concave")
    with pytest.raises(SolveError) as caught:
        solve(**data, backend=backend)
    assert caught.value.members == [1, 3, 4]
    text = str(caught.value)
    assert "3 of 5" in text
    for line in ("PRIMAL_INFEASIBLE (member 1)", "INVALID_INPUT (member 3)", "NOT_CONVEX (member 4)"):
        assert line in text
    assert not caught.value.solution.status[[0, 2]].any()


@pytest.mark.parametrize("planted", [[0, 1], [0, 1, 2], [0, 1, 2, 3]])
def test_explains_which_rows_conflict(backend: str, planted: list[int]) -> None:
    """Among random feasible rows, some that add up to 0 ≤ -1: they alone are named, wherever they stand."""
    n, p = 5, 9
    r = generate(len(planted))
    z = torch.randn(n, generator=r, dtype=torch.float64)
    G = torch.randn(p, n, generator=r, dtype=torch.float64)
    h = G @ z + 5
    places = torch.randperm(p, generator=r)[: len(planted)].tolist()
    G[places[-1]] = -G[places[:-1]].sum(0)
    h[places[-1]] = -h[places[:-1]].sum() - 1
    data = on_device(backend, {"Q": torch.eye(n, dtype=torch.float64), "q": z, "G": G, "h": h})
    solution = solve(**data, backend=backend, check=False)
    assert int(solution.status) == Status.PRIMAL_INFEASIBLE
    assert float(solution.certificate_residual) <= 1e-9
    named = [i for i in range(p) if f"row {i} of G" in solution.explain()]
    assert named == sorted(places)
