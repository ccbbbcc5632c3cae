"""A run's images as a table and some lines, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table_of_images(about: Mapping[str, Any], most: int) -> tuple[list[str], list[list[str]]]:
    """Head and lines: how many images of which class there are in which split. Of more than `most` classes the largest
    and the smallest have a line, and the others one together.

    about: the content of images.json.
    """
    splits = about.get("splits") or {}
    head = ["", *("validation" if name == "val" else name for name in splits)]
    counts = [split["classes"] for split in splits.values()]
    named = list(zip(about.get("classes") or (), *counts, strict=True)) if all(counts) else []
    lines = [[name, *(f"{n:,}" for n in numbers)] for name, *numbers in named]
    if len(named) > most:
        order = sorted(range(len(named)), key=lambda i: -named[i][1])
        first, last = order[: most // 2], order[len(order) - most // 2 :]
        others = [named[i][1:] for i in order[most // 2 : len(order) - most // 2]]
        between = [
            f"{min(n):,}" if min(n) == max(n) else f"{min(n):,} to {max(n):,}"
            for n in zip(*others, strict=True)
        ]
        lines = [*(lines[i] for i in first), [f"{len(others):,} more", *between], *(lines[i] for i in last)]
    return head, [*lines, ["images", *(f"{split['images']:,}" for split in splits.values())]]


def facts_of_images(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and texts: kinds and sizes of the files, what was left out, how the folder was read, warnings."""
    found = []
    if kinds := about.get("kinds"):
        found.append(("kinds", ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())))
    if sizes := about.get("sizes"):
        low, high = (" x ".join(map(str, sizes[end])) for end in ("smallest", "largest"))
        text = low if sizes["different"] == 1 else f"{low} to {high}, {sizes['different']:,} different"
        found.append(("sizes", text + (f" among {sizes['looked_at']:,}" if "looked_at" in sizes else "")))
    found += [("left out", text) for text in about.get("left_out") or ()]
    found += [("note", text) for text in about.get("notes") or ()]
    return found + [("warning", text) for text in about.get("warnings") or ()]
