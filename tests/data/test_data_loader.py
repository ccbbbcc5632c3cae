"""Order, sharding, resume, augmentation: all exact."""

import threading
import time

import pytest
import torch
from helpers import pixels

from crayon.config.settings import AugmentConfig
from crayon.data import Augment, ImageSet, Loader, Splits, evaluation_batches
from crayon.data.ahead import ahead
from crayon.data.images import hold_out, subsample
from crayon.errors import BadInput
from crayon.rng import Randomness

ALL = AugmentConfig(flip=True, shift=2, rotate=10, zoom=0.1, cutout=3)


def numbered(n=103, channels=3, size=8, classes=4) -> ImageSet:
    """Image i holds i in every pixel of its first channel."""
    images = torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(0))
    images[:, 0] = torch.arange(n).view(-1, 1, 1)
    labels = torch.arange(n) % classes
    return ImageSet("numbered/train", images.to(torch.uint8), labels, tuple("abcd"[:classes]))


def which(batch) -> list[int]:
    return (batch.images[:, 0, 0, 0] * 255).round().int().tolist()


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Order


def test_an_epoch_shows_no_image_twice_and_drops_the_remainder():
    loader = Loader(numbered(), global_batch_size=10)
    batches = list(loader.epoch(0))
    seen = [i for batch in batches for i in which(batch)]
    assert loader.steps_per_epoch == len(batches) == 10 and len(set(seen)) == len(seen) == 100
    for batch in batches:
        assert batch.labels.tolist() == [i % 4 for i in which(batch)]
        assert batch.images.dtype == torch.float32 and batch.positions.tolist() == list(range(10))


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return [i for b in Loader(numbered(), global_batch_size=10, seed=seed).epoch(epoch) for i in which(b)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


@pytest.mark.parametrize("residency", ["device", "stream"])
@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_together_see_what_one_worker_sees(residency, world_size):
    options = {"global_batch_size": 12, "augment": ALL, "residency": residency, "seed": 5}
    alone = list(Loader(numbered(), **options).epoch(3))
    ranks = [
        list(Loader(numbered(), rank=r, world_size=world_size, **options).epoch(3)) for r in range(world_size)
    ]
    for batch, *shares in zip(alone, *ranks, strict=True):
        assert equal(batch, [torch.cat(parts) for parts in zip(*shares, strict=True)])


@pytest.mark.parametrize("residency", ["device", "stream"])
@pytest.mark.parametrize("start", [0, 4, 9, 10])
def test_an_epoch_entered_in_the_middle_goes_on_exactly(residency, start):
    loader = Loader(numbered(), global_batch_size=10, augment=ALL, residency=residency)
    rest = list(loader.epoch(1, start))
    whole = list(loader.epoch(1))[start:]
    assert len(rest) == len(whole) == 10 - start
    assert all(equal(a, b) for a, b in zip(rest, whole, strict=True))


def test_streaming_gives_what_residency_gives_and_leaves_no_thread():
    loaders = [
        Loader(numbered(), global_batch_size=10, augment=ALL, residency=r) for r in ("device", "stream")
    ]
    assert all(equal(a, b) for a, b in zip(*(loader.epoch(0) for loader in loaders), strict=True))
    batches = loaders[1].epoch(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("crayon-ahead")]


def test_threads_keep_the_order_stay_near_their_reader_and_hand_over_errors():
    begun = []

    def work(item):
        begun.append(item)
        if item == 9:
            raise OSError("disk gone")
        time.sleep(0.001 * (item % 3))
        return item

    results = ahead(work, range(100), most=4, threads=3)
    for i in range(9):
        assert next(results) == i and max(begun) <= i + 4
    with pytest.raises(OSError, match="disk gone"):
        next(results)


def test_channels_last_changes_the_layout_only():
    for augment in (None, ALL, AugmentConfig(shift=1)):
        plain, nhwc = (
            next(Loader(numbered(), global_batch_size=10, augment=augment, channels_last=c).epoch(0)).images
            for c in (False, True)
        )
        assert plain.is_contiguous() and nhwc.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(plain, nhwc, atol=1e-6)


def test_a_batch_larger_than_the_set():
    with pytest.raises(BadInput, match="more than the 103"):
        Loader(numbered(), global_batch_size=104)
    assert Loader(numbered(), global_batch_size=103).steps_per_epoch == 1


# Evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 25, 30])
def test_evaluation_shows_every_image_once_over_all_ranks(world_size, n):
    images = numbered(n)
    batches = [
        batch
        for rank in range(world_size)
        for batch in evaluation_batches(images, batch_size=10, rank=rank, world_size=world_size)
    ]
    assert sorted(i for batch in batches for i in which(batch)) == list(range(n))
    for batch in batches:
        assert which(batch) == batch.positions.tolist()
        assert torch.equal(batch.images, pixels(images)[batch.positions].float() / 255)
        assert torch.equal(batch.labels, images.labels[batch.positions])


# Sets


def test_a_selection_copies_nothing():
    images = numbered()
    train, val = hold_out(images, 0.2)
    again = train.select(torch.arange(0, len(train), 2)).select([3, 0])
    assert {part.storage.data_ptr() for part in (train, val, again)} == {images.storage.data_ptr()}
    assert torch.equal(pixels(again), pixels(train)[[6, 0]])
    assert torch.equal(again.labels, train.labels[[6, 0]])
    assert torch.equal(again.gather(torch.tensor([1])), pixels(again)[1:])


@pytest.mark.parametrize("counts", [(10, 30), (7, 7, 7), (1, 2, 50), (33, 5, 5, 5, 90)])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.8])
def test_every_class_gives_its_share_of_the_validation_split_to_within_one_image(counts, fraction):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n, n_val = len(labels), round(len(labels) * fraction)
    images = ImageSet("x/train", torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1), labels)
    train, val = hold_out(images, fraction)
    assert len(val) == n_val and (train.name, val.name) == ("x/train", "x/val")
    for count, held in zip(counts, val.labels.bincount(minlength=len(counts)).tolist(), strict=True):
        assert abs(held - count * n_val / n) < 1
    assert hold_out(images, 0.0) == (images, None)
    assert len(hold_out(images, 0.0001)[1]) == 1 and len(hold_out(images, 0.9999)[0]) == 1
    # A run that goes on with another version must find the same split.
    order = Randomness(0, "validation").permutation(n).tolist()
    by_label = sorted(order, key=lambda i: int(labels[i]))
    expected = sorted(by_label[(2 * k + 1) * n // (2 * n_val)] for k in range(n_val))
    assert val.gather(torch.arange(len(val))).flatten().tolist() == expected
    assert train.gather(torch.arange(len(train))).flatten().tolist() == sorted(set(range(n)) - set(expected))


def test_a_limit_takes_some_of_every_class():
    images = numbered(200)
    some = subsample(images, 60)
    assert len(some) == 60 and len(some.labels.unique()) == 4
    assert subsample(images, None) is images and subsample(images, 999) is images


def test_what_a_task_is_told_of_its_data():
    info = Splits(numbered(), None, None, "numbered").info()
    assert (info.image_size, info.channels, info.classes, info.train_size) == (8, 3, tuple("abcd"), 103)


# Augmentation


def apply(images, rng=None, positions=None, epoch=1, **settings):
    positions = torch.arange(len(images)) if positions is None else positions
    return Augment(AugmentConfig(**settings), (0.25,) * images.shape[1])(
        images, rng or Randomness(0), epoch, positions, positions
    )


def test_flip_mirrors_half_of_the_images():
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(1000, 1, 8, 8)
    out = apply(images, flip=True) * 255
    plain, mirrored = images[0].float(), images[0].flip(-1).float()
    kept = torch.tensor([torch.equal(x.round(), plain) for x in out])
    assert all(torch.equal(x.round(), mirrored) for x in out[~kept]) and 430 < kept.sum() < 570


@pytest.mark.parametrize("others", [{}, {"shift": 2}, {"zoom": 0.1}])
def test_who_is_mirrored_in_one_epoch_is_not_in_the_next(others):
    images = ImageSet(
        "ramp", torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(96, 1, 1, 1), torch.arange(96), ()
    )
    loader = Loader(images, global_batch_size=32, augment=AugmentConfig(flip=True, **others))

    def mirrored(epoch):
        found = {}
        for batch in loader.epoch(epoch):
            slope = (batch.images[..., 1:] - batch.images[..., :-1]).mean((1, 2, 3))
            found |= dict(zip(batch.labels.tolist(), (slope < 0).tolist(), strict=True))
        return [found[i] for i in range(96)]

    first, second, third = (mirrored(epoch) for epoch in (1, 2, 3))
    assert second == [not side for side in first] and third == first
    assert 30 < sum(first) < 66


def test_shift_moves_by_whole_pixels_and_reflects_edges():
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(2000, 1, 8, 8)
    padded = torch.nn.functional.pad(images[:1].float(), (2, 2, 2, 2), mode="reflect")[0, 0]
    possible = {tuple(padded[y : y + 8, x : x + 8].flatten().tolist()) for y in range(5) for x in range(5)}
    got = {tuple(x.flatten().tolist()) for x in (apply(images, shift=2) * 255).round()}
    assert got == possible


def test_warp_agrees_with_shift_where_both_can_do_it():
    images = torch.randint(
        0, 256, (200, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    exact = apply(images, flip=True, shift=3)
    warped = apply(images, flip=True, shift=3, zoom=1e-9)
    inner = (..., slice(3, 6), slice(3, 6))  # the edges are reflected at another line
    assert torch.allclose(exact[inner], warped[inner], atol=1e-4)


def test_rotation_and_zoom_stay_within_bounds():
    images = torch.zeros(500, 1, 33, 33, dtype=torch.uint8)
    images[:, :, 16, 16:] = 255  # a hand pointing right
    line = torch.arange(33) - 16.0
    out = apply(images, rotate=30)[:, 0]
    x, y = (out * line).sum((1, 2)), (out * line[:, None]).sum((1, 2))
    angle = torch.rad2deg(torch.atan2(y, x))
    assert angle.abs().max() < 31 and angle.min() < -25 and angle.max() > 25
    disk = ((line.square() + line[:, None].square()) < 64).to(torch.uint8) * 255
    area = apply(disk.expand(500, 1, 33, 33), zoom=0.2).sum((1, 2, 3)) / (disk.sum() / 255)
    assert 0.6 < area.min() < 0.7 and 1.38 < area.max() < 1.48


def test_a_loaders_cutout_has_the_mean_colour_of_the_set():
    pixels = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    pixels[::2, 0], pixels[::4, 1] = 200, 100
    loader = Loader(
        ImageSet("x", pixels, torch.zeros(8).long()), global_batch_size=8, augment=AugmentConfig(cutout=4)
    )
    (batch,) = loader.epoch(0)
    seen = batch.images.permute(0, 2, 3, 1).reshape(-1, 3).mul(255).round().unique(dim=0).tolist()
    assert sorted(seen) == [[0, 0, 0], [100, 25, 0], [200, 0, 0], [200, 100, 0]]


def test_cutout_paints_one_square_with_the_mean():
    out = apply(torch.full((300, 2, 12, 12), 255, dtype=torch.uint8), cutout=4)
    painted = (out == 0.25).all(1)
    assert ((out == 1).all(1) | painted).all()
    counts = painted.sum((1, 2))
    assert counts.max() == 16 and counts.min() == 4  # a quarter of the square in a corner at the least
    assert torch.equal(counts, painted.any(1).sum(1) * painted.any(2).sum(1))


def test_the_mean_of_a_set_is_exact(monkeypatch):
    monkeypatch.setattr("crayon.data.images.PART_BYTES", 1000)  # five images at a time
    images = numbered().select(torch.arange(100))
    assert images.mean() == pytest.approx((pixels(images).double().mean((0, 2, 3)) / 255).tolist(), rel=1e-12)


def test_draws_depend_on_the_place_in_the_global_batch_not_on_the_company():
    images = pixels(numbered(64))
    settings = {"flip": True, "shift": 2, "rotate": 10.0, "zoom": 0.1, "cutout": 3}
    whole = apply(images, **settings)
    half = apply(images[32:], positions=torch.arange(32, 64), **settings)
    assert torch.equal(whole[32:], half)
    assert not torch.equal(whole, apply(images, rng=Randomness(1), **settings))
    assert whole.min() >= 0 and whole.max() <= 1
