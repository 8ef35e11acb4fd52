# %% [markdown]
# # Economic dispatch: a forecast of demand that is learned by its cost
#
# A day ahead, a grid operator decides what each power station will produce; the demand is only a forecast then. On the
# day, what is missing comes from reserves that cost several times as much, and what is too much is lost. So an error
# is not as bad in one direction as in the other, and worse behind a line that is full. Least squares knows nothing of
# that. With both decisions as layers, the forecast is trained for what it is for: a low bill.
#
# The network is the IEEE test case with 118 buses. In the DC model, power flows along a line by the difference of the
# angles θ at its ends:
#
#     minimise    Σ ½ c₂ p² + c₁ p  +  Σ ½ s² + 40 s  +  ½ ε Σ θ²      p: generation,  s: load that is not served
#     subject to  (θ_from − θ_to) / x = flow,  |flow| ≤ rate   of each line
#                 flow out of each bus = its p + s − demand
#                 0 ≤ p ≤ pmax,  s ≥ 0,  θ = 0 at one bus
#
# (ε = 0.001 keeps the problem away from those with many multipliers, as linear programs often are.)

# %%
import importlib.util
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import optlayer

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
steps = 120
batch = 32

folder = next(path for path in (Path.cwd(), *Path.cwd().parents) if (path / "benchmarks" / "data").exists())
case = {name: torch.from_numpy(x) for name, x in np.load(folder / "benchmarks" / "data" / "case118.npz").items()}
load, pmax, rate = case["load"], case["pmax"], case["rate"]
buses, stations, lines = len(load), len(pmax), len(rate)
one_hot = torch.nn.functional.one_hot
ends = (one_hot(case["from"], buses) - one_hot(case["to"], buses)).double()  # +1 and −1 for each line
flow = ends / case["x"][:, None]  # of the angles
at = one_hot(case["gen_bus"], buses).double().T  # the bus of each station

# %% [markdown]
# ## The layer
#
# The variables are z = (p, s, θ). Few entries of the matrices are not zero, and they are the same for every demand: a
# batch of such problems shares one symbolic factorisation, `optlayer.Sparse`. The right-hand side b is what differs.

# %%
limited = rate.isfinite()
free = torch.full((buses,), torch.inf).index_fill(0, case["slack"], 0.0)
nothing, everywhere, ridge = torch.zeros(buses), torch.eye(buses), 1e-3


def network(curvature, price, injects, b, ub, rating):
    """z = (decisions, s, θ) at least cost; `injects` says where decisions put power into the network."""
    k = len(price)
    G = optlayer.Sparse.from_dense(torch.cat([torch.zeros(int(limited.sum()), k + buses), flow[limited]], 1))
    A = optlayer.Sparse.from_dense(torch.cat([-injects, -everywhere, ends.T @ flow], 1))
    Q = optlayer.Diagonal(torch.cat([curvature, torch.ones(buses), nothing + ridge]))
    q = torch.cat([price, torch.full((buses,), 40.0), nothing])
    lb = torch.cat([torch.zeros(k + buses), -free])
    ub = torch.cat([ub, torch.full((buses,), torch.inf), free])
    return optlayer.solve(Q, q, G, rating, A, b, lb, ub, h_lower=-rating)


def day_ahead(demand):
    """What the stations shall produce."""
    return network(case["c2"], case["c1"], at, -demand, pmax, rate[limited]).z[..., :stations]


# %% [markdown]
# Whoever has the model in CVXPY keeps it: `optlayer.compat.cvxpylayers.CvxpyLayer` makes the same layer of it.

# %%
if importlib.util.find_spec("cvxpylayers"):
    import cvxpy as cp

    from optlayer.compat.cvxpylayers import CvxpyLayer

    p, s, angle = cp.Variable(stations), cp.Variable(buses, nonneg=True), cp.Variable(buses)
    demand = cp.Parameter(buses)
    cost = 0.5 * cp.sum(cp.multiply(case["c2"].numpy(), p**2)) + case["c1"].numpy() @ p
    flows = flow.numpy() @ angle
    model = cp.Problem(
        cp.Minimize(cost + 0.5 * cp.sum_squares(s) + 40 * cp.sum(s) + 0.5 * ridge * cp.sum_squares(angle)),
        [
            cp.abs(flows[limited.numpy()]) <= rate[limited].numpy(),
            ends.numpy().T @ flows == at.numpy() @ p + s - demand,
            p >= 0,
            p <= pmax.numpy(),
            angle[int(case["slack"])] == 0,
        ],
    )
    layer = CvxpyLayer(model, parameters=[demand], variables=[p])
    some = load * (1 + 0.05 * torch.randn(batch, buses))
    print(f"difference of the layers: {float((layer(some)[0] - day_ahead(some)).abs().max()):.1e}")

