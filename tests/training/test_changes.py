"""Settings that change while a run trains; that they do is in tests/tuning/test_sweep_population.py."""

from __future__ import annotations

import pytest
from helpers import tiny

from crayon.config import changes
from crayon.errors import BadInput
from crayon.launch import preflight


def test_they_are_read_in_the_order_of_epochs():
    config = tiny("gan", changes="2:lr=2e-3 1:beta1=0.4 2:augment.shift=3", task__gamma=1.0)
    assert changes.parsed(config) == [(1, "beta1", 0.4), (2, "lr", 2e-3), (2, "augment.shift", 3)]
    changes.check(config)
    assert changes.at(config, 0) is config
    now = changes.at(config, 2)
    assert (now.lr, now.beta1, now.augment.shift, now.task.gamma) == (2e-3, 0.4, 3, 1.0)
    assert {"lr", "beta1", "task.gamma", "augment.hue"} < set(changes.may_change(config))
    flag = tiny("gan", changes="1:augment.resized-crop=0.5")  # as the command line spells it
    assert changes.parsed(flag) == [(1, "augment.resized_crop", 0.5)]
    assert not {"epochs", "augment.flip", "model.width"} & set(changes.may_change(config))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr=1", "write EPOCHS:SETTING=VALUE"),
        ("1:model.width=8", "model.width can't change while a run trains; there are lr, beta1"),
        ("1:beta=0.5", "is no setting; did you mean beta1?"),
        ("1:lr=fast", "fast is no number"),
        ("1:augment.shift=0.5", "0.5 is no whole number"),
        ("1:beta1=1.5", "--changes 1:beta1=1.5: beta1 1.5 is out of range"),
        ("1:lr=nan", "--changes 1:lr=nan: lr nan is out of range"),
        ("1:augment.resized-crop=2", "augment.resized-crop 2 is out of range"),
        (f"{'9' * 5000}:lr=1", "write EPOCHS:SETTING=VALUE"),
        ("0:lr=0.1", "can change after 1 to 2"),
        ("3:lr=0.1", "the run has 3 epochs"),
        ("1:lr=0.1 1:lr=0.2", "lr changes twice after epoch 1"),
        ("1:task.gamma=1", "task.gamma begins at 0"),
    ],
)
def test_what_can_not_change_is_told(text, said):
    with pytest.raises(BadInput, match=r".") as end:
        preflight.check(tiny("gan", changes=text), on_ray=False)
    assert said in str(end.value)
