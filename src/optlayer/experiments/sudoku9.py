"""9×9 Sudoku: one QP that learns which cells belong together; the paper does not attempt it.

The layer is that of mini-Sudoku with 729 variables, `minimise ½·ε·zᵀz − xᵀz subject to A z = b, z ≥ 0`. A full A has
249×729 numbers to learn, too many for an hour of a CPU. So the layer is told two things, both about the form of an
answer and none about which cells form a row, a column or a block:

- every cell holds one digit: its nine variables sum to one;
- digits are names: what is learned for one holds for all. For each digit d, `B z_d = B·1/9`, with one B (21×81) for all
  digits, learned from a random start. (Alike digits that share a cell have a ninth of it each, on average.)

21 is the rank of the 27 true groups. (The ninth digit's equations follow from the rest, and are left out.) The point
that has 1/9 everywhere meets any such equations, so no step of learning makes the QP infeasible.

Gradients are not the only way to learn A. Equations that hold for every solution are those along which solutions do
not vary: the null space of their covariance. The second layer takes its A and b from there, in closed form from the
training solutions; it is told nothing at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from typer import Option

from optlayer import Diagonal, solve
from optlayer.experiments import harness
from optlayer.experiments.harness import Data, Job, Row, Run, positive
from optlayer.experiments.sudoku import measures, row_space

SATNET = 0.983
"""Share of boards that SATNet solves after 9000 examples (Wang et al., 2019)."""

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


def load(train: int, test: int, seed: int, givens: int, cache: Path) -> Data:
    """Puzzles of this seed, made once for a folder; the last ones are held out."""
    file = cache / "puzzles.npz"
    if not file.exists():
        given, solutions = puzzles(train + test, seed, givens)

        def write(path: Path) -> None:
            with path.open("wb") as opened:
                np.savez_compressed(opened, puzzle=given, solution=solutions)

        harness.publish(file, write)
    eye = np.eye(10, dtype=np.float32)[:, 1:]
    x, y = (torch.from_numpy(eye[digits]) for digits in harness.read_npz(file, "puzzle", "solution"))
    return Data(train=(x[:train], y[:train]), test=(x[train:], y[train:]))


# --- the layer ------------------------------------------------------------------------------------------------------


def true_groups() -> Tensor:
    """The 27 rows, columns and blocks as a matrix of zeros and ones, (27, 81); rank 21."""
    place = np.arange(9)[:, None]
    groups = np.concatenate([np.array(owner) == place for owner in (ROW, COLUMN, BLOCK)])
    return torch.from_numpy(groups.astype(np.float64))


class Layer(nn.Module):
    """The layer of this file: puzzles (B, 9, 9, 9) to answers of the same shape; float64 inside.

    Args:
        B: where the learned equations start, (r, 81).
        penalty: ε, the curvature.
        learn_penalty: the curvature while learning. A larger one makes answers softer and gradients useful: from a
            random start, a small one learns hardly at all; with the rules, a small one solves more boards.
    """

    cells: Tensor
    eight: Tensor

    def __init__(self, B: Tensor, penalty: float, learn_penalty: float | None = None) -> None:
        super().__init__()
        self.penalty, self.learn_penalty = penalty, learn_penalty or penalty
        self.B = nn.Parameter(B.clone(memory_format=torch.contiguous_format))
        self.register_buffer("cells", torch.kron(torch.eye(81), torch.ones(1, 9)).to(B))
        self.register_buffer("eight", torch.eye(9)[:8].to(B))

    def forward(self, puzzle: Tensor) -> Tensor:
        A = torch.cat([self.cells, torch.kron(self.B, self.eight)])
        b = torch.cat([self.B.new_ones(81), self.B.sum(1).repeat_interleave(8) / 9])
        q = -puzzle.flatten(1).to(self.B)
        d = torch.full_like(q[0], self.learn_penalty if self.training else self.penalty)
        return solve(Diagonal(d), q, A=A, b=b, lb=torch.zeros_like(d)).z.reshape(puzzle.shape)


class Whole(nn.Module):
    """The same layer with any A (m, 729) and b (m,)."""

    def __init__(self, A: Tensor, b: Tensor, penalty: float) -> None:
        super().__init__()
        self.A, self.b = nn.Parameter(A), nn.Parameter(b)
        self.penalty = penalty

    def forward(self, puzzle: Tensor) -> Tensor:
        q = -puzzle.flatten(1).to(self.A)
        d = torch.full_like(q[0], self.penalty)
        return solve(Diagonal(d), q, A=self.A, b=self.b, lb=torch.zeros_like(d)).z.reshape(puzzle.shape)


def common_equations(solutions: Tensor, tolerance: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Equations A z = b that every solution (N, 9, 9, 9) fulfils: orthonormal rows, as many as there are.

    A spans the null space of the covariance, b = A · mean. Real only if N is larger than what solutions span (480).
    """
    z = solutions.flatten(1).double()
    mean = z.mean(0)
    values, vectors = torch.linalg.eigh((z - mean).mT @ (z - mean) / len(z))
    A = vectors.mT[values < tolerance].contiguous()
    return A, A @ mean


