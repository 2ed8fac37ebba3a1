"""What all diagrams are made of: boxes, arrows, words, and grids of tokens.

Places and sizes are in inches from the lower left corner, so that a diagram looks the same however
large it is shown.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Colours say what a box is: it has learnt weights, its weights are frozen, or it holds data.
LEARNT = "#cfe3f7"
FROZEN = "#e3e3e3"
DATA = "#fdf1cf"
LINE = "#444444"
QUIET = "#777777"
HIDDEN = 0.72  # the grey of a hidden token

FONT_SIZE = 10


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of so many inches, without axes."""
    figure = plt.figure(figsize=(width, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return figure, axes


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    words: str,
    colour: str,
    size: float = FONT_SIZE,
) -> None:
    """A box with words in its middle; (x, y) is the middle of the box."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=colour,
            edgecolor=LINE,
            linewidth=1,
        )
    )
    write(axes, x, y, words, size=size)


def write(
    axes: Axes,
    x: float,
    y: float,
    words: str,
    colour: str = "black",
    size: float = FONT_SIZE,
    align: str = "center",
    weight: str = "normal",
) -> None:
    """Words around (x, y), or to the right of it with align="left"."""
    axes.text(
        x, y, words, color=colour, size=size, ha=align, va="center", weight=weight, linespacing=1.3
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A straight arrow from one place to another."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=12, color=LINE, shrinkA=0, shrinkB=0
        )
    )


def bent_arrow(axes: Axes, *places: tuple[float, float]) -> None:
    """An arrow along several places: lines between them, and a head at the last."""
    for start, end in zip(places[:-2], places[1:-1], strict=True):
        axes.plot(*zip(start, end, strict=True), color=LINE, linewidth=1)
    arrow(axes, places[-2], places[-1])


def picture(axes: Axes, x: float, y: float, side: float, pixels: np.ndarray) -> None:
    """An image (H, W, 3) in [0, 1], with a thin frame; (x, y) is its middle."""
    place = (x - side / 2, x + side / 2, y - side / 2, y + side / 2)
    axes.imshow(pixels, extent=place, interpolation="nearest", aspect="auto", zorder=2)
    frame(axes, x, y, side)


def frame(axes: Axes, x: float, y: float, side: float) -> None:
    """The outline of a square; (x, y) is its middle."""
    low, high = x - side / 2, x + side / 2
    bottom, top = y - side / 2, y + side / 2
    axes.plot([low, high, high, low, low], [bottom, bottom, top, top, bottom], LINE, linewidth=0.8)


def token_grid(axes: Axes, x: float, y: float, side: float, colours: np.ndarray) -> None:
    """A grid of tokens, each one a square of its colour (h, w, 3) in [0, 1], with lines between."""
    picture(axes, x, y, side, colours)
    tokens = len(colours)
    for i in range(1, tokens):
        at = side * i / tokens - side / 2
        axes.plot(
            [x + at, x + at], [y - side / 2, y + side / 2], "#999999", linewidth=0.4, zorder=3
        )
        axes.plot(
            [x - side / 2, x + side / 2], [y + at, y + at], "#999999", linewidth=0.4, zorder=3
        )
