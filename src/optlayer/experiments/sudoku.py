"""Mini-Sudoku (OptNet, section 4.4): the rules of a 4×4 Sudoku, learned from examples alone.

The layer solves `minimise ½·0.1·zᵀz − xᵀz subject to A z = b, z ≥ 0`, where x is the one-hot puzzle (64 numbers, a
blank is zeros) and z the one-hot answer. A (40×64) and z₀, with b = A z₀, start at random; nothing else is told.

But 40 says much: it is the rank of the true rules. With fewer equations some rules are missing. With more, boards that
are right are cut off: an equation cannot become idle, so one too many is never unlearned. *Soft* equations can: the
layer `minimise ½·0.1·zᵀz − xᵀz + ½ Σᵢ wᵢ (aᵢᵀ(z − z₀))² subject to z ≥ 0` learns weights w for its 64 rows as well,
starts with more than any answer needs, and finds out how many are. It is `optlayer.nn.OptNetLayer(soft=10.0)`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from typer import Option

from optlayer.experiments import harness
from optlayer.experiments.harness import Data, Job, Mistake, Row, Run, positive
from optlayer.nn import OptNetLayer

CLIP = 0.02
"""Longest gradient for hard equations: about the usual length at first. When rows of A get nearly dependent, single
batches give one a hundred times longer, and Adam's step after it may undo an epoch's learning."""

SOFT = 10.0
"""What the weights of soft equations start with; from 1 to 100 all boards are right in the end."""

# --- puzzles --------------------------------------------------------------------------------------------------------


def units(boards: np.ndarray) -> np.ndarray:
    """Rows, columns and blocks: (N, n, n) to (N, 3n, n)."""
    side = boards.shape[-1]
    size = round(side**0.5)
    blocks = boards.reshape(-1, size, size, size, size).swapaxes(2, 3).reshape(boards.shape)
    return np.concatenate([boards, boards.swapaxes(1, 2), blocks], 1)


def valid(boards: np.ndarray) -> np.ndarray:
    """Which boards have every digit once in every row, column and block."""
    return (np.sort(units(boards), -1) == np.arange(1, boards.shape[-1] + 1)).all((1, 2))


def grids() -> np.ndarray:
    """All 288 solved boards, (288, 4, 4), digits 1 to 4."""
    rows = np.array(list(itertools.permutations(range(1, 5))), np.uint8)
    boards = rows[np.array(list(itertools.product(range(24), repeat=4)))]
    return boards[valid(boards)]


def puzzles(count: int, seed: int = 0, patience: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Distinct puzzles with exactly one solution: givens (count, 4, 4) with 0 for a blank, and their solutions.

    A random board loses its digits in random order, as long as no other board fits; the third digit that cannot
    go ends it. That leaves 4 to 9 givens.
    """
    boards = grids().reshape(-1, 16)
    bits = 1 << np.arange(16)
    agree = (boards[:, None] == boards) @ bits  # the cells in which two boards agree, as bits
    rng = np.random.default_rng(seed)
    found: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    while len(found) < count:
        which = rng.integers(len(boards), size=2048)
        order = rng.permuted(np.tile(bits, (len(which), 1)), axis=1)
        given, failures = np.full(len(which), bits.sum()), np.zeros(len(which), int)
        for cell in order.T:
            without = given & ~cell
            unique = (agree[which] & without[:, None] == without[:, None]).sum(1) == 1
            given = np.where(unique & (failures < patience), without, given)
            failures += ~unique
        shown = (given[:, None] & bits) > 0
        for puzzle, answer in zip(boards[which] * shown, boards[which], strict=True):
            found.setdefault(puzzle.tobytes(), (puzzle, answer))
    chosen = list(itertools.islice(found.values(), count))
    puzzle, solved = (np.stack(part).reshape(-1, 4, 4) for part in zip(*chosen, strict=True))
    return puzzle, solved


