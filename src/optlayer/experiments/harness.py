"""What the experiments share: the run and its folder, its processes, the training loop.

Devices, processes and checkpoints are Lightning Fabric's business. Started by `torchrun`, the same commands train
data-parallel: `batch` is the global batch, each process takes its share of it. Files, the machine, the terminal and
pictures have modules of their own, whose names are here, too.
"""

from __future__ import annotations

import atexit
import csv
import gc
import itertools
import json
import os
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DistributedSampler, TensorDataset

from optlayer.experiments.files import Mistake, Row, positive, publish, read_json, read_metrics, read_npz, read_results
from optlayer.experiments.machine import commit, machine, processor
from optlayer.experiments.pictures import COLOURS, INK, curves, epochs_axis, figure, heat, without_page
from optlayer.experiments.screen import bar, console, facts, markdown, shown, spread, stoppable, table

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "INK",
    "Data",
    "Job",
    "Kept",
    "Measures",
    "Mistake",
    "Row",
    "Run",
    "bar",
    "before",
    "best_epoch",
    "check_resume",
    "commit",
    "console",
    "constant",
    "cosine",
    "curves",
    "epochs_axis",
    "evaluate",
    "facts",
    "figure",
    "heat",
    "load",
    "machine",
    "markdown",
    "means",
    "positive",
    "processor",
    "publish",
    "read_json",
    "read_metrics",
    "read_npz",
    "read_results",
    "result",
    "resumed",
    "rows",
    "save",
    "shown",
    "spread",
    "stoppable",
    "table",
    "train",
    "warm",
    "without_page",
]  # fmt: skip

PLACES = {"out", "resume", "accelerator", "devices"}
"""Options that say where to run, not what."""
Measures = Callable[[Any, Tensor], dict[str, Tensor]]
"""From outputs (a tensor or several) and targets of B examples to named figures, each of shape (B,)."""


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


class Kept:
    """Rows that a run has finished, in a file of its folder, where an interrupted run finds them again."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        path = run.folder / name
        self.rows: list[Row] = read_json(path) if path.exists() else []

    def has(self, **what: Any) -> bool:
        """Whether there is a row with these entries."""
        return any(what.items() <= row.items() for row in self.rows)

    def add(self, *rows: Row) -> None:
        self.rows += rows
        if self.run.first:
            self.run.write_json(self.name, self.rows)


def _leave_group() -> None:
    """Leave the group of processes, if there is one: its threads, still running, may abort a process that ends.

    Models first: one that is the last to hold the group waits for those threads and keeps the GIL they may need.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


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
            for key, values in measures(model(x.to(fabric.device)), y.to(fabric.device)).items():
                sums[key] = sums.get(key, 0) + values.double().sum()
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
            for key, values in figures.items():
                sums[key] = sums.get(key, 0) + values.detach().double().sum()
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
