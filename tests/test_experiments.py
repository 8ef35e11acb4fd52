"""The harness, both Sudokus and denoising: their data, small runs, resume, and two processes against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("lightning_fabric")

from optlayer.experiments import decisions, denoising, harness, infeasible, recipe, sudoku, sudoku9

TINY = {"train": 120, "test": 40, "batch": 20, "conv_epochs": 0, "accelerator": "cpu"}


def curve(folder: Path) -> list[dict]:
    """The history of a run without what differs between runs: time."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in harness.read_metrics(folder)]


def learn(folder: Path, **options: object) -> list[dict]:
    sudoku.main(**(TINY | {"epochs": 2, "out": folder} | options))  # type: ignore[arg-type]
    return curve(folder)


def test_a_deep_convolutional_net_does_not_start_by_answering_the_mean() -> None:
    """Its answers differ between boards by as much as the boards do, within a factor of ten."""
    torch.manual_seed(0)
    puzzle = sudoku.one_hot(sudoku.puzzles(50)[0])
    with torch.no_grad():
        answer = sudoku.ConvNet(10, 64)(puzzle)
    assert 0.1 < (answer.std(0).mean() / puzzle.std(0).mean()).item() < 10


# --- data -----------------------------------------------------------------------------------------------------------


def test_there_are_288_boards_and_the_rules_have_rank_40() -> None:
    boards = sudoku.grids()
    assert len({board.tobytes() for board in boards}) == 288
    assert sudoku.valid(boards).all()
    broken = boards.copy()
    broken[:, 0, 0] = broken[:, 0, 1]
    assert not sudoku.valid(broken).any()
    assert torch.linalg.matrix_rank(sudoku.rules()) == 40
    one_hot = sudoku.one_hot(boards).flatten(1).double()
    assert torch.equal(one_hot @ sudoku.rules().mT, torch.ones(288, 64, dtype=torch.float64))


def test_puzzles_have_one_solution_and_no_two_are_equal() -> None:
    given, solution = sudoku.puzzles(400, seed=3)
    boards = sudoku.grids()
    fits = ((given[:, None] == boards) | (given[:, None] == 0)).all((2, 3))
    assert (fits.sum(1) == 1).all()
    assert np.array_equal(boards[fits.argmax(1)], solution)
    assert len({puzzle.tobytes() for puzzle in given}) == 400
    again = sudoku.puzzles(400, seed=3)[0]
    assert np.array_equal(given, again)
    assert not np.array_equal(given, sudoku.puzzles(400, seed=4)[0])


def test_big_puzzles_have_one_solution() -> None:
    given, solution = sudoku9.puzzles(3, seed=1)
    assert sudoku.valid(solution).all()
    assert ((given == solution) | (given == 0)).all()
    for puzzle, answer in zip(given.reshape(-1, 81), solution.reshape(-1, 81), strict=True):
        board = [1 << int(digit) - 1 if digit else 0 for digit in puzzle]
        count, found = sudoku9.count_solutions(board)
        assert count == 1
        assert [bit.bit_length() for bit in found] == answer.tolist()
    assert 28 < (given > 0).sum((1, 2)).mean() < 44
    assert sudoku9.count_solutions([0] * 81)[0] == 2, "an empty board has many"
    impossible = [1, 1] + [0] * 79
    impossible[0], impossible[1] = 1, 2
    impossible[9:12] = [4, 8, 16]
    impossible[18:21] = [32, 64, 0]
    impossible[3 + 2 * 9] = 256  # 9 and 8 are left for two cells of the block, whose row has a 9
    impossible[3 + 1 * 9] = 0
    assert sudoku9.count_solutions(impossible)[0] in (0, 2)


def test_true_groups_of_the_big_board() -> None:
    groups = sudoku9.true_groups()
    assert groups.shape == (27, 81)
    assert (groups.sum(1) == 9).all()
    assert (groups.sum(0) == 3).all()
    assert torch.linalg.matrix_rank(groups) == 21


