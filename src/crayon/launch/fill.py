"""Before training on several nodes: the images of a set in an object store, or in shards, decoded by Ray Data on all of
the workers' nodes, once, and copied into the cache of each. No process group is there yet, whose operations would give
up after half an hour.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crayon.config.settings import DataConfig, Experiment
from crayon.data import cache, decoded, remote
from crayon.data.ahead import ahead
from crayon.launch.backends import Meeting
from crayon.report.events import Emit, Progress

PIECE_BYTES = 32 * 2**20
"""Of a file, sent at a time."""
SENT_AHEAD = 2
"""Pieces that are on their way while one is written."""
FILES = 128
"""Image files that a task of Ray Data decodes."""


def fill(
    config: Experiment, others: Meeting, cores: int, emit: Emit, should_stop: Callable[[], bool]
) -> None:
    """Give every node of the workers the decoded images, where several nodes would decode the same. Each worker takes
    part; what is there already stays.

    cores: of each worker; they are free as long as nothing trains. Raises CrayonError, Stopped among them.
    """
    data, here = config.data, ray.get_runtime_context().get_node_id()
    if data.source != "folder" or data.root is None or data.cache == "off":
        return
    others.note(f"node/{others.rank}", here)
    if others.rank == 0:
        nodes = [others.noted(f"node/{rank}", should_stop) for rank in range(others.world_size)]
        made = []
        if len(set(nodes)) > 1 and remote.takes(data.root):  # the threads of one node decode as fast
            for split in remote.find(data, labels=config.needs_labels).splits.values():
                read = partial(_on_nodes, split, data, nodes, cores)
                made.append(
                    (str(split), *decoded.keys(split, data), str(decoded.entry(split, data, read, emit)))
                )
        others.note("decoded", json.dumps([here, made]))
        return
    node, made = json.loads(others.noted("decoded", should_stop))
    for title, name, key, entry in made:
        cache.cached(name, key, partial(_copy, node=node, entry=entry, title=f"copying {title}", emit=emit))


def _on_nodes(
    split: remote.Split, config: DataConfig, nodes: list[str], cores: int, first: int
) -> Iterator[decoded.Batch]:
    """The split's images from its file number `first` on, in order, as Ray Data's tasks on the nodes decode them."""
    import ray.data

    count, step = len(split.files), FILES if split.kind == "Image" else 1
    parts = [range(start, min(start + step, count)) for start in range(first, count, step)]
    places = itertools.cycle(nodes)

    def place() -> dict[str, Any]:
        # Not where nobody trains: that may be the head of the cluster, or somebody else's.
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(next(places), soft=True)}

    def decode(batch: dict[str, Any]) -> Iterator[decoded.Batch]:
        for number in batch["item"].tolist():
            yield from decoded.batches(split, parts[number], config, threads=2)

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    tasks = min(len(parts), cores * len(nodes))
    dataset = ray.data.from_items(list(range(len(parts))), override_num_blocks=len(parts)).map_batches(
        # The workers have reserved the cores, and don't use them yet.
        decode,
        batch_size=1,
        num_cpus=0,
        concurrency=tasks,
        ray_remote_args_fn=place,
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy")


def _copy(folder: Path, node: str, entry: str, title: str, emit: Emit) -> None:
    """Make an entry of the cache as another node has it."""
    for begun in folder.iterdir():  # what was decoded here of it, in a run before
        begun.unlink()
    there: dict[str, Any] = {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }
    sizes = ray.get(ray.remote(**there)(_sizes).remote(entry))
    places = [(file, at) for file, size in sizes for at in range(0, max(size, 1), PIECE_BYTES)]
    read = ray.remote(**there)(_piece)
    pieces = ahead(lambda place: ray.get(read.remote(entry, *place)), places, SENT_AHEAD, SENT_AHEAD)
    for done, ((file, _), piece) in enumerate(zip(places, pieces, strict=True), 1):
        with (folder / file).open("ab") as output:
            output.write(piece)
        emit(Progress(title, done, len(places)))


def _sizes(entry: str) -> list[tuple[str, int]]:
    """The files of an entry, with their bytes."""
    return [(path.name, path.stat().st_size) for path in sorted(Path(entry).iterdir())]


def _piece(entry: str, file: str, at: int) -> bytes:
    with Path(entry, file).open("rb") as content:
        content.seek(at)
        return content.read(PIECE_BYTES)
