"""Many blocks of work, in this process or over the workers of a Ray cluster, in a way that can be stopped and resumed.

What a block makes comes back to the command, through Ray's object store, and only the command writes: so the nodes need
no disk in common for results (for runs and images they do, or an object store).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from crayon.config.settings import Experiment, RayConfig
from crayon.errors import BadInput, CrayonError, RunFailed, Stopped, one_line
from crayon.fast.allocator import keep_freed_memory
from crayon.launch import capacity, cluster
from crayon.launch.driver import interrupts
from crayon.report.events import Emit, Message, Progress
from crayon.system.host import usable_cores
from crayon.tasks import jobs
from crayon.use.inputs import absolute
from crayon.use.settings import EvaluateConfig, GenerateConfig, SpreadConfig

if TYPE_CHECKING:
    from crayon.training.threads import Threads
    from crayon.use.model import Model

BlockFunction = Callable[[int, int | None], Any]
"""make(block, the block that will be asked for next or None): the block's content."""
Settings = SpreadConfig | GenerateConfig | EvaluateConfig
RESTARTS = 3
"""How often a worker that died is started again."""
EMIT_SECONDS = 0.5


def run_blocks(
    factory: Callable[[], BlockFunction],
    names: Sequence[str],
    counts: Sequence[int],
    output: Any,
    settings: Settings,
    config: Experiment,
    emit: Emit,
    what: str,
) -> float:
    """Make every block that `output` hasn't got yet.

    factory: gives the function that makes blocks; called once in each process that does. With workers, picklable.
    names, counts: of the blocks in `output`, and of the images in each.
    output: keeps blocks by `holds(name)` and `write(name, content)`: an Output, which is locked, or memory.
    config: of the model, whose settings say what a worker needs.

    Returns images per second of this call, without the start of Ray and the loading of the model; 0 if nothing was
    missing. Raises Stopped after Ctrl-C or SIGTERM (the blocks made by then are kept), RunFailed where workers kept
    dying, BadInput where the cluster has no room for them.
    """
    missing = [k for k, name in enumerate(names) if not output.holds(name)]
    total = sum(counts)
    done = before = total - sum(counts[k] for k in missing)
    began = told = rate = 0.0
    making = (
        _on_ray(factory, missing, settings, config, emit)
        if settings.workers
        else _here(factory, missing, settings.device)
    )
    with interrupts() as stop, contextlib.closing(making) as steps:
        for made in steps if missing else ():
            for k, content in made.items():
                output.write(names[k], content)
                done += counts[k]
            now = time.perf_counter()
            began = began or now
            if made:
                rate = (done - before) / max(now - began, 1e-9)
                if now - told > EMIT_SECONDS or done == total:
                    told = now
                    left = (total - done) / max(rate, 1e-9)
                    emit(Progress(what, done, total, "images", rate, left))
            if stop.is_set() and done < total:
                count = sum(output.holds(name) for name in names)
                raise Stopped(f"Stopped with {count} of {len(names)} blocks done; the same command goes on.")
    return rate


def opener(settings: Settings, model: Model) -> Callable[[], Model]:
    """What gives `model` in a process that makes blocks: this one has it, Ray's workers load it."""
    if settings.workers == 0:
        return lambda: model
    from crayon.use.model import load

    return partial(load, absolute(settings.run), model.step, settings.device)


def _here(
    factory: Callable[[], BlockFunction], missing: Sequence[int], device: str
) -> Generator[dict[int, Any], None, None]:
    """Blocks by number, as they are made; an empty dict once their making can begin."""
    keep_freed_memory()
    make, threads = factory(), _threads(device)
    yield {}
    for k, following in zip(missing, [*missing[1:], None], strict=True):
        threads.restart()
        made = make(k, following)
        threads.after_step()
        yield {k: made}


def _on_ray(
    factory: Callable[[], BlockFunction],
    missing: Sequence[int],
    settings: Settings,
    config: Experiment,
    emit: Emit,
) -> Generator[dict[int, Any], None, None]:
    """As `_here`; empty also when no block was finished for a second."""
    cores, workers = usable_cores(), settings.workers
    if workers > cores and not cluster.joins():
        raise BadInput(f"--workers {workers} is more than this machine's {cores} CPU cores; use fewer.")

    def tell(text: str) -> None:
        emit(Message(text))

    wanted = dataclasses.replace(config, workers=workers, device=settings.device, ray=RayConfig())
    with cluster.connected("crayon.use.model", tell, "work without Ray: --workers 0") as ray:
        gpu = capacity.use_gpu(wanted)
        cpus = capacity.cpus_per_worker(wanted, gpu)
        options = {"num_cpus": cpus, "num_gpus": int(gpu)}
        kind = ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, **options)(_Worker)
        # By reference, however many file names are in it, and with each block: a worker that is started again must
        # find it, and Ray doesn't promise to keep what an actor was started with.
        shared = [ray.put((jobs.find(config.job), factory))]
        actors = [kind.remote(cpus) for _ in range(min(workers, len(missing)))]
        queue = deque(missing)
        reserved: list[int | None] = [queue.popleft() for _ in actors]
        pending: dict[Any, tuple[int, int]] = {}

        def give(i: int) -> None:
            """The block that actor i was told of, and word of the one after it."""
            if (k := reserved[i]) is not None:
                reserved[i] = queue.popleft() if queue else None
                pending[actors[i].make.remote(shared, k, reserved[i])] = (i, k)

        yield {}
        try:
            for i in range(len(actors)):
                give(i)
            while pending:
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
                finished = {}
                for ref in ready:
                    i, k = pending.pop(ref)
                    finished[k] = ray.get(ref)
                    give(i)
                yield finished
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, CrayonError) else error from None
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
        keep_freed_memory()
        self.threads = _threads("auto", threads)
        self.made: BlockFunction | None = None

    def make(self, shared: list[Any], block: int, following: int | None) -> Any:
        """A block's content. shared: the reference of (job, factory)."""
        if self.made is None:
            import ray

            job, factory = ray.get(shared[0])
            jobs.bring(job)
            self.made = factory()
        self.threads.restart()
        made = self.made(block, following)
        self.threads.after_step()
        return made
