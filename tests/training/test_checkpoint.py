import copy
import hashlib
import json
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from disks import file_size_limit, s3_server, small_disk
from torch import nn

from crayon.config.names import flatten, identity, override
from crayon.errors import BadInput, RunFailed
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get
from crayon.training import checkpoint
from crayon.training.checkpoint import (
    Checkpoint,
    best,
    check_identity,
    entries,
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


def folders(run):
    return sorted(p.name for p in (run.path / "checkpoints").iterdir())


def same(a, b):
    """Equal to the bit, NaN included."""
    flat = (a.contiguous().view(-1).view(torch.uint8) for a in (a, b)) if a.dim() else ()
    return a.dtype == b.dtype and a.shape == b.shape and (not a.dim() or torch.equal(*flat))


def test_every_kind_of_tensor_comes_back_to_the_bit(run):
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
    save(run, sample(1, **tensors))
    found = load(latest(run)).tensors["weights"]
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(found[name], tensor.detach()), name
    assert found["integer scalar"].item() == 2**62 + 1 and found["scalar"].item() == 3.5
    assert found["base"].data_ptr() != found["shared"].data_ptr()


def test_the_rest_comes_back_exactly_too(run):
    state = {"best": float("-inf"), "lr": 0.1 + 0.2, "nested": {"a": [1, None, True]}}
    config = flatten(get("gan", "quick"))
    save(run, Checkpoint(12, {"weights": {}, "ema": {}}, state, config, {"a": 1 / 3}))
    found = load(latest(run), groups=["ema"])
    assert (found.step, found.state, found.config, found.metrics) == (12, state, config, {"a": 1 / 3})
    assert list(found.tensors) == ["ema"]
    with pytest.raises(BadInput, match=r"has no optimizer\.safetensors \(it has ema, weights\)"):
        load(latest(run), groups=["optimizer"])


def test_the_newest_and_the_best_are_kept(run):
    assert (entries(run), latest(run), best(run)) == ([], None, None)
    for step in range(1, 8):
        save(run, sample(step), best=step in (1, 3), keep=2)
    assert [e.step for e in entries(run)] == [3, 6, 7]
    assert (latest(run).step, best(run).step) == (7, 3)
    save(run, sample(8), best=True, keep=1)
    assert folders(run) == ["step-000000008"]


def test_a_reader_beside_a_writer_always_finds_a_whole_one(run):
    save(run, sample(1), keep=1)
    seen = [1]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [save(run, sample(step), keep=1) for step in range(2, 42)])
        while not writing.done():
            seen.append(latest(run).step)
        writing.result()
    assert seen == sorted(seen) and len(set(seen)) > 5 and latest(run).step == 41


def test_saving_a_step_again_replaces_it(run):
    save(run, sample(5))
    save(run, sample(5, w=torch.ones(3)), best=True)
    assert folders(run) == ["step-000000005"]
    assert best(run).step == 5 and load(latest(run)).tensors["weights"]["w"].shape == (3,)


DAMAGE = {
    "empty": (lambda p: p.write_bytes(b""), "has 0 bytes instead of"),
    "cut to a byte": (lambda p: p.write_bytes(p.read_bytes()[:1]), "has 1 bytes instead of"),
    "cut in half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "bytes instead of"),
    "cut by a byte": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes instead of"),
    "grown": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes instead of"),
    "flipped": (
        lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 1])),
        "has changed",
    ),
    "gone": (lambda p: p.unlink(), "is missing"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), ""),
}


