"""The networks of all kinds of task: shapes, sizes, initial weights, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crayon.config.pairs import sides
from crayon.data.types import DataInfo
from crayon.errors import BadInput
from crayon.tasks.adversarial.network import Discriminator, Generator, fix_statistics
from crayon.tasks.adversarial.settings import GanConfig, stages
from crayon.tasks.classification.network import Classifier, WhiteningStem
from crayon.tasks.classification.settings import ClassifierConfig
from crayon.tasks.layers import Flatten, Unflatten
from crayon.tasks.reconstruction.network import Autoencoder
from crayon.tasks.reconstruction.settings import AutoencoderConfig


def classifier(size, channels=1, classes=10, **config) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(**{"width": 8, "growth": 2} | config)
    return Classifier(config, image_size=size, channels=channels, classes=classes)


def autoencoder(size, channels=1, **config) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(**{"width": 8} | config), image_size=size, channels=channels)


SIZES = [(8, 1), (16, 3), (28, 1), (32, 3), (45, 3), (64, 1), (100, 3), (128, 3)]
SMALL = GanConfig(latent_dim=16, width=4)


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_images_of_any_size_are_classified_and_come_back_in_their_own_shape(size, channels):
    images = torch.rand(2, channels, size, size)
    for stride in (1, 2):
        logits = classifier(size, channels, classes=7, stem_stride=stride)(images)
        assert logits.shape == (2, 7) and logits.dtype == torch.float32 and logits.isfinite().all()
    net = autoencoder(size, channels, latent_dim=5)
    codes, made = net(images)
    assert codes.shape == (2, 5) and made.shape == images.shape and codes.dtype == made.dtype == torch.float32
    assert made.min() >= 0 and made.max() <= 1


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (48, 3), (64, 1), (96, 3), (128, 3)])
def test_gans_make_and_judge_images_of_every_size(size, channels):
    images = Generator(SMALL, image_size=size, channels=channels)(torch.randn(2, 16)).detach()
    assert images.shape == (2, channels, size, size) and images.min() >= 0 and images.max() <= 1
    assert Discriminator(SMALL, image_size=size, channels=channels)(images).shape == (2,)


@pytest.mark.parametrize(("height", "width"), [(96, 64), (15, 40), (64, 16), (16, 128)])
def test_images_need_not_be_square(height, width):
    images, size = torch.rand(2, 3, height, width), (height, width)
    assert classifier(size, 3)(images).shape == (2, 10)
    codes, made = autoencoder(size, 3, latent_dim=5)(images)
    assert codes.shape == (2, 5) and made.shape == images.shape
    if height % 8 == 0:
        made = Generator(SMALL, image_size=size, channels=3)(torch.randn(2, 16)).detach()
        assert made.shape == images.shape
        assert Discriminator(SMALL, image_size=size, channels=3)(made).shape == (2,)


def test_what_is_made_for_squares_refuses_other_images():
    assert DataInfo(28, 1, (), 1).image_size == 28
    with pytest.raises(
        BadInput, match=r"is 96x64, and this job's network is made for squares; .* data\.shape"
    ):
        DataInfo((96, 64), 1, (), 1).image_size  # noqa: B018


@pytest.mark.parametrize(
    ("size", "written", "near"),
    [
        (30, "30", "28 or 32"),
        (33, "33", "28 or 32"),
        (200, "200", "112 or 128"),
        (8, "8", "16 or 20"),
        ((100, 70), "100x70", "96x64 or 96x80"),
        ((96, 200), "96x200", "80x128 or 96x128"),
    ],
)
def test_sizes_that_cannot_be_made_are_bad_input_and_the_nearest_are_named(size, written, near):
    with pytest.raises(
        BadInput, match=f"data.image_size {written}; the nearest that work are {near}"
    ) as found:
        stages(size)
    for text in near.split(" or "):
        stages(sides(text))
    assert "\n" not in str(found.value)


def test_parameter_counts_are_those_of_the_formulas():
    conv = lambda i, o, k=3: i * o * k * k + 2 * o  # noqa: E731  with BatchNorm's gain and bias
    # The stem is fixed and gives 24; stages 24->8->8, 8->32->32, 32->32->32; head 32->10.
    stages = conv(24, 8) + conv(8, 8) + conv(8, 32) + 3 * conv(32, 32)
    # Encoder 28 -> 14 -> 7 at widths 8, 16; two convolutions in every residual block; a 5x5 kernel first.
    encoder = conv(1, 8, 5) + 2 * conv(8, 8) + conv(8, 16) + 2 * conv(16, 16) + 16 * 49 * 6
    decoder = 6 * 16 * 49 + 2 * 16 + 2 * conv(16, 16) + conv(16, 32) + 2 * conv(8, 8) + 8 * 4 * 9 + 4
    strided = sum(16 * i * o + o for i, o in ((3, 32), (32, 64), (64, 128), (128, 256)))
    for net, count in (
        (classifier(32, 3, growth=4), stages + 32 * 10 + 10),
        (autoencoder(28, depth=2, latent_dim=6), encoder + decoder),
        (Discriminator(GanConfig(), image_size=64, channels=3, normalise=False), strided + 256 * 16 + 1),
    ):
        assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_parameter_gets_a_gradient(depth):
    images = torch.rand(4, 3, 32, 32)
    for net in (classifier(32, 3, depth=depth, dropout=0.0), autoencoder(32, 3, depth=depth)):
        made = net(images)
        (made[1] if isinstance(made, tuple) else made).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# Classifier


@pytest.mark.parametrize(
    ("size", "stride", "stages"),
    [(8, 1, 1), (16, 1, 2), (28, 1, 3), (32, 1, 3), (64, 1, 4), (128, 1, 5), (28, 2, 2)],
)
def test_each_stage_halves_until_about_three_pixels_are_left(size, stride, stages):
    net = classifier(size, growth=1, stem_stride=stride)
    assert len(net.stages) == stages
    assert net.stages(net.stem(torch.rand(1, 1, size, size))).shape[2] in (3, 4, 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_stem_is_orthonormal_and_ignores_brightness_and_contrast_of_the_whole_batch(channels):
    stem, images = WhiteningStem(channels), torch.rand(8, channels, 16, 16)
    basis = stem.basis.flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(4 * channels), atol=1e-6)
    assert torch.allclose(stem(images), stem(0.5 * images + 0.2), atol=1e-3)


def test_dropout_acts_in_training_only_and_logits_ignore_the_rest_of_the_batch_in_use():
    net, images = classifier(28, dropout=0.5), torch.rand(5, 1, 28, 28)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))
    assert torch.allclose(net(images)[:2], net(images[:2]), atol=1e-5)


def test_convolutions_start_as_partial_identities():
    net = classifier(32, growth=4, depth=3)
    shapes = set()
    for conv in (conv for stage in net.stages for conv in stage.convolutions):
        through = min(conv.in_channels, conv.out_channels)
        x = torch.randn(2, conv.in_channels, 6, 6)
        torch.testing.assert_close(conv(x)[:, :through], x[:, :through])
        assert bool((conv.weight[through:] != 0).all())  # the rest is random
        shapes.add((conv.in_channels, conv.out_channels))
    assert shapes == {(8, 8), (8, 32), (32, 32)}  # the stem gives 8


def test_activation_is_that_of_every_layer():
    relu, gelu = (classifier(16, growth=4, depth=3, activation=name) for name in ("relu", "gelu"))
    gelu.load_state_dict(relu.state_dict())
    x = y = torch.rand(4, 1, 16, 16)
    for theirs, ours in zip([relu.stem, *relu.stages], [gelu.stem, *gelu.stages], strict=True):
        x, y = theirs(x), ours(y)
        assert x.min() == 0 and -0.2 < y.min() < 0  # GELU's least value is -0.17


# Autoencoder


@pytest.mark.parametrize(("size", "made"), [(8, 8), (28, 28), (45, 48), (100, 112)])
def test_the_decoder_makes_at_least_the_images_pixels_and_the_surplus_is_cut_off_around(size, made):
    net = autoencoder(size, 3).eval()
    codes = torch.randn(2, net.latent_dim)
    whole, images = net.decoder(codes).sigmoid(), net.decode(codes)
    assert whole.shape == (2, 3, made, made)
    first = (made - size) // 2
    assert torch.equal(images, whole[:, :, first : first + size, first : first + size])


def test_codes_are_standardised_and_decoded_with_noise():
    net, images = autoencoder(16), torch.rand(64, 1, 16, 16)
    codes = net.encode(images)
    assert torch.allclose(codes.mean(0), torch.zeros(32), atol=1e-5)
    assert torch.allclose(codes.var(0, correction=0), torch.ones(32), atol=1e-2)
    codes, reconstructions = net.eval()(images)
    assert torch.equal(net.decode(codes), reconstructions)
    noise = torch.randn(64, 32)
    assert torch.equal(net(images, noise)[1], net.decode(codes + noise))


def test_width_stops_growing_at_four_times_its_start():
    channels = {m.out_channels for m in autoencoder(100).encoder.modules() if hasattr(m, "out_channels")}
    assert channels == {8, 16, 32}


# Discriminator


def test_normalisation_takes_real_and_generated_images_apart():
    d, real = Discriminator(SMALL, image_size=32, channels=3), torch.rand(8, 3, 32, 32)
    together = d(torch.cat([real, real * 0.3]), parts=2)
    torch.testing.assert_close(together, torch.cat([d(real), d(real * 0.3)]))
    assert not torch.allclose(d(torch.cat([real, real * 0.3])), together)
    assert d.eval()(real[:2]).sub(d(real)[:2]).abs().max() > 1e-3  # in evaluation, too
    fix_statistics(d, real)
    torch.testing.assert_close(d(real), d.train()(real))
    torch.testing.assert_close(d.eval()(real[:2]), d(real)[:2])


# Layers


def test_flattening_keeps_the_order_of_the_map_in_memory():
    net = nn.Sequential(Unflatten(1, (3, 4, 5)), Flatten())
    x = torch.randn(2, 60)
    assert torch.equal(net(x), x)
    image = net[0](x).requires_grad_()
    assert torch.equal(image, x.view(2, 3, 4, 5)) and not image.is_contiguous()
    assert image.is_contiguous(memory_format=torch.channels_last)
    seen = []
    middle = image * 1
    middle.register_hook(seen.append)
    weights = torch.randn(2, 60)
    (net[1](middle) * weights).sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(image.grad, weights.view(2, 3, 4, 5))


def test_flattening_has_second_derivatives():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: Flatten()(x) ** 3, x)