def test_signals_are_those_of_the_paper() -> None:
    noisy, clean = denoising.signals(600, seed=5)
    pieces = (clean.diff(dim=1) != 0).sum(1) + 1
    assert pieces.min() >= 1
    assert pieces.max() == 9
    assert abs(pieces.double().mean() - 5) < 0.3
    assert torch.equal(clean, clean.round())
    assert clean.min() >= 10
    assert clean.max() <= 99
    noise = noisy - clean
    assert abs(noise.std() - 10) < 0.2
    assert abs(noise.mean()) < 0.2
    assert torch.equal(noisy, denoising.signals(600, seed=5)[0])
    assert torch.equal(noisy[:100], denoising.signals(100, seed=5)[0])


# --- models ---------------------------------------------------------------------------------------------------------


def test_the_dual_form_minimises_total_variation() -> None:
    torch.manual_seed(0)
    y, _ = denoising.signals(3)
    model = denoising.Denoiser(denoising.random_rows(100), 2.0)
    with torch.no_grad():
        z = model(y)

    def objective(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x - y).square().sum(1) + 2 * (x @ model.D.detach().mT).abs().sum(1)

    best = objective(z)
    for size in (1e-3, 1e-1, 10.0):
        for _ in range(20):
            assert (objective(z + size * torch.randn_like(z)) >= best - 1e-6).all()


def test_sparsity_finds_differences_from_a_random_start() -> None:
    torch.manual_seed(0)
    _, clean = denoising.signals(2000, length=20)
    random, sparse = denoising.sparse_rows(clean, 0), denoising.sparse_rows(clean, 400)
    assert denoising.share_of_two(random) < 0.75
    assert denoising.share_of_two(sparse) > 0.95
    neighbours = sparse.abs().topk(2, 1).indices.diff(dim=1).abs() == 1
    assert neighbours.double().mean() > 0.8
    assert denoising.share_of_two(denoising.differences(20)) == pytest.approx(1.0)


def test_total_variation_divides_the_noise_by_six() -> None:
    noisy, clean = denoising.signals(200)
    error = (denoising.tv(noisy, 21.0) - clean).square().mean()
    assert 13 < error < 19  # 15.9 ± 0.7 for 1000 signals


def test_common_equations_are_the_rules() -> None:
    rng = np.random.default_rng(0)
    boards = np.array([sudoku9.grid(rng) for _ in range(700)])
    solutions = torch.eye(9)[torch.from_numpy(np.log2(boards).round().astype(np.int64)).reshape(-1, 9, 9)]
    A, b = sudoku9.common_equations(solutions)
    groups = sudoku9.true_groups()
    rules = torch.cat([torch.kron(torch.eye(81), torch.ones(1, 9)), torch.kron(groups, torch.eye(9))]).double()
    assert len(A) == torch.linalg.matrix_rank(rules) == 249
    outside = rules - rules @ A.mT @ A
    assert outside.abs().max() < 1e-9
    torch.testing.assert_close(solutions.flatten(1).double() @ A.mT, b.expand(700, -1), atol=1e-9, rtol=0)


def test_a_guide_and_maps_start_as_total_variation() -> None:
    noisy, _ = denoising.signals(4)
    guided = denoising.Denoiser(denoising.differences(100), 21.0, denoising.Guide())
    with torch.no_grad():
        torch.testing.assert_close(guided(noisy), denoising.tv(noisy, 21.0), atol=1e-5, rtol=0)


def test_the_true_rules_solve_big_boards() -> None:
    given, solution = sudoku9.puzzles(2, seed=2, givens=40)
    eye = torch.eye(10)[:, 1:]
    puzzle, target = (eye[torch.from_numpy(part.astype(np.int64))] for part in (given, solution))
    layer = sudoku9.told(torch.linalg.svd(sudoku9.true_groups())[2][:21], 0.01)
    with torch.no_grad():
        for model in (layer, sudoku9.Repeated(layer, 2), sudoku9.Fixing(layer, rounds=11)):
            assert not sudoku.measures(model(puzzle), target.double())["board_error"].any()