@pytest.mark.parametrize("file", ["weights.safetensors", "state.json", "config.json", "metrics.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_the_way_out(run, file, damage):
    save(run, sample(100))
    newest = save(run, sample(200))
    change, words = DAMAGE[damage]
    change(newest.path / file)
    for read in (load, checkpoint.verify):
        with pytest.raises(BadInput) as caught:
            read(latest(run))
        text = str(caught.value)
        assert str(newest.path) in text and file in text and words in text
        assert text.endswith("delete that folder to go on from step 100.") and "\n" not in text
    shutil.rmtree(newest.path)
    assert load(latest(run)).step == 100


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "can't be read"),
        ("{", "can't be read"),
        ("[" * 100_000, "can't be read"),
        ("[]", "is not one"),
        ("{}", "is not one"),
        ({"format": 2, "crayon": "9.9"}, "has format 2 (crayon 9.9)"),
        ({"format": None}, "has format None"),
        ({"step": 7}, "has been changed"),
        ({"step": "1"}, "has been changed"),
        ({"best": 1}, "has been changed"),
        ({"files": {}}, "has been changed"),
        ({"files": {"../../../etc/passwd": {"bytes": 1, "sha256": ""}}}, "has been changed"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, "has been changed"),
        ({"files": {"weights.pkl": {"bytes": 1, "sha256": ""}}}, "has been changed"),
        ({"files": {"weights.safetensors": 3}}, "has been changed"),
    ],
)
def test_manifests_that_are_none(run, text, words):
    path = save(run, sample(1)).path / "manifest.json"
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        latest(run)
    assert words in str(caught.value) and "start anew (there is none before it)." in str(caught.value)
    save(run, sample(2))  # a run that is under way is not stopped by it


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 62) + b'{"w":{"dtype":"F32","shape":[9000000],"data_offsets":[0,4]}}  \0\0\0\0',
        b"\x80\x04\x95pickle",
    ],
)
def test_a_tensor_file_that_is_none_though_its_hash_is_right(run, content):
    entry = save(run, sample(1))
    (entry.path / "weights.safetensors").write_bytes(content)
    entry.manifest["files"]["weights.safetensors"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    with pytest.raises(BadInput, match=r"weights\.safetensors is not a safetensors file"):
        load(entry)


def test_a_checkpoint_that_does_not_fit_leaves_those_before(tmp_path):
    with small_disk(tmp_path / "disk", 4) as disk:
        run = RunFolder(disk, "run")
        run.create()
        save(run, sample(1))
        with pytest.raises(
            RunFailed, match=r"step-000000002 .*the disk is full .*checkpoints written before are"
        ):
            save(run, sample(2, w=torch.zeros(4 << 20)))
        assert folders(run) == ["step-000000001"] and load(latest(run)).step == 1
        save(run, sample(2))


def test_a_disk_that_fails_midway(run):
    save(run, sample(1))
    for size in (100, 3000, 5000):
        with file_size_limit(size), pytest.raises(RunFailed, match="step-000000002"):
            save(run, sample(2, w=torch.zeros(100_000)))
        assert folders(run) == ["step-000000001"]


def test_s3_and_resume_on_another_machine(monkeypatch, tmp_path):
    with s3_server() as query:
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "first"))
        here = RunFolder(f"s3://bucket/runs{query}", "run")
        here.create()
        for step in (1, 2, 3, 4):
            here.append_row("metrics.jsonl", {"step": step})
            save(here, sample(step), best=step == 1)
        save(here, sample(4), best=False)
        here.store.delete("checkpoints/step-000000003/manifest.json")  # as if killed while deleting it
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "second"))
        there = RunFolder(f"s3://bucket/runs{query}", "run")
        there.pull()
        assert [e.step for e in entries(there)] == [1, 4] and best(there).step == 1
        assert load(latest(there)).tensors["weights"]["w"].unique().tolist() == [4.0]
        assert there.read_rows("metrics.jsonl")[-1] == {"step": 4}
        save(there, sample(5))
        here.pull()
        assert [e.step for e in entries(here)] == [1, 4, 5]
        (latest(here).path / "state.json").unlink()
        with pytest.raises(
            BadInput, match=r"^Checkpoint s3://bucket/runs/run/checkpoints/step-000000005 is damaged"
        ):
            load(latest(here))


def test_identity_names_what_differs():
    wanted = identity(get("mnist", "quick"))
    config = flatten(override(get("mnist", "quick"), {"name": "x", "workers": 3, "checkpoint.keep": 9}))
    check_identity(config, wanted)
    check_identity(json.loads(json.dumps(config)), wanted)
    with pytest.raises(
        BadInput, match=r"Run 'a' .*\(lr was 0\.5, now .*; seed was 7, now 0\); .*another --name"
    ):
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
