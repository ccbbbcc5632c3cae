"""The cluster files fit Ray's own schema, agree with each other and with the package, and open nothing to the world."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from crayon.system.host import DISTRIBUTION

ROOT = Path(__file__).parents[2]
CLOUDS = ["aws", "gcp", "azure"]
FILES = [*CLOUDS, "onprem"]


def text(name: str) -> str:
    return (ROOT / "cluster" / f"{name}.yaml").read_text()


def load(name: str) -> dict:
    """As a user would have filled it in."""
    filled, address = text(name), iter(range(1, 99))
    filled = re.sub(r"<10\.0\.0\.\d>", lambda found: found[0][1:-1], filled)
    return yaml.safe_load(re.sub(r"<[^<>\n]+>", lambda _: f"x{next(address)}", filled))


def commands(config: dict) -> list[str]:
    return [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]


def flags_of_ray_start() -> set[str]:
    from ray.scripts.scripts import start

    return {flag for parameter in start.params for flag in [*parameter.opts, *parameter.secondary_opts]}


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file_and_its_commands(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load(name))
    validate_config(config)
    assert config["cluster_name"] == "crayon"
    found = [line.rpartition("ray start")[2] for line in commands(load(name)) if "ray start" in line]
    assert len(found) == 2
    for line in found:
        flags = {word.partition("=")[0] for word in shlex.split(line) if word.startswith("--")}
        assert flags and flags <= flags_of_ray_start()


@pytest.mark.parametrize("name", FILES)
def test_nothing_listens_or_is_reached_without_asking(name):
    config = load(name)
    head = next(line for line in commands(config) if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_AUTH_MODE=token" in text(name)
    assert any(remote.endswith("/.ray/auth_token") for remote in config["file_mounts"])
    assert "0.0.0.0" not in text(name)
    for secret in ("WANDB_API_KEY", "AWS_SECRET", "password", "AccountKey"):
        assert secret not in text(name)


@pytest.mark.parametrize("name", CLOUDS)
def test_versions_agree(name):
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    needs = map(Requirement, metadata.requires(DISTRIBUTION))
    wanted = next(need.specifier for need in needs if need.name == "ray")
    ray, python = re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d+)-gpu", load(name)["docker"]["image"]).groups()
    assert Version(ray) in wanted
    assert Version(f"{python[0]}.{python[1:]}") in SpecifierSet(
        metadata.metadata(DISTRIBUTION)["Requires-Python"]
    )
    assert load(name)["docker"]["image"] == load("aws")["docker"]["image"]


@pytest.mark.parametrize("name", CLOUDS)
def test_gpus_are_on_spot_come_when_asked_for_and_go_when_idle(name):
    config = load(name)
    head, gpu = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert config["head_node_type"] == "head" and head["resources"]["CPU"] == 0
    assert gpu["min_workers"] == 0 and gpu["max_workers"] > 0 and gpu["resources"]["GPU"] > 0
    assert 0 < config["idle_timeout_minutes"] <= 15
    assert config["provider"]["cache_stopped_nodes"] is False
    spot = {
        "aws": lambda node: node["InstanceMarketOptions"]["MarketType"] == "spot",
        "gcp": lambda node: node["scheduling"]["provisioningModel"] == "SPOT",
        "azure": lambda node: node["azure_arm_parameters"]["priority"] == "Spot",
    }[name]
    assert spot(gpu["node_config"])
    with pytest.raises(KeyError):
        spot(head["node_config"])


def test_skypilots_file_starts_ray_as_the_others_do():
    config = load("sky")
    started = [line.split() for line in config["run"].splitlines() if "ray start" in line]
    assert len(started) == 2 and started[0][:4] == ["ray", "start", "--head", "--port=6379"]
    for line in started:
        flags = {word.partition("=")[0] for word in line if word.startswith("--")}
        assert flags <= flags_of_ray_start()
    assert "--dashboard-host=127.0.0.1" in started[0]
    assert config["envs"]["RAY_AUTH_MODE"] == "token" and "~/.ray/auth_token" in config["file_mounts"]
    image = load("aws")["docker"]["image"]
    assert f"ray=={re.search(r':([0-9.]+)-', image)[1]}" in config["setup"]
    assert subprocess.run(["bash", "-n"], input=config["setup"] + config["run"], text=True).returncode == 0


@pytest.mark.skipif(
    not shutil.which("uv") or not (ROOT / "uv.lock").exists(), reason="uv's lock file, which uv makes"
)
def test_the_versions_here_are_written_down_without_hosts(tmp_path):
    """By the command in cluster/README.md, with which driver and nodes agree."""
    line = re.search(r"^ *uv export .*$", (ROOT / "cluster/README.md").read_text(), re.MULTILINE)[0]
    command = [*shlex.split(line), "--frozen", "--offline"]
    command[command.index("constraints.txt")] = str(tmp_path / "constraints.txt")
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    written = (tmp_path / "constraints.txt").read_text()
    assert "://" not in written and "pytest" not in written
    pins = [Requirement(line) for line in written.splitlines()]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert {"ray", "torch", "numpy"} <= {pin.name for pin in here}
    assert all(re.fullmatch(r"==[^=]+", str(pin.specifier)) for pin in here)
