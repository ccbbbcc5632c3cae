"""Images of more than 8 bits, and of other shapes than asked for: what their pixels become, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import pixels
from PIL import Image

import crayon
from crayon.config.settings import DataConfig
from crayon.data import load
from crayon.data.decode import Form, decode, from_array
from crayon.data.sources import resize
from crayon.errors import BadInput
from crayon.report.events import Message

pytestmark = pytest.mark.usefixtures("own_cache")
SIDE = 16
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def tiff(path: Path, array: np.ndarray) -> None:
    tags = {339: 2} if array.dtype == np.int16 else {}  # signed, which Pillow doesn't write by itself
    Image.fromarray(array.view(np.uint16) if tags else array).save(path, tiffinfo=tags)


def npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


KINDS = {
    "12 bits in a PNG": (0, 4095, np.uint16, lambda path, array: Image.fromarray(array).save(path), "png"),
    "CT numbers, 16 bits": (-1024, 3071, np.int16, tiff, "tif"),
    "CT numbers, 32 bits": (-1024, 3071, np.int32, tiff, "tif"),
    "floats to 4,000": (0, 4000, np.float32, tiff, "tif"),
    "floats to 1.02": (0, 1.02, np.float32, npy, "npy"),
    "large whole numbers": (10**9, 10**9 + 510, np.int64, npy, "npy"),
    "16 bits": (0, 65535, np.uint16, npy, "npy"),
}


def folder(root: Path, **changes) -> DataConfig:
    changes = {"image_size": SIDE, "val_fraction": 0.0} | changes
    return DataConfig(source="folder", root=str(root), **changes)


def halves(root: Path, low: float, high: float, kind, write, ending: str) -> np.ndarray:
    """train/ has the lower and the upper half of low..high, test/ the middle: what they hold, (3, SIDE, SIDE)."""
    parts = []
    for name, start in (("train/0", 0), ("train/1", 0.5), ("test/0", 0.25)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        array = low + (high - low) * (start + RAMP / 2)
        array = (array if np.issubdtype(kind, np.floating) else array.round()).astype(kind)
        write(root / f"{name}.{ending}", array)
        parts.append(array)
    return np.stack(parts)


@pytest.mark.parametrize("case", KINDS)
def test_values_are_scaled_by_the_range_of_all_training_images(case, tmp_path):
    low, high = KINDS[case][:2]
    held = halves(tmp_path / "d", *KINDS[case]).astype(np.float64)
    told = []
    splits = load(folder(tmp_path / "d"), labels=False, emit=told.append)
    got = torch.cat([pixels(splits.train), pixels(splits.test)])[:, 0].numpy()
    assert np.abs(got - (held - low) / (high - low) * 255).max() < 0.501 and len(np.unique(got[:2])) > 250
    (text,) = [event.text for event in told if isinstance(event, Message)]
    assert f"from {low:.10g}..{high:.10g} (--data.range)" in text
    # Asked for by that range, it is the same entry of the cache.
    again, told = load(folder(tmp_path / "d", range=f"{low}..{high}"), labels=False, emit=told.append), []
    assert again.train.limits == splits.train.limits and not told
    assert np.array_equal(pixels(again.train), pixels(splits.train))


def test_what_is_no_number_counts_for_nothing_and_an_image_of_nothing_else_is_unreadable(tmp_path):
    for i, odd in enumerate((np.nan, np.inf, -np.inf)):
        array = (RAMP * 3 - 1).astype(np.float32)
        array[0, 1] = odd
        tiff(tmp_path / f"{i}.tif", array)
    tiff(tmp_path / "9.tif", np.full((SIDE, SIDE), np.nan, np.float32))
    train = load(folder(tmp_path, max_unreadable=0.5), labels=False).train
    assert train.limits == (-1, 2) and pixels(train)[:, 0, 0, 1].tolist() == [0, 255, 0]
    expected = (RAMP * 255 + 0.5).astype(np.uint8)
    rest = np.delete(pixels(train).numpy().reshape(3, -1), 1, 1)
    assert np.abs(rest.astype(int) - np.delete(expected, 1)).max() <= 1


def test_8_bit_files_stay_as_they_are_among_others(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    Image.fromarray((RAMP * 99).astype(np.uint8)).save(root / "0.png")
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(root / "1.png")
    for limits, brightest in (("auto", 255), ("0..8190", 128)):
        train = load(folder(root, range=limits), labels=False).train
        assert pixels(train).amax((1, 2, 3)).tolist() == [99, brightest]
    told = []
    (root / "1.png").unlink()
    load(folder(root, range="0..9"), labels=False, emit=told.append)
    assert "--data.range 0..9 changes nothing" in told[-1].text


def test_a_source_of_ones_own_gives_any_numbers(tmp_path):
    arrays = {"train": (RAMP * 3000)[None].repeat(4, 0), "test": (RAMP * 1500)[None]}
    own = crayon.Source("mine", lambda split, root: (arrays[split], np.zeros(len(arrays[split]))))
    splits = load(DataConfig(source="mine", own=own, image_size=SIDE, val_fraction=0), labels=False)
    for images, top in ((splits.train, 255), (splits.test, 127.5)):
        assert np.abs(pixels(images)[0, 0].numpy() - RAMP * top).max() < 0.501
    assert splits.train.labels.shape == (4,)


def test_arrays_that_are_no_pictures():
    for array in (np.zeros(4), np.zeros((4, 4, 2)), np.zeros((0, 4)), np.zeros((4, 4), complex)):
        with pytest.raises(ValueError, match=r"no image|no pixels"):
            from_array(array, None)
    huge = np.broadcast_to(np.uint8(0), (40_000, 40_000))
    with pytest.raises(ValueError, match="more than an image should have"):
        from_array(huge, None)
    assert from_array(np.zeros((3, 9, 8), np.uint8), None).size == (8, 9)
    assert np.asarray(from_array(np.eye(4, dtype=bool), None)).max() == 255


@pytest.mark.parametrize(
    ("array", "channels", "said"),
    [
        (np.full((SIDE, SIDE), 200, np.uint8) + (RAMP * 9).astype(np.uint8), 1, "nearly flat: 98 %"),
        (np.where(RAMP == 1, 60_000, RAMP * 4000).astype(np.uint16), 1, "such as --data.range 0..4235"),
        ((RAMP * 255).astype(np.uint8), 3, "100 % of folder/train are grey; --data.channels 1"),
    ],
)
def test_what_looks_like_a_mistake_is_told(array, channels, said, tmp_path):
    Image.fromarray(array).save(tmp_path / "0.png")
    told = []
    load(folder(tmp_path, channels=channels), labels=False, emit=told.append)
    assert said in told[-1].text and told[-1].warning


# Shapes


def wide() -> Image.Image:
    """8 pixels high, 16 wide: columns of the greys 0, 10, ... 150."""
    return Image.fromarray(np.arange(0, 160, 10, dtype=np.uint8)[None].repeat(8, 0))


@pytest.mark.parametrize(
    ("fit", "height", "width", "columns"),
    [
        ("crop", 8, 8, np.arange(40, 120, 10)),
        ("crop", 8, 12, np.arange(20, 140, 10)),
        ("pad", 16, 16, np.arange(0, 160, 10)),
        ("pad", 8, 20, [128, 128, *range(0, 160, 10), 128, 128]),
        ("stretch", 24, 16, np.arange(0, 160, 10)),
    ],
)
def test_an_image_of_another_shape_is_cut_padded_or_stretched(fit, height, width, columns, tmp_path):
    wide().save(tmp_path / "a.png")
    form = Form(height, width, 1, fit)
    expected = np.array(columns, np.uint8)[None].repeat(height, 0)
    if (fit, height) == ("pad", 16):
        expected[:4] = expected[12:] = 128
    assert np.array_equal(decode(tmp_path / "a.png", form)[:, :, 0], expected)
    array = torch.from_numpy(np.asarray(wide()).copy())[None, None]
    assert np.array_equal(resize(array, form)[0, 0], expected)
    assert decode(tmp_path / "a.png", form._replace(channels=3)).shape == (height, width, 3)


def test_squares_are_cut_and_resized_to_the_same_bits_as_ever(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    box = (12.5, 0, 57.5, 45)
    cut = Image.fromarray(noise).resize((32, 32), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    assert np.array_equal(decode(tmp_path / "a.png", Form(32, 32, 3)), np.asarray(cut))


def test_sizes_and_ranges_have_one_spelling():
    for size in ("96x64", "96X64", (96, 64)):
        config = DataConfig(image_size=size)
        assert (config.image_size, config.shape) == ("96x64", (1, 96, 64))
    assert DataConfig(image_size="64x64").image_size == DataConfig(image_size="64").image_size == 64
    assert DataConfig(range=(-1024, 3071.0)).range == "-1024..3071"
    for wrong, said in (
        ({"image_size": "96x64x3"}, "no size"),
        ({"image_size": "96x4"}, "each side must be between 8 and 1024"),
        ({"range": "7"}, "no range"),
        ({"range": "3..1"}, "upside down"),
        ({"range": "0..inf"}, "finite"),
    ):
        with pytest.raises(BadInput, match=said):
            DataConfig(**wrong)
    with pytest.raises(BadInput, match="shapes are drawn as squares"):
        load(DataConfig(source="shapes", image_size="16x24"), labels=True)
