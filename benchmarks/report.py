"""docs/benchmarks.md, its pictures and what other pages say of speed, from files of measurements and nothing else.

    python -m benchmarks.report

Other pages have places for it, `<!-- NAME --> … <!-- end -->`; a test compares them with what is written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, log
from pathlib import Path
from typing import Any

import typer

from benchmarks.accuracy import GRADIENT, SOLUTION, gradient_error, gradient_is_correct, solution_is_correct
from benchmarks.peers import PEERS
from benchmarks.workloads import WORKLOADS
from optlayer.experiments.pictures import without_page

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
RESULTS = Path(__file__).parent / "results"
NOTES = Path(__file__).parent / "notes.md"
OURS, SINGLE, TWO = "optlayer", "optlayer-float32", "optlayer-threads"
CALL = "call_b1"  # measures a call, not a solver
TINY = ("mnist_b64", "mnist_b1024", "safety_b4096", "fig1_n10_b128")
BATCHES = ("fig2_b1", "fig2_b8", "fig2_b32", "fig2_b128", "fig2_b512")
LAYERS = {name: name for name in ("optlayer", "qpth", "cvxpylayers", "proxsuite")} | {"moreau": "Moreau"}
"""Packages that the README compares, by their names."""
TAKES = {
    "optlayer": "QP, LP",
    "qpth": "QP with Q ≻ 0",
    "cvxpylayers": "cone programs, as CVXPY models",
    "proxsuite": "QP, LP",
    "moreau": "cone programs",
}
"""What they solve, by their documentation."""
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933", "#44aa99", "#aa4499",
    "#808080",
)
Row = dict[str, Any]
IS_CORRECT: dict[str, Callable[[Any], bool]] = {"forward": solution_is_correct, "both": gradient_is_correct}


class Measurements:
    """The file of one run, with the questions that the report asks."""

    def __init__(self, path: Path) -> None:
        self.data: Row = json.loads(path.read_text())
        self.workloads: dict[str, Row] = self.data["workloads"]

    def row(self, workload: str, peer: str) -> Row:
        return self.workloads.get(workload, {}).get("peers", {}).get(peer, {})

    def time(self, workload: str, peer: str, kind: str) -> float | None:
        """Median seconds, when measured."""
        found = self.row(workload, peer).get(kind)
        return found["median"] if found else None

    def correct(self, workload: str, peer: str, kind: str) -> bool:
        return IS_CORRECT[kind](self.row(workload, peer).get("accuracy"))

    def fastest(self, workload: str, kind: str) -> tuple[str, float] | None:
        """The fastest correct peer other than optlayer."""
        times = [
            (peer, self.time(workload, peer, kind) or inf)
            for peer in self.workloads[workload]["peers"]
            if not peer.startswith(OURS) and self.time(workload, peer, kind) and self.correct(workload, peer, kind)
        ]
        return min(times, key=lambda pair: pair[1], default=None)

    def advantage(self, workload: str, kind: str) -> float | None:
        """How many times faster optlayer is than the fastest correct peer."""
        ours, best = self.time(workload, OURS, kind), self.fastest(workload, kind)
        return best[1] / ours if ours and best else None

    def peers(self) -> list[str]:
        """Those that solved something: what failed everywhere was not measured."""
        return [peer for peer in PEERS if any(self.time(name, peer, "forward") for name in self.workloads)]

    def ratios(self, package: str) -> dict[str, float]:
        """By workload, the time of a package's fastest layer with right gradients over optlayer's."""
        found = {}
        for name in self.workloads:
            ours = self.time(name, OURS, "both")
            times = [
                time for peer in PEERS
                if PEERS[peer].package == package and (package != OURS or peer == OURS)
                and (time := self.time(name, peer, "both")) and self.correct(name, peer, "both")
            ]  # fmt: skip
            if ours and times:
                found[name] = min(times) / ours
        return found


# --- targets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One line of the table of targets: what is wanted, and the values that must meet it, by workload."""

    words: str
    bound: float
    values: dict[str, float]
    at_least: bool
    unit: str = ""

    def row(self) -> list[str]:
        if not self.values:
            return [self.words, self._limit(), "not measured", "", "–"]
        pick = min if self.at_least else max
        where = pick(self.values, key=self.values.__getitem__)
        worst = self.values[where]
        met = [value for value in self.values.values() if (value >= self.bound) == self.at_least or value == self.bound]
        total, missed = len(self.values), len(self.values) - len(met)
        verdict = "**missed**" if missed else "reached"
        if total > 1:
            verdict += f" by {missed} of {total}" if missed else f" by all {total}"
        ratio = worst / self.bound if self.at_least else self.bound / max(worst, 1e-300)
        return [self.words, self._limit(), f"{_number(worst)}{self.unit} ({where})", _number(ratio), verdict]

    def _limit(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {_number(self.bound)}{self.unit}"


def targets(m: Measurements) -> list[Target]:
    """The targets that the compiled core was given, and what it reached."""
    names = [name for name in m.workloads if name != CALL]

    def values(pick: Callable[[str], float | None], among: list[str] = names) -> dict[str, float]:
        found = {name: pick(name) for name in among}
        return {name: value for name, value in found.items() if value is not None}

    def ratio(peer: str, among: list[str]) -> dict[str, float]:
        def one(name: str) -> float | None:
            ours, other = m.time(name, OURS, "both"), m.time(name, peer, "both")
            return ours / other if ours and other else None

        return values(one, among)

    def accuracy(peer: str, pick: Callable[[Row], float], key: str, among: list[str] = names) -> dict[str, float]:
        return values(lambda name: pick(m.row(name, peer)[key]) if key in m.row(name, peer) else None, among)

    both = values(lambda name: m.advantage(name, "both"))
    forward = values(lambda name: m.advantage(name, "forward"))
    mean = {"geometric mean": exp(sum(map(log, both.values())) / len(both))} if both else {}
    large = [name for name in names if m.workloads[name]["n"] >= 50]
    shared = [name for name in names if {"Q", "G", "A"} & set(m.workloads[name]["shared"])]
    call = m.time(CALL, OURS, "both")
    floor = m.data.get("floor")
    member = m.time("fig2_b128", OURS, "forward")
    worst = "forward + backward against the fastest correct differentiable peer"
    return [
        Target(worst, 3, both, True, "×"),
        Target(f"{worst}, all together", 5, mean, True, "×"),
        Target(f"{worst}, tiny problems", 10, {name: both[name] for name in TINY if name in both}, True, "×"),
        Target("forward against the fastest correct solver of any kind", 1, forward, True, "×"),
        Target(
            "the same where the batch shares Q, G or A", 2,
            {name: forward[name] for name in shared if name in forward}, True, "×",
        ),
        Target("backward, share of the forward", 0.2, values(lambda x: m.row(x, OURS).get("backward_share")), False),
        Target(
            "two threads against one, batches of 32 and more", 1.8,
            ratio(TWO, [name for name in names if m.workloads[name]["batch"] >= 32]), True, "×",
        ),
        Target("float32 against float64, n ≥ 50", 1.5, ratio(SINGLE, large), True, "×"),
        Target(
            "float32, relative error of z, n ≥ 50", 1e-5,
            accuracy(SINGLE, lambda a: a.get("z", inf), "accuracy", large), False,
        ),
        Target("a call with two variables, with gradient", 50, {CALL: 1e6 * call} if call else {}, False, " µs"),
        Target(
            "against LAPACK's floor, n = p = 100", 2,
            {"fig2_b128": member / 128 / floor["seconds"]} if floor and member else {}, False, "×",
        ),
        Target("optimality conditions, relative", 1e-9, accuracy(OURS, lambda r: r["relative"], "residuals"), False),
        Target("gradients, relative error", 1e-6, accuracy(OURS, gradient_error, "accuracy"), False),
    ]


# --- tables ---------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    """Three significant digits, without an exponent where it can be avoided."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.0e}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else _number(1e3 * seconds)


def _against_the_best(m: Measurements) -> str:
    rows = []
    for name, entry in m.workloads.items():
        cells = [f"`{name}`", f"{entry['n']}, {entry['p']}, {entry['m']}, {entry['batch']}"]
        for kind in ("forward", "both"):
            best, ratio = m.fastest(name, kind), m.advantage(name, kind)
            cells += [
                _milliseconds(m.time(name, OURS, kind)),
                f"{_milliseconds(best[1])} {best[0]}" if best else "none is correct",
                f"{_number(ratio)}×" if ratio else "–",
            ]
        rows.append(cells)
    head = ["workload", "n, p, m, batch", "forward", "fastest other", "", "with backward", "fastest other", ""]
    return _table(head, rows)


def _everyone(m: Measurements, kind: str) -> str:
    """The times of all peers, a column for each workload: there are more letters in its name than in a number."""
    names = list(m.workloads)

    def cell(workload: str, peer: str) -> str:
        time = m.time(workload, peer, kind)
        if time is None:
            return "–"
        return _milliseconds(time) + ("" if m.correct(workload, peer, kind) else "\u00a0✗")

    rows = [[peer, *(cell(name, peer) for name in names)] for peer in m.peers()]
    head = ["", *(name.replace("_", " ") for name in names)]
    return _table(head, [row for row in rows if set(row[1:]) != {"–"}])


def _accuracy(m: Measurements) -> str:
    rows = []
    for name in m.workloads:
        ours, single = m.row(name, OURS), m.row(name, SINGLE)
        if "residuals" not in ours or not ours.get("accuracy", {}).get("finite"):
            continue
        found, exact = ours["residuals"], m.workloads[name].get("finite_differences")
        rows.append([
            f"`{name}`", f"{found['iterations']:.1f}",
            *(f"{found[key]:.0e}" for key in ("primal", "dual", "gap", "relative")),
            f"{ours['accuracy']['z']:.0e}", f"{gradient_error(ours['accuracy']):.0e}",
            f"{exact:.0e}" if exact is not None else "–",
            f"{single['accuracy']['z']:.0e}" if single.get("accuracy", {}).get("finite") else "–",
        ])
    head = ["iterations", "primal", "dual", "gap", "relative", "z", "gradients", "finite differences", "z in float32"]
    return _table(["workload", *head], rows)


def _failures(m: Measurements) -> str:
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, entry in m.workloads.items():
        for peer, row in entry["peers"].items():
            for key, kind in (("failure", ""), ("backward_failure", " (backward)")):
                if key in row:
                    reasons.setdefault((peer + kind, row[key]), []).append(name)
    rows = [
        [peer, ", ".join(f"`{name}`" for name in names), reason.replace("|", "\\|")]
        for (peer, reason), names in reasons.items()
    ]
    return _table(["peer", "workload", "why"], rows) if rows else "None."


# --- pictures -------------------------------------------------------------------------------------------------------


def _style(peer: str) -> tuple[str, str]:
    """A colour for each package and a marker for each of its ways, the same in every picture."""
    packages = list(dict.fromkeys(each.package for each in PEERS.values()))
    return COLOURS[packages.index(PEERS[peer].package)], "osD^v<>PXhp*d8Hos"[list(PEERS).index(peer)]


def _draw(m: Measurements) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "optlayer", "font.size": 9})
    PICTURES.mkdir(exist_ok=True)

    def save(figure: Any, name: str) -> None:
        without_page(figure).savefig(PICTURES / name, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)

    figure, axis = plt.subplots(figsize=(7, 2.6))
    names = [name for name in m.workloads if name != CALL and m.time(name, OURS, "both")]
    for package, title in LAYERS.items():
        ratios = m.ratios(package)
        points = [(x, ratios[name]) for x, name in enumerate(names) if name in ratios]
        if points:
            colour, marker = _style(package)
            axis.plot(*zip(*points, strict=True), marker, color=colour, markersize=5, label=title)
    axis.set(yscale="log", ylabel="time, optlayer = 1", xticks=range(len(names)))
    axis.set_xticklabels([name.replace("_", " ") for name in names], rotation=50, ha="right")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save(figure, "benchmarks-layers.svg")

    others = [peer for peer in m.peers() if peer != OURS]
    names = [name for name in m.workloads if m.time(name, OURS, "forward")]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.3 * len(names) + 1.2), sharey=True)
    for axis, (kind, title) in zip(axes, (("forward", "forward"), ("both", "forward + backward")), strict=True):
        for peer in others:
            points = [
                ((m.time(name, peer, kind) or 0) / (m.time(name, OURS, kind) or 1), y, m.correct(name, peer, kind))
                for y, name in enumerate(names)
                if m.time(name, peer, kind) and m.time(name, OURS, kind)
            ]
            colour, marker = _style(peer)
            for correct in (True, False):
                chosen = [(x, y) for x, y, c in points if c is correct]
                axis.scatter(
                    [x for x, _ in chosen], [y for _, y in chosen], s=22, marker=marker,
                    color=colour if correct else "none", edgecolors=colour,
                    label=peer if correct else None,
                )
        axis.axvline(1, color="black", linewidth=1)
        axis.set(xscale="log", title=title, xlabel="times the time of optlayer", yticks=range(len(names)))
        axis.set_yticklabels(names)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.91, 0.5), frameon=False)
    save(figure, "benchmarks-peers.svg")

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, (kind, title) in zip(axes, (("forward", "forward"), ("both", "forward + backward")), strict=True):
        for peer in [OURS, *[peer for peer in others if not peer.startswith(OURS)]]:
            points = [
                (m.workloads[name]["batch"], 1e3 * (m.time(name, peer, kind) or 0) / m.workloads[name]["batch"])
                for name in BATCHES
                if m.time(name, peer, kind)
            ]
            if points:
                colour, marker = _style(peer)
                axis.plot(
                    *zip(*points, strict=True), marker + "-", label=peer,
                    color=colour, linewidth=2.5 if peer == OURS else 1, markersize=4,
                )
        axis.set(xscale="log", yscale="log", title=title, xlabel="batch", ylabel="ms for each problem")
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.91, 0.5), frameon=False)
    save(figure, "benchmarks-batch.svg")


