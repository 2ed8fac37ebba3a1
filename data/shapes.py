"""Procedural scenes with an oracle: captions that are exact, pictures that can be read back.

A scene is one to four coloured shapes on a plain background. `scene` draws one from a seed, `caption` says it in
words, `render` paints it, `detect` reads any picture back by rules, and `alignment` counts how often pictures show
what their captions say. Muse measures that with CLIP, a network's opinion (paper, section 3); here it is exact. Six
of the 60 (shape, colour, size) triples never occur in training: can a model compose what it has learnt?
Left out: overlap, rotation, texture, and every paraphrase: a scene has one caption.
"""

import functools
import itertools
import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

# --- The vocabulary ---
SHAPES = ("circle", "square", "triangle", "cross", "ring")
# Cyan and not orange: as seen from black, orange lies close to the direction of yellow.
COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (240, 215, 40),
    "purple": (170, 40, 210),
    "cyan": (40, 205, 225),
}
BACKGROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
SIZES = {"small": 7 / 64, "large": 10.5 / 64}  # radius of the enclosing disc / side of the picture
RELATIONS = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}  # (axis, sign) of things[0] - things[1]
NUMBERS = ("", "a", "two", "three", "four")
SPLITS = ("train", "heldout")
GAP = 3 / 64  # least distance between the enclosing discs of two things
MARGIN = 1.3 / 64  # least distance between an enclosing disc and the border
ASLANT = 0.6  # in a relation, |across| is at most this times |along|

TRIPLES = tuple(itertools.product(SHAPES, COLOURS, SIZES))
# One triple per colour, 6 of 60: each single value and each pair of values stays in training.
HELD_OUT = frozenset((SHAPES[2 * i % 5], c, tuple(SIZES)[i % 2]) for i, c in enumerate(COLOURS))
TRAIN_TRIPLES = tuple(t for t in TRIPLES if t not in HELD_OUT)


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str
    x: float  # centre, in [0, 1]
    y: float  # centre, in [0, 1], downwards

    def __post_init__(self):
        if (self.shape, self.colour, self.size) not in TRIPLES:
            raise ValueError(f"unknown shape, colour or size: {self}")


@dataclass(frozen=True)
class Scene:
    background: str
    things: tuple[Thing, ...]
    relation: str | None  # of things[0] relative to things[1]


# --- Drawing a scene from a seed ---
def _positions(rng, radii, relation):
    """Uniform positions given that nothing touches: the first of many draws that fits."""
    n, least = len(radii), radii[:, None] + MARGIN
    for _ in range(64):  # the worst case, four large things, fits once in 600 draws
        xy = rng.uniform(least, 1 - least, size=(256, n, 2))
        fits = np.ones(256, bool)
        for i, j in itertools.combinations(range(n), 2):
            fits &= np.hypot(*(xy[:, i] - xy[:, j]).T) >= radii[i] + radii[j] + GAP
        if relation is not None:
            (axis, sign), d = RELATIONS[relation], xy[:, 0] - xy[:, 1]
            along, across = sign * d[:, axis], np.abs(d[:, 1 - axis])
            fits &= (along >= radii.sum() + GAP) & (across <= ASLANT * along)
        if fits.any():
            return xy[fits.argmax()]
    raise RuntimeError(f"no room for {n} things of radii {radii.tolist()}")


