"""Scenes of shapes, their captions and images, and the detector: `pytest tests/test_shapes.py`."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from minimuse.datasets.detector import ATTRIBUTES, PARTS, agree, components, detect
from minimuse.datasets.shapes import (
    BACKGROUNDS,
    COLOURS,
    GAP,
    HELD_OUT,
    MARGIN,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    TRAIN_TRIPLES,
    TRIPLES,
    Scene,
    Thing,
    caption,
    coverage,
    parse,
    render,
    scene,
)
from minimuse.metrics.alignment import alignment
from minimuse.metrics.intervals import wilson

seeds = st.integers(0, 2**32 - 1)
splits = st.sampled_from(SPLITS)


def triple(thing):
    return (thing.shape, thing.colour, thing.size)


def floats(scenes, side):
    """Images of scenes in [-1, 1], as the detector reads them."""
    return render(scenes, side) / 127.5 - 1


def scenes_of(split, n):
    return [scene(seed, split) for seed in range(n)]


# --- Scenes -----------------------------------------------------------------------------------


@given(seeds, splits)
@settings(deadline=None)
def test_scene_depends_on_seed_and_split_only(seed, split):
    first = scene(seed, split)
    # Use other generators and another seed in between.
    np.random.rand(3)
    torch.rand(3)
    scene(seed + 1, split)
    assert scene(seed, split) == first


def test_seeds_and_splits_give_different_scenes():
    assert len(set(scenes_of("train", 200) + scenes_of("heldout", 200))) == 400
    with pytest.raises(ValueError, match="'test'"):
        scene(0, "test")


def test_held_out_triples():
    assert len(TRIPLES) == 60 and 6 <= len(HELD_OUT) <= 9
    assert HELD_OUT <= set(TRIPLES) and not HELD_OUT & set(TRAIN_TRIPLES)
    for i, j in itertools.combinations(range(3), 2):
        every_pair = {(t[i], t[j]) for t in TRIPLES}
        assert {(t[i], t[j]) for t in TRAIN_TRIPLES} == every_pair
    assert [len({t[i] for t in HELD_OUT}) for i in range(3)] == [5, 6, 2]


def test_train_never_shows_a_held_out_triple_and_heldout_always_does():
    train = scenes_of("train", 1000)
    assert {triple(thing) for s in train for thing in s.things} == set(TRAIN_TRIPLES)
    heldout = scenes_of("heldout", 1000)
    for s in heldout:
        assert {triple(thing) for thing in s.things} & HELD_OUT
    # In a relation, the held-out triple is the first thing in about half of the scenes.
    related = [s for s in heldout if s.relation]
    first = sum(triple(s.things[0]) in HELD_OUT for s in related) / len(related)
    assert 0.4 < first < 0.6


@pytest.mark.parametrize("split", SPLITS)
def test_kinds_of_scene(split):
    scenes = scenes_of(split, 1500)
    kinds = Counter("relation" if s.relation else len(s.things) for s in scenes)
    expected = {1: 1 / 3, 2: 1 / 9, 3: 1 / 9, 4: 1 / 9, "relation": 1 / 3}
    for kind, fraction in expected.items():
        assert abs(kinds[kind] / 1500 - fraction) < 0.05
    assert {s.relation for s in scenes} == {None, *RELATIONS}
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    for s in scenes:
        different = len({triple(t) for t in s.things})
        assert different == (2 if s.relation else 1)


@given(seeds, splits)
@settings(deadline=None)
def test_things_stay_apart_and_inside(seed, split):
    s = scene(seed, split)
    for t in s.things:
        room = SIZES[t.size] + MARGIN - 1e-9
        assert room <= t.x <= 1 - room and room <= t.y <= 1 - room
    for a, b in itertools.combinations(s.things, 2):
        assert math.dist((a.x, a.y), (b.x, b.y)) >= SIZES[a.size] + SIZES[b.size] + GAP - 1e-9


def test_relation_geometry():
    toward = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
    for s in scenes_of("train", 1000):
        if s.relation:
            a, b = s.things
            u, w = toward[s.relation]
            dx, dy = a.x - b.x, a.y - b.y
            along = u * dx + w * dy
            across = abs(w * dx) + abs(u * dy)
            assert along >= SIZES[a.size] + SIZES[b.size]  # no overlap on the axis
            assert across <= 0.6 * along


# --- Captions ---------------------------------------------------------------------------------


RING = Thing("ring", "red", "small", 0.2, 0.5)
CROSS = Thing("cross", "blue", "large", 0.7, 0.5)


@pytest.mark.parametrize(
    "s, text",
    [
        (Scene("grey", (RING,), None), "a small red ring on a grey background"),
        (Scene("white", (RING,) * 3, None), "three small red rings on a white background"),
        (Scene("white", (CROSS,) * 2, None), "two large blue crosses on a white background"),
        (
            Scene("black", (RING, CROSS), "left of"),
            "a small red ring left of a large blue cross on a black background",
        ),
    ],
)
def test_captions(s, text):
    assert caption(s) == text


@pytest.mark.parametrize(
    "s",
    [
        Scene("grey", (), None),
        Scene("grey", (RING,) * 5, None),
        Scene("grey", (RING, CROSS), None),
        Scene("grey", (RING,), "above"),
    ],
)
def test_no_caption(s):
    with pytest.raises(ValueError, match="no caption"):
        caption(s)


def test_unknown_shape():
    with pytest.raises(ValueError, match="hexagon"):
        Thing("hexagon", "red", "small", 0.5, 0.5)


@given(seeds, splits)
@settings(deadline=None)
def test_parse_undoes_caption(seed, split):
    s = scene(seed, split)
    centred = tuple(replace(t, x=0.5, y=0.5) for t in s.things)
    assert parse(caption(s)) == replace(s, things=centred)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle on a grey background",
        "a small red circle",
        "a small red circle on a pink background",
        "two small red circle on a grey background",
        "two small red crosss on a grey background",
        "a small red circles on a grey background",
        "A small red circle on a grey background",
        "two small red circles above a large blue ring on a grey background",
        "a small red circle near a large blue ring on a grey background",
        "a small red circle on a grey background.",
    ],
)
def test_parse_refuses(text):
    with pytest.raises(ValueError, match="caption"):
        parse(text)


# --- Images -----------------------------------------------------------------------------------

# Areas of the shapes in a disc of radius 1.
AREAS = {
    "circle": np.pi,
    "ring": np.pi * (1 - 0.55**2),
    "square": 1.4**2,
    "triangle": 0.75 * 3**0.5,
    "cross": 2 * 1.9 * 0.6 - 0.6**2,
}


@pytest.mark.parametrize("shape", SHAPES)
@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(5, 12))
@settings(deadline=None, max_examples=30)
def test_area_and_balance(shape, dx, dy, r):
    grid = np.arange(-15.0, 16)
    cover = coverage(shape, grid - dx, grid[:, None] - dy, r, 1)
    area = cover.sum()
    assert area == pytest.approx(AREAS[shape] * r * r, rel=0.06)
    centre = (cover.sum(0) @ grid / area, cover.sum(1) @ grid / area)
    assert centre == pytest.approx((dx, dy), abs=0.15)


def test_render_paints_each_thing_in_its_place():
    things = (
        Thing("square", "red", "large", 0.2, 0.7),
        Thing("circle", "cyan", "small", 0.75, 0.2),
    )
    scenes = [Scene("grey", things, None), Scene("white", things[1:], None)] * 150
    images = render(scenes, 64)
    assert images.shape == (300, 3, 64, 64) and images.dtype == torch.uint8
    for i in (0, 1, 298, 299):
        s = scenes[i]
        assert tuple(images[i, :, 0, 0].tolist()) == BACKGROUNDS[s.background]
        for t in s.things:
            pixel = images[i, :, int(t.y * 64), int(t.x * 64)]
            assert tuple(pixel.tolist()) == COLOURS[t.colour]
    assert (images[1, :, 16, 16] == 255).all()


@pytest.mark.parametrize("side", [8, 33, 64, 128])
def test_render_fits_any_side_and_leaves_the_border_free(side):
    scenes = scenes_of("train", 60)
    images = render(scenes, side)
    assert images.shape == (60, 3, side, side)
    if side >= 64:
        for s, image in zip(scenes, images, strict=True):
            rim = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
            background = torch.tensor(BACKGROUNDS[s.background])[:, None]
            assert (rim == background).all()


# --- The detector -----------------------------------------------------------------------------


def flood(mask):
    """The connected blobs of a mask, as a set of sets of pixels: a slow flood fill."""
    unseen = {tuple(pixel) for pixel in np.argwhere(mask)}
    blobs = set()
    while unseen:
        blob = set()
        queue = [unseen.pop()]
        while queue:
            row, column = queue.pop()
            blob.add((row, column))
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
            near = around & unseen
            unseen -= near
            queue += near
        blobs.add(frozenset(blob))
    return blobs


@given(hnp.arrays(bool, st.tuples(st.integers(1, 3), st.just(9), st.just(9))))
@settings(deadline=None, max_examples=20)
def test_components_are_the_flooded_blobs(masks):
    all_labels = components(torch.from_numpy(masks)).numpy()
    for mask, labels in zip(masks, all_labels, strict=True):
        assert ((labels > 0) == mask).all()
        blobs = set()
        for label in set(labels[mask]):
            blobs.add(frozenset(tuple(pixel) for pixel in np.argwhere(labels == label)))
        assert blobs == flood(mask)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("side", [64, 32])
def test_detector_reads_real_scenes(split, side):
    scenes = [scene(seed, split) for seed in range(5000, 5150)]
    images = torch.nn.functional.avg_pool2d(floats(scenes, 64), 64 // side)
    table = alignment(scenes, images)
    counts = dict.fromkeys(ATTRIBUTES, 150)
    counts["relation"] = sum(s.relation is not None for s in scenes)
    assert tuple(table) == ATTRIBUTES
    for attribute, row in table.items():
        assert row["value"] >= 0.99, (attribute, row)
        assert row["n"] == counts[attribute]
        assert row["low"] <= row["value"] <= row["high"] <= 1


def test_detector_finds_the_places():
    scenes = scenes_of("train", 60)
    readings = detect(floats(scenes, 64))
    for s, reading in zip(scenes, readings, strict=True):
        for thing in s.things:
            distances = [math.dist((thing.x, thing.y), (r.x, r.y)) for r in reading.things]
            assert min(distances) < 0.3 / 64


def blurred(images):
    """Blur by a binomial filter with a standard deviation of 1 pixel."""
    weights = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = (weights[:, None] * weights).expand(3, 1, 5, 5)
    images = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    return torch.nn.functional.conv2d(images, kernel, groups=3)


def test_detector_withstands_blur_and_noise():
    scenes = scenes_of("heldout", 60)
    images = blurred(floats(scenes, 64))
    images += 0.08 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert min(row["value"] for row in alignment(scenes, images).values()) >= 0.99


def test_blurred_small_rings_stay_rings():
    """At 32 pixels the hole of a small ring is 3 pixels wide: blur nearly closes it."""
    scenes = []
    for background in BACKGROUNDS:
        for colour in COLOURS:
            for dy in (0, 0.01):
                ring = Thing("ring", colour, "small", 0.47, 0.5 + dy)
                scenes.append(Scene(background, (ring,), None))
    readings = detect(blurred(floats(scenes, 32)))
    assert [r.things[0].shape for r in readings] == ["ring"] * len(scenes)


def test_detector_drops_specks_and_counts_blobs_of_no_shape():
    image = torch.ones(1, 3, 64, 64)
    assert detect(image) == [Scene("white", (), None)]  # empty
    image[:, :, 10:12, 10:12] = -1  # a speck
    assert detect(image)[0].things == ()
    image[:, 1:, 30:50, 20:24] = -1  # a red bar, which is no shape
    assert [thing.colour for thing in detect(image)[0].things] == ["red"]


def test_detector_refuses_what_it_cannot_read():
    for bad in (
        torch.zeros(3, 64, 64),
        torch.zeros(1, 1, 64, 64),
        torch.zeros(1, 3, 64, 32),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match="detect needs"):
            detect(bad)
    with pytest.raises(ValueError, match="2 scenes for 1"):
        alignment(scenes_of("train", 2), torch.zeros(1, 3, 64, 64))


# --- Comparing a reading with a caption -------------------------------------------------------

BIG = Thing("square", "blue", "large", 0.25, 0.55)
SMALL = Thing("ring", "red", "small", 0.7, 0.45)
PAIR = Scene("grey", (BIG, SMALL), "left of")
CIRCLES = tuple(Thing("circle", "green", "small", x, 0.3) for x in (0.2, 0.5, 0.8))
THREE = Scene("white", CIRCLES, None)
ONE = Scene("black", (Thing("triangle", "cyan", "small", 0.4, 0.4),), None)


def wrong(wanted, shown):
    """The attributes that are wrong when `shown` is painted for the caption of `wanted`."""
    reading = detect(floats([shown], 64))[0]
    answer = agree(wanted, reading)
    assert (answer["relation"] is None) == (wanted.relation is None)
    wrong_ones = {name for name in ATTRIBUTES if name != "all" and answer[name] is False}
    assert answer["all"] == (not wrong_ones)
    return wrong_ones


@pytest.mark.parametrize("s", [PAIR, THREE, ONE], ids=["pair", "three", "one"])
def test_one_changed_attribute_is_the_only_wrong_one(s):
    assert wrong(s, s) == set()
    for i, thing in enumerate(s.things):
        for part, values in zip(PARTS, (SHAPES, COLOURS, SIZES), strict=True):
            for value in set(values) - {getattr(thing, part)}:
                things = list(s.things)
                things[i] = replace(thing, **{part: value})
                assert wrong(s, replace(s, things=tuple(things))) == {part}
    for background in set(BACKGROUNDS) - {s.background}:
        assert wrong(s, replace(s, background=background)) == {"background"}


@pytest.mark.parametrize("s", [PAIR, THREE, ONE], ids=["pair", "three", "one"])
def test_additional_and_missing_things(s):
    alike = replace(s.things[0], x=0.5, y=0.82)
    different = Thing("cross", "yellow", "small", 0.5, 0.82)
    for extra in (alike, different):
        assert wrong(s, replace(s, things=s.things + (extra,))) == {"count"}
    for i in range(len(s.things)):
        fewer = s.things[:i] + s.things[i + 1 :]
        related = {"relation"} if s.relation else set()
        assert wrong(s, replace(s, things=fewer)) == {"count", *PARTS, *related}


def test_swapped_places():
    swapped = (replace(BIG, x=SMALL.x, y=SMALL.y), replace(SMALL, x=BIG.x, y=BIG.y))
    assert wrong(PAIR, replace(PAIR, things=swapped)) == {"relation"}
    assert wrong(PAIR, replace(PAIR, things=PAIR.things[::-1])) == set()  # order does not matter
    assert wrong(replace(PAIR, relation="right of"), PAIR) == {"relation"}
    assert wrong(replace(PAIR, relation="above"), PAIR) == {"relation"}
    steep = (replace(BIG, x=0.45, y=0.25), replace(SMALL, x=0.6, y=0.75))  # left of, but more above
    assert wrong(PAIR, replace(PAIR, things=steep)) == {"relation"}
    assert wrong(replace(PAIR, relation="above"), replace(PAIR, things=steep)) == set()


def test_exchanged_colours_are_wrong():
    """A red square and a blue ring are not a blue square and a red ring."""
    exchanged = (replace(BIG, colour="red"), replace(SMALL, colour="blue"))
    assert wrong(PAIR, replace(PAIR, things=exchanged)) == {"colour"}


# Few different things, so that many of them agree.
few_things = st.builds(
    Thing,
    st.sampled_from(SHAPES[:2]),
    st.sampled_from(("red", "blue")),
    st.sampled_from(tuple(SIZES)),
    st.just(0.5),
    st.just(0.5),
)


def matches(wanted, detected):
    """Which of the three parts agree; none if nothing is detected."""
    if detected is None:
        return [False, False, False]
    return [a == b for a, b in zip(triple(wanted), triple(detected), strict=True)]


@given(st.lists(few_things, min_size=1, max_size=4), st.lists(few_things, max_size=6))
@settings(deadline=None, max_examples=60)
def test_pairing_is_the_best_of_all(wanted, detected):
    """Against every permutation; where several are best, the answer is that of one of them."""
    n = len(wanted)
    best_score = -1
    best_answers = set()
    for things in set(itertools.permutations(detected + [None] * n, n)):
        rows = [matches(a, b) for a, b in zip(wanted, things, strict=True)]
        score = sum(sum(row) for row in rows)
        answer = tuple(all(column) for column in zip(*rows, strict=True))
        if score > best_score:
            best_score = score
            best_answers = set()
        if score == best_score:
            best_answers.add(answer)
    answer = agree(Scene("grey", tuple(wanted), None), Scene("grey", tuple(detected), None))
    assert tuple(answer[part] for part in PARTS) in best_answers
    assert answer["count"] == (n == len(detected))


def test_shuffled_captions_score_near_chance():
    scenes = scenes_of("train", 300)
    table = alignment(scenes, floats(scenes[1:] + scenes[:1], 32))
    value = {attribute: row["value"] for attribute, row in table.items()}
    assert value["shape"] < 0.25 and value["colour"] < 0.25 and value["size"] < 0.5
    assert value["relation"] < 0.4 and value["all"] < 0.05
    assert 0.2 < value["count"] < 0.5 and 0.2 < value["background"] < 0.5


@pytest.mark.parametrize(
    "right, n, low, high",
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(right, n, low, high):
    """Against Newcombe (1998), table I, method 3."""
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_without_data():
    assert wilson(0, 0) == (0, 1)
    row = alignment([ONE], floats([ONE], 64))["relation"]
    assert row["n"] == 0 and math.isnan(row["value"]) and (row["low"], row["high"]) == (0, 1)
