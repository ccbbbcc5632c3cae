"""From a checked experiment to a finished run: in this process, or on Ray Train workers.

The only module that imports Ray's Train. The driver draws the terminal, holds the run's lock and turns Ctrl-C into a
clean stop; the workers train. They talk through one small actor, since a worker may sit on another machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from crayon import cluster
from crayon.config import Experiment, flatten, identity, needs_labels, override
from crayon.errors import BadInput, CrayonError, RunFailed
from crayon.preflight import check
from crayon.presets import get
from crayon.storage import SWEEP, RunFolder

Emit = Callable[[dict[str, Any]], None]
POLL_SECONDS = 0.5
"""How soon the driver notices Ctrl-C."""
PATIENCE_SECONDS = 30.0
SPARED = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def default_name(config: Experiment) -> str:
    """A new name for each run that isn't given one, so that nothing is resumed by accident."""
    return f"{config.job}-{time.strftime('%Y%m%d-%H%M%S')}"


def train(config: Experiment, *, emit: Emit, started: float, command: str = "") -> dict[str, Any]:
    """Run `config` to its end and return the content of its result.json.

    Raises BadInput before any worker starts wherever the mistake can be seen from here, RunFailed, or
    `Stopped` when it was interrupted (SIGINT, SIGTERM) and has written a checkpoint.
    """
    config = dataclasses.replace(config, name=config.name or default_name(config))
    check(config)
    run = RunFolder(config.storage, config.name)
    config = settled(config, run)
    run.create()
    with run.lock():
        run.pull()
        if run.holds(SWEEP):
            raise BadInput(f"{run.uri} holds a sweep; choose another --name.")
        finished = _continue(run, config)
        if finished is not None:
            emit({"kind": "message", "text": "This run is complete already; these are its results."})
            emit({"kind": "done", "result": finished, "folder": run.uri, "sync": ""})
            return finished
        run.write_json("config.json", flatten(config))
        run.push("config.json")
        with interrupts() as stop:
            if config.workers == 0:
                return _train_here(config, run, emit, stop, started, command)
            return _train_on_ray(config, run, emit, stop, started, command)


def settled(config: Experiment, run: RunFolder) -> Experiment:
    """`config` with paths that mean the same in a worker's working directory."""
    config = dataclasses.replace(config, storage=run.storage)
    if config.data.root is not None and not cluster.joins():  # in a cluster it is a path on the nodes
        root = os.path.abspath(os.path.expanduser(config.data.root))
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))
    return config


def _continue(run: RunFolder, config: Experiment) -> dict[str, Any] | None:
    """Check that `config` is the run that lies here, if one does; its result if it is complete."""
    if run.is_new():
        return None  # Without loading torch, which can wait until Ray's processes are starting beside it.
    from crayon import checkpoint

    entry = checkpoint.latest(run)
    if entry is None:
        return None  # Nothing was trained yet: whatever an earlier command got wrong may be mended.
    checkpoint.verify(entry)
    checkpoint.check_identity(checkpoint.load(entry, groups=[]).config, identity(config), run.name)
    return run.read_json("result.json")


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Set an event on the first Ctrl-C or SIGTERM; a second one ends the process the usual way."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

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
    import torch

    from crayon import session
    from crayon.distributed import Group

    if config.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch sees no GPU on this machine; use --device cpu or auto.")
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    group = Group(device=torch.device("cuda", 0) if use_gpu else torch.device("cpu"))
    result = session.train(
        config, run, group=group, emit=emit, should_stop=stop.is_set, started=started, command=command
    )
    assert result is not None
    return result


def preload(config: Experiment, emit: Emit) -> None:
    """Download, decode or render the data here, so that what is wrong with it is said before a worker starts."""
    from crayon import data

    splits = data.load(
        config.data,
        labels=needs_labels(config),
        progress=lambda what, done, total: emit(
            {"kind": "prepare", "what": what, "done": done, "total": total}
        ),
    )
    data.check_batch(len(splits.train), config.global_batch_size, config.workers)


# On Ray.


class Mailbox:
    """An actor: events from the workers to the driver, the wish to stop from the driver to the workers.

    Both sides wait in a call that returns when there is something: a poll would wake a process on the cores that
    are training, and threads that compute together all wait for the one that was put aside.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.failure: dict[str, Any] | None = None
        self.filled, self.halted = asyncio.Event(), asyncio.Event()

    async def put(self, event: dict[str, Any]) -> None:
        """Keep `event` for the driver."""
        if event["kind"] == "failed":
            self.failure = self.failure or event
        else:
            self.events.append(event)
        self.filled.set()

    async def failed(self) -> bool:
        return self.failure is not None

    async def wake(self) -> None:
        """Let a waiting `take` return with what there is."""
        self.filled.set()

    async def halt(self) -> None:
        """The driver wants the run to stop."""
        self.halted.set()

    async def until_halted(self) -> bool:
        return await self.halted.wait()

    async def take(self, patience: float = 0.0) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """What has come since the last call, waiting up to `patience` seconds for it, and the first failure."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.filled.wait(), patience)
        self.filled.clear()
        events, self.events = self.events, []
        return events, self.failure


def _train_on_ray(
    config: Experiment, run: RunFolder, emit: Emit, stop: threading.Event, started: float, command: str
) -> dict[str, Any]:
    with cluster.connected():
        use_gpu = cluster.use_gpu(config)
        cpus = cluster.cpus_per_worker(config, use_gpu)
        if not cluster.joins():
            preload(config, emit)
        own = not cluster.joins()
        workers = Workers(config, own=own, use_gpu=use_gpu, cpus=cpus, started=started, command=command)
        for events in workers.run(stop):
            for event in events:
                emit(event)
        workers.check()
    result = RunFolder(config.storage, run.name)
    result.pull()
    return result.read_json("result.json")


