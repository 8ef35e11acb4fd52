"""No cliffs: every kind of tests/hard.py gets its verdict and its solution from the core alone, at any size.

Nothing here may enter the reference backend. What is SOLVED is checked by the oracle of tests/fuzz.py and against the
planted solution, what is infeasible or unbounded by its proof.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from tests import fuzz, hard
from tests.families import generate
from torch import Tensor

from optlayer import Solution, Sparse, Status, solve
from optlayer.backends import reference

INF = float("inf")


@pytest.fixture(autouse=True)
def no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference backend is the fall-back of nothing."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the reference backend was entered")

    for name in ("solve", "kkt_solve"):
        monkeypatch.setattr(reference, name, refuse)


def core(data: dict[str, Any], form: str = "dense", backend: str = "cpu") -> Solution:
    tensors: dict[str, Any] = {name: torch.as_tensor(np.asarray(x, dtype=float)) for name, x in data.items()}
    if form == "sparse":
        tensors |= {name: Sparse.from_dense(tensors[name]) for name in "QGA" if name in tensors}
    return solve(**tensors, backend=backend, check=False)


def status(data: dict[str, Any]) -> Status:
    return Status(int(core(data).status))


def error(z: np.ndarray, known: np.ndarray, unit: np.ndarray | float | None) -> float:
    """Of the worst component, relative to its unit, by default the largest component."""
    size = np.maximum(np.abs(known), (np.abs(known).max() if unit is None else unit) + 1e-300)
    return float((np.abs(z - known) / size).max())


def test_the_reference_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="was entered"):
        core({"Q": np.eye(2), "q": [1, 1]}, backend="reference")


@pytest.mark.parametrize("n", [2, 4, 9, 16, 32, 64, 100])
@pytest.mark.parametrize("name", sorted(hard.KINDS))
def test_each_kind_has_its_verdict_and_solution(name: str, n: int) -> None:
    for seed in range(6 if n <= 32 else 3):
        case = hard.KINDS[name](np.random.default_rng([n, seed]), n)
        solution = core(case.data)
        assert Status(int(solution.status)) == case.verdict, seed
        if case.z is not None and case.unique:
            assert error(solution.z.numpy(), case.z, case.unit) <= case.digits, seed


@pytest.mark.parametrize("seed", range(2, 2 + 3 * 40, 3))
def test_batches_of_each_kind_pass_the_oracle(seed: int) -> None:
    """Every member judged by the componentwise backward error, its objective, or its proof."""
    draw = fuzz.draw(seed)
    assert isinstance(draw, fuzz.HardDraw)
    solution = solve(**draw.arguments(), backend="cpu", check=False)
    found = [fuzz.judge(draw, solution, k) for k in range(fuzz.BATCH)]
    assert [x for x in found if x not in ("right", "gave up")] == []
    assert found.count("gave up") <= 1


@pytest.mark.parametrize(
    "seed",
    [9000383, 9001058, 9001251, 9001330, 9001629, 9001728, 9001790, 17001111, 17002461, 9002175, 7001674, 9001708,
     23000035, 27001459, 27000040, 27000216, 27000816],
)  # fmt: skip
def test_draws_that_were_wrong_or_given_up(seed: int) -> None:
    """Vertices at zero, rays that fall slowly, optimal faces without end, Q of float32 without full rank, rows that are
    opposite but for rounding, minima of Q's own rounding."""
    draw = fuzz.HardDraw(seed, "integer_ties") if seed % 3 == 2 and seed < 10**7 else fuzz.draw(seed)
    solution = solve(**draw.arguments(), backend="cpu", check=False)
    assert {fuzz.judge(draw, solution, k) for k in range(fuzz.BATCH)} == {"right"}