# %% [markdown]
# ## The day
#
# Now the true demand is known. Reserves, a fifth of each station's capacity, are called at a price of 15; what is too
# much is dumped at its bus, at a price of 1; what is still missing is not served. For a while, lines may carry a tenth
# more. This is a second layer, whose right-hand side depends on what the first one decided. The bill has both.

# %%
slopes = torch.cat([torch.full((stations,), 15.0), torch.ones(buses)])
curves = torch.cat([torch.full((stations,), 5.0), torch.ones(buses)])
room = torch.cat([0.2 * pmax, torch.full((buses,), torch.inf)])


def bill(p, demand):
    """The cost of generation p, and of what the true demand makes of it; per hour, in 1000 $."""
    z = network(curves, slopes, torch.cat([at, -everywhere], 1), p @ at.T - demand, room, 1.1 * rate[limited]).z
    moved, unserved, _ = z.split([stations + buses, buses, buses], -1)
    planned = 0.5 * case["c2"] * p**2 + case["c1"] * p
    late = 0.5 * curves * moved**2 + slopes * moved
    return planned.sum(-1) + late.sum(-1) + (0.5 * unserved**2 + 40 * unserved).sum(-1)


# %% [markdown]
# ## A made-up weather
#
# Six regions, found from the network itself. Their demand depends on five features, in a way that is not linear, and
# some regions are much noisier than others. The forecast is linear.

# %%
_, modes = torch.linalg.eigh(ends.T @ ends)
where = modes[:, 1:3] / modes[:, 1:3].abs().amax(0)  # a map: buses that are close in the network are close in it
angles = torch.atan2(where[:, 1] - where[:, 1].median(), where[:, 0] - where[:, 0].median())
region = ((angles + torch.pi) / (2 * torch.pi) * 6).long().clamp(max=5)
mixing, noise = torch.randn(5, 6) / 2, torch.tensor([0.02, 0.1, 0.02, 0.1, 0.02, 0.05])


def sample(count):
    """Features, and the demand that comes."""
    x = torch.randn(count, 5)
    factor = 0.1 * (x @ mixing) + 0.1 * (x @ mixing).square() + noise * torch.randn(count, 6)
    return x, load * (1 + factor[:, region]).clamp(min=0.3)


x_train, d_train = sample(512)
x_test, d_test = sample(256)
best = bill(day_ahead(d_test), d_test).mean().item()

# %% [markdown]
# ## Training
#
# Both forecasts begin as the least-squares fit. One stays there; the other goes on with the bill as its loss, through
# two layers and 118 buses.

# %%
inputs = torch.cat([x_train, torch.ones(len(x_train), 1)], 1)
start = torch.linalg.lstsq(inputs, d_train / load.clamp(min=1e-9)).solution.T


def train():
    model = torch.nn.Linear(5, buses)
    with torch.no_grad():
        model.weight.copy_(start[:, :5])
        model.bias.copy_(start[:, 5])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    history = []
    for step in range(steps):
        if step % 10 == 0:
            with torch.no_grad():
                history.append(bill(day_ahead(load * model(x_test)), d_test).mean().item())
        chosen = torch.randint(len(x_train), (batch,))
        loss = bill(day_ahead(load * model(x_train[chosen])), d_train[chosen]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model, history


begun = time.perf_counter()
model, history = train()
seconds = time.perf_counter() - begun
with torch.no_grad():
    forecast = load * model(x_test)
    squares = load * (x_test @ start[:, :5].T + start[:, 5])
    bills = {
        "least squares": bill(day_ahead(squares), d_test),
        "trained by the bill": bill(day_ahead(forecast), d_test),
        "true demand": bill(day_ahead(d_test), d_test),
    }
print(f"{steps} steps, {4 * batch * steps} programs with their gradients, in {seconds:.0f} s")
for name, values in bills.items():
    print(f"  {name:20} {values.mean():7.2f}   worst twentieth {values.quantile(0.95):7.2f}")

# %% [markdown]
# The bill teaches the forecast to be wrong on purpose: to promise more demand, most where a shortage is likely and
# dear.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
left.plot(range(0, steps, 10), history, label="trained by the bill")
left.axhline(history[0], color="tab:grey", linestyle="--", label="least squares")
left.axhline(best, color="tab:grey", linestyle=":", label="true demand")
left.set(xlabel="step", ylabel="bill on new days (1000 $/h)")
left.legend()
right.plot(*where[torch.stack([case["from"], case["to"]])].unbind(-1), color="lightgrey", linewidth=0.7, zorder=0)
extra = (forecast - squares).mean(0)
most = float(extra.abs().max())
shown = right.scatter(*where.T, c=extra, s=8 + 60 * load, cmap="coolwarm", vmin=-most, vmax=most)
figure.colorbar(shown, ax=right, label="forecast beyond least squares")
right.set(title="118 buses, larger with their load", xticks=[], yticks=[])
figure.tight_layout()
plt.show()
