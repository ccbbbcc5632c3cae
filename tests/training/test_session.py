"""What a whole run hands to Ray Train, to Weights & Biases and to whoever shows its progress."""

from __future__ import annotations

import json

import pytest
from helpers import rows, tiny
from wandb_files import history, of_kind, records

from crayon.report.events import EpochEnd, Event, Finished, Message, Progress, Started, Step
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint, worker

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, events, result) of a run with Weights & Biases offline."""
    storage = tmp_path_factory.mktemp("runs")
    config = tiny("mnist", name="run", storage=str(storage), wandb="offline", data__size=600, lr=0.01)
    run = RunFolder(str(storage), "run")
    run.create()
    events: list[Event] = []
    result = worker.run_worker(config, run, emit=events.append, command="crayon mnist")
    return run, events, result


def test_weights_and_biases_has_the_rows_the_result_the_pictures_and_the_model(whole):
    run, events, result = whole
    found = records(run.path)
    logged = [row for row in history(found) if "val/accuracy" in row]
    assert [(r["step"], r["val/accuracy"], r["train/loss"]) for r in logged] == [
        (r["step"], r["val/accuracy"], r["train/loss"]) for r in rows(run.path)
    ]
    summary = {
        i.key or "/".join(i.nested_key): json.loads(i.value_json)
        for s in of_kind(found, "summary")
        for i in s.update
    }
    assert summary["test/accuracy"] == result["test/accuracy"]
    assert summary["selected/step"] == checkpoint.best(run).step
    media = " ".join(p.path for files in of_kind(found, "files") for p in files.files)
    assert all(f"pictures/{name}_" in media for name in ("confusion_matrix", "learning_curves"))
    (table,) = run.path.glob("wandb/offline-run-*/files/media/table/*.json")
    cells = json.loads(table.read_text())["data"]
    assert sum(count for *_, count in cells) == len(worker.load_data(tiny("mnist", data__size=600)).test)
    right = sum(count for true, predicted, count in cells if true == predicted)
    assert right / sum(count for *_, count in cells) == pytest.approx(result["test/accuracy"])
    (model,) = (a for a in of_kind(found, "artifact") if a.type == "model")
    assert model.name == "run-model"
    assert [c.path for c in model.manifest.contents] == [checkpoint.best(run).path.name]
    assert json.loads(model.metadata)["test/accuracy"] == result["test/accuracy"]
    assert not any(key.count("/") > 1 for key in json.loads(model.metadata))
    assert of_kind(found, "exit")[0].exit_code == 0
    assert events[-1].sync.startswith("wandb sync ")


def test_events_begin_with_what_is_trained_and_end_with_the_result(whole):
    run, events, result = whole
    kinds = [type(event) for event in events if not isinstance(event, (Progress, Step))]
    (start,) = (event for event in events if isinstance(event, Started))
    assert set(kinds[: kinds.index(Started)]) <= {Message}
    assert kinds[-1] is Finished and kinds.count(EpochEnd) == start.epochs == 3
    assert start.total_steps == 3 * (start.train_images // 32) == rows(run.path)[-1]["step"]
    assert (start.job, start.name, start.workers, start.source) == ("mnist", "run", 1, "digits")
    told = [event.text for event in events if isinstance(event, Message)]
    few = f"Only {start.total_steps} updates in all"
    assert any(text.startswith(few) for text in told) and "Measuring the final model." in told
    assert events[-1].result == result == json.loads((run.path / "result.json").read_text())
    images = rows(run.path)[-1]["images"]
    assert result["images_per_second"] * result["train_seconds"] == pytest.approx(images)
    assert result["seconds"] > result["train_seconds"] == rows(run.path)[-1]["train_seconds"]
    about = {"job": "mnist", "name": "run", "workers": 1, "command": "crayon mnist"}
    assert about.items() <= result.items()
