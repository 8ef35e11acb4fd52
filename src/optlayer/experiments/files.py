"""Files of a run: written whole or not at all, read with a sentence for what is wrong with them."""

from __future__ import annotations

import csv
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import typer

Row = dict[str, Any]


class Mistake(Exception):
    """What whoever started the run can mend, in one sentence; on the command line it ends with exit code 2."""


def positive(value: float | None) -> float | None:
    """The callback of an option that is a finite number above zero."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value} is not a number above 0.")
    return value


def publish(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path` and give it that name: whoever reads sees the old file or the new one.

    Raises:
        Mistake: the file cannot be written; what was there before is still there.
    """
    beside = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())  # or a crash of the machine may leave an empty file with the new name
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch calls a full disk a RuntimeError
        with suppress(OSError):
            beside.unlink()
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise Mistake(f"{path} cannot be written ({why}); what was there before is kept.") from error


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an npz file.

    Raises:
        Mistake: there is no such file, it is none, it lacks an array, or one holds Python objects.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise Mistake(f"{path} is no npz file: it holds a single array.")
        with file:
            absent = [name for name in names if name not in file]
            if absent:
                raise Mistake(f"{path} lacks the array `{absent[0]}`; it holds {', '.join(file) or 'none'}.")
            return [file[name] for name in names]
    except FileNotFoundError:
        raise Mistake(f"There is no file {path}.") from None
    except ValueError as error:
        if "pickle" in str(error) and zipfile.is_zipfile(path):
            raise Mistake(f"{path} holds Python objects, which are not loaded: save arrays of numbers.") from None
        raise Mistake(f"{path} is no npz file.") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Mistake(f"{path} cannot be read as an npz file ({error}).") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        Mistake: there is no such file, or it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise Mistake(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise Mistake(f"{path} is damaged ({error}).") from None


def read_results(folder: Path) -> list[Row]:
    """The rows of `results.json`, and of those in the folders below: an experiment may have several runs."""
    return [row for path in sorted(folder.rglob("results.json")) for row in read_json(path)["results"]]


def read_metrics(folder: Path) -> list[Row]:
    """The rows of `metrics.csv`, numbers as numbers."""

    def value(text: str) -> Any:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    with (folder / "metrics.csv").open() as file:
        return [{key: value(text) for key, text in row.items()} for row in csv.DictReader(file)]
