"""The workers of a run as processes of their own, without Ray."""

from __future__ import annotations

import time
from pathlib import Path

from helpers import python

BEGIN = """
import os, sys
import torch, torch.distributed as dist
from pathlib import Path
from torch import nn
from helpers import tiny
from crayon.training.collectives import Gradients, Group
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD"])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + os.environ["STORE"], rank=rank, world_size=world)
group = Group(rank, world)
"""
END = """
sys.stdout.flush()
dist.barrier()
os._exit(0)  # Threads of gloo's may still run while Python tears itself down, and abort it.
"""


def gang(code: str, world: int, folder: Path, *, before: str = "", **env: str) -> list[str]:
    """What each of `world` processes prints that execute `before`, become workers (`rank`, `world`, `group`), and
    execute `code`."""
    env |= {"WORLD": str(world), "STORE": str(folder / f"store-{time.time_ns()}"), "GLOO_SOCKET_IFNAME": "lo"}
    started = [python(before + BEGIN + code + END, RANK=str(rank), **env) for rank in range(world)]
    ends = [process.communicate(timeout=400) for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(err for _, err in ends)
    return [out for out, _ in ends]
