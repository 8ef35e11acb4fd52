"""The compiled core against the reference, and against itself: what may not change a member's bits."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer import solve
from optlayer.backends import args, cpu, reference
from optlayer.backends.base import Adjoint
from optlayer.core.settings import Settings
from optlayer.core.status import Status
from optlayer.core.structure import NAMES
from optlayer.kkt import farkas_residual, mul, residuals
from optlayer.matrices import Diagonal
from optlayer.point import Point
from optlayer.problem import Problem, check

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
SETTINGS = Settings()
F64 = torch.float64


def draw(
    seed: int, n: int, m: int = 0, p: int = 0, batch: int = 9, *, bounds: bool = False, shared: bool = False,
    diagonal: bool = False, dtype: torch.dtype = F64,
) -> Problem:
    """A feasible strictly convex problem; `shared`: only q, h and b differ between members."""
    g = torch.Generator().manual_seed(seed)
    lead = () if shared else (batch,)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    W = normal(*lead, n, n)
    Q: Any = Diagonal(normal(*lead, n).abs() + 0.5) if diagonal else W @ W.mT + 0.5 * torch.eye(n, dtype=F64)
    z, G, A = normal(batch, n), normal(*lead, p, n), normal(*lead, m, n)
    room = torch.rand(batch, n, generator=g, dtype=F64)
    given = {
        "q": 3 * normal(batch, n),
        "G": G if p else None, "h": mul(G, z) + 0.1 if p else None,
        "A": A if m else None, "b": mul(A, z) if m else None,
        "lb": z - room if bounds else None, "ub": z + 0.5 * room if bounds else None,
    }  # fmt: skip
    Q = Diagonal(Q.d.to(dtype)) if diagonal else Q.to(dtype)
    return check(Q, **{name: None if x is None else x.to(dtype) for name, x in given.items()})


def upstream(point: Point, seed: int = 5) -> Adjoint:
    g = torch.Generator().manual_seed(seed)
    parts = (point.z, point.lam, point.nu, point.lam_lb, point.lam_ub)
    return Adjoint(*(torch.randn(x.shape, generator=g, dtype=F64).to(x.dtype) for x in parts))


@contextmanager
def forced(method: str = "auto", lanes: int = 0, threads: int = 1) -> Iterator[None]:
    before = cpu.METHOD, cpu.LANES, torch.get_num_threads()
    cpu.METHOD, cpu.LANES = args.METHODS.index(method), lanes
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        cpu.METHOD, cpu.LANES = before[:2]
        torch.set_num_threads(before[2])


def both(problem: Problem) -> tuple[Tensor, ...]:
    """Point, verdict and derivative."""
    point = cpu.solve(problem, SETTINGS, True)
    return (*point.fields(), *cpu.kkt_solve(problem, SETTINGS, point, upstream(point)))


def same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


KINDS: dict[str, dict[str, Any]] = {
    "rows": {"n": 12, "p": 10},
    "rows and equalities": {"n": 14, "m": 4, "p": 9},
    "bounds": {"n": 13, "m": 3, "bounds": True},
    "everything": {"n": 20, "m": 5, "p": 12, "bounds": True},
    "shared rows": {"n": 30, "p": 28, "shared": True},
    "shared equalities and bounds": {"n": 24, "m": 15, "bounds": True, "shared": True},
    "many rows": {"n": 6, "p": 40},
    "diagonal": {"n": 15, "m": 4, "p": 7, "bounds": True, "diagonal": True},
    "shared, diagonal": {"n": 15, "m": 6, "bounds": True, "diagonal": True, "shared": True},
    "equalities alone": {"n": 7, "m": 3},
    "nothing": {"n": 5},
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)


def test_layout_is_the_same_on_both_sides() -> None:
    core = cpu._core()
    assert isinstance(core, cpu.Core)
    library = ctypes.CDLL(str(core.path))
    found = (ctypes.c_int64 * (4 + len(args.TENSORS)))()
    library.optlayer_args_layout(found)
    numbers = 4 * len(args.NUMBERS)
    wanted = [0, numbers - 4, numbers, numbers + 8, *(numbers + 16 + 16 * i for i in range(len(args.TENSORS)))]
    assert list(found) == wanted
    assert core.path.name.startswith("core_")


def test_the_usual_iterations_are_those_of_the_settings() -> None:
    """Fewer bind every rung of the core."""
    text = (Path(optlayer.__file__).parent / "kernels" / "args.h").read_text()
    assert int(re.findall(r"usual_iterations = (\d+);", text)[0]) == Settings().max_iterations


@every_kind
@pytest.mark.parametrize("method", args.METHODS)
def test_every_method_agrees_with_the_reference(kind: str, method: str) -> None:
    problem = draw(1, **KINDS[kind])
    wanted = reference.solve(problem, SETTINGS, True)
    with forced(method):
        found = cpu.solve(problem, SETTINGS, True)
        v = cpu.kkt_solve(problem, SETTINGS, found, upstream(found))
    assert torch.equal(found.status, wanted.status)
    judged = residuals(problem, found.z, found.lam, found.nu, found.lam_lb, found.lam_ub)
    assert float(judged.relative.max()) <= 1e-9
    for name in ("z", "s", "lam", "nu", "lam_lb", "lam_ub"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-6, atol=1e-6)
    exact = reference.kkt_solve(problem, SETTINGS, wanted, upstream(found))
    for a, b in zip(v, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equations", [0, 1, 7])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_few_variables_between_their_bounds(equations: int, shared: bool, dtype: torch.dtype) -> None:
    """As in a sparse portfolio: most variables at a bound, found from Q over the others (pivoting.h)."""
    n, batch = 160, 5
    g = torch.Generator().manual_seed(equations)
    factors = torch.randn(*(() if shared else (batch,)), n, 20, generator=g, dtype=F64)
    Q = factors @ factors.mT / 20 + 1e-2 * torch.eye(n, dtype=F64)
    A = torch.cat([torch.ones(1, n, dtype=F64), torch.randn(6, n, generator=g, dtype=F64)])[:equations]
    b = torch.cat([torch.ones(1, dtype=F64), 0.1 * torch.randn(6, generator=g, dtype=F64)])[:equations]
    problem = check(
        Q.to(dtype), -torch.rand(batch, n, generator=g, dtype=F64).to(dtype),
        A=A.to(dtype) if equations else None, b=b.to(dtype) if equations else None,
        lb=torch.zeros(n, dtype=dtype), ub=torch.full((n,), 0.1, dtype=dtype),
    )  # fmt: skip
    wanted, found = reference.solve(problem, SETTINGS, True), cpu.solve(problem, SETTINGS, True)
    assert (found.status == int(Status.SOLVED)).all()
    assert ((found.lam_lb > 0) | (found.lam_ub > 0)).sum() > 0.6 * n * batch
    assert equations > 1 or (found.iterations < 40).all()
    tolerance = 1e-7 if dtype == F64 else 1e-4
    torch.testing.assert_close(found.z, wanted.z, rtol=tolerance, atol=tolerance)
    r = upstream(wanted)
    v, exact = cpu.kkt_solve(problem, SETTINGS, found, r), reference.kkt_solve(problem, SETTINGS, wanted, r)
    torch.testing.assert_close(v.z, exact.z, rtol=100 * tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("definite", [True, False])
@pytest.mark.parametrize("objective", [1e-6, 1.0, 1e6])
def test_units_do_not_matter(definite: bool, objective: float, monkeypatch) -> None:
    """Variables, rows and the objective in units up to a million apart: the same answers, by the core."""
    problem = draw(3, n=20, m=4, p=12, bounds=True)
    g = torch.Generator().manual_seed(1)
    Q, q, G, h, A, b, lb, ub, _ = problem.tensors()
    if not definite:
        L = torch.randn(9, 20, 8, generator=g, dtype=F64)
        Q = L @ L.mT
    z, rows, equations = (10 ** (6 * torch.rand(size, generator=g, dtype=F64) - 3) for size in (20, 12, 4))
    plain = check(Q, q, G, h, A, b, lb, ub)
    wanted = cpu.solve(plain, SETTINGS, True)
    monkeypatch.setattr(reference, "solve", None)
    monkeypatch.setattr(reference, "kkt_solve", None)
    scaled = check(
        objective * Q * z * z.unsqueeze(-1), objective * q * z, G * z * rows.unsqueeze(-1), h * rows,
        A * z * equations.unsqueeze(-1), b * equations, lb / z, ub / z,
    )  # fmt: skip
    found = cpu.solve(scaled, SETTINGS, True)
    assert (found.status == int(Status.SOLVED)).all()
    torch.testing.assert_close(found.z * z, wanted.z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.lam * rows / objective, wanted.lam, rtol=1e-5, atol=1e-5)
    r = upstream(wanted)
    v = cpu.kkt_solve(plain, SETTINGS, wanted, r)
    w = cpu.kkt_solve(scaled, SETTINGS, found, r._replace(
        z=objective * r.z * z, lam=r.lam * rows, nu=r.nu * equations, lam_lb=r.lam_lb / z, lam_ub=r.lam_ub / z,
    ))  # fmt: skip
    torch.testing.assert_close(w.z * z, v.z, rtol=1e-5, atol=1e-5)


@every_kind
@pytest.mark.parametrize("method", [method for method in args.METHODS if method != "active"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("smoothing", [1.0, 1e-2, 1e-5])
def test_relaxed_points_are_those_of_the_reference(
    kind: str, method: str, dtype: torch.dtype, smoothing: float, monkeypatch
) -> None:
    problem, settings = draw(6, **KINDS[kind], dtype=dtype), Settings(gradient="smoothed", smoothing=smoothing)
    start = cpu.solve(problem, settings, False)
    Q, *others = (x if x is None else x.double() for x in problem.tensors())
    exactly = check(Diagonal(Q) if problem.structure.diagonal else Q, *others)
    wanted = reference.relax(exactly, settings, cpu.solve(exactly, settings, False), False)
    r = upstream(wanted)
    exact = reference.kkt_solve(exactly, settings, wanted, r)
    r = Adjoint(*(x.to(dtype) for x in r))
    monkeypatch.setattr(reference, "relax", None)  # the core does it by itself
    with forced(method):
        found = cpu.relax(problem, settings, start, True)
        kept = cpu.kkt_solve(problem, settings, found, r)
        anew = cpu.kkt_solve(problem, settings, Point.of(*found.fields()), r)
    tolerance = 1e-7 if dtype == F64 else 2e-5
    assert torch.equal(found.status, start.status)
    for name in ("z", "s", "lam", "nu", "lam_lb", "lam_ub"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(wanted, name), rtol=tolerance, atol=tolerance)
    for v in (kept, anew):
        for a, b in zip(v, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=10 * tolerance, atol=10 * tolerance)


@every_kind
def test_a_member_does_not_see_the_others(kind: str) -> None:
    problem = draw(2, **KINDS[kind])
    if problem.batch is None:
        pytest.skip("no batch")
    whole = both(problem)
    for members in ([3], [8, 3, 0], [3, 3, 3, 3, 3]):
        part = problem.select(members)
        point = cpu.solve(part, SETTINGS, True)
        rhs = Adjoint(*(x[members] for x in upstream(cpu.solve(problem, SETTINGS, False))))
        v = cpu.kkt_solve(part, SETTINGS, point, rhs)
        assert same((*point.fields(), *v), tuple(x[members] for x in whole)), members


@every_kind
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_threads_change_no_bit(kind: str, dtype: torch.dtype) -> None:
    problem = draw(3, dtype=dtype, **{**KINDS[kind], "batch": 37})
    with forced(threads=1):
        alone = both(problem)
    with forced(threads=2):
        together = both(problem)
    assert same(together, alone)


@every_kind
def test_lanes_agree_with_one_at_a_time(kind: str) -> None:
    problem = draw(4, **KINDS[kind])
    with forced(lanes=1):
        alone = both(problem)
    with forced(lanes=8):
        lanes = both(problem)
    for a, b in zip(lanes, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_interior_point_in_lanes_has_the_same_bits() -> None:
    problem = draw(5, n=9, m=2, p=7)
    with forced("normal", lanes=1):
        alone = both(problem)
    with forced("normal", lanes=8):
        assert same(both(problem), alone)


def test_structure_is_found_and_changes_no_answer() -> None:
    g = torch.Generator().manual_seed(6)
    n, batch = 11, 5
    q, A = torch.randn(batch, n, generator=g, dtype=F64), torch.randn(3, n, generator=g, dtype=F64)
    eye = torch.eye(n, dtype=F64)
    ones = torch.ones(n, dtype=F64)
    b = A @ (0.3 * ones)
    rows = check(0.1 * eye, q, torch.cat([-2 * eye, eye]), torch.cat([0 * ones, ones]), A, b)
    told = check(Diagonal(0.1 * ones), q, None, None, A, b, 0 * ones, ones)
    found, wanted = both(rows), both(told)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(2 * found[2][:, :n], wanted[4], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[2][:, n:], wanted[5], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1][:, :n], 2 * found[0], rtol=1e-9, atol=1e-9)


def test_strides_and_expanded_tensors() -> None:
    problem = draw(7, n=8, p=6)
    Q, q, G, h = problem.tensors()[:4]
    wide = torch.stack([q, q], -1)[..., 0]  # stride 2
    strided = check(Q.mT, wide, G.mT.contiguous().mT, torch.stack([h, h], 1)[:, 0])
    assert same(both(strided), both(problem))
    expanded = check(Q[0].expand(9, 8, 8), q, G[0].expand(9, 6, 8), h[0].expand(9, 6) + 1)
    assert same(both(expanded), both(check(Q[0], q, G[0], (h[0].expand(9, 6) + 1).contiguous())))


def test_asymmetric_Q_means_its_symmetric_part() -> None:
    problem = draw(8, n=10, p=5)
    Q, q, G, h = problem.tensors()[:4]
    skew = torch.randn(10, 10, dtype=F64, generator=torch.Generator().manual_seed(1))
    found = both(check(Q + skew - skew.mT, q, G, h))
    torch.testing.assert_close(found[0], both(problem)[0], rtol=1e-8, atol=1e-8)


def test_infinite_limits_are_no_limits() -> None:
    problem = draw(9, n=10, p=6, bounds=True)
    Q, q, G, h, _, _, lb, ub, _ = (x if x is None else x.clone() for x in problem.tensors())
    h[:, 1], lb[:, 2], ub[:, 3] = torch.inf, -torch.inf, torch.inf
    found = cpu.solve(check(Q, q, G, h, None, None, lb, ub), SETTINGS, True)
    assert int(found.status.abs().max()) == 0
    assert bool((found.lam[:, 1] == 0).all() & (found.lam_lb[:, 2] == 0).all() & (found.lam_ub[:, 3] == 0).all())
    assert bool(found.s[:, 1].isinf().all())


def test_singular_Q_is_solved_without_the_active_set() -> None:
    g = torch.Generator().manual_seed(10)
    n, batch = 8, 6
    W = torch.randn(n, 3, generator=g, dtype=F64)
    problem = check(
        W @ W.mT, torch.randn(batch, n, generator=g, dtype=F64),
        lb=-torch.ones(n, dtype=F64), ub=torch.ones(n, dtype=F64),
    )  # fmt: skip
    found = cpu.solve(problem, SETTINGS, True)
    wanted = reference.solve(problem, SETTINGS, True)
    assert int(found.status.abs().max()) == 0
    objective = [(x.z * (0.5 * mul(W @ W.mT, x.z) + problem.q)).sum(-1) for x in (found, wanted)]
    torch.testing.assert_close(*objective, rtol=1e-8, atol=1e-8)


@every_kind
def test_float32_is_accurate(kind: str) -> None:
    problem = draw(11, **KINDS[kind])
    single = draw(11, dtype=torch.float32, **KINDS[kind])
    found, wanted = both(single), both(problem)
    for a, b in zip(found[:6], wanted[:6], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)
    assert int(found[6].abs().max()) == 0
    judged = residuals(single, found[0], found[2], found[3], found[4], found[5])
    assert float(judged.relative.max()) <= 1e-5


def test_float32_leaves_ill_conditioned_members_to_float64() -> None:
    g = torch.Generator().manual_seed(12)
    n, batch = 30, 4
    U = torch.rand(batch, n // 2, n, generator=g, dtype=F64)
    Q, G = U.mT @ U + 1e-4 * torch.eye(n, dtype=F64), torch.randn(batch, n, n, generator=g, dtype=F64)
    h, q = torch.rand(batch, n, generator=g, dtype=F64), torch.randn(batch, n, generator=g, dtype=F64)
    q[0] = Q[0] @ q[0]  # z of moderate size: rounded to float32, it satisfies the conditions still
    single = check(*(x.float() for x in (Q, q, G, h)))
    exact = check(*(x.double() for x in single.tensors()[:4] if x is not None))
    found, wanted = both(single), both(exact)
    assert int(found[6].abs().max()) == 0
    for a, b in zip((*found[:6], found[11]), (*wanted[:6], wanted[11]), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-6)


def test_float32_and_float64_in_one_batch() -> None:
    """Members that float32 solves, that float64 does, and that have no solution; each as if it were alone."""
    easy, hard = draw(16, n=30, p=20, batch=6, dtype=torch.float32), torch.arange(6) % 2 == 1
    Q, q, G, h = (x.clone() for x in easy.tensors()[:4] if x is not None)
    Q[hard] *= torch.logspace(0, -4, 30).outer(torch.logspace(0, -4, 30))
    G[3, :2] = G[3, :1]
    h[3, :2] = torch.tensor([1.0, -2.0])
    G[3, 1] = -G[3, 0]
    problem = check(Q, q, G, h)
    found = both(problem)
    assert [int(x) for x in found[6]] == [0, 0, 0, int(Status.PRIMAL_INFEASIBLE), 0, 0]
    assert not found[11][3].any()
    for member in range(6):
        point = cpu.solve(problem.select(torch.tensor([member])), SETTINGS, True)
        rhs = Adjoint(*(x[[member]] for x in upstream(Point.of(*found[:11]))))
        v = cpu.kkt_solve(problem.select(torch.tensor([member])), SETTINGS, point, rhs)
        assert same((*point.fields(), *v), tuple(x[[member]] for x in found)), member
        if member != 3:
            exact = cpu.solve(check(*(x[[member]].double() for x in (Q, q, G, h))), SETTINGS, True)
            torch.testing.assert_close(point.z.double(), exact.z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("kind", ["rows", "everything", "shared rows", "shared equalities and bounds", "many rows"])
def test_the_core_proves_by_itself_that_members_are_infeasible(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = draw(17, **KINDS[kind], dtype=dtype)
    wanted = both(problem)
    tensors = [None if x is None else x.clone() for x in problem.tensors()]
    broken = torch.zeros(9, dtype=torch.bool)
    broken[::3] = True
    if problem.p:  # some rows leave no room for another; in float32 one, since the sum of more would be rounded
        _, _, G, h = tensors[:4]
        assert G is not None
        assert h is not None
        rows = slice(1, 4 if dtype == F64 else 2)
        G[..., 0, :] = -G[..., rows, :].sum(-2)
        h[:, 0] = torch.where(broken, -0.5, 1.0) - h[:, rows].sum(-1)
        wanted = both(problem.replace(tensors, 9))
    else:  # the bounds keep all of z below what the first equality needs
        b, A, ub = tensors[5], tensors[4], tensors[7]
        assert b is not None
        assert A is not None
        assert ub is not None
        b[broken, 0] = 2 * (A[0].abs() * torch.maximum(ub[broken].abs(), problem.lb[broken].abs())).sum(-1)
    spoilt = problem.replace(tensors, 9)
    found = both(spoilt)
    assert found[6].tolist() == torch.where(broken, int(Status.PRIMAL_INFEASIBLE), 0).tolist()
    exact = spoilt.replace([None if x is None else x.double() for x in tensors], 9)
    proof = farkas_residual(exact, *(x.double() for x in found[2:6]))
    assert float(proof[broken].max()) <= (1e-9 if dtype == F64 else 1e-5)
    assert not any(x[broken].any() for x in found[11:])
    assert same(tuple(x[~broken] for x in found), tuple(x[~broken] for x in wanted))


@pytest.mark.parametrize("rank", [0, 3])
def test_the_core_proves_that_flat_problems_are_infeasible(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Q is not definite an interior point runs off along the proof."""
    problem = draw(19, n=8, p=10, bounds=True)
    Q, q, G, h, A, b, lb, ub, _ = (None if x is None else x.clone() for x in problem.tensors())
    assert Q is not None
    assert G is not None
    assert h is not None
    flat = torch.arange(8) >= rank
    Q[:, flat], Q[:, :, flat] = 0.0, 0.0
    G[::3, 1], h[::3, 0], h[::3, 1] = -G[::3, 0], -1.0, -1.0
    flat_problem = problem.replace([Q, q, G, h, A, b, lb, ub, None], 9)
    found = cpu.solve(flat_problem, SETTINGS, False)
    assert found.status.tolist() == [int(Status.PRIMAL_INFEASIBLE) if i % 3 == 0 else 0 for i in range(9)]
    proof = farkas_residual(flat_problem, found.lam, found.nu, found.lam_lb, found.lam_ub)
    assert float(proof[::3].max()) <= 1e-9


