#!/usr/bin/env python
"""Train the convolutional autoencoder. `--help` shows the settings."""

from crayon.cli import main

if __name__ == "__main__":
    main("autoencoder")
