"""Secrets stay where they belong, nothing listens beyond loopback, and nobody else reads what a run leaves."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from canary import AWS, NETRC, RAY, WANDB, Watch, in_bytes, in_folder
from helpers import flags, tiny

from crayon.cli import main as cli
from crayon.errors import BadInput
from crayon.launch import cluster, token
from crayon.system import secrets

ARGUMENTS = [
    (["--wandb-key", "hunter2"], "no option --wandb-key", "wandb login"),
    (["--aws.secret-access-key=hunter2"], "no option --aws.secret", "~/.aws/credentials"),
    (["--name", "WANDB_API_KEY=hunter2"], "--name holds a secret", "wandb login"),
    (["--storage", "s3://me:hunter2@bucket/runs"], "--storage holds a password", "~/.aws/"),
    (["--storage", "s3://bucket/runs?access_key=me&secret_key=hunter2"], "--storage holds", "~/.aws/"),
    (["--storage=gs://bucket?access_token=hunter2"], "--storage holds", "gcloud auth"),
    (["tune", "--study", "postgresql://me:hunter2@host/db"], "--study holds", "~/.pgpass"),
    (["tune", "--study", "mysql://me@host/db?password=hunter2"], "--study holds", ".my.cnf"),
]


@pytest.mark.parametrize(("words", "what", "home"), ARGUMENTS)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(capsys, words, what, home):
    with pytest.raises(SystemExit) as end:
        cli.main("mnist", words)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert what in err and home in err and "history" in err and "new one" in err
    assert "hunter2" not in out + err


HARMLESS = """9f8e7d6c9f8e7d6c9f8e7d6c9f8e7d6c9f8e7d6c token 0.1..0.9:log git+https://host:8080/project@v1
s3://bucket/runs?endpoint_override=localhost:9000&scheme=http postgresql://me@host/studies?sslmode=require"""
"""The first is as long as a key, and a commit's."""


@pytest.mark.parametrize("value", HARMLESS.split())
def test_what_has_no_secrets_name_passes(value):
    secrets.check_arguments(["--name", value, f"--name={value}", value])


def test_a_job_submitted_with_a_secret_is_refused(monkeypatch, capsys, tmp_path):
    for job, name in (
        ({"runtime_env": {"env_vars": {"WANDB_API_KEY": "hunter2"}}}, "WANDB_API_KEY"),
        ({"runtime_env": {"working_dir": "https://me:hunter2@host/x.zip"}}, "working_dir"),
        ({"runtime_env": {"pip": ["torch", "git+https://me:hunter2@host/x"]}}, "pip"),
        ({"metadata": {"ray_token": "hunter2"}}, "ray_token"),
    ):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
        for command in ([], ["tune"]):
            with pytest.raises(SystemExit) as end:
                cli.main("mnist", [*command, *flags(tiny("mnist", name="r", storage=str(tmp_path / "runs")))])
            err = capsys.readouterr().err
            assert end.value.code == 2 and name in err and "dashboard" in err and err.count("\n") == 1
            assert "hunter2" not in err
    assert not (tmp_path / "runs").exists()
    harmless = {"env_vars": {"WANDB_MODE": "offline", "GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json"}}
    for text in (json.dumps({"runtime_env": harmless}), "no json", "", '{"runtime_env": 3}'):
        secrets.check_job({"RAY_JOB_CONFIG_JSON_ENV_VAR": text})
    secrets.check_shown("it", harmless | {"pip": ["torch"], "working_dir": "gcs://_ray_pkg_0.zip"})


def test_the_search_finds_what_it_looks_for(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(f"x{AWS}".encode()))
    (tmp_path / "a.zip").write_bytes(packed.getvalue())
    (tmp_path / "b").write_bytes(b"\0" + NETRC.encode() + b"\0")
    (tmp_path / WANDB).mkdir()
    assert len(in_folder(tmp_path)) == 3
    for shift in range(3):
        assert in_bytes(base64.b64encode(b"x" * shift + RAY.encode() + b"tail"))
    assert not in_bytes(b"nothing")


