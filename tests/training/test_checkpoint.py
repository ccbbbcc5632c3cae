import copy
import json
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from disks import s3_server, small_disk
from safetensors.torch import save_file
from torch import nn

from crayon.config.names import flatten, identity, override
from crayon.errors import BadInput, RunFailed
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get
from crayon.training.checkpoint import (
    Checkpoint,
    best,
    check_identity,
    entries,
    keep_needed,
    latest,
    load,
    restore_network,
    save,
)


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path, "run")
    run.create()
    return run


def sample(step, **tensors):
    tensors = tensors or {"w": torch.full((1000,), float(step))}
    return Checkpoint(
        step, {"weights": tensors}, {"step": step}, {"job": "mnist"}, {"val/accuracy": step / 7}
    )


def files(run):
    return sorted(p.name for p in (run.path / "checkpoints").iterdir())


def same(a, b):
    """Equal to the bit, NaN included."""
    flat = (a.contiguous().view(-1).view(torch.uint8) for a in (a, b)) if a.dim() else (a, b)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


def test_everything_comes_back_to_the_bit(run):
    base = torch.randn(6, 4, 3, 5)
    tensors = {
        "scalar": torch.tensor(3.5),
        "integer scalar": torch.tensor(2**62 + 1),
        "empty": torch.empty(0, 3),
        "also empty": torch.empty(0),
        "bf16": torch.randn(7, 3).bfloat16(),
        "half": torch.randn(5).half(),
        "bool": torch.tensor([True, False]),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "nan and -0": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.transpose(0, 3),
        "slice": base[2:4, 1],
        "base": base,
        "shared": base,
        "parameter": nn.Parameter(torch.randn(3)),
    }
    state = {"best": float("-inf"), "lr": 0.1 + 0.2, "nested": {"a": [1, None, True]}}
    config = flatten(get("gan", "quick"))
    save(run, Checkpoint(12, {"weights": tensors, "ema": {}}, state, config, {"a": 1 / 3}))
    found = load(latest(run))
    assert (found.step, found.state, found.config, found.metrics) == (12, state, config, {"a": 1 / 3})
    weights = found.tensors["weights"]
    assert weights.keys() == tensors.keys() and found.tensors["ema"] == {}
    for name, tensor in tensors.items():
        assert same(weights[name], tensor.detach()), name
    assert weights["base"].data_ptr() != weights["shared"].data_ptr()


def test_the_newest_and_the_best_are_kept(run):
    assert (entries(run), latest(run), best(run)) == ([], None, None)
    for step in range(1, 8):
        save(run, sample(step), best=step in (1, 3), keep=2)
    assert [e.step for e in entries(run)] == [3, 6, 7]
    assert (latest(run).step, best(run).step) == (7, 3)
    save(run, sample(8), best=True, keep=1)
    save(run, sample(8, w=torch.ones(3)), best=True, keep=1)  # again, it is replaced
    assert files(run) == ["step-000000008.safetensors"]
    assert best(run).step == 8 and load(latest(run)).tensors["weights"]["w"].shape == (3,)


def test_a_reader_beside_a_writer_always_finds_a_whole_one(run):
    save(run, sample(1), keep=1)
    seen = [1]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [save(run, sample(step), keep=1) for step in range(2, 42)])
        while not writing.done():
            seen.append(latest(run).step)
        writing.result()
    assert seen == sorted(seen) and len(set(seen)) > 5 and latest(run).step == 41


def refused(run, *words):
    with pytest.raises(BadInput) as caught:
        load(latest(run))
    text = str(caught.value)
    assert all(word in text for word in words) and "\n" not in text and len(text) < 600, text


def test_every_flipped_bit_and_every_cut_is_named_with_the_way_out(run):
    save(run, sample(100))
    save(run, sample(200, w=torch.randn(2, 3), b=torch.randn(4).bfloat16()))
    newest = latest(run).path
    whole = newest.read_bytes()
    cuts = [whole[:size] for size in range(0, len(whole), 5)]
    flips = []
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        flips.append(bytes(changed))
    for content in [*cuts, *flips, whole + b"x", b"\x80\x04\x95pickle", struct.pack("<Q", 2**63) + b"{}"]:
        newest.write_bytes(content)
        refused(run, str(newest), "; delete it to go on from step 100.")
    save(run, sample(300))  # a run that is under way is not stopped by it
    newest.write_bytes(whole)
    assert [load(entry).step for entry in entries(run)] == [200, 300]