def one_hot(boards: np.ndarray) -> Tensor:
    """Boards (N, 4, 4) as (N, 4, 4, 4): row, column, digit; blanks are zeros."""
    return torch.from_numpy(np.eye(5, dtype=np.float32)[:, 1:][boards])


def check(path: Path, puzzle: np.ndarray, solution: np.ndarray, side: int = 4) -> None:
    """Whether the arrays of a file are puzzles and their solutions.

    Raises:
        Mistake: shapes or digits are others, or a solution breaks the rules or contradicts its puzzle.
    """
    board = f"(N, {side}, {side})"
    for name, array in (("puzzle", puzzle), ("solution", solution)):
        if array.shape[1:] != (side, side):
            raise Mistake(f"In {path}, `{name}` has shape {array.shape}, not {board}.")
        if array.dtype.kind not in "iu":
            raise Mistake(f"In {path}, `{name}` has type {array.dtype}; digits are whole numbers.")
    if len(puzzle) != len(solution):
        raise Mistake(f"In {path}, there are {len(puzzle)} puzzles and {len(solution)} solutions.")
    for wrong, what in (
        ((puzzle < 0) | (puzzle > side), f"has a digit that is none of 0 (a blank) to {side}"),
        (~valid(solution)[:, None, None], f"has a solution that lacks a digit 1 to {side} in a row, column or block"),
        ((puzzle != 0) & (puzzle != solution), "has a digit that its solution has not"),
    ):
        if wrong.any():
            raise Mistake(f"In {path}, puzzle {np.argwhere(wrong)[0][0]} (counted from 0) {what}.")


def load(path: Path | None, train: int, test: int, seed: int) -> Data:
    """Puzzles from a file with `puzzle` and `solution`, or our own; the last `test` are held out.

    Raises:
        Mistake: the file is absent or no such file, or has too few puzzles.
    """
    if path is None:
        given, solution = puzzles(train + test, seed)
    else:
        given, solution = harness.read_npz(path, "puzzle", "solution")
        check(path, given, solution)
        if len(given) < train + test:
            raise Mistake(f"{path} has {len(given)} puzzles, fewer than {train} to learn and {test} held out.")
    x, y = one_hot(given), one_hot(solution)
    return Data(train=(x[:train], y[:train]), test=(x[-test:], y[-test:]))


# --- models ---------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """The layer alone: puzzle (B, 4, 4, 4) to answer, of the same shape. Works in float64 inside."""

    def __init__(self, equalities: int = 40, penalty: float = 0.1, soft: float | None = None) -> None:
        super().__init__()
        self.layer = OptNetLayer(64, equalities=equalities, Q=penalty, soft=soft, lb=0.0, dtype=torch.float64)

    def forward(self, puzzle: Tensor) -> Tensor:
        return self.layer(-puzzle.flatten(1).double()).reshape(puzzle.shape)


def equations(layer: OptNetLayer) -> int:
    """How many there are; of soft ones, the directions in which they are stiffer than the cost itself."""
    assert layer.A is not None
    if layer.log_w is None:
        return len(layer.A)
    with torch.no_grad():
        stiffness = torch.linalg.svdvals((0.5 * layer.log_w).exp()[:, None] * layer.A).square()
    return int((stiffness > layer.d.max()).sum())


class ConvNet(nn.Module):
    """The paper's baseline: 3×3 convolutions with ReLU between, digits as channels, the board's size kept.

    Weights start as He et al. (2015) have it for ReLU. With torch's start signals fade from layer to layer, and a wide
    net answers the mean board for thousands of steps.
    """

    def __init__(self, depth: int = 10, filters: int = 512) -> None:
        super().__init__()
        widths = [4, *[filters] * (depth - 1), 4]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")

    def forward(self, puzzle: Tensor) -> Tensor:
        return self.layers(puzzle.movedim(-1, 1)).movedim(1, -1)


