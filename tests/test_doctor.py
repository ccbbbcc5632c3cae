"""The doctor finds what is really wrong, says how to mend it, shows no secret and leaves nothing behind."""

from __future__ import annotations

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from disks import s3_server, small_disk
from helpers import kill_with_family, tiny
from test_cluster_files import FILES, text
from test_sweep_node import two_nodes

from crayon import cli
from crayon.config import override
from crayon.doctor import clusterfile, joined, login, machine, network, node, storage, upload
from crayon.doctor.findings import Finding, Pending

CANARY = "c0ffee00" * 5
"""Looks like a W&B key. No output may contain it."""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home of its own, in which nobody is logged in."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def by_name(findings) -> dict[str, Finding]:
    found = {f.name: f for f in findings}
    assert all(f.mend for f in found.values() if f.state == "error")
    return found


def facts(**changes) -> dict:
    """This machine's versions, without the processes that `node.facts` starts."""
    found = {
        "host": "here",
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": node.versions(),
        "cores": 2,
        "torch": {"cuda": "12.8", "nccl": "2.27.3", "gpus": []},
        "driver": {"version": None, "gpus": []},
        "listeners": [],
        "wandb": {"key": None, "url": "http://127.0.0.1:9"},
    }
    return found | changes


def on_node(number: int = 1, gpus: float = 0, **changes) -> dict:
    return {
        "id": f"{number}" * 56,
        "address": f"10.0.0.{number}",
        "cpus": 2.0,
        "gpus": gpus,
        "head": number == 1,
        "facts": facts(host=f"node{number}", **changes),
    }


def packages(**changes) -> dict:
    return {"packages": node.versions() | changes}


# Versions and GPUs.


def test_versions_here_are_compared_with_pyproject():
    assert [f.state for f in machine.versions(facts())] == ["ok"]
    wrong = by_name(machine.versions(facts(python="3.9.1", **packages(ray="2.40.0", optuna=None))))["here"]
    assert wrong.state == "error"
    for word in ("Python >=3.10", "ray<2.61,>=2.60", "optuna<6,>=4.5"):
        assert word in wrong.text


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "ok", "the same versions"),
        (packages(ray="2.55.0"), "error", "ray 2.55.0 (here "),
        (packages(crayon=None), "error", "crayon is not installed"),
        (packages(wandb=None), "error", "wandb missing"),
        ({"python": "3.11.99"}, "error", "Python 3.11.99"),
        (packages(numpy="2.0.0"), "warning", "numpy 2.0.0"),
        ({"failed": "no answer"}, "error", "no answer"),
    ],
)
def test_versions_of_a_node_are_compared_with_here(changes, state, words):
    found = by_name(machine.versions(facts(), [on_node(**changes)]))["10.0.0.1 111111"]
    assert found.state == state
    assert words in found.text


def test_nodes_that_compute_together_need_one_torch_and_one_nccl():
    gpu = {"cuda": "12.8", "nccl": "2.27.3", "gpus": ["H100"]}
    nodes = [on_node(1, torch=gpu), on_node(2, torch=gpu | {"nccl": "2.21.5"}, **packages(torch="2.10.0"))]
    found = by_name(machine.versions(facts(), nodes))
    assert "2.21.5, 2.27.3" in found["NCCL on nodes"].text
    assert found["torch on nodes"].state == "error"


@pytest.mark.parametrize(
    ("ray", "gpus", "driver", "state", "words"),
    [
        (0, [], {"version": None, "gpus": []}, "note", "no GPU"),
        (2, ["H100"] * 2, {"version": "570.1", "gpus": ["H100"] * 2}, "ok", "2 x H100"),
        (0, [], {"version": "570.1", "gpus": ["H100"]}, "error", "sees none"),
        (1, ["H100"] * 2, {"version": "570.1", "gpus": ["H100"] * 2}, "warning", "Ray counts 1"),
        (1, [], {"version": None, "gpus": []}, "error", "Ray counts 1"),
        (0, [], {"version": None, "gpus": [], "failed": "no devices"}, "warning", "nvidia-smi fails"),
    ],
)
def test_gpus_are_a_fact_and_only_disagreement_is_wrong(ray, gpus, driver, state, words):
    torch = {"cuda": "12.8", "nccl": "2.27.3", "gpus": gpus}
    found = by_name(machine.gpus(facts(), [on_node(gpus=ray, torch=torch, driver=driver)]))
    assert found["10.0.0.1 111111"].state == state
    assert words in found["10.0.0.1 111111"].text


# Network.


