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

from crayon.errors import BadInput
from crayon.use import generate, interpolate, png
from crayon.use.seeds import Seeds

pytest_plugins = ["faces"]


def arrays(folder) -> np.ndarray:
    return np.concatenate([np.load(p) for p in sorted(folder.glob("block-*.npy"))])


@pytest.fixture
def run(untrained, tmp_path, monkeypatch):
    """`crayon gan COMMAND RUN ...` in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def call(words: str, job: str = "gan") -> None:
        command, *more = words.split()
        assert gan(command, untrained / job, *more) == 0

    return call


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
        *((text, "neither a seed nor a range") for text in ("", "0..", "-3", "1.5")),
        ("1,,2", "'' is neither"),
        ("9..1", "write 1..9"),
        (str(2**63), "go up to"),
        ("0..5,9,5..7", "seed 5 twice"),
        ("0..99", "are 100; at most 64"),
    ],
)
def test_what_is_no_seeds_is_told(text, says):
    with pytest.raises(BadInput, match=says):
        Seeds(text, most=64).distinct()


# generate


def test_an_image_is_the_same_however_the_job_is_cut(run, model, tmp_path):
    threads = torch.get_num_threads()
    try:
        for name, block, count in (("a", 7, 1), ("b", 16, 2), ("c", 1000, 1)):
            torch.set_num_threads(count)
            run(f"generate --seeds 3..42 --block {block} --format npy --out {name}")
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


def test_png_files_hold_the_same_images(run, model, tmp_path):
    run("generate --seeds 2,0 --out out")
    for seed in (0, 2):
        with Image.open(tmp_path / "out" / "block-000000" / f"seed-{seed:09d}.png") as image:
            pixels = np.asarray(image).transpose(2, 0, 1)
        assert np.array_equal(pixels, model.generate(torch.tensor([seed]))[0].numpy())
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size == (2 * (64 + 2) + 2, 64 + 4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (1, 30, 17), (3, 1, 1), (3, 1, 7), (3, 30, 17)])
def test_png_files_are_read_as_they_were_written(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO(png.encode(image))
    Image.open(file).verify()
    with Image.open(file) as opened:
        assert opened.mode == {1: "L", 3: "RGB"}[shape[0]]
        assert np.array_equal(
            np.asarray(opened).reshape(image[0].shape + shape[:1]), image.transpose(1, 2, 0)
        )


def test_a_killed_job_goes_on(run, untrained, tmp_path):
    """kill -9 in the middle: what is whole stays as it is, the rest is made, and nothing else is left."""
    words, out = "--seeds 0..1999 --block 16 --format npy --out out", tmp_path / "out"
    command = ["generate", str(untrained / "gan"), *words.split(), "--device", "cpu"]
    process = python(f"from crayon.cli import main as cli; cli.main('gan', {command!r})")
    while len(list(out.glob("block-*.npy"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("block-*.npy")}
    assert 3 <= len(before) < 125
    assert not (out / "result.json").exists()
    run(f"generate {words}")
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    run(f"generate {words.replace('16', '500').replace('--out out', '--out whole')}")
    assert np.array_equal(arrays(out), arrays(tmp_path / "whole"))
    assert not [p for p in out.iterdir() if p.name.startswith(".tmp-")]


@pytest.mark.faults
def test_workers_change_nothing(run, tmp_path):
    for workers in (0, 1, 2):
        run(f"generate --seeds 0..99 --block 20 --format npy --out {workers} --workers {workers}")
        assert np.array_equal(arrays(tmp_path / "0"), arrays(tmp_path / str(workers)))


def test_flat_and_equal_images_are_remarked_on():
    noise = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    assert not generate.remark(noise) and not generate.remark(noise[:1])
    assert "nearly all the same" in generate.remark(noise[:1].repeat(4, 1, 1, 1))
    for images in (noise // 32 + 100, noise[:1] // 32):
        assert "nearly flat" in generate.remark(images)


def test_what_cannot_be_generated_is_told(run, tmp_path, monkeypatch):
    for job, words, says in (
        ("mnist", "", "the job mnist, which can classify and not generate"),
        ("gan", "--block 0", "--block 0"),
        ("gan", f"--seeds 0..{2**62}", "at most 1,000,000 blocks"),
    ):
        with pytest.raises(BadInput, match=says):
            run(f"generate {words} --out a", job)
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(generate.shutil, "disk_usage", lambda path: SimpleNamespace(free=3000))
    with pytest.raises(BadInput, match=r"0\.0 GiB free"):
        run("generate --seeds 0 --format npy --out b")
    run("generate --seeds 0 --out a")
    with pytest.raises(BadInput, match=r"another command \(different: seeds\)"):
        run("generate --seeds 1 --out a")


# interpolate


def test_a_walk_has_even_steps_and_no_pauses(model):
    ends = model.latents(torch.tensor([0, 1, 2]))
    path = interpolate.walk(ends, 5)
    assert path.shape == (11, model.networks["generator"].latent_dim)
    for place, end in ((0, 0), (5, 1), (10, 2)):
        torch.testing.assert_close(path[place], ends[end])
    assert float((path[1:] - path[:-1]).norm(dim=1).min()) > 0
    # The lengths of both ends differ, so steps are even in angle only.
    units = torch.nn.functional.normalize(path, dim=1)
    angles = (units[1:6] * units[:5]).sum(1).acos()
    assert float(angles.max() / angles.min()) < 1.2
    assert interpolate.walk(ends, 5, whole=True).shape[0] == 10


def test_a_walk_as_a_gif_and_as_a_grid(run, tmp_path):
    run("interpolate --seeds 0,1,2 --steps 4 --out new/walk.gif")
    with Image.open(tmp_path / "new" / "walk.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (13, (256, 256), 0)
        first = np.asarray(gif.convert("RGB")).astype(int)
        gif.seek(12)
        assert np.array_equal(np.asarray(gif.convert("RGB")), first)
        gif.seek(4)
        assert np.abs(np.asarray(gif.convert("RGB")) - first).mean() > 1
    run("interpolate --seeds 0,1,2 --steps 4 --out walk.png")
    with Image.open(tmp_path / "walk.png") as grid:
        assert grid.size == (4 * 98 + 2, 2 * 98 + 2)


def test_a_walk_as_a_film(run, model, tmp_path):
    av = pytest.importorskip("av")
    run("interpolate --seeds 3,4 --steps 6 --fps 12 --out walk.mp4")
    with av.open(str(tmp_path / "walk.mp4")) as film:
        pictures = [f.to_ndarray(format="rgb24") for f in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 12
    assert len(pictures) == 7
    wanted = np.asarray(interpolate.frames(model.generate(torch.tensor([4])))[0]).astype(int)
    apart = [np.abs(p - wanted).mean() for p in pictures]
    assert apart[-1] == min(apart)


def test_walks_that_cannot_be_are_told(run, monkeypatch):
    monkeypatch.setattr(interpolate.importlib.util, "find_spec", lambda name: None)
    for words, says in (
        ("--seeds 5", "2 to 1,000 seeds"),
        ("--seeds 1,2,2", "from seed 2 to seed 2"),
        ("--seeds 1,2 --steps 1", "--steps 1"),
        ("--seeds 1,2 --out walk.jpg", "ends in .gif or"),
        ("--seeds 1,2 --out walk.mp4", r"crayon-ray\[video\]"),
    ):
        with pytest.raises(BadInput, match=says):
            run(f"interpolate {words}")
