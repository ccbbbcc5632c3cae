"""The commands that use what was trained, on runs and files that are really there."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from disks import s3_server
from helpers import tiny
from PIL import Image

import crayon
from crayon.cli import main as cli
from crayon.training import worker
from crayon.use import inputs, table
from crayon.use.settings import SourceConfig


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """digits/<class>/*.png, 20 of each of two classes, at twice the model's size."""
    folder = tmp_path_factory.mktemp("photos") / "digits"
    images = worker.load_data(tiny("mnist")).test
    for label in (3, 7):
        (folder / str(label)).mkdir(parents=True)
        for k, i in enumerate((images.labels == label).nonzero()[:10, 0].tolist()):
            image = images.gather(torch.tensor([i]))[0, 0].numpy().repeat(2, 0).repeat(2, 1)
            Image.fromarray(image).save(folder / str(label) / f"{k}.png")
    return folder


@pytest.fixture
def use(capsys, tmp_path, monkeypatch):
    """Runs `crayon JOB COMMAND ...` in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(job, *argv):
        with pytest.raises(SystemExit) as end:
            cli.main(job, [*map(str, argv), "--device", "cpu"])
        return (end.value.code or 0, *capsys.readouterr())

    return call


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# predict


def test_predict_names_classes_and_measures_where_folders_are_classes(use, runs, photos, tmp_path):
    code, out, err = use("mnist", "predict", runs / "mnist", photos)
    assert code == 0, err
    rows = read(tmp_path / "predictions" / "predictions.csv")
    model = crayon.load(runs / "mnist", device="cpu")
    assert len(rows) == 20 and [r["path"] for r in rows] == sorted(r["path"] for r in rows)
    for row in rows[::7]:
        probabilities = model.classify(model.prepare(row["path"])[None])[0]
        best = probabilities.topk(3)
        assert [row["class"], row["class_2"], row["class_3"]] == [str(int(k)) for k in best.indices]
        assert float(row["probability"]) == pytest.approx(float(best.values[0]), abs=1e-6)
    result = json.loads((tmp_path / "predictions" / "result.json").read_text())
    right = sum(row["class"] == Path(row["path"]).parent.name == row["label"] for row in rows)
    assert result["accuracy"] == right / 20 and result["images"] == 20
    assert f"{100 * right / 20:.2f} %" in out
    pictures = {p.stem for p in (tmp_path / "predictions" / "pictures").iterdir()}
    assert {"confusion_matrix", "predictions"} <= pictures
    assert not (tmp_path / "predictions" / "parts").exists()


def test_predict_reads_any_size_and_mode_and_lists_what_it_cannot_read(use, runs, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    picture = Image.fromarray((np.random.default_rng(0).random((30, 50, 3)) * 255).astype(np.uint8))
    for name, mode in (("a.png", "RGBA"), ("b.jpg", "CMYK"), ("c.gif", "P"), ("d.png", "1"), ("e.tif", "I")):
        picture.convert("L").convert(mode).save(folder / name) if mode == "I" else picture.convert(mode).save(
            folder / name
        )
    whole = (folder / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text\n.png").write_text("no picture")
    code, out, err = use("mnist", "predict", runs / "mnist", "odd", "--format", "parquet", "--out", "o")
    assert code == 0, err
    assert pq.read_table("o/predictions.parquet")["path"].to_pylist() == [
        f"odd/{name}" for name in ("a.png", "b.jpg", "c.gif", "d.png", "e.tif")
    ]
    listed = (tmp_path / "o" / "unreadable.txt").read_text().splitlines()
    assert len(listed) == 2 and listed[0].startswith("odd/cut.jpg\t") and "text\\n.png" in listed[1]
    assert "unreadable  2" in out and "cut.jpg" in out and "unreadable.txt" in out


def test_predict_takes_a_data_source_a_glob_and_labels_none(use, runs, photos, tmp_path):
    code, out, err = use(
        "mnist", "predict", runs / "mnist", "--data.source", "digits", "--data.split", "val", "--out", "v"
    )
    assert code == 0, err
    count = len(worker.load_data(tiny("mnist", data__size=None)).val)
    assert len(read(tmp_path / "v" / "predictions.csv")) == count and "accuracy" in out
    code, out, _ = use(
        "mnist", "predict", runs / "mnist", f"{photos}/*/1.png", "--labels", "none", "--out", "g"
    )
    assert code == 0 and len(read(tmp_path / "g" / "predictions.csv")) == 2 and "accuracy" not in out