# --- the page -------------------------------------------------------------------------------------------------------


def comparison(m: Measurements, claims: Row) -> str:
    """The table at the top of the README: optlayer and four other layers in five lines."""
    answers = claims["answers"]

    def derivatives(name: str) -> str:
        return " / ".join(answers[name][probe] for probe in ("second derivatives", "torch.func", "torch.compile"))

    def time(name: str) -> str:
        ratios = m.ratios(name)
        return f"{_number(exp(sum(map(log, ratios.values())) / len(ratios)))}×" if ratios else "–"

    lines: list[tuple[str, Callable[[str], str]]] = [
        ("time of a forward and backward pass ¹", time),
        ("right gradients ²", lambda name: f"{len(m.ratios(name))} of {len(m.workloads)}"),
        ("one member of the batch is infeasible", lambda name: answers[name]["infeasible"]),
        ("second derivatives / `torch.func` / `torch.compile`", derivatives),
        ("problems", TAKES.__getitem__),
    ]
    return _table(["", *LAYERS.values()], [[words, *map(tell, LAYERS)] for words, tell in lines])


def summary(m: Measurements) -> str:
    """How fast, in a sentence, with the workload that is no contest of solvers said apart."""
    names = [name for name in m.workloads if name != CALL]
    both, forward = ([v for name in names if (v := m.advantage(name, kind))] for kind in ("both", "forward"))
    mean = exp(sum(map(log, both)) / len(both))
    call, best = m.advantage(CALL, "both"), m.fastest(CALL, "forward")
    ours = m.time(CALL, OURS, "forward")
    text = (
        f"forward and backward together {_number(min(both))} to {_number(max(both))} times as fast as the fastest "
        f"other layer with right gradients on each of {len(both)} workloads ({_number(mean)} times in the geometric "
        f"mean), forward alone {_number(min(forward))} to {_number(max(forward))} times as fast as the fastest correct "
        "solver of any kind"
    )
    if not (call and best and ours):
        return text
    if best[1] < ours:
        aside = f"{best[0]}, called without torch, takes {_number(best[1] / ours)} of the time forward"
    else:
        aside = f"forward {_number(best[1] / ours)} times as fast as {best[0]}"
    return (
        f"{text}. One more, a single problem of two variables, measures a call: {_number(call)} times as fast as the "
        f"fastest layer; {aside}"
    )


