"""Pictures that people send."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from starlette.exceptions import HTTPException

from crayon.use.serve.uploads import centred, data_url, opened, png


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


def test_where_and_how_large_it_was_drawn_changes_nothing():
    here = centred(drawing(box=(10, 5, 100, 185)), 28).astype(int)
    there = centred(drawing(box=(170, 90, 260, 270)), 28).astype(int)
    larger = centred(drawing(side=560, box=(120, 80, 300, 440), width=40), 28).astype(int)
    assert (here == there).all()
    assert np.abs(here - larger).mean() < 6


def test_dark_on_bright_paper_is_the_same_digit():
    bright, dark = centred(drawing(), 28).astype(int), centred(drawing(paper=255, ink=0), 28).astype(int)
    grey = centred(drawing(paper=200, ink=60), 28).astype(int)
    assert (bright == dark).all()
    assert np.abs(bright - grey).max() < 12


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
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


@pytest.mark.parametrize("sides", [(8000, 8000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_before_they_are_decoded(sides):
    with pytest.raises(HTTPException, match="at most 50 million") as refused:
        opened(png_of(*sides))
    assert refused.value.status_code == 413


def test_a_file_that_other_programs_would_be_started_for_is_refused():
    with pytest.raises(HTTPException) as refused:
        opened(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert refused.value.status_code == 422


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_as_they_are(channels):
    image = torch.arange(channels * 20, dtype=torch.uint8).view(channels, 4, 5)
    with Image.open(io.BytesIO(png(image))) as file:
        assert file.format == "PNG"
        pixels = np.asarray(file).reshape(4, 5, channels)
    assert (pixels.transpose(2, 0, 1) == image.numpy()).all()
    assert data_url(image).startswith("data:image/png;base64,")
