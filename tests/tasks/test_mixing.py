"""Mixup and CutMix: values, the distribution of shares, and the same for any number of workers."""

import pytest
import torch
from helpers import tiny

from crayon.data import ImageSet, Loader
from crayon.data.types import Batch, DataInfo
from crayon.errors import BadInput
from crayon.rng import Randomness
from crayon.tasks.classification.mixing import Mixing
from crayon.tasks.classification.task import ClassificationTask

INFO = DataInfo(16, 3, tuple("abcde"), 100)


def images(n=9, height=10, width=14) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(2))


def test_mixup_blends_neighbours_by_their_shares():
    x, places = images(), torch.arange(9)
    mixed, partner, own = Mixing(0.4, 0)(x, Randomness(1), places)
    assert partner.tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 8]
    share = own[:, None, None, None]
    assert torch.allclose(mixed, share * x + (1 - share) * x[partner], atol=1e-6)
    assert torch.equal(mixed[8], x[8])
    assert not torch.equal(mixed, Mixing(0.4, 0)(x, Randomness(2), places)[0])


def test_cutmix_pastes_one_box_of_the_neighbour_and_counts_its_pixels():
    x = images(400)
    mixed, partner, own = Mixing(0, 1.0)(x, Randomness(1), torch.arange(400))
    pasted = (mixed != x).all(1)
    assert torch.equal(mixed, torch.where(pasted[:, None], x[partner], x))
    assert torch.allclose(own, 1 - pasted.float().mean((1, 2)))
    assert torch.equal(pasted.sum((1, 2)), pasted.any(1).sum(1) * pasted.any(2).sum(1))
    height, width = pasted.any(2).sum(1).float(), pasted.any(1).sum(1).float()
    whole = (height > 4) & (height < 9)
    assert (width[whole] / height[whole]).median() == pytest.approx(14 / 10, abs=0.2)


def test_shares_have_the_beta_distribution():
    x = torch.zeros(20_000, 1, 2, 2)
    for alpha in (0.2, 1.0, 4.0):
        own = Mixing(alpha, 0)(x, Randomness(0), torch.arange(20_000))[2]
        assert own.mean() == pytest.approx(0.5, abs=0.01)
        assert own.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_with_both_each_image_gets_one_of_them_evenly():
    x = images(4000, 6, 6)
    mixed, partner, _ = Mixing(0.2, 1.0)(x, Randomness(0), torch.arange(4000))
    either = ((mixed == x) | (mixed == x[partner])).flatten(1).all(1)
    assert 0.45 < either.float().mean() < 0.62  # CutMix, and the mixups that leave an image alone


def test_workers_together_mix_what_one_mixes():
    n = 60
    pixels = torch.randint(
        0, 256, (n, 3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    data, mixing = ImageSet("x", pixels, torch.arange(n) % 5, tuple("abcde")), Mixing(0.3, 1.0)

    def step(rank, size):
        batch = list(Loader(data, global_batch_size=15, rank=rank, world_size=size, together=2).epoch(1))[2]
        return [*mixing(batch.images, Randomness(0, "step", 2), batch.positions)][::2], len(batch.labels)

    (alone, _), counts = step(0, 1), {}
    for size in (2, 3, 8):
        shares = [step(rank, size) for rank in range(size)]
        counts[size] = [count for _, count in shares]
        assert all(
            torch.equal(one, torch.cat(parts))
            for one, parts in zip(alone, zip(*(part for part, _ in shares), strict=True), strict=True)
        )
    assert counts == {2: [8, 7], 3: [6, 6, 3], 8: [2] * 7 + [1]}
    with pytest.raises(BadInput, match="less than 18, 2 images that belong together"):
        step(0, 9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_soft_labels(smoothing):
    task = ClassificationTask(tiny("cifar10", task__mixup=0.3, task__label_smoothing=smoothing), INFO)
    batch = Batch(images(9, 16, 16), torch.arange(9) % 5, torch.arange(9))
    rng = Randomness(0, "step", 1)
    task.networks.eval()  # no dropout
    loss, terms = task.loss("classifier", task.networks, batch, rng)
    mixed, partner, own = task.mixing(batch.images, rng, batch.positions)
    hot = torch.nn.functional.one_hot(batch.labels, 5).float()
    soft = own[:, None] * hot + (1 - own)[:, None] * hot[partner]
    logits = task.networks["classifier"](mixed)
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, soft, label_smoothing=smoothing).item(), rel=1e-5
    )
    assert terms["accuracy"].item() == pytest.approx(soft[range(9), logits.argmax(1)].mean().item(), rel=1e-5)
    with torch.device("meta"):
        assert torch.equal(Mixing(0.3, 0).shares, task.mixing.shares)
    assert task.together == 2 and ClassificationTask(tiny("cifar10"), INFO).together == 1
