"""Tells Ray when a cloud is about to take this node away: python -m crayon.ops.preemption aws | gcp | azure

The cloud files start it on each spot node. A cloud says so in the instance's metadata only; Ray, once it is told, lets
runs save and move to other nodes. Standard library alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 2.0
METADATA = "http://169.254.169.254"
"""Where each of the three clouds answers its instances."""


def _get(url: str, method: str = "GET", **headers: str) -> str | None:
    """What is there; None where nothing is. Raises OSError where nobody answers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, None, named, method=method), timeout=5
        ) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def aws(metadata: str) -> bool:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""
    token = _get(f"{metadata}/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    notice = _get(f"{metadata}/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token or "")
    return notice is not None


def gcp(metadata: str) -> bool:
    """https://cloud.google.com/compute/docs/instances/spot#detecting-preemption"""
    return _get(f"{metadata}/computeMetadata/v1/instance/preempted", Metadata_Flavor="Google") == "TRUE"


def azure(metadata: str) -> bool:
    """https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events"""
    name = _get(
        f"{metadata}/metadata/instance/compute/name?api-version=2021-02-01&format=text", Metadata="true"
    )
    events = _get(f"{metadata}/metadata/scheduledevents?api-version=2020-07-01", Metadata="true") or "{}"
    found = json.loads(events).get("Events", [])
    return any(event["EventType"] == "Preempt" and name in event["Resources"] for event in found)


CLOUDS: dict[str, tuple[Callable[[str], bool], int]] = {
    "aws": (aws, 120),
    "gcp": (gcp, 30),
    "azure": (azure, 30),
}
"""Whether a notice is there, and how many seconds before the end it comes."""


def main(argv: list[str] | None = None) -> None:
    """Wait for the notice, and have the node drained."""
    parser = argparse.ArgumentParser(prog="python -m crayon.ops.preemption", description=__doc__)
    parser.add_argument("cloud", choices=CLOUDS)
    parser.add_argument("--metadata", default=METADATA, help="where the cloud answers")
    options, more = parser.parse_known_args(argv)  # what `ray drain-node` takes besides
    noticed, seconds = CLOUDS[options.cloud]
    said = ""
    while True:
        try:
            if noticed(options.metadata):
                break
        except (OSError, ValueError) as error:
            if said != (
                said := f"{options.metadata} doesn't answer as {options.cloud} does ({error}); trying on."
            ):
                print(said, file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)
    end = time.monotonic() + seconds
    print(f"{options.cloud} takes this node away in {seconds} s: draining it.", flush=True)
    drain = [str(Path(sys.executable).with_name("ray")), "drain-node", *more]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", f"{options.cloud} spot"]
    while (left := int(end - time.monotonic())) > 0:
        if subprocess.run([*drain, "--deadline-remaining-seconds", str(left)]).returncode == 0:
            return
        time.sleep(1)
    sys.exit("Ray could not be told.")


if __name__ == "__main__":
    main()
