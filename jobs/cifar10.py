#!/usr/bin/env python
"""Train the CIFAR-10 classifier. `--help` shows the settings."""

from crayon.cli import main

if __name__ == "__main__":
    main("cifar10")
