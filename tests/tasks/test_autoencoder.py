import pytest
import torch

from crayon.tasks.reconstruction.network import Autoencoder
from crayon.tasks.reconstruction.settings import AutoencoderConfig


def build(size, channels=1, **config):
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(**{"width": 8} | config), image_size=size, channels=channels)


@pytest.mark.parametrize(
    ("size", "channels"), [(8, 1), (16, 3), (28, 1), (32, 3), (45, 3), (64, 1), (100, 3)]
)
def test_images_come_back_in_their_own_shape(size, channels):
    net = build(size, channels, latent_dim=5)
    codes, images = net(torch.rand(2, channels, size, size))
    assert codes.shape == (2, 5)
    assert images.shape == (2, channels, size, size)
    assert codes.dtype == images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize(("size", "made"), [(8, 8), (28, 28), (45, 48), (100, 112)])
def test_the_decoder_makes_at_least_the_images_pixels_and_the_surplus_is_cut_off_around(size, made):
    net = build(size, 3).eval()
    codes = torch.randn(2, net.latent_dim)
    whole, images = net.decoder(codes).sigmoid(), net.decode(codes)
    assert whole.shape == (2, 3, made, made)
    first = (made - size) // 2
    assert torch.equal(images, whole[:, :, first : first + size, first : first + size])


def test_parameter_count_is_that_of_the_layers():
    # Encoder 28 -> 14 -> 7 at widths 8, 16; two convolutions in every residual block; a 5x5 kernel first.
    net = build(28, width=8, depth=2, latent_dim=6)
    conv = lambda i, o, k=3: i * o * k * k + 2 * o  # noqa: E731  with BatchNorm's gain and bias
    encoder = conv(1, 8, 5) + 2 * conv(8, 8) + conv(8, 16) + 2 * conv(16, 16) + 16 * 49 * 6
    decoder = 6 * 16 * 49 + 2 * 16 + 2 * conv(16, 16) + conv(16, 32) + 2 * conv(8, 8) + 8 * 4 * 9 + 4
    assert sum(p.numel() for p in net.parameters()) == encoder + decoder


def test_codes_are_standardised_over_a_training_batch():
    codes = build(16).encode(torch.rand(64, 1, 16, 16))
    assert torch.allclose(codes.mean(0), torch.zeros(32), atol=1e-5)
    assert torch.allclose(codes.var(0, correction=0), torch.ones(32), atol=1e-2)


def test_decoding_the_code_is_the_reconstruction():
    net = build(28).eval()
    images = torch.rand(3, 1, 28, 28)
    codes, reconstructions = net(images)
    assert torch.equal(net.decode(codes), reconstructions)
    noise = torch.randn(3, 32)
    assert torch.equal(net(images, noise)[1], net.decode(codes + noise))


def test_every_parameter_gets_a_gradient():
    net = build(32, 3, depth=2)
    net(torch.rand(4, 3, 32, 32))[1].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_width_stops_growing_at_four_times_its_start():
    channels = {m.out_channels for m in build(100, width=8).encoder.modules() if hasattr(m, "out_channels")}
    assert channels == {8, 16, 32}
