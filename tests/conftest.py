"""Options and parameters of the whole suite."""

from __future__ import annotations

import importlib.util
import re
import runpy
import signal
from pathlib import Path

import pytest

from optlayer import backends

EXAMPLE = Path(__file__).parents[1] / "docs" / "extending.md"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", help="test only this backend (may be repeated)")
    parser.addoption("--register", action="append", default=[], help="a Python file that registers a backend")


def pytest_configure(config: pytest.Config) -> None:
    """The backend of the documentation, and others that are asked for, go through the suite as ours do. Ctrl-C works in
    tests and in the programs that they start, also where the suite runs in a shell's background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if importlib.util.find_spec("daqp"):
        block = re.search(r"<!-- backend example -->\s+```python\n(.*?)```", EXAMPLE.read_text(), re.DOTALL)
        assert block is not None, "the backend example is missing in docs/extending.md"
        exec(compile(block.group(1), str(EXAMPLE), "exec"), {"__name__": "example"})
    for path in config.getoption("--register"):
        runpy.run_path(path, run_name="registered")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `backend` runs once for each backend that is available."""
    if "backend" in metafunc.fixturenames:
        names = [name for name, reason in backends.available().items() if reason is None]
        wanted = metafunc.config.getoption("--backend")
        metafunc.parametrize("backend", [name for name in names if not wanted or name in wanted])
