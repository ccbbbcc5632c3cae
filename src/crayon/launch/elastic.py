"""What Ray Train does when nodes go and come: how many workers it starts, when it starts them anew, what counts as a
failure.

Ray's own elastic policy believes for minutes in a node that was killed, kills the workers when there is room for more,
and takes any number of workers. This one counts the nodes that are alive, lets the workers write a checkpoint and leave
by themselves, and takes only numbers that share the global batch evenly, so that every step trains on the same images.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group.placement_group_handle import PlacementGroupHandle

from crayon.launch.mailbox import Mailbox
from crayon.report.events import Message, to_dict

SETTLE_SECONDS = 8.0
"""How long fewer nodes than wanted are waited for, after a failure, before training goes on with those there are."""
GROW_SECONDS = 10.0
"""How often a smaller group looks whether there is room for more."""
LEAVE_SECONDS = 120.0
"""How long workers that were asked to leave may take, before they are ended."""


SIGNS = {
    "running low on memory|OutOfMemory": "a worker was ended since its machine ran out of memory",
    "node .*(died|dead|terminated|preempted)|node failure": "a machine was lost",
}
"""What Ray's message says, and what it means."""


BROKEN = r"gloo|nccl|connection (closed|reset|refused)|broken pipe"
"""What a worker says whose peer is gone."""


class Left(Exception):
    """A worker has written its checkpoint and left, to be started anew where there is room. No failure."""


def preempted() -> bool:
    """Whether a node of this worker's group is about to be taken away. For a Ray Train worker; costs nothing.

    What Ray's public `get_preemption_info` gives, without its meeting of all workers: the loop agrees by itself.
    """
    return get_train_context().preemption_context.preemption_info is not None


class Patience(DefaultFailurePolicy):
    """Ray's, which tells what happened, and doesn't count workers that left by themselves among the failures."""

    def __init__(self, failure_config: FailureConfig, mailbox: Mailbox):
        super().__init__(failure_config)
        self.mailbox = mailbox

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        failed = getattr(training_failed_error, "worker_failures", {})
        if any(isinstance(error, Left) for error in failed.values()):
            return FailureDecision.RETRY
        if self.mailbox.failed():
            return FailureDecision.RAISE  # a worker has said why, and new ones couldn't mend it
        decision = super().make_decision(training_failed_error)
        if failed and decision is FailureDecision.RETRY:
            count = f" (failure {self._worker_group_failures} of {self.failure_config.max_failures})"
            text = f"{what_happened(failed)[:1].upper()}{what_happened(failed)[1:]}; the workers start anew{count}."
            self.mailbox.put(to_dict(Message(text)))
        return decision


def what_happened(failed: Mapping[int, Exception]) -> str:
    """Why workers failed, in a few words. failed: by rank, as Ray Train tells it.

    Where one is lost, its peers fail with broken connections: that is not told.
    """
    lost = [str(error) for error in failed.values() if isinstance(error, WorkerHealthCheckFailedError)]
    for sign, text in SIGNS.items():
        if any(re.search(sign, error, re.IGNORECASE) for error in lost):
            return text
    if lost:
        return "a worker's process died"
    lines = [line.strip() for line in str(next(iter(failed.values()))).splitlines() if line.strip()]
    if lines and re.search(BROKEN, lines[-1], re.IGNORECASE):
        return "a worker was lost"  # Its peers are heard of first.
    return f"a worker failed with: {lines[-1]}" if lines else "a worker failed"


class Elastic(ElasticScalingPolicy):
    """As many workers as the nodes have room for, within the range asked for."""

    def __init__(self, scaling_config: ScalingConfig, mailbox: Mailbox, global_batch_size: int):
        super().__init__(scaling_config)
        self.mailbox, self.global_batch_size = mailbox, global_batch_size
        self._short_since: float | None = None
        self._placement: PlacementGroupHandle | None = None
        self._looked = self._asked = 0.0

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start at once where all can be had; with fewer only once that has been so for a while."""
        self._maybe_send_resource_request()
        self._asked = 0.0
        if self._placement is not None:
            # What a failed group still holds would count as taken.
            self._placement.shutdown()
            self._placement = None
        number = self.even(self.room())
        now = time.monotonic()
        if number < self.scaling_config.max_workers:
            self._short_since = self._short_since or now
            if number < self.scaling_config.min_workers or now - self._short_since < SETTLE_SECONDS:
                time.sleep(0.2)  # The controller asks again at once.
                return NoopDecision()
        self._short_since = None
        self.mailbox.forget()
        return self._get_resize_decision(number)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Ask the workers to leave, once there is room for more of them."""
        self._maybe_send_resource_request()
        self._placement = worker_group_state.placement_group_handle
        now = time.monotonic()
        workers = worker_group_state.num_workers
        if workers >= self.scaling_config.max_workers:
            return NoopDecision()
        if self._asked:
            late = now - self._asked > LEAVE_SECONDS
            return self._get_resize_decision(self.even(workers + self.room())) if late else NoopDecision()
        if now - max(self._looked, worker_group_state.start_time) < GROW_SECONDS:
            return NoopDecision()
        self._looked = now
        if self.even(workers + self.room()) > workers:
            self._asked = now
            self.mailbox.leave()
        return NoopDecision()

    def even(self, workers: int) -> int:
        """The largest number up to `workers` that is asked for and shares the batch evenly; 0 where there is none."""
        workers = min(workers, self.scaling_config.max_workers)
        while workers > 0 and self.global_batch_size % workers:
            workers -= 1
        return workers

    def room(self) -> int:
        """How many more workers the nodes could hold that are alive and not about to go."""
        one = {k: v for k, v in self.scaling_config._resources_per_worker_not_none.items() if v > 0}
        leaving = ray._private.state.state.get_draining_nodes()
        free = ray._private.state.available_resources_per_node()
        return sum(
            int(min(resources.get(name, 0) // amount for name, amount in one.items()))
            for node, resources in free.items()
            if node not in leaving
        )
