"""The loop. It trains every task, on one worker or many, and knows nothing of Ray, W&B or terminals.

A step, for each network in the task's order: freeze the others, forward, backward, update. Then the averaged weights
follow. Everything random in a step is keyed by (seed, step), and everything that decides the next step is in the
checkpoint, so a run that was killed and resumed is the same run, bit for bit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch

from crayon.config import changes
from crayon.config.names import flatten
from crayon.config.settings import Experiment
from crayon.data import ImageSet, Loader, Splits
from crayon.data.types import Batch
from crayon.errors import CrayonError, Diverged, Stopped
from crayon.report.events import Emit, EpochEnd, Message, Step, ignore
from crayon.report.style import png
from crayon.system import devices
from crayon.system.runfolder import RunFolder
from crayon.tasks.base import Task
from crayon.training import checkpoint, data_history, train_state
from crayon.training.collectives import Group
from crayon.training.evaluation import evaluate
from crayon.training.meter import Meter
from crayon.training.optimizer import Average, adam, lr_at
from crayon.training.saver import SAVE_SECONDS, Saver
from crayon.training.selection import Selection
from crayon.training.step import TrainStep
from crayon.training.threads import SHORTEST_RUN, Threads

SAVE, STOP, CHECK = 1, 2, 4
POLL_STEPS = 16
"""Several workers agree on saving or stopping every this many steps: often enough, and too rare to cost anything."""
EMIT_SECONDS = 1.0


class Trainer:
    """Trains `task` on `splits` and keeps its state in `run`.

    - `group`: this worker among its peers.
    - `emit`: receives events (crayon.report.events) on rank 0.
    - `should_stop`: asked after every step; True ends the run with a checkpoint and `Stopped`.
    - `started`: Unix time at which the command started, for honest wall times.
    """

    def __init__(
        self,
        config: Experiment,
        task: Task,
        splits: Splits,
        run: RunFolder,
        *,
        group: Group | None = None,
        emit: Emit = ignore,
        should_stop: Callable[[], bool] = lambda: False,
        started: float | None = None,
    ):
        self.config, self.task, self.splits, self.run = config, task, splits, run
        self.now = config  # with what has changed by the epoch under way
        self.group = group or Group()
        self.emit, self.should_stop, self.device = emit, should_stop, self.group.device
        self.started = time.time() if started is None else started
        task.prepare()
        self.networks = task.networks.to(self.device)
        if config.channels_last:
            self.networks.to(memory_format=torch.channels_last)
        self.average = Average(self.networks, config.optim.ema_images, config.optim.ema_statistics)
        self.optimizers = {name: adam(net, config) for name, net in self.networks.items()}
        self.update = TrainStep(config, task, self.networks, self.optimizers, self.group, self._say)
        self.loader = Loader(
            splits.train,
            global_batch_size=config.global_batch_size,
            rank=self.group.rank,
            world_size=self.group.world_size,
            device=self.device,
            seed=config.seed,
            augment=config.augment,
            residency=config.data.residency,
            channels_last=config.channels_last,
            together=task.together,
            even_classes=task.even_classes,
        )
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch
        self.threads = Threads(
            config.threads,
            adapt=self.device.type == "cpu" and config.threads is None and self.group.world_size == 1,
            first_trial=self.total_steps >= SHORTEST_RUN,
            tell=self._say,
        )
        self.data: list[data_history.Known] = [data_history.seen(config, splits)]
        self.selection = Selection(*task.monitor, latest=config.eval.latest)
        self.meter, self.saver = Meter(self.device), Saver(run, config.checkpoint.keep)
        self.step, self.train_seconds, self.seconds_before = 0, 0.0, 0.0
        self._counted = self._last_save = time.perf_counter()
        self._suspect = self._warned = False
        self._shown = 0, 0.0  # the step and the time of the last progress

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.step // self.steps_per_epoch

    @property
    def images_seen(self) -> int:
        return self.step * self.config.global_batch_size

    def seconds(self) -> float:
        """Wall time since the command started; time spent by earlier attempts of a resumed run is counted in."""
        return self.seconds_before + time.time() - self.started

    def _say(self, text: str) -> None:
        self.emit(Message(text))

    def fit(self) -> None:
        """Train to the last epoch, from the newest checkpoint when there is one. Ends with all checkpoints written."""
        self.restore()
        try:
            while self.step < self.total_steps:
                self.train_epoch()
        except BaseException:
            with contextlib.suppress(CrayonError):
                self.saver.wait()
            raise
        self.saver.wait()

    def train_epoch(self) -> None:
        """Train to the end of the epoch under way, then evaluate, log and save."""
        self.follow_changes()
        self.networks.train()
        first, before = self.step, self.train_seconds
        self._counted = time.perf_counter()
        self._shown = self.step, self._counted
        self.threads.restart()
        for batch in self.loader.epoch(self.epoch, self.step % self.steps_per_epoch):
            self.train_step(batch)
            self.threads.after_step()
            self.after_step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._count_time()
        images = (self.step - first) * self.config.global_batch_size
        self.end_epoch(images / max(self.train_seconds - before, 1e-9))

    def follow_changes(self) -> None:
        """Have the settings that are asked for from this epoch on, the same after a resume."""
        before, self.now = self.now, changes.at(self.config, self.epoch)
        if self.now == before:
            return
        self.update.change(self.now)
        self.loader.set_augment(self.now.augment)
        new = dict(flatten(self.now).items() - flatten(before).items())
        self._say(f"After epoch {self.epoch}: " + ", ".join(f"{k} {new[k]:g}" for k in sorted(new)) + ".")

    def _count_time(self) -> None:
        """Bring `train_seconds` up to date, in the middle of an epoch or at its end."""
        now = time.perf_counter()
        self.train_seconds += now - self._counted
        self._counted = now

    def train_step(self, batch: Batch) -> None:
        """One update of every network."""
        lr = lr_at(self.step, self.total_steps, self.now)
        self.meter.add(self.step, self.update(batch, self.step, lr))
        self.step += 1
        self.average.update(self.images_seen, self.config.global_batch_size)

    def after_step(self) -> None:
        """Between two steps: show progress, and save or stop when it is time."""
        now = time.perf_counter()
        if self.group.rank == 0 and now - self._shown[1] > EMIT_SECONDS:
            (step, then), self._shown = self._shown, (self.step, now)
            batch = self.config.global_batch_size
            pace = (self.step - step) * batch / max(now - then, 1e-9)
            left = (self.total_steps - self.step) * batch / max(pace, 1e-9)
            # The epoch of this step, which is not over while its end hasn't been told.
            epoch = (self.step - 1) // self.steps_per_epoch
            self.emit(Step(epoch, self.step, self.total_steps, self.meter.last(), pace, left))
            self._suspect = not self.meter.finite()
        if self.step % self.steps_per_epoch == 0:
            return  # The end of the epoch saves, and has its own look at the stop flag.
        if self.group.world_size == 1 or self.step % POLL_STEPS == 0:
            self._save_or_stop(0 < 60 * self.config.checkpoint.every_minutes < now - self._last_save)

    def _save_or_stop(self, save: bool, best: bool = False, metrics: dict[str, float] | None = None) -> None:
        """Do what any worker wishes; of saving, rank 0 decides."""
        stop, suspect = bool(self.should_stop()), self._suspect
        wishes = SAVE * (save and self.group.rank == 0) | STOP * stop | CHECK * suspect
        flags = self.group.reduce_flags(wishes)
        if flags and self.step % self.steps_per_epoch > 0:
            self._suspect = False
            self.check_finite()
            self._count_time()
        if flags & (SAVE | STOP):
            last = self.step == self.total_steps
            self.save(best, metrics, wait=last or bool(flags & STOP))
            if flags & STOP and not last:
                steps = f"step {self.step:,} of {self.total_steps:,}"
                raise Stopped(f"Stopped after {steps}, with a checkpoint written.")

    def end_epoch(self, images_per_second: float) -> None:
        """Check the losses, evaluate, log one row, save."""
        self.check_finite()
        config, epoch, last = self.config, self.epoch, self.step == self.total_steps
        row: dict[str, float] = {
            "epoch": epoch,
            "step": self.step,
            "images": self.images_seen,
            "lr": lr_at(self.step - 1, self.total_steps, self.now),
            "images_per_second": images_per_second,
            "threads": self.threads.count,
        }
        row |= {f"train/{name}": value for name, value in self.meter.means(self.group).items()}
        self.meter.reset()
        val, improved = self.splits.val, False
        if val is not None and (last or epoch % config.eval.every_epochs == 0):
            improved = self.evaluate(val, row)
        row |= {"train_seconds": self.train_seconds, "seconds": self.seconds()}
        if self.group.rank == 0:
            self.run.append_row("metrics.jsonl", row)
            self.emit(EpochEnd(epoch, config.epochs, row, self.selection.metric))
        due = epoch % config.checkpoint.every_epochs == 0
        due = due and time.perf_counter() - self._last_save >= SAVE_SECONDS
        self._save_or_stop(last or improved or due, improved, row)

    def evaluate(self, images: ImageSet, row: dict[str, float]) -> bool:
        """Measure `images` under the averaged weights, each once over all workers, for an epoch's `row`. Returns, on
        rank 0, whether these weights are the best so far."""
        begun, improved = time.perf_counter(), False
        self.average.copy_buffers(self.group)
        networks, rows = self.average.measured(), self.task.summarizes_rows
        stats = evaluate(self.task, networks, images, self.config, self.group, rows=rows)
        self.networks.train()
        if self.group.rank == 0:
            row |= {f"val/{k}": v for k, v in self.task.summarize(stats).items()}
            improved = self.selection.improves(row, self.epoch, self.step)
            if not self._warned and (text := self.task.trouble(stats, self.step / self.total_steps)):
                self._warned = True
                self.emit(Message(text, warning=True))
            picture = self.task.progress_image(self.average.measured(), devices.exact(self.device))
            if picture is not None:
                self.run.write_bytes(f"pictures/over_time/epoch-{self.epoch:05d}.png", png(picture))
        row["eval_seconds"] = time.perf_counter() - begun
        return improved

    def save(self, best: bool = False, metrics: dict[str, float] | None = None, wait: bool = True) -> None:
        """Write a checkpoint of what was found to be finite; every rank takes part. Without `wait` rank 0 writes while
        training goes on, and what goes wrong is raised by a later one."""
        sums, meter = self.meter.state(self.group)
        if self.group.rank == 0:
            tensors = train_state.capture(self.networks, self.average, self.optimizers) | {"loop": sums}
            state = {
                "best": self.selection.best,
                "train_seconds": self.train_seconds,
                "seconds": self.seconds(),
                "started": self.started,
                "seconds_before": self.seconds_before,
                "classes": list(self.splits.train.classes),
                "data": self.data,
                "meter": meter,
                "threads": self.threads.state(),
            }
            found = checkpoint.Checkpoint(self.step, tensors, state, flatten(self.config), metrics or {})
            self.saver.save_async(found, best=best)
            if wait:
                self.saver.wait()
        self._last_save = time.perf_counter()

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = train_state.newest(self.run, self.group)
        if found is None:
            return
        state = found.state
        train_state.restore(self.networks, self.average, self.optimizers, found.tensors)
        self.meter.load(found.tensors["loop"], state["meter"], self.group)
        self.threads.load(state["threads"])
        self.step, self.train_seconds = found.step, state["train_seconds"]
        # A worker that was started anew by the same command counts from that command's start again.
        self.seconds_before = state["seconds_before" if state["started"] == self.started else "seconds"]
        now = data_history.seen(self.config, self.splits, self.step)
        self.data, changed = data_history.follow(data_history.of(found), now)
        if self.group.rank == 0:
            self._say(f"Going on from the checkpoint of step {self.step:,}.")
            if changed:
                self.emit(Message(changed, warning=True))
            others = bool(changed) and self.data[-2]["splits"]["train"] != self.data[-1]["splits"]["train"]
            self.selection.restore(state["best"], self.run, self._say, others)

    def check_finite(self) -> None:
        """Raise Diverged, on every worker, if a loss term has been NaN or infinite since the epoch began, or a weight
        is now."""
        bad = self.meter.first_nonfinite(self.group)
        if bad is None:
            finite = torch.stack([torch.isfinite(p).all() for p in self.networks.parameters()]).all()
            if not self.group.reduce_flags(int(not finite)):
                return
            bad = self.step, "a weight"
        with contextlib.suppress(CrayonError):
            self.saver.wait()
        entry = checkpoint.latest(self.run) if self.group.rank == 0 else None
        newest = self.group.broadcast_object(entry and entry.step)
        kept = f"the checkpoint of step {newest:,} is kept" if newest else "no checkpoint was written yet"
        raise Diverged(
            f"{bad[1]} became NaN or infinite at step {bad[0]:,}; training stopped and {kept}. "
            f"Try a lower --lr (now {self.now.lr:g}) or --precision fp32 under another --name."
        )
