"""What OptNet layers can express (OptNet, section 3.3, appendix and fig. 9): Theorems 2 and 3, made and measured.

Theorem 2: ReLU layers and elementwise piecewise-linear functions are OptNet layers, with as many parameters. Here the
layers are built from W and b, or from breakpoints and slopes, and compared with the functions at random points: values,
and gradients of the input and every parameter.

Theorem 3: the converse fails. The largest of three linear functions of the plane is an OptNet layer with one variable
and three inequalities. Its creases are three rays that meet; those of a two-layer ReLU network
f(x) = Σ v_i max(a_iᵀx + b_i, 0) + c are whole lines, so no such network equals it, whatever its width. Such networks
are fitted to it here: all parameters by Adam from several starts, then v and c by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from typer import Option

from optlayer.experiments import harness
from optlayer.experiments.harness import Row, Run, positive
from optlayer.nn import MaxOfLinear, PiecewiseLinear, ReLULayer, SimplexProjection

F64 = torch.float64

# --- Theorem 2: layers that equal functions -------------------------------------------------------------------------


class Pair(NamedTuple):
    """A function, and the layer that should equal it; `leaves` are the tensors to differentiate both by."""

    name: str
    variables: str
    layer: Callable[[Tensor], Tensor]
    function: Callable[[Tensor], Tensor]
    leaves: Sequence[Tensor]
    inputs: int


def relu(outputs: int, inputs: int) -> Pair:
    layer = ReLULayer(torch.randn(outputs, inputs, dtype=F64), torch.randn(outputs, dtype=F64))

    def function(x: Tensor) -> Tensor:
        return (x @ layer.W.mT + layer.b).relu()

    return Pair(f"ReLU(W x + b), W {outputs}×{inputs}", str(outputs), layer, function, [layer.W, layer.b], inputs)


def piecewise(regions: int) -> Pair:
    breakpoints = nn.Parameter(torch.randn(regions - 1, dtype=F64).sort().values)
    slopes, value = nn.Parameter(torch.randn(regions, dtype=F64)), nn.Parameter(torch.randn((), dtype=F64))
    layer = PiecewiseLinear(breakpoints, slopes, value)

    def function(x: Tensor) -> Tensor:
        line = value + slopes[0] * (x - breakpoints[0])
        return line + (slopes.diff() * (x[..., None] - breakpoints).relu()).sum(-1)

    leaves = [breakpoints, slopes, value]
    return Pair(f"piecewise linear, {regions} regions", f"{regions} per entry", layer, function, leaves, 10)


def largest(terms: int, inputs: int) -> Pair:
    layer = MaxOfLinear(torch.randn(terms, inputs, dtype=F64), torch.randn(terms, dtype=F64))

    def function(x: Tensor) -> Tensor:
        return (x @ layer.W.mT + layer.b).amax(-1)

    return Pair(f"max of {terms} linear functions of {inputs} inputs", "1", layer, function, [layer.W, layer.b], inputs)


def simplex(inputs: int) -> Pair:
    def function(x: Tensor) -> Tensor:
        """Sort; the threshold leaves what is above it, less the threshold, with sum 1."""
        falling = x.sort(-1, descending=True).values
        thresholds = (falling.cumsum(-1) - 1) / torch.arange(1, inputs + 1).to(x)
        last = (falling > thresholds).sum(-1, keepdim=True) - 1
        return (x - thresholds.gather(-1, last)).relu()

    name = f"projection onto the simplex, {inputs} entries"
    return Pair(name, str(inputs), SimplexProjection(), function, [], inputs)


def compare_pair(pair: Pair, points: int) -> Row:
    """The largest differences of values and gradients, for one upstream gradient per point."""
    x = (2 * torch.randn(points, pair.inputs, dtype=F64)).requires_grad_()
    layer, function = pair.layer(x), pair.function(x)
    upstream = torch.randn_like(function)
    leaves = [x, *pair.leaves]
    gradients, expected = (torch.autograd.grad(z, leaves, upstream) for z in (layer, function))
    off = [((g - e).abs() / (1 + e.abs())).max() for g, e in zip(gradients, expected, strict=True)]
    return {
        "function": pair.name,
        "variables": pair.variables,
        "points": points,
        "value error": (layer - function).abs().max().item(),
        "gradient error": torch.stack(off).max().item(),
    }


# --- Theorem 3: a function that ReLU networks do not reach ----------------------------------------------------------


def three() -> Tensor:
    """a₁, a₂, a₃ of the picture, (3, 2): unit vectors 120° apart."""
    angles = torch.pi * (1 / 2 + 2 / 3 * torch.arange(3, dtype=F64))
    return torch.stack([angles.cos(), angles.sin()], 1)


class Net(NamedTuple):
    """Two-layer ReLU networks Σ v_i max(a_iᵀx + b_i, 0) + c of one width, a batch of S of them."""

    a: Tensor  # (S, width, 2)
    b: Tensor  # (S, width, 1)
    v: Tensor  # (S, 1, width)
    c: Tensor  # (S, 1, 1)

    def hidden(self, x: Tensor) -> Tensor:
        """(S, width, N) of x (N, 2)."""
        return (self.a @ x.mT + self.b).relu()

    def values(self, x: Tensor) -> Tensor:
        """(S, N)."""
        return (self.v @ self.hidden(x) + self.c)[:, 0]


def fit(width: int, seeds: list[int], steps: int, rate: float, points: int = 2048) -> Net:
    """Networks fitted to the largest of three linear functions on [−1, 1]², one from each seed, all at once."""
    starts = []
    for seed in seeds:
        random = torch.Generator().manual_seed(seed)
        a = torch.randn(width, 2, generator=random)
        b = (2 * torch.rand(width, 1, generator=random) - 1) * a.norm(dim=1, keepdim=True)  # lines through the square
        starts.append((a, b, torch.randn(1, width, generator=random) / width, torch.zeros(1, 1)))
    net = Net(*(torch.stack(parts).requires_grad_() for parts in zip(*starts, strict=True)))
    x = 2 * torch.rand(points, 2, generator=torch.Generator().manual_seed(0)) - 1
    target = (x @ three().float().mT).amax(1)
    optimizer = torch.optim.Adam(net, lr=rate, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: harness.cosine(step / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        (net.values(x) - target).square().mean(1).sum().backward()
        optimizer.step()
        scheduler.step()
    net = Net(*(part.detach().double() for part in net))
    x = x.double()
    features = torch.cat([net.hidden(x), torch.ones(len(seeds), 1, points, dtype=F64)], 1).mT
    weights = torch.linalg.lstsq(features, target.double().expand(len(seeds), -1)[..., None], driver="gelsd").solution
    return net._replace(v=weights[:, :-1].mT, c=weights[:, -1:])


def square(side: int) -> Tensor:
    """A grid on [−1, 1]², (side², 2), the second coordinate running faster."""
    line = torch.linspace(-1, 1, side, dtype=F64)
    return torch.cartesian_prod(line, line)


def relative_error(values: Tensor, target: Tensor) -> Tensor:
    """Root mean square of the difference over the target's standard deviation."""
    return (values - target).square().mean(-1).sqrt() / target.std()


