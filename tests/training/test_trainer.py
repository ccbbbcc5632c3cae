"""The loop, on one worker and on two, for the three kinds of task. No Ray."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import pytest
import torch
from gang import gang
from helpers import python, rows, tiny

from crayon import data, tasks
from crayon.config.settings import Experiment
from crayon.errors import Diverged, RunFailed, Stopped
from crayon.fast.cuda_graph import CudaGraphStep
from crayon.rng import Randomness
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint, train_state
from crayon.training.loop import POLL_STEPS, Trainer

KINDS = ("mnist", "autoencoder", "gan")


def make(config: Experiment, folder: Path, **options) -> Trainer:
    splits = data.load(config.data, labels=config.needs_labels)
    Randomness(config.seed, "weights").seed_torch()
    run = RunFolder(str(folder), "run")
    run.create()
    return Trainer(config, tasks.build(config, splits.info()), splits, run, **options)


def final(folder: Path, name: str = "run") -> dict[str, torch.Tensor]:
    """Everything the newest checkpoint holds, by one flat name."""
    loaded = checkpoint.load(checkpoint.latest(RunFolder(str(folder), name)))
    return {f"{g}/{name}": t for g, tensors in loaded.tensors.items() for name, t in tensors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_clocks(found: list[dict]) -> list[dict]:
    clocks = ("seconds", "train_seconds", "eval_seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in clocks} for row in found]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Each kind's uninterrupted run, trained once."""
    done: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in done:
            done[kind] = tmp_path_factory.mktemp(kind)
            make(tiny(kind), done[kind]).fit()
        return done[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [9, 13], ids=["epoch end", "mid-epoch"])
def test_resume_is_exact(kind, steps, undisturbed, tmp_path):
    config = tiny(kind)
    first: Trainer = make(config, tmp_path, should_stop=lambda: first.step >= steps)
    with pytest.raises(Stopped):
        first.fit()
    assert first.step >= steps
    second = make(config, tmp_path)
    torch.manual_seed(12345)  # Hidden global state must not matter.
    second.fit()
    assert same(final(tmp_path), final(undisturbed(kind)))
    assert without_clocks(rows(tmp_path / "run")) == without_clocks(rows(undisturbed(kind) / "run"))


