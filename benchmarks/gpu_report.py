"""Tables of what benchmarks/gpu.py has measured, and the targets: reached, missed, or not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

LEAST = 10.0
"""How many times faster than the fastest rival, forward and backward."""
RESIDUAL = {"float64": 1e-6, "float32": 1e-3}
"""Largest relative residual of a right answer of ours."""
RACES = (
    "fig2_b128 float64", "fig2_b4096 float64", "fig1_n10_b128 float64", "fig1_n50_b128 float64",
    "sudoku_b150 float64", "safety_b4096 float64", "safety_b1000000 float64",
)  # fmt: skip


def at(result: Any, *path: str) -> Any:
    """The entry at the end of `path`, None where it is missing."""
    for name in path:
        result = result.get(name) if isinstance(result, dict) else None
    return result


def right(row: dict[str, Any]) -> bool:
    """Whether our own answers of a workload may be timed: every member solved, the optimality conditions met."""
    return row.get("solved") == 1 and row["residual"] <= RESIDUAL[row["dtype"]]


def ratio(row: dict[str, Any], peer: str, kind: str) -> float | None:
    """How many times longer a rival takes."""
    theirs, ours = at(row, "rivals", peer, kind), at(row, kind)
    return theirs / ours if theirs and ours else None


def fastest(row: dict[str, Any], kind: str) -> str | None:
    """The fastest rival whose solutions are right. A wrong gradient does not exclude it: we rather lose than choose."""
    rivals = {peer: r[kind] for peer, r in row.get("rivals", {}).items() if kind in r and at(r, "right", "forward")}
    return min(rivals, key=lambda peer: rivals[peer], default=None)


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


times = "{:.1f}".format


# ---- targets ---------------------------------------------------------------------------------------------------------


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target with what was found; `reached` is None where nothing was measured, or no target is set."""
    rows: list[dict[str, Any]] = []

    def add(
        what: str,
        wanted: str,
        value: Any,
        show: Callable[[Any], str],
        good: Callable[[Any], bool] | None,
        note: str = "",
    ) -> None:
        found = "not measured" if value is None else show(value) + note
        reached = None if value is None or good is None else bool(good(value))
        rows.append({"what": what, "wanted": wanted, "value": value, "found": found, "reached": reached})

    works = {key: row for key, row in result.get("workloads", {}).items() if right(row)}
    others = sorted(result.get("workloads", {}).keys() - works)
    note = f", but not {', '.join(others)}" if others else ""
    add("workloads solved, small residuals", "all", len(works), str, lambda _: not others, note)
    fig2 = works.get("fig2_b128 float64", {})
    add("fig. 2, batch 128, forward", "≤ 1 ms", at(fig2, "forward"), ms, lambda x: x <= 1e-3)
    for key in RACES[:2]:
        value = ratio(works.get(key, {}), "qpth", "forward")
        add(f"{key}, forward, qpth / ours", "≥ 50", value, times, lambda x: x >= 50)
    for key in RACES:
        row = works.get(key, {})
        peer = fastest(row, "both")
        value = ratio(row, peer, "both") if peer else None
        add(f"{key}, both, fastest rival / ours", f"≥ {LEAST:.0f}", value, times, lambda x: x >= LEAST, f" ({peer})")
    rate = at(works, "safety_b1000000 float32", "rate")
    add("n = 4, p = 8, float32, batch 10⁶, forward", "≥ 2·10⁷ QPs/s", rate, "{:.3g}".format, lambda x: x >= 2e7)
    shares = {key: row["backward_share"] for key, row in works.items() if "backward_share" in row}
    worst = max(shares, key=lambda key: shares[key], default=None)
    share = shares[worst] if worst else None
    for what, value, note in (("fig. 2, batch 128", at(fig2, "backward_share"), ""), ("largest", share, f" ({worst})")):
        add(f"backward / forward, {what}", "≤ 20 %", value, "{:.0%}".format, lambda x: x <= 0.2, note)
    calls = result.get("first_calls", {})
    add("first call, kernels compiled", "< 2 s", at(calls, "compiling", "forward"), ms, lambda x: x < 2)
    loading = at(calls, "cached", "loading")
    add("next process, kernels loaded", "< 50 ms", loading, ms, lambda x: x < 0.05)
    for n, entry in result.get("figure1", {}).items():
        value = at(entry, "forward") if right(entry["qp"]) else None
        note = f", with backward {entry['both']:.1f}" if "both" in entry else ""
        add(f"fig. 1, n = {n}, QP layer / linear layer", "reported", value, times, None, note)
    for name, entry in result.get("graph", {}).items():
        for kind in ("forward", "both"):
            row = entry[kind]
            value = row if "error" in row or row["captured"] else None
            add(f"CUDA graph, {name}, {kind}", "same result", value, replayed, lambda row: row.get("difference") == 0)
    sizes = [n for n, ways in result.get("crossover", {}).items() if faster(ways) == "reference"]
    known = any(faster(ways) for ways in result.get("crossover", {}).values())
    found = (f"from n = {min(sizes, key=int)}" if sizes else "at no size") if known else None
    add("the reference is faster than the kernels", "reported", found, str, None)
    return rows


