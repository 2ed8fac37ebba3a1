"""The detector reads an image back into a scene, by rules, and compares it with a caption.

    from minimuse.datasets import detector, shapes
    wanted = shapes.parse("a small red circle on a grey background")
    reading = detector.detect(images)[0]           # images (B, 3, H, W) in [-1, 1], square
    detector.agree(wanted, reading)["colour"]      # True if the circle is red

It finds the background at the border, what each colour covers, connected blobs of covered pixels,
and for each blob the shape and size that overlap it most. No network is involved: on images that
`shapes.render` painted, also when they are blurred or noisy, it is right in 99 of 100
(tests/test_shapes.py).
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from minimuse.datasets.shapes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    coverage,
)

# A pixel belongs to a thing if the thing covers more of it than this. With less, noise passes for
# things; with more, thin parts vanish from blurred images.
COVERED = 0.4

# A blob that is a smaller fraction of the image is a speck and is dropped. The smallest thing, a
# small triangle, covers 0.015.
SPECK = 0.003

# Templates stand at these distances from the middle of a pixel, in pixels. The nearest pixel to a
# thing's centre is at most half a pixel away along each axis.
SHIFTS = np.arange(-0.5, 0.51, 0.25, dtype=np.float32)

# Widths of a template's soft edge, in pixels. The wider one is for blurred images: without it, a
# small blurred ring, whose hole is nearly closed, would be taken for a cross.
EDGES = (1, 2)


class Blob(NamedTuple):
    """Connected pixels of one colour."""

    colour: str
    cover: np.ndarray  # (H, W), how much of each pixel is covered, from 0 to 1


# --- Reading an image back ---
def detect(images: torch.Tensor) -> list[Scene]:
    """Read images (B, 3, H, W) in [-1, 1], H = W, as scenes. Their relation is None.

    Every blob is a thing, of the shape and size that it resembles most.
    """
    scenes = []
    for background, blobs in find_blobs(images):
        things = []
        for blob in blobs:
            shape, size, x, y = match(blob.cover)
            things.append(Thing(shape, blob.colour, size, x, y))
        scenes.append(Scene(background, tuple(things), None))
    return scenes


def find_blobs(images: torch.Tensor) -> list[tuple[str, list[Blob]]]:
    """The background and the blobs of each of B images (B, 3, H, W) in [-1, 1], H = W."""
    shape = tuple(images.shape)
    square = images.dim() == 4 and shape[1] == 3 and shape[2] == shape[3]
    if not square or not images.is_floating_point():
        raise ValueError(
            f"images are {shape} {images.dtype}; detect needs floats (B, 3, H, W) with H = W"
        )
    levels = (images.detach().float().cpu() + 1) * 127.5  # B 3 H W, in [0, 255]
    return [_read_image(image) for image in levels.permute(0, 2, 3, 1).numpy()]


def _read_image(image: np.ndarray) -> tuple[str, list[Blob]]:
    """The background and the blobs of one image (H, W, 3) in [0, 255]."""
    background = _background_of(image)
    cover, misfit = _colours_of_pixels(image, background)  # both (H, W, 6)
    likeliest = misfit.argmin(-1)[..., None]  # H W 1
    covered = np.take_along_axis(cover, likeliest, -1)[..., 0] > COVERED  # H W
    labels = components(torch.from_numpy(covered)[None])  # 1 H W
    # One pixel more on each side takes in the soft edge around a blob.
    grown = F.max_pool2d(labels, 3, stride=1, padding=1)[0].numpy()  # H W
    labels = labels[0].numpy()  # H W

    blobs = []
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if label == 0 or count < SPECK * labels.size:
            continue
        # All pixels of a blob choose its colour together.
        colour = misfit[labels == label].sum(0).argmin()
        covered_by_blob = np.where(grown == label, cover[..., colour], 0)  # H W
        blobs.append(Blob(list(COLOURS)[colour], covered_by_blob))
    return background, blobs


def _background_of(image: np.ndarray) -> str:
    """The background nearest to the median colour of the border of an image (H, W, 3)."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    paints = np.array(list(BACKGROUNDS.values()), np.float32)  # 3 3
    distances = np.linalg.norm(np.median(border, 0) - paints, axis=-1)
    return list(BACKGROUNDS)[distances.argmin()]


