"""The report page: complete, self-contained, and safe against the names in it."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from crayon.report import page as report
from crayon.report import words
from crayon.system.host import environment

EVIL = "<script>alert('x')</script>&\"'"


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + "\n"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "pictures" / "over_time").mkdir(parents=True)
    config = {
        "job": "mnist",
        "preset": "quick",
        "name": "run",
        "lr": 0.001,
        "data.source": "digits",
        "data.root": "/home/me/mine",
        "epochs": 3,
    }
    result = {"name": "run", "step": 63, "epoch": 2, "epochs": 3, "seconds": 75.2, "train_seconds": 60.0}
    result |= {
        "val/accuracy": 0.97,
        "test/accuracy": 0.98914,
        "test/loss": 0.0412,
        "images_per_second": 11240.4,
    }
    result |= {"test/recall": 0.9, f"test/recall/{EVIL}": 0.5, "command": f"jobs/mnist.py --name '{EVIL}'"}
    result["environment"] = {"torch": "2.15", "gpus": [], "cpu": EVIL}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "step": 21, "val/accuracy": 0.9}\n{"epoch": 2, "st')
    about = {"classes": ["cat", EVIL], "warnings": [f"1 class has fewer than 20 training images: {EVIL}"]}
    about["splits"] = {"train": {"images": 33, "classes": [30, 3]}, "val": {"images": 2, "classes": [1, 1]}}
    (folder / "images.json").write_text(json.dumps(about))
    for name in ("confusion_matrix.png", "own_picture.png", "over_time.gif", "over_time/epoch-00001.png"):
        Image.new("RGB", (4, 4), "red").save(folder / "pictures" / name)
    return folder


def test_everything_is_on_the_page(run):
    page = Page(report.write(run).read_text())
    numbers = ("98.91 %", "97.00 %", "0.0412", "1 min 15 s", "11,240 images/s")
    assert all(text in page.text for text in ("mnist · quick", *numbers, "data: digits in mine", "2.15"))
    assert (
        re.search(r"Images\s+train\s+validation\s+cat\s+30\s+1\s", page.text)
        and "20 training images" in page.text
    )
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    captions = [report.CAPTIONS["confusion_matrix"], report.CAPTIONS["over_time"], "Own picture."]
    assert [i["alt"] for i in images] == captions
    data = base64.b64decode(images[0]["src"].removeprefix("data:image/png;base64,"))
    assert data == (run / "pictures" / "confusion_matrix.png").read_bytes()


def test_a_strip_has_a_row_of_its_own_and_is_scrolled_where_its_words_would_be_too_small(run):
    Image.new("RGB", (1000, 100)).save(run / "pictures" / "strip.png")
    page = Page(report.write(run).read_text())
    figures = [attrs.get("class") for tag, attrs in page.tags if tag == "figure"]
    styles = [attrs["style"] for tag, attrs in page.tags if tag == "img"]
    assert figures == [None, None, None, "wide"]
    assert styles[0] == "max-width: min(100%, 8px)" and styles[-1].startswith("min-width: 600px; ")


def test_names_are_escaped_and_the_page_needs_nothing_from_elsewhere(run):
    text = report.write(run).read_text()
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert (
        page.text.count("<script>alert('x')</script>") == 5
    )  # class, command, hardware, images, their warning
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    assert not re.search(r"https?:|src=\"(?!data:)|@import|<link", text)


def test_an_unfinished_run_and_an_empty_folder_have_pages_too(run, tmp_path):
    (run / "result.json").unlink()
    assert "unfinished: 1 of 3 epochs" in Page(report.write(run).read_text()).text
    (tmp_path / "nothing").mkdir()
    assert "nothing" in Page(report.write(tmp_path / "nothing").read_text()).text


def test_headlines_come_from_the_test_split_first():
    metrics = {"val/loss": 1.0, "val/accuracy": 0.9, "test/loss": 1.0, "test/f1": 0.2, "test/accuracy": 0.8}
    assert words.headlines(metrics) == ["test/accuracy", "test/f1"]
    shares = {"val/coverage": 0.1, "val/recall": 0.2, "val/recall/x": 0.3, "seconds": 3.0}
    assert words.headlines(shares) == ["val/recall", "val/coverage"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("test/accuracy", 0.98914, "98.91 %"),
        ("knn_accuracy", 1, "100.00 %"),
        ("val/recall/cat", 0.5, "50.00 %"),
        ("mse", 0.0040123, "0.00401"),
        ("loss", 0.0123456, "0.01235"),
        ("density", 1.25, "1.25"),
        ("modes", 45, "45"),
        ("kd_net", None, "–"),
        ("images", 120000, "120,000"),
    ],
)
def test_metric_text(name, value, text):
    assert words.metric_text(name, value) == text


def test_environment_is_json_and_names_versions_and_hardware():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert all(found[k] for k in ("crayon", "python", "torch", "ray", "platform", "cpu"))
    assert found["cpu_cores"] >= 1
    assert found["memory_gib"] > 0.1
