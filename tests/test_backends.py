"""What every backend promises, each promise once, over backends × families × dtypes.

A new backend is one row in `backends.ORDER`; `pytest --backend NAME` runs its part alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from tests import fuzz
from tests.families import CONCAVE, FAMILIES, INFEASIBLE, INVALID, UNBOUNDED, Case, generate, hopeless
from tests.fuzz import HardDraw
from torch import Tensor

from optlayer import Diagonal, Settings, Status, backends, kkt, solve
from optlayer.backends import base, cpu, reference
from optlayer.backends.base import Adjoint, Answer
from optlayer.point import FIELDS, Point
from optlayer.problem import Problem, check

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
EVERY = pytest.mark.parametrize("family", sorted(FAMILIES))
STRICT = [name for name in sorted(FAMILIES) if FAMILIES[name](generate(0), torch.float64).strict]
DEFAULT = Settings()


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def make(backend: str, family: str, dtype: torch.dtype, seed: int = 0) -> Case:
    return FAMILIES[family](generate(seed), dtype).to(device_of(backend))


def take(backend: str, data: dict[str, Any]) -> Problem:
    """The problem, if the backend takes it."""
    problem = check(**data)
    engine = backends.load(backend)
    assert not isinstance(engine, str)
    reason = engine.refuses(problem)
    if reason is not None:
        pytest.skip(reason)
    return problem


def run(backend: str, data: dict[str, Any], settings: Settings = DEFAULT, keep: bool = False) -> Point:
    problem = take(backend, data)
    return base.settled(backends.choose(problem, backend), problem, settings, keep, waits=True)


def rows(data: dict[str, Any], member: int) -> dict[str, Any]:
    """The data of one member as a problem without batch dimension."""
    return {name: _pick(name, x, member) for name, x in data.items()}


def _pick(name: str, x: Any, member: int) -> Any:
    if isinstance(x, Diagonal):
        return Diagonal(x.d[member] if x.d.dim() == 2 else x.d)
    return x[member] if x.dim() > (2 if name in ("Q", "G", "A") else 1) else x


def verify(data: dict[str, Any], point: Point, tolerance: float) -> None:
    """The optimality conditions of every member, in numpy, written for this test."""
    for member in range(len(point.z)):
        d = {
            name: (x.dense() if isinstance(x, Diagonal) else x).double().cpu().numpy()
            for name, x in rows(data, member).items()
        }
        z, s, lam, nu, lam_lb, lam_ub = (x[member].double().cpu().numpy() for x in point.fields()[:6])
        Q = (d["Q"] + d["Q"].T) / 2
        terms = [Q @ z, d["q"]]
        if "G" in d:
            terms.append(d["G"].T @ lam)
            side(d["h"], d["G"] @ z, lam, tolerance)
            real = np.isfinite(d["h"])
            size = scale(d["h"], d["G"] @ z)
            assert np.abs(s - d["h"] + d["G"] @ z)[real].max(initial=0) <= tolerance * size
            assert np.isposinf(s[~real]).all()
            assert (s >= 0).all()
        if "A" in d:
            terms.append(d["A"].T @ nu)
            assert np.abs(d["A"] @ z - d["b"]).max(initial=0) <= tolerance * scale(d["b"], d["A"] @ z)
        if "lb" in d:
            terms.append(-lam_lb)
            side(-d["lb"], -z, lam_lb, tolerance)
        if "ub" in d:
            terms.append(lam_ub)
            side(d["ub"], z, lam_ub, tolerance)
        assert np.abs(sum(terms)).max() <= tolerance * scale(*terms)


def scale(*terms: np.ndarray) -> float:
    return 1 + max(np.abs(np.where(np.isfinite(x), x, 0)).max(initial=0) for x in terms)


def side(d: np.ndarray, Cz: np.ndarray, y: np.ndarray, tolerance: float) -> None:
    """C z ≤ d, y ≥ 0, y∘(d − C z) = 0, and y = 0 where d is infinite."""
    size, real = scale(d, Cz), np.isfinite(d)
    assert (Cz - d <= tolerance * size).all()
    assert (y >= 0).all()
    assert (y[~real] == 0).all()
    products = np.abs(y[real] * (d - Cz)[real])
    assert products.max(initial=0) <= 10 * tolerance * size * scale(y)


# --- solutions ------------------------------------------------------------------------------------------------------


@DTYPES
@EVERY
def test_solves_and_satisfies_the_optimality_conditions(backend: str, family: str, dtype: torch.dtype) -> None:
    for seed in range(2):
        case = make(backend, family, dtype, seed)
        point = run(backend, case.data)
        assert (point.status == int(Status.SOLVED)).all(), [Status(int(x)).name for x in point.status]
        verify(case.data, point, TOLERANCE[dtype])
        assert all(x.dtype == dtype for x in (*point.fields()[:6], *point.fields()[8:]))


@DTYPES
@EVERY
def test_finds_the_solution_that_the_problem_was_made_from(backend: str, family: str, dtype: torch.dtype) -> None:
    case = make(backend, family, dtype)
    if case.z is None:
        pytest.skip("not unique")
    point = run(backend, case.data)
    close = {torch.float64: 1e-7, torch.float32: 2e-3}[dtype]
    error = ((point.z - case.z) / (1 + case.z.abs())).abs().max()
    assert error < close
    for name, expected in case.known.items():
        found = getattr(point, name)
        assert ((found - expected).abs() / (1 + expected.abs().max())).max() < close, name


@EVERY
def test_active_sides_are_exact(backend: str, family: str) -> None:
    """After the polish every strict family has lam = 0 or s = 0 exactly, with the right one."""
    if family not in STRICT:
        pytest.skip("no unique active set")
    case = make(backend, family, torch.float64)
    point = run(backend, case.data)
    for name in ("lam", "lam_lb", "lam_ub"):
        if name in case.known:
            assert torch.equal(getattr(point, name) > 0, (case.known[name] > 0).expand_as(getattr(point, name))), name
    if "lam" in case.known:
        assert (point.s[point.lam > 0] == 0).all()
    reached = kkt.residuals(check(**case.data), *(getattr(point, x) for x in ("z", "lam", "nu", "lam_lb", "lam_ub")))
    assert reached.relative.max() < 1e-12


@DTYPES
@EVERY
def test_reports_its_residuals(backend: str, family: str, dtype: torch.dtype) -> None:
    case = make(backend, family, dtype)
    point, problem = run(backend, case.data), check(**case.data)
    wide = [None if x is None else x.double() for x in problem.tensors()]
    doubles = problem.replace(wide, problem.batch)
    found = kkt.residuals(doubles, *(x.double() for x in (point.z, point.lam, point.nu, point.lam_lb, point.lam_ub)))
    for reported, true in zip((point.primal_residual, point.dual_residual, point.gap), found, strict=False):
        size = 1 + max(float(x.abs().max()) for x in (point.z, *point.fields()[2:6]) if x.numel())
        noise = 1e3 * torch.finfo(dtype).eps * size * (1 + float(case_size(case)))
        assert (reported - true).abs().max() <= noise


def case_size(case: Case) -> float:
    tensors = (x.d if isinstance(x, Diagonal) else x for x in case.data.values())
    return max(float(torch.where(x.isfinite(), x, 0.0).abs().max()) for x in tensors)


def test_no_batch_and_empty_batch(backend: str) -> None:
    case = make(backend, "no_batch", torch.float64)
    point = run(backend, case.data)
    assert point.z.shape == (1, 5)
    point = run(backend, case.data | {"q": case.data["q"][None].expand(0, 5)}, keep=True)
    assert point.z.shape == (0, 5)
    assert point.status.shape == (0,)
    nothing = Adjoint(*(torch.zeros_like(x) for x in (point.z, point.lam, point.nu, point.lam_lb, point.lam_ub)))
    engine = backends.load(backend)
    assert not isinstance(engine, str)
    problem = check(**(case.data | {"q": case.data["q"][None].expand(0, 5)}))
    assert engine.kkt_solve(problem, DEFAULT, point, nothing).z.shape == (0, 5)


def test_one_iteration_is_not_enough_and_stays_finite(backend: str) -> None:
    if backend not in backends.ORDER:
        pytest.skip("counts no iterations of ours")
    case = make(backend, "dense", torch.float64)
    point = run(backend, case.data, Settings(max_iterations=1, polish=False))
    assert (point.status == int(Status.MAX_ITERATIONS)).all()
    assert all(x.isfinite().all() for x in point.fields()[:6])
    assert (point.primal_residual + point.dual_residual + point.gap > 1e-6).all()


def test_without_polish(backend: str) -> None:
    case = make(backend, "dense", torch.float64)
    point = run(backend, case.data, Settings(polish=False))
    assert (point.status == int(Status.SOLVED)).all()
    verify(case.data, point, 1e-8)


# --- against independent solutions ----------------------------------------------------------------------------------


def test_projection_on_a_box_is_a_clamp(backend: str) -> None:
    x = torch.randn(5, 7, generator=generate(1), dtype=torch.float64, device="cpu").to(device_of(backend))
    lb, ub = -0.5 * torch.ones_like(x[0]), torch.linspace(0, 2, 7, dtype=x.dtype, device=x.device)
    point = run(backend, {"Q": Diagonal(torch.ones_like(x[0])), "q": -x, "lb": lb, "ub": ub})
    torch.testing.assert_close(point.z, x.clamp(lb, ub), atol=1e-12, rtol=0)


def test_equalities_only_is_one_linear_system(backend: str) -> None:
    case = make(backend, "equality_only", torch.float64)
    Q, q, A, b = (case.data[name] for name in ("Q", "q", "A", "b"))
    A = A.expand(len(b), *A.shape[-2:])
    zero = A.new_zeros(len(b), A.shape[-2], A.shape[-2])
    K = torch.cat([torch.cat([Q, A.mT], -1), torch.cat([A, zero], -1)], -2)
    expected = torch.linalg.solve(K, torch.cat([-q, b], -1))
    point = run(backend, case.data)
    torch.testing.assert_close(torch.cat([point.z, point.nu], -1), expected, atol=1e-10, rtol=1e-10)


def test_linear_programs_agree_with_highs(backend: str) -> None:
    generator = generate(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, p, m, batch = 6, 10, 2, 8
    G, A, z = normal(batch, p, n), normal(m, n), normal(batch, n)
    h, b, q = (G @ z.unsqueeze(-1)).squeeze(-1) + normal(batch, p).abs(), z @ A.mT, normal(batch, n)
    data = {"Q": torch.zeros(n, n, dtype=torch.float64), "q": q, "G": G, "h": h, "A": A, "b": b}
    data |= {"lb": -3 + 0 * q[0], "ub": 3 + 0 * q[0]}
    moved = {name: x.to(device_of(backend)) for name, x in data.items()}
    point = run(backend, moved)
    for i in range(batch):
        c, A_ub, b_ub, A_eq, b_eq = (x.numpy() for x in (q[i], G[i], h[i], A, b[i]))
        highs = linprog(c, A_ub=A_ub, b_ub=b_ub, A_eq=A_eq, b_eq=b_eq, bounds=(-3, 3), method="highs")
        if highs.status == 0:
            assert int(point.status[i]) == int(Status.SOLVED)
            assert abs(float(q[i] @ point.z[i].cpu()) - highs.fun) < 1e-7 * (1 + abs(highs.fun))
        else:
            assert highs.status == 2
            assert int(point.status[i]) == int(Status.PRIMAL_INFEASIBLE)


@DTYPES
@EVERY
def test_agrees_with_the_reference(backend: str, family: str, dtype: torch.dtype) -> None:
    if backend == "reference":
        pytest.skip("is the reference")
    case = make(backend, family, dtype, 5)
    point, expected = run(backend, case.data), reference.solve(check(**case.data), DEFAULT, False)
    assert torch.equal(point.status, expected.status)
    if case.z is not None:
        close = {torch.float64: 1e-7, torch.float32: 5e-3}[dtype]
        assert ((point.z - expected.z).abs() / (1 + expected.z.abs())).max() < close


# --- no solution ----------------------------------------------------------------------------------------------------

TABLES = {
    **{f"infeasible: {k}": (v, Status.PRIMAL_INFEASIBLE) for k, v in INFEASIBLE.items()},
    **{f"unbounded: {k}": (v, Status.DUAL_INFEASIBLE) for k, v in UNBOUNDED.items()},
    **{f"invalid: {k}": (v, Status.INVALID_INPUT) for k, v in INVALID.items()},
    **{f"concave: {k}": (v, Status.NOT_CONVEX) for k, v in CONCAVE.items()},
}


@DTYPES
@pytest.mark.parametrize("entry", TABLES)
def test_verdicts_on_problems_without_solution(backend: str, entry: str, dtype: torch.dtype) -> None:
    values, expected = TABLES[entry]
    data = {name: x.to(device_of(backend)) for name, x in hopeless(values, dtype).items()}
    take(backend, data)
    solution = solve(**data, backend=backend, check=False)
    assert Status(int(solution.status)).name == expected.name
    assert all(getattr(solution, x).isfinite().all() for x in ("z", "lam", "nu", "lam_lb", "lam_ub"))
    certified = expected in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE)
    assert bool(solution.certificate_residual.isnan()) is not certified
    if certified:
        assert solution.certificate_residual < (1e-9 if dtype == torch.float64 else 1e-6)
        prove(data, solution, expected)
    assert solution.explain().startswith(expected.name)


def prove(data: dict[str, Tensor], solution: Any, status: Status) -> None:
    """The certificate, in numpy, written for this test."""
    d = {name: x.double().cpu().numpy() for name, x in data.items()}
    z, lam, nu, lam_lb, lam_ub = (
        getattr(solution, x).double().cpu().numpy() for x in ("z", "lam", "nu", "lam_lb", "lam_ub")
    )
    finite = {name: np.where(np.isfinite(x), x, 0) for name, x in d.items()}
    if status == Status.PRIMAL_INFEASIBLE:
        total, value, size = np.zeros(2), 0.0, 1e-300
        for M, side_, y in (("G", "h", lam), ("A", "b", nu)):
            if M in d:
                total, value = total + d[M].T @ y, value + finite[side_] @ y
                size = max(size, np.abs(d[M].T * y).max())
        for name, sign, y in (("lb", -1, lam_lb), ("ub", 1, lam_ub)):
            if name in d:
                total, value, size = total + sign * y, value + sign * finite[name] @ y, max(size, np.abs(y).max())
        assert np.abs(total).max() <= 1e-5 * size
        assert value == pytest.approx(-1, rel=1e-4)
        assert min(y.min(initial=0) for y in (lam, lam_lb, lam_ub)) >= 0
    else:
        assert d["q"] @ z == pytest.approx(-1, rel=1e-4)
        small = 1e-5 * np.abs(z).max()
        assert np.abs(d["Q"] @ z).max() <= small
        assert np.abs(d["A"] @ z).max(initial=0) <= small if "A" in d else True
        assert (d["G"] @ z)[np.isfinite(d["h"])].max(initial=0) <= small if "G" in d else True
        assert z[np.isfinite(d["lb"])].min(initial=0) >= -small if "lb" in d else True
        assert z[np.isfinite(d["ub"])].max(initial=0) <= small if "ub" in d else True


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (INFEASIBLE["three rows"], ["row 0", "row 1", "row 2"]),
        (INFEASIBLE["zero row of G"], ["row 0 of G"]),
        (INFEASIBLE["row against bounds"], ["row 0", "lower bound of z[0]", "lower bound of z[1]"]),
        (INFEASIBLE["crossed bounds"], ["lower bound of z[1]", "upper bound of z[1]"]),
        (UNBOUNDED["one bound infinite"], ["z[1] up"]),
        (INVALID["nan in G"], ["G[0, 0] = nan"]),
        (INVALID["inf in lb"], ["lb[0] = inf"]),
        (CONCAVE["one direction"], ["-1", "z[1]"]),
    ],
)
def test_explains_in_words(values: dict[str, Any], words: list[str]) -> None:
    text = solve(**hopeless(values, torch.float64), backend="reference", check=False).explain()
    for word in words:
        assert word in text
    if "row 1" not in words:
        assert "row 1 " not in text


# --- every member for itself ----------------------------------------------------------------------------------------


def whole(data: dict[str, Any], batch: int) -> dict[str, Any]:
    """The data with a batch dimension everywhere."""
    full = {}
    for name, x in data.items():
        t = x.dense() if isinstance(x, Diagonal) else x
        rank = 2 if name in ("Q", "G", "A") else 1
        full[name] = (t if t.dim() > rank else t.expand(batch, *t.shape)).clone()
    return full


def same(a: Point, i: Any, b: Point, j: Any) -> None:
    """Bit for bit, verdict and residuals included."""
    for name, x, y in zip(FIELDS, a.fields(), b.fields(), strict=True):
        assert torch.equal(x[i], y[j]), name


@DTYPES
@EVERY
def test_members_do_not_see_each_other(backend: str, family: str, dtype: torch.dtype) -> None:
    case = make(backend, family, dtype)
    if family == "no_batch":
        pytest.skip("one member")
    data = whole(case.data, 3)
    alone = run(backend, data)
    bad = {name: x.clone() for name, x in data.items()}
    bad["q"][1] = torch.nan
    same(alone, [0, 2], run(backend, bad), [0, 2])
    if "lb" in data and "ub" in data:
        bad = {name: x.clone() for name, x in data.items()}
        bad["lb"][1], bad["ub"][1] = 1.0, -1.0
        found = run(backend, bad)
        same(alone, [0, 2], found, [0, 2])
        assert int(found.status[1]) == int(Status.PRIMAL_INFEASIBLE)


@DTYPES
@EVERY
def test_place_and_batch_size_do_not_matter(backend: str, family: str, dtype: torch.dtype) -> None:
    case = make(backend, family, dtype)
    if family == "no_batch":
        pytest.skip("one member")
    data = whole(case.data, 3)
    together = run(backend, data)
    order = [2, 0, 1, 2, 2, 1, 0, 0, 2]
    shuffled = run(backend, {name: x[order] for name, x in data.items()})
    same(together, order, shuffled, slice(None))
    for member in range(3):
        same(together, [member], run(backend, {name: x[[member]] for name, x in data.items()}), [0])


def test_failing_members_among_others(backend: str) -> None:
    """One batch with every kind of verdict; the solved ones are those of a batch without the others."""
    n = 3
    device = device_of(backend)
    Q = torch.eye(n, dtype=torch.float64, device=device).repeat(6, 1, 1)
    q = torch.randn(6, n, generator=generate(3), dtype=torch.float64).to(device)
    lb, ub = torch.full_like(q, -1), torch.full_like(q, 1)
    G, h = torch.ones(6, 1, n, dtype=torch.float64, device=device), torch.ones(6, 1, dtype=torch.float64, device=device)
    h[1] = -10.0  # infeasible with lb
    Q[2], lb[2] = 0.0, -torch.inf  # unbounded
    q[2] = 1.0
    q[3, 0] = torch.nan
    Q[4, 0, 0] = -1.0
    data = {"Q": Q, "q": q, "G": G, "h": h, "lb": lb, "ub": ub}
    point = run(backend, data)
    expected = [
        Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE,
        Status.INVALID_INPUT, Status.NOT_CONVEX, Status.SOLVED,
    ]  # fmt: skip
    assert [Status(int(x)) for x in point.status] == expected
    same(point, [0, 5], run(backend, {name: x[[0, 5]] for name, x in data.items()}), [0, 1])


# --- the system of the derivative -----------------------------------------------------------------------------------


def right_side(point: Point, seed: int) -> Adjoint:
    generator = generate(seed)

    def random(x: Tensor) -> Tensor:
        return torch.randn(*x.shape, generator=generator, dtype=torch.float64).to(x)

    return Adjoint(*(random(x) for x in (point.z, point.lam, point.nu, point.lam_lb, point.lam_ub)))


def inner(a: Adjoint, b: Adjoint) -> Tensor:
    return sum(((x * y).sum(-1) for x, y in zip(a, b, strict=True)), a.z.new_zeros(len(a.z)))


@pytest.mark.parametrize("keep", [True, False], ids=["factor", "no factor"])
@pytest.mark.parametrize("family", STRICT)
def test_kkt_solve_solves_the_system(backend: str, family: str, keep: bool) -> None:
    case = make(backend, family, torch.float64)
    problem, point = take(backend, case.data), run(backend, case.data, keep=keep)
    engine = backends.choose(problem, backend)
    r = right_side(point, 1)
    v = engine.kkt_solve(problem, DEFAULT, point, r)
    left = kkt.mul_Q(problem.Q, v.z)
    if problem.G is not None:
        left = left + kkt.mul_t(problem.G, v.lam)
        active = point.lam > 0
        assert torch.where(active, kkt.mul(problem.G, v.z) - r.lam, v.lam).abs().max() < 1e-8
    if problem.A is not None:
        left = left + kkt.mul_t(problem.A, v.nu)
        assert (kkt.mul(problem.A, v.z) - r.nu).abs().max() < 1e-8
    if problem.lb is not None:
        left = left - v.lam_lb
        assert torch.where(point.lam_lb > 0, -v.z - r.lam_lb, v.lam_lb).abs().max() < 1e-8
    if problem.ub is not None:
        left = left + v.lam_ub
        assert torch.where(point.lam_ub > 0, v.z - r.lam_ub, v.lam_ub).abs().max() < 1e-8
    assert (left - r.z).abs().max() < 1e-8 * (1 + r.z.abs().max() + v.z.abs().max())


@pytest.mark.parametrize("family", [*STRICT, "duplicated_rows", "zero_rows", "no_interior", "flat", "weakly_active"])
def test_kkt_solve_is_symmetric_and_finite(backend: str, family: str) -> None:
    case = make(backend, family, torch.float64)
    problem, point = take(backend, case.data), run(backend, case.data, keep=True)
    engine = backends.choose(problem, backend)
    r, w = right_side(point, 1), right_side(point, 2)
    # inactive sides do not take part
    multipliers = (None, point.lam, None, point.lam_lb, point.lam_ub)
    r, w = (Adjoint(*(x if y is None else x * (y > 0) for x, y in zip(u, multipliers, strict=True))) for u in (r, w))
    Mr, Mw = (engine.kkt_solve(problem, DEFAULT, point, u) for u in (r, w))
    assert all(x.isfinite().all() for x in (*Mr, *Mw))
    difference = (inner(w, Mr) - inner(Mw, r)).abs()
    assert (difference <= 1e-6 * (1 + inner(w, Mr).abs())).all()


def test_dependent_active_rows_share_the_multiplier(backend: str) -> None:
    """A row given twice: v_z as with one, v_lam in equal parts (the least norm) on those with a multiplier."""
    Q, q = torch.eye(2, dtype=torch.float64), torch.tensor([[-1.0, 0.5]], dtype=torch.float64)
    G, h = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    once = {"Q": Q, "q": q, "G": G, "h": h}
    twice = once | {"G": torch.cat([G, G]), "h": torch.cat([h, h])}
    found = []
    for data in (once, twice):
        moved = {name: x.to(device_of(backend)) for name, x in data.items()}
        problem, point = take(backend, moved), run(backend, moved, keep=True)
        zeros = (torch.zeros_like(x) for x in (point.lam, point.nu, point.lam_lb, point.lam_ub))
        found.append(backends.choose(problem, backend).kkt_solve(
            problem, DEFAULT, point, Adjoint(torch.tensor([[1.0, 2.0]], dtype=torch.float64).to(moved["Q"]), *zeros)
        ))
    torch.testing.assert_close(found[0].z, found[1].z, atol=1e-10, rtol=0)
    held = (point.lam > 0).double()
    torch.testing.assert_close(found[1].lam, found[0].lam * held / held.sum(), atol=1e-8, rtol=0)


def test_unsolved_members_have_zero_derivative(backend: str) -> None:
    data = {name: x.to(device_of(backend)) for name, x in hopeless(INFEASIBLE["rows"], torch.float64).items()}
    data["h"] = torch.stack([data["h"], -data["h"]])
    problem, point = take(backend, data), run(backend, data, keep=True)
    v = backends.choose(problem, backend).kkt_solve(problem, DEFAULT, point, right_side(point, 1))
    assert all((x[0] == 0).all() for x in v)
    assert (v.z[1] != 0).all()


@EVERY
def test_any_backend_differentiates_a_point_of_the_reference(backend: str, family: str) -> None:
    """A point without factor, from elsewhere: the same derivative of z."""
    case = make(backend, family, torch.float64)
    problem, point = take(backend, case.data), run(backend, case.data, keep=True)
    r = right_side(point, 1)
    r = r._replace(**{name: torch.zeros_like(getattr(r, name)) for name in ("lam", "nu", "lam_lb", "lam_ub")})
    mine = backends.choose(problem, backend).kkt_solve(problem, DEFAULT, point, r)
    theirs = reference.kkt_solve(problem, DEFAULT, Point.of(*point.fields()), r)
    if case.z is not None and family not in ("weakly_active", "no_interior", "zero_rows"):
        scale_ = 1 + theirs.z.abs().amax(-1, keepdim=True)
        assert ((mine.z - theirs.z).abs() / scale_).max() < 1e-6


# --- answers of other solvers ----------------------------------------------------------------------------------------

JUDGES = pytest.mark.parametrize("judge", [cpu, reference], ids=["cpu", "reference"])


def near(point: Point, size: float) -> Answer:
    """A solver's answer, each number wrong by about `size` of the largest."""
    parts = [x.double() for x in (point.z, point.lam, point.nu, point.lam_lb, point.lam_ub)]
    rng = generate(9)
    noise = [torch.randn(x.shape, generator=rng, dtype=x.dtype) for x in parts]
    return Answer(*(x + size * kkt.largest(x).unsqueeze(-1) * e for x, e in zip(parts, noise, strict=True)))


