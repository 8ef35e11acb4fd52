"""Speed (OptNet, section 4.1): an OptNet layer against a linear one (fig. 1); batches against one by one (fig. 2).

Fig. 1: both layers map n numbers to n numbers, for 128 examples at a time. The linear one has an n×n matrix; the
OptNet layer has n variables and n inequalities, Q, G, z₀ and s₀ learned and shared by the batch, as layers' parameters
are. Forward, and backward to the input and every parameter.

Fig. 2: random problems with n = p = 100, nothing shared: Q = UᵀU + 10⁻³ I, U uniform; G, z₀ and q normal,
h = G z₀ + s₀, s₀ uniform. Gurobi and qpth take part where they are installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from typer import Option

import optlayer
from optlayer.experiments import harness
from optlayer.experiments.harness import Mistake, Row, Run, positive
from optlayer.nn import OptNetLayer

Tensors = dict[str, Any]  # of tensors; Any, so that they can be keywords of `solve`
Call = Callable[[], Any]

PAPER = {"Gurobi": 4.7, "qpth, batched": 0.18}
"""Seconds in fig. 2 of the paper, for 128 problems with n = p = 100; qpth's on a Titan X."""

# --- timing ---------------------------------------------------------------------------------------------------------


def clocked(call: Call, device: torch.device) -> tuple[float, Any]:
    """Seconds of one call, the device's work included, and what it returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = perf_counter()
    value = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start, value


def repeated(trial: Callable[[], tuple[float, ...]], trials: int, seconds: float) -> list[tuple[float, ...]]:
    """Up to `trials` trials after one that does not count; no more once `seconds` are over, but always one."""
    start = perf_counter()
    first = trial()
    times: list[tuple[float, ...]] = []
    while len(times) < trials and perf_counter() - start < seconds:
        times.append(trial())
    return times or [first]


def spread(times: list[float]) -> Row:
    """Median, extremes and number of trials."""
    return {"seconds": median(times), "least": min(times), "most": max(times), "trials": len(times)}


# --- fig. 1: a layer among layers -----------------------------------------------------------------------------------


def layer_trial(layer: nn.Module, x: Tensor, upstream: Tensor) -> tuple[float, float]:
    """Seconds forward and backward."""
    x = x.detach().requires_grad_()
    layer.zero_grad(set_to_none=True)
    forward, z = clocked(lambda: layer(x), x.device)
    backward, _ = clocked(lambda: z.backward(upstream), x.device)
    return forward, backward


def layers(size: int, batch: int, dtype: torch.dtype, device: str, trials: int, seconds: float) -> list[Row]:
    """Linear and OptNet layer of one size on one device: a row for each layer and direction."""
    kind: Any = {"dtype": dtype, "device": device}
    x, upstream = (torch.randn(batch, size, **kind) for _ in range(2))
    found = []
    for name, layer in (
        ("linear", nn.Linear(size, size, **kind)),
        ("OptNet", OptNetLayer(size, inequalities=size, **kind)),
    ):
        times = repeated(lambda layer=layer: layer_trial(layer, x, upstream), trials, seconds)  # type: ignore[misc]
        for direction, column in zip(("forward", "backward"), zip(*times, strict=True), strict=True):
            row = {"figure": 1, "device": device, "method": name, "direction": direction, "n": size, "batch": batch}
            found.append(row | spread(list(column)))
    with torch.no_grad():
        sol = layer.solution(x)  # type: ignore[operator]  # the last one, OptNet's
    active = (sol.lam > 0).sum(1).double().mean().item()
    return [row | ({"active": active} if row["method"] == "OptNet" else {}) for row in found]


def least_ratio(n: int, active: float, batch: int) -> float:
    """Operations of an OptNet layer over those of a linear one, forward, by the least that a solution takes.

    The batch shares the factor of Q, n³/3, and the rows in its terms, L⁻¹Gᵀ, n³. A member takes −Q⁻¹q and the rows'
    values there, the factor of the rows of its active set, k³/3, and from the multipliers z and its slacks again: four
    products with n×n numbers, 8 n². A linear layer takes one, 2 n².
    """
    return (4 / 3 * n**3 / batch + 8 * n**2 + active**3 / 3) / (2 * n**2)


# --- fig. 2: batched, one by one, and by others ---------------------------------------------------------------------


def problems(n: int, batch: int, device: str = "cpu") -> Tensors:
    """The random problems of the paper, float64."""
    kind: Any = {"dtype": torch.float64}
    U, G = torch.rand(batch, n, n, **kind), torch.randn(batch, n, n, **kind)
    z0, s0, q = torch.randn(batch, n, 1, **kind), torch.rand(batch, n, **kind), torch.randn(batch, n, **kind)
    tensors = {"Q": U.mT @ U + 1e-3 * torch.eye(n, **kind), "q": q, "G": G, "h": (G @ z0)[..., 0] + s0}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def members(tensors: Tensors) -> list[Tensors]:
    """The batch, one by one."""
    return [dict(zip(tensors, parts, strict=True)) for parts in zip(*tensors.values(), strict=True)]


def objective(tensors: Tensors, z: Tensor) -> Tensor:
    """½ zᵀQz + qᵀz of every member."""
    return 0.5 * torch.einsum("bi,bij,bj->b", z, tensors["Q"], z) + (tensors["q"] * z).sum(1)


def ours_batched(tensors: Tensors) -> Call:
    return lambda: optlayer.solve(**tensors).z


def ours_serial(tensors: Tensors) -> Call:
    apart = members(tensors)
    return lambda: torch.stack([optlayer.solve(**each).z for each in apart])


def ours_with_gradients(tensors: Tensors) -> Call:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}

    def both() -> Tensor:
        z = optlayer.solve(**leaves).z
        torch.autograd.grad(z, list(leaves.values()), torch.ones_like(z))
        return z.detach()

    return both


def qpth_batched(tensors: Tensors) -> Call:
    function = importlib.import_module("qpth.qp").QPFunction(verbose=-1, check_Q_spd=False)
    none = tensors["q"].new_empty(0)
    return lambda: function(tensors["Q"], tensors["q"], tensors["G"], tensors["h"], none, none)


def qpth_serial(tensors: Tensors) -> Call:
    calls = [qpth_batched({name: part[None] for name, part in each.items()}) for each in members(tensors)]
    return lambda: torch.cat([call() for call in calls])


def gurobi(tensors: Tensors) -> Call:
    """One model per member, built and solved, as a layer would have to."""
    package = importlib.import_module("gurobipy")
    environment = package.Env(params={"OutputFlag": 0, "Threads": torch.get_num_threads()})
    apart = [{name: part.numpy() for name, part in each.items()} for each in members(tensors)]

    def one(Q: Any, q: Any, G: Any, h: Any) -> Tensor:
        with package.Model(env=environment) as model:
            z = model.addMVar(len(q), lb=-package.GRB.INFINITY)
            model.setMObjective(0.5 * Q, q, 0.0, sense=package.GRB.MINIMIZE)
            model.addMConstr(G, z, "<", h)
            model.optimize()
            return torch.from_numpy(z.X)

    return lambda: torch.stack([one(**each) for each in apart])


METHODS: dict[str, tuple[str, tuple[str, ...], Callable[[Tensors], Call]]] = {
    "Gurobi": ("gurobipy", ("cpu",), gurobi),
    "qpth, one by one": ("qpth", ("cpu",), qpth_serial),
    "qpth, batched": ("qpth", ("cpu", "cuda"), qpth_batched),
    "optlayer, one by one": ("optlayer", ("cpu",), ours_serial),
    "optlayer, batched": ("optlayer", ("cpu", "cuda"), ours_batched),
    "optlayer, batched, with all gradients": ("optlayer", ("cpu", "cuda"), ours_with_gradients),
}
"""By name: the package needed, the devices, and what makes the call to be timed. In the order of the figure."""


def missing(package: str) -> str | None:
    """None, or why the package cannot be used."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{package} is absent ({error})"
    return None


