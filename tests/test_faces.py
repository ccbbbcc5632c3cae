"""What is made of a generator: images of seeds, walks, directions, and the way back from an image."""

from __future__ import annotations

import io
import json
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import python, tiny
from PIL import Image

import crayon
from crayon import cli, session
from crayon.errors import BadInput
from crayon.models import directions
from crayon.models.invert import nearest, refine
from crayon.storage import RunFolder
from crayon.use import generate, interpolate, png
from crayon.use.edit import parse
from crayon.use.panel import panel
from crayon.use.seeds import Seeds


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Untrained models of two kinds, as checkpoints; the generator's normalisation has statistics of its own."""
    storage = tmp_path_factory.mktemp("runs")
    for job, changes in (("gan", {"data__size": 64}), ("mnist", {})):
        config = tiny(job, name=job, storage=str(storage), **changes)
        run = RunFolder(config.storage, job)
        run.create()
        trainer = session.build(config, session.load_data(config), run)
        if job == "gan":
            torch.manual_seed(1)
            for network in (trainer.networks, trainer.average.networks):
                for layer in network.modules():
                    if isinstance(layer, torch.nn.BatchNorm2d):
                        layer.running_mean.normal_(0, 0.3)
                        layer.running_var.uniform_(0.3, 2)
        trainer.save(best=True)
    return storage


@pytest.fixture(scope="module")
def model(runs):
    return crayon.load(runs / "gan", device="cpu")


def gan(*words: object) -> int:
    return cli.run("gan", [*map(str, words), "--device", "cpu"])


def arrays(folder) -> np.ndarray:
    return np.concatenate([np.load(p) for p in sorted(folder.glob("block-*.npy"))])


# Seeds


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0..3", [0, 1, 2, 3]), ("7", [7]), ("3, 5,9", [3, 5, 9]), ("8..9,0..1", [8, 9, 0, 1]), ("4..4", [4])],
)
def test_seeds_are_read(text, wanted):
    seeds = Seeds(text)
    assert list(seeds) == wanted and len(seeds) == seeds.count == len(wanted)
    assert list(Seeds(seeds.part(0, seeds.count))) == wanted
    assert [s for i in range(seeds.count) for s in Seeds(seeds.part(i, i + 1))] == wanted


def test_many_seeds_take_no_memory():
    seeds = Seeds(f"5..{2**62},0..1")
    assert seeds.slice(10**15, 10**15 + 2) == [10**15 + 5, 10**15 + 6]
    assert seeds.slice(seeds.count - 2, seeds.count + 9) == [0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "neither a seed nor a range"),
        ("0..", "neither a seed nor a range"),
        ("-3", "neither a seed nor a range"),
        ("1.5", "neither a seed nor a range"),
        ("1,,2", "'' is neither"),
        ("9..1", "write 1..9"),
        (str(2**63), "go up to"),
    ],
)
def test_what_is_no_seeds_is_told(text, says):
    with pytest.raises(BadInput, match=says):
        Seeds(text)


def test_a_seed_twice_is_told():
    with pytest.raises(BadInput, match="seed 5 twice"):
        Seeds("0..5,9,5..7").distinct()


# generate


def test_an_image_is_the_same_however_the_job_is_cut(runs, model, tmp_path):
    threads = torch.get_num_threads()
    try:
        for name, block, count in (("a", 7, 1), ("b", 16, 2), ("c", 1000, 1)):
            torch.set_num_threads(count)
            out = tmp_path / name
            assert (
                gan(
                    "generate",
                    runs / "gan",
                    "--seeds",
                    "3..42",
                    "--block",
                    block,
                    "--format",
                    "npy",
                    "--out",
                    out,
                )
                == 0
            )
    finally:
        torch.set_num_threads(threads)
    whole = arrays(tmp_path / "c")
    assert whole.shape == (40, 3, 32, 32) and whole.dtype == np.uint8
    for name in "ab":
        assert np.array_equal(arrays(tmp_path / name), whole)
    assert np.array_equal(whole, model.generate(torch.arange(3, 43)).numpy())
    assert len(np.unique(whole.reshape(40, -1), axis=0)) == 40
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["images"] == 40 and result["blocks"]["block-000001.npy"] == "10..16"


