"""`crayon JOB evaluate`: the figures and pictures that training ends with, of any checkpoint on any data source."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from crayon.config.names import flatten
from crayon.config.settings import DataConfig
from crayon.errors import BadInput, Stopped
from crayon.report.events import Emit, Finished, Images, Message, ignore
from crayon.use.inputs import absolute
from crayon.use.output import Output
from crayon.use.settings import Context, EvaluateConfig
from crayon.use.spread import BlockFunction, run_blocks

if TYPE_CHECKING:
    from crayon.data import ImageSet, Splits
    from crayon.tasks.base import Statistics
    from crayon.training.checkpoint import Entry
    from crayon.use.model import Model

    Opened = tuple[Model, Splits, dict[str, ImageSet]]
    """The model, the data, and the splits to measure by name."""

BATCHES = 8
"""Batches of evaluation in a block."""
SPLITS = ("train", "val", "test")


class InMemory(dict[str, "Statistics"]):
    """Blocks that end with the command: an evaluation that was stopped starts from its beginning."""

    holds = dict.__contains__
    write = dict.__setitem__


def run(settings: EvaluateConfig, context: Context) -> None:
    """Write result.json with the metrics under training's names, pictures and report.html. Raises BadInput."""
    from crayon.report import page
    from crayon.system.host import arithmetic, environment
    from crayon.training import worker
    from crayon.training.evaluation import combine
    from crayon.use import runs

    began = time.perf_counter()
    config, labels = _data(settings, runs.find(settings.run, settings.checkpoint), context)
    found = partial(
        _opened,
        absolute(settings.run),
        device=settings.device,
        data=config,
        labels=labels,
        split=settings.data.split,
    )
    model, splits, named = opened = found(settings.checkpoint, emit=context.emit)
    identity = {
        "command": "evaluate",
        "model": model.uri,
        "step": model.step,
        "data": flatten(config),
        "split": settings.data.split,
        "images": splits.fingerprint,
    }
    output = Output(settings.out, identity)
    with output.locked():
        if (result := output.result()) is not None:
            context.emit(Message("This was done already; these are its results."))
            context.emit(Finished(result, str(output.path)))
            return
        changes = _changes(model, config, splits)
        for text in changes:
            context.emit(Message(text, warning=True))
        batch = model.config.eval.batch_size
        blocks = [
            (name, k, count)
            for name, images in named.items()
            for count in [max(1, -(-len(images) // (BATCHES * batch)))]
            for k in range(count)
        ]
        sizes = [_size(named[name], batch, k, count) for name, k, count in blocks]
        made, names = InMemory(), [f"{name}-{k}" for name, k, _ in blocks]
        again = partial(found, model.step) if settings.workers else lambda: opened
        factory = partial(_measure, again, blocks)
        try:
            rate = run_blocks(factory, names, sizes, made, settings, model.config, context.emit, "evaluating")
        except Stopped:
            raise Stopped("Stopped; the same command evaluates from the beginning.") from None
        context.emit(Message("Summing up."))
        stats = {
            name: combine([made.pop(f"{name}-{k}") for other, k, _ in blocks if other == name])
            for name in named
        }
        train = stats.pop("train", None)
        shown = next((name for name in ("test", "val") if name in stats), None)
        metrics = worker.summarized(model.task, stats, train)
        images, last = (named["train"], train) if shown is None else (named[shown], stats[shown])
        assert last is not None
        drawn = worker.final_pictures(
            model.task, model.networks, images, last, train if shown else None, splits.train, model.device
        )
        for name, picture in drawn.items():
            output.picture(f"pictures/{name}", picture)
        result = {
            "job": model.job,
            "preset": model.config.preset,
            "name": output.path.name,
            "model": model.uri,
            "step": model.step,
            "data": flatten(config),
            "images": {name: len(images) for name, images in named.items()},
            **metrics,
            "data_changes": changes,
            "seconds": time.perf_counter() - began,
            "images_per_second": rate,
            "command": context.command,
            "environment": environment() | {"precision": arithmetic(model.precision, model.device)},
        }
        output.write("images.json", json.dumps(splits.about).encode())
        output.finish(result)
        page.write(output.path)
        context.emit(Finished(result, str(output.path)))


def _data(settings: EvaluateConfig, entry: Entry, context: Context) -> tuple[DataConfig, bool | None]:
    """The data to measure on, of the model's size, and whether a folder is read for labels. Raises BadInput where it
    isn't there."""
    from crayon import data
    from crayon.training import checkpoint
    from crayon.use.model import experiment
    from crayon.use.table import same_job

    whole = experiment(entry, checkpoint.load(entry, groups=[]).config)
    same_job(whole.job, entry.uri, context)
    own, asked = whole.data, settings.data
    root = absolute(asked.root) if asked.root else None
    if asked.source is None or asked.source == own.source:
        config = dataclasses.replace(own, root=root or own.root, size=asked.size or own.size)
    else:
        other = dataclasses.replace(own, test_fraction=None, groups=None)
        config = dataclasses.replace(other, source=asked.source, root=root, size=asked.size)
    labels = None if whole.needs_labels else False
    data.check(config, labels=labels)
    return config, labels


def _changes(model: Model, config: DataConfig, splits: Splits) -> list[str]:
    """What changed of the run's own images since it was trained, if it is these that are measured on."""
    from crayon.training import checkpoint, data_history

    if config != model.config.data:
        return []
    history = data_history.of(checkpoint.load(model.entry, groups=[]))
    text = data_history.changed(history[-1], data_history.seen(model.config, splits))
    return [f"The images changed: {text} than when this model was trained."] if text else []


def _opened(
    run: str,
    checkpoint: str | int,
    device: str,
    data: DataConfig,
    labels: bool | None,
    split: str,
    emit: Emit = ignore,
) -> Opened:
    """The splits are in the order of SPLITS, with labels that are the model's. Raises BadInput."""
    from crayon.data import load
    from crayon.data.validate import brought
    from crayon.use import runs
    from crayon.use.model import open_model

    splits = load(data, labels=labels, emit=emit)
    if brought(data):
        emit(Images(splits.about))
    model = open_model(runs.find(run, checkpoint), device, splits.info())
    found = {name: images for name in SPLITS if (images := getattr(splits, name)) is not None}
    if split not in ("all", *found):
        raise BadInput(f"{splits.source} has no {split} split; choose --data.split from {', '.join(found)}.")
    chosen = [split] if split != "all" else list(found)
    if split == "all" and not model.task.evaluates_train and len(found) > 1:
        chosen.remove("train")
    return model, splits, {name: _relabelled(found[name], model) for name in chosen}


def _relabelled(images: ImageSet, model: Model) -> ImageSet:
    """`images` with the model's labels, where it has some. Raises BadInput where its classes are others."""
    names = model.info.classes
    other = next((f"the class {name!r}" for name in images.classes if name not in names), "no classes")
    if other != "no classes" or (names and not images.classes):
        raise BadInput(
            f"{images.name} has {other} and the model has {', '.join(names[:12])}; give data with the model's classes."
        )
    return images.relabelled(names)


def _measure(opened: Callable[[], Opened], blocks: list[tuple[str, int, int]]) -> BlockFunction:
    """What makes blocks of statistics, (split, number, of how many), in whatever process it is called."""
    from crayon.data import evaluation_batches
    from crayon.tasks.base import Statistics
    from crayon.training import evaluation

    model, _, named = opened()
    config = dataclasses.replace(model.config, precision=model.precision)

    def make(block: int, following: int | None) -> Statistics:
        split, number, count = blocks[block]
        batches = evaluation_batches(
            named[split],
            batch_size=config.eval.batch_size,
            rank=number,
            world_size=count,
            device=model.device,
            channels_last=config.channels_last,
        )
        size = _size(named[split], config.eval.batch_size, number, count)
        stats = evaluation.partial(model.task, model.networks, batches, config, model.device, size)
        return Statistics(*({k: v.cpu() for k, v in part.items()} for part in (stats.sums, stats.rows)))

    return make


def _size(images: ImageSet, batch: int, number: int, count: int) -> int:
    """Images in block `number` of `count`, which takes every `count`th batch."""
    total = len(images)
    return sum(min(batch, total - k * batch) for k in range(number, -(-total // batch), count))
