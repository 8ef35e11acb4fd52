"""What a member costs, at the median and at worst, for every kind of problem of tests/hard.py: a table and a chart.

    python -m benchmarks.families [--members N] [--backend cpu] [--only KIND ...] [--write]

Every member is a call of its own, timed as the best of three on one thread; a call costs some 15 µs of Python, whatever
it solves. With --write the times go to benchmarks/results/families.json, the table and the chart to docs/backends.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.hard import KINDS, Kind, ordinary

from benchmarks.degeneracy import table
from benchmarks.maros import machine
from optlayer import Status, solve
from optlayer.experiments import pictures

ROOT = Path(__file__).parents[1]
RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "families.json", ROOT / "docs" / "pictures" / "families.svg"
FAMILIES: dict[str, Kind] = {"ordinary": ordinary, **KINDS}
SIZES = (4, 16, 40, 100)
WORST = 50  # times the median: what the maximum of a family and size may be


def seconds(data: dict[str, torch.Tensor], backend: str, repeats: int = 3) -> tuple[float, Status]:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        solution = solve(**data, backend=backend, check=False)
        best = min(best, time.perf_counter() - start)
    return best, Status(int(solution.status))


def measure(name: str, size: int, members: int, backend: str) -> dict[str, Any]:
    """Times of one family at one size, in microseconds, and how many members got their verdict."""
    times, right, n = [], 0, size
    for seed in range(members):
        case = FAMILIES[name](np.random.default_rng([size, seed]), size)
        data = {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in case.data.items()}
        spent, status = seconds(data, backend)
        times.append(1e6 * spent)
        right, n = right + (status == case.verdict), len(case.data["q"])
    median, high, worst = np.percentile(times, [50, 99, 100])
    return {"family": name, "n": n, "verdict": case.verdict.name, "members": members, "right": right,
            "median": round(median, 1), "99 %": round(high, 1), "maximum": round(worst, 1)}  # fmt: skip


def rows(measured: list[dict[str, Any]]) -> str:
    cells = [
        [f"`{x['family']}`", x["n"], x["verdict"], f"{x['right']} of {x['members']}",
         *(f"{x[key]:.0f}" for key in ("median", "99 %", "maximum")), f"{x['maximum'] / x['median']:.1f}"]
        for x in measured
    ]  # fmt: skip
    return table(
        cells, ["family", "n", "verdict", "right", "median, µs", "99 %, µs", "maximum, µs", "maximum / median"]
    )


def draw(measured: list[dict[str, Any]]) -> None:
    """From the median to the maximum, a line for each family and size."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "optlayer"
    names = list(dict.fromkeys(x["family"] for x in measured))
    figure, axis = pictures.figure(7, 0.26 * len(names) + 1)
    for i, size in enumerate(SIZES):
        mine = [x for x in measured if x["size"] == size]
        places = [names.index(x["family"]) + 0.2 * (i - 1.5) for x in mine]
        axis.hlines(places, [x["median"] for x in mine], [x["maximum"] for x in mine], color=f"C{i}", linewidth=1)
        axis.plot([x["median"] for x in mine], places, "o", color=f"C{i}", markersize=3, label=f"n = {size}")
        axis.plot([x["maximum"] for x in mine], places, "|", color=f"C{i}", markersize=5)
    axis.set(xscale="log", xlabel="µs for each member: median ● to maximum |", yticks=range(len(names)))
    axis.set_yticklabels(names, fontsize=7)
    axis.invert_yaxis()
    axis.legend(fontsize=7, frameon=False)
    pictures.without_page(figure).savefig(PICTURE, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--members", type=int, default=100, help="of each family and size")
    parser.add_argument("--only", nargs="+", default=list(FAMILIES), help="families")
    parser.add_argument("--write", action="store_true", help="keep the times; table and chart into the docs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure("ordinary", 4, 10, options.backend)  # the first call loads the core
    measured: list[dict[str, Any]] = []
    for name in options.only:
        for size in SIZES:
            found = {"size": size, **measure(name, size, options.members, options.backend)}
            if not measured or (measured[-1]["family"], measured[-1]["n"]) != (
                name,
                found["n"],
            ):  # some have a largest n
                measured.append(found)
                print(*found.values(), flush=True)
    info = machine()
    off = [x for x in measured if x["maximum"] > WORST * x["median"]]
    lines = rows(measured)
    origin = (f"{options.members} members of each family and size, by `python -m benchmarks.families` ({info['cpu']}, "
              f"{info['threads']} thread, torch {info['torch']}, commit `{info['commit'][:12]}`). "
              f"The maximum is above {WORST} times the median in {len(off)} of {len(measured)}.")  # fmt: skip
    print(f"{lines}\n\n{origin}\n")
    if options.write:
        RESULTS.write_text(json.dumps({"machine": info, "families": measured}, indent=1) + "\n")
        draw(measured)
        path = ROOT / "docs" / "backends.md"
        before, rest = path.read_text().split("<!-- families -->")
        _, after = rest.split("<!-- end -->", 1)
        picture = "![Median and maximum of each family and size](pictures/families.svg)"
        path.write_text(f"{before}<!-- families -->\n\n{picture}\n\n{lines}\n\n{origin}\n\n<!-- end -->{after}")


if __name__ == "__main__":
    main()
