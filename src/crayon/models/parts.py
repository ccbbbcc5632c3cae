"""One method of a network as a module of its own."""

from __future__ import annotations

from torch import Tensor, nn


class Method(nn.Module):
    """`Method(network, "encode")(x)` is `network.encode(x)`."""

    def __init__(self, network: nn.Module, name: str):
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.network, self.name)(x)
