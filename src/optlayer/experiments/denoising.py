"""Denoising (OptNet, section 4.2): total variation, what a QP learns beyond it, and what it learns without it.

Signals of 100 samples are piecewise constant: 1 to 9 pieces, whole heights from 10 to 99, and normal noise of standard
deviation 10. Total variation is `argmin ½‖z − y‖² + λ‖D z‖₁` with D the first differences. The OptNet layer frees all
of it: the differences D, a price λ for each of its rows, and the quadratic and linear terms, as maps in front and
behind:

    z = (I + B) x + c,   x = argmin ½‖x − (I + F) y‖² + Σ λᵢ |D x|ᵢ

It is solved in its dual, which has bounds only and can become neither infeasible nor unbounded: x = (I + F) y − Dᵀu
with `u = argmin ½‖Dᵀu − (I + F) y‖²` subject to `−λ ≤ u ≤ λ`.

From a random D, told nothing of differences, gradients of the denoising error alone are slow. Whitened coordinates
help; smoothed gradients, an over-complete D and less noise at first do not. What helps is a first lesson without noise:
which directions are mostly zero on clean signals? In whitened coordinates that is a rotation (independent component
analysis), and gradients find it in seconds, *sparsity first*: every row becomes a difference of two samples. Denoising
then starts from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from typer import Option

from optlayer import solve
from optlayer.experiments import harness
from optlayer.experiments.harness import Data, Job, Row, Run, positive

PAPER = {
    "total variation": (16.3, 16.5),
    "fully connected": (18.5, 29.8),
    "OptNet, random start": (52.9, 53.3),
    "OptNet, start from total variation": (13.8, 14.4),
}
"""Training and test error in table 1."""

# --- signals --------------------------------------------------------------------------------------------------------


def signals(count: int, seed: int = 0, length: int = 100, noise: float = 10.0) -> tuple[Tensor, Tensor]:
    """Noisy signals and the clean ones, (count, length) each, float64.

    The order of the draws is the original one, and so is the generator: NumPy's old one.
    """
    rng = np.random.RandomState(seed)
    clean, noisy = np.empty((2, count, length))
    for i in range(count):
        pieces = rng.randint(1, 10)
        breaks = np.sort(rng.choice(np.arange(1, length - 1), pieces - 1, replace=False))
        clean[i] = np.repeat(rng.randint(10, 100, pieces), np.diff([0, *breaks, length]))
        noisy[i] = clean[i] + noise * rng.randn(length)
    return torch.from_numpy(noisy), torch.from_numpy(clean)


def load(train: int, test: int, seed: int) -> Data:
    """The first signals to learn from, and their mirror images, which are as likely; the last ones held out."""
    noisy, clean = signals(train + test, seed)
    both = [torch.cat([part[:train], part[:train].flip(1)]) for part in (noisy, clean)]
    return Data(train=(both[0], both[1]), test=(noisy[train:], clean[train:]))


# --- models ---------------------------------------------------------------------------------------------------------


def differences(length: int) -> Tensor:
    """First differences, (length − 1, length): those of total variation."""
    return torch.eye(length, dtype=torch.float64).diff(dim=0)


def random_rows(length: int) -> Tensor:
    """Random directions, orthogonal to each other, rows as long as those of the first differences."""
    square = torch.randn(length, length - 1, dtype=torch.float64)
    return math.sqrt(2) * torch.linalg.qr(square)[0].mT.contiguous()


def sparse_rows(clean: Tensor, steps: int = 1500, batch: int = 500, rate: float = 0.02) -> Tensor:
    """Directions that are mostly zero on clean signals, (n − 1, n), by gradients from random ones; no closed form.

    With x = C^(−½) (y − ȳ), uncorrelated and of unit variance, orthonormal rows W minimise the mean of √((Wx)² + 0.1²)
    (independent component analysis; Hyvärinen and Oja, 2000): Adam, and after each step the nearest orthonormal rows.
    D = W C^(−½), its rows as long as those of the first differences. Without steps: the random start.
    """
    n = clean.shape[1]
    C = torch.cov(clean.mT) + torch.eye(n, dtype=clean.dtype)  # the last two samples are always equal: + I
    values, vectors = torch.linalg.eigh(C)
    whitening = (vectors * values.rsqrt()) @ vectors.mT
    x = (clean - clean.mean(0)) @ whitening

    def orthonormal(W: Tensor) -> Tensor:
        left, _, right = torch.linalg.svd(W, full_matrices=False)
        return left @ right

    W = orthonormal(torch.randn(n - 1, n, dtype=clean.dtype)).requires_grad_()
    optimizer = torch.optim.Adam([W], lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: harness.cosine(step / max(steps, 1)))
    for _ in range(steps):
        rows = x[torch.randint(len(x), (batch,))] @ W.mT
        loss = (rows.square() + 0.1**2).sqrt().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            W.copy_(orthonormal(W))
    return math.sqrt(2) * nn.functional.normalize(W.detach() @ whitening, dim=1)


def share_of_two(D: Tensor) -> float:
    """The share of a row's energy in its two largest entries; the mean over the rows. One for differences."""
    return float((D.square().topk(2, 1).values.sum(1) / D.square().sum(1)).mean())


