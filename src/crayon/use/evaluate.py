"""`crayon JOB evaluate`: the figures and pictures that training ends with, of any checkpoint on any data source."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crayon.config.settings import DataConfig, Experiment
from crayon.errors import BadInput
from crayon.report.events import Finished, Message, ignore
from crayon.use.output import Output
from crayon.use.settings import Context, EvaluateConfig
from crayon.use.spread import BlockFunction, run_blocks

if TYPE_CHECKING:
    from crayon.data import ImageSet, Splits
    from crayon.tasks.base import Statistics
    from crayon.use.model import Model

BATCHES = 8
"""Batches of evaluation in a block."""
SPLITS = ("train", "val", "test")


def run(settings: EvaluateConfig, context: Context) -> None:
    """Write result.json with the metrics under training's names, pictures and report.html. Raises BadInput."""
    from crayon.report import page
    from crayon.system.host import environment
    from crayon.training import worker
    from crayon.training.evaluation import combine
    from crayon.use import runs

    began = time.perf_counter()
    config = _data_checked(settings, runs.find(settings.run, settings.checkpoint), context)
    measure = Measure(_absolute(settings.run), settings.checkpoint, settings.device, config)
    model, splits = measure.opened(context)
    measure = dataclasses.replace(measure, checkpoint=str(model.step))
    named = _chosen(splits, settings.data.split, model)
    output = Output(settings.out, _identity(model, config, settings))
    with output.locked():
        result = output.result()
        if result is not None:
            context.emit(Message("This was done already; these are its results."))
            context.emit(Finished(result, str(output.path)))
            return
        blocks = [(name, k) for name, images in named.items() for k in range(_blocks(images, model))]
        counts = [_count(named[name], model, k) for name, k in blocks]
        rate = run_blocks(
            dataclasses.replace(measure, blocks=tuple(blocks)),
            [_part(*block) for block in blocks],
            counts,
            output,
            workers=settings.workers,
            device=settings.device,
            config=model.config,
            emit=context.emit,
            what="evaluating",
        )
        context.emit(Message("Summing up."))
        stats = {
            name: combine([_decoded(output, name, k) for k in range(_blocks(images, model))])
            for name, images in named.items()
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
            "data": dataclasses.asdict(config),
            "images": {name: len(images) for name, images in named.items()},
            **metrics,
            "seconds": time.perf_counter() - began,
            "images_per_second": rate,
            "command": context.command,
            "environment": environment(),
        }
        output.finish(result)
        page.write(output.path)
        context.emit(Finished(result, str(output.path)))


def _absolute(run: str) -> str:
    return run if "://" in run else os.path.abspath(os.path.expanduser(run))


def _data_checked(settings: EvaluateConfig, entry: Any, context: Context) -> DataConfig:
    """The data to measure on, of the model's size. Raises BadInput where it isn't there."""
    from crayon import data
    from crayon.training import checkpoint
    from crayon.use.model import experiment
    from crayon.use.table import same_job

    whole = experiment(entry, checkpoint.load(entry, groups=[]).config)
    same_job(whole.job, entry.uri, context)
    own = whole.data
    asked = settings.data
    root = os.path.abspath(os.path.expanduser(asked.root)) if asked.root else None
    if asked.source is None or asked.source == own.source:
        config = dataclasses.replace(own, root=root or own.root, size=asked.size or own.size)
    else:
        config = dataclasses.replace(own, source=asked.source, root=root, size=asked.size)
    data.check(config, labels=False)
    return config


def _identity(model: Model, config: DataConfig, settings: EvaluateConfig) -> dict[str, Any]:
    return {
        "command": "evaluate",
        "model": model.uri,
        "step": model.step,
        "data": dataclasses.asdict(config),
        "split": settings.data.split,
    }


