"""Denoising by total variation, in one and two dimensions, with differences that can be learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..solve import solve

__all__ = ["TotalVariation"]


class TotalVariation(nn.Module):
    """The signal that is near the input and whose differences are few.

        minimise ½‖z − y‖² + weight · ‖D z‖₁

    It is solved in its dual, which has bounds only: `z = y − Dᵀu` with
    `u = argmin ½‖Dᵀu − y‖²` subject to `−weight ≤ u ≤ weight`.

    Args:
        shape: The length of a signal, or the two sizes of a small grid.
        weight: The price of a jump, positive. It is a parameter.
        learn_differences: D, which starts as the first differences, is a parameter too.
        options: `settings`, `backend`, `check` for `optlayer.solve`.

    Takes and returns signals `(…, length)` or grids `(…, rows, columns)`.

    Source: Rudin, Osher and Fatemi, Nonlinear total variation, 1992; learned D: Amos and Kolter, OptNet,
        2017, §4.2.
    """

    D: Tensor

    def __init__(
        self, shape: int | tuple[int, int], weight: float = 1.0, *,
        learn_differences: bool = False, **options: Any,
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else shape
        self.options = options
        self.weight = nn.Parameter(torch.tensor(float(weight)))
        D = torch.eye(self.shape[0]).diff(dim=0)
        if len(self.shape) == 2:
            rows, columns = self.shape
            D = torch.cat([
                torch.kron(D, torch.eye(columns)), torch.kron(torch.eye(rows), torch.eye(columns).diff(dim=0))
            ])
        if learn_differences:
            self.D = nn.Parameter(D)
        else:
            self.register_buffer("D", D)

    def forward(self, y: Tensor) -> Tensor:
        if y.shape[-len(self.shape):] != self.shape:
            raise ValueError(f"the last dimensions are to be {self.shape}; the input is {tuple(y.shape)}")
        D, rows = self.D.to(y), y.reshape(-1, self.D.shape[1])
        bound = self.weight.to(y) * torch.ones_like(D[:, 0])
        u = solve(D @ D.mT, -rows @ D.mT, lb=-bound, ub=bound, **self.options).z
        return (rows - u @ D).view(y.shape)
