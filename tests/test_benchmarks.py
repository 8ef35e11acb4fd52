"""The benchmark of the GPU, rehearsed on the CPU: what it runs, what it writes, how it judges."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import gpu, gpu_report, gpu_tasks, maros, peers, report, sparse
from benchmarks.workloads import Arrays

from optlayer import solve
from optlayer.backends import cpu

needs_core = pytest.mark.skipif(cpu.unavailable() is not None, reason="the compiled core is missing")


def liar(tensors: Arrays, upstream: np.ndarray, device: str) -> peers.Case:
    case = peers.optlayer(tensors, upstream, device=device)
    return peers.Case(lambda: case.forward() + 1, case.both, case.gradients)


def absent(tensors: Arrays, upstream: np.ndarray, device: str) -> peers.Case:
    raise ModuleNotFoundError("No module named 'absent'")


@needs_core
def test_a_rehearsal_fills_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    rivals = {"twin": peers.optlayer, "liar": liar, "absent": absent}
    for module in (gpu, gpu_tasks):
        monkeypatch.setattr(module, "RIVALS", rivals)
    monkeypatch.setattr(gpu_report, "RACES", ("safety_b4096 float64",))
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--quick", "--together", "--no-suite", "--only", "safety_b4096", "--out", str(out)]
    gpu.main(words)
    result = json.loads(out.read_text())

    assert result["rehearsal"]
    (row,) = result["workloads"].values()
    assert row["solved"] == 1
    assert row["residual"] < 1e-9
    assert row["both"] > 0
    assert row["roofline"]["floor"] > 0
    assert row["rivals"]["twin"]["right"] == {"forward": True, "both": True}
    assert row["rivals"]["twin"]["z_error"] < 1e-9
    assert not row["rivals"]["liar"]["right"]["forward"]
    assert row["rivals"]["absent"]["error"] == "ModuleNotFoundError: No module named 'absent'"
    assert gpu_report.fastest(row, "both") == "twin"
    assert {"1"} == result["teams"]["4"].keys()
    for part in ("figure1", "first_calls", "graph", "crossover"):
        assert "error" not in json.dumps(result[part]), result[part]
    found = {target["what"]: target for target in result["targets"]}
    assert found["next process, kernels loaded"]["value"] is not None
    assert found["fig. 2, batch 128, forward"]["reached"] is None

    shown = capsys.readouterr().out
    assert "A REHEARSAL" in shown
    assert "WRONG" in shown
    assert "could not be imported: ModuleNotFoundError" in shown


def test_pages_say_what_was_measured() -> None:
    """`python -m benchmarks.report` would change nothing: no number in prose is older than the results."""
    pytest.importorskip("typer")
    assert report.places()["comparison"].count("\n") == 6, "a head, a rule, five lines"
    for path in report.PAGES:
        text = path.read_text()
        assert any(f"<!-- {name} -->" in text for name in report.places())
        assert report.fill(text, report.places()) == text, f"{path.name}: run `python -m benchmarks.report`"
    page = report.page(report.Measurements(report.RESULTS / "cpu.json"))
    assert (report.ROOT / "docs" / "benchmarks.md").read_text() == page


def test_places_are_filled_in_a_line_or_between_empty_lines() -> None:
    text = "so <!-- speed -->old<!-- end -->.\n\n<!-- comparison -->\n\nold\n\n<!-- end -->\n<!-- else -->x<!-- end -->"
    filled = report.fill(text, {"speed": "fast", "comparison": "| a |"})
    assert filled == text.replace("-->old<", "-->fast<").replace("\nold\n", "\n| a |\n")


@pytest.mark.parametrize(("forward", "verdict"), [(0.9e-3, True), (1.1e-3, False)])
def test_targets_are_reached_or_missed(forward: float, verdict: bool) -> None:
    right = {"forward": True, "both": False}
    rivals = {
        "slow": {"forward": 0.06, "both": 0.08, "right": right},
        "fast": {"forward": 0.01, "both": 0.02, "right": right},
        "wrong": {"forward": 1e-9, "both": 1e-9, "right": {"forward": False, "both": False}},
        "gone": {"error": "crashed"},
    }
    good = {"solved": 1, "residual": 1e-12, "dtype": "float64"}
    row = {**good, "forward": forward, "both": 1.1 * forward, "backward_share": 0.1, "rivals": rivals}
    captured = {"captured": True, "difference": 0.0, "eager": 1e-3, "replay": 5e-4}
    called = {**captured, "captured": False}
    graph = {
        "fig2": {"forward": captured, "both": {"error": "no capture"}},
        "safety": {"forward": called, "both": called},
    }
    ways = {
        str(n): {"kernels": {**good, "forward": n / 100}, "reference": {**good, "forward": 1.0}} for n in (64, 128)
    }
    wrong = {**good, "residual": 1e-3, "forward": 1e-9, "backward_share": 9.0}
    works = {"fig2_b128 float64": row, "fig2_b4096 float64": wrong}
    result = {"workloads": works, "graph": graph, "crossover": ways}
    found = {target["what"]: target for target in gpu_report.targets(result)}
    assert found["fig. 2, batch 128, forward"]["reached"] is verdict
    race = found["fig2_b128 float64, both, fastest rival / ours"]
    assert race["reached"]
    assert race["found"].endswith("(fast)")
    assert found["backward / forward, largest"]["reached"]
    assert found["workloads solved, small residuals"]["found"] == "1, but not fig2_b4096 float64"
    assert found["workloads solved, small residuals"]["reached"] is False
    assert found["first call, kernels compiled"]["found"] == "not measured"
    assert found["CUDA graph, fig2, forward"]["reached"]
    assert found["CUDA graph, fig2, both"]["reached"] is False
    assert found["CUDA graph, safety, both"]["reached"] is None
    assert gpu_report.failures(result) == [(" graph fig2 both", "no capture")]
    assert found["the reference is faster than the kernels"]["found"] == "from n = 128"


@pytest.mark.parametrize(
    ("code", "error"),
    [("raise KeyError('name')", "KeyError: 'name'"), ("import os; os.abort()", "ended with code -6"),
     ("while True: pass", "more than 0.5 s")],
)  # fmt: skip
def test_a_failure_in_a_process_costs_one_row(
    code: str, error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda words, **options: start([words[0], "-c", code], **options))
    limit = 0.5 if "while" in code else 60
    assert gpu.Run("cpu", True, False, tmp_path / "gpu.json").ask("ours", limit=limit)["error"] == error


def test_cupiqp_gets_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a layer with the published signature, since the real one needs a GPU."""

    class DenseSolverLayer:
        def __init__(self, dtype: Any = torch.float64, stream: Any = None, device: Any = None) -> None:
            assert torch.device(device).type == "cpu"

        def setup(
            self, P: Any, c: Any, A: Any = None, b: Any = None, G: Any = None, h_u: Any = None, h_l: Any = None
        ) -> None:
            assert not P.requires_grad

        def __call__(
            self, P: Any, c: Any, A: Any = None, b: Any = None, G: Any = None, h_u: Any = None, h_l: Any = None
        ) -> torch.Tensor:
            return solve(P, c, G, h_u, A, b, backend="reference").z

    package = ModuleType("cupiqp.torch")
    package.DenseSolverLayer = DenseSolverLayer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupiqp", ModuleType("cupiqp"))
    monkeypatch.setitem(sys.modules, "cupiqp.torch", package)
    work = gpu_tasks.workload("sudoku_b3")
    tensors, upstream = work.data(), work.upstream()
    theirs = peers.cupiqp(tensors, upstream, device="cpu:0")
    ours = peers.optlayer(tensors, upstream, backend="reference")
    assert theirs.both is not None
    assert ours.both is not None
    torch.testing.assert_close(theirs.forward(), ours.forward())
    grads = [case.gradients(case.both()[2]) for case in (theirs, ours)]  # type: ignore[misc]
    for name in tensors:
        np.testing.assert_allclose(grads[0][name], grads[1][name], rtol=1e-6, atol=1e-9)
    with pytest.raises(peers.Unsuitable):
        peers.cupiqp(tensors, upstream, device="cpu")


