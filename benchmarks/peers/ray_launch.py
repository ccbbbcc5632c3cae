"""The barest launch of Ray Train: one worker that does one step of one layer. No data, no logging, no checkpoint."""

from __future__ import annotations

import argparse

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--told", required=True)


def train(config: dict) -> None:
    import json
    import time
    from pathlib import Path

    import torch

    layer = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(torch.zeros(4, 8)).sum().backward()
    optimizer.step()
    Path(config["told"]).write_text(json.dumps({"at": time.time(), "images": 4}) + "\n")


def main() -> None:
    told = parser.parse_args().told
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", include_dashboard=False)
    TorchTrainer(
        train,
        train_loop_config={"told": told},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=told.rpartition("/")[0] + "/ray"),
    ).fit()


if __name__ == "__main__":
    main()
