# %% [markdown]
# # Learning a model through a controller
#
# A model-predictive controller steers a cart. We see where the cart was and how the expert pushed, but not
# the model that the expert uses: the mass, the friction and its priorities are unknown. The controller is a
# layer, so we can find them by gradient descent on the difference between its pushes and the expert's.
# `optlayer.nn.LinearMPC`: a quadratic program over the next pushes and states, with limits on the push.

# %%
import matplotlib.pyplot as plt
import torch

from optlayer import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
dt, horizon = 0.2, 10


def cart(mass, friction):
    """Position and velocity, pushed by a force."""
    F = torch.tensor([[1.0, dt], [0.0, 1.0 - dt * friction / mass]])
    B = torch.tensor([[0.0], [dt / mass]])
    return F, B


expert = nn.LinearMPC(
    *cart(mass=1.5, friction=0.6), horizon, torch.tensor([3.0, 0.3]), torch.tensor([0.1]), input_limit=1.0
)
learner = nn.LinearMPC(*cart(mass=0.7, friction=0.0), horizon, torch.ones(2), torch.ones(1), input_limit=1.0)


def drive(controller, x, steps=25):
    """The controller in closed loop with the true cart."""
    states, pushes = [x], []
    F, B = cart(mass=1.5, friction=0.6)
    with torch.no_grad():
        for _ in range(steps):
            u = controller(x)[0][:, 0]
            x = x @ F.T + u @ B.T
            states.append(x)
            pushes.append(u)
    return torch.stack(states, 1), torch.stack(pushes, 1)


start = torch.tensor([[2.0, 0.0]])
before, _ = drive(learner, start)

# %% [markdown]
# Examples: states at random, and the expert's plan of pushes for each.

# %%
states = torch.randn(128, 2) * torch.tensor([1.5, 1.0])
with torch.no_grad():
    plans, _ = expert(states)

optimiser = torch.optim.Adam(learner.parameters(), lr=0.02)
losses = []
for _ in range(200):
    loss = torch.nn.functional.mse_loss(learner(states)[0], plans)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
print(f"mean squared difference of pushes: {losses[0]:.4f} at first, {losses[-1]:.6f} at last")

# %%
after, _ = drive(learner, start)
wanted, _ = drive(expert, start)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
left.semilogy(losses)
left.set_xlabel("step")
left.set_ylabel("mean squared difference")
time = dt * torch.arange(wanted.shape[1])
for path, label in ((before, "learner, before"), (after, "learner, after"), (wanted, "expert")):
    right.plot(time, path[0, :, 0], label=label, linestyle="--" if label == "expert" else "-")
right.set_xlabel("time")
right.set_ylabel("position of the cart")
right.legend()
figure.tight_layout()
plt.show()