@JUDGES
@DTYPES
# (scaled ones: the noise is in one unit)
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"scaled_variables", "scaled_rows"}))
def test_answers_are_polished(judge: Any, family: str, dtype: torch.dtype) -> None:
    case, tolerance = FAMILIES[family](generate(0), dtype), TOLERANCE[dtype]
    problem = check(**case.data)
    found = judge.judge(problem, DEFAULT, near(reference.solve(problem, DEFAULT, False), 1e-7), tolerance)
    assert (found.status == 0).all()
    verify(case.data, found, tolerance)


@JUDGES
def test_answers_that_are_not_to_be_polished_stay(judge: Any) -> None:
    problem = check(**FAMILIES["dense"](generate(0), torch.float64).data)
    given = near(reference.solve(problem, DEFAULT, False), 1e-7)
    for tolerance, status in ((1e-4, Status.SOLVED), (1e-10, Status.NUMERICAL_ERROR)):
        found = judge.judge(problem, Settings(polish=False), given, tolerance)
        assert (found.status == int(status)).all()
        assert torch.allclose(found.z, given.z, atol=1e-5)
        assert not torch.allclose(found.z, reference.solve(problem, DEFAULT, False).z, rtol=0, atol=1e-9)


@JUDGES
def test_no_answer_and_the_answer_to_what_has_none(judge: Any) -> None:
    data = FAMILIES["dense"](generate(0), torch.float64).data
    nothing = Answer.empty(check(**data))
    q, Q = data["q"].clone(), data["Q"].expand(len(data["q"]), -1, -1).clone()
    q[0, 0], Q[1] = torch.nan, -Q[1]
    found = judge.judge(check(**(data | {"q": q, "Q": Q})), DEFAULT, nothing, 1e-9)
    assert found.status.tolist() == [Status.INVALID_INPUT, Status.NOT_CONVEX, Status.NUMERICAL_ERROR]


