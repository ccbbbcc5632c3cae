"""Data that someone else made."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from crayon.config.settings import DataConfig
from crayon.data import load

DEEP = "[" * 100_000
"""JSON that is too deep to be read."""


def _array(header: str, content: bytes) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def objects(payload: bytes) -> bytes:
    """A .npy file that holds a pickle."""
    return _array("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", payload)


def huge(shape: tuple[int, ...], kind: str) -> bytes:
    return _array(str({"descr": kind, "fortran_order": False, "shape": shape}), bytes(64))


def pictures(root: Path, n: int = 4) -> Path:
    for i in range(n):
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 10 * i, np.uint8)).save(root / f"{i}.png")
    return root


def opened(root: Path, **changes):
    changes = {"image_size": 16, "channels": 3, "val_fraction": 0.0} | changes
    return load(DataConfig(source="folder", root=str(root), **changes), labels=False)
