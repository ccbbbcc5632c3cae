"""Generator and discriminator in the shapes of DCGAN (Radford et al. 2016).

Shapes: B images, Z latent_dim, C channels, H x W image_size.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crayon.config.pairs import Size
from crayon.rng import Randomness
from crayon.tasks.adversarial.settings import GanConfig, stages
from crayon.tasks.layers import Flatten, Unflatten

WIDEST = 512


def widths(width: int, count: int) -> list[int]:
    """Channels from half the image's resolution down to the innermost map."""
    return [min(WIDEST, width * 2**i) for i in range(count)]


class Generator(nn.Module):
    """Latents to images: a dense layer, then transposed convolutions (4x4, stride 2), each doubling the resolution.

    A kernel that is a multiple of the stride covers every pixel equally often, which avoids checkerboards
    (Odena et al. 2016), and costs less than half of upsampling followed by a 3x3 convolution.
    """

    def __init__(self, config: GanConfig, *, image_size: Size, channels: int, normalise: bool = True):
        super().__init__()
        self.latent_dim = config.latent_dim
        (h, w), count = stages(image_size)
        inner = widths(config.width, count)[::-1]
        norm = nn.BatchNorm2d if normalise else nn.Identity
        layers: list[nn.Module] = [
            nn.Linear(config.latent_dim, inner[0] * h * w, bias=not normalise),
            Unflatten(1, (inner[0], h, w)),
            norm(inner[0]),
            nn.ReLU(),
        ]
        for i, o in itertools.pairwise(inner):
            layers += [nn.ConvTranspose2d(i, o, 4, 2, 1, bias=not normalise), norm(o), nn.ReLU()]
        layers += [nn.ConvTranspose2d(inner[-1], channels, 4, 2, 1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)
        fan_in_(self)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents float32 (B, Z), standard normal. Returns images (B, C, H, W) in [0, 1]."""
        return self.layers(latents)


class BatchStatistics(nn.BatchNorm2d):
    """BatchNorm by the statistics of the batch at hand, in evaluation too, with no running ones to keep."""

    def __init__(self, features: int):
        super().__init__(features, track_running_stats=False)


class Discriminator(nn.Module):
    """Images to one logit: strided convolutions, each halving the resolution, then a dense layer."""

    def __init__(self, config: GanConfig, *, image_size: Size, channels: int, normalise: bool = True):
        super().__init__()
        (h, w), count = stages(image_size)
        layers: list[nn.Module] = []
        inside = channels
        for o in widths(config.discriminator_width or config.width, count):
            layers.append(nn.Conv2d(inside, o, 4, 2, 1))
            if normalise and inside != channels:
                layers.append(BatchStatistics(o))
            layers.append(nn.LeakyReLU(0.2))
            inside = o
        self.layers = nn.Sequential(*layers, Flatten(), nn.Linear(inside * h * w, 1))
        fan_in_(self)

    def forward(self, images: Tensor, parts: int = 1) -> Tensor:
        """Images float32 (B, C, H, W) in [0, 1], of `parts` kinds one after the other. Returns logits (B,).

        Each kind, such as real and generated images, is normalised by statistics of its own: mixed, they would give
        away how many of the batch are real (and two calls of one network upset data parallelism).
        """
        x = images * 2 - 1
        for layer in self.layers:
            if parts > 1 and isinstance(layer, BatchStatistics):
                x = torch.cat([layer(part) for part in x.chunk(parts)])
            else:
                x = layer(x)
        return x.squeeze(1)


@torch.no_grad()
def fix_statistics(discriminator: Discriminator, images: Tensor) -> None:
    """Let `discriminator`, in evaluation mode, judge every image from now on by the statistics of `images`, float32
    (B, C, H, W) in [0, 1], whatever images stand beside it."""
    x = images * 2 - 1
    for layer in discriminator.layers:
        if isinstance(layer, BatchStatistics):
            layer.running_mean, layer.running_var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = layer(x)


def fan_in_(network: nn.Module) -> None:
    """Initialise weights by the number of inputs that reach an output (He et al. 2015), biases by zero."""
    for layer in network.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            fan = layer.weight[:, 0].numel() // math.prod(layer.stride)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            fan = layer.weight[0].numel()
        else:
            continue
        gain = 1.0 if getattr(layer, "out_features", 0) == 1 else math.sqrt(2.0)
        nn.init.normal_(layer.weight, std=gain / math.sqrt(fan))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def sample_latents(seed: int, indices: Tensor, latent_dim: int) -> Tensor:
    """The latents of images `indices`, int64 (N,), of `seed`. Returns float32 (N, latent_dim)."""
    return Randomness(seed, "sample").normal(indices, latent_dim)


@torch.no_grad()
def generate(generator: Generator, latents: Tensor) -> Tensor:
    """Images of `latents` (N, Z) on the generator's device, in float32. Returns uint8 (N, C, H, W)."""
    with torch.autocast(latents.device.type, enabled=False):
        return to_uint8(generator(latents))


def to_uint8(images: Tensor) -> Tensor:
    """float in [0, 1] to uint8 in 0..255."""
    return images.float().clamp(0, 1).mul_(255).add_(0.5).to(torch.uint8)


def sample(generator: Generator, seed: int, indices: Tensor) -> Tensor:
    """Images of a generator, which is put into evaluation mode, and back: see `decoded`."""
    training = generator.training
    generator.eval()
    device = next(generator.parameters()).device
    images = decoded(functools.partial(generate, generator), device, seed, indices, generator.latent_dim)
    generator.train(training)
    return images


def decoded(
    decode: Callable[[Tensor], Tensor], device: torch.device, seed: int, indices: Tensor, latent_dim: int
) -> Tensor:
    """Image `i` of seed `s`: the same whatever else is asked for, and in whatever order.

    A kernel may round differently for another batch size or place in the batch. So images are made in blocks of
    consecutive indices, each whole and always in the same places, and those asked for are taken from them. A GPU's
    blocks are larger than a CPU's; between kinds of devices images differ by rounding anyhow.

    decode: standard normal latents float32 (B, latent_dim) on `device` to uint8 (B, C, H, W) there. indices: int64
    (N,), non-negative, on any device. Returns uint8 (N, C, H, W) on `device`.
    """
    # More at a time are no faster on a CPU core, and a GPU would idle with as few.
    size = 64 if device.type == "cpu" else 512
    indices = indices.to(device)
    blocks, block_of = torch.unique(indices // size, return_inverse=True)
    if not len(blocks):
        return decoded(decode, device, seed, indices.new_zeros(1), latent_dim)[:0]
    every = (blocks[:, None] * size + torch.arange(size, device=device)).flatten()
    images = torch.cat([decode(part) for part in sample_latents(seed, every, latent_dim).split(size)])
    return images if torch.equal(every, indices) else images[block_of * size + indices % size]


def interpolate(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Great-circle path between two latents (Z,): (steps, Z). Straight lines leave the shell that normals lie on."""
    angle = torch.acos(F.cosine_similarity(first, second, 0).clamp(-1, 1))
    t = torch.linspace(0, 1, steps, device=first.device)[:, None]
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)