# --- pictures and tables --------------------------------------------------------------------------------------------


def rays(a: Tensor) -> list[Tensor]:
    """Directions of the creases of max a_iᵀx: where two terms are equal and the third is below them."""
    found = []
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        normal = a[i] - a[j]
        along = torch.stack([-normal[1], normal[0]])
        found.append(along if a[i] @ along > a[k] @ along else -along)
    return found


def draw_creases(nets: dict[int, Net]) -> Any:
    """Fig. 9: contours and creases of the layer, and of fitted networks; a crease is as dark as its bend is sharp."""
    side = 101
    grid = square(side)
    line = grid[:side, 1].numpy()
    picture, axes = harness.figure(3.5 * (1 + len(nets)), 3.7, 1 + len(nets), squeeze=False)
    layer = MaxOfLinear(three())
    with torch.no_grad():
        panels = {"OptNet layer, one variable": layer(grid)}
    panels |= {f"ReLU network, {width} hidden units": net.values(grid)[0] for width, net in nets.items()}
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        lines = axis.contour(line, line, values.reshape(side, side).mT.numpy(), 14, cmap="viridis", linewidths=0.8)
        picture.colorbar(lines, ax=axis, shrink=0.7)
        axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axis.set_title(title, fontsize=10)
    for ray in rays(three()):
        axes[0, 0].plot([0, 3 * float(ray[0])], [0, 3 * float(ray[1])], color="black", linewidth=2)
    for axis, net in zip(axes[0, 1:], nets.values(), strict=True):
        bends = net.v[0, 0].abs() * net.a[0].norm(dim=1)
        for (a1, a2), offset, bend in zip(net.a[0].tolist(), net.b[0, :, 0].tolist(), bends.tolist(), strict=True):
            size = (a1 * a1 + a2 * a2) or 1.0
            foot = (-offset * a1 / size, -offset * a2 / size)  # the nearest point of the line to the origin
            along = (-a2 / size**0.5, a1 / size**0.5)
            ends = [[foot[0] + t * along[0], foot[1] + t * along[1]] for t in (-3, 3)]
            axis.plot(*zip(*ends, strict=True), color="black", linewidth=1.5, alpha=min(1.0, bend / float(bends.max())))
    return picture