def measures(answer: Tensor, target: Tensor) -> Row:
    """Squared error, share of wrong cells, and whether any cell of the board is wrong; each per board."""
    wrong = answer.argmax(-1) != target.argmax(-1)
    return {
        "loss": (answer - target).square().mean((1, 2, 3)),
        "cell_error": wrong.double().mean((1, 2)),
        "board_error": wrong.any(2).any(1),
    }


def answer(model: nn.Module, puzzle: Tensor) -> Tensor:
    with torch.no_grad():
        return model.cpu()(puzzle)


# --- pictures -------------------------------------------------------------------------------------------------------


def draw_boards(puzzle: Tensor, answers: dict[str, Tensor], target: Tensor) -> Any:
    """A row per puzzle: the givens, then each model's answer; wrong digits in red, givens bold."""
    columns = {"puzzle": puzzle, **answers}
    picture, axes = harness.figure(1.9 * len(columns), 1.9 * len(puzzle), len(columns), len(puzzle), squeeze=False)
    for column, (title, boards) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=10)
        for axis, board, given, right in zip(axes[:, column], boards, puzzle, target, strict=True):
            for line in range(5):
                width = 1.6 if line % 2 == 0 else 0.5
                axis.plot([0, 4], [line, line], "k", linewidth=width)
                axis.plot([line, line], [0, 4], "k", linewidth=width)
            for i, j in itertools.product(range(4), repeat=2):
                if board[i, j].abs().sum() == 0:
                    continue
                digit = board[i, j].argmax()
                axis.text(
                    j + 0.5,
                    i + 0.52,
                    str(int(digit) + 1),
                    ha="center",
                    va="center",
                    fontsize=13,
                    color="black" if digit == right[i, j].argmax() else "#d00000",
                    weight="bold" if given[i, j].any() else "normal",
                )
            axis.set(xlim=(-0.05, 4.05), ylim=(4.05, -0.05), aspect="equal")
            axis.axis("off")
    return picture


def rules() -> Tensor:
    """The true constraints, (64, 64): a digit a cell, each digit once in every row, column and block; rank 40."""
    place = np.arange(64).reshape(4, 4, 4)
    groups = [place.reshape(16, 4)]
    groups += [units(place[None, :, :, digit])[0] for digit in range(4)]
    matrix = np.zeros((64, 64))
    matrix[np.arange(64)[:, None], np.concatenate(groups)] = 1
    return torch.from_numpy(matrix)


def row_space(matrix: Tensor, rank: int) -> Tensor:
    """The projection onto the span of the first `rank` right singular vectors."""
    vectors = torch.linalg.svd(matrix)[2][:rank]
    return vectors.mT @ vectors


def draw_constraints(learned: Tensor) -> Any:
    """The learned A, and what it means: the space its rows span, beside that of the true rules."""
    picture, axes = harness.figure(12, 3.6, 3)
    spaces = [row_space(learned, len(learned)), row_space(rules(), 40)]
    titles = ["learned A (40 × 64)", "row space of the learned A", "row space of the rules"]
    for axis, matrix, title in zip(axes, [learned, *spaces], titles, strict=True):
        harness.heat(axis, matrix, float(matrix.abs().quantile(0.995)))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("variable (row, column, digit)")
    return picture


