"""One image file to one uint8 array, and many files in threads. Torch-free."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from crayon.data.ahead import ahead
from crayon.system.host import usable_cores

EXTENSIONS = frozenset(
    f".{name}"
    for name in "jpg jpeg jfif png gif bmp webp avif tif tiff ppm pgm pbm pnm jp2 tga".split()  # noqa: SIM905
)
HEIF = frozenset((".heic", ".heif", ".hif"))
"""Read where the extra `heic` is installed."""
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000", "TGA")
"""What is opened, whatever a file is called: Pillow goes by content, and for some formats (EPS) runs other programs."""
try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener(thumbnails=False)
    EXTENSIONS, FORMATS = EXTENSIONS | HEIF, (*FORMATS, "HEIF")
FILES_AT_ONCE = 32
"""Files that a thread decodes at a time."""


def decode(file: str | os.PathLike[str] | BinaryIO, size: int, channels: int) -> np.ndarray:
    """The image in `file` upright, cut to its central square and resized: uint8 (size, size, channels).

    Transparent pixels are laid over white, 16-bit and float images are scaled to 8 bits, of an animation the first
    frame is taken. Raises whatever Pillow raises for a file it can't read, including decompression bombs.
    """
    with Image.open(file, formats=FORMATS) as image:
        # JPEG only: decode at a half, a quarter or an eighth
        image.draft("L" if channels == 1 else "RGB", (2 * size, 2 * size))
        return crop_and_resize(image, size, channels)


def crop_and_resize(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """As `decode`, of an image that is open."""
    pixels = _to_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    width, height = pixels.size
    if width != size or height != size:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        pixels = pixels.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.asarray(pixels, dtype=np.uint8).reshape(size, size, channels)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        if image.mode == "F" and values.max(initial=0) <= 1:
            values *= 255
        elif image.mode != "F" and (image.mode != "I" or values.max(initial=0) > 255):
            values /= 257
        grey = np.nan_to_num(values).clip(0, 255)
        return Image.fromarray((grey + 0.5).astype(np.uint8)).convert(mode)
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image.convert(mode)


def decode_all(
    root: str, files: Sequence[str], size: int, channels: int, unreadable: list[tuple[int, str]]
) -> Iterator[np.ndarray]:
    """The images `root/files[i]` in their order, a few at a time: uint8 (n, channels, size, size).

    They are decoded by a thread per core that this process may use: Pillow lets other threads run meanwhile. Files that
    can't be read are black, and their (index, reason) is added to `unreadable`.
    """

    def some(start: int) -> np.ndarray:
        names = files[start : start + FILES_AT_ONCE]
        pixels = np.zeros((len(names), channels, size, size), np.uint8)
        for row, name in enumerate(names):
            try:
                # Not a Path, which costs 8 us a file: small images take 100.
                pixels[row] = decode(f"{root}/{name}", size, channels).transpose(2, 0, 1)
            except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
                reason = f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
                unreadable.append((start + row, reason))
        return pixels

    threads = usable_cores()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, of images that are large but within the limit
        yield from ahead(some, range(0, len(files), FILES_AT_ONCE), 2 * threads, threads)
