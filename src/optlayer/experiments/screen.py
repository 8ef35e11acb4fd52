"""What a run shows: bars and tables for a terminal of any width, plain lines without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from optlayer.experiments.files import Row


class Shown(Protocol):
    """What of a run is needed here."""

    console: Console
    resumable: bool

    @property
    def first(self) -> bool: ...
    @property
    def resume_command(self) -> str: ...
    def say(self, text: str) -> None: ...


def console(quiet: bool = False) -> Console:
    """The terminal or, where there is none, a stream whose lines are as long as they are."""
    made = Console(quiet=quiet)
    return made if made.is_terminal else Console(quiet=quiet, width=10_000, highlight=False)


@contextmanager
def stoppable(run: Shown) -> Iterator[None]:
    """Ctrl-C within says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        run.say("")
        if run.resumable:
            run.say(f"Stopped; what is finished is kept. To go on: {run.resume_command}")
        else:
            run.say("Stopped.")
        raise


class _Loss(ProgressColumn):
    """The loss of the last step, always as wide, so that the bar stays where it is."""

    def render(self, task: Task) -> Text:
        loss = task.fields.get("loss")
        return Text("" if loss is None else f"loss {loss:.2e}".rjust(13))


@contextmanager
def bar(run: Shown) -> Iterator[Progress]:
    """A progress bar for the jobs of a run, in a line that never breaks; without a terminal, none.

    The line leaves room for the ^C that a terminal shows; a full one would break there, and stand twice.
    """
    width = run.console.width
    more: list[ProgressColumn] = [_Loss(table_column=Column(width=13, no_wrap=True))] if width >= 70 else []
    more += [BarColumn(bar_width=20)] if width >= 100 else []
    more += [MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    taken = 34 + 14 * (width >= 70) + 21 * (width >= 100)  # by the other columns, and ^C
    name = Column(width=max(8, min(44, width - taken)), no_wrap=True, overflow="ellipsis")
    columns = [TextColumn("{task.description}", justify="left", table_column=name), *more]
    silent = not run.first or not run.console.is_terminal
    with stoppable(run), Progress(*columns, console=run.console, disable=silent) as progress:
        yield progress


def shown(value: Any, digits: int = 4) -> str:
    """A value of a results table as text."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "–" if value is None else str(value)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and, where there are several, standard deviation of what the seeds gave, as text."""
    mean = f"{float(np.mean(values)):.{digits}g}"
    if len(values) < 2:
        return mean
    deviation = float(np.std(values, ddof=1))
    return f"{mean} ± {deviation if deviation > 1e-12 * abs(np.mean(values)) else 0:.2g}"  # equal values, rounded


def facts(pairs: list[tuple[str, str]]) -> Table:
    """Names and values, one below another."""
    made = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 0, 0, 2))
    for pair in pairs:
        made.add_row(*map(escape, pair))
    return made


class table:
    """A table for the terminal that never cuts a value: where it is too wide, each row becomes a block of lines.

    Without a terminal it is text in columns.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.columns = list(dict.fromkeys(key for row in rows for key in row))
        self.names = [key.replace("_", " ") for key in self.columns]
        self.rows = [[shown(row.get(key), 3) for key in self.columns] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not console.is_terminal:
            lines = [self.names, *self.rows]
            widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
            for line in lines:
                yield Text("  ".join(map(str.ljust, line, widths)).rstrip())
            return
        made = Table(*(Column(name.replace(" ", "\n"), no_wrap=True) for name in self.names))
        for row in self.rows:
            made.add_row(*map(escape, row))
        if console.measure(made, options=options.update_width(10_000)).maximum <= options.max_width:
            yield made
            return
        for row in self.rows:
            yield Text(row[0], style="bold")
            yield facts([pair for pair in zip(self.names[1:], row[1:], strict=True) if pair[1] != "–"])


def markdown(rows: list[Row]) -> str:
    """A table for a document."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[key.replace("_", " ") for key in columns], ["---"] * len(columns)]
    lines += [[shown(row.get(key)) for key in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
