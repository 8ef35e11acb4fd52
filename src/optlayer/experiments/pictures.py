"""Pictures without a page of their own: fit for a light site, a dark one, and paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from optlayer.experiments.files import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#808080"
"""Of text, axes and what stands for the truth: as readable on a dark page as on a white one."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
"""Distinguishable by colour-blind readers too (Okabe and Ito)."""


def figure(width: float = 8, height: float = 3.5, columns: int = 1, rows: int = 1, **more: Any) -> Any:
    """A figure and its axes, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, **more)


def without_page(figure: Figure) -> Figure:
    """The figure, fit for a page of any colour: what is black becomes grey, the background transparent."""
    from matplotlib.colors import same_color
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    drawn: list[Any] = [*figure.findobj(Line2D), *figure.findobj(Text)]
    for each in drawn:
        if same_color(each.get_color(), "black"):
            each.set_color(INK)
    for spine in figure.findobj(Spine):
        spine.set_edgecolor(INK)
    for legend in figure.findobj(Legend):
        legend.get_frame().set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(which="both", color=INK, labelcolor=INK)  # ticks come into being when they are drawn
    figure.patch.set_alpha(0)
    return figure


def epochs_axis(axis: Any) -> None:
    """A horizontal axis of epochs: ticks are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch")


def curves(axis: Any, rows: list[Row], measure: str, splits: tuple[str, ...] = ("train", "test")) -> None:
    """One line per model, seed and split; a colour per model, training dashed. A single epoch is a dot."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model, seed in dict.fromkeys((row["model"], row["seed"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["seed"]) == (model, seed)]
        first = seed == min(row["seed"] for row in rows if row["model"] == model)
        for split in splits:
            axis.plot(
                [row["epoch"] for row in mine],
                [row[f"{split}_{measure}"] for row in mine],
                color=COLOURS[models.index(model) % len(COLOURS)],
                linestyle="-" if split == "test" else "--",
                marker="o" if len(mine) < 5 else None,
                markersize=4,
                alpha=1.0 if first else 0.5,
                label=f"{model}, {split}" if first else None,
            )
    epochs_axis(axis)
    axis.set_ylabel(measure.replace("_", " "))
    axis.grid(alpha=0.3)


def heat(axis: Any, matrix: Tensor, limit: float) -> None:
    """A matrix as colours from −limit to limit, with a bar that tells them."""
    image = axis.imshow(matrix.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    axis.figure.colorbar(image, ax=axis, shrink=0.8)
