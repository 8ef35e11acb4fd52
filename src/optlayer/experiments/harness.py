"""What the experiments share: the run folder, the training loop, the progress bar, pictures and tables.

Devices, processes and checkpoints are Lightning Fabric's business. Started by `torchrun`, the same commands train
data-parallel: `batch` is the global batch, each process takes its share of it.
"""

from __future__ import annotations

import atexit
import csv
import gc
import itertools
import json
import math
import os
import platform
import re
import shlex
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import torch
import typer
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
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DistributedSampler, TensorDataset

import optlayer

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from matplotlib.figure import Figure

Row = dict[str, Any]
PLACES = {"out", "resume", "accelerator", "devices"}
"""Options that say where to run, not what."""
Measures = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""From outputs and targets of B examples to named figures, each of shape (B,)."""

INK = "#808080"
"""Of text, axes and what stands for the truth: as readable on a dark page as on a white one."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
"""Distinguishable by colour-blind readers too (Okabe and Ito)."""


# --- mistakes -------------------------------------------------------------------------------------------------------


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


# --- the run and its folder -----------------------------------------------------------------------------------------


NOTE = (
    "A model is the one of its best epoch, by the loss on validation examples or, without them, in training; its"
    " figures are means over all examples. Every epoch's are in metrics.csv, those of training as they were while the"
    " model learned."
)
"""Why the figures of a table may be none of the last row of `metrics.csv`."""

_taken: dict[Path, filelock.BaseFileLock] = {}
"""The folders of this process. A lock goes with its process, however that ends."""


