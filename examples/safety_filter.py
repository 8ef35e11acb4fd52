# %% [markdown]
# # A safe robot
#
# A robot in the plane steers straight to its goal, `u = goal − x`, and knows nothing of obstacles. A safety
# filter lets it do what it wants as long as it stays outside of two discs. For a disc with centre `o` and
# radius `r` the barrier is `c(x) = |x − o|² − r²`: positive outside. The robot moves with velocity `u`, so `ċ
# = 2 (x − o)ᵀ u`, and the filter asks for `ċ ≥ −gain · c`: the nearer the disc, the slower the approach.
# `optlayer.nn.SafetyFilter` solves one small quadratic program for each robot, all robots in one batch.

# %%
import matplotlib.pyplot as plt
import torch

from optlayer import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

goal = torch.tensor([4.0, 0.0])
centres = torch.tensor([[1.2, 0.1], [2.7, -0.9]])
radii = torch.tensor([0.7, 0.5])


def barriers(x):
    """Values c (robots, discs), and their gradients (robots, discs, 2)."""
    offset = x[:, None, :] - centres
    return offset.square().sum(-1) - radii**2, 2 * offset


def drive(x, safety_filter=None, steps=200, dt=0.05):
    path = [x]
    for _ in range(steps):
        u = goal - x
        if safety_filter is not None:
            c, gradient = barriers(x)
            u = safety_filter(u, c, torch.zeros_like(c), gradient)
        x = x + dt * u
        path.append(x)
    return torch.stack(path)


# %% [markdown]
# Nine robots start on the left, and drive with and without the filter.

# %%
starts = torch.stack([torch.full((9,), -1.0), torch.linspace(-1.2, 1.2, 9)], dim=1)
with torch.no_grad():
    free, safe = drive(starts), drive(starts, nn.SafetyFilter(gain=3.0))


def depth(path):
    """How deep the deepest robot was inside a disc."""
    distance = (path[:, :, None, :] - centres).norm(dim=-1) - radii
    return max(0.0, -distance.min().item())


print(f"deepest intrusion: {depth(free):.2f} without the filter, {depth(safe):.4f} with it")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axis, path, title in zip(axes, (free, safe), ("without the filter", "with the filter"), strict=True):
    for centre, radius in zip(centres, radii, strict=True):
        axis.add_patch(plt.Circle(centre.tolist(), radius.item(), color="tab:red", alpha=0.3))
    axis.plot(path[:, :, 0], path[:, :, 1], color="tab:blue", linewidth=1)
    axis.plot(*goal.tolist(), "k*", markersize=12)
    axis.set_aspect("equal")
    axis.set_title(title)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Tuning the filter by gradient descent
#
# The gain is a parameter of the layer: a large one comes closer to the obstacles and is faster. The whole
# drive is differentiable through its quadratic programs, so we can ask for the gain with which the robots
# keep a distance of about 0.15.

# %%
layer = nn.SafetyFilter(gain=6.0)
optimiser = torch.optim.Adam(layer.parameters(), lr=0.3)
gains = []
for _ in range(30):
    path = drive(starts, layer, steps=100)
    distance = (path[:, :, None, :] - centres).norm(dim=-1) - radii
    nearest = distance.amin(dim=(0, 2))  # of each robot
    loss = (nearest - 0.15).clamp(max=0).square().mean() + 1e-3 * (path[50:] - goal).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    gains.append(layer.gain.item())
print(f"gain {gains[0]:.2f} → {gains[-1]:.2f}; nearest robot {nearest.min().item():.3f} from a disc")
