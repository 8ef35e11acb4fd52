"""Speed, MNIST, the theorems and the report, through the command line: tiny runs, no network."""

import csv
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("lightning_fabric")
from typer.testing import CliRunner

from optlayer import experiments
from optlayer.cli import app, found
from optlayer.experiments import classification, expressiveness, harness, report, speed

ROOT = Path(__file__).parents[1]


def run(*words: object, code: int = 0) -> str:
    """What `optlayer WORDS` prints, in one line."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return " ".join(result.output.split())


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["results"]


# --- the command line -----------------------------------------------------------------------------------------------


def test_help_lists_every_experiment_in_the_order_of_the_paper() -> None:
    text = run("--help")
    places = [text.index(f" {name} ") for name in found()]
    assert places == sorted(places)
    assert [name for name in experiments.ORDER if name in found()] == list(found())


@pytest.mark.parametrize("name", ["info", "paper", "report", *found()])
def test_every_option_explains_itself(name: str) -> None:
    text = run(name, "--help")
    options = re.findall(r"│ \*? *(--[a-z-]+).*?│", " ".join(text.split()))
    assert "--help" in options
    command = CliRunner().invoke(app, [name, "--help"]).output
    assert command
    parameters = [p for p in typer_command(name).params if p.name != "help"]
    assert all(parameter.help for parameter in parameters), [p.name for p in parameters if not p.help]


def typer_command(name: str):  # type: ignore[no-untyped-def]
    import typer

    return typer.main.get_command(app).commands[name]


def test_info_names_backends_and_instruction_set() -> None:
    import optlayer
    from optlayer.backends import cpu

    text = run("info")
    for name, why_not in optlayer.available().items():
        assert f"backend {name}" in text
        assert (why_not or "available").split()[0] in text
    if optlayer.available()["cpu"] is None:
        assert cpu.variant() in text


def test_unknown_experiment_is_refused() -> None:
    assert "'chess' is none of" in run("paper", "--only", "chess", code=2)


def test_an_absent_extra_is_named() -> None:
    """Without typer the console script says what to install."""
    program = "import sys; sys.modules['typer'] = None; from optlayer.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'optlayer[experiments]'" in done.stderr


# --- speed ----------------------------------------------------------------------------------------------------------

TINY_SPEED = (
    "--sizes", 3, "--sizes", 5, "--layer-batch", 4, "--variables", 6, "--batches", 1, "--batches", 3,
    "--trials", 2, "--accelerator", "cpu",
)  # fmt: skip


def test_speed_measures_everything_once(tmp_path: Path) -> None:
    ours = [word for name in speed.METHODS if name.startswith("optlayer") for word in ("--only", name)]
    run("speed", *TINY_SPEED, *ours, "--out", tmp_path)
    rows = results(tmp_path)
    assert all(row["trials"] == 2 and 0 < row["least"] <= row["seconds"] <= row["most"] for row in rows)
    first = {(row["n"], row["method"], row["direction"]) for row in rows if row["figure"] == 1}
    assert first == {(n, m, d) for n in (3, 5) for m in ("linear", "OptNet") for d in ("forward", "backward")}
    second = [row for row in rows if row["figure"] == 2]
    assert {(row["method"], row["batch"]) for row in second} == {(m, b) for m in ours[1::2] for b in (1, 3)}
    assert all(row["objective_error"] < 1e-9 for row in second)
    for picture in ("layers.png", "batches.png"):
        assert (tmp_path / picture).stat().st_size > 5000

    before = (tmp_path / "measurements.json").read_text()
    run("speed", "--resume", tmp_path)
    assert (tmp_path / "measurements.json").read_text() == before  # nothing was measured again


def test_the_least_ratio_counts_products_and_factors() -> None:
    assert speed.least_ratio(10, 0, 10**9) == pytest.approx(4)
    assert speed.least_ratio(90, 30, 120) == pytest.approx(4 + 2 / 3 * 90 / 120 + 30**3 / 3 / (2 * 90**2))


def test_speed_lists_absent_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gurobipy", "qpth", "qpth.qp"):
        monkeypatch.setitem(sys.modules, package, None)
    run("speed", *TINY_SPEED, "--out", tmp_path)
    absent = json.loads((tmp_path / "results.json").read_text())["absent"]
    assert set(absent) == {"Gurobi", "qpth, one by one", "qpth, batched"}
    text = speed.report(tmp_path)
    assert all(name in text and why in text for name, why in absent.items())


def test_speed_outlives_a_failing_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def expired(tensors: speed.Tensors) -> speed.Call:
        raise RuntimeError("licence expired")

    monkeypatch.setitem(speed.METHODS, "Gurobi", ("optlayer.nn", ("cpu",), expired))
    run("speed", *TINY_SPEED, "--only", "Gurobi", "--only", "optlayer, batched", "--out", tmp_path)
    assert "licence expired" in speed.report(tmp_path)
    assert any(row["method"] == "optlayer, batched" and row["seconds"] > 0 for row in results(tmp_path))


@pytest.mark.parametrize(("package", "name"), [("gurobipy", "Gurobi"), ("qpth", "qpth, batched")])
def test_peers_agree(package: str, name: str) -> None:
    pytest.importorskip(package)
    torch.manual_seed(0)
    tensors = speed.problems(8, 3)
    answer = speed.ours_batched(tensors)()
    assert speed.method(name, tensors, answer, 1, 1.0)["objective_error"] < 1e-5


def test_problems_are_feasible() -> None:
    """h − G z₀ = s₀ ≥ 0 cannot be seen any more, but the solution can."""
    torch.manual_seed(0)
    tensors = speed.problems(10, 5)
    z = speed.ours_batched(tensors)()
    slack = tensors["h"] - (tensors["G"] @ z[..., None])[..., 0]
    assert slack.min() > -1e-8
    assert torch.linalg.eigvalsh(tensors["Q"]).min() > 1e-4


# --- MNIST ----------------------------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> str:
    """Write an IDX file; returns its checksum."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0))
    return "md5:" + hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like MNIST's, with ten noisy patterns for digits, whose checksums pass."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (10, 28, 28))
    folder = tmp_path / "digits"
    folder.mkdir()
    checksums = {}
    for split, count in (("train", 300), ("t10k", 60)):
        labels = rng.integers(0, 10, count)
        images = patterns[labels] + rng.integers(0, 50, (count, 28, 28))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{split}-{kind}-ubyte.gz"
            checksums[name] = write_idx(folder / name, array)
    assert checksums.keys() == classification.FILES.keys()
    monkeypatch.setattr(classification, "FILES", {name: checksums[name] for name in classification.FILES})
    return folder