class Run:
    """One run: its folder, its processes, its console.

    The folder holds `config.json` (what was asked), `metrics.csv` (a row per model, seed and epoch), `results.json`
    (what came out), pictures, and `checkpoints/`. It is made when something is first put into it: a run that fails
    before, for its data say, leaves none.

    Args:
        name: the experiment.
        config: every option that determines the result.
        folder: where to write; None makes `runs/NAME-DATE-TIME`.
        accelerator: "auto" (CUDA when there is one), "cpu" or "cuda".
        devices: processes on this machine; under `torchrun` its number of processes is taken.

    Raises:
        Mistake: the devices are not there, or the folder cannot be made, is in use, or holds another run.
    """

    def __init__(
        self,
        name: str,
        config: dict[str, Any],
        folder: Path | None = None,
        accelerator: str = "auto",
        devices: int = 1,
    ) -> None:
        from lightning_fabric import Fabric  # takes seconds, which `--help` need not

        gpus = torch.cuda.device_count()
        if accelerator == "auto":
            accelerator = "cuda" if gpus else "cpu"
        if accelerator not in ("cpu", "cuda"):
            raise Mistake(f"The accelerator {accelerator!r} is none of auto, cpu and cuda.")
        if accelerator == "cuda" and not gpus:
            raise Mistake("There is no CUDA device here: leave --accelerator out, or take cpu.")
        if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
        if accelerator == "cuda" and devices > gpus:
            raise Mistake(f"{devices} devices are asked for, and there are {gpus}.")
        nodes = int(os.environ.get("WORLD_SIZE", devices)) // devices
        strategy = "ddp" if devices * nodes > 1 else "auto"
        self.fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
        self.fabric.launch()
        atexit.register(_leave_group)
        self.name, self.began = name, time.perf_counter()
        self.console = console(quiet=not self.fabric.is_global_zero)
        self.resumable = "resume" in config
        self.config = {"experiment": name, "options": {k: v for k, v in config.items() if k not in PLACES}}
        default = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._folder: Path = self.fabric.broadcast(folder or default)
        self._made = False
        self.histories: list[list[Row]] = []
        # The process that writes judges the folder for all: one that stopped alone would leave the others waiting.
        why_not = self.fabric.broadcast(self._look() if self.first else None)
        if why_not:
            raise Mistake(why_not)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.fabric.is_global_zero

    def _look(self) -> str | None:
        """Why the run cannot have its folder, or None."""
        above = next(each for each in (self._folder, *self._folder.absolute().parents) if each.exists())
        if not above.is_dir():
            return f"{self._folder} cannot be a folder: {above} is a file."
        if not os.access(above, os.W_OK):
            return f"{self._folder} cannot be made: {above} may not be written to."
        if not self._folder.exists():
            return None
        if why_not := self._take():
            return why_not
        path = self._folder / "config.json"
        if path.exists():
            found = read_json(path)
            if {key: found.get(key) for key in self.config} != json.loads(json.dumps(self.config, default=str)):
                return f"{self._folder} holds a run with other options: choose another --out."
        return None

    def _take(self) -> str | None:
        """Make the folder this process's own, until it ends: None, or why that cannot be."""
        path = self._folder.resolve()
        if path in _taken:
            return None
        lock = filelock.FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return f"{self._folder} is in use by another run, which has not ended: choose another --out."
        except OSError as error:
            return f"{self._folder} may not be written to ({error.strerror})."
        _taken[path] = lock
        return None

    @property
    def folder(self) -> Path:
        """Where to write."""
        if self.first and not self._made:
            self._made = True
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Mistake(f"{self._folder} cannot be made ({error.strerror}).") from error
            if why_not := self._take():
                raise Mistake(why_not)
            self.write_json("config.json", {**self.config, "machine": machine(self.fabric.device)})
        return self._folder

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=1, default=str) + "\n"
        publish(self.folder / name, lambda path: path.write_text(text))

    def write_metrics(self) -> None:
        """Write every history again: after a resumed run the file reads as if there had been no break."""
        rows = [row for history in self.histories for row in history]
        if not self.first or not rows:
            return
        columns = list(dict.fromkeys(key for row in rows for key in row))

        def write(path: Path) -> None:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)

        publish(self.folder / "metrics.csv", write)

    def save(self, figure: Figure, name: str) -> None:
        """Write a picture into the folder."""
        if self.first:
            figure = without_page(figure)
            publish(self.folder / name, lambda path: figure.savefig(path, format="png", dpi=110, bbox_inches="tight"))

    def finish(self, results: list[Row], shown: list[Row] | None = None, **more: Any) -> None:
        """Write `results.json` and print the results, or what is to be shown of them, as a table."""
        if not self.first:
            return
        trained = sum(history[-1]["seconds"] for history in self.histories)  # counts the time before a break, too
        seconds = max(time.perf_counter() - self.began, trained)
        self.write_json("results.json", {"experiment": self.name, "results": results, "seconds": seconds, **more})
        self.console.print(table(results if shown is None else shown))
        if any("epoch" in row for row in results):
            self.console.print(NOTE, highlight=False)
        self.say(f"Everything is in {self.folder}")

    @property
    def resume_command(self) -> str:
        """What continues the run."""
        return shlex.join(["optlayer", self.name, "--resume", str(self.folder)])

    def say(self, text: str) -> None:
        """Print a line, in the first process, at once and without breaking it."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


def _leave_group() -> None:
    """Leave the group of processes, if there is one: its threads, still running, may abort a process that ends.

    Models first: one that is the last to hold the group waits for those threads and keeps the GIL they may need.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def machine(device: torch.device) -> Row:
    """What the times depend on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "optlayer": optlayer.__version__,
        "commit": commit(),
    }


def processor() -> str:
    """Its name; Linux tells it in a file only."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this file's repository, with a mark if files differ from it; None when it lies in none."""
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None

    if git("ls-files", "--error-unmatch", __file__) is None:  # an installed package may lie in another's repository
        return None
    return (git("describe", "--always", "--dirty") or "").strip() or None


