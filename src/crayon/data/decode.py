"""One image file to one uint8 array, and many files in threads. Torch-free."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from crayon.config.pairs import ends, range_text
from crayon.config.settings import DataConfig
from crayon.data.ahead import ahead
from crayon.errors import BadInput
from crayon.system.host import usable_cores

EXTENSIONS = frozenset(
    f".{name}"
    for name in "jpg jpeg jfif png gif bmp webp avif tif tiff ppm pgm pbm pnm jp2 tga npy".split()  # noqa: SIM905
)
HEIF = frozenset((".heic", ".heif", ".hif"))
"""Read where the extra `heic` is installed."""
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000", "TGA")
"""What is opened, whatever a file is called: Pillow goes by content, and for some formats (EPS) runs other programs."""
NUMPY = b"\x93NUMPY"
"""How an array in NumPy's format begins."""
MID_GREY = 128
"""What lies beside an image that is padded."""
Limits = tuple[float, float]
"""The values that become black and white."""
try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener(thumbnails=False)
    EXTENSIONS, FORMATS = EXTENSIONS | HEIF, (*FORMATS, "HEIF")
FILES_AT_ONCE = 32
"""Files that a thread decodes at a time."""
READERS = 16
"""Threads where some decode while others wait for a disk or an object store."""


class Form(NamedTuple):
    """What all images of a set are brought to: uint8 (height, width, channels)."""

    height: int
    width: int
    channels: int
    fit: str = "crop"
    limits: Limits | None = None
    """Which values of images of more than 8 bits become black and white. None: those that `_usual` names."""

    @classmethod
    def of(cls, config: DataConfig) -> Form:
        """As the settings ask for."""
        channels, height, width = config.shape
        return cls(height, width, channels, config.fit, config.limits)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return self.channels, self.height, self.width

    def placed(self, width: int, height: int) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
        """(left, top, right, bottom) of what is kept of an image, and the (width, height) that it is resized to.

        >>> Form(32, 32, 3).placed(96, 64), Form(32, 32, 3, "pad").placed(96, 48)
        (((16.0, 0.0, 80.0, 64.0), (32, 32)), ((0, 0, 96, 48), (32, 16)))
        """
        if self.fit == "crop":
            w, h = (
                min(width, height * self.width / self.height),
                min(height, width * self.height / self.width),
            )
            left, top = (width - w) / 2, (height - h) / 2
            return (left, top, left + w, top + h), (self.width, self.height)
        inner = self.width, self.height
        if self.fit == "pad":
            fitting = max(1, round(width * self.height / height)), max(1, round(height * self.width / width))
            inner = min(inner[0], fitting[0]), min(inner[1], fitting[1])
        return (0, 0, width, height), inner


def decode(
    file: str | os.PathLike[str] | BinaryIO, form: Form, deep: list[Limits] | None = None
) -> np.ndarray:
    """The image in `file` (also an array in NumPy's format) upright, as `form` asks: uint8 (height, width, channels).

    Transparent pixels are laid over white, 16-bit and float images are scaled to 8 bits, and their smallest and largest
    finite value is added to `deep`; of an animation the first frame is taken. Raises whatever Pillow raises for a file
    it can't read, including decompression bombs.
    """
    image: Image.Image
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        array = _numpy(file)
        if array is None:
            raise
        image = from_array(array, form.limits, deep)
    with image:
        # JPEG only: decode at a half, a quarter or an eighth
        image.draft("L" if form.channels == 1 else "RGB", (2 * form.width, 2 * form.height))
        return fitted(image, form, deep)


def decode_alone(file: str | os.PathLike[str] | BinaryIO, form: Form, name: str) -> tuple[np.ndarray, bool]:
    """(as `decode`, whether it has more than 8 bits) of an image that is read before the others of its set, or without
    them. Raises BadInput, which calls it `name`, where it can't be scaled without knowing the range of them all."""
    deep: list[Limits] = []
    pixels = decode(file, form, deep)
    if deep and form.limits is None:
        raise BadInput(
            f"{name} has more than 8 bits, and images of a bucket, of shards or of --data.cache off are scaled before "
            f"all are known; give the range of all of them (its own is --data.range {range_text(*deep[0])})."
        )
    return pixels, bool(deep)


