"""What is kept in the user's cache folder is shown, removed when asked, and bounded; what is in use stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import python

from crayon.cli import main as cli
from crayon.config.settings import DataConfig
from crayon.data import cache, cache_root, check
from crayon.errors import BadInput

pytestmark = pytest.mark.usefixtures("own_cache")

KIB = 1024
USER = """
import sys
from crayon.config.settings import DataConfig
from crayon.data import load
splits = load(DataConfig(source="shapes", size=64, image_size=16), labels=True)
print("ready", flush=True)
sys.stdin.readline()
print(sum(int(part.sum()) for part in splits.train.parts()), flush=True)
sys.stdin.readline()
"""


def made(name: str, used: float, kib: int = 100) -> Path:
    """An entry of so many KiB that was used last at a Unix time; nobody holds it."""

    def build(folder: Path) -> None:
        (folder / "info.json").write_text("{}")
        (folder / "images.npy").write_bytes(os.urandom(kib * KIB))

    entry = cache.cached(name, "0" * 16, build)
    os.close(cache._held.pop(entry))
    os.utime(entry, (used, used))
    return entry


@pytest.fixture
def told(capsys):
    """What `crayon cache` with these words prints."""

    def run(*words: str) -> str:
        capsys.readouterr()
        assert cli.run(None, ["cache", *words]) == 0
        return capsys.readouterr().out

    return run


def test_the_list_has_a_line_for_everything_and_the_sum(told, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE_LIMIT", "1.5 GiB")
    entry = made("shapes-train", time.time() - 7200)
    download = cache_root() / "downloads" / "mnist"
    download.mkdir(parents=True)
    (download / "file").write_bytes(bytes(200 * KIB))
    first, second, last = told().splitlines()
    assert first.split() == f"decoded or rendered images 104 KiB used 2 h ago {entry}".split()
    assert second.startswith("download ") and second.endswith(f" {download}") and " 200 KiB " in second
    assert last == f"304 KiB in {cache_root()}; images: 104 KiB of at most 1.5 GiB (CRAYON_CACHE_LIMIT)"
    assert told("list") == told()


def test_what_a_process_uses_stays_until_it_ends_even_if_it_is_killed(told):
    other = made("other", 0)
    with subprocess.Popen(
        [sys.executable, "-c", USER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        used = [path for path in cache.folders(cache_root() / "images") if path != other]
        assert len(used) == 2  # its training and its test images
        assert told().count(" in use ") == 2
        cleared = told("clear")
        assert not other.exists() and all(path.exists() for path in used)
        assert cleared.count("(a running command uses it)") == 2 and f"removed  {other} (" in cleared
        process.stdin.write("\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) > 0
        process.kill()
    assert "uses it" not in told("clear") and cache.folders(cache_root() / "images") == []


def test_downloads_go_only_if_asked_for_and_runs_never(told):
    folders = [cache_root() / kind / "x" for kind in ("downloads", "models", "staging")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert told("clear").count("give --downloads to remove it") == 2
    assert all(folder.is_dir() for folder in folders)
    assert "removed" in told("clear", "--downloads")
    assert [folder.exists() for folder in folders] == [False, False, True]


def test_what_was_used_longest_ago_goes_for_what_is_new(monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE_LIMIT", "350KiB")
    now = time.time()
    first, second, third = (made(name, now + age) for name, age in (("a", -300), ("b", -200), ("c", -100)))
    assert all(path.exists() for path in (first, second, third))
    assert cache.cached("a", "0" * 16, lambda folder: None) == first  # used again, and held from now on
    fourth = made("d", now)
    assert [path.exists() for path in (first, second, third, fourth)] == [True, False, True, True]
    huge = made("e", now, kib=1000)  # larger than the limit: alone but for what is held
    assert [path.exists() for path in (first, third, fourth, huge)] == [True, False, False, True]
    os.close(cache._held.pop(first))


def test_limits(monkeypatch):
    sizes = {"0": 0, "100": 100, "2k": 2048, "1.5 MiB": 3 << 19, "20GB": 20 << 30, "NONE": None, "": 20 << 30}
    for text, size in sizes.items():
        monkeypatch.setenv("CRAYON_CACHE_LIMIT", text)
        assert cache.limit() == size
    for text in ("much", "-1", "5 bananas", "GiB"):
        monkeypatch.setenv("CRAYON_CACHE_LIMIT", text)
        with pytest.raises(
            BadInput, match=r"CRAYON_CACHE_LIMIT is '.*'; give a size, such as 20GiB, or none"
        ):
            check(DataConfig(source="shapes"), labels=True)


def test_what_is_being_made_stays_and_what_a_killed_builder_left_goes(told):
    code = (
        "import time\nfrom crayon.data.cache import cached\n"
        "def build(folder):\n    (folder / 'x').write_bytes(bytes(5000)); print('ready', flush=True); time.sleep(600)\n"
        "cached('slow', '0' * 16, build)\n"
    )
    process = python(code)
    assert process.stdout.readline() == "ready\n"
    (building,) = cache.folders(cache_root() / "images")
    assert "(a running command uses it)" in told("clear") and building.exists()
    process.kill()
    process.communicate()
    assert "removed" in told("clear") and not building.exists()


def test_sets_are_opened_while_the_cache_is_being_cleared(tmp_path):
    """Each time it is either still there, and held, or made anew; nobody ever finds half of it."""
    code = (
        "import os, sys\nfrom crayon.config.settings import DataConfig\nfrom crayon.data import cache, load\n"
        "config = DataConfig(source='digits', image_size=8, channels=1)\nfound = set()\n"
        f"while not os.path.exists({str(tmp_path / 'end')!r}):\n"
        "    splits = load(config, labels=True)\n"
        "    found.add(sum(int(part.sum()) for part in splits.train.parts()))\n"
        "    for folder in list(cache._held): os.close(cache._held.pop(folder))\n"
        "print(len(found))\n"
    )
    users, removed = [python(code) for _ in range(2)], 0
    while removed < 4:
        removed += sum(cache.discard(folder) for folder in cache.folders(cache_root() / "images"))
        assert all(user.poll() is None for user in users)
    (tmp_path / "end").touch()
    assert [user.communicate() for user in users] == [("1\n", "")] * 2
