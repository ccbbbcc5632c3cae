"""Ray Train with fewer processes, for a cluster that is this machine and ends with this command: below its public
interface, so imported by `ray_start.trainer_class` alone, which knows the versions that this fits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup

SPARED = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""They serve Ray Data, and clean up in a cluster that goes on."""


class InProcessTrainer(TorchTrainer):
    """TorchTrainer whose controller runs in the thread that calls `fit`."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees Ray Train's first version
        return [c for c in callbacks if type(c).__name__ not in SPARED]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        policy = parts["scaling_policy"]
        # Ray's own starts an actor that asks an autoscaler for nodes, and waits for it.
        policy.after_controller_start = _ignore
        policy._maybe_send_resource_request = _ignore
        policy._cancel_resource_request = _ignore
        controller = _Controller(**parts)
        asyncio.run(controller.run())
        return controller.get_result()


class _WorkerGroup(WorkerGroup):
    def _init_train_context_on_workers(
        self, workers: Sequence[Any], sync_actor: Any, train_context_args: Mapping[str, Sequence[Any]]
    ) -> None:
        """As Ray's, for a controller that is no actor, and without the actor at which several workers meet where
        there is one worker."""
        if len(workers) == 1:
            ray.kill(sync_actor)
            sync_actor = _SingleWorkerSync()
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
        self._decorate_worker_log_file_paths(list(workers))


class _Controller(TrainController):
    worker_group_cls = _WorkerGroup


class _SingleWorkerSync:
    """What a single worker needs of Ray Train's SynchronizationActor."""

    @property
    def broadcast_from_rank_zero(self) -> _SingleWorkerSync:
        return self

    def remote(self, *, data: Any, **ignored: Any) -> ray.ObjectRef:
        return ray.put(data)


def _ignore(*ignored: Any) -> None:
    pass
