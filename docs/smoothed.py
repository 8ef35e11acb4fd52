"""Draws docs/pictures/smoothed-gradient.png: `python docs/smoothed.py`."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import optlayer
from optlayer.experiments.pictures import without_page

# min ½(z − c)²  s.t.  z ≤ 0
c = torch.linspace(-2, 2, 401, dtype=torch.float64).unsqueeze(-1).requires_grad_()
one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
x = c.detach().flatten()
for kappa, style in ((None, "k-"), (1e-2, "C0-"), (1e-1, "C1-"), (1.0, "C2-")):
    settings = optlayer.Settings() if kappa is None else optlayer.Settings(gradient="smoothed", smoothing=kappa)
    z = optlayer.solve(one, -c, one, zero, settings=settings).z
    (slope,) = torch.autograd.grad(z.sum(), c)
    label = "exact" if kappa is None else f"κ = {kappa:g}"
    if kappa is None:
        left.plot(x, z.detach().flatten(), style, label="z, whatever the gradient")
    right.plot(x, slope.flatten(), style, label=label)
for axes, title in ((left, "z = min(c, 0)"), (right, "the gradient dz/dc")):
    axes.set(xlabel="c", title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
target = Path(__file__).parent / "pictures" / "smoothed-gradient.png"
without_page(figure).savefig(target, dpi=110)
