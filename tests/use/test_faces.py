"""What is made of a generator: images of seeds, and walks between them."""

from __future__ import annotations

import io
import json
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import gan, python
from PIL import Image

from crayon.cli import main as cli
from crayon.errors import BadInput
from crayon.use import generate, interpolate, png
from crayon.use.seeds import Seeds

pytest_plugins = ["faces"]


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


def test_an_image_is_the_same_however_the_job_is_cut(untrained, model, tmp_path):
    threads = torch.get_num_threads()
    try:
        for name, block, count in (("a", 7, 1), ("b", 16, 2), ("c", 1000, 1)):
            torch.set_num_threads(count)
            out = tmp_path / name
            assert (
                gan(
                    "generate",
                    untrained / "gan",
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


def test_png_files_hold_the_same_images(untrained, model, tmp_path):
    gan("generate", untrained / "gan", "--seeds", "2,0", "--out", tmp_path / "out")
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


def test_a_killed_job_goes_on(untrained, tmp_path):
    """kill -9 in the middle: what is whole stays as it is, the rest is made, and nothing else is left."""
    words = [
        "generate",
        str(untrained / "gan"),
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
    process = python(f"from crayon.cli import main as cli; cli.main('gan', {[*words, '--out', str(out)]!r})")
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
def test_workers_change_nothing(untrained, tmp_path):
    for workers in (0, 1, 2):
        out = tmp_path / str(workers)
        words = (
            "generate",
            untrained / "gan",
            "--seeds",
            "0..99",
            "--block",
            20,
            "--format",
            "npy",
            "--out",
            out,
        )
        assert gan(*words, "--workers", workers) == 0
    assert np.array_equal(arrays(tmp_path / "0"), arrays(tmp_path / "1"))
    assert np.array_equal(arrays(tmp_path / "0"), arrays(tmp_path / "2"))


def test_what_cannot_be_generated_is_told(untrained, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="mnist run, which has a classifier"):
        gan("generate", untrained / "mnist", "--out", tmp_path / "a")
    with pytest.raises(BadInput, match="There is no run"):
        gan("generate", untrained / "none", "--out", tmp_path / "a")
    with pytest.raises(BadInput, match="--block 0"):
        gan("generate", untrained / "gan", "--block", 0, "--out", tmp_path / "a")
    with pytest.raises(BadInput, match="at most 1,000,000 blocks"):
        gan("generate", untrained / "gan", "--seeds", f"0..{2**62}", "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(generate.shutil, "disk_usage", lambda path: SimpleNamespace(free=3000))
    with pytest.raises(BadInput, match=r"0\.0 GiB free"):
        gan("generate", untrained / "gan", "--seeds", "0", "--format", "npy", "--out", tmp_path / "b")
    gan("generate", untrained / "gan", "--seeds", "0", "--out", tmp_path / "a")
    with pytest.raises(BadInput, match=r"another command \(different: seeds\)"):
        gan("generate", untrained / "gan", "--seeds", "1", "--out", tmp_path / "a")


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


def test_a_walk_as_a_gif_and_as_a_grid(untrained, tmp_path):
    gan(
        "interpolate",
        untrained / "gan",
        "--seeds",
        "0,1,2",
        "--steps",
        4,
        "--out",
        tmp_path / "new" / "walk.gif",
    )
    with Image.open(tmp_path / "new" / "walk.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (13, (256, 256), 0)
        first = np.asarray(gif.convert("RGB")).astype(int)
        gif.seek(12)
        assert np.array_equal(np.asarray(gif.convert("RGB")), first)
        gif.seek(4)
        assert np.abs(np.asarray(gif.convert("RGB")) - first).mean() > 1
    gan("interpolate", untrained / "gan", "--seeds", "0,1,2", "--steps", 4, "--out", tmp_path / "walk.png")
    with Image.open(tmp_path / "walk.png") as grid:
        assert grid.size == (4 * 98 + 2, 2 * 98 + 2)


def test_a_walk_as_a_film(untrained, model, tmp_path):
    av = pytest.importorskip("av")
    gan(
        "interpolate",
        untrained / "gan",
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


def test_a_film_without_its_library_is_told(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(interpolate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"crayon-ray\[video\]"):
        gan("interpolate", untrained / "gan", "--out", tmp_path / "walk.mp4")


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
def test_walks_that_cannot_be_are_told(untrained, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=says):
        gan("interpolate", untrained / "gan", *words)