def replayed(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    return f"{ms(row['replay'])} instead of {ms(row['eager'])}, off by {row['difference']:.0e}"


def faster(ways: dict[str, Any]) -> str | None:
    """The way with the shortest forward pass; None unless two are right."""
    times = {way: row["forward"] for way, row in ways.items() if right(row)}
    return min(times, key=lambda way: times[way]) if len(times) > 1 else None


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(title: str, head: str, rows: Iterable[Iterable[object]]) -> None:
    columns = head.split(" | ")
    print(f"\n{title}\n\n| {head} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def wrong(row: dict[str, Any]) -> str:
    return "" if right(row) or "error" in row else " WRONG"


def milliseconds(row: dict[str, Any], kind: str = "forward") -> str:
    return f"{1e3 * row[kind]:.4g}" if kind in row else row.get("error", "–")


def show(result: dict[str, Any]) -> None:
    """Print everything but the checks."""
    if result["rehearsal"]:
        print("\nA REHEARSAL: these numbers say nothing about a GPU.")
    works = result["workloads"]
    head = "workload | solved | its | residual | forward ms | both ms | backward | QPs/s | floor ms | share | bound"
    table("Ours", head, (ours(key, row) for key, row in works.items()))
    head = "workload | rival | forward ms | × ours | both ms | × ours | error of z | remark"
    table("Rivals", head, (theirs(key, row, peer) for key, row in works.items() for peer in row["rivals"]))
    for title, part in (("Kernels and reference, ms", "crossover"), ("Teams, by threads, ms", "teams")):
        lines = [(n, way, row) for n, ways in result[part].items() for way, row in ways.items()]
        table(title, "n | way | forward | both", (
            (n, way + wrong(row), milliseconds(row), milliseconds(row, "both")) for n, way, row in lines
        ))  # fmt: skip
    table("Failures of ours", "where | what", failures(result))
    words = {True: "reached", False: "missed", None: "–"}
    rows = ((t["what"], t["wanted"], t["found"], words[t["reached"]]) for t in result["targets"])
    table("Targets", "what | target | found | verdict", rows)


def failures(part: dict[str, Any], where: str = "") -> list[tuple[str, str]]:
    """Every error outside of the rivals."""
    found = [(where, part["error"])] if "error" in part else []
    for name, below in part.items():
        if isinstance(below, dict) and name != "rivals":
            found += failures(below, f"{where} {name}")
    return found


def ours(key: str, row: dict[str, Any]) -> list[object]:
    if "error" in row:
        return [key, row["error"]]
    roof = row["roofline"]
    floor = [f"{1e3 * roof['floor']:.4g}", f"{roof['share']:.0%}", roof["bound"]] if roof else ["–"] * 3
    answers = [f"{row['solved']:.1%}", f"{row['iterations']:.1f}", f"{row['residual']:.0e}"]
    seconds = [milliseconds(row), milliseconds(row, "both"), f"{row['backward_share']:.0%}", f"{row['rate']:.3g}"]
    return [key + wrong(row), *answers, *seconds, *floor]


def theirs(key: str, row: dict[str, Any], peer: str) -> list[object]:
    found = row["rivals"][peer]
    if "error" in found:
        missing = "ModuleNotFoundError" in found["error"] or "ImportError" in found["error"]
        return [key, peer, *["–"] * 5, "could not be imported: " * missing + found["error"]]
    remark = "not compared"
    if "right" in found:
        remark = "" if found["right"]["both"] else "gradient is wrong"
        remark = remark if found["right"]["forward"] else "WRONG"
    cells = []
    for kind in ("forward", "both"):
        factor = ratio(row, peer, kind)
        cells += [milliseconds(found, kind), "–" if factor is None else times(factor)]
    error = f"{found['z_error']:.0e}" if "z_error" in found else "–"
    return [key, peer, *cells, error, remark]
