"""Small figures of the lessons: curves, and rows of images, token grids and maps.

    from minimuse.drawings import plots
    plots.pictures("tokens.png", [[image, ids]], titles=("image", "its ids"))

Each function saves a figure and returns it, so that a notebook shows it below its cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 110
SMALL = 9  # font size of titles and legends
# Neighbouring ids get unrelated colours, because their numbers mean nothing.
PALETTE = np.random.default_rng(3).uniform(0.2, 1, size=(1024, 3))
MARK = "#e03030"


@dataclass(frozen=True)
class Panel:
    """Curves over the same x, by their names in the legend."""

    title: str
    xlabel: str
    ylabel: str
    x: Sequence[float] | torch.Tensor
    curves: dict[str, Sequence[float] | torch.Tensor]
    steps: bool = False  # draw each value as a horizontal step


def curves(path: str | Path, *panels: Panel) -> Figure:
    """Draw panels of curves side by side."""
    figure, all_axes = plt.subplots(1, len(panels), figsize=(3.8 * len(panels), 2.9), squeeze=False)
    for axes, panel in zip(all_axes[0], panels, strict=True):
        for i, (name, y) in enumerate(panel.curves.items()):
            axes.plot(
                panel.x,
                y,
                ("-", "--", ":", "-.")[i % 4],
                label=name,
                linewidth=2,
                drawstyle="steps-mid" if panel.steps else "default",
            )
        axes.set_title(panel.title, fontsize=SMALL)
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.legend(fontsize=SMALL - 1)
    figure.tight_layout()
    return save(figure, path)


def pictures(
    path: str | Path,
    rows: Sequence[Sequence[torch.Tensor]],
    titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    marked: Sequence[Sequence[torch.Tensor | None]] | None = None,
    cell: float = 1.7,
) -> Figure:
    """Draw rows of images, token grids and maps, each column below its title if there are titles.

    rows: images (3, H, W) in [-1, 1]; ids (h, w), each with a colour of its own; or bool maps
        (h, w), blue where True.
    marked: for each of them the tokens to outline, bool (h, w), or None.
    cell: inches along a side.
    """
    columns = len(rows[0])
    figure, all_axes = plt.subplots(
        len(rows), columns, figsize=(cell * columns, cell * len(rows) + 0.3), squeeze=False
    )
    for i, row in enumerate(rows):
        for j, values in enumerate(row):
            axes = all_axes[i, j]
            axes.imshow(colours_of(values), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if i == 0 and titles:
                axes.set_title(titles[j], fontsize=SMALL)
            if j == 0 and row_titles:
                axes.set_ylabel(row_titles[i], fontsize=SMALL)
            if values.dtype == torch.bool:
                draw_lines(axes, *values.shape)
            if marked is not None and marked[i][j] is not None:
                outline(axes, marked[i][j])
    figure.tight_layout(pad=0.4)
    return save(figure, path)


def colours_of(values: torch.Tensor) -> np.ndarray:
    """An image (3, H, W), ids (h, w) or a bool map (h, w) as (H, W, 3) in [0, 1]."""
    if values.dim() == 3:
        return (values.permute(1, 2, 0).float().numpy() + 1).clip(0, 2) / 2
    if values.dtype == torch.bool:
        return np.where(values.numpy()[..., None], (0.2, 0.45, 0.75), (0.93, 0.95, 0.97))
    return PALETTE[values.numpy()]


def draw_lines(axes: Axes, h: int, w: int) -> None:
    """White lines between the tokens of a map."""
    axes.set_xticks(np.arange(0.5, w - 1), minor=True)
    axes.set_yticks(np.arange(0.5, h - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.5)
    axes.tick_params(which="minor", length=0)


def outline(axes: Axes, marked: torch.Tensor) -> None:
    """A frame around each marked token (h, w)."""
    for y, x in marked.nonzero().tolist():
        frame = plt.Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, fill=False)
        frame.set(edgecolor="black", linewidth=1.6)
        axes.add_patch(frame)


def matrix(path: str | Path, values: torch.Tensor, labels: Sequence[str]) -> Figure:
    """Draw a square table of numbers between 0 and 1 (n, n), with a label for each row."""
    n = len(values)
    figure, axes = plt.subplots(figsize=(7.4, 0.48 * n))
    axes.imshow(values.numpy(), vmin=0, vmax=1, aspect="auto")
    for i in range(n):
        for j in range(n):
            colour = "black" if values[i, j] > 0.6 else "white"
            axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour, size=8)
    axes.set_yticks(range(n), [f"{label}   {i}" for i, label in enumerate(labels)], size=SMALL)
    axes.set_xticks(range(n), range(n), size=SMALL)
    return save(figure, path)


def bars(
    path: str | Path,
    groups: dict[str, dict[str, float]],
    ylabel: str,
    chance: float,
) -> Figure:
    """Draw bars side by side: for each name in the legend, one value per place on the x axis.

    chance: a dotted line at what a guess would reach.
    """
    figure, axes = plt.subplots(figsize=(6, 2.9))
    width = 0.8 / len(groups)
    for i, (name, values) in enumerate(groups.items()):
        places = np.arange(len(values)) + (i - (len(groups) - 1) / 2) * width
        axes.bar(places, list(values.values()), width=0.94 * width, label=name)
    axes.axhline(chance, color="black", linewidth=1, linestyle=":", label="chance")
    axes.set_xticks(range(len(values)), list(values), size=SMALL)
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=SMALL - 1, loc="center left", bbox_to_anchor=(1, 0.5))
    return save(figure, path)


def regions(
    path: str | Path, maps: dict[str, torch.Tensor], side: float, points: torch.Tensor
) -> Figure:
    """Draw ids over the square of the plane from -side to side, each map below its title.

    maps: ids (n, n) by title, the first index along x. points (M, 2): black dots.
    """
    figure, all_axes = plt.subplots(1, len(maps), figsize=(3 * len(maps), 3.2), squeeze=False)
    for axes, (title, ids) in zip(all_axes[0], maps.items(), strict=True):
        axes.imshow(colours_of(ids.T), extent=(-side, side, -side, side), origin="lower")
        axes.scatter(*points.T, s=12, color="black")
        axes.set_title(title, fontsize=SMALL)
        axes.set(xticks=[], yticks=[])
    return save(figure, path)


def codebooks(
    path: str | Path, latents: torch.Tensor, panels: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> Figure:
    """Draw codes among latents (L, 2): dots, larger the more latents they get, or crosses.

    panels: a codebook (K, 2) and the id of each latent (L,), by title. A code that fewer than one
        latent in a thousand chooses is a cross.
    """
    figure, all_axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.1), squeeze=False)
    for axes, (title, (codebook, ids)) in zip(all_axes[0], panels.items(), strict=True):
        fractions = torch.bincount(ids, minlength=len(codebook)) / len(ids)
        unused = fractions < 0.001
        axes.scatter(*latents[:1500].T, s=3, color="#c9d6e6")
        axes.scatter(*codebook.T, s=1000 * fractions, color="black")
        axes.scatter(*codebook[unused].T, s=30, marker="x", color=MARK, linewidth=1)
        axes.set_title(title, fontsize=SMALL)
        axes.set(xticks=[], yticks=[])
    return save(figure, path)


def save(figure: Figure, path: str | Path) -> Figure:
    """Save a figure and close it; a notebook still shows what is returned."""
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return figure
