"""What several layers need."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["constant", "like"]


def constant(module: nn.Module, name: str, value: float | Tensor) -> None:
    """Make `module.name`: a parameter learns, another tensor becomes a buffer, a number stays one."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def like(value: float | Tensor, x: Tensor) -> float | Tensor:
    """The constant in the dtype and on the device of x; a number needs neither."""
    return value.to(x) if isinstance(value, Tensor) else value
