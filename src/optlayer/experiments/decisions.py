"""Decisions learned by what they cost: forecasts trained for accuracy, through the layer, or by SPO+.

A forecast ĉ of uncertain costs c is used in `w(ĉ) = argmin ĉᵀw + g(w)` over a polytope, with a known convex quadratic
g. What counts is not its accuracy but its *regret*: `cᵀw(ĉ) + g(w(ĉ))` minus the least possible. Three ways to train
the same linear forecast, all from the same start, the least squares of the training examples:

- *two-stage*: least squares, ‖ĉ − c‖², and no more;
- *layer*: the regret itself, through the derivative of w(ĉ) (Donti, Amos and Kolter, 2017);
- *SPO+*: the convex bound `2 (ĉᵀw(c) + g(w(c))) − v(2ĉ − c) − v(c)` of the regret, v the optimal value (Elmachtoub and
  Grigas, 2022; with g as here it reads so). Its gradient, `2 (w(c) − w(2ĉ − c))`, needs no derivative of w.

Both tasks are those of the field, made anew from their definitions:

- *portfolio* (Elmachtoub and Grigas, §6.2, with the risk as a cost): returns of 30 assets in percent,
  100 ((0.05/√5) Bx + 0.1^(1/k))^k plus factor and own noise, from five features x; B has zeros and ones; weights w ≥ 0
  sum to one; g is 2.5 times their variance. For k = 4 a linear forecast is nearly right, for k = 8 it is not.
- *battery* (Donti, Amos and Kolter, §5.3): prices of 24 hours, whose logarithms are linear in eight features, with
  noise; charge, discharge and state of a battery of size one, 90 % efficient; g keeps the state near the middle and the
  flows small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from typer import Option

from optlayer import Diagonal, solve
from optlayer.experiments import harness
from optlayer.experiments.harness import Data, Job, Row, Run, positive

METHODS = ("two-stage", "layer", "SPO+")
RATES = {
    "portfolio, degree 4": {"two-stage": 1e-3, "layer": 1e-3, "SPO+": 1e-2},
    "portfolio, degree 8": {"two-stage": 1e-3, "layer": 1e-1, "SPO+": 3e-2},
    "battery": {"two-stage": 1e-3, "layer": 1e-2, "SPO+": 1e-1},
}
"""Adam's, tuned on the validation regret of seed 0 among 0.001, 0.01, 0.03 and 0.1."""


@dataclass(frozen=True)
class Task:
    """Features x (N, k) and costs c (N, d) to learn from; the decision for costs is the QP with q = `costs` c.

    `offset` is the part of q that no forecast changes, `constraints` those of `solve`.
    """

    x: Tensor
    c: Tensor
    Q: Tensor | Diagonal
    costs: Tensor
    offset: Tensor
    constraints: dict[str, Any]

    def decide(self, c: Tensor) -> Tensor:
        """w(c), (N, n)."""
        return solve(self.Q, c @ self.costs.mT + self.offset, **self.constraints).z

    def value(self, c: Tensor, w: Tensor) -> Tensor:
        """cᵀw + g(w), (N,)."""
        curved = self.Q.d * w if isinstance(self.Q, Diagonal) else w @ self.Q
        return (0.5 * curved * w + (c @ self.costs.mT + self.offset) * w).sum(1)


def portfolio(count: int, seed: int, assets: int = 30, features: int = 5, degree: int = 4) -> Task:
    """Markowitz with predicted returns; costs are minus the returns."""
    rng = np.random.default_rng(seed)
    B = rng.integers(0, 2, (assets, features))
    factors = rng.uniform(-0.25, 0.25, (assets, 4))
    x = rng.standard_normal((count, features))
    returns = 100 * (0.05 / features**0.5 * x @ B.T + 0.1 ** (1 / degree)) ** degree
    returns = returns + rng.standard_normal((count, 4)) @ factors.T + rng.standard_normal((count, assets))
    Q = 5.0 * torch.from_numpy(factors @ factors.T + np.eye(assets))
    one = Q.new_ones(1, assets)
    return Task(
        torch.from_numpy(x), -torch.from_numpy(returns), Q, torch.eye(assets).to(Q), Q.new_zeros(assets),
        {"A": one, "b": Q.new_ones(1), "lb": Q.new_zeros(assets)},
    )  # fmt: skip


