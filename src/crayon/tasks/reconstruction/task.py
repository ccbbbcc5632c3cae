"""Reconstruction: mean squared error of an autoencoder, with denoising and masking variants."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from crayon.data.types import Batch, DataInfo
from crayon.report import plots
from crayon.rng import Randomness
from crayon.tasks.base import Export, Loss, Networks, Seen, Statistics, Task, example_images
from crayon.tasks.layers import Function
from crayon.tasks.reconstruction.metrics import knn_accuracy, linear_probe_accuracy, psnr, ssim
from crayon.tasks.reconstruction.network import Autoencoder
from crayon.tasks.reconstruction.settings import ReconstructionExperiment

PATCH = 4
"""Side in pixels of the squares that `task.mask` blanks out."""
RECONSTRUCTIONS_SHOWN = 16
"""How many images are shown with their reconstructions."""
GRID = 64
"""How many fixed codes the progress image decodes."""
PIXEL_SIDE = 32
"""Larger images are averaged down to this side before the probes on raw pixels."""
PIXEL_PROBE_ITERATIONS = 30


class ReconstructionTask(Task):
    """An autoencoder, its loss, figures and pictures."""

    monitor = ("mse", "min")

    def __init__(self, experiment: ReconstructionExperiment, info: DataInfo):
        network = Autoencoder(experiment.model, image_size=info.size, channels=info.channels)
        self.networks = nn.ModuleDict({"autoencoder": network})
        self.config, self.info = experiment.task, info
        self.latent_dim = network.latent_dim

    def loss(self, phase: str, nets: Networks, batch: Batch, rng: Randomness) -> Loss:
        """Mean squared error per pixel between the image and what is made of its (corrupted) input."""
        noise = None
        if self.config.latent_noise:
            noise = rng.fold("latent").normal(batch.positions, self.latent_dim) * self.config.latent_noise
        _, reconstructions = nets[phase](self.corrupt(batch.images, batch.positions, rng), noise)
        return F.mse_loss(reconstructions, batch.images), {}

    def corrupt(self, images: Tensor, positions: Tensor, rng: Randomness) -> Tensor:
        """`images` with noise added and patches blanked out as `task.noise` and `task.mask` say.

        float32 (B, C, H, W); noise leaves [0, 1] unclipped.
        """
        b, _, h, w = images.shape
        if self.config.noise:
            drawn = rng.fold("noise").normal(positions, images[0].numel()).view(images.shape)
            images = images + self.config.noise * drawn
        if self.config.mask:
            rows, columns = -(-h // PATCH), -(-w // PATCH)
            kept = rng.fold("mask").uniform(positions, rows * columns) >= self.config.mask
            kept = kept.view(b, 1, rows, columns).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
            images = images * kept[:, :, :h, :w]
        return images.contiguous(memory_format=torch.channels_last)

    def evaluate(self, nets: Networks, batch: Batch, rng: Randomness) -> Statistics:
        """Of the uncorrupted images: sums of MSE, PSNR and SSIM, and rows `codes` float32 (B, D), `labels` int64 (B,),
        `pixels` uint8 (B, C * H * W) of images averaged down to at most 32 x 32."""
        images = batch.images
        codes, reconstructions = nets["autoencoder"](images)
        mse = (reconstructions - images).square().flatten(1).double().mean(1)
        sums = {
            "images": torch.tensor(len(images), device=images.device),
            "mse": mse.sum(),
            "psnr": psnr(mse).sum(),
            "ssim": ssim(reconstructions, images).double().sum(),
        }
        rows = {"codes": codes}
        if self.info.classes:
            small = images
            if max(images.shape[2:]) > PIXEL_SIDE:
                small = F.adaptive_avg_pool2d(images, PIXEL_SIDE)
            rows |= {"labels": batch.labels, "pixels": (small * 255).round().to(torch.uint8).flatten(1)}
        return Statistics(sums=sums, rows=rows)

    def summarize(self, stats: Statistics, train: Statistics | None = None) -> dict[str, float]:
        """`mse` per pixel, `psnr` in dB and `ssim`, means over images.

        With `train` and labels also what the codes are worth as features, fitted on the training split's codes:
        `knn_accuracy` (5 nearest neighbours), `probe_accuracy` (logistic regression), and both on raw pixels
        (`pixel_knn_accuracy`, `pixel_probe_accuracy`).
        """
        count = max(int(stats.sums["images"]), 1)
        metrics = {name: float(stats.sums[name]) / count for name in ("mse", "psnr", "ssim")}
        if train is not None and self.info.classes:
            for prefix, name, iterations in (("", "codes", 60), ("pixel_", "pixels", PIXEL_PROBE_ITERATIONS)):
                known, asked = ((part.rows[name], part.rows["labels"]) for part in (train, stats))
                metrics[f"{prefix}knn_accuracy"] = knn_accuracy(known, asked)
                metrics[f"{prefix}probe_accuracy"] = linear_probe_accuracy(known, asked, iterations)
        return metrics

    def encode(self, nets: Networks, images: Tensor) -> Tensor:
        return nets["autoencoder"].encode(images)

    def decode(self, nets: Networks, codes: Tensor) -> Tensor:
        return nets["autoencoder"].decode(codes)

    def reconstruct(self, nets: Networks, images: Tensor) -> Tensor:
        return nets["autoencoder"](images)[1]

    @torch.no_grad()
    def progress_image(self, nets: Networks, device: torch.device) -> Image | None:
        """What the decoder makes of 64 fixed codes. The code is standardised, so these are draws from N(0, I)."""
        network = nets["autoencoder"].eval()
        codes = Randomness(0, "snapshot").normal(torch.arange(GRID, device=device), self.latent_dim)
        return plots.image_grid(network.decode(codes), columns=8, scale=3)

    @torch.no_grad()
    def pictures(self, nets: Networks, seen: Seen, train: Seen | None = None) -> dict[str, Image]:
        """`reconstructions` of the first 16 images (input, output, absolute error below each other) and `latent_map`
        (t-SNE of the codes; van der Maaten & Hinton 2008)."""
        stats = seen.stats
        batch = seen.show(torch.arange(min(RECONSTRUCTIONS_SHOWN, len(stats.rows["codes"]))))
        images = fed = batch.images
        rows = {"image": images}
        if self.config.noise or self.config.mask:
            fed = self.corrupt(images, batch.positions, Randomness(0, "pictures"))
            rows["input"] = fed.clamp(0, 1)
        _, made = nets["autoencoder"](fed)
        rows |= {"output": made, "difference": (made - images).abs()}
        strip = plots.image_grid(torch.cat([*rows.values()]), columns=len(images), scale=2, row_names=[*rows])
        pictures = {"reconstructions": strip}
        codes = stats.rows["codes"][:2000].float().cpu().numpy()
        if len(codes) > 4:
            from sklearn.manifold import TSNE

            plane = TSNE(perplexity=min(30, len(codes) // 4), init="pca", random_state=0).fit_transform(codes)
            labels = stats.rows["labels"][:2000].cpu().numpy() if self.info.classes else np.zeros(len(plane))
            pictures["latent_map"] = plots.scatter(
                plane, labels, self.info.classes, title="Codes of images not trained on", axes="t-SNE"
            )
        return pictures

    def exports(self, nets: Networks) -> dict[str, Export]:
        """`encoder` and `decoder`."""
        network = nets["autoencoder"]
        images, example = example_images(self.info)
        codes = f"codes float32 (batch, {self.latent_dim}), of mean 0 and variance 1 over the training images"
        normal = Randomness(0, "example").normal(torch.arange(2), self.latent_dim)
        encode, decode = Function(network, network.encode), Function(network, network.decode)
        return {
            "encoder": Export(encode, "images", "codes", f"{images} to {codes}", example),
            "decoder": Export(decode, "codes", "images", f"{codes}, to {images}", normal),
        }
