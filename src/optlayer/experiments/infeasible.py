"""Learning where nothing is feasible yet: the closest point against zero gradients and against a price.

A layer whose constraints are learned freely has, at first, often no feasible point. Four ways to go on:

- *zero gradients*: such a member has no answer, its input stands for it, and it teaches nothing (the default status,
  with `check=False`);
- *closest*: the best point among those of least violation, `Settings(infeasible="closest")`, and its gradient;
- *elastic*: rows give way at a price for each unit of violation, `nn.ElasticQPLayer` and `nn.SafetyFilter(slack=…)`;
- *soft*: at a price for its square; the answer keeps no equation to the last digit, then, feasible or not.

Two tasks:

- *free b*: the layer of mini-Sudoku, `minimise ½·0.1·zᵀz − xᵀz subject to A z = b, z ≥ 0`, with b a parameter of its
  own and not A z₀ (as in Bambade et al., 2024): A (40×64) uniform, b normal around 8, what A z has on average. No z ≥ 0
  has A z = b then, for any puzzle: A and b are the same for all.
- *filter*: a `nn.SafetyFilter` for a point in the plane that is to keep away from the two walls of a corridor and from
  two moving discs. It learns margin, radii and gain from what an expert filter does, whose problems are all feasible.
  It starts with a gain of 0.3 and with a margin and radii that are too large by a factor: 2, and part of its problems
  are in conflict; 4, and all of them are, as the walls' margins overlap. Between two such walls the least violation is
  in the middle, however wide the margin: imitation alone cannot tell that it is too wide. The violation can, where it
  is a part of the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from typer import Option

from optlayer import Settings, Status, solve
from optlayer.experiments import harness, sudoku
from optlayer.experiments.harness import Data, Job, Measures, Row, Run, positive
from optlayer.nn import ElasticQPLayer, SafetyFilter

CLOSEST = Settings(infeasible="closest")
PRICES = {"elastic, price 1": 1.0, "elastic, price 10": 10.0}
"""Of a unit of violation, for the boards."""
SOFT, SLACK = 10.0, 10.0
"""Prices: of squared violation for the boards, of a barrier's violation for the filter."""
LEARNED = ", violation learned"
"""The mark of ways whose loss includes the violation."""
WAYS = {
    "free b": ("zero gradients", "closest", *PRICES, "soft"),
    "filter": ("zero gradients", "closest", "closest" + LEARNED, "elastic", "elastic" + LEARNED),
}
FACTORS = (2, 4)
"""Of margin and radii, at the start, to the expert's."""

# --- free b ---------------------------------------------------------------------------------------------------------


