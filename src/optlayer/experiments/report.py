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

What is finished is not run again, and what was interrupted goes on. Every section says which command, seeds, machine
and commit its numbers are from; they are kept in `docs/results`, from which `optlayer report docs/results docs` writes
the page again. Durations are by the clock, beside whatever else the machine did; only figs. 1 and 2 measure time.
"""

KEPT = ("config.json", "results.json")
"""What the page is made from."""


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


def copy(file: Path, target: Path) -> None:
    """Copy a file to where it may be already."""
    if file.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def write(runs: Path, docs: Path, modules: dict[str, ModuleType]) -> Path:
    """Write `experiments.md` and `img/experiments/` into `docs`, from the run folders `runs/NAME`.

    An experiment of several runs keeps them in folders below its own. Options and results are copied to
    `docs/results`; those that lie there already stand for an experiment of which `runs` has none. Without either it is
    left out.

    Raises:
        Mistake: there are no results at all.
    """
    sections: list[str] = []
    table: list[Row] = []
    for name, module in modules.items():
        base = next((base for base in (runs, docs / "results") if any((base / name).rglob("results.json"))), None)
        if base is None:
            continue
        folders = sorted(path.parent for path in (base / name).rglob("results.json"))
        table += module.compare(base / name) if hasattr(module, "compare") else []
        sections.append(module.report(base / name).strip())
        sections += [provenance(name, module, folder) for folder in folders]
        for each in (folder / file for folder in folders for file in KEPT):
            copy(each, docs / "results" / each.relative_to(base))
        for picture in sorted((runs / name).rglob("*.png")):
            own = "-".join(picture.relative_to(runs).parts)
            copy(picture, docs / "img" / "experiments" / own)
    if not sections:
        raise Mistake(f"There are no results in {runs}: `optlayer paper --out {runs}` makes them.")
    page = docs / "experiments.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join([INTRODUCTION.strip(), markdown(table).strip(), *sections]) + "\n")
    return page