def footnotes(m: Measurements, claims: Row) -> str:
    """What the marks of `comparison` stand for."""
    machine, versions = m.data["machine"], claims["versions"]
    named = ", ".join(f"{LAYERS[package]} {version}" for package, version in versions.items() if package != OURS)
    slow = [
        f"{LAYERS[peer.package]} on `{workload}`"
        for peer in PEERS.values() for workload in m.workloads
        if peer.package in LAYERS and (m.row(workload, peer.name).get("failure") or "").startswith("more than")
        and workload not in m.ratios(peer.package)
    ]  # fmt: skip
    late = f" Given up as too slow, and not counted: {', '.join(sorted(set(slow)))}." if slow else ""
    return (
        f"¹ Of the benchmark's workloads that the layer gets right, the geometric mean; optlayer takes 1 "
        f"({machine['processor']}, one thread, float64, commit `{m.data['commit']}`). ² No gradient is off by more "
        f"than {GRADIENT:g} of the largest entry.{late} {named}; the rest by `{claims['command']}`."
    )


def fill(text: str, places: dict[str, str]) -> str:
    """The text with each `<!-- NAME --> … <!-- end -->` filled anew; a place of its own lines keeps them."""

    def filled(match: re.Match[str]) -> str:
        return match[1] + (f"\n\n{places[match[2]]}\n\n" if "\n\n" in match[3] else places[match[2]]) + match[4]

    names = "|".join(map(re.escape, places))
    return re.sub(rf"(<!-- ({names}) -->)(.*?)(<!-- end -->)", filled, text, flags=re.DOTALL)


