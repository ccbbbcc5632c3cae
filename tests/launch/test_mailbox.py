"""What workers tell their driver arrives once, in order, and whole."""

from __future__ import annotations

import pickle
import threading

import pytest

from crayon.launch.mailbox import FolderMailbox


@pytest.fixture
def box(monkeypatch, tmp_path):
    monkeypatch.setattr("crayon.launch.cluster.scratch", lambda: tmp_path)
    return FolderMailbox()


def test_events_arrive_once_and_in_order(box):
    worker = pickle.loads(pickle.dumps(box))
    worker.put({"kind": "step", "step": 1})
    worker.put({"kind": "step", "step": 2, "loss": float("inf")})
    assert [event["step"] for event in box.take()[0]] == [1, 2]
    assert box.take() == ([], None)
    worker.put({"kind": "message", "text": "zwei\nZeilen"})
    assert box.take()[0] == [{"kind": "message", "text": "zwei\nZeilen"}]


def test_what_a_killed_worker_left_half_written_is_skipped(box):
    box.put({"kind": "step", "step": 1})
    with (box.folder / "events.jsonl").open("ab") as file:
        file.write(b'\n{"kind": "step", "st')
    assert [event["step"] for event in box.take()[0]] == [1]
    box.put({"kind": "step", "step": 3})  # its successor
    assert [event["step"] for event in box.take()[0]] == [3]


def test_the_first_failure_counts(box):
    assert not box.failed()
    box.put({"kind": "failed", "text": "first", "exit_code": 1})
    pickle.loads(pickle.dumps(box)).put({"kind": "failed", "text": "second", "exit_code": 2})
    assert box.failed()
    assert box.take()[1] == {"kind": "failed", "text": "first", "exit_code": 1}


@pytest.mark.parametrize(("end", "wish"), [("halt", "halt"), ("leave", "leave"), ("close", "")])
def test_workers_wait_for_the_wish_to_stop(box, end, wish):
    worker, heard = pickle.loads(pickle.dumps(box)), []
    thread = threading.Thread(target=lambda: heard.append(worker.until_asked()))
    thread.start()
    getattr(box, end)()
    thread.join(timeout=10)
    assert heard == [wish]


def test_after_the_end_nothing_is_raised(box):
    worker = pickle.loads(pickle.dumps(box))
    box.close()
    worker.put({"kind": "step", "step": 1})
    assert not worker.failed()
    assert not box.folder.exists()