class Denoiser(nn.Module):
    """The OptNet layer of this file: D, λ, the maps B and F, and c are learned; works in float64.

    Args:
        D: where the differences start, (rows, n).
        price: where every λ starts.
        guide: a network that looks at the signal and multiplies λ by a factor for each row, or None.
    """

    def __init__(self, D: Tensor, price: float, guide: nn.Module | None = None) -> None:
        super().__init__()
        rows, n = D.shape
        self.D = nn.Parameter(D.clone())
        self.log_price = nn.Parameter(torch.full((rows,), math.log(price)).to(D))
        self.front, self.back = (nn.Parameter(D.new_zeros(n, n)) for _ in range(2))
        self.shift = nn.Parameter(D.new_zeros(n))
        self.guide = guide

    def forward(self, y: Tensor) -> Tensor:
        D, x = self.D, y + y @ self.front.mT
        log_price = self.log_price if self.guide is None else (self.log_price + self.guide(y)).clamp(-7, 7)
        price = log_price.exp()
        # Rows of D may become dependent while it learns; the small number keeps u unique.
        Q = D @ D.mT + 1e-6 * torch.eye(len(D)).to(D)
        u = solve(Q, -x @ D.mT, lb=-price, ub=price).z
        x = x - u @ D
        return x + x @ self.back.mT + self.shift


class Guide(nn.Module):
    """Three convolutions that guess from a signal where jumps are: log factors (B, n − 1), at first zero."""

    def __init__(self, filters: int = 32, width: int = 9) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, filters, width, padding=width // 2), nn.ReLU(),
            nn.Conv1d(filters, filters, width, padding=width // 2), nn.ReLU(),
            nn.Conv1d(filters, 1, 2),
        )
        for parameter in list(self.layers.parameters())[-2:]:
            nn.init.zeros_(parameter)

    def forward(self, y: Tensor) -> Tensor:
        centred = (y - y.mean(1, keepdim=True)) / 20
        return self.layers(centred[:, None].float())[:, 0].double()


class FullyConnected(nn.Module):
    """The baseline: one hidden layer with ReLU. It works on signals of about unit size, which helps it."""

    def __init__(self, length: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(length, hidden), nn.ReLU(), nn.Linear(hidden, length)).double()

    def forward(self, y: Tensor) -> Tensor:
        return 55 + 30 * self.layers((y - 55) / 30)


def measures(answer: Tensor, clean: Tensor) -> Row:
    """Squared error, mean over the samples of a signal."""
    return {"loss": (answer - clean).square().mean(1)}


def tv(y: Tensor, price: float) -> Tensor:
    """Denoised by total variation."""
    with torch.no_grad():
        return Denoiser(differences(y.shape[1]), price)(y)