def test_resume_is_exact_where_classes_are_sampled_and_images_mixed(tmp_path):
    changes = {"flip": True, "resized_crop": 0.5, "brightness": 0.4, "saturation": 0.4, "trivial": True}
    task = {"balance": "sampling", "mixup": 0.2, "cutmix": 1.0, "monitor": "balanced_accuracy"}
    named = {f"augment__{k}": v for k, v in changes.items()} | {f"task__{k}": v for k, v in task.items()}
    config = tiny("cifar10", epochs=2, optim__ema_statistics=True, eval__latest=True, **named)
    make(config, tmp_path / "calm").fit()
    first: Trainer = make(config, tmp_path / "stopped", should_stop=lambda: first.step >= 13)
    with pytest.raises(Stopped):
        first.fit()
    make(config, tmp_path / "stopped").fit()
    assert same(final(tmp_path / "stopped"), final(tmp_path / "calm"))
    calm, stopped = (without_clocks(rows(tmp_path / name / "run")) for name in ("calm", "stopped"))
    assert calm == stopped and "val/balanced_accuracy" in calm[-1] and "val/n/star" in calm[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_first_loss_and_is_decided_by_the_seed(kind, undisturbed, tmp_path):
    again = make(tiny(kind, seed=1), tmp_path)
    again.fit()
    assert not same(final(tmp_path), final(undisturbed(kind)))
    if kind != "gan":
        losses = [row["train/loss"] for row in rows(undisturbed(kind) / "run")]
        assert losses[-1] < losses[0]


@contextlib.contextmanager
def recorded(trainer: Trainer, whole: bool | None = None):
    """Its steps go the way of those that are recorded on a GPU, whole or in parts; none of them is for None."""
    if whole is None:
        yield
        return
    pieces: list = []

    def record(work):
        """As on a GPU, `work` is seen, and nothing changes."""
        state = train_state.capture(trainer.networks, trainer.average, trainer.optimizers)
        before = {name: {key: t.clone() for key, t in tensors.items()} for name, tensors in state.items()}
        with torch.random.fork_rng(devices=[]):
            work()
        train_state.restore(trainer.networks, trainer.average, trainer.optimizers, before)
        pieces.append(work)
        return work

    trainer.update.run = CudaGraphStep(trainer.update.parts, whole=whole, record=record)
    yield
    assert len(pieces) == (1 if whole else 1 + len(trainer.optimizers))


def test_steps_recorded_whole_are_the_steps(undisturbed, tmp_path):
    trainer = make(tiny("gan"), tmp_path)
    with recorded(trainer, True):
        trainer.fit()
    assert same(final(tmp_path), final(undisturbed("gan")))
    assert without_clocks(rows(tmp_path / "run")) == without_clocks(rows(undisturbed("gan") / "run"))


FIT = """
from test_trainer import make, recorded
from crayon.errors import Stopped
from crayon.training import scaling
for kind, folder, stop, changes, *whole in {runs!r}:
    options = dict(group=group, should_stop=lambda: 0 < stop <= trainer.step)
    trainer = make(tiny(kind, **changes), Path(folder), **options)
    if whole == [False]:  # steps that are tried first leave nothing behind
        assert "times one worker's speed, about " in scaling.expected(trainer)
    with recorded(trainer, *whole):
        try:
            trainer.fit()
        except Stopped:
            pass
    print(trainer.step)
"""


def fit_on(world: int, store: Path, *runs: tuple, before: str = "") -> list[int]:
    """Train each of `runs` (kind, folder, step to stop at or 0, settings, and of recorded steps whether they are whole)
    in turn on `world` real processes, which execute `before` first.

    Returns the steps they stopped at.
    """
    plain = [(kind, str(folder), *more) for kind, folder, *more in runs]
    steps = [out.split() for out in gang(FIT.format(runs=plain), world, store, before=before)]
    assert all(s == steps[0] for s in steps), "the workers disagree about where they are"
    return [int(s) for s in steps[0]]


def test_two_workers_resume_exactly_and_steps_in_recorded_parts_are_the_steps(tmp_path):
    """For the three kinds of task, with one pair of processes for all, since starting them takes longest."""
    runs = []
    for kind in KINDS:
        whole, broken = tmp_path / kind / "whole", tmp_path / kind / "broken"
        # Stopped at the end of the first epoch, then in the middle of the second, where the workers agree on it.
        runs += [(kind, whole, 0, {}), (kind, broken, 3, {}), (kind, broken, 10, {}), (kind, broken, 0, {})]
    for kind in ("mnist", "gan"):
        runs += [(kind, tmp_path / kind / str(all_in_one), 0, {}, all_in_one) for all_in_one in (True, False)]
    steps = fit_on(2, tmp_path, *runs)
    for kind, folder, *_ in runs[12:]:
        assert same(final(folder), final(tmp_path / kind / "whole")), folder
    for i, kind in enumerate(KINDS):
        whole, broken = tmp_path / kind / "whole", tmp_path / kind / "broken"
        assert steps[4 * i : 4 * i + 4] == [27, 9, POLL_STEPS, 27]
        assert same(final(broken), final(whole)), kind
        assert without_clocks(rows(broken / "run")) == without_clocks(rows(whole / "run"))


def test_several_workers_train_what_one_does(tmp_path):
    """A step over parts of a batch, of 6, 5 and 5 images, is the step over the whole one, BatchNorm's statistics
    included, up to the order of sums in float32, which Adam magnifies where gradients are near zero (those of biases
    before BatchNorm are nothing else)."""
    plain = {"epochs": 1, "optim__ema_images": 0.0}
    runs = [
        ("mnist", {"model__dropout": 0.0}),
        ("autoencoder", {}),
        ("gan", {"task__loss": "classic"}),
        ("gan", {"task__loss": "relativistic", "task__gamma": 0.0}),
        ("gan", {"task__loss": "relativistic", "task__gamma": 1.0}),
        ("gan", {"task__loss": "classic", "task__gamma": 1.0, "model__discriminator_norm": "batch"}),
    ]
    runs = [(kind, plain | changes) for kind, changes in runs]
    fit_on(
        3, tmp_path, *((kind, tmp_path / f"many-{i}", 0, changes) for i, (kind, changes) in enumerate(runs))
    )
    for i, (kind, changes) in enumerate(runs):
        alone = make(tiny(kind, **changes), tmp_path / f"one-{i}")
        found = alone.networks.named_parameters()
        before = {f"weights/{k}": v.detach().clone() for k, v in found if v.dim() > 1}
        alone.fit()
        a, b = final(tmp_path / f"one-{i}"), final(tmp_path / f"many-{i}")
        moved = sum(float((a[k] - v).square().sum()) for k, v in before.items()) ** 0.5
        apart = sum(float((a[k] - b[k]).square().sum()) for k in before) ** 0.5
        assert moved > 0
        assert apart < 0.05 * moved, (kind, changes)


def spoil(trainer: Trainer, at: int) -> None:
    """The loss of step `at` is NaN."""
    inner = trainer.task.loss

    def poisoned(phase, nets, batch, rng):
        loss, terms = inner(phase, nets, batch, rng)
        return (loss * float("nan") if trainer.step == at else loss), terms

    trainer.task.loss = poisoned


def test_nan_names_step_and_term_and_keeps_the_last_good_checkpoint(tmp_path):
    trainer = make(tiny("mnist"), tmp_path)
    spoil(trainer, 14)
    with pytest.raises(Diverged, match=r"loss became NaN or infinite at step 14;.*checkpoint of step 9"):
        trainer.fit()
    kept = checkpoint.latest(trainer.run)
    assert kept.step == 9
    assert all(torch.isfinite(t).all() for t in checkpoint.load(kept).tensors["weights"].values())


def test_nan_ends_an_epoch_that_goes_on(tmp_path, monkeypatch):
    """Not at the epoch's end, which may be hours away, but at the next look at the pace."""
    monkeypatch.setattr("crayon.training.loop.EMIT_SECONDS", -1.0)
    trainer = make(tiny("mnist", data__size=1000), tmp_path)
    spoil(trainer, 3)
    with pytest.raises(Diverged, match=r"loss became NaN or infinite .*step 3;"):
        trainer.fit()
    assert trainer.step == 4 < trainer.steps_per_epoch


@pytest.mark.parametrize("steps", [5, 9], ids=["mid-epoch", "epoch end"])
def test_a_stop_with_broken_weights_says_so_and_keeps_the_checkpoint_before(steps, tmp_path):
    """No loss has shown it yet: the last update broke them."""
    trainer: Trainer = make(tiny("mnist"), tmp_path, should_stop=lambda: trainer.step >= steps)
    inner = trainer.update

    def breaks(batch, number, lr):
        terms = inner(batch, number, lr)
        if number == steps - 1:
            with torch.no_grad():
                next(iter(trainer.networks.parameters())).fill_(float("nan"))
        return terms

    trainer.update = breaks
    words = rf"a weight became NaN or infinite .*step {steps}; .*no checkpoint was written"
    with pytest.raises(Diverged, match=words):
        trainer.fit()
    assert checkpoint.latest(trainer.run) is None
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


NAN_ON_THE_SECOND = """
import crayon.training.loop
from crayon.tasks.classification.task import ClassificationTask
crayon.training.loop.EMIT_SECONDS = -1.0
plain = ClassificationTask.loss
def poisoned(self, phase, nets, batch, rng):
    loss, terms = plain(self, phase, nets, batch, rng)
    return (loss * float("nan") if rank == 1 and trainer.step == 3 else loss), terms
ClassificationTask.loss = poisoned
import crayon.errors; crayon.errors.Stopped = crayon.errors.Diverged  # what `FIT` waits for
"""


def test_workers_agree_on_ending_an_epoch_in_which_one_has_nan(tmp_path):
    run = ("mnist", tmp_path, 0, {"data__size": 1500})
    assert fit_on(2, tmp_path, run, before=NAN_ON_THE_SECOND) == [POLL_STEPS]


def test_a_stop_in_mid_epoch_counts_what_was_trained_of_it(tmp_path):
    """Steps that take their time, a stop in the middle of the second epoch, and the rest."""
    spent: list[float] = []

    def slow(**options):
        trainer = make(tiny("mnist"), tmp_path, **options)
        inner = trainer.update

        def update(*arguments):
            begun = time.perf_counter()
            time.sleep(0.01)
            terms = inner(*arguments)
            spent.append(time.perf_counter() - begun)
            return terms

        trainer.update = update
        return trainer

    first: Trainer = slow(should_stop=lambda: first.step >= 13)
    with pytest.raises(Stopped, match="after step 13 of 27, with a checkpoint written"):
        first.fit()
    kept = checkpoint.load(checkpoint.latest(first.run), groups=[])
    assert kept.step == 13 and kept.state["train_seconds"] >= sum(spent)
    before = sum(spent)
    second = slow()
    second.fit()
    assert second.train_seconds >= sum(spent) > before
    row = rows(tmp_path / "run")[1]
    # Its pace is of the five steps that this command trained of it.
    part = row["train_seconds"] - kept.state["train_seconds"]
    assert row["images_per_second"] == pytest.approx(5 * 32 / part)


def test_full_storage_stops_with_a_sentence(tmp_path, monkeypatch):
    trainer = make(tiny("mnist", epochs=1), tmp_path)
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunFailed, match="disk is full"):
        trainer.train_epoch()


def test_training_does_not_load_torchs_compiler(tmp_path):
    """It takes longer to import than the rest of torch, and would delay the first step of every run."""
    code = f"""
import sys
from pathlib import Path
from helpers import tiny
from test_trainer import make
make(tiny("mnist", epochs=1), Path({str(tmp_path)!r})).fit()
print({{"torch._dynamo", "sympy", "pandas", "matplotlib"}} & set(sys.modules))
"""
    out, err = python(code).communicate(timeout=60)
    assert out == "set()\n", out + err


@pytest.mark.faults  # for half a minute of a C++ compiler, and of Python's headers
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_compiled_networks_learn_the_same(undisturbed, tmp_path):
    """The inductor rounds otherwise, and resuming goes on from what plain networks can load."""
    trainer = make(tiny("mnist", compile=True), tmp_path)
    trainer.fit()
    found, plain = rows(tmp_path / "run"), rows(undisturbed("mnist") / "run")
    assert [r["train/loss"] for r in found] == pytest.approx([r["train/loss"] for r in plain], rel=5e-2)
    assert final(tmp_path).keys() == final(undisturbed("mnist")).keys()
