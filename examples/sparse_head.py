# %% [markdown]
# # A head with exact zeros, compiled
#
# A network is to say in which proportions a few of ten substances are in a mixture, from its noisy spectrum. Most
# proportions are exactly zero, and softmax cannot say zero. `optlayer.nn.Sparsemax` can: it is the projection onto the
# simplex,
#
#     minimise    ½ ‖z − x‖²
#     subject to  1ᵀz = 1,  z ≥ 0
#
# The whole network, quadratic programs included, is one graph for `torch.compile(fullgraph=True)`.

# %%
import matplotlib.pyplot as plt
import torch

from optlayer import nn

torch.manual_seed(0)
substances, bands = 10, 40
steps = 300

# %%
spectra = torch.randn(substances, bands).square()


def mixtures(count):
    """Noisy spectra (count, bands), and the proportions, two or three of which are not zero."""
    chosen = torch.rand(count, substances).argsort(1)
    amounts = torch.rand(count, substances) + 0.2
    amounts = amounts * (chosen < 2 + (torch.rand(count, 1) < 0.5))
    proportions = amounts / amounts.sum(1, keepdim=True)
    return proportions @ spectra + 0.1 * torch.randn(count, bands), proportions


# %% [markdown]
# Both heads have the loss that belongs to them, whose derivative with respect to the scores x is `z − target`
# (Blondel, Martins and Niculae, 2020): cross-entropy for softmax, and for sparsemax the projection's own
#
#     xᵀz − ½‖z‖² − xᵀtarget + ½‖target‖²

# %%
def cross_entropy(x, z, target):
    return torch.nn.functional.cross_entropy(x, target)


def projection_loss(x, z, target):
    return ((x * (z - target)).sum(-1) - 0.5 * (z.square() - target.square()).sum(-1)).mean()


class Network(torch.nn.Module):
    """Scores of the substances, and the head's proportions."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(1)  # the same start for both
        self.body = torch.nn.Sequential(
            torch.nn.BatchNorm1d(bands), torch.nn.Linear(bands, 64), torch.nn.ReLU(), torch.nn.Linear(64, substances)
        )
        self.head = head

    def forward(self, spectrum):
        x = self.body(spectrum)
        return x, self.head(x)


networks = {"softmax": Network(torch.nn.Softmax(dim=-1)), "sparsemax": Network(nn.Sparsemax())}
losses = {"softmax": cross_entropy, "sparsemax": projection_loss}
compiled = {name: torch.compile(model, fullgraph=True) for name, model in networks.items()}

# %%
histories = {name: [] for name in compiled}
for name, model in compiled.items():
    torch.manual_seed(2)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        spectrum, proportions = mixtures(256)
        x, z = model(spectrum)
        optimiser.zero_grad()
        losses[name](x, z, proportions).backward()
        optimiser.step()
        histories[name].append(torch.nn.functional.mse_loss(z, proportions).item())

# %% [markdown]
# On new mixtures, sparsemax is nearer and mostly right about what is *not* there.

# %%
spectrum, proportions = mixtures(2000)
answers = {}
for name, model in networks.items():
    model.eval()
    with torch.no_grad():
        _, z = model(spectrum)
    answers[name] = z
    zeros = proportions == 0
    print(f"{name:10} mean squared error {torch.nn.functional.mse_loss(z, proportions):.5f}, "
          f"zeros found: {(z[zeros] < 1e-6).double().mean():.0%}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
for name, history in histories.items():
    left.semilogy(history, label=name)
left.set(xlabel="step", ylabel="mean squared error")
left.legend()
for shift, (name, z) in zip((-0.27, 0.0, 0.27), {"truth": proportions, **answers}.items(), strict=True):
    right.bar([i + shift for i in range(substances)], z[0].tolist(), width=0.25, label=name)
right.set(xlabel="substance", ylabel="proportion, one mixture", xticks=range(substances))
right.legend()
figure.tight_layout()
plt.show()