def resumed(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the run in `folder`, to call the same experiment again and continue there."""
    return options | read_json(folder / "config.json")["options"] | {"out": folder, "resume": None}


def check_resume(name: str, folder: Path, given: dict[str, Any]) -> None:
    """Whether the run in `folder` can be continued by the experiment `name`, to which the options `given` were given.

    Raises:
        Mistake: there is no run, it is another experiment's, or it has other options.
    """
    if not (folder / "config.json").exists():
        raise Mistake(f"There is no run to continue in {folder}: it has no config.json.")
    found = read_json(folder / "config.json")
    if found.get("experiment") != name:
        raise Mistake(f"{folder} holds a run of {found.get('experiment')}, not of {name}.")
    if "out" in given:
        raise Mistake("A run is continued in its own folder: give --resume or --out, not both.")
    for key, value in given.items():
        if key in found["options"] and found["options"][key] != json.loads(json.dumps(value, default=str)):
            flag = "--" + key.replace("_", "-")
            raise Mistake(f"A run is continued with its own options: in {folder}, {flag} is {found['options'][key]}.")


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


def read_metrics(folder: Path) -> list[Row]:
    """The rows of `metrics.csv`, numbers as numbers."""

    def value(text: str) -> Any:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    with (folder / "metrics.csv").open() as file:
        return [{key: value(text) for key, text in row.items()} for row in csv.DictReader(file)]


# --- training -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Training, test and (optionally) validation examples: inputs and targets as whole tensors."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor] | None = None


def constant(progress: float) -> float:
    """A rate that stays."""
    return 1.0


def cosine(progress: float) -> float:
    """A rate that falls to zero along a half cosine."""
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(progress, 1.0)))))


def warm(progress: float) -> float:
    """A rate that rises during the first 5 %, then falls to zero along a half cosine."""
    return min(1.0, 20 * progress + 0.05) * cosine(progress)


@dataclass
class Job:
    """One model to train: how, and how to judge it.

    `measures` gives per-example figures; the one called "loss" is minimised, in the mean. `penalty` is added to it.
    `schedule` maps the progress of the training (0 to 1) to a factor on the optimiser's rates. Gradients longer than
    `clip` are shortened to it. `per_epoch` makes an epoch of that many examples, drawn anew for each, not of all.
    """

    name: str
    seed: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    measures: Measures
    epochs: int
    batch: int
    schedule: Callable[[float], float] = constant
    penalty: Callable[[nn.Module], Tensor] | None = None
    clip: float | None = None
    per_epoch: int | None = None
    history: list[Row] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The name of its files, without commas and blanks."""
        return f"{re.sub(r'[, ]+', '-', self.name).lower()}-seed{self.seed}"


def evaluate(
    fabric: Fabric, model: nn.Module, data: tuple[Tensor, Tensor], measures: Measures, batch: int = 250
) -> Row:
    """The mean of every measure over all examples (each process takes its share)."""
    rank, world = fabric.global_rank, fabric.world_size
    inputs, targets = (part[rank::world] for part in data)
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        for x, y in zip(inputs.split(batch), targets.split(batch), strict=True):
            for key, figure in measures(model(x.to(fabric.device)), y.to(fabric.device)).items():
                sums[key] = sums.get(key, 0) + figure.double().sum()
    model.train(was_training)
    return means(fabric, sums, len(data[0]))


def means(fabric: Fabric, sums: dict[str, Tensor], count: int) -> Row:
    """Sums of figures over all processes, divided by the number of examples."""
    total = {key: fabric.all_reduce(value, reduce_op="sum") for key, value in sums.items()}
    return {key: float(value) / count for key, value in total.items()}  # type: ignore[arg-type]


def save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, from all processes; while the new one is written, the one before it is `before(path)`."""
    if not fabric.is_global_zero:
        fabric.save(path, state)  # waits for the one that writes
        return
    if path.exists():
        path.replace(before(path))
    publish(path, lambda part: fabric.save(part, state))


def before(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.name}.before")


def load(run: Run, path: Path, state: dict[str, Any]) -> bool:
    """Read the checkpoint at `path`, or the one before it where it is damaged; whether there is any.

    Raises:
        Mistake: there are checkpoints, and all are damaged.
    """
    found = [each for each in (path, before(path)) if each.exists()]
    for each in found:
        try:
            run.fabric.load(each)
        except Exception as error:  # whatever a damaged archive makes torch raise
            why = str(error).split("\n", 1)[0] or type(error).__name__
            run.say(f"{each} is damaged ({why}); the one before it is taken.")
            continue
        run.fabric.load(each, state)
        return True
    if found:
        raise Mistake(f"No checkpoint of {path} can be read: delete {path.parent} to train anew.")
    return False


def train(run: Run, job: Job, data: Data, progress: Progress | None = None) -> list[Row]:
    """Train `job`, from its last checkpoint if the folder has one, and leave the best model in `job.model`.

    Best is the epoch with the lowest loss on the validation examples or, if there are none, in training; the test
    examples have no say. Returns the history, one row an epoch; row 0 is the untrained model.
    """
    fabric, epochs = run.fabric, job.epochs
    if job.batch < fabric.world_size:
        raise Mistake(f"A batch of {job.batch} is too small to share among {fabric.world_size} processes.")
    if job.per_epoch and job.per_epoch < job.batch:
        raise Mistake(f"An epoch of {job.per_epoch} examples has no room for a batch of {job.batch}.")
    model, optimizer = fabric.setup(job.model, job.optimizer)
    inputs, targets = data.train
    sampler: DistributedSampler[Any] = DistributedSampler(
        TensorDataset(inputs), num_replicas=fabric.world_size, rank=fabric.global_rank, shuffle=True, seed=job.seed
    )
    batches = BatchSampler(sampler, job.batch // fabric.world_size, drop_last=False)
    length = min(len(batches), job.per_epoch // job.batch if job.per_epoch else len(batches))
    steps = length * epochs
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: job.schedule(step / steps))
    last, best = (run.folder / "checkpoints" / f"{job.key}.{which}.ckpt" for which in ("last", "best"))
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "history": job.history}
    if load(run, last, state):
        job.history = state["history"]
    run.histories.append(job.history)
    if job.history:
        run.write_metrics()  # a kill may have come between a checkpoint and its row

    def log(epoch: int, seconds: float, train: Row) -> None:
        row: Row = {"model": job.name, "seed": job.seed, "epoch": epoch, "seconds": round(seconds, 2)}
        row |= {f"train_{key}": value for key, value in train.items()}
        if data.valid:
            row |= {f"valid_{k}": v for k, v in evaluate(fabric, model, data.valid, job.measures).items()}
        row |= {f"test_{k}": v for k, v in evaluate(fabric, model, data.test, job.measures).items()}
        job.history.append(row)
        if best_epoch(job.history) == epoch:
            save(fabric, best, {"model": model})
        save(fabric, last, state)
        run.write_metrics()
        if not run.console.is_terminal:
            figures = [f"{key.replace('_', ' ')} {shown(value, 3)}" for key, value in row.items() if "_" in key]
            run.say(f"{job.name}, seed {job.seed}, epoch {epoch} of {epochs}: {', '.join(figures)}; {seconds:.0f} s")

    if not job.history:
        some = tuple(part[: job.per_epoch] for part in data.train)
        log(0, 0.0, evaluate(fabric, model, some, job.measures))  # type: ignore[arg-type]
    done = len(job.history) - 1
    task = progress.add_task(f"{job.name}, seed {job.seed}", total=epochs * length) if progress else None
    if progress and task is not None:
        progress.update(task, completed=done * length)
    for epoch in range(done + 1, epochs + 1):
        sampler.set_epoch(epoch)
        started, sums, seen = time.perf_counter(), dict[str, Tensor](), 0
        for indices in itertools.islice(batches, length):
            chosen = torch.as_tensor(indices)
            figures = job.measures(model(inputs[chosen].to(fabric.device)), targets[chosen].to(fabric.device))
            loss = figures["loss"].mean() + (job.penalty(model) if job.penalty else 0)
            optimizer.zero_grad()
            fabric.backward(loss)
            if job.clip:
                fabric.clip_gradients(model, optimizer, max_norm=job.clip)
            optimizer.step()
            scheduler.step()
            for key, figure in figures.items():
                sums[key] = sums.get(key, 0) + figure.detach().double().sum()
            seen += len(indices)
            if progress and task is not None:
                progress.update(task, advance=1, loss=loss.item())
        seconds = job.history[-1]["seconds"] + time.perf_counter() - started
        log(epoch, seconds, means(fabric, sums, seen * fabric.world_size))
    if not load(run, best, {"model": model}):
        raise Mistake(f"{best}, the best epoch's model, is missing: delete {best.parent} to train anew.")
    if progress and task is not None:
        progress.update(task, completed=epochs * length)
    return job.history


def best_epoch(history: list[Row]) -> int:
    """The epoch with the lowest loss on validation examples or, without them, in training; the last of equal ones."""
    judge = "valid_loss" if "valid_loss" in history[0] else "train_loss"
    return int(min(reversed(history), key=lambda row: row[judge])["epoch"])


def result(run: Run, job: Job, data: Data, **more: Any) -> Row:
    """The trained model, that of its best epoch, judged on all examples: one row of the final table."""
    row: Row = {"model": job.name, **more, "seed": job.seed, "epoch": best_epoch(job.history)}
    row |= {f"train_{key}": value for key, value in evaluate(run.fabric, job.model, data.train, job.measures).items()}
    row |= {f"test_{key}": value for key, value in evaluate(run.fabric, job.model, data.test, job.measures).items()}
    return row | {"seconds": job.history[-1]["seconds"]}


def rows(jobs: list[Job]) -> list[Row]:
    """The histories of several jobs as one list."""
    return [row for job in jobs for row in job.history]


# --- telling and showing --------------------------------------------------------------------------------------------


def console(quiet: bool = False) -> Console:
    """The terminal or, where there is none, a stream whose lines are as long as they are."""
    made = Console(quiet=quiet)
    return made if made.is_terminal else Console(quiet=quiet, width=10_000, highlight=False)


@contextmanager
def stoppable(run: Run) -> Iterator[None]:
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
def bar(run: Run) -> Iterator[Progress]:
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


def figure(width: float = 8, height: float = 3.5, columns: int = 1, rows: int = 1, **more: Any) -> Any:
    """A figure and its axes, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, **more)


