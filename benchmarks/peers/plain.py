"""A plain PyTorch loop as a user writes it: DataLoader, torchvision transforms, Adam, float32. Our network and batch.

The GAN's step is that of the usual DCGAN tutorial: BCE, first the discriminator, then the generator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers import torch_data
from suite.tell import Teller


def classification_loss(network: nn.Module, images: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(network(images), labels, label_smoothing=smoothing)


def gan_step(networks: nn.ModuleDict, optimizers: dict[str, torch.optim.Optimizer], images: Tensor) -> None:
    d, g = networks["discriminator"], networks["generator"]
    fake = g(torch.randn(len(images), g.latent_dim))
    optimizers["discriminator"].zero_grad()
    real_score, fake_score = d(images), d(fake.detach())
    loss = F.binary_cross_entropy_with_logits(real_score, torch.ones_like(real_score))
    loss = loss + F.binary_cross_entropy_with_logits(fake_score, torch.zeros_like(fake_score))
    loss.backward()
    optimizers["discriminator"].step()
    optimizers["generator"].zero_grad()
    score = d(fake)
    F.binary_cross_entropy_with_logits(score, torch.ones_like(score)).backward()
    optimizers["generator"].step()


@torch.no_grad()
def accuracy(network: nn.Module, batches) -> float:
    network.eval()
    right = [(network(images).argmax(1) == labels).float() for images, labels in batches]
    network.train()
    return float(torch.cat(right).mean())


def main() -> None:
    known, config = torch_data.arguments(__doc__)
    splits, train, held_out = torch_data.sets(config)
    batches, held_out_batches = torch_data.loaders(config, train, held_out)
    networks = torch_data.networks(config, splits)
    options = {"lr": config.lr, "betas": (config.beta1, 0.999), "weight_decay": config.optim.weight_decay}
    optimizers = {name: torch.optim.AdamW(net.parameters(), **options) for name, net in networks.items()}
    tell, seen = Teller(known.told), 0
    for epoch in range(known.epochs):
        for images, labels in batches:
            if known.job == "gan":
                gan_step(networks, optimizers, images)
            else:
                (network,), (optimizer,) = networks.values(), optimizers.values()
                optimizer.zero_grad()
                if known.job == "autoencoder":
                    loss = F.mse_loss(network(images)[1], images)
                else:
                    loss = classification_loss(network, images, labels, config.task.label_smoothing)
                loss.backward()
                optimizer.step()
            seen += len(images)
            tell(seen)
        if known.validate:
            tell.say(epoch=epoch + 1, accuracy=accuracy(networks["classifier"], held_out_batches))


if __name__ == "__main__":
    main()