def test_a_port_that_is_taken_is_named_with_its_holder():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {port: ("the dashboard's", "--dashboard-port")}
        found = network.free_ports(ports)
        assert found.state == "warning"
        assert str(port) in found.text and f"process {os.getpid()}" in found.text
        assert "--dashboard-port" in found.mend
    assert network.free_ports(ports).state == "ok"


@pytest.mark.parametrize(
    ("address", "mode", "state"),
    [
        ("0.0.0.0", "disabled", "warning"),
        ("0.0.0.0", "token", "note"),
        ("127.0.0.1", "disabled", "ok"),
    ],
)
def test_what_ray_listens_on_is_found_and_whether_it_asks_for_the_token(tmp_path, address, mode, state):
    (tmp_path / "gcs_server").symlink_to(os.path.realpath(sys.executable))
    code = (
        f"import socket, sys; server = socket.create_server(('{address}', 0))\n"
        "print(server.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [tmp_path / "gcs_server", "-I", "-c", code],
        env=os.environ | {"RAY_AUTH_MODE": mode, "PYTHONHOME": sys.base_prefix},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        port = int(server.stdout.readline())
        mine = [entry for entry in node.listeners() if entry[2] == port]
        server.stdin.close()
    assert mine == [["GCS", address, port, mode == "token"]]
    assert by_name(network.exposed(facts(listeners=mine)))["ports here"].state == state


def test_the_token_is_not_shown_and_others_must_not_read_it(home, monkeypatch):
    assert network.token().state == "note"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert network.token().state == "error"
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text(CANARY)
    path.chmod(0o644)
    found = network.token()
    assert found.state == "warning" and "0644" in found.text and found.mend == "chmod 600 ~/.ray/auth_token"
    path.chmod(0o600)
    assert network.token().state == "ok"
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert network.token().mend == "export RAY_AUTH_MODE=token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert network.token().state == "warning"
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN", CANARY)
    assert CANARY not in str(network.token())


@pytest.mark.parametrize(
    ("status", "state", "words"), [(200, "note", "no token"), (401, "ok", "the token"), (404, "error", "404")]
)
def test_the_job_server_is_asked_whether_it_asks_for_the_token(monkeypatch, status, state, words):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *ignored):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{server.server_port}")
        found = by_name(network.dashboard(""))["job server"]
        server.shutdown()
    assert found.state == state and words in found.text
    assert by_name(network.dashboard(""))["job server"].state == "error"  # nothing listens any more


def test_a_dashboard_on_loopback_is_well_and_another_a_warning(home):
    assert by_name(network.dashboard("127.0.0.1:8265"))["dashboard"].state == "ok"
    assert by_name(network.dashboard("10.0.0.1:8265"))["dashboard"].state == "warning"


# Storage and disk.


def test_the_storage_is_tried_and_left_as_it_was(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    name, here = storage.probe_names()
    seen = storage.from_here(str(tmp_path / "a" / "runs"), name, here)
    assert seen["seen"] == [here] and seen["free"] > 0
    assert storage.writable("runs", seen).state == "ok"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_storage_that_cant_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for place, words in ((tmp_path / "file", "a file is in the way"), (Path("/dev/full"), "/dev/full")):
        seen = storage.from_here(str(place), *storage.probe_names())
        found = by_name([storage.writable(str(place), seen)])["here"]
        assert found.state == "error" and words in found.text


def test_a_disk_that_is_full_or_too_small_is_an_error(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        seen = storage.from_here(str(disk), *storage.probe_names())
        found = by_name([storage.room(str(disk), seen, {}, "gan", "full")])["disk"]
        assert found.state == "error" and "gan --preset full" in found.text
        with (disk / "much").open("wb") as file, pytest.raises(OSError):
            while True:
                file.write(bytes(65536))
                file.flush()
        seen = storage.from_here(str(disk), *storage.probe_names())
        assert "full" in by_name([storage.writable(str(disk), seen)])["here"].text
        assert [p.name for p in disk.iterdir()] == ["much"]


def test_a_bucket_is_tried_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path))
    from pyarrow.fs import FileSelector, FileSystem

    with s3_server() as query:
        name, here = storage.probe_names()
        seen = storage.from_here(f"s3://bucket/runs{query}", name, here)
        fs, path = FileSystem.from_uri(f"s3://bucket{query}")
        left = [f.path for f in fs.get_file_info(FileSelector(path, recursive=True))]
        missing = storage.from_here(f"s3://nobucket/runs{query}", name, here)
    assert seen["seen"] == [here] and not any(name in path for path in left)
    assert list(tmp_path.iterdir()) == []
    found = storage.writable("s3://nobucket/runs", missing)
    assert found.state == "error" and "s3://nobucket/runs" in found.text


