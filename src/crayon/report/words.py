"""Figures, times and names as people read them, the same on a terminal, in a report and in a chart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SPLITS = ("test", "val", "train")
# Shown first, in this order; patterns of names without their split.
_HEADLINES = (
    r"accuracy",
    r"balanced_accuracy",
    r"mse",
    r"knn_accuracy",
    r"probe_accuracy",
    r"recall",
    r"coverage",
    r"modes\w*",
    r"(fid|kid|fd|kd)_\w+",
    r"precision",
    r"density",
    r"psnr",
    r"ssim",
    r"f1",
    r"ece",
    r"loss",
)
_PERCENT = re.compile(r"(\w+_)?accuracy|precision|recall|f1|coverage|ece")


def metric_text(name: str, value: Any) -> str:
    """A metric's value as people read it: shares in percent.

    >>> metric_text("val/accuracy", 0.98914)
    '98.91 %'
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return printable(str(value))
    bare = name.split("/", 1)[1] if name.split("/")[0] in SPLITS else name
    if is_share(name):
        return f"{100 * value:.2f} %"
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 1000):
        return f"{value:,.0f}"
    if bare in ("mse", "mae"):
        return f"{value:.5f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def is_share(name: str) -> bool:
    """Whether the metric is a share, from 0 to 1, that people read in percent.

    >>> is_share("val/accuracy"), is_share("val/loss")
    (True, False)
    """
    bare = name.split("/", 1)[1] if name.split("/")[0] in SPLITS else name
    return _PERCENT.fullmatch(bare.split("/")[0]) is not None


def seconds_text(seconds: float) -> str:
    """
    >>> seconds_text(75)
    '1 min 15 s'
    """
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def table_of(result: Mapping[str, Any]) -> tuple[list[str], list[str], dict[tuple[str, str], str]]:
    """The overall metrics in `result`: their names (most telling first), the splits that have any, the values in words.

    Per-class figures, such as `test/recall/cat` beside `test/recall`, are left out.
    """
    cells: dict[tuple[str, str], str] = {}
    for key, value in result.items():
        split, _, name = key.partition("/")
        if split in SPLITS and name and not per_class(key, result) and not isinstance(value, (dict, list)):
            cells[name, split] = metric_text(name, value)
    names = sorted({name for name, _ in cells}, key=lambda name: (_rank(name), name))
    if {"balanced_accuracy", "recall"} <= set(names):
        names.remove("recall")  # the same figure
    return names, [s for s in SPLITS if any((n, s) in cells for n in names)], cells


def headlines(metrics: Mapping[str, Any], most: int = 4) -> list[str]:
    """The keys that say most about a run: of the test split where it has figures, else of the validation split."""
    names, splits, cells = table_of(metrics)
    told = [(n, s) for n in names for s in splits[:1] if (n, s) in cells and _rank(n) < len(_HEADLINES) - 1]
    told = [(n, s) for n, s in told if not n.endswith("_floor")]  # what another metric is compared with
    return [f"{split}/{name}" for name, split in told[:most]]


def per_class(key: str, metrics: Mapping[str, Any]) -> bool:
    """Whether `key` is one class's part of another metric."""
    return key.count("/") >= 2 and "/".join(key.split("/")[:2]) in metrics


def _rank(name: str) -> int:
    return next((i for i, p in enumerate(_HEADLINES) if re.fullmatch(p, name)), len(_HEADLINES))


def printable(text: str) -> str:
    """Names come from users and from files: no control characters to the terminal."""
    return "".join(c if c.isprintable() else " " if c == "\n" else "?" for c in decoded(text))


def name_text(name: str) -> str:
    """A file's name, or a folder's, as it is shown and stored: one line of text that any file can have. What can't be
    read as UTF-8, whatever the locale, and control characters are as Python writes them.

    >>> name_text("d\udce9j\udcc3\udca0\n.png")
    'd\\\\xe9jà\\\\n.png'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in decoded(name))


def decoded(name: str) -> str:
    """A text with all that can be read as UTF-8 read so: Python has bytes that its locale can't read as surrogates, all
    beyond ASCII where that is C."""
    try:
        return (
            name
            if name.isascii()
            else name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        )
    except UnicodeEncodeError:  # another surrogate, in a name on Windows
        return name


def plain(name: str) -> str:
    """
    >>> plain("val/knn_accuracy")
    'val knn accuracy'
    """
    name = f"{name[:-1]}images" if name.split("/")[-1] == "n" else name
    return printable(name.replace("/", " ").replace("_", " "))


def data_text(source: str, root: str | None) -> str:
    """What images a run is of: the source and, where they were brought, their folder's name.

    >>> data_text("mnist", None), data_text("mnist", "/home/me/kmnist/"), data_text("folder", "s3://b/photos?region=x")
    ('mnist', 'mnist in kmnist', 'folder photos')
    """
    name = (root or "").partition("?")[0].replace("\\", "/").rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        return source
    return f"{source} {name}" if source == "folder" else f"{source} in {name}"


def clock(seconds: float) -> str:
    """
    >>> clock(75)
    '1:15'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
