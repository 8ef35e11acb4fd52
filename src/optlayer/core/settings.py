"""Settings of a solve: validated once, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """How exactly a problem is solved and differentiated.

    Args:
        tolerance: by how much, relatively and entry by entry, the data may differ from those that an answer solves
            exactly (`kkt.residuals`). None: 1e-9 in float64, 1e-5 in float32.
        max_iterations: pivots of the active set, and iterations of each interior point, before a member is given up as
            MAX_ITERATIONS; from 60 on, the active set takes as many pivots as it needs.
        polish: after the interior point, solve the problem of the active constraints alone, to the last digits.
        gradient: "exact", the derivative of the solution itself; "smoothed", that of the problem relaxed to
            complementarity `smoothing` (``lam * s = smoothing`` instead of ``0``).
        smoothing: the complementarity κ of the smoothed gradient, in the units of objective values.
        infeasible: what a member without feasible point gets: "status", PRIMAL_INFEASIBLE with a proof and a zero
            gradient; "closest", the best point among those of least violation, Status.CLOSEST, and its gradient.
        zeros: of dense matrices that the batch shares: "found", the sparse engine takes the problem where that is
            quicker; "given", only matrices given as `Sparse` are sparse.

    Raises:
        TypeError: for what is no number where one is needed.
        ValueError: for values outside their range.
    """

    tolerance: float | None = None
    max_iterations: int = 60
    polish: bool = True
    gradient: Literal["exact", "smoothed"] = "exact"
    smoothing: float = 1e-3
    infeasible: Literal["status", "closest"] = "status"
    zeros: Literal["found", "given"] = "found"

    def __post_init__(self) -> None:
        for name, kind in (("tolerance", Real), ("max_iterations", Integral), ("smoothing", Real)):
            value = getattr(self, name)
            if not isinstance(value, kind) and (name, value) != ("tolerance", None):
                wanted = "whole number" if kind is Integral else "number"
                raise TypeError(f"{name} is a {type(value).__name__}, not a {wanted}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1, not {self.tolerance}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, not {self.max_iterations}")
        if self.gradient not in ("exact", "smoothed"):
            raise ValueError(f'gradient must be "exact" or "smoothed", not {self.gradient!r}')
        if self.infeasible not in ("status", "closest"):
            raise ValueError(f'infeasible must be "status" or "closest", not {self.infeasible!r}')
        if self.zeros not in ("found", "given"):
            raise ValueError(f'zeros must be "found" or "given", not {self.zeros!r}')
        if not self.smoothing > 0:
            raise ValueError(f"smoothing must be positive, not {self.smoothing}")


def tolerance_of(settings: Settings, single: bool) -> float:
    """The tolerance of the settings, or what is usual; single: the data are float32."""
    return settings.tolerance or (1e-5 if single else 1e-9)
