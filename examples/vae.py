#!/usr/bin/env python
"""A task of one's own: a variational autoencoder (Kingma & Welling 2014), which encodes, reconstructs and generates.

python examples/vae.py
python examples/vae.py generate runs/NAME --out faces        # seeds to images
python examples/vae.py tune --space.model.latent-dim 8,16,32 --space.task.beta 0.1..4:log
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

import crayon
from crayon.report.plots import image_grid


@dataclass(frozen=True, kw_only=True)
class Model:
    """A convolutional encoder and decoder."""

    latent_dim: int = crayon.setting(16, low=1)
    """Numbers in a code."""
    width: int = crayon.setting(32, low=1)
    """Channels of the first layer."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The evidence lower bound."""

    beta: float = crayon.setting(1.0, low=0)
    """Weight of the divergence from the standard normal distribution (Higgins et al. 2017)."""


class Network(nn.Module):
    def __init__(self, model, data):
        super().__init__()
        side, width, codes = data.image_size // 4, model.width, model.latent_dim
        size = (2 * width, side, side)
        down = nn.Conv2d(data.channels, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, 2, 1)
        up = (
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, data.channels, 4, 2, 1),
        )
        self.encoder = nn.Sequential(*down, nn.ReLU(), nn.Flatten(), nn.Linear(math.prod(size), 2 * codes))
        self.decoder = nn.Sequential(nn.Linear(codes, math.prod(size)), nn.ReLU(), nn.Unflatten(1, size), *up)

    def forward(self, images, noise):
        """(logits of the reconstructions, means, log variances). `noise`: standard normal (B, Z)."""
        mean, logvar = self.encoder(images).float().chunk(2, 1)
        return self.decoder(mean + (0.5 * logvar).exp() * noise).float(), mean, logvar


class VAE(crayon.Task):
    monitor = ("elbo", "max")

    def __init__(self, experiment, data):
        if data.image_size % 4:
            raise crayon.BadInput(
                f"--data.image-size is {data.image_size}; this network needs a multiple of 4."
            )
        self.networks = nn.ModuleDict({"vae": Network(experiment.model, data)})
        self.latent_dim, self.beta, self.info = experiment.model.latent_dim, experiment.task.beta, data

    def terms(self, network, images, noise):
        """Reconstruction error and divergence in nats, each (B,)."""
        logits, mean, logvar = network(images, noise)
        error = F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)
        return error, 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)

    def loss(self, phase, nets, batch, rng):
        noise = rng.normal(batch.positions, self.latent_dim)
        error, divergence = (term.mean() for term in self.terms(nets[phase], batch.images, noise))
        return error + self.beta * divergence, {"error": error.detach(), "divergence": divergence.detach()}

    def evaluate(self, nets, batch, rng):
        noise = rng.normal(batch.positions, self.latent_dim)
        error, divergence = self.terms(nets["vae"], batch.images, noise)
        sums = {
            "images": torch.tensor(len(error)),
            "error": error.double().sum(),
            "kl": divergence.double().sum(),
        }
        return crayon.Statistics(sums=sums)

    def summarize(self, stats, train=None):
        error, divergence = (float(stats.sums[name] / stats.sums["images"]) for name in ("error", "kl"))
        return {"elbo": -error - divergence, "error": error, "kl": divergence}

    def encode(self, nets, images):
        return nets["vae"].encoder(images).chunk(2, 1)[0]

    def decode(self, nets, codes):
        return nets["vae"].decoder(codes).sigmoid()

    def progress_image(self, nets, device):
        codes = crayon.Randomness(0, "samples").normal(torch.arange(64, device=device), self.latent_dim)
        with torch.no_grad():
            return image_grid(self.decode(nets, codes), columns=8, scale=3)

    def pictures(self, nets, seen, train=None):
        images = seen.show(torch.arange(min(16, self.info.train_size))).images
        both = image_grid(torch.cat([images, self.reconstruct(nets, images)]), columns=len(images), scale=2)
        return {"samples": self.progress_image(nets, images.device), "reconstructions": both}


@dataclass(frozen=True, kw_only=True)
class VAEExperiment(crayon.Experiment):
    task_class = VAE
    abilities = ("encode", "reconstruct", "generate")

    model: Model = field(default_factory=Model)
    task: Task = field(default_factory=Task)


digits = crayon.DataConfig(source="digits", image_size=16)
job = crayon.Job(
    name="vae",
    about="A variational autoencoder of handwritten digits.",
    presets={"quick": VAEExperiment(epochs=30, lr=2e-3, global_batch_size=32, data=digits)},
    space={"model.latent_dim": "4,8,16,32"},
)

if __name__ == "__main__":
    crayon.main(job)