def test_rules_are_read_off_soft_equations() -> None:
    """A learner that holds the true groups, some of them twice, and a row without weight."""
    groups = sudoku9.true_groups()
    learner = sudoku9.Learner(29, 0.1)
    with torch.no_grad():
        learner.B.copy_(torch.cat([groups, groups[:1], torch.randn(1, 81, dtype=torch.float64)]))
        learner.log_w[-1] = -20.0
    rules = learner.rules(0.01)
    assert len(rules.A) == 81 + 8 * 21
    free = sudoku9.Free(300, 0.1)
    with torch.no_grad():
        free.layer.A.zero_()[: len(rules.A)] = rules.A
    assert len(free.rules(0.01).A) == 249


def test_hard_puzzles_have_one_solution_and_few_givens() -> None:
    given, solution = sudoku9.hard_puzzles(2, seed=3)
    assert ((given > 0).sum((1, 2)) <= 30).all()
    for puzzle, answer in zip(given.reshape(-1, 81), solution.reshape(-1, 81), strict=True):
        count, found = sudoku9.count_solutions([1 << int(digit) - 1 if digit else 0 for digit in puzzle])
        assert count == 1
        assert [bit.bit_length() for bit in found] == answer.tolist()


# --- runs -----------------------------------------------------------------------------------------------------------


def test_the_layer_learns_and_writes_what_it_promises(tmp_path: Path) -> None:
    rows = learn(tmp_path, train=1500, test=100, batch=50, epochs=3)
    assert rows[-1]["test_loss"] < 0.1 * rows[0]["test_loss"]
    assert rows[-1]["test_cell_error"] < 0.5 * rows[0]["test_cell_error"]
    for name in ("config.json", "results.json", "metrics.csv", "curves.png", "boards.png", "constraints.png"):
        assert (tmp_path / name).stat().st_size > 100, name
    text = sudoku.report(tmp_path)
    assert "| model |" in text
    assert sudoku.compare(tmp_path)[0]["ours"]


def test_soft_equations_find_out_how_many_there_are(tmp_path: Path) -> None:
    learn(tmp_path, train=3000, test=200, batch=50, epochs=6, wrong=[32], soft=64)
    results = {row["model"]: row for row in json.loads((tmp_path / "results.json").read_text())["results"]}
    assert [row["equations"] for row in results.values()] == [40, 32, 40]
    assert results["OptNet, 64 soft rows"]["test_board_error"] < 0.05 < results["OptNet, 32 rows"]["test_board_error"]
    assert "64 soft rows" in sudoku.report(tmp_path)


def test_a_seed_determines_the_run(tmp_path: Path) -> None:
    first = learn(tmp_path / "first", epochs=1)
    assert first == learn(tmp_path / "second", epochs=1)
    assert first != learn(tmp_path / "other", epochs=1, seed=1)


def test_a_broken_run_resumes_as_if_nothing_had_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learn(tmp_path / "whole", epochs=3)
    real, calls = harness.Run.write_metrics, []

    def breaking(self: harness.Run) -> None:
        real(self)
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(harness.Run, "write_metrics", breaking)
        with pytest.raises(KeyboardInterrupt):
            learn(tmp_path / "broken", epochs=3)
    assert len(curve(tmp_path / "broken")) == 2
    sudoku.main(resume=tmp_path / "broken")
    assert curve(tmp_path / "broken") == whole


def test_a_folder_keeps_its_options(tmp_path: Path) -> None:
    learn(tmp_path, epochs=1)
    with pytest.raises(harness.Mistake, match="other options"):
        learn(tmp_path, epochs=2)


def test_the_best_epoch_is_chosen_without_the_test_examples(tmp_path: Path) -> None:
    learn(tmp_path, epochs=2)
    rows = curve(tmp_path)
    best = min(rows, key=lambda row: row["train_loss"])
    found = json.loads((tmp_path / "results.json").read_text())["results"][0]
    assert found["test_loss"] == pytest.approx(best["test_loss"], rel=1e-9)


