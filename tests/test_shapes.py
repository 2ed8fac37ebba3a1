"""The oracle of data/shapes.py: scenes, captions, pictures, and the detector that judges them.

Run: python -m pytest tests/test_shapes.py
"""

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


def triple(t):
    return (t.shape, t.colour, t.size)


def floats(scenes, side):
    return render(scenes, side) / 127.5 - 1


def drawn(n, split):
    return [scene(seed, split) for seed in range(n)]


# --- Scenes -----------------------------------------------------------------------------------


@given(seeds, splits)
@settings(deadline=None)
def test_scene_depends_on_seed_and_split_only(seed, split):
    first = scene(seed, split)
    np.random.rand(3), torch.rand(3), scene(seed + 1, split)
    assert scene(seed, split) == first


def test_seeds_and_splits_give_different_scenes():
    assert len(set(drawn(200, "train") + drawn(200, "heldout"))) == 400
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
    train = drawn(1000, "train")
    assert {triple(t) for s in train for t in s.things} == set(TRAIN_TRIPLES)
    heldout = drawn(1000, "heldout")
    assert all(any(triple(t) in HELD_OUT for t in s.things) for s in heldout)
    related = [s for s in heldout if s.relation]
    first = sum(triple(s.things[0]) in HELD_OUT for s in related) / len(related)
    assert 0.4 < first < 0.6


@pytest.mark.parametrize("split", SPLITS)
def test_kinds_of_scene(split):
    scenes = drawn(1500, split)
    kinds = Counter("relation" if s.relation else len(s.things) for s in scenes)
    for kind, share in {1: 1 / 3, 2: 1 / 9, 3: 1 / 9, 4: 1 / 9, "relation": 1 / 3}.items():
        assert abs(kinds[kind] / 1500 - share) < 0.05
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
    for s in drawn(1000, "train"):
        if s.relation:
            a, b = s.things
            (u, w), dx, dy = toward[s.relation], a.x - b.x, a.y - b.y
            along, across = u * dx + w * dy, abs(w * dx) + abs(u * dy)
            assert along >= SIZES[a.size] + SIZES[b.size]  # no overlap on the axis
            assert across <= 0.6 * along


# --- Captions ---------------------------------------------------------------------------------


def test_captions():
    ring, cross = Thing("ring", "red", "small", 0.2, 0.5), Thing("cross", "blue", "large", 0.7, 0.5)
    assert caption(Scene("grey", (ring,), None)) == "a small red ring on a grey background"
    assert (
        caption(Scene("white", (ring,) * 3, None)) == "three small red rings on a white background"
    )
    assert (
        caption(Scene("white", (cross,) * 2, None))
        == "two large blue crosses on a white background"
    )
    assert (
        caption(Scene("black", (ring, cross), "left of"))
        == "a small red ring left of a large blue cross on a black background"
    )
    for bad in (
        Scene("grey", (), None),
        Scene("grey", (ring,) * 5, None),
        Scene("grey", (ring, cross), None),
        Scene("grey", (ring,), "above"),
    ):
        with pytest.raises(ValueError, match="no caption"):
            caption(bad)
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


# --- Pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(5, 12))
@settings(deadline=None, max_examples=30)
def test_area_and_balance(shape, dx, dy, r):
    area = (
        {
            "circle": np.pi,
            "ring": np.pi * (1 - 0.55**2),
            "square": 1.4**2,
            "triangle": 0.75 * 3**0.5,
            "cross": 2 * 1.9 * 0.6 - 0.6**2,
        }[shape]
        * r
        * r
    )
    grid = np.arange(-15.0, 16)
    a = coverage(shape, grid - dx, grid[:, None] - dy, r, 1)
    assert a.sum() == pytest.approx(area, rel=0.06)
    assert (a.sum(0) @ grid / a.sum(), a.sum(1) @ grid / a.sum()) == pytest.approx(
        (dx, dy), abs=0.15
    )


