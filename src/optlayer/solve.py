"""solve(): check, choose a backend, run, report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optlayer import _torch, autograd, backends
from optlayer.call import failed
from optlayer.core.settings import Settings
from optlayer.matrices import Diagonal
from optlayer.point import Point
from optlayer.problem import check as check_problem
from optlayer.solution import Solution, SolveError

_DEFAULT = Settings()
_HALF = (torch.float16, torch.bfloat16)


def solve(
    Q: Tensor | Diagonal,
    q: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    lb: Tensor | None = None,
    ub: Tensor | None = None,
    *,
    settings: Settings = _DEFAULT,
    backend: str = "auto",
    check: bool = True,
) -> Solution:
    """Solve a batch of convex quadratic programs, differentiably.

        minimise ½ zᵀQz + qᵀz   subject to   A z = b,   G z ≤ h,   lb ≤ z ≤ ub

    Each tensor is shared by the batch or has a leading batch dimension B, in any mix; when none has one, neither have
    the results. ±inf in h, lb, ub means no constraint. Gradients reach every tensor that requires one, by implicit
    differentiation of the optimality conditions; those of shared tensors are summed over the batch.

    Args:
        Q: symmetric positive semidefinite, (…, n, n) (its symmetric part is used), or ``Diagonal(d)`` with d (…, n).
        q: (…, n).
        G, h: inequalities, (…, p, n) and (…, p).
        A, b: equalities, (…, m, n) and (…, m).
        lb, ub: bounds, (…, n).
        settings: tolerances and options.
        backend: "auto", or one of ``available()``.
        check: raise when a member is not solved. False: never raises for data, never synchronises a GPU; see
            ``Solution.status``. Unsolved members have zero gradient.

    Returns:
        Solution: point, multipliers, and a verdict for each member. dtype and device are q's; half precision, and
        mixed precision under autocast, are solved in float32 at least.

    Raises:
        TypeError, ValueError: for arguments that do not fit together; the message shows every shape.
        SolveError: with ``check``, when a member is not solved; it carries the solution.

    Source: Amos & Kolter, OptNet (ICML 2017), eq. 2 and §3.
    """
    if isinstance(q, Tensor) and (
        q.dtype in _HALF or (_torch.autocast_enabled() and torch.is_autocast_enabled(q.device.type))
    ):
        wide = _widened(Q, q, G, h, A, b, lb, ub)
        if wide is not None:
            with torch.autocast(q.device.type, enabled=False):
                return _rounded(solve(*wide, settings=settings, backend=backend, check=check), q.dtype)
    if type(settings) is not Settings:
        raise TypeError(f"settings is a {type(settings).__name__}, not Settings (Settings(**settings)?)")
    problem = check_problem(Q, q, G, h, A, b, lb, ub)
    engine = backend if torch.compiler.is_compiling() else backends.choose(problem, backend)
    point = autograd.solve(problem, settings, engine, check)
    solution = Solution(problem, point)
    if check and point.unsolved != 0 and not _torch.transformed() and failed(point):
        raise SolveError(solution)
    return solution


def _widened(Q: Tensor | Diagonal, *others: Tensor | None) -> list[Any] | None:
    """The arguments in float32, or in float64 if any has it; None outside autocast if their dtypes are mixed."""
    values = (Q.d if isinstance(Q, Diagonal) else Q, *others)
    tensors = [x for x in values if isinstance(x, Tensor)]
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) > 1 and not any(torch.is_autocast_enabled(x.device.type) for x in tensors):
        return None
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    wide: list[Any] = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in values]
    return [Diagonal(wide[0]) if isinstance(Q, Diagonal) else wide[0], *wide[1:]]


def _rounded(solution: Solution, dtype: torch.dtype) -> Solution:
    """The same with its point in `dtype`; the verdict keeps its precision."""
    point = solution.point
    rounded = Point(point.z.to(dtype), point.rest.to(dtype), point.counts, point.residuals, point.widths)
    return Solution(solution.problem, rounded)
