"""Functions called on the nodes of the Ray cluster to which this process is connected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crayon.errors import last_line


def on_nodes(
    function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], seconds: float = 100.0
) -> dict[str, Any]:
    """What a function returns on each node, called at the same time with the node's arguments; {"failed": why} where it
    raised, did not outlive that or did not answer within `seconds`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    running = {
        node: task.options(scheduling_strategy=Affinity(node, soft=False)).remote(*given)
        for node, given in arguments.items()
    }
    if running:
        ray.wait(list(running.values()), num_returns=len(running), timeout=seconds)
    answers = {}
    for node, reference in running.items():
        try:
            answers[node] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            answers[node] = {"failed": f"no answer within {seconds:.0f} s"}
        except Exception as error:
            answers[node] = {"failed": last_line(error)}
    return answers