def call(m: Measurements) -> str:
    """What a small call costs."""
    forward, both = (1e6 * (m.time(CALL, OURS, kind) or 0) for kind in ("forward", "both"))
    return (
        f"A call with two variables takes {forward:.0f} µs forward and {both:.0f} µs with its gradient, and "
        f"[Benchmarks](benchmarks.md) has the times of {len(m.workloads)} workloads"
    )


def gpu(data: dict[str, Any]) -> str:
    """What a GPU has been measured to do."""
    rivals = list(dict.fromkeys(peer for row in data["workloads"].values() for peer in row["rivals"]))
    head = ["workload", "forward (ms)", "with gradients (ms)", "QPs a second", "left to the core"]
    rows = []
    for name, row in data["workloads"].items():
        times = [f"{1e3 * row[kind]:.3g}" for kind in ("forward", "both")]
        theirs = [_rival(row["rivals"].get(peer, {})) for peer in rivals]
        rows.append([f"`{name}`", *times, f"{row['rate']:.2g}", f"{row['left']:.1g}", *theirs])
    machine = data["machine"]
    versions = ", ".join(f"{peer} {machine['versions'][peer]}" for peer in rivals)
    origin = (
        f"{machine['gpu']}, torch {machine['torch']}, {versions}, commit `{machine['commit']}`, {machine['date']}. "
        "Other packages: forward, with gradients (ms; ✗: a gradient is wrong). Left to the core: the share of members "
        "that the kernel does not settle."
    )
    return f"{_table([*head, *rivals], rows)}\n\n{origin}"