def battery(count: int, seed: int, hours: int = 24, features: int = 8) -> Task:
    """A day of a battery, with predicted prices: charge, discharge, state at the end of each hour."""
    rng = np.random.default_rng(seed)
    hour = np.arange(hours) / hours * 2 * np.pi
    shape = 0.4 * np.sin(hour - 2.0) + 0.3 * np.sin(2 * hour + 1.0)
    W = rng.standard_normal((hours, features)) / features**0.5
    for _ in range(3):  # neighbouring hours are alike
        W = (np.roll(W, 1, 0) + W + np.roll(W, -1, 0)) / 3**0.5
    x = rng.standard_normal((count, features))
    prices = np.exp(shape + 0.4 * x @ W.T + 0.3 * rng.standard_normal((count, hours)))
    size, efficiency, least, most, middle, small = 1.0, 0.9, 0.0, np.repeat([0.5, 0.2, 1.0], hours), 0.1, 0.05
    eye, zero = np.eye(hours), np.zeros((hours, hours))
    # state[t] − state[t − 1] − efficiency · charge[t] + discharge[t] = 0, half full before
    A = np.concatenate([-efficiency * eye, eye, eye - np.eye(hours, k=-1)], 1)
    b = np.r_[size / 2, np.zeros(hours - 1)]
    d = 2 * np.repeat([small, small, middle], hours)
    offset = np.r_[np.zeros(2 * hours), np.full(hours, -middle * size)]
    tensors = [torch.from_numpy(each) for each in (x, prices, d, np.concatenate([eye, -eye, zero]), offset, A, b, most)]
    x_, c, d_, costs, offset_, A_, b_, ub = tensors
    return Task(x_, c, Diagonal(d_), costs, offset_, {"A": A_, "b": b_, "lb": torch.full_like(ub, least), "ub": ub})


TASKS: dict[str, Callable[[int, int], Task]] = {
    "portfolio, degree 4": portfolio,
    "portfolio, degree 8": functools.partial(portfolio, degree=8),
    "battery": battery,
}


class Forecast(nn.Module):
    """Linear in the features; it starts as the least squares of the training examples."""

    def __init__(self, task: Task, train: int) -> None:
        super().__init__()
        self.linear = nn.Linear(task.x.shape[1], task.c.shape[1], dtype=torch.float64)
        x = torch.cat([task.x[:train], task.x.new_ones(train, 1)], 1)
        best = torch.linalg.lstsq(x, task.c[:train]).solution.mT
        with torch.no_grad():
            self.linear.weight.copy_(best[:, :-1])
            self.linear.bias.copy_(best[:, -1])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Measures:
    """Loss of a method, regret in percent of the mean value at stake, and squared error; each per example.

    Targets hold costs, their best decision and its value, side by side. What is at stake is the mean regret of a
    forecast that knows no features, so 100 % is no better than that.
    """

    def __init__(self, task: Task, method: str, stake: float) -> None:
        self.task, self.method, self.stake = task, method, stake

    def __call__(self, forecast: Tensor, target: Tensor) -> Row:
        task = self.task
        c, w, best = target.split([task.c.shape[1], len(task.offset), 1], 1)
        best = best[:, 0]
        regret = task.value(c, task.decide(forecast)) - best
        error = (forecast - c).square().mean(1)
        if self.method == "two-stage":
            loss = error
        elif self.method == "layer":
            loss = regret / self.stake
        else:
            trick = 2 * forecast - c
            # The optimal value has the decision as its gradient: no derivative of the decision is needed.
            inner = task.value(trick, task.decide(trick.detach()))
            loss = (2 * task.value(forecast, w) - inner - best) / self.stake
        return {"loss": loss, "regret": 100 * regret / self.stake, "squared_error": error}


