"""MNIST (OptNet, section 4.3, appendix A and fig. 6): a fully connected network, and one whose last layer is a QP.

Both start with 784 → 600 → 10 and ReLU after either; then comes another linear layer 10 → 10, or an OptNet layer with
10 variables and 10 inequalities, all of it learned, whose input is the linear term; then softmax. The network works in
float32, the layer in float64, which costs little at this size.

Adam's rates were tuned on the validation images of seed 0. Their losses after 3 epochs with rates of 0.0005, 0.001 and
0.003: 0.091, 0.073, 0.067 for the fully connected network, 0.073, 0.069, 0.070 with the layer. Both
take 0.002, which lies between the best.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from typer import Option

from optlayer.experiments import harness
from optlayer.experiments.harness import Data, Job, Mistake, Row, Run, positive
from optlayer.nn import OptNetLayer

# --- data -----------------------------------------------------------------------------------------------------------

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
FILES = {
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}
"""The original files, Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0, and their checksums."""
MEAN, DEVIATION = 0.1307, 0.3081
"""Of all training pixels, as is customary."""


def fetch(folder: Path | None) -> list[Path]:
    """The four files, checked: from `folder`, or from OPTLAYER_DATA or the user's cache, downloaded if need be.

    Raises:
        Mistake: a file of the folder is absent or another one, or the network gives none.
    """
    import pooch

    if folder is None:
        store = pooch.create(pooch.os_cache("optlayer"), MIRRORS[0], registry=FILES, env="OPTLAYER_DATA")
        store.urls = {}
        for mirror in MIRRORS:
            try:
                store.base_url = mirror
                return [Path(store.fetch(name)) for name in FILES]
            except (OSError, ValueError) as error:  # every error of a connection is one; or another checksum
                failure = error
        raise Mistake(f"No mirror gave MNIST ({failure}): get its four files elsewhere, and use --data.")
    for name, checksum in FILES.items():
        if not (folder / name).exists():
            raise Mistake(f"The folder {folder} lacks {name}.")
        if not pooch.hashes.hash_matches(folder / name, checksum):
            raise Mistake(f"{folder / name} is not the original file: its checksum is not {checksum}.")
    return [folder / name for name in FILES]


def idx(path: Path) -> Tensor:
    """The array in a gzip-compressed IDX file: two zeros, type 8 (bytes), dimensions, big-endian sizes, data."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())


def load(folder: Path | None, held_out: int, device: torch.device) -> Data:
    """Training, validation (the last `held_out` training images) and test examples, as tensors on the device."""
    images, labels, test_images, test_labels = (idx(path).to(device) for path in fetch(folder))

    def examples(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return (images.flatten(1) / 255 - MEAN) / DEVIATION, labels.long()

    split = len(images) - held_out
    return Data(
        train=examples(images[:split], labels[:split]),
        valid=examples(images[split:], labels[split:]),
        test=examples(test_images, test_labels),
    )


# --- models ---------------------------------------------------------------------------------------------------------


class DoubleOptNet(OptNetLayer):
    """The OptNet layer in float64, between layers of another precision."""

    def forward(self, q: Tensor) -> Tensor:
        return super().forward(q.double()).to(q.dtype)


def fully_connected(hidden: int) -> nn.Module:
    """FC-FC10-FC10; log-softmax is left to the loss."""
    return nn.Sequential(
        nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10), nn.ReLU(), nn.Linear(10, 10)
    )


def optnet(hidden: int) -> nn.Module:
    """FC-FC10-OptNet10; log-softmax is left to the loss."""
    layer = DoubleOptNet(10, inequalities=10, dtype=torch.float64)
    return nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10), nn.ReLU(), layer)


def measures(logits: Tensor, target: Tensor) -> Row:
    """Negative log-likelihood, and whether the digit is wrong; each per image."""
    return {
        "loss": functional.cross_entropy(logits, target, reduction="none"),
        "error": logits.argmax(1) != target,
    }


# --- pictures and tables --------------------------------------------------------------------------------------------


def draw_curves(rows: list[Row]) -> Any:
    """Loss and error over the epochs: the mean of the seeds, and their range; training dashed."""
    picture, axes = harness.figure(10, 3.6, 2)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for axis, measure in zip(axes, ["loss", "error"], strict=True):
        for colour, model in zip(harness.COLOURS, models, strict=False):
            for split, style in (("train", "--"), ("test", "-")):
                seeds: dict[float, list[float]] = {}
                for row in rows:
                    if row["model"] == model and row["epoch"] > 0:
                        seeds.setdefault(row["epoch"], []).append(row[f"{split}_{measure}"])
                epochs, values = list(seeds), list(seeds.values())
                mean = [float(np.mean(each)) for each in values]
                axis.plot(epochs, mean, style, marker=".", color=colour, label=f"{model}, {split}")
                low, high = [min(each) for each in values], [max(each) for each in values]
                axis.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_yscale("log")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_title("negative log-likelihood", fontsize=10)
    axes[1].set_title("share of wrong digits", fontsize=10)
    axes[1].legend(fontsize=8)
    return picture


