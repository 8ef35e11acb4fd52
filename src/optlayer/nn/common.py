"""What layers have in common."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .. import backends
from ..matrices import Matrix
from ..solve import Options, checked_options
from ..sparse import Sparse

__all__ = ["DENSE", "Layer", "constant", "like", "positive", "shaped", "taken"]

DENSE = 48
"""Free dimensions, variables less equations, up to which a layer's matrices are dense, for these are as fast: measured,
forward and backward, alone and 16 together on one core; signals and images, controllers of 2 to 12 states with hard
limits. (What backends/zeros.py estimates is the solve alone, not the assembly and the derivative of the matrices.)"""


class Layer(nn.Module):
    """A module over `optlayer.solve`; it keeps the keywords for it, which are checked when the layer is made.

    Every layer has `solution(…)`, with the arguments of `forward`: the whole `Solution` of its quadratic program, with
    statuses and multipliers, in the batch dimensions of the input.

    Args:
        options: `settings`, `backend`, `check` and `names` for `optlayer.solve`.

    Raises:
        TypeError: for other keywords, or options of a wrong type.
    """

    shown: ClassVar[tuple[str, ...]] = ()
    """Attributes in the representation."""

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__()
        self.options = checked_options(options)

    def extra_repr(self) -> str:
        values: dict[str, Any] = {name: getattr(self, name) for name in self.shown} | dict(self.options)
        return ", ".join(f"{name}={_words(value)}" for name, value in values.items() if value is not None)


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.item():.4g}" if value.dim() == 0 and not value.is_meta else f"tensor{tuple(value.shape)}"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def constant(module: nn.Module, name: str, value: float | Tensor) -> None:
    """Make `module.name`: a parameter learns, another tensor becomes a buffer, a number stays one."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def like(value: float | Tensor, x: Tensor) -> float | Tensor:
    """The constant in the dtype and on the device of x; a number needs neither."""
    return value.to(x) if isinstance(value, Tensor) else value


def taken(M: Sparse, options: Options) -> Matrix:
    """M, or all its entries where the backend that will be asked takes dense matrices only."""
    wanted = options.get("backend", "auto")
    if wanted == "auto":
        wanted = "cpu"
    if wanted.startswith(backends.OTHERS):
        return M
    backend = backends.load(wanted) if wanted in backends.names() else wanted
    return M if M.values.device.type == "cpu" and not isinstance(backend, str) and backend.sparse else M.dense()


def positive(**values: float | Tensor) -> None:
    """Raise ValueError for values that are not above zero."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            if bool((value <= 0).any()):
                raise ValueError(f"{name} > 0 is needed, but its least entry is {float(value.min()):.4g}")
        elif not value > 0:
            raise ValueError(f"{name} > 0 is needed, not {value}")


def shaped(name: str, x: Tensor, *sizes: int | None, weight: Tensor | None = None) -> None:
    """Raise for an input that is not a floating tensor (…, sizes), or not of the weight's dtype; None: any size."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, not a tensor")
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; a floating dtype is needed")
    shape = x.shape[len(x.shape) - len(sizes) :]
    if len(shape) < len(sizes) or any(k not in (None, extent) for k, extent in zip(sizes, shape, strict=True)):
        wanted = ", ".join("any" if k is None else str(k) for k in sizes)
        raise ValueError(f"{name} (…, {wanted}) is needed, not {tuple(x.shape)}")
    if weight is not None and weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{name} has dtype {x.dtype}, the layer {weight.dtype} (layer.to({x.dtype})?)")
