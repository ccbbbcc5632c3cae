"""Cluster files, as the doctor reads them."""

from __future__ import annotations

import re
import sys

import pytest
from examined import by_name
from test_cluster_files import FILES, text

from crayon.ops.doctor import clusterfile
from crayon.ops.doctor.findings import Finding


def filled(name: str) -> str:
    return re.sub(r"<[^<>\n]+>", "10.0.0.7", text(name))


@pytest.mark.parametrize("name", FILES)
def test_our_cluster_files_lack_only_what_the_user_fills_in(name):
    left = by_name(clusterfile.check(text(name)))
    assert "line" in left["placeholders"].text and left["placeholders"].state == "error"
    found = by_name(clusterfile.check(filled(name)))
    assert {n for n, f in found.items() if f.state in ("error", "warning")} <= {"image"}
    assert found["image"].state in ("ok", "note") or "-py311" in found["image"].text


def test_what_the_run_would_not_take_is_found():
    aws = filled("aws")

    def one(name: str, changed: str) -> Finding:
        assert changed != aws
        return by_name(clusterfile.check(changed))[name]

    assert one("file", aws.replace("provider:", "provider: [")).state == "error"
    assert one("file", "just: this\n").state == "error"
    assert one("image", aws.replace("2.60.0-py311", "2.9.0-py39")).state == "error"
    assert one("image", aws.replace("2.60.0-py311-gpu", "latest")).state == "warning"
    assert one("token in file", aws.replace("RAY_AUTH_MODE=token", "A=b")).state == "warning"
    assert one("placeholders", aws + "# <not this>\n").state == "ok"
    assert "<this> (line 1)" in one("placeholders", f"a: <this>\n{aws}").text


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
    assert "RayCluster" in found["file"].text
    found = by_name(clusterfile.check(kube.replace("IMAGE", "2.40.0-py311")))
    assert found["image"].state == "error"
