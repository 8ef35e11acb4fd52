"""The derivative of a solution, by implicit differentiation of the optimality conditions (OptNet, eqs. 4-8).

**The linear system.** Write the sides of the inequalities as one list C z ≤ d, with C = (G; −I; I) and
d = (h; −lb; ub), their multipliers y = (lam, lam_lb, lam_ub) and slacks s = d − C z. The optimality conditions are

    Q z + q + Cᵀy + Aᵀnu = 0,      y∘(C z − d) = 0,      A z = b                                            (4)

and their differential, with dv = (dz, dy, dnu) for the answer and the data on the right, is (5, 6)

    Q dz + Cᵀdy + Aᵀdnu  =  r_z  = −(dQ z + dq + dCᵀy + dAᵀnu)
    y∘(C dz) − s∘dy      =  y∘r_y,    r_y = dd − dC z
    A dz                 =  r_nu = db − dA z.

`kkt_solve` of a backend maps r to v; call this map M. An active side (y > 0, s = 0) is an equality C v_z = r_y there,
an inactive one (y = 0, s > 0) has v_y = 0. A weakly active side (y = s = 0) counts as inactive; where active rows are
linearly dependent or the curvature vanishes, M is the pseudo-inverse of a consistent system (least norm).

**Both directions.** Dividing the second line by y shows that M is symmetric. Forward mode is dv = M r. Reverse mode,
with the gradients of the loss g = (g_z, g_y, g_nu), is v = M g, because ⟨g, M r⟩ = ⟨M g, r⟩, and reading off the
coefficients of the data in ⟨v, r⟩ gives (8)

    grad_q = −v_z      grad_Q = −½ (v_z zᵀ + z v_zᵀ)
    grad_h = v_lam     grad_G = −(lam v_zᵀ + v_lam zᵀ)        grad_lb = −v_lb
    grad_b = v_nu      grad_A = −(nu v_zᵀ + v_nu zᵀ)          grad_ub = v_ub.

Rows with two sides, h_lower ≤ G z ≤ h, are two lists in C and d, (G; −G) and (h; −h_lower), with multipliers lam and
lam_lower and slacks s and G z − h_lower; the part `lam` of r and v holds both, the upper ones first. With the upper
less the lower part in place of lam and v_lam, the gradients of G and Q are as above, and grad_h_lower = −v_lower.

The slack is s = h − G z: its gradient g_s adds −Gᵀg_s to g_z, g_s to grad_h, −g_s zᵀ to grad_G.

**Second derivatives.** v = M r solves a linear system with the same matrix K, so dv = M (dr − dK v), and for
gradients w̄ of v, with w = M w̄,

    ⟨w̄, dv⟩ = ⟨w, dr⟩ − ⟨w, dK v⟩:     grad_r = w,    grad_Q = −½ (w_z v_zᵀ + v_z w_zᵀ),    and as above for G and A

with (v_z, v_lam, v_nu) in place of (z, lam, nu) and w in place of v. On a fixed active set K holds nothing else. So
M is a differentiable function whose derivatives are M again (`autograd.py`); derivatives of every order follow.

**Smoothed.** With Settings(gradient="smoothed", smoothing=κ) all of this happens at the solution of the relaxed problem
y∘s = κ in place of the exact one, whose value is returned all the same. There s/y = κ/y² moves with the data, and
⟨w, dK v⟩ has one more term: grad_y = −2κ w_y∘v_y / y³ for second derivatives.

Members that were not solved, and sides with infinite d, have zero gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optlayer import _torch, matrices
from optlayer.backends.base import Adjoint
from optlayer.core.structure import MATRICES, Structure
from optlayer.point import Point

Solve = Callable[[Adjoint], Adjoint]
"""M, differentiable."""


def pullback(
    structure: Structure, tensors: Sequence[Any], point: Point, g_z: Tensor | None, g_rest: Tensor | None,
    need: Sequence[bool], solve: Solve,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of the tensors (where `need`) from those of z and of the other parts: eq. 8."""
    solved = _solved(point)
    if solved is not None:
        g_z, g_rest = (None if g is None else torch.where(solved, g, 0.0) for g in (g_z, g_rest))
    z, lam, nu = point.z, net(structure, multipliers(point)), point.nu
    if g_rest is None:
        g_s, g_parts = None, [torch.zeros_like(x) for x in (multipliers(point), nu, point.lam_lb, point.lam_ub)]
    else:
        g_s, *g_parts = sides(structure, g_rest)
    G = tensors[2]
    if g_s is not None and G is not None:
        g_s = torch.where(point.s.isinf(), 0.0, g_s)
        g_z = added(g_z, -matrices.times_t(matrices.wrap(structure.kinds[1], G), g_s))
    v = solve(Adjoint(torch.zeros_like(z) if g_z is None else g_z, *g_parts))
    if solved is not None:
        v = Adjoint(*(torch.where(solved, x, 0.0) for x in v))
        z, lam, nu = (torch.where(solved, x, 0.0) for x in (z, lam, nu))
    v_upper, *v_lower = v.lam.split(structure.row_widths, -1)
    if g_s is not None:
        v_upper = v_upper + g_s
    v = v._replace(lam=v_upper - v_lower[0] if v_lower else v_upper)
    found: list[Tensor | None] = [None] * len(tensors)
    found[0], found[2], found[4] = matrix_gradients(structure, tensors, need[:5:2], z, lam, nu, v)
    vectors = ((1, v.z, -1), (3, v_upper, 1), (5, v.nu, 1), (6, v.lam_lb, -1), (7, v.lam_ub, 1))
    for i, gradient, sign in (*vectors, *((8, x, -1) for x in v_lower)):
        if need[i]:
            found[i] = _shared(tensors[i], -gradient if sign < 0 else gradient)
    return found


