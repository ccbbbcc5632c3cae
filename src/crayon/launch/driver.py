"""From a checked experiment to a finished run: in this process, or on Ray Train workers.

The driver draws the terminal, holds the run's lock and turns Ctrl-C into a clean stop; the workers train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from crayon.config.names import flatten, identity, with_defaults
from crayon.config.settings import Experiment
from crayon.errors import BadInput
from crayon.launch import capacity, cluster, fitting
from crayon.launch.preflight import check
from crayon.report.events import Emit, Finished, Message, Progress
from crayon.report.wandb_follower import catch_up
from crayon.system.runfolder import CHECKPOINTS, RESULT, SOURCES, SWEEP, RunFolder
from crayon.tasks import jobs

if TYPE_CHECKING:
    from crayon.data import Splits


def default_name(config: Experiment, kind: str = "") -> str:
    """A new name for each run that isn't given one, so that nothing is resumed by accident."""
    return f"{config.job}{kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def train(
    config: Experiment, *, emit: Emit, started: float, command: str = "", extend: bool = False
) -> dict[str, Any]:
    """Run `config` to its end and return the content of its result.json. With `extend`, a run of fewer epochs goes on.

    Raises BadInput before any worker starts wherever the mistake can be seen from here, RunFailed, or
    `Stopped` when it was interrupted (SIGINT, SIGTERM) and has written a checkpoint.
    """
    name = config.name or default_name(config)
    config = dataclasses.replace(config, name=name)
    on_ray = config.workers != 0
    check(config, on_ray)
    run = RunFolder(config.storage, name)
    config = with_absolute_paths(config, run, on_ray)
    run.create()
    with run.lock():
        run.pull()
        if run.holds(SWEEP):
            raise BadInput(f"{run.uri} holds a sweep; choose another --name.")
        begun = any(run.path.glob(f"{CHECKPOINTS}/*"))
        config = fitting.fitted(config, run.read_json("config.json") if begun else None, emit, on_ray=on_ray)
        finished = _continue(run, config, extend, emit)
        if finished is not None:
            emit(Message("This run is complete already; these are its results."))
            upload = catch_up(run, config.wandb, lambda text: emit(Message(text)))
            emit(Finished(finished, run.uri, upload))
            return finished
        run.write_json("config.json", flatten(config))
        _remember_sources(config, run, emit)
        run.push("config.json")
        if config.max_workers > 1:
            emit(Message(each_takes(config)))
        with interrupts() as stop:
            if config.workers == 0:
                return _train_here(config, run, emit, stop, started, command)
            return _train_on_ray(config, run, emit, stop, started, command)


def each_takes(config: Experiment) -> str:
    """How many images of a step a worker has, in a sentence."""
    batch = config.global_batch_size
    least, most = batch // config.max_workers, math.ceil(batch / max(config.min_workers, 1))
    images = f"{least:,}" + f" to {most:,}" * (most > least)
    return f"Each of --workers {config.workers} takes {images} of a step's {batch:,} images."


def with_absolute_paths(config: Experiment, run: RunFolder, on_ray: bool) -> Experiment:
    """`config` with paths that mean the same in a worker's working directory."""
    config = dataclasses.replace(config, storage=run.storage)
    if config.init_from is not None and "://" not in config.init_from:
        config = dataclasses.replace(config, init_from=os.path.abspath(os.path.expanduser(config.init_from)))
    root = config.data.root
    if root is None or "://" in root or (on_ray and cluster.joins()):
        return config  # in a cluster it is a path on the nodes
    root = os.path.abspath(os.path.expanduser(root))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))


