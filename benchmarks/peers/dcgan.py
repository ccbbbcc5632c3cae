"""A plain DCGAN as its tutorial has it: BatchNorm in both networks, N(0, 0.02) weights, Adam 2e-4 / 0.5, batch 64.

It trains for the last of --marks seconds, counted from the start of the process, and is measured at each of them by our
task's own code on our held-out images, with the clock stopped.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from crayon import tasks
from crayon.cli.main import command_start
from crayon.config.names import override
from crayon.training.collectives import Group
from crayon.training.evaluation import evaluate
from peers import torch_data
from peers.plain import gan_step
from suite.tell import Teller

PLAIN = {"global_batch_size": 64, "precision": "fp32", "channels_last": False, "model.latent_dim": 100}


def dcgan_weights(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)


def main() -> None:
    known, config = torch_data.arguments(__doc__)
    config = override(config, PLAIN)
    splits, train, held_out = torch_data.sets(config)
    batches, _ = torch_data.loaders(config, train, held_out)
    torch.manual_seed(config.seed)
    task = tasks.build(config, splits.info())
    task.networks.apply(dcgan_weights)
    optimizers = {
        n: torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for n, net in task.networks.items()
    }
    tell, seen, stopped = Teller(known.told), 0, 0.0
    begun = command_start()
    marks = [float(mark) for mark in known.marks.split(",")]
    while marks:
        for images, _ in batches:
            gan_step(task.networks, optimizers, images)
            seen += len(images)
            tell(seen)
            spent = time.time() - begun - stopped
            if spent >= marks[0]:
                pause = time.time()
                figures = task.summarize(evaluate(task, task.networks, splits.val, config, Group()))
                tell.say(seconds=marks.pop(0), spent=spent, **{f"val/{k}": v for k, v in figures.items()})
                task.networks.train()
                stopped += time.time() - pause
                if not marks:
                    break


if __name__ == "__main__":
    main()
