"""Ray Train with fewer processes, for a cluster that is this machine and ends with this command.

Every process of Ray's takes a second or more to start, and wakes up a hundred times a second on the cores that are
training, where the threads of a step all wait for the one that was put aside (benchmarks/LOG.md). Ray has no settings
for what is left out here, so this goes below its public interface. A cluster that is joined gets Ray Train as it is,
but for what serves Ray Data and the process group of a single worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from crayon.launch.elastic import Elastic, Patience
from crayon.launch.mailbox import Mailbox


class Alone(TorchConfig):
    """For a single worker: no process group, whose thread would wake up a hundred times a second."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend


class Trainer(TorchTrainer):
    """TorchTrainer for a cluster that is joined.

    mailbox, global_batch_size: as `Elastic` takes them.
    """

    spared = frozenset({"DatasetsCallback"})

    def __init__(self, *arguments: Any, mailbox: Mailbox, global_batch_size: int, **options: Any):
        super().__init__(*arguments, **options)
        self.mailbox, self.global_batch_size = mailbox, global_batch_size

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in self.spared]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["failure_policy"] = Patience(self.run_config.failure_config, self.mailbox)
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = Elastic(self.scaling_config, self.mailbox, self.global_batch_size)
        return self._run_controller(**parts)

    def _run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(**parts)


class OwnTrainer(Trainer):
    """TorchTrainer for our own cluster: its controller runs in the thread that calls `fit`."""

    # What serves Ray Data, cleans up after a cluster that goes on, and counts for a dashboard.
    spared = frozenset(
        {
            "DatasetsCallback",
            "PlacementGroupCleanerCallback",
            "ControllerMetricsCallback",
            "WorkerMetricsCallback",
        }
    )

    def _run_controller(self, **parts: Any) -> Any:
        policy = parts["scaling_policy"]
        # Ray's own starts an actor that asks an autoscaler for nodes, and waits for it.
        policy.after_controller_start = _ignore
        policy._maybe_send_resource_request = _ignore
        policy._cancel_resource_request = _ignore
        controller = _Controller(**parts)
        asyncio.run(controller.run())
        return controller.get_result()


class _Workers(WorkerGroup):
    def _init_train_context_on_workers(
        self, workers: Sequence[Any], sync_actor: Any, train_context_args: Mapping[str, Sequence[Any]]
    ) -> None:
        """As Ray's, for a controller that is no actor, and without the actor at which several workers meet where
        there is one worker."""
        if len(workers) == 1:
            ray.kill(sync_actor)
            sync_actor = _OneVoice()
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,  # asked for checkpoints reported to Ray: there are none
                    **{name: values[i] for name, values in train_context_args.items()},
                )
                for i, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):
    worker_group_cls = _Workers


class _OneVoice:
    """What a single worker needs of Ray Train's SynchronizationActor."""

    @property
    def broadcast_from_rank_zero(self) -> _OneVoice:
        return self

    def remote(self, *, data: Any, **ignored: Any) -> ray.ObjectRef:
        return ray.put(data)


def _ignore(*ignored: Any) -> None:
    pass
