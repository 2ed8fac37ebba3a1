"""Measures with their uncertainty: distances by the number of images, and intervals in a row."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from minimuse.drawings.charts import BLUE, RED, panels


def distances_by_size(sizes: Sequence[int], found: dict[str, dict[str, torch.Tensor]]) -> Figure:
    """One panel for each measure: mean and standard deviation of each pair of sets, by size.

    found[measure][pair] is (sizes, rounds).
    """
    figure, axes = panels(len(found))
    for axis, (measure, pairs) in zip(axes, found.items(), strict=True):
        for (pair, values), colour in zip(pairs.items(), (BLUE, RED), strict=True):
            mean, deviation = values.mean(dim=1), values.std(dim=1)
            axis.errorbar(sizes, mean, deviation, color=colour, marker="o", capsize=3, label=pair)
        axis.axhline(0, color="black", linewidth=1, linestyle=":")
        axis.set(xscale="log", xlabel="images in each set", title=measure)
        axis.set_xticks(sizes, sizes)
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
    return figure


def intervals(named: dict[str, dict[str, float]], **settings) -> Figure:
    """The value and the interval (low, high) of each name, one above the other.

    `settings` go to `Axes.set`.
    """
    figure, (axis,) = panels(1, width=5, height=1 + 0.3 * len(named))
    for row, found in enumerate(named.values()):
        axis.plot([found["low"], found["high"]], [row, row], color=BLUE, linewidth=3)
        axis.plot(found["value"], row, "o", color=RED)
    axis.set_yticks(range(len(named)), named)
    axis.set_ylim(len(named) - 0.5, -0.5)
    axis.set(**settings)
    return figure
