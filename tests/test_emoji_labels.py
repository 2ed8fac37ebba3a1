"""What emoji are called in captions: other words are found, and labels and all else stay."""

import json
import warnings
from pathlib import Path

import pytest

from minimuse.data import ASSETS
from minimuse.datasets import emoji
from minimuse.datasets.colours import COLOUR_WORDS
from minimuse.muse import Muse
from minimuse.plumbing.emoji_labels import all_names, content_words, label_for
from minimuse.plumbing.prompts import read_prompts


@pytest.mark.parametrize(
    "prompt, label",
    [
        ("a bike", "bicycle"),
        ("a slice of pizza", "pizza"),
        ("Kitty", "cat face"),
        ("a burger", "hamburger"),
        ("burgers", "hamburger"),
        ("some car", "automobile"),
        ("a red car", "automobile"),
        ("red cars", "automobile"),
        ("a computer", "desktop computer"),
        ("a sailing boat", "sailboat"),
        ("a pink pig", "pig"),
        ("bike bike", "bicycle"),
    ],
)
def test_other_words_for_an_emoji(prompt, label):
    assert label_for(prompt, "twemoji") == label


@pytest.mark.parametrize(
    "prompt",
    [
        "a bicycle",  # a label
        "dogs",  # the same in the plural
        "a red apple",  # a label with a colour
        "hourglass done",  # a label that no training caption has
        "a cat on a bike",  # two emoji
        "a purple unicorn riding a skateboard",
        "two bikes",  # numbers count
        "a three leaf clover",
        "a man and a woman",
        "no car",
        "honey",  # a tag of bears
        "love",
        "a white man",
        "an angry dog",
        "xyzzy",
        "red",
        "a",
        "",
    ],
)
def test_what_stays_as_it_is(prompt):
    assert label_for(prompt, "twemoji") is None


def test_a_colour_must_be_that_of_the_picture():
    (car,) = (one for one in all_names() if one.label == "automobile")
    for style in emoji.STYLES:
        for colour in COLOUR_WORDS:
            label = label_for(f"a {colour} car", style)
            assert label == ("automobile" if colour == car.colours[style] else None)
    assert "red" in car.colours.values()


def test_every_label_stays():
    captions, _ = emoji.read_words_and_index(Path(ASSETS))
    for entry in captions.values():
        for prompt in (entry["label"], f"the {entry['label']}"):
            assert label_for(prompt, "twemoji") is None, prompt


def test_the_table_names_each_thing_once():
    """Each other name leads to its own label, and is no label."""
    table = json.loads((ASSETS / "emoji" / "other-names.json").read_text())
    known = {one.label for one in all_names()}
    assert set(table) <= known
    names = [name for others in table.values() for name in others]
    assert len({content_words(name) for name in names}) == len(names) > 250
    for label, others in table.items():
        for name in others:
            assert label_for(name, "twemoji") == label, name


def test_plain_captions_of_training_stay():
    """No caption "red apple, noto style" or "a red apple, noto style" is changed."""
    entries = emoji.find_emoji("train", 32, Path(ASSETS))
    captions = [caption for entry in entries for caption in entry.captions[:2]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read, _ = read_prompts(captions, "", "emoji")
    assert [pairs[0][0] for pairs in read] == captions


def test_a_prompt_is_said_as_captions_do():
    with pytest.warns(UserWarning, match="'a bike' is drawn as 'bicycle', the label"):
        (pairs,), negative = read_prompts(["a bike, Noto style AND a dog:-1"], "a bike", "emoji")
    assert pairs == [("bicycle, noto style", 1.0), ("a dog", -1.0)]
    assert negative == "a bike"


@pytest.mark.parametrize("end", [", noto", ",  Noto  style", ",noto style."])
def test_a_style_may_be_written_in_other_ways(end):
    with pytest.warns(UserWarning, match="is drawn as 'bicycle'"):
        (pairs,), _ = read_prompts([f"a bike{end}"], "", "emoji")
    assert pairs == [("bicycle, noto style", 1.0)]
    with pytest.warns(UserWarning, match="is drawn as 'bicycle'"):
        (pairs,), _ = read_prompts(["a bike, fluent-flat style"], "", "emoji")
    assert pairs == [("bicycle, fluent flat style", 1.0)]


@pytest.mark.parametrize("prompt", ["a bike, a red one, noto style", "bike noto", "a bike, 3D"])
def test_a_prompt_in_another_form_stays(prompt):
    (pairs,), _ = read_prompts([prompt], "", "emoji")
    assert pairs == [(prompt.lower(), 1.0)]


def test_other_models_read_their_own_words():
    (pairs,), _ = read_prompts(["a bike, noto style"], "", "shapes")
    assert pairs == [("a bike, noto style", 1.0)]


def test_plain_is_literal():
    muse = Muse.load("toy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = muse.embed_prompts(["a bike, noto style"])
        literal = muse.embed_prompts(["a bike, noto style"], plain=True)
        label = muse.embed_prompts(["bicycle, noto style"], plain=True)
    assert said.text.equal(label.text) and not said.text.equal(literal.text)


def test_content_words():
    assert content_words("A slice of the cherries, glass and buses") == {
        *("slice", "cherry", "glass", "and", "buse"),
    }
