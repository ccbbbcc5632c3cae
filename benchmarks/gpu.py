#!/usr/bin/env python
"""What one GPU does, in one command that needs no network and ends in 10 minutes: `run.py gpu`, once, with the data
that is given or made. It leaves results/gpu.json.

uv run benchmarks/gpu.py [--cifar10 DIR] [--faces DIR] [--repetitions N]
uv run benchmarks/gpu.py --device cpu --quick      # tries it without a GPU
"""

import sys

from run import main

if __name__ == "__main__":
    sys.exit(main(["gpu", "--repetitions", "1", *sys.argv[1:]]))
