"""Many blocks of work, in this process or over the workers of a Ray cluster, in a way that can be stopped and resumed.

What a block makes comes back to the command, through Ray's object store, and only the command writes: so the nodes need
no disk in common for results (for runs and images they do, or an object store).
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from crayon.config.settings import Experiment, RayConfig
from crayon.errors import BadInput, CrayonError, RunFailed, Stopped, one_line
from crayon.launch import capacity, cluster
from crayon.launch.driver import interrupts
from crayon.report.events import Emit, Message, Progress
from crayon.system.host import usable_cores
from crayon.use.output import Content, Output

if TYPE_CHECKING:
    from crayon.training.threads import Threads

BlockFunction = Callable[[int, int | None], Content]
"""make(block, the block that will be asked for next or None): the block's content."""
RESTARTS = 3
"""How often a worker that died is started again."""
EMIT_SECONDS = 0.5


def run_blocks(
    factory: Callable[[], BlockFunction],
    names: Sequence[str],
    counts: Sequence[int],
    output: Output,
    *,
    workers: int,
    device: str,
    config: Experiment,
    emit: Emit,
    what: str,
    unit: str = "images",
) -> float:
    """Make every block that `output`, which is locked, hasn't got yet.

    Args:
        factory: gives the function that makes blocks; called once in each process that does. With workers, picklable.
        names: of the blocks in `output`: files, or folders where `make` returns several files.
        counts: units in each block, for the progress shown.
        workers: Ray actors; 0 = this process, without Ray.
        device: auto, cpu or cuda.
        config: of the model, whose settings say what a worker needs.
        what: is being done, for the progress shown.

    Returns:
        Units made per second by this call, without the start of Ray and (in this process) the loading of the model; 0
        if nothing was missing.

    Raises:
        Stopped: after Ctrl-C or SIGTERM. The blocks made by then are kept.
        RunFailed: workers kept dying.
        BadInput: the cluster has no room for the workers.
    """
    missing = [k for k in range(len(names)) if not output.holds(names[k])]
    if not missing:
        return 0.0
    progress = _Progress(counts, missing, emit, what, unit)
    with interrupts() as stop:

        def check() -> None:
            if stop.is_set():
                left = sum(not output.holds(name) for name in names)
                raise Stopped(
                    f"Stopped with {len(names) - left} of {len(names)} blocks done; the same command goes on."
                )

        if workers == 0:
            make, threads = factory(), _threads(device)
            progress.start()
            for k, following in zip(missing, [*missing[1:], None], strict=True):
                check()
                threads.restart()
                output.write(names[k], make(k, following))
                threads.after_step()
                progress.add(k)
        else:
            _on_ray(factory, names, missing, output, progress, check, workers, device, config)
    return progress.per_second()


class _Progress:
    def __init__(self, counts: Sequence[int], missing: Sequence[int], emit: Emit, what: str, unit: str):
        self.counts, self.emit, self.what, self.unit = counts, emit, what, unit
        self.total = sum(counts)
        self.done = self.before = self.total - sum(counts[k] for k in missing)
        self.told = 0.0
        self.began = self.ended = time.perf_counter()

    def start(self) -> None:
        self.began = self.ended = time.perf_counter()

    def per_second(self) -> float:
        return (self.done - self.before) / max(self.ended - self.began, 1e-9)

    def add(self, block: int) -> None:
        self.done += self.counts[block]
        now = self.ended = time.perf_counter()
        if now - self.told > EMIT_SECONDS or self.done == self.total:
            self.told = now
            rate = self.per_second()
            left = (self.total - self.done) / max(rate, 1e-9)
            self.emit(Progress(self.what, self.done, self.total, self.unit, rate, left))


def _on_ray(
    factory: Callable[[], BlockFunction],
    names: Sequence[str],
    missing: Sequence[int],
    output: Output,
    progress: _Progress,
    check: Callable[[], None],
    workers: int,
    device: str,
    config: Experiment,
) -> None:
    cores = usable_cores()
    if workers > cores and not cluster.joins():
        raise BadInput(f"--workers {workers} is more than this machine's {cores} CPU cores; use fewer.")

    def tell(text: str) -> None:
        progress.emit(Message(text))

    wanted = dataclasses.replace(config, workers=workers, device=device, ray=RayConfig())  # type: ignore[arg-type]
    with cluster.connected("crayon.use.model", tell, "work without Ray: --workers 0") as ray:
        gpu = capacity.use_gpu(wanted)
        cpus = capacity.cpus_per_worker(wanted, gpu)
        options = {"num_cpus": cpus, "num_gpus": int(gpu)}
        kind = ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, **options)(_Worker)
        # By reference, however many file names are in it, and with each block: a worker that is started again must
        # find it, and Ray doesn't promise to keep what an actor was started with.
        shared = [ray.put(factory)]
        actors = [kind.remote(cpus) for _ in range(min(workers, len(missing)))]
        queue = deque(missing)
        reserved: list[int | None] = [queue.popleft() for _ in actors]
        pending: dict[Any, tuple[int, int]] = {}

        def give(i: int) -> None:
            """The block that actor i was told of, and word of the one after it."""
            if (k := reserved[i]) is not None:
                reserved[i] = queue.popleft() if queue else None
                pending[actors[i].make.remote(shared, k, reserved[i])] = (i, k)

        progress.start()
        try:
            for i in range(len(actors)):
                give(i)
            while pending:
                check()
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
                for ref in ready:
                    i, k = pending.pop(ref)
                    made, failure, code = ray.get(ref)
                    if failure:
                        raise (BadInput if code == 2 else RunFailed)(failure)
                    give(i)
                    output.write(names[k], made)
                    progress.add(k)
        except ray.exceptions.RayActorError as error:
            why = one_line(error)
            raise RunFailed(
                f"A worker died more than {RESTARTS} times ({why}); the same command goes on with what is left."
            ) from None


def _threads(device: str, most: int | None = None) -> Threads:
    """What chooses the number of threads, in which a block is a step."""
    import torch

    from crayon.training.threads import Threads

    gpu = device != "cpu" and torch.cuda.is_available()
    return Threads(most, adapt=not gpu, first_trial=False)


class _Worker:
    """An actor that makes blocks."""

    def __init__(self, threads: int):
        self.threads = _threads("auto", threads)
        self.made: BlockFunction | None = None

    def make(self, shared: list[Any], block: int, following: int | None) -> tuple[Content, str, int]:
        """(content, what went wrong or "", that one's exit code). shared: the reference of the factory."""
        try:
            if self.made is None:
                import ray

                self.made = ray.get(shared[0])()
            self.threads.restart()
            made = self.made(block, following)
            self.threads.after_step()
            return made, "", 0
        except CrayonError as error:
            return b"", str(error), error.exit_code
