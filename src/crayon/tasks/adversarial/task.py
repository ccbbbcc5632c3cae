"""The adversarial game: a generator against a discriminator.

Shapes: B images of one worker, C channels, H height, W width, Z latent_dim, F features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from crayon.data.types import Batch, DataInfo
from crayon.errors import BadInput
from crayon.report.plots import image_grid
from crayon.rng import Randomness
from crayon.tasks.adversarial import distances
from crayon.tasks.adversarial.diffaugment import augment
from crayon.tasks.adversarial.features import PREFERRED, Crayon64, Extractor, chosen, extractor
from crayon.tasks.adversarial.network import (
    Discriminator,
    Generator,
    generate,
    interpolate,
    sample,
    sample_latents,
    to_uint8,
)
from crayon.tasks.adversarial.settings import AdversarialExperiment
from crayon.tasks.base import Export, Loss, Monitor, Networks, Seen, Statistics, Task, example_images

FEW_IMAGES = 30_000
MANY_PASSES = 50
"""`diffaugment = auto` augments when there are fewer images than this and each is seen at least this often: sooner,
the discriminator can't have learned them by heart, and augmentation only slows it down (benchmarks/LOG.md)."""
COLLAPSED, SETTLED = 0.15, 0.2
"""Below this variety a generator has collapsed, once this share of the training is done: untrained ones have .25 and
more, those that make one image 0."""
REMEMBERED = 20_000
"""Up to this many training images are measured at the end of a run, to look for copies among the generated ones."""
SAMPLES_SHOWN = 64
NEAREST = 12
"""Generated images that are shown beside the real ones nearest to them."""
WAYS, STEPS = 6, 8
"""How many interpolations are shown, of as many images."""
EVALUATION_SEED = -1
"""Evaluations draw from a stream of their own, the same in all runs, and apart from the samples of any seed."""


