"""Cluster files, as the doctor reads them."""

from __future__ import annotations

import re

import pytest
from examined import by_name
from test_cluster_files import FILES, text

from crayon.ops.doctor import clusterfile


def filled(name: str) -> str:
    return re.sub(r"<[^<>\n]+>", "10.0.0.7", text(name))


@pytest.mark.parametrize("name", [*FILES, "sky", "kuberay/raycluster", "kuberay/rayjob"])
def test_our_cluster_files_lack_only_what_the_user_fills_in(name):
    left = by_name(clusterfile.check(text(name)))
    assert "line" in left["placeholders"].text and left["placeholders"].state == "error"
    found = by_name(clusterfile.check(filled(name)))
    assert {n for n, f in found.items() if f.state in ("error", "warning")} <= {"image"}
    assert found["image"].state in ("ok", "note") or "-py311" in found["image"].text
    kind = "SkyPilot: task crayon" if name == "sky" else "ray up: cluster crayon"
    assert ("KubeRay: Ray" if "/" in name else kind) in found["file"].text


@pytest.mark.parametrize("file", ["aws", "kuberay/raycluster"])
@pytest.mark.parametrize(
    ("before", "after", "name", "state", "words"),
    [
        (r"\Z", "\n[", "file", "error", "can't be parsed"),
        (r"(?s)\A.+", "just: this", "file", "error", "neither for ray up"),
        ("2.60.0-py311", "2.9.0-py39", "image", "error", "is not of Ray"),
        ("2.60.0-py311", "2.60.0-py39", "image", "error", "is not of Ray"),
        ("2.60.0-py311-gpu", "latest", "image", "warning", "doesn't say"),
        ("rayproject/ray:", "mine:", "image", "note", "can't be told"),
        ("RAY_AUTH_MODE=token|authOptions", "other", "token in file", "warning", "no RAY_AUTH_MODE=token"),
        (r"\Z", "\n# <not this>", "placeholders", "ok", "none left"),
        (r"\A", "a: <this>\n", "placeholders", "error", "<this> (line 1)"),
    ],
)
def test_what_the_run_would_not_take_is_found(file, before, after, name, state, words):
    found = by_name(clusterfile.check(re.sub(before, after, filled(file))))[name]
    assert found.state == state and words in found.text
