"""Before training on several nodes: the images of a set in an object store, or in shards, decoded by Ray Data on all of
the workers' nodes, once, and copied into the cache of each."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crayon.config.settings import DataConfig, Experiment
from crayon.data import cache, decoded, remote
from crayon.report.events import Emit
from crayon.system.lock import Held
from crayon.training.collectives import Group

PIECE_BYTES = 32 * 2**20
"""Of a file, sent at a time."""
SIGN_SECONDS = 10.0
"""How often the first worker says that it is still busy: a collective operation gives up after half an hour."""
FILES = 128
"""Image files that a task of Ray Data decodes."""


def fill(config: Experiment, group: Group, cores: int, emit: Emit) -> None:
    """Give every node of the workers the decoded images. Each worker takes part; what is there already stays.

    cores: of each worker; they are free as long as nothing trains. Raises CrayonError.
    """
    data = config.data
    if data.source != "folder" or data.root is None or data.cache == "off":
        return
    here = ray.get_runtime_context().get_node_id()
    names = group.all_gather(torch.frombuffer(bytearray.fromhex(here), dtype=torch.uint8))
    nodes = [bytes(name.tolist()).hex() for name in names]
    if len(set(nodes)) == 1:
        return  # whose threads decode as fast
    writes = nodes.index(here) == group.rank
    splits = {}
    if group.rank == 0 and remote.takes(data.root):
        splits = remote.find(data, labels=config.needs_labels).splits
    for split in group.broadcast_object(splits).values():
        keys = decoded.keys(split, data)
        entry = cache.place_of(*keys)
        lacking = int(group.all_reduce_sum(torch.tensor(int(writes and not cache.hold(entry)))))
        if not lacking:
            continue
        if group.rank == 0:
            decoded.entry(split, data, partial(_read, split, data, nodes, cores, group), emit)
            group.broadcast_object("decoded")
            for piece in itertools.chain(_pieces(entry), [None]):
                group.broadcast_object(piece)
            continue
        while group.broadcast_object(None) != "decoded":
            pass
        pieces = iter(lambda: group.broadcast_object(None), None)
        if writes:
            with contextlib.suppress(Held):  # another run's worker decodes them, for which `load` then waits
                cache.cached(*keys, partial(_write, pieces=pieces), wait=0)
        for _ in pieces:  # of what isn't written here
            pass


def _read(
    split: remote.Split, config: DataConfig, nodes: list[str], cores: int, group: Group, first: int
) -> Iterator[decoded.Batch]:
    return _signs(_on_nodes(split, config, nodes, cores, first), group)


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


def _signs(batches: Iterator[decoded.Batch], group: Group) -> Iterator[decoded.Batch]:
    """The same, while the other workers are told that there is more to come."""
    said = time.monotonic()
    for batch in batches:
        if time.monotonic() - said > SIGN_SECONDS:
            group.broadcast_object("busy")
            said = time.monotonic()
        yield batch


def _pieces(entry: Path) -> Iterator[tuple[str, bytes]]:
    """The files of an entry."""
    for path in sorted(entry.iterdir()):
        with path.open("rb") as file:
            yield path.name, b""
            while piece := file.read(PIECE_BYTES):
                yield path.name, piece


def _write(folder: Path, pieces: Iterator[tuple[str, bytes]]) -> None:
    for name, piece in pieces:
        with (folder / name).open("ab") as file:
            file.write(piece)
