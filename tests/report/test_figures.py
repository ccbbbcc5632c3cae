"""Pictures: the right size and content, and no input that makes them fail."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crayon.report import animation, curves, plots

NAMES = ["a$x$_{", "_under", "日本", "<b>", "a very long name of a class indeed", "$", "", "ok"]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def test_grid_places_each_image():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 4, 5) * 40
    grid = pixels(plots.image_grid(images, columns=4, gap=2))
    assert grid.shape == (2 * (4 + 2) + 2, 4 * (5 + 2) + 2, 3)
    for i in range(6):
        y, x = 2 + (i // 4) * 6, 2 + (i % 4) * 7
        assert (grid[y : y + 4, x : x + 5] == 40 * i).all()
    assert (grid[:2] == 255).all()
    assert (grid[8:12, 16:] == 255).all()


def test_grid_of_floats_equals_grid_of_bytes():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    wanted = pixels(plots.image_grid(levels))
    for images in (levels / 255, (levels / 255).double().numpy(), levels.numpy()):
        assert (pixels(plots.image_grid(images)) == wanted).all()


def test_grid_clips_survives_nan_and_bfloat16_and_scales_by_nearest():
    images = torch.tensor([-1.0, 0.0, 2.0, float("nan")]).view(1, 1, 2, 2)
    for kind in (torch.float32, torch.bfloat16):
        grid = pixels(plots.image_grid(images.to(kind), scale=3, gap=0))[..., 0]
        assert (grid == np.kron([[0, 0], [255, 0]], np.ones((3, 3)))).all()


def test_grid_titles_are_drawn_below_the_images():
    images = torch.zeros(2, 3, 8, 8)
    bare, titled = plots.image_grid(images), plots.image_grid(images, ["cat → dog\n99 %", ""])
    assert titled.height > bare.height
    text = pixels(titled)[78:]
    assert (text < 128).any()
    assert not (text[:, titled.width // 2 + 1 :] < 128).any()  # the second has no title


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 2, 4, 4), (3, 4, 4)])
def test_grid_rejects_what_is_not_images(shape):
    with pytest.raises(ValueError, match="images of shape"):
        plots.image_grid(torch.zeros(shape))


@pytest.mark.parametrize("k", [2, 14])
def test_confusion_matrix_for_few_and_many_classes(k):
    counts = np.eye(k, dtype=np.int64) * 90 + 1
    picture = plots.confusion_matrix(counts, [f"class {i}" for i in range(k)])
    assert 400 < picture.width < 2200
    swapped = plots.confusion_matrix(counts[::-1], [f"class {i}" for i in range(k)])
    assert (pixels(picture) != pixels(swapped)).any()


def test_shares_are_written_alike_everywhere():
    source = Path(plots.__file__).parents[1]
    assert [p.name for p in source.rglob("*.py") if re.search(r":\.\d%\}", p.read_text())] == []  # "33 %"


def test_confusion_matrix_with_empty_rows_and_hostile_names():
    counts = np.zeros((len(NAMES), len(NAMES)), dtype=np.int64)
    plots.confusion_matrix(counts, NAMES)
    counts[0, 1] = 3_000_000
    plots.confusion_matrix(counts, NAMES)
    with pytest.raises(ValueError, match="counts for"):
        plots.confusion_matrix(counts, NAMES[:-1])


def test_scatter_with_hostile_names_absent_classes_and_none():
    points, labels = np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 3
    plots.scatter(points, labels, NAMES, "$title$_", "PCA")
    unlabelled = plots.scatter(points, np.zeros(50), (), "", "PCA")
    assert len(unlabelled.getcolors(10**6)) > 2


def test_a_map_names_every_class_in_its_legend_and_writes_no_name_over_another(monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "render", seen.append)
    labels = np.arange(600) % 30
    points = np.random.default_rng(0).normal(size=(600, 2))  # all medians lie close together
    plots.scatter(points, labels, [f"class {k}" for k in range(30)], "", "PCA")
    ax = seen[0].axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"class {k}" for k in range(30)]
    seen[0].draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert 0 < len(boxes) < 30
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_no_legend_lies_on_a_curve_and_ticks_of_losses_are_plain_numbers(monkeypatch):
    seen = []
    monkeypatch.setattr(curves, "render", seen.append)
    rows = [{"epoch": k, "train/loss": 5.0 / k**3, "val/loss": 0.1} for k in range(1, 9)]
    curves.learning_curves(rows)
    seen[0].draw_without_rendering()
    ax = seen[0].axes[0]
    assert ax.get_yscale() == "log"
    assert "0.1" in [label.get_text() for label in ax.get_yticklabels()]
    assert not ax.get_legend().get_window_extent().overlaps(ax.get_window_extent())


def test_reliability_ignores_empty_bins():
    confidence, accuracy = np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 0.4, 0.95])
    plots.reliability(confidence, accuracy, np.array([0, 10, 30]))
    plots.reliability(confidence, accuracy, np.zeros(3))


ROWS = [
    {"step": 10 * i, "epoch": i, "seconds": 7.0 * i, "train/loss": 2 / i, "train/generator/loss": 1.0}
    | {"val/loss": 3 / i, "val/accuracy": 1 - 1 / i, "val/recall": 0.5, "val/recall/cat": 0.1}
    | {"val/fd_net": None, "lr": 1e-3, "images_per_second": 100.0}
    for i in range(1, 6)
]


def test_learning_curves_put_train_and_val_on_one_panel_and_leave_out_what_is_no_metric():
    again = {"epoch": 5, "step": 50, "train/loss": 9.0}  # repeated after a resume: the later counts
    again |= {
        "images": 90,
        "val/n": 5,
        "val/n/cat": 2,
        "threads": 2,
        "train_seconds": 3.0,
        "eval_seconds": 1.0,
    }
    series, clock = curves._series([*ROWS, again])
    panels = dict(curves._panels(series))
    assert panels == {
        "loss": ["train/generator/loss", "train/loss", "val/loss"],
        "accuracy": ["val/accuracy"],
        "precision and recall": ["val/recall"],
        "learning rate": ["lr"],
        "images/s": ["images_per_second"],
    }
    assert list(panels)[-2:] == ["learning rate", "images/s"]
    assert series["train/loss"] == ((1, 2, 3, 4, 5), (2.0, 1.0, 2 / 3, 0.5, 9.0))
    assert clock[5] == 35.0


def test_one_epoch_is_epoch_one_and_nothing_beside_it(monkeypatch):
    seen = []

    def look(figure):
        for ax in (ax for ax in figure.axes if ax.get_visible()):
            low, high = ax.get_xlim()
            seen.append([tick for tick in ax.get_xticks() if low <= tick <= high])
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(curves, "render", look)
    curves.learning_curves(ROWS[:1])
    assert seen and all(ticks == [1.0] for ticks in seen)


@pytest.mark.parametrize(
    "rows", [[], ROWS[:1], ROWS, [{"step": 1, "loss": float("nan")}], [{"step": 3, "$a$_{": 1.0}]]
)
def test_learning_curves_of_any_rows(rows):
    assert curves.learning_curves(rows).width > 300


def test_gif_has_every_frame():
    frames = [Image.new("RGB", (16, 16), (40 * i, 0, 0)) for i in range(5)]
    with Image.open(io.BytesIO(animation.gif(frames))) as moving:
        assert (moving.n_frames, moving.size) == (5, (16, 16))
        assert moving.info["loop"] == 0
        for i in range(5):
            moving.seek(i)
            assert abs(pixels(moving)[0, 0, 0] - 40 * i) < 4
    with Image.open(io.BytesIO(animation.gif(frames[:1]))) as picture:
        assert picture.n_frames == 1
    with pytest.raises(ValueError, match="at least one frame"):
        animation.gif([])


def test_importing_figures_does_not_import_matplotlib_nor_torch():
    code = "import sys, crayon.report.curves, crayon.report.plots\n"
    code += "assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


INHERITED = """
import hashlib, os, sys
import numpy as np
from crayon.report import curves, plots as figures
picture = figures.confusion_matrix(np.eye(3, dtype=int), ["a", "b", "c"])
shown = curves.learning_curves([{"epoch": e, "train/loss": 1 / e} for e in (1, 2)])
titled = figures.image_grid(np.zeros((1, 1, 8, 8), np.uint8), ["t"])
print([hashlib.sha256(p.tobytes()).hexdigest() for p in (picture, shown, titled)])
if os.environ.get("MPLBACKEND") == "pdf":
    import matplotlib
    assert matplotlib.rcParams["font.size"] == 30.0  # what belongs to others is as it was
