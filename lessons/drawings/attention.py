"""What a high-res token attends to: on its own grid, in the low-res tokens, and in the caption."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from minimuse.drawings.architecture import to_pixels
from minimuse.drawings.charts import BLUE, DPI, panels
from minimuse.drawings.predictions import outline


def tokens_that_see(named: dict[str, torch.Tensor], token: int, window: int) -> Figure:
    """One panel for each name: the tokens (N,) bool that are True, on a grid cut into windows.

    token: the number of the token that is asked about, in a darker colour.
    """
    figure, axes = panels(len(named), width=2.4, height=2.6)
    for axis, (name, seen) in zip(axes, named.items(), strict=True):
        side = math.isqrt(len(seen))
        shown = seen.float()
        shown[token] = 2
        axis.imshow(shown.view(side, side).numpy(), cmap="Blues", vmin=0, vmax=2)
        lines = np.arange(0, side + 1, window) - 0.5
        axis.set_title(name, fontsize=9)
        axis.set(xticks=lines, yticks=lines, xticklabels=[], yticklabels=[])
        axis.tick_params(length=0)
        axis.grid(color="black", linewidth=0.6)
    return figure


def context_weights(
    image: torch.Tensor, weights: torch.Tensor, tokens: dict[str, int], words: Sequence[str]
) -> Figure:
    """One row for each of some high-res tokens: where it is, and how much it attends to what.

    image (1, 3, H, W); weights (N, n + T) of N high-res tokens over n low-res tokens and T words.
    """
    n = weights.shape[1] - len(words)
    shown = weights[list(tokens.values())]
    largest_low, largest_word = float(shown[:, :n].max()), float(shown[:, n:].max())
    figure, axes = plt.subplots(
        len(tokens),
        3,
        figsize=(8.2, 1.55 * len(tokens) + 0.9),
        dpi=DPI,
        layout="constrained",
        squeeze=False,
        width_ratios=(1, 1, 3.4),
    )
    for row, (name, token) in zip(axes, tokens.items(), strict=True):
        show_token(row[0], image, token, math.isqrt(len(weights)))
        row[0].set_ylabel(name, fontsize=9)
        show_low_weights(row[1], weights[token, :n], token, math.isqrt(len(weights)), largest_low)
        row[2].bar(range(len(words)), 100 * weights[token, n:].numpy(), color=BLUE)
        row[2].set(ylim=(0, 105 * largest_word), xticks=range(len(words)), xticklabels=[])
        row[2].tick_params(axis="y", labelsize=7)
    axes[-1, 2].set_xticklabels(words, rotation=45, ha="right", fontsize=8)
    for axis, title in zip(
        axes[0], ("high-res token", "low-res tokens, %", "words of the caption, %"), strict=True
    ):
        axis.set_title(title, fontsize=9)
    return figure


def show_low_weights(
    axis: Axes, weights: torch.Tensor, token: int, grid: int, largest: float
) -> None:
    """The weights (n,) of the low-res tokens in percent; one of them has a frame.

    token: the number of a high-res token on a grid x grid; the frame is around the low-res token
    that covers it. largest: the weight of the darkest blue.
    """
    side = math.isqrt(len(weights))
    axis.imshow(weights.view(side, side).numpy(), cmap="Blues", vmin=0, vmax=largest)
    for i, weight in enumerate(weights.tolist()):
        colour = "white" if weight > 0.6 * largest else "black"
        row, column = divmod(i, side)
        text = f"{100 * weight:.1f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    scale = grid // side
    row, column = divmod(token, grid)
    covering = (row // scale) * side + column // scale
    axis.add_patch(outline(covering, side, side))
    axis.set(xticks=[], yticks=[])


def show_token(axis: Axes, image: torch.Tensor, token: int, grid: int) -> None:
    """The image (1, 3, H, W), with a frame around one token of a grid x grid."""
    axis.imshow(to_pixels(image))
    axis.add_patch(outline(token, grid, image.shape[-1]))
    axis.set(xticks=[], yticks=[])
