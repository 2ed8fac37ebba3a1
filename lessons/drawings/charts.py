"""Charts that several lessons draw: rows of images, curves, bars and boxes.

A panel is a matplotlib Axes. `panels` makes a figure with a row of them, and the other functions
draw into one panel each. A figure is left open, so that a notebook shows it below its cell.
"""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange, repeat
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 90
BLUE, RED, GREY = "#7a9cc6", "#b03030", "#888888"


def panels(count: int, width: float = 3.6, height: float = 2.7) -> tuple[Figure, np.ndarray]:
    """A figure with a row of `count` panels of so many inches each."""
    figure, axes = plt.subplots(
        1, count, figsize=(width * count, height), dpi=DPI, layout="constrained", squeeze=False
    )
    return figure, axes[0]


def image_rows(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    labels: Sequence[str] = (),
    size: float = 1.2,
    frame: bool = False,
) -> Figure:
    """Rows of images (H, W, 3) or (H, W), with a title above each column and a label per row.

    A frame shows where a white image ends.
    """
    figure, axes = plt.subplots(
        len(rows),
        len(titles),
        figsize=(size * len(titles), size * len(rows) + 0.2),
        dpi=DPI,
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(frame)
        axis.spines[:].set(color="#bbbbbb", linewidth=0.6)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            axes[row, column].imshow(image, cmap="Greys")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    for axis, label in zip(axes[:, 0], labels, strict=False):
        axis.set_ylabel(label, fontsize=8)
    return figure


def curves(
    axis: Axes, x: Sequence[float], named: dict[str, Sequence[float]], bold: str = "", **settings
) -> None:
    """One curve for each name, the one named `bold` thicker; `settings` go to `Axes.set`."""
    for name, y in named.items():
        axis.plot(x, y, label=name, linewidth=2.5 if name == bold else 1.2)
    axis.set(**settings)
    axis.legend(fontsize=7)


def grouped_bars(axis: Axes, named: dict[str, Sequence[float]], **settings) -> None:
    """Bars side by side: for each place 0, 1, ... one bar of each name."""
    width = 0.8 / len(named)
    for i, (name, heights) in enumerate(named.items()):
        places = np.arange(len(heights)) + width * (i - (len(named) - 1) / 2)
        axis.bar(places, heights, width=0.9 * width, label=name)
        axis.set_xticks(range(len(heights)))
    axis.set(**settings)
    axis.legend(fontsize=7)


def tinted(images: torch.Tensor, hidden: torch.Tensor, strength: float = 0.65) -> list[np.ndarray]:
    """Images (B, 3, H, W) in [-1, 1] as (H, W, 3), with grey over the hidden tokens (B, N).

    At `strength` 1 nothing of the image is seen there.
    """
    grid = math.isqrt(hidden.shape[1])
    side = images.shape[-1] // grid
    grey = repeat(hidden.cpu(), "B (h w) -> B (h y) (w x) 1", h=grid, y=side, x=side).numpy()
    shown = rearrange(images.cpu(), "B C H W -> B H W C").clamp(-1, 1).numpy() / 2 + 0.5
    return list(np.where(grey, (1 - strength) * shown + strength * 0.72, shown))


def stacked_bars(
    axis: Axes, names: Sequence[str], parts: dict[str, Sequence[float]], **settings
) -> None:
    """One horizontal bar for each name, from the top down, made of one piece for each part."""
    left = np.zeros(len(names))
    for part, lengths in parts.items():
        axis.barh(range(len(names)), lengths, left=left, label=part)
        left = left + np.asarray(lengths)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set(**settings)
    axis.legend(fontsize=7)


def bars_with_intervals(axis: Axes, named: dict[str, dict[str, float]], **settings) -> None:
    """A bar for each name, from its "value", with a line from its "low" to its "high" end."""
    for name, measured in named.items():
        axis.bar(name, measured["value"], color=BLUE)
        axis.plot([name, name], [measured["low"], measured["high"]], color="black")
    axis.tick_params(axis="x", labelsize=8)
    axis.set(**settings)