def test_the_same_command_tells_its_results_again_and_another_is_refused(use, runs, photos, tmp_path):
    arguments = ("mnist", "predict", runs / "mnist", photos / "3" / "0.png")
    first = use(*arguments)
    stamp = (tmp_path / "predictions" / "predictions.csv").stat().st_mtime_ns
    again = use(*arguments)
    assert again[0] == 0 and "done already" in again[1] and first[1].splitlines()[-1] in again[1]
    assert (tmp_path / "predictions" / "predictions.csv").stat().st_mtime_ns == stamp
    code, _, err = use(*arguments, "--top-k", "2")
    assert code == 2 and "another command" in err and "top_k" in err


def test_bad_input_ends_in_one_sentence(use, runs, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"x")
    shutil.copytree(runs / "mnist", tmp_path / "cut")
    for file in (tmp_path / "cut" / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:99])
    run = runs / "mnist"
    for words, said in (
        (("mnist", "predict"), "RUN is missing"),
        (("autoencoder", "neighbours", "--count", 3), "RUN and QUERY... are missing"),
        (("mnist", "predict", run, "empty"), "empty has no images"),
        (("mnist", "predict", run, "nowhere"), "no file or folder nowhere"),
        (("mnist", "predict", run, "*.xyz"), "*.xyz"),
        (("mnist", "predict", run), "Nothing to look at"),
        (("mnist", "predict", run, "bad.png", "--out", "b"), "None of the 1 images can be read"),
        (("mnist", "predict", run, photos, "--top-k", 0), "--top-k 0"),
        (("mnist", "predict", run, photos, "--workers", -1, "--out", "w"), "--workers -1"),
        (("mnist", "predict", run, photos, "--data.source", "digits"), "Both"),
        (("mnist", "predict", tmp_path / "cut", photos), "damaged or cut off"),
        (("mnist", "predict", runs / "no", photos), "There is no run"),
        (("mnist", "predict", runs / "autoencoder", photos), "is of a run of autoencoder"),
        (("cifar10", "predict", run, photos), "crayon mnist --help"),
        (("autoencoder", "predict", run, photos), "which is for mnist and cifar10"),
        (("autoencoder", "neighbours", runs / "autoencoder", "bad.png"), "--among"),
        (("mnist", "evaluate", run, "--data.source", "shapes", "--data.size", 40), "circle"),
        (("mnist", "predict", run, tmp_path / "bad.png", "--labels", "folder", "--out", "l"), "no class"),
    ):
        code, _, err = use(*words)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and said in err, (words, err)


def test_help_loads_neither_torch_nor_ray():
    code = (
        "import sys\nfrom crayon.cli import main as cli\n"
        "try: cli.main('mnist', ['predict', *sys.argv[1:]])\nexcept SystemExit as end: code = end.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\nsys.exit(code)"
    )
    for words, wanted in ((["--help"], 0), (["run", "--outt", "x"], 2), (["run", "nowhere.png"], 2)):
        end = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert end.returncode == wanted, end.stderr
        assert wanted or "usage: crayon" in end.stdout.replace("-c", "crayon")


# encode, reconstruct, neighbours


def test_encode_gives_the_same_features_as_parquet_and_npy(use, runs, photos, tmp_path):
    run = runs / "autoencoder"
    assert use("autoencoder", "encode", run, photos, "--out", "p")[0] == 0
    assert use("autoencoder", "encode", run, photos, "--out", "n", "--format", "npy")[0] == 0
    found = pq.read_table(tmp_path / "p" / "features.parquet")
    features = np.load(tmp_path / "n" / "features.npy", allow_pickle=False)
    assert features.dtype == np.float32 and (table.array(found["features"]) == features).all()
    assert [r["path"] for r in read(tmp_path / "n" / "images.csv")] == found["path"].to_pylist()
    model = crayon.load(run, device="cpu")
    ours = model.encode(torch.stack([model.prepare(p) for p in found["path"].to_pylist()]))
    assert (ours.numpy() == features).all()
    assert use("autoencoder", "encode", run, "--data.source", "digits", "--out", "d")[0] == 0
    assert set(pq.read_table(tmp_path / "d" / "features.parquet")["label"].to_pylist()) == set("0123456789")


