"""How every chart looks: light paper, thin grid, colours that colour-blind readers can tell apart.

Matplotlib is imported when the first chart is drawn, not before, since commands that draw nothing should
not wait for it.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER = "#22262b", "#6b7280", "#e6e8ec", "#ffffff"
# Okabe & Ito (2008): told apart under the common kinds of colour blindness.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#22262b")
# Paul Tol's "muted" scheme and a grey, for up to ten classes.
CLASSES = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#777777",
)

Draw = TypeVar("Draw", bound=Callable[..., Image.Image])


def chart(draw: Draw) -> Draw:
    """Decorates what draws with Matplotlib: with its defaults, whatever the user's or the folder's `matplotlibrc` says,
    which stays in force for everybody else in this process."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Image.Image:
        matplotlib = _matplotlib()
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            return draw(*arguments, **options)

    return drawn  # type: ignore[return-value]


@functools.cache
def _matplotlib() -> ModuleType:
    """The module, whose import fails where MPLBACKEND names a backend that isn't installed, and prints where it can't
    keep its fonts and what it skips in a matplotlibrc."""
    log = logging.getLogger("matplotlib")
    level, backend = log.level, os.environ.pop("MPLBACKEND", None)
    log.setLevel(logging.ERROR)
    try:
        import matplotlib.font_manager
    finally:
        log.setLevel(level)
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any
) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor=PAPER, layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.09, h_pad=0.09)
    ratios = {"height_ratios": grid.pop("height_ratios")} if "height_ratios" in grid else {}
    axes = figure.subplots(rows, columns, gridspec_kw=ratios, **grid)
    for ax in np.ravel(np.array(axes, dtype=object)):
        ax.set_axisbelow(True)
        ax.grid(color=GRID, linewidth=0.8)
        ax.tick_params(colors=FAINT, labelsize=9, length=0)
        ax.xaxis.label.set_color(FAINT)
        ax.yaxis.label.set_color(FAINT)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#c9ced6")
    return figure, axes


def set_title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", color=INK, fontsize=11, fontweight="bold", parse_math=False)


def render(figure: Figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")  # class names in any script
        FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def class_colours(k: int) -> list[str]:
    if k <= len(CLASSES):
        return list(CLASSES[:k])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"](x)) for x in np.linspace(0.03, 0.97, k)]


def font(size: int) -> Any:
    fonts = Path(_matplotlib().get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), size)


def shorten(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def short(text: str, most: int = 16) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def compact(value: float) -> str:
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"
