"""How each kind of image file is read."""

from pathlib import Path

import numpy as np
from PIL import Image

from crayon.data import decode as reading
from crayon.data.decode import Form

RED, WHITE = (255, 0, 0), (255, 255, 255)


def decode(path: Path, size: int, channels: int, **options) -> np.ndarray:
    return reading.decode(path, Form(size, size, channels, **options))


def save(path: Path, colour=RED, size=(20, 20), **options) -> Path:
    Image.new("RGB", size, colour).save(path, **options)
    return path


def test_grey_files_become_three_equal_channels_and_colour_becomes_luma(tmp_path):
    Image.new("L", (9, 9), 77).save(tmp_path / "grey.png")
    assert (decode(tmp_path / "grey.png", 16, 3) == 77).all()
    assert (decode(save(tmp_path / "red.png"), 16, 1) == 76).all()  # 0.299 * 255


def test_transparent_pixels_lie_over_white(tmp_path):
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 8, 16))
    half.save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", 16, 3)
    assert (pixels[:, :8] == RED).all() and (pixels[:, 8:] == WHITE).all()


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (0, 0, 8, 16))
    image.save(tmp_path / "plain.png")
    pixels = decode(tmp_path / "plain.png", 16, 3)
    assert (pixels[:, :8] == (0, 255, 0)).all() and (pixels[:, 8:] == RED).all()
    image.save(tmp_path / "t.png", transparency=0)
    assert (decode(tmp_path / "t.png", 16, 3)[:, 8:] == WHITE).all()


def test_16_bit_and_float_are_scaled_to_8_bits(tmp_path):
    Image.fromarray(np.full((16, 16), 257 * 100, np.uint16)).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 16, 1) == 100).all()
    Image.fromarray(np.full((16, 16), 0.2, np.float32)).save(tmp_path / "a.tif")
    assert (decode(tmp_path / "a.tif", 16, 3) == 51).all()


def test_cmyk_and_one_bit(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(decode(tmp_path / "a.jpg", 16, 3).astype(int) - RED).max() <= 3
    Image.new("1", (16, 16), 1).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 16, 1) == 255).all()


def test_exif_rotation_is_undone(tmp_path):
    image = Image.new("RGB", (64, 64), (0, 0, 255))
    image.paste(RED, (0, 0, 32, 64))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is left in the file is on top
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    pixels = decode(tmp_path / "a.jpg", 16, 3).astype(int)
    assert pixels[:7, :, 0].min() > 200 and pixels[9:, :, 0].max() < 50


def test_the_central_square_is_kept(tmp_path):
    wide = Image.new("RGB", (96, 32), (0, 0, 255))
    wide.paste(RED, (32, 0, 64, 32))
    wide.save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 32, 3) == RED).all()


def test_tiny_and_large_images(tmp_path):
    assert (decode(save(tmp_path / "tiny.png", size=(1, 1)), 32, 3) == RED).all()
    large = decode(save(tmp_path / "large.jpg", size=(6000, 4000), quality=95), 32, 3)
    assert np.abs(large.astype(int) - RED).max() <= 2
