"""A trained model, to be used: `crayon.load`.

    model = crayon.load("runs/first")
    model.classify(torch.stack([model.prepare("cat.jpg")]))

Shapes: B or N images, C channels, H x W the model's image size, K classes, Z latent dimensions. Images go in as
uint8, or as floating point in [0, 1], (B, C, H, W), on any device, and results come back on the CPU.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from crayon import tasks
from crayon.config.names import override, with_defaults
from crayon.config.pairs import size_of
from crayon.config.settings import Experiment
from crayon.data.decode import Form, decode, fitted
from crayon.data.types import DataInfo
from crayon.errors import BadInput, one_line
from crayon.system import devices
from crayon.system.host import computes_bf16
from crayon.system.runfolder import SOURCES
from crayon.tasks.adversarial.network import decoded, fix_statistics, sample_latents, to_uint8
from crayon.tasks.base import Task
from crayon.tasks.jobs import get
from crayon.training import checkpoint as checkpoints
from crayon.training.checkpoint import Entry
from crayon.use import runs

BLOCK = {"cpu": 128}
BLOCK_ELSEWHERE = 512
"""Images in one forward pass, always as many: kernels round differently for other numbers. On a CPU, more don't make
it faster, and less are asked for by a person who waits; a GPU wants more."""
FEW_LATENTS = 16
"""The same for latents on a CPU: a person who moves a slider asks for one image at a time."""
REFERENCE = 256
"""Generated images whose statistics a discriminator judges by."""


def load(
    run: str | os.PathLike[str],
    checkpoint: str | int = "best",
    device: str = "auto",
    storage: str | None = None,
) -> Model:
    """The averaged weights of a run, in evaluation mode.

    Args:
        run: folder, or s3:// or gs:// address, of a run, of a sweep (its best trial is meant) or of one
            `checkpoints/step-....safetensors`.
        checkpoint: "best" (the newest, where nothing was selected), "last" or a step's number.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        storage: folder or address under which `run` lies.

    Raises BadInput where there is no such run or checkpoint, or it is damaged.
    """
    while True:
        entry = runs.find(run, checkpoint, storage)
        try:
            return open_model(entry, device)
        except BadInput:
            if entry.path.exists():
                raise  # Otherwise the run goes on, and has replaced this checkpoint by a newer one.


def open_model(entry: Entry, device: str = "auto", data: DataInfo | None = None) -> Model:
    """As `load`, of a checkpoint that was found. `data`: what it will be evaluated on."""
    where = devices.chosen(device)
    found = checkpoints.load(entry, groups=[])
    config = experiment(entry, found.config)
    group = "ema" if config.optim.ema_images > 0 else "weights"
    tensors = checkpoints.load(entry, groups=[group]).tensors[group]
    own, classes = config.data, tuple(found.state["classes"])
    info = data or DataInfo(size_of(*own.shape[1:]), own.channels, classes, 1, own.source)
    if config.needs_labels:
        info = info._replace(classes=classes)
    try:
        if tasks.built_in(config):
            # Settings that were tampered with may describe a network that no memory holds.
            with torch.device("meta"):
                checkpoints.check_fit(tasks.build(config, info).networks, tensors)
        task = tasks.build(config, info)
        checkpoints.restore_network(task.networks, tensors)
    except BadInput as error:
        why = one_line(error)
        raise entry.unusable(f"doesn't hold the model that its settings describe ({why})") from None
    return Model(entry, config, task, info, where, found.metrics, entry.digests[group])


def experiment(entry: Entry, flat: dict[str, Any]) -> Experiment:
    """The settings that a checkpoint was written with. Raises BadInput where this version lacks one of them."""
    try:
        default = get(flat["job"], flat["preset"])
    except BadInput as error:
        made_by = entry.path.parents[1] / SOURCES
        names = ", ".join(json.loads(made_by.read_text())) if made_by.exists() else ""
        hint = f" (made by {names})" if names else ""
        raise BadInput(f"Checkpoint {entry.uri} is of another job or preset{hint}: {error}") from None
    try:
        return override(default, with_defaults(flat, default))
    except KeyError as error:
        raise BadInput(
            f"Checkpoint {entry.uri} has a setting that this version of Crayon doesn't have ({error.args[0][:60]!r})."
        ) from None


class Model:
    """What `load` returns. `step`, `uri`, `job`, `config`, `task` and `networks` are those of the checkpoint."""

    def __init__(
        self,
        entry: Entry,
        config: Experiment,
        task: Task,
        info: DataInfo,
        device: torch.device,
        metrics: dict[str, float],
        digest: str,
    ):
        self.entry, self.config, self.task, self.info, self.device = entry, config, task, info, device
        self.step, self.uri, self.job = entry.step, entry.uri, config.job
        self.metrics = metrics
        """Of the epoch at whose end the checkpoint was written, by names such as "val/mse"."""
        self.digest = digest
        """SHA-256 of the weights, by the checkpoint's header: whether two models are the same one."""
        self.networks: nn.ModuleDict = task.networks.to(device).eval().requires_grad_(False)
        if config.channels_last:
            self.networks.to(memory_format=torch.channels_last)
        self.classes: list[str] | None = list(info.classes) or None
        """Names in label order; None where the run had no labels."""
        self._judge: Any = None
        self.image_size, self.channels = info.size, info.channels
        """The side of its square images, else (height, width); 1 or 3."""
        self.form = Form.of(config.data)
        """What images are brought to: as its training images were."""
        self.block = BLOCK.get(device.type, BLOCK_ELSEWHERE)
        bf16 = config.precision == "bf16" and computes_bf16(device)
        self.precision: Literal["fp32", "bf16"] = "bf16" if bf16 else "fp32"
        """The run's, or fp32 where this device only emulates bf16."""

    def __repr__(self) -> str:
        return f"Model({self.uri!r}, job={self.job!r}, step={self.step})"

    def prepare(self, image: Image.Image | str | os.PathLike[str] | Any) -> Tensor:
        """A picture of any size and mode, a path or a binary file, read as training reads files (`data.fit`, and
        `data.range` as it was for the training images). Returns uint8 (C, H, W). Raises whatever Pillow raises for what
        it can't read."""
        read: Any = fitted if isinstance(image, Image.Image) else decode
        pixels = read(image, self.form)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def classify(self, images: Tensor) -> Tensor:
        """Probabilities float32 (B, K), rows sum to 1, with the mirror images' under `task.tta`."""
        self.needs("classify")
        return self._map(lambda x: self.task.classify(self.networks, x).float(), images)

    def encode(self, images: Tensor) -> Tensor:
        """Codes float32 (B, Z)."""
        self.needs("encode")
        return self._map(lambda x: self.task.encode(self.networks, x).float(), images)

    def reconstruct(self, images: Tensor) -> Tensor:
        """What is left after the passage through the code: uint8 (B, C, H, W)."""
        self.needs("reconstruct")
        return self._map(lambda x: to_uint8(self.task.reconstruct(self.networks, x)), images)

    def errors(self, images: Tensor) -> Tensor:
        """Mean squared error per pixel, of images in [0, 1]: float32 (B,). What a model hasn't seen the like of comes
        back worse, so this is an anomaly score."""
        self.needs("reconstruct")
        return self._map(
            lambda x: (self.task.reconstruct(self.networks, x) - x).square().flatten(1).mean(1).float(),
            images,
        )

    # Images from codes. A seed is a code, always the same one.

    def latents(self, seeds: Tensor) -> Tensor:
        """The latents of seeds int64 (N,), non-negative: float32 (N, Z), standard normal."""
        self.needs("generate")
        return sample_latents(0, _seeds(seeds), self.task.latent_dim)

    def generate(self, seeds: Tensor) -> Tensor:
        """The images of seeds int64 (N,), non-negative: uint8 (N, C, H, W). A GAN's of seeds 0..63 are the `samples`
        of its run."""
        self.needs("generate")
        return decoded(self._decoded, self.device, 0, _seeds(seeds), self.task.latent_dim).cpu()

    def decode(self, latents: Tensor) -> Tensor:
        """The images of latents float (N, Z): uint8 (N, C, H, W)."""
        if not {"generate", "reconstruct"} & set(self.config.abilities):
            self.needs("generate")
        if latents.dim() != 2 or latents.shape[1] != self.task.latent_dim:
            raise ValueError(f"latents must be (N, {self.task.latent_dim}), not {tuple(latents.shape)}")
        block = FEW_LATENTS if self.device.type == "cpu" else self.block
        return self._blocks(self._decoded, latents.float(), block)

    @torch.no_grad()
    def _decoded(self, latents: Tensor) -> Tensor:
        return to_uint8(self.task.decode(self.networks, latents))

    def score(self, images: Tensor) -> Tensor:
        """The discriminator's probability that each image is a real one: float32 (B,).

        A discriminator that normalises over the batch takes the statistics of 256 generated images (seeds 0..255), so
        that a score doesn't depend on what is scored beside it. In training each batch has statistics of its own.
        """
        self.needs("edit")
        network = self.networks["discriminator"]
        if self._judge is None:
            self._judge = copy.deepcopy(network)
            made = self.generate(torch.arange(REFERENCE)).to(self.device, torch.float32) / 255
            fix_statistics(self._judge, made)
        judge = self._judge
        return self._map(lambda x: judge(x).float().sigmoid(), images, exact=True)

    # Everything goes through here.

    def needs(self, ability: str) -> None:
        """Raise BadInput unless the model has this ability (see `Experiment.abilities`)."""
        if ability not in self.config.abilities:
            can = " and ".join(self.config.abilities) or "be evaluated and exported"
            raise BadInput(f"{self.uri} is of the job {self.job}, which can {can} and not {ability}.")

    def _map(self, work: Callable[[Tensor], Tensor], images: Tensor, exact: bool = False) -> Tensor:
        """`work` of the images as training feeds them: float32 in [0, 1], in `precision` unless `exact`."""
        shape = self.info.shape
        if images.dim() != 4 or tuple(images.shape[1:]) != shape:
            raise ValueError(f"images must be (B, {', '.join(map(str, shape))}), not {tuple(images.shape)}")
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        bf16 = self.precision == "bf16" and not exact

        def fed(part: Tensor) -> Tensor:
            x = part.float() / 255 if part.dtype == torch.uint8 else part.float()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                return work(x.contiguous(memory_format=layout))

        return self._blocks(fed, images)

    @torch.no_grad()
    def _blocks(self, work: Callable[[Tensor], Tensor], rows: Tensor, block: int | None = None) -> Tensor:
        """`work` in passes of `block` rows (None = `self.block`), the last one filled up, so that a row's result is
        the same whatever stands beside it. Returns it on the CPU."""
        block = block or self.block
        done = []
        for part in rows.split(block) if len(rows) else [rows]:
            count = len(part)
            part = part.to(self.device)
            if count < block:
                part = torch.cat([part, part.new_zeros(block - count, *part.shape[1:])])
            done.append(work(part)[:count])
        return torch.cat(done).cpu()


def _seeds(seeds: Tensor) -> Tensor:
    seeds = torch.as_tensor(seeds, dtype=torch.int64)
    if seeds.dim() != 1 or (len(seeds) and int(seeds.min()) < 0):
        raise BadInput("Seeds are whole numbers of at least 0.")
    return seeds
