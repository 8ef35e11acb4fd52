# %% [markdown]
# # Learning a model through a controller
#
# A model-predictive controller steers a cart. We see where the cart was and which pushes an expert planned, but not
# the model that the expert uses: the mass, the friction and the priorities are unknown. The controller is a layer, so
# that we can find them by gradient descent on the difference between its pushes and the expert's.
#
# `optlayer.nn.LinearMPC` is a quadratic program over the pushes u and states x of the next steps:
#
#     minimise    ½ Σ_t x_tᵀ diag(c) x_t + u_tᵀ diag(d) u_t
#     subject to  x_{t+1} = F x_t + B u_t,  |u_t| ≤ 1

# %%
import matplotlib.pyplot as plt
import torch

from optlayer import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
dt, horizon = 0.2, 10
steps = 250


class Driver(torch.nn.Module):
    """A controller for a cart that it believes to have a mass and a friction; its state is position and velocity."""

    def __init__(self, mass, friction, state_cost, input_cost):
        super().__init__()
        self.mass, self.friction = (torch.nn.Parameter(torch.tensor(value)) for value in (mass, friction))
        costs = torch.tensor(state_cost), torch.tensor(input_cost)
        self.controller = nn.LinearMPC(*self.cart(), horizon, *costs, input_limit=1.0)
        # The model is not free: it follows from mass and friction. And only ratios of costs matter: one is fixed.
        for fixed in (self.controller.F, self.controller.B, self.controller.log_input_cost):
            fixed.requires_grad_(False)

    def cart(self):
        F = torch.eye(2) + dt * torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        F = F - dt * self.friction / self.mass * torch.tensor([[0.0, 0.0], [0.0, 1.0]])
        return F, dt / self.mass * torch.tensor([[0.0], [1.0]])

    def forward(self, x):
        """The plan of pushes (…, horizon, 1) from a state (…, 2)."""
        F, B = self.cart()
        return torch.func.functional_call(self.controller, {"F": F, "B": B}, x)[0]


expert = Driver(1.5, 0.6, [3.0, 0.3], [0.1])
learner = Driver(0.7, 0.0, [0.5, 0.5], [0.1])


def drive(controller, x, length=30):
    """The controller in closed loop with the true cart: states and pushes."""
    states, pushes = [x], []
    F, B = expert.cart()
    with torch.no_grad():
        for _ in range(length):
            pushes.append(controller(x)[:, 0])
            x = x @ F.T + pushes[-1] @ B.T
            states.append(x)
    return torch.stack(states, 1)[0], torch.stack(pushes, 1)[0]


start = torch.tensor([[2.0, 0.0]])
paths = {"learner, before": drive(learner, start)}

# %% [markdown]
# The examples: states at random, and the expert's plan of ten pushes for each. Many of the pushes are at their limit,
# where they tell nothing about the model; those in between do.

# %%
states = torch.randn(128, 2) * torch.tensor([1.5, 1.0])
with torch.no_grad():
    plans = expert(states)
print(f"pushes at their limit: {(plans.abs() > 0.999).double().mean():.0%}")

optimiser = torch.optim.Adam(learner.parameters(), lr=0.1)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
losses = []
for _ in range(steps):
    loss = torch.nn.functional.mse_loss(learner(states), plans)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
    losses.append(loss.item())
print(f"mean squared difference of pushes: {losses[0]:.4f} at first, {losses[-1]:.6f} at last")

# %%
paths["learner, after"], paths["expert"] = drive(learner, start), drive(expert, start)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2))
left.semilogy(losses)
left.set(xlabel="step", ylabel="mean squared difference")
for (label, (x, u)), colour in zip(paths.items(), ("tab:grey", "tab:blue", "tab:orange"), strict=True):
    style = {"color": colour, "label": label, "linestyle": "--" if label == "expert" else "-"}
    middle.plot(dt * torch.arange(len(x)), x[:, 0], **style)
    right.step(dt * torch.arange(len(u)), u[:, 0], where="post", **style)
middle.set(xlabel="time", ylabel="position of the cart")
right.set(xlabel="time", ylabel="push")
for level in (-1, 1):
    right.axhline(level, color="black", linewidth=0.5)
middle.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# The learner steers as the expert does, and its numbers are near to the expert's.

# %%
for name, driver in (("expert", expert), ("learner", learner)):
    position, velocity = driver.controller.log_state_cost.exp().tolist()
    print(f"{name + ':':9}mass {driver.mass.item():.3f}, friction {driver.friction.item():.3f}, "
          f"cost of position {position:.3f}, of velocity {velocity:.3f}")