def method(name: str, tensors: Tensors, answer: Tensor, trials: int, seconds: float) -> Row:
    """One method on one batch: its times, and how far its objective is from ours, relative to 1 + |objective|."""
    device = tensors["q"].device
    batch, n = tensors["q"].shape
    row: Row = {"figure": 2, "device": device.type, "method": name, "direction": "forward", "n": n, "batch": batch}
    values: list[Tensor] = []

    def trial() -> tuple[float]:
        taken, z = clocked(call, device)
        values[:] = [z]
        return (taken,)

    try:
        call = METHODS[name][2](tensors)
        times = repeated(trial, trials, seconds)
    except Exception as error:  # a peer's licence or failure is a result, not the end of the experiment
        if METHODS[name][0] == "optlayer":
            raise
        return row | {"failure": f"{type(error).__name__}: {error}"}
    best = objective(tensors, answer)
    off = (objective(tensors, values[0]) - best).abs() / (1 + best.abs())
    return row | spread([taken for (taken,) in times]) | {"objective_error": off.max().item()}


# --- pictures and tables --------------------------------------------------------------------------------------------


def draw_layers(rows: list[Row]) -> Any:
    """Fig. 1: a group of bars per size, on a logarithmic scale; a panel per device."""
    devices = list(dict.fromkeys(row["device"] for row in rows))
    picture, axes = harness.figure(6.2 * len(devices), 3.6, len(devices), squeeze=False, sharey=True)
    for axis, device in zip(axes[0], devices, strict=True):
        mine = [row for row in rows if row["device"] == device]
        sizes = sorted({row["n"] for row in mine})
        bars = list(dict.fromkeys((row["method"], row["direction"]) for row in mine))
        for place, (name, direction) in enumerate(bars):
            values = {row["n"]: row for row in mine if (row["method"], row["direction"]) == (name, direction)}
            axis.bar(
                [sizes.index(n) + (place - (len(bars) - 1) / 2) / (len(bars) + 1) for n in values],
                [row["seconds"] for row in values.values()],
                1 / (len(bars) + 1),
                color=harness.COLOURS[0 if name == "linear" else 1],
                alpha=1.0 if direction == "forward" else 0.55,
                label=f"{name}, {direction}",
            )
        axis.set_xticks(range(len(sizes)), [str(n) for n in sizes])
        axis.set_yscale("log")
        axis.set_xlabel("variables, and inequalities")
        axis.set_title(f"{device}, batch {mine[0]['batch']}", fontsize=10)
        axis.grid(alpha=0.3, axis="y")
    axes[0, 0].set_ylabel("seconds")
    axes[0, 0].set_ylim(top=20 * max(row["seconds"] for row in rows))  # room for the legend
    axes[0, 0].legend(fontsize=8, loc="upper left", ncols=2)
    return picture


