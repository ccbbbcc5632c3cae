"""The images of a shard, which is a Parquet file or a tar file as WebDataset has them. Torch-free."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from crayon.data.decode import EXTENSIONS
from crayon.errors import BadInput, one_line

KINDS = {".parquet": "Parquet", ".tar": "WebDataset", ".tar.gz": "WebDataset", ".tgz": "WebDataset"}
"""What shards are, by the ends of their names."""
ROWS = 64
"""Rows of a Parquet file that are read at a time."""

READ_BYTES = 8 * 2**20
"""Of a tar file, read at a time: in an object store each is a request."""
BROKEN = (OSError, EOFError, ValueError, NotImplementedError, tarfile.TarError, zlib.error)
"""What is raised for a damaged file; pyarrow's errors are of these kinds, too."""


class Item(NamedTuple):
    """One image of a set, before it is decoded."""

    name: str
    label: str
    """The name of its class, or its number; empty where it has none."""
    content: bytes | None
    """Of the image's file; None where it is to be read from the file `name`."""
    start: int = 0
    """Where it begins in a tar file that isn't compressed."""


def shard_kind(name: str) -> str | None:
    """Of which kind of shard a file is, by its name."""
    return next((kind for end, kind in KINDS.items() if name.lower().endswith(end)), None)


def items(kind: str, file: BinaryIO, name: str, *, labels: bool) -> Iterator[Item]:
    """The images of a shard that is open, in their order. Raises BadInput where it is damaged or lacks images, or
    where `labels` are needed and there are none."""
    read = _parquet if kind == "Parquet" else _webdataset
    try:
        yield from read(file, name, labels)
    except BROKEN as error:
        raise BadInput(
            f"{name} is damaged or can't be read ({one_line(error, 120)}); write it anew or remove it."
        ) from None


def _parquet(file: BinaryIO, name: str, labels: bool) -> Iterator[Item]:
    """Rows with a column `image`, the bytes of a file or (as Hugging Face writes it) a struct with `bytes`, and perhaps
    a column `label`, of integers or strings."""
    import pyarrow.types as kinds
    from pyarrow.parquet import ParquetFile

    parquet = ParquetFile(file)
    schema = parquet.schema_arrow
    wanted = ("image", "label") if labels else ("image",)
    if lacking := [column for column in wanted if column not in schema.names]:
        raise BadInput(f"{name} has no column {lacking[0]!r}; its columns are {', '.join(schema.names)}.")
    image = schema.field("image").type
    packed = kinds.is_struct(image) and image.get_field_index("bytes") >= 0
    if not (packed or kinds.is_binary(image) or kinds.is_large_binary(image)):
        raise BadInput(
            f"The column 'image' of {name} is {image}; it must hold the bytes of image files, or structs with 'bytes'."
        )
    known = _class_names(schema)
    columns = [column for column in ("image", "label") if column in schema.names]
    if "label" in columns:
        label = schema.field("label").type
        label = label.value_type if kinds.is_dictionary(label) else label
        if not (kinds.is_integer(label) or kinds.is_string(label) or kinds.is_large_string(label)):
            raise BadInput(f"The column 'label' of {name} is {label}; it must hold integers or strings.")
    row = 0
    for batch in parquet.iter_batches(ROWS, columns=columns):
        images = batch.column("image").to_pylist()
        for value, label in zip(
            images,
            batch.column("label").to_pylist() if "label" in columns else [None] * len(images),
            strict=True,
        ):
            content = value.get("bytes") if packed and value else value
            text = "" if label is None or label == -1 else known[label] if known else str(label)
            yield Item(f"{name}, row {row}", text, content or b"")
            row += 1
    if not row:
        raise BadInput(f"{name} has no rows; remove it.")


def _class_names(schema: Any) -> list[str]:
    """Of integer labels, where Hugging Face's `datasets` noted them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return []


def _webdataset(file: BinaryIO, name: str, labels: bool) -> Iterator[Item]:
    """Consecutive members that have all before the first dot in common are a sample: KEY.jpg (or another kind), and
    KEY.cls, a number or a name, or KEY.json with "label" or "cls"."""
    sample: dict[str, bytes] = {}
    starts: dict[str, int] = {}
    others: list[str] = []
    key, first = "", True

    def finished() -> Iterator[Item]:
        nonlocal first
        kinds = [kind for kind in sample if f".{kind}" in EXTENSIONS]
        if kinds:
            label = _label(sample, f"{key} in {name}")
            if first and labels and not label:
                raise BadInput(
                    f"{key} in {name} has no label; it needs {key}.cls, or {key}.json with a 'label'."
                )
            first = False
            yield Item(f"{key}.{kinds[0]} in {name}", label, sample[kinds[0]], starts[kinds[0]])

    with tarfile.open(fileobj=file, mode="r|*", bufsize=READ_BYTES) as archive:
        for member in archive:
            folder, slash, base = member.name.rpartition("/")
            stem, _, end = base.partition(".")
            if not member.isfile() or not stem:
                continue
            if (this := folder + slash + stem) != key:
                yield from finished()
                sample, key = {}, this
            end = end.rpartition(".")[2].lower()
            content = archive.extractfile(member)
            if content is not None and (end in ("cls", "json") or f".{end}" in EXTENSIONS):
                if end not in sample:
                    sample[end], starts[end] = content.read(), member.offset_data
            elif len(others) < 3:
                others.append(member.name)
        yield from finished()
    if first:
        holds = f" but {', '.join(others)}" if others else ""
        raise BadInput(f"{name} has no images{holds} (known: {' '.join(sorted(EXTENSIONS))}).")


def _label(sample: dict[str, bytes], name: str) -> str:
    try:
        if "cls" in sample:
            return sample["cls"].decode().strip()
        if "json" in sample:
            about = json.loads(sample["json"])
            label = about.get("label", about.get("cls", "")) if isinstance(about, dict) else ""
            if isinstance(label, (int, str)):
                return str(label)
            raise ValueError(f"the label is {label!r}")
    except ValueError as error:
        raise BadInput(f"The label of {name} can't be read ({one_line(error, 120)}).") from None
    return ""