@JUDGES
def test_an_active_set_that_is_wrong_is_corrected(judge: Any) -> None:
    data = FAMILIES["bounds_only"](generate(0), torch.float64).data
    problem = check(**data)
    exact = reference.solve(problem, DEFAULT, False)
    given = near(exact, 0.0)._replace(lam_lb=torch.zeros_like(exact.lam_lb), lam_ub=torch.zeros_like(exact.lam_ub))
    found = judge.judge(problem, DEFAULT, given, 1e-9)
    assert torch.allclose(found.z, exact.z, atol=1e-10)


@pytest.mark.parametrize("name", ["crossed bounds", "zero row of G", "zero row of A"])
def test_the_reference_proves_what_the_data_alone_decide(name: str) -> None:
    problem = check(**hopeless(INFEASIBLE[name], torch.float64))
    found = reference.judge(problem, DEFAULT, Answer.empty(problem), 1e-9)
    assert found.status.tolist() == [Status.PRIMAL_INFEASIBLE]
    assert kkt.farkas_residual(problem, found.lam, found.nu, found.lam_lb, found.lam_ub) == 0


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("zero_row", 71000060), ("zero_equality_beside_duplicates", 71000027), ("opposite_rows", 71000285),
        ("huge_bounds", 71000195), ("units_2_40", 71000168), ("units_2_40", 71000171),
    ],
)  # fmt: skip
def test_the_reference_gives_none_up(kind: str, seed: int) -> None:
    """Rows of zeros, bounds far away, curvatures far below the rows, a contradiction of 1e-6 far from zero."""
    drawn = HardDraw(seed, kind)
    solution = solve(**drawn.arguments(), backend="reference", check=False)
    assert {fuzz.judge(drawn, solution, k) for k in range(fuzz.BATCH)} == {"right"}


