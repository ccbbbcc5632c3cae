"""Procedural faces: no download, no licence, no real people, and every factor known.

Face i of seed s is the same picture in whatever batch it is drawn. Everything is a soft-edged shape in the head's own
coordinates (x right, y down, the face about an ellipse of half-axes `width` and `height`), painted back to front.

Shapes: N faces, S pixels a side, R rows of a band.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crayon.data.procedural.factors import BACKGROUND, CLASSES, CLOTHES, HAIR_COLOURS, SKIN, Factors, pick
from crayon.data.procedural.features import beard, eyes, glasses, mouth, nose_shade, nostrils

__all__ = ["CLASSES", "TEST_SIZE", "TRAIN_SIZE", "VERSION", "Canvas", "render"]

VERSION = 1
TRAIN_SIZE, TEST_SIZE = 12_000, 2_000
ROWS_AT_ONCE = 16
"""Faces drawn at a time: they stay in the processor's cache."""


def render(indices: Tensor, size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw faces.

    Args:
        indices: int64 (N,), any numbers.
        size: pixels a side, 32 to 256.

    Returns:
        uint8 (N, 3, size, size) and the mode of each, int64 (N,) in 0..44, an index into `CLASSES`.
    """
    images, labels = [], []
    for part in indices.split(ROWS_AT_ONCE):
        # Always whole chunks: a kernel may round differently for another shape.
        padded = torch.cat([part, part[-1:].expand(ROWS_AT_ONCE - len(part))])
        f = Factors(padded, seed)
        images.append(_paint(f, size)[: len(part)])
        labels.append(f.labels[: len(part)])
    return torch.cat(images), torch.cat(labels)


class Canvas:
    """Pictures in progress, and the coordinates to paint in.

    Attributes:
        image: float32 (N, 3, S, S).
        x, y: the head's coordinates at every pixel, (N, S, S).
        u, v: the same divided by the face's width and height: u^2 + v^2 = 1 is its outline.
        a, b: u and v as the features see them, moved by the turn of the head.
        sharp: pixels per unit, the factor that makes an edge one pixel soft, (N, 1, 1).
    """

    def __init__(self, f: Factors, size: int):
        line = (torch.arange(size) + 0.5) * (2 / size) - 1
        py, px = line.view(1, -1, 1), line.view(1, 1, -1)
        cos, sin = f["roll"].cos() / f["size"], f["roll"].sin() / f["size"]
        dx, dy = px - f["x"], py - f["y"]
        self.f = f
        self.px, self.py = px, py
        self.x, self.y = dx * cos + dy * sin, dy * cos - dx * sin
        self.u = self.x / (f["width"] * (1 - f["jaw"] * self.y.clamp(0, 1.2)))
        self.v = self.y / f["height"]
        self.d = self.u.square() + self.v.square()
        self.a = self.u - f["yaw"] * 0.4 * (1 - 0.3 * self.u.square())
        self.b = self.v - f["pitch"]
        self.sharp = f["size"] * (size / 2 * 0.9)
        self.image = torch.empty(len(f.labels), 3, size, size)

    def rows(self, top: float, bottom: float) -> slice:
        """The rows between two heights in the picture, 0 = top, 1 = bottom."""
        size = self.image.shape[-1]
        return slice(int(size * top), int(size * bottom))

    def paint(self, mask: Tensor, colour: Tensor, rows: slice = slice(None)) -> None:
        """Lay `colour`, (N, 3, 1, 1) or (N, 3, R, S), over the picture where `mask`, (N, R, S) in [0, 1], says."""
        self.image[:, :, rows].lerp_(colour, mask[:, None])

    def edge(self, distance: Tensor) -> Tensor:
        """1 where `distance` (in units) is positive, 0 where negative, one pixel of transition."""
        return (distance * self.sharp + 0.5).clamp_(0, 1)


def _paint(f: Factors, size: int) -> Tensor:
    c = Canvas(f, size)
    skin = f.colour(SKIN, "skin") * torch.cat(
        [1 + 0.06 * f["ruddy"], torch.ones_like(f["ruddy"]), 1 - 0.05 * f["ruddy"]], 1
    ).unsqueeze(-1)
    hair_colour = f.colour(HAIR_COLOURS, "hair_colour")
    strands = _strands(c)
    _background(c)
    _hair_behind(c, hair_colour, strands)
    _neck_and_clothes(c, skin)
    light = _head(c, skin)
    nostrils(c, skin)
    beard(c, hair_colour)
    mouth(c, skin)
    eyes(c, skin, hair_colour)
    _hair_in_front(c, hair_colour, strands, light)
    glasses(c)
    return c.image.mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


def _background(c: Canvas) -> None:
    """A wall out of focus: a soft gradient, darker towards the corners."""
    f = c.f
    shade = f["slope"] * c.px - f["haze"] * c.py - 0.10 * (c.px.square() + c.py.square())
    torch.add(f.colour(BACKGROUND, "background"), shade[:, None], out=c.image)


def _strands(c: Canvas) -> Tensor:
    """How light the hair is at each pixel, about 1: strands that fan out from the parting, and a band of gloss."""
    f, x, y = c.f, c.x, c.y
    fan = (x - f["parting"] * 0.6) / (y + 2.2)
    tone = (fan * 27 + f["grain"]).sin_().mul_(0.05).add_((fan * 12 - 2 * f["grain"]).sin_(), alpha=0.08)
    curly = (f.hair == 4).nonzero()[:, 0]
    cx, cy, grain = x[curly], y[curly], f["grain"][curly]
    tone[curly] = (cx * 12 + (cy * 7 + grain).sin_().mul_(2)).sin_().mul_(
        (cy * 11 + 3 * cx - grain).sin_()
    ) * 0.15
    gloss = (
        (y + 0.78 - 0.30 * x.square() - 0.15 * f["light_x"] * x).div_(0.20).square_().add_(1).reciprocal_()
    )
    return tone.addcmul_(gloss, pick((0.0, 0.26, 0.24, 0.26, 0.10), f.hair)).add_(0.94)


def _hair_behind(c: Canvas, colour: Tensor, strands: Tensor) -> None:
    """The hair's outline around the head; long hair falls to the shoulders."""
    f = c.f
    rows = slice(None)
    big = pick((0.5, 1.12, 1.20, 1.17, 1.36), f.hair) + f["volume"]
    fall = pick((1.0, 1.0, 0.40, 0.60, 0.95), f.hair)
    y = c.y[:, rows] + 0.10
    y = torch.where(y > 0, y * fall, y) / f["height"]
    wave = strands - 0.94
    ragged = pick((0.0, 0.0, 0.10, 0.05, 0.35), f.hair) * wave
    inside = big.square() - (c.x[:, rows] / f["width"]).square() - y.square() + ragged
    mask = (inside * (c.sharp * 0.45) + 0.5).clamp_(0, 1) * (f.hair > 0).view(-1, 1, 1)
    c.paint(mask, colour * (strands * 0.72)[:, None], rows)


def _neck_and_clothes(c: Canvas, skin: Tensor) -> None:
    f = c.f
    rows = c.rows(0.6, 1)
    x, y = c.x[:, rows], c.y[:, rows]
    neck = c.edge(0.50 * f["width"] + 0.10 * (y - 1).clamp(min=0) - x.abs())
    shadow = 0.62 + 0.26 * ((y - f["height"]) * 2.2).clamp_(0, 1)
    c.paint(neck, skin * shadow[:, None], rows)
    # Shoulders slope outwards from a round neckline.
    collar = 1.14 + 0.10 * x.square() + 0.16 * (1 - (x / 0.46).square()).clamp_(min=0).sqrt_()
    cloth = c.edge(y - collar)
    fold = 0.80 + 0.10 * f["light_x"] * x + 0.16 * ((y - collar) * 9).clamp_(0, 1)
    c.paint(cloth, f.colour(CLOTHES, "clothes") * fold[:, None], rows)


def _head(c: Canvas, skin: Tensor) -> Tensor:
    """Ears and face with light from one side. Returns the light, (N, S, S)."""
    f = c.f
    ear_rows = c.rows(0.25, 0.85)
    side = (c.u[:, ear_rows].abs() - 1.0) / 0.13
    ear = 1 - side.square() - ((c.v[:, ear_rows] - 0.02) / 0.24).square()
    c.paint(
        (ear * 1.6 * c.sharp * 0.08 + 0.5).clamp_(0, 1),
        skin * (0.72 + 0.10 * ear.clamp(0, 1))[:, None],
        ear_rows,
    )

    facing = (1 - 0.62 * c.d).clamp_(min=0)
    slant = 0.30 * (f["light_x"] * c.u + f["light_y"] * c.v)
    light = (0.60 + 0.42 * facing + slant).clamp_(0.25, 1.25) * f["light"]
    light += nose_shade(c)
    colour = skin * light[:, None]
    cheek = (c.a.abs() - 0.46).square().add_((c.b - 0.22).square()).mul_(14).add_(1).reciprocal_() * f[
        "blush"
    ]
    colour[:, 0] += 0.35 * cheek
    colour[:, 1:] -= 0.25 * cheek[:, None]
    c.paint(((1 - c.d) * c.sharp * 0.45 + 0.5).clamp_(0, 1), colour)
    return light


def _hair_in_front(c: Canvas, colour: Tensor, strands: Tensor, light: Tensor) -> None:
    """The hairline over the forehead: a sweep to the side, a parting, a straight fringe, a round edge."""
    f = c.f
    rows = c.rows(0, 0.66)
    u, v = c.u[:, rows], c.v[:, rows]
    line = pick((-9.0, -0.64, -0.72, -0.40, -0.62), f.hair) + f["hairline"]
    bow = pick((0.0, 0.34, 0.62, 0.06, 0.25), f.hair)
    below = line + bow * (u - f["parting"]).square() - v
    on_head = ((1.08 - c.d[:, rows]) * (c.sharp * 0.45) + 0.5).clamp_(0, 1) * (f.hair > 0).view(-1, 1, 1)
    tone = strands[:, : u.shape[1]] * (0.74 + 0.26 * light[:, rows])
    # A soft shadow first, so that the hair lies on the forehead rather than in it.
    c.paint(((below + 0.08) * 7).clamp_(0, 1) * on_head * 0.22, colour * 0.5, rows)
    c.paint(c.edge(below) * on_head, colour * tone[:, None], rows)
