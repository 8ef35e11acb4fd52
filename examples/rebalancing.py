# %% [markdown]
# # Trading less: a portfolio with turnover, and a covariance that is learned
#
# Every day the portfolio may be changed, and every change costs. A forecast that flickers makes a portfolio trade too
# much; whoever pays should know the price when deciding. Here forecast *and* covariance are learned through the
# decisions of many days in a row: the weights of one day are what is held on the next, and the gradient goes through
# all of them.
#
# `optlayer.nn.Portfolio` with a cost and a limit of turnover is the program
#
#     minimise    ½ risk · wᵀ covariance w − forecastᵀw + cost · ‖w − held‖₁
#     subject to  1ᵀw = 1,  0 ≤ w ≤ ½,  ‖w − held‖₁ ≤ 0.5

# %%
import matplotlib.pyplot as plt
import torch

from optlayer import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
assets, days, cost, risk = 5, 12, 0.05, 3.0
steps = 80

# %% [markdown]
# A made-up market: returns follow a slow signal, which is seen through noise, and two groups of assets move together.

# %%
loadings = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0]]) * 0.25
own = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.4])


def market(paths):
    """What is seen of the signal, and the returns that follow, (paths, days, assets) each."""
    signal, seen, returns = 0.1 * torch.randn(paths, assets), [], []
    for _ in range(days):
        signal = 0.9 * signal + 0.04 * torch.randn(paths, assets)
        common = torch.randn(paths, 2) @ loadings
        seen.append(signal + 0.15 * torch.randn(paths, assets))
        returns.append(signal + common + own * torch.randn(paths, assets))
    return torch.stack(seen, 1), torch.stack(returns, 1)


class Trader(torch.nn.Module):
    """Forecasts by a factor of what is seen; covariance L Lᵀ + diag(d); the layer knows the price, or does not."""

    def __init__(self, known_cost):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((assets,), 0.5))
        self.L = torch.nn.Parameter(0.01 * torch.randn(assets, 2))
        self.log_d = torch.nn.Parameter(torch.full((assets,), -2.0))
        self.portfolio = nn.Portfolio(risk, largest=0.5, cost=known_cost, turnover=0.5)

    @property
    def covariance(self):
        return self.L @ self.L.T + self.log_d.exp().diag()

    def forward(self, seen):
        """The weights of every day, (paths, days, assets)."""
        held, weights = torch.full_like(seen[:, 0], 1 / assets), []
        for day in seen.unbind(1):
            held = self.portfolio(self.factor * day, self.covariance, held)
            weights.append(held)
        return torch.stack(weights, 1)


def outcome(weights, returns):
    """Return less half of risk times variance less costs, a day in the mean; and the turnover of a day."""
    gain = (weights * returns).sum(-1)
    before = torch.cat([torch.full_like(weights[:, :1], 1 / assets), weights[:, :-1]], 1)
    turnover = (weights - before).abs().sum(-1)
    return (gain - 0.5 * risk * (gain - gain.mean()).square() - cost * turnover).mean(), turnover.mean()


# %% [markdown]
# Two traders see the same days. One has the cost in its program; the other learns from the same losses, costs
# included, but its program does not know of them.

# %%
seen, returns = market(64)
seen_later, returns_later = market(500)
traders = {"knows the cost": Trader(cost), "does not": Trader(0.0)}
histories = {}
for name, trader in traders.items():
    optimiser = torch.optim.Adam(trader.parameters(), lr=0.05)
    history = histories[name] = []
    for _ in range(steps):
        utility, _ = outcome(trader(seen), returns)
        optimiser.zero_grad()
        (-utility).backward()
        optimiser.step()
        history.append(utility.item())
    with torch.no_grad():
        utility, turnover = outcome(trader(seen_later), returns_later)
    print(f"{name:15} later days: utility {utility:.4f}, turnover {turnover:.3f} a day")
still, _ = outcome(torch.full_like(seen_later, 1 / assets), returns_later)
print(f"never trading,  later days: utility {still:.4f}")

# %% [markdown]
# The covariance that decisions ask for has the two groups in it, though nothing said so.

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3))
for name, history in histories.items():
    left.plot(history, label=name)
left.set(xlabel="step", ylabel="utility of the days it learns from")
left.legend()
learned, true = traders["knows the cost"].covariance.detach(), loadings.T @ loadings + (own**2).diag()
for axis, matrix, title in ((middle, learned, "covariance, learned"), (right, true, "covariance of the market")):
    image = axis.imshow(matrix, cmap="viridis", vmin=0)
    axis.set(title=title, xticks=range(assets), yticks=range(assets))
    figure.colorbar(image, ax=axis, shrink=0.8)
figure.tight_layout()
plt.show()
