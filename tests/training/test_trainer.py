"""The loop, on one worker and on two, for the three kinds of task. No Ray."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import python, rows, tiny

from crayon import data, tasks
from crayon.config.settings import Experiment
from crayon.errors import Diverged, RunFailed, Stopped
from crayon.report.events import EpochEnd, Event, Message, Step
from crayon.rng import Randomness
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint
from crayon.training.loop import POLL_STEPS, Trainer

KINDS = ("mnist", "autoencoder", "gan")


def make(config: Experiment, folder: Path, **options) -> Trainer:
    splits = data.load(config.data, labels=config.needs_labels)
    Randomness(config.seed, "weights").seed_torch()
    run = RunFolder(str(folder), "run")
    run.create()
    return Trainer(config, tasks.build(config, splits.info()), splits, run, **options)


def final(folder: Path) -> dict[str, torch.Tensor]:
    """Everything the newest checkpoint holds, by one flat name."""
    loaded = checkpoint.load(checkpoint.latest(RunFolder(str(folder), "run")))
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


def test_progress_names_the_epoch_whose_end_comes_next(monkeypatch, tmp_path):
    monkeypatch.setattr("crayon.training.loop.EMIT_SECONDS", -1.0)  # an event after every step
    events: list[dict] = []
    trainer = make(tiny("mnist"), tmp_path, emit=events.append)
    trainer.fit()
    told = [e for e in events if isinstance(e, (Step, EpochEnd))]
    assert sum(isinstance(e, Step) for e in told) == trainer.total_steps
    finished = 0
    for event in told:
        finished += isinstance(event, EpochEnd)
        assert event.epoch == finished


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_first_loss_and_is_decided_by_the_seed(kind, undisturbed, tmp_path):
    again = make(tiny(kind, seed=1), tmp_path)
    again.fit()
    assert not same(final(tmp_path), final(undisturbed(kind)))
    if kind != "gan":
        losses = [row["train/loss"] for row in rows(undisturbed(kind) / "run")]
        assert losses[-1] < losses[0]


def test_weights_outlive_kill_9(undisturbed, tmp_path):
    """Killed at random moments until it is done, the run ends with the weights of the undisturbed one."""
    code = f"""
from pathlib import Path
from helpers import tiny
from test_trainer import make
config = tiny("mnist", checkpoint__every_minutes=1e-4)
print("ready", flush=True)
make(config, Path({str(tmp_path)!r})).fit()
print("done", flush=True)
"""
    delays = [0.25, 0.6, 0.0, 0.4, 120.0]
    kills = 0
    for delay in delays:
        process = python(code)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        deadline = time.monotonic() + 60
        found = lambda: checkpoint.latest(RunFolder(str(tmp_path), "run"))  # noqa: E731
        before = found().step if found() else 0
        while process.poll() is None and time.monotonic() < deadline:
            newest = found()
            if newest is not None and newest.step > before:
                break
            time.sleep(0.005)
        with_delay = time.monotonic() + delay
        while process.poll() is None and time.monotonic() < with_delay:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 1
    assert same(final(tmp_path), final(undisturbed("mnist")))


GANG = """
import os, torch, torch.distributed as dist
from pathlib import Path
from helpers import tiny
from test_trainer import make
from crayon.training.collectives import Group
from crayon.errors import Stopped
rank, world = int(os.environ["RANK"]), {world}
torch.set_num_threads(1)
{before}
dist.init_process_group("gloo", init_method="file://" + {store!r}, rank=rank, world_size=world)
for kind, folder, stop, changes in {runs!r}:
    config = tiny(kind, **changes)
    trainer = make(config, Path(folder), group=Group(rank, world), should_stop=lambda: 0 < stop <= trainer.step)
    try:
        trainer.fit()
    except Stopped:
        pass
    print(trainer.step, flush=True)