class Boards(nn.Module):
    """The Sudoku layer with any b: puzzle (B, 4, 4, 4) to answer, of the same shape. Works in float64 inside."""

    def __init__(self, way: str, rows: int = 40) -> None:
        super().__init__()
        self.way = way
        self.A = nn.Parameter(torch.rand(rows, 64, dtype=torch.float64))
        self.b = nn.Parameter(8 + torch.randn(rows, dtype=torch.float64))
        self.elastic = ElasticQPLayer(PRICES[way]) if way in PRICES else None

    def answer(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, 64), and which members have a feasible point."""
        A, b, lb = self.A, self.b, torch.zeros_like(q[0])
        Q = 0.1 * torch.eye(64).to(q)
        if self.elastic:
            z, violation = self.elastic(Q, q, A=A, b=b, lb=lb)
            return z, violation.amax(1) < 1e-6
        if self.way == "soft":
            z = solve(Q + SOFT * A.mT @ A, q - SOFT * b @ A, lb=lb).z
            return z, (z @ A.mT - b).abs().amax(1) < 1e-6
        return or_else(solve(Q, q, A=A, b=b, lb=lb, **settings(self.way)), -q)

    def forward(self, puzzle: Tensor) -> tuple[Tensor, Tensor]:
        z, feasible = self.answer(-puzzle.flatten(1).double())
        return z.reshape(puzzle.shape), feasible


def settings(way: str) -> dict[str, Any]:
    return {"settings": CLOSEST, "check": False} if way.startswith("closest") else {"check": False}


def or_else(solution: Any, other: Tensor) -> tuple[Tensor, Tensor]:
    """z where there is one, `other` elsewhere; and which members have a feasible point."""
    feasible, closest = (solution.status == int(each) for each in (Status.SOLVED, Status.CLOSEST))
    z = solution.z[..., : other.shape[-1]]
    return torch.where((feasible | closest)[:, None], z, other), feasible


def measure_boards(answered: tuple[Tensor, Tensor], target: Tensor) -> Row:
    answer, feasible = answered
    figures = sudoku.measures(answer, target)
    return figures | {"error": figures["loss"], "infeasible": ~feasible}


# --- the filter -----------------------------------------------------------------------------------------------------


class Corridor(nn.Module):
    """The filter with what it learns; states (B, 14) to inputs (B, 2), whether they are feasible, and violations.

    A state is, relative to the point: the wanted input (2), a wall's normal (2) and the walls' distances (2) along it,
    the discs' centres (2 × 2) and velocities (2 × 2).
    """

    def __init__(self, way: str, factor: float = 1.0, gain: float = 1.0) -> None:
        super().__init__()
        self.log_size = nn.Parameter(torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64).mul(factor).log())
        options: dict[str, Any] = {"slack": SLACK} if way.startswith("elastic") else settings(way)
        self.filter = SafetyFilter(gain, limit=1.0, **options).double()
        self.way = way

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wanted, normal, walls, centre, speed = state.split([2, 2, 2, 4, 4], 1)
        centre, speed = centre.unflatten(1, (2, 2)), speed.unflatten(1, (2, 2))
        margin, radius = self.log_size.exp().split([1, 2])
        barrier = torch.cat([walls - margin, centre.square().sum(2) - radius.square()], 1)
        drift = torch.cat([torch.zeros_like(walls), 2 * (centre * speed).sum(2)], 1)
        control = torch.cat([torch.stack([-normal, normal], 1), -2 * centre], 1)
        solution = self.filter.solution(wanted, barrier, drift, control)
        u, feasible = or_else(solution, wanted.clamp(-1, 1))
        violation = self.filter.violation(u, barrier, drift, control).sum(1)
        if self.way.startswith("elastic"):
            feasible = violation < 1e-6
        return u, feasible, violation if self.way.endswith(LEARNED) else torch.zeros_like(violation)


def corridors(count: int) -> Tensor:
    """Random states (count, 14)."""

    def direction(*shape: int) -> Tensor:
        angle = 2 * torch.pi * torch.rand(shape, dtype=torch.float64)
        return torch.stack([angle.cos(), angle.sin()], -1)

    width = 0.5 + torch.rand(count, 1, dtype=torch.float64)  # less than two margins of 0.8, more than two of 0.2
    place = 0.2 + (width - 0.4) * torch.rand(count, 1, dtype=torch.float64)
    away = 0.7 + 1.3 * torch.rand(count, 2, 1, dtype=torch.float64)
    wanted, speed = torch.randn(count, 2, dtype=torch.float64), 0.3 * torch.randn(count, 4, dtype=torch.float64)
    centre = (direction(count, 2) * away).flatten(1)
    return torch.cat([wanted, direction(count), place, width - place, centre, speed], 1)


def demonstrations(train: int, test: int) -> Data:
    """States and the expert's inputs, where its problem is feasible."""
    state = corridors(2 * (train + test))
    with torch.no_grad():
        u, feasible, _ = Corridor("zero gradients")(state)
    state, u = state[feasible], u[feasible]
    return Data(train=(state[:train], u[:train]), test=(state[train : train + test], u[train : train + test]))


def measure_filter(answered: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Row:
    u, feasible, violation = answered
    error = (u - target).square().sum(1)
    return {"loss": error + violation, "error": error, "infeasible": ~feasible}


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    train: Annotated[int, Option(min=1, max=50_000, help="Training puzzles.")] = 9000,
    test: Annotated[int, Option(min=1, max=10_000, help="Held-out puzzles, and held-out states.")] = 1000,
    states: Annotated[int, Option(min=1, help="Training states of the filter.")] = 3000,
    epochs: Annotated[int, Option(min=1, help="Epochs.")] = 5,
    rate: Annotated[float, Option(callback=positive, help="Adam's rate for the boards; it decays to zero.")] = 0.1,
    filter_rate: Annotated[float, Option(callback=positive, help="Adam's rate for the filter.")] = 0.03,
    batch: Annotated[int, Option(min=1, help="Examples per step, over all processes.")] = 50,
    seed: Annotated[int, Option(min=0, max=10**9, help="The first seed.")] = 0,
    seeds: Annotated[int, Option(min=1, help="How many seeds, one after another.")] = 1,
    out: Annotated[Path | None, Option(help="Folder of the run; default: runs/infeasible-DATE-TIME.")] = None,
    resume: Annotated[Path | None, Option(help="Folder of a run to continue, with that run's options.")] = None,
    accelerator: Annotated[str, Option(help="auto, cpu or cuda.")] = "cpu",
    devices: Annotated[int, Option(min=1, help="Processes on this machine (torchrun sets it).")] = 1,
) -> None:
    """Learn where nothing is feasible yet: closest point, zero gradients, elastic and soft (beyond the paper)."""
    options = dict(locals())
    if resume:
        return main(**harness.resumed(resume, options))
    run = Run("infeasible", options, out, accelerator, devices)
    jobs, results = [], []
    with harness.bar(run) as progress:
        for each in range(seed, seed + seeds):
            torch.manual_seed(each)
            boards, moves = sudoku.load(None, train, test, each), demonstrations(states, test)
            for task, way, make in models():
                torch.manual_seed(each)
                model, free_b = make(), task == "free b"
                optimizer = torch.optim.Adam(model.parameters(), lr=rate if free_b else filter_rate)
                measures: Measures = measure_boards if free_b else measure_filter
                clip = sudoku.CLIP if free_b else None
                data = boards if free_b else moves
                job = Job(f"{task}, {way}", each, model, optimizer, measures, epochs, batch, harness.warm, clip=clip)
                harness.train(run, job, data, progress)
                jobs.append(job)
                more = {"task": task, "way": way, "start_infeasible": job.history[0]["test_infeasible"]}
                results.append(harness.result(run, job, data, **more))
    run.save(draw(harness.rows(jobs)), "curves.png")
    run.finish(results, shown=summary(results))


