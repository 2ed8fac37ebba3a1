"""The words of training captions, and what is said of prompts with other words.

pytest tests/test_vocabulary.py
"""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from minimuse import edit
from minimuse.cli import main
from minimuse.cli.train import copy_start
from minimuse.data import ASSETS
from minimuse.datasets import emoji, shapes
from minimuse.datasets.folder import rows_of_split
from minimuse.muse import Muse
from minimuse.plumbing import vocabulary as words
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.parts import read_about
from minimuse.plumbing.prompts import MOST_PARTS, parse_prompt
from minimuse.plumbing.t5_files import load_t5
from minimuse.plumbing.vocabulary import distinct_words, say_unknown_words, vocabulary_of, words_of
from minimuse.runs import kept
from minimuse.runs.directory import check_same_model, describe_model, is_outdated, write_config
from minimuse.runs.stages import STAGES, train_all
from minimuse.runs.training_words import training_captions, training_vocabulary

SHIPPED = {name: read_about(Path(ASSETS) / name)["vocabulary"] for name in ("toy", "toy-shapes")}
NOWHERE = Path("no-such-directory")
CIRCLE = "a small red circle on a grey background"


def told(call, *arguments, **settings):
    """The warnings of a call, also those that are the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments, **settings)
    return [str(warning.message) for warning in caught]


def said(name, *prompts):
    """What is said of prompts for a model that ships."""
    return told(say_unknown_words, name, SHIPPED[name], prompts)


def first_captions(count):
    """The first captions of every emoji of the training split; toy was trained on eight."""
    entries = emoji.find_emoji("train", emoji.SIDE, Path(ASSETS))
    return [caption for entry in entries for caption in entry.captions[:count]]


# --- What a word is ---
@pytest.mark.parametrize(
    "text, expected",
    [
        ("a red apple, noto style", ["a", "red", "apple", "noto", "style"]),
        ("A Red APPLE!", ["a", "red", "apple"]),
        ('("red"; apple)...', ["red", "apple"]),
        ("a T-shirt and a t shirt", ["a", "t", "shirt", "and", "a", "t", "shirt"]),
        ("fluent-3d, fluent_3d", ["fluent", "3d", "fluent", "3d"]),
        ("one o'clock, 12:30", ["one", "o'clock", "12", "30"]),
        ("the 'man\u2019s' hat'", ["the", "man's", "hat"]),
        ("piñata pin\u0303ata", ["piñata", "piñata"]),
        ("ＲＥＤ", ["red"]),
        ("a🍎🍎b ❤\ufe0f", ["a", "🍎", "🍎", "b", "❤"]),
        ("红苹果", ["红", "苹", "果"]),
        ("", []),
        (" ' - ''' \u0301 , \t\n", []),
    ],
)
def test_words(text, expected):
    assert words_of(text) == expected


@given(st.text(max_size=40))
@example("ΣΊΣΥΦΟΣ İ ẞ ﬁ ℍ ½ ´a 1\ufe0f\u20e3")
def test_words_are_made_of_themselves(text):
    """So that a prompt of words that captions had says nothing."""
    found = words_of(text)
    assert words_of(" ".join(found)) == found
    assert distinct_words([text]) == set(found)
    assert all(word == word.lower() and len(word.split()) == 1 for word in found)


def test_a_vocabulary_is_one_sorted_text():
    assert vocabulary_of(distinct_words(["a red cat", "A dog."])) == "a cat dog red"
    assert vocabulary_of(set()) is None


def test_a_vocabulary_has_a_bound(monkeypatch):
    """Above it there is none: with a part of the words, others would be called unknown."""
    monkeypatch.setattr(words, "MOST_WORDS", 3)
    assert vocabulary_of({"a", "b", "c"}) == "a b c"
    assert vocabulary_of({"a", "b", "c", "d"}) is None
    assert told(say_unknown_words, "x", None, ["an elephant"]) == []


# --- What is said ---
def test_a_small_vocabulary_is_listed_whole():
    listed = ", ".join(SHIPPED["toy-shapes"].split())
    assert said("toy-shapes", "a purple elephant") == [
        "toy-shapes may not know 'elephant': its training captions never had this word; "
        f"their words are {listed}"
    ]


def test_of_a_large_vocabulary_near_words_are_shown():
    (message,) = said("toy", "a hamburgr and a Dargon and a hamburgr")
    assert message.startswith("toy may not know 'hamburgr', 'dargon': ")
    assert "never had these words" in message and "hamburger" in message and "dragon" in message
    assert message.endswith("minimuse describe toy --json lists all 3,407 words")
    (message,) = said("toy", "qqqqqqqqqqq")
    assert "near" not in message and "lists all 3,407 words" in message


def test_a_path_can_be_copied_to_a_command():
    (message,) = told(say_unknown_words, "my runs/x", " ".join(SHIPPED["toy"].split()), ["zzzzz"])
    assert "minimuse describe 'my runs/x' --json" in message


def test_many_unknown_words_are_counted():
    letters = "bcdefghijkl"
    (message,) = told(say_unknown_words, "x", "a", [" ".join(letters)])
    assert "'i' and 3 more: its" in message and "'j'" not in message


def test_words_are_told_once_in_a_call():
    def read(prompt):
        say_unknown_words("x", "a", [prompt, prompt])

    def read_all():
        for prompt in ("a b", "a b c", "B"):
            read(prompt)

    named = [message.split(":")[0] for message in told(words.each_word_once(read_all))]
    assert named == ["x may not know 'b'", "x may not know 'c'"]
    assert len(told(read_all)) == 3  # without the decorator
    inner = words.each_word_once(read)
    outer = words.each_word_once(lambda: [inner("b"), inner("b")])
    assert len(told(outer)) == 1 and len(told(outer)) == 1  # each call tells it again


# --- Properties ---
known_prompts = {
    name: st.lists(st.sampled_from(vocabulary.split()), max_size=12).map(" ".join)
    for name, vocabulary in SHIPPED.items()
}
# Letters with capitals, in three alphabets, and digits.
LETTERS = "abcdefghijklmnopqrstuvwxyzéñßабвгдαβγδ0123456789"
new_words = st.text(LETTERS, min_size=1, max_size=20)


def captions_say_nothing(name):
    captions = first_captions(8) if name == "toy" else training_captions(NOWHERE, "shapes")
    assert said(name, *captions) == []


def scenes_say_nothing():
    @given(st.integers(0, 10**12), st.sampled_from(shapes.SPLITS))
    def check(seed, split):
        assert said("toy-shapes", shapes.caption(shapes.scene(seed, split))) == []

    check()


def known_words_say_nothing(name):
    @given(known_prompts[name], st.sampled_from([str.lower, str.upper, str.title]))
    def check(prompt, case):
        assert said(name, *[words for words, _ in parse_prompt(f"{case(prompt)}.")]) == []

    check()


def a_new_word_is_named(name):
    vocabulary = set(SHIPPED[name].split())

    @given(known_prompts[name], new_words, known_prompts[name])
    def check(before, word, after):
        assume(word not in vocabulary)
        (message,) = said(name, f"{before} {word.upper()}, {after}")
        # "SS" is the capital letter of "ß".
        assert message.startswith(f"{name} may not know {word.upper().lower()!r}: ")

    check()


@pytest.mark.parametrize("name", SHIPPED)
def test_training_captions_say_nothing(name):
    captions_say_nothing(name)
    scenes_say_nothing()


@pytest.mark.parametrize("name", SHIPPED)
def test_prompts_of_known_words_say_nothing(name):
    known_words_say_nothing(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_word_that_captions_never_had_is_named(name):
    a_new_word_is_named(name)


@pytest.mark.parametrize(
    "planted",
    [
        lambda text: text.split(),
        lambda text: text.lower().split(),
        lambda text: text.lower().replace("'", " ").replace(",", " ").replace(".", " ").split(),
        lambda text: [word[:3] for word in words_of(text)],
        lambda text: words_of(text)[1:],
        lambda text: [],
    ],
    ids=["case", "punctuation", "apostrophe", "cut", "first", "nothing"],
)
def test_wrong_words_are_refused(planted, monkeypatch, planted_profile):
    monkeypatch.setattr(words, "words_of", planted)
    refused = 0
    for prop in (captions_say_nothing, known_words_say_nothing, a_new_word_is_named):
        try:
            prop("toy")
        except (AssertionError, ValueError):  # no message, or two
            refused += 1
    assert refused


any_text = st.text(st.characters(codec="utf-8"), max_size=60)
# Mostly what the grammar of prompts gives a meaning to.
almost_grammar = st.text("aAND \\:.5'-🍎é\n", max_size=60)


@given(any_text | almost_grammar)
def test_any_prompt_can_be_checked(text):
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assume(text.count("AND") < MOST_PARTS)
        try:
            pairs = parse_prompt(text)
        except ValueError:  # a weight out of range
            return
    for name in SHIPPED:
        messages = said(name, *[words for words, _ in pairs])
        assert len(messages) <= 1
        assert all(message.startswith(f"{name} may not know ") for message in messages)


# --- The pipeline, on the tiny model ---
@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


def picture(width=32, height=32):
    return Image.new("RGB", (width, height), (200, 40, 40))


def named(messages):
    """The unknown words of each message, as they are written."""
    return [message.split(" may not know ")[1].split(": ")[0] for message in messages]


PURPLE = "a purple elephant"
DRAWINGS = {
    "generate": lambda muse, **a: muse.generate(PURPLE, 3, **a),
    "draw in batches": lambda muse, **a: muse.draw([PURPLE] * 3, batch=1, **a),
    "inpaint": lambda muse, **a: edit.inpaint(
        muse, picture(), Image.new("L", (32, 32), 255), PURPLE, n=2, **a
    ),
    "outpaint in windows": lambda muse, **a: edit.outpaint(
        muse, picture(), PURPLE, (24, 24, 24, 24), steps=1, **a
    ),
    "edit": lambda muse, **a: edit.edit(muse, picture(), PURPLE, 2, n=2, **a),
}


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_an_unknown_word_is_told_once_and_the_image_is_drawn(muse, drawing):
    assert named(told(DRAWINGS[drawing], muse)) == ["'elephant'"]


@pytest.mark.parametrize("drawing", ["generate", "inpaint", "outpaint in windows", "edit"])
def test_negative_prompts_are_checked(muse, drawing):
    assert named(told(DRAWINGS[drawing], muse, negative="red tulips")) == ["'elephant', 'tulips'"]


def test_all_parts_of_composed_prompts_are_checked(muse):
    prompt = "a red circle AND a tulip:0.5 AND a rose:-1 AND a tulip"
    assert named(told(muse.generate, prompt)) == ["'tulip', 'rose'"]
    batches = told(muse.draw, [CIRCLE, "a tulip", "a tulip and a rose"], batch=1)
    assert named(batches) == ["'tulip'", "'and', 'rose'"]


def test_prompts_without_unknown_words_say_nothing(muse):
    for prompt in (CIRCLE, "", "  ", "Two LARGE circles!", "..."):
        assert told(muse.generate, prompt, negative="red") == []


def test_the_style_is_checked_as_it_is_drawn(muse):
    about = muse.about | {"data": "emoji", "vocabulary": "a cat style"}
    messages = told(Muse(muse.config, muse.text, muse.parts, about).generate, "a cat")
    assert "names no style" in messages[0]
    assert named(messages[1:]) == ["'twemoji'"] and messages[1].startswith("MODEL may not")


def test_plain_prompts_and_older_models_say_nothing(muse):
    """Measuring gives held-out captions, whose words training need not have had."""
    assert told(muse.draw, [PURPLE], plain=True) == []
    about = {key: value for key, value in muse.about.items() if key != "vocabulary"}
    assert told(Muse(muse.config, muse.text, muse.parts, about).generate, PURPLE) == []


def test_the_model_is_named_as_it_was_given(muse, tiny_model):
    (message,) = told(muse.generate, PURPLE)
    assert message.startswith(f"{tiny_model}"[:50])


def test_the_warning_points_to_the_callers_line(muse):
    for drawing in DRAWINGS.values():
        with pytest.warns(UserWarning, match="elephant") as caught:
            drawing(muse)
        assert {warning.filename for warning in caught} == {__file__}


def test_the_image_does_not_depend_on_what_is_said(muse):
    about = {key: value for key, value in muse.about.items() if key != "vocabulary"}
    silent = Muse(muse.config, muse.text, muse.parts, about)
    with pytest.warns(UserWarning, match="elephant"):
        drawn = muse.generate(PURPLE)[0]
    assert np.array_equal(np.array(drawn), np.array(silent.generate(PURPLE)[0]))


@pytest.mark.parametrize("command", ["generate", "batches", "grid", "inpaint", "outpaint", "edit"])
def test_a_command_prints_one_line_and_draws(command, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minimuse.cli.draw.BATCH", 2)
    picture().save("p.png")
    Image.new("L", (32, 32), 255).save("m.png")
    argv, files = {
        "generate": (["generate", PURPLE], ["out.png"]),
        "batches": (
            ["generate", PURPLE, "--n", "3", "--gif", "x.gif"],
            ["out-0.png", "out-1.png", "out-2.png", "x.gif"],
        ),
        "grid": (["generate", PURPLE, "--grid", "steps=1,2"], ["out.png"]),
        "inpaint": (["inpaint", "p.png", "m.png", PURPLE], ["out.png"]),
        "outpaint": (["outpaint", "p.png", PURPLE, "--pad", "24"], ["out.png"]),
        "edit": (["edit", "p.png", PURPLE, "--iterations", "2"], ["out.png"]),
    }[command]
    capsys.readouterr()
    assert main([*argv, "--model", str(tiny_model), "-o", "out.png"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == files and all(Path(file).is_file() for file in files)
    # A bar may stand before the message.
    _, *messages = printed.err.split("minimuse: ")
    assert len(messages) == 1, messages
    line = messages[0].splitlines()[0]
    assert "may not know 'elephant': " in line and line.endswith("white, yellow")


# --- Training writes it ---
CONFIG = PRESETS["tiny"]


@pytest.fixture(scope="module")
def text():
    return load_t5("t5-toy")


def make_folder(root, captions):
    """A folder of images of one colour, with these captions by name."""
    root.mkdir()
    for i, (name, caption) in enumerate(captions.items()):
        Image.new("RGB", (32, 32), (20 * i, 10, 0)).save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(caption)
    return root


@pytest.fixture
def pics(tmp_path):
    return make_folder(tmp_path / "pics", {f"p{i}": f"Image {i}\nword{i}" for i in range(12)})


def written(out):
    return json.loads((out / "config.json").read_text()).get("vocabulary")


def begin(out, data, text):
    """Write OUT/config.json as a stage does when it begins; what it says but the vocabulary."""
    about = describe_model(CONFIG, str(data), text, "t5-toy", 0)
    write_config(out, about)
    return about


def test_shipped_models_have_the_words_of_their_captions():
    """toy was trained on eight captions of each emoji; there are more now."""
    assert SHIPPED["toy-shapes"] == training_vocabulary(NOWHERE, "shapes")
    assert SHIPPED["toy"] == vocabulary_of(distinct_words(first_captions(8)))
    now = training_vocabulary(NOWHERE, "emoji").split()
    assert set(SHIPPED["toy"].split()) < set(now)


@pytest.mark.parametrize("name", ["toy", "toy-shapes"])
def test_a_vocabulary_is_one_line_of_config_json(name):
    lines = (Path(ASSETS) / name / "config.json").read_text().splitlines()
    assert sum("vocabulary" in line for line in lines) == 1 and len(lines) < 250


def test_a_trained_model_has_it(tiny_model):
    assert written(tiny_model) == SHIPPED["toy-shapes"]


def test_every_word_of_scenes_occurs():
    """Nothing is in the vocabulary of shapes that no caption has."""
    captions = []
    for seed in range(600):
        captions.append(shapes.caption(shapes.scene(seed)))
    assert distinct_words(captions) == set(SHIPPED["toy-shapes"].split())


def test_a_folder_gives_the_words_of_its_training_captions(tmp_path, pics, text, monkeypatch):
    """No image is decoded for it, and held-out captions do not count."""
    monkeypatch.setattr(Image, "open", None)
    begin(tmp_path / "out", pics, text)
    names = [f"p{i}.png" for i in range(12)]
    trained = rows_of_split(names, "train")
    assert 0 < len(trained) < 12
    expected = {"image"} | {f"word{i}" for i in trained} | {str(i) for i in trained}
    assert set(written(tmp_path / "out").split()) == expected


def test_images_that_are_left_out_do_not_count(tmp_path, pics, text):
    out = tmp_path / "out"
    row = rows_of_split([f"p{i}.png" for i in range(12)], "train")[0]
    (pics / f"p{row}.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="left out"):
        kept.open_images(out, pics, 32, 8, skip=True)
    begin(out, pics, text)
    assert f"word{row}" not in written(out).split()


def test_too_many_words_are_not_kept(tmp_path, pics, text, monkeypatch):
    monkeypatch.setattr(words, "MOST_WORDS", 10)
    begin(tmp_path / "out", pics, text)
    assert written(tmp_path / "out") is None
    assert read_about(tmp_path / "out")["data"] == str(pics)


def test_words_are_kept_when_the_folder_is_gone(tmp_path, pics, text):
    about = begin(tmp_path / "out", pics, text)
    before = written(tmp_path / "out")
    pics.rename(tmp_path / "elsewhere")
    write_config(tmp_path / "out", about)
    assert written(tmp_path / "out") == before


def forget_words(out):
    """Make the model in OUT one of an older version."""
    about = json.loads((out / "config.json").read_text())
    del about["vocabulary"]
    (out / "config.json").write_text(json.dumps(about))


def test_a_model_of_an_older_version_is_the_same_and_gets_it(tmp_path, text, monkeypatch):
    out = tmp_path / "out"
    about = begin(out, "shapes", text)
    check_same_model(out, about)
    assert not is_outdated(out, about)
    forget_words(out)
    check_same_model(out, about)
    assert is_outdated(out, about)
    monkeypatch.setattr("minimuse.runs.directory.can_write", lambda out: False)
    assert not is_outdated(out, about)
    check_same_model(out, about | {"vocabulary": "other words"})


def test_a_training_goes_on_with_checkpoints_that_do_not_have_it(tmp_path, text):
    """A checkpoint says which training it is of; the vocabulary is no part of that."""
    out = tmp_path / "out"
    stages = replace(CONFIG.stages, tokenizer=replace(CONFIG.stages.tokenizer, steps=2))
    config = replace(CONFIG, stages=stages, scenes=12)
    arguments = (("tokenizer",), out, config, "shapes", text, "t5-toy")
    for record in train_all(*arguments):
        record.save()
        break
    assert "vocabulary" not in (out / "tokenizer.checkpoint.safetensors").read_bytes().decode(
        "latin-1"
    )
    forget_words(out)
    assert len(list(train_all(*arguments, resume=True))) == 1
    assert written(out) == SHIPPED["toy-shapes"]
    forget_words(out)
    assert list(train_all(*arguments, resume=True)) == []  # nothing is left to train
    assert written(out) == SHIPPED["toy-shapes"]


def test_a_model_that_starts_from_another_knows_the_words_of_both(tmp_path, tiny_model, pics, text):
    out = tmp_path / "out"
    copy_start(tiny_model, out, STAGES)
    begin(out, pics, text)
    both = set(written(out).split())
    assert {"circle", "purple", "image"} < both
    again = tmp_path / "again"
    copy_start_of_whole(out, tiny_model, again)
    begin(again, "emoji", text)
    assert both < set(written(again).split())


def copy_start_of_whole(out, whole, again):
    """`copy_start` from OUT, which has a config.json only and gets the parts of another model."""
    for path in whole.glob("*.safetensors"):
        (out / path.name).write_bytes(path.read_bytes())
    copy_start(out, again, STAGES)


@pytest.mark.parametrize("data", ["shapes", "pics"])
def test_a_start_of_an_older_version(tmp_path, tiny_model, pics, text, data):
    """Its words follow from data that ship. A folder may have changed, so nothing is said."""
    old, out = tmp_path / "old", tmp_path / "out"
    begin(old, pics if data == "pics" else data, text)
    forget_words(old)
    copy_start_of_whole(old, tiny_model, out)
    begin(out, "emoji", text)
    if data == "pics":
        assert written(out) is None
    else:
        both = set(written(out).split())
        assert both == {
            *training_vocabulary(NOWHERE, "emoji").split(),
            *SHIPPED["toy-shapes"].split(),
        }


def test_a_saved_model_keeps_it(muse, tmp_path):
    muse.save(tmp_path / "saved", torch.float16)
    assert written(tmp_path / "saved") == SHIPPED["toy-shapes"]
    assert named(told(Muse.load(tmp_path / "saved").generate, PURPLE)) == ["'elephant'"]


@pytest.mark.parametrize("wrong", [None, 3, ["a", "b"], {"a": 1}])
def test_a_damaged_vocabulary_is_refused(tmp_path, text, wrong):
    begin(tmp_path, "shapes", text)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"vocabulary": wrong}))
    with pytest.raises(ValueError, match="config.json .*vocabulary is not one text"):
        read_about(tmp_path)


# --- describe ---
def test_describe_shows_a_small_vocabulary_whole(capsys):
    assert main(["describe", "toy-shapes"]) == 0
    printed = capsys.readouterr().out
    assert "32: a, above, background" in printed and "yellow\n" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())


def test_describe_shortens_a_large_vocabulary(capsys):
    assert main(["describe", "toy"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("words")]
    assert "3,407 (--json lists all), such as " in line
    assert main(["describe", "toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocabulary"] == SHIPPED["toy"].split()


def test_describe_of_a_model_directory(tiny_model, tmp_path, text, capsys):
    assert main(["describe", str(tiny_model), "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["vocabulary"] == SHIPPED["toy-shapes"].split()
    muse = Muse.load(tiny_model)
    assert costs["parameters"]["base"] == sum(p.numel() for p in muse.base.parameters())
    begin(tmp_path / "old", "shapes", text)
    forget_words(tmp_path / "old")
    assert main(["describe", str(tmp_path / "old")]) == 0
    assert "not kept: by an older version" in capsys.readouterr().out
    assert main(["describe", str(tmp_path / "old"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocabulary"] is None


def test_describe_of_a_preset_has_no_words(capsys):
    assert main(["describe", "tiny"]) == 0
    assert "words" not in capsys.readouterr().out


def test_describe_of_nothing(fails):
    line = fails("describe", "nowhere")
    assert "no model 'nowhere'" in line and "toy-shapes" in line and "muse-3b" in line
