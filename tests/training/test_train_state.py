"""Networks, averages and optimizers that go on, bit for bit, from what a checkpoint kept of them."""

import pytest
import torch
from torch import nn

from crayon.errors import BadInput
from crayon.system.runfolder import RunFolder
from crayon.training.checkpoint import Checkpoint, latest, load, save
from crayon.training.collectives import Group
from crayon.training.optimizer import Adam, Average
from crayon.training.train_state import capture, restore


def build(width=8):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 4, 3))
    networks = nn.ModuleDict({"a": network.to(memory_format=torch.channels_last)})
    decayed = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain}]
    optimizer = Adam(groups, lr=1e-2, betas=(0.5, 0.99), eps=1e-8)
    return networks, Average(networks, half_life=100), {"a": optimizer}


def train(networks, average, optimizers, steps):
    for step in steps:
        optimizers["a"].set_lr(0.01 * 0.9**step)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizers["a"].zero_grad()
        networks["a"](images).square().mean().backward()
        optimizers["a"].step()
        average.update(10_000 + 4 * step, 4)
    average.copy_buffers(Group())


def everything(*parts):
    return {f"{g}/{n}": t for g, named in capture(*parts).items() for n, t in named.items()}


def test_training_goes_on_exactly_as_if_never_stopped(tmp_path):
    straight = build()
    train(*straight, range(6))
    stopped, resumed = build(), build()
    train(*stopped, range(3))
    run = RunFolder(tmp_path, "run")
    run.create()
    save(run, Checkpoint(3, capture(*stopped), {}, {}))
    train(*resumed, range(2))  # what is there before doesn't matter
    restore(*resumed, load(latest(run)).tensors)
    before, after = everything(*stopped), everything(*resumed)
    assert all(torch.equal(t, after[n]) and t.stride() == after[n].stride() for n, t in before.items())
    train(*resumed, range(3, 6))
    expected, found = everything(*straight), everything(*resumed)
    assert expected.keys() == found.keys() and all(torch.equal(t, found[n]) for n, t in expected.items())


def test_the_state_of_other_networks_is_refused():
    theirs, ours = build(), build(width=6)
    train(*theirs, range(1))
    with pytest.raises(BadInput, match=r"another network: a.0.weight is float32 \(8, 3, 3, 3\) there and"):
        restore(*ours, capture(*theirs))
    tensors = capture(*theirs)
    del tensors["optimizer"]["a.0.weight/exp_avg"]
    with pytest.raises(BadInput, match=r"only the network has a.0.weight/exp_avg"):
        restore(*build(), tensors)