# --- the relaxed problem --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["dense", "bounds_only", "rows_only", "linear_program", "infinite_entries", "weakly_active"]
)
@pytest.mark.parametrize("smoothing", [1e-1, 1e-3, 1e-6])
def test_relaxed_point_has_the_complementarity_asked_for(backend: str, family: str, smoothing: float) -> None:
    case = make(backend, family, torch.float64)
    problem, settings = take(backend, case.data), Settings(gradient="smoothed", smoothing=smoothing)
    engine = backends.choose(problem, backend).relaxing()
    point = engine.relax(problem, settings, run(backend, case.data), False)
    found = kkt.residuals(problem, point.z, point.lam, point.nu, point.lam_lb, point.lam_ub)
    assert (found.primal <= 0).all() or (found.primal.abs() < 1e-9).all()
    assert (found.dual < 1e-8).all()
    sides = [] if problem.h is None else [(problem.h, point.s, point.lam)]
    sides += [] if problem.lb is None else [(problem.lb, point.z - problem.lb, point.lam_lb)]
    sides += [] if problem.ub is None else [(problem.ub, problem.ub - point.z, point.lam_ub)]
    for bound, s, y in sides:
        real = bound.isfinite().expand_as(y)
        torch.testing.assert_close((s * y)[real], torch.full_like(y[real], smoothing), rtol=1e-5, atol=0)
        assert (y[~real] == 0).all()


