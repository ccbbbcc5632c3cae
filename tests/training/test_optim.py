"""Schedules, Adam's settings and averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crayon.config.names import override
from crayon.tasks.jobs import get
from crayon.training.collectives import Group
from crayon.training.optimizer import Average, adam, lr_at


def config(**changes):
    return override(get("gan"), {name.replace("__", "."): value for name, value in changes.items()})


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_rises_then_ends_where_it_should(schedule):
    c = config(lr=1.0, optim__warmup=0.1, optim__schedule=schedule, optim__final=0.2)
    rates = [lr_at(step, 1000, c) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 101)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100] == 1.0 == max(rates)
    assert rates[1000] == pytest.approx(1.0 if schedule == "constant" else 0.2)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert lr_at(0, 10, config(lr=0.5, optim__warmup=0.0)) == 0.5


def test_biases_and_gains_have_their_factor_of_the_learning_rate_and_matrices_alone_decay():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    settings = {"optim__bias_lr_factor": 8.0, "optim__beta2": 0.8, "optim__weight_decay": 0.7}
    optimizer = adam(network, config(lr=0.5, beta1=0.3, **settings))
    assert {g["betas"] for g in optimizer.param_groups} == {(0.3, 0.8)}
    for lr in (0.001, 0.002):
        before = [p.detach().clone() for p in network.parameters()]
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.set_lr(lr)
        optimizer.step()
        for old, new in zip(before, network.parameters(), strict=True):
            # Adam's steps of a constant gradient are the learning rate.
            expected = lr * (1 + 0.7 * old) if new.ndim >= 2 else torch.full_like(old, 8 * lr)
            torch.testing.assert_close(old - new, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_adam_is_torchs_to_the_last_bit(frozen):
    """Also where a parameter gets no gradient in some of the steps."""

    def trained(make):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        network.to(memory_format=torch.channels_last)
        optimizer = make(network)
        for step in range(5):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
            network[0].weight.requires_grad_(not frozen or step % 2 == 1)
            optimizer.zero_grad()
            network(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        return network.state_dict()

    c = config(lr=0.1, beta1=0.3, optim__beta2=0.8, optim__weight_decay=0.7)

    def torchs(network):
        groups = [{k: v for k, v in g.items() if k != "fused"} for g in adam(network, c).param_groups]
        return torch.optim.AdamW(groups, fused=True)

    ours, theirs = trained(lambda network: adam(network, c)), trained(torchs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_adam_takes_gradients_in_another_memory_order_than_their_weights():
    """torch's fused kernel gives them to the wrong weights (torch 2.15)."""
    weights = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    gradient = torch.randn(4, 3, 5, 5)

    def stepped(memory_format):
        layer = nn.Conv2d(3, 4, 5, bias=False).to(memory_format=torch.channels_last)
        layer.weight.data.copy_(weights)
        layer.weight.grad = gradient.clone(memory_format=memory_format)
        adam(layer, config(lr=0.1)).step()
        return layer.weight.detach()

    same = stepped(torch.channels_last)
    assert torch.equal(stepped(torch.contiguous_format), same)
    assert torch.equal(same < weights, gradient > 0)


def test_average_has_its_half_life_in_images_and_takes_few_updates():
    networks = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)})
    networks["a"].weight.data.zero_()
    average = Average(networks, half_life=5120)
    networks["a"].weight.data.fill_(1.0)
    seen = []
    for step in range(10_001, 10_161):
        average.update(images_seen=step * 32, batch=32)
        seen.append(average.networks["a"].weight.item())
    assert len(set(seen) - {0.0}) == 10  # every 16 steps
    assert seen[-1] == pytest.approx(0.5, rel=1e-6)  # 160 steps of 32 images are a half-life


def test_statistics_are_averaged_like_the_weights():
    norm = nn.BatchNorm1d(1, affine=False)
    average = Average(nn.ModuleDict({"a": norm}), half_life=128, statistics=True)
    images = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) + torch.arange(64)
    for step in range(64):  # with means 0, 1, 2, ...
        norm(images[:, step : step + 1])
        average.update(images_seen=(step + 1) * 32, batch=32)
    average.copy_buffers(Group())
    mean, variance = average.networks["a"].running_mean, average.networks["a"].running_var
    # A quarter of a half-life is a step, so the mean lies 1 / (1 - 0.5 ** 0.25) - 1 steps back (the ramp has ended).
    lag = 63 - float(mean)
    assert 2 < lag < 6 and 0.7 < float(variance) < 1.3
    assert float(norm.running_mean) == pytest.approx(float(images[:, 63].mean()), rel=1e-5)
