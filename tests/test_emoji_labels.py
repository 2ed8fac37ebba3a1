"""What emoji are called in captions: other words are found, labels stay, and nothing is lost."""

import warnings
from pathlib import Path

import pytest

from minimuse.data import ASSETS
from minimuse.datasets import emoji
from minimuse.datasets.colours import COLOUR_WORDS
from minimuse.metrics.typed import read_prompts as read_table
from minimuse.muse import Muse
from minimuse.plumbing.emoji_labels import all_names, content_words, label_for
from minimuse.plumbing.prompts import read_prompts

TYPED = Path(__file__).parents[1] / "lessons" / "claims" / "typed.csv"


@pytest.mark.parametrize(
    "prompt, label",
    [
        ("a bike", "bicycle"),  # a lock has this tag, too
        ("a slice of pizza", "pizza"),
        ("Kitty", "cat face"),
        ("a burger", "hamburger"),
        ("burgers", "hamburger"),
        ("a red car", "automobile"),
        ("a computer", "desktop computer"),
        ("a sailing boat", "sailboat"),
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
        "a cat on a bike",  # two emoji
        "a purple unicorn riding a skateboard",
        "love",  # part of "love hotel", which is no love
        "xyzzy",
        "red",
        "a",
        "",
    ],
)
def test_what_stays_as_it_is(prompt):
    assert label_for(prompt, "twemoji") is None


def test_a_colour_must_be_that_of_the_picture():
    known = {one.label: one for one in all_names()}
    found = 0
    for thing in ("car", "bird", "flower", "fish"):
        for style in emoji.STYLES:
            for colour in COLOUR_WORDS:
                label = label_for(f"a {colour} {thing}", style)
                if label is not None:
                    found += 1
                    assert colour in (known[label].colours[style], *known[label].words)
    assert found > 10
    assert label_for("a red car", "twemoji") == "automobile"
    assert label_for("a white car", "twemoji") != "automobile"


def test_no_word_is_lost_and_every_label_is_known():
    labels = {one.label: one for one in all_names()}
    _, index = emoji.read_words_and_index(Path(ASSETS))
    found = 0
    for one in all_names():
        for _, words in one.names:
            prompt = " ".join(sorted(words))
            label = label_for(prompt, "noto")
            if label is not None:
                found += 1
                assert words - set(COLOUR_WORDS) <= labels[label].words
                concept = label.replace(" ", "-")
                assert concept not in index["noto"]["blobs"] or (
                    emoji.split_of(concept, "noto") != "heldout-concept"
                )
    assert found > 500  # things such as "bike" have labels


def test_plain_captions_of_training_stay():
    """No caption "red apple, noto style" or "a red apple, noto style" is changed."""
    entries = emoji.find_emoji("train", 32, Path(ASSETS))
    captions = [caption for entry in entries for caption in entry.captions[:2]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read, _ = read_prompts(captions, "", "emoji")
    assert [pairs[0][0] for pairs in read] == captions


def test_a_prompt_is_said_as_captions_do():
    with pytest.warns(UserWarning, match="'a bike' is drawn as 'bicycle'"):
        (pairs,), negative = read_prompts(["a bike, Noto style AND a dog:-1"], "a bike", "emoji")
    assert pairs == [("bicycle, noto style", 1.0), ("a dog", -1.0)]
    assert negative == "a bike"


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


def test_of_typed_prompts_most_labels_are_right():
    right, wrong = 0, []
    for row in read_table(TYPED):
        label = label_for(row.prompt.partition(",")[0], "twemoji")
        if label is not None:
            is_right = label.replace(" ", "-") in row.concepts
            right += is_right
            if not is_right:
                wrong.append((row.prompt, label))
    assert right >= 10 and len(wrong) <= right / 4, wrong


def test_content_words():
    assert content_words("A slice of the cherries, glasses and buses") == {
        "slice",
        "cherry",
        "glasse",
        "buse",
    }
