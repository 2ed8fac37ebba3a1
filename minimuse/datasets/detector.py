import functools
import itertools

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


# --- Reading a picture back ---
def detect(images: torch.Tensor) -> list[Scene]:
    """Pictures (B, 3, S, S) in [-1, 1] -> scenes without relation, by rules only."""
    shape = tuple(images.shape)
    if shape != (len(images), 3, shape[-1], shape[-1]) or not images.is_floating_point():
        raise ValueError(f"images are {shape} {images.dtype}; detect needs floats (B, 3, S, S)")
    return [
        _read(pixels)
        for pixels in ((images.detach().float().cpu() + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    ]


def _read(pixels):
    """One picture (S, S, 3) in [0, 255]: every blob is a thing, a broken one of the shape that it resembles most."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    paints = np.array(list(BACKGROUNDS.values()), np.float32)
    background = np.linalg.norm(np.median(border, 0) - paints, axis=-1).argmin()
    # A soft edge mixes background and colour, so a pixel lies on the line between the two. For each colour:
    # how far along that line it lies (the coverage), and how far off (the misfit).
    v = pixels - paints[background]  # (S, S, 3)
    lines = np.array(list(COLOURS.values()), np.float32) - paints[background]  # (6, 3)
    dot, square = np.einsum("hwc,kc->hwk", v, lines), (lines**2).sum(-1)  # (S, S, 6), (6,)
    cover = np.clip(dot / square, 0, 1)  # (S, S, 6)
    misfit = (v**2).sum(-1, keepdims=True) - 2 * cover * dot + cover**2 * square
    likeliest = np.take_along_axis(cover, misfit.argmin(-1)[..., None], -1)[..., 0]

    labels = components(
        torch.from_numpy(likeliest > 0.4)[None]
    )  # pixels covered more than this belong to things
    grown = F.max_pool2d(labels, 3, stride=1, padding=1)[0].numpy()  # takes in the soft edge around
    labels, things = labels[0].numpy(), []
    for label, count in zip(*np.unique(labels, return_counts=True)):
        if (
            label > 0 and count >= 0.003 * labels.size
        ):  # or it is a speck: the smallest thing covers 0.015
            colour = misfit[labels == label].sum(0).argmin()
            shape, size, x, y = match(np.where(grown == label, cover[..., colour], 0))
            things.append(Thing(shape, list(COLOURS)[colour], size, x, y))
    return Scene(list(BACKGROUNDS)[background], tuple(things), None)


def components(mask: torch.Tensor) -> torch.Tensor:
    """Number the 8-connected blobs of (B, S, S) booleans: each blob's largest index spreads."""
    labels = torch.arange(1.0, mask.shape[1:].numel() + 1).reshape(mask.shape[1:]) * mask
    while not torch.equal(spread := F.max_pool2d(labels, 3, stride=1, padding=1) * mask, labels):
        labels = spread
    return labels


@functools.lru_cache(maxsize=4)
def _templates(side):
    """Each shape and size at sub-pixel shifts: names, and coverages (T, P, P)."""
    half = int(np.ceil(max(SIZES.values()) * side)) + 2
    grid = np.arange(-half, half + 1, dtype=np.float32)
    shifts = np.arange(-0.5, 0.51, 0.25, dtype=np.float32)
    edges = (
        1,
        2,
    )  # the wider one is for blurred pictures: without it a blurred small ring passes for a cross
    names = list(itertools.product(SHAPES, SIZES, shifts, shifts, edges))
    return names, np.stack(
        [
            coverage(shape, grid - dx, grid[:, None] - dy, SIZES[size] * side, edge)
            for shape, size, dx, dy, edge in names
        ]
    )


def match(soft):
    """Shape, size, x, y whose template has the largest soft overlap with a coverage map (S, S)."""
    names, templates = _templates(len(soft))
    P = templates.shape[-1]
    # Every shape balances about its centre, so the centre of mass finds it within a pixel.
    column, row = (
        round(float(soft.sum(axis) @ np.arange(len(soft)) / soft.sum())) for axis in (0, 1)
    )
    patch = np.pad(soft, P // 2)[row : row + P, column : column + P]
    both = np.minimum(patch, templates).sum((1, 2))
    overlap = both / (
        soft.sum() + templates.sum((1, 2)) - both
    )  # intersection over union: sum(min) / sum(max)
    shape, size, dx, dy, _ = names[overlap.argmax()]
    return shape, size, float(column + dx + 0.5) / len(soft), float(row + dy + 0.5) / len(soft)


# --- Judging ---
PARTS = ("shape", "colour", "size")


ATTRIBUTES = (*PARTS, "count", "relation", "background", "all")


def agree(wanted: Scene, reading: Scene) -> dict[str, bool | None]:
    """Which attributes a reading has right, for *every* thing of the caption; None: not asked.

    Things are paired so that most parts agree. A missing thing makes all parts wrong, an additional one only the count.
    """

    def same(want, got):
        return [got is not None and getattr(want, part) == getattr(got, part) for part in PARTS]

    # With n wanted, n candidates for each suffice: the others use at most n - 1 of them.
    n = len(wanted.things)
    found = [*reading.things, *[None] * n]  # None: missing
    best = [
        sorted(range(len(found)), key=lambda i: -sum(same(w, found[i])))[:n] for w in wanted.things
    ]
    pairings = [[found[i] for i in p] for p in itertools.product(*best) if len({*p}) == n]
    got = max(pairings, key=lambda things: sum(map(sum, map(same, wanted.things, things))))
    answer = dict(zip(PARTS, map(all, zip(*map(same, wanted.things, got)))))
    answer["count"] = len(reading.things) == n
    answer["relation"] = (
        None if wanted.relation is None else None not in got and holds(wanted.relation, *got)
    )
    answer["background"] = wanted.background == reading.background
    answer["all"] = False not in answer.values()
    return answer


def holds(relation: str, first: Thing, second: Thing) -> bool:
    """Whether first is left of (...) second: to that side, and more along than across."""
    (axis, sign), d = RELATIONS[relation], (first.x - second.x, first.y - second.y)
    return sign * d[axis] > abs(d[1 - axis])