@pytest.mark.parametrize("name", ["Q", "q", "G", "h", "A", "b", "lb", "ub"])
def test_the_core_sees_data_that_are_not_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(18, **KINDS["everything"])
    wanted = both(problem)
    tensors = {key: None if x is None else x.clone() for key, x in zip(NAMES, problem.tensors(), strict=True)}
    tensors[name].view(9, -1)[4, 1] = -torch.inf if name in ("h", "ub") else torch.inf if name == "lb" else torch.nan
    found = both(problem.replace(list(tensors.values()), 9))
    assert found[6].tolist() == [int(Status.INVALID_INPUT) if i == 4 else 0 for i in range(9)]
    others = torch.arange(9) != 4
    assert same(tuple(x[others] for x in found), tuple(x[others] for x in wanted))
    assert not any(x[4].any() for x in (*found[:6], *found[11:]))


def test_without_a_kept_factor() -> None:
    problem = draw(13, n=9, m=2, p=8)
    kept = both(problem)
    point = cpu.solve(problem, SETTINGS, False)
    v = cpu.kkt_solve(problem, SETTINGS, point, upstream(point))
    for a, b in zip(v, kept[11:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_empty_batch(dtype: torch.dtype) -> None:
    n = 3
    problem = check(torch.eye(n, dtype=dtype), torch.zeros(0, n, dtype=dtype), lb=torch.zeros(n, dtype=dtype))
    found = both(problem)
    assert [found[i].shape for i in (0, 4, 11)] == [(0, n)] * 3


def test_python_threads_at_once() -> None:
    problem = draw(14, n=12, p=10, batch=40)
    with forced(threads=2):
        wanted = both(problem)
        found: list[tuple[Tensor, ...]] = []
        workers = [threading.Thread(target=lambda: found.append(both(problem))) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(found) == 4
    assert all(same(x, wanted) for x in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_fork() -> None:
    problem = draw(15, n=12, p=10, batch=40)
    with forced(threads=2):
        wanted = both(problem)
        child = os.fork()
        if child == 0:
            fine = same(both(problem), wanted)
            os._exit(0 if fine else 1)
        _, code = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(code) == 0


def test_blocks_are_used_again_and_stay_apart() -> None:
    problem = draw(16, n=40, p=40, batch=8)
    first = cpu.solve(problem, SETTINGS, True)
    address = first.factor[0].data_ptr()
    second = cpu.solve(problem, SETTINGS, True)
    assert second.factor[0].data_ptr() != address
    del first
    third = cpu.solve(problem, SETTINGS, True)
    assert third.factor[0].data_ptr() == address
    rhs = upstream(second)
    assert same(cpu.kkt_solve(problem, SETTINGS, second, rhs), cpu.kkt_solve(problem, SETTINGS, third, rhs))


# ---- gradients of the data in one call, against torch's operations ---------------------------------------------------


def gradients(problem: Problem, fused: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    tensors = [x if x is None else x.clone().requires_grad_() for x in problem.tensors()]
    Q, *others = tensors
    form = Diagonal(Q) if isinstance(problem.Q, Diagonal) else Q
    with monkeypatch.context() as patch:
        if not fused:
            patch.setattr(cpu, "pullback", reference.pullback)
        z = solve(form, *others[:7], backend="cpu", check=False).z
        g = torch.randn(z.shape, generator=torch.Generator().manual_seed(3), dtype=F64).to(z.dtype)
        return list(torch.autograd.grad(z, [x for x in tensors if x is not None], g))


@every_kind
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["f64", "f32"])
def test_products_are_those_of_torch(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(11, **KINDS[kind], dtype=dtype)
    tolerance = 1e-10 if dtype == F64 else 1e-4
    for mine, theirs in zip(*(gradients(problem, fused, monkeypatch) for fused in (True, False)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["everything", "shared rows", "shared, diagonal"])
def test_products_leave_out_what_is_not_solved(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(12, **KINDS[kind])
    problem.q[4] = torch.nan
    found, wanted = (gradients(problem, fused, monkeypatch) for fused in (True, False))
    for mine, theirs, x in zip(found, wanted, [x for x in problem.tensors() if x is not None], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
        assert mine.isfinite().all()
        if x.dim() == theirs.dim() and x is problem.q:
            assert not mine[4].any()


def test_products_on_a_face_of_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivative of least norm, by the last rung."""
    problem = draw(13, n=4, bounds=True, diagonal=True)
    assert isinstance(problem.Q, Diagonal)
    problem.Q.d[:5], problem.q[:5, 0] = 0.0, 0.0
    found, wanted = (gradients(problem, fused, monkeypatch) for fused in (True, False))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_vertices_of_linear_programs_are_differentiated_by_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(15, n=6, p=9, bounds=True)
    problem.Q.zero_()
    mine = gradients(problem, True, monkeypatch)
    point = reference.solve(problem, SETTINGS, False)
    g = torch.randn(point.z.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    zeros = (torch.zeros_like(x) for x in (point.lam, point.nu, point.lam_lb, point.lam_ub))
    v = reference.kkt_solve(problem, SETTINGS, point, Adjoint(g, *zeros))
    torch.testing.assert_close(mine[1], -v.z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mine[3], v.lam, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["everything", "shared rows"])
def test_products_do_not_depend_on_threads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(14, **KINDS[kind])
    found = []
    for threads in (1, 3):
        with forced(threads=threads):
            found.append(tuple(gradients(problem, True, monkeypatch)))
    assert same(*found)


def test_long_sums_keep_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 added 10⁵ times in float32, one after the other, would be 9998.6."""
    batch = 100_000
    problem = check(torch.eye(2), torch.zeros(batch, 2), lb=torch.full((2,), 0.1))
    lb = problem.lb.requires_grad_()
    Q = problem.Q.requires_grad_()
    z = solve(Q, problem.q, lb=lb, backend="cpu").z
    z.backward(torch.full_like(z, 0.1))
    torch.testing.assert_close(lb.grad, torch.full((2,), 0.1 * batch), rtol=3e-5, atol=0)
