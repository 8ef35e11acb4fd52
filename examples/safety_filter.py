# %% [markdown]
# # A safe robot
#
# A robot in the plane steers straight to its goal, u = goal − x, and knows nothing of obstacles. A safety filter lets
# it do what it wants as long as it stays outside of two discs. For a disc with centre o and radius r the barrier is
# c(x) = |x − o|² − r², positive outside. The robot moves with velocity u, so that ċ = 2 (x − o)ᵀu, and the filter asks
# for ċ ≥ −gain · c: the nearer the disc, the slower the approach.
#
# `optlayer.nn.SafetyFilter` solves one small quadratic program for each robot, all robots in one batch:
#
#     minimise    ½ ‖u − wanted‖²
#     subject to  2 (x − o)ᵀu ≥ −gain · c(x)  for each disc

# %%
import matplotlib.pyplot as plt
import torch

from optlayer import nn

torch.manual_seed(0)
steps = 30

goal = torch.tensor([4.0, 0.0])
centres = torch.tensor([[1.2, 0.1], [2.7, -0.9]])
radii = torch.tensor([0.7, 0.5])


def barriers(x):
    """Values c (robots, discs), and their gradients (robots, discs, 2)."""
    offset = x[:, None, :] - centres
    return offset.square().sum(-1) - radii**2, 2 * offset


def drive(x, safety_filter=None, length=80, dt=0.05):
    """The paths of the robots (length + 1, robots, 2)."""
    path = [x]
    for _ in range(length):
        u = goal - x
        if safety_filter is not None:
            c, gradient = barriers(x)
            u = safety_filter(u, c, torch.zeros_like(c), gradient)
        x = x + dt * u
        path.append(x)
    return torch.stack(path)


def distance(path):
    """How near each robot came to a disc; negative inside."""
    return ((path[:, :, None, :] - centres).norm(dim=-1) - radii).amin(dim=(0, 2))


def show(paths):
    figure, axes = plt.subplots(1, len(paths), figsize=(4.5 * len(paths), 3), sharey=True, squeeze=False)
    for axis, (title, path) in zip(axes[0], paths.items(), strict=True):
        for centre, radius in zip(centres, radii, strict=True):
            axis.add_patch(plt.Circle(centre.tolist(), radius.item(), color="tab:red", alpha=0.3, linewidth=0))
        axis.plot(path[:, :, 0].detach(), path[:, :, 1].detach(), color="tab:blue", linewidth=1)
        axis.plot(*goal.tolist(), "k*", markersize=12)
        axis.set(aspect="equal", title=title)
    figure.tight_layout()
    plt.show()


# %% [markdown]
# Nine robots start on the left, and drive with and without the filter.

# %%
starts = torch.stack([torch.full((9,), -1.0), torch.linspace(-1.2, 1.2, 9)], dim=1)
with torch.no_grad():
    free, safe = drive(starts), drive(starts, nn.SafetyFilter(gain=6.0))
for name, path in (("without", free), ("with", safe)):
    print(f"{name} the filter, the nearest robot is at {distance(path).min():+.3f} from a disc")
show({"without the filter": free, "with the filter, gain 6": safe})

# %% [markdown]
# ## Tuning the filter by gradient descent
#
# The gain is a parameter of the layer: with a large one the robots brake late and pass close by. The whole drive is
# differentiable, through eighty quadratic programs for each robot, so that we can ask for the gain with which the
# nearest robot keeps a distance of 0.05.

# %%
layer = nn.SafetyFilter(gain=6.0)
optimiser = torch.optim.Adam(layer.parameters(), lr=0.3)
gains, margins = [], []
for _ in range(steps):
    path = drive(starts, layer)
    nearest = distance(path).min()
    loss = (nearest - 0.05).square()
    gains.append(layer.gain.item())
    margins.append(nearest.item())
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(f"gain {gains[0]:.2f}: nearest robot at {margins[0]:.3f}; gain {gains[-1]:.2f}: at {margins[-1]:.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
left.plot(gains)
left.set(xlabel="step", ylabel="gain")
right.plot(margins)
right.axhline(0.05, color="grey", linestyle=":")
right.set(xlabel="step", ylabel="nearest robot")
figure.tight_layout()
plt.show()
show({"gain 6": safe, f"gain {gains[-1]:.2f}": path})
