"""Turns the results of the experiments into one Markdown page with pictures.

Everything in the page comes from the run folders: no number is written by hand.
"""

from __future__ import annotations

import inspect
import shlex
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from optlayer.experiments.harness import Mistake, Row, markdown, read_json

INTRODUCTION = """# Experiments

The experiments of the OptNet paper (Amos and Kolter, ICML 2017), in its order, and what goes beyond it. This command
runs them all and writes this page from their results, and from nothing else; `--full` takes the paper's sizes:

```bash
optlayer paper --report docs
```
"""


def option(name: str, value: Any) -> list[str]:
    """An option as words of a command line."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [word for each in value for word in option(name, each)]
    return [flag, Path(value).name if isinstance(value, str) else str(value)]  # a folder of this machine says nothing


def command(name: str, module: ModuleType, options: Row) -> str:
    """The command that repeats a run: options that are not the defaults."""
    defaults = {key: each.default for key, each in inspect.signature(module.main).parameters.items()}
    words = [word for key, value in options.items() if value != defaults.get(key) for word in option(key, value)]
    return shlex.join(["optlayer", name.replace("_", "-"), *words])


def duration(seconds: float) -> str:
    """Seconds as one reads them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def provenance(name: str, module: ModuleType, folder: Path) -> str:
    """Where the results of a folder come from: a line and a command."""
    config, results = read_json(folder / "config.json"), read_json(folder / "results.json")
    options, machine = config["options"], config["machine"]
    first, count = options.get("seed", 0), options.get("seeds", 1)
    facts = [f"seed {first}" if count == 1 else f"seeds {first} to {first + count - 1}"]
    counts = (f"{machine[what]} {what if machine[what] != 1 else what[:-1]}" for what in ("cores", "threads"))
    facts.append(machine["gpu"] or ", ".join((machine["processor"], *counts)))
    facts.append(f"torch {machine['torch']}")
    if results.get("seconds"):
        facts.append(duration(results["seconds"]))
    if machine.get("commit"):
        facts.append(f"commit {machine['commit']}")
    return f"```bash\n{command(name, module, options)}\n```\n\n*{' · '.join(facts)}*"


def write(runs: Path, docs: Path, modules: dict[str, ModuleType]) -> Path:
    """Write `experiments.md` and `img/experiments/` into `docs`, from the run folders `runs/NAME`.

    An experiment without results is left out; one of several runs keeps them in folders below its own.

    Raises:
        Mistake: there are no results at all.
    """
    sections: list[str] = []
    table: list[Row] = []
    for name, module in modules.items():
        folders = sorted(path.parent for path in (runs / name).rglob("results.json"))
        if not folders:
            continue
        table += module.compare(runs / name) if hasattr(module, "compare") else []
        sections.append(module.report(runs / name).strip())
        sections += [provenance(name, module, folder) for folder in folders]
        for picture in sorted((runs / name).rglob("*.png")):
            target = docs / "img" / "experiments" / f"{name}-{picture.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, target)
    if not sections:
        raise Mistake(f"There are no results in {runs}: `optlayer paper --out {runs}` makes them.")
    page = docs / "experiments.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join([INTRODUCTION.strip(), markdown(table).strip(), *sections]) + "\n")
    return page