@needs_core
def test_sparse_batches_beside_a_peer_a_liar_and_an_absent_one() -> None:
    def liar(batch: sparse.Batch, upstream: np.ndarray) -> peers.Case:
        case = sparse.piqp(batch, upstream)
        return peers.Case(lambda: case.forward() + 1)

    def nobody(batch: sparse.Batch, upstream: np.ndarray) -> peers.Case:
        raise ModuleNotFoundError("No module named 'absent'")

    some = {"piqp": sparse.piqp, "moreau": liar, "hpipm": nobody}
    rows = {kind: [sparse.measure("factor", "values", 0.0, some, members)]
            for kind, members in (("batches", 3), ("singles", 1))}  # fmt: skip
    row = rows["batches"][0]
    assert row["ms"].keys() == {"forward", "both", "two threads", "piqp", "moreau"}
    assert row["unsolved"] == 0
    assert max(row["residual"], row["derivative"]["optlayer"]) < 1e-6
    machine = {"cpu": "one", "torch": torch.__version__, "commit": "none"}
    line = next(line for line in sparse.page({"machine": machine, **rows}).splitlines() if "factor" in line)
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[1:3] == ["factor", "differ"]
    assert ["✗" in cell for cell in cells[3:9]] == [False] * 4 + [True, False]
    assert cells[8] == "–"


def test_hard_problems_tell_time_and_memory_beside_the_last_solver() -> None:
    def row(problem: str, solver: str, seconds: float, megabytes: float, relative: float = 0.0) -> maros.Row:
        return maros.Row(problem, solver, "SOLVED", 9, seconds, megabytes, 0.0, 0.0, 0.0, relative, 0.0)

    rows = [row("A", "sparse", 3.0, 0.0), row("B", "sparse", 1.0, 6.0), row("C", "sparse", 9.0, 9.0),
            row("A", "piqp", 2.0, 0.5), row("B", "piqp", 2.0, 2.0), row("C", "piqp", 1.0, 1.0, np.inf)]  # fmt: skip
    assert maros.beside(rows) == [
        "sparse / piqp, seconds: median 1.50, most A 1.50, B 0.50",
        "sparse / piqp, megabytes: median 3.00, most B 3.00, A 1.00",
    ]
    assert maros.beside(rows[:3]) == []