def test_render_paints_each_thing_in_its_place():
    things = (
        Thing("square", "red", "large", 0.2, 0.7),
        Thing("circle", "cyan", "small", 0.75, 0.2),
    )
    scenes = [Scene("grey", things, None), Scene("white", things[1:], None)] * 150  # two chunks
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
    scenes = drawn(60, "train")
    images = render(scenes, side)
    assert images.shape == (60, 3, side, side)
    if side >= 64:
        for s, image in zip(scenes, images):
            rim = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
            assert (rim == torch.tensor(BACKGROUNDS[s.background])[:, None]).all()


# --- The detector -----------------------------------------------------------------------------


def flood(mask):
    """Blobs the slow way: a set of sets of pixels."""
    left, blobs = {tuple(p) for p in np.argwhere(mask)}, set()
    while left:
        blob, edge = set(), [left.pop()]
        while edge:
            r, c = edge.pop()
            blob.add((r, c))
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        blobs.add(frozenset(blob))
    return blobs


@given(hnp.arrays(bool, st.tuples(st.integers(1, 3), st.just(9), st.just(9))))
@settings(deadline=None, max_examples=20)
def test_components_are_the_flooded_blobs(masks):
    for mask, labels in zip(masks, components(torch.from_numpy(masks)).numpy()):
        assert ((labels > 0) == mask).all()
        blobs = {frozenset(map(tuple, np.argwhere(labels == k))) for k in set(labels[mask])}
        assert blobs == flood(mask)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("side", [64, 32])
