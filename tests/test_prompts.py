"""Prompts as people type them, the styles of emoji, and texts that are none."""

import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimuse.muse import Muse
from minimuse.plumbing.prompts import (
    DEFAULT_STYLE,
    MOST_PARTS,
    STYLE_NAMES,
    check_prompts,
    parse_prompt,
    read_prompts,
    with_style,
)


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


def parsed(prompt):
    """What a prompt is parsed to, and the warnings of it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pairs = parse_prompt(prompt)
    return pairs, [str(warning.message) for warning in told]


# --- The grammar ---
@pytest.mark.parametrize(
    "prompt, pairs",
    [
        ("", [("", 1.0)]),
        ("  ", [("  ", 1.0)]),
        ("black and white", [("black and white", 1.0)]),
        ("a clock at 12:05", [("a clock at 12:05", 1.0)]),
        ("a ratio of 16:9", [("a ratio of 16:9", 1.0)]),
        ("one ANDtwo", [("one ANDtwo", 1.0)]),
        ("SAND AND sea", [("SAND", 1.0), ("sea", 1.0)]),
        ("AND", [("AND", 1.0)]),
        ("black AND white:0.5", [("black", 1.0), ("white", 0.5)]),
        ("black AND white:.5", [("black", 1.0), ("white", 0.5)]),
        ("a:-1 AND b:2 AND c:+1.", [("a", -1.0), ("b", 2.0), ("c", 1.0)]),
        ("a :0.5\tAND\nb", [("a", 0.5), ("b", 1.0)]),
        ("a clock at 12:30 AND a cat", [("a clock at 12:30", 1.0), ("a cat", 1.0)]),
        ("12:30:15 AND a cat:2", [("12:30:15", 1.0), ("a cat", 2.0)]),
        ("a clock at 12:05:0.5 AND b", [("a clock at 12:05", 0.5), ("b", 1.0)]),
        (" a  AND b:x", [("a", 1.0), ("b:x", 1.0)]),
        # The escape
        (r"a cat \AND a dog", [("a cat AND a dog", 1.0)]),
        (r"a red circle\:0.5", [("a red circle:0.5", 1.0)]),
        (r"a\:0.5 AND b\:0.5:2.0", [("a:0.5", 1.0), ("b:0.5", 2.0)]),
        (r"a\\:0.5 AND b", [("a\\", 0.5), ("b", 1.0)]),
        (r"C\n \ANDY", [(r"C\n \ANDY", 1.0)]),
    ],
)
def test_what_a_prompt_means(prompt, pairs):
    assert parsed(prompt) == (pairs, [])


@pytest.mark.parametrize(
    "prompt, pairs, told",
    [
        # Weights without another prompt
        ("a red circle:0.5", [("a red circle:0.5", 1.0)], "a weight needs another prompt"),
        ("a red circle: 0.5", [("a red circle: 0.5", 1.0)], "a weight needs another prompt"),
        ("a cat:0.5 and a dog:0.7", None, "AND in capitals"),
        ("a cat:2 and a dog", None, "AND in capitals"),
        ("(a red circle:1.2)", None, "a weight needs another prompt"),
        # Almost weights
        ("a cat: 0.5 AND a dog", [("a cat: 0.5", 1.0), ("a dog", 1.0)], "directly followed"),
        ("a cat:0,5 AND a dog", [("a cat:0,5", 1.0), ("a dog", 1.0)], "directly followed"),
        ("a cat:50% AND a dog", None, "directly followed"),
        ("a cat:1e-1 AND a dog", None, "directly followed"),
        ("a cat:1/2 AND a dog", None, "directly followed"),
        ("(a cat:1.5) AND a dog", None, "directly followed"),
        ("a cat:nan AND a dog", None, "directly followed"),
        ("agent 7:2 AND a dog", [("agent 7:2", 1.0), ("a dog", 1.0)], "directly followed"),
        ("a cat:0.5 on grass AND a dog", None, "at the end"),
        # Empty parts
        ("12:30 AND", [("12:30", 1.0), ("", 1.0)], "empty part"),
        ("AND a dog", [("", 1.0), ("a dog", 1.0)], "empty part"),
        ("a AND :0.5", [("a", 1.0), ("", 0.5)], "empty part"),
        ("a AND AND b", [("a", 1.0), ("", 1.0), ("b", 1.0)], "empty part"),
    ],
)
def test_what_may_be_meant_otherwise_is_told(prompt, pairs, told):
    found, messages = parsed(prompt)
    assert len(messages) == 1 and told in messages[0], messages
    if pairs is None:  # all of it is words
        assert all(weight == 1 for _, weight in found)
    else:
        assert found == pairs


@pytest.mark.parametrize("prompt", ["a:1000 AND b", "a:-100.5 AND b", f"a:{'9' * 400} AND b"])
def test_a_weight_out_of_range_is_refused(prompt):
    with pytest.raises(ValueError, match="the weight of 'a' is .*, not a number from -100 to 100"):
        parse_prompt(prompt)


def test_so_many_parts_are_refused():
    with pytest.raises(ValueError, match=f"{MOST_PARTS + 1} parts; compose at most {MOST_PARTS}"):
        parse_prompt(" AND ".join("a" * (MOST_PARTS + 1)))


@given(st.text(alphabet="aAND \\:.5\n", max_size=20))
def test_an_escaped_prompt_is_its_words(words):
    """Whatever a text is, with each backslash, colon and AND escaped it is one prompt: itself."""
    escaped = words.replace("\\", "\\\\").replace(":", "\\:")
    escaped = re.sub(r"AND\b", r"\\AND", escaped)
    assert parsed(escaped) == ([(words, 1.0)], [])


# --- Texts that are none ---
@pytest.mark.parametrize(
    "prompts, named",
    [
        ("a cat", "prompts is 'a cat', not a list of texts"),
        (b"a cat", "not a list of texts"),
        ([], "at least 1 image"),
        ([None], "the prompt is None, of type NoneType"),
        ([b"a cat"], "of type bytes"),
        ([["a"]], "of type list"),
        (["a \udcff cat"], "bytes that are no text, at character 3"),
        (["a\0cat"], "NUL"),
    ],
)
def test_what_is_no_prompt_is_refused(muse, prompts, named):
    for plain in (False, True):
        with pytest.raises(ValueError, match=named):
            muse.embed_prompts(prompts, plain=plain)
    with pytest.raises(ValueError, match=named):
        muse.draw(prompts)


@pytest.mark.parametrize("negative", [None, 3, "\udc80", "a\0"])
def test_what_is_no_negative_prompt_is_refused(muse, negative):
    with pytest.raises(ValueError, match="the negative prompt"):
        muse.generate("a cat", negative=negative)


def test_a_negative_prompt_is_not_composed_and_that_is_told():
    with pytest.warns(UserWarning, match="only a prompt is composed"):
        check_prompts(["a"], "red AND blue", plain=False)


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "\x07\x1b[31m", "é" * 3000, "猫", "🍎"])
def test_any_text_is_drawn(muse, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the long one is cut
        assert len(muse.generate(prompt)) == 1


# --- Styles ---
@pytest.mark.parametrize("words", ["pizza", "thumbs up", "Fire.", "a notorious cat", "a 3dx"])
def test_a_prompt_without_style_gets_one(words):
    with pytest.warns(UserWarning, match="names no style") as told:
        ((drawn, weight),) = with_style([(words, 0.5)], "emoji")
    assert drawn == f"{words.rstrip('.')}, {DEFAULT_STYLE} style" and weight == 0.5
    assert DEFAULT_STYLE in STYLE_NAMES
    assert all(style in str(told[0].message) for style in STYLE_NAMES)


@pytest.mark.parametrize(
    "words",
    ["a red apple, noto style", "pizza noto", "3D fire", "flat, a cat", "OpenMoji cat", "", "  "],
)
def test_a_prompt_with_a_style_or_none_of_words_stays(words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_style([(words, 1.0)], "emoji") == [(words, 1.0)]


def test_only_models_of_emoji_have_styles():
    """Also a part of negative weight is left alone: it is steered away from."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in ("shapes", "my-images", "/home/me/emoji", None):
            assert with_style([("pizza", 1.0)], data) == [("pizza", 1.0)]
        assert with_style([("red", -1.0)], "emoji") == [("red", -1.0)]


