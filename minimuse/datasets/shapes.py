"""Procedural scenes with an oracle: captions that are exact, pictures that can be read back.

A scene is one to four coloured shapes on a plain background. `scene` draws one from a seed, `caption` says it in
words, `render` paints it, `detect` reads any picture back by rules, and `alignment` counts how often pictures show
what their captions say. Muse measures that with CLIP, a network's opinion (paper, section 3); here it is exact. Six
of the 60 (shape, colour, size) triples never occur in training: can a model compose what it has learnt?
Left out: overlap, rotation, texture, and every paraphrase: a scene has one caption.
"""

import itertools
import re
from dataclasses import dataclass

import numpy as np
import torch

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
