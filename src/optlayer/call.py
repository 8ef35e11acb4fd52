"""One call as its derivatives and transforms see it: everything but the tensors, which a transform exchanges."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optlayer import _torch, backends
from optlayer.backends.base import Adjoint, Backend, settled
from optlayer.core.settings import Settings
from optlayer.core.structure import NAMES, Structure
from optlayer.point import Point
from optlayer.problem import Problem
from optlayer.solution import Solution, SolveError

VALUES, VERDICT = 2, 2  # tensors of a Point before its factor: the point, and the verdict
DATA = len(NAMES)  # tensors of a problem


class Call:
    """What a solve and its derivatives share, but for tensors (a transform exchanges those)."""

    __slots__ = ("check", "engine", "settings", "smoothed", "structure", "transformed", "unsolved", "waits")

    def __init__(
        self, structure: Structure, settings: Settings, engine: Backend | str, check: bool, transformed: bool
    ) -> None:
        self.structure, self.settings, self.engine = structure, settings, engine
        self.check, self.transformed = check, transformed
        self.waits = check  # whether somebody looks at the verdict
        self.smoothed = settings.gradient == "smoothed"
        self.unsolved: int | None = None  # members, where known without a look at the status

    def problem(self, tensors: Sequence[Any]) -> Problem:
        return Problem.of(tensors, self.structure)

    def with_batch(self, batch: int) -> Call:
        other = copy.copy(self)
        other.structure = self.structure.changed(shape=(batch,))
        return other

    def solve(self, tensors: Sequence[Tensor | None], keep_factor: bool) -> tuple[Tensor, ...]:
        """Point and verdict, the relaxed point if the gradient is smoothed, and the factor."""
        problem = self.problem(tensors)
        engine = self.backend(problem)
        point = settled(engine, problem, self.settings, keep_factor and not self.smoothed, self.waits)
        self.unsolved = point.unsolved
        if self.check and failed(point):
            raise SolveError(Solution(problem, point))
        if not self.smoothed:
            return point.tensors()
        relaxed = engine.relax(problem, self.settings, point, keep_factor)
        return (*point.tensors()[: VALUES + VERDICT], *relaxed.tensors()[:VALUES], *relaxed.factor)

    def kkt_solve(self, tensors: Sequence[Tensor | None], point: Point, rhs: Adjoint) -> Adjoint:
        """v = M r at the point."""
        problem = self.problem(tensors)
        return self.backend(problem).kkt_solve(problem, self.settings, point, rhs)

    def eager(self) -> bool:
        """Whether nobody differentiates, transforms or traces what is done now."""
        return not (self.transformed or torch.is_grad_enabled() or _torch.transformed())

    def backend(self, problem: Problem) -> Backend:
        return backends.choose(problem, self.engine) if isinstance(self.engine, str) else self.engine

    @property
    def fields(self) -> int:
        """Outputs of `solve` before the factor."""
        return 2 * VALUES + VERDICT if self.smoothed else VALUES + VERDICT

    def solution(self, outputs: Sequence[Any]) -> Point:
        """What the user gets of the outputs of `solve`."""
        return self._point(outputs[: VALUES + VERDICT])

    def point(self, outputs: Sequence[Any]) -> Point:
        """The point at which the derivative is taken, of the outputs of `solve`."""
        at = outputs[VALUES + VERDICT : self.fields] if self.smoothed else outputs[:VALUES]
        return self._point((*at, *outputs[VALUES : VALUES + VERDICT]), tuple(outputs[self.fields :]))

    def split(self, args: Sequence[Any]) -> tuple[Sequence[Any], Point, Adjoint]:
        """Tensors, point and right-hand side of flat arguments (tensors, point, factor…, right-hand side)."""
        end, at = len(args) - len(Adjoint._fields), DATA + VALUES + VERDICT
        return args[:DATA], self._point(args[DATA:at], tuple(args[at:end])), Adjoint(*args[end:])

    def _point(self, values: Sequence[Any], factor: tuple[Any, ...] = ()) -> Point:
        z, rest, counts, residuals = values
        return Point(z, rest, counts, residuals, self.structure.widths, factor, self.unsolved)


def failed(point: Point) -> bool:
    """Whether some member has no answer."""
    if point.unsolved is not None:
        return point.unsolved > 0
    return not bool(point.answered.all())


class Fold:
    """A vmapped dimension of size V folded into the batch B of a call: member i of vmap's part k is member kB + i."""

    def __init__(self, size: int, call: Call) -> None:
        self.shape = (size, call.structure.members)
        self.call = call.with_batch(self.shape[0] * self.shape[1])

    def tensor(self, x: Any, dim: int | None, rank: int) -> Any:
        """x with the batch V·B in front; as it is if neither vmap nor the batch varies it."""
        if x is None:
            return None
        batched = x.dim() - (dim is not None) > rank
        if dim is None and not batched:
            return x
        x = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
        x = x if batched else x.unsqueeze(1)
        inner = x.shape[2:]
        return x.expand(*self.shape, *inner).reshape(self.shape[0] * self.shape[1], *inner)

    def tensors(self, tensors: Sequence[Tensor | None], dims: Sequence[int | None]) -> list[Tensor | None]:
        return [self.tensor(x, d, r) for x, d, r in zip(tensors, dims, self.call.structure.ranks, strict=True)]

    def unfold(self, outputs: Sequence[Tensor], fields: int) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """Outputs with V in front, and which have it: all but the factor, which stays that of the folded batch."""
        values = [x.reshape(*self.shape, *x.shape[1:]) for x in outputs[:fields]]
        return (*values, *outputs[fields:]), (0,) * fields + (None,) * (len(outputs) - fields)


def kkt_vmap(
    size: int, in_dims: Sequence[Any], call: Call, args: Sequence[Any], solve: Callable[..., Adjoint]
) -> tuple[Any, Any]:
    """One batched solve where the point is vmapped; else one factor for many right-hand sides.

    `solve(call, tensors, point, rhs)` is the function that is vmapped.
    """
    tensors, point, rhs = call.split(args)
    dims: Sequence[Any] = in_dims[:DATA]
    dims_point = in_dims[DATA : DATA + VALUES + VERDICT]
    dims_rhs = in_dims[len(in_dims) - len(rhs) :]
    if dims_point[0] is None and all(d is None for d in dims):
        answers = []
        for i in range(size):
            row = Adjoint(*(x if d is None else x.select(d, i) for x, d in zip(rhs, dims_rhs, strict=True)))
            answers.append(solve(call, tensors, point, row))
        return tuple(map(torch.stack, zip(*answers, strict=True))), (0,) * len(rhs)
    folded = Fold(size, call)
    values = [folded.tensor(x, d, 1) for x, d in zip(args[DATA : DATA + VALUES + VERDICT], dims_point, strict=True)]
    rhs = Adjoint(*(folded.tensor(x, d, 1) for x, d in zip(rhs, dims_rhs, strict=True)))
    at = Point(values[0], values[1], values[2], values[3], call.structure.widths, point.factor)
    return folded.unfold(solve(folded.call, folded.tensors(tensors, dims), at, rhs), len(rhs))
