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
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
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

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Distinguishable by colour-blind readers too (Okabe and Ito)."""


# --- the run and its folder -----------------------------------------------------------------------------------------


class Run:
    """One run: its folder, its processes, its console.

    The folder holds `config.json` (what was asked), `metrics.csv` (a row per model, seed and epoch), `results.json`
    (what came out), pictures, and `checkpoints/`.

    Args:
        name: the experiment.
        config: every option that determines the result.
        folder: where to write; None makes `runs/NAME-DATE-TIME`.
        accelerator: "auto" (CUDA when there is one), "cpu" or "cuda".
        devices: processes on this machine; under `torchrun` its number of processes is taken.
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

        if accelerator == "auto":
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ.get("WORLD_SIZE", devices)) // devices
        strategy = "ddp" if devices * nodes > 1 else "auto"
        self.fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
        self.fabric.launch()
        atexit.register(_leave_group)
        self.name, self.began = name, time.perf_counter()
        self.console = Console(quiet=not self.fabric.is_global_zero)
        default = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.folder: Path = self.fabric.broadcast(folder or default)
        self.histories: list[list[Row]] = []
        if self.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write_config(config)
        self.fabric.barrier()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.fabric.is_global_zero

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the options, or make sure that the run found in the folder had the same ones."""
        options = {"experiment": self.name, "options": {k: v for k, v in config.items() if k not in PLACES}}
        path = self.folder / "config.json"
        if path.exists():
            found = read_json(path)
            if {key: found.get(key) for key in options} != json.loads(json.dumps(options, default=str)):
                raise FileExistsError(f"{self.folder} holds a run with other options: choose another --out")
        self.write_json("config.json", {**options, "machine": machine(self.fabric.device)})

    def write_json(self, name: str, value: Any) -> None:
        (self.folder / name).write_text(json.dumps(value, indent=1, default=str) + "\n")

    def write_metrics(self) -> None:
        """Write every history again: after a resumed run the file reads as if there had been no break."""
        rows = [row for history in self.histories for row in history]
        if not self.first or not rows:
            return
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (self.folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def save(self, figure: Figure, name: str) -> None:
        """Write a picture into the folder."""
        if self.first:
            figure.savefig(self.folder / name, dpi=110, bbox_inches="tight")

    def finish(self, results: list[Row], shown: list[Row] | None = None, **more: Any) -> None:
        """Write `results.json` and print the results, or what is to be shown of them, as a table."""
        if not self.first:
            return
        trained = sum(history[-1]["seconds"] for history in self.histories)  # counts the time before a break, too
        seconds = max(time.perf_counter() - self.began, trained)
        self.write_json("results.json", {"experiment": self.name, "results": results, "seconds": seconds, **more})
        self.console.print(table(results if shown is None else shown))
        self.console.print(f"Everything is in [bold]{self.folder}[/]")


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


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


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
        return f"{self.name.replace(' ', '-').lower()}-seed{self.seed}"


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


def train(run: Run, job: Job, data: Data, progress: Progress | None = None) -> list[Row]:
    """Train `job`, from its last checkpoint if the folder has one, and leave the best model in `job.model`.

    Best is the epoch with the lowest loss on the validation examples or, if there are none, in training; the test
    examples have no say. Returns the history, one row an epoch; row 0 is the untrained model.
    """
    fabric, epochs = run.fabric, job.epochs
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
    if last.exists():
        fabric.load(last, state)
        job.history = state["history"]
    run.histories.append(job.history)

    def log(epoch: int, seconds: float, train: Row) -> None:
        row: Row = {"model": job.name, "seed": job.seed, "epoch": epoch, "seconds": round(seconds, 2)}
        row |= {f"train_{key}": value for key, value in train.items()}
        if data.valid:
            row |= {f"valid_{k}": v for k, v in evaluate(fabric, model, data.valid, job.measures).items()}
        row |= {f"test_{k}": v for k, v in evaluate(fabric, model, data.test, job.measures).items()}
        job.history.append(row)
        judge = "valid_loss" if data.valid else "train_loss"
        if row[judge] <= min(earlier[judge] for earlier in job.history):
            fabric.save(best, {"model": model})
        fabric.save(last, state)
        run.write_metrics()

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
                progress.update(task, advance=1, description=f"{job.name}, seed {job.seed}: loss {loss.item():.3g}")
        seconds = job.history[-1]["seconds"] + time.perf_counter() - started
        log(epoch, seconds, means(fabric, sums, seen * fabric.world_size))
    fabric.load(best, {"model": model})
    if progress and task is not None:
        progress.update(task, completed=epochs * length)
    return job.history


def result(run: Run, job: Job, data: Data, **more: Any) -> Row:
    """The trained model, judged on all examples: one row of the final table."""
    row: Row = {"model": job.name, **more, "seed": job.seed}
    row |= {f"train_{key}": value for key, value in evaluate(run.fabric, job.model, data.train, job.measures).items()}
    row |= {f"test_{key}": value for key, value in evaluate(run.fabric, job.model, data.test, job.measures).items()}
    return row | {"seconds": job.history[-1]["seconds"]}


def rows(jobs: list[Job]) -> list[Row]:
    """The histories of several jobs as one list."""
    return [row for job in jobs for row in job.history]


# --- telling and showing --------------------------------------------------------------------------------------------


@contextmanager
def bar(run: Run) -> Iterator[Progress]:
    """A progress bar for the jobs of a run."""
    columns = (
        TextColumn("{task.description}", justify="left"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=run.console, disable=not run.first) as progress:
        yield progress


def shown(value: Any) -> str:
    """A value of a results table as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def table(rows: list[Row]) -> Table:
    """A table for the terminal."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    made = Table(*(key.replace("_", " ") for key in columns))
    for row in rows:
        made.add_row(*(shown(row.get(key)) for key in columns))
    return made


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


def curves(axis: Any, rows: list[Row], measure: str, splits: tuple[str, ...] = ("train", "test")) -> None:
    """One line per model, seed and split; a colour per model, training dashed."""
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
                alpha=1.0 if first else 0.5,
                label=f"{model}, {split}" if first else None,
            )
    axis.set_xlabel("epoch")
    axis.set_ylabel(measure.replace("_", " "))
    axis.grid(alpha=0.3)