def draw_curves(rows: list[Row]) -> Any:
    """Loss and errors over the epochs."""
    picture, axes = harness.figure(12, 3.5, 3)
    for axis, measure in zip(axes, ["loss", "cell_error", "board_error"], strict=True):
        harness.curves(axis, rows, measure)
    axes[0].set_yscale("log")
    axes[0].set_title("mean squared error", fontsize=10)
    axes[1].set_title("share of wrong cells", fontsize=10)
    axes[2].set_title("share of boards with a wrong cell", fontsize=10)
    axes[2].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    return picture


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    data: Annotated[
        Path | None, Option(help="npz with `puzzle` and `solution` (N, 4, 4); default: puzzles made here.")
    ] = None,
    train: Annotated[int, Option(min=1, max=50_000, help="Training puzzles.")] = 9000,
    test: Annotated[int, Option(min=1, max=10_000, help="Held-out puzzles.")] = 1000,
    epochs: Annotated[int, Option(min=1, help="Epochs of the layers.")] = 5,
    rate: Annotated[float, Option(callback=positive, help="Adam's rate for them; it decays to zero.")] = 0.1,
    batch: Annotated[int, Option(min=1, help="Puzzles per step, over all processes.")] = 50,
    equalities: Annotated[int, Option(min=1, max=64, help="Rows of the learned A.")] = 40,
    wrong: Annotated[
        list[int] | None, Option(min=1, max=64, help="Further layers with so many rows (may be repeated).")
    ] = None,
    soft: Annotated[int, Option(min=0, help="Rows of a further layer, of soft equations; 0 leaves it out.")] = 0,
    conv_epochs: Annotated[int, Option(min=0, help="Epochs of the convolutional baseline; 0 leaves it out.")] = 20,
    conv_filters: Annotated[int, Option(min=1, help="Its filters; the paper has 512, slow without a GPU.")] = 64,
    conv_depth: Annotated[int, Option(min=2, help="Its layers.")] = 10,
    conv_rate: Annotated[float, Option(callback=positive, help="Adam's rate for it; it decays to zero.")] = 1e-3,
    seed: Annotated[int, Option(min=0, max=10**9, help="The first seed.")] = 0,
    seeds: Annotated[int, Option(min=1, help="How many seeds, one after another.")] = 1,
    conv_seeds: Annotated[int, Option(min=1, help="Of them, how many for the convolutional baseline.")] = 2,
    out: Annotated[Path | None, Option(help="Folder of the run; default: runs/sudoku-DATE-TIME.")] = None,
    resume: Annotated[Path | None, Option(help="Folder of a run to continue, with that run's options.")] = None,
    accelerator: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, Option(min=1, help="Processes on this machine (torchrun sets it).")] = 1,
) -> None:
    """Learn mini-Sudoku from examples: an OptNet layer beside a convolutional network (section 4.4, figs. 4, 5)."""
    options = dict(locals())
    if resume:
        return main(**harness.resumed(resume, options))
    run = Run("sudoku", options, out, accelerator, devices)
    boards = load(data, train, test, seed)
    jobs, layers = [], {}
    forms: list[tuple[str, int, float | None]] = [("OptNet", equalities, None)]
    forms += [(f"OptNet, {rows} rows", rows, None) for rows in wrong or ()]
    forms += [(f"OptNet, {soft} soft rows", soft, SOFT)] if soft else []
    for each in range(seed, seed + seeds):
        for name, rows, weight in forms:
            torch.manual_seed(each)
            layer = Layer(rows, soft=weight)
            optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
            schedule, clip = (harness.warm, None) if weight else (harness.cosine, CLIP)
            jobs.append(Job(name, each, layer, optimizer, measures, epochs, batch, schedule, clip=clip))
            layers[jobs[-1].key] = layer.layer
        if conv_epochs and each < seed + conv_seeds:
            net = ConvNet(conv_depth, conv_filters)
            optimizer = torch.optim.Adam(net.parameters(), lr=conv_rate)
            name = f"conv {conv_depth}×{conv_filters}"
            jobs.append(Job(name, each, net, optimizer, measures, conv_epochs, batch, harness.cosine))

    some = slice(0, 4)
    puzzle, target = (part[some] for part in boards.test)
    answers = {"OptNet, untrained": answer(jobs[0].model, puzzle)}
    with harness.bar(run) as progress:
        for job in jobs:
            harness.train(run, job, boards, progress)
    answers |= {f"{job.name}, trained": answer(job.model, puzzle) for job in jobs if job.seed == seed}
    run.save(draw_curves(harness.rows(jobs)), "curves.png")
    run.save(draw_boards(puzzle, answers | {"solution": target}, target), "boards.png")
    run.save(draw_constraints(jobs[0].model.get_parameter("layer.A").detach()), "constraints.png")
    counts = {key: equations(layer) for key, layer in layers.items()}
    run.finish([harness.result(run, job, boards) | {"equations": counts.get(job.key)} for job in jobs])