def test_mnist_is_read_as_written(digits: Path) -> None:
    data = classification.load(digits, 50, torch.device("cpu"))
    assert [len(part[0]) for part in (data.train, data.valid, data.test)] == [250, 50, 60]
    assert data.train[0].shape == (250, 784)
    raw = classification.idx(digits / "train-images-idx3-ubyte.gz")
    assert raw.shape == (300, 28, 28)
    assert raw.dtype == torch.uint8
    restored = data.valid[0] * classification.DEVIATION + classification.MEAN
    torch.testing.assert_close(restored, raw[250:].flatten(1) / 255, atol=1e-6, rtol=0)


def test_another_file_is_refused(digits: Path) -> None:
    path = digits / "t10k-labels-idx1-ubyte.gz"
    write_idx(path, np.zeros(60))
    with pytest.raises(harness.Mistake, match="not the original file"):
        classification.fetch(digits)
    path.unlink()
    with pytest.raises(harness.Mistake, match="lacks t10k-labels"):
        classification.fetch(digits)


def test_the_environment_names_the_folder(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTLAYER_DATA", str(digits))
    assert [path.name for path in classification.fetch(None)] == list(classification.FILES)


TINY_MNIST = ("--hidden", 16, "--batch", 20, "--held-out", 50, "--rate", 1e-2, "--head", "FC10", "--head", "OptNet10")


def test_classification_learns_and_resumes(digits: Path, tmp_path: Path) -> None:
    """An interrupted run ends as one without interruption."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("classification", "--data", digits, *TINY_MNIST, "--epochs", 4, "--seeds", 2, "--out", whole)
    rows = results(whole)
    assert {(row["model"], row["seed"]) for row in rows} == {
        (model, seed) for model in ("FC10", "OptNet10") for seed in (0, 1)
    }
    with (whole / "metrics.csv").open() as file:
        start = {row["model"]: float(row["test_loss"]) for row in csv.DictReader(file) if row["epoch"] == "0"}
    assert all(row["test_loss"] < 0.7 * start[row["model"]] for row in rows)
    assert (whole / "curves.png").exists()
    text = classification.report(whole)
    assert all(name in text for name in start)

    run("classification", "--data", digits, *TINY_MNIST, "--epochs", 4, "--seeds", 2, "--out", broken)
    (broken / "results.json").unlink()
    for path in (broken / "checkpoints").glob("*seed1*"):
        path.unlink()
    run("classification", "--data", digits, "--resume", broken)
    again = {(row["model"], row["seed"]): row["test_loss"] for row in results(broken)}
    assert again == {(row["model"], row["seed"]): row["test_loss"] for row in rows}


@pytest.mark.slow
def test_two_processes_train_as_one(digits: Path, tmp_path: Path) -> None:
    """Under torchrun, with the same global batch, the curves are the same."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom optlayer.experiments import classification\n"
        f"classification.FILES = {classification.FILES!r}\n"
        f"classification.main(data=Path({str(digits)!r}), head=['FC10', 'OptNet10'], hidden=16, "
        "batch=50, held_out=50, epochs=2, accelerator='cpu', out=Path(sys.argv[1]))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    rows = []
    for name, words in (("one", [sys.executable]), ("two", torchrun)):
        done = subprocess.run([*words, str(program), str(tmp_path / name)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        rows.append(harness.read_metrics(tmp_path / name))
    assert len(rows[0]) == len(rows[1]) == 6
    for one, two in zip(*rows, strict=True):
        assert (one["model"], one["epoch"]) == (two["model"], two["epoch"])
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert two["test_loss"] == pytest.approx(one["test_loss"], rel=1e-4)


def test_a_unit_is_dead_where_relu_gives_zero_for_all() -> None:
    torch.manual_seed(0)
    model = classification.network(8, "FC10")
    images = torch.randn(50, 784)
    with torch.no_grad():
        model[2].bias[:3] = -1e3
        model[2].bias[3:] = 1e3
    assert classification.dead(model, images) == 3
    assert classification.dead(classification.network(8, "OptNet10"), images) is None


def test_other_options_in_the_same_folder_are_refused(digits: Path, tmp_path: Path) -> None:
    run("classification", "--data", digits, *TINY_MNIST, "--epochs", 1, "--out", tmp_path / "run")
    words = ["classification", "--data", digits, *TINY_MNIST, "--epochs", 2, "--out", tmp_path / "run"]
    assert "other options" in run(*words, code=2)


def test_the_layer_has_the_gradient_of_its_double() -> None:
    """float32 in and out, float64 inside."""
    torch.manual_seed(0)
    layer = classification.DoubleOptNet(10, inequalities=10, dtype=torch.float64)
    x = torch.randn(5, 10, requires_grad=True)
    z = layer(x)
    assert z.dtype == torch.float32
    z.sum().backward()
    doubled = x.detach().double().requires_grad_()
    super(classification.DoubleOptNet, layer).forward(doubled).sum().backward()
    torch.testing.assert_close(x.grad, doubled.grad.float(), atol=1e-6, rtol=1e-5)


# --- theorems -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair",
    [
        lambda: expressiveness.relu(6, 4),
        lambda: expressiveness.piecewise(2),
        lambda: expressiveness.piecewise(7),
        lambda: expressiveness.largest(3, 2),
        lambda: expressiveness.largest(12, 5),
        lambda: expressiveness.simplex(6),
    ],
)
def test_theorem_2(pair) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    row = expressiveness.compare_pair(pair(), 300)
    assert row["value error"] < 1e-8
    assert row["gradient error"] < 1e-8


def test_compare_pair_would_notice() -> None:
    """A wrong layer has an error."""
    torch.manual_seed(0)
    pair = expressiveness.relu(3, 2)
    wrong = pair._replace(layer=lambda x: pair.layer(1.001 * x))
    assert expressiveness.compare_pair(wrong, 50)["value error"] > 1e-5


def test_rays_are_creases() -> None:
    """Along a ray two terms are equal, and the third is smaller."""
    a = expressiveness.three()
    for ray in expressiveness.rays(a):
        low, middle, high = (a @ ray).sort().values
        assert high - middle < 1e-12
        assert middle - low > 0.1


def test_no_relu_network_is_the_maximum_but_a_wider_one_is_nearer() -> None:
    grid = expressiveness.square(41)
    target = (grid @ expressiveness.three().mT).amax(1)
    errors = []
    for width in (2, 12):
        net = expressiveness.fit(width, [0, 1], 400, 0.02, points=500)
        errors.append(expressiveness.relative_error(net.values(grid), target).min())
    assert errors[0] > 1.5 * errors[1] > 0.01


def test_expressiveness_from_the_command_line(tmp_path: Path) -> None:
    run("expressiveness", "--points", 20, "--steps", 20, "--widths", 2, "--widths", 4, "--starts", 2, "--out", tmp_path)
    rows = results(tmp_path)
    assert max(row["value error"] for row in rows if "function" in row) < 1e-8
    assert sorted({row["width"] for row in rows if "width" in row}) == [2, 4]
    assert all((tmp_path / name).exists() for name in ("creases.png", "widths.png"))


# --- the report -----------------------------------------------------------------------------------------------------


def test_paper_runs_what_is_asked_once_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def paper(folder: Path, full: bool) -> None:
        calls.append(full)
        expressiveness.main(points=20, widths=[2], starts=1, steps=5, out=folder)

    monkeypatch.setattr(expressiveness, "paper", paper)
    words = ("paper", "--only", "expressiveness", "--out", tmp_path / "runs", "--report", tmp_path / "docs")
    run(*words)
    run(*words)
    assert calls == [False]
    text = (tmp_path / "docs" / "experiments.md").read_text()
    assert "Theorem 3" in text
    assert "optlayer expressiveness --points 20 --widths 2 --starts 1 --steps 5" in text
    pictures = re.findall(r"\]\((img/[^)]+)\)", text)
    assert pictures
    assert all((tmp_path / "docs" / picture).stat().st_size > 1000 for picture in pictures)
    run("report", tmp_path / "runs", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "experiments.md").read_text() == text


TINY_PAPER = """
import importlib, sys
from pathlib import Path
from optlayer import cli
from optlayer.experiments import classification

digits, checksums = Path({digits!r}), {checksums!r}
classification.FILES = checksums
TINY = dict(
    speed=dict(sizes=[3], layer_batch=2, variables=4, batches=[1], only=["optlayer, batched"], trials=1),
    denoising=dict(train=20, test=10, epochs=1, fc_epochs=1, fc_hidden=4, batch=10, sweep=3),
    classification=dict(data=digits, head=["FC10", "OptNet10"], hidden=16, batch=50, held_out=50, epochs=1),
    sudoku=dict(train=40, test=10, epochs=1, batch=20, conv_epochs=1, conv_filters=4),
    expressiveness=dict(points=5, widths=[2], starts=1, steps=2),
    recipe=dict(steps=2),
    sudoku9=dict(train=6, test=2, hard=1, per_epoch=4, epochs=1, lesson=1, free_epochs=0, batch=2),
    decisions=dict(train=20, valid=10, test=10, epochs=1),
    infeasible=dict(train=20, test=10, states=20, epochs=1),
)
for name, options in TINY.items():
    module = importlib.import_module("optlayer.experiments." + name)
    module.paper = lambda folder, full, main=module.main, options=options: main(**options, out=folder)

if __name__ == "__main__":
    cli.app(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_paper_goes_on_after_it_was_killed(digits: Path, tmp_path: Path, processes: int) -> None:
    """All, tiny, killed every few seconds: what was finished stays as it is, and the page holds every one."""
    program = tmp_path / "program.py"
    program.write_text(TINY_PAPER.format(digits=str(digits), checksums=classification.FILES))
    words = [sys.executable, program, "paper", "--out", tmp_path / "runs", "--processes", processes]
    finished: dict[Path, bytes] = {}
    for seconds in (8, 12, 16, 20, 300):
        log = (tmp_path / "log").open("w")
        started = subprocess.Popen([str(word) for word in words], stdout=log, stderr=log, start_new_session=True)
        try:
            code = started.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            code = started.wait()
        now = {path: path.read_bytes() for path in (tmp_path / "runs").glob("*/results.json")}
        assert finished.items() <= now.items(), "something was done again"
        finished = now
        if code != -signal.SIGKILL:
            break
    assert code == 0, (tmp_path / "log").read_text()
    text = (tmp_path / "runs" / "experiments.md").read_text()
    assert {path.parent.name for path in finished} == set(found())
    assert all(f"\noptlayer {name}" in text for name in found())


def test_the_page_holds_every_experiment_with_results(tmp_path: Path) -> None:
    speed.main(sizes=[3], layer_batch=2, variables=4, batches=[1], only=["optlayer, batched"], trials=1,
               accelerator="cpu", out=tmp_path / "speed")  # fmt: skip
    expressiveness.main(points=5, widths=[2], starts=1, steps=2, out=tmp_path / "expressiveness")
    page = report.write(tmp_path, tmp_path, {"speed": speed, "classification": classification} | found())
    text = page.read_text()
    assert text.index("## Speed") < text.index("## Expressiveness")
    assert "## MNIST" not in text
    table = next(block for block in text.split("\n\n") if block.startswith("| experiment | paper | ours |"))
    assert "batch 1: optlayer, batched | – |" in table  # the paper has no number for this size
    assert "batch 128: Gurobi | 4.7 s | not measured |" in table
    commit = json.loads((tmp_path / "speed" / "config.json").read_text())["machine"]["commit"]
    if commit:
        assert f"commit {commit}" in text


def test_the_page_in_the_documentation_is_made_from_its_results(tmp_path: Path) -> None:
    """Every number in it; and every picture it shows is there."""
    kept = ROOT / "docs" / "results"
    made = report.write(kept, tmp_path, found()).read_text()
    assert made == (ROOT / "docs" / "experiments.md").read_text(), "`optlayer report docs/results docs` writes it"
    pictures = re.findall(r"\]\((img/[^)]+)\)", made)
    assert all((ROOT / "docs" / picture).exists() for picture in pictures)
    for path in kept.rglob("*.json"):
        assert (tmp_path / "results" / path.relative_to(kept)).read_bytes() == path.read_bytes()


def test_command_repeats_the_options() -> None:
    def main(batch: int = 3, sizes: list[int] | None = None, full: bool = False, data: Path | None = None) -> None: ...

    module = SimpleNamespace(main=main)
    options = {"batch": 3, "sizes": [1, 2], "full": True, "data": "/home/someone/b c.npz"}
    expected = "optlayer speed --sizes 1 --sizes 2 --full --data 'b c.npz'"  # not the folders of this machine
    assert report.command("speed", module, options) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "text"), [(12.3, "12 s"), (600, "10 min"), (7200, "2.0 h")])
def test_duration(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_processor_and_commit() -> None:
    assert harness.processor()
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", harness.commit() or "")