def test_solutions_without_end() -> None:
    """Of a linear program whose best face has no end the point of least norm is wanted, not one that runs along it."""
    draw = fuzz.draw(61000221)
    solution = solve(**draw.arguments(), backend="cpu", check=False)
    found = [fuzz.judge(draw, solution, k) for k in range(fuzz.BATCH)]
    assert set(found) <= {"right", "gave up"}
    assert found.count("gave up") <= 4


@pytest.mark.parametrize("form", ["equality", "row", "bound", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [3, 12, 40])
def test_an_objective_without_forces(form: str, dtype: torch.dtype, n: int) -> None:
    """A potential that is held from one side, or in the mean: the same everywhere, or zero where that is allowed. In
    float32 rounding makes Q indefinite."""
    for seed in range(8):
        case = hard.constant_potential(np.random.default_rng([n, seed]), n)
        A, b = torch.from_numpy(case.data["A"]), torch.from_numpy(case.data["b"])
        low = torch.full((n,), -INF).double().masked_scatter(A.any(0), b)
        forms: dict[str, dict[str, Tensor]] = {
            "equality": {"A": A, "b": b}, "row": {"G": -A, "h": -b}, "bound": {"lb": low},
            "mean": {"A": torch.ones(1, n).double(), "b": n * b[:1]},
        }  # fmt: skip
        data = {"Q": torch.from_numpy(case.data["Q"]), "q": torch.zeros(n).double(), **forms[form]}
        solution = solve(**{name: x.to(dtype) for name, x in data.items()}, backend="cpu", check=False)
        assert solution.status == Status.SOLVED
        z, value = solution.z.double(), float(b[0])
        close = 1e-4 if dtype == torch.float32 else 1e-9
        assert float(z.max() - z.min()) <= close * float(z.abs().max())
        assert float(z.min()) >= value - close * abs(value)
        if form in ("equality", "mean"):
            assert abs(float(z[0]) - value) <= close * abs(value)


@pytest.mark.parametrize("n", [6, 20, 50])
@pytest.mark.parametrize("curvature", [1e-14, 1e-11, 1e-8])
def test_a_small_curvature_excuses_no_row(curvature: float, n: int) -> None:
    """A force of 1 over such a curvature moves a variable by 1e14, as if rounding hid where it is, and every row."""
    for seed in range(4):
        r = np.random.default_rng([n, seed])
        G, z = r.integers(-2, 3, (3 * n, n)).astype(float), r.integers(-2, 3, n).astype(float)
        s = np.where(r.random(3 * n) < 0.5, 0, r.integers(1, 4, 3 * n))
        q = -G.T @ np.where(s == 0, r.integers(0, 3, 3 * n), 0)
        solution = core({"Q": curvature * np.eye(n), "q": q, "G": G, "h": G @ z + s})
        assert solution.status == Status.SOLVED
        found = solution.z.numpy()
        assert (G @ found - G @ z - s).max() <= 1e-8
        assert abs(q @ (found - z)) <= 1e-8 * abs(q) @ abs(z) + curvature * z @ z


def test_a_vertex_at_zero() -> None:
    """All entries of z are zero but for rounding, so rows through it are equalities that no relative measure sees."""
    G = [[-2, -2, 1, -2], [2, 2, 2, 0], [2, 2, -1, 1], [-1, 0, 1, 2], [-1, -2, -2, 2], [2, 1, -1, 1], [-1, -2, 0, 1],
         [2, 2, 0, 0]]
    solution = core({"Q": np.zeros((4, 4)), "q": [-8, -7, 2, -2], "G": G, "h": [0, 0, 0, 2, 0, 0, 2, 0]})
    assert solution.status == Status.SOLVED
    np.testing.assert_allclose(solution.z, 0, atol=1e-13)
    cone = core({"Q": np.zeros((2, 2)), "q": [0, -4], "G": [[-1, 0], [-1, 0], [1, 2], [-1, 0]], "h": [0, 0, 0, 1]})
    assert cone.status == Status.SOLVED
    np.testing.assert_allclose(cone.z, 0, atol=1e-13)


@pytest.mark.parametrize("steep", [1e2, 1e4, 1e6])
def test_a_ray_that_falls_slowly(steep: float) -> None:
    """The objective falls by 1 along d, and rises far more steeply beside it; Q d = 0."""
    r = np.random.default_rng(3)
    U, _ = np.linalg.qr(r.standard_normal((6, 6)))
    d = U[:, 0]
    Q = U[:, 1:] @ np.diag([0.5, 1, 2, 3, 4]) @ U[:, 1:].T
    solution = core({"Q": Q, "q": steep * U[:, 1:].sum(1) - d, "G": U[:, 1:].T, "h": np.ones(5)})
    assert solution.status == Status.DUAL_INFEASIBLE
    z = solution.z.numpy()
    np.testing.assert_allclose(z / np.linalg.norm(z), d, atol=1e-7)


# --- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("largest", [20, 40])
@pytest.mark.parametrize("name", ["ordinary", *sorted(hard.KINDS)])
def test_units_decide_nothing(name: str, largest: int, form: str) -> None:
    """Variables, rows and objective in units over 2^±40: the same verdict, and the same z up to rounding."""
    for seed in range(8):
        r = np.random.default_rng(seed)
        case = getattr(hard, name)(r, int(r.integers(1 if name == "ordinary" else 2, 13)))
        moved = hard.in_any_units(r, case, largest)
        solution = core(moved.data, form)
        assert Status(int(solution.status)) == case.verdict, seed
        if case.z is not None and moved.z is not None and case.unique:
            unit = moved.unit * max(1, np.abs(case.z).max())
            assert error(solution.z.numpy(), moved.z, unit) <= 10 * case.digits, seed


@pytest.mark.parametrize(("seed", "member"), [(96000820, 29), (96000872, 14)])
def test_rounding_is_no_proof(seed: int, member: int) -> None:
    """A ray that falls by what rounding has made of q; a proof whose columns are nothing beside another one."""
    drawn = fuzz.draw(seed)
    assert fuzz.judge(drawn, solve(**drawn.arguments(), backend="cpu", check=False), member) == "right"


@pytest.mark.parametrize("shared", [True, False])
def test_a_sparse_member_has_units_of_its_own(shared: bool) -> None:
    """Beside members in other units an answer has the same bits; the last variable is held by its bounds alone."""
    r = np.random.default_rng(0)
    scale = torch.ones(1) if shared else 2.0 ** torch.arange(-30, 31, 12)
    Q, G = torch.diag(torch.tensor([1.0, 2, 0, 0])), torch.tensor([[0.3, -1, 0, 0], [0, 0.7, 0.4, 0], [1, 0, -0.2, 0]])
    full = {"Q": (scale.double()[:, None, None] * Q), "G": scale.flip(0).double()[:, None, None] * G}
    matrices = {name: Sparse.from_dense(x[0] if shared else x) for name, x in full.items()}
    q = torch.tensor(r.standard_normal((6, 4)) * 2.0 ** r.integers(-30, 31, (6, 4)))
    rest = {"h": torch.tensor(r.random(3)), "lb": -torch.ones_like(q[0]), "ub": torch.ones_like(q[0])}
    together = solve(**matrices, q=q, **rest, backend="cpu", check=False)
    for k in range(6):
        own = {name: x if shared else x.with_values(x.values[k]) for name, x in matrices.items()}
        assert torch.equal(solve(**own, q=q[k], **rest, backend="cpu", check=False).z, together.z[k])


def test_a_row_of_zeros_has_no_multiplier() -> None:
    """In whatever units; its slack is its side."""
    one = torch.ones(1, 1, dtype=torch.float64)
    for unit in (1.0, 2.0**-20, 2.0**-40):
        G, h = torch.zeros(3, 2, 1, dtype=torch.float64), torch.tensor([0.15, 0.3], dtype=torch.float64) * unit
        G[:, 1] = 1 / unit
        solution = solve(0 * one, -one.expand(3, 1) / unit, G, h, backend="cpu")
        assert (solution.lam[:, 0] == 0).all()
        assert (solution.s[:, 0] == h[0]).all()


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("k", [3, 4.5, 5, 6, 9])
def test_units_of_two_variables(k: float, box: bool) -> None:
    """Q = (2 ½; ½ 1) in units of 10^-k and 10^k; the minimiser of the plain problem is (−1/35, 5/7)."""
    unit = np.array([10.0**-k, 10.0**k])
    data: dict[str, Any] = {"Q": np.array([[2, 0.5], [0.5, 1]]) / unit / unit[:, None], "q": [-0.3, -0.7] / unit}
    right = np.array([-1 / 35, 5 / 7])
    if box:  # z₀ ≥ 0 is active: z₁ = 0.7
        data, right = data | {"lb": [0, -1] * unit, "ub": unit}, np.array([0, 0.7])
    solution = core(data)
    assert int(solution.status) == Status.SOLVED
    assert error(solution.z.numpy(), right * unit, unit) <= 1e-9


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("powers", [[-10, 10], [-40, 28], [-40, 40], [-30, 0, 30, 5]])
def test_units_of_variables_that_only_bounds_hold(powers: list[int], form: str) -> None:
    """A linear program without rows: each variable goes to its bound, however small its cost beside the others'."""
    unit = 2.0 ** np.array(powers)
    q, lb = np.resize([1.9, 1.5, 0.5], len(unit)) / unit, -np.resize([1.25, 0.18, 1], len(unit)) * unit
    Q = torch.zeros(len(unit), len(unit), dtype=torch.float64)
    P = Sparse.from_dense(Q) if form == "sparse" else Q
    for cost in (2.0**-30, 1, 2.0**20):
        solution = solve(P, torch.tensor(cost * q), lb=torch.tensor(lb), backend="cpu", check=False)
        assert int(solution.status) == Status.SOLVED
        assert error(solution.z.numpy(), lb, unit) <= 1e-9


@pytest.mark.parametrize("far", [1e13, 1e20, 1e100, INF])
@pytest.mark.parametrize("k", [6, 9, 10, 12])
def test_wide_diagonals(k: int, far: float) -> None:
    """Separable: curvatures 10^-k and 10^k, in a box that is none."""
    wide = 10.0 ** np.array([k, -k])
    solution = core({"Q": np.diag(1 / wide), "q": [-1, -1], "lb": [-far] * 2, "ub": [far] * 2})
    assert int(solution.status) == Status.SOLVED
    assert error(solution.z.numpy(), wide, wide) <= 1e-9


@pytest.mark.parametrize("size", [1e4, 1e8, 1e9, 1e10])
def test_large_rank_one(size: float) -> None:
    """Q = c (1 2)ᵀ(1 2), q = (1, ½) in [−1, 1]²: z₀ at its bound, z₁ = ½ − 1 / (8 c)."""
    data = {"Q": size * np.array([[1, 2], [2, 4]]), "q": [1, 0.5], "lb": [-1, -1], "ub": [1, 1]}
    solution = core(data)
    assert int(solution.status) == Status.SOLVED
    assert error(solution.z.numpy(), np.array([-1, 0.5 - 0.125 / size]), 1) <= 1e-9


def test_wide_faces_of_linear_programs() -> None:
    """Few rows of small integers, a far box, ties everywhere: every member finds a point of its face of solutions."""
    r = np.random.default_rng(0)
    for _ in range(150):
        n, count = int(r.integers(6, 16)), 8
        p, m = n // 2 + 1, max(1, n // 5)
        G, A = r.standard_normal((p, n)).round(), r.standard_normal((m, n)).round()
        z = r.standard_normal((count, n)).round()
        active = r.random((count, p)) < 0.4
        lam, nu = np.where(active, (1 + 3 * r.random((count, p))).round(), 0), r.standard_normal((count, m)).round()
        given = {"q": -lam @ G - nu @ A, "G": G, "h": z @ G.T + np.where(active, 0, 0.5 + r.random((count, p)))}
        given |= {"A": A, "b": z @ A.T, "lb": np.full(n, -50.0), "ub": np.full(n, 50.0)}
        t = {name: torch.tensor(x) for name, x in given.items()}
        s = solve(torch.zeros(n, n, dtype=torch.float64), **t, backend="cpu", check=False)
        assert (s.status == Status.SOLVED).all()
        torch.testing.assert_close((t["q"] * s.z).sum(-1), (t["q"] * torch.tensor(z)).sum(-1), rtol=1e-9, atol=1e-7)


def test_a_linear_program_in_units_ends() -> None:
    """No point that the last rung met could be judged: its answer was empty, and read all the same."""
    r = np.random.default_rng(22)
    n = int(r.integers(2, 13))
    case = hard.unbounded_lp(r, n)
    moved = hard.in_units(case, hard.powers(r, n, 40), hard.powers(r, n, 40), float(hard.powers(r, 1, 40)[0]))
    assert status(moved.data) != Status.SOLVED


# --- exact arithmetic -----------------------------------------------------------------------------------------------


def rational(M: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of a nonsingular system, in rational arithmetic from the very bits of the data."""
    rows = [[Fraction(float(x)) for x in (*line, value)] for line, value in zip(M, right, strict=True)]
    for i in range(len(rows)):
        pivot = next(k for k in range(i, len(rows)) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for k in range(len(rows)):
            if k != i and rows[k][i]:
                rows[k] = [x - rows[k][i] * y for x, y in zip(rows[k], rows[i], strict=True)]
    return np.array([float(line[-1]) for line in rows])


@pytest.mark.parametrize("n", [3, 5, 6, 7, 8])
def test_hilbert_equalities(n: int) -> None:
    """Rows of Hilbert's matrix as equalities, against the KKT system in rational arithmetic."""
    i = np.arange(n)
    H, m = 1 / (i[:, None] + i + 1.0), n // 2
    b, q = H[:m].sum(1), np.where(i % 2, 1.0, -1.0)
    right = rational(np.block([[np.eye(n), H[:m].T], [H[:m], np.zeros((m, m))]]), np.concatenate([-q, b]))
    solution = core({"Q": np.eye(n), "q": q, "A": H[:m], "b": b})
    assert int(solution.status) == Status.SOLVED
    assert error(solution.z.numpy(), right[:n], None) <= 1e-9


@pytest.mark.parametrize("n", [6, 8, 10])
def test_objective_of_hilbert(n: int) -> None:
    """z is determined to few digits, the objective to all."""
    case = hard.hilbert(np.random.default_rng(n), n)
    solution = core(case.data)
    assert int(solution.status) == Status.SOLVED
    Q, q, z = case.data["Q"], case.data["q"], solution.z.numpy()
    assert case.z is not None
    value, known = (x @ Q @ x / 2 + q @ x for x in (z, case.z))
    assert abs(value - known) <= 1e-9 * (np.abs(case.z) @ Q @ np.abs(case.z))


@pytest.mark.parametrize("e", [1e-6, 1e-7, 1e-8])
def test_near_parallel_pair(e: float) -> None:
    """x ≤ 1 and x + e y ≤ 1, pulled to the corner (1, 0) with multipliers 1 and 1 / e: at any angle one point."""
    data = {"Q": np.eye(2), "q": [-3 - 1 / e, -1], "G": [[1, 0], [1, e]], "h": [1, 1]}
    solution = core(data)
    assert int(solution.status) == Status.SOLVED
    np.testing.assert_allclose(solution.z.numpy(), [1, 0], atol=1e-5)  # 2 e where the first row is moved by 2 e²


def test_badly_scaled_square_system() -> None:
    """Equalities fix the point: nonsingular, rows from 1 to 1e5, columns nearly dependent."""
    r = np.random.default_rng(5)
    A = hard.integers(r, 8, 8)
    A[:, 7] = A[:, :7].sum(1) + 2.0**-26 * hard.integers(r, 8)
    A *= 10.0 ** np.linspace(0, 5, 8).round()[:, None]
    z = hard.integers(r, 8, largest=16) / 8
    solution = core({"Q": np.eye(8), "q": np.ones(8), "A": A, "b": A @ z})
    assert int(solution.status) == Status.SOLVED
    np.testing.assert_allclose(solution.z.numpy(), rational(A, A @ z), atol=1e-5)


# --- contradictions -------------------------------------------------------------------------------------------------

EYE, ONE, E = np.eye(4), np.ones(4), np.eye(4)[:1]
DENSE = np.array([[0.3, -1, 0.7, 2]])
CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "bounds as rows": {"G": np.vstack([E, -E]), "h": [0, -1]},
    "bounds": {"lb": [1, -9, -9, -9], "ub": [0, 9, 9, 9]},
    "opposite rows": {"G": np.vstack([DENSE, -DENSE]), "h": [0, -1]},
    "opposite rows, one longer": {"G": np.vstack([DENSE, -1e3 * DENSE]), "h": [0, -1]},
    "zero row": {"G": 0 * DENSE, "h": [-1]},
    "zero equality": {"A": 0 * DENSE, "b": [1e-5]},
    "equalities": {"A": np.vstack([DENSE, DENSE]), "b": [0, 1]},
    "equality against a row": {"A": DENSE, "b": [1], "G": 2 * DENSE, "h": [0]},
    "zero equality beside duplicates": {"A": np.vstack([DENSE, DENSE, 0 * DENSE]), "b": [1, 1, 1e-5], "lb": [0] * 4},
    "rows beside duplicates": {"G": np.vstack([DENSE, DENSE, -DENSE]), "h": [0, 0, -1]},
    "sum of equalities": {"A": np.vstack([DENSE, E, DENSE + E]), "b": [1, 1, 3]},
    "bounds against a row": {"G": -np.ones((1, 4)), "h": [-5], "ub": ONE},
    "linear program": {"Q": 0 * EYE, "G": np.vstack([E, -E]), "h": [0, -1e-4], "lb": -ONE},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CONTRADICTIONS))
