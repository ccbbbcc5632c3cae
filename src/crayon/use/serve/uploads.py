"""Pictures that people send, as the images that a model takes, and images as what a page can show.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from crayon.config.pairs import Size, sides
from crayon.data.decode import FORMATS
from crayon.use.png import encode

MOST_READ = 4
"""So many times the largest body are taken before a client is told that its request is too large: one whose connection
is closed while it sends doesn't read why."""
MOST_AT_ONCE = 32
"""Bodies that arrive from one address at a time. One more, and the oldest is given up: who sends half of many keeps
nobody out, not even others at the same address."""
BODY_SECONDS = 30.0
"""Within which a body arrives."""
MOST_PIXELS = 50_000_000
"""Of an upload, before it is decoded. A few kilobytes can hold an image that fills the memory."""
DIGIT_BOX = 20 / 28
"""MNIST's digits fill a box of 20 pixels in a frame of 28, and lie with their centre of mass at its centre."""
INK = 0.15
"""Share of the full stroke's brightness from which a pixel belongs to the digit."""


async def received(request: Request) -> bytes:
    """The request's body, of at most `app.state.max_bytes`. Raises HTTPException: 415 not said to be a picture, 413 too
    large, 408 too slow, 503 given up for newer ones.

    No form of another site can send such a type without asking first (CORS), which is never granted here.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise HTTPException(415, "Send the image file itself, with a Content-Type such as image/png.")
    reading = asyncio.ensure_future(_read(request, request.app.state.max_bytes))
    client = request.client.host if request.client else ""
    arriving = request.app.state.arriving.setdefault(client, [])
    arriving.append(reading)
    if len(arriving) > MOST_AT_ONCE:
        arriving.pop(0).cancel()
    try:
        return await asyncio.wait_for(reading, BODY_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"The picture did not arrive within {BODY_SECONDS:.0f} s.") from None
    except asyncio.CancelledError:
        if reading in arriving:
            raise  # the server's own end
        raise HTTPException(
            503, "Too many pictures arrive at once; ask again.", {"Retry-After": "1"}
        ) from None
    finally:
        if reading in arriving:
            arriving.remove(reading)
        if not arriving:
            request.app.state.arriving.pop(client, None)


async def _read(request: Request, most: int) -> bytes:
    kept, count = bytearray(), 0
    try:
        async for part in request.stream():
            count += len(part)
            if count <= most:
                kept += part
            elif count > MOST_READ * most:
                break
    except ClientDisconnect:
        raise HTTPException(400, "The picture was cut off.") from None
    if count > most:
        raise HTTPException(413, f"The request is too large; at most {most / 2**20:g} MiB are taken.")
    return bytes(kept)


def opened(content: bytes) -> Image.Image:
    """The picture in an upload, its pixels not decoded yet. Raises HTTPException: 422 no picture, 413 too large."""
    if not content:
        raise HTTPException(422, "The request has no picture in its body.")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = MOST_PIXELS + 1
    except Exception:  # Pillow's plugins raise nearly anything on damaged files
        text = f"This is no picture that can be read; send one of {', '.join(FORMATS)}."
        raise HTTPException(422, text) from None
    if pixels > MOST_PIXELS:
        text = f"The picture has too many pixels; at most {MOST_PIXELS // 10**6} million are decoded."
        raise HTTPException(413, text)
    return image


def prepared(content: bytes, kind: str, model: Any) -> Tensor:
    """An upload as the model takes it: uint8 (1, C, H, W).

    kind: "picture", decoded as training decodes files, or "drawing", centred and scaled as MNIST's digits are.
    Raises HTTPException.
    """
    image = opened(content)
    try:
        if kind == "picture":
            return model.prepare(image)[None].contiguous()
        grey_HW = np.asarray(image.convert("L"))
    except Exception:
        raise HTTPException(422, "This picture is damaged or cut off.") from None
    digit_HW = torch.from_numpy(centred(grey_HW, model.image_size))
    return digit_HW.expand(1, model.channels, -1, -1).contiguous()


def centred(grey_HW: np.ndarray, size: Size) -> np.ndarray:
    """A drawn digit, uint8, bright on dark or dark on bright (what prevails along the border is the paper), as MNIST
    has them: uint8 of `size`, bright on black, within 20/28 of the shorter side, its centre of mass in the middle
    (LeCun et al. 1998). Raises HTTPException (422) where nothing is drawn."""
    high, wide = sides(size)
    values = grey_HW.astype(np.float32)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    paper = float(np.median(border))
    strokes = values - paper if paper < 128 else paper - values
    most = float(strokes.max(initial=0))
    if most < 32:
        raise HTTPException(422, "Nothing is drawn in this picture.")
    strokes = (strokes / most).clip(0, 1)
    rows, columns = np.nonzero((strokes > INK).any(1))[0], np.nonzero((strokes > INK).any(0))[0]
    strokes = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = strokes.shape
    scale = min(high, wide) * DIGIT_BOX / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray((255 * strokes).astype(np.uint8)).resize(shape, Image.Resampling.BILINEAR)
    digit = np.asarray(small, dtype=np.float32)
    digit *= 255 / max(float(digit.max()), 1)
    frame = np.zeros((high, wide), dtype=np.uint8)
    top, left = _start(digit.sum(1), high), _start(digit.sum(0), wide)
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
