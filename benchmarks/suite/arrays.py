"""What must be on disk before a measurement: decoded or rendered images, and for Keras the same as .npz."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from suite.settings import Settings
from suite.sides import BENCHMARKS


def in_a_process(code: str, *arguments: str) -> str:
    """The harness itself must not hold torch and images: it would take memory, and be forked with them."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    end = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=env
    )
    if end.returncode:
        raise RuntimeError(end.stderr.strip().splitlines()[-1])
    return end.stdout.strip()


def prepare(settings: Settings, job: str, *flags: str, npz: bool = False) -> None:
    """Decode or render the images of `job`, so that it isn't part of what is measured. npz: for Keras, too."""
    code = (
        "import sys\nfrom crayon import data\nfrom crayon.cli.flags import parse\n"
        "c = parse(sys.argv[1], sys.argv[2:], 'x')\ndata.load(c.data, labels=c.needs_labels)"
    )
    in_a_process(code, job, *settings.flags(job), *flags)
    path = Path(npz_of(settings, job))
    if npz and not path.exists():
        code = (
            "import sys, numpy as np\nfrom peers.torch_data import arrays\nfrom crayon import data\n"
            "from crayon.cli.flags import parse\n"
            "c = parse(sys.argv[2], sys.argv[3:], 'x'); s = data.load(c.data, labels=True)\n"
            "(x, y), (u, v) = arrays(s.train), arrays(s.val)\n"
            "np.savez(sys.argv[1], x_train=x, y_train=y, x_val=u, y_val=v)"
        )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = path.with_name(f"{os.getpid()}-{path.name}")
        in_a_process(code, str(made), job, *settings.flags(job))
        made.replace(path)


def npz_of(settings: Settings, job: str) -> str:
    """Where the training and held-out images of `job` lie as keras.datasets would give them, once `prepare` ran."""
    from crayon.data.cache import cache_root, key_of

    return str(Path(cache_root()) / "benchmarks" / f"{job}-{key_of(settings.flags(job))}.npz")


def keras_network(settings: Settings, job: str) -> tuple[str, int]:
    """Our classifier's shape as keras_peer.py takes it, and the batch size."""
    from crayon.cli.flags import parse

    config = parse(job, settings.flags(job), job)
    m = config.model
    if m.depth != 2 or m.activation != "relu":
        raise ValueError("keras_peer.py knows our network with ReLU and two convolutions a stage only")
    return f"{m.width},{m.growth},{m.dropout},{m.stem_stride}", config.global_batch_size