def test_contradictions(name: str) -> None:
    data = {"Q": EYE, "q": ONE} | CONTRADICTIONS[name]
    solution = core(data)
    assert int(solution.status) == Status.PRIMAL_INFEASIBLE
    assert float(solution.certificate_residual) <= 1e-9


@pytest.mark.parametrize("name", ["contradictory_equalities", "transport_float32"])
def test_small_contradictions_of_a_hundred_variables(name: str) -> None:
    """Too many for doubled precision; the proof is balanced in double."""
    for seed in range(4):
        case = hard.KINDS[name](np.random.default_rng([100, seed]), 100)
        solution = core(case.data)
        assert solution.status == Status.PRIMAL_INFEASIBLE
        A, b = case.data["A"], np.asarray(case.data["b"])
        nu, pressing = solution.nu.numpy(), solution.lam_lb.numpy() if "lb" in case.data else 0.0
        assert b @ nu < 0
        others = solution.lam.numpy() @ case.data["G"] if "G" in case.data else 0.0
        upper = solution.lam_ub.numpy() if "ub" in case.data else 0.0
        size = np.abs(A.T).dot(np.abs(nu)).max()
        np.testing.assert_allclose(A.T @ nu + others + upper - pressing, 0, atol=1e-8 * size)


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-8])
def test_small_gaps(gap: float) -> None:
    for rows in (np.vstack([DENSE, -DENSE]), np.vstack([E, -E])):
        for Q in (EYE, 0 * EYE):
            common = {"Q": Q, "q": ONE, "lb": -ONE, "ub": ONE}
            assert status(common | {"G": rows, "h": [0, -gap]}) == Status.PRIMAL_INFEASIBLE
            assert status(common | {"G": rows, "h": [0, gap]}) == Status.SOLVED
            assert status(common | {"A": rows, "b": [0, gap]}) == Status.PRIMAL_INFEASIBLE