def pushforward(
    structure: Structure, tensors: Sequence[Any], point: Point, tangents: Sequence[Any], solve: Solve
) -> tuple[Tensor, Tensor]:
    """Tangents of z and of the other parts from those of the tensors: eqs. 5 and 6."""
    dQ, dq, dG, dh, dA, db, dlb, dub, dh_lower = tangents
    lam = net(structure, multipliers(point))
    r_z, r_rows, r_nu = matrix_tangents(structure, dQ, dG, dA, point.z, lam, point.nu)
    r_lam = r_rows if dh is None else r_rows + dh
    r = Adjoint(
        r_z if dq is None else r_z - dq,
        torch.cat([r_lam, -r_rows if dh_lower is None else -r_rows - dh_lower], -1) if structure.two_sided else r_lam,
        r_nu if db is None else r_nu + db,
        torch.zeros_like(point.lam_lb) if dlb is None else (-dlb).expand_as(point.lam_lb),
        torch.zeros_like(point.lam_ub) if dub is None else dub.expand_as(point.lam_ub),
    )
    solved = is_solved(point)
    v = solve(Adjoint(*(torch.where(solved, x, 0.0) for x in r)))
    ds = torch.zeros_like(point.s)
    if tensors[2] is not None:
        Gv = matrices.times(matrices.wrap(structure.kinds[1], tensors[2]), v.z)
        ds = torch.where(solved & ~point.s.isinf(), r_lam - Gv, 0.0)
    return v.z, joined(structure, ds, *v[1:])


def matrix_gradients(
    structure: Structure, tensors: Sequence[Any], need: Sequence[bool], z: Tensor, lam: Tensor, nu: Tensor, v: Adjoint
) -> list[Tensor | None]:
    """Gradients of Q, G, A in −⟨v, dK (z, lam, nu)⟩, those needed."""
    half = 0.5 * v.z
    pairs = (((half, z), (z, half)), ((lam, v.z), (v.lam, z)), ((nu, v.z), (v.nu, z)))
    return [
        matrices.outer_products(kind, tensors[i], *terms) if needed and tensors[i] is not None else None
        for i, kind, terms, needed in zip(MATRICES, structure.kinds, pairs, need, strict=True)
    ]


