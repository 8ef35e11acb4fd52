"""Options and parameters of the whole suite."""

from __future__ import annotations

import pytest

from optlayer import backends


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", help="test only this backend (may be repeated)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `backend` runs once for each backend that is available."""
    if "backend" in metafunc.fixturenames:
        names = [name for name, reason in backends.available().items() if reason is None]
        wanted = metafunc.config.getoption("--backend")
        metafunc.parametrize("backend", [name for name in names if not wanted or name in wanted])