def summary(results: list[Row]) -> list[Row]:
    """A row per model: mean and standard deviation over the seeds."""
    table = []
    for model in dict.fromkeys(row["model"] for row in results):
        mine = [row for row in results if row["model"] == model]
        row: Row = {"model": model, "seeds": len(mine)}
        for measure, scale, name in (
            ("test_error", 100, "test error (%)"),
            ("test_loss", 1, "test loss"),
            ("train_error", 100, "training error (%)"),
        ):
            values = scale * np.array([each[measure] for each in mine])
            deviation = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
            row |= {name: f"{values.mean():.3g}{deviation}"}
        table.append(row | {"seconds per seed": float(np.mean([each["seconds"] for each in mine]))})
    return table


def verdict(results: list[Row]) -> str:
    """The layer's mean error and its standard deviation, in units of the baseline's."""
    baseline, layer = (
        np.array([row["test_error"] for row in results if ("OptNet" in row["model"]) == with_layer])
        for with_layer in (False, True)
    )
    if len(baseline) < 2:
        return ""
    mean, deviation = layer.mean() / baseline.mean(), layer.std(ddof=1) / baseline.std(ddof=1)
    return f"Here its mean error is {mean:.2f} times the baseline's, its standard deviation {deviation:.1f} times."


def report(folder: Path) -> str:
    """The section of the report."""
    results = harness.read_json(folder / "results.json")["results"]
    options = harness.read_json(folder / "config.json")["options"]
    _, networks, tuning = (__doc__ or "").strip().split("\n\n")
    return f"""## MNIST, section 4.3 and fig. 6

{networks}

{tuning} Every training has {options["epochs"]} epochs; the best is chosen on {options["held_out"]} validation images,
which take no part in training, and the test set has no say.

The table has means and standard deviations over the seeds; in the picture lines are means, areas are ranges. The paper
shows curves, not numbers, and says that the layer's error is similar, slightly lower, with less variance.
{verdict(results)}

{harness.markdown(summary(results))}
![Loss and error against epochs](img/experiments/classification-curves.png)
"""


def compare(folder: Path) -> list[Row]:
    """The paper's statement beside ours."""
    table = summary(harness.read_json(folder / "results.json")["results"])
    ours = "; ".join(f"{row['model']}: {row['test error (%)']} %" for row in table)
    return [
        {
            "experiment": "MNIST (fig. 6)",
            "paper": "similar, OptNet slightly lower error and variance (curves only)",
            "ours": f"test error {ours}",
        }
    ]


# --- the experiment -------------------------------------------------------------------------------------------------


def main(
    data: Annotated[
        Path | None,
        Option(help="Folder with the four original files (*-ubyte.gz); default: OPTLAYER_DATA, or downloaded once."),
    ] = None,
    epochs: Annotated[int, Option(min=1, help="Epochs of either network.")] = 6,
    batch: Annotated[int, Option(min=1, help="Images per step, over all processes.")] = 64,
    rate: Annotated[float, Option(callback=positive, help="Adam's rate without the layer; it decays to zero.")] = 2e-3,
    optnet_rate: Annotated[float, Option(callback=positive, help="Adam's rate for the network with the layer.")] = 2e-3,
    hidden: Annotated[int, Option(min=1, help="Width of the first layer.")] = 600,
    held_out: Annotated[int, Option(min=1, max=59_000, help="Training images kept for validation.")] = 5000,
    seed: Annotated[int, Option(min=0, max=10**9, help="The first seed.")] = 0,
    seeds: Annotated[int, Option(min=1, help="How many seeds, one after another.")] = 1,
    out: Annotated[Path | None, Option(help="Folder of the run; default: runs/classification-DATE-TIME.")] = None,
    resume: Annotated[Path | None, Option(help="Folder of a run to continue, with that run's options.")] = None,
    accelerator: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, Option(min=1, help="Processes on this machine (torchrun sets it).")] = 1,
) -> None:
    """MNIST: a fully connected network beside one that ends in an OptNet layer (section 4.3, fig. 6)."""
    options = dict(locals())
    if resume:
        return main(**harness.resumed(resume, options))
    options.pop("data")  # checked to be the same files, wherever they lie
    run = Run("classification", options, out, accelerator, devices)
    with run.fabric.rank_zero_first():  # which downloads for all
        digits = load(data, held_out, run.fabric.device)
    jobs = []
    for each in range(seed, seed + seeds):
        for name, network, its_rate in (
            (f"FC{hidden}-FC10-FC10", fully_connected, rate),
            (f"FC{hidden}-FC10-OptNet10", optnet, optnet_rate),
        ):
            torch.manual_seed(each)  # the same first layers for both
            model = network(hidden)
            optimizer = torch.optim.Adam(model.parameters(), lr=its_rate, fused=True)
            jobs.append(Job(name, each, model, optimizer, measures, epochs, batch, harness.cosine))
    with harness.bar(run) as progress:
        for job in jobs:
            harness.train(run, job, digits, progress)
            run.save(draw_curves(harness.rows(jobs)), "curves.png")
    run.finish([harness.result(run, job, digits) for job in jobs])


def paper(folder: Path, full: bool) -> None:
    """The settings of the report."""
    main(epochs=100 if full else 6, seeds=10 if full else 5, out=folder)
