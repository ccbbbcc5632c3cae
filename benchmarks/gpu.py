#!/usr/bin/env python
"""What one GPU does, in one command that needs no network: `run.py gpu`, with the data that is given or made.

uv run benchmarks/gpu.py [--cifar10 DIR] [--faces DIR] [--repetitions N]
uv run benchmarks/gpu.py --device cpu --quick      # tries it without a GPU
"""

import sys

from run import main

if __name__ == "__main__":
    sys.exit(main(["gpu", *sys.argv[1:]]))
