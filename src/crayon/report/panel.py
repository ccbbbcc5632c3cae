"""Images in rows and columns that have names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from crayon.report.style import FAINT, INK, PAPER, fit, font

SIDE = 96
"""Images are enlarged to about this many pixels."""
GAP = 3


def panel(images: Tensor, rows: Sequence[str], columns: Sequence[str], title: str = "") -> Image.Image:
    """uint8 (R * K, 1 or 3, H, W), row by row, with R names on the left and K above. A name's "\\n" breaks its line."""
    count, _, side, _ = images.shape
    if count != len(rows) * len(columns):
        raise ValueError(f"{count} images for {len(rows)} rows of {len(columns)}")
    scale = max(1, round(SIDE / side))
    side *= scale
    pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)
    face, bold = font(12), font(14)
    left = max((int(face.getlength(line)) for name in rows for line in name.split("\n")), default=0)
    left = left + 14 if left else 0
    lines = max((name.count("\n") + 1 for name in columns if name), default=0)
    head = 16 * lines + (6 if lines else 0)
    top = head + (30 if title else 6)
    size = (left + len(columns) * (side + GAP) + GAP, top + len(rows) * (side + GAP) + GAP)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((6, 7), fit(title, bold, size[0] - 12), fill=INK, font=bold)
    for k, name in enumerate(columns):
        middle = left + GAP + k * (side + GAP) + side / 2
        for n, line in enumerate(name.split("\n")):
            line = fit(line, face, side)
            draw.text((middle - face.getlength(line) / 2, top - head + 16 * n), line, fill=FAINT, font=face)
    for r, name in enumerate(rows):
        y = top + GAP + r * (side + GAP)
        parts = name.split("\n")
        for n, line in enumerate(parts):
            draw.text((6, y + side / 2 - 8 * len(parts) + 16 * n), line, fill=INK, font=face)
        for k in range(len(columns)):
            tile = Image.fromarray(np.ascontiguousarray(pixels[r * len(columns) + k]))
            canvas.paste(tile, (left + GAP + k * (side + GAP), y))
    return canvas
