"""What the base model predicts for hidden tokens, and how its losses go in training."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import repeat
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from minimuse.drawings.architecture import to_pixels
from minimuse.drawings.charts import BLUE, DPI, RED, panels

from minimuse import Muse


def predictions(
    muse: Muse,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    filled: dict[str, torch.Tensor],
    entropy: torch.Tensor,
) -> Figure:
    """One row for each of R ways to hide low-res tokens of one image.

    ids (1, N); hidden (R, N) bool; filled: for each name, ids (R, N) with all tokens guessed;
    entropy (R, N) of the predictions, in nats.
    """
    columns = {"what is visible": [covered(muse, ids, row) for row in hidden]}
    for name, guesses in filled.items():
        columns[name] = [to_pixels(image[None]) for image in muse.pixels(guesses, "low")]
    figure, axes = plt.subplots(
        len(hidden),
        len(columns) + 1,
        figsize=(1.75 * (len(columns) + 1) + 0.3, 1.75 * len(hidden) + 0.2),
        dpi=DPI,
        layout="constrained",
        squeeze=False,
    )
    for row, line in enumerate(axes):
        for axis, (name, shown) in zip(line, columns.items(), strict=False):
            axis.imshow(shown[row], interpolation="nearest")
            axis.set_title(name if row == 0 else "", fontsize=8)
        draw_entropy(figure, line[-1], entropy[row], hidden[row], muse.config.tokenizer.codes)
    axes[0, -1].set_title("entropy (nats)", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def covered(muse: Muse, ids: torch.Tensor, hidden: torch.Tensor) -> np.ndarray:
    """The image (H, W, 3) of low-res ids (1, N), with grey over hidden tokens (N,)."""
    image = to_pixels(muse.pixels(ids, "low"))
    grid = math.isqrt(len(hidden))
    side = len(image) // grid  # of a token, in pixels
    grey = repeat(hidden.numpy(), "(h w) -> (h y) (w x) 1", h=grid, y=side, x=side)
    return np.where(grey, 0.72, image)


def draw_entropy(
    figure: Figure, axis: Axes, entropy: torch.Tensor, hidden: torch.Tensor, codes: int
) -> None:
    """A number into each hidden token of the grid; those that are visible stay white."""
    side = math.isqrt(len(hidden))
    values = entropy.masked_fill(~hidden, torch.nan).view(side, side).numpy()
    axis.imshow(values, vmin=0, vmax=math.log(codes), cmap="Oranges")
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value):
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8)


def likeliest_codes(
    muse: Muse,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    probabilities: dict[str, torch.Tensor],
    token: int,
    count: int = 4,
) -> Figure:
    """For each caption the likeliest codes of one low-res token, each painted into the image.

    ids (1, N); hidden (N,) bool: what the model did not see; probabilities (K,) for each caption.
    """
    figure, axes = plt.subplots(
        len(probabilities),
        count + 1,
        figsize=(1.1 * count + 3.4, 1.2 * len(probabilities) + 0.2),
        dpi=DPI,
        layout="constrained",
        squeeze=False,
    )
    for line, (caption, p) in zip(axes, probabilities.items(), strict=True):
        line[0].imshow(covered(muse, ids, hidden), interpolation="nearest")
        words = caption.replace(" left", "\nleft").replace(" on", "\non") or "(no caption)"
        line[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8)
        best = p.argsort(descending=True)[:count]
        for axis, code in zip(line[1:], best, strict=True):
            painted = ids.clone()
            painted[0, token] = code
            axis.imshow(to_pixels(muse.pixels(painted, "low")), interpolation="nearest")
            axis.add_patch(outline(token, muse.config.tokenizer.grid, muse.config.tokenizer.side))
            axis.set_title(f"{p[code]:.0%}", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def outline(token: int, grid: int, side: int) -> Rectangle:
    """A frame around one token of a grid x grid, in an image of side x side pixels."""
    width = side / grid
    row, column = divmod(token, grid)
    # Pixel 0 reaches from -0.5 to 0.5.
    return Rectangle(
        (column * width - 0.5, row * width - 0.5), width, width, fill=False, color="black"
    )


def losses(runs: dict[str, Sequence[tuple[float, float | None]]], chance: float) -> Figure:
    """One panel for each run: its training loss, and its loss on held-out images.

    A run is a list of (training loss, held-out loss or None), one for each step. chance: the loss
    of a uniform guess.
    """
    figure, axes = panels(len(runs), width=3.8)
    highest = 0.0
    for run in runs.values():
        highest = max(highest, *(loss for pair in run for loss in pair if loss is not None))
    for axis, (name, run) in zip(axes, runs.items(), strict=True):
        measured = [(step + 1, loss) for step, (_, loss) in enumerate(run) if loss is not None]
        axis.plot([loss for loss, _ in run], color=BLUE, linewidth=1, label="training loss")
        axis.plot(*zip(*measured, strict=True), color=RED, label="loss on held-out images")
        axis.axhline(chance, color="black", linewidth=1, linestyle=":", label="uniform guess")
        axis.set(title=name, xlabel="step", ylim=(-0.2, 1.05 * highest))
    axes[0].set_ylabel("nats per token")
    axes[0].legend(fontsize=7)
    return figure
