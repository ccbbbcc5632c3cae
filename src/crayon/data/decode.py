"""One image file to one uint8 array, and many files in several processes. Imports no torch, so a worker starts fast.

The workers are plain Python processes that run this module, not a multiprocessing pool: they never import the
caller's `__main__`, so this works inside a Ray worker, a notebook and a script without a `__main__` guard alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from crayon.errors import CrayonError
from crayon.system import child
from crayon.system.host import usable_cores

EXTENSIONS = frozenset(
    f".{name}"
    for name in "jpg jpeg jfif png gif bmp webp avif tif tiff ppm pgm pbm pnm jp2 tga".split()  # noqa: SIM905
)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000", "TGA")
"""What is opened, whatever a file is called: Pillow goes by content, and for some formats (EPS) runs other programs."""
FILES_AT_ONCE = 64
"""Files between two progress reports of a worker."""
INLINE = 512
"""Fewer files than this are decoded in the calling process: not worth starting others."""


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
    root: Path,
    files: list[str],
    folder: Path,
    *,
    size: int,
    channels: int,
    progress: Callable[[int], None] = lambda done: None,
    workers: int | None = None,
) -> list[tuple[int, str]]:
    """Decode `root/files[i]` into row i of `folder/images.npy`, uint8 (N, channels, size, size).

    Args:
        folder: where images.npy is made. The list of files is left there too, as files.json.
        progress: called with how many files are done.
        workers: processes. None = one per core this process may use; few files are decoded without any.

    Returns:
        (index, reason) of the files that can't be read; their rows stay black.
    """
    shape = (len(files), channels, size, size)
    np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    unreadable: list[tuple[int, str]] = []
    if workers is None:
        workers = 1 if len(files) < INLINE else usable_cores()
    if workers == 1:
        with _Rows(folder / "images.npy") as rows:
            for start in range(0, len(files), FILES_AT_ONCE):
                unreadable += rows.decode(start, str(root), files)
                progress(min(start + FILES_AT_ONCE, len(files)))
        return unreadable
    (folder / "files.json").write_text(json.dumps([str(root), files]))
    return sorted(_decode_in_processes(folder, workers, progress))


def _decode_in_processes(
    folder: Path, workers: int, progress: Callable[[int], None]
) -> list[tuple[int, str]]:
    # All workers write to one pipe: a line of at most PIPE_BUF bytes arrives whole. It ends when the last one ends,
    # and a worker whose parent has died ends at its next line (broken pipe).
    read_end, write_end = os.pipe()
    # numpy starts a thread per core when it is imported, of no use here: 50 of the 130 ms that it takes.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    processes = []
    done = 0
    unreadable: list[tuple[int, str]] = []
    try:
        with os.fdopen(read_end, encoding="utf-8") as reports:
            for k in range(workers):
                words = ("crayon.data.decode", str(folder), str(k), str(workers))
                options: dict[str, Any] = {
                    "stdin": subprocess.DEVNULL,
                    "stdout": write_end,
                    "env": environment,
                }
                processes.append(child.start(*words, **options))
            os.close(write_end)
            for line in reports:
                report = json.loads(line)
                if isinstance(report, int):
                    done += report
                    progress(done)
                elif "errno" in report:
                    raise OSError(report["errno"], os.strerror(report["errno"]))
                else:
                    unreadable.append((report[0], report[1]))
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    if any(codes):
        raise CrayonError(f"A process that decoded images ended with exit code {max(codes, key=abs)}.")
    return unreadable


class _Rows:
    """The rows of an images.npy, written a chunk at a time: a small image's share of a memory map's page faults costs a
    tenth of its decoding (benchmarks/LOG.md), and a map kills the process where the disk is full."""

    def __init__(self, path: Path):
        rows = np.load(path, mmap_mode="r")
        self.start, self.row_bytes = rows.offset, rows[0].nbytes
        self.chunk = np.empty((FILES_AT_ONCE, *rows.shape[1:]), np.uint8)
        self.file = open(path, "r+b")  # noqa: SIM115

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *raised: object) -> None:
        self.file.close()

    def decode(self, start: int, root: str, files: list[str]) -> list[tuple[int, str]]:
        """Fills the chunk of rows from `start` on; returns (index, reason) of those it couldn't, which stay black."""
        unreadable = []
        _, channels, size, _ = self.chunk.shape
        names = files[start : start + FILES_AT_ONCE]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, of images that are large but within the limit
            for row, name in enumerate(names):
                try:
                    # Not a Path, which costs 8 us a file: small images take 100.
                    self.chunk[row] = decode(f"{root}/{name}", size, channels).transpose(2, 0, 1)
                except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
                    self.chunk[row] = 0
                    reason = f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
                    unreadable.append((start + row, reason))
        self.file.seek(self.start + start * self.row_bytes)
        self.file.write(self.chunk[: len(names)].data)
        self.file.flush()
        return unreadable


def _work(folder: Path, k: int, workers: int) -> None:
    """Worker k decodes chunks k, k + workers, ... and reports each on stdout."""
    root, files = json.loads((folder / "files.json").read_text())
    try:
        with _Rows(folder / "images.npy") as rows:
            for start in range(k * FILES_AT_ONCE, len(files), workers * FILES_AT_ONCE):
                lines = [json.dumps(bad) for bad in rows.decode(start, root, files)]
                for line in [*lines, str(min(FILES_AT_ONCE, len(files) - start))]:
                    os.write(1, f"{line}\n".encode())
    except BrokenPipeError:
        raise
    except OSError as error:  # the disk is full, for one: the parent says so
        os.write(1, json.dumps({"errno": error.errno}).encode() + b"\n")


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
