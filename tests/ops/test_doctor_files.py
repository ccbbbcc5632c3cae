"""Cluster files, as the doctor reads them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from examined import CANARY, by_name
from test_cluster_files import FILES, text

from crayon.ops.doctor import clusterfile
from crayon.ops.doctor.findings import Finding


def filled(name: str) -> str:
    return re.sub(r"<[^<>\n]+>", "10.0.0.7", text(name))


@pytest.mark.parametrize("name", FILES)
def test_our_cluster_files_lack_only_what_the_user_fills_in(name, home, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
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
    for secret in (CANARY, "hunter2"):
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
        f"# the commit is {CANARY}",
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
