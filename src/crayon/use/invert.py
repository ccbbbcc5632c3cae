"""`invert`: the seed, and the latent, whose image is nearest to a given one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crayon.errors import BadInput, one_line
from crayon.report.events import Message, Progress
from crayon.report.plots import image_grid
from crayon.system.files import expanded
from crayon.tasks.adversarial.features import extractor
from crayon.tasks.adversarial.invert import nearest, refine
from crayon.tasks.adversarial.settings import AdversarialExperiment
from crayon.use.model import Model, load
from crayon.use.output import Output, identity
from crayon.use.settings import Context, InvertConfig


def run(settings: InvertConfig, context: Context) -> None:
    """Leaves in `--out`: inverted.png (given, nearest seed, refined) and result.json with the seed, the latents and the
    errors. Raises CrayonError."""
    model = load(settings.run, settings.checkpoint, settings.device)
    model.needs("edit")
    generator: Any = model.networks["generator"]
    given = _given(model, settings.image)
    output = Output(settings.out, identity(settings, model, image=str(expanded(settings.image))))
    assert isinstance(model.config, AdversarialExperiment)
    net = extractor(model.config.task.extractor).to(model.device)
    by_features = settings.space == "features"

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return net(images.to(model.device).float() / 255)

    def pixels(images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255

    def progress(what: str, total: int, unit: str) -> Callable[[int], None]:
        return lambda done: context.emit(Progress(what, done, total, unit))

    with output.locked():
        seeds, distances = nearest(
            given,
            model.generate,
            features if by_features else pixels,
            settings.search,
            progress=progress("searching", settings.search, "seeds"),
        )
        found = {"nearest": model.generate(seeds[:1])[0]}
        result: dict[str, Any] = {
            "seed": int(seeds[0]),
            "seeds": seeds.tolist(),
            "distances": distances.tolist(),
            "space": net.name if by_features else "pixels",
        }
        if settings.refine:
            latents, errors = refine(
                generator,
                given,
                model.latents(seeds),
                settings.refine,
                net if by_features else None,
                progress("refining", settings.refine, "steps"),
            )
            latent = latents[errors.argmin()].cpu()
            found["refined"] = model.decode(latent[None])[0]
            result["latent"] = latent.tolist()
        captions, told = ["given"], []
        for stage, image in found.items():
            far = result[stage] = _errors(given, image, features)
            psnr = f"PSNR {far['psnr']:.1f} dB" if far["mse"] else "identical"
            name = f"seed {result['seed']}" if stage == "nearest" else stage
            captions.append(f"{name}\n{psnr}")
            apart = f"feature distance {far['feature_distance']:.3g}"
            told.append(f"{stage}: {psnr}, MSE {far['mse']:.5f}, {apart}")
        images = torch.stack([given, *found.values()])
        output.picture("inverted", image_grid(images, scale=None, column_names=captions))
        output.finish(result | {"command_line": context.command})
    message = f"Seed {result['seed']} is the nearest of {settings.search:,}.  {';  '.join(told)}."
    context.emit(Message(f"{message}  {output.path / 'inverted.png'}"))


def _given(model: Model, image: str) -> Tensor:
    path = expanded(image)
    if not path.is_file():
        raise BadInput(f"There is no picture {image}; give a file, such as face.jpg.")
    try:
        return model.prepare(path)
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        why = one_line(error, 120)
        raise BadInput(f"{image} can't be read as a picture ({why}); give a JPEG or PNG file.") from None


def _errors(given: Tensor, image: Tensor, features: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Mean squared error per pixel of images in [0, 1], the same as PSNR in dB, and the distance in features."""
    mse = float((given.double() / 255 - image.double() / 255).square().mean())
    apart = float((features(given[None]) - features(image[None])).norm())
    return {"mse": mse, "psnr": 10 * math.log10(1 / max(mse, 1e-10)), "feature_distance": apart}
