"""Procedural scenes: one to four coloured shapes on a plain background, with an exact caption.

    from minimuse.datasets import shapes
    scene = shapes.scene(seed=0)                # a Scene, drawn from a seed
    shapes.caption(scene)                       # "a small red circle on a grey background"
    shapes.render([scene], side=64)             # (1, 3, 64, 64), uint8

A scene is data, so we know what an image of it must show: `detector.py` reads any image back into
a scene, and `metrics/alignment.py` counts how often images show what their captions say. Muse
measures that with CLIP, a network whose answers are sometimes wrong (2301.00704, section 3).

Six of the 60 (shape, colour, size) triples never occur in training. Scenes with one of them test
whether a model can combine what it has learnt. Left out: overlap, rotation, texture, and other
wordings: a scene has one caption.

Coordinates and lengths are fractions of the image's side, x to the right and y downwards.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# --- The vocabulary ---
SHAPES = ("circle", "square", "triangle", "cross", "ring")

# There is cyan and no orange: seen from a black background, orange lies in nearly the same
# direction as yellow, and a soft edge of one would look like the other.
COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (240, 215, 40),
    "purple": (170, 40, 210),
    "cyan": (40, 205, 225),
}

BACKGROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}

# Radius of the disc around a thing.
SIZES = {"small": 7 / 64, "large": 10.5 / 64}

# Relation of the first thing to the second: the axis (0 is x, 1 is y), and the sign along it of the
# first position minus the second.
RELATIONS = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}

NUMBERS = ("", "a", "two", "three", "four")  # NUMBERS[n] says n

SPLITS = ("train", "heldout")

# Least distance between the discs around two things: three pixels of 64. Their soft edges must not
# meet, or the detector would take two things for one.
GAP = 3 / 64

# Least distance between a disc and the border of the image: at 64 pixels and more, the outermost
# row of pixels is then pure background, where the detector reads the background's colour.
MARGIN = 1.3 / 64

# In a relation, the distance across the axis is at most this times the distance along it, so that
# no reader doubts whether one thing is left of another or above it.
ASLANT = 0.6

TRIPLES = tuple(itertools.product(SHAPES, COLOURS, SIZES))


def _held_out() -> frozenset[tuple[str, str, str]]:
    """One triple of each colour. Training keeps each single value and each pair of values."""
    sizes = tuple(SIZES)
    return frozenset(
        (SHAPES[2 * i % len(SHAPES)], colour, sizes[i % len(sizes)])
        for i, colour in enumerate(COLOURS)
    )


HELD_OUT = _held_out()

TRAIN_TRIPLES = tuple(triple for triple in TRIPLES if triple not in HELD_OUT)


@dataclass(frozen=True)
class Thing:
    """One shape in a scene."""

    shape: str
    colour: str
    size: str
    x: float  # centre
    y: float  # centre

    def __post_init__(self) -> None:
        if (self.shape, self.colour, self.size) not in TRIPLES:
            raise ValueError(f"unknown shape, colour or size: {self}")


@dataclass(frozen=True)
class Scene:
    """Things on a background."""

    background: str
    things: tuple[Thing, ...]
    relation: str | None  # of things[0] to things[1]


# --- Drawing a scene from a seed ---
def scene(seed: int, split: str = "train") -> Scene:
    """One thing, or two to four alike, or two different ones in a relation.

    Scenes of "heldout" show one held-out triple, those of "train" show none.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    rng = np.random.default_rng([SPLITS.index(split), seed])
    triples_of_split = TRAIN_TRIPLES if split == "train" else sorted(HELD_OUT)
    background = str(rng.choice(list(BACKGROUNDS)))
    triple = triples_of_split[rng.integers(len(triples_of_split))]
    relation = None
    kind = rng.integers(3)
    if kind == 0:
        triples = [triple]
    elif kind == 1:
        count = int(rng.integers(2, 5))
        triples = [triple] * count
    else:
        others = [other for other in TRAIN_TRIPLES if other != triple]
        triples = [triple, others[rng.integers(len(others))]]
        # The held-out triple must come first as often as second.
        if rng.integers(2):
            triples.reverse()
        relation = list(RELATIONS)[rng.integers(len(RELATIONS))]
    radii = np.array([SIZES[size] for _, _, size in triples])
    positions = _positions(rng, radii, relation)
    things = tuple(
        Thing(shape, colour, size, float(x), float(y))
        for (shape, colour, size), (x, y) in zip(triples, positions, strict=True)
    )
    return Scene(background, things, relation)


def _positions(rng: np.random.Generator, radii: np.ndarray, relation: str | None) -> np.ndarray:
    """Centres (n, 2) of n things with radii (n,): uniform among all that fit.

    This is rejection sampling: draw candidates until one fits. The worst case, four large things,
    fits once in 600 draws; 64 times 256 candidates are enough.
    """
    n = len(radii)
    least = radii[:, None] + MARGIN
    for _ in range(64):
        candidates = rng.uniform(least, 1 - least, size=(256, n, 2))
        fits = np.ones(256, bool)
        for i, j in itertools.combinations(range(n), 2):
            difference = candidates[:, i] - candidates[:, j]
            distance = np.hypot(difference[:, 0], difference[:, 1])
            fits &= distance >= radii[i] + radii[j] + GAP
        if relation is not None:
            axis, sign = RELATIONS[relation]
            difference = candidates[:, 0] - candidates[:, 1]
            along = sign * difference[:, axis]
            across = np.abs(difference[:, 1 - axis])
            fits &= (along >= radii.sum() + GAP) & (across <= ASLANT * along)
        if fits.any():
            return candidates[fits.argmax()]
    raise RuntimeError(f"no room for {n} things of radii {radii.tolist()}")


