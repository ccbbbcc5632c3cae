"""Directions in a generator's latent space, and the way back from an image to a seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import gan
from PIL import Image

import crayon
from crayon.errors import BadInput
from crayon.report.plots import image_grid
from crayon.tasks.adversarial import directions
from crayon.tasks.adversarial.invert import nearest, refine
from crayon.use.edit import parse

pytest_plugins = ["faces"]


# explore and edit


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_directions_are_those_along_which_images_change_most(model, method):
    generator = model.networks["generator"]
    size = generator.latent_dim
    found = directions.find(generator, method, size)
    assert found.vectors.shape == (size, size)
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(size))
    assert bool((found.shares[:-1] >= found.shares[1:]).all()) and 0 < float(found.shares.sum()) <= 1.0001
    latents = model.latents(torch.arange(64))

    def changed(k: int) -> float:
        """How far a step along direction k carries the first layer's output, before its ReLU."""
        with torch.no_grad():
            moved = generator.layers[:3](latents + found.vectors[k]) - generator.layers[:3](latents)
        return float(moved.square().mean())

    assert changed(0) > 1.5 * changed(size - 1)


def test_without_a_relu_both_methods_agree(model):
    """Of a dense layer alone, principal components of the outputs lead back to the eigenvectors of the weights."""
    generator = crayon.load(model.uri, device="cpu").networks["generator"]
    with torch.no_grad():
        stretch = torch.full((generator.latent_dim,), 0.1)
        stretch[:4] = torch.tensor([8.0, 4.0, 2.0, 1.0])
        left, _, right = torch.linalg.svd(generator.layers[0].weight, full_matrices=False)
        generator.layers[0].weight.copy_(left * stretch @ right)
        generator.layers[2].reset_parameters()
        generator.layers[2].reset_running_stats()
        generator.layers[2].bias.fill_(100.0)  # so the ReLU lets everything through
    by_weights, by_activations = (
        directions.find(generator, m, 4).vectors for m in ("weights", "activations")
    )
    assert float((by_weights * by_activations).sum(1).abs().min()) > 0.98


def test_explored_directions_are_used_by_edit(untrained, model, tmp_path):
    out = tmp_path / "explored"
    gan("explore", untrained / "gan", "--directions", 3, "--seeds", "0,5", "--columns", 5, "--out", out)
    assert sorted(p.name for p in out.glob("*.png")) == ["seed-000000000.png", "seed-000000005.png"]
    content = json.loads((out / "directions.json").read_text())
    known = directions.read(content, "x", model.networks["generator"].latent_dim)
    assert known.step == model.step and len(known) == 3
    move = ["edit", untrained / "gan", "--seeds", "0,1", "--along", "2=1.5,1=-2", "--directions"]
    gan(*move, out / "directions.json", "--out", tmp_path / "e.png")
    latents = model.latents(torch.tensor([0, 1]))
    moved = model.decode(latents + 1.5 * known.vectors[1] - 2 * known.vectors[0])
    wanted = image_grid(
        torch.cat([model.decode(latents), moved]),
        scale=None,
        row_names=["before", "after\n2=1.5,1=-2"],
        column_names=["seed 0", "seed 1"],
    )
    with Image.open(tmp_path / "e.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(wanted))
    for file, says in (("none.json", "There is no file"), ("result.json", "doesn't hold directions")):
        with pytest.raises(BadInput, match=says):
            gan(*move, out / file, "--out", tmp_path / "f.png")


@pytest.mark.parametrize("along", ["", "1", "0=1", "4=1", "1=x", "1=1,1=2", "1=nan", "1=1e9", "1=1..2"])
def test_what_is_no_move_is_told(along):
    with pytest.raises(BadInput, match="--along"):
        parse(along, 3)


@pytest.mark.parametrize(
    "change", [{"vectors": [[1, "x"]]}, {"vectors": [1.0]}, {"shares": [1]}, {"kind": "run"}]
)
def test_files_that_are_no_directions_are_told(change):
    good = json.loads(directions.Directions(torch.eye(2), torch.ones(2) / 2, "weights").text())
    assert len(directions.read(good, "x", 2)) == 2
    with pytest.raises(BadInput, match="doesn't hold directions"):
        directions.read(good | change, "x", 2)
    with pytest.raises(BadInput, match="latents have 3"):
        directions.read(good, "x", 3)


def test_strengths_are_centred_on_the_image_itself():
    assert directions.strengths(3.0, 5).tolist() == [-3, -1.5, 0, 1.5, 3]
    with pytest.raises(BadInput, match="odd"):
        directions.strengths(3.0, 4)


# invert


def test_the_image_of_a_seed_is_inverted_to_that_seed(untrained, model, tmp_path):
    given = tmp_path / "face.png"
    Image.fromarray(model.generate(torch.tensor([37]))[0].permute(1, 2, 0).numpy()).save(given)

    def inverted(*flags: object) -> dict:
        out = tmp_path / "-".join(map(str, flags))
        gan("invert", untrained / "gan", given, *flags, "--out", out)
        assert (out / "inverted.png").exists()
        return json.loads((out / "result.json").read_text())

    result = inverted("--search", 64, "--refine", 0)
    assert result["seed"] == 37 and result["nearest"]["mse"] == 0 and "latent" not in result
    result = inverted("--search", 30, "--refine", 30, "--space", "pixels")
    assert result["refined"]["mse"] < 0.7 * result["nearest"]["mse"]
    assert model.decode(torch.tensor([result["latent"]])).shape == (1, 3, 32, 32)


def test_the_nearest_seeds_are_found_in_pieces(model):
    wanted = model.generate(torch.tensor([50]))[0]

    def flat(images):
        return images.flatten(1).float()

    whole = nearest(wanted, model.generate, flat, 100, keep=5)
    cut = nearest(wanted, model.generate, flat, 100, keep=5, piece=13)
    assert whole[0].tolist() == cut[0].tolist() and whole[0][0] == 50 and whole[1][0] == 0
    assert len(nearest(wanted, model.generate, flat, 3, keep=5)[0]) == 3


def test_refinement_never_makes_it_worse(model):
    generator, wanted = model.networks["generator"], model.generate(torch.tensor([1]))[0]
    latents = model.latents(torch.tensor([1, 2]))
    best, _ = refine(generator, wanted, latents, 8)
    torch.testing.assert_close(best[0], latents[0])

    def corner(images):
        return 100 * images[:, :, :4, :4].flatten(1)

    for features_of in (None, corner):
        _, start = refine(generator, wanted, latents, 0, features_of)
        _, errors = refine(generator, wanted, latents, 8, features_of)
        assert bool((errors <= start).all()) and float(errors[1]) < float(start[1])
    assert all(p.grad is None for p in generator.parameters())


def test_pictures_that_cannot_be_inverted_are_told(untrained, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    for name, says in (("none.png", "no picture"), ("bad.png", "can't be read")):
        with pytest.raises(BadInput, match=says):
            gan("invert", untrained / "gan", tmp_path / name, "--out", tmp_path / "o")
