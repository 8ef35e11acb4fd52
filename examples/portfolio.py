# %% [markdown]
# # A portfolio that is learned by its decisions
#
# Forecasts of returns are made for a purpose: choosing a portfolio. The usual way is to fit the forecast
# first (least squares), and to optimise with it afterwards. With the optimisation as a layer we can train the
# forecast for the quality of the *decision* instead. Where the model is too simple for the world, as all
# models are, the two differ: least squares spends its effort where returns vary most, the decision where it
# matters.  `optlayer.nn.Portfolio`: minimise ½ · risk · wᵀ Σ w − forecastᵀw, with weights that are positive
# and sum to one.

# %%
import matplotlib.pyplot as plt
import torch

from optlayer import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
assets, features, days = 6, 4, 600

# %% [markdown]
# A made-up world: expected returns depend on features in a way that is not linear, and two assets are noisy.

# %%
mixing = torch.randn(features, assets) / features**0.5
noise = torch.tensor([0.1, 0.1, 0.1, 0.1, 1.0, 1.0])
factor = torch.randn(assets, assets) * 0.2
covariance = factor @ factor.T + 0.05 * torch.eye(assets)


def sample(count):
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
def train(decision_focused, steps=150):
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
            history.append(utility(portfolio(model(x_test), covariance), expected_test).mean().item())
    return model, history


_, by_error = train(decision_focused=False)
_, by_decision = train(decision_focused=True)
best = utility(portfolio(expected_test, covariance), expected_test).mean().item()
equal = utility(torch.full((assets,), 1 / assets), expected_test).mean().item()
print(f"utility on new days: equal weights {equal:.3f}, least squares {by_error[-1]:.3f}, "
      f"decision {by_decision[-1]:.3f}, with the true expectations {best:.3f}")

# %%
plt.figure(figsize=(6, 3.2))
plt.plot(by_error, label="trained for least squares")
plt.plot(by_decision, label="trained for the decision")
plt.axhline(best, color="grey", linestyle=":", label="true expectations")
plt.xlabel("step")
plt.ylabel("utility on new days")
plt.legend()
plt.tight_layout()
plt.show()