@pytest.mark.parametrize("n", [5, 20, 50])
@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7])
def test_rows_that_hardly_meet(gap: float, n: int) -> None:
    """Three rows whose sum reads 0 ≤ gap, or 0 ≤ −gap, but for rounding: far out it may let them meet all the same."""
    for seed in range(4):
        r = np.random.default_rng([n, seed])
        C, G, L, z = r.standard_normal((2, n)), *r.standard_normal((2, n, n)), r.standard_normal(n)
        C, Q = np.vstack([C, -C.sum(0)]), L @ L.T / n + 0.1 * np.eye(n)
        for room, wanted in ((gap, Status.SOLVED), (-gap, Status.PRIMAL_INFEASIBLE)):
            h = np.concatenate([C @ z + [0, 0, room], G @ z + r.random(n)])
            assert status({"Q": Q, "q": 3 * r.standard_normal(n), "G": np.vstack([C, G]), "h": h}) == wanted, seed


def test_a_multiplier_that_is_zero_but_for_rounding() -> None:
    """The cheapest corner of a simplex costs nothing."""
    for q in ([1.0, 0, 2, 1, 2], [0, 2.0, 3, 3, 1], [3, 2, 0.0, 0, 1]):
        data = {"Q": np.zeros((5, 5)), "q": q, "A": np.ones((1, 5)), "b": [1.0], "lb": np.zeros(5)}
        solution = core(data)
        assert solution.status == Status.SOLVED
        assert abs(solution.z.numpy() @ q) <= 1e-12


