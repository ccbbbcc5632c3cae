"""Optimizers that go on, bit for bit, from what a checkpoint kept of them."""

import pytest
import torch
from torch import nn

from crayon.errors import BadInput
from crayon.system.runfolder import RunFolder
from crayon.training.checkpoint import Checkpoint, latest, load, restore_network, save
from crayon.training.optimizer import Adam
from crayon.training.train_state import flatten_optimizer, restore_optimizer


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path, "run")
    run.create()
    return run


def build(kind, options, dtype=torch.float32):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(
        dtype, memory_format=torch.channels_last
    )
    decayed = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain}]
    return network, kind(groups, **({"lr": 1e-2} | options))


def train(network, optimizer, steps):
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.9
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(images.to(next(network.parameters()).dtype)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "kind, options, dtype",
    [
        (Adam, {"betas": (0.5, 0.99), "eps": 1e-8}, torch.float32),
        (torch.optim.AdamW, {"fused": True}, torch.float32),
        (torch.optim.AdamW, {"foreach": True, "betas": (0.5, 0.99)}, torch.float32),
        (torch.optim.AdamW, {"foreach": False, "lr": torch.tensor(0.01)}, torch.float32),
        (torch.optim.Adam, {"amsgrad": True, "fused": True}, torch.bfloat16),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, torch.float32),
        (torch.optim.SGD, {}, torch.float32),
    ],
)
def test_an_optimizer_goes_on_exactly_as_if_never_stopped(run, kind, options, dtype):
    straight, optimizer = build(kind, options, dtype)
    train(straight, optimizer, range(6))

    network, optimizer_1 = build(kind, options, dtype)
    train(network, optimizer_1, range(3))
    tensors, flat = flatten_optimizer(optimizer_1, network.named_parameters())
    save(run, Checkpoint(3, {"weights": network.state_dict(), "optimizer": tensors}, {"o": flat}, {}))

    resumed, optimizer_2 = build(kind, options, dtype)
    found = load(latest(run))
    restore_network(resumed, found.tensors["weights"])
    restore_optimizer(optimizer_2, resumed.named_parameters(), found.tensors["optimizer"], found.state["o"])
    for old, new in zip(network.parameters(), resumed.parameters(), strict=True):
        for key, value in optimizer_1.state[old].items():
            mine = optimizer_2.state[new][key]
            assert mine == value if not isinstance(value, torch.Tensor) else torch.equal(mine, value)
            assert not isinstance(value, torch.Tensor) or mine.stride() == value.stride()
    train(resumed, optimizer_2, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert [g["lr"] for g in optimizer_2.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_optimizer_state_of_another_network_is_refused():
    network, optimizer = build(torch.optim.AdamW, {})
    train(network, optimizer, range(1))
    tensors, flat = flatten_optimizer(optimizer, network.named_parameters())
    other, fresh = build(torch.optim.AdamW, {})
    renamed = [("x." + name, p) for name, p in other.named_parameters()]
    reshaped = {k: torch.zeros(3, 3) if k.endswith("exp_avg") else v for k, v in tensors.items()}
    for parameters, saved, words in (
        (renamed, tensors, "other parameters"),
        (other.named_parameters(), reshaped, r"has shape \(3, 3\)"),
        (other.named_parameters(), {}, "is incomplete"),
    ):
        with pytest.raises(BadInput, match=words):
            restore_optimizer(fresh, parameters, saved, flat)
        assert not fresh.state and fresh.param_groups[0]["lr"] == 1e-2
