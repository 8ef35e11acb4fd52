"""Every use of torch's private API: what torch knows and offers no public way to ask, or a slow one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

autocast_enabled = torch._C._is_any_autocast_enabled
"""Whether autocast is on for some device."""

dispatch_modes = torch._C._len_torch_dispatch_stack
"""How many modes watch the operators that run: a tracer's, FakeTensorMode's."""

functorch_active = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is at work."""

TracerWarning: type[Warning] = torch.jit.TracerWarning  # type: ignore[attr-defined]

tracing_script = torch._C._get_tracing_state
"""The state of torch.jit.trace, or None."""


def transformed() -> bool:
    """Whether a transform (torch.func, forward mode, a compiler or tracer) sees what we do."""
    return (
        torch.compiler.is_compiling()  # first: a compiler cannot read the others
        or functorch_active()
        or dispatch_modes() > 0
        or forward_ad._current_level >= 0
    )


def watched() -> bool:
    """Whether values must not be looked at, for somebody transforms or traces them."""
    return transformed() or tracing_script() is not None


def forward_mode() -> bool:
    """Whether forward-mode differentiation is at work."""
    return forward_ad._current_level >= 0


def forward_mode_on() -> Any:
    """Context: forward mode for all levels, which torch turns off inside of a jvp."""
    return forward_ad._set_fwd_grad_enabled(True)


def applier(function: type[torch.autograd.Function]) -> Any:
    """function.apply without its Python wrapper, which takes longer than a small solve; not for torch.func."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


_keep_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def graph_is_kept() -> bool:
    """Whether the graph that is run backward now will be run again (`retain_graph`); True where torch cannot say."""
    return bool(_keep_graph())


def dynamic_output_sizes() -> bool:
    """Whether the graph being traced may hold a tensor whose size is known only when it runs."""
    context = torch._guards.TracingContext.try_get()
    mode = context.fake_mode if context and context.fake_mode else torch._guards.detect_fake_mode()
    if mode is None:
        return True
    return mode.shape_env is not None and mode.shape_env.allow_dynamic_output_shape_ops


# What torch.compiler.assume_constant_result does, which imports the whole compiler: called when a graph is traced.
dynamic_output_sizes._dynamo_marked_constant = True  # type: ignore[attr-defined]


def legacy_batched(x: Any) -> bool:
    """Whether x is the tensor of the old vmap (`is_grads_batched=True`)."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(x))


def is_view(x: Tensor) -> bool:
    """Whether autograd takes x for a part of another tensor."""
    return x._is_view()


def has_own_memory(x: Tensor) -> bool:
    """Whether x holds numbers of its own, or is a tracer's stand-in: no wrapper (DTensor, MaskedTensor)."""
    if type(x).__torch_dispatch__ in (torch._C._disabled_torch_dispatch_impl, Tensor.__torch_dispatch__):
        return True
    return dispatch_modes() > 0 or isinstance(x, (FakeTensor, FunctionalTensor))
