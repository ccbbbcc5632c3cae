#!/usr/bin/env python
"""Train the CIFAR-10 classifier. `--help` shows the settings."""

import sys
from pathlib import Path

# Where Crayon isn't installed, as on a bare cluster, it is taken from beside this file.
sys.path.append(str(Path(__file__).resolve().parent.parent / "src"))

from crayon.cli.main import main

if __name__ == "__main__":
    main("cifar10")
