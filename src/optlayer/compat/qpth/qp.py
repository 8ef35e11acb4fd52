"""A drop-in for qpth: replace `from qpth.qp import …` by `from optlayer.compat.qpth.qp import …`.

What stays: the names, the arguments, empty tensors for absent parts, which tensors may lack a batch
dimension, an answer that always has one, the error for a `Q` that is not positive definite, and the gradient
of a tensor that the batch shares: qpth returns the *mean* over the batch where autograd defines the sum.
`shared_gradient="sum"` gives the sum, as `optlayer.solve` does; learning rates that were tuned with the mean
then need dividing by the batch size.

What differs: problems without inequalities, LPs and singular `Q` (with `check_Q_spd=False`) work; only what
needs a gradient is computed; second derivatives are right; a member that cannot be solved gives a warning
that names the reason, and a zero gradient. A member that no point satisfies gives the closest point, where qpth returns
whatever its iterations end at (`Settings(infeasible="closest")`; on a CPU with the compiled core), and a warning too.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

import torch
from torch import Tensor

from optlayer import Settings, Status, backends, solve

__all__ = ["QPFunction", "QPSolvers", "SpQPFunction"]

_said_mean = False


class QPSolvers(Enum):
    """qpth's choice of solver: `PDIPM_BATCHED` takes the fastest backend, `CVXPY` the reference backend."""

    PDIPM_BATCHED = 1
    CVXPY = 2


def QPFunction(
    eps: float = 1e-12,
    verbose: int = 0,
    notImprovedLim: int = 3,
    maxIter: int = 20,
    solver: QPSolvers = QPSolvers.PDIPM_BATCHED,
    check_Q_spd: bool = True,
    *,
    shared_gradient: Literal["mean", "sum"] = "mean",
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A function of `(Q, p, G, h, A, b)` that solves a batch of quadratic programs, as qpth's of this name.

        minimise ½ zᵀQz + pᵀz  subject to  Az = b, Gz ≤ h

    Args:
        eps: Tolerance, relative. Up to 1e-8 it means the default of `optlayer.Settings`: qpth's own default,
            an absolute 1e-12, is below what rounding allows.
        verbose: -1 is silent; otherwise a member that was not solved gives a warning.
        notImprovedLim: Accepted, without effect: an unsolved member has a status of its own.
        maxIter: The least number of iterations allowed for; the default of `optlayer.Settings` if that is
            larger.
        solver: See `QPSolvers`.
        check_Q_spd: Raise if some `Q` is not positive definite.
        shared_gradient: What a tensor without a batch dimension receives: the "mean" over the batch, as qpth
            defines it, or the "sum", as autograd does.

    Returns:
        A function of `Q (…, n, n)`, `p (…, n)`, `G (…, p, n)`, `h (…, p)`, `A (…, m, n)`, `b (…, m)`, each
        with or without a leading batch dimension; an empty tensor stands for an absent part. It returns `z
        (batch, n)`, also for a batch of one. It raises `RuntimeError` if `check_Q_spd` finds a `Q` that is
        not positive definite, and `ValueError` for shapes that do not fit.

    Source: Amos and Kolter, OptNet, 2017; the interface is that of its package qpth.
    """
    if shared_gradient not in ("mean", "sum"):
        raise ValueError(f'shared_gradient is "mean" or "sum", not {shared_gradient!r}')
    default = Settings()
    settings = Settings(
        tolerance=eps if eps > 1e-8 else None, max_iterations=max(maxIter, default.max_iterations)
    )
    # qpth's users rely on a finite, useful answer where no point is feasible
    closest = dataclasses.replace(settings, infeasible="closest")
    backend = "auto" if solver is QPSolvers.PDIPM_BATCHED else "reference"

    def apply(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
        given = {"Q": (Q, 3), "p": (p, 2), "G": (G, 3), "h": (h, 2), "A": (A, 3), "b": (b, 2)}
        batched = [x.shape[0] for x, dim in given.values() if x.dim() == dim and x.numel()]
        batch = batched[0] if batched else 1
        if check_Q_spd and torch.linalg.cholesky_ex(Q.detach()).info.any():
            raise RuntimeError("Q is not SPD.")

        def prepare(x: Tensor, dim: int) -> Tensor | None:
            if x.numel() == 0:
                return None
            if x is h or x is b:  # qpth computes with them in the dtype of the others
                x = x.to(Q.dtype)
            if x.dim() == dim:
                return x
            if x.requires_grad and batch > 1 and shared_gradient == "mean":
                _say_mean()
                x = x.view_as(x)
                x.register_hook(lambda grad: grad / batch)
            return x

        Q_, p_, G_, h_, A_, b_ = (prepare(x, dim) for x, dim in given.values())
        if Q_ is None or p_ is None:
            raise ValueError("Q and p may not be empty")
        sol = solve(
            Q_, p_ if batched else p_.unsqueeze(0), G_, h_, A_, b_,
            settings=closest if backend == "auto" and _knows_closest(p) else settings, backend=backend, check=False,
        )
        if verbose >= 0 and not torch.compiler.is_compiling():
            _warn_unsolved(sol.status)
        return sol.z

    return apply


class SpQPFunction:
    """qpth's function for sparse matrices, which is not made here.

    Raises:
        NotImplementedError: when it is called; the message says what serves instead.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        raise NotImplementedError(
            "SpQPFunction is not part of this drop-in: give sparse matrices to optlayer.solve itself, whose gradients "
            "are sparse too (see “From qpth” in the migration guide)"
        )


def _knows_closest(p: Tensor) -> bool:
    return p.device.type == "cpu" and backends.available()["cpu"] is None


def _say_mean() -> None:
    global _said_mean
    if not _said_mean:
        _said_mean = True
        warnings.warn(
            "As in qpth, a tensor that the batch shares receives the mean of its members' gradients, not "
            'their sum. QPFunction(shared_gradient="sum") gives the sum; see the migration guide.',
            stacklevel=5,
        )


def _warn_unsolved(status: Tensor) -> None:
    for value in status.unique().tolist():
        if value != Status.SOLVED:
            members = (status == value).nonzero().flatten().tolist()
            shown = ", ".join(map(str, members[:10])) + (", …" if len(members) > 10 else "")
            who = f"member{'s' * (len(members) > 1)} {shown} of the batch"
            warnings.warn(f"{who}: {Status(value).explanation}", stacklevel=3)