def test_denoising_runs(tmp_path: Path) -> None:
    denoising.main(
        train=60, test=30, epochs=1, batch=20, fc_epochs=1, fc_hidden=20, sweep=22, seeds=2, few=1, out=tmp_path
    )
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["seed"] for row in results] == [0] * 6 + [1] * 4
    assert [row["ratio"] for row in results if row["model"] == "total variation"] == [1, 1]
    assert all(np.isfinite(row["test_loss"]) for row in results)
    for name in ("curves.png", "differences.png", "signals.png", "sweep.png"):
        assert (tmp_path / name).stat().st_size > 1000, name
    assert "29.8" in denoising.report(tmp_path)
    assert len(denoising.compare(tmp_path)) == 6


def test_big_sudoku_runs(tmp_path: Path) -> None:
    sudoku9.main(train=6, test=2, hard=1, per_epoch=4, epochs=1, lesson=1, free_epochs=1, batch=2, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["told"] for row in results if row["puzzles"] == "held out"] == [
        "everything", "nothing", "one digit a cell; digits are names", "nothing", "nothing"
    ]  # fmt: skip
    assert results[0]["loss"] < results[-1]["loss"]
    assert (tmp_path / "learned.png").exists()
    assert "SATNet" in sudoku9.report(tmp_path)


def test_the_first_lesson_is_the_layer_without_bounds() -> None:
    """With ε = 1, at a point where no bound is active."""
    torch.manual_seed(0)
    free = sudoku9.Free(5, 1.0)
    board = 1 / 9 + 0.01 * torch.rand(2, 9, 9, 9)
    with torch.no_grad():
        assert free(board).min() > 1e-3
        torch.testing.assert_close(sudoku9.FirstLesson(free).eval()(board), free(board).float(), rtol=1e-4, atol=1e-4)


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom optlayer.experiments import sudoku\n"
        f"sudoku.main(**{TINY!r}, epochs=1, out=Path(sys.argv[1]))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, words in (("one", []), ("two", launcher)):
        command = [sys.executable, *words, str(script), str(tmp_path / name)]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        for key in ("train_loss", "test_loss"):
            assert alone[key] == pytest.approx(together[key], rel=1e-9)
        # An untrained layer gives several digits of a cell exactly zero: rounding decides which one is the largest.
        assert alone["test_cell_error"] == pytest.approx(together["test_cell_error"], abs=5 / (40 * 16))


@pytest.mark.parametrize("name", decisions.TASKS)
def test_regret_is_never_negative_and_spo_bounds_it(name: str) -> None:
    """And the gradient of SPO+ is that of differences."""
    task = decisions.TASKS[name](40, 0)
    data, stake = decisions.prepare(task, 20, 10)
    torch.manual_seed(0)
    forecast = (task.c[:20] + torch.randn_like(task.c[:20])).requires_grad_()
    spo, direct = (decisions.Measures(task, method, stake)(forecast, data.train[1]) for method in ("SPO+", "layer"))
    assert (direct["loss"] > -1e-9).all()
    assert (spo["loss"] >= direct["loss"] - 1e-9).all()
    right = decisions.Measures(task, "SPO+", stake)(task.c[:20], data.train[1])
    torch.testing.assert_close(right["loss"], torch.zeros(20, dtype=torch.float64), atol=1e-7, rtol=0)
    for method in decisions.METHODS:
        measure = decisions.Measures(task, method, stake)
        step = torch.randn_like(forecast)

        def loss(size: float, measure: decisions.Measures = measure, step: torch.Tensor = step) -> torch.Tensor:
            return measure(forecast + size * step, data.train[1])["loss"].sum()

        (gradient,) = torch.autograd.grad(loss(0.0), forecast)
        slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
        torch.testing.assert_close((gradient * step).sum(), slope.detach(), rtol=1e-3, atol=1e-4)


