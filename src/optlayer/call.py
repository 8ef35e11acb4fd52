"""One call as its derivatives and transforms see it: everything but the tensors, which a transform exchanges."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from optlayer import backends
from optlayer.backends.base import Adjoint, Backend
from optlayer.point import Point
from optlayer.problem import Form, Problem
from optlayer.settings import Settings
from optlayer.solution import Solution, SolveError, Status

VALUES, VERDICT = 2, 2  # tensors of a Point before its factor: the point, and the verdict


def transformed() -> bool:
    """Whether a transform (torch.func, forward mode, a compiler or tracer) sees what we do."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


class Call:
    """What a solve and its derivatives share, but for tensors (a transform exchanges those)."""

    __slots__ = ("check", "engine", "form", "settings", "smoothed", "transformed", "unsolved")

    def __init__(self, form: Form, settings: Settings, engine: Backend | str, check: bool, transformed: bool) -> None:
        self.form, self.settings, self.engine = form, settings, engine
        self.check, self.transformed = check, transformed
        self.smoothed = settings.gradient == "smoothed"
        self.unsolved: int | None = None  # members, where known without a look at the status

    def problem(self, tensors: Sequence[Any]) -> Problem:
        return Problem.of(tensors, self.form)

    def with_batch(self, batch: int) -> Call:
        other = copy.copy(self)
        other.form = self.form.with_batch(batch)
        return other

    def solve(self, tensors: Sequence[Tensor | None], keep_factor: bool) -> tuple[Tensor, ...]:
        """Point and verdict, the relaxed point if the gradient is smoothed, and the factor."""
        problem = self.problem(tensors)
        engine = self.backend(problem)
        point = engine.solve(problem, self.settings, keep_factor and not self.smoothed)
        self.unsolved = point.unsolved
        if self.check and failed(point):
            raise SolveError(Solution(problem, point))
        if not self.smoothed:
            return point.tensors()
        relaxed = relaxing(engine).relax(problem, self.settings, point, keep_factor)
        return (*point.tensors()[: VALUES + VERDICT], *relaxed.tensors()[:VALUES], *relaxed.factor)

    def kkt_solve(self, tensors: Sequence[Tensor | None], point: Point, rhs: Adjoint) -> Adjoint:
        """v = M r at the point."""
        problem = self.problem(tensors)
        engine = self.backend(problem)
        if self.smoothed:
            engine = relaxing(engine)
        return engine.kkt_solve(problem, self.settings, point, rhs)

    def pullback(
        self, tensors: Sequence[Tensor | None], point: Point, grad_z: Tensor, need: Sequence[bool]
    ) -> list[Tensor | None] | None:
        """Gradients of the tensors by the backend's own function, if it has one."""
        engine: Any = self.engine
        if not hasattr(engine, "pullback"):
            return None
        found: list[Tensor | None] = engine.pullback(self.problem(tensors), self.settings, point, grad_z, need)
        return found

    def eager(self) -> bool:
        """Whether nobody differentiates, transforms or traces what is done now."""
        return not (self.transformed or torch.is_grad_enabled() or transformed())

    def backend(self, problem: Problem) -> Backend:
        return backends.choose(problem, self.engine) if isinstance(self.engine, str) else self.engine

    @property
    def fields(self) -> int:
        """Outputs of `solve` before the factor."""
        return 2 * VALUES + VERDICT if self.smoothed else VALUES + VERDICT

    def solution(self, outputs: Sequence[Any]) -> Point:
        """What the user gets of the outputs of `solve`."""
        return _point(outputs[: VALUES + VERDICT], self.form.widths, (), self.unsolved)

    def point(self, outputs: Sequence[Any]) -> Point:
        """The point at which the derivative is taken, of the outputs of `solve`."""
        at = outputs[VALUES + VERDICT : self.fields] if self.smoothed else outputs[:VALUES]
        factor = tuple(outputs[self.fields :])
        return _point((*at, *outputs[VALUES : VALUES + VERDICT]), self.form.widths, factor, self.unsolved)

    def split(self, args: Sequence[Any]) -> tuple[Sequence[Any], Point, Adjoint]:
        """Tensors, point and right-hand side of the flat arguments of _KKT."""
        end = len(args) - 5
        at = 8 + VALUES + VERDICT
        point = _point(args[8:at], self.form.widths, tuple(args[at:end]), self.unsolved)
        return args[:8], point, Adjoint(*args[end:])


def relaxing(engine: Any) -> Any:
    """The backend, if it knows relaxed points, or else the reference; loaded at first use."""
    if hasattr(engine, "relax"):
        return engine
    from optlayer.backends import reference

    return reference


def _point(values: Sequence[Any], widths: tuple[int, ...], factor: tuple[Any, ...], unsolved: int | None) -> Point:
    z, rest, counts, residuals = values
    return Point(z, rest, counts, residuals, widths, factor, unsolved)


def failed(point: Point) -> bool:
    """Whether some member is not solved."""
    if point.unsolved is not None:
        return point.unsolved > 0
    return bool((point.status != int(Status.SOLVED)).any())


class Fold:
    """A vmapped dimension of size V folded into the batch B of a call: member i of vmap's part k is member kB + i."""

    def __init__(self, size: int, call: Call) -> None:
        self.shape = (size, 1 if call.form.batch is None else call.form.batch)
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
        return [self.tensor(x, d, r) for x, d, r in zip(tensors, dims, self.call.form.ranks, strict=True)]

    def unfold(self, outputs: Sequence[Tensor], fields: int) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """Outputs with V in front, and which have it: all but the factor, which stays that of the folded batch."""
        values = [x.reshape(*self.shape, *x.shape[1:]) for x in outputs[:fields]]
        return (*values, *outputs[fields:]), (0,) * fields + (None,) * (len(outputs) - fields)


def kkt_vmap(size: int, in_dims: Sequence[Any], call: Call, args: Sequence[Any], solve: Any) -> tuple[Any, Any]:
    """One batched solve where the point is vmapped; else one factor for many right-hand sides."""
    tensors, point, rhs = call.split(args)
    dims: Any
    dims_point: Any
    dims_rhs: Any
    dims, dims_point, dims_rhs = call.split(in_dims)
    if dims_point.z is None and all(d is None for d in dims):
        answers = []
        for i in range(size):
            row = Adjoint(*(x if d is None else x.select(d, i) for x, d in zip(rhs, dims_rhs, strict=True)))
            answers.append(solve(call, tensors, point, row))
        return tuple(map(torch.stack, zip(*answers, strict=True))), (0,) * 5
    folded = Fold(size, call)
    of_point = zip(point.tensors()[: VALUES + VERDICT], dims_point.tensors()[: VALUES + VERDICT], strict=True)
    values = [folded.tensor(x, d, 1) for x, d in of_point]
    rhs = Adjoint(*(folded.tensor(x, d, 1) for x, d in zip(rhs, dims_rhs, strict=True)))
    v = solve(folded.call, folded.tensors(tensors, dims), _point(values, call.form.widths, point.factor, None), rhs)
    return folded.unfold(v, 5)
