"""The loop. It trains every task, on one worker or many, and knows nothing of Ray, W&B or terminals.

A step, for each network in the task's order: freeze the others, forward, backward, update. Then the averaged weights
follow. Everything random in a step is keyed by (seed, step), and everything that decides the next step is in the
checkpoint, so a run that was killed and resumed is the same run, bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable

import torch

from crayon.config.names import flatten
from crayon.config.settings import Experiment
from crayon.data import ImageSet, Loader, Splits
from crayon.data.types import Batch
from crayon.errors import CrayonError, Stopped
from crayon.report.events import Emit, EpochEnd, Message, Step, ignore
from crayon.system import devices
from crayon.system.host import usable_cores
from crayon.system.runfolder import RunFolder
from crayon.tasks.base import Networks, Statistics, Task
from crayon.training.collectives import Group
from crayon.training.evaluation import evaluate
from crayon.training.meter import Meter, Throughput
from crayon.training.optimizer import Average, adam, lr_at
from crayon.training.saver import SAVE_SECONDS, Saver
from crayon.training.selection import Selection
from crayon.training.step import TrainStep
from crayon.training.threads import SHORTEST_RUN, Threads
from crayon.training.train_state import TrainState

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
        self.group = group or Group()
        self.emit, self.should_stop = emit, should_stop
        self.started = time.time() if started is None else started
        self.device = self.group.device

        task.prepare()
        self.networks = task.networks.to(self.device)
        if config.channels_last:
            self.networks.to(memory_format=torch.channels_last)
        self.average = Average(self.networks, config.optim.ema_images)
        self.optimizers = {name: adam(net, config) for name, net in self.networks.items()}
        self.update = TrainStep(config, task, self.networks, self.optimizers, self.group, say=self._say)
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
        )
        adapt = self.device.type == "cpu" and config.threads is None and self.group.world_size == 1
        self.threads = Threads(
            config.threads or min(torch.get_num_threads(), usable_cores()),
            adapt=adapt,
            first_trial=self.total_steps >= SHORTEST_RUN,
            tell=self._say,
        )
        self.meter = Meter(self.device)
        self.selection = Selection(*task.monitor)
        self.saver = Saver(run, config.checkpoint.keep)
        parts = (self.networks, self.average, self.optimizers, self.meter, self.threads)
        self.state = TrainState(run, self.saver, self.group, *parts)
        self.step = 0
        self.train_seconds = 0.0
        self.seconds_before = 0.0
        self._counted = time.perf_counter()
        self._suspect = False
        self._throughput = Throughput(EMIT_SECONDS)
        self._last_save = time.perf_counter()

    # Where we are.

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

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

    # Training.

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
        epoch = self.epoch
        self.networks.train()
        first, before = self.step, self.train_seconds
        self._counted = time.perf_counter()
        self._throughput.restart(self.step)
        self.threads.restart()
        for batch in self.loader.epoch(epoch, self.step - epoch * self.steps_per_epoch):
            self.train_step(batch)
            self.threads.after_step()
            self.after_step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._count_time()
        images = (self.step - first) * self.config.global_batch_size
        self.end_epoch(images / max(self.train_seconds - before, 1e-9))

    def _count_time(self) -> None:
        """Bring `train_seconds` up to date, in the middle of an epoch or at its end."""
        now = time.perf_counter()
        self.train_seconds += now - self._counted
        self._counted = now

    def train_step(self, batch: Batch) -> None:
        """One update of every network."""
        lr = lr_at(self.step, self.total_steps, self.config)
        self.meter.add(self.step, self.update(batch, self.step, lr))
        self.step += 1
        self.average.update(self.images_seen, self.config.global_batch_size)

    def after_step(self) -> None:
        """Between two steps: show progress, and save or stop when it is time."""
        now = time.perf_counter()
        if self.group.rank == 0 and self._throughput.due(now):
            # The epoch of this step, which is not over while its end hasn't been told.
            epoch = (self.step - 1) // self.steps_per_epoch
            pace = self._throughput.update(self.step, self.total_steps, self.config.global_batch_size, now)
            self.emit(Step(epoch, self.step, self.total_steps, self.meter.last(), **pace))
            self._suspect = not self.meter.finite()
        if self.step % self.steps_per_epoch == 0:
            return  # The end of the epoch saves, and has its own look at the stop flag.
        if self.group.world_size == 1 or self.step % POLL_STEPS == 0:
            flags = self.group.reduce_flags(self._wishes(now))
            if flags:
                self._suspect = False
                self.state.check_finite(self.step, self.config.lr)
            if flags & (SAVE | STOP):
                self._count_time()
                self.save(wait=bool(flags & STOP))
            if flags & STOP:
                self._stop()

    def _wishes(self, now: float) -> int:
        minutes = self.config.checkpoint.every_minutes
        due = self.group.rank == 0 and minutes > 0 and now - self._last_save > 60 * minutes
        return (SAVE if due else 0) | (STOP if self.should_stop() else 0) | (CHECK if self._suspect else 0)

    def _stop(self) -> None:
        raise Stopped(f"Stopped after step {self.step:,} of {self.total_steps:,}, with a checkpoint written.")

    def end_epoch(self, images_per_second: float) -> None:
        """Check the losses, evaluate, log one row, save."""
        self.state.check_finite(self.step, self.config.lr)
        config, epoch = self.config, self.epoch
        last = self.step == self.total_steps
        row: dict[str, float] = {
            "epoch": epoch,
            "step": self.step,
            "images": self.images_seen,
            "lr": lr_at(self.step - 1, self.total_steps, config),
            "images_per_second": images_per_second,
            "threads": self.threads.count,
        }
        row |= {f"train/{name}": value for name, value in self.meter.means(self.group).items()}
        self.meter.reset()
        improved = False
        if self.splits.val is not None and (last or epoch % config.eval.every_epochs == 0):
            begun = time.perf_counter()
            stats = self.evaluate(self.splits.val)
            if self.group.rank == 0:
                row |= {f"val/{k}": v for k, v in self.task.summarize(stats).items()}
                improved = self.selection.improves(row, epoch, self.step)
                self._keep_progress_image(epoch)
            row["eval_seconds"] = time.perf_counter() - begun
        row["train_seconds"] = self.train_seconds
        row["seconds"] = self.seconds()
        if self.group.rank == 0:
            self.run.append_row("metrics.jsonl", row)
            self.emit(EpochEnd(epoch, config.epochs, row))
        now = time.perf_counter()
        save = (
            last
            or improved
            or (epoch % config.checkpoint.every_epochs == 0 and now - self._last_save >= SAVE_SECONDS)
        )
        wishes = STOP if self.should_stop() else 0
        if self.group.rank == 0 and save:
            wishes |= SAVE
        flags = self.group.reduce_flags(wishes)
        if flags & (SAVE | STOP):
            self.save(best=improved, metrics=row, wait=last or bool(flags & STOP))
        if flags & STOP and not last:
            self._stop()

    def _keep_progress_image(self, epoch: int) -> None:
        picture = self.task.progress_image(self.measured_networks(), devices.exact(self.device))
        if picture is not None:
            self.run.write_picture(f"pictures/over_time/epoch-{epoch:05d}.png", picture)

    # Evaluation.

    def evaluate(self, images: ImageSet) -> Statistics:
        """What an epoch's figures need of `images`, under the averaged weights, each image once over all workers."""
        self.refresh_average()
        return self.evaluate_averaged(images, rows=self.task.summarizes_rows)

    def refresh_average(self) -> None:
        """Bring the averaged networks' buffers up to date, with rank 0's."""
        self.group.broadcast_buffers(self.networks)
        self.average.copy_buffers()

    def evaluate_averaged(self, images: ImageSet, *, rows: bool = True) -> Statistics:
        """The task's statistics of `images` under the averaged networks as they stand. See `evaluation.evaluate`."""
        group, networks = self.group, self.measured_networks()
        if networks is not self.average.networks:
            group = Group(device=devices.exact(self.device))
        stats = evaluate(self.task, networks, images, self.config, group, rows=rows)
        self.networks.train()
        return stats

    def measured_networks(self) -> Networks:
        """The averaged networks where models are measured: copies on the CPU where the device has no float64."""
        networks = self.average.networks
        if self.device.type not in devices.WITHOUT_FLOAT64:
            return networks
        return copy.deepcopy(networks).to(devices.exact(self.device))

    # State.

    def save(self, best: bool = False, metrics: dict[str, float] | None = None, wait: bool = True) -> None:
        """Write a checkpoint (rank 0 writes; every rank takes part) of what was found to be finite. Without `wait` it
        is written while training goes on, and what goes wrong is raised by a later one."""
        progress = {
            "best": self.selection.best,
            "train_seconds": self.train_seconds,
            "seconds": self.seconds(),
            "started": self.started,
            "seconds_before": self.seconds_before,
            "classes": list(self.splits.train.classes),
        }
        self.state.save(
            self.step, progress, flatten(self.config), best=best, metrics=metrics or {}, wait=wait
        )
        self._last_save = time.perf_counter()

    def restore(self) -> bool:
        """Go on from the newest checkpoint, if there is one. Rank 0 reads, the others are told."""
        found = self.state.restore()
        if found is None:
            return False
        state = found.state
        self.step, self.train_seconds = found.step, state["train_seconds"]
        # A worker that was started anew by the same command counts from that command's start again.
        same_command = state["started"] == self.started
        self.seconds_before = state["seconds_before"] if same_command else state["seconds"]
        if self.group.rank == 0:
            self._say(f"Going on from the checkpoint of step {self.step:,}.")
            lost = self.selection.restore(state["best"], self.run)
            if lost is not None:
                self._say(lost)
        return True

    def load_best(self) -> int:
        """Put the best checkpoint's weights into the averaged networks; returns its step.

        Without a validation split nothing was selected, and the last weights stand.
        """
        self.refresh_average()
        best = self.selection.best
        step = self.state.load_best(best is not None and best["step"] != self.step)
        return self.step if step is None else step
