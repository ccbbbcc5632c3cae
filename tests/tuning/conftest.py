"""A study that tests of the search share."""

from __future__ import annotations

import pytest
from test_sweep_study import CONFIG, SPACE, plan

from crayon.tuning.space import clipped
from crayon.tuning.study import Study


@pytest.fixture
def study(tmp_path) -> Study:
    """A study with the preset in it."""
    made = Study(f"sqlite:///{tmp_path / 'a.db'}", "s", plan())
    made.add(clipped(CONFIG, SPACE), 8, "waiting")
    return made