def prepare(task: Task, train: int, valid: int) -> tuple[Data, float]:
    """Targets with the best decisions, and the stake."""
    w = task.decide(task.c)
    target = torch.cat([task.c, w, task.value(task.c, w)[:, None]], 1)
    blind = task.decide(task.c[:train].mean(0, keepdim=True)).expand(train, -1)
    stake = (task.value(task.c[:train], blind) - target[:train, -1]).mean().item()
    splits = (slice(None, train), slice(train, train + valid), slice(train + valid, None))
    parts = [(task.x[each], target[each]) for each in splits]
    return Data(train=parts[0], valid=parts[1], test=parts[2]), stake


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    train: Annotated[int, Option(min=2, help="Examples to learn from.")] = 1000,
    valid: Annotated[int, Option(min=1, help="Examples by which the best epoch is chosen.")] = 500,
    test: Annotated[int, Option(min=1, help="Held-out examples.")] = 2000,
    epochs: Annotated[int, Option(min=1, help="Epochs.")] = 15,
    batch: Annotated[int, Option(min=1, help="Examples per step, over all processes.")] = 25,
    rate: Annotated[
        float | None, Option(callback=positive, help="Adam's rate, which decays to zero; default: each method's own.")
    ] = None,
    seed: Annotated[int, Option(min=0, max=10**9, help="The first seed, of examples and order.")] = 0,
    seeds: Annotated[int, Option(min=1, help="How many seeds, one after another.")] = 1,
    out: Annotated[Path | None, Option(help="Folder of the run; default: runs/decisions-DATE-TIME.")] = None,
    resume: Annotated[Path | None, Option(help="Folder of a run to continue, with that run's options.")] = None,
    accelerator: Annotated[str, Option(help="auto, cpu or cuda.")] = "cpu",
    devices: Annotated[int, Option(min=1, help="Processes on this machine (torchrun sets it).")] = 1,
) -> None:
    """Forecasts for decisions: two-stage, through the layer, SPO+, by their regret (beyond the paper)."""
    options = dict(locals())
    if resume:
        return main(**harness.resumed(resume, options))
    run = Run("decisions", options, out, accelerator, devices)
    results: list[Row] = []
    with harness.bar(run) as progress:
        for each in range(seed, seed + seeds):
            for name, make in TASKS.items():
                task = make(train + valid + test, each)
                data, stake = prepare(task, train, valid)
                for method in METHODS:
                    model = Forecast(task, train)
                    optimizer = torch.optim.Adam(model.parameters(), lr=rate or RATES[name][method])
                    measures = Measures(task, method, stake)
                    label = f"{name}, {method}".replace(",", "")
                    job = Job(label, each, model, optimizer, measures, epochs, batch, harness.cosine)
                    harness.train(run, job, data, progress)
                    results.append(harness.result(run, job, data, task=name, method=method))
    run.save(draw(results), "regret.png")
    run.finish(results, shown=summary(results))


# --- the report -----------------------------------------------------------------------------------------------------


def draw(results: list[Row]) -> Any:
    """The regret of every seed, a column for each method."""
    picture, axes = harness.figure(11, 3.2, len(TASKS))
    for axis, name in zip(axes, TASKS, strict=True):
        for place, method in enumerate(METHODS):
            values = [row["test_regret"] for row in results if (row["task"], row["method"]) == (name, method)]
            axis.plot([place] * len(values), values, "o", color=harness.COLOURS[place], alpha=0.7)
            axis.plot([place - 0.2, place + 0.2], [float(np.mean(values))] * 2, color=harness.COLOURS[place])
        axis.set(title=name, ylabel="regret (%)", xticks=range(len(METHODS)), xticklabels=METHODS)
        axis.grid(alpha=0.3, axis="y")
    return picture


def summary(results: list[Row]) -> list[Row]:
    """A row per task and method: mean and standard deviation over the seeds; and the regret against two-stage's."""
    table = []
    for name in TASKS:
        regrets = {
            method: np.array([row["test_regret"] for row in results if (row["task"], row["method"]) == (name, method)])
            for method in METHODS
        }
        for method in METHODS:
            mine = [row for row in results if (row["task"], row["method"]) == (name, method)]
            table.append(
                {
                    "task": name,
                    "method": method,
                    "seeds": len(mine),
                    "regret, held out (%)": harness.spread(list(regrets[method])),
                    "of two-stage's, seed by seed": harness.spread(list(regrets[method] / regrets["two-stage"])),
                    "regret, training (%)": harness.spread([row["train_regret"] for row in mine]),
                    "squared error, held out": harness.spread([row["test_squared_error"] for row in mine]),
                }
            )
    return table


def paper(folder: Path, full: bool) -> None:
    """The settings of the report."""
    main(seeds=20 if full else 5, out=folder)


def report(folder: Path) -> str:
    """The section of the report."""
    results = harness.read_json(folder / "results.json")["results"]
    options = harness.read_json(folder / "config.json")["options"]
    return f"""## Beyond the paper: forecasts for decisions

{(__doc__ or "").split(chr(10), 2)[2].strip()}

{options["train"]} examples to learn from, {options["valid"]} to choose the best of {options["epochs"]} epochs (by each
method's own loss), {options["test"]} held out; Adam, {options["batch"]} examples a step, rates tuned for each method on
the validation regret of seed 0. Regret is in percent of that of a forecast without features. Means and standard
deviations over seeds, each with its own examples:

{harness.markdown(summary(results))}
![Regret of each seed](img/experiments/decisions-regret.png)
"""


def compare(folder: Path) -> list[Row]:
    """Regrets side by side."""
    table = summary(harness.read_json(folder / "results.json")["results"])
    rows = []
    for name in TASKS:
        ours = "; ".join(f"{row['method']}: {row['regret, held out (%)']} %" for row in table if row["task"] == name)
        rows.append({"experiment": f"Decisions, {name}: regret", "paper": None, "ours": ours})
    return rows
