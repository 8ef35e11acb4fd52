# %% [markdown]
# # Training with Lightning, and going on after a break
#
# A layer of `optlayer` is a `torch.nn.Module` like any other, so that Lightning's `Trainer` brings what a training
# needs: logs, checkpoints, several devices, mixed precision. Here an `OptNetLayer` learns from examples what some
# other quadratic program does, the training breaks off in the middle, and a second one goes on from its checkpoint.

# %%
import logging
import tempfile
import warnings

import matplotlib.pyplot as plt
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

import optlayer

warnings.filterwarnings("ignore", module="pytorch_lightning")
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
steps = 30
folder = tempfile.mkdtemp()


def teacher(q):
    """The nearest point of the simplex, made rounder: known by its examples only."""
    ones = torch.ones(1, 4)
    return optlayer.solve(2 * torch.eye(4), q, A=ones, b=ones[:, 0], lb=torch.zeros(4)).z


# %% [markdown]
# What is peculiar to a layer that solves: `check=False` lets a hard member pass with a status and a gradient of zero
# instead of an error in the middle of the night, and the number of such members goes into the log.

# %%
class Learner(lightning.LightningModule):
    def __init__(self, rate=0.02):
        super().__init__()
        self.save_hyperparameters()
        self.layer = optlayer.nn.OptNetLayer(4, inequalities=6, equalities=1, check=False)

    def training_step(self, batch, index):
        q, target = batch
        solution = self.layer.solution(q)
        loss = torch.nn.functional.mse_loss(solution.z, target)
        unsolved = (solution.status != optlayer.Status.SOLVED).float().sum()
        self.log_dict({"loss": loss, "unsolved": unsolved}, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.rate)


def train(epochs, checkpoint=None, model=None):
    lightning.seed_everything(0, verbose=False)
    q = torch.randn(256, 4)
    examples = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(q, teacher(q)), batch_size=64)
    keep = ModelCheckpoint(folder, filename="learner", save_last=True)
    trainer = lightning.Trainer(
        max_epochs=epochs, default_root_dir=folder, callbacks=[keep], logger=CSVLogger(folder),
        accelerator="cpu", devices=1,  # devices=2 trains on two, with a share of the batch each
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )
    trainer.fit(model or Learner(), examples, ckpt_path=checkpoint)
    return trainer


# %% [markdown]
# Once without a break; then half of it, and a new trainer that continues from the file.

# %%
whole = train(steps)
half = train(steps // 2)
resumed = train(steps, checkpoint=half.checkpoint_callback.last_model_path)

one, other = (trainer.model.state_dict() for trainer in (whole, resumed))
same = all(torch.equal(one[name], other[name]) for name in one)
print(f"epochs: {half.current_epoch}, then {resumed.current_epoch}")
print("the parameters are those of the training without a break:", same)
print(f"members without a solution in the last epoch: {int(resumed.callback_metrics['unsolved'])}")


# %%
def losses(trainer):
    """The loss of every epoch, from the log."""
    import csv
    from pathlib import Path

    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        return [(int(row["epoch"]), float(row["loss"])) for row in csv.DictReader(file) if row.get("loss")]


figure, axis = plt.subplots(figsize=(6, 3))
for name, trainer, style in (("without a break", whole, "-"), ("first half", half, "o"), ("resumed", resumed, "x")):
    axis.semilogy(*zip(*losses(trainer), strict=True), style, label=name, markersize=5)
axis.set(xlabel="epoch", ylabel="mean squared error")
axis.legend()
figure.tight_layout()
plt.show()
