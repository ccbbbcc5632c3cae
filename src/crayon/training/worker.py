"""One worker's part of a run, from data to the last picture: what runs in this process with `--workers 0`, and in
every Ray Train worker otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from PIL import Image

from crayon import data, tasks
from crayon.config.names import flatten, override
from crayon.config.pairs import range_text
from crayon.config.settings import Experiment
from crayon.data.fingerprint import class_changes
from crayon.data.types import Batch
from crayon.data.validate import brought
from crayon.errors import BadInput
from crayon.fast.allocator import keep_freed_memory
from crayon.report import animation, curves, page
from crayon.report.events import Emit, Finished, Images, Message, Started, ignore
from crayon.report.style import png
from crayon.report.wandb_follower import Follower
from crayon.report.words import data_text
from crayon.rng import Randomness
from crayon.system import devices
from crayon.system.host import arithmetic, computes_bf16, environment
from crayon.system.runfolder import RESULT, RunFolder
from crayon.tasks.adversarial.features import PREFERRED, chosen
from crayon.tasks.base import Networks, Seen, Statistics, Task
from crayon.training import data_history, scaling
from crayon.training.checkpoint import latest, load
from crayon.training.collectives import Group
from crayon.training.evaluation import evaluate
from crayon.training.initial import initialise, weights_of
from crayon.training.loop import Trainer

FEW_STEPS = 200
"""Below this the presets' learning rates and BatchNorm's running statistics have no time to get anywhere."""


def run_worker(
    config: Experiment,
    run: RunFolder,
    *,
    group: Group | None = None,
    emit: Emit = ignore,
    should_stop: Callable[[], bool] = lambda: False,
    started: float | None = None,
    command: str = "",
    measure: bool = True,
    splits: data.Splits | None = None,
) -> dict[str, Any] | None:
    """Load the data, train, evaluate the best weights once on every split, and leave the results in `run`.

    Without `measure`, only train: nothing is logged elsewhere, and the test split isn't looked at. splits: the images,
    where they are loaded already.
    Returns the content of `result.json` on rank 0, None on the others. Raises CrayonError.
    """
    group = group or Group()
    first = group.rank == 0
    tell = emit if first else ignore
    run.tell = lambda text: tell(Message(text))
    asked, config = config.data.range, decided(config, run, group)
    if splits is None or config.data.range != asked:  # images are scaled as when the run began
        splits = load_data(config, tell)
    if brought(config.data):
        tell(Images(splits.about))
    config = decided(config, run, group, splits)
    about: dict[str, Any] = {
        "project": config.wandb_project,
        "name": run.name,
        "group": config.job,
        "job_type": "train",
    }
    about |= {"config": flatten(config)}
    follower = Follower(run, config.wandb, run.tell, about) if first and measure else None
    try:
        trainer = build(config, splits, run, group=group, emit=tell, should_stop=should_stop, started=started)
        if first and run.holds(RESULT):
            run.remove(RESULT)  # of the epochs before it was extended
        tell(
            Started(
                job=config.job,
                name=run.name,
                folder=run.uri,
                epochs=config.epochs,
                total_steps=trainer.total_steps,
                device=str(group.device),
                precision=arithmetic(config.precision, group.device),
                threads=trainer.threads.most if group.device.type == "cpu" else None,
                workers=group.world_size,
                parameters=sum(p.numel() for p in trainer.networks.parameters()),
                train_images=len(splits.train),
                source=data_text(config.data.source, config.data.root),
            )
        )
        if config.precision == "bf16" and not computes_bf16(group.device):
            what = "GPU" if group.device.type == "cuda" else "processor"
            text = (
                f"bf16 is emulated on this {what}, many times slower than fp32; a run of another --name with "
                "--precision auto uses fp32."
            )
            tell(Message(text, warning=True))
        if trainer.total_steps < FEW_STEPS:
            text = (
                f"Only {trainer.total_steps} updates in all, which may be too few to learn much; if so, give more "
                "--epochs or a smaller --global-batch-size."
            )
            tell(Message(text, warning=True))
        if measure and (text := scaling.expected(trainer)):
            tell(Message(text))
        trainer.fit()
        if not measure:
            return None
        tell(Message("Measuring the final model."))
        result, _ = conclude(trainer, command)
    finally:
        upload = follower.finish() if follower else ""
    if not first:
        return None
    tell(Finished(result, run.uri, upload))
    return result


def load_data(config: Experiment, emit: Emit = ignore) -> data.Splits:
    """The images of `config`."""
    return data.load(config.data, labels=config.needs_labels, emit=emit)


def build(config: Experiment, splits: data.Splits, run: RunFolder, **options: Any) -> Trainer:
    """The trainer of `config`, with the initial weights that its seed decides. `options`: as Trainer takes them."""
    keep_freed_memory()
    group, emit = options.get("group") or Group(), options.get("emit", ignore)
    data_history.check_workers(splits, group, emit)
    entry = latest(run) if group.rank == 0 else None
    history = group.broadcast_object(entry and data_history.of(load(entry, groups=[])))
    if history:
        data_history.check(history, data_history.seen(config, splits), config, f"Run {run.name!r}")
    if group.rank == 0:
        run.write_json("images.json", splits.about)
    config = decided(config, run, group, splits)
    Randomness(config.seed, "weights").seed_torch()
    task = tasks.build(config, splits.info())
    if config.init_from is not None and history is None:
        weights, classes = weights_of(config.init_from)
        taken, left = initialise(task.networks, weights)
        if not taken:
            raise BadInput(f"--init-from: nothing in {config.init_from} fits this network; first {left[0]}.")
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        said = f"; not {', '.join(left[:3])}{more}" if left else ""
        text = f"Began with {len(taken)} of {len(taken) + len(left)} tensors of {config.init_from}{said}."
        emit(Message(text))
        here = splits.train.classes
        if config.needs_labels and classes and (changes := class_changes(classes, here)):
            counts = f"{len(classes)} of them, here {len(here)}"
            text = f"{config.init_from} was trained with other classes: {counts} ({changes})."
            emit(Message(text, warning=True))
        if group.rank == 0:
            run.write_json("initial.json", {"from": config.init_from, "taken": taken, "not taken": left})
    return Trainer(config, task, splits, run, **options)


def decided(
    config: Experiment, run: RunFolder, group: Group, splits: data.Splits | None = None
) -> Experiment:
    """`config` with each `auto` that the machine or the images decide (DECIDED_ONCE) decided: as the run in `run` was
    begun, else by what all workers have. What the images decide needs `splits`, unless it was decided before. Every
    worker takes part; rank 0 keeps it in config.json, too."""
    choices: dict[str, tuple[str, str, bool]] = {
        "precision": ("bf16", "fp32", computes_bf16(group.device)),
        "task.extractor": (*PREFERRED, chosen("auto") == PREFERRED[0]),
        "data.range": ("auto", "auto", True),
    }
    if splits is not None:
        unbalanced = splits.info().unbalanced
        choices["task.balance"] = "weights", "none", unbalanced
        choices["task.monitor"] = "balanced_accuracy", "accuracy", unbalanced
        if limits := splits.train.limits:  # of images of more than 8 bits
            choices["data.range"] = range_text(*limits), "auto", True
    flat = flatten(config)
    undecided = [name for name in sorted(choices) if flat.get(name) == "auto"]
    if not undecided:
        return config
    entry = latest(run) if group.rank == 0 else None
    recorded = load(entry, groups=[]).config if entry else {}
    answers: dict[str, Any] = {}
    for name in undecided:
        preferred, other, here = choices[name]
        everywhere = bool(group.all_reduce_min(torch.tensor(int(here))))
        # A run of a version that didn't have the setting goes on as it began.
        before = recorded.get(name, other if recorded else "auto")
        answers[name] = before if before != "auto" else preferred if everywhere else other
    undecided_config, config = config, override(config, group.broadcast_object(answers))
    if group.rank == 0 and config != undecided_config:
        run.write_json("config.json", flatten(config))
        run.push("config.json")
    return config


def conclude(trainer: Trainer, command: str) -> tuple[dict[str, Any], list[Statistics]]:
    """Evaluate the selected weights on every split and write result.json, the pictures and report.html.

    Returns the content of result.json (rank 0) and the statistics of the validation and test splits. Every worker
    takes part in the evaluation; rank 0 writes. The test split is looked at here and nowhere else.
    """
    task, splits, run, config = trainer.task, trainer.splits, trainer.run, trainer.config
    trainer.average.copy_buffers(trainer.group)
    step = trainer.selection.load_best(run, trainer.average, trainer.group) or trainer.step
    measure = partial(evaluate, task, trainer.average.measured(), config=config, group=trainer.group)
    train = measure(splits.train) if task.evaluates_train else None
    measured = {
        name: measure(images)
        for name, images in (("val", splits.val), ("test", splits.test))
        if images is not None
    }
    if trainer.group.rank != 0:
        return {}, list(measured.values())
    figures = summarized(task, measured, train)
    final = next(reversed(measured.values()), None)
    _draw(trainer, final, train)
    if final and "confusion" in final.sums:
        counts = final.sums["confusion"].tolist()
        run.write_json("confusion.json", {"classes": splits.train.classes, "counts": counts})
    images = trainer.total_steps * config.global_batch_size
    result: dict[str, Any] = {
        "job": config.job,
        "preset": config.preset,
        "name": run.name,
        "step": step,
        "epoch": step // trainer.steps_per_epoch,
        "epochs": config.epochs,
        **figures,
        "data_changes": data_history.notes(trainer.data),
        "images_per_second": images / max(trainer.train_seconds, 1e-9),
        "train_seconds": trainer.train_seconds,
        "seconds": trainer.seconds(),
        "workers": trainer.group.world_size,
        "command": command,
        "environment": environment() | {"precision": arithmetic(config.precision, trainer.device)},
    }
    run.write_json("result.json", result)
    page.write(run.path)
    run.push()
    return result, list(measured.values())


def summarized(
    task: Task, measured: Mapping[str, Statistics], train: Statistics | None = None
) -> dict[str, float]:
    """The figures of the splits "val" and "test", as far as they were measured, and "train": {"test/accuracy": ...}."""
    metrics = {} if train is None else {"train": task.summarize(train)}
    for name, stats in measured.items():
        # A probe is fitted once, for the split whose figures count.
        final = name == "test" or "test" not in measured
        metrics[name] = task.summarize(stats, train if final else None)
    return {f"{split}/{name}": value for split, found in metrics.items() for name, value in found.items()}


def final_pictures(
    task: Task,
    networks: Networks,
    images: data.ImageSet,
    stats: Statistics,
    train: Statistics | None,
    train_images: data.ImageSet,
    device: torch.device,
) -> dict[str, Image.Image]:
    """The task's pictures of `images`, whose statistics are `stats`. Networks are put into evaluation mode."""
    show, show_train = (partial(_pick, pixels, device) for pixels in (images, train_images))
    for network in networks.values():
        network.eval()
    with torch.no_grad():
        return task.pictures(networks, Seen(stats, show), None if train is None else Seen(train, show_train))


def _draw(trainer: Trainer, final: Statistics | None, train: Statistics | None) -> None:
    run, splits = trainer.run, trainer.splits
    rows = run.read_rows("metrics.jsonl")
    pictures = {"learning_curves": curves.learning_curves(rows)} if rows else {}
    images = splits.val if splits.test is None else splits.test
    if final and images is not None:
        networks, device = trainer.average.measured(), devices.exact(trainer.device)
        pictures |= final_pictures(trainer.task, networks, images, final, train, splits.train, device)
    for name, picture in pictures.items():
        run.write_bytes(f"pictures/{name}.png", png(picture))
    frames = sorted((run.path / "pictures" / "over_time").glob("epoch-*.png"))
    if len(frames) > 1:
        made = animation.progress_gif([Image.open(frame).convert("RGB") for frame in frames])
        run.write_bytes("pictures/over_time.gif", made)


def _pick(images: data.ImageSet, device: torch.device, positions: torch.Tensor) -> Batch:
    """The images at `positions` of their split as one batch."""
    positions = positions.cpu()
    pixels = images.gather(positions).to(device=device, dtype=torch.float32).div_(255)
    return Batch(pixels, images.labels[positions].to(device), positions.to(device))