def fitted(image: Image.Image, form: Form, deep: list[Limits] | None = None) -> np.ndarray:
    """As `decode`, of an image that is open."""
    pixels = ImageOps.exif_transpose(image)
    mode = "L" if form.channels == 1 else "RGB"
    if pixels.mode in ("F", "I") or pixels.mode.startswith("I;16"):
        pixels = from_array(np.asarray(pixels), form.limits, deep)
    pixels = _to_mode(pixels, mode)
    if pixels.size != (form.width, form.height):
        box, inner = form.placed(*pixels.size)
        pixels = pixels.resize(inner, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
        if inner != (form.width, form.height):
            frame = Image.new(mode, (form.width, form.height), (MID_GREY,) * form.channels)
            frame.paste(pixels, ((form.width - inner[0]) // 2, (form.height - inner[1]) // 2))
            pixels = frame
    return np.asarray(pixels, dtype=np.uint8).reshape(form.height, form.width, form.channels)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image.convert(mode)


def _numpy(file: str | os.PathLike[str] | BinaryIO) -> np.ndarray | None:
    """The array in an .npy file, None where it is none."""
    if not isinstance(file, (str, os.PathLike)):
        file.seek(0)
        magic = file.read(6)
        file.seek(0)
        return np.load(file, allow_pickle=False) if magic == NUMPY else None
    with open(file, "rb") as stream:
        magic = stream.read(6)
    # Mapped, so that a header can't ask for more memory than the file has bytes.
    return np.load(file, mmap_mode="r", allow_pickle=False) if magic == NUMPY else None


def from_array(array: np.ndarray, limits: Limits | None, deep: list[Limits] | None = None) -> Image.Image:
    """8-bit picture of an array of numbers (H, W), (H, W, 1, 3 or 4) or (1 or 3, H, W).

    Bytes stay as they are. Of other numbers `limits` become 0 and 255, what isn't a number becomes 0, and (smallest,
    largest) of the finite ones is added to `deep`. Raises ValueError for anything else, and where none is finite.
    """
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or not array.size or array.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(f"an array {array.shape} is no image; (H, W) or (H, W, 3) is one")
    if Image.MAX_IMAGE_PIXELS and array.size > 8 * Image.MAX_IMAGE_PIXELS:  # as Pillow's, for RGBA
        raise ValueError(f"{array.size:,} values are more than an image should have")
    if array.dtype == bool:
        array = array * np.uint8(255)
    if array.dtype != np.uint8:
        array = _scaled(array, limits, deep)
    return Image.fromarray(np.ascontiguousarray(array))


def _scaled(values: np.ndarray, limits: Limits | None, deep: list[Limits] | None) -> np.ndarray:
    if values.dtype.kind not in "iuf":
        raise ValueError(f"values of type {values.dtype} are no pixels")
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not known.size:
        raise ValueError("none of its values is a finite number")
    found = float(known.min()), float(known.max())
    if deep is not None:
        deep.append(found)
    low, high = limits or _usual(values.dtype, *found)
    # Single precision holds 16-bit values exactly, and needs half the memory.
    grey = values.astype(np.float32 if values.dtype in (np.uint16, np.int16, np.float32) else np.float64)
    grey -= low
    grey /= (high - low) / 255
    grey = np.nan_to_num(grey, copy=False, nan=0, posinf=255, neginf=0).clip(0, 255)
    return (grey + 0.5).astype(np.uint8)


def _usual(kind: np.dtype[Any], low: float, high: float) -> Limits:
    """What is black and white in an image of no set: 0 and 65535 (whole numbers) or 1 where its values, `low` to
    `high`, lie between them, else those."""
    most = {"u": 65535, "i": 255 if high <= 255 else 65535, "f": 1}[kind.kind]
    if low >= 0 and high <= most:
        return 0, most
    return (low, high) if low < high else (low, low + 1)


def common(deep: Iterable[Limits]) -> Limits | None:
    """The range of all images whose own ranges are given, to as many digits as are recorded; None if it is empty."""
    lows, highs = zip(*deep, strict=True)
    text = range_text(*(x if x.is_integer() else float(f"{x:.7g}") for x in (min(lows), max(highs))))
    low, high = ends(text)
    return (low, high) if low < high else None


def decode_all(
    root: str,
    files: Sequence[str],
    unreadable: list[tuple[int, str]],
    numbers: Sequence[int],
    form: Form,
    deep: dict[int, Limits],
) -> Iterator[np.ndarray]:
    """The images `root/files[i]` for the `numbers` i, in order, a few at a time: uint8 (n, channels, height, width).

    They are decoded by a thread per core that this process may use: Pillow lets other threads run meanwhile. Files that
    can't be read are black, and their (number, reason) is added to `unreadable`. `deep` is given the smallest and the
    largest value, by number, of those that have more than 8 bits.
    """

    def some(start: int) -> np.ndarray:
        chosen = numbers[start : start + FILES_AT_ONCE]
        pixels = np.zeros((len(chosen), form.channels, form.height, form.width), np.uint8)
        found: list[Limits] = []
        for row, number in enumerate(chosen):
            try:
                # Not a Path, which costs 8 us a file: small images take 100.
                pixels[row] = decode(f"{root}/{files[number]}", form, found).transpose(2, 0, 1)
            except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
                reason = f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
                unreadable.append((number, reason))
                found.clear()
            if found:
                deep[number] = found.pop()
        return pixels

    threads = usable_cores()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, of images that are large but within the limit
        yield from ahead(some, range(0, len(numbers), FILES_AT_ONCE), 2 * threads, threads)
