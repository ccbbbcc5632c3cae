"""From a source of images to batches, the same for any number of workers."""

# Names are looked up on first use, so that `from crayon.data import check` imports no torch: bad input answers at once.

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crayon.data.augment import Augment as Augment
    from crayon.data.cache import cache_root as cache_root
    from crayon.data.count import training_images as training_images
    from crayon.data.images import ImageSet as ImageSet
    from crayon.data.images import Splits as Splits
    from crayon.data.loader import Loader as Loader
    from crayon.data.loader import evaluation_batches as evaluation_batches
    from crayon.data.sources import load as load
    from crayon.data.validate import check as check
    from crayon.data.validate import check_batch as check_batch

_HOME = {
    "Augment": "augment",
    "ImageSet": "images",
    "Loader": "loader",
    "Splits": "images",
    "cache_root": "cache",
    "check": "validate",
    "check_batch": "validate",
    "training_images": "count",
    "evaluation_batches": "loader",
    "load": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
