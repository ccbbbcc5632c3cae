"""Procedural faces: no download, no licence, no real people, and every factor known.

Face i of seed s is the same picture in whatever batch it is drawn. Everything is a soft-edged shape in the head's own
coordinates (x right, y down, the face about an ellipse of half-axes `width` and `height`), painted back to front.

Shapes: N faces, S pixels a side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crayon.data.procedural.factors import BACKGROUND, CLASSES, CLOTHES, HAIR_COLOURS, SKIN, Factors, pick
from crayon.data.procedural.features import Canvas, beard, eyes, glasses, mouth, nose_shade, nostrils

__all__ = ["CLASSES", "TEST_SIZE", "TRAIN_SIZE", "VERSION", "render"]

VERSION = 1
TRAIN_SIZE, TEST_SIZE = 12_000, 2_000
ROWS_AT_ONCE = 16
"""Faces drawn at a time: they stay in the processor's cache."""


def render(indices: Tensor, size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The faces of `indices`, int64 (N,), any numbers, with 32 to 256 pixels a side: uint8 (N, 3, size, size) and the
    mode of each, int64 (N,) in 0..44, an index into `CLASSES`."""
    images, labels = [], []
    for part in indices.split(ROWS_AT_ONCE):
        # Always whole chunks: a kernel may round differently for another shape.
        padded = torch.cat([part, part[-1:].expand(ROWS_AT_ONCE - len(part))])
        f = Factors(padded, seed)
        images.append(_paint(f, size)[: len(part)])
        labels.append(f.labels[: len(part)])
    return torch.cat(images), torch.cat(labels)


def _paint(f: Factors, size: int) -> Tensor:
    c = Canvas(f, size)
    skin = f.colour(SKIN, "skin") * torch.cat(
        [1 + 0.06 * f["ruddy"], torch.ones_like(f["ruddy"]), 1 - 0.05 * f["ruddy"]], 1
    ).unsqueeze(-1)
    hair_colour = f.colour(HAIR_COLOURS, "hair_colour")
    strands = _strands(c, f)
    _background(c, f)
    _hair_behind(c, f, hair_colour, strands)
    _neck_and_clothes(c, f, skin)
    light = _head(c, f, skin)
    nostrils(c, f, skin)
    beard(c, f, hair_colour)
    mouth(c, f, skin)
    eyes(c, f, skin, hair_colour)
    _hair_in_front(c, f, hair_colour, strands, light)
    glasses(c, f)
    return c.image.mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


def _background(c: Canvas, f: Factors) -> None:
    """A wall out of focus: a soft gradient, darker towards the corners."""
    shade = f["slope"] * c.px - f["haze"] * c.py - 0.10 * (c.px.square() + c.py.square())
    torch.add(f.colour(BACKGROUND, "background"), shade[:, None], out=c.image)


def _strands(c: Canvas, f: Factors) -> Tensor:
    """How light the hair is at each pixel, about 1: strands that fan out from the parting, and a band of gloss."""
    fan = (c.x - f["parting"] * 0.6) / (c.y + 2.2)
    tone = (fan * 27 + f["grain"]).sin_().mul_(0.05).add_((fan * 12 - 2 * f["grain"]).sin_(), alpha=0.08)
    curly = (f.hair == 4).nonzero()[:, 0]
    x, y, grain = c.x[curly], c.y[curly], f["grain"][curly]
    curls = (x * 12 + (y * 7 + grain).sin_().mul_(2)).sin_()
    tone[curly] = curls.mul_((y * 11 + 3 * x - grain).sin_()) * 0.15
    gloss = (c.y + 0.78 - 0.30 * c.x.square() - 0.15 * f["light_x"] * c.x).div_(0.20)
    gloss = gloss.square_().add_(1).reciprocal_()
    return tone.addcmul_(gloss, pick((0.0, 0.26, 0.24, 0.26, 0.10), f.hair)).add_(0.94)


def _hair_behind(c: Canvas, f: Factors, colour: Tensor, strands: Tensor) -> None:
    """The hair's outline around the head; long hair falls to the shoulders."""
    big = pick((0.5, 1.12, 1.20, 1.17, 1.36), f.hair) + f["volume"]
    fall = pick((1.0, 1.0, 0.40, 0.60, 0.95), f.hair)
    y = c.y + 0.10
    y = torch.where(y > 0, y * fall, y) / f["height"]
    ragged = pick((0.0, 0.0, 0.10, 0.05, 0.35), f.hair) * (strands - 0.94)
    inside = big.square() - (c.x / f["width"]).square() - y.square() + ragged
    c.paint(c.edge(inside, 0.45) * (f.hair > 0).view(-1, 1, 1), colour * (strands * 0.72)[:, None])


def _neck_and_clothes(c: Canvas, f: Factors, skin: Tensor) -> None:
    c = c.band(0.6, 1)
    neck = c.edge(0.50 * f["width"] + 0.10 * (c.y - 1).clamp(min=0) - c.x.abs())
    shadow = 0.62 + 0.26 * ((c.y - f["height"]) * 2.2).clamp_(0, 1)
    c.paint(neck, skin * shadow[:, None])
    # Shoulders slope outwards from a round neckline.
    collar = 1.14 + 0.10 * c.x.square() + 0.16 * (1 - (c.x / 0.46).square()).clamp_(min=0).sqrt_()
    fold = 0.80 + 0.10 * f["light_x"] * c.x + 0.16 * ((c.y - collar) * 9).clamp_(0, 1)
    c.paint(c.edge(c.y - collar), f.colour(CLOTHES, "clothes") * fold[:, None])


def _head(c: Canvas, f: Factors, skin: Tensor) -> Tensor:
    """Ears and face with light from one side. Returns the light, (N, S, S)."""
    ears = c.band(0.25, 0.85)
    ear = 1 - ((ears.u.abs() - 1.0) / 0.13).square() - ((ears.v - 0.02) / 0.24).square()
    mask = (ear * 1.6 * c.sharp * 0.08 + 0.5).clamp_(0, 1)
    ears.paint(mask, skin * (0.72 + 0.10 * ear.clamp(0, 1))[:, None])

    facing = (1 - 0.62 * c.d).clamp_(min=0)
    slant = 0.30 * (f["light_x"] * c.u + f["light_y"] * c.v)
    light = (0.60 + 0.42 * facing + slant).clamp_(0.25, 1.25) * f["light"]
    light += nose_shade(c, f)
    colour = skin * light[:, None]
    cheek = (c.a.abs() - 0.46).square().add_((c.b - 0.22).square()).mul_(14).add_(1).reciprocal_()
    cheek = cheek * f["blush"]
    colour[:, 0] += 0.35 * cheek
    colour[:, 1:] -= 0.25 * cheek[:, None]
    c.paint(((1 - c.d) * c.sharp * 0.45 + 0.5).clamp_(0, 1), colour)
    return light


def _hair_in_front(c: Canvas, f: Factors, colour: Tensor, strands: Tensor, light: Tensor) -> None:
    """The hairline over the forehead: a sweep to the side, a parting, a straight fringe, a round edge."""
    c = c.band(0, 0.66)
    rows = slice(c.u.shape[1])
    line = pick((-9.0, -0.64, -0.72, -0.40, -0.62), f.hair) + f["hairline"]
    bow = pick((0.0, 0.34, 0.62, 0.06, 0.25), f.hair)
    below = line + bow * (c.u - f["parting"]).square() - c.v
    on_head = c.edge(1.08 - c.d, 0.45) * (f.hair > 0).view(-1, 1, 1)
    tone = strands[:, rows] * (0.74 + 0.26 * light[:, rows])
    # A soft shadow first, so that the hair lies on the forehead rather than in it.
    c.paint(((below + 0.08) * 7).clamp_(0, 1) * on_head * 0.22, colour * 0.5)
    c.paint(c.edge(below) * on_head, colour * tone[:, None])
