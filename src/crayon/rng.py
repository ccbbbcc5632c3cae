"""Randomness that is a function of a key, never of hidden state.

Every draw is made by hashing (seed, names and counters, example, column) with SplitMix64 (Steele et al. 2014), so the
value for one example is the same whatever the batch size, the number of workers or the order in which examples are
asked for, and a resumed run draws what the uninterrupted run would have drawn.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from crayon.system import devices

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_M1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_M2 = 0x94D049BB133111EB - (1 << 64)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 (wrapping) arithmetic."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _M1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _M2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


class Randomness:
    """A stream of random numbers named by its key.

    >>> a = Randomness(0, "step", 7).normal(torch.arange(4), 2)
    >>> b = Randomness(0, "step", 7).normal(torch.tensor([2]), 2)
    >>> bool((a[2] == b[0]).all())
    True
    """

    def __init__(self, *key: int | str):
        self.key = key
        digest = hashlib.sha256(repr(self.key).encode()).digest()
        self._state = int.from_bytes(digest[:8], "little", signed=True)

    @property
    def state(self) -> int | Tensor:
        """int64, decided by the key: an int, or a tensor that will hold it."""
        return self._state

    def fold(self, *key: int | str) -> Randomness:
        """A stream of its own under this one: `rng.fold("mask")`."""
        return Randomness(*self.key, *key)

    def _bits(self, examples: Tensor, columns: int) -> Tensor:
        # Two rounds, example then column, so that no column of one example equals a column of its neighbour.
        rows = _mix(examples.to(torch.int64) * _GOLDEN + self.state)
        cols = torch.arange(1, columns + 1, device=examples.device, dtype=torch.int64) * _GOLDEN
        return _mix(rows[:, None] + cols[None, :])

    def uniform(self, examples: Tensor, columns: int) -> Tensor:
        """Uniform on [0, 1). `examples`: int64 (N,). Returns float32 (N, columns)."""
        return ((self._bits(examples, columns) >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24

    def normal(self, examples: Tensor, columns: int) -> Tensor:
        """Standard normal (Box-Muller in float64). `examples`: int64 (N,). Returns float32 (N, columns)."""
        half = (columns + 1) // 2
        bits = (self._bits(examples, 2 * half) >> 11) & ((1 << 53) - 1)
        bits = bits.to(devices.exact(bits.device), torch.float64)
        u = (bits + 0.5) * 2.0**-53
        radius = (-2.0 * u[:, :half].log()).sqrt()
        angle = 2.0 * math.pi * u[:, half:]
        drawn = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :columns]
        return drawn.to(examples.device, torch.float32)

    def permutation(self, n: int) -> Tensor:
        """A permutation of 0..n-1, int64 on the CPU."""
        return torch.randperm(n, generator=torch.Generator().manual_seed(self._state & (2**63 - 1)))

    def seed_torch(self, device: torch.device | None = None) -> None:
        """Key torch's global generators, for layers that draw from them (dropout): the CPU's and `device`'s.

        `torch.manual_seed` also visits every backend torch was built with, which costs more than a small step's
        augmentation.
        """
        key = self._state & (2**63 - 1)
        torch.default_generator.manual_seed(key)
        if device is not None and device.type != "cpu":
            torch.get_device_module(device).manual_seed(key)
