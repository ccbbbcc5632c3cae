"""The commands that use what was trained, on runs and files that are really there."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from disks import s3_server
from helpers import tiny
from PIL import Image

import crayon
from crayon.training import worker
from crayon.use import inputs, predict, table


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


# predict


def test_predict_names_classes_and_measures_where_folders_are_classes(use, runs, photos):
    out = use("mnist predict", photos)
    rows = read("predictions/predictions.csv")
    model = crayon.load(runs / "mnist", device="cpu")
    assert len(rows) == 20 and [r["path"] for r in rows] == sorted(r["path"] for r in rows)
    for row in rows[::7]:
        best = model.classify(model.prepare(row["path"])[None])[0].topk(3)
        assert [row["class"], row["class_2"], row["class_3"]] == [str(int(k)) for k in best.indices]
        assert float(row["probability"]) == pytest.approx(float(best.values[0]), abs=1e-6)
    result = json.loads(Path("predictions/result.json").read_text())
    right = sum(row["class"] == Path(row["path"]).parent.name == row["label"] for row in rows)
    assert result["accuracy"] == right / 20 and result["images"] == 20
    assert f"{100 * right / 20:.2f} %" in out
    assert {"confusion_matrix.png", "predictions.png"} <= set(os.listdir("predictions/pictures"))
    assert not Path("predictions/parts").exists()


def test_predict_reads_any_size_and_mode_and_lists_what_it_cannot_read(use, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    picture = Image.fromarray((np.random.default_rng(0).random((30, 50, 3)) * 255).astype(np.uint8))
    for name, mode in (("a.png", "RGBA"), ("b.jpg", "CMYK"), ("c.gif", "P"), ("d.png", "1"), ("e.tif", "I")):
        (picture.convert("L") if mode == "I" else picture).convert(mode).save(folder / name)
    whole = (folder / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text\n.png").write_text("no picture")
    picture.save(folder / os.fsdecode(b"w\xfc.png"))
    out = use("mnist predict --format parquet --out o", "odd")
    assert pq.read_table("o/predictions.parquet")["path"].to_pylist() == [
        f"odd/{name}" for name in ("a.png", "b.jpg", "c.gif", "d.png", "e.tif", r"w\xfc.png")
    ]
    listed = Path("o/unreadable.txt").read_text().splitlines()
    assert len(listed) == 2 and listed[0].startswith("odd/cut.jpg\t") and "text\\n.png" in listed[1]
    assert "unreadable  2" in out and "cut.jpg" in out and "unreadable.txt" in out


def test_predict_takes_a_data_source_a_glob_and_labels_none(use, photos):
    out = use("mnist predict --data.source digits --data.split val --out v")
    count = len(worker.load_data(tiny("mnist", data__size=None)).val)
    assert len(read("v/predictions.csv")) == count and "accuracy" in out
    out = use("mnist predict --labels none --out g", f"{photos}/*/1.png")
    assert len(read("g/predictions.csv")) == 2 and "accuracy" not in out


@pytest.mark.parametrize(("command", "made"), [("predict", "predictions.csv"), ("evaluate", "report.html")])
def test_the_same_command_tells_its_results_again(use, photos, command, made):
    words = (f"mnist {command} --out o", *[photos / "3" / "0.png"][: command == "predict"])
    first, stamp = use(*words), Path("o", made).stat().st_mtime_ns
    again = use(*words)
    assert "done already" in again and first.splitlines()[-1] in again
    assert Path("o", made).stat().st_mtime_ns == stamp


def test_bad_input_ends_in_one_sentence(call, runs, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"x")
    run = runs / "mnist"
    assert call("mnist", "predict", run, photos, "--out", "o")[0] == 0
    for words, said in (
        (("mnist", "predict"), "RUN is missing"),
        (("autoencoder", "neighbours", "--count", 3), "RUN and QUERY... are missing"),
        (("mnist", "predict", run, "empty"), "empty has no images"),
        (("mnist", "predict", run, "nowhere"), "no file or folder nowhere"),
        (("mnist", "predict", run, "*.xyz"), "*.xyz"),
        (("mnist", "predict", run), "Nothing to look at"),
        (("mnist", "predict", run, "bad.png", "--out", "b"), "None of the 1 images can be read"),
        (("mnist", "predict", run, photos, "--top-k", 0), "--top-k 0"),
        (("mnist", "predict", run, photos, "--data.source", "digits"), "Both"),
        (("mnist", "predict", run, photos, "--out", "o", "--top-k", 2), "another command (different: top_k)"),
        (("mnist", "predict", run, photos, "--out", photos), "has other files in it"),
        (("mnist", "predict", runs / "autoencoder", photos), "is of a run of autoencoder"),
        (("cifar10", "predict", run, photos), "crayon mnist --help"),
        (("autoencoder", "predict", run, photos), "which is for cifar10 and mnist"),
        (("autoencoder", "neighbours", runs / "autoencoder", "bad.png"), "--among"),
        (("mnist", "evaluate", run, "--data.source", "shapes", "--data.size", 40), "circle"),
        (("mnist", "predict", run, tmp_path / "bad.png", "--labels", "folder", "--out", "l"), "no class"),
    ):
        code, _, err = call(*words)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and said in err, (words, err)
    assert {p.name for p in photos.iterdir()} - {".lock"} == {"3", "7"}


def test_inputs_are_looked_for_before_torch_is_loaded():
    code = (
        "import sys\nfrom crayon.cli import main as cli\n"
        "try: cli.main('mnist', ['predict', *sys.argv[1:]])\nexcept SystemExit as end: code = end.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\nsys.exit(code)"
    )
    for words, wanted in ((["--help"], 0), (["run", "nowhere.png"], 2)):
        end = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert end.returncode == wanted, end.stderr


# encode, reconstruct, neighbours


def test_encode_gives_the_same_features_as_parquet_and_npy(use, runs, photos):
    use("autoencoder encode --out p", photos)
    use("autoencoder encode --out n --format npy", photos)
    found = pq.read_table("p/features.parquet")
    features = np.load("n/features.npy", allow_pickle=False)
    assert features.dtype == np.float32 and (table.array(found["features"]) == features).all()
    assert [r["path"] for r in read("n/images.csv")] == found["path"].to_pylist()
    model = crayon.load(runs / "autoencoder", device="cpu")
    ours = model.encode(torch.stack([model.prepare(p) for p in found["path"].to_pylist()]))
    assert (ours.numpy() == features).all()
    use("autoencoder encode --data.source digits --out d")
    assert set(pq.read_table("d/features.parquet")["label"].to_pylist()) == set("0123456789")


def test_noise_scores_higher_than_digits(use, runs, photos):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(noise).save("noise.png")
    out = use("autoencoder reconstruct --save", photos, "noise.png")
    worst = max(read("reconstructions/errors.csv"), key=lambda row: float(row["score"]))
    assert worst["path"] == "noise.png" and "noise.png" in out
    names = {"reconstructions.png", "worst.png", "errors.png"}
    assert set(os.listdir("reconstructions/pictures")) == names
    kept = sorted(Path("reconstructions/images").rglob("*.png"))
    assert len(kept) == 21
    model = crayon.load(runs / "autoencoder", device="cpu")
    made = model.reconstruct(model.prepare("noise.png")[None])[0, 0]
    assert (np.asarray(Image.open(kept[-1])) == made.numpy()).all()


def test_an_images_nearest_neighbour_is_its_copy_and_never_itself(use, photos):
    query = photos / "3" / "0.png"
    shutil.copy(query, "copy.png")
    use("autoencoder neighbours --count 2", query, "--among", photos, "copy.png")
    rows = read("neighbours/neighbours.csv")
    assert [r["rank"] for r in rows] == ["1", "2"] and rows[0]["path"] == "copy.png"
    assert float(rows[0]["distance"]) < 1e-3 < float(rows[1]["distance"])
    assert str(query) not in [r["path"] for r in rows]
    assert Path("neighbours/pictures/neighbours.png").exists()


# evaluate


@pytest.mark.parametrize("job", ["mnist", "autoencoder"])
def test_evaluate_gives_the_figures_that_training_ended_with(use, runs, job):
    out = use(f"{job} evaluate")
    ours = json.loads(Path("evaluation/result.json").read_text())
    theirs = json.loads((runs / job / "result.json").read_text())
    names = [name for name in theirs if name.startswith(("train/", "val/", "test/"))]
    assert names and {name for name in ours if name.startswith(("train/", "val/", "test/"))} == set(names)
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9), name
    drawn = set(os.listdir("evaluation/pictures"))
    assert drawn == {p.name for p in (runs / job / "pictures").glob("*.png")} - {"learning_curves.png"}
    assert Path("evaluation/report.html").exists() and "report" in out


def test_evaluate_on_other_data_and_one_split(use):
    use("gan evaluate --data.source faces --data.split val --data.size 64")
    result = json.loads(Path("evaluation/result.json").read_text())
    assert result["images"] == {"val": 5} and "val/modes_covered" in result and "test/n" not in result


def test_a_folder_of_class_folders_is_split_as_training_would(use, photos):
    out = use("mnist evaluate --data.source folder --data.split test", "--data.root", photos)
    result = json.loads(Path("evaluation/result.json").read_text())
    assert result["images"] == {"test": 2} and "test/accuracy" in result and "10 % (2) as test split" in out
    assert json.loads(Path("evaluation/images.json").read_text())["splits"]["train"]["images"] == 17
    use("mnist predict --data.source folder --data.split test", "--data.root", photos)
    assert sorted(row["label"] for row in read("predictions/predictions.csv")) == ["3", "7"]


# Inputs


def test_labels_come_from_folders_only_if_all_are_classes():
    names, classes = ["x/cat/1.png", "x/dog/2.png"], ["dog", "cat"]
    assert inputs.folder_labels(names, classes, "auto").tolist() == [1, 0]
    assert inputs.folder_labels([*names, "x/cow/3.png"], classes, "auto") is None
    assert inputs.folder_labels(names[:1], classes, "auto") is None  # one may be called so by chance


def test_classes_are_matched_by_name_or_it_is_told_why_there_are_no_figures():
    def labels(*names, classes=(), labels=None):
        said = []
        reader = inputs.Reader(names, lambda first, stop: None, labels, classes)
        found = predict.labels_of(reader, ["dog", "cat"], "auto", said.append)
        return None if found is None else found.tolist(), [event.text for event in said]

    assert labels("x/cat/1.png", "x/dog/2.png") == ([1, 0], [])
    assert labels("a", "b", classes=("cat", "dog"), labels=np.array([0, 1])) == ([1, 0], [])
    told = (None, ["No figures: the model has no class 'cow', and its classes are dog, cat."])
    assert labels("x/cat/1.png", "x/cow/2.png") == told
    assert labels("a", "b", classes=("cat", "cow"), labels=np.array([0, 1])) == told
    assert labels("x/holidays/1.png", "x/office/2.png") == (None, [])


def test_runs_and_images_in_an_object_store(call, use, runs, photos, tmp_path, monkeypatch):
    from pyarrow.fs import FileSystem, LocalFileSystem, copy_files

    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "cache"))
    with s3_server() as query:
        store, _ = FileSystem.from_uri(f"s3://bucket/{query}")
        copy_files(str(runs / "mnist"), "bucket/runs/mnist", LocalFileSystem(), store)
        copy_files(str(photos), "bucket/photos", LocalFileSystem(), store)
        with store.open_output_stream("bucket/photos/7/bad.png") as file:
            file.write(b"x")
        run = f"s3://bucket/runs/mnist{query}"
        code, out, err = call("mnist", "predict", run, f"s3://bucket/photos/{query}", "--out", "whole")
        assert code == 0, err
        rows = read("whole/predictions.csv")
        assert len(rows) == 20 and rows[0]["path"] == "s3://bucket/photos/3/0.png" and "accuracy" in out
        assert "s3://bucket/photos/7/bad.png\t" in Path("whole/unreadable.txt").read_text()
        assert len(list((tmp_path / "cache" / "models").rglob("*.safetensors"))) == 1
        use("mnist predict --out here", photos)
        for ours, theirs in zip(read("here/predictions.csv"), rows, strict=True):
            assert ours | {"path": ""} == theirs | {"path": ""}
        step = crayon.load(runs / "mnist", device="cpu").step
        result = {"step": step, "test/accuracy": 0.1234, "command": "crayon mnist"}
        with store.open_output_stream("bucket/runs/mnist/result.json") as file:
            file.write(json.dumps(result).encode())
        for card in ("figures", "none"):
            code, _, err = call("mnist", "export", run, "--formats", "safetensors", "--out", card)
            assert code == 0, err
            text = Path(card, "README.md").read_text()
            assert ("12.34" in text) == ("`crayon mnist`" in text) == (card == "figures")
            if card == "figures":
                store.delete_file("bucket/runs/mnist/result.json")
        address = f"s3://bucket/photos/*/1.png{query}"
        assert call("mnist", "predict", run, address, "--out", "glob")[0] == 0
        assert len(read("glob/predictions.csv")) == 2
        for words, said in (
            ((run, f"s3://bucket/none{query}"), "has no images"),
            ((f"s3://bucket/runs/other{query}", "x.png"), "no file or folder x.png"),
            ((f"s3://bucket/runs/other{query}", photos), "no complete checkpoint"),
        ):
            code, _, err = call("mnist", "predict", *words)
            assert code == 2 and said in err and "endpoint" not in err, err