"""


def test_pictures_are_the_same_whatever_is_inherited(tmp_path):
    """A user's own style, which would need LaTeX, a display or a larger font."""
    styles = tmp_path / "matplotlibrc"
    styles.write_text(
        "backend: TkAgg\ntext.usetex: True\nfont.size: 30\nsavefig.bbox: tight\nimage.origin: lower\n"
        "axes.facecolor: black\naxes.spines.top: False\nlines.antialiased: False\nnonsense: 3\n"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MPL")}
    shown = set()
    for case in ({}, {"MPLBACKEND": "pdf", "MATPLOTLIBRC": str(styles)}, {"MPLBACKEND": "nonsense"}):
        end = subprocess.run(
            [sys.executable, "-c", INHERITED], env=plain | case, capture_output=True, text=True
        )
        assert (end.returncode, end.stderr) == (0, "")
        shown.add(end.stdout)
    assert len(shown) == 1


def test_a_progress_gif_stays_under_its_limit_and_keeps_the_beginning_and_the_end():
    noise = np.random.default_rng(0).integers(0, 256, (40, 80, 80, 3), np.uint8)
    noise[0], noise[-1] = [200, 0, 0], [0, 0, 200]
    frames = [Image.fromarray(frame) for frame in noise]
    for most, fewest in ((60_000, 8), (5_000, 8)):
        content = animation.progress_gif(frames, most)
        assert most / 4 < len(content) <= most
        with Image.open(io.BytesIO(content)) as made:
            assert fewest <= made.n_frames <= 16
            assert pixels(made)[0, 0, 0] > 150 > 50 > pixels(made)[0, 0, 2]
            made.seek(made.n_frames - 1)
            assert pixels(made)[0, 0, 2] > 150
    assert animation.progress_gif(frames[:2]) == animation.gif(frames[:2])  # small enough as it is
