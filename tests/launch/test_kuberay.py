"""The files for KubeRay fit its custom resources, agree with the others, and open nothing to the world."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from test_cluster_files import ROOT, flags_of_ray_start, load

FOLDER = ROOT / "cluster/kuberay"
SCHEMA = yaml.safe_load((Path(__file__).parents[1] / "kuberay.schema.yaml").read_text())
CLUSTERS = ["raycluster", "rayjob"]
FILES = [*CLUSTERS, "networkpolicy"]


def read(name: str) -> dict:
    """As a user would have filled it in."""
    text = (FOLDER / f"{name}.yaml").read_text()
    return yaml.safe_load(re.sub(r"<[^<>\n]+>", "filled", text))


def cluster(name: str) -> dict:
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


PLAIN = ("RAY_USAGE_STATS_ENABLED", "RAY_JOB_STOP_WAIT_TIME_S", "RAY_worker_register_timeout_seconds")
"""What isn't a secret."""


def groups(name: str) -> list[dict]:
    return [cluster(name)["headGroupSpec"], *cluster(name)["workerGroupSpecs"]]


def templates(name: str) -> list[dict]:
    submitter = read(name)["spec"].get("submitterPodTemplate")
    return [*(group["template"] for group in groups(name)), *([submitter] if submitter else [])]


def containers(name: str) -> list[dict]:
    return [container for template in templates(name) for container in template["spec"]["containers"]]


@pytest.mark.parametrize("name", FILES)
def test_kuberay_knows_every_field(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(read(name), SCHEMA)


def test_a_misspelt_field_is_found():
    config = read("raycluster")
    config["spec"]["workerGroupSpecs"][0]["idleTimeoutSecond"] = 60
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, SCHEMA)


@pytest.mark.parametrize("name", CLUSTERS)
def test_flags_and_versions_are_those_of_the_other_files(name):
    for group in groups(name):
        assert {f"--{parameter}" for parameter in group["rayStartParams"]} <= flags_of_ray_start()
    image = load("aws")["docker"]["image"]
    assert {container["image"] for container in containers(name)} == {image}
    assert cluster(name)["rayVersion"] == image.partition(":")[2].partition("-")[0]


def test_the_job_trains_with_the_ray_of_its_image():
    from crayon.cli.flags import parse

    spec = read("rayjob")["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["uv", "run"] and f"ray=={spec['rayClusterSpec']['rayVersion']}" in words
    script = next(word for word in words if word.endswith(".py"))
    assert (ROOT / script).exists()
    config = parse(Path(script).stem, words[words.index(script) + 1 :], script)
    assert config.name and "://" in config.storage
    workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    assert config.workers == workers["replicas"] == workers["maxReplicas"]


def test_the_job_leaves_nothing_running_and_finds_its_code():
    spec = read("rayjob")["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] <= 600
    assert spec["backoffLimit"] == 1  # each is a whole cluster, for a mistake in the command too
    code = Path(yaml.safe_load(spec["runtimeEnvYAML"])["working_dir"])
    pod = spec["submitterPodTemplate"]["spec"]
    assert str(code.parent) in [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    # The command that makes the archive is in the README.
    made = f"--from-file={code.name}"
    config_map = pod["volumes"][0]["configMap"]["name"]
    assert f"kubectl create configmap {config_map} {made}" in (ROOT / "cluster/README.md").read_text()


@pytest.mark.parametrize("name", CLUSTERS)
def test_nothing_listens_or_is_reached_without_asking(name):
    assert cluster(name)["authOptions"] == {"mode": "token"}
    assert "serviceType" not in cluster(name)["headGroupSpec"]  # a ClusterIP, reached from inside alone
    host = groups(name)[0]["rayStartParams"]["dashboard-host"]
    assert host == ("127.0.0.1" if name == "raycluster" else "0.0.0.0")
    policy = read("networkpolicy")["spec"]
    for template in templates(name):
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    for container in containers(name):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        for variable in container.get("env", ()):
            assert "valueFrom" in variable or variable["name"] in PLAIN


@pytest.mark.parametrize("name", CLUSTERS)
def test_gpus_are_on_spot_come_when_asked_for_and_go_when_idle(name):
    config = cluster(name)
    head, gpu = groups(name)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert config["enableInTreeAutoscaling"] and config["autoscalerOptions"]["version"] == "v2"
    assert 0 < config["autoscalerOptions"]["idleTimeoutSeconds"] <= 900
    assert gpu["minReplicas"] == 0 < gpu["maxReplicas"]
    one, pod = "nvidia.com/gpu", gpu["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"][one] == "1"
    assert one not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert pod["nodeSelector"] and {one, *pod["nodeSelector"]} == {t["key"] for t in pod["tolerations"]}
    assert "nodeSelector" not in head["template"]["spec"]
    for container in containers(name):
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
