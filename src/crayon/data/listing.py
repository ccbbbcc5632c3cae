"""Files of an object store, listed at once, as the tree of folders that crayon.data.layout reads. Torch-free."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from pathlib import PurePath, PurePosixPath

from crayon.data.folder import OURS, ImageFile, LeftOut, is_hidden, is_image, kind_of
from crayon.data.shards import shard_kind


class Address(PurePosixPath):
    """Of a folder in an object store.

    >>> str(Address("s3://bucket/photos") / "train"), f"{Address('gs://bucket')}"
    ('s3://bucket/photos/train', 'gs://bucket')
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)


class Listing:
    """See crayon.data.layout.Tree."""

    def __init__(self, root: PurePath, files: list[ImageFile]):
        """files: all below `root`, sorted by path."""
        self._root = root
        self._files = files
        self._paths = [file.path for file in files]
        ours = {path.rpartition("/")[0] for path in self._paths if path.rpartition("/")[2] in OURS}
        self._runs = ours - {""}

    def content(self, folder: PurePath) -> tuple[tuple[str, ...], int]:
        names, images = set(), 0
        for path, _ in self._below(folder):
            first, inside, _ = path.partition("/")
            if inside:
                names.add(first)
            else:
                images += is_image(first)
        return tuple(sorted(name for name in names if not is_hidden(name))), images

    def walk(
        self, folder: PurePath, left_out: LeftOut | None = None, inside: Collection[str] = ()
    ) -> Iterator[ImageFile]:
        left = left_out or LeftOut()
        seen: set[str] = set()
        for path, file in self._below(folder):
            *folders, name = path.split("/")
            if hidden := next(filter(is_hidden, folders), None):
                if (whole := path.partition(f"{hidden}/")[0] + hidden) not in seen:
                    left.hidden[hidden] += 1
                    seen.add(whole)
            elif inside and folders and folders[0] not in inside:
                continue
            elif self._runs and (run := self._run_of(file.path)):
                left.kinds["run of Crayon's"] += run not in seen
                seen.add(run)
            elif is_image(name) and (folders or not inside):
                yield ImageFile(path, file.size, file.time)
            elif is_image(name):
                left.beside[str(folder)] += 1
            elif is_hidden(name):
                left.hidden[name] += 1
            else:
                left.kinds[kind_of(name)] += 1

    def shards(self) -> list[ImageFile]:
        """Those in folders without images, at any depth: beside images, an archive is what they came in."""
        shards, others = [], set()
        for file in self._files:
            *folders, name = file.path.split("/")
            if any(map(is_hidden, (*folders, name))):
                continue
            if shard_kind(name):
                shards.append(file)
            elif is_image(name):
                others |= {"/".join(folders[:depth]) for depth in range(len(folders) + 1)}
        return [file for file in shards if file.path.rpartition("/")[0] not in others]

    def count_others(self, chosen: list[ImageFile], left: LeftOut) -> None:
        """Count all files but these, by kind."""
        paths = {file.path for file in chosen}
        names = [path.rpartition("/")[2] for path in self._paths if path not in paths]
        left.kinds.update(kind_of(name) for name in names if not is_hidden(name))

    def _below(self, folder: PurePath) -> Iterator[tuple[str, ImageFile]]:
        """Path below `folder`, and the file."""
        start = "".join(f"{part}/" for part in folder.relative_to(self._root).parts)
        for i in range(bisect_left(self._paths, start), len(self._paths)):
            if not self._paths[i].startswith(start):
                return
            yield self._paths[i][len(start) :], self._files[i]

    def _run_of(self, path: str) -> str:
        """The run's folder that a file lies in; empty where in none."""
        parents = path.split("/")[:-1]
        folders = ("/".join(parents[: depth + 1]) for depth in range(len(parents)))
        return next((folder for folder in folders if folder in self._runs), "")