def _chosen(splits: Splits, wanted: str, model: Model) -> dict[str, ImageSet]:
    """The splits to measure, by name, in the order of SPLITS, with labels that are the model's."""
    found = {name: images for name in SPLITS if (images := getattr(splits, name)) is not None}
    if wanted != "all":
        if wanted not in found:
            raise BadInput(
                f"{splits.source} has no {wanted} split; choose --data.split from {', '.join(found)}."
            )
        found = {wanted: found[wanted]}
    elif not model.task.evaluates_train and len(found) > 1:
        del found["train"]
    return {name: relabelled(images, model) for name, images in found.items()}


def relabelled(images: ImageSet, model: Model) -> ImageSet:
    """`images` with the model's labels, where it has some. Raises BadInput where its classes are others."""
    import torch

    from crayon.data import ImageSet

    names = model.info.classes
    if model.task.count_classes(model.networks.state_dict()) is None or images.classes == names:
        return images
    if not model.named and len(images.classes) == len(names):
        return images
    other = [name for name in images.classes if name not in names]
    if other or not images.classes:
        raise BadInput(
            f"{images.name} has {f'the class {other[0]!r}' if other else 'no classes'} and the model has "
            f"{', '.join(names[:12])}; give data with the model's classes."
        )
    number = torch.tensor([names.index(name) for name in images.classes])
    return ImageSet(images.name, images.storage, number[images.labels], names, images.rows)


def _blocks(images: ImageSet, model: Model) -> int:
    return max(1, -(-len(images) // (BATCHES * model.config.eval.batch_size)))


def _count(images: ImageSet, model: Model, block: int) -> int:
    size, total = model.config.eval.batch_size, len(images)
    batches = range(block, -(-total // size), _blocks(images, model))
    return sum(min(size, total - batch * size) for batch in batches)


def _part(split: str, block: int) -> str:
    return f"parts/{split}-{block:06d}.safetensors"


@dataclass(frozen=True)
class Measure:
    """Makes blocks of statistics, in whatever process it is called. See crayon.use.spread."""

    run: str
    checkpoint: str
    device: str
    data: DataConfig
    blocks: tuple[tuple[str, int], ...] = ()
    """(split, number) of each."""

    def opened(self, context: Context | None = None) -> tuple[Model, Splits]:
        from crayon import data
        from crayon.use import runs
        from crayon.use.model import open_model

        splits = data.load(self.data, labels=False, emit=context.emit if context else ignore)
        return open_model(runs.find(self.run, self.checkpoint), self.device, splits.info()), splits

    def __call__(self) -> BlockFunction:
        from safetensors.torch import save

        from crayon.data import evaluation_batches
        from crayon.fast.allocator import keep_freed_memory
        from crayon.training.evaluation import partial

        keep_freed_memory()
        model, splits = self.opened()
        config: Experiment = dataclasses.replace(model.config, precision=model.precision)
        named: dict[str, ImageSet] = {}

        def make(block: int, following: int | None) -> bytes:
            split, number = self.blocks[block]
            if split not in named:
                named[split] = relabelled(getattr(splits, split), model)
            batches = evaluation_batches(
                named[split],
                batch_size=config.eval.batch_size,
                rank=number,
                world_size=_blocks(named[split], model),
                device=model.device,
                channels_last=config.channels_last,
            )
            count = _count(named[split], model, number)
            stats = partial(model.task, model.networks, batches, config, model.device, count)
            tensors = {f"sums.{name}": value for name, value in stats.sums.items()}
            tensors |= {f"rows.{name}": value for name, value in stats.rows.items()}
            return save({name: value.cpu().contiguous() for name, value in tensors.items()})

        return make


def _decoded(output: Output, split: str, block: int) -> Statistics:
    from safetensors.torch import load_file

    from crayon.tasks.base import Statistics

    parts: dict[str, dict[str, Any]] = {"sums": {}, "rows": {}}
    for name, value in load_file(output.path / _part(split, block)).items():
        kind, _, bare = name.partition(".")
        parts[kind][bare] = value
    return Statistics(**parts)
