"""The running means: exact, whenever they are asked for, and never without the step that went wrong."""

from __future__ import annotations

import pytest
import torch

from crayon.training.collectives import Group
from crayon.training.meter import KEPT, Meter

VALUES = torch.rand(3 * KEPT + 5, 2, generator=torch.Generator().manual_seed(0))


def filled(values: torch.Tensor, looks: tuple[int, ...] = ()) -> Meter:
    meter = Meter(torch.device("cpu"))
    for step, (loss, error) in enumerate(values):
        meter.add(step, {"loss": loss, "error": error})
        if step in looks:
            meter.last()
    return meter


def test_means_are_those_of_all_steps_and_looking_at_them_does_not_show_in_the_last_bit():
    meter = filled(VALUES)
    means = meter.means(Group())
    assert list(means) == ["loss", "error"]
    assert list(means.values()) == pytest.approx(VALUES.double().mean(0).tolist(), rel=1e-12)
    assert meter.first_nonfinite(Group()) is None
    assert Meter(torch.device("cpu")).first_nonfinite(Group()) is None
    looks = (0, 3, KEPT - 1, KEPT, 2 * KEPT + 7)
    assert torch.equal(meter.sums, filled(VALUES, looks).sums)


@pytest.mark.parametrize("at", [0, KEPT - 1, KEPT, 2 * KEPT + 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_bad_step_is_named_with_its_term(at, value):
    values = VALUES.clone()
    values[at, 1] = value
    values[at + 1 :, 0] = float("nan")
    assert filled(values).first_nonfinite(Group()) == (at, "error")
    assert filled(values, looks=(at,)).first_nonfinite(Group()) == (at, "error")