# --- Words ---
def caption(scene: Scene) -> str:
    """The scene in words, which say everything but the positions."""
    names = [f"{thing.size} {thing.colour} {thing.shape}" for thing in scene.things]
    n = len(names)
    alike = len(set(names)) == 1
    if scene.relation is not None and n == 2:
        subject = f"a {names[0]} {scene.relation} a {names[1]}"
    elif scene.relation is None and alike and n < len(NUMBERS):
        subject = f"{NUMBERS[n]} {names[0]}{_plural_ending(names[0], n)}"
    else:
        raise ValueError(f"no caption says {names} with relation {scene.relation!r}")
    return f"{subject} on a {scene.background} background"


def every_word() -> str:
    """A text with every word that a caption can have."""
    plurals = [f"{shape}{_plural_ending(shape, 2)}" for shape in SHAPES]
    things = [*NUMBERS, *SIZES, *COLOURS, *SHAPES, *plurals]
    return " ".join([*things, *RELATIONS, "on a", *BACKGROUNDS, "background"])


def _plural_ending(name: str, n: int) -> str:
    if n == 1:
        return ""
    return "es" if name.endswith("s") else "s"


def parse(text: str) -> Scene:
    """The scene that a caption describes, with everything at the centre; undoes `caption`."""
    thing = rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    words = re.fullmatch(
        rf"({'|'.join(NUMBERS[1:])}) {thing}(?:e?s)?(?: ({'|'.join(RELATIONS)}) a {thing})?"
        rf" on a ({'|'.join(BACKGROUNDS)}) background",
        text,
    )
    if words is None:
        raise ValueError(f"not a caption of shapes: {text!r}")
    number, size, colour, shape, relation, size2, colour2, shape2, background = words.groups()
    things = [Thing(shape, colour, size, 0.5, 0.5)] * NUMBERS.index(number)
    if relation is not None:
        things.append(Thing(shape2, colour2, size2, 0.5, 0.5))
    scene = Scene(background, tuple(things), relation)
    # The pattern also accepts wrong plurals such as "two small red circle".
    if caption(scene) != text:
        raise ValueError(f"not a caption of shapes: {text!r}; did you mean {caption(scene)!r}?")
    return scene


# --- Painting ---
def coverage(
    shape: str, x: np.ndarray, y: np.ndarray, r: float | np.ndarray, edge: float
) -> np.ndarray:
    """How much a shape covers the pixels at (x, y) from its centre, from 0 to 1.

    All lengths in pixels; x and y broadcast. The shape fits in a disc of radius r. Coverage falls
    from 1 to 0 over `edge` pixels across the outline; at 1 that is close to the exact area.
    """
    # distance: of the pixel's centre from the outline, negative inside.
    if shape == "circle":
        distance = np.hypot(x, y) - r
    elif shape == "ring":
        distance = np.abs(np.hypot(x, y) - 0.775 * r) - 0.225 * r
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.7 * r
    elif shape == "triangle":
        # Equilateral, one corner up: the intersection of three half-planes.
        distance = np.maximum(y, 0.75**0.5 * np.abs(x) - 0.5 * y) - 0.5 * r
    elif shape == "cross":
        # Two bars: the larger of |x| and |y| runs along one of them, the smaller across it.
        x, y = np.abs(x), np.abs(y)
        distance = np.maximum(np.maximum(x, y) - 0.95 * r, np.minimum(x, y) - 0.3 * r)
    else:
        raise ValueError(f"unknown shape {shape!r}; choose one of {', '.join(SHAPES)}")
    return np.clip(0.5 - distance / edge, 0, 1)


def render(scenes: Sequence[Scene], side: int) -> torch.Tensor:
    """Paint B scenes: (B, 3, H, W) uint8, where H and W are `side`."""
    images = np.empty((len(scenes), side, side, 3), np.uint8)  # B H W 3
    for i, scene in enumerate(scenes):
        images[i] = _paint(scene, side)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()  # B 3 H W


def _paint(scene: Scene, side: int) -> np.ndarray:
    """One scene -> (H, W, 3) uint8."""
    canvas = np.full((side, side, 3), BACKGROUNDS[scene.background], np.float32)  # H W 3
    for thing in scene.things:
        # The first pixel's centre has the coordinate 0, half a pixel from the border.
        centre = np.array((thing.x, thing.y), np.float32)[:, None] * side - 0.5  # 2 1
        x, y = (np.arange(side) - centre).astype(np.float32)  # W, H
        r = np.float32(SIZES[thing.size]) * side
        cover = coverage(thing.shape, x, y[:, None], r, 1)[..., None]  # H W 1
        canvas += cover * (np.array(COLOURS[thing.colour], np.float32) - canvas)
    return (canvas + 0.5).astype(np.uint8)  # rounds
