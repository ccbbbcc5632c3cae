"""What the loop does in each step and says of each epoch, recomputed from what it was seen doing."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
import torch
from helpers import rows, tiny
from test_trainer import make

from crayon.report.events import EpochEnd, Event, Step
from crayon.training.optimizer import lr_at


def test_a_row_tells_of_its_own_epoch(tmp_path):
    trainer = make(tiny("mnist"), tmp_path)
    inner, seen = trainer.task.loss, []

    def watched(phase, nets, batch, rng):
        loss, terms = inner(phase, nets, batch, rng)
        seen.append((loss.detach().double(), terms["accuracy"].double()))
        return loss, terms

    trainer.task.loss = watched
    trainer.fit()
    steps, batch = trainer.steps_per_epoch, trainer.config.global_batch_size
    found = rows(tmp_path / "run")
    assert len(found) == trainer.config.epochs == 3 and len(seen) == 3 * steps
    for number, row in enumerate(found, 1):
        step = number * steps
        assert (row["epoch"], row["step"], row["images"]) == (number, step, step * batch)
        assert row["lr"] == lr_at(step - 1, 3 * steps, trainer.config)
        losses, accuracies = zip(*seen[step - steps : step], strict=True)
        assert row["train/loss"] == pytest.approx(float(sum(losses)) / steps, rel=1e-12)
        assert row["train/accuracy"] == pytest.approx(float(sum(accuracies)) / steps, rel=1e-12)
        assert 0 <= row["eval_seconds"] < row["seconds"]
    whole = [row["train_seconds"] for row in found]
    for row, spent in zip(found, torch.tensor([0.0, *whole]).double().diff().tolist(), strict=True):
        assert row["images_per_second"] * spent == pytest.approx(steps * batch, rel=1e-3)
        assert row["seconds"] > row["train_seconds"]


@pytest.mark.parametrize("kind", ["mnist", "gan"])
def test_the_average_follows_the_weights_of_every_step(kind, tmp_path):
    """Its half-life is 200 images, and a twentieth of those seen until then."""
    batch = 32
    config = tiny(kind, optim__ema_images=200.0, global_batch_size=batch, epochs=2)
    weights = lambda: [p.detach().double().clone() for p in trainer.networks.parameters()]  # noqa: E731
    history: list[list[torch.Tensor]] = []
    trainer = make(config, tmp_path, should_stop=lambda: bool(history.append(weights())))
    mean = weights()
    trainer.fit()
    assert len(history) == trainer.total_steps
    for step, now in enumerate(history, 1):
        half_life = min(200.0, 0.05 * step * batch)
        share = 1 - 0.5 ** (batch / max(1.0, half_life))
        mean = [old + share * (new - old) for old, new in zip(mean, now, strict=True)]
    for expected, found in zip(mean, trainer.average.networks.parameters(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(m, last, rtol=1e-3) for m, last in zip(mean, history[-1], strict=True))
    buffers = zip(trainer.networks.buffers(), trainer.average.networks.buffers(), strict=True)
    assert all(torch.equal(live, averaged) for live, averaged in buffers)  # BatchNorm's are the newest


def test_each_network_is_updated_in_its_phase_alone_and_sees_no_gradient_of_others(tmp_path):
    trainer = make(tiny("gan", epochs=1), tmp_path)
    inner, phases = trainer.task.loss, []

    def watched(phase, nets, batch, rng):
        state = {name: [p.detach().clone() for p in net.parameters()] for name, net in nets.items()}
        wants = {name: {p.requires_grad for p in net.parameters()} for name, net in nets.items()}
        phases.append((phase, state, wants))
        assert all(p.grad is None for p in nets[phase].parameters())
        return inner(phase, nets, batch, rng)

    trainer.task.loss = watched
    trainer.fit()
    assert [phase for phase, *_ in phases] == ["discriminator", "generator"] * trainer.total_steps
    for (phase, before, wants), (_, after, _) in pairwise(phases):
        moved = {
            name: any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
            for name in before
        }
        assert moved == {name: name == phase for name in before}
        assert wants == {name: {name == phase} for name in before}


def test_gradients_are_clipped_to_the_length_asked_for(tmp_path):
    def measure() -> None:
        gradients = [p.grad.flatten() for p in trainer.networks.parameters() if p.requires_grad]
        lengths.append(float(torch.cat(gradients).norm()))

    for clip in (0.0, 0.5):
        lengths: list[float] = []
        folder = tmp_path / str(clip)
        trainer = make(tiny("mnist", epochs=1, optim__clip=clip), folder, should_stop=measure)
        trainer.fit()
        (row,) = rows(folder / "run")
        assert len(lengths) == trainer.total_steps
        if clip:
            assert lengths == pytest.approx([clip] * len(lengths), rel=1e-3)
            assert row["train/grad_norm"] > clip  # as it was before
        else:
            assert (
                min(lengths) > 0.5 and "train/grad_norm" not in row
            )  # else nothing would have to be clipped


def test_progress_tells_how_far_it_is_and_the_mean_loss_of_the_epoch_so_far(monkeypatch, tmp_path):
    monkeypatch.setattr("crayon.training.loop.EMIT_SECONDS", -1.0)  # an event after every step
    events: list[Event] = []
    trainer = make(tiny("autoencoder", epochs=2), tmp_path, emit=events.append)
    inner, losses = trainer.task.loss, []

    def watched(*arguments):
        loss, terms = inner(*arguments)
        losses.append(float(loss.detach()))
        return loss, terms

    trainer.task.loss = watched
    trainer.fit()
    assert pickle.loads(pickle.dumps(events)) == events
    finished = 0
    for event in (event for event in events if isinstance(event, (Step, EpochEnd))):
        finished += isinstance(event, EpochEnd)
        assert event.epoch == finished  # the one whose end comes next
    steps = [event for event in events if isinstance(event, Step)]
    assert finished == 2 and len(steps) == len(losses) == trainer.total_steps
    for number, event in enumerate(steps):
        since = losses[number - number % trainer.steps_per_epoch : number + 1]
        assert event.loss == pytest.approx(sum(since) / len(since), rel=1e-9)
        assert (event.step, event.total_steps) == (number + 1, trainer.total_steps)
        left = (trainer.total_steps - event.step) * trainer.config.global_batch_size
        assert event.seconds_left * event.images_per_second == pytest.approx(left)