dist.barrier()
os._exit(0)  # Threads of gloo's may still run while Python tears itself down, and abort it.
"""


def fit_on(world: int, store: Path, *runs: tuple[str, Path, int, dict], before: str = "") -> list[int]:
    """Train each of `runs` (kind, folder, step to stop at or 0, settings) in turn on `world` real processes, which
    execute `before` first.

    Returns the steps they stopped at.
    """
    plain = [(kind, str(folder), stop, changes) for kind, folder, stop, changes in runs]
    code = GANG.format(world=world, store=str(store / f"store-{time.time_ns()}"), runs=plain, before=before)
    started = [python(code, RANK=str(rank), GLOO_SOCKET_IFNAME="lo") for rank in range(world)]
    ends = [process.communicate(timeout=400) for process in started]
    assert all(p.returncode == 0 for p in started), "\n".join(err for _, err in ends)
    steps = [out.split() for out, _ in ends]
    assert all(s == steps[0] for s in steps), "the workers disagree about where they are"
    return [int(s) for s in steps[0]]


def test_two_workers_resume_exactly(tmp_path):
    """For the three kinds of task, with one pair of processes for all, since starting them takes longest."""
    runs = []
    for kind in KINDS:
        whole, broken = tmp_path / kind / "whole", tmp_path / kind / "broken"
        # Stopped at the end of the first epoch, then in the middle of the second, where the workers agree on it.
        runs += [(kind, whole, 0, {}), (kind, broken, 3, {}), (kind, broken, 10, {}), (kind, broken, 0, {})]
    steps = fit_on(2, tmp_path, *runs)
    for i, kind in enumerate(KINDS):
        whole, broken = tmp_path / kind / "whole", tmp_path / kind / "broken"
        assert steps[4 * i : 4 * i + 4] == [27, 9, POLL_STEPS, 27]
        assert same(final(broken), final(whole)), kind
        assert without_clocks(rows(broken / "run")) == without_clocks(rows(whole / "run"))


@pytest.mark.parametrize(("gamma", "world"), [(0.0, 2), (1.0, 3)])
def test_several_workers_train_the_gan_as_one_does(gamma, world, tmp_path):
    """The networks of this loss have no BatchNorm, so a step over parts of a batch, of 6, 5 and 5 images, is the step
    over the whole one, up to the order of float32 sums, which Adam magnifies where gradients are near zero."""
    changes = {"task__loss": "relativistic", "task__gamma": gamma, "epochs": 1, "optim__ema_images": 0.0}
    one, many = tmp_path / "one", tmp_path / "many"
    alone = make(tiny("gan", **changes), one)
    before = {f"weights/{k}": v.clone() for k, v in alone.networks.state_dict().items()}
    alone.fit()
    fit_on(world, tmp_path, ("gan", many, 0, changes))
    a, b = final(one), final(many)
    moved = sum(float((a[k] - v).square().sum()) for k, v in before.items()) ** 0.5
    apart = sum(float((a[k] - b[k]).square().sum()) for k in before) ** 0.5
    assert moved > 0
    assert apart < 0.02 * moved


def test_nan_names_step_and_term_and_keeps_the_last_good_checkpoint(tmp_path):
    trainer = make(tiny("mnist"), tmp_path)
    inner = trainer.task.loss

    def poisoned(phase, nets, batch, rng):
        loss, terms = inner(phase, nets, batch, rng)
        return (loss * float("nan") if trainer.step == 14 else loss), terms

    trainer.task.loss = poisoned
    with pytest.raises(Diverged, match=r"loss became NaN or infinite at step 14;.*checkpoint of step 9"):
        trainer.fit()
    kept = checkpoint.latest(trainer.run)
    assert kept.step == 9
    assert all(torch.isfinite(t).all() for t in checkpoint.load(kept).tensors["weights"].values())


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
    with pytest.raises(
        Diverged, match=rf"a weight became NaN or infinite .*step {steps}; .*no checkpoint was written"
    ):
        trainer.fit()
    assert checkpoint.latest(trainer.run) is None
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_nan_ends_an_epoch_that_goes_on(tmp_path, monkeypatch):
    """Not at the epoch's end, which may be hours away, but at the next look at the pace."""
    monkeypatch.setattr("crayon.training.loop.EMIT_SECONDS", -1.0)
    trainer = make(tiny("mnist", data__size=1000), tmp_path)
    inner = trainer.task.loss

    def poisoned(phase, nets, batch, rng):
        loss, terms = inner(phase, nets, batch, rng)
        return (loss * float("nan") if trainer.step == 3 else loss), terms

    trainer.task.loss = poisoned
    with pytest.raises(Diverged, match=r"loss became NaN or infinite .*step 3;"):
        trainer.fit()
    assert trainer.step == 4 < trainer.steps_per_epoch


NAN_ON_THE_SECOND = """
import crayon.training.loop
from crayon.tasks.classification.task import ClassificationTask
from crayon.errors import Diverged as Stopped
crayon.training.loop.EMIT_SECONDS = -1.0
plain = ClassificationTask.loss
def poisoned(self, phase, nets, batch, rng):
    loss, terms = plain(self, phase, nets, batch, rng)
    return (loss * float("nan") if rank == 1 and trainer.step == 3 else loss), terms
ClassificationTask.loss = poisoned
"""


def test_workers_agree_on_ending_an_epoch_in_which_one_has_nan(tmp_path):
    run = ("mnist", tmp_path, 0, {"data__size": 1500})
    assert fit_on(2, tmp_path, run, before=NAN_ON_THE_SECOND) == [POLL_STEPS]