def test_nodes_must_see_the_same_storage(tmp_path):
    nodes = [on_node(1), on_node(2), on_node(3), on_node(4)]
    good = {"seen": ["driver"], "seen_here": True, "free": 10, "made": []}
    seen = [good, good | {"seen": []}, good | {"seen_here": False}, {"failed": "it can't be written"}]
    found = by_name(
        storage.shared(str(tmp_path), nodes, {n["id"]: s for n, s in zip(nodes, seen, strict=True)})
    )
    assert found["shared"].state == "ok" and "1 node " in found["shared"].text
    assert [f.state for f in found.values()].count("error") == 3


def test_the_forecast_is_the_size_of_a_real_checkpoint(tmp_path):
    from crayon import launch

    config = tiny("mnist", epochs=1, name="run", storage=str(tmp_path), model__width=32, data__size=64)
    launch.train(config, emit=lambda event: None, started=time.time())
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    real = sum(p.stat().st_size for p in newest.glob("*.safetensors"))
    assert storage.checkpoint_bytes(config) == pytest.approx(real, rel=0.1)
    weights = (newest / "weights.safetensors").stat().st_size
    without = storage.checkpoint_bytes(override(config, {"optim.ema_images": 0.0}))
    assert without == pytest.approx(real - weights, rel=0.1)


# Upload.


