"""The reference: the paper's primal-dual interior point (OptNet §3.1) in plain batched torch.

The oracle that faster backends are tested against, and their fall-back. It runs on any device and computes in
float64 whatever the dtype of the problem (float32 answers are rounded at the end, and judged after rounding).

Inside, every problem has one form: all tensors present, batched, in float64, padded with fixed variables and absent
rows to multiples of 8 (BLAS rounds differently when a matrix does not start on a cache line, and then the bits of a
member would depend on its place in the batch). Inequalities and bounds are one list of *sides*

    C z + s = d,   C = (G; −I; I),   d = (h; −lb; ub),   s, lam ≥ 0,

of which those with infinite d are off: lam = 0, s = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from optlayer import kkt
from optlayer.backends.base import Adjoint, Point
from optlayer.problem import Diagonal, Problem
from optlayer.settings import Settings
from optlayer.solution import Status

name = "reference"

_REGULARISATION = 1e-9  # of both diagonal blocks of the KKT matrix, in equilibrated units; refinement removes it


def unavailable() -> str | None:
    """None: it always works."""
    return None


def refuses(problem: Problem) -> str | None:
    """None: it takes everything."""
    return None


# --- the one form ----------------------------------------------------------------------------------------------------


def _round_up(size: int) -> int:
    return size + -size % 8


def _standard(problem: Problem) -> Problem:
    """The problem in float64, symmetric and dense, every tensor present, batched and padded to multiples of 8."""
    n, m, p = problem.n, problem.m, problem.p
    batch = 1 if problem.batch is None else problem.batch
    Q, q, G, h, A, b, lb, ub = (None if x is None else x.detach().double() for x in problem.tensors())
    assert Q is not None and q is not None
    Q = torch.diag_embed(Q) if isinstance(problem.Q, Diagonal) else 0.5 * (Q + Q.mT)
    more_n, more_m, more_p = (_round_up(size) - size for size in (n, m, p))

    def full(x: Tensor | None, shape: tuple[int, ...], padding: tuple[int, ...], absent: float, value: float) -> Tensor:
        x = q.new_full(shape, absent) if x is None else x
        return pad(x, padding, value=value).expand(batch, *(-1 for _ in shape)).contiguous()

    inf = torch.inf
    tensors: tuple[Tensor, ...] = (
        full(Q, (n, n), (0, more_n, 0, more_n), 0.0, 0.0), full(q, (n,), (0, more_n), 0.0, 0.0),
        full(G, (p, n), (0, more_n, 0, more_p), 0.0, 0.0), full(h, (p,), (0, more_p), inf, inf),
        full(A, (m, n), (0, more_n, 0, more_m), 0.0, 0.0), full(b, (m,), (0, more_m), 0.0, 0.0),
        full(lb, (n,), (0, more_n), -inf, 0.0), full(ub, (n,), (0, more_n), inf, 0.0),
    )
    return Problem(*tensors, n + more_n, m + more_m, p + more_p, batch, torch.float64, problem.device)


@dataclass(slots=True)
class _Scaled:
    """A standard problem equilibrated: z = origin + D ẑ, and its sides. D = 0 on fixed variables."""

    Q: Tensor
    q: Tensor
    G: Tensor
    A: Tensor
    b: Tensor
    d: Tensor  # right-hand sides of the sides, 0 where off
    on: Tensor  # 1.0 or 0.0 for each side
    D: Tensor
    origin: Tensor
    rows: Tensor  # scales of A's rows: Â = rows A D
    sides: Tensor  # scales of the sides
    cost: Tensor  # scale of the objective (B, 1)

    def select(self, members: Tensor) -> _Scaled:
        return _Scaled(*(getattr(self, field.name)[members] for field in fields(self)))

    def C(self, z: Tensor) -> Tensor:
        """C z, for sides that are on."""
        return self.on * torch.cat([kkt.mul(self.G, z), -z, z], -1)

    def Ct(self, y: Tensor) -> Tensor:
        """Cᵀ y."""
        p, n = self.G.shape[-2:]
        rows, lower, upper = (self.on * y).split([p, n, n], -1)
        return kkt.mul_t(self.G, rows) - lower + upper


def _equilibrate(problem: Problem, rounds: int = 10) -> _Scaled:
    """Ruiz: scale variables and rows until every row of the KKT matrix has largest entry 1; then the objective."""
    Q, q, G, h, A, b, lb, ub = problem.tensors()
    assert Q is not None and q is not None and G is not None and h is not None
    assert A is not None and b is not None and lb is not None and ub is not None
    fixed = lb == ub
    origin = torch.where(fixed, lb, 0.0)
    q, b = q + kkt.mul(Q, origin), b - kkt.mul(A, origin)
    h = h - kkt.mul(G, origin)
    D = torch.where(fixed, 0.0, 1.0).to(q)
    E, F = torch.ones_like(b), torch.ones_like(h)

    def root(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 1.0).rsqrt()

    for _ in range(rounds):
        Qs, As, Gs = (abs(D.unsqueeze(-1) * Q * D.unsqueeze(-2)), abs(E.unsqueeze(-1) * A * D.unsqueeze(-2)),
                      abs(F.unsqueeze(-1) * G * D.unsqueeze(-2)))
        if not As.shape[-2]:
            As = As.new_zeros(*As.shape[:-2], 1, As.shape[-1])
        if not Gs.shape[-2]:
            Gs = Gs.new_zeros(*Gs.shape[:-2], 1, Gs.shape[-1])
        column = torch.maximum(Qs.amax(-2), torch.maximum(As.amax(-2), Gs.amax(-2)))
        D = D * root(column)
        E = E * root(As.amax(-1)) if E.shape[-1] else E
        F = F * root(Gs.amax(-1)) if F.shape[-1] else F
    Q = D.unsqueeze(-1) * Q * D.unsqueeze(-2)
    A, G = E.unsqueeze(-1) * A * D.unsqueeze(-2), F.unsqueeze(-1) * G * D.unsqueeze(-2)
    q, b = D * q, E * b
    size = torch.maximum(Q.abs().amax(-1).mean(-1, keepdim=True), q.abs().amax(-1, keepdim=True))
    cost = torch.where(size > 0, size, 1.0).reciprocal()
    Q, q = cost.unsqueeze(-1) * Q + torch.diag_embed(fixed.to(q)), cost * q
    safe = torch.where(fixed, 1.0, D)
    sides = torch.cat([F, 1 / safe, 1 / safe], -1)
    d = torch.cat([h, -lb, ub], -1)
    on = d.isfinite() & ~torch.cat([torch.zeros_like(h, dtype=torch.bool), fixed, fixed], -1)
    return _Scaled(Q, q, G, A, b, torch.where(on, sides * d, 0.0), on.to(q), D, origin, E, sides, cost)


# --- the symmetric system ---------------------------------------------------------------------------------------------


class _System:
    """The KKT matrix at (lam, s), factored once and solved for any right-hand side with refinement.

        Q v_z + Cᵀv_y + Aᵀv_nu = r_z
        A v_z = r_nu
        a∘(C v_z) − t∘v_y = r_y,     a = lam/(lam + s),  t = s/(lam + s)

    Bounds are eliminated into the diagonal; rows of G are scaled by √a, so that every entry is of moderate size. The
    factored matrix has ρ on its primal and −ρ on its dual diagonal, hence is quasi-definite and always factorable.
    """

    def __init__(self, problem: _Scaled, lam: Tensor, s: Tensor) -> None:
        self.problem = problem
        p, n = problem.G.shape[-2:]
        m = problem.A.shape[-2]
        total = lam + s
        live = (problem.on > 0) & (total > 0)
        self.a = torch.where(live, lam / total, 0.0)
        self.t = torch.where(live, s / total, 1.0)
        root = self.a[:, :p].sqrt()
        self.inverse_root = torch.where(root > 0, 1 / root, 0.0)
        self.pivot = self.t + self.a * _REGULARISATION
        weight = self.a / self.pivot
        K = lam.new_zeros(len(lam), n + m + p, n + m + p)
        diagonal = torch.cat(
            [
                problem.Q.diagonal(dim1=-2, dim2=-1) + weight[:, p : p + n] + weight[:, p + n :] + _REGULARISATION,
                lam.new_full((len(lam), m), -_REGULARISATION),
                -self.pivot[:, :p],
            ],
            -1,
        )
        K[:, :n, :n] = problem.Q
        K[:, n : n + m, :n] = problem.A
        K[:, n + m :, :n] = root.unsqueeze(-1) * problem.G
        K.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
        self.root = root
        self.factor, self.pivots, _ = torch.linalg.ldl_factor_ex(K)

    def _approximate(self, r_z: Tensor, r_nu: Tensor, r_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The solution of the regularised system."""
        problem, (p, n), m = self.problem, self.problem.G.shape[-2:], r_nu.shape[-1]
        _, lower, upper = (r_y / self.pivot).split([p, n, n], -1)
        right = torch.cat([r_z - lower + upper, r_nu, self.inverse_root * r_y[:, :p]], -1).unsqueeze(-1)
        v_z, v_nu, u = torch.linalg.ldl_solve(self.factor, self.pivots, right).squeeze(-1).split([n, m, p], -1)
        bounds = torch.cat([-v_z, v_z], -1) * problem.on[:, p:]
        v_bounds = (self.a[:, p:] * bounds - r_y[:, p:]) / self.pivot[:, p:]
        return v_z, v_nu, problem.on * torch.cat([self.root * u, v_bounds], -1)

    def solve(self, r_z: Tensor, r_nu: Tensor, r_y: Tensor, rounds: int = 5) -> tuple[Tensor, Tensor, Tensor]:
        """(v_z, v_nu, v_y), refined while the residual of a member falls."""
        problem = self.problem
        best = tuple(torch.zeros_like(r) for r in (r_z, r_nu, r_y))
        residual = (r_z, r_nu, r_y)
        size = torch.full_like(r_z[:, 0], torch.inf)
        trial = best
        going = size > 0
        for _ in range(rounds + 1):
            step = self._approximate(*residual)
            trial = tuple(x + dx for x, dx in zip(best, step, strict=True))
            v_z, v_nu, v_y = trial
            left = (
                r_z - kkt.mul(problem.Q, v_z) - kkt.mul_t(problem.A, v_nu) - problem.Ct(v_y),
                r_nu - kkt.mul(problem.A, v_z),
                r_y - self.a * problem.C(v_z) + self.t * v_y,
            )
            now = torch.stack([kkt.largest(r) for r in left]).amax(0)
            better = going & (now < size)
            best = _pick(better, trial, best)
            residual = _pick(better, left, residual)
            size, going = torch.where(better, now, size), better & (now < 0.5 * size)
        return best