def draw_batches(rows: list[Row]) -> Any:
    """Fig. 2: time against the batch, both logarithmic; stars are the paper's numbers."""
    picture, axis = harness.figure(8.5, 4.2)
    timed = [row for row in rows if row.get("seconds")]
    lines = list(dict.fromkeys((row["method"], row["device"]) for row in timed))
    order = list(METHODS)
    for name, device in lines:
        mine = sorted(
            (row["batch"], row["seconds"]) for row in timed if (row["method"], row["device"]) == (name, device)
        )
        axis.plot(
            *zip(*mine, strict=True),
            marker="o",
            markersize=4,
            linestyle="-" if device == "cpu" else ":",
            color=harness.COLOURS[order.index(name)],
            label=name + ("" if device == "cpu" else f", {device}"),
        )
    for name, seconds in PAPER.items():
        axis.plot(128, seconds, "*", markersize=12, color=harness.COLOURS[order.index(name)], markeredgecolor="black")
        axis.annotate(
            f"paper: {name.split(',')[0]} {seconds} s", (128, seconds), (-9, 0), textcoords="offset points",
            fontsize=8, ha="right", va="center",
        )
    batches = sorted({row["batch"] for row in timed} | {128})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.set_xlabel("batch")
    axis.set_ylabel("seconds")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return picture


def milliseconds(row: Row) -> str:
    return harness.shown(1e3 * row["seconds"])


def layers_table(rows: list[Row]) -> list[Row]:
    """Fig. 1 in numbers: milliseconds, and how many times the linear layer's."""
    by = {(row["device"], row["n"], row["method"], row["direction"]): row for row in rows}
    table: list[Row] = []
    for device, n in dict.fromkeys((row["device"], row["n"]) for row in rows):
        line: Row = {"device": device, "n = p": n}
        for direction in ("forward", "backward"):
            linear, layer = (by[device, n, name, direction] for name in ("linear", "OptNet"))
            line |= {f"linear {direction} (ms)": milliseconds(linear), f"OptNet {direction} (ms)": milliseconds(layer)}
            line[f"{direction} ratio"] = f"{layer['seconds'] / linear['seconds']:.0f}"
        if "active" in layer:
            line["active rows"] = f"{layer['active']:.0f}"
            line["least forward ratio"] = f"{least_ratio(n, layer['active'], layer['batch']):.1f}"
        table.append(line)
    return table


