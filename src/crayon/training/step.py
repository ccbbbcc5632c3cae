"""One step of training: an update of every network, in the task's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crayon.config.settings import Experiment
from crayon.data.types import Batch
from crayon.fast import cuda_graph, enabled
from crayon.rng import Randomness
from crayon.tasks.base import Task
from crayon.training.batchnorm import synchronise, synchronised
from crayon.training.collectives import Gradients, Group
from crayon.training.optimizer import Adam

Terms = dict[str, Tensor]


class TrainStep:
    """`step(batch, number, lr)` trains on one batch.

    - `networks`: by phase, with the parameters that their optimizers of the same name update.
    - `group`: this worker among its peers.
    - `say`: told in one sentence if a CUDA graph can't be recorded; kernels are then launched one by one.
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
        self.config, self.task, self.group = config, task, group
        self.networks, self.optimizers = networks, optimizers
        self.trainable = {
            name: [p for p in net.parameters() if p.requires_grad] for name, net in networks.items()
        }
        if config.compile:
            for network in networks.values():
                network.compile()
        if synchronised(config, group.world_size):
            synchronise(networks)
        group.broadcast_weights(networks)
        self.gradients = {name: Gradients(found, group) for name, found in self.trainable.items()}
        if group.device.type == "cuda":
            # Costs nothing here (benchmarks/LOG.md), and a resumed run is the uninterrupted one on a GPU too.
            torch.backends.cudnn.deterministic = True
        self.run = self.runner(self.parts, say)

    def runner(
        self, parts: cuda_graph.Parts, say: Callable[[str], None] = lambda text: None
    ) -> cuda_graph.Run:
        """What does steps that consist of these parts: recorded on a GPU, but for the first ones."""
        if enabled() and self.config.cuda_graph and self.group.device.type == "cuda":
            told = (
                self.group.alone or dist.get_backend() == "nccl"
            )  # a graph can hold what the workers tell each other
            return cuda_graph.CudaGraphStep(parts, say, whole=told)
        return partial(cuda_graph.run, parts)

    def change(self, now: Experiment) -> None:
        """Go on with other values of what may change while a run trains."""
        self.task.change(now)
        for optimizer in self.optimizers.values():
            optimizer.set_beta1(now.beta1)
        if isinstance(self.run, cuda_graph.CudaGraphStep):
            self.run.forget()

    def __call__(self, batch: Batch, number: int, lr: float) -> Terms:
        """Update every network. `number`: finished steps before this one, which key its randomness.

        Returns what is to be logged: detached scalars.
        """
        rng = Randomness(self.config.seed, "step", number)
        rng.fold("layers", self.group.rank).seed_torch(self.group.device)
        for optimizer in self.optimizers.values():
            optimizer.set_lr(lr)
        return self.run(batch, rng)

    def parts(self, batch: Batch, rng: Randomness, logged: Terms) -> list[cuda_graph.Part]:
        """A step as functions to be called in this order, which leave in `logged` what `__call__` returns: at even
        places what this worker does by itself, at odd ones what the workers do together."""

        def work(done: str | None, phase: str | None) -> None:
            if done is not None:
                self._update(done, logged)
            if phase is not None:
                self._compute(phase, batch, rng, logged)

        found: list[cuda_graph.Part] = []
        for done, phase in pairwise((None, *self.optimizers, None)):
            found.append(partial(work, done, phase))
            if phase is not None:
                found.append(self.gradients[phase].add_up)
        return found

    def _compute(self, phase: str, batch: Batch, rng: Randomness, logged: Terms) -> None:
        """The gradients of `phase`."""
        config, device = self.config, self.group.device
        # Terms are averaged over the workers, of which some may have an image more than others; gradients are added up.
        share = len(batch.images) * self.group.world_size / config.global_batch_size
        if len(self.optimizers) > 1:
            for name, parameters in self.trainable.items():
                for parameter in parameters:
                    parameter.requires_grad_(name == phase)
        self.optimizers[phase].zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, terms = self.task.loss(phase, dict(self.networks.items()), batch, rng.fold(phase))
        if share != 1:
            loss, terms = share * loss, {name: share * value for name, value in terms.items()}
        (loss if self.group.alone else loss / self.group.world_size).backward()
        self.gradients[phase].gather()
        terms = {"loss": loss.detach()} | terms
        logged |= {self._name(phase, term): value for term, value in terms.items()}

    def _update(self, phase: str, logged: Terms) -> None:
        """One step of the optimizer of `phase`, by gradients that all workers have."""
        if (clip := self.config.optim.clip) > 0:
            norm = torch.nn.utils.clip_grad_norm_(self.trainable[phase], clip)
            logged[self._name(phase, "grad_norm")] = norm
        self.optimizers[phase].step()

    def _name(self, phase: str, term: str) -> str:
        return f"{phase}/{term}" if len(self.optimizers) > 1 else term
