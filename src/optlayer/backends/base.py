"""What a backend is: two functions, and what they exchange."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from optlayer.point import Point
from optlayer.problem import Problem
from optlayer.settings import Settings


class Adjoint(NamedTuple):
    """Right-hand side and solution of the symmetric KKT system at a point (see implicit.py).

    Q v_z + Gᵀv_lam + Aᵀv_nu − v_lb + v_ub = r_z
    lam∘(G v_z) − s∘v_lam = lam∘r_lam          (active row: G v_z = r_lam; inactive row: v_lam = 0)
    A v_z = r_nu
    and for the bounds as for G, whose rows they are: −I for lb, I for ub.
    """

    z: Tensor
    lam: Tensor
    nu: Tensor
    lam_lb: Tensor
    lam_ub: Tensor


class Backend(Protocol):
    """A module with these names is a backend.

    It may have two more (see cpu.py): `pullback`, which is `kkt_solve` and the products of eq. 8 where only z has a
    gradient (otherwise torch's operations do that, in implicit.py); and `relax`, for the smoothed gradient (otherwise
    the reference backend does that).
    """

    name: str

    def unavailable(self) -> str | None:
        """None, or why it cannot work on this machine."""

    def refuses(self, problem: Problem) -> str | None:
        """None, or why it cannot solve this problem."""

    def solve(self, problem: Problem, settings: Settings, keep_factor: bool) -> Point:
        """Solve every member; `keep_factor`: a derivative will be asked for."""

    def kkt_solve(self, problem: Problem, settings: Settings, point: Point, rhs: Adjoint) -> Adjoint:
        """Solve the KKT system at `point`; zero for members that are not solved."""
