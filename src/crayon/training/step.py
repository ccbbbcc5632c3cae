"""One step of training: an update of every network, in the task's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from crayon.config.settings import Experiment
from crayon.data.types import Batch
from crayon.fast import cuda_graph, enabled
from crayon.rng import Randomness
from crayon.tasks.base import Task
from crayon.training.batchnorm import synchronise, synchronised
from crayon.training.collectives import Group
from crayon.training.optimizer import Adam

Terms = dict[str, Tensor]


class TrainStep:
    """`step(batch, number, lr)` trains on one batch.

    - `networks`: by phase, with the parameters that their optimizers of the same name update.
    - `group`: this worker among its peers; with several of them no CUDA graph is recorded.
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
        self.parallel = {name: group.data_parallel(net) for name, net in networks.items()}
        if group.device.type == "cuda":
            # Costs nothing here (benchmarks/LOG.md), and a resumed run is the uninterrupted one on a GPU too.
            torch.backends.cudnn.deterministic = True
        self.run: cuda_graph.StepFunction = self._run
        if enabled() and config.cuda_graph and group.device.type == "cuda" and group.world_size == 1:
            self.run = cuda_graph.CudaGraphStep(self._run, say)

    def __call__(self, batch: Batch, number: int, lr: float) -> Terms:
        """Update every network. `number`: finished steps before this one, which key its randomness.

        Returns what is to be logged: detached scalars.
        """
        rng = Randomness(self.config.seed, "step", number)
        rng.fold("layers", self.group.rank).seed_torch(self.group.device)
        for optimizer in self.optimizers.values():
            optimizer.set_lr(lr)
        return self.run(batch, rng)

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
                nets = {**self.networks, phase: self.parallel[phase]}
                loss, terms = self.task.loss(phase, nets, batch, rng.fold(phase))
            if share != 1:
                loss, terms = share * loss, {name: share * value for name, value in terms.items()}
            loss.backward()
            terms = {"loss": loss.detach()} | terms
            if config.optim.clip > 0:
                terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.trainable[phase], config.optim.clip)
            optimizer.step()
            prefix = f"{phase}/" if len(self.optimizers) > 1 else ""
            logged |= {prefix + term: value for term, value in terms.items()}
        return logged
