#!/usr/bin/env python
"""Train the face GAN. `--help` shows the settings."""

from crayon.cli import main

if __name__ == "__main__":
    main("gan")