def _colours_of_pixels(image: np.ndarray, background: str) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and misfit (H, W, 6) of each pixel of an image (H, W, 3), for each of six colours.

    A soft edge mixes the background with a thing's colour, so its pixels lie on the line between
    the two in colour space. For each colour, project the pixel onto that line. How far along the
    line it lies is the coverage; its squared distance from the line is the misfit.
    """
    paint = np.array(BACKGROUNDS[background], np.float32)
    offsets = image - paint  # H W 3
    lines = np.array(list(COLOURS.values()), np.float32) - paint  # 6 3
    dot = np.einsum("hwc,kc->hwk", offsets, lines)  # H W 6
    square = (lines**2).sum(-1)  # 6
    cover = np.clip(dot / square, 0, 1)  # H W 6
    # |offset - cover line|^2, multiplied out
    misfit = (offsets**2).sum(-1, keepdims=True) - 2 * cover * dot + cover**2 * square  # H W 6
    return cover, misfit


def components(mask: torch.Tensor) -> torch.Tensor:
    """Label the connected blobs of masks (B, H, W): (B, H, W) floats, 0 outside, one label a blob.

    Pixels that touch at a side or a corner are connected. Every pixel starts with a label of its
    own, and the largest label in each blob spreads over it.
    """
    H, W = mask.shape[1:]
    labels = torch.arange(1.0, H * W + 1).reshape(H, W) * mask  # B H W
    while True:
        spread = F.max_pool2d(labels, 3, stride=1, padding=1) * mask
        if torch.equal(spread, labels):
            return labels
        labels = spread


def match(blob: np.ndarray) -> tuple[str, str, float, float]:
    """Shape, size, x and y of the template that overlaps a coverage map (H, W) most.

    Overlap is intersection over union of soft coverages: sum of minima over sum of maxima.
    """
    side = len(blob)
    names, templates = _templates(side)
    P = templates.shape[-1]
    # Every shape balances about its centre, so the centre of mass is within a pixel of it.
    pixels = np.arange(side)
    column = round(float(blob.sum(0) @ pixels / blob.sum()))
    row = round(float(blob.sum(1) @ pixels / blob.sum()))
    patch = np.pad(blob, P // 2)[row : row + P, column : column + P]  # P P
    intersection = np.minimum(patch, templates).sum((1, 2))  # T
    union = blob.sum() + templates.sum((1, 2)) - intersection
    shape, size, dx, dy, _ = names[(intersection / union).argmax()]
    return shape, size, float(column + dx + 0.5) / side, float(row + dy + 0.5) / side


@functools.lru_cache(maxsize=4)  # one for each image side in use; making them takes longer than use
def _templates(side: int) -> tuple[list[tuple], np.ndarray]:
    """Every shape and size at every shift and edge: T names, and coverages (T, P, P)."""
    # Two pixels more than the largest radius: for the shift, and for the soft edge.
    half = int(np.ceil(max(SIZES.values()) * side)) + 2
    grid = np.arange(-half, half + 1, dtype=np.float32)
    names = list(itertools.product(SHAPES, SIZES, SHIFTS, SHIFTS, EDGES))
    templates = [
        coverage(shape, grid - dx, grid[:, None] - dy, SIZES[size] * side, edge)
        for shape, size, dx, dy, edge in names
    ]
    return names, np.stack(templates)


# --- Comparing a reading with a caption ---
PARTS = ("shape", "colour", "size")

ATTRIBUTES = (*PARTS, "count", "relation", "background", "all")


def agree(wanted: Scene, reading: Scene) -> dict[str, bool | None]:
    """Which attributes a reading has right, for *every* thing of the caption.

    A relation that the caption does not name gets None. A missing thing makes everything wrong but
    the background. An additional one makes the count wrong, and with it "all".
    """
    things = pair(wanted.things, reading.things)
    matches = [_matches(a, b) for a, b in zip(wanted.things, things, strict=True)]
    answer = {}
    for i, part in enumerate(PARTS):
        answer[part] = all(row[i] for row in matches)
    answer["count"] = len(reading.things) == len(wanted.things)
    if wanted.relation is None:
        answer["relation"] = None
    else:
        answer["relation"] = None not in things and holds(wanted.relation, *things)
    answer["background"] = wanted.background == reading.background
    answer["all"] = False not in answer.values()
    return answer


def pair(wanted: tuple[Thing, ...], detected: tuple[Thing, ...]) -> list[Thing | None]:
    """For each of n wanted things a detected one, or None, so that most parts agree in all."""
    n = len(wanted)
    candidates = [*detected, *[None] * n]  # any thing may be missing
    # The n best candidates of each thing suffice: other things use at most n - 1 of them.
    shortlists = []
    for thing in wanted:
        scores = [sum(_matches(thing, candidate)) for candidate in candidates]
        by_score = sorted(range(len(candidates)), key=scores.__getitem__, reverse=True)
        shortlists.append(by_score[:n])
    best: list[Thing | None] = []
    best_score = -1
    for indices in itertools.product(*shortlists):
        if len(set(indices)) < n:  # uses a candidate twice
            continue
        things = [candidates[i] for i in indices]
        score = sum(sum(_matches(a, b)) for a, b in zip(wanted, things, strict=True))
        if score > best_score:
            best, best_score = things, score
    return best


def _matches(wanted: Thing, detected: Thing | None) -> list[bool]:
    """For each part, whether the detected thing has the wanted value; a missing thing has none."""
    if detected is None:
        return [False] * len(PARTS)
    return [getattr(wanted, part) == getattr(detected, part) for part in PARTS]


def holds(relation: str, first: Thing, second: Thing) -> bool:
    """Whether `first` is left of (...) `second`: to that side, and farther along than across."""
    axis, sign = RELATIONS[relation]
    difference = (first.x - second.x, first.y - second.y)
    return sign * difference[axis] > abs(difference[1 - axis])
