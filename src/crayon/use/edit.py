"""`edit`: seeds moved along directions that `explore` found."""

from __future__ import annotations

import io
import json
import math
import re

import torch
from torch import Tensor

from crayon.errors import BadInput
from crayon.report.events import Message
from crayon.report.plots import image_grid
from crayon.system.files import expanded
from crayon.tasks.adversarial import directions
from crayon.use import model as inference
from crayon.use.output import file_for, write_file
from crayon.use.seeds import Seeds
from crayon.use.settings import Context, EditConfig

MOST_SEEDS = 64
_MOVE = re.compile(r"(\d+)=([+-]?[0-9.]+(?:[eE][+-]?\d+)?)")


def run(settings: EditConfig, context: Context) -> None:
    """Writes `--out`: each seed's image as it is, and moved. Raises CrayonError."""
    seeds = Seeds(settings.seeds)
    if seeds.count > MOST_SEEDS:
        raise BadInput(f"--seeds {settings.seeds!r} are {seeds.count:,}; at most {MOST_SEEDS} are shown.")
    path = file_for(settings.out, (".png",))
    content = _read(settings.directions)
    model = inference.load(settings.run, settings.checkpoint, settings.device)
    known = directions.read(content, settings.directions, model.network("generator", "edit").latent_dim)
    if known.step != model.step or known.run != model.uri:
        where = f"{known.run} (step {known.step})" if known.run else "another generator"
        text = f"{settings.directions} was made for {where}; here its directions may mean something else."
        context.emit(Message(text, warning=True))
    moves = parse(settings.along, len(known))
    order = list(seeds)
    latents = model.latents(torch.tensor(order))
    moved = directions.edited(latents, known, moves.expand(len(order), -1))
    images = torch.stack([model.decode(latents), model.decode(moved)])  # (2, N, C, H, W)
    picture = image_grid(
        images.flatten(0, 1),
        scale=None,
        row_names=["before", f"after\n{settings.along}"],
        column_names=[f"seed {s}" for s in order],
    )
    file = io.BytesIO()
    picture.save(file, "PNG")
    write_file(path, file.getvalue())
    context.emit(Message(f"{len(order)} edited in {path}"))


def parse(along: str, count: int) -> Tensor:
    """The strengths of `count` directions, from `1=2.5,3=-1`: float32 (count,). Raises BadInput."""
    moves = torch.zeros(count)
    named: set[int] = set()
    for part in along.replace(" ", "").split(","):
        match = _MOVE.fullmatch(part)
        try:
            k, strength = int(match[1]), float(match[2])  # type: ignore[index]
        except (TypeError, ValueError):
            raise BadInput(
                f"--along {along!r}: {part!r} isn't a direction and a strength, such as 1=2.5 (several: 1=2.5,3=-1)."
            ) from None
        if not 1 <= k <= count or k in named:
            why = f"direction {k} is there twice" if k in named else f"there are directions 1 to {count}"
            raise BadInput(f"--along {along!r}: {why}; write each at most once.")
        if not math.isfinite(strength) or abs(strength) > 100:
            raise BadInput(f"--along {along!r}: strengths lie in -100..100.")
        named.add(k)
        moves[k - 1] = strength
    return moves


def _read(file: str) -> object:
    try:
        return json.loads(expanded(file).read_bytes())
    except FileNotFoundError:
        raise BadInput(f"There is no file {file}; `explore` writes one called directions.json.") from None
    except (OSError, ValueError, RecursionError):
        raise BadInput(
            f"{file} can't be read as JSON; give the directions.json that explore wrote."
        ) from None
