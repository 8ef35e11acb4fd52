"""The worked examples run, in a few steps, and the notebooks of the site are made from them."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib").use("agg")

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    if "pytorch_lightning" in example.read_text():
        pytest.importorskip("pytorch_lightning")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # no C++ to compile
    shown = []

    def show() -> None:
        shown.extend(plt.get_fignums())
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    source, changed = re.subn(r"^steps = \d+$", "steps = 2", example.read_text(), flags=re.MULTILINE)
    assert changed == 1
    dtype = torch.get_default_dtype()
    try:
        names: dict[str, Any] = {}
        exec(compile(source, example, "exec"), names)
    finally:
        torch.set_default_dtype(dtype)
    assert shown


def cells(source: str) -> list[tuple[str, str]]:
    """The cells of a script in the percent format: kind and text."""
    found = []
    for head, body in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n)*)", source, flags=re.MULTILINE):
        if "markdown" in head:
            found.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()))
        else:
            found.append(("code", body.strip()))
    return found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_notebook_is_the_example_with_its_pictures(example: Path) -> None:
    path = ROOT / "docs" / "examples" / f"{example.stem}.ipynb"
    assert path.stat().st_size < 300_000
    notebook = json.loads(path.read_text())
    written = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    assert written == cells(example.read_text()), "run `make notebooks`"
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