def test_png_files_hold_the_same_images(runs, model, tmp_path):
    gan("generate", runs / "gan", "--seeds", "2,0", "--out", tmp_path / "out")
    for seed in (0, 2):
        with Image.open(tmp_path / "out" / "block-000000" / f"seed-{seed:09d}.png") as image:
            pixels = np.asarray(image).transpose(2, 0, 1)
        assert np.array_equal(pixels, model.generate(torch.tensor([seed]))[0].numpy())
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size == (2 * (64 + 2) + 2, 64 + 4)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (30, 17)])
def test_png_files_are_read_as_they_were_written(channels, mode, size):
    image = np.random.default_rng(0).integers(0, 256, (channels, *size), dtype=np.uint8)
    file = io.BytesIO(png.encode(image))
    Image.open(file).verify()
    with Image.open(file) as opened:
        assert opened.mode == mode
        assert np.array_equal(np.asarray(opened).reshape(*size, channels), image.transpose(1, 2, 0))


def test_a_killed_job_goes_on(runs, tmp_path):
    """kill -9 in the middle: what is whole stays as it is, the rest is made, and nothing else is left."""
    words = [
        "generate",
        str(runs / "gan"),
        "--seeds",
        "0..1999",
        "--block",
        "16",
        "--format",
        "npy",
        "--device",
        "cpu",
    ]
    out = tmp_path / "out"
    process = python(f"from crayon import cli; cli.main('gan', {[*words, '--out', str(out)]!r})")
    while len(list(out.glob("block-*.npy"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("block-*.npy")}
    assert 3 <= len(before) < 125
    assert not (out / "result.json").exists()
    assert cli.run("gan", [*words, "--out", str(out)]) == 0
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    cli.run("gan", [*words, "--out", str(tmp_path / "whole"), "--block", "500"])
    assert np.array_equal(arrays(out), arrays(tmp_path / "whole"))
    assert not [p for p in out.iterdir() if p.name.startswith(".tmp-")]


@pytest.mark.faults
def test_workers_change_nothing(runs, tmp_path):
    for workers in (0, 1, 2):
        out = tmp_path / str(workers)
        words = ("generate", runs / "gan", "--seeds", "0..99", "--block", 20, "--format", "npy", "--out", out)
        assert gan(*words, "--workers", workers) == 0
    assert np.array_equal(arrays(tmp_path / "0"), arrays(tmp_path / "1"))
    assert np.array_equal(arrays(tmp_path / "0"), arrays(tmp_path / "2"))


def test_what_cannot_be_generated_is_told(runs, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="mnist run, which has a classifier"):
        gan("generate", runs / "mnist", "--out", tmp_path / "a")
    with pytest.raises(BadInput, match="There is no run"):
        gan("generate", runs / "none", "--out", tmp_path / "a")
    with pytest.raises(BadInput, match="--block 0"):
        gan("generate", runs / "gan", "--block", 0, "--out", tmp_path / "a")
    with pytest.raises(BadInput, match="at most 1,000,000 blocks"):
        gan("generate", runs / "gan", "--seeds", f"0..{2**62}", "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(generate.shutil, "disk_usage", lambda path: SimpleNamespace(free=3000))
    with pytest.raises(BadInput, match=r"0\.0 GiB free"):
        gan("generate", runs / "gan", "--seeds", "0", "--format", "npy", "--out", tmp_path / "b")
    gan("generate", runs / "gan", "--seeds", "0", "--out", tmp_path / "a")
    with pytest.raises(BadInput, match=r"another command \(different: seeds\)"):
        gan("generate", runs / "gan", "--seeds", "1", "--out", tmp_path / "a")


# interpolate


def test_a_walk_has_even_steps_and_no_pauses(model):
    ends = model.latents(torch.tensor([0, 1, 2]))
    path = interpolate.walk(ends, 5)
    assert path.shape == (11, model.networks["generator"].latent_dim)
    for place, end in ((0, 0), (5, 1), (10, 2)):
        torch.testing.assert_close(path[place], ends[end])
    steps = (path[1:] - path[:-1]).norm(dim=1)
    assert float(steps.min()) > 0
    # The lengths of both ends differ, so steps are even in angle only.
    units = torch.nn.functional.normalize(path, dim=1)
    angles = (units[1:6] * units[:5]).sum(1).acos()
    assert float(angles.max() / angles.min()) < 1.2
    assert interpolate.walk(ends, 5, whole=True).shape[0] == 10


def test_a_walk_as_a_gif_and_as_a_grid(runs, tmp_path):
    gan("interpolate", runs / "gan", "--seeds", "0,1,2", "--steps", 4, "--out", tmp_path / "new" / "walk.gif")
    with Image.open(tmp_path / "new" / "walk.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (13, (256, 256), 0)
        first = np.asarray(gif.convert("RGB")).astype(int)
        gif.seek(12)
        assert np.array_equal(np.asarray(gif.convert("RGB")), first)
        gif.seek(4)
        assert np.abs(np.asarray(gif.convert("RGB")) - first).mean() > 1
    gan("interpolate", runs / "gan", "--seeds", "0,1,2", "--steps", 4, "--out", tmp_path / "walk.png")
    with Image.open(tmp_path / "walk.png") as grid:
        assert grid.size == (4 * 98 + 2, 2 * 98 + 2)


def test_a_walk_as_a_film(runs, model, tmp_path):
    av = pytest.importorskip("av")
    gan(
        "interpolate",
        runs / "gan",
        "--seeds",
        "3,4",
        "--steps",
        6,
        "--fps",
        12,
        "--out",
        tmp_path / "walk.mp4",
    )
    with av.open(str(tmp_path / "walk.mp4")) as film:
        pictures = [f.to_ndarray(format="rgb24") for f in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 12
    assert len(pictures) == 7
    wanted = np.asarray(interpolate.frames(model.generate(torch.tensor([4])))[0]).astype(int)
    apart = [np.abs(p - wanted).mean() for p in pictures]
    assert apart[-1] == min(apart)


def test_a_film_without_its_library_is_told(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(interpolate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"crayon\[video\]"):
        gan("interpolate", runs / "gan", "--out", tmp_path / "walk.mp4")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "5"], "2 to 1,000 seeds"),
        (["--seeds", "1,2,2"], "from seed 2 to seed 2"),
        (["--seeds", "1,2", "--steps", "1"], "--steps 1"),
        (["--seeds", "1,2", "--fps", "0"], "--fps 0"),
        (["--seeds", "1,2", "--out", "walk.jpg"], "ends in .gif or"),
    ],
)
def test_walks_that_cannot_be_are_told(runs, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=says):
        gan("interpolate", runs / "gan", *words)


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


def test_explored_directions_are_used_by_edit(runs, model, tmp_path):
    out = tmp_path / "explored"
    gan("explore", runs / "gan", "--directions", 3, "--seeds", "0,5", "--columns", 5, "--out", out)
    assert sorted(p.name for p in out.glob("*.png")) == ["seed-000000000.png", "seed-000000005.png"]
    content = json.loads((out / "directions.json").read_text())
    known = directions.read(content, "x", model.networks["generator"].latent_dim)
    assert known.step == model.step and len(known) == 3
    gan(
        "edit",
        runs / "gan",
        "--seeds",
        "0,1",
        "--directions",
        out / "directions.json",
        "--along",
        "2=1.5,1=-2",
        "--out",
        tmp_path / "e.png",
    )
    latents = model.latents(torch.tensor([0, 1]))
    moved = model.decode(latents + 1.5 * known.vectors[1] - 2 * known.vectors[0])
    wanted = panel(
        torch.cat([model.decode(latents), moved]), ["before", "after\n2=1.5,1=-2"], ["seed 0", "seed 1"]
    )
    with Image.open(tmp_path / "e.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(wanted))
    with pytest.raises(BadInput, match="There is no file"):
        gan("edit", runs / "gan", "--directions", tmp_path / "none.json", "--along", "1=1")
    with pytest.raises(BadInput, match="doesn't hold directions"):
        gan(
            "edit",
            runs / "gan",
            "--directions",
            out / "result.json",
            "--along",
            "1=1",
            "--out",
            tmp_path / "f.png",
        )


@pytest.mark.parametrize("along", ["", "1", "0=1", "4=1", "1=x", "1=1,1=2", "1=nan", "1=1e9", "1=1..2"])
def test_what_is_no_move_is_told(along):
    with pytest.raises(BadInput, match="--along"):
        parse(along, 3)


@pytest.mark.parametrize(
    "change", [{"vectors": [[1, "x"]]}, {"vectors": [1.0]}, {"shares": [1]}, {"kind": "run"}]
)
def test_files_that_are_no_directions_are_told(change):
    good = directions.Directions(torch.eye(2), torch.ones(2) / 2, "weights").to_json()
    assert len(directions.read(json.loads(json.dumps(good)), "x", 2)) == 2
    with pytest.raises(BadInput, match="doesn't hold directions"):
        directions.read(good | change, "x", 2)
    with pytest.raises(BadInput, match="latents have 3"):
        directions.read(good, "x", 3)


def test_strengths_are_centred_on_the_image_itself():
    assert directions.strengths(3.0, 5).tolist() == [-3, -1.5, 0, 1.5, 3]
    for most, columns in ((0.0, 5), (float("nan"), 5), (3.0, 4), (3.0, 1)):
        with pytest.raises(BadInput):
            directions.strengths(most, columns)


# invert


def test_the_image_of_a_seed_is_inverted_to_that_seed(runs, model, tmp_path):
    Image.fromarray(model.generate(torch.tensor([37]))[0].permute(1, 2, 0).numpy()).save(
        tmp_path / "face.png"
    )
    out = tmp_path / "out"
    gan("invert", runs / "gan", tmp_path / "face.png", "--search", 64, "--refine", 0, "--out", out)
    result = json.loads((out / "result.json").read_text())
    assert result["seed"] == 37 and result["nearest"]["mse"] == 0 and "latent" not in result
    gan(
        "invert",
        runs / "gan",
        tmp_path / "face.png",
        "--search",
        30,
        "--refine",
        30,
        "--space",
        "pixels",
        "--out",
        tmp_path / "b",
    )
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert result["refined"]["mse"] < 0.7 * result["nearest"]["mse"]
    assert model.decode(torch.tensor([result["latent"]])).shape == (1, 3, 32, 32)
    assert (tmp_path / "b" / "inverted.png").exists()


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
    best, errors = refine(generator, wanted, latents, 8)
    _, start = refine(generator, wanted, latents, 0)
    assert bool((errors <= start).all()) and float(errors[1]) < float(start[1])
    torch.testing.assert_close(best[0], latents[0])

    def corner(images):
        return 100 * images[:, :, :4, :4].flatten(1)

    _, start = refine(generator, wanted, latents, 0, corner)
    _, errors = refine(generator, wanted, latents, 8, corner)
    assert float(errors[1]) < float(start[1])
    assert all(p.grad is None for p in generator.parameters())


def test_pictures_that_cannot_be_inverted_are_told(runs, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    for name, says in (("none.png", "no picture"), ("bad.png", "can't be read")):
        with pytest.raises(BadInput, match=says):
            gan("invert", runs / "gan", tmp_path / name, "--out", tmp_path / "o")
