"""With and without what exists for speed alone, a run is the same to the last bit."""

from __future__ import annotations

from pathlib import Path

from helpers import python, rows
from test_trainer import final, same, without_clocks

TRAIN = """
import gc
from pathlib import Path
from helpers import tiny
from test_trainer import make
from crayon.fast import allocator, enabled, garbage
garbage.relax()
print(enabled(), allocator.keep_freed_memory(), gc.get_threshold()[0] == garbage.NEW_OBJECTS)
make(tiny("gan", epochs=2), Path({folder!r})).fit()
"""


def train(folder: Path, fast: str) -> list[str]:
    process = python(TRAIN.format(folder=str(folder)), CRAYON_FAST=fast)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.split()


def test_the_switch_turns_it_off_and_changes_no_bit(tmp_path):
    with_it, without = tmp_path / "fast", tmp_path / "plain"
    assert train(with_it, "1")[::2] == ["True", "True"]
    assert train(without, "0") == ["False", "False", "False"]
    assert same(final(with_it), final(without))
    assert without_clocks(rows(with_it / "run")) == without_clocks(rows(without / "run"))
