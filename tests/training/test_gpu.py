"""What only a GPU can show. Skipped where there is none."""

from __future__ import annotations

import gc
import time

import pytest
import torch
import torch.distributed as dist
from helpers import rows, tiny
from test_trainer import KINDS, final, make, same, without_clocks

from crayon.data.images import ImageSet
from crayon.errors import Stopped
from crayon.system.host import arithmetic, computes_bf16
from crayon.training.collectives import Group

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def gpu() -> Group:
    return Group(device="cuda:0")


def test_bf16_is_computed_from_compute_capability_8_on():
    assert computes_bf16(torch.device("cuda")) == (torch.cuda.get_device_capability()[0] >= 8)


def test_a_metric_says_that_its_factors_were_rounded():
    capable = torch.cuda.get_device_capability()[0] >= 8
    assert arithmetic("fp32", torch.device("cuda")) == ("tf32" if capable else "fp32")
    assert arithmetic("bf16", torch.device("cuda")) == "bf16"


PENALISED = {"task__gamma": 0.5, "task__loss": "relativistic", "task__diffaugment": "on", "optim__clip": 1.0}
MIXED = {
    "task__mixup": 0.2, "task__cutmix": 1.0, "task__balance": "weights", "augment__trivial": True,
    "augment__resized_crop": 0.5, "augment__contrast": 0.4,
}  # fmt: skip


@pytest.mark.parametrize("settings", [{"precision": "fp32"}, {"precision": "bf16"}, PENALISED, MIXED])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_is_the_step(kind, settings, tmp_path):
    if kind != {id(PENALISED): "gan", id(MIXED): "mnist"}.get(id(settings), kind):
        pytest.skip("it has no such settings")
    told: list = []
    for name, recorded in (("recorded", True), ("one by one", False)):
        config = tiny(kind, device="cuda", cuda_graph=recorded, **settings)
        trainer = make(config, tmp_path / name, group=gpu(), emit=told.append)
        trainer.fit()
        assert bool(getattr(trainer.update.run, "recorded", ())) is recorded
    assert not [event for event in told if "recorded" in getattr(event, "text", "")]
    assert same(final(tmp_path / "recorded"), final(tmp_path / "one by one"))
    a, b = (without_clocks(rows(tmp_path / name / "run")) for name in ("recorded", "one by one"))
    assert a == b


@pytest.mark.parametrize(("backend", "pieces"), [("nccl", 1), ("gloo", 2)])
@pytest.mark.parametrize("kind", ["mnist", "gan"])
def test_one_worker_does_what_several_do_and_it_is_recorded(kind, backend, pieces, tmp_path):
    """NCCL's all-reduce inside the graph, gloo's between those of the parts. The mean of one is that one."""
    config, told = tiny(kind, device="cuda", sync_batchnorm="off"), []
    make(config, tmp_path / "alone", group=gpu()).fit()
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    group = gpu()
    group.alone = False
    trainer = make(config, tmp_path / "of several", group=group, emit=told.append)
    trainer.fit()
    work = len(trainer.optimizers) + 1
    assert len(trainer.update.run.recorded) == (1 if pieces == 1 else 2 * work - 1), told
    del trainer
    gc.collect()  # a communicator can't be destroyed before the graphs that use it
    dist.destroy_process_group()
    assert same(final(tmp_path / "of several"), final(tmp_path / "alone"))


def test_a_slow_reader_pins_memory_while_a_step_is_recorded(monkeypatch, tmp_path):
    config, read = tiny("mnist", device="cuda", data__residency="stream"), ImageSet.read
    make(config, tmp_path / "quick", group=gpu()).fit()

    def slow(self, indices):
        time.sleep(0.02)
        return read(self, indices)

    monkeypatch.setattr(ImageSet, "read", slow)
    trainer = make(config, tmp_path / "slow", group=gpu())
    trainer.fit()
    assert trainer.update.run.recorded
    assert same(final(tmp_path / "slow"), final(tmp_path / "quick"))


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(kind, tmp_path):
    config = tiny(kind, device="cuda")
    make(config, tmp_path / "whole", group=gpu()).fit()
    first = make(config, tmp_path / "parts", group=gpu(), should_stop=lambda: first.step >= 13)
    with pytest.raises(Stopped):
        first.fit()
    make(config, tmp_path / "parts", group=gpu()).fit()
    assert same(final(tmp_path / "parts"), final(tmp_path / "whole"))


def test_dropout_differs_from_step_to_step(tmp_path):
    """A recorded step that drew the same mask again and again would learn all the same."""
    trainer = make(tiny("mnist", device="cuda", model__dropout=0.5, lr=1e-9), tmp_path, group=gpu())
    losses = []
    batch = next(trainer.loader.epoch(0))
    for number in range(12):
        losses.append(float(trainer.update(batch, number, 1e-9)["loss"]))
    assert trainer.update.run.recorded
    assert len(set(losses)) > 8
    assert float(trainer.update(batch, 11, 1e-9)["loss"]) == pytest.approx(losses[11], abs=1e-4)


def test_the_cpu_sees_the_same_losses(tmp_path):
    for kind in KINDS:
        found = {}
        for device in ("cpu", "cuda:0"):
            trainer = make(tiny(kind), tmp_path / kind / device, group=Group(device=device))
            trainer.fit()
            found[device] = rows(tmp_path / kind / device / "run")[0]
        for name, value in found["cpu"].items():
            if name.startswith("train/") and "loss" in name:
                assert found["cuda:0"][name] == pytest.approx(value, rel=0.05), (kind, name)