def batches_table(rows: list[Row]) -> list[Row]:
    """Fig. 2 in numbers: milliseconds by batch."""
    table: list[Row] = []
    for name, device in dict.fromkeys((row["method"], row["device"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["device"]) == (name, device)]
        line: Row = {"method": name, "device": device}
        line |= {f"batch {row['batch']} (ms)": milliseconds(row) if "seconds" in row else "failed" for row in mine}
        errors = [row["objective_error"] for row in mine if "objective_error" in row]
        table.append(line | {"objective off by": f"{max(errors):.0e}" if errors else None})
    return table


def largest(rows: list[Row]) -> dict[str, Row]:
    """By method, the measurement of the largest batch on the CPU."""
    timed = [row for row in rows if row["figure"] == 2 and "seconds" in row and row["device"] == "cpu"]
    batch = max(row["batch"] for row in timed)
    return {row["method"]: row for row in timed if row["batch"] == batch}


def verdict(rows: list[Row]) -> str:
    """Ours, batched, against the others and against the paper's numbers."""
    by = largest(rows)
    ours = by.get("optlayer, batched")
    if not ours:
        return ""
    times = {f"{name}, measured here": row["seconds"] for name, row in by.items() if not name.startswith("optlayer")}
    if (ours["n"], ours["batch"]) == (100, 128):
        times |= {f"{name}, in the paper": seconds for name, seconds in PAPER.items()}
    factors = "".join(f"\n- {seconds / ours['seconds']:.3g} times as fast as {who}" for who, seconds in times.items())
    return f"A batch of {ours['batch']} takes optlayer {1e3 * ours['seconds']:.3g} ms on the CPU:\n{factors}"


def report(folder: Path) -> str:
    """The section of the report."""
    found = harness.read_json(folder / "results.json")
    first, second = ([row for row in found["results"] if row["figure"] == figure] for figure in (1, 2))
    absent = "".join(f"- {name}: {why}\n" for name, why in found["absent"].items())
    absent = f"Not measured:\n\n{absent}\n" if absent else ""
    gpu = f" The GPU is an {found['gpu']}." if found["gpu"] else ""
    _, layer, batch = (__doc__ or "").strip().split("\n\n")
    return f"""## Speed, section 4.1

{layer} Medians; numbers are of type {found["dtype"]}.{gpu}

{harness.markdown(layers_table(first))}
What bounds the ratio: a linear layer is one product of matrices, at the full speed of the processor. An OptNet layer
takes at the very least four such products, the factor of Q for the batch, and for each example that of its active rows
(*least forward ratio*, in operations). The rest is that active rows have to be found, that they differ between
examples, so that their systems are solved one by one, and that every answer is refined and judged to the last digit,
which a linear layer leaves to rounding.

![A linear and an OptNet layer, forward and backward](img/experiments/speed-layers.png)

{batch} Medians of forward passes in float64; the last line includes the gradients of Q, q, G and h. Gurobi's time
includes building its models. "Objective off by" is relative to 1 + |objective|, against ours. Stars are the paper's
numbers.

{harness.markdown(batches_table(second))}
{verdict(found["results"])}

{absent}![Time against batch size](img/experiments/speed-batches.png)
"""


def compare(folder: Path) -> list[Row]:
    """The paper's numbers beside ours, at the largest batch."""
    found = harness.read_json(folder / "results.json")["results"]
    by = largest(found)
    table: list[Row] = []
    for name in dict.fromkeys([*PAPER, *by]):
        row = by.get(name)
        size = f"n = p = {row['n']}, batch {row['batch']}" if row else "n = p = 100, batch 128"
        known = name in PAPER and size == "n = p = 100, batch 128"
        ours = f"{row['seconds']:.3g} s" if row else "not measured"
        paper = f"{PAPER[name]} s" if known else None
        table.append({"experiment": f"Fig. 2, {size}: {name}", "paper": paper, "ours": ours})
    text = "; ".join(
        f"n = {row['n = p']}: {row['forward ratio']} / {row['backward ratio']} ({row['device']})"
        for row in layers_table([row for row in found if row["figure"] == 1])
    )
    first = {"experiment": "Fig. 1, OptNet over linear layer, forward / backward", "paper": "a plot", "ours": text}
    return [first, *table]


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    sizes: Annotated[list[int] | None, Option(min=1, help="Fig. 1: n = p. Default: 10, 50, 100, 500.")] = None,
    layer_batch: Annotated[int, Option(min=1, help="Fig. 1: examples at a time.")] = 128,
    dtype: Annotated[str, Option(help="Fig. 1: float32 or float64, for both layers.")] = "float64",
    variables: Annotated[int, Option(min=1, help="Fig. 2: n = p.")] = 100,
    batches: Annotated[list[int] | None, Option(min=1, help="Fig. 2: batch sizes. Default: 1, 2, 4, …, 128.")] = None,
    only: Annotated[list[str] | None, Option(help="Fig. 2: methods, as the figure names them; default: all.")] = None,
    trials: Annotated[int, Option(min=1, help="Trials of each measurement after a first; the paper has 10.")] = 10,
    seconds: Annotated[float, Option(callback=positive, help="No more trials of a measurement after this time.")] = 20,
    threads: Annotated[int, Option(min=0, help="Threads; 0: as many as torch takes.")] = 0,
    seed: Annotated[int, Option(min=0, max=10**9, help="Of the random problems.")] = 0,
    out: Annotated[Path | None, Option(help="Folder of the run; default: runs/speed-DATE-TIME.")] = None,
    resume: Annotated[Path | None, Option(help="Folder of a run to continue, with that run's options.")] = None,
    accelerator: Annotated[str, Option(help="auto (CUDA beside the CPU where there is one) or cpu.")] = "auto",
) -> None:
    """Time an OptNet layer against a linear one, and batches against Gurobi, qpth and one by one (figs. 1 and 2)."""
    options = dict(locals())
    if resume:
        return main(**harness.resumed(resume, options))
    if threads:
        torch.set_num_threads(threads)
    if dtype not in ("float32", "float64"):
        raise Mistake(f"The type {dtype!r} is neither float32 nor float64.")
    if accelerator not in ("auto", "cpu"):
        raise Mistake(f"The accelerator {accelerator!r} is neither auto nor cpu.")
    if unknown := [name for name in only or () if name not in METHODS]:
        raise Mistake(f"{unknown[0]!r} is none of the methods {'; '.join(METHODS)}.")
    run = Run("speed", options, out, "cpu")
    devices = ["cpu", "cuda"] if accelerator == "auto" and torch.cuda.is_available() else ["cpu"]
    kept = harness.Kept(run, "measurements.json")

    def keep(rows: list[Row]) -> None:
        kept.add(*rows)
        for row in rows:
            what = f"{row['device']:5}{row['method']:38}{row['direction']:9} n {row['n']:4} batch {row['batch']:4}"
            run.console.print(what, f"{1e3 * row['seconds']:10.3f} ms" if "seconds" in row else row["failure"])

    absent = {name: why for name in only or METHODS if (why := missing(METHODS[name][0]))}
    with harness.stoppable(run):
        for device in devices:
            for size in sizes or [10, 50, 100, 500]:
                if not kept.has(figure=1, device=device, n=size):
                    torch.manual_seed(seed)
                    keep(layers(size, layer_batch, getattr(torch, dtype), device, trials, seconds))
        for device in devices:
            for batch in batches or [1, 2, 4, 8, 16, 32, 64, 128]:
                torch.manual_seed(seed)
                tensors = problems(variables, batch, device)
                answer = optlayer.solve(**tensors).z
                for name in only or METHODS:
                    if name in absent or device not in METHODS[name][1]:
                        continue
                    if not kept.has(figure=2, device=device, method=name, batch=batch):
                        keep([method(name, tensors, answer, trials, seconds)])
    first, second = ([row for row in kept.rows if row["figure"] == figure] for figure in (1, 2))
    run.save(draw_layers(first), "layers.png")
    run.save(draw_batches(second), "batches.png")
    for row in second:
        if "failure" in row:
            absent[row["method"]] = row["failure"]
    run.console.print(harness.table(layers_table(first)))
    gpu = torch.cuda.get_device_name() if "cuda" in devices else None
    run.finish(kept.rows, batches_table(second), absent=absent, dtype=dtype, gpu=gpu)


def paper(folder: Path, full: bool) -> None:
    """The settings of the report: the paper's at either scale, except for the time that a slow peer may take."""
    main(out=folder, seconds=120 if full else 10)
