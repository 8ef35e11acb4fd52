"""Optimisation as a layer: batches of quadratic programs in PyTorch, solved and differentiated exactly."""

import importlib
from typing import TYPE_CHECKING, Any

from optlayer.backends import available
from optlayer.core.settings import Settings
from optlayer.core.status import Status
from optlayer.matrices import Diagonal
from optlayer.problem import Problem
from optlayer.solution import Solution, SolveError
from optlayer.solve import solve
from optlayer.sparse import Sparse

if TYPE_CHECKING:
    from optlayer import compat, nn

__version__ = "0.2.0"
__all__ = [
    "Diagonal", "Problem", "Settings", "Solution", "SolveError", "Sparse", "Status", "available", "compat", "nn",
    "solve",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The layers and the other packages' interfaces, loaded at first use."""
    if name in ("compat", "nn"):
        return importlib.import_module(f"optlayer.{name}")
    raise AttributeError(f"module 'optlayer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "compat", "nn"])
