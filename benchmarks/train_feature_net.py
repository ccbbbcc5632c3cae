"""Train the feature extractor that ships with the package: `crayon64`.

    python benchmarks/train_feature_net.py --cifar10 FOLDER --out src/crayon/metrics/crayon64

FOLDER holds `train/<class>/*` and `test/<class>/*`. Every step sees as many procedural faces as photographs. A third
of the images is blurred or made noisy, and the network must tell by how much: without that, features learn to overlook
just those faults that a generator makes. About five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from crayon.data.procedural import faces
from crayon.data.procedural.factors import Factors
from crayon.tasks.adversarial.features import BEARD, GLASSES, HAIR, Crayon64, resize

HELD_OUT = 10_000_000  # face indices from here on are for testing only


def photographs(folder: Path) -> tuple[Tensor, Tensor]:
    """uint8 (N, 3, 32, 32) and int64 (N,) class indices."""
    images, labels = [], []
    for label, one in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        for path in sorted(one.iterdir()):
            images.append(np.asarray(Image.open(path).convert("RGB")))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def factors(indices: Tensor) -> Tensor:
    """(N, K) what the faces were drawn from, each factor standardised."""
    values = torch.cat([v.flatten(1) for v in Factors(indices, 0).values.values()], 1)
    return (values - values.mean(0)) / values.std(0)


def degrade(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blur and noise a third of the images. Returns the images and the amounts (N, 2) in [0, 1]."""
    n = len(images)
    amounts = torch.rand(n, 2, generator=generator) * (torch.rand(n, 2, generator=generator) < 0.18)
    sigma = (amounts[:, 0] * 2.5 + 1e-3).view(n, 1)
    line = torch.arange(-4, 5).float()
    kernel = torch.exp(-0.5 * (line / sigma) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    chosen = amounts[:, 0] > 0
    if chosen.any():
        k = kernel.view(n, 3, 9)[chosen].view(-1, 1, 9)
        x = images[chosen].reshape(1, -1, *images.shape[2:])
        x = F.conv2d(F.pad(x, (4, 4, 0, 0), mode="replicate"), k[:, :, None, :], groups=len(k))
        x = F.conv2d(F.pad(x, (0, 0, 4, 4), mode="replicate"), k[:, :, :, None], groups=len(k))
        images = images.clone()
        images[chosen] = x.view(-1, *images.shape[1:])
    noise = torch.randn(images.shape, generator=generator) * (amounts[:, 1] * 0.15).view(n, 1, 1, 1)
    return (images + noise).clamp(0, 1), amounts


def mode_parts(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return labels // 9, labels // 3 % 3, labels % 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cifar10", type=Path, required=True, help="folder with train/<class> and test/<class>"
    )
    parser.add_argument("--out", type=Path, required=True, help="path without suffix; .safetensors and .json")
    parser.add_argument("--faces", type=int, default=40_000, help="how many procedural faces to train on")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=64, help="faces per step, and as many photographs")
    args = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)

    indices = torch.arange(args.faces) + 1_000_000  # none of the built-in set's own faces
    face_images, face_labels = faces.render(indices, Crayon64.size)
    face_factors = factors(indices)
    test_images, test_labels = faces.render(torch.arange(4000) + HELD_OUT, Crayon64.size)
    photos, photo_labels = photographs(args.cifar10 / "train")
    test_photos, test_photo_labels = photographs(args.cifar10 / "test")
    print(f"{len(face_images):,} faces, {len(photos):,} photographs")

    net = Crayon64().to(memory_format=torch.channels_last)
    heads = nn.ModuleDict(
        {
            "factors": nn.Linear(64, face_factors.shape[1]),
            "classes": nn.Linear(64, 10),
            "faults": nn.Linear(64, 2),
        }
    )
    parameters = [*net.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.02)

    def parts_loss(z: Tensor, labels: Tensor) -> Tensor:
        logits = net.mode_heads(z).split([HAIR, BEARD, GLASSES], 1)
        return sum(F.cross_entropy(a, b) for a, b in zip(logits, mode_parts(labels), strict=True))

    start, step, share = time.perf_counter(), 0, 0.0
    while share < 1:
        share = min(1.0, (time.perf_counter() - start) / (60 * args.minutes))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 100) * max(0.02, 1 - share)
        i = torch.randint(len(face_images), (args.batch,), generator=generator)
        j = torch.randint(len(photos), (args.batch,), generator=generator)
        drawn, real = face_images[i].float() / 255, resize(photos[j].float() / 255, Crayon64.size)
        # Faces arrive at 32 to 128 px: the features must not hang on the finest detail alone.
        small = int(torch.randint(28, 65, (), generator=generator))
        drawn = resize(resize(drawn, small), Crayon64.size)
        x, faults = degrade(torch.cat([drawn, real]), generator)
        if step % 2:
            x = x.flip(3)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            h = net.body(x * 2 - 1).mean((2, 3))
        z = net.project(h.float())
        zf, zp = z.chunk(2)
        clean = 1 - faults[: args.batch].sum(1, keepdim=True).clamp(max=1)
        loss = (
            parts_loss(zf, face_labels[i])
            + ((heads["factors"](zf) - _mirrored(face_factors[i], bool(step % 2))) ** 2 * clean).mean()
            + F.cross_entropy(heads["classes"](zp), photo_labels[j])
            + 4 * F.mse_loss(heads["faults"](z), faults)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 200 == 0:
            print(f"step {step:,}, {100 * share:.0f} %, loss {loss.item():.3f}", flush=True)

    net.eval()
    with torch.no_grad():
        zf = torch.cat([net(x.float() / 255) for x in test_images.split(500)])
        small = torch.cat([net(resize(x.float() / 255, 32)) for x in test_images.split(500)])
        zp = torch.cat([net(x.float() / 255) for x in test_photos.split(500)])
        report = {
            "name": Crayon64.name,
            "made_by": "benchmarks/train_feature_net.py",
            "trained_on": f"{args.faces} procedural faces (renderer version {faces.VERSION}) and "
            f"{len(photos)} CIFAR-10 training images",
            "steps": step,
            "images_per_step": 2 * args.batch,
            "features": Crayon64.features,
            "held_out_face_mode_accuracy_64px": _accuracy(net.modes(zf), test_labels),
            "held_out_face_mode_accuracy_32px": _accuracy(net.modes(small), test_labels),
            "cifar10_test_accuracy": _accuracy(heads["classes"](zp).argmax(1), test_photo_labels),
        }
    # Unit variance per feature on the clean held-out images: no feature counts for more because of its scale.
    scale = torch.cat([zf, zp]).std(0)
    with torch.no_grad():
        net.project.weight /= scale[:, None]
        net.project.bias /= scale
        net.mode_heads.weight *= scale
    weights = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(
        {k: v.contiguous() for k, v in weights.items() if "num_batches" not in k},
        args.out.with_suffix(".safetensors"),
    )
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


MIRRORED = ("roll", "yaw", "x", "gaze", "parting", "light_x", "slope")


def _mirrored(values: Tensor, mirrored: bool) -> Tensor:
    """The factors of the mirror images: those that point left or right change sign."""
    if not mirrored:
        return values
    names = list(Factors(torch.zeros(1, dtype=torch.int64), 0).values)
    sign = torch.tensor([-1.0 if name in MIRRORED else 1.0 for name in names])
    return values * sign


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return round((predicted == labels).float().mean().item(), 4)


if __name__ == "__main__":
    main()
