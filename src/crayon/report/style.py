"""How every chart looks: light paper, thin grid, colours that colour-blind readers can tell apart.

Matplotlib is imported when the first chart is drawn, not before, since commands that draw nothing should
not wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER = "#22262b", "#6b7280", "#e6e8ec", "#ffffff"
# Okabe & Ito (2008): told apart under the common kinds of colour blindness.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#22262b")
# Paul Tol's "muted" scheme and a grey, for up to ten classes.
CLASSES = [
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777",
]  # fmt: skip

_TICKS = {"color": FAINT, "labelsize": 9, "major.size": 0}

_STYLE = {
    "figure.dpi": 110,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.09,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.edgecolor": "#c9ced6",
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in _TICKS.items()},
}
"""What differs from Matplotlib's defaults."""

Draw = TypeVar("Draw", bound=Callable[..., Image.Image])


def chart(draw: Draw) -> Draw:
    """Decorates what draws with Matplotlib: in our style, whatever the user's or the folder's `matplotlibrc` says,
    which stays in force for everybody else in this process."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Image.Image:
        with library().style.context(_STYLE, after_reset=True):
            return draw(*arguments, **options)

    return drawn  # type: ignore[return-value]


@functools.cache
def library() -> ModuleType:
    """Matplotlib, whose import fails where MPLBACKEND names a backend that isn't installed, and prints where it can't
    keep its fonts and what it skips in a matplotlibrc."""
    log = logging.getLogger("matplotlib")
    level, backend = log.level, os.environ.pop("MPLBACKEND", None)
    log.setLevel(logging.ERROR)
    try:
        import matplotlib.font_manager
        import matplotlib.style
    finally:
        log.setLevel(level)
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any
) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes; `grid` as `Figure.subplots` takes it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, **grid)


def set_title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", color=INK, fontsize=11, fontweight="bold", parse_math=False)


def render(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    with _any_script():
        figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def lay_out(figure: Figure) -> None:
    """Give everything in the figure the place that it will have."""
    with _any_script():
        figure.draw_without_rendering()


@contextlib.contextmanager
def _any_script() -> Iterator[None]:
    """Class names may be in any script, also in one whose letters Matplotlib's font hasn't got."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")
        yield


def class_colours(k: int) -> list[str]:
    if k <= len(CLASSES):
        return CLASSES[:k]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"](x)) for x in np.linspace(0.03, 0.97, k)]


def short(text: str, most: int = 16) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
