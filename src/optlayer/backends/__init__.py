"""The backends in order of preference, and the choice among them."""

from __future__ import annotations

import importlib
from typing import cast

from optlayer.backends.base import FITS_DENSE, Backend, Stacked
from optlayer.core.settings import Settings
from optlayer.problem import Problem

ORDER = ("cuda", "cpu", "reference")
_added: dict[str, Backend] = {}
OTHERS = "qpsolvers:"
"""Prefix of the names of other solvers."""
_loaded: dict[str, Backend | str] = {}


def register(backend: Backend) -> None:
    """Make a backend known by its name; "auto" chooses it, before ours, if its `automatic` says so.

    Raises:
        ValueError: if the name is one of ours.
    """
    if backend.name in ("auto", *ORDER) or backend.name.startswith(OTHERS):
        raise ValueError(f"{backend.name!r} is the name of a backend of this package")
    _added[backend.name] = backend


def names() -> tuple[str, ...]:
    """All backends, in order of preference."""
    return (*(name for name in _added), *ORDER)


def load(name: str) -> Backend | str:
    """The backend, or why it is unavailable."""
    if name in _added:
        return _added[name].unavailable() or _added[name]
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
    return {name: found if isinstance(found := load(name), str) else None for name in names()}


def checked(backend: Backend, problem: Problem, settings: Settings) -> Backend:
    """The backend, if it can do what the settings ask of this problem.

    Raises:
        ValueError: when it does not know the closest point.
    """
    if settings.infeasible == "closest":
        large = problem.sparse and problem.n + problem.m + problem.p > FITS_DENSE
        if large or not backend.closest:
            size = f"sparse matrices of more than {FITS_DENSE} rows and columns"
            what, needs = (size, "a smaller problem") if large else (f"backend {backend.name!r}", 'backend="cpu"')
            raise ValueError(f'Settings(infeasible="closest") needs {needs}; it is not there for {what}')
    return backend


def choose(problem: Problem, wanted: str = "auto") -> Backend:
    """The first backend that takes the problem, or the one wanted.

    Raises:
        TypeError: when the name is not a string.
        ValueError: when the wanted backend is unknown, unavailable, or refuses the problem; the message says why.
    """
    known: Backend | None = problem.structure.plans.get((wanted, len(_added)))  # asked before
    if known is not None:
        return known
    backend = _choose(problem, wanted)
    if problem.structure.two_sided and not backend.two_sided:
        backend = Stacked(backend)
    problem.structure.plans[wanted, len(_added)] = backend
    return backend


def _choose(problem: Problem, wanted: str) -> Backend:
    if wanted == "auto":
        for name in names() if problem.device.type == "cuda" else [name for name in names() if name != "cuda"]:
            backend = load(name)
            if not isinstance(backend, str) and backend.automatic and _refusal(backend, problem) is None:
                return backend
        raise ValueError(f"no backend takes the problem: {_refusal(cast(Backend, load('reference')), problem)}")
    if not isinstance(wanted, str):
        raise TypeError(f"backend is the name of one, not a {type(wanted).__name__}")
    if wanted.startswith(OTHERS):
        backend = other(wanted)
    elif wanted in names():
        backend = load(wanted)
    else:
        raise ValueError(f"unknown backend {wanted!r}; there are auto, {', '.join(names())}, {OTHERS}NAME")
    reason = backend if isinstance(backend, str) else _refusal(backend, problem)
    if reason is not None:
        raise ValueError(f"backend {wanted!r} cannot be used: {reason}")
    return cast(Backend, backend)


def _refusal(backend: Backend, problem: Problem) -> str | None:
    if problem.sparse and not backend.sparse:
        return "it takes dense matrices"
    return backend.refuses(problem)