def matrix_tangents(
    structure: Structure, dQ: Tensor | None, dG: Tensor | None, dA: Tensor | None, z: Tensor, lam: Tensor, nu: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """−dK (z, lam, nu)."""
    r_z, r_lam, r_nu = torch.zeros_like(z), torch.zeros_like(lam), torch.zeros_like(nu)
    dQ, dG, dA = (matrices.wrap(kind, x) for kind, x in zip(structure.kinds, (dQ, dG, dA), strict=True))
    if dQ is not None:
        r_z = r_z - matrices.symmetric_times(dQ, z)
    if dG is not None:
        r_z, r_lam = r_z - matrices.times_t(dG, lam), r_lam - matrices.times(dG, z)
    if dA is not None:
        r_z, r_nu = r_z - matrices.times_t(dA, nu), r_nu - matrices.times(dA, z)
    return r_z, r_lam, r_nu


# --- the rows of G, which may have two sides ---------------------------------------------------------------------


def multipliers(point: Point) -> Tensor:
    """lam, or lam and lam_lower side by side."""
    return torch.cat([point.lam, point.lam_lower], -1) if len(point.widths) > 5 else point.lam


def sides(structure: Structure, rest: Tensor) -> list[Tensor]:
    """s, the multipliers of the rows (lam and lam_lower side by side), nu, lam_lb and lam_ub."""
    s, lam, nu, lower, upper, *below = rest.split(structure.widths, -1)
    return [s, torch.cat([lam, *below], -1) if below else lam, nu, lower, upper]


def joined(structure: Structure, s: Tensor, lam: Tensor, nu: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The reverse of `sides`."""
    lam, *below = lam.split(structure.row_widths, -1)
    return torch.cat([s, lam, nu, lower, upper, *below], -1)


def both(structure: Structure, row: Tensor) -> Tensor:
    """What a change of G z means for the sides of the rows: the same for the upper ones, the opposite for the lower."""
    return torch.cat([row, -row], -1) if structure.two_sided else row


def net(structure: Structure, lam: Tensor) -> Tensor:
    """The upper less the lower part: what enters stationarity as Gᵀ lam."""
    if not structure.two_sided:
        return lam
    upper, lower = lam.split(structure.p, -1)
    return upper - lower


# --- smoothed --------------------------------------------------------------------------------------------------------


def slopes(smoothing: float, tensors: Sequence[Any], point: Point, v: Adjoint) -> tuple[Tensor, Tensor, Tensor]:
    """v_y ∂(s/y)/∂y = −2κ v_y / y³ at the relaxed point, for lam, lam_lb, lam_ub; 0 where off, or lb = ub."""
    lb, ub = tensors[6], tensors[7]

    def slope(y: Tensor, v_y: Tensor, moves: Tensor) -> Tensor:
        return torch.where(moves, -2 * smoothing / y * (v_y / y) / y, 0.0)

    lower, upper = point.lam_lb > 0, point.lam_ub > 0
    if lb is not None and ub is not None:
        lower, upper = lower & (lb != ub), upper & (lb != ub)
    lam = multipliers(point)
    rows = slope(lam, v.lam, lam > 0)
    return rows, slope(point.lam_lb, v.lam_lb, lower), slope(point.lam_ub, v.lam_ub, upper)


def along(of: tuple[Tensor, Tensor, Tensor], w: Adjoint) -> tuple[Tensor, ...]:
    """Slopes times w, for lam, nu, lam_lb, lam_ub."""
    rows, lower, upper = of
    return w.lam * rows, torch.zeros_like(w.nu), w.lam_lb * lower, w.lam_ub * upper


# --- small things ----------------------------------------------------------------------------------------------------


def added(a: Tensor | None, b: Any) -> Any:
    """a + b, where None is zero."""
    return b if a is None else a if b is None else a + b


def is_solved(point: Point) -> Tensor:
    """Which members have an answer, (B, 1)."""
    return point.answered.unsqueeze(-1)


def _solved(point: Point) -> Tensor | None:
    """The same; None: all, known without waiting for a device."""
    return None if point.unsolved == 0 and not _torch.transformed() else is_solved(point)


def _shared(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient, summed over the batch where x is shared."""
    return grad.sum(0) if grad.dim() > x.dim() else grad
