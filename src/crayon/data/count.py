"""How many images of a user's own there are, before they are loaded. Imports no torch for a folder."""

from __future__ import annotations

from crayon.config.settings import DataConfig
from crayon.data import remote
from crayon.data.folder import walk
from crayon.data.layout import layout
from crayon.data.validate import is_own
from crayon.report.events import Emit, Message, ignore
from crayon.system.files import expanded


def training_images(config: DataConfig, *, labels: bool, emit: Emit = ignore) -> int | None:
    """How many of a user's own images `load` would give to train on; about, of a folder or bucket, by the names of its
    files. None where they are a built-in set's, in shards (told), or not on this machine. Raises BadInput as `check`
    does."""
    if is_own(config):
        from crayon.data.sources import load

        return len(load(config, labels=labels, emit=emit).train)
    if config.source != "folder" or config.root is None:
        return None
    if remote.takes(config.root):
        found = remote.find(config, labels=labels)
        read, train = found.layout, found.splits["train"]
        if train.kind != "Image":
            emit(
                Message(
                    f"How many images the {train.kind} files hold isn't known before they are read, so the preset "
                    "isn't fitted to them; where they are few, choose --epochs, --global-batch-size and --lr."
                )
            )
            return None
        images = len(train.files)
    elif not expanded(config.root).is_dir():
        return None
    else:
        read = layout(expanded(config.root), labels=labels)
        part = read.parts["train"]
        images = sum(1 for _ in walk(part.folder, inside=part.inside))
    share = 1.0
    if "test" not in read.parts:
        share -= read.test_share(config.test_fraction)
    if "val" not in read.parts:
        share *= 1 - config.val_fraction
    return min(max(1, round(images * share)), config.size or images)