class AdversarialTask(Task):
    """Both networks, their losses, figures and pictures.

    Raises BadInput for an image size that the networks can't make, and for a gradient penalty on compiled networks.
    """

    secondary_metrics = ("recall",)  # a generator of few, but good, images has a small distance
    summarizes_rows = True

    def __init__(self, experiment: AdversarialExperiment, info: DataInfo):
        model, self.config = experiment.model, experiment.task
        loss, gamma, norm = self.config.loss, self.config.gamma, model.discriminator_norm
        if experiment.compile and gamma:
            raise BadInput(
                "--compile can't be had with --task.gamma: torch.compile has no second derivatives; leave one out."
            )
        sizes: dict[str, Any] = {"image_size": info.size, "channels": info.channels}
        generator = Generator(model, **sizes, normalise=loss == "classic")
        # A penalty is on the slope of single images, so no layer may mix them; R3GAN has no normalisation at all.
        normalise = norm == "batch" or (norm == "auto" and loss == "classic" and not gamma)
        discriminator = Discriminator(model, **sizes, normalise=normalise)
        self.networks = nn.ModuleDict({"discriminator": discriminator, "generator": generator})
        few = info.train_size < FEW_IMAGES and experiment.epochs >= MANY_PASSES
        self.augments = self.config.diffaugment == "on" or (self.config.diffaugment == "auto" and few)
        self.info, self.latent_dim = info, model.latent_dim
        self.evaluates_train = info.train_size <= REMEMBERED
        self.features = chosen(self.config.extractor)
        self.monitor = (f"fd_{self.features}", "min")

    @classmethod
    def comparable(
        cls,
        experiment: AdversarialExperiment,
        metric: str = "",
        info: Callable[[], DataInfo | None] = lambda: None,
    ) -> tuple[Any, Monitor]:
        name: Any = experiment.task.extractor
        if name == "auto":
            measured = metric.removeprefix("fd_")
            name = measured if measured in PREFERRED else chosen("auto")
        decided = replace(experiment, task=replace(experiment.task, extractor=name))
        return decided, (f"fd_{name}", "min")

    # Training.

    def change(self, experiment: AdversarialExperiment) -> None:
        """Go on with another `gamma`."""
        self.config = experiment.task

    def loss(self, phase: str, nets: Networks, batch: Batch, rng: Randomness) -> Loss:
        """The game's loss for `phase`, with logits r of real and f of generated images.

        - classic (Goodfellow et al. 2014, non-saturating): D minimises softplus(-r) + softplus(f), G softplus(-f).
        - relativistic (R3GAN; Huang et al. 2024): D minimises softplus(f - r), G softplus(r - f).

        With `gamma`, D's loss has gamma / 2 (|grad D(real)|^2 + |grad D(fake)|^2) on top (R1 and R2).
        Logs `score_real` and `score_fake` (mean logits) in D's phase, and `penalty`.
        """
        latents = rng.fold("latents").normal(batch.positions, self.latent_dim)
        with torch.set_grad_enabled(phase == "generator"):
            fake = nets["generator"](latents).float()
        if phase == "discriminator":
            return self._discriminator_loss(nets["discriminator"], batch, fake, rng)
        if self.config.loss == "classic":
            score = nets["discriminator"](self._augment(fake, rng, "fake", batch.positions)).float()
            return F.softplus(-score).mean(), {}
        real, score, _ = self._scores(nets["discriminator"], batch, fake, rng)
        return F.softplus(real - score).mean(), {}

    def _discriminator_loss(self, network: nn.Module, batch: Batch, fake: Tensor, rng: Randomness) -> Loss:
        gamma = self.config.gamma
        device = fake.device.type
        # Second derivatives in bfloat16 are mostly rounding error, so a penalised step runs in float32 as a whole.
        with torch.autocast(device, torch.bfloat16, enabled=torch.is_autocast_enabled(device) and not gamma):
            real_score, fake_score, images = self._scores(network, batch, fake, rng, grad=gamma > 0)
            if self.config.loss == "classic":
                loss = F.softplus(-real_score).mean() + F.softplus(fake_score).mean()
            else:
                loss = F.softplus(fake_score - real_score).mean()
            logged = {"score_real": real_score.detach().mean(), "score_fake": fake_score.detach().mean()}
            if gamma:
                total = real_score.sum() + fake_score.sum()
                (slope,) = torch.autograd.grad(total, images, create_graph=True)
                # The mean over both halves, twice: R1 + R2.
                penalty = 2 * slope.square().sum((1, 2, 3)).mean()
                loss = loss + gamma / 2 * penalty
                logged["penalty"] = penalty.detach()
        return loss, logged

    def _scores(
        self, network: nn.Module, batch: Batch, fake: Tensor, rng: Randomness, grad: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The discriminator's logits (B,) of real and of generated images, from one forward pass, and its input."""
        real = self._augment(batch.images, rng, "real", batch.positions)
        images = torch.cat([real, self._augment(fake, rng, "fake", batch.positions)])
        if grad:
            images = images.detach().requires_grad_()
        real_score, fake_score = network(images, parts=2).float().chunk(2)
        return real_score, fake_score, images

    def _augment(self, images: Tensor, rng: Randomness, which: str, positions: Tensor) -> Tensor:
        return augment(images, rng.fold("augment", which), positions) if self.augments else images

    # Evaluation.

    @functools.cached_property
    def extractor(self) -> Extractor:
        """Loaded by what measures: to make images it is not needed."""
        return extractor(self.features)

    def prepare(self) -> None:
        """Load the extractor. Raises BadInput where its weights can't be had."""
        self.extractor.to(torch.device("cpu"))

    def evaluate(self, nets: Networks, batch: Batch, rng: Randomness) -> Statistics:
        """Rows, for each image at position p of the split and generated image p of the evaluation's own stream:
        `real`, `fake` float32 (B, F) features; `score_real`, `score_fake` float32 (B,) logits; on the procedural faces
        `modes_fake` int64 (B,).
        """
        device = batch.images.device
        self.extractor = self.extractor.to(device)
        latents = sample_latents(EVALUATION_SEED, batch.positions, self.latent_dim)
        fake = generate(nets["generator"], latents).float() / 255
        with torch.autocast(device.type, enabled=False):
            rows = {
                "real": self.extractor(batch.images),
                "fake": self.extractor(fake),
                "score_real": nets["discriminator"](batch.images),
                "score_fake": nets["discriminator"](fake),
            }
            if self.info.source == "faces" and isinstance(self.extractor, Crayon64):
                rows["modes_fake"] = self.extractor.modes(rows["fake"])
        return Statistics(rows=rows)

    def summarize(self, stats: Statistics, train: Statistics | None = None) -> dict[str, float]:
        """Figures of as many generated as real images, `n`.

        - `fd_<extractor>`, `kd_<extractor>`: Frechet and kernel distance. `..._floor`: between the two halves of
          the real images, so at half of n, where the Frechet distance's bias is about twice as large.
        - `precision`, `recall`, `density`, `coverage` in the same features.
        - `score_real`, `score_fake`: mean logits of the discriminator.
        - `modes_covered`: procedural faces only; how many of the 45 modes a classifier finds among the generated.
        - `authenticity`, `authenticity_real`: with `train`; the share of generated, and of these real, images that
          are no near-copies of training images.
        """
        rows = stats.rows
        real, fake = rows["real"], rows["fake"]
        metrics = {
            **self._distances(real, fake),
            **distances.manifold_metrics(real, fake),
            "score_real": float(rows["score_real"].double().mean()),
            "score_fake": float(rows["score_fake"].double().mean()),
            "n": float(len(real)),
        }
        if len(real) > 3:
            metrics |= self._distances(real[::2], real[1::2], "_floor")
        if "modes_fake" in rows:
            metrics["modes_covered"] = float(rows["modes_fake"].unique().numel())
        if train is not None:
            metrics["authenticity"] = distances.authenticity(train.rows["real"], fake)
            metrics["authenticity_real"] = distances.authenticity(train.rows["real"], real)
        return metrics

    def _distances(self, real: Tensor, fake: Tensor, end: str = "") -> dict[str, float]:
        kinds = {"fd": distances.frechet_distance, "kd": distances.kernel_distance}
        return {f"{kind}_{self.features}{end}": distance(real, fake) for kind, distance in kinds.items()}

    def trouble(self, stats: Statistics, done: float) -> str:
        """Whether the generator makes few images again and again."""
        if done < SETTLED or distances.variety(stats.rows["real"], stats.rows["fake"]) > COLLAPSED:
            return ""
        return (
            "The generator has collapsed: whatever the seeds, it makes nearly the same images. It rarely recovers; try "
            "a lower --lr, --task.diffaugment on, or --task.loss relativistic --task.gamma 1 --beta1 0 under another "
            "--name."
        )

    # Pictures.

    def progress_image(self, nets: Networks, device: torch.device) -> Image | None:
        """An 8x8 grid of the samples 0..63 of seed 0."""
        return self._samples(nets)

    def pictures(self, nets: Networks, seen: Seen, train: Seen | None = None) -> dict[str, Image]:
        """`samples`: samples 0..63 of seed 0. `nearest`: the first generated images of the evaluation and, to their
        right, the three most similar training images (of `seen` without `train`). `interpolation`: ways from one
        latent to another."""
        generator = nets["generator"]
        device = next(generator.parameters()).device
        fake = seen.stats.rows["fake"][:NEAREST]
        known = train or seen
        places = distances.nearest(fake, known.stats.rows["real"], 3)[1]  # (len(fake), 3)
        real = to_uint8(known.show(places.flatten()).images).unflatten(0, places.shape)
        latents = sample_latents(EVALUATION_SEED, torch.arange(len(fake), device=device), self.latent_dim)
        tiles = torch.cat([generate(generator, latents)[:, None], real], 1)
        titles = ["generated", *["real"] * places.shape[1]] * len(fake)
        ends = sample_latents(1, torch.arange(2 * WAYS, device=device), self.latent_dim)
        ways = torch.cat([interpolate(a, b, STEPS) for a, b in zip(ends[::2], ends[1::2], strict=True)])
        return {
            "samples": self._samples(nets),
            "nearest": image_grid(tiles.flatten(0, 1), titles, columns=2 * tiles.shape[1]),
            "interpolation": image_grid(generate(generator, ways), columns=STEPS, scale=2),
        }

    def exports(self, nets: Networks) -> dict[str, Export]:
        """`generator` alone: what the discriminator says of an image depends, by its normalisation, on the others."""
        images, _ = example_images(self.info)
        about = f"latents float32 (batch, {self.latent_dim}), standard normal, to {images}"
        latents = sample_latents(0, torch.arange(2), self.latent_dim)
        return {"generator": Export(nets["generator"], "latents", "images", about, latents)}

    def decode(self, nets: Networks, codes: Tensor) -> Tensor:
        """In float32, as `crayon.tasks.adversarial.network.generate`."""
        with torch.autocast(codes.device.type, enabled=False):
            return nets["generator"](codes)

    def _samples(self, nets: Networks) -> Image:
        return image_grid(sample(nets["generator"], 0, torch.arange(SAMPLES_SHOWN)), scale=2)
