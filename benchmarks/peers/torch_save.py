"""A plain loop that ends each epoch with torch.save of networks and optimizers, as tutorials do. Times that alone."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from peers import torch_data
from suite.tell import Teller


def main() -> None:
    known, config = torch_data.arguments(__doc__)
    splits, _, _ = torch_data.sets(config)
    networks = torch_data.networks(config, splits)
    optimizers = {name: torch.optim.AdamW(net.parameters()) for name, net in networks.items()}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    tell, path = Teller(known.told), Path(known.told).with_name("checkpoint.pt")
    for epoch in range(known.epochs):
        begun = time.perf_counter()
        state = {
            "networks": networks.state_dict(),
            "optimizers": [o.state_dict() for o in optimizers.values()],
        }
        torch.save(state, path)
        seconds = time.perf_counter() - begun
        tell.say(what="save", seconds=seconds)
        tell.say(what="end_epoch", seconds=seconds)
        tell.say(what="train_epoch", seconds=seconds, epoch=epoch + 1)


if __name__ == "__main__":
    main()
