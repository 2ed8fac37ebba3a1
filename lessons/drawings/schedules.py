"""The cosine schedule as decoding and as training use it, and two densities of mask ratios."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from minimuse.drawings.charts import BLUE, GREY, RED, panels

from minimuse import schedule


def one_curve_two_uses(steps: int = 8, images: int = 32) -> Figure:
    """Left: `steps` decoding steps walk down the curve. Right: `images` random u become ratios."""
    figure, (decoding, training) = panels(2, width=3.7, height=3)
    for axis in (decoding, training):
        u = np.linspace(0, 1, 201)
        axis.plot(u, schedule.gamma(u), color="black", linewidth=1.5)
        axis.set(xlabel="u: fraction of decoding done", xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    u = np.arange(steps + 1) / steps
    masked = schedule.gamma(u)
    decoding.vlines(u[1:], masked[1:], masked[:-1], color=RED, linewidth=3)
    decoding.hlines(masked[:-1], u[:-1], u[1:], color=GREY, linewidth=0.8)
    decoding.set(ylabel="r: fraction masked", title="decoding: red is what a step reveals")
    # Evenly spread u, so that the picture shows the law and not one sample's accidents.
    u = (np.arange(images) + 0.5) / images
    masked = schedule.gamma(u)
    training.vlines(u, 0, masked, color=BLUE, linewidth=0.5)
    training.hlines(masked, 0, u, color=BLUE, linewidth=0.5)
    training.plot(np.zeros(images), masked, "_", color=RED, markersize=12, clip_on=False)
    training.set(title="training: uniform u, crowded r")
    return figure


def ratios_against_the_law(named: dict[str, Sequence[float]]) -> Figure:
    """A histogram of each sample of mask ratios, with the arcsine density and the common mean."""
    figure, axes = panels(len(named), height=2.6)
    r = np.linspace(0, 0.985, 200)
    for axis, (name, ratios) in zip(axes, named.items(), strict=True):
        axis.hist(np.asarray(ratios), bins=40, density=True, color=BLUE, label="drawn")
        axis.plot(r, 2 / np.pi / np.sqrt(1 - r**2), color=RED, label="the density p(r)")
        axis.axvline(2 / np.pi, color="black", linewidth=1, linestyle=":", label="2 / pi")
        axis.set(title=name, xlabel="mask ratio r", ylim=(0, 4.2))
    axes[0].set_ylabel("density")
    axes[0].legend(fontsize=7)
    return figure
