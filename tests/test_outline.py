"""The measure of outlines: exact drawings have 1, ragged ones less, and it asks for no caption."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimuse.datasets import shapes
from minimuse.datasets.detector import match
from minimuse.datasets.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing
from minimuse.metrics.outline import best_overlap, outline, overlaps_of


def floats(scenes, side=64):
    return shapes.render(scenes, side).float() / 127.5 - 1


def alone(shape, size, colour="red", x=0.5, y=0.5, background="white"):
    return Scene(background, (Thing(shape, colour, size, x, y),), None)


@pytest.mark.parametrize("split", shapes.SPLITS)
@pytest.mark.parametrize("side", [64, 32])
def test_real_scenes_have_exact_outlines(split, side):
    scenes = [shapes.scene(seed, split) for seed in range(60)]
    overlaps = overlaps_of(floats(scenes, side))
    assert [len(row) for row in overlaps] == [len(scene.things) for scene in scenes]
    assert min(min(row) for row in overlaps) > 0.98
    table = outline(floats(scenes, side))
    assert table["n"] == sum(len(scene.things) for scene in scenes)
    assert table["low"] <= table["value"] <= table["high"]
    assert table["value"] > 0.99


@given(
    st.sampled_from(SHAPES),
    st.sampled_from(sorted(SIZES)),
    st.sampled_from(sorted(COLOURS)),
    st.sampled_from(sorted(BACKGROUNDS)),
    st.floats(0.3, 0.7),
    st.floats(0.3, 0.7),
)
def test_neither_place_nor_paint_matters(shape, size, colour, background, x, y):
    [[overlap]] = overlaps_of(floats([alone(shape, size, colour, x, y, background)]))
    assert overlap > 0.98


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [0.95, 1.0, 1.08])
def test_a_size_between_the_two_is_fitted(shape, factor):
    """The captions have two sizes; a thing of another size may still have an exact outline."""
    pixels = torch.arange(64).numpy()
    radius = factor * SIZES["large"] * 64
    cover = shapes.coverage(shape, pixels - 30.3, pixels[:, None] - 33.6, radius, 1)
    assert match(cover)[0] == shape
    assert best_overlap(cover) > 0.98


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "ring"])
def test_a_hole_costs_what_it_takes_away(shape):
    """The union is the whole shape, and the intersection is what is left of it."""
    image = floats([alone(shape, "large", background="black")])
    whole = (image + 1).sum()
    image[:, :, 30:34, 30:34] = -1
    left = float((image + 1).sum() / whole)
    [[overlap]] = overlaps_of(image)
    assert overlap == pytest.approx(left, abs=0.02)


def test_raggedness_is_seen_where_the_detector_sees_none():
    """Noise along the outline: the shape is still read, and the outline is worse."""
    scenes = [shapes.scene(seed) for seed in range(40)]
    image = floats(scenes)
    moved = image.clone()
    rows = torch.arange(0, 64, 4)
    for row in rows.tolist():
        shift = 1 if row % 8 else -1
        moved[:, :, row : row + 2] = image[:, :, row : row + 2].roll(shift, dims=-1)
    assert outline(moved)["value"] < outline(image)["value"] - 0.05


def test_no_thing_no_outline():
    table = outline(torch.ones(2, 3, 64, 64))
    assert table["n"] == 0
    assert math.isnan(table["value"])