def test_a_stop_in_mid_epoch_counts_what_was_trained_of_it(tmp_path):
    """Steps that take their time, a stop in the middle of the second epoch, and the rest."""
    spent: list[float] = []

    def slow(trainer):
        inner = trainer.update

        def update(*arguments):
            begun = time.perf_counter()
            time.sleep(0.01)
            terms = inner(*arguments)
            spent.append(time.perf_counter() - begun)
            return terms

        trainer.update = update
        return trainer

    first: Trainer = slow(make(tiny("mnist"), tmp_path, should_stop=lambda: first.step >= 13))
    with pytest.raises(Stopped, match="after step 13 of 27, with a checkpoint written"):
        first.fit()
    kept = checkpoint.load(checkpoint.latest(first.run), groups=[])
    assert kept.step == 13 and kept.state["train_seconds"] >= sum(spent)
    before = sum(spent)
    second = slow(make(tiny("mnist"), tmp_path))
    second.fit()
    assert second.train_seconds >= sum(spent) > before
    second_epoch = rows(tmp_path / "run")[1]
    # Its pace is of the five steps that this command trained of it.
    part = second_epoch["train_seconds"] - kept.state["train_seconds"]
    assert second_epoch["images_per_second"] == pytest.approx(5 * 32 / part)


def test_evaluation_sees_each_image_once_and_keeps_the_split_order(tmp_path):
    trainer = make(tiny("mnist", eval__batch_size=7), tmp_path)
    trainer.refresh_average()
    stats = trainer.evaluate_averaged(trainer.splits.val)
    assert len(next(iter(stats.rows.values()))) == len(trainer.splits.val)
    bigger = make(tiny("mnist", eval__batch_size=500), tmp_path / "other")
    other = bigger.evaluate(bigger.splits.val)
    assert trainer.task.summarize(stats)["accuracy"] == bigger.task.summarize(other)["accuracy"]


@pytest.mark.parametrize("lost", ["metric", "checkpoint"])
def test_a_best_that_cannot_be_compared_with_or_used_is_chosen_anew(lost, tmp_path):
    """On another machine the metric may have another name; and the user may have deleted a damaged checkpoint."""
    config = tiny("mnist", epochs=2)
    make(config, tmp_path).fit()
    run = RunFolder(str(tmp_path), "run")
    newest = checkpoint.load(checkpoint.latest(run))
    best = {"metric": "val/accuracy", "value": 2.0, "epoch": 1, "step": 9}
    changes = {"metric": {"metric": "val/fd_other", "step": 18}, "checkpoint": {}}
    newest.state["best"] = best | changes[lost]
    checkpoint.save(run, newest, best=lost == "metric", keep=1)
    told: list[Event] = []
    (tmp_path / "run" / "checkpoints" / "step-000000009.safetensors").unlink(missing_ok=True)
    trainer = make(tiny("mnist", epochs=3), tmp_path, emit=told.append)
    trainer.fit()
    assert trainer.selection.best == {
        "metric": "val/accuracy",
        "value": rows(tmp_path / "run")[2]["val/accuracy"],
        "epoch": 3,
        "step": 27,
    }
    words = {"metric": "val/fd_other, by which it was chosen, can't be compared with val/accuracy"}
    said = [e.text for e in told if isinstance(e, Message) and "doesn't count" in e.text]
    assert len(said) == 1 and words.get(lost, "it isn't there any more") in said[0]


def test_full_storage_stops_with_a_sentence(tmp_path, monkeypatch):
    trainer = make(tiny("mnist", epochs=1), tmp_path)
    trainer.run.append_row("metrics.jsonl", {"epoch": 0, "step": 0})
    os.truncate(tmp_path / "run" / "metrics.jsonl", 0)
    os.remove(tmp_path / "run" / "metrics.jsonl")
    os.symlink("/dev/full", tmp_path / "run" / "metrics.jsonl")
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


def test_events_tell_how_far_it_is(tmp_path):
    events: list[Event] = []
    make(tiny("mnist"), tmp_path, emit=events.append).fit()
    assert [e.epoch for e in events if isinstance(e, EpochEnd)] == [1, 2, 3]
    assert pickle.loads(pickle.dumps(events)) == events


@pytest.mark.faults  # for half a minute of a C++ compiler, and of Python's headers
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_compiled_networks_learn_the_same(undisturbed, tmp_path):
    """The inductor rounds otherwise, and resuming goes on from what plain networks can load."""
    trainer = make(tiny("mnist", compile=True), tmp_path)
    trainer.fit()
    found, plain = rows(tmp_path / "run"), rows(undisturbed("mnist") / "run")
    assert [r["train/loss"] for r in found] == pytest.approx([r["train/loss"] for r in plain], rel=5e-2)
    assert final(tmp_path).keys() == final(undisturbed("mnist")).keys()