def _rival(found: dict[str, Any]) -> str:
    if "forward" not in found:
        return "–"
    return f"{1e3 * found['forward']:.3g}, {1e3 * found['both']:.3g}{'' if found['right']['both'] else ' ✗'}"


PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "faq.md", ROOT / "docs" / "cuda.md")


def places() -> dict[str, str]:
    """What other pages say of speed, from the committed results."""
    m, claims = Measurements(RESULTS / "cpu.json"), json.loads((RESULTS / "claims.json").read_text())
    table, notes = comparison(m, claims), footnotes(m, claims)
    measured = gpu(json.loads((RESULTS / "gpu.json").read_text()))
    return {"comparison": table, "comparison notes": notes, "speed": summary(m), "call": call(m), "gpu": measured}


def _again(command: str) -> str:
    """`make bench` as it was called."""
    words = command.removeprefix("python -m benchmarks.run").strip()
    return f'make bench ARGS="{words}"' if words else "make bench"


def page(m: Measurements) -> str:
    """The text of docs/benchmarks.md."""
    data, machine = m.data, m.data["machine"]
    measured = {PEERS[peer].package for peer in m.peers()}
    versions = ", ".join(
        f"{package} {version}" for package, version in data["versions"].items() if package in measured - {OURS}
    )
    commit = data["commit"] + (" with uncommitted changes" if data["changed"] else "")
    floor = data.get("floor")
    pieces = [
        "<!-- Written by benchmarks/report.py from a file of benchmarks/results. Do not edit. -->",
        "# Benchmarks",
        f"Measured on {data['date']} at commit `{commit}` by `{data['command']}` in {data['minutes']} minutes, on "
        f"{machine['processor']} with {machine['cores']} cores ({machine['system']}, {machine['instructions']} "
        f"kernels), Python {machine['python']}, torch {machine['torch']}. Peers: {versions}.",
        "Every peer has a process of its own, pinned to the same core with one thread; they are called in turns, and "
        "medians are given. Data lie ready in the layout that each peer wants; importing, compiling and setting up are "
        "not timed. Gradients are those of all tensors for a random upstream gradient. Times are for the whole batch.",
        "A forward pass is *correct* when infeasibility and the relative error of the objective are at most "
        f"{SOLUTION:g}, a backward pass when, besides, no gradient is off by more than {GRADIENT:g} of the exact one's "
        "largest entry; what is not is marked ✗ and out of the comparison. Exact means: the reference backend with "
        "polish, which is itself compared with finite differences of the first member.",
        f"```bash\n{_again(data['command'])}\n```",
        "## Targets",
        "The worst workload for each target; the ratio is above 1 where the target is surpassed. "
        f"`{CALL}`, which measures a call and not a solver, has a line of its own and is in no other.",
        _table(["target", "wanted", "worst", "ratio", "verdict"], [target.row() for target in targets(m)]),
    ]
    if NOTES.exists():
        pieces.append(NOTES.read_text().strip())
    pieces += [
        "## Against the fastest correct peer",
        "Milliseconds. *Forward*: against solvers of any kind; *with backward*: against differentiable layers.",
        _against_the_best(m),
        "![Time of each peer relative to optlayer](pictures/benchmarks-peers.svg)",
        "Hollow marks are wrong answers.",
        "![Time for each problem and the size of the batch](pictures/benchmarks-batch.svg)",
        "## Everyone",
        "Milliseconds. `moreau-shared` has one P and A for the batch, `moreau-sparse` only their non-zero entries, "
        "`daqp-bounds` takes bounds as such; `optlayer-threads` has two threads and two cores.",
        "Forward:",
        _everyone(m, "forward"),
        "Forward and backward:",
        _everyone(m, "both"),
        "## Accuracy of optlayer",
        "Residuals of the optimality conditions in the problem's units and relative to the largest terms, errors of z "
        "and of the worst gradient against the exact ones, and how far these are from finite differences.",
        _accuracy(m),
    ]
    if floor:
        pieces += [
            "## The floor",
            "What LAPACK and BLAS (the faster of torch's and scipy's, measured beside the peers) take for the parts of "
            "an interior-point solve with n = p = 100 that cannot be avoided: "
            f"{1e6 * floor['once']:.0f} µs once, {1e6 * floor['iteration']:.0f} µs an iteration, "
            f"{1e6 * floor['seconds']:.0f} µs for the {floor['iterations']:.1f} iterations of `fig2_b128`. "
            f"optlayer takes {1e6 * (m.time('fig2_b128', OURS, 'forward') or 0) / 128:.0f} µs.",
        ]
    pieces += ["## Failures", "Peers that refuse a workload, crash, or take too long.", _failures(m), "## Workloads"]
    pieces.append(_table(
        ["workload", "what it is", "shared by the batch"],
        [
            [f"`{name}`", WORKLOADS[name].what, ", ".join(entry["shared"]) or "nothing"]
            for name, entry in m.workloads.items()
        ],
    ))
    return "\n\n".join(pieces) + "\n"


def write(results: Path = RESULTS / "cpu.json") -> None:
    """Write docs/benchmarks.md and its pictures from `results`, and what other pages say from the committed results."""
    measurements = Measurements(results)
    _draw(measurements)
    (ROOT / "docs" / "benchmarks.md").write_text(page(measurements))
    for path in PAGES:
        path.write_text(fill(path.read_text(), places()))


if __name__ == "__main__":
    typer.run(write)
