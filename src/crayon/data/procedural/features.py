"""What a procedural face is painted on, and its features: nose, beard, mouth, eyes, glasses.

Shapes: N faces, S pixels a side, R rows of a band. See `crayon.data.procedural.faces`.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from crayon.data.procedural.factors import HAIR_COLOURS, IRIS, LIPS, Factors, pick


class Canvas:
    """Pictures in progress, and the coordinates to paint in.

    Attributes:
        image: float32 (N, 3, S, S).
        x, y: the head's coordinates at every pixel, (N, S, S).
        u, v: the same divided by the face's width and height: d = u^2 + v^2 = 1 is its outline.
        a, b: u and v as the features see them, moved by the turn of the head.
        sharp: pixels per unit, the factor that makes an edge one pixel soft, (N, 1, 1).
    """

    def __init__(self, f: Factors, size: int):
        line = (torch.arange(size) + 0.5) * (2 / size) - 1
        py, px = line.view(1, -1, 1), line.view(1, 1, -1)
        cos, sin = f["roll"].cos() / f["size"], f["roll"].sin() / f["size"]
        dx, dy = px - f["x"], py - f["y"]
        self.px, self.py = px, py
        self.x, self.y = dx * cos + dy * sin, dy * cos - dx * sin
        self.u = self.x / (f["width"] * (1 - f["jaw"] * self.y.clamp(0, 1.2)))
        self.v = self.y / f["height"]
        self.d = self.u.square() + self.v.square()
        self.a = self.u - f["yaw"] * 0.4 * (1 - 0.3 * self.u.square())
        self.b = self.v - f["pitch"]
        self.sharp = f["size"] * (size / 2 * 0.9)
        self.image = torch.empty(len(f.labels), 3, size, size)

    def band(self, top: float, bottom: float) -> Canvas:
        """The rows between two heights of the picture, 0 = top, 1 = bottom, to be painted on."""
        size = self.image.shape[-1]
        rows = slice(int(size * top), int(size * bottom))
        band = copy(self)
        band.image = self.image[:, :, rows]
        for name in ("x", "y", "u", "v", "a", "b", "d"):
            setattr(band, name, getattr(self, name)[:, rows])
        return band

    def paint(self, mask: Tensor, colour: Tensor) -> None:
        """Lay `colour`, (N, 3, 1, 1) or (N, 3, R, S), over the picture where `mask`, (N, R, S) in [0, 1], says."""
        self.image.lerp_(colour, mask[:, None])

    def edge(self, distance: Tensor, steepness: float = 1.0) -> Tensor:
        """1 where `distance` (in units) is positive, 0 where negative, 1 / steepness pixels of transition."""
        return (distance * (self.sharp * steepness) + 0.5).clamp_(0, 1)


def _flat(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32).view(1, 3, 1, 1)


def nose_shade(c: Canvas, f: Factors) -> Tensor:
    """What the nose adds to the light on the face, (N, S, S): a bright ridge, a dark side, a shadow below the tip."""
    across = c.a / f["nose_width"]
    tip = f["nose_length"]
    ridge = ((c.b + 0.30) * (tip - c.b) * 30).clamp_(0, 1)
    shade = ridge * (0.09 + 0.10 * f["light_x"] * across).div_(across.square().mul_(4).add_(1))
    below = ((c.b - tip) / 0.055).square_().mul_(3).add_(1)
    shade -= 0.20 / (below * across.square().square_().mul_(1.2).add_(1))
    ball = 1 / (1 + 2.2 * across.square() + ((c.b - tip + 0.08) / 0.07).square_())
    return shade.add_(ball, alpha=0.10)


def nostrils(c: Canvas, f: Factors, skin: Tensor) -> None:
    c = c.band(0.45, 0.8)
    a, b = c.a.abs(), c.b
    hole = 1 - ((a - f["nose_width"] * 0.55) / 0.05).square_() - ((b - f["nose_length"]) / 0.03).square_()
    c.paint((hole * 2).clamp_(0, 0.5), skin * 0.35)


def beard(c: Canvas, f: Factors, hair_colour: Tensor) -> None:
    """Stubble is a tint; a full beard covers jaw and upper lip and leaves the mouth free."""
    c = c.band(0.45, 1)
    a, b, d = c.a.abs(), c.b, c.d
    cheeks = (b - 0.37 + 0.55 * (a - 0.15).clamp(min=0).square_()) * 7
    full = (f.beard == 2).view(-1, 1, 1)
    outline = torch.where(full, 1.10, 0.98) - d
    mask = cheeks.clamp_(0, 1) * c.edge(outline, 0.4)
    grain = (a * 40 + f["grain"]).sin_().mul_(0.05).add_(0.86 + 0.12 * (1 - b))
    c.paint(mask * pick((0.0, 0.36, 0.93), f.beard), hair_colour * grain[:, None])


def mouth(c: Canvas, f: Factors, skin: Tensor) -> None:
    """A curve with corners turned up, lips around it, teeth when it is open."""
    c = c.band(0.5, 1)
    across = (c.a / f["mouth_width"]).square_()
    fade = 1 - across
    y = c.b - f["mouth_level"] + f["smile"] * (across - 0.35)
    open_ = f["open"].clamp(min=0)
    tone = f.colour(LIPS, "lip_colour") * (0.5 + 0.5 * skin)
    lips = ((fade - (y / (f["lip"] + open_)).square_()) * 3).clamp_(0, 1)
    upper = 0.90 + 0.14 * (y * 18).clamp_(-1, 1)
    c.paint(lips * 0.85, tone * upper[:, None])
    inner = ((fade * 0.9 - (y / (open_ + 0.012)).square_()) * 3).clamp_(0, 1)
    c.paint(inner * 0.9, _flat(0.22, 0.08, 0.08))
    teeth = inner * ((open_ * 0.25 - y) * 60).clamp_(0, 1) * (open_ * 30).clamp(0, 1)
    c.paint(teeth, _flat(0.95, 0.93, 0.90))


def eyes(c: Canvas, f: Factors, skin: Tensor, hair_colour: Tensor) -> None:
    """Both at once: across the face they differ by a sign only."""
    c = c.band(0.19, 0.69)
    a, y = c.a, c.b - f["eye_level"]
    side = a.sign()
    t2 = ((a.abs() - f["eye_gap"]) / f["eye_width"]).square_()  # squared place along the eye, 1 = a corner
    fade = 1 - t2
    socket = 0.26 / (1 + 2.2 * t2 + (y / 0.17).square_().mul_(9))
    c.paint(socket, skin * 0.5)
    white = ((fade - (y / f["eye_height"]).square_()) * 2.4).clamp_(0, 1)
    c.paint(white, _flat(0.95, 0.94, 0.92) * f["light"][:, None])
    ax = a - side * f["eye_gap"] - f["gaze"]
    radius2 = (ax.square() + (y + 0.004).square_()).div_(0.092**2)
    c.paint(((1 - radius2) * 2.6).clamp_(0, 1) * white, f.colour(IRIS, "iris"))
    c.paint(((0.26 - radius2) * 6).clamp_(0, 1) * white, _flat(0.03, 0.03, 0.03))
    glint = 1 - ((ax - 0.03).square_() + (y + 0.035).square_()).div_(0.028**2)
    c.paint((glint * 1.5).clamp_(0, 0.9) * white, _flat(1, 1, 1))
    lid = 1 - ((y + f["eye_height"] * fade.clamp(min=0).sqrt_()) / 0.026).square_()
    c.paint(lid.clamp_(0, 1) * (fade * 4 + 0.6).clamp_(0, 0.85), skin * 0.18)
    # Brows: `along` runs from the nose outwards.
    along = (a.abs() - f["eye_gap"]) / f["eye_width"]
    brow = y + f["brow_level"] - f["brow_slope"] * along - 0.045 * (1 - t2)
    hair = ((1.05 - 0.55 * t2 - (brow / f["brow_weight"]).square_()) * 2).clamp_(0, 0.85)
    c.paint(hair, hair_colour * 0.62)


def glasses(c: Canvas, f: Factors) -> None:
    """Round or square frames, dark lenses for sunglasses."""
    worn = (f.glasses > 0).view(-1, 1, 1)
    c = c.band(0.19, 0.69)
    a, y = c.a, c.b - f["eye_level"]
    gx = ((a.abs() - f["eye_gap"]) / (f["eye_width"] * 1.42)).square_()
    gy = (y / (f["eye_width"] * 1.05)).square_()
    square = f["frame"] > 0.5
    reach = torch.where(square, gx.square() + gy.square(), gx + gy)
    lens = ((1 - reach) * 4).clamp_(0, 1)
    sky = 0.10 - 0.16 * y
    c.paint(
        lens * pick((0.0, 0.08, 0.92), f.glasses),
        _flat(0.9, 0.95, 1.15) * sky[:, None].clamp_(0.04, 0.3),
    )
    ring = 1 - ((reach - 1) * torch.where(square, 1.9, 3.2)).square_()
    bridge = (1 - ((y + 0.02) / 0.03).square_()) * (a.abs() < f["eye_gap"] - f["eye_width"] * 1.3)
    arm = (1 - ((y + 0.03) / 0.03).square_()) * (a.abs() > f["eye_gap"] + f["eye_width"] * 1.35) * (c.d < 1)
    frame = torch.maximum(ring, torch.maximum(bridge, arm)).clamp_(0, 1) * worn * 0.92
    shade = f.colour(HAIR_COLOURS, "frame") * 0.55
    c.paint(frame, shade)