def test_noise_scores_higher_than_digits(use, runs, photos, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    code, out, err = use("autoencoder", "reconstruct", runs / "autoencoder", photos, "noise.png", "--save")
    assert code == 0, err
    rows = read(tmp_path / "reconstructions" / "errors.csv")
    worst = max(rows, key=lambda row: float(row["score"]))
    assert worst["path"] == "noise.png" and "noise.png" in out
    assert {p.stem for p in Path("reconstructions/pictures").iterdir()} == {
        "reconstructions",
        "worst",
        "errors",
    }
    kept = sorted(Path("reconstructions/images").rglob("*.png"))
    assert len(kept) == 21
    model = crayon.load(runs / "autoencoder", device="cpu")
    made = model.reconstruct(model.prepare("noise.png")[None])[0, 0]
    assert (np.asarray(Image.open(kept[-1])) == made.numpy()).all()


def test_an_images_nearest_neighbour_is_its_copy_and_never_itself(use, runs, photos, tmp_path):
    shutil.copy(photos / "3" / "0.png", tmp_path / "copy.png")
    query = photos / "3" / "0.png"
    code, _, err = use(
        "autoencoder", "neighbours", runs / "autoencoder", query, "--among", photos, "copy.png", "--count", 2
    )
    assert code == 0, err
    rows = read(tmp_path / "neighbours" / "neighbours.csv")
    assert [r["rank"] for r in rows] == ["1", "2"] and rows[0]["path"] == "copy.png"
    assert float(rows[0]["distance"]) < 1e-3 < float(rows[1]["distance"])
    assert str(query) not in [r["path"] for r in rows]
    assert (tmp_path / "neighbours" / "pictures" / "neighbours.png").exists()


# evaluate


@pytest.mark.parametrize("job", ["mnist", "autoencoder"])
def test_evaluate_gives_the_figures_that_training_ended_with(use, runs, tmp_path, job):
    code, out, err = use(job, "evaluate", runs / job)
    assert code == 0, err
    ours = json.loads((tmp_path / "evaluation" / "result.json").read_text())
    theirs = json.loads((runs / job / "result.json").read_text())
    names = [name for name in theirs if name.startswith(("train/", "val/", "test/"))]
    assert names and {name for name in ours if name.startswith(("train/", "val/", "test/"))} == set(names)
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9), name
    drawn = {p.name for p in (tmp_path / "evaluation" / "pictures").iterdir()}
    assert drawn == {p.name for p in (runs / job / "pictures").glob("*.png")} - {"learning_curves.png"}
    assert (tmp_path / "evaluation" / "report.html").exists() and "report" in out


def test_evaluate_on_other_data_and_one_split(use, runs, tmp_path):
    words = ("--data.source", "faces", "--data.split", "val", "--data.size", 64)
    code, _, err = use("gan", "evaluate", runs / "gan", *words)
    assert code == 0, err
    result = json.loads((tmp_path / "evaluation" / "result.json").read_text())
    assert result["images"] == {"val": 5} and "val/modes_covered" in result and "test/n" not in result


# Inputs


def test_labels_come_from_folders_only_if_all_are_classes():
    names = ["x/cat/1.png", "x/dog/2.png"]
    assert inputs.folder_labels(names, ["dog", "cat"], "auto").tolist() == [1, 0]
    assert inputs.folder_labels([*names, "x/cow/3.png"], ["dog", "cat"], "auto") is None
    assert (
        inputs.folder_labels(names[:1], ["dog", "cat"], "auto") is None
    )  # one folder may be called so by chance
    assert inputs.folder_labels(names[:1], ["dog", "cat"], "folder").tolist() == [1]
    with pytest.raises(crayon.errors.BadInput, match="'cow' is no class"):
        inputs.folder_labels(["x/cow/3.png"], ["dog", "cat"], "folder")


def test_a_data_sources_split_that_is_not_there_is_said(runs):
    model = crayon.load(runs / "mnist", device="cpu")
    assert len(inputs.opened(SourceConfig(source="digits", split="test"), model)) == 297


