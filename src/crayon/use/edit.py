"""`edit`: seeds moved along directions that `explore` found."""

from __future__ import annotations

import json
import re

import torch
from torch import Tensor

from crayon.errors import BadInput
from crayon.report.events import Message
from crayon.report.plots import image_grid
from crayon.report.style import png
from crayon.system.files import expanded
from crayon.tasks.adversarial import directions
from crayon.use.model import load
from crayon.use.output import file_for, write_file
from crayon.use.seeds import Seeds
from crayon.use.settings import Context, EditConfig

MOST_SEEDS = 64
_MOVE = re.compile(r"(\d+)=([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")


def run(settings: EditConfig, context: Context) -> None:
    """Writes `--out`: each seed's image as it is, and moved. Raises CrayonError."""
    seeds = Seeds(settings.seeds, most=MOST_SEEDS)
    path = file_for(settings.out, (".png",))
    try:
        content = json.loads(expanded(settings.directions).read_bytes())
    except FileNotFoundError:
        raise BadInput(
            f"There is no file {settings.directions}; `explore` writes one called directions.json."
        ) from None
    except (OSError, ValueError):
        raise BadInput(
            f"{settings.directions} can't be read as JSON; give the directions.json that explore wrote."
        ) from None
    model = load(settings.run, settings.checkpoint, settings.device)
    model.needs("edit")
    known = directions.read(content, settings.directions, model.task.latent_dim)
    if known.step != model.step or known.run != model.uri:
        where = f"{known.run} (step {known.step})" if known.run else "another generator"
        text = f"{settings.directions} was made for {where}; here its directions may mean something else."
        context.emit(Message(text, warning=True))
    moves = parse(settings.along, len(known))
    latents = model.latents(torch.tensor(list(seeds)))
    moved = directions.edited(latents, known, moves.expand(len(seeds), -1))
    picture = image_grid(
        torch.cat([model.decode(latents), model.decode(moved)]),
        scale=None,
        row_names=["before", f"after\n{settings.along}"],
        column_names=[f"seed {s}" for s in seeds],
    )
    write_file(path, png(picture))
    context.emit(Message(f"{len(seeds)} edited in {path}"))


def parse(along: str, count: int) -> Tensor:
    """The strengths of `count` directions, from `1=2.5,3=-1`: float32 (count,). Raises BadInput."""
    moves: dict[int, float] = {}
    for part in along.replace(" ", "").split(","):
        match = _MOVE.fullmatch(part)
        if not match:
            raise BadInput(
                f"--along {along!r}: {part!r} isn't a direction and a strength, such as 1=2.5 (several: 1=2.5,3=-1)."
            )
        k, strength = int(match[1]), float(match[2])
        if not 1 <= k <= count or k in moves:
            why = f"direction {k} is there twice" if k in moves else f"there are directions 1 to {count}"
            raise BadInput(f"--along {along!r}: {why}; write each at most once.")
        if abs(strength) > 100:
            raise BadInput(f"--along {along!r}: strengths lie in -100..100.")
        moves[k] = strength
    return torch.tensor([moves.get(k + 1, 0.0) for k in range(count)])