def test_one_contradiction_among_many() -> None:
    """Its neighbours are untouched."""
    q = torch.randn(64, 4, generator=generate(3), dtype=torch.float64)
    h = torch.ones(64, 2, dtype=torch.float64)
    h[17] = torch.tensor([0.0, -1.0])
    solution = solve(torch.eye(4).double(), q, torch.from_numpy(np.vstack([E, -E])), h, backend="cpu", check=False)
    wanted = torch.zeros(64, dtype=torch.int32)
    wanted[17] = int(Status.PRIMAL_INFEASIBLE)
    assert torch.equal(solution.status.int(), wanted)
    right = -q
    right[:, 0] = right[:, 0].clamp(-1, 1)
    others = wanted == 0
    assert float((solution.z - right)[others].abs().max()) <= 1e-12


def test_dependent_equalities_have_multipliers_of_least_norm() -> None:
    """The same equality three times: each has a third of the multiplier."""
    r = np.array([1.0, 2, -1, 0.5])
    solution = core({"Q": EYE, "q": ONE, "A": [r, r, r], "b": [1, 1, 1]})
    single = core({"Q": EYE, "q": ONE, "A": [r], "b": [1]})
    np.testing.assert_allclose(solution.z.numpy(), single.z.numpy(), atol=1e-12)
    np.testing.assert_allclose(solution.nu.numpy(), np.full(3, float(single.nu[0]) / 3), rtol=1e-5)


# --- from above -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), INF])
def test_what_is_not_finite_from_above_reaches_the_data(value: float) -> None:
    """As in torch's own operations; the neighbour in the batch keeps its gradient."""
    q = torch.tensor([[1.0, -2.0], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    Q = torch.eye(2, dtype=torch.float64, requires_grad=True)
    z = solve(Q.expand(2, 2, 2), q, lb=-torch.full((2,), 5.0).double(), backend="cpu").z
    above = torch.ones_like(z)
    above[0, 0] = value
    gradient: Tensor = torch.autograd.grad(z, q, above)[0]
    assert not bool(gradient[0].isfinite().all())
    torch.testing.assert_close(gradient[1], -torch.ones(2, dtype=torch.float64))
