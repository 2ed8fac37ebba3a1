"""One transformer block of Muse, and training beside sampling."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from minimuse.drawings.architecture import to_pixels, token_colours
from minimuse.drawings.boxes import (
    DATA,
    FROZEN,
    HIDDEN,
    LEARNT,
    QUIET,
    arrow,
    bent_arrow,
    box,
    canvas,
    picture,
    token_grid,
    write,
)

from minimuse import Muse


def block() -> Figure:
    """The three layers of a block: each adds its result to the vectors that pass by it."""
    figure, axes = canvas(8.2, 3.3)
    row, above = 1.0, 2.0
    layers = (
        (2.1, "self-\nattention", "tokens look at\none another"),
        (4.3, "cross-\nattention", "tokens look at\nthe caption"),
        (6.5, "MLP", "each token\nby itself"),
    )
    write(axes, 0.45, row, "token\nvectors\n(B, N, D)", size=9)
    arrow(axes, (0.85, row), (7.55, row))
    write(axes, 7.85, row, "(B, N, D)", size=9)
    for x, name, what in layers:
        left, right = x - 0.65, x + 0.75
        bent_arrow(axes, (left, row), (left, above), (x - 0.5, above))
        box(axes, x, above, 1.0, 0.62, name, LEARNT, size=9)
        bent_arrow(axes, (x + 0.5, above), (right, above), (right, row + 0.11))
        write(axes, left - 0.07, (row + above) / 2, "norm", QUIET, size=8, align="right")
        plus(axes, right, row)
        write(axes, x, 0.4, what, QUIET, size=9)
    write(axes, 4.3, 3.05, "text embeddings (B, T, E) give keys and values", size=9)
    arrow(axes, (4.3, 2.9), (4.3, above + 0.31))
    return figure


def plus(axes: Axes, x: float, y: float) -> None:
    """A plus in a circle: here two vectors are added."""
    axes.plot([x], [y], "o", markersize=14, markerfacecolor="white", markeredgecolor="#444444")
    write(axes, x, y, "+", size=11)


def training_and_sampling(
    muse: Muse,
    image: torch.Tensor,
    caption: str,
    hidden: tuple[int, ...] = (1, 2, 3, 5, 6, 8, 9, 11, 12, 13),
    seed: int = 0,
) -> Figure:
    """The base model in training, above, and in sampling, below.

    image: (1, 3, H, W) of the low-res side, and its caption. hidden: positions that are masked.
    """
    grid = muse.config.tokenizer.grid
    true = token_colours(image, grid)
    masked = true.reshape(-1, 3).copy()
    masked[list(hidden)] = HIDDEN
    drawn = token_colours(muse.draw([caption], seed=seed)[0], grid)

    figure, axes = canvas(11.4, 4.5)
    top, bottom, side = 3.3, 1.05, 1.0
    write(axes, 0.1, top + 0.95, "Training", align="left", weight="bold")
    picture(axes, 0.75, top, side, to_pixels(image))
    arrow(axes, (1.3, top), (1.6, top))
    box(axes, 2.2, top, 1.15, 0.7, "VQGAN\nencoder,\nfrozen", FROZEN, size=8)
    arrow(axes, (2.8, top), (3.1, top))
    token_grid(axes, 3.65, top, side, true)
    arrow(axes, (4.2, top), (5.0, top))
    write(axes, 4.6, top + 0.22, "hide some\nat random", size=8)
    token_grid(axes, 5.6, top, side, masked.reshape(grid, grid, 3))
    arrow(axes, (6.15, top), (6.5, top))
    box(axes, 7.2, top, 1.3, 0.7, "base\ntransformer", LEARNT, size=9)
    arrow(axes, (7.9, top), (8.3, top))
    write(axes, 8.4, top, "logits (B, N, K)", size=9, align="left")
    box(axes, 10.3, top - 0.95, 1.9, 0.6, "loss: cross-entropy\nof the hidden tokens", DATA, size=8)
    arrow(axes, (9.2, top - 0.15), (9.7, top - 0.62))
    bent_arrow(axes, (3.65, top - 0.52), (3.65, top - 0.95), (9.3, top - 0.95))
    write(axes, 6.4, top - 0.82, "the true ids", QUIET, size=8)

    write(axes, 0.1, bottom + 0.95, "Sampling", align="left", weight="bold")
    token_grid(axes, 5.6, bottom, side, np.full_like(true, HIDDEN))
    arrow(axes, (6.15, bottom), (6.5, bottom))
    box(axes, 7.2, bottom, 1.3, 0.7, "base\ntransformer", LEARNT, size=9)
    arrow(axes, (7.9, bottom), (8.3, bottom))
    write(axes, 8.4, bottom, "sample ids", size=9, align="left")
    arrow(axes, (9.35, bottom), (10.2, bottom))
    token_grid(axes, 10.8, bottom, side, drawn)
    loop = bottom - 0.75
    bent_arrow(axes, (8.8, bottom - 0.15), (8.8, loop), (5.6, loop), (5.6, bottom - 0.52))
    write(axes, 7.2, loop - 0.15, "keep the most confident ids, hide the others again", size=8)
    write(axes, 9.78, bottom + 0.25, "after S\npasses", size=8)
    for y in (top, bottom):
        write(axes, 7.2, y + 0.85, "caption", QUIET, size=9)
        arrow(axes, (7.2, y + 0.72), (7.2, y + 0.36))
    return figure
