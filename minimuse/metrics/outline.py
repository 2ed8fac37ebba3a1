"""Outline: how well the things in images of scenes are drawn, whatever they are.

    from minimuse.metrics import outline
    outline.outline(images)["value"]      # 1.0: all outlines are exact; 0.8 looks ragged

`alignment.py` asks what a thing is, and the detector forgives a ragged square that is still more
like a square than like a circle. Here each thing is compared with an exact drawing of the same
kind, at the centre and of the radius that fit best. Their overlap is the intersection over union.
"""

import numpy as np
import torch

from minimuse.datasets.detector import find_blobs, match
from minimuse.datasets.shapes import SIZES, coverage
from minimuse.metrics.intervals import mean_of

# Steps of the search for the best centre and radius, in pixels of a side of 64.
SEARCH_STEPS = (1, 0.5, 0.25, 0.125, 0.0625, 0.03125)

# One step of the search changes x, y or the radius: six moves.
MOVES = np.concatenate([np.eye(3), -np.eye(3)])


def outline(images: torch.Tensor) -> dict[str, float]:
    """The mean overlap of all things in images (B, 3, H, W) in [-1, 1], with a 95 % interval.

    The interval takes things as independent. It is not-a-number if no image shows a thing.
    """
    overlaps = [overlap for of_image in overlaps_of(images) for overlap in of_image]
    if not overlaps:
        nan = float("nan")
        return {"value": nan, "low": nan, "high": nan, "n": 0}
    return mean_of(torch.tensor(overlaps))


def overlaps_of(images: torch.Tensor) -> list[list[float]]:
    """For each image (B, 3, H, W), the overlap from 0 to 1 of each thing in it."""
    return [[best_overlap(blob.cover) for blob in blobs] for _, blobs in find_blobs(images)]


def best_overlap(cover: np.ndarray) -> float:
    """The overlap of a coverage map (H, W) with the best exact drawing of its own kind of shape.

    A search that begins with the detector's guess: make the best of six moves as long as it is an
    improvement, then go on with smaller steps.
    """
    side = len(cover)
    shape, size, x, y = match(cover)
    # The first pixel's centre has the coordinate 0, as in `shapes.render`.
    best = np.array([x * side - 0.5, y * side - 0.5, SIZES[size] * side])
    overlap = overlaps_with(cover, shape, best[None])[0]
    for step in SEARCH_STEPS:
        improves = True
        while improves:
            drawings = best + step * side / 64 * MOVES  # 6 3
            overlaps = overlaps_with(cover, shape, drawings)  # 6
            improves = overlaps.max() > overlap
            if improves:
                overlap = overlaps.max()
                best = drawings[overlaps.argmax()]
    return float(overlap)


def overlaps_with(cover: np.ndarray, shape: str, drawings: np.ndarray) -> np.ndarray:
    """Intersection over union of a coverage map (H, W) with exact drawings (M, 3): (M,).

    A drawing is x, y and radius, in pixels. Coverages are soft, so the intersection is the sum of
    minima, and the union the sum of both less the intersection.
    """
    # Nothing is drawn outside the rows and columns that the drawings can reach.
    reach = drawings[:, 2].max() + 1
    first = np.floor(drawings[:, :2].min(0) - reach).clip(0).astype(int)
    end = np.ceil(drawings[:, :2].max(0) + reach).astype(int) + 1
    columns = np.arange(first[0], min(end[0], len(cover)))
    rows = np.arange(first[1], min(end[1], len(cover)))
    x, y, radius = (drawings[:, i, None, None] for i in range(3))  # M 1 1
    ideal = coverage(shape, columns - x, rows[:, None] - y, radius, 1)  # M, rows, columns
    intersection = np.minimum(cover[np.ix_(rows, columns)], ideal).sum((1, 2))  # M
    union = cover.sum() + ideal.sum((1, 2)) - intersection  # M
    return intersection / union
