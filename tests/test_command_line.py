"""What a person meets at the command line: mistakes, interruptions, damaged files, terminals of any width."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("lightning_fabric")
from rich.console import Console
from typer.testing import CliRunner

from optlayer.cli import app
from optlayer.experiments import harness, sudoku

TINY = ("--train", 40, "--test", 20, "--batch", 20, "--conv-epochs", 0, "--accelerator", "cpu")


def optlayer(*words: object) -> tuple[int, str]:
    """Exit code, and what is printed, in one line."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad files, a finished run, and one of another experiment."""
    tmp_path = tmp_path_factory.mktemp("files")
    puzzle, solution = sudoku.puzzles(70)
    np.savez(tmp_path / "good.npz", puzzle=puzzle, solution=solution)
    np.savez(tmp_path / "other-keys.npz", boards=puzzle)
    np.savez(tmp_path / "unpaired.npz", puzzle=puzzle, solution=solution[1:])
    np.savez(tmp_path / "pickles.npz", puzzle=puzzle.astype(object), solution=solution)
    np.savez(tmp_path / "fractions.npz", puzzle=puzzle / 2, solution=solution)
    np.savez(tmp_path / "flat.npz", puzzle=puzzle.reshape(-1, 16), solution=solution)
    np.savez(tmp_path / "five.npz", puzzle=puzzle + 5 * (puzzle == 4), solution=solution)
    np.savez(tmp_path / "against-rules.npz", puzzle=0 * puzzle, solution=np.full_like(solution, 1))
    np.savez(tmp_path / "inconsistent.npz", puzzle=np.where(puzzle > 0, puzzle % 4 + 1, 0), solution=solution)
    np.save(tmp_path / "one.npy", puzzle)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:500])
    (tmp_path / "file").write_text("")
    for name, experiment, options in (("run", "sudoku", {"epochs": 3}), ("theirs", "denoising", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"experiment": experiment, "options": options}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    return tmp_path


MISTAKES = {
    "sudoku --epochs 0": "'--epochs'",
    "sudoku --epochs -1": "'--epochs'",
    "sudoku --epochs many": "'--epochs': ",
    "sudoku --train 0": "'--train'",
    "sudoku --test 0": "'--test'",
    "sudoku --seeds 0": "'--seeds'",
    "sudoku --devices 0": "'--devices'",
    "sudoku --equalities 0": "'--equalities'",
    "sudoku --batch -5": "'--batch'",
    "sudoku --rate 0": "'--rate': 0.0 is not a number above 0.",
    "sudoku --rate nan": "'--rate': nan is not a number above 0.",
    "sudoku --seed -1": "'--seed'",
    "sudoku --accelerator abacus": "The accelerator 'abacus' is none of auto, cpu and cuda.",
    "sudoku --data {absent.npz}": "There is no file {absent.npz}.",
    "sudoku --data {other-keys.npz}": "{other-keys.npz} lacks the array `puzzle`; it holds boards.",
    "sudoku --data {pickles.npz}": "{pickles.npz} holds Python objects, which are not loaded",
    "sudoku --data {one.npy}": "{one.npy} is no npz file: it holds a single array.",
    "sudoku --data {text.npz}": "{text.npz} is no npz file.",
    "sudoku --data {cut.npz}": "{cut.npz} cannot be read as an npz file",
    "sudoku --data {run}": "{run} cannot be read as an npz file",
    "sudoku --data {unpaired.npz}": "In {unpaired.npz}, there are 70 puzzles and 69 solutions.",
    "sudoku --data {flat.npz}": "In {flat.npz}, `puzzle` has shape (70, 16), not (N, 4, 4).",
    "sudoku --data {fractions.npz}": "In {fractions.npz}, `puzzle` has type float64; digits are whole numbers.",
    "sudoku --data {five.npz}": "has a digit that is none of 0 (a blank) to 4.",
    "sudoku --data {against-rules.npz}": "puzzle 0 (counted from 0) has a solution that lacks a digit 1 to 4",
    "sudoku --data {inconsistent.npz}": "puzzle 0 (counted from 0) has a digit that its solution has not.",
    "sudoku --data {good.npz}": "{good.npz} has 70 puzzles, fewer than 9000 to learn and 1000 held out.",
    "sudoku --resume {nothing}": "There is no run to continue in {nothing}: it has no config.json.",
    "sudoku --resume {theirs}": "{theirs} holds a run of denoising, not of sudoku.",
    "sudoku --resume {broken}": "{broken}/config.json is damaged",
    "sudoku --resume {run} --epochs 5": "A run is continued with its own options: in {run}, --epochs is 3.",
    "sudoku --resume {run} --out {elsewhere}": "give --resume or --out, not both.",
    "sudoku --out {file}": "{file} cannot be a folder: {file} is a file.",
    "sudoku --out {file}/below": "{file}/below cannot be a folder: {file} is a file.",
    "sudoku --out {theirs}": "{theirs} holds a run with other options: choose another --out.",
    "sudoku9 --givens 5": "'--givens'",
    "sudoku9 --per-epoch 0": "'--per-epoch'",
    "sudoku9 --per-epoch 2 --train 5 --test 1 --hard 1 --out {elsewhere}":
        "An epoch of 2 examples has no room for a batch of 25.",
    "denoising --sweep 0": "'--sweep'",
    "denoising --decay -1": "'--decay'",
    "classification --held-out 60000": "'--held-out'",
    "classification --data {run}": "The folder {run} lacks train-images-idx3-ubyte.gz.",
    "expressiveness --widths 0": "'--widths'",
    "expressiveness --starts 0": "'--starts'",
    "speed --trials 0": "'--trials'",
    "speed --dtype float16": "The type 'float16' is neither float32 nor float64.",
    "speed --only abacus": "'abacus' is none of the methods Gurobi; qpth",
    "speed --accelerator gpu": "The accelerator 'gpu' is neither auto nor cpu.",
    "paper --only chess": "'chess' is none of",
    "report {nothing}": "There are no results in {nothing}: `optlayer paper --out {nothing}` makes them.",
    "chess": "No such command 'chess'",
}  # fmt: skip
"""What is typed, with files of the fixture in braces, and what the one sentence says."""


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_sentence(typed: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    before = set(files.rglob("*"))

    def named(text: str) -> str:
        return re.sub(r"{([\w.-]+)}", lambda match: str(files / match[1]), text)

    code, text = optlayer(*named(typed).split())
    assert code == 2
    assert named(MISTAKES[typed]) in text
    assert "Traceback" not in text
    made = {path.relative_to(files).parts[0] for path in set(files.rglob("*")) - before if path.name != ".lock"}
    assert made <= {"elsewhere"}, "a run that fails before it trains leaves nothing"


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    optlayer("expressiveness", "--points", 5, "--widths", 2, "--starts", 1, "--steps", 2,
             "--out", tmp_path / "runs" / "expressiveness")  # fmt: skip
    (tmp_path / "file").write_text("")
    code, text = optlayer("report", tmp_path / "runs", tmp_path / "file" / "docs")
    assert code == 2
    assert re.search(r"optlayer report: .*file.*: Not a directory.", text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_is_named() -> None:
    assert optlayer("sudoku", "--accelerator", "cuda") == (
        2, "optlayer sudoku: There is no CUDA device here: leave --accelerator out, or take cpu."
    )  # fmt: skip


def test_without_a_network_mnist_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")

    def refused(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setenv("OPTLAYER_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(pooch.core, "stream_download", refused)
    code, text = optlayer("classification", "--out", tmp_path / "run")
    assert code == 2
    assert "No mirror gave MNIST (no route to host): get its four files elsewhere, and use --data." in text
    assert not (tmp_path / "run").exists()


# --- runs that are broken off ---------------------------------------------------------------------------------------


def curve(folder: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in harness.read_metrics(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of three epochs that nothing disturbed, and what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = CliRunner().invoke(app, ["sudoku", *map(str, TINY), "--epochs", "3", "--out", str(folder)])
    assert result.exit_code == 0
    return folder, result.output


def test_a_run_tells_every_epoch_and_ends_with_a_table(whole: tuple[Path, str]) -> None:
    folder, printed = whole
    lines = printed.splitlines()
    epochs = [line for line in lines if re.match(r"OptNet, seed 0, epoch \d of 3: train loss [\d.e-]+, ", line)]
    assert len(epochs) == 4
    heads = next(line.split() for line in lines if line.startswith("model"))
    assert heads[:3] == ["model", "seed", "epoch"]
    best = json.loads((folder / "results.json").read_text())["results"][0]
    row = next(row for row in harness.read_metrics(folder) if row["epoch"] == best["epoch"])
    assert row["test_loss"] == best["test_loss"], "the table's numbers are those of a row of metrics.csv"
    assert "A model is the one of its best epoch" in printed


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(whole: tuple[Path, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(whole[0], broken)
    last = broken / "checkpoints" / "optnet-seed0.last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    (broken / "metrics.csv").unlink()
    code, text = optlayer("sudoku", "--resume", broken)
    assert code == 0
    assert f"{last} is damaged (" in text
    assert curve(broken) == curve(whole[0])
    for path in (last, harness.before(last)):
        path.write_bytes(b"")
    code, text = optlayer("sudoku", "--resume", broken)
    assert code == 2
    assert f"No checkpoint of {last} can be read: delete {last.parent} to train anew." in text


def test_a_full_disk_leaves_the_checkpoint_that_was_there(
    whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    real, count = harness.Run.write_metrics, []

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        def counted(run: harness.Run) -> None:
            real(run)
            count.append(run)
            if len(count) == 2:  # after epochs 0 and 1
                patch.setattr(run.fabric, "save", lambda path, state: full(Path(path)), raising=True)

        patch.setattr(harness.Run, "write_metrics", counted)
        code, text = optlayer("sudoku", *TINY, "--epochs", 3, "--out", broken)
    assert code == 2
    assert "cannot be written (No space left on device); what was there before is kept." in text
    assert not list(broken.rglob("*.part"))
    assert optlayer("sudoku", "--resume", broken)[0] == 0
    assert curve(broken) == curve(whole[0])


def test_a_file_that_cannot_be_written_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    harness.publish(path, lambda beside: beside.write_text("old"))
    with pytest.raises(harness.Mistake, match="what was there before is kept"):
        harness.publish(path, lambda beside: (_ for _ in ()).throw(RuntimeError("file write failed")))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def start(folder: Path, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "optlayer.cli", "sudoku", *TINY, "--out", folder, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([str(word) for word in command], env=environment, stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.STDOUT)  # fmt: skip


def test_two_runs_in_a_folder_and_ctrl_c(tmp_path: Path) -> None:
    """While one trains the other is refused; Ctrl-C tells how to go on, which a kill does not prevent."""
    folder = tmp_path / "run"
    process = start(folder, "--epochs", 100_000)
    assert process.stdout
    try:
        for line in process.stdout:  # a line an epoch, at once
            if "epoch 2 of" in line:
                break
        code, text = optlayer("sudoku", *TINY, "--epochs", 100_000, "--out", folder)
        assert code == 2
        assert f"{folder} is in use by another run, which has not ended: choose another --out." in text
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert f"To go on: optlayer sudoku --resume {folder}" in rest
    assert "Traceback" not in rest
    last = folder / "checkpoints" / "optnet-seed0.last.ckpt"  # Ctrl-C may have come while it was written
    rows = len(torch.load(last if last.exists() else harness.before(last))["history"])
    again = subprocess.Popen([sys.executable, "-m", "optlayer.cli", "sudoku", "--resume", str(folder)],
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert again.stdout
    try:
        epoch = next(line for line in again.stdout if re.search(r"epoch \d+ of", line))
        assert f"epoch {rows} of" in epoch
    finally:
        again.kill()
        again.wait()


# --- the terminal ---------------------------------------------------------------------------------------------------

ROWS = [
    {"model": f"conv {depth}×64", "seed": 0, "epoch": 12, "train_loss": 0.0021345, "train_cell_error": 0.00012345,
     "train_board_error": 1.0 / 3, "test_loss": 0.0876543, "test_cell_error": 0.0123456, "test_board_error": 0.2,
     "seconds": 1234.5678}
    for depth in (4, 10)
]  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_tables_never_cut_a_number(width: int) -> None:
    screen = StringIO()
    Console(file=screen, width=width, force_terminal=True, color_system=None).print(harness.table(ROWS))
    text = screen.getvalue()
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for value in ("0.00213", "0.000123", "0.333", "0.0877", "0.0123", "1.23e+03", "conv 4×64", "conv 10×64"):
        assert value in text
    assert "test board error" in text or "│ error" in text.replace("┃", "│")


def test_a_stream_gets_plain_columns() -> None:
    stream = StringIO()
    Console(file=stream, width=10_000).print(harness.table(ROWS))
    heads, *lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line[heads.index("seed")] == "0" for line in lines)
    assert not re.search("[^ -~×\n]", stream.getvalue())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_keeps_its_line(width: int) -> None:
    screen = StringIO()
    terminal = Console(file=screen, width=width, force_terminal=True, force_interactive=True, color_system=None)
    run = type("Run", (), {"console": terminal, "first": True})()
    with harness.bar(run) as progress:
        task = progress.add_task("OptNet, start from total variation, seed 0", total=1000, loss=1e-3)
        for loss in (1.0, 1e-9, 123456.0):
            progress.update(task, advance=333, loss=loss)
            progress.refresh()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\r", screen.getvalue()).replace("\n", "\r").split("\r")
    shown = [line for line in lines if "OptNet" in line]
    assert shown
    assert len({len(line) for line in shown}) == 1
    assert len(shown[0]) <= width - 3
    assert "999/1000" in shown[-1]


# --- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_have_no_page_of_their_own(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    rows = [{"model": "one", "seed": 0, "epoch": 1, "train_loss": 1.0, "test_loss": 2.0}]
    picture, axis = harness.figure()
    harness.curves(axis, rows, "loss")
    axis.set_title("a title")
    axis.legend()
    harness.without_page(picture).savefig(tmp_path / "picture.png")
    pixels = image.imread(tmp_path / "picture.png")
    assert pixels[0, 0, 3] == 0
    drawn = pixels[pixels[..., 3] > 0.9][:, :3]
    assert drawn.max(1).min() > 0.4, "nothing is black"
    assert drawn.min(1).max() < 0.9, "nothing is white"


def test_a_single_epoch_is_seen_and_ticks_are_whole() -> None:
    pytest.importorskip("matplotlib")
    rows = [{"model": "one", "seed": 0, "epoch": e, "train_loss": 1.0, "test_loss": 2.0} for e in (0, 1)]
    picture, axis = harness.figure()
    harness.curves(axis, rows[:1], "loss")
    harness.curves(axis, rows, "loss")
    assert all(line.get_marker() == "o" for line in axis.lines)
    picture.canvas.draw()
    assert all(float(tick).is_integer() for tick in axis.get_xticks())
