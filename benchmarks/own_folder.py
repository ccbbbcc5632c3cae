#!/usr/bin/env python
"""Ours and what a user would otherwise do with a folder of images of several classes, at equal processor time.

    uv run --extra bench benchmarks/own_folder.py FOLDER                       # 1, 3 and 8 minutes each
    uv run --extra bench benchmarks/own_folder.py FOLDER --minutes 1 --seeds 3 --image-size 64

- ours: `crayon cifar10 --data.source folder` with its defaults but for `--epochs`, which are as many as fit.
- scratch: torchvision's ResNet-18, SGD with momentum, one cycle, crops and mirrors: torchvision's usual recipe.
- pretrained: the same network with ImageNet's weights, frozen but for a new last layer, where torchvision has them
  on this machine (TORCH_HOME).
- lightning: the same network from scratch in a LightningModule, Adam at 1e-3, as Lightning's documentation trains.

All have the same splits, size and number of threads, choose their epoch by validation, and are measured once on test.
Processor time is counted from the first batch, validation included, imports, decoding and the last measurement not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64
ARMS = ("ours", "scratch", "pretrained", "lightning")


class Data:
    """The three splits, as ours has them: uint8 (N, 3, H, W) and labels."""

    def __init__(self, folder: str, size: int):
        from crayon import data
        from crayon.config.names import override
        from crayon.tasks.jobs import get

        changes = {"data.source": "folder", "data.root": folder, "data.image_size": size}
        splits = data.load(override(get("cifar10"), changes).data, labels=True)
        if splits.val is None or splits.test is None:
            sys.exit(f"{folder} has no test split; give it folders train and test.")
        everything = (splits.train, splits.val, splits.test)
        self.train, self.val, self.test = ((s.gather(torch.arange(len(s))), s.labels) for s in everything)
        self.classes = len(splits.train.classes)


def scores(probabilities: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """`accuracy` and `balanced`, the mean of the classes' recalls, in percent."""
    right = (probabilities.argmax(1) == labels).double()
    recalls = [float(right[labels == c].mean()) for c in range(classes) if (labels == c).any()]
    return {"accuracy": 100 * float(right.mean()), "balanced": 100 * statistics.mean(recalls)}


