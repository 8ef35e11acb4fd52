"""9×9 Sudoku: one QP that learns which cells belong together; the paper does not attempt it.

The layer is that of mini-Sudoku with 729 variables, and its equations are soft while it learns:
`minimise ½·ε·zᵀz − xᵀz + ½ Σᵢ wᵢ (aᵢᵀ(z − z₀))² subject to z ≥ 0`. It learns in two ways:

- *told two facts*, both about the form of an answer and none about which cells form a row, a column or a block: every
  cell holds one digit, so its nine variables sum to one; and digits are names, so what is learned for one holds for
  all. One B (40×81) serves all digits, `B z_d = B·1/9`. (Alike digits that share a cell have a ninth of it each.)
- *told nothing*: A (400×729) and its weights, from a random start, and z₀, from the mean answer. A *first lesson*
  leaves z ≥ 0 out, so that the layer is an affine map, and blanks cells of the training solutions anew in every step;
  that costs a hundredth. Then it goes on as a QP.

More rows than needed: 27 groups have rank 21, all true rules rank 249. What is not needed gets no weight. When learning
is over, the rules are read off: directions in which the learned cost is stiffer than ε become hard equations. They are
nearly the true ones, not exactly, which puzzles with few givens notice.

Gradients are not the only way to learn A. Equations that hold for every solution are those along which solutions do
not vary: the null space of their covariance. One more layer takes its A and b from there, in closed form from the
training solutions; it is told nothing at all.

How far does a QP go, even with the true rules? As ε goes to zero it is the linear relaxation: among all points of the
rules' polytope that agree with the givens it takes the shortest one. Where a puzzle needs a case distinction, that set
holds more than the solution, fractional points, and the shortest of them need not round to it. Puzzles with fewer
givens, every one of them needed or nearly so, show it. A *second layer* of the same QP, and more, push the answer to a
vertex: the answer z of one is added to the linear term of the next, x + z (the concave-convex procedure for −½‖z‖²).
*Fixing* gives the surest blank cells as further givens, four at a time, and solves again, without ever going back.
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

from optlayer import Diagonal, solve
from optlayer.experiments import harness
from optlayer.experiments.harness import Data, Job, Row, Run, positive
from optlayer.experiments.sudoku import SOFT, measures, row_space
from optlayer.nn import OptNetLayer

SATNET = 0.983
"""Share of boards that SATNet solves after 9000 examples (Wang et al., 2019)."""
LEARN = 0.1
"""ε while gradients learn: softer answers."""

# --- puzzles --------------------------------------------------------------------------------------------------------

Groups = list[list[int]]
CELLS = range(81)
ROW, COLUMN = [cell // 9 for cell in CELLS], [cell % 9 for cell in CELLS]
BLOCK = [cell // 27 * 3 + cell % 9 // 3 for cell in CELLS]
ALL = 0b111_111_111


def count_solutions(board: list[int], limit: int = 2) -> tuple[int, list[int]]:
    """How many boards fit (up to `limit`), and the last one found; 0 is a blank, digit d is the bit 1 << (d − 1).

    Backtracking on the blank with the fewest candidates, which are three masks per cell: row, column, block.
    """
    rows, columns, blocks = [ALL] * 9, [ALL] * 9, [ALL] * 9
    blanks = []
    for cell in CELLS:
        if board[cell]:
            rows[ROW[cell]] ^= board[cell]
            columns[COLUMN[cell]] ^= board[cell]
            blocks[BLOCK[cell]] ^= board[cell]
        else:
            blanks.append(cell)
    filled, found, answer = list(board), 0, list(board)

    def search() -> None:
        nonlocal found, answer
        if not blanks:
            found, answer = found + 1, list(filled)
            return
        fewest, place, options = 10, 0, 0
        for i, cell in enumerate(blanks):
            mask = rows[ROW[cell]] & columns[COLUMN[cell]] & blocks[BLOCK[cell]]
            count = mask.bit_count()
            if count < fewest:
                fewest, place, options = count, i, mask
                if count <= 1:
                    break
        cell = blanks[place]
        blanks[place] = blanks[-1]
        blanks.pop()
        r, c, b = ROW[cell], COLUMN[cell], BLOCK[cell]
        while options and found < limit:
            bit = options & -options
            options ^= bit
            filled[cell] = bit
            rows[r] ^= bit
            columns[c] ^= bit
            blocks[b] ^= bit
            search()
            rows[r] ^= bit
            columns[c] ^= bit
            blocks[b] ^= bit
        filled[cell] = 0
        blanks.append(cell)
        blanks[place], blanks[-1] = blanks[-1], blanks[place]

    search()
    return found, answer


def grid(rng: np.random.Generator) -> list[int]:
    """A random solved board: three random blocks on the diagonal, the rest by search, then shuffled."""
    board = [0] * 81
    for block in range(3):
        for digit, place in enumerate(rng.permutation(9)):
            board[(3 * block + place // 3) * 9 + 3 * block + place % 3] = 1 << digit
    square = np.array(count_solutions(board, 1)[1]).reshape(9, 9)
    lines = [np.concatenate([3 * band + rng.permutation(3) for band in rng.permutation(3)]) for _ in range(2)]
    return [int(bit) for bit in square[lines[0]][:, lines[1]].ravel()]


def puzzles(count: int, seed: int = 0, givens: int = 36) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles with one solution, and their solutions, (count, 9, 9), 0 for a blank.

    Random cells of a random board are blanked; what has more than one solution is thrown away and blanked anew. The
    number of givens is normal around `givens`, with standard deviation 2.
    """
    rng = np.random.default_rng(seed)
    given, solutions = np.zeros((2, count, 81), np.uint8)
    for i in range(count):
        while True:
            board = grid(rng)
            kept = np.zeros(81, bool)
            kept[rng.permutation(81)[: round(givens + 2 * rng.standard_normal())]] = True
            puzzle = [bit if keep else 0 for bit, keep in zip(board, kept, strict=True)]
            if count_solutions(puzzle)[0] == 1:
                break
        solutions[i] = [bit.bit_length() for bit in board]
        given[i] = np.where(kept, solutions[i], 0)
    return given.reshape(-1, 9, 9), solutions.reshape(-1, 9, 9)