def draw_widths(rows: list[Row], layer_error: float) -> Any:
    """Error against width: every start a dot, the best ones joined; the layer's in the legend, far below."""
    picture, axis = harness.figure(5, 3.4)
    widths = sorted({row["width"] for row in rows})
    best = [min(row["error"] for row in rows if row["width"] == width) for width in widths]
    colour = harness.COLOURS[0]
    each = [row["width"] for row in rows], [row["error"] for row in rows]
    axis.plot(*each, "o", color=colour, alpha=0.35, markersize=4)
    axis.plot(widths, best, "-", color=colour, label="ReLU network, best of its starts")
    axis.plot([], [], " ", label=f"OptNet layer, one variable: {layer_error:.0e}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set_xlabel("hidden units")
    axis.set_ylabel("relative error")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return picture


def widths_table(results: list[Row]) -> list[Row]:
    """By width: parameters, and errors of the best and the median start."""
    table: list[Row] = []
    for width in dict.fromkeys(row["width"] for row in results if "width" in row):
        errors = sorted(row["error"] for row in results if row.get("width") == width)
        table.append(
            {"hidden units": width, "parameters": 4 * width + 1, "starts": len(errors), "best error": errors[0]}
            | {"median error": errors[len(errors) // 2]}
        )
    return table


def report(folder: Path) -> str:
    """The section of the report."""
    found = harness.read_json(folder / "results.json")
    exact = [row for row in found["results"] if "function" in row]
    _, second, third = (__doc__ or "").strip().split("\n\n")
    return f"""## Expressiveness, Theorems 2 and 3, fig. 9

{second}

{harness.markdown(exact)}
Gradient errors are relative to 1 + |gradient|.

{third}

{harness.markdown(widths_table(found["results"]))}
The error is the root mean square over [−1, 1]², divided by the function's standard deviation. The layer's is
{found["layer_error"]:.1e} with 6 parameters.

![Creases of the layer and of fitted networks](img/experiments/expressiveness-creases.png)

![Error against width](img/experiments/expressiveness-widths.png)
"""


def compare(folder: Path) -> list[Row]:
    """The paper's statements beside our numbers."""
    found = harness.read_json(folder / "results.json")
    exact = [row for row in found["results"] if "function" in row]
    worst = {key: max(row[key] for row in exact) for key in ("value error", "gradient error")}
    last = widths_table(found["results"])[-1]
    return [
        {
            "experiment": "Theorem 2: ReLU, piecewise-linear, max, simplex",
            "paper": "proof",
            "ours": f"largest error of values {worst['value error']:.0e}, of gradients {worst['gradient error']:.0e}",
        },
        {
            "experiment": "Theorem 3: max of three linear functions",
            "paper": "proof",
            "ours": f"layer {found['layer_error']:.0e}; ReLU network with {last['hidden units']} units "
            f"{last['best error']:.1e} at best",
        },
    ]


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    points: Annotated[int, Option(min=1, help="Theorem 2: random points for each function.")] = 10_000,
    widths: Annotated[
        list[int] | None, Option(min=1, help="Theorem 3: hidden units. Default: 2, 4, 8, …, 128.")
    ] = None,
    starts: Annotated[int, Option(min=1, help="Theorem 3: networks for each width.")] = 5,
    steps: Annotated[int, Option(min=1, help="Theorem 3: steps of Adam.")] = 3000,
    rate: Annotated[float, Option(callback=positive, help="Theorem 3: Adam's rate; it decays to zero.")] = 0.02,
    seed: Annotated[int, Option(min=0, max=10**9, help="Of the random instances, and of the first start.")] = 0,
    out: Annotated[Path | None, Option(help="Folder of the run; default: runs/expressiveness-DATE-TIME.")] = None,
) -> None:
    """Theorems 2 and 3: layers that equal ReLU and other functions, and one that no ReLU network equals (fig. 9)."""
    run = Run("expressiveness", dict(locals()), out, "cpu")
    torch.manual_seed(seed)
    pairs = [relu(20, 10), relu(100, 50), piecewise(2), piecewise(5), piecewise(20), largest(3, 2), largest(20, 30)]
    exact = [compare_pair(pair, points) for pair in [*pairs, simplex(10)]]

    grid = square(201)
    target = (grid @ three().mT).amax(1)
    with torch.no_grad():
        layer_error = relative_error(MaxOfLinear(three())(grid), target).item()
    nets: dict[int, Net] = {}
    rows: list[Row] = []
    seeds = list(range(seed, seed + starts))
    with harness.bar(run) as progress:
        for width in progress.track(widths or [2, 4, 8, 16, 32, 64, 128], description="fitting ReLU networks"):
            net = fit(width, seeds, steps, rate)
            errors = relative_error(net.values(grid), target)
            rows += [{"width": width, "seed": s, "error": e} for s, e in zip(seeds, errors.tolist(), strict=True)]
            best = int(errors.argmin())
            nets[width] = Net(*(part[best : best + 1] for part in net))
    drawn: list[int] = [width for width in (4, 16) if width in nets] or [min(nets)]
    run.save(draw_creases({width: nets[width] for width in drawn}), "creases.png")
    run.save(draw_widths(rows, layer_error), "widths.png")
    run.console.print(harness.table(exact))
    run.finish([*exact, *rows], widths_table(rows), layer_error=layer_error)


def paper(folder: Path, full: bool) -> None:
    """The settings of the report."""
    main(widths=[2, 4, 8, 16, 32, 64, 128, *([256, 512] if full else [])], starts=20 if full else 5, out=folder)
