"""`crayon cache`: what lies in the cache, and its removal. Torch-free."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Literal

from crayon.config.fields import positional
from crayon.data.cache import alone, discard, folders, limit, size_of
from crayon.system.files import cache_root

KINDS = {
    "images": "decoded or rendered images",
    "benchmarks": "images for benchmarks",
    "downloads": "download",
    "models": "copy of a model in an object store",
    "staging": "run that goes to an object store",
}
"""What the folders in the cache's folders are."""
FETCHED = "give --downloads to remove it"
KEPT = {"downloads": FETCHED, "models": FETCHED, "staging": "nothing of a run is removed here"}
"""Why `clear` leaves some of them; the others are made of other files, or by rules."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What `crayon cache` does."""

    action: Literal["list", "clear"] = positional(
        "[list | clear]",
        "list shows what there is. clear removes images that no running command uses.",
        default="list",
    )
    downloads: bool = False
    """Remove downloads and copies of models, too."""


def listing() -> Iterator[str]:
    """A line for everything in the cache: what it is, its size, when it was used, where it is. Then the sum."""
    total, made = 0, 0
    for kind, about in KINDS.items():
        for folder in folders(cache_root() / kind):
            bytes_, age = size_of(folder), time.time() - folder.stat().st_mtime
            with alone(folder) as free:
                used = "in use" if not free and kind != "staging" else f"used {_ago(age)} ago"
            total, made = total + bytes_, made + bytes_ * (kind == "images")
            yield f"{about:34s} {size_text(bytes_):>10s}  {used:18s} {folder}"
    most = limit()
    bound = "without a limit" if most is None else f"of at most {size_text(most)}"
    yield f"{size_text(total)} in {cache_root()}; images: {size_text(made)} {bound} (CRAYON_CACHE_LIMIT)"


def clear(config: CacheConfig) -> Iterator[str]:
    """Remove what no running process uses; a line for everything that went or stayed, and the sum."""
    freed = 0
    for kind, about in KINDS.items():
        why = None if config.downloads and KEPT.get(kind) == FETCHED else KEPT.get(kind)
        for folder in folders(cache_root() / kind):
            if why:
                yield f"kept     {folder} ({about}; {why})"
                continue
            size = size_of(folder)
            if discard(folder):
                freed += size
                yield f"removed  {folder} ({size_text(size)})"
            else:
                yield f"kept     {folder} (a running command uses it)"
    yield f"{size_text(freed)} freed in {cache_root()}"


def size_text(number: float) -> str:
    power = 0
    while number >= 1000 and power < 4:
        number, power = number / 1024, power + 1
    return f"{number:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
