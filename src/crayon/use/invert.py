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
from crayon.use import model as inference
from crayon.use.output import Output
from crayon.use.settings import Context, InvertConfig


def run(settings: InvertConfig, context: Context) -> None:
    """Leaves in `--out`: inverted.png (given, nearest seed, refined) and result.json with the seed, the latents and the
    errors. Raises CrayonError."""
    model = inference.load(settings.run, settings.checkpoint, settings.device)
    generator = model.network("generator", "invert")
    given = _given(model, settings.image)
    output = Output(
        settings.out,
        {
            "command": "invert",
            "run": model.uri,
            "weights": model.digest,
            "image": str(expanded(settings.image)),
            "search": settings.search,
            "space": settings.space,
            "refine": settings.refine,
        },
    )
    assert isinstance(model.config, AdversarialExperiment)
    net = extractor(model.config.task.extractor).to(model.device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return net(images.to(model.device).float() / 255)

    def pixels(images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255

    with output.locked():
        seeds, distances = nearest(
            given,
            model.generate,
            features if settings.space == "features" else pixels,
            settings.search,
            progress=lambda done: _progress(context, "searching", done, settings.search, "seeds"),
        )
        found = model.generate(seeds[:1])
        shown, names = [given, found[0]], ["given", f"seed {int(seeds[0])}"]
        result: dict[str, Any] = {
            "seed": int(seeds[0]),
            "seeds": seeds.tolist(),
            "distances": distances.tolist(),
            "space": settings.space if settings.space == "pixels" else net.name,
            "nearest": _errors(given, found[0], features),
        }
        if settings.refine:
            latents, errors = refine(
                generator,
                given,
                model.latents(seeds),
                settings.refine,
                net if settings.space == "features" else None,
                lambda done: _progress(context, "refining", done, settings.refine, "steps"),
            )
            latent = latents[errors.argmin()].cpu()
            refined = model.decode(latent[None])[0]
            shown, names = [*shown, refined], [*names, "refined"]
            result |= {"refined": _errors(given, refined, features), "latent": latent.tolist()}
        stages = [key for key in ("nearest", "refined") if key in result]
        told = [f"{key}: {_text(result[key])}" for key in stages]
        captions = [names[0], *(f"{n}\n{_psnr(result[k])}" for n, k in zip(names[1:], stages, strict=True))]
        output.picture("inverted", image_grid(torch.stack(shown), scale=None, column_names=captions))
        output.finish(result | {"command_line": context.command})
    message = f"Seed {result['seed']} is the nearest of {settings.search:,}.  {';  '.join(told)}."
    context.emit(Message(f"{message}  {output.path / 'inverted.png'}"))


def _given(model: inference.Model, image: str) -> Tensor:
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


def _psnr(errors: dict[str, float]) -> str:
    return f"PSNR {errors['psnr']:.1f} dB" if errors["mse"] else "identical"


def _text(errors: dict[str, float]) -> str:
    return f"{_psnr(errors)}, MSE {errors['mse']:.5f}, feature distance {errors['feature_distance']:.3g}"


def _progress(context: Context, what: str, done: int, total: int, unit: str) -> None:
    context.emit(Progress(what, done, total, unit))
