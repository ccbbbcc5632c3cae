"""Preparing a folder of images: what `data.load` decodes in a second, beside the decoder alone on all cores."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from crayon.system.host import usable_cores
from suite.arrays import in_a_process
from suite.harness import Benchmark, Case, Figures, Ratio
from suite.settings import Settings
from suite.sides import BENCHMARKS

FIGURE = "images/s"


def files(root: Path) -> list[str]:
    from crayon.data.folder import walk

    base = root / "train" if (root / "train").is_dir() else root
    return [str(base / found.path) for found in sorted(walk(base))]


def decode_share(paths: list[str], size: int, channels: int, how: str, start, ended) -> None:
    """One process of `decoder`: waits for the others, decodes its share, says when it was done."""
    import numpy as np
    from PIL import Image

    from crayon.data.decode import Form, decode

    start.wait()
    for path in paths:
        if how == "decode":
            decode(path, Form(size, size, channels))
        else:
            with Image.open(path) as image:
                np.asarray(image.convert("RGB" if channels == 3 else "L"))
    ended.put(time.perf_counter())


def decoder(paths: list[str], size: int, channels: int, how: str) -> float:
    """Images per second of the decoder alone, on all cores, each process with its share; their start isn't counted."""
    context = multiprocessing.get_context("spawn")
    n = usable_cores()
    start, ended = context.Barrier(n + 1), context.Queue()
    processes = [
        context.Process(target=decode_share, args=(paths[k::n], size, channels, how, start, ended))
        for k in range(n)
    ]
    for process in processes:
        process.start()
    start.wait()
    begun = time.perf_counter()
    last = max(ended.get() for _ in processes)
    for process in processes:
        process.join()
    return len(paths) / (last - begun)


def prepared(root: Path, size: int, channels: int, count: int) -> float:
    """Images per second of the whole preparation of a folder, in a process that has loaded its libraries: files are
    found, decoded, written, and the set is opened."""
    cache = tempfile.mkdtemp(prefix="crayon-bench-cache-")
    code = (
        "import sys, time\nfrom crayon import data\n"
        "from crayon.config.settings import DataConfig\nimport crayon.data.sources\n"
        "c = DataConfig(source='folder', root=sys.argv[1], image_size=int(sys.argv[2]), channels=int(sys.argv[3]))\n"
        "t = time.perf_counter(); data.load(c, labels=False); print(time.perf_counter() - t)"
    )
    before = os.environ.get("CRAYON_CACHE")
    os.environ["CRAYON_CACHE"] = cache
    try:
        return count / float(in_a_process(code, str(root), str(size), str(channels)))
    finally:
        os.environ.pop("CRAYON_CACHE")
        if before is not None:
            os.environ["CRAYON_CACHE"] = before
        shutil.rmtree(cache, ignore_errors=True)


def dataloader(root: Path, size: int) -> float:
    """Images per second of one pass of torchvision transforms in DataLoader workers over the same files."""
    env = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    words = [sys.executable, str(BENCHMARKS / "peers" / "one_pass.py"), str(root), str(size)]
    end = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    return float(end.stdout)


def folder_of(count: int, side: int) -> Path:
    from crayon.data.cache import cache_root

    return Path(cache_root()) / "benchmarks" / f"jpeg-{count}-{side}"


def made_folder(count: int, side: int) -> Path:
    """Procedural faces as JPEG files of side x side pixels, quality 90; kept in the cache."""
    folder = folder_of(count, side)
    if not folder.is_dir():
        making = folder.with_name(f"{folder.name}.{os.getpid()}")
        making.mkdir(mode=0o700, parents=True)
        code = (
            "import sys, torch\nfrom PIL import Image\nfrom crayon.data.procedural.faces import render\n"
            "n, side, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]\n"
            "for part in torch.arange(n).split(256):\n"
            "    for i, x in zip(part.tolist(), render(part, side)[0].permute(0, 2, 3, 1).numpy()):\n"
            "        Image.fromarray(x).save(f'{folder}/{i:06d}.jpg', quality=90)"
        )
        in_a_process(code, str(count), str(side), str(making))
        making.replace(folder)
    return folder


def case(name: str, root: Path, size: int, make: Callable[[], object] = lambda: None) -> Case:
    train = root / "train" if (root / "train").is_dir() else root

    def warm() -> None:
        """Into the page cache: what is measured is decoding, not the disk."""
        make()
        for path in files(root):
            Path(path).read_bytes()

    def ours() -> dict[str, Figures]:
        return {"ours": {FIGURE: prepared(train, size, 3, len(files(root)))}}

    def alone(arm: str, how: str) -> dict[str, Figures]:
        return {arm: {FIGURE: decoder(files(root), size, 3, how)}}

    return Case(
        f"{name}, to {size} px",
        {
            "ours": ours,
            "decoder": partial(alone, "decoder, all cores", "decode"),
            "pillow": partial(alone, "Pillow, full size", "pillow"),
            "dataloader": lambda: {"DataLoader, one pass": {FIGURE: dataloader(train, size)}},
        },
        (
            Ratio("ours / the decoder alone", FIGURE, ("ours", "decoder, all cores"), "more", 0.8),
            Ratio("ours / DataLoader", FIGURE, ("ours", "DataLoader, one pass")),
        ),
        before=warm,
    )


def cases(settings: Settings) -> list[Case]:
    made = []
    if settings.cifar10 and (Path(settings.cifar10) / "train").is_dir():
        made.append(case(settings.data("cifar10"), Path(settings.cifar10), 32))
    if settings.faces:
        made.append(case("faces", Path(settings.faces), 64))
    if not made or settings.quick:
        count = 1_000 if settings.quick else 10_000
        make = partial(made_folder, count, 128)
        made = [case(f"{count:,} procedural faces, JPEG of 128 px", folder_of(count, 128), 64, make)]
    return made


BENCHMARK = Benchmark(
    "preparation",
    "images per second from files to the decoded set",
    minutes=2,
    cases=cases,
    notes=(
        "Files in the page cache. Ours: finding, decoding, resizing, writing, opening, from the call to its end, the "
        "start of its processes included. The decoder alone: the same function in as many processes, nothing "
        "written, their start not counted. Pillow: opened at full size, not resized. DataLoader: "
        "Resize, CenterCrop, ToTensor.",
    ),
)