def optimiser(model: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW; only the maps, which have most of the numbers and should stay near none, decay."""
    maps = [model.front, model.back] if isinstance(model, Denoiser) else []
    guide = list(model.guide.parameters()) if isinstance(model, Denoiser) and model.guide else []
    apart = {id(each) for each in [*maps, *guide]}
    groups: list[Row] = [{"params": [each for each in model.parameters() if id(each) not in apart]}]
    groups += [{"params": maps, "weight_decay": decay}] if maps else []
    groups += [{"params": guide, "lr": 3 * rate}] if guide else []
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)


# --- pictures -------------------------------------------------------------------------------------------------------


def draw_sweep(sweep: list[Row]) -> Any:
    """Error of total variation against λ."""
    picture, axis = harness.figure(5, 3.2)
    for split, style in (("train", "--"), ("test", "-")):
        prices, errors = ([row[key] for row in sweep] for key in ("price", split))
        axis.plot(prices, errors, style, color=harness.COLOURS[0], label=split)
    axis.set(xlabel="λ", ylabel="mean squared error", yscale="log", title="Total variation")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return picture


def draw_curves(rows: list[Row], best: float) -> Any:
    """Figs. 7 and 8: error over the epochs, total variation's as a line."""
    picture, axes = harness.figure(12, 4, 2)
    for axis, split in zip(axes, ("train", "test"), strict=True):
        harness.curves(axis, [row for row in rows if row["epoch"]], "loss", (split,))
        axis.axhline(best, color="black", linestyle=":", label="total variation, test")
        axis.set(yscale="log", ylabel="mean squared error", title={"train": "training", "test": "test"}[split])
    axes[1].legend(fontsize=7)
    return picture


def ordered(D: Tensor) -> Tensor:
    """Rows sorted by where their largest entry is."""
    return D[D.abs().argmax(1).argsort(stable=True)]


def draw_differences(pairs: dict[str, tuple[Tensor, Tensor]]) -> Any:
    """Fig. 3: D before and after learning, a column for each model."""
    picture, axes = harness.figure(3.6 * len(pairs), 7, len(pairs), 2, squeeze=False)
    for column, (name, matrices) in enumerate(pairs.items()):
        for axis, D, when in zip(axes[:, column], matrices, ("before", "after"), strict=True):
            limit = float(D.abs().quantile(0.998))
            harness.heat(axis, ordered(D), limit)
            axis.set_title(f"{name},\n{when}", fontsize=9)
            axis.set(xticks=[], yticks=[])
    return picture


def draw_signals(noisy: Tensor, clean: Tensor, answers: dict[str, Tensor]) -> Any:
    """Some held-out signals: a row for each, a column for each model."""
    columns, rows = len(answers), len(noisy)
    picture, axes = harness.figure(3.4 * columns, 2 * rows, columns, rows, squeeze=False, sharex=True)
    for column, (name, answer) in enumerate(answers.items()):
        axes[0, column].set_title(name, fontsize=9)
        for axis, y, right, z in zip(axes[:, column], noisy, clean, answer, strict=True):
            axis.plot(y, ".", color=harness.COLOURS[5], markersize=3, label="noisy")
            axis.plot(right, color="black", linewidth=1, label="clean")
            axis.plot(z, color=harness.COLOURS[1], linewidth=1.4, label="answer, with its mean squared error")
            axis.text(0.02, 0.04, f"{(z - right).square().mean():.1f}", transform=axis.transAxes, fontsize=8)
    picture.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return picture


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    train: Annotated[int, Option(min=2, help="Training signals, each with its mirror image.")] = 9000,
    test: Annotated[int, Option(min=1, help="Held-out signals.")] = 1000,
    epochs: Annotated[int, Option(min=1, help="Epochs of the models with an OptNet layer.")] = 10,
    rate: Annotated[
        float,
        Option(callback=positive, help="Adam's rate for them (3 times it for the random start); it decays to zero."),
    ] = 1e-3,
    decay: Annotated[float, Option(min=0, help="Weight decay of their maps in front and behind.")] = 0.3,
    batch: Annotated[int, Option(min=1, help="Signals per step, over all processes.")] = 50,
    fc_epochs: Annotated[int, Option(min=1, help="Epochs of the fully connected network.")] = 25,
    fc_hidden: Annotated[int, Option(min=1, help="Its hidden units.")] = 300,
    fc_rate: Annotated[float, Option(callback=positive, help="Adam's rate for it; it decays to zero.")] = 3e-3,
    sweep: Annotated[int, Option(min=1, help="Total variation is tried with λ = 1, 2, … up to this.")] = 40,
    seed: Annotated[int, Option(min=0, max=10**9, help="The first seed, of the signals and the models.")] = 0,
    seeds: Annotated[int, Option(min=1, help="How many seeds, one after another.")] = 1,
    few: Annotated[int, Option(min=1, help="Of them, how many for the random start without help, and the guide.")] = 1,
    out: Annotated[Path | None, Option(help="Folder of the run; default: runs/denoising-DATE-TIME.")] = None,
    resume: Annotated[Path | None, Option(help="Folder of a run to continue, with that run's options.")] = None,
    accelerator: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, Option(min=1, help="Processes on this machine (torchrun sets it).")] = 1,
) -> None:
    """Denoise signals: total variation, a fully connected network, OptNet from scratch and fine-tuned (section 4.2).

    The error is the mean square over samples and held-out signals. `ratio` divides it by that of total variation with
    the best λ for the same held-out signals; in the paper, 14.4/16.5 = 0.87 for the fine-tuned layer.
    """
    options = dict(locals())
    if resume:
        return main(**harness.resumed(resume, options))
    run = Run("denoising", options, out, accelerator, devices)
    results: list[Row] = []
    jobs: list[Job] = []
    with harness.bar(run) as progress:
        for each in range(seed, seed + seeds):
            data = load(train, test, each)
            swept = sweep_prices(data, sweep)
            best = min(swept, key=lambda row: row["test"])
            mine, before = models(data, best["price"], fc_hidden, each, each < seed + few, run.say)
            row: Row = {"model": "total variation", "seed": each, "price": best["price"]}
            found = [row | {"train_loss": best["train"], "test_loss": best["test"]}]
            for name, model in mine.items():
                its_epochs, its_rate = (epochs, rate) if isinstance(model, Denoiser) else (fc_epochs, fc_rate)
                optimizer = optimiser(model, 3 * its_rate if name == "OptNet, random start" else its_rate, decay)
                job = Job(name, each, model, optimizer, measures, its_epochs, batch, harness.warm)
                jobs.append(job)
                harness.train(run, job, data, progress)
                found.append(harness.result(run, job, data))
                if name in before:
                    found[-1]["two"] = share_of_two(before[name])
            results += [one | {"ratio": one["test_loss"] / best["test"]} for one in found]
            if each == seed:
                draw_first(run, data, swept, mine, before)
    first = next(row["test_loss"] for row in results if row["model"] == "total variation")
    run.save(draw_curves(harness.rows([job for job in jobs if job.seed == seed]), first), "curves.png")
    run.finish(results, shown=summary(results))


