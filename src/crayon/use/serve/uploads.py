"""Pictures that people send, as the images that a model takes, and images as what a page can show.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crayon.data.decode import FORMATS
from crayon.use.png import encode
from crayon.use.serve.guard import HTTPRefusal

MOST_PIXELS = 50_000_000
"""Of an upload, before it is decoded. A few kilobytes can hold an image that fills the memory."""
DIGIT_BOX = 20 / 28
"""MNIST's digits fill a box of 20 pixels in a frame of 28, and lie with their centre of mass at its centre."""
INK = 0.15
"""Share of the full stroke's brightness from which a pixel belongs to the digit."""


def opened(content: bytes) -> Image.Image:
    """The picture in an upload, its pixels not decoded yet. Raises HTTPRefusal: 422 no picture, 413 too many pixels."""
    if not content:
        raise HTTPRefusal(422, "The request has no picture in its body.")
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is large and raises from twice that on; the limit here is a lower one.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise HTTPRefusal(413, _too_many("far too many")) from None
    except Exception:  # Pillow's plugins raise nearly anything on damaged files
        raise HTTPRefusal(
            422, f"This is no picture that can be read; send one of {', '.join(FORMATS)}."
        ) from None
    if image.width * image.height > MOST_PIXELS:
        raise HTTPRefusal(413, _too_many(f"{image.width} x {image.height}"))
    return image


def prepared(content: bytes, kind: str, model: Any) -> Tensor:
    """An upload as the model takes it: uint8 (1, C, H, W).

    kind: "picture", decoded as training decodes files, or "drawing", centred and scaled as MNIST's digits are.
    Raises HTTPRefusal.
    """
    image = opened(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "drawing":
                grey_HW = np.asarray(image.convert("L"))
                digit_HW = centred(grey_HW, model.image_size)
                image_CHW = torch.from_numpy(digit_HW).expand(model.channels, -1, -1)
            else:
                image_CHW = model.prepare(image)
    except HTTPRefusal:
        raise
    except Exception:
        raise HTTPRefusal(422, "This picture is damaged or cut off.") from None
    return image_CHW[None].contiguous()


def centred(grey_HW: np.ndarray, size: int) -> np.ndarray:
    """A drawn digit as MNIST has them: bright on black, within a box of 20/28 of `size`, its centre of mass in the
    middle (LeCun et al. 1998).

    Args:
        grey_HW: uint8, any size, bright on dark or dark on bright (what prevails along the border is the paper).

    Returns:
        uint8 (size, size). Raises HTTPRefusal (422) where nothing is drawn.
    """
    values = grey_HW.astype(np.float32)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    paper = float(np.median(border))
    strokes = values - paper if paper < 128 else paper - values
    most = float(strokes.max(initial=0))
    if most < 32:
        raise HTTPRefusal(422, "Nothing is drawn in this picture.")
    strokes = (strokes / most).clip(0, 1)
    rows, columns = np.nonzero((strokes > INK).any(1))[0], np.nonzero((strokes > INK).any(0))[0]
    strokes = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = strokes.shape
    scale = size * DIGIT_BOX / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray((255 * strokes).astype(np.uint8)).resize(shape, Image.Resampling.BILINEAR)
    digit = np.asarray(small, dtype=np.float32)
    digit *= 255 / max(float(digit.max()), 1)
    frame = np.zeros((size, size), dtype=np.uint8)
    top, left = (_start(digit.sum(axis), size) for axis in (1, 0))
    frame[top : top + digit.shape[0], left : left + digit.shape[1]] = digit.round().astype(np.uint8)
    return frame


def _start(weights: np.ndarray, size: int) -> int:
    """Where a row of `weights` begins in a row of `size` so that its centre of mass is in the middle, if it fits."""
    centre = float((np.arange(len(weights)) + 0.5) @ weights / weights.sum())
    return min(max(0, round(size / 2 - centre)), size - len(weights))


def png(image_CHW: Tensor) -> bytes:
    """uint8 (1 or 3, H, W) as a PNG file."""
    return encode(image_CHW.cpu().numpy())


def data_url(image_CHW: Tensor) -> str:
    """uint8 (1 or 3, H, W) as what an <img> shows without asking for a file."""
    return f"data:image/png;base64,{base64.b64encode(png(image_CHW)).decode()}"


def _too_many(how_many: str) -> str:
    return f"The picture has {how_many} pixels; at most {MOST_PIXELS // 10**6} million are decoded."
