"""Which learning rate? A sweep over three decades, with and without the habits that make it matter less.

Two layers learn with Adam from a fixed number of steps, each with rates from 0.001 to 1:

- *mini-Sudoku*, the layer of the section above; `loss` is the squared error of held-out boards;
- *polytope*: an `OptNetLayer` with 20 variables and 30 inequalities imitates another whose rows have all lengths;
  `loss` is the squared error on new inputs, divided by the answers' variance.

The habits: the rate *warms up* during the first 5 % of the steps and falls to zero along a half cosine; equations are
*soft* and more than needed; the rows of G have *unit length* by parametrisation. (For the rows of A there is nothing to
normalise: with b = A z₀ the layer is the same for A and for M A, with any invertible M.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typer import Option

from optlayer.experiments import harness, sudoku
from optlayer.experiments.harness import Row, Run
from optlayer.nn import OptNetLayer

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
Examples = tuple[Tensor, Tensor]

# --- what learns ----------------------------------------------------------------------------------------------------


class UnitRows(nn.Module):
    """Rows divided by their lengths."""

    def forward(self, matrix: Tensor) -> Tensor:
        return nn.functional.normalize(matrix, dim=1)


def boards(seed: int) -> tuple[Examples, Examples]:
    """Mini-Sudoku puzzles and solutions, to learn from and held out; both flat, the inputs as linear terms."""
    data = sudoku.load(None, 9000, 1000, seed)
    (x, y), (u, v) = ([part.flatten(1).double() for part in each] for each in (data.train, data.test))
    return (-x, y), (-u, v)


def teacher(seed: int, variables: int = 20, inequalities: int = 30) -> tuple[Examples, Examples]:
    """Inputs and answers of a random layer: rows of lengths e^N(0, 1), slacks from e⁻¹ to √e, about a fifth active."""
    torch.manual_seed(1000 + seed)
    layer = OptNetLayer(variables, inequalities, dtype=torch.float64)
    parts = dict(layer.named_parameters())
    with torch.no_grad():
        parts["L"].add_(torch.randn_like(parts["L"]).tril(-1) * 0.5 / variables**0.5)
        parts["G"].mul_(torch.randn(inequalities, 1, dtype=torch.float64).exp())
        parts["log_s0"].uniform_(-1, 0.5)
        parts["w0"].normal_(0, 0.5)
        q = 1.5 * torch.randn(20000, variables, dtype=torch.float64)
        z = layer(q)
    scale = z.var(0).sum().sqrt() / variables**0.5
    return (q[:18000], z[:18000] / scale), (q[18000:], z[18000:] / scale)


class Scaled(nn.Module):
    """The student, in the units of the scaled answers."""

    def __init__(self, unit: bool) -> None:
        super().__init__()
        self.layer = OptNetLayer(20, 30, dtype=torch.float64)
        if unit:
            parametrize.register_parametrization(self.layer, "G", UnitRows())
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, q: Tensor) -> Tensor:
        return self.layer(q) * self.scale


def equations(rows: int, soft: float | None) -> nn.Module:
    return OptNetLayer(64, equalities=rows, Q=0.1, soft=soft, lb=0.0, dtype=torch.float64)


TASKS: dict[str, Callable[[int], tuple[Examples, Examples]]] = {"mini-Sudoku": boards, "polytope": teacher}
WAYS: dict[str, dict[str, tuple[Callable[[], nn.Module], Callable[[float], float]]]] = {
    "mini-Sudoku": {
        "40 hard equations, constant rate": (lambda: equations(40, None), harness.constant),
        "40 hard equations, warm-up and decay": (lambda: equations(40, None), harness.warm),
        "64 soft equations, warm-up and decay": (lambda: equations(64, sudoku.SOFT), harness.warm),
    },
    "polytope": {
        "constant rate": (lambda: Scaled(False), harness.constant),
        "warm-up and decay": (lambda: Scaled(False), harness.warm),
        "warm-up and decay, unit rows": (lambda: Scaled(True), harness.warm),
    },
}


def fit(
    model: nn.Module, data: tuple[Examples, Examples], rate: float, schedule: Callable[[float], float],
    steps: int, batch: int, seed: int,
) -> float:  # fmt: skip
    """The loss on held-out examples after `steps` of Adam; infinite where an answer is not finite."""
    (x, y), (u, v) = data
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step / steps))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=generator)
        loss = (model(x[chosen]) - y[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        loss = (model(u) - v).square().mean()
    return float(loss) if loss.isfinite() else float("inf")


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    steps: Annotated[int, Option(min=1, help="Steps of each training.")] = 900,
    batch: Annotated[int, Option(min=1, help="Examples per step.")] = 50,
    seed: Annotated[int, Option(min=0, max=10**9, help="The first seed.")] = 0,
    seeds: Annotated[int, Option(min=1, help="How many seeds, one after another.")] = 1,
    out: Annotated[Path | None, Option(help="Folder of the run; default: runs/recipe-DATE-TIME.")] = None,
    resume: Annotated[Path | None, Option(help="Folder of a run to continue, with that run's options.")] = None,
) -> None:
    """Learning rates from 0.001 to 1: what makes their choice matter less (section 3.3, "more tuning required")."""
    options = dict(locals())
    if resume:
        return main(**harness.resumed(resume, options))
    run = Run("recipe", options, out, "cpu")
    kept = harness.Kept(run, "trainings.json")
    with harness.stoppable(run):
        for each in range(seed, seed + seeds):
            for task, load in TASKS.items():
                data = load(each)
                for way, (make, schedule) in WAYS[task].items():
                    for rate in RATES:
                        what: Row = {"task": task, "way": way, "rate": rate, "seed": each}
                        if kept.has(**what):
                            continue
                        torch.manual_seed(each)
                        loss = fit(make(), data, rate, schedule, steps, batch, each)
                        kept.add(what | {"loss": loss})
                        run.say(f"{task}, {way}, rate {rate:g}, seed {each}: loss {loss:.3g}")
    run.save(draw(kept.rows), "sweep.png")
    run.finish(kept.rows, shown=summary(kept.rows))


# --- the report -----------------------------------------------------------------------------------------------------


def means(results: list[Row], task: str, way: str) -> list[float]:
    """The geometric mean over the seeds, for every rate."""
    losses = [
        [row["loss"] for row in results if (row["task"], row["way"], row["rate"]) == (task, way, rate)]
        for rate in RATES
    ]
    return [float(np.exp(np.mean(np.log(each)))) for each in losses]


def draw(results: list[Row]) -> Any:
    """Loss against rate, a line for each way."""
    picture, axes = harness.figure(11, 3.6, len(TASKS))
    for axis, task in zip(axes, TASKS, strict=True):
        for colour, way in zip(harness.COLOURS, WAYS[task], strict=False):
            axis.plot(RATES, means(results, task, way), "o-", color=colour, label=way, markersize=4)
        axis.set(title=task, xlabel="Adam's rate", ylabel="loss", xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
    return picture


def summary(results: list[Row]) -> list[Row]:
    """A row per task and way: the loss for every rate, and over how many of them it is within 3 times the best."""
    table = []
    for task, ways in WAYS.items():
        best = min(min(means(results, task, way)) for way in ways)
        for way in ways:
            losses = means(results, task, way)
            row: Row = {"task": task, "way": way}
            row |= {f"rate {rate:g}": f"{loss:.2g}" for rate, loss in zip(RATES, losses, strict=True)}
            table.append(row | {"rates within 3 times the best of all": sum(loss <= 3 * best for loss in losses)})
    return table


def paper(folder: Path, full: bool) -> None:
    """The settings of the report."""
    main(seeds=10 if full else 2, out=folder)


def report(folder: Path) -> str:
    """The section of the report."""
    results = harness.read_json(folder / "results.json")["results"]
    options = harness.read_json(folder / "config.json")["options"]
    return f"""## A recipe instead of tuning, section 3.3

{(__doc__ or "").split(chr(10), 2)[2].strip()}

{options["steps"]} steps of {options["batch"]} examples; geometric means over {options["seeds"]} seeds:

{harness.markdown(summary(results))}
![Loss against learning rate](img/experiments/recipe-sweep.png)

Soft equations make a layer robust: nearly dependent rows, which give hard equations gradients a hundred times longer
than usual, do no harm, and what is not needed fades. Warm-up and decay widen the range upwards; at small rates they
cost, as Adam moves a parameter by no more than the sum of its rates. Unit rows change little. For inequalities no habit
here gives more than a decade around 0.03.
"""


def compare(folder: Path) -> list[Row]:
    """How many of the rates serve."""
    table = summary(harness.read_json(folder / "results.json")["results"])
    last = "rates within 3 times the best of all"
    ours = "; ".join(f"{row['task']}, {row['way']}: {row[last]}" for row in table)
    what = f"Adam's rates that serve, of {len(RATES)} from 0.001 to 1"
    return [{"experiment": what, "paper": "tuning needed", "ours": ours}]
