"""The backends in order of preference, and the choice among them."""

from __future__ import annotations

import importlib
from typing import cast

from optlayer.backends.base import Backend
from optlayer.problem import Problem

ORDER = ("cuda", "cpu", "reference")
OTHERS = "qpsolvers:"
"""Prefix of the names of other solvers."""
_loaded: dict[str, Backend | str] = {}


def load(name: str) -> Backend | str:
    """The backend, or why it is unavailable."""
    found = _loaded.get(name)
    if found is None:
        try:
            module = cast(Backend, importlib.import_module(f"optlayer.backends.{name}"))
            found = module.unavailable() or module
        except ModuleNotFoundError as error:
            found = str(error)
        _loaded[name] = found
    return found


def other(name: str) -> Backend | str:
    """The backend of another solver (`qpsolvers:NAME`), or why it is unavailable."""
    from optlayer.backends import qpsolvers

    engine = qpsolvers.Engine(name)
    return engine.unavailable() or engine


def available() -> dict[str, str | None]:
    """Each backend's name with None, or with the reason why it cannot be used on this machine."""
    return {name: found if isinstance(found := load(name), str) else None for name in ORDER}


def choose(problem: Problem, wanted: str = "auto") -> Backend:
    """The first backend that takes the problem, or the one wanted.

    Raises:
        ValueError: when the wanted backend is unknown, unavailable, or refuses the problem; the message says why.
    """
    if problem.sparse and not wanted.startswith(OTHERS):
        raise ValueError(f"backend {wanted!r} takes dense tensors; use backend='{OTHERS}NAME', or .to_dense()")
    if wanted == "auto":
        for name in ORDER if problem.device.type == "cuda" else ORDER[1:]:
            backend = load(name)
            if not isinstance(backend, str) and backend.refuses(problem) is None:
                return backend
    if wanted.startswith(OTHERS):
        backend = other(wanted)
    elif wanted in ORDER:
        backend = load(wanted)
    else:
        raise ValueError(f"unknown backend {wanted!r}; there are auto, {', '.join(ORDER)}, {OTHERS}NAME")
    reason = backend if isinstance(backend, str) else backend.refuses(problem)
    if reason is not None:
        raise ValueError(f"backend {wanted!r} cannot be used: {reason}")
    return cast(Backend, backend)