# --- the report -----------------------------------------------------------------------------------------------------


def paper(folder: Path, full: bool) -> None:
    """The settings of the report: the paper's network once, beside one layer; then layers, beside a small one."""
    paper_net = {"conv_filters": 512, "conv_rate": 3e-4, "conv_epochs": 20 if full else 7}
    main(seeds=1, conv_seeds=1, out=folder / "conv512", **paper_net)  # type: ignore[arg-type]
    main(seeds=10, wrong=[32, 48], soft=64, conv_epochs=8, conv_filters=32, conv_seeds=2, out=folder)


def summary(results: list[Row]) -> list[Row]:
    """A row per model: mean and standard deviation over the seeds."""
    table = []
    for model in dict.fromkeys(row["model"] for row in results):
        mine = [row for row in results if row["model"] == model]
        row: Row = {"model": model, "seeds": len(mine)}
        for measure, scale, name in (
            ("train_board_error", 100, "wrong boards, training (%)"),
            ("test_board_error", 100, "wrong boards, held out (%)"),
            ("test_cell_error", 100, "wrong cells, held out (%)"),
            ("test_loss", 1, "loss, held out"),
        ):
            row[name] = harness.spread([scale * each[measure] for each in mine], 2)
        counts = [each["equations"] for each in mine if each["equations"] is not None]
        few, many = (min(counts), max(counts)) if counts else (None, None)
        table.append(row | {"equations in the end": few if few == many else f"{few} to {many}"})
    return table


def found(folder: Path) -> list[Row]:
    """The results of both runs; a model and seed that both have counts once."""
    return list({(row["model"], row["seed"]): row for row in harness.read_results(folder)}.values())


def report(folder: Path) -> str:
    """The section of the report."""
    options = harness.read_json(folder / "config.json")["options"]
    big = ""
    if (folder / "conv512" / "config.json").exists():
        one = harness.read_json(folder / "conv512" / "config.json")["options"]
        big = f"""
The paper's network, {one["conv_depth"]} layers of {one["conv_filters"]} filters, has a run of its own, beside one more
layer: {one["conv_epochs"]} epochs with Adam at {one["conv_rate"]:g}.

![Loss and errors of the layer and of the paper's network](img/experiments/sudoku-conv512-curves.png)
"""
    source = "the paper's own data" if options["data"] else "puzzles that the project makes itself"
    _, layer, number = (__doc__ or "").strip().split("\n\n")
    return f"""## Mini-Sudoku, section 4.4 and figs. 4 and 5

{layer}

{number}

The data are {source}: {options["train"]} to learn from, {options["test"]} held out; a board with any wrong cell is
wrong. The layers train {options["epochs"]} epochs with Adam at {options["rate"]}, {options["batch"]} puzzles a step,
hard equations with gradients clipped at {CLIP}; the convolutional network {options["conv_epochs"]} epochs with Adam at
{options["conv_rate"]}; rates decay to zero. The paper shows curves: its layer learns most of the rules, the
convolutional network over-fits. Means and standard deviations over seeds:

{harness.markdown(summary(found(folder)))}
![Loss and errors over the epochs](img/experiments/sudoku-curves.png)

![Held-out boards before and after training](img/experiments/sudoku-boards.png)

The learned A looks like noise, as any basis of the same row space serves; the projection onto that space shows the
rules.

![The learned constraints](img/experiments/sudoku-constraints.png)
{big}"""


def compare(folder: Path) -> list[Row]:
    """The paper's statement beside ours."""
    table = summary(found(folder))
    ours = "; ".join(f"{row['model']}: {row['wrong boards, held out (%)']} %" for row in table)
    return [
        {
            "experiment": "Mini-Sudoku (figs. 4, 5)",
            "paper": "OptNet learns most rules, conv net over-fits (curves only)",
            "ours": f"wrong held-out boards, {ours}",
        }
    ]