def normalised(images: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    return (images.float() / 255 - mean) / deviation


def augmented(images: Tensor) -> Tensor:
    """Crops after padding by an eighth, and mirrors."""
    size = images.shape[-1]
    pad = size // 8
    padded = F.pad(images.float(), (pad,) * 4, mode="reflect").to(torch.uint8)
    made = []
    for image in padded:
        y, x = torch.randint(0, 2 * pad + 1, (2,)).tolist()
        image = image[:, y : y + size, x : x + size]
        made.append(image.flip(2) if torch.rand(()) < 0.5 else image)
    return torch.stack(made)


def batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch."""
    for chosen in torch.randperm(len(images)).split(BATCH):
        if len(chosen) > 1:
            yield normalised(augmented(images[chosen])), labels[chosen]


@torch.no_grad()
def predicted(network: nn.Module, images: Tensor) -> Tensor:
    network.eval()
    found = torch.cat([network(normalised(part)) for part in images.split(256)])
    network.train()
    return found


class Best:
    """The weights of the epoch that was best on the validation split."""

    def __init__(self, network: nn.Module, data: Data):
        self.network, self.data, self.accuracy = network, data, -1.0
        self.weights: dict[str, Tensor] = {}

    def look(self) -> None:
        found = scores(predicted(self.network, self.data.val[0]), self.data.val[1], self.data.classes)
        if found["accuracy"] > self.accuracy:
            self.accuracy = found["accuracy"]
            self.weights = {k: v.clone() for k, v in self.network.state_dict().items()}

    def measured(self) -> dict[str, float]:
        self.network.load_state_dict(self.weights)
        return scores(predicted(self.network, self.data.test[0]), self.data.test[1], self.data.classes)


def resnet(classes: int, weights: Any = None) -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18(weights=weights)
    if weights is not None:
        network.requires_grad_(False)
    network.fc = nn.Linear(network.fc.in_features, classes)
    return network


def scratch(
    data: Data, seconds: float, network: nn.Module | None = None, peak: float = 0.1
) -> dict[str, float]:
    """SGD, momentum .9, weight decay 5e-4, one cycle over the processor time there is."""
    network = network or resnet(data.classes)
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad],
        peak,
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True,
    )
    best, begun, epochs = Best(network, data), time.process_time(), 0
    done = 0.0
    while done < 1:
        for images, labels in batches(*data.train):
            done = (time.process_time() - begun) / seconds
            if done >= 1:
                break
            optimizer.param_groups[0]["lr"] = peak * max(0.0, min(done / 0.3, (1 - done) / 0.7))
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels, label_smoothing=0.1).backward()
            optimizer.step()
        best.look()
        epochs += 1
    return {**best.measured(), "epochs": epochs, "seconds": time.process_time() - begun}


def pretrained(data: Data, seconds: float) -> dict[str, float]:
    """A new last layer on frozen features."""
    from torchvision.models import ResNet18_Weights

    weights = ResNet18_Weights.IMAGENET1K_V1
    if not Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name).exists():
        sys.exit("no weights at hand")
    return scratch(data, seconds, resnet(data.classes, weights), peak=0.02)


def lightning(data: Data, seconds: float) -> dict[str, float]:
    """LightningModule, Trainer.fit, Adam."""
    try:
        import pytorch_lightning as pl
    except ImportError:
        sys.exit("not installed (the extra `bench`)")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = resnet(data.classes)

        def training_step(self, batch: Any, number: int) -> Tensor:
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    module = Module()
    best, begun = Best(module.network, data), time.process_time()

    class Clock(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = time.process_time() - begun >= seconds

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            best.look()

    class Epochs(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in batches(*data.train):
                if time.process_time() - begun >= seconds:
                    return
                yield images, labels

    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=-1,
            accelerator="cpu",
            callbacks=[Clock()],
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(Epochs(), batch_size=None))
    return {**best.measured(), "epochs": trainer.current_epoch, "seconds": time.process_time() - begun}


def ours(folder: str, size: int, seed: int, seconds: float) -> dict[str, float]:
    """As the command trains, in this process: first for an epoch or two, by which the epochs that fit are known."""
    import crayon
    from crayon.tasks import recipe

    settings = {"data.source": "folder", "data.root": folder, "data.image_size": size, "seed": seed}
    settings |= {"workers": 0, "wandb": "off", "threads": torch.get_num_threads()}
    config = crayon.preset("cifar10", **settings)
    usual = recipe.fitted(config).epochs
    with tempfile.TemporaryDirectory() as runs, contextlib.suppress(KeyboardInterrupt):
        place = {"storage": runs}
        short = max(1, usual // 20)
        first = _spent(crayon.preset("cifar10", **settings, **place, epochs=short))
        epochs = max(1, int(short * seconds / first))
        config = crayon.preset("cifar10", **settings, **place, epochs=epochs)
        spent = _spent(config, name="run")
        run = crayon.Run(f"{runs}/run")
        confusion = torch.tensor(json.loads((run.path / "confusion.json").read_text())["counts"]).double()
        recalls = confusion.diag() / confusion.sum(1).clamp(min=1)
        return {
            "accuracy": 100 * run.result["test/accuracy"],
            "balanced": 100 * float(recalls[confusion.sum(1) > 0].mean()),
            "epochs": epochs,
            "usual": usual,
            "seconds": spent,
        }


def _spent(config: Any, name: str = "short") -> float:
    """Processor seconds of training and validation."""
    import dataclasses

    import crayon
    from crayon.training import worker

    counted = 0.0
    fit = worker.Trainer.fit

    def timed(trainer: Any) -> None:
        nonlocal counted
        begun = time.process_time()
        fit(trainer)
        counted = time.process_time() - begun

    worker.Trainer.fit = timed  # type: ignore[method-assign]
    try:
        crayon.train(dataclasses.replace(config, name=name))
    finally:
        worker.Trainer.fit = fit  # type: ignore[method-assign]
    return counted


def measure(arm: str, folder: str, size: int, seed: int, seconds: float, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    if arm == "ours":
        return ours(folder, size, seed, seconds)
    run: Callable[[Data, float], dict[str, float]] = {
        "scratch": scratch,
        "pretrained": pretrained,
        "lightning": lightning,
    }[arm]
    return run(Data(folder, size), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="with train/<class>/ and test/<class>/")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 8])
    parser.add_argument("--seeds", type=int, default=1, help="repetitions")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    known = parser.parse_args()
    if known.one:
        arm, minutes, seed = known.one.split(",")
        found = measure(arm, known.folder, known.image_size, int(seed), 60 * float(minutes), known.threads)
        print(json.dumps(found))
        return
    print("| processor time | | accuracy, % | balanced, % | epochs | n |\n|---|---|---|---|---|---|")
    for minutes in known.minutes:
        for arm in known.arms:
            rows = []
            for seed in range(known.seeds):
                words = [sys.executable, __file__, known.folder, "--one", f"{arm},{minutes},{seed}"]
                words += ["--image-size", str(known.image_size), "--threads", str(known.threads)]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(
                        f"| {minutes:g} min | {arm} | {(done.stderr.strip() or '?').splitlines()[-1]} | | | |"
                    )
                    break
                rows.append(json.loads(done.stdout.splitlines()[-1]))
            if rows:
                columns = [", ".join(f"{row[k]:.1f}" for row in rows) for k in ("accuracy", "balanced")]
                epochs = ", ".join(f"{row['epochs']:.0f}" for row in rows)
                print(
                    f"| {minutes:g} min | {arm} | {' | '.join(columns)} | {epochs} | {len(rows)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
