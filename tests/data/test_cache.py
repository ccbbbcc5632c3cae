"""What is kept in the user's cache folder is shown, removed when asked, and bounded; what is in use stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import crayon, python

from crayon.config.settings import DataConfig
from crayon.data import cache, cache_root, check
from crayon.errors import BadInput

pytestmark = pytest.mark.usefixtures("own_cache")

KIB = 1024
USER = """
import sys
from crayon.config.settings import DataConfig
from crayon.data import load
splits = load(DataConfig(source="shapes", size=64, image_size=int(sys.argv[1]) if sys.argv[1:] else 16), labels=True)
print("ready", flush=True)
sys.stdin.readline()
print(sum(int(part.sum()) for part in splits.train.parts()))
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


def user() -> subprocess.Popen[str]:
    """A process that has loaded a set and goes on with it once it gets a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_list_has_a_line_for_everything_and_the_sum():
    entry = made("shapes-train", time.time() - 7200)
    download = cache_root() / "downloads" / "mnist"
    download.mkdir(parents=True)
    (download / "file").write_bytes(bytes(200 * KIB))
    for words in ((), ("list",)):
        end = crayon("cache", *words, CRAYON_CACHE_LIMIT="1.5 GiB")
        assert end.returncode == 0, end.stderr
        first, second, last = end.stdout.splitlines()
        assert first.split() == f"decoded or rendered images 104 KiB used 2 h ago {entry}".split()
        assert second.startswith("download ") and second.endswith(f" {download}") and " 200 KiB " in second
        assert last == f"304 KiB in {cache_root()}; images: 104 KiB of at most 1.5 GiB (CRAYON_CACHE_LIMIT)"


def test_what_a_process_uses_stays_until_it_ends_even_if_it_is_killed():
    other = made("other", 0)
    process = user()
    try:
        used = [path for path in cache.folders(cache_root() / "images") if path != other]
        assert len(used) == 2  # its training and its test images
        assert crayon("cache").stdout.count(" in use ") == 2
        end = crayon("cache", "clear")
        assert end.returncode == 0 and not other.exists() and all(path.exists() for path in used)
        assert end.stdout.count("(a running command uses it)") == 2
        assert f"removed  {other} (" in end.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) > 0
    finally:
        process.kill()
        process.communicate()
    process = user()
    process.kill()
    process.communicate()
    assert "uses it" not in crayon("cache", "clear").stdout
    assert cache.folders(cache_root() / "images") == []


def test_downloads_go_only_if_asked_for_and_runs_never():
    for kind in ("downloads", "models", "staging"):
        (cache_root() / kind / "x").mkdir(parents=True)
    assert crayon("cache", "clear").stdout.count("give --downloads to remove it") == 2
    assert all((cache_root() / kind / "x").is_dir() for kind in ("downloads", "models", "staging"))
    assert "removed" in crayon("cache", "clear", "--downloads").stdout
    assert [kind for kind in ("downloads", "models", "staging") if (cache_root() / kind / "x").exists()] == [
        "staging"
    ]


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


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("100", 100),
        ("2k", 2048),
        ("1.5 MiB", 3 << 19),
        ("20GB", 20 << 30),
        ("NONE", None),
        ("", 20 << 30),
    ],
)
def test_limits(text, size, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE_LIMIT", text)
    assert cache.limit() == size


@pytest.mark.parametrize("text", ["much", "-1", "5 bananas", "GiB"])
def test_a_limit_that_is_none_is_a_sentence(text, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE_LIMIT", text)
    with pytest.raises(BadInput, match=r"CRAYON_CACHE_LIMIT is '.*'; give a size, such as 20GiB, or none"):
        check(DataConfig(source="shapes"), labels=True)


def test_what_is_being_made_stays_and_what_a_killed_builder_left_goes(tmp_path):
    code = (
        "import time\nfrom crayon.data.cache import cached\n"
        "def build(folder):\n    (folder / 'x').write_bytes(bytes(5000)); print('ready', flush=True); time.sleep(600)\n"
        "cached('slow', '0' * 16, build)\n"
    )
    process = python(code)
    assert process.stdout.readline() == "ready\n"
    (building,) = cache.folders(cache_root() / "images")
    assert "(a running command uses it)" in crayon("cache", "clear").stdout and building.exists()
    process.kill()
    process.communicate()
    assert "removed" in crayon("cache", "clear").stdout and not building.exists()


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
