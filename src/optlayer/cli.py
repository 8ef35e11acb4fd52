"""The command line: `optlayer info`, and a subcommand for each experiment."""

from __future__ import annotations

import functools
import importlib
import inspect
import multiprocessing
import os
import pkgutil
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch

import optlayer
from optlayer.backends import cpu, qpsolvers

try:
    import typer

    from optlayer import experiments
    from optlayer.experiments import harness
    from optlayer.experiments import report as reporting
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

    def say_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"optlayer {optlayer.__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", callback=say_version, is_eager=True, help="Print the version and end.")
        ] = False,
    ) -> None:
        pass

    def command(main: Callable[..., None], name: str) -> Callable[..., None]:
        """`main` as a command: a mistake ends it with one sentence and code 2, Ctrl-C with code 130.

        `--resume` is checked here, where one can tell which options were given.
        """

        @functools.wraps(main)
        def run(context: typer.Context, **options: Any) -> None:
            given = {key: value for key, value in options.items()
                     if getattr(context.get_parameter_source(key), "name", "") == "COMMANDLINE" and key != "resume"}
            try:
                if options.get("resume"):
                    harness.check_resume(name, options["resume"], given)
                main(**options)
            except harness.Mistake as mistake:
                typer.echo(f"optlayer {name}: {mistake}", err=True)
                raise typer.Exit(2) from None
            except OSError as error:
                if error.filename is None:  # no file's: a bug, or a connection
                    raise
                typer.echo(f"optlayer {name}: {error.filename}: {error.strerror}.", err=True)
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                raise typer.Exit(130) from None

        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        signature = inspect.signature(main, eval_str=True)
        parameters = {"context": context, **signature.parameters}
        run.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {key: each.annotation for key, each in parameters.items()}
        return run

    def found() -> dict[str, ModuleType]:
        """Every module of `optlayer.experiments` that can be run, by its name, in the paper's order."""
        names = [module.name for module in pkgutil.iter_modules(experiments.__path__)]
        names.sort(key=lambda name: experiments.ORDER.index(name) if name in experiments.ORDER else len(names))
        modules = {name: importlib.import_module(f"optlayer.experiments.{name}") for name in names}
        return {name: module for name, module in modules.items() if hasattr(module, "main")}

    def parts(only: list[str] | None = None) -> dict[str, ModuleType]:
        """Those that belong to `optlayer paper`, or the ones asked for."""
        modules = {name: module for name, module in found().items() if hasattr(module, "paper")}
        unknown = [name for name in only or () if name not in modules]
        if unknown:
            raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(modules)}", param_hint="--only")
        return {name: module for name, module in modules.items() if not only or name in only}

    def info() -> None:
        """Versions, devices, and which backends can be used here (and why others cannot)."""
        pairs = [
            ("optlayer", optlayer.__version__),
            ("torch", torch.__version__),
            ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
            ("CPU cores", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"),
            ("CUDA device", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
        ]
        for name, why_not in optlayer.available().items():
            variant = f" ({cpu.variant()} code)" if name == "cpu" and why_not is None else ""
            pairs.append((f"backend {name}", f"available{variant}" if why_not is None else f"no: {why_not}"))
        others = qpsolvers.unavailable() or ", ".join(qpsolvers.solvers()) or "none installed"
        pairs.append((f"backend {qpsolvers.PREFIX}NAME", others))
        harness.console().print(harness.facts(pairs))

    def part(name: str, folder: Path, full: bool) -> None:
        """One experiment of `optlayer paper`."""
        found()[name].paper(folder / name, full)

    def paper(
        out: Annotated[Path | None, typer.Option(help="Folder; default: runs/paper, or runs/paper-full.")] = None,
        full: Annotated[bool, typer.Option("--full", help="The sizes of the paper, not a short version.")] = False,
        only: Annotated[list[str] | None, typer.Option(help="Only this experiment (may be repeated).")] = None,
        report: Annotated[Path | None, typer.Option(help="Write the report into this docs folder.")] = None,
        processes: Annotated[int, typer.Option(min=1, help="Experiments at a time, with one thread each.")] = 1,
    ) -> None:
        """Run every experiment of the paper, then write a report: about two hours with two processes on two cores.

        What is finished is not run again, and what was interrupted goes on, in the same --out. Times are measured
        first, with nothing beside. Fig. 2 includes Gurobi and qpth where they are installed; MNIST is downloaded once,
        or read from the folder OPTLAYER_DATA.
        """
        folder = out or Path("runs/paper-full" if full else "runs/paper")
        console = harness.console()
        todo = []
        for name in parts(only):
            finished = (folder / name / "results.json").exists()
            console.print(f"[bold]{name}[/] {'is finished:' if finished else 'into'} {folder / name}")
            todo += [] if finished else [name]
        alone = len(todo) if processes == 1 else todo[:1].count("speed")
        try:
            for name in todo[:alone]:
                part(name, folder, full)
            if todo[alone:]:
                fresh = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(processes, fresh, torch.set_num_threads, (1,)) as pool:
                    for each in [pool.submit(part, name, folder, full) for name in todo[alone:]]:
                        each.result()
        except KeyboardInterrupt:
            console.print("The same `optlayer paper` goes on with what was interrupted and the rest.")
            raise
        console.print(f"The report is [bold]{reporting.write(folder, report or folder, parts())}[/]")

    def report(
        runs: Annotated[Path, typer.Argument(help="Folder of `optlayer paper`.")] = Path("runs/paper"),
        docs: Annotated[Path | None, typer.Argument(help="Where to write; default: the folder itself.")] = None,
    ) -> None:
        """Write `experiments.md` and its pictures from the results of `optlayer paper` that are there."""
        harness.console().print(f"The report is [bold]{reporting.write(runs, docs or runs, parts())}[/]")

    for main in (info, paper, report):
        app.command(main.__name__)(command(main, main.__name__))
    for name, module in found().items():
        app.command(name, rich_help_panel="Experiments")(command(module.main, name))


if __name__ == "__main__":
    app()