def scene(seed: int, split: str = "train") -> Scene:
    """One thing, two to four alike, or two different ones in a relation. "heldout" shows one held-out triple, "train" none."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    rng = np.random.default_rng([SPLITS.index(split), seed])
    pool = TRAIN_TRIPLES if split == "train" else sorted(HELD_OUT)
    background = str(rng.choice(list(BACKGROUNDS)))
    triple = pool[rng.integers(len(pool))]
    kind, relation = rng.integers(3), None
    if kind < 2:
        triples = [triple] * (int(rng.integers(2, 5)) if kind else 1)
    else:
        others = [t for t in TRAIN_TRIPLES if t != triple]
        triples = [triple, others[rng.integers(len(others))]]
        if rng.integers(2):  # the held-out one comes first or second
            triples.reverse()
        relation = list(RELATIONS)[rng.integers(4)]
    xy = _positions(rng, np.array([SIZES[size] for _, _, size in triples]), relation)
    return Scene(
        background, tuple(Thing(*t, float(x), float(y)) for t, (x, y) in zip(triples, xy)), relation
    )


# --- Words ---
def caption(s: Scene) -> str:
    """The scene in words; it says everything but the positions."""
    names, n = [f"{t.size} {t.colour} {t.shape}" for t in s.things], len(s.things)
    if s.relation is not None and n == 2:
        subject = f"a {names[0]} {s.relation} a {names[1]}"
    elif s.relation is None and 0 < n < len(NUMBERS) and len(set(names)) == 1:
        plural = "" if n == 1 else "es" if names[0].endswith("s") else "s"
        subject = f"{NUMBERS[n]} {names[0]}{plural}"
    else:
        raise ValueError(f"no caption says {names} with relation {s.relation!r}")
    return f"{subject} on a {s.background} background"


def parse(text: str) -> Scene:
    """The scene that a caption describes, everything placed at the centre; undoes `caption`."""
    thing = rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    words = re.fullmatch(
        rf"({'|'.join(NUMBERS[1:])}) {thing}(?:e?s)?(?: ({'|'.join(RELATIONS)}) a {thing})?"
        rf" on a ({'|'.join(BACKGROUNDS)}) background",
        text,
    )
    if words is None:
        raise ValueError(f"not a caption of shapes: {text!r}")
    number, size, colour, shape, relation, size2, colour2, shape2, background = words.groups()
    alike = (Thing(shape, colour, size, 0.5, 0.5),) * NUMBERS.index(number)
    other = (Thing(shape2, colour2, size2, 0.5, 0.5),) if relation else ()
    found = Scene(background, alike + other, relation)
    if caption(found) != text:  # the pattern lets "two small red circle" through
        raise ValueError(f"not a caption of shapes: {text!r}; did you mean {caption(found)!r}?")
    return found


# --- Painting ---
def coverage(shape: str, x, y, r: float, edge: float):
    """How much of the pixel at (x, y) from the centre is covered, in [0, 1]; all in pixels."""
    if shape == "circle":
        d = (
            np.hypot(x, y) - r
        )  # the signed distance to the outline, below 0 inside; all shapes fit a disc of radius r
    elif shape == "ring":
        d = np.abs(np.hypot(x, y) - 0.775 * r) - 0.225 * r
    elif shape == "square":
        d = np.maximum(np.abs(x), np.abs(y)) - 0.7 * r
    elif shape == "triangle":  # equilateral, one corner up: the largest of three half-planes
        d = np.maximum(y, 0.75**0.5 * np.abs(x) - 0.5 * y) - 0.5 * r
    elif shape == "cross":  # two bars: the larger of |x|, |y| runs along one, the smaller across it
        x, y = np.abs(x), np.abs(y)
        d = np.maximum(np.maximum(x, y) - 0.95 * r, np.minimum(x, y) - 0.3 * r)
    return np.clip(0.5 - d / edge, 0, 1)


def render(scenes, side: int) -> torch.Tensor:
    """Paint scenes -> (B, 3, side, side) uint8."""
    pictures = np.empty((len(scenes), side, side, 3), np.uint8)
    for s, picture in zip(scenes, pictures):
        canvas = np.full((side, side, 3), BACKGROUNDS[s.background], np.float32)
        for t in s.things:
            centre = np.array((t.x, t.y), np.float32)[:, None] * side - 0.5
            x, y = (np.arange(side) - centre).astype(np.float32)
            cover = coverage(t.shape, x, y[:, None], np.float32(SIZES[t.size]) * side, 1)[..., None]
            canvas += cover * (np.array(COLOURS[t.colour], np.float32) - canvas)
        picture[:] = canvas + 0.5
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


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


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927): it holds near 0 and 1 too."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, right / n  # 97.5 % of a normal distribution lies below z
    middle, spread = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, (middle - spread) / (1 + z * z / n)), min(
        1.0, (middle + spread) / (1 + z * z / n)
    )


def share(right: list[bool]) -> dict[str, float]:
    """How often, out of how many, with the interval."""
    low, high = wilson(sum(right), n := len(right))
    return {"value": sum(right) / n if n else float("nan"), "low": low, "high": high, "n": n}


def alignment(scenes, images: torch.Tensor) -> dict[str, dict[str, float]]:
    """How often pictures (B, 3, S, S) in [-1, 1] show what the scenes' captions say."""
    if len(scenes) != len(images):
        raise ValueError(f"{len(scenes)} scenes for {len(images)} images")
    answers = [agree(s, reading) for s, reading in zip(scenes, detect(images))]
    return {k: share([a[k] for a in answers if a[k] is not None]) for k in ATTRIBUTES}