def test_the_battery_keeps_its_energy() -> None:
    task = decisions.battery(30, 1)
    charge, discharge, state = task.decide(task.c).split(24, 1)
    before = torch.cat([torch.full((30, 1), 0.5, dtype=torch.float64), state[:, :-1]], 1)
    torch.testing.assert_close(state, before + 0.9 * charge - discharge, atol=1e-8, rtol=0)
    assert ((state > -1e-9) & (state < 1 + 1e-9)).all()


def test_decisions_run(tmp_path: Path) -> None:
    decisions.main(train=60, valid=20, test=20, epochs=1, batch=20, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert len(results) == 9
    assert all(row["test_regret"] < 200 for row in results)
    assert "SPO+" in decisions.report(tmp_path)
    assert len(decisions.compare(tmp_path)) == 3


def test_the_recipe_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "RATES", (1e-2, 1e-1))
    recipe.main(steps=3, batch=10, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert len(results) == 2 * 6
    (tmp_path / "trainings.json").write_text(json.dumps(results[:5]))
    recipe.main(resume=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["results"] == results
    assert "64 soft equations" in recipe.report(tmp_path)
    assert len(recipe.compare(tmp_path)) == 1


def test_unit_rows_say_the_same_as_longer_ones() -> None:
    """With b = A z₀, A and M A are the same layer; so its gradient is orthogonal to every row of A."""
    torch.manual_seed(0)
    layer = recipe.equations(5, None)
    q = torch.randn(20, 64, dtype=torch.float64)
    z = layer(q)
    z.square().sum().backward()
    torch.testing.assert_close((layer.A * layer.A.grad).sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-6, rtol=0)
    with torch.no_grad():
        layer.A.copy_(torch.randn(5, 5, dtype=torch.float64) @ layer.A)
        torch.testing.assert_close(layer(q), z, atol=1e-7, rtol=0)


def test_the_expert_is_feasible_and_a_student_at_its_place_agrees() -> None:
    torch.manual_seed(0)
    data = infeasible.demonstrations(80, 40)
    for way in infeasible.WAYS["filter"]:
        with torch.no_grad():
            figures = infeasible.measure_filter(infeasible.Corridor(way)(data.train[0]), data.train[1])
        assert figures["loss"].max() < 1e-9, way
        assert not figures["infeasible"].any(), way


@pytest.mark.parametrize(("task", "way"), [(task, way) for task, ways in infeasible.WAYS.items() for way in ways])
def test_what_learns_where_nothing_is_feasible(task: str, way: str) -> None:
    """Everything has a gradient there but the status."""
    torch.manual_seed(0)
    if task == "free b":
        x, y = sudoku.load(None, 6, 1, 0).train
        model, measures = infeasible.Boards(way), infeasible.measure_boards
    else:
        x, y = infeasible.demonstrations(6, 1).train
        model, measures = infeasible.Corridor(way, 4, 0.3), infeasible.measure_filter
    figures = measures(model(x), y)
    assert figures["infeasible"].all()
    figures["loss"].mean().backward()
    longest = max(parameter.grad.abs().max() for parameter in model.parameters())
    assert (longest == 0) == (way == "zero gradients")
    assert longest.isfinite()


def test_infeasible_runs_and_resumes(tmp_path: Path) -> None:
    options = {"train": 60, "test": 20, "states": 60, "batch": 20, "epochs": 1, "out": tmp_path}
    infeasible.main(**options)  # type: ignore[arg-type]
    first = harness.read_json(tmp_path / "results.json")["results"]
    assert len(first) == len(infeasible.models())
    assert (tmp_path / "curves.png").stat().st_size > 5000
    text = infeasible.report(tmp_path)
    assert all(way in text for ways in infeasible.WAYS.values() for way in ways)
    (tmp_path / "results.json").unlink()
    infeasible.main(**options)  # type: ignore[arg-type]
    assert harness.read_json(tmp_path / "results.json")["results"] == first
