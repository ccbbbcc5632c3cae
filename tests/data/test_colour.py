"""Changes for photographs: values against torchvision's, draws, and what mixes."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as peer

from crayon.config.settings import AugmentConfig
from crayon.data import Augment, colour
from crayon.data.augment import crop_window
from crayon.data.trivial import OPERATIONS, trivial
from crayon.data.warp import warp
from crayon.rng import Randomness

EVERYTHING = AugmentConfig(
    flip=True,
    resized_crop=0.3,
    rotate=5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    trivial=True,
    cutout=4,
)


def photographs(n=6, channels=3, height=24, width=36) -> torch.Tensor:
    """Smooth random images of 8 bits, float (n, channels, height, width) in [0, 1]."""
    noise = torch.rand(n, channels, 6, 9, generator=torch.Generator().manual_seed(4))
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return (255 * smooth).round() / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (lambda x, f: colour.adjust(x, brightness=f), peer.adjust_brightness, [0, 0.6, 1.7]),
        (lambda x, f: colour.adjust(x, contrast=f), peer.adjust_contrast, [0, 0.6, 1.7]),
        (lambda x, f: colour.adjust(x, saturation=f), peer.adjust_saturation, [0, 0.6, 1.7]),
        (colour.sharpen, peer.adjust_sharpness, [0, 0.6, 1.7]),
        (colour.turn_hue, peer.adjust_hue, [-0.5, 0.1, 0.3]),
        (colour.posterize, lambda x, bits: peer.posterize(x, int(bits)), [2, 5, 8]),
        (colour.solarize, peer.solarize, [0, 0.5, 1]),
        (lambda x, _: colour.autocontrast(x), lambda x, _: peer.autocontrast(x), [0, 0, 0]),
        (lambda x, _: colour.equalize(x), lambda x, _: peer.equalize(x), [0, 0, 0]),
    ],
)
def test_each_image_by_its_own_value_is_what_torchvision_makes_of_it(ours, theirs, values, channels):
    if channels == 1 and theirs is peer.adjust_hue:
        pytest.skip("grey has none")
    images = photographs(3, channels)
    images[0, :, :9] = images[0, :, :1, :1]  # flat, and in the last case wholly so
    images[1] = images[1] if values[0] else 0.3
    expected = torch.cat([theirs(x[None], value) for x, value in zip(images, values, strict=True)])
    found = ours(images.clone(), torch.tensor(values, dtype=torch.float32))
    assert torch.allclose(found, expected, atol=2e-6)


def test_several_changes_of_colour_are_one_linear_map():
    images = 0.4 + 0.2 * photographs(2)  # nothing is cut
    factors = torch.tensor([[0.8, 1.2], [1.3, 0.7], [0.5, 1.4]])
    found = colour.adjust(images, *factors)
    for i in range(2):
        b, c, s = factors[:, i].tolist()
        for order in ("bcs", "scb", "csb"):
            x = images[i]
            for step in order:
                x = {
                    "b": lambda x, b=b: peer.adjust_brightness(x, b),
                    "c": lambda x, c=c: peer.adjust_contrast(x, c),
                    "s": lambda x, s=s: peer.adjust_saturation(x, s),
                }[step](x)
            assert torch.allclose(found[i], x, atol=2e-4)  # luma's weights add up to .9999


def affine(images, translate=(0, 0), shear=(0.0, 0.0), **more):
    """torchvision's, with shears as slopes."""
    degrees = [math.degrees(math.atan(slope)) for slope in shear]
    return peer.affine(images, angle=0.0, translate=list(translate), scale=1.0, shear=degrees, **more)


