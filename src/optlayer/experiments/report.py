"""Turns the results of the experiments into one Markdown page with pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType


def write(runs: Path, docs: Path, modules: dict[str, ModuleType]) -> Path:
    """Write `experiments.md` and `img/experiments/` into `docs`, from the run folders `runs/NAME`."""
    text = ["# Experiments", "", "Written by `optlayer paper` from the results of the runs; edited by nobody.", ""]
    for name, module in modules.items():
        folder = runs / name
        if not any(folder.rglob("results.json")):
            continue
        text += [module.report(folder).strip(), ""]
        for picture in sorted(folder.rglob("*.png")):
            target = docs / "img" / "experiments" / f"{name}-{picture.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, target)
    page = docs / "experiments.md"
    page.write_text("\n".join(text))
    return page
