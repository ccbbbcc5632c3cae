"""What a procedural face is made of: independent factors, a function of (seed, index)."""

from __future__ import annotations

import torch
from torch import Tensor

from crayon.rng import Randomness

HAIR = ("bald", "short hair", "long hair", "fringe", "curly hair")
BEARD = ("no beard", "stubble", "full beard")
GLASSES = ("no glasses", "glasses", "sunglasses")
CLASSES = tuple(f"{h}, {b}, {g}" for h in HAIR for b in BEARD for g in GLASSES)
"""The 45 modes: label = 9 * hair + 3 * beard + glasses."""

HAIR_ENDS = (0.14, 0.40, 0.64, 0.82)
BEARD_ENDS = (0.55, 0.75)
GLASSES_ENDS = (0.60, 0.85)
"""Cumulative probabilities; the rarest mode (bald, stubble, sunglasses) is 0.4 % of all faces."""

SKIN = ((0.97, 0.84, 0.75), (0.93, 0.75, 0.62), (0.82, 0.61, 0.46), (0.64, 0.44, 0.31), (0.44, 0.29, 0.20))
HAIR_COLOURS = (
    (0.09, 0.07, 0.07),
    (0.22, 0.14, 0.09),
    (0.38, 0.24, 0.14),
    (0.50, 0.29, 0.17),
    (0.66, 0.46, 0.24),
    (0.86, 0.71, 0.45),
    (0.72, 0.71, 0.70),
)
IRIS = ((0.22, 0.12, 0.06), (0.36, 0.22, 0.10), (0.30, 0.42, 0.26), (0.26, 0.44, 0.64), (0.42, 0.50, 0.56))
LIPS = ((0.84, 0.52, 0.48), (0.74, 0.34, 0.34), (0.58, 0.30, 0.27))
BACKGROUND = (
    (0.42, 0.52, 0.62),
    (0.70, 0.80, 0.88),
    (0.86, 0.82, 0.74),
    (0.62, 0.56, 0.48),
    (0.52, 0.60, 0.46),
    (0.34, 0.42, 0.40),
    (0.30, 0.32, 0.40),
)
CLOTHES = (
    (0.16, 0.20, 0.34),
    (0.30, 0.42, 0.60),
    (0.86, 0.86, 0.84),
    (0.56, 0.20, 0.22),
    (0.24, 0.38, 0.30),
    (0.22, 0.22, 0.24),
    (0.72, 0.60, 0.42),
)

UNIFORM = {
    "hair": (0, 1), "beard": (0, 1), "glasses": (0, 1),
    "skin": (0, 1), "ruddy": (0, 1), "hair_colour": (0, 1), "iris": (0, 1), "lip_colour": (0, 1),
    "background": (0, 1), "clothes": (0, 1), "frame": (0, 1), "grain": (0, 6.283),
    "size": (0.66, 0.78), "width": (0.78, 0.90), "height": (1.02, 1.15), "jaw": (0.06, 0.26),
    "volume": (0, 0.10), "hairline": (0, 0.10), "eye_gap": (0.36, 0.43), "eye_width": (0.165, 0.21),
    "eye_height": (0.07, 0.115), "eye_level": (-0.16, -0.07), "brow_weight": (0.028, 0.055),
    "brow_level": (0.19, 0.25), "nose_length": (0.22, 0.34), "nose_width": (0.10, 0.16),
    "mouth_width": (0.25, 0.38), "mouth_level": (0.53, 0.60), "smile": (0.03, 0.15), "lip": (0.045, 0.075),
    "open": (-0.09, 0.11), "light_y": (-0.5, 0.0), "light": (0.88, 1.06), "blush": (0.02, 0.14),
    "haze": (0.04, 0.16),
}  # fmt: skip
"""Uniform between the two bounds. Lengths in half-widths of the picture times `size`; y points down."""

CENTRED = {
    "roll": (0, 0.13), "yaw": (0, 0.34), "pitch": (0, 0.09), "x": (0, 0.07), "y": (0.02, 0.05),
    "parting": (0, 0.45), "gaze": (0, 0.045), "brow_slope": (0.008, 0.03), "light_x": (0, 0.7), "slope": (0, 0.16),
}  # fmt: skip
"""Centre and largest deviation; small deviations are commoner."""


class Factors:
    """The factors of N faces. `f["smile"]` is float32 (N, 1, 1); `hair`, `beard`, `glasses` are int64 (N,) modes."""

    def __init__(self, indices: Tensor, seed: int):
        names = [*UNIFORM, *CENTRED]
        u = Randomness(seed, "faces").uniform(indices, len(names))
        self.values: dict[str, Tensor] = {}
        for column, name in zip(u.T, names, strict=True):
            if name in UNIFORM:
                low, high = UNIFORM[name]
                value = low + (high - low) * column
            else:
                centre, spread = CENTRED[name]
                t = 2 * column - 1
                value = centre + spread * t * t.abs().sqrt()
            self.values[name] = value.view(-1, 1, 1)
        self.hair = torch.bucketize(self["hair"].flatten(), torch.tensor(HAIR_ENDS))
        self.beard = torch.bucketize(self["beard"].flatten(), torch.tensor(BEARD_ENDS))
        self.glasses = torch.bucketize(self["glasses"].flatten(), torch.tensor(GLASSES_ENDS))
        self.labels = 9 * self.hair + 3 * self.beard + self.glasses

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def colour(self, palette: tuple[tuple[float, float, float], ...], name: str) -> Tensor:
        """(N, 3, 1, 1): the palette at factor `name`, interpolated."""
        colours = torch.tensor(palette)
        t = self[name].flatten() * (len(palette) - 1)
        i = t.long().clamp(max=len(palette) - 2)
        mix = (t - i)[:, None]
        return (colours[i] * (1 - mix) + colours[i + 1] * mix)[:, :, None, None]


def pick(values: tuple[float, ...], modes: Tensor) -> Tensor:
    """(N, 1, 1): one of `values` by mode."""
    return torch.tensor(values)[modes].view(-1, 1, 1)
