"""Pictures that people send."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw
from starlette.exceptions import HTTPException

from crayon.use.serve.uploads import centred, opened


def drawing(side=280, box=(60, 40, 150, 220), width=20, paper=0, ink=255):
    image = Image.new("L", (side, side), paper)
    ImageDraw.Draw(image).ellipse(box, outline=ink, width=width)
    return np.asarray(image)


def extent(digit):
    rows, columns = np.nonzero(digit.max(1) > 40)[0], np.nonzero(digit.max(0) > 40)[0]
    return np.ptp(rows) + 1, np.ptp(columns) + 1


def centre(digit):
    weights = digit.astype(float) / digit.sum()
    middle = np.arange(len(digit)) + 0.5
    return weights.sum(1) @ middle, weights.sum(0) @ middle


@pytest.mark.parametrize("size", [28, 16, 64])
def test_a_drawing_becomes_what_mnist_has(size):
    digit = centred(drawing(), size)
    assert digit.dtype == np.uint8
    assert digit.shape == (size, size)
    height, width = extent(digit)
    assert abs(height - round(size * 20 / 28)) <= 1
    assert abs(width / height - 0.5) < 0.1
    assert np.abs(np.array(centre(digit)) - size / 2).max() <= 0.51
    assert digit.max() == 255
    assert digit[0].max() == digit[:, 0].max() == 0


def test_where_how_large_and_on_which_paper_it_was_drawn_changes_nothing():
    digit, moved, larger, inverse, grey = (
        centred(drawing(**how), 28).astype(int)
        for how in (
            {},
            {"box": (170, 90, 260, 270)},
            {"side": 560, "box": (120, 80, 300, 440), "width": 40},
            {"paper": 255, "ink": 0},
            {"paper": 200, "ink": 60},
        )
    )
    assert (digit == moved).all() and (digit == inverse).all()
    assert np.abs(digit - larger).mean() < 6
    assert np.abs(digit - grey).max() < 12


def test_the_centre_of_mass_decides_not_the_box():
    pixels = np.zeros((100, 100), np.uint8)
    pixels[20:80, 20:25] = 255  # a bar with a foot, as an L
    pixels[70:80, 20:60] = 255
    rows, columns = centre(centred(pixels, 28))
    assert abs(rows - 14) <= 0.51
    assert abs(columns - 14) <= 0.51


@pytest.mark.parametrize("paper", [0, 128, 255])
def test_nothing_drawn_is_said(paper):
    with pytest.raises(HTTPException, match="Nothing is drawn") as refused:
        centred(np.full((50, 50), paper, np.uint8), 28)
    assert refused.value.status_code == 422


def test_a_single_dot_is_a_drawing():
    pixels = np.zeros((280, 280), np.uint8)
    pixels[0, 279] = 255
    assert centred(pixels, 28).max() == 255


def png_of(width, height):
    """A PNG file that says it has so many pixels and has next to none."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        *((png_of(side, side), 413, "at most 50 million") for side in (8000, 20_000, 2**31 - 1)),
        # Pillow would start another program for it.
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", 422, "no picture"),
    ],
)
def test_what_is_dangerous_to_decode_is_refused_before(content, status, says):
    with pytest.raises(HTTPException, match=says) as refused:
        opened(content)
    assert refused.value.status_code == status