@pytest.mark.parametrize("keep", [True, False])
def test_smoothed_derivative_is_that_of_the_relaxed_problem(backend: str, keep: bool) -> None:
    case = make(backend, "dense", torch.float64)
    settings = dataclasses.replace(DEFAULT, gradient="smoothed", smoothing=1e-2)
    engine = backends.choose(take(backend, case.data), backend).relaxing()

    def relaxed(q: Tensor) -> tuple[Problem, Point]:
        problem = check(**(case.data | {"q": q}))
        return problem, engine.relax(problem, settings, reference.solve(problem, settings, False), keep)

    q = case.data["q"]
    direction = torch.randn(q.shape, generator=generate(4), dtype=q.dtype).to(q.device)
    change = (relaxed(q + 1e-5 * direction)[1].z - relaxed(q - 1e-5 * direction)[1].z) / 2e-5
    problem, point = relaxed(q)
    zeros = (torch.zeros_like(x) for x in (point.lam, point.nu, point.lam_lb, point.lam_ub))
    v = engine.kkt_solve(problem, settings, point, Adjoint(-direction, *zeros))
    torch.testing.assert_close(v.z, change, rtol=1e-6, atol=1e-7)


class Asynchronous(base.Backend):
    """Solves what lies inside its bounds and leaves the rest, as a GPU's kernel does."""

    name = "asynchronous"

    def solve(self, problem: Problem, settings: Settings, keep_factor: bool) -> Point:
        point = cpu.solve(problem, settings, False)
        point.status[1] = int(Status.NUMERICAL_ERROR)
        point.z[1] = 0
        point.unsolved = None
        return point

    def settle(self, problem: Problem, settings: Settings, point: Point) -> None:
        base.settle_here(problem, settings, point)


def test_what_a_backend_leaves_is_settled_where_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._added, "asynchronous", Asynchronous())
    q = torch.tensor([[1.0, -2.0], [3.0, -4.0]], dtype=torch.float64, requires_grad=True)
    arguments = {"Q": torch.eye(2, dtype=torch.float64), "q": q, "lb": 0.0, "backend": "asynchronous"}
    found = solve(**arguments)
    assert found.z.tolist() == [[0.0, 2.0], [0.0, 4.0]]
    found.z.sum().backward()
    assert q.grad is not None
    torch.testing.assert_close(q.grad, torch.tensor([[0.0, -1.0]] * 2, dtype=torch.float64))
    with torch.no_grad():
        assert solve(**arguments).solved.all()
    assert solve(**arguments, check=False).status.tolist() == [int(Status.SOLVED), int(Status.NUMERICAL_ERROR)]