class Workers:
    """The Ray Train workers of one run of `config`, whose storage and name must be set; Ray is connected.

    own: whether the cluster is our own and ends with this command.
    measure: whether they evaluate the final model on every split and write results and pictures, or only train.
    """

    def __init__(
        self,
        config: Experiment,
        *,
        own: bool,
        use_gpu: bool,
        cpus: int,
        started: float,
        command: str,
        measure: bool = True,
    ):
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        self.config = config
        self.mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        payload = {
            "job": config.job,
            "preset": config.preset,
            "config": flatten(config),
            "started": started,
            "command": command,
            "mailbox": self.mailbox,
            "threads": cpus,
            "measure": measure,
        }
        trainer = _lean(TorchTrainer, own)(
            worker,
            train_loop_config=payload,
            scaling_config=ScalingConfig(
                num_workers=config.workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus}
            ),
            run_config=RunConfig(
                name=f"{config.name}-{time.time_ns()}",
                storage_path=str(cluster.scratch()),
                failure_config=FailureConfig(
                    max_failures=config.ray.max_failures, controller_failure_limit=3
                ),
            ),
        )
        self._outcome: BaseException | None = None
        self._failure: dict[str, Any] | None = None
        self._ended = threading.Event()

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                self._outcome = error
            finally:
                self._ended.set()
                self.mailbox.wake.remote()

        # Not in the main thread, where Ray would take Ctrl-C for itself and abort without a checkpoint.
        threading.Thread(target=fit, daemon=True).start()

    def run(self, stop: threading.Event) -> Iterator[list[dict[str, Any]]]:
        """What the workers tell, until they have ended. Once `stop` is set, they are asked to save and end."""
        import ray

        while not self._ended.is_set():
            taken = self.mailbox.take.remote(PATIENCE_SECONDS)
            while not ray.wait([taken], timeout=POLL_SECONDS)[0]:
                if stop.is_set():
                    self.mailbox.halt.remote()
            events, self._failure = ray.get(taken)
            yield events
        events, self._failure = ray.get(self.mailbox.take.remote())
        yield events

    def check(self) -> None:
        """Raise what made the workers end, if it wasn't success."""
        if self._failure is not None:
            raise _rebuilt(self._failure)
        if self._outcome is not None:
            raise RunFailed(
                f"The workers failed more than --ray.max-failures {self.config.ray.max_failures} times, at last with: "
                f"{_last_line(self._outcome)}. The same command goes on from the last checkpoint."
            ) from self._outcome


def _lean(base: type, own: bool) -> type:
    """Ray's TorchTrainer without the helper processes that serve Ray Data, which we don't use, and, on a cluster that
    ends with this command, without those that clean up after it and ask an autoscaler for nodes: each takes seconds
    to start and a share of the cores (benchmarks/LOG.md)."""

    class Trainer(base):
        def _create_default_callbacks(self) -> list[Any]:
            spared = SPARED if own else {"DatasetsCallback"}
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in spared]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if own and type(parts.get("scaling_policy")).__name__ == "FixedScalingPolicy":
                # Ray's own policy starts an actor for its requests and waits for it before it starts the workers.
                policy = parts["scaling_policy"]
                policy.after_controller_start = _ignore
                policy._maybe_send_resource_request = _ignore
                policy._cancel_resource_request = _ignore
            return super()._initialize_and_run_controller(**parts)

    return Trainer


def _ignore(*ignored: Any) -> None:
    pass


def worker(payload: dict[str, Any]) -> None:
    """Ray Train's training function: rebuilds the experiment and runs this worker's part of it."""
    import ray
    import ray.train
    import torch
    from ray.train.torch import get_device

    from crayon import session
    from crayon.distributed import Group

    mailbox = payload["mailbox"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if ray.get(mailbox.failed.remote()):
        return  # A restart can't mend what failed.
    torch.set_num_threads(payload["threads"])
    config = override(get(payload["job"], payload["preset"]), payload["config"])
    stop = threading.Event()

    def listen() -> None:
        with contextlib.suppress(Exception):  # the driver is gone, and with it who could wish to stop
            if ray.get(mailbox.until_halted.remote()):
                stop.set()

    threading.Thread(target=listen, daemon=True).start()
    run = RunFolder(config.storage, config.name)
    try:
        if rank == 0:
            run.pull()  # This may be another machine than the driver's, or than that of an attempt before.
            if run.read_json("config.json") is None:
                raise BadInput(
                    f"--storage {run.storage} is not shared between the machines of this cluster; use a shared folder "
                    "or an s3:// or gs:// URI."
                )
        session.train(
            config,
            run,
            group=Group(rank, world_size, get_device()),
            emit=lambda event: mailbox.put.remote(event) and None,
            report_metrics=ray.train.report,
            should_stop=stop.is_set,
            started=payload["started"],
            command=payload["command"],
            measure=payload["measure"],
        )
    except CrayonError as error:
        event = {"kind": "failed", "type": type(error).__name__, "text": str(error)}
        ray.get(mailbox.put.remote(event | {"exit_code": error.exit_code}))
        if not error.on_every_worker:
            raise  # The others wait in a collective operation: Ray must end them.


def _rebuilt(failure: dict[str, Any]) -> CrayonError:
    error: CrayonError = RunFailed(failure["text"])
    error.exit_code = failure["exit_code"]
    return error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