def big(path: Path, megabytes: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(int(megabytes * 2**20))


def test_the_upload_is_what_ray_packs(tmp_path):
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    for name in (
        "a.py",
        "sub/b.bin",
        "sub/no.log",
        "runs/x",
        ".git/objects/o",
        ".venv/c",
        "kept/d",
        "deep/e/f.tmp",
    ):
        big(tmp_path / "w" / name, 0.1)
    (tmp_path / "w" / ".gitignore").write_text("runs/\n*.log\n")
    (tmp_path / "w" / "deep" / ".rayignore").write_text("*.tmp\n")
    create_package(
        str(tmp_path / "w"),
        tmp_path / "p.zip",
        include_gitignore=True,
        excludes=get_runtime_env_default_excludes(),
    )
    with zipfile.ZipFile(tmp_path / "p.zip") as package:
        packed = {(i.file_size, i.filename) for i in package.infolist() if not i.is_dir()}
    found, whole = upload.list_files(tmp_path / "w")
    assert whole and set(found) == packed
    assert {name for _, name in found} == {"a.py", "sub/b.bin", "kept/d", ".gitignore", "deep/.rayignore"}


def test_a_large_upload_names_its_largest_files(tmp_path):
    big(tmp_path / "data" / "faces.npz", 30)
    assert upload.working_dir(tmp_path / "nowhere").state == "ok"
    found = upload.working_dir(tmp_path)
    assert found.state == "warning" and "data/faces.npz (30 MiB)" in found.text and ".rayignore" in found.mend
    big(tmp_path / "more.bin", 600)
    found = upload.working_dir(tmp_path)
    assert found.state == "error" and "more.bin (600 MiB)" in found.text
    (tmp_path / ".rayignore").write_text("*.bin\ndata/\n")
    assert upload.working_dir(tmp_path).state == "ok"


def test_this_repository_is_a_small_upload():
    root = Path(__file__).parents[1]
    if (root / "pyproject.toml").exists():
        assert not any(
            name.startswith(("benchmarks/pictures", ".git/")) for _, name in upload.list_files(root)[0]
        )


# W&B.


def test_where_the_key_is_is_told_and_never_the_key(home, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert node.answer(node.wandb_process())["key"] is None
    (home / ".netrc").write_text(f"machine 127.0.0.1 login user password {CANARY}\n")
    asked = node.answer(node.wandb_process())
    assert asked["key"] == "~/.netrc" and CANARY not in str(asked)
    assert sorted(p.name for p in home.iterdir()) == [".netrc"]
    found = by_name(login.wandb(facts(wandb=asked), [on_node()]))
    assert found["W&B"].state == "warning" and "does not answer" in found["W&B"].text  # nothing listens there
    assert "10.0.0.1" in found["W&B on nodes"].text
    assert "not logged in" in by_name(login.wandb(facts()))["W&B"].text
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert by_name(login.wandb(facts(wandb=asked)))["W&B"].state == "note"


# Cluster files.


def filled(name: str) -> str:
    return re.sub(r"<[^<>\n]+>", "10.0.0.7", text(name))


@pytest.mark.parametrize("name", FILES)
def test_our_cluster_files_lack_only_what_the_user_fills_in(name, home, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    left = by_name(clusterfile.check(text(name)))
    assert "line" in left["placeholders"].text and left["placeholders"].state == "error"
    found = by_name(clusterfile.check(filled(name)))
    assert {n for n, f in found.items() if f.state in ("error", "warning")} <= {"files", "image"}
    assert found["image"].state in ("ok", "note") or "-py311" in found["image"].text
    assert "~/.ray/auth_token" in found["files"].text  # which a new home has not
    assert "pyproject" not in found["files"].text
    monkeypatch.chdir("tests")
    if name != "onprem":
        assert "pyproject" in str(list(clusterfile.check(filled(name))))


@pytest.mark.parametrize(
    "line",
    [
        f"wandb_api_key: {CANARY}",
        f"run_options: ['--env WANDB_API_KEY={CANARY}']",
        "setup_commands: ['export HF_TOKEN=hunter2hunter2']",
        f"# my key is {CANARY}",
        "x: AKIAABCDEFGHIJKLMNOP",
        "y: hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "auth: {password: hunter2}",
        "study: postgresql://me:hunter2@host/studies",
        "env: [{name: RAY_AUTH_TOKEN, value: 'hunter2hunter2'}]",
        "stringData: {anything: hunter2hunter2}",
    ],
)
def test_a_secret_in_the_file_is_found_and_not_repeated(line):
    found = list(clusterfile.check(f"{filled('onprem')}\n{line}\n"))
    assert by_name(found)["secrets"].state == "error"
    assert f"line {len(filled('onprem').splitlines()) + 2} (" in by_name(found)["secrets"].text
    for secret in (CANARY, "hunter2", "AKIAABC", "hf_abc"):
        assert secret not in str(found)


@pytest.mark.parametrize(
    "line",
    [
        "auth: {ssh_private_key: ~/.ssh/id_ed25519}",
        "setup_commands: ['export HF_TOKEN=$HF_TOKEN', 'RAY_AUTH_MODE=token ray start']",
        "env: [{name: WANDB_API_KEY, valueFrom: {secretKeyRef: {name: wandb, key: api-key-of-mine}}}]",
        "image: x@sha256:" + "0123456789abcdef" * 4,
        "tolerations: [{key: nvidia.com/gpu, operator: Exists}]",
        "MetadataOptions: {HttpTokens: required}",
    ],
)
def test_what_is_no_secret_is_left_in_peace(line):
    assert by_name(clusterfile.check(f"{filled('onprem')}\n{line}\n"))["secrets"].state == "ok"


def test_what_ray_would_refuse_or_should_be_otherwise_is_found():
    aws = filled("aws")

    def one(name: str, changed: str) -> Finding:
        assert changed != aws
        return by_name(clusterfile.check(changed))[name]

    assert one("file", aws + "\nnonsense: 1\n").state == "error"
    broken = one("file", aws.replace("max_workers: 8", f"max_workers: {CANARY}x", 1))
    assert broken.state == "error" and CANARY not in broken.text and "max_workers" in broken.text
    assert one("file", aws.replace("provider:", "provider: [")).state == "error"
    assert one("file", "just: this\n").state == "error"
    assert one("image", aws.replace("2.60.0-py311", "2.9.0-py39")).state == "error"
    assert one("image", aws.replace("2.60.0-py311-gpu", "latest")).state == "warning"
    assert one("dashboard host", aws.replace("host=127.0.0.1", "host=0.0.0.0")).state == "warning"
    assert one("token in file", aws.replace("RAY_AUTH_MODE=token", "A=b")).state == "warning"
    assert "on demand" in one("workers", aws.replace("MarketType: spot", "MarketType: other")).text
    assert "3 always run" in one("workers", aws.replace("min_workers: 0", "min_workers: 3")).text


KUBE = """
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: crayon}
spec:
  rayVersion: "2.60.0"
  authOptions: {mode: token}
  headGroupSpec:
    rayStartParams: {dashboard-host: 0.0.0.0}
    template: {spec: {containers: [{name: head, image: "rayproject/ray:IMAGE"}]}}
  workerGroupSpecs:
    - {groupName: gpu, replicas: 0, minReplicas: 0, maxReplicas: 4, rayStartParams: {},
       template: {spec: {containers: [{name: w, image: "rayproject/ray:IMAGE"}]}}}
"""


def test_a_kuberay_file_is_examined():
    import ray

    here = f"{ray.__version__}-py{sys.version_info[0]}{sys.version_info[1]}-gpu"
    kube = KUBE.replace("2.60.0", ray.__version__)
    found = by_name(clusterfile.check(kube.replace("IMAGE", here)))
    assert not [f for f in found.values() if f.state in ("error", "warning")]
    assert "0 to 4 pods" in found["workers"].text and "RayCluster" in found["file"].text
    found = by_name(clusterfile.check(kube.replace("IMAGE", "2.40.0-py311")))
    assert found["image"].state == found["rayVersion"].state == "error"


# The command.


def test_a_check_that_hangs_or_breaks_is_one_warning():
    hangs, breaks = Pending("slow", lambda: time.sleep(60), 0.2), Pending("broken", lambda: 1 / 0, 5)
    assert [f.state for f in hangs.findings()] == ["warning"] and hangs.late
    assert "ZeroDivisionError" in breaks.findings()[0].text


def test_a_cluster_that_takes_connections_and_says_nothing_is_given_up(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        report = joined.ask(str(tmp_path), *storage.probe_names(), join_seconds=1)
    assert "did not answer within 1 s" in report.failed and not report.nodes


@pytest.mark.parametrize(
    "arguments",
    [["nowhere.yaml"], ["."], ["--storag", "x"], ["--job", "x"], ["--storage", "ftp://x"], ["a", "b"]],
)
def test_bad_usage_is_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(None, ["doctor", *arguments])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(None, ["doctor", "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert all(word in out for word in ("crayon doctor [CLUSTER.yaml]", "--storage", "--job", "--preset"))
    assert "crayon doctor" in cli.overview()


def test_a_dead_cluster_is_one_error_and_the_rest_is_still_examined(home):
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {CANARY}\n")
    (home / "c.yaml").write_text(f"wandb_api_key: {CANARY}\n")
    here = sorted(home.iterdir())
    keys = {"WANDB_API_KEY": CANARY, "RAY_AUTH_TOKEN": CANARY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    end = subprocess.run(
        [sys.executable, "-m", "crayon.cli", "doctor", "c.yaml", "--job", "mnist"],
        env=os.environ | keys | {"RAY_ADDRESS": "127.0.0.1:9"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert end.returncode == 1 and end.stderr == "", end.stderr
    assert "\x1b" not in end.stdout and CANARY not in end.stdout
    lines = {
        line[9:31].strip(): line
        for line in end.stdout.splitlines()
        if re.match(r"(ok|note|warning|error) ", line)
    }
    assert lines["cluster"].startswith("error") and "127.0.0.1:9" in lines["cluster"]
    assert lines["disk"].startswith("ok") and "mnist" in lines["disk"]
    assert lines["W&B"].startswith("warning") and "WANDB_API_KEY" in lines["W&B"]
    assert lines["secrets"].startswith("error") and "line 1 (wandb_api_key)" in lines["secrets"]
    assert sorted(home.iterdir()) == here


NODE = """
import subprocess, sys
from ray.scripts.scripts import cli
address, private = sys.argv[1:]
if private:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", private], check=True)
cli(["start", f"--address={address}", "--num-cpus=1", f"--object-store-memory={80 * 2**20}", "--block"])
"""


@pytest.mark.faults
def test_a_cluster_is_asked_node_by_node(request, tmp_path):
    """Two nodes that see this machine's disk, and a third that has one of its own where the runs should go."""
    address, _ = request.getfixturevalue(two_nodes.__name__)
    runs = tmp_path / "runs"
    runs.mkdir()
    third = subprocess.Popen(
        ["unshare", "-m", sys.executable, "-c", NODE, address, str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"RAY_worker_niceness": "0", "RAY_ADDRESS": ""},
    )
    try:
        while (line := third.stdout.readline()) and "Ray runtime started" not in line:
            pass
        more = bool(line)  # else this user may not have a mount namespace
        end = subprocess.run(
            [sys.executable, "-m", "crayon.cli", "doctor", "--storage", str(runs), "--job", "mnist"],
            env=os.environ | {"RAY_ADDRESS": address, "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        if third.poll() is None:
            kill_with_family(third)
    out, nodes = end.stdout, 2 + more
    assert end.stderr == "" and end.returncode == int(more), out + end.stderr
    assert f"{nodes} nodes with {nodes} CPUs and 0 GPUs" in out
    assert len(re.findall(r"ok +[\d.]+ [0-9a-f]{6} +the same versions as here; 1 CPU", out)) == nodes
    assert len(re.findall(r"note +[\d.]+ [0-9a-f]{6} +no GPU", out)) == nodes
    assert "2 nodes and this machine see each other's files" in out
    assert len(re.findall(r"error +[\d.]+ [0-9a-f]{6} +\S+runs is not shared", out)) == int(more)
    assert list(tmp_path.rglob("*")) == [runs]