def test_files_of_others_of_another_step_and_of_other_versions(run):
    save(run, sample(7))
    path = latest(run).path.rename(run.path / "checkpoints" / "step-000000001.safetensors")
    refused(
        run, "is of step 7, not of the one in its name", "delete it to start anew (there is none before it)."
    )
    save_file({"w": torch.zeros(2)}, path, {"format": "pt"})
    refused(run, "is no checkpoint of Crayon")
    save_file({"w": torch.zeros(2)}, path, {"format": "3", "crayon": "9.9", "sha256": ""})
    refused(run, "has format '3' (crayon '9.9')", "reads format 2")
    path.unlink()
    old = run.path / "checkpoints" / "step-000000005"
    old.mkdir()
    refused(run, str(run.path), "checkpoints of crayon 0.1", "use it with crayon 0.1", "--name")


def test_only_what_is_asked_for_is_read(run):
    """Also where the rest is damaged."""
    tensors = {"weights": {"w": torch.ones(10)}, "optimizer": {"w": torch.zeros(10)}}
    save(run, Checkpoint(1, tensors, {}, {}))
    entry = latest(run)
    whole = entry.path.read_bytes()
    zeros = whole.index(bytes(40))
    entry.path.write_bytes(whole[:zeros] + b"\1" + whole[zeros + 1 :])
    assert load(entry, groups=["weights"]).tensors["weights"]["w"].sum() == 10
    refused(run, "is damaged: its tensors 'optimizer' have changed")


def test_a_checkpoint_that_does_not_fit_leaves_those_before(tmp_path):
    with small_disk(tmp_path / "disk", 4) as disk:
        run = RunFolder(disk, "run")
        run.create()
        save(run, sample(1))
        words = r"step-000000002.* the disk is full .*checkpoints written before are"
        with pytest.raises(RunFailed, match=words):
            save(run, sample(2, w=torch.zeros(4 << 20)))
        assert files(run) == ["step-000000001.safetensors"] and load(latest(run)).step == 1
        save(run, sample(2))


def test_s3_and_resume_on_another_machine(monkeypatch, tmp_path):
    with s3_server() as query:
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "first"))
        here = RunFolder(f"s3://bucket/runs{query}", "run")
        here.create()
        for step in (1, 2, 3, 4):
            here.append_row("metrics.jsonl", {"step": step})
            save(here, sample(step), best=step == 1)
        save(here, sample(4), best=False)
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "second"))
        there = RunFolder(f"s3://bucket/runs{query}", "run")
        there.pull()
        assert [e.step for e in entries(there)] == [1, 3, 4] and best(there).step == 1
        assert load(latest(there)).tensors["weights"]["w"].unique().tolist() == [4.0]
        assert there.read_rows("metrics.jsonl")[-1] == {"step": 4}
        save(there, sample(5))
        here.pull()
        assert [e.step for e in entries(here)] == [1, 4, 5] == [e.step for e in entries(here, stored=True)]
        path = latest(here).path
        path.write_bytes(path.read_bytes()[:-1])
        refused(here, f"Checkpoint s3://bucket/runs/run/checkpoints/{path.name}", f"it and {path}")


def test_identity_names_what_differs():
    wanted = identity(get("mnist", "quick"))
    config = flatten(override(get("mnist", "quick"), {"name": "x", "workers": 3, "checkpoint.keep": 9}))
    check_identity(config, wanted)
    check_identity(json.loads(json.dumps(config)), wanted)
    words = r"Run 'a' .*\(lr was 0\.5, now .*; seed was 7, now 0\); .*another --name"
    with pytest.raises(BadInput, match=words):
        check_identity(config | {"lr": 0.5, "seed": 7}, wanted, "a")
    with pytest.raises(BadInput, match=r"\(job was gan, now mnist; .* and \d+ more\)"):
        check_identity(flatten(get("gan", "quick")), wanted)


def test_another_network_is_refused_and_nothing_changed():
    network = nn.Linear(3, 2)
    before = copy.deepcopy(network.state_dict())
    for tensors, words in (
        ({"weight": torch.zeros(2, 3)}, "only the network has bias"),
        ({**before, "extra": torch.zeros(1)}, "only the checkpoint has extra"),
        ({**before, "bias": torch.zeros(5)}, r"bias is float32 \(5,\) there and float32 \(2,\) here"),
        ({**before, "bias": torch.zeros(2).half()}, "bias is float16"),
    ):
        with pytest.raises(BadInput, match=words):
            restore_network(network, tensors)
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    restore_network(network, {k: v + 1 for k, v in before.items()})
    assert torch.equal(network.bias, before["bias"] + 1)


def test_of_a_run_that_is_over_the_newest_and_the_best_can_be_kept(run):
    for step in (1, 2, 3, 4):
        save(run, Checkpoint(step, {}, {}, {}), best=step == 2, keep=9)
    keep_needed(run)
    assert [entry.step for entry in entries(run)] == [2, 4]
    save(run, Checkpoint(5, {}, {}, {}), best=True, keep=9)
    keep_needed(run)
    assert [entry.step for entry in entries(run)] == [5]
