#!/usr/bin/env python
"""Train the MNIST classifier. `--help` shows the settings."""

from crayon.cli import main

if __name__ == "__main__":
    main("mnist")
