"""Other packages' interfaces over `optlayer.solve`, for existing code."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optlayer.compat import cvxpylayers, qpth

__all__ = ["cvxpylayers", "qpth"]


def __getattr__(name: str) -> Any:
    """The interfaces, each loaded at first use."""
    if name in __all__:
        return importlib.import_module(f"optlayer.compat.{name}")
    raise AttributeError(f"module 'optlayer.compat' has no attribute {name!r}")
