"""Devices without double precision, as Apple's GPUs: measured elsewhere, and the same."""

from __future__ import annotations

import pytest
import torch
from helpers import rows, tiny
from test_trainer import KINDS, final, make, same, without_clocks

from crayon.errors import BadInput
from crayon.system import devices
from crayon.training import worker


def test_the_device_that_was_asked_for_or_a_sentence():
    assert devices.chosen("cpu") == torch.device("cpu")
    assert devices.chosen("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.backends.mps.is_available():
        with pytest.raises(BadInput, match="--device mps: torch sees no Apple GPU"):
            devices.chosen("mps")
    with pytest.raises(BadInput, match="no device 'tpu'"):
        devices.chosen("tpu")
    assert devices.exact(torch.device("mps")) == torch.device("cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_models_are_measured_by_copies_where_the_device_has_no_float64(kind, monkeypatch, tmp_path):
    """As if the CPU had none: the same figures and pictures, and training doesn't notice."""
    results = []
    for name, without in (("usual", ("mps",)), ("copies", ("mps", "cpu"))):
        monkeypatch.setattr(devices, "WITHOUT_FLOAT64", without)
        trainer = make(tiny(kind, epochs=1), tmp_path / name)
        trainer.fit()
        assert (trainer.average.measured() is trainer.average.networks) is (name == "usual")
        result, _ = worker.conclude(trainer, "")
        results.append({k: v for k, v in result.items() if isinstance(v, float) and "second" not in k})
    assert results[0] == results[1] and len(results[0]) > 3
    assert same(final(tmp_path / "usual"), final(tmp_path / "copies"))
    usual, copies = (without_clocks(rows(tmp_path / name / "run")) for name in ("usual", "copies"))
    assert usual == copies
    usual, copies = (tmp_path / name / "run" / "pictures" for name in ("usual", "copies"))
    pictures = {p.name for p in usual.glob("*.png")} - {"learning_curves.png"}
    assert pictures
    for name in pictures:
        assert (usual / name).read_bytes() == (copies / name).read_bytes()
