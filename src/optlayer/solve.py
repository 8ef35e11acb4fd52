"""solve(): check, choose a backend, run, report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from optlayer import _torch, autograd, backends
from optlayer.call import failed
from optlayer.core.settings import Settings
from optlayer.core.structure import Names
from optlayer.matrices import STORED, Diagonal, Matrix
from optlayer.point import Point
from optlayer.problem import Problem
from optlayer.problem import check as check_problem
from optlayer.solution import Solution, SolveError

_DEFAULT = Settings()
_HALF = (torch.float16, torch.bfloat16)


class Options(TypedDict, total=False):
    """The keywords of `solve` beside the tensors, which layers pass on."""

    settings: Settings
    backend: str
    check: bool
    names: Mapping[str, Sequence[str]] | None


def solve(
    Q: Matrix,
    q: Tensor,
    G: Matrix | None = None,
    h: Tensor | float | None = None,
    A: Matrix | None = None,
    b: Tensor | float | None = None,
    lb: Tensor | float | None = None,
    ub: Tensor | float | None = None,
    *,
    h_lower: Tensor | float | None = None,
    settings: Settings = _DEFAULT,
    backend: str = "auto",
    check: bool = True,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Solution:
    """Solve a batch of convex quadratic programs, differentiably.

        minimise ½ zᵀQz + qᵀz   subject to   A z = b,   h_lower ≤ G z ≤ h,   lb ≤ z ≤ ub

    Any tensor may have batch dimensions (…), any number of them; they are broadcast as in torch.linalg. When no tensor
    has one, neither have the results. ±inf in h, h_lower, lb, ub means no constraint. Gradients reach every tensor that
    requires one, in its own shape, by implicit differentiation of the optimality conditions; those of tensors that the
    batch shares are summed over it.

    Args:
        Q: symmetric positive semidefinite, (…, n, n) (its symmetric part is used), or ``Diagonal(d)`` with d (…, n).
            Q, G and A, in any mix, may be ``Sparse``, a sparse tensor of torch's, or (a constant) a matrix of scipy's.
        q: (…, n).
        G, h: inequalities, (…, p, n) and (…, p).
        A, b: equalities, (…, m, n) and (…, m).
        lb, ub: bounds, (…, n). Numbers and scalar tensors serve for h, h_lower, b, lb and ub as well.
        h_lower: lower sides of the rows of G, (…, p); h may be left out then. Equal sides make a row an equality.
        settings: tolerances and options.
        backend: "auto", or one of ``available()``.
        check: raise when a member is not solved. False: never raises for data, never synchronises a GPU; see
            ``Solution.status``. Unsolved members have zero gradient.
        names: of the variables "z", the rows of "G" and of "A", each as many strings as there are: for ``explain``.

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
        wide = _widened(Q, q, G, h, A, b, lb, ub, h_lower)
        if wide is not None:
            with torch.autocast(q.device.type, enabled=False):
                *wide, below = wide
                found = solve(*wide, h_lower=below, settings=settings, backend=backend, check=check, names=names)
                return _rounded(found, q.dtype)
    if type(settings) is not Settings:
        checked_options({"settings": settings})
    if _torch.tracing_script() is not None and not torch.compiler.is_compiling():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _torch.TracerWarning)  # sizes are constants of the graph, as they must be
            problem = check_problem(Q, q, G, h, A, b, lb, ub, h_lower)
            point = autograd.solve(problem, settings, backend, check)
    else:
        problem = check_problem(Q, q, G, h, A, b, lb, ub, h_lower)
        shapes_only = problem.structure.device.type == "meta"
        check = check and not shapes_only
        later = shapes_only or torch.compiler.is_compiling()
        engine = backend if later else backends.checked(backends.choose(problem, backend), problem, settings)
        point = autograd.solve(problem, settings, engine, check)
    solution = Solution(problem, point, None if names is None else _named(names, problem))
    if check and point.unsolved != 0 and not _torch.watched() and failed(point):
        raise SolveError(solution)
    return solution


def checked_options(options: Mapping[str, Any]) -> Options:
    """The keywords of `solve` that a layer was given, checked when it is made.

    Raises:
        TypeError: for what is no keyword of `solve`, or of another type.
    """
    kinds = {"settings": (Settings,), "backend": (str,), "check": (bool,), "names": (Mapping, type(None))}
    for name, value in options.items():
        if name not in kinds:
            raise TypeError(f"unexpected keyword {name!r}; solve takes {', '.join(kinds)}")
        if not isinstance(value, kinds[name]):
            hint = " (Settings(**settings)?)" if name == "settings" and isinstance(value, Mapping) else ""
            raise TypeError(f"{name} is a {type(value).__name__}, not {kinds[name][0].__name__}{hint}")
    return Options(**options)  # type: ignore[typeddict-item]


def _named(names: Mapping[str, Sequence[str]], problem: Problem) -> Names:
    """The names, as many as there are variables and rows."""
    checked_options({"names": names})
    sizes = {"z": problem.n, "G": problem.p, "A": problem.m}
    for key, given in names.items():
        if key not in sizes:
            raise ValueError(f"names has the key {key!r}; there are {', '.join(sizes)}")
        if isinstance(given, str) or len(given) != sizes[key]:
            raise ValueError(f"names[{key!r}] has {len(given)} entries; {sizes[key]} are needed")
    return Names(*(tuple(names[key]) if key in names else None for key in sizes))


def _widened(Q: Matrix, *others: Matrix | float | None) -> list[Any] | None:
    """The arguments in float32, or in float64 if any has it; None outside autocast if their dtypes are mixed."""
    given: tuple[Any, ...] = (Q, *others)
    values = [x.values if type(x) in STORED else x for x in given]
    tensors = [x for x in values if isinstance(x, Tensor)]
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) > 1 and not any(torch.is_autocast_enabled(x.device.type) for x in tensors):
        return None
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    wide: list[Any] = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in values]
    for i, x in enumerate(given):
        if type(x) in STORED:
            wide[i] = Diagonal(wide[i]) if type(x) is Diagonal else x.with_values(wide[i])
    return wide


def _rounded(solution: Solution, dtype: torch.dtype) -> Solution:
    """The same with its point in `dtype`; the verdict keeps its precision."""
    point = solution.point
    rounded = Point(solution.z.to(dtype), point.rest.to(dtype), point.counts, point.residuals, point.widths)
    return Solution(solution.problem, rounded, solution.names)