def test_detector_reads_real_scenes(split, side):
    scenes = [scene(seed, split) for seed in range(5000, 5150)]
    images = torch.nn.functional.avg_pool2d(floats(scenes, 64), 64 // side)
    table = alignment(scenes, images)
    assert tuple(table) == ATTRIBUTES
    for k, row in table.items():
        assert row["value"] >= 0.99, (k, row)
        assert row["n"] == (sum(s.relation is not None for s in scenes) if k == "relation" else 150)
        assert row["low"] <= row["value"] <= row["high"] <= 1


def test_detector_finds_the_places():
    for s, reading in zip(scenes := drawn(60, "train"), detect(floats(scenes, 64))):
        for t in s.things:
            assert min(math.dist((t.x, t.y), (f.x, f.y)) for f in reading.things) < 0.3 / 64


def blurred(images):
    weights = torch.tensor([1.0, 4, 6, 4, 1]) / 16  # binomial: sigma is 1 pixel
    kernel = (weights[:, None] * weights).expand(3, 1, 5, 5)
    images = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    return torch.nn.functional.conv2d(images, kernel, groups=3)


def test_detector_withstands_blur_and_noise():
    scenes = drawn(60, "heldout")
    images = blurred(floats(scenes, 64))
    images += 0.08 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert min(row["value"] for row in alignment(scenes, images).values()) >= 0.99


def test_blurred_small_rings_stay_rings():
    """At 32 pixels the hole of a small ring is 3 pixels wide: blur nearly closes it."""
    scenes = [
        Scene(background, (Thing("ring", colour, "small", 0.47, 0.5 + dy),), None)
        for background in BACKGROUNDS
        for colour in COLOURS
        for dy in (0, 0.01)
    ]
    readings = detect(blurred(floats(scenes, 32)))
    assert [r.things[0].shape for r in readings] == ["ring"] * len(scenes)


def test_detector_drops_specks_counts_broken_blobs_and_sees_nothing_in_nothing():
    image = torch.ones(1, 3, 64, 64)
    assert detect(image) == [Scene("white", (), None)]
    image[:, :, 10:12, 10:12] = -1
    assert detect(image)[0].things == ()
    image[:, 1:, 30:50, 20:24] = -1  # a red bar, which is no shape
    assert [t.colour for t in detect(image)[0].things] == ["red"]


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
        alignment(drawn(2, "train"), torch.zeros(1, 3, 64, 64))


# --- The judge --------------------------------------------------------------------------------

BIG, SMALL = Thing("square", "blue", "large", 0.25, 0.55), Thing("ring", "red", "small", 0.7, 0.45)
PAIR = Scene("grey", (BIG, SMALL), "left of")
THREE = Scene(
    "white", tuple(Thing("circle", "green", "small", x, 0.3) for x in (0.2, 0.5, 0.8)), None
)
ONE = Scene("black", (Thing("triangle", "cyan", "small", 0.4, 0.4),), None)


def read(s):
    return detect(floats([s], 64))[0]


def wrong(wanted, shown):
    """The attributes that the judge calls wrong when `shown` is painted for `wanted`'s caption."""
    answer = agree(wanted, read(shown))
    assert (answer["relation"] is None) == (wanted.relation is None)
    assert answer["all"] == all(answer[k] is not False for k in ATTRIBUTES[:-1])
    return {k for k in ATTRIBUTES[:-1] if answer[k] is False}


@pytest.mark.parametrize("s", [PAIR, THREE, ONE], ids=["pair", "three", "one"])
def test_one_changed_attribute_is_the_only_wrong_one(s):
    assert wrong(s, s) == set()
    for i, thing in enumerate(s.things):
        for part, values in zip(PARTS, (SHAPES, COLOURS, SIZES)):
            for value in set(values) - {getattr(thing, part)}:
                things = list(s.things)
                things[i] = replace(thing, **{part: value})
                assert wrong(s, replace(s, things=tuple(things))) == {part}
    for background in set(BACKGROUNDS) - {s.background}:
        assert wrong(s, replace(s, background=background)) == {"background"}


@pytest.mark.parametrize("s", [PAIR, THREE, ONE], ids=["pair", "three", "one"])
def test_additional_and_missing_things(s):
    for extra in (
        replace(s.things[0], x=0.5, y=0.82),
        Thing("cross", "yellow", "small", 0.5, 0.82),
    ):
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


few = st.builds(
    Thing,
    st.sampled_from(SHAPES[:2]),
    st.sampled_from(("red", "blue")),
    st.sampled_from(tuple(SIZES)),
    st.just(0.5),
    st.just(0.5),
)


@given(st.lists(few, min_size=1, max_size=4), st.lists(few, max_size=6))
@settings(deadline=None, max_examples=60)
def test_pairing_is_the_best_of_all(wanted, found):
    """Against every permutation; where several are best, the answer is that of one of them."""
    best, answers = -1, set()
    for got in set(itertools.permutations(found + [None] * len(wanted), len(wanted))):
        rows = [
            [g is not None and x == y for x, y in zip(triple(w), triple(g or w))]
            for w, g in zip(wanted, got)
        ]
        total, answer = sum(map(sum, rows)), tuple(all(column) for column in zip(*rows))
        if total > best:
            best, answers = total, set()
        if total == best:
            answers.add(answer)
    answer = agree(Scene("grey", tuple(wanted), None), Scene("grey", tuple(found), None))
    assert tuple(answer[k] for k in PARTS) in answers
    assert answer["count"] == (len(wanted) == len(found))


def test_shuffled_captions_score_near_chance():
    scenes = drawn(300, "train")
    table = alignment(scenes, floats(scenes[1:] + scenes[:1], 32))
    value = {k: row["value"] for k, row in table.items()}
    assert value["shape"] < 0.25 and value["colour"] < 0.25 and value["size"] < 0.5
    assert value["relation"] < 0.4 and value["all"] < 0.05
    assert 0.2 < value["count"] < 0.5 and 0.2 < value["background"] < 0.5


@pytest.mark.parametrize(
    "right, n, low, high",
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_without_data():
    assert wilson(0, 0) == (0, 1)
    row = alignment([ONE], floats([ONE], 64))["relation"]
    assert row["n"] == 0 and math.isnan(row["value"]) and (row["low"], row["high"]) == (0, 1)