def sweep_prices(data: Data, most: int) -> list[Row]:
    """Errors of total variation for λ = 1, …, `most`; chosen on the test signals, as in the paper: in its favour."""
    some = slice(0, min(len(data.train[0]) // 2, 1000))
    swept = []
    for price in range(1, most + 1):
        errors = [
            measures(tv(y, price), clean)["loss"].mean().item()
            for y, clean in ((data.train[0][some], data.train[1][some]), data.test)
        ]
        swept.append({"price": price, "train": errors[0], "test": errors[1]})
    return swept


def models(
    data: Data, price: float, hidden: int, seed: int, all_of_them: bool, say: Callable[[str], None]
) -> tuple[dict[str, nn.Module], dict[str, Tensor]]:
    """The models of a seed, and the D from which each of the layers starts (the random one, where it is learned)."""
    length = data.train[0].shape[1]
    torch.manual_seed(seed)
    random, start = sparse_rows(data.train[1], 0), differences(length)
    torch.manual_seed(seed)
    sparse = sparse_rows(data.train[1])
    shares = f"{share_of_two(random):.2f} at random, {share_of_two(sparse):.3f} now"
    say(f"seed {seed}: share of a row in two samples, {shares}")
    made: dict[str, nn.Module] = {
        "fully connected": FullyConnected(length, hidden),
        "OptNet, random start, sparsity first": Denoiser(sparse, price),
        "OptNet, start from total variation": Denoiser(start, price),
    }
    if all_of_them:
        made["OptNet, random start"] = Denoiser(random_rows(length), 3.0)
        made["OptNet, guided by a network"] = Denoiser(start, price, Guide())
    before = {name: model.D.detach().clone() for name, model in made.items() if isinstance(model, Denoiser)}
    return made, before


def draw_first(run: Run, data: Data, swept: list[Row], mine: dict[str, nn.Module], before: dict[str, Tensor]) -> None:
    """The pictures of the first seed's models."""
    best = min(swept, key=lambda row: row["test"])
    run.save(draw_sweep(swept), "sweep.png")
    after = {name: model.D.detach() for name, model in mine.items() if isinstance(model, Denoiser)}
    run.save(draw_differences({name: (before[name], after[name]) for name in before}), "differences.png")
    noisy, clean = (part[:4] for part in data.test)
    answers = {"total variation": tv(noisy, best["price"])}
    with torch.no_grad():
        answers |= {name: model(noisy) for name, model in mine.items()}
    run.save(draw_signals(noisy, clean, answers), "signals.png")


# --- the report -----------------------------------------------------------------------------------------------------


def paper(folder: Path, full: bool) -> None:
    """The settings of the report."""
    main(epochs=50 if full else 8, fc_epochs=100 if full else 20, seeds=5, out=folder)


def summary(results: list[Row]) -> list[Row]:
    """A row per model: mean and standard deviation over the seeds, beside the paper's."""
    table = []
    for model in dict.fromkeys(row["model"] for row in results):
        mine = [row for row in results if row["model"] == model]
        theirs = PAPER.get(model)
        row: Row = {"model": model, "seeds": len(mine)}
        for measure, name in (
            ("train_loss", "training error"),
            ("test_loss", "test error"),
            ("ratio", "ratio to total variation"),
        ):
            row[name] = harness.spread([each[measure] for each in mine])
        row |= {"paper: test error": theirs and theirs[1], "paper: ratio": theirs and theirs[1] / 16.5}
        table.append(row)
    return table


def report(folder: Path) -> str:
    """The section of the report."""
    results = harness.read_json(folder / "results.json")["results"]
    options = harness.read_json(folder / "config.json")["options"]
    sparse = [row["two"] for row in results if row["model"] == "OptNet, random start, sparsity first"]
    prices = sorted({row["price"] for row in results if row["model"] == "total variation"})
    return f"""## Denoising, section 4.2, table 1, figs. 3, 7 and 8

{(__doc__ or "").split(chr(10), 2)[2].strip()}

{options["train"]} signals to learn from, {options["test"]} held out, others for every seed; mirror images count as
training signals, too, for every model. The best λ for these signals ({prices[0]} to {prices[-1]}) differs from the 13
that the paper names, and so do the errors: ratios are what compares, to total variation on the same held-out signals.
All models train with AdamW, {options["batch"]} signals a step, rates that decay to zero: {options["rate"]} for the
layers (3 times that for the random start) and {options["fc_rate"]} for the network, which has {options["fc_hidden"]}
hidden units; {options["epochs"]} and {options["fc_epochs"]} epochs. The paper's random start has a fixed λ and a
penalty; ours learns λ, too. After the first lesson, which takes seconds, {100 * min(sparse):.1f} % of the energy of the
rows is in two samples, with every seed; that is what stands under *before* in the picture of D. *Guided by a network*
lets three convolutions scale the price of a jump, place by place: not in the paper. Means and standard deviations over
seeds:

{harness.markdown(summary(results))}
![Training and test error over the epochs](img/experiments/denoising-curves.png)

![D before and after learning, rows sorted](img/experiments/denoising-differences.png)

![Held-out signals](img/experiments/denoising-signals.png)

![Total variation against λ](img/experiments/denoising-sweep.png)
"""


def compare(folder: Path) -> list[Row]:
    """The paper's numbers beside ours."""
    rows = []
    for row in summary(harness.read_json(folder / "results.json")["results"]):
        theirs = row["paper: test error"]
        rows.append(
            {
                "experiment": f"Denoising (table 1): {row['model']}",
                "paper": theirs and f"{theirs} ({row['paper: ratio']:.2f} of TV)",
                "ours": f"{row['test error']} ({row['ratio to total variation']} of TV)",
            }
        )
    return rows
