#!/usr/bin/env python
"""Whether several workers train what one does: how far apart their weights are after some steps, over how far those of
one have moved. Processes on the CPU, gloo, float32, BatchNorm's statistics of all; on procedural images.

uv run benchmarks/workers.py [--workers 2 4 8] [--jobs mnist gan]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from crayon.config.names import override
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get
from crayon.training import worker
from crayon.training.collectives import Group

COMMON = {
    "precision": "fp32",
    "sync_batchnorm": "on",
    "global_batch_size": 36,
    "data.image_size": 32,
    "data.size": 470,
    "epochs": 1,
    "optim.ema_images": 0.0,
    "wandb": "off",
    "device": "cpu",
    "threads": 1,
}
JOBS = {
    "mnist": {"data.source": "digits", "model.width": 8, "model.dropout": 0.0},
    "cifar10": {"data.source": "shapes", "model.width": 8, "model.dropout": 0.0},
    "autoencoder": {"data.source": "digits", "model.width": 8},
    "gan": {"data.source": "faces", "model.width": 8},
}


def train(rank: int, world: int, job: str, folder: str) -> None:
    """An epoch as one of `world` workers; rank 0 keeps the weights of two and more dimensions, before and after. Biases
    before BatchNorm have no gradient but rounding errors, which Adam makes as large as any."""
    torch.set_num_threads(1)
    if world > 1:
        store = dist.FileStore(f"{folder}/store", world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    config = override(get(job), COMMON | JOBS[job])
    run = RunFolder(folder, "run")
    if rank == 0:
        run.create()
    trainer = worker.build(config, worker.load_data(config), run, group=Group(rank, world))

    def weights() -> torch.Tensor:
        return torch.cat(
            [p.detach().double().flatten() for p in trainer.networks.parameters() if p.dim() > 1]
        )

    before = weights()
    trainer.fit()
    if rank == 0:
        torch.save((before, weights(), trainer.step), f"{folder}/weights.pt")
    if world > 1:
        dist.barrier()
    os._exit(0)  # gloo's threads may abort Python while it tears itself down


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    known = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    print("| job (steps) | " + " | ".join(f"{n} workers" for n in known.workers) + " |")
    print("|---" * (1 + len(known.workers)) + "|")
    for job in known.jobs:
        found = {}
        for world in (1, *known.workers):
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(train, (world, job, folder), world)
                found[world] = torch.load(Path(folder, "weights.pt"))
        before, alone, steps = found[1]
        apart = [float((found[n][1] - alone).norm() / (alone - before).norm()) for n in known.workers]
        print(f"| {job} ({steps}) | " + " | ".join(f"{a:.1e}" for a in apart) + " |", flush=True)


if __name__ == "__main__":
    main()
