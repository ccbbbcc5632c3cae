"""Animations, as GIF."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def progress_gif(frames: Sequence[Image.Image], most: int = 1_000_000) -> bytes:
    """As `gif`, of at most `most` bytes: of fewer frames, in fewer colours and smaller, as far as that is needed."""
    content, colours, share = gif(frames), 128, 1.0
    while len(content) > most:
        if len(frames) > FRAMES[0]:
            frames = _thinned(frames, FRAMES[0])
        elif share > 0.5 or len(frames) <= FRAMES[1]:
            share = max(min(0.97 * math.sqrt(most / len(content)), 0.9) * share, 0.5 if share > 0.5 else 0)
        else:
            frames = _thinned(frames, max(FRAMES[1], int(0.97 * len(frames) * most / len(content))))
        size = [max(1, round(share * side)) for side in frames[0].size]
        small = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames] if share < 1 else frames
        content = gif(small, colours=colours)
    return content


FRAMES = 16, 8
"""A progress GIF that is too large keeps at most so many frames; it becomes half as large before it has fewer than
that, but never fewer than the second number."""


def _thinned(frames: Sequence[Image.Image], count: int) -> list[Image.Image]:
    """`count` of the frames, evenly spaced, with the first and the last."""
    return [frames[k] for k in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def gif(frames: Sequence[Image.Image], milliseconds: int | None = None, colours: int = 256) -> bytes:
    """`frames` (same size, RGB) as an endless animation, as GIF. All share one palette, so that nothing flickers.

    milliseconds: of each frame, in steps of ten; None: about eight seconds in all, the last frame resting.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    each = milliseconds or int(np.clip(8000 / len(frames), 40, 600))
    durations = [each] * (len(frames) - 1) + [each if milliseconds else 1800]
    sample = [np.asarray(frame)[::4, ::4].reshape(-1, 3) for frame in frames[:: math.ceil(len(frames) / 64)]]
    palette = Image.fromarray(np.concatenate(sample)[None]).quantize(colours, Image.Quantize.MEDIANCUT)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": small[1:], "loop": 0}
    small[0].save(file, "GIF", duration=durations[0] if len(frames) == 1 else durations, **options)
    return file.getvalue()
