"""The images of a folder as Parquet files, as WebDataset shards, and in a bucket."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from helpers import pixels

from crayon.data import Splits
from crayon.data.folder import walk
from crayon.system.objectstore import opened

CLASSES = ["cat", "dog"]


def files(root: Path) -> list[tuple[str, str, str, bytes]]:
    """(split, class, name, content) of a folder's images, in the order in which they are read."""
    found = sorted(file.path for file in walk(root))
    return [(*path.split("/"), (root / path).read_bytes()) for path in found]


def parquet(root: Path, to: Path, label: str = "name", packed: bool = True, rows: int = 3) -> Path:
    """Each split in two Parquet files, as Hugging Face's `datasets` writes them, or plain."""
    for split in ("train", "test"):
        found = [(kind, name, content) for part, kind, name, content in files(root) if part == split]
        half = len(found) // 2 - 1
        for number, part in enumerate((found[:half], found[half:])):
            images = [{"bytes": content, "path": name} if packed else content for _, name, content in part]
            labels = [CLASSES.index(kind) if label == "number" else kind for kind, _, _ in part]
            table = pa.table({"image": images, "label": labels})
            features = {"label": {"names": CLASSES, "_type": "ClassLabel"}}
            if label == "number":
                table = table.replace_schema_metadata(
                    {"huggingface": json.dumps({"info": {"features": features}})}
                )
            to.mkdir(exist_ok=True)
            pq.write_table(table, to / f"{split}-{number:05}-of-00002.parquet", row_group_size=rows)
    return to


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))


def webdataset(root: Path, to: Path, kind: str = "cls", compressed: bool = True) -> Path:
    """Each split in two tar files, of which the first is compressed."""
    for split in ("train", "test"):
        (to / split).mkdir(parents=True, exist_ok=True)
        found = [(label, name, content) for part, label, name, content in files(root) if part == split]
        for number, part in enumerate((found[:3], found[3:])):
            packed = compressed and not number
            ending = "tar.gz" if packed else "tar"
            with tarfile.open(to / split / f"{number}.{ending}", "w:gz" if packed else "w") as archive:
                for label, name, content in part:
                    key = f"{label}/{name.partition('.')[0]}"
                    add(archive, f"{key}.png", content)
                    about = json.dumps({"label": label, "width": 20}) if kind == "json" else label
                    add(archive, f"{key}.{kind}", about.encode())
    return to


def upload(root: Path, to: str) -> str:
    store, base = opened(to)
    for path in (path for path in root.rglob("*") if path.is_file()):
        with store.open_output_stream(f"{base}/{path.relative_to(root).as_posix()}") as stream:
            stream.write(path.read_bytes())
    return to


def same(splits: Splits, others: Splits) -> bool:
    return all(
        a is b is None
        or (torch.equal(pixels(a), pixels(b)) and torch.equal(a.labels, b.labels) and a.classes == b.classes)
        for a, b in zip(splits[:3], others[:3], strict=True)
    )


def table(to: Path, **columns) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), to)
    return to.parent