def test_the_style_is_added_where_prompts_are_read_and_nowhere_else(muse, monkeypatch):
    """`plain` prompts, as the metrics give them, and the negative prompt stay as they are."""
    embedded = []
    text = muse.text

    def remember(texts):
        embedded.append(list(texts))
        return text(texts)

    monkeypatch.setattr(muse, "text", remember)
    muse.embed_prompts(["red"], "blue")
    about = muse.about | {"data": "emoji", "vocabulary": "pizza fire blue twemoji 3d style"}
    monkeypatch.setattr(muse, "about", about)
    muse.embed_prompts(["pizza"], "blue", plain=True)
    with pytest.warns(UserWarning, match="names no style"):
        muse.embed_prompts(["pizza AND fire:0.5", "pizza AND fire, 3d:0.5"], "blue")
    assert embedded == [
        ["red", "blue"],
        ["pizza", "blue"],
        ["pizza, twemoji style", "pizza, twemoji style", "fire, twemoji style", "fire, 3d", "blue"],
    ]


# --- Capital letters ---
def tokens_of(muse, prompts, negative=""):
    """The ids that the text encoder gets for prompts and a negative prompt."""
    ids = []
    encode = muse.text.tokenizer.encode

    def remember(texts, *arguments):
        encoded = encode(texts, *arguments)
        ids.append(encoded[0].tolist())
        return encoded

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of words that no caption had
        patch.setattr(muse.text.tokenizer, "encode", remember)
        muse.embed_prompts(prompts, negative)
    return ids


def test_capital_letters_do_not_matter_to_toy():
    toy = Muse.load("toy")
    lower = tokens_of(toy, ["a red car, noto style"], "a dog")
    assert tokens_of(toy, ["A Red Car, Noto Style"], "A DOG") == lower
    composed = tokens_of(toy, ["a red car, 3d AND fire, flat:0.5"])
    assert tokens_of(toy, ["A red CAR, 3D AND Fire, Flat:0.5"]) == composed
    # The style by default.
    assert tokens_of(toy, ["A Red Car"]) == tokens_of(toy, ["a red car, twemoji style"])


def test_other_models_read_capital_letters():
    """Captions of a folder may have them; toy-shapes is as it was, too."""
    shapes = Muse.load("toy-shapes")
    prompts = ["A Red Circle", "a red circle"]
    assert len(set(map(str, tokens_of(shapes, prompts)[0][:2]))) == 2
    for data in ("shapes", "my-images", "/home/me/emoji", None):
        assert read_prompts(["A Red Car"], "No", data) == ([[("A Red Car", 1.0)]], "No")