# What torchvision's TrivialAugmentWide makes of images by a strength of -1 .. 1, or 0 .. 1.
WIDE = {
    "identity": lambda x, m: x,
    "shear_x": lambda x, m: affine(x, shear=(0.99 * m, 0.0), center=[0, 0]),
    "shear_y": lambda x, m: affine(x, shear=(0.0, 0.99 * m), center=[0, 0]),
    "translate_x": lambda x, m: affine(x, translate=(int(32 * m), 0)),
    "translate_y": lambda x, m: affine(x, translate=(0, int(32 * m))),
    "rotate": lambda x, m: peer.rotate(x, 135 * m),
    "brightness": lambda x, m: peer.adjust_brightness(x, 1 + 0.99 * m),
    "saturation": lambda x, m: peer.adjust_saturation(x, 1 + 0.99 * m),
    "contrast": lambda x, m: peer.adjust_contrast(x, 1 + 0.99 * m),
    "sharpness": lambda x, m: peer.adjust_sharpness(x, 1 + 0.99 * m),
    "posterize": lambda x, m: peer.posterize(x, round(8 - 6 * abs(m))),
    "solarize": lambda x, m: peer.solarize(x, 1 - abs(m)),
    "autocontrast": lambda x, m: peer.autocontrast(x),
    "equalize": lambda x, m: peer.equalize(x),
}


@pytest.mark.parametrize("channels", [1, 3])
def test_trivial_operations_are_torchvisions(channels):
    assert list(WIDE) == list(OPERATIONS)
    images = photographs(4, channels)
    levels, signs = torch.tensor([0, 9, 21, 30]), torch.tensor([0.0, 0.9, 0.0, 0.9])
    for number, (name, theirs) in enumerate(WIDE.items()):
        chosen = torch.full((4,), (number + 0.5) / len(WIDE))
        found = trivial(images.clone(), torch.stack([chosen, (levels + 0.5) / 31, signs], 1))
        strengths = (levels / 30 * torch.tensor([-1, 1, -1, 1])).tolist()
        for one, image, strength in zip(found, images, strengths, strict=True):
            close = (one - theirs(image[None], strength)[0]).abs() < 1e-5
            assert close.float().mean() > 0.99, (name, strength)  # a pixel may lie exactly between two


def test_a_window_that_is_brought_to_size_is_torchvisions_resized_crop():
    images = photographs(1)  # 24 x 36
    top, left, height, width = 6, 9, 12, 18
    centre = (2 * (left + width / 2) / 36 - 1, 2 * (top + height / 2) / 24 - 1)
    area = (height * width) / (24 * 36)
    u = torch.tensor([[(area - 0.1) / 0.9, 0.5, (1 + centre[0] / 0.5) / 2, (1 + centre[1] / 0.5) / 2]])
    window = crop_window(u, 0.1)
    assert torch.allclose(window, torch.tensor([[0.5, 0.5, *centre]]), atol=1e-6)
    w, h, right, down = window[0].tolist()
    found = warp(images, torch.tensor([[w * 2 / 36, 0, right]]), torch.tensor([[0, h * 2 / 24, down]]))
    expected = peer.resized_crop(images, top, left, height, width, [24, 36])
    assert torch.allclose(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-5)


def test_random_windows_lie_within_the_image():
    width, height, right, down = crop_window(Randomness(0).uniform(torch.arange(5000), 4), 0.2).unbind(1)
    area, ratio = width * height, width / height
    assert 0.2 <= area.min() < 0.21 and 0.99 < area.max() <= 1.0001 and abs(area.mean() - 0.6) < 0.01
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.34 and abs(ratio.log().mean()) < 0.01
    assert (right.abs() + width).max() <= 1.0001 and (down.abs() + height).max() <= 1.0001


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_changed_alike_in_whatever_company(channels):
    images = (255 * photographs(40, channels, 12, 16)).to(torch.uint8)
    places = torch.arange(100, 140)

    def change(part, epoch=1, layout=False):
        augment = Augment(EVERYTHING, (0.5,) * channels)
        return augment(images[part], Randomness(0), epoch, places[part], places[part], channels_last=layout)

    whole = change(slice(None))
    assert whole.shape == images.shape and whole.min() >= 0 and whole.max() <= 1
    for part in (slice(0, 7), slice(7, 8), slice(8, 40)):
        assert torch.equal(whole[part], change(part))
    assert torch.allclose(whole, change(slice(None), layout=True), atol=1e-6)
    assert (whole != change(slice(None), epoch=2)).flatten(1).any(1).all()