def hard_puzzles(count: int, seed: int = 0, least: int = 24, most: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles with one solution and `least` to `most` givens, and their solutions, (count, 9, 9), 0 for a blank.

    A random board loses its digits in random order as long as the solution stays the only one, down to a number of
    givens drawn anew for each.
    """
    rng = np.random.default_rng([seed, 1])
    given, solutions = np.zeros((2, count, 81), np.uint8)
    for i in range(count):
        goal, left = int(rng.integers(least, most + 1)), 81
        while left > most:
            board = grid(rng)
            puzzle, left = list(board), 81
            for cell in rng.permutation(81):
                if left == goal:
                    break
                bit, puzzle[cell] = puzzle[cell], 0
                if count_solutions(puzzle)[0] == 1:
                    left -= 1
                else:
                    puzzle[cell] = bit
        solutions[i] = [bit.bit_length() for bit in board]
        given[i] = [bit.bit_length() for bit in puzzle]
    return given.reshape(-1, 9, 9), solutions.reshape(-1, 9, 9)


def load(train: int, test: int, hard: int, seed: int, givens: int, cache: Path) -> tuple[Data, tuple[Tensor, Tensor]]:
    """Puzzles of this seed, the last ones held out, and hard ones; made once for a folder."""

    def made(name: str, make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
        file = cache / name
        if not file.exists():
            given, solutions = make()

            def write(path: Path) -> None:
                with path.open("wb") as opened:
                    np.savez_compressed(opened, puzzle=given, solution=solutions)

            harness.publish(file, write)
        eye = np.eye(10, dtype=np.float32)[:, 1:]
        x, y = (torch.from_numpy(eye[digits]) for digits in harness.read_npz(file, "puzzle", "solution"))
        return x, y

    x, y = made("puzzles.npz", lambda: puzzles(train + test, seed, givens))
    return Data(train=(x[:train], y[:train]), test=(x[train:], y[train:])), made(
        "hard.npz", lambda: hard_puzzles(hard, seed)
    )


# --- the layer ------------------------------------------------------------------------------------------------------


def true_groups() -> Tensor:
    """The 27 rows, columns and blocks as a matrix of zeros and ones, (27, 81); rank 21."""
    place = np.arange(9)[:, None]
    groups = np.concatenate([np.array(owner) == place for owner in (ROW, COLUMN, BLOCK)])
    return torch.from_numpy(groups.astype(np.float64))


def one_digit(kind: Tensor) -> Tensor:
    """Every cell's nine variables: their sums, (81, 729)."""
    return torch.kron(torch.eye(81), torch.ones(1, 9)).to(kind)


class Learner(nn.Module):
    """Learns B (rows, 81), the same for every digit, and is told that every cell holds one digit; float64 inside.

    Puzzles (B, 9, 9, 9) to answers of the same shape.

    Args:
        rows: more than are needed.
        penalty: ε. A large one makes answers softer and gradients useful; with the rules, a small one solves more.
        weight: what the weights of the soft equations start with.
    """

    def __init__(self, rows: int, penalty: float, weight: float = SOFT) -> None:
        super().__init__()
        self.penalty = penalty
        self.B = nn.Parameter((3 / 81) ** 0.5 * torch.rand(rows, 81, dtype=torch.float64))
        self.log_w = nn.Parameter(torch.full((rows,), math.log(weight), dtype=torch.float64))
        self.log_cell = nn.Parameter(torch.tensor(math.log(weight), dtype=torch.float64))

    def forward(self, puzzle: Tensor) -> Tensor:
        stiff = (0.5 * self.log_w).exp()[:, None] * self.B
        cells = one_digit(self.B)
        pull = torch.kron(stiff.mT @ stiff, torch.eye(9).to(stiff)) + self.log_cell.exp() / 9 * (cells.mT @ cells)
        q = -puzzle.flatten(1).to(stiff) - pull.sum(1) / 9
        Q = self.penalty * torch.eye(729).to(stiff) + pull
        return solve(Q, q, lb=torch.zeros_like(q[0])).z.reshape(puzzle.shape)

    @torch.no_grad()
    def rules(self, penalty: float) -> Whole:
        """What was found, as a layer with hard equations."""
        B = directions((0.5 * self.log_w).exp()[:, None] * self.B, self.penalty)
        return told(B, penalty)


class Free(nn.Module):
    """Learns A (rows, 729), told nothing: `OptNetLayer` with soft equations; z₀ starts as the mean answer."""

    def __init__(self, rows: int, penalty: float, weight: float = SOFT) -> None:
        super().__init__()
        self.layer = OptNetLayer(729, equalities=rows, Q=penalty, soft=weight, lb=0.0, dtype=torch.float64)
        assert self.layer.w0 is not None
        nn.init.constant_(self.layer.w0, math.log(1 / 9))

    def forward(self, puzzle: Tensor) -> Tensor:
        return self.layer(-puzzle.flatten(1).double()).reshape(puzzle.shape)

    @torch.no_grad()
    def rules(self, penalty: float) -> Whole:
        """What was found, as a layer with hard equations: directions stiffer than the first lesson's ε, which is 1."""
        assert self.layer.A is not None
        assert self.layer.log_w is not None
        A = directions((0.5 * self.layer.log_w).exp()[:, None] * self.layer.A, 1.0)
        return Whole(A, A @ self.layer.z0, penalty)


class FirstLesson(nn.Module):
    """The layer told nothing, without z ≥ 0 and with ε = 1: an affine map, a hundred times as fast.

        z = (I + AᵀWA)⁻¹ (x + AᵀWA z₀)

    While it trains its inputs are solutions, of which it blanks cells anew each time, from 20 to 80 %. With given
    puzzles it would fit which cells they happen to leave blank; so, nothing but the rules does better than x itself.
    """

    def __init__(self, free: Free) -> None:
        super().__init__()
        self.layer = free.layer

    def forward(self, board: Tensor) -> Tensor:
        if self.training:
            share = 0.2 + 0.6 * torch.rand(len(board), 1, 1, 1)
            board = board * (torch.rand(*board.shape[:3], 1) < share)
        x = board.flatten(1)
        layer = self.layer
        assert layer.A is not None
        assert layer.log_w is not None
        stiff = ((0.5 * layer.log_w).exp()[:, None] * layer.A).to(x)
        pull = stiff.mT @ stiff
        factor = torch.linalg.cholesky(pull + torch.eye(len(pull)))
        return torch.cholesky_solve((x + pull @ layer.z0.to(x)).mT, factor).mT.reshape(board.shape)


def directions(stiff: Tensor, penalty: float) -> Tensor:
    """Orthonormal rows: those in which ½‖S z‖² is stiffer than ½·ε·‖z‖²."""
    _, values, rows = torch.linalg.svd(stiff, full_matrices=False)
    return rows[values.square() > penalty]


class Whole(nn.Module):
    """The layer with hard equations, any A (m, 729) and b (m,)."""

    def __init__(self, A: Tensor, b: Tensor, penalty: float) -> None:
        super().__init__()
        self.A, self.b, self.penalty = A, b, penalty

    def forward(self, puzzle: Tensor) -> Tensor:
        return self.answer(puzzle.flatten(1)).reshape(puzzle.shape)

    def answer(self, x: Tensor) -> Tensor:
        """For linear terms −x (B, 729)."""
        q = -x.to(self.A)
        d = torch.full_like(q[0], self.penalty)
        # What is not solved to the last digit counts as it is.
        return solve(Diagonal(d), q, A=self.A, b=self.b, lb=torch.zeros_like(d), check=False).z


def told(B: Tensor, penalty: float) -> Whole:
    """B z_d = B·1/9 for every digit, and one digit in every cell.

    The ninth digit's equations follow from the rest, and are left out. The point that has 1/9 everywhere meets any such
    equations, so no B makes the QP infeasible.
    """
    A = torch.cat([one_digit(B), torch.kron(B.contiguous(), torch.eye(9)[:8].to(B))])
    return Whole(A, A.sum(1) / 9, penalty)


class Repeated(nn.Module):
    """Layers of the same QP, one after another: the answer of one is added to the linear term of the next."""

    def __init__(self, layer: Whole, layers: int) -> None:
        super().__init__()
        self.layer, self.layers = layer, layers

    def forward(self, puzzle: Tensor) -> Tensor:
        x = puzzle.flatten(1).double()
        z = torch.zeros_like(x)
        for _ in range(self.layers):
            z = self.layer.answer(x + z)
        return z.reshape(puzzle.shape)


class Fixing(nn.Module):
    """Gives the surest blank cells as further givens, a few at a time, and solves again; a wrong one stays wrong."""

    def __init__(self, layer: Whole, rounds: int = 14, cells: int = 4) -> None:
        super().__init__()
        self.layer, self.rounds, self.cells = layer, rounds, cells

    def forward(self, puzzle: Tensor) -> Tensor:
        x = puzzle.reshape(-1, 81, 9).double()
        for _ in range(self.rounds):
            z = self.layer.answer(x.flatten(1)).reshape(x.shape)
            best = z.topk(2, 2)
            margin = (best.values[..., 0] - best.values[..., 1]).masked_fill(x.sum(2) > 0, -1.0)
            sure = margin.topk(self.cells, 1)
            digit = nn.functional.one_hot(best.indices[..., 0], 9).to(x)
            chosen = torch.zeros_like(margin).scatter(1, sure.indices, (sure.values >= 0).to(x))
            x = x + chosen[..., None] * digit
        return self.layer.answer(x.flatten(1)).reshape(puzzle.shape)


def common_equations(solutions: Tensor, tolerance: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Equations A z = b that every solution (N, 9, 9, 9) fulfils: orthonormal rows, as many as there are.

    A spans the null space of the covariance, b = A · mean. Real only if N is larger than what solutions span (480).
    """
    z = solutions.flatten(1).double()
    mean = z.mean(0)
    values, vectors = torch.linalg.eigh((z - mean).mT @ (z - mean) / len(z))
    A = vectors.mT[values < tolerance].contiguous()
    return A, A @ mean


def draw(rows: list[Row], drawn: tuple[Tensor, Tensor] | None) -> Any:
    """Error of cells over the epochs; the span of B before and after, if there is one, beside that of the groups."""
    picture, axes = harness.figure(15 if drawn else 5, 3.7, 4 if drawn else 1, squeeze=False)
    curve, *spans = axes[0]
    harness.curves(curve, rows, "cell_error")
    curve.set(ylabel="share of wrong cells", title="while learning")
    curve.set_yscale("symlog", linthresh=1e-3)
    curve.legend(fontsize=7)
    if drawn:
        titles = ("B before", "B after learning", "the true groups")
        for axis, title, matrix in zip(spans, titles, (*drawn, true_groups()), strict=True):
            harness.heat(axis, row_space(matrix, 21), 0.3)
            axis.set(title=f"span of {title}", xlabel="cell")
    return picture


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    train: Annotated[int, Option(min=1, help="Training puzzles.")] = 9000,
    test: Annotated[int, Option(min=1, help="Held-out puzzles.")] = 1000,
    givens: Annotated[int, Option(min=28, max=80, help="Their mean number of givens.")] = 36,
    hard: Annotated[int, Option(min=1, help="Further held-out puzzles, of 24 to 30 givens.")] = 200,
    epochs: Annotated[int, Option(min=0, help="Epochs of the layer told two facts; 0 leaves it out.")] = 4,
    lesson: Annotated[int, Option(min=0, help="Epochs of the first lesson of the layer told nothing.")] = 160,
    lesson_rate: Annotated[float, Option(callback=positive, help="Adam's rate in it; it decays to zero.")] = 0.03,
    free_epochs: Annotated[int, Option(min=0, help="Epochs of that layer after it; 0 leaves it out.")] = 2,
    free_rate: Annotated[float, Option(callback=positive, help="Adam's rate in them.")] = 1e-3,
    per_epoch: Annotated[int, Option(min=1, help="Puzzles in an epoch, drawn from them.")] = 2250,
    rate: Annotated[float, Option(callback=positive, help="Adam's rate; it decays to zero.")] = 0.1,
    batch: Annotated[int, Option(min=1, help="Puzzles per step, over all processes.")] = 25,
    penalty: Annotated[float, Option(callback=positive, help="ε of the QP with the rules found.")] = 0.01,
    seed: Annotated[int, Option(min=0, max=10**9, help="The first seed, of the layers; that of the puzzles.")] = 0,
    seeds: Annotated[int, Option(min=1, help="How many seeds, one after another.")] = 1,
    free_seeds: Annotated[int, Option(min=1, help="Of them, how many for the layer told nothing.")] = 1,
    out: Annotated[Path | None, Option(help="Folder of the run; default: runs/sudoku9-DATE-TIME.")] = None,
    resume: Annotated[Path | None, Option(help="Folder of a run to continue, with that run's options.")] = None,
    accelerator: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, Option(min=1, help="Processes on this machine (torchrun sets it).")] = 1,
) -> None:
    """9×9 Sudoku: one QP that learns from examples which cells belong together (beyond the paper)."""
    options = dict(locals())
    if resume:
        return main(**harness.resumed(resume, options))
    run = Run("sudoku9", options, out, accelerator, devices)
    with run.fabric.rank_zero_first():
        boards, hard_boards = load(train, test, hard, seed, givens, run.folder)
    some = tuple(part[:100] for part in boards.test)
    watched = Data(train=boards.train, test=some)  # type: ignore[arg-type]
    kept = harness.Kept(run, "judged.json")

    def judge(name: str, facts: str, model: nn.Module, each: int | None = None, which: str = "held out") -> None:
        """A row of results; those of an interrupted run are taken as they are."""
        key: Row = {"model": name, "told": facts, "seed": each, "puzzles": which}
        if not kept.has(**key):
            figures = harness.evaluate(
                run.fabric, model, boards.test if which == "held out" else hard_boards, measures, 50
            )
            counted = model.A if isinstance(model, Whole) else None
            kept.add(key | figures | {"equations": None if counted is None else len(counted)})
            run.say(f"{name}, {which}: {100 * figures['board_error']:.1f} % of the boards are wrong")

    jobs, drawn = [], None
    with harness.bar(run) as progress:
        if epochs:
            true = told(torch.linalg.svd(true_groups())[2][:21], penalty)
            judge("the true rules", "everything", true)
            judge("equations from the data", "nothing", Whole(*common_equations(boards.train[1]), penalty))
            judge("the true rules", "everything", true, which="few givens")
            for layers in (2, 5):
                judge(f"the true rules, {layers} layers", "everything", Repeated(true, layers), which="few givens")
            judge("the true rules, fixing", "everything", Fixing(true), which="few givens")
        for each in range(seed, seed + seeds):
            forms: dict[str, tuple[Callable[[], Learner | Free], str, int]] = {
                "OptNet, two facts": (lambda: Learner(40, LEARN), "one digit a cell; digits are names", epochs),
                "OptNet, nothing": (lambda: Free(400, LEARN), "nothing", free_epochs),
            }
            for name, (make, facts, its_epochs) in forms.items():
                if its_epochs == 0 or (facts == "nothing" and each >= seed + free_seeds):
                    continue
                torch.manual_seed(each)
                layer, its_rate = make(), rate
                before = next(parameter.detach().clone() for parameter in layer.parameters())
                if isinstance(layer, Free):
                    its_rate, first = free_rate, FirstLesson(layer)
                    # Blanks are drawn in training only, so the best epoch is chosen on puzzles as they are.
                    x, y = boards.train
                    solved = Data(train=(y, y), valid=(x[:500], y[:500]), test=some)  # type: ignore[arg-type]
                    optimizer = torch.optim.Adam(first.parameters(), lr=lesson_rate)
                    job = Job(f"{name}, first lesson", each, first, optimizer, measures, lesson, 500, harness.warm)
                    harness.train(run, job, solved, progress)
                    jobs.append(job)
                    judge(job.name, facts, layer.rules(penalty), each)
                optimizer = torch.optim.Adam(layer.parameters(), lr=its_rate)
                job = Job(name, each, layer, optimizer, measures, its_epochs, batch, harness.warm, per_epoch=per_epoch)
                harness.train(run, job, watched, progress)
                jobs.append(job)
                rules = layer.rules(penalty)
                judge(name, facts, rules, each)
                if isinstance(layer, Learner) and each == seed:
                    judge(name, facts, rules, each, "few givens")
                    drawn = before, (0.5 * layer.log_w.detach()).exp()[:, None] * layer.B.detach()
    run.save(draw(harness.rows(jobs), drawn), "learned.png")
    run.finish(kept.rows, shown=summary(kept.rows))


# --- the report -----------------------------------------------------------------------------------------------------


def paper(folder: Path, full: bool) -> None:
    """The settings of the report: a run for each of the two ways."""
    main(epochs=0, lesson=480 if full else 160, free_epochs=32 if full else 2, out=folder / "free")
    main(epochs=8 if full else 4, free_epochs=0, seeds=3, out=folder)


def summary(results: list[Row]) -> list[Row]:
    """A row per model and kind of puzzle: mean and standard deviation over the seeds."""
    table = []
    for which, model in dict.fromkeys((row["puzzles"], row["model"]) for row in results):
        mine = [row for row in results if (row["puzzles"], row["model"]) == (which, model)]
        counts = sorted({row["equations"] for row in mine if row["equations"] is not None})
        ends = dict.fromkeys((counts[0], counts[-1])) if counts else ()
        table.append(
            {
                "puzzles": which,
                "model": model,
                "told": mine[0]["told"],
                "seeds": len(mine) if mine[0]["seed"] is not None else None,
                "boards solved (%)": harness.spread([100 * (1 - row["board_error"]) for row in mine], 4),
                "cells right (%)": harness.spread([100 * (1 - row["cell_error"]) for row in mine], 4),
                "equations": " to ".join(map(str, ends)) or None,
            }
        )
    return table


def report(folder: Path) -> str:
    """The section of the report."""
    results = harness.read_results(folder)
    options = harness.read_json(folder / "config.json")["options"]
    free = ""
    if (folder / "free" / "config.json").exists():
        one = harness.read_json(folder / "free" / "config.json")["options"]
        free = f"""
The layer told nothing has a run of its own: {one["lesson"]} epochs of the first lesson, 500 boards a step, Adam at
{one["lesson_rate"]}; then {one["free_epochs"]} epochs of the QP at {one["free_rate"]}. The lesson finds how many rules
there are, and nearly what they are. To go on as a QP for so short a time, with small batches, blurs them again.

![Errors of the layer told nothing](img/experiments/sudoku9-free-learned.png)
"""
    return f"""## Beyond the paper: 9×9 Sudoku

{(__doc__ or "").split(chr(10), 2)[2].strip()}

Puzzles are made by the project, with one solution each: {options["train"]} to learn from and {options["test"]} held
out, of about {options["givens"]} givens; {options["hard"]} more of 24 to 30. Layers learn with ε = {LEARN} from
{options["epochs"]} epochs of {options["per_epoch"]} puzzles, Adam at {options["rate"]} with warm-up and decay,
{options["batch"]} puzzles a step; afterwards ε = {options["penalty"]}. SATNet reports {100 * SATNET:.1f} % of 1000
boards from 9000 examples, by gradients, told nothing.

Means and standard deviations over seeds:

{harness.markdown(summary(results))}
![Errors, and what the layer learned](img/experiments/sudoku9-learned.png)
{free}"""


def compare(folder: Path) -> list[Row]:
    """SATNet's number beside ours."""
    table = summary(harness.read_results(folder))
    ours = "; ".join(f"{row['model']}: {row['boards solved (%)']} %" for row in table if row["puzzles"] == "held out")
    return [{"experiment": "9×9 Sudoku, boards solved", "paper": "– (SATNet: 98.3 %)", "ours": ours}]
