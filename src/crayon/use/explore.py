"""`explore`: directions in the latent space along which a generator's images change most."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from crayon.report.events import Message
from crayon.report.plots import image_grid
from crayon.tasks.adversarial import directions
from crayon.use.model import load
from crayon.use.output import Output, identity
from crayon.use.seeds import Seeds
from crayon.use.settings import Context, ExploreConfig

MOST_PICTURES = 64
FILE = "directions.json"


def run(settings: ExploreConfig, context: Context) -> None:
    """Leaves in `--out`: directions.json, and for each seed a picture seed-N.png with one direction per row and
    strengths in columns. Raises CrayonError."""
    seeds = Seeds(settings.seeds, most=MOST_PICTURES)
    steps = directions.strengths(settings.strength, settings.columns)
    model = load(settings.run, settings.checkpoint, settings.device)
    model.needs("edit")
    generator: Any = model.networks["generator"]
    found = directions.find(generator, settings.method, settings.directions)
    found = dataclasses.replace(found, run=model.uri, step=model.step)
    about = identity(settings, model, seeds=seeds.text)
    output = Output(settings.out, about)
    rows = [f"{k + 1}\n{100 * float(share):.0f} %" for k, share in enumerate(found.shares)]
    columns = [f"{float(s):+g}" if s else "0" for s in steps]
    # (directions * columns, directions)
    moves = torch.cat([torch.outer(steps, row) for row in torch.eye(len(found))])
    with output.locked():
        output.write(FILE, found.text())
        for seed in seeds:
            latents = directions.edited(model.latents(torch.tensor([seed])), found, moves)
            title = f"Seed {seed} along {len(found)} directions, by standard deviations"
            images = model.decode(latents)
            grid = image_grid(images, scale=None, row_names=rows, column_names=columns, title=title)
            output.picture(f"seed-{seed:09d}", grid)
        output.finish(about | {"shares": found.shares.tolist(), "command_line": context.command})
    total = 100 * float(found.shares.sum())
    text = f"{len(found)} directions with {total:.0f} % of the variance, in {output.path / FILE}"
    context.emit(Message(text))
