"""One step of training: an update of every network, in the task's order.

On a GPU the few hundred small kernels of a step take longer to launch one by one than to run (benchmarks/LOG.md). So
after a few steps one is recorded as a CUDA graph, and from then on launched as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from crayon.config.settings import Experiment
from crayon.data.types import Batch
from crayon.rng import Randomness, Streams
from crayon.tasks.base import Task
from crayon.training.collectives import Group
from crayon.training.optimizer import Adam

WARM = 4
"""Steps before one is recorded: by then optimizers have their state, and libraries and compilers have done theirs."""

Terms = dict[str, Tensor]


class Step:
    """`step(batch, number, lr)` trains on one batch.

    - `networks`: by phase, with the parameters that their optimizers of the same name update.
    - `group`: this worker among its peers; with several of them nothing is recorded.
    - `say`: told in one sentence if a step can't be recorded, which then goes on as before.
    """

    def __init__(
        self,
        config: Experiment,
        task: Task,
        networks: nn.ModuleDict,
        optimizers: Mapping[str, Adam],
        group: Group,
        say: Callable[[str], None] = lambda text: None,
    ):
        if config.precision == "auto":
            raise ValueError("precision must be decided: see session.decided")
        self.config, self.task, self.group, self.say = config, task, group, say
        self.networks, self.optimizers = networks, optimizers
        self.trainable = {
            name: [p for p in net.parameters() if p.requires_grad] for name, net in networks.items()
        }
        if config.compile:
            for network in networks.values():
                network.compile()
        parallel = {name: group.data_parallel(net) for name, net in networks.items()}
        self.wrapped = {name: network for name, (network, _) in parallel.items()}
        self.average_gradients = {name: average for name, (_, average) in parallel.items()}
        if group.device.type == "cuda":
            # Costs nothing here (benchmarks/LOG.md), and a resumed run is the uninterrupted one on a GPU too.
            torch.backends.cudnn.deterministic = True
        self._records = config.cuda_graph and group.device.type == "cuda" and group.world_size == 1
        self.recorded: Recorded | None = None
        self._done = 0

    def __call__(self, batch: Batch, number: int, lr: float) -> Terms:
        """Update every network. `number`: finished steps before this one, which key its randomness.

        Returns what is to be logged: detached scalars.
        """
        rng = Randomness(self.config.seed, "step", number)
        rng.fold("layers", self.group.rank).seed_torch(self.group.device)
        for optimizer in self.optimizers.values():
            optimizer.set_lr(lr)
        if self._records and self.recorded is None and self._done >= WARM:
            self._record(batch, rng)
        self._done += 1
        return self._run(batch, rng) if self.recorded is None else self.recorded(batch, rng)

    def _run(self, batch: Batch, rng: Randomness) -> Terms:
        config, device = self.config, self.group.device
        # Gradients and terms are averaged over the workers, of which some may have an image more than others.
        share = len(batch.images) * self.group.world_size / config.global_batch_size
        logged: Terms = {}
        for phase, optimizer in self.optimizers.items():
            if len(self.optimizers) > 1:
                for name, parameters in self.trainable.items():
                    for parameter in parameters:
                        parameter.requires_grad_(name == phase)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                nets = {**self.networks, phase: self.wrapped[phase]}
                loss, terms = self.task.loss(phase, nets, batch, rng.fold(phase))
            if share != 1:
                loss, terms = share * loss, {name: share * value for name, value in terms.items()}
            loss.backward()
            self.average_gradients[phase]()
            terms = {"loss": loss.detach()} | terms
            if config.optim.clip > 0:
                terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.trainable[phase], config.optim.clip)
            optimizer.step()
            prefix = f"{phase}/" if len(self.optimizers) > 1 else ""
            logged |= {prefix + term: value for term, value in terms.items()}
        return logged

    def _record(self, batch: Batch, rng: Randomness) -> None:
        try:
            self.recorded = Recorded(self._run, batch, rng)
        except RuntimeError as error:
            self._records = False
            why = str(error).strip().split("\n")[0][:160]
            self.say(f"A step can't be recorded as a CUDA graph ({why}), so kernels are launched one by one.")


class Recorded:
    """A step as a CUDA graph. What changes from step to step is copied to where the graph reads it: the batch, the
    learning rate (see `Adam.set_lr`), the states of the random streams; torch's own generator is looked up by replay.
    """

    def __init__(self, run: Callable[[Batch, Randomness], Terms], batch: Batch, rng: Randomness):
        self.batch = Batch(*(part.clone() for part in batch))
        self.streams = Streams(rng, batch.images.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            terms = run(self.batch, self.streams.root)
            self.names = list(terms)
            self.values = torch.stack([value.to(torch.float64) for value in terms.values()])

    def __call__(self, batch: Batch, rng: Randomness) -> Terms:
        for part, new in zip(self.batch, batch, strict=True):
            part.copy_(new)
        self.streams.follow(rng)
        self.graph.replay()
        return dict(zip(self.names, self.values.clone().unbind(), strict=True))
