"""Training batches of a set four times as large as the memory that the process may use, beside the set in memory.

    uv run benchmarks/streaming.py ~/photos --size 320      # root, Linux: it makes a control group
    uv run benchmarks/streaming.py --limit 1024 jobs/cifar10.py --data.source folder --data.root ~/photos

Each repetition is a process of its own that takes every image of an epoch once, after its pages were dropped. With
--limit, in MiB, a whole command runs in such a group instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ARMS = ("in memory, no limit", "from the cache", "--data.cache off")


def child(arm: str, root: str, size: int) -> None:
    import torch

    from crayon.config.settings import DataConfig
    from crayon.data import Loader, load
    from crayon.data.loader import resident

    cache = "off" if arm == ARMS[2] else "on"
    config = DataConfig(
        source="folder", root=root, image_size=size, channels=3, val_fraction=0.0, cache=cache
    )
    images = load(config, labels=False).train
    if cache == "on":
        for file in Path(os.environ["CRAYON_CACHE"]).rglob("images.npy"):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if arm == ARMS[0]:
        images = dataclasses.replace(images, storage=resident(images, torch.device("cpu")), rows=None)
    loader = Loader(images, global_batch_size=32)
    count, digest, begun = 0, 0, time.perf_counter()
    for batch in loader.epoch(0):
        count += len(batch.images)
        digest = hash((digest, batch.images[:, :, ::16, ::16].double().sum().item()))
    print(
        json.dumps(
            {"images/s": count / (time.perf_counter() - begun), "batches": digest, "bytes": images.nbytes}
        )
    )


def group(limit: int) -> Path:
    """A new control group with so much memory."""
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if "memory" in line)
    made = Path(f"/sys/fs/cgroup/memory{line.split(':')[2]}/crayon-{os.getpid()}")
    made.mkdir()
    (made / "memory.limit_in_bytes").write_text(str(limit))
    return made


def measure(
    words: list[str], limit: int, output: int | None = subprocess.PIPE
) -> tuple[dict[str, float], str]:
    """The most memory of a command and its children, in MiB, where it is limited to so many bytes, and its output."""
    here = group(limit) if limit else None

    def enter() -> None:
        if here:
            (here / "cgroup.procs").write_text(str(os.getpid()))

    process = subprocess.Popen([sys.executable, *words], stdout=output, text=True, preexec_fn=enter)
    own = 0
    while here and process.poll() is None:  # what can't be given up, beside pages of files
        stat = dict(line.split() for line in (here / "memory.stat").read_text().splitlines())
        own = max(own, int(stat["rss"]))
        time.sleep(0.05)
    text = process.communicate()[0]
    found = {"own, MiB": own >> 20}
    if here:
        found["peak, MiB"] = int((here / "memory.max_usage_in_bytes").read_text()) >> 20
        here.rmdir()
    if process.returncode:
        sys.exit(f"It ended with exit code {process.returncode}: {found}")
    return found if here else {}, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int)
    parser.add_argument("root")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--child")
    known, rest = parser.parse_known_args()
    if known.limit:
        print(json.dumps(measure([known.root, *rest], known.limit << 20, output=None)[0]))
        return None
    if known.child:
        return child(known.child, known.root, known.size)
    for _ in range(known.repetitions):
        limit = 0
        for arm in ARMS:
            words = [__file__, known.root, "--size", str(known.size), "--child", arm]
            memory, text = measure(words, limit)
            found = json.loads(text) | memory
            limit = int(found["bytes"]) // 4
            print(arm, json.dumps(found | {"limit, MiB": limit >> 20}), flush=True)


if __name__ == "__main__":
    main()