def _pick(which: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(which.unsqueeze(-1), x, y) for x, y in zip(new, old, strict=True))


# --- the interior point -----------------------------------------------------------------------------------------------


def _interior(
    problem: _Scaled, tolerance: float, iterations: int, target: Tensor | None = None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Mehrotra's predictor-corrector; members leave the working batch when they are done.

    Returns:
        the best point (z, nu, s, lam) of each member, its merit, and the iterations taken.
    """
    batch = len(problem.q)
    on = problem.on
    count = on.sum(-1, keepdim=True).clamp(min=1)
    half = 0.5 * on  # the starting system has lam = s
    system = _System(problem, half, half)
    z, nu, y = system.solve(-problem.q, problem.b, 0.5 * on * problem.d)
    s, lam = _start(-y, on, count), _start(y, on, count)
    best = (z, nu, s, lam)
    merit, taken = z.new_full((batch,), torch.inf), torch.zeros(batch, dtype=torch.int32, device=z.device)
    last = taken.clone()
    members = torch.arange(batch, device=z.device)
    aim = z.new_zeros(batch, 1) if target is None else target
    for iteration in range(iterations + 1):
        # residuals of the optimality conditions
        Qz, Cty, Aty = kkt.mul(problem.Q, z), problem.Ct(lam), kkt.mul_t(problem.A, nu)
        Cz, Az = problem.C(z), kkt.mul(problem.A, z)
        r_z, r_nu, r_y = Qz + problem.q + Cty + Aty, Az - problem.b, on * (Cz + s - problem.d)
        mu = (lam * s * on).sum(-1, keepdim=True) / count
        size_dual = 1 + _most(Qz, problem.q, Cty, Aty)
        size_primal = 1 + _most(Az, problem.b, Cz, on * s, problem.d)
        objective = (z * Qz).sum(-1).abs() + (z * problem.q).sum(-1).abs()
        gap = ((lam * s * on - aim * on).abs()).sum(-1) / (1 + objective)
        now = torch.stack([kkt.largest(r_z) / size_dual, _most(r_nu, r_y) / size_primal, gap]).amax(0)
        now = torch.where(now >= 0, now, torch.inf)
        better = now < merit[members]
        keep = members[better]
        for whole, part in zip(best, (z, nu, s, lam), strict=True):
            whole[keep] = part[better]
        merit[keep], last[keep] = now[better], iteration
        live = (now > tolerance) & now.isfinite() & (iteration - last[members] < 15)
        taken[members[live]] = iteration + 1
        if iteration == iterations or not bool(live.any()):
            break
        if not bool(live.all()):
            members, problem = members[live], problem.select(live)
            z, nu, s, lam, r_z, r_nu, r_y, mu, aim, on, count = (
                x[live] for x in (z, nu, s, lam, r_z, r_nu, r_y, mu, aim, on, count)
            )
        system = _System(problem, lam, s)
        total = lam + s

        def direction(e: Tensor) -> tuple[Tensor, ...]:
            """Newton's step for lam∘s → lam∘s − e."""
            dz, dnu, dlam = system.solve(-r_z, -r_nu, on * (e / total - system.a * r_y))  # noqa: B023
            ds = -on * (r_y + problem.C(dz))  # noqa: B023
            return dz, dnu, ds, dlam

        # predictor (affine): aim at lam∘s = 0
        dz, dnu, ds, dlam = direction(lam * s * on)
        alpha = torch.minimum(_longest(s, ds, on), _longest(lam, dlam, on))
        mu_after = ((s + alpha * ds) * (lam + alpha * dlam) * on).sum(-1, keepdim=True) / count
        sigma = (mu_after / mu.clamp(min=1e-300)).clamp(0, 1) ** 3
        # corrector: aim at lam∘s = sigma mu, second order included
        dz, dnu, ds, dlam = direction(on * (lam * s + ds * dlam - torch.maximum(sigma * mu, aim)))
        alpha = 0.995 * torch.minimum(_longest(s, ds, on), _longest(lam, dlam, on))
        alpha = torch.where(alpha > 0.99, torch.minimum(alpha / 0.995, alpha.new_ones(())) * 0.999, alpha)
        alpha = torch.where(on.sum(-1, keepdim=True) > 0, alpha, 1.0)
        z, nu, s, lam = z + alpha * dz, nu + alpha * dnu, s + alpha * ds, lam + alpha * dlam
    return best, merit, taken


def _start(v: Tensor, on: Tensor, count: Tensor) -> Tensor:
    """Mehrotra's shift of v to a comfortable positive vector; 1 where off."""
    low = torch.where(on > 0, v, torch.inf).amin(-1, keepdim=True) if v.shape[-1] else v.new_zeros(len(v), 1)
    v = v + (-1.5 * low).clamp(min=0)
    return torch.where(on > 0, torch.maximum(v, v.new_full((), 1e-2)) + 1, 1.0)


def _longest(v: Tensor, dv: Tensor, on: Tensor) -> Tensor:
    """The largest step ≤ 1 that keeps v + step dv ≥ 0, (B, 1)."""
    if not v.shape[-1]:
        return v.new_ones(len(v), 1)
    ratio = torch.where((dv < 0) & (on > 0), -v / dv, 1.0)
    return ratio.amin(-1, keepdim=True).clamp(0, 1)


def _most(*parts: Tensor) -> Tensor:
    return torch.stack([kkt.largest(part) for part in parts]).amax(0)


# --- the protocol -----------------------------------------------------------------------------------------------------


def solve(problem: Problem, settings: Settings, keep_factor: bool) -> Point:
    """Solve every member; `keep_factor`: a derivative will be asked for."""
    standard = _standard(problem)
    scaled = _equilibrate(standard)
    tolerance = settings.tolerance or (1e-5 if problem.dtype == torch.float32 else 1e-9)
    (z, nu, s, lam), _, iterations = _interior(scaled, min(tolerance, 1e-9) * 1e-2, settings.max_iterations)
    z, nu, lam_all = scaled.origin + scaled.D * z, scaled.rows * nu / scaled.cost, scaled.sides * lam * scaled.on / scaled.cost
    N, M, P = standard.n, standard.m, standard.p
    n, m, p = problem.n, problem.m, problem.p
    lam, lam_lb, lam_ub = lam_all.split([P, N, N], -1)
    assert isinstance(standard.Q, Tensor) and standard.G is not None and standard.A is not None
    assert standard.h is not None and standard.lb is not None and standard.ub is not None
    fixed = standard.lb == standard.ub
    force = kkt.mul(standard.Q, z) + standard.q + kkt.mul_t(standard.G, lam) + kkt.mul_t(standard.A, nu)
    lam_lb = torch.where(fixed, force.clamp(min=0), lam_lb)
    lam_ub = torch.where(fixed, (-force).clamp(min=0), lam_ub)
    found = kkt.residuals(standard, z, lam, nu, lam_lb, lam_ub)
    slack = (standard.h - kkt.mul(standard.G, z)).clamp(min=0)
    status = torch.where(found.relative <= tolerance, int(Status.SOLVED), int(Status.MAX_ITERATIONS)).to(torch.int32)
    columns = (n, p, p, m, n if problem.lb is not None else 0, n if problem.ub is not None else 0)
    values = [x[:, :width].to(problem.dtype) for x, width in zip((z, slack, lam, nu, lam_lb, lam_ub), columns, strict=True)]
    rest = [x.to(problem.dtype) for x in found[:3]]
    return Point(*values, status, iterations, *rest, ())


def kkt_solve(problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
    """Solve the KKT system at `point` for `rhs`; zero for members that are not solved."""
    standard = _standard(problem)
    scaled = _equilibrate(standard)
    assert standard.lb is not None and standard.ub is not None
    N, M, P = standard.n, standard.m, standard.p

    def side(rows: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        parts = [pad(x.detach().double(), (0, size - x.shape[-1])) for x, size in ((rows, P), (lower, N), (upper, N))]
        return torch.cat(parts, -1)

    z = pad(point.z.detach().double(), (0, N - problem.n))
    lam = side(point.lam, point.lam_lb, point.lam_ub)
    s = torch.cat([pad(point.s.detach().double(), (0, P - problem.p)), z - standard.lb, standard.ub - z], -1)
    # in equilibrated units: v_z = D v̂_z, v_nu = rows v̂_nu / cost, v_y = sides v̂_y / cost
    s = torch.where(scaled.on > 0, s, 1.0).clamp(min=0) * scaled.sides
    lam = lam / scaled.sides * scaled.cost * scaled.on
    system = _System(scaled, lam, s)
    r_y = system.a * scaled.on * side(rhs.lam, rhs.lam_lb, rhs.lam_ub) * scaled.sides
    r_z = pad(rhs.z.detach().double(), (0, N - problem.n)) * scaled.D * scaled.cost
    r_nu = pad(rhs.nu.detach().double(), (0, M - problem.m)) * scaled.rows
    v_z, v_nu, v_y = system.solve(r_z, r_nu, r_y)
    v_y = v_y * scaled.sides / scaled.cost
    rows, lower, upper = v_y.split([P, N, N], -1)
    solved = (point.status == int(Status.SOLVED)).unsqueeze(-1)
    columns = [part.shape[-1] for part in rhs]
    parts = (v_z * scaled.D, rows, v_nu * scaled.rows / scaled.cost, lower, upper)
    return Adjoint(*(torch.where(solved, x[:, :width], 0.0).to(problem.dtype) for x, width in zip(parts, columns, strict=True)))
