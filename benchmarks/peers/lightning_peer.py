"""The same network, batch and data through Lightning, as its documentation shows: LightningModule, Trainer.fit."""

from __future__ import annotations

import warnings

import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from peers import torch_data
from peers.plain import classification_loss, gan_step
from suite.tell import Teller


class Told(pl.Callback):
    def __init__(self, path: str, batch: int):
        self.tell, self.batch = Teller(path), batch

    def on_train_batch_end(self, trainer, module, outputs, batch, number) -> None:
        self.tell((trainer.current_epoch * trainer.num_training_batches + number + 1) * self.batch)


class Module(pl.LightningModule):
    def __init__(self, config, networks):
        super().__init__()
        self.config, self.networks = config, networks
        self.automatic_optimization = config.job != "gan"

    def configure_optimizers(self):
        c = self.config
        options = {"betas": (c.beta1, 0.999), "weight_decay": c.optim.weight_decay}
        return [torch.optim.AdamW(net.parameters(), c.lr, **options) for net in self.networks.values()]

    def training_step(self, batch, number):
        images, labels = batch
        if self.config.job == "gan":
            optimizers = self.optimizers()
            return gan_step(self.networks, dict(zip(self.networks, optimizers, strict=True)), images)
        (network,) = self.networks.values()
        if self.config.job == "autoencoder":
            loss = F.mse_loss(network(images)[1], images)
        else:
            loss = classification_loss(network, images, labels, self.config.task.label_smoothing)
        self.log("train_loss", loss)
        return loss


def main() -> None:
    known, config = torch_data.arguments(__doc__)
    splits, train, held_out = torch_data.sets(config)
    batches, _ = torch_data.loaders(config, train, held_out)
    module = Module(config, torch_data.networks(config, splits))
    warnings.simplefilter("ignore")
    trainer = pl.Trainer(
        max_epochs=known.epochs,
        accelerator="cpu",
        callbacks=[Told(known.told, config.global_batch_size)],
        log_every_n_steps=10,
    )
    trainer.fit(module, batches)


if __name__ == "__main__":
    main()
