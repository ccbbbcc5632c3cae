"""Compare GAN recipes at equal processor time on one core: losses, augmentation, learning rates, a plain DCGAN loop.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/gan_losses.py --faces --size 32 --minutes 4 \
        --arm dcgan --arm classic:lr=6e-4 --arm relativistic:gamma=0.05

An arm is a recipe with any settings by dotted name. `dcgan` is what a textbook loop does: BCE, separate batches of
real and generated images, BatchNorm in both networks, N(0, 0.02) weights, lr 2e-4 (1.5e-4 here), no averaging, float32.
Every arm is measured by the same code, on the same held-out images and latents.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from crayon import data
from crayon.config.names import override
from crayon.config.settings import DataConfig
from crayon.rng import Randomness
from crayon.tasks import jobs
from crayon.tasks.adversarial.task import AdversarialTask
from crayon.tasks.base import Statistics
from crayon.training.collectives import Group
from crayon.training.optimizer import Average, adam, lr_at

RECIPES: dict[str, dict] = {
    "dcgan": {"lr": 1.5e-4, "beta1": 0.5, "optim.beta2": 0.999, "optim.ema_images": 0.0, "task.diffaugment": "off",
              "precision": "fp32", "channels_last": False, "optim.schedule": "constant", "optim.warmup": 0.0,
              "global_batch_size": 64, "model.latent_dim": 100},
    "classic": {"task.loss": "classic", "task.gamma": 0.0, "beta1": 0.5},
    "relativistic": {"task.loss": "relativistic", "beta1": 0.0, "lr": 4e-4},
}  # fmt: skip


def plain_step(task: AdversarialTask, optimizers: dict, batch, rng: Randomness) -> None:
    """The textbook loop's step."""
    d, g = task.networks["discriminator"], task.networks["generator"]
    fake = g(rng.normal(batch.positions, task.latent_dim))
    optimizers["discriminator"].zero_grad()
    (F.softplus(-d(batch.images)).mean() + F.softplus(d(fake.detach())).mean()).backward()
    optimizers["discriminator"].step()
    optimizers["generator"].zero_grad()
    F.softplus(-d(fake)).mean().backward()
    optimizers["generator"].step()


def step(task: AdversarialTask, optimizers: dict, batch, rng: Randomness, bf16: bool) -> None:
    """Our step, as the trainer does it."""
    for phase, optimizer in optimizers.items():
        for name, net in task.networks.items():
            net.requires_grad_(name == phase)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = task.loss(phase, task.networks, batch, rng.fold(phase))
        loss.backward()
        optimizer.step()


@torch.no_grad()
def measure(task: AdversarialTask, networks: nn.ModuleDict, images) -> Statistics:
    networks.eval()
    parts = [
        task.evaluate(networks, batch, Randomness(0)).rows
        for batch in data.evaluation_batches(images, batch_size=250)
    ]
    networks.train()
    return Statistics(rows={k: torch.cat([p[k] for p in parts]) for k in parts[0]})


def run(recipe: str, changes: dict, splits, args, out: Path) -> dict:
    plain = recipe == "dcgan"
    base = override(
        jobs.get("gan"),
        {"precision": "bf16"} | RECIPES[recipe] | changes | {"data.image_size": args.size},
    )
    Randomness(args.seed, "weights").seed_torch()
    task = AdversarialTask(base, splits.info())
    if plain:
        for p in (p for n, p in task.networks.named_parameters() if p.ndim >= 2):
            nn.init.normal_(p, std=0.02)
    if base.channels_last:
        task.networks.to(memory_format=torch.channels_last)
    average = Average(task.networks, base.optim.ema_images)
    optimizers = {name: adam(net, base) for name, net in task.networks.items()}
    loader = data.Loader(
        splits.train,
        global_batch_size=base.global_batch_size,
        augment=base.augment,
        channels_last=base.channels_last,
    )
    clock = time.perf_counter if args.wall else time.process_time
    start = clock()
    seconds = 60 * args.minutes
    done = 0
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            share = (clock() - start) / seconds
            for optimizer in optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = lr_at(round(1e4 * min(share, 1.0)), 10_000, base)
            rng = Randomness(args.seed, "step", done)
            if plain:
                plain_step(task, optimizers, batch, rng)
            else:
                step(task, optimizers, batch, rng, base.precision == "bf16")
            done += 1
            average.update(done * base.global_batch_size, base.global_batch_size)
            if share >= 1:
                break
        if share >= 1:
            break
    average.copy_buffers(Group())
    stats = measure(task, average.networks, splits.val)
    figures = task.summarize(stats)
    task.progress_image(average.networks, torch.device("cpu")).save(out.with_name(out.name + ".png"))
    return {"images": done * base.global_batch_size, "seconds": round(clock() - start)} | figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", action="store_true", help="the procedural faces")
    parser.add_argument("--root", help="or a folder of images")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--wall", action="store_true", help="minutes of wall time, not of processor time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--val-fraction", type=float, default=0.13)
    parser.add_argument("--arm", action="append", required=True, help="recipe:setting=value,setting=value")
    parser.add_argument("--out", type=Path, default=Path("gan_losses"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    source = {"source": "folder", "root": args.root} if args.root else {"source": "faces"}
    splits = data.load(
        DataConfig(**source, image_size=args.size, channels=3, val_fraction=args.val_fraction), labels=False
    )
    for arm in args.arm:
        recipe, _, settings = arm.partition(":")
        changes = {}
        for setting in filter(None, settings.split(",")):
            key, value = setting.split("=")
            key = {"gamma": "task.gamma", "aug": "task.diffaugment", "width": "model.width"}.get(key, key)
            try:
                changes[key] = json.loads(value)
            except ValueError:
                changes[key] = value
        name = arm.replace(":", "_").replace(",", "_").replace("=", "")
        result = run(recipe, changes, splits, args, args.out / f"{args.size}_{name}")
        print(arm, json.dumps({k: round(v, 4) for k, v in result.items()}), flush=True)


if __name__ == "__main__":
    main()