def _continue(run: RunFolder, config: Experiment, extend: bool, emit: Emit) -> dict[str, Any] | None:
    """Check that `config` is the run that lies here, if one does; its result if it is complete."""
    if not any(run.path.glob(f"{CHECKPOINTS}/*")):
        return None  # Without loading torch, which can wait until Ray's processes are starting beside it.
    from crayon.training import checkpoint, data_history

    entry = checkpoint.latest(run)
    if entry is None:
        return None  # Nothing was trained yet: whatever an earlier command got wrong may be mended.
    found = checkpoint.load(entry)  # all of it, so that damage is said now
    recorded = with_defaults(found.config, config)
    extended = extend and recorded["epochs"] < config.epochs
    if extended:
        recorded["epochs"] = config.epochs
    checkpoint.check_identity(recorded, identity(config), run.name)
    result = None if extended else run.read_json(RESULT)
    if result is not None and not isinstance(result, dict):
        raise BadInput(f"{run.path / RESULT} was not written by a run; delete it and start again.")
    history = data_history.of(found)
    moved = history[-1]["root"] != config.data.root
    if config.workers != 0 and cluster.joins():
        # The images are on the nodes, where a run that goes on is checked.
        if moved and result is not None:
            checkpoint.check_identity(recorded, {"data.root": config.data.root}, run.name)
    elif moved or result is None:
        # Before anything changes in the run's folder. What is only to be told is told by the worker.
        splits = preload(config, lambda event: emit(event) if isinstance(event, Progress) else None)
        data_history.check(history, data_history.seen(config, splits), config, f"Run {run.name!r}")
    return result


def _remember_sources(config: Experiment, run: RunFolder, emit: Emit) -> None:
    """Keep what a job of one's own is made by, with digests; nothing reads it but people, and this comparison."""
    made_by = jobs.sources(config)
    before = (run.read_json(SOURCES) if run.holds(SOURCES) else None) or made_by
    changed = sorted(name for name in made_by if made_by[name] != before.get(name, made_by[name]))
    if changed:
        text = f"{' and '.join(changed)} changed since this run began; it goes on with what is there now."
        emit(Message(text, warning=True))
    if made_by:
        run.write_json(SOURCES, made_by)


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Set an event on the first Ctrl-C, SIGTERM or, where `nohup` didn't have it ignored, SIGHUP of a terminal that is
    closed; a second one ends the process the usual way, but for SIGHUP: shell and kernel each send it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    hangup: int = getattr(signal, "SIGHUP", 0)  # not on Windows
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM, *([hangup] if hangup else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    if before.get(hangup) == signal.SIG_IGN:
        del before[hangup]

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_IGN if number == hangup else before[number])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train_here(
    config: Experiment, run: RunFolder, emit: Emit, stop: threading.Event, started: float, command: str
) -> dict[str, Any]:
    from crayon.system import devices
    from crayon.training import worker
    from crayon.training.collectives import Group

    group = Group(device=devices.chosen(config.device))
    result = worker.run_worker(
        config, run, group=group, emit=emit, should_stop=stop.is_set, started=started, command=command
    )
    assert result is not None
    return result


def preload(config: Experiment, emit: Emit) -> Splits:
    """Download, decode or render the data here, so that what is wrong with it is said before a worker starts."""
    from crayon import data, tasks

    splits = data.load(config.data, labels=config.needs_labels, emit=emit)
    if not tasks.built_in(config):
        tasks.build(config, splits.info())
    data.check_batch(len(splits.train), config.global_batch_size)
    return splits


def _train_on_ray(
    config: Experiment, run: RunFolder, emit: Emit, stop: threading.Event, started: float, command: str
) -> dict[str, Any]:
    with cluster.connected(tell=lambda text: emit(Message(text)), instead="train without Ray: --workers 0"):
        from crayon.launch.channel import Channel

        own = not cluster.joins()
        use_gpu = capacity.use_gpu(config)
        cpus = capacity.cpus_per_worker(config, use_gpu)
        channel = Channel()  # whose process starts while the data is loaded
        if own:  # what is to be told is told by the first worker
            preload(config, lambda event: None if isinstance(event, Message) else emit(event))
        from crayon.launch.workers import Workers

        workers = Workers(
            config, channel, own=own, use_gpu=use_gpu, cpus=cpus, started=started, command=command
        )
        for events in workers.run(stop.is_set):
            for event in events:
                emit(event)
        workers.check()
    result = RunFolder(config.storage, run.name)
    result.pull()
    return result.read_json("result.json")
