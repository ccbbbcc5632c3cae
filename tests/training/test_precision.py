"""--precision auto: bf16 only where it is computed, decided once, and the run's from then on."""

from __future__ import annotations

import pytest
import torch
from helpers import JOBS, PRESETS, python, rows, tiny

import crayon as library
from crayon.config.names import identity
from crayon.config.settings import Experiment
from crayon.errors import BadInput, Stopped
from crayon.report.events import Event, Message, Started
from crayon.system.host import arithmetic, computes_bf16
from crayon.system.runfolder import RunFolder
from crayon.tasks.jobs import get
from crayon.training import checkpoint, worker

CPU = torch.device("cpu")
HAS = torch.cpu.get_capabilities()
NATIVE = bool(HAS.get("avx512_bf16") or HAS.get("amx_bf16"))


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)


def train(config: Experiment, **options) -> RunFolder:
    run = RunFolder(config.storage, str(config.name))
    run.create()
    assert worker.run_worker(config, run, measure=False, **options) is None
    assert not (run.path / "result.json").exists()
    return run


def recorded(run: RunFolder) -> set[str]:
    """What the newest checkpoint and config.json say."""
    saved = checkpoint.load(checkpoint.latest(run)).config
    return {found["precision"] for found in (saved, run.read_json("config.json"))}


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_bf16_is_computed_where_the_processor_has_it_and_no_limit_keeps_onednn_from_it(monkeypatch, variable):
    assert not computes_bf16(torch.device("meta"))
    for limit in ("AVX2", "avx2_vnni", "AVX512_CORE", "avx512_core_vnni", "SSE41"):
        monkeypatch.setenv(variable, limit)
        assert not computes_bf16(CPU)
    for limit in ("", "AVX512_CORE_BF16", "AVX512_CORE_AMX", "DEFAULT", "no such one"):
        monkeypatch.setenv(variable, limit)
        assert computes_bf16(CPU) == NATIVE
    assert [arithmetic(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.skipif(not NATIVE, reason="this processor has no instructions for bf16 to do without")
def test_the_limits_are_those_that_keep_onednn_from_bf16_instructions():
    """oneDNN tells which implementation it runs."""
    code = """
import torch
x, w = torch.randn(8, 16, 16, 16).bfloat16(), torch.randn(16, 16, 3, 3).bfloat16()
torch.nn.functional.conv2d(x, w, padding=1)
"""
    limits = {"AVX512_CORE_VNNI": False, "AVX512_CORE_AMX": True}
    processes = [python(code, ONEDNN_MAX_CPU_ISA=limit, ONEDNN_VERBOSE="1") for limit in limits]
    for process, uses in zip(processes, limits.values(), strict=True):
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        executed = [line for line in out.splitlines() if ",exec," in line and "convolution" in line]
        instructions = {line.split(",")[6].partition(":")[2] for line in executed}  # jit_bf16:avx512_core
        assert instructions and all("bf16" in name or "amx" in name for name in instructions) == uses


@pytest.mark.parametrize("first, second", [("AVX2", ""), ("", "AVX2")])
def test_auto_is_decided_by_the_processor_and_kept_by_a_resumed_run(monkeypatch, tmp_path, first, second):
    """On another machine, too; and the same command may go on with it."""
    assert {get(job, preset).precision for job in JOBS for preset in PRESETS} == {"auto"}
    begun = "bf16" if NATIVE and not first else "fp32"
    config = tiny("mnist", precision="auto", storage=str(tmp_path), name="r")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", first)
    with pytest.raises(Stopped):
        train(config, should_stop=(tmp_path / "r" / "metrics.jsonl").exists)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", second)
    events: list[Event] = []
    run = train(config, emit=events.append)
    assert recorded(run) == {begun}
    assert [e.precision for e in events if isinstance(e, Started)] == [begun]
    assert len(rows(tmp_path / "r")) == config.epochs
    told = [e for e in events if isinstance(e, Message) and e.warning and "emulated" in e.text]
    assert bool(told) == (begun == "bf16" and second == "AVX2")
    saved = checkpoint.load(checkpoint.latest(run)).config
    checkpoint.check_identity(saved, identity(config))
    other = "fp32" if begun == "bf16" else "bf16"
    with pytest.raises(BadInput, match=f"precision was {begun}, now {other}"):
        checkpoint.check_identity(saved, identity(tiny("mnist", precision=other)))


def test_a_model_of_bf16_is_used_in_fp32_where_that_would_be_emulated(monkeypatch, tmp_path):
    train(tiny("mnist", precision="bf16", epochs=1, storage=str(tmp_path), name="r"))
    assert library.load(str(tmp_path / "r"), device="cpu").precision == ("bf16" if NATIVE else "fp32")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    emulated = library.load(str(tmp_path / "r"), device="cpu")
    images = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
    train(tiny("mnist", precision="fp32", epochs=1, storage=str(tmp_path), name="s"))
    exact = library.load(str(tmp_path / "s"), device="cpu")
    exact.networks.load_state_dict(emulated.networks.state_dict())
    assert torch.equal(emulated.classify(images), exact.classify(images))
