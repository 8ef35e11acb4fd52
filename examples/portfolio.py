# %% [markdown]
# # A portfolio that is learned by its decisions
#
# Forecasts of returns are made for a purpose: choosing a portfolio. The usual way is to fit the forecast first, by
# least squares, and to optimise with it afterwards. With the optimisation as a layer, the forecast can be trained for
# the quality of the *decision*. Where the model is too simple for the world, as all models are, the two differ: least
# squares spends its effort where returns vary most, the decision where it matters.
#
# `optlayer.nn.Portfolio` is Markowitz's problem, with weights w of the assets:
#
#     minimise    ½ risk · wᵀ covariance w − forecastᵀw
#     subject to  1ᵀw = 1,  w ≥ 0

# %%
import matplotlib.pyplot as plt
import torch

from optlayer import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
assets, features, days = 6, 4, 600
steps = 150

# %% [markdown]
# A made-up world: expected returns depend on four features in a way that is not linear, and two of the six assets are
# noisy.

# %%
mixing = torch.randn(features, assets) / features**0.5
noise = torch.tensor([0.1, 0.1, 0.1, 0.1, 1.0, 1.0])
factor = torch.randn(assets, assets) * 0.2
covariance = factor @ factor.T + 0.05 * torch.eye(assets)


def sample(count):
    """Features, the returns to expect from them, and the returns that come."""
    x = torch.randn(count, features)
    expected = (x @ mixing).sin() + 0.4 * (x @ mixing).square() - 0.4
    return x, expected, expected + noise * torch.randn(count, assets)


x_train, _, y_train = sample(days)
x_test, expected_test, _ = sample(2000)
portfolio = nn.Portfolio(risk_aversion=2.0)


def utility(weights, returns):
    return (weights * returns).sum(-1) - (weights @ covariance * weights).sum(-1)


# %% [markdown]
# Both forecasts are linear, start from the same weights and see the same data. Only the loss differs.

# %%
def train(decision_focused):
    torch.manual_seed(1)
    model = torch.nn.Linear(features, assets)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    history = []
    for _ in range(steps):
        forecast = model(x_train)
        if decision_focused:
            loss = -utility(portfolio(forecast, covariance), y_train).mean()
        else:
            loss = torch.nn.functional.mse_loss(forecast, y_train)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            weights = portfolio(model(x_test), covariance)
            history.append(utility(weights, expected_test).mean().item())
    return history, weights


by_error, weights_by_error = train(decision_focused=False)
by_decision, weights_by_decision = train(decision_focused=True)
best_weights = portfolio(expected_test, covariance)
best = utility(best_weights, expected_test).mean().item()
equal = utility(torch.full((assets,), 1 / assets), expected_test).mean().item()
print("utility on new days")
results = {"equal weights": equal, "least squares": by_error[-1], "decision": by_decision[-1], "true returns": best}
for name, value in results.items():
    print(f"  {name:18} {value:6.3f}")

# %% [markdown]
# The forecast whose squared error on the data is larger makes the better portfolios. On the right, what the three hold
# on average.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
left.plot(by_error, label="trained for least squares")
left.plot(by_decision, label="trained for the decision")
left.axhline(best, color="grey", linestyle=":", label="true expectations")
left.set(xlabel="step", ylabel="utility on new days")
left.legend()
several = (weights_by_error, weights_by_decision, best_weights)
for shift, weights, colour in zip((-0.27, 0.0, 0.27), several, ("tab:blue", "tab:orange", "tab:grey"), strict=True):
    right.bar([i + shift for i in range(1, assets + 1)], weights.mean(0).tolist(), width=0.25, color=colour)
right.set(xlabel="asset (5 and 6 are noisy)", ylabel="average weight")
figure.tight_layout()
plt.show()
