"""The command line: `optlayer info`, and a subcommand for each experiment."""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import torch

import optlayer

try:
    import rich.console
    import rich.table
    import typer

    from optlayer import experiments
except ImportError as missing:  # the library does without; the console script exists all the same
    reason = missing.name

    def app() -> None:
        sys.exit(f"The command line needs `{reason}`: pip install 'optlayer[experiments]'")

else:
    app = typer.Typer(
        help="Optimisation as a layer: the experiments of the OptNet paper (Amos and Kolter, 2017), from data to"
        " pictures.\n\nStart with `optlayer sudoku`. Every experiment writes a folder with its options, metrics,"
        " checkpoints and pictures; `optlayer COMMAND --help` lists its options.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_show_locals=False,
        add_completion=False,
    )

    def found() -> dict[str, ModuleType]:
        """Every module of `optlayer.experiments` that can be run, by its name."""
        names = [module.name for module in pkgutil.iter_modules(experiments.__path__)]
        modules = {name: importlib.import_module(f"optlayer.experiments.{name}") for name in names}
        return {name: module for name, module in modules.items() if hasattr(module, "main")}

    @app.command()
    def info() -> None:
        """Versions, devices, and which backends can be used here (and why others cannot)."""
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        table = rich.table.Table(show_header=False)
        table.add_row("optlayer", optlayer.__version__)
        table.add_row("torch", torch.__version__)
        table.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
        table.add_row("CPU cores", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads")
        table.add_row("CUDA device", gpu)
        for name, why_not in optlayer.available().items():
            table.add_row(f"backend {name}", "[green]available[/]" if why_not is None else f"no: {why_not}")
        rich.console.Console().print(table)

    @app.command()
    def paper(
        out: Annotated[Path, typer.Option(help="Folder; a run found there is continued.")] = Path("runs/paper"),
        full: Annotated[bool, typer.Option("--full", help="The sizes of the paper, not a short version.")] = False,
        only: Annotated[list[str] | None, typer.Option(help="Only this experiment (may be repeated).")] = None,
        report: Annotated[Path | None, typer.Option(help="Write the report into this docs folder.")] = None,
    ) -> None:
        """Run every experiment of the paper, one after another, and write a report of the results."""
        from optlayer.experiments import report as reporting

        modules = {name: module for name, module in found().items() if hasattr(module, "paper")}
        for name, module in modules.items():
            if not only or name in only:
                module.paper(out / name, full)
        reporting.write(out, report or out, modules)

    for name, module in found().items():
        app.command(name)(module.main)
