"""The limit: the bare optimised step on data in memory, without loader, logging or Ray (see throughput.py)."""

from __future__ import annotations

import time

from peers import torch_data
from suite.tell import Teller
from throughput import bare


def main() -> None:
    known, _ = torch_data.arguments(__doc__)
    steps, tell = bare(known.job, known.settings), Teller(known.told)
    images = 0.0
    while True:
        begun = time.perf_counter()
        rate = steps(0.2)
        images += rate * (time.perf_counter() - begun)
        tell(round(images))


if __name__ == "__main__":
    main()