def draw(rows: list[Row], before: Tensor, after: Tensor) -> Any:
    """Board error over the epochs; the span of B before and after, beside that of the true groups."""
    picture, axes = harness.figure(15, 3.7, 4)
    harness.curves(axes[0], rows, "cell_error")
    boards = [row["test_board_error"] for row in rows]
    axes[0].plot([row["epoch"] for row in rows], boards, color="tab:red", label="the same, boards, test")
    axes[0].axhline(1 - SATNET, color="black", linestyle=":", label="SATNet, boards")
    axes[0].set(ylabel="share wrong", title="errors")
    axes[0].legend(fontsize=7)
    for axis, matrix, title in zip(
        axes[1:], (before, after, true_groups()), ("B before", "B after learning", "the true groups"), strict=True
    ):
        axis.imshow(row_space(matrix, 21).numpy(), cmap="RdBu", vmin=-0.3, vmax=0.3, interpolation="nearest")
        axis.set(title=f"span of {title}", xlabel="cell")
    return picture


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    train: Annotated[int, Option(min=1, help="Training puzzles.")] = 9000,
    test: Annotated[int, Option(min=1, help="Held-out puzzles.")] = 300,
    givens: Annotated[int, Option(min=28, max=80, help="Their mean number of givens.")] = 36,
    epochs: Annotated[int, Option(min=1, help="Epochs.")] = 12,
    per_epoch: Annotated[int, Option(min=1, help="Puzzles in an epoch, drawn from them.")] = 2250,
    rate: Annotated[float, Option(callback=positive, help="Adam's rate; it decays to zero.")] = 0.2,
    batch: Annotated[int, Option(min=1, help="Puzzles per step, over all processes.")] = 25,
    penalty: Annotated[float, Option(callback=positive, help="ε, the curvature of the QP.")] = 0.01,
    learn_penalty: Annotated[float, Option(callback=positive, help="ε while gradients learn: softer answers.")] = 0.1,
    seed: Annotated[int, Option(min=0, max=10**9, help="Of the puzzles and of the layer.")] = 0,
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
        boards = load(train, test, seed, givens, run.folder)
    torch.manual_seed(seed)
    layer = Layer(torch.randn(21, 81, dtype=torch.float64), penalty, learn_penalty)
    before = layer.B.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
    name = "OptNet, by gradients"
    job = Job(name, seed, layer, optimizer, measures, epochs, batch, harness.cosine, clip=0.02, per_epoch=per_epoch)
    with harness.bar(run) as progress:
        harness.train(run, job, boards, progress)
    told = Layer(torch.linalg.svd(true_groups())[2][:21], penalty)  # 21 rows of the same span
    few = Data(train=tuple(part[:test] for part in boards.train), test=boards.test)  # type: ignore[arg-type]
    derived = Whole(*common_equations(boards.train[1]), penalty)
    results: list[Row] = []
    for name, what, model in (
        ("the true rules", "everything", told),
        (f"OptNet, {len(derived.A)} equations from the data", "nothing", derived),
    ):
        figures = harness.evaluate(run.fabric, model, boards.test, measures)
        results.append({"model": name, "told": what} | {f"test_{key}": value for key, value in figures.items()})
    results.append(harness.result(run, job, few, told="one digit a cell; digits are names"))
    run.save(draw(harness.rows([job]), before, layer.B.detach()), "learned.png")
    run.finish(results)


# --- the report -----------------------------------------------------------------------------------------------------


def paper(folder: Path, full: bool) -> None:
    """The settings of the report."""
    main(epochs=20 if full else 12, test=1000 if full else 300, out=folder)


def report(folder: Path) -> str:
    """The section of the report."""
    results = harness.read_json(folder / "results.json")["results"]
    options = harness.read_json(folder / "config.json")["options"]
    solved = [f"{100 * (1 - row['test_board_error']):.1f} %" for row in results]
    return f"""## Beyond the paper: 9×9 Sudoku

{(__doc__ or "").split(chr(10), 2)[2].strip()}

Puzzles are made by the project, with one solution each and about {options["givens"]} givens: {options["train"]} to
learn from, of which every epoch draws {options["per_epoch"]}, and {options["test"]} held out. ε = {options["penalty"]},
and {options["learn_penalty"]} while gradients learn; Adam at {options["rate"]}, which decays to zero,
{options["batch"]} puzzles a step.

With the true rules, the QP solves {solved[0]} of the held-out boards; with the equations that hold for all training
solutions, {solved[1]}; with those that gradients found, {solved[2]}. SATNet reports {100 * SATNET:.1f} % from 9000
examples, by gradients, told nothing.

{harness.markdown(results)}
![Errors, and what the layer learned](img/experiments/sudoku9-learned.png)
"""


def compare(folder: Path) -> list[Row]:
    """SATNet's number beside ours."""
    results = harness.read_json(folder / "results.json")["results"]
    ours = "; ".join(f"{row['model']}: {100 * (1 - row['test_board_error']):.1f} %" for row in results)
    return [{"experiment": "9×9 Sudoku, boards solved", "paper": "– (SATNet: 98.3 %)", "ours": ours}]