def models() -> list[tuple[str, str, Callable[[], Boards | Corridor]]]:
    """Task, way, and what makes the model."""
    made: list[tuple[str, str, Callable[[], Boards | Corridor]]] = []
    made += [("free b", way, partial(Boards, way)) for way in WAYS["free b"]]
    for factor in FACTORS:
        task = f"filter, {factor} times too large"
        made += [(task, way, partial(Corridor, way, factor, 0.3)) for way in WAYS["filter"]]
    return made


# --- the report -----------------------------------------------------------------------------------------------------


def draw(rows: list[Row]) -> Any:
    """Held-out error over the epochs, and the share of problems without a feasible point; a column for each task."""
    tasks = list(dict.fromkeys(task for task, _, _ in models()))
    picture, axes = harness.figure(13, 6, len(tasks), 2)
    for column, task in enumerate(tasks):
        mine = [row for row in rows if row["model"].startswith(task)]
        mine = [row | {"model": row["model"].removeprefix(f"{task}, ")} for row in mine]
        for axis, measure in zip(axes[:, column], ("error", "infeasible"), strict=True):
            harness.curves(axis, mine, measure, ("test",))
        axes[0, column].set(title=task, yscale="log")
        axes[1, column].set(ylabel="share without feasible point")
        axes[0, column].legend(fontsize=7)
    return picture


def summary(results: list[Row]) -> list[Row]:
    """A row per task and way: mean and standard deviation over the seeds."""
    table = []
    for task, way in dict.fromkeys((row["task"], row["way"]) for row in results):
        mine = [row for row in results if (row["task"], row["way"]) == (task, way)]
        wrong = [100 * row["test_board_error"] for row in mine if row.get("test_board_error") is not None]
        table.append(
            {
                "task": task,
                "way": way,
                "seeds": len(mine),
                "without feasible point, before (%)": harness.spread([100 * row["start_infeasible"] for row in mine]),
                "after (%)": harness.spread([100 * row["test_infeasible"] for row in mine]),
                "squared error, held out": harness.spread([row["test_error"] for row in mine], 2),
                "wrong boards, held out (%)": harness.spread(wrong) if wrong else None,
                "seconds": harness.spread([row["seconds"] for row in mine], 2),
            }
        )
    return table


def paper(folder: Path, full: bool) -> None:
    """The settings of the report."""
    main(seeds=10 if full else 3, out=folder)


def report(folder: Path) -> str:
    """The section of the report."""
    results = harness.read_json(folder / "results.json")["results"]
    options = harness.read_json(folder / "config.json")["options"]
    return f"""## Beyond the paper: learning through infeasible problems

{(__doc__ or "").split(chr(10), 2)[2].strip()}

{options["train"]} puzzles and {options["states"]} states to learn from, {options["test"]} of each held out;
{options["epochs"]} epochs, {options["batch"]} examples a step, Adam at {options["rate"]} (boards, gradients clipped at
{sudoku.CLIP}) and {options["filter_rate"]} (filter), with warm-up and decay. The price of squared violation is {SOFT:g}
for the boards, that of a barrier {SLACK:g}. With a price, *without feasible point* counts answers that violate a row
by 1e-6 or more. The time is that of training. Means and standard deviations over seeds:

{harness.markdown(summary(results))}
![Error, and share of problems without a feasible point, over the epochs](img/experiments/infeasible-curves.png)

With zero gradients a layer of which every member is in conflict never begins; where some members are not, they lead
out of the conflict, too. The closest point needs no price.
"""


def compare(folder: Path) -> list[Row]:
    """Errors side by side."""
    table = summary(harness.read_json(folder / "results.json")["results"])
    rows = []
    for task in dict.fromkeys(row["task"] for row in table):
        key, unit = ("wrong boards, held out (%)", " %") if task == "free b" else ("squared error, held out", "")
        ours = "; ".join(f"{row['way']}: {row[key]}{unit}" for row in table if row["task"] == task)
        what = "wrong held-out boards" if task == "free b" else "squared error"
        rows.append({"experiment": f"Infeasible at first, {task}: {what}", "paper": None, "ours": ours})
    return rows