def without_page(figure: Figure) -> Figure:
    """The figure, fit for a page of any colour: what is black becomes grey, the background transparent."""
    from matplotlib.colors import same_color
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    drawn: list[Any] = [*figure.findobj(Line2D), *figure.findobj(Text)]
    for each in drawn:
        if same_color(each.get_color(), "black"):
            each.set_color(INK)
    for spine in figure.findobj(Spine):
        spine.set_edgecolor(INK)
    for legend in figure.findobj(Legend):
        legend.get_frame().set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(which="both", color=INK, labelcolor=INK)  # ticks come into being when they are drawn
    figure.patch.set_alpha(0)
    return figure


def epochs_axis(axis: Any) -> None:
    """A horizontal axis of epochs: ticks are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch")


def curves(axis: Any, rows: list[Row], measure: str, splits: tuple[str, ...] = ("train", "test")) -> None:
    """One line per model, seed and split; a colour per model, training dashed. A single epoch is a dot."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model, seed in dict.fromkeys((row["model"], row["seed"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["seed"]) == (model, seed)]
        first = seed == min(row["seed"] for row in rows if row["model"] == model)
        for split in splits:
            axis.plot(
                [row["epoch"] for row in mine],
                [row[f"{split}_{measure}"] for row in mine],
                color=COLOURS[models.index(model) % len(COLOURS)],
                linestyle="-" if split == "test" else "--",
                marker="o" if len(mine) < 5 else None,
                markersize=4,
                alpha=1.0 if first else 0.5,
                label=f"{model}, {split}" if first else None,
            )
    epochs_axis(axis)
    axis.set_ylabel(measure.replace("_", " "))
    axis.grid(alpha=0.3)


def heat(axis: Any, matrix: Tensor, limit: float) -> None:
    """A matrix as colours from −limit to limit, with a bar that tells them."""
    image = axis.imshow(matrix.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    axis.figure.colorbar(image, ax=axis, shrink=0.8)