def test_runs_and_images_in_an_object_store(use, runs, photos, tmp_path, monkeypatch):
    from pyarrow.fs import FileSystem, LocalFileSystem, copy_files

    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "cache"))
    with s3_server() as query:
        store, _ = FileSystem.from_uri(f"s3://bucket/{query}")
        copy_files(str(runs / "mnist"), "bucket/runs/mnist", LocalFileSystem(), store)
        copy_files(str(photos), "bucket/photos", LocalFileSystem(), store)
        with store.open_output_stream("bucket/photos/7/bad.png") as file:
            file.write(b"x")
        run = f"s3://bucket/runs/mnist{query}"
        code, out, err = use("mnist", "predict", run, f"s3://bucket/photos/{query}", "--out", "whole")
        assert code == 0, err
        rows = read(tmp_path / "whole" / "predictions.csv")
        assert len(rows) == 20 and rows[0]["path"] == "s3://bucket/photos/3/0.png" and "accuracy" in out
        assert "s3://bucket/photos/7/bad.png\t" in (tmp_path / "whole" / "unreadable.txt").read_text()
        assert len(list((tmp_path / "cache" / "models").rglob("*.safetensors"))) == 1
        assert use("mnist", "predict", runs / "mnist", photos, "--out", "here")[0] == 0
        for ours, theirs in zip(read(tmp_path / "here" / "predictions.csv"), rows, strict=True):
            assert ours | {"path": ""} == theirs | {"path": ""}
        step = crayon.load(runs / "mnist", device="cpu").step
        with store.open_output_stream("bucket/runs/mnist/result.json") as file:
            file.write(
                json.dumps({"step": step, "test/accuracy": 0.1234, "command": "crayon mnist"}).encode()
            )
        for card in ("figures", "none"):
            code, _, err = use("mnist", "export", run, "--formats", "safetensors", "--out", card)
            assert code == 0, err
            store.delete_file("bucket/runs/mnist/result.json") if card == "figures" else None
        cards = [(tmp_path / card / "README.md").read_text() for card in ("figures", "none")]
        assert (
            ["12.34" in card for card in cards]
            == ["`crayon mnist`" in card for card in cards]
            == [True, False]
        )
        address = f"s3://bucket/photos/*/1.png{query}"
        assert use("mnist", "predict", run, address, "--out", "glob")[0] == 0
        assert len(read(tmp_path / "glob" / "predictions.csv")) == 2
        for words, said in (
            ((run, f"s3://bucket/none{query}"), "has no images"),
            ((f"s3://bucket/runs/other{query}", "x.png"), "no file or folder x.png"),
            ((f"s3://bucket/runs/other{query}", photos), "no complete checkpoint"),
        ):
            code, _, err = use("mnist", "predict", *words)
            assert code == 2 and said in err and "endpoint" not in err, err


@pytest.mark.faults
def test_a_killed_predict_goes_on_over_ray_with_the_same_results(runs, photos, tmp_path):
    """Three blocks of one pass each; killed after the first, finished by two workers."""
    many = tmp_path / "many"
    many.mkdir()
    for k in range(150):
        os.link(photos / "3" / f"{k % 10}.png", many / f"{k:03d}.png")
    code = (
        "import time\nfrom crayon.cli import main as cli\nfrom crayon.use import table, predict\n"
        "table.BLOCK_IMAGES = 64\n"
        "import sys\nif sys.argv[1] == 'slowly':\n"
        "    classify = predict.work\n"
        "    def work(model, images):\n        time.sleep(0.5)\n        return classify(model, images)\n"
        "    predict.work = work\n"
        "cli.main('mnist', sys.argv[2:])"
    )

    def command(how, out, *more):
        words = ["predict", runs / "mnist", many, "--out", tmp_path / out, "--device", "cpu", *more]
        return subprocess.Popen(
            [sys.executable, "-c", code, how, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    whole = command("fast", "whole")
    assert "150" in whole.communicate()[0] and whole.returncode == 0
    killed = command("slowly", "o")
    while not (tmp_path / "o" / "parts" / "000000.parquet").exists():
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    first = tmp_path / "o" / "parts" / "000000.parquet"
    made = first.stat().st_mtime_ns
    assert not (tmp_path / "o" / "predictions.csv").exists()
    again = command("fast", "o", "--workers", "2")
    while again.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # gone once the table is written
            assert first.stat().st_mtime_ns == made
        time.sleep(0.05)
    said = again.communicate()[0]
    assert again.returncode == 0, said
    assert "150" in said
    assert (tmp_path / "o" / "predictions.csv").read_bytes() == (
        tmp_path / "whole" / "predictions.csv"
    ).read_bytes()
