import pytest
import torch

from crayon.errors import BadInput
from crayon.tasks.classification.network import Classifier, WhiteningStem
from crayon.tasks.classification.settings import ClassifierConfig


def build(size, channels, classes=10, **config):
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(**config), image_size=size, channels=channels, classes=classes)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "channels"), [(8, 1), (16, 3), (28, 1), (32, 3), (45, 3), (64, 1), (128, 3)]
)
def test_any_size_gives_one_row_of_logits_per_image(size, channels, stride):
    net = build(size, channels, classes=7, width=8, growth=2, stem_stride=stride)
    logits = net(torch.rand(2, channels, size, size))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("size", "stride", "stages"),
    [(8, 1, 1), (16, 1, 2), (28, 1, 3), (32, 1, 3), (64, 1, 4), (128, 1, 5), (28, 2, 2)],
)
def test_each_stage_halves_until_about_three_pixels_are_left(size, stride, stages):
    net = build(size, 1, width=8, growth=1, stem_stride=stride)
    assert len(net.stages) == stages
    assert net.stages(net.stem(torch.rand(1, 1, size, size))).shape[2] in (3, 4, 5)


def test_parameter_count_is_that_of_the_formula():
    # stem: fixed. stages: 24->8->8, 8->32->32, 32->32->32 with 3x3 weights and two per BatchNorm channel. head: 32->10.
    net = build(32, 3, width=8, growth=4)
    weights = 9 * (24 * 8 + 8 * 8 + 8 * 32 + 32 * 32 + 32 * 32 + 32 * 32)
    norms = 2 * (2 * 8 + 4 * 32)
    assert sum(p.numel() for p in net.parameters()) == weights + norms + 32 * 10 + 10


@pytest.mark.parametrize("channels", [1, 3])
def test_stem_basis_is_orthonormal(channels):
    basis = WhiteningStem(channels).basis.flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(4 * channels), atol=1e-6)


def test_stem_ignores_brightness_and_contrast_of_the_whole_batch():
    stem, images = WhiteningStem(3), torch.rand(8, 3, 16, 16)
    assert torch.allclose(stem(images), stem(0.5 * images + 0.2), atol=1e-3)


def test_logits_ignore_the_rest_of_the_batch_in_eval_mode():
    net = build(28, 1, width=8).eval()
    images = torch.rand(5, 1, 28, 28)
    assert torch.allclose(net(images)[:2], net(images[:2]), atol=1e-5)


def test_every_parameter_gets_a_gradient_at_any_depth():
    for depth in (1, 2, 3, 4):
        net = build(16, 1, width=8, growth=2, depth=depth, dropout=0.0)
        net(torch.rand(4, 1, 16, 16)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_convolutions_start_as_partial_identities():
    net = build(32, 1, width=8, growth=4, depth=3)
    shapes = set()
    for conv in (conv for stage in net.stages for conv in stage.convolutions):
        through = min(conv.in_channels, conv.out_channels)
        x = torch.randn(2, conv.in_channels, 6, 6)
        y = conv(x)
        torch.testing.assert_close(y[:, :through], x[:, :through])
        assert bool((conv.weight[through:] != 0).all())  # the rest is random
        shapes.add((conv.in_channels, conv.out_channels))
    assert shapes == {(8, 8), (8, 32), (32, 32)}  # the stem gives 8


def test_activation_is_that_of_every_layer():
    relu, gelu = (build(16, 1, width=8, depth=3, activation=name) for name in ("relu", "gelu"))
    gelu.load_state_dict(relu.state_dict())
    x = y = torch.rand(4, 1, 16, 16)
    for theirs, ours in zip([relu.stem, *relu.stages], [gelu.stem, *gelu.stages], strict=True):
        x, y = theirs(x), ours(y)
        assert x.min() == 0 and -0.2 < y.min() < 0  # GELU's least value is -0.17


def test_dropout_acts_in_training_only():
    net = build(16, 1, width=8, dropout=0.5)
    images = torch.rand(4, 1, 16, 16)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_images_too_small_are_bad_input():
    with pytest.raises(BadInput, match=r"at least 8 pixels.*is 7"):
        build(7, 1)