@pytest.fixture
def place():
    """A short path: Ray's sockets lie under it."""
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as folder:
        yield Path(folder)


def start(place: Path, arguments: list[str], **env: str) -> tuple[subprocess.Popen[str], Watch]:
    """`crayon mnist` with its home and Ray's files in `place`, beside all the secrets."""
    home = place / "home"
    home.mkdir(exist_ok=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {NETRC}\n")
    (home / ".netrc").chmod(0o600)
    process = subprocess.Popen(
        [sys.executable, "-m", "crayon.cli", "mnist", *arguments],
        env=os.environ | {"HOME": str(home), "RAY_TMPDIR": str(place), "AWS_SECRET_ACCESS_KEY": AWS} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=0o022,
    )
    return process, Watch(process)


def ended(process: subprocess.Popen[str], watch: Watch) -> str:
    out = process.communicate(timeout=200)[0]
    watch.over.set()
    watch.join()
    assert process.returncode == 0, out
    return out


def open_to_others(folder: Path) -> list[str]:
    """What someone else could open under `folder`: what lies in a closed folder is closed too."""
    found = []
    for parent, folders, files in os.walk(folder):
        closed = [name for name in folders if not Path(parent, name).stat().st_mode & 0o077]
        folders[:] = [name for name in folders if name not in closed]
        found += [str(Path(parent, name)) for name in files]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(2, 1), pytest.param((1, 2), marks=pytest.mark.faults)])
def test_a_run_and_a_sweep_show_no_secret_and_listen_on_loopback_alone(place, workers):
    """A run with its key in the environment, and a sweep with it in ~/.netrc; `workers` of each."""
    how = {"storage": str(place / "runs"), "epochs": 1, "wandb": "offline"}
    run = flags(tiny("mnist", name="run", workers=workers[0], **how))
    trial = tiny("mnist", name="sweep", workers=workers[1], **how)
    search = ["tune", *flags(trial), "--trials", "1", "--concurrent", "1", "--ray.cpus-per-worker", "1"]
    outputs, watches = [], []
    for arguments, env in ((run, {"WANDB_API_KEY": WANDB, "RAY_AUTH_TOKEN": RAY}), (search, {})):
        process, watch = start(place, arguments, **env)
        outputs.append(ended(process, watch))
        watches.append(watch)
        assert watch.listening and not watch.beyond_loopback()
        assert any("raylet" in line for line in watch.told)
        assert not [line for line in watch.told if in_bytes(line.encode())]
    # It has reached the process that needs it.
    assert any("crayon.report.wandb" in line for line in watches[0].knew[WANDB])
    assert not in_bytes("".join(outputs).encode())
    assert list(place.glob("runs/run/wandb/offline-run-*/*.wandb"))
    assert list(place.glob("crayon-ray-*/ray/session_*/logs/raylet.out"))
    (place / "home/.netrc").unlink()
    assert in_folder(place) == []
    assert not (place / "home/.ray").exists()
    assert (place / "runs" / "run" / "checkpoints").is_dir() and (place / "runs" / "sweep" / "best").is_dir()
    assert open_to_others(place / "runs") == []
    assert not [path for path in open_to_others(place) if "crayon-ray" in path]


def test_a_scratch_folder_that_someone_else_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    made = cluster.scratch()
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o777)
    assert cluster.scratch().stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        os.chown(made, 12345, 12345)
        with pytest.raises(BadInput, match="someone else"):
            cluster.scratch()
    made.rename(tmp_path / "elsewhere")
    made.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="is a link"):
        cluster.scratch()
    made.unlink()
    made.write_text("")
    with pytest.raises(BadInput, match=made.name):
        cluster.scratch()


@pytest.mark.parametrize("mode", [None, 0o600, 0o644])
def test_our_own_clusters_token_is_known_to_this_user_alone(home, monkeypatch, mode):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    if mode:
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").touch()
        (home / ".ray/auth_token").chmod(mode)
    token.settle()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == (0 if mode == 0o600 else 64)
    assert (home / ".ray").exists() == bool(mode)
