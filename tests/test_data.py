"""The data sets: splits, packs, captions and folders: `pytest tests/test_data.py`."""

import csv
import hashlib
import io
import json
import re
import shutil
import string
import struct
import zlib
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from minimuse import datasets
from minimuse.data import ASSETS, Images, halve
from minimuse.datasets import emoji, folder, load, shapes
from minimuse.datasets.captions import find_pairs
from minimuse.datasets.colours import COLOUR_WORDS
from minimuse.datasets.emoji import STYLES, split_of
from minimuse.datasets.emoji_captions import BEFORE, OF, PICTURE_OF, emoji_captions
from minimuse.datasets.english import head_of, plural, thing_with_article
from minimuse.datasets.image_files import read_image
from minimuse.plumbing import device
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import images as runs_images
from minimuse.t5_frozen import MAX_TOKENS

WAYS = 16  # to ask for one emoji

words = st.text(string.ascii_letters + " é😀", min_size=1, max_size=12).filter(str.strip)


@cache
def index():
    """The shipped index of the emoji packs."""
    return json.loads((ASSETS / "emoji" / "index.json").read_text())


# --- Images and halve ---

small_bytes = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 4), st.just(3), st.integers(1, 5), st.integers(1, 5))
)
even_sides = st.sampled_from((2, 4, 6, 8))
small_floats = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.just(3), even_sides, even_sides),
    elements=st.floats(-1, 1, width=32),
)


@given(small_bytes, st.data())
def test_batch_maps_0_255_onto_minus_1_1(pixels, data):
    M = len(pixels)
    images = Images(torch.from_numpy(pixels), [("x",)] * M, ["x"] * M)
    indices = data.draw(st.lists(st.integers(0, M - 1), max_size=5))
    batch = images.batch(torch.tensor(indices, dtype=torch.int64))
    assert batch.dtype == torch.float32
    assert batch.shape == (len(indices), *pixels.shape[1:])
    expected = pixels[indices].astype(np.float64) / 255 * 2 - 1
    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-6)
    assert len(images) == M
    assert all(-1 <= value <= 1 for value in batch.flatten().tolist())


@given(small_floats)
def test_halve_is_the_mean_of_each_2x2_block(images):
    halved = halve(torch.from_numpy(images)).numpy()
    B, C, H, W = images.shape
    assert halved.shape == (B, C, H // 2, W // 2)
    for i in range(H // 2):
        for j in range(W // 2):
            block = images[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].astype(np.float64)
            np.testing.assert_allclose(halved[:, :, i, j], block.mean((2, 3)), atol=1e-6)


def test_halve_refuses_an_odd_side():
    with pytest.raises(ValueError, match="6x7"):
        halve(torch.zeros(1, 3, 6, 7))


# --- shapes ---


def scene_number(name):
    """7 of "shapes/train/7"."""
    return int(name.rsplit("/", 1)[1])


def test_shapes_are_a_function_of_the_seed():
    first = load("shapes", "train", 32, count=6, seed=1)
    again = load("shapes", "train", 32, count=6, seed=1)
    other = load("shapes", "train", 32, count=6, seed=0)
    assert torch.equal(again.pixels, first.pixels)
    assert again.captions == first.captions
    assert not torch.equal(other.pixels, first.pixels)
    longer = load("shapes", "train", 32, count=8, seed=1)  # more scenes begin with the same ones
    assert torch.equal(longer.pixels[:6], first.pixels)


def test_no_scene_is_in_two_splits():
    names = []
    numbers = {}
    for split in ("train", "validation", "heldout"):
        numbers[split] = set()
        for seed in (0, 1):
            images = load("shapes", split, 32, count=6, seed=seed)
            names += images.names
            numbers[split] |= {scene_number(name) for name in images.names}
    assert len(set(names)) == 6 * 6
    assert not numbers["train"] & numbers["validation"]


def test_heldout_shapes_show_what_training_does_not():
    """Draw each scene again from the number in its name."""
    for split in ("train", "validation", "heldout"):
        images = load("shapes", split, 32, count=40)
        for name, captions in zip(images.names, images.captions, strict=True):
            scene_split = "heldout" if split == "heldout" else "train"
            scene = shapes.scene(scene_number(name), scene_split)
            assert captions == (shapes.caption(scene),)
            unseen = {(t.shape, t.colour, t.size) for t in scene.things} & shapes.HELD_OUT
            assert bool(unseen) == (split == "heldout")


def test_shapes_need_a_count():
    with pytest.raises(ValueError, match="count="):
        load("shapes", "train", 32)


# --- the emoji's splits ---


def test_split_is_a_fixed_function_of_the_names():
    # Another split would move images between training and test under trained weights.
    names = sorted({concept for style in STYLES for concept in index()[style]["blobs"]})
    table = "".join(
        f"{name} {style} {split_of(name, style)}\n" for name in names for style in STYLES
    )
    digest = hashlib.sha256(table.encode()).hexdigest()
    assert digest == "941f68a94618e2e2b9c3503f4e86581389068a4520f0f6817a4ad59377a3534d"
    with pytest.raises(ValueError, match="'emojione'"):
        split_of("red-apple", "emojione")


@given(words)
def test_a_concept_is_held_out_whole_or_in_one_style_at_most(concept):
    parts = [split_of(concept, style) for style in STYLES]
    assert parts == [split_of(concept, style) for style in STYLES]
    if "heldout-concept" in parts:
        assert set(parts) == {"heldout-concept"}
    else:
        assert parts.count("heldout-pair") <= 1


def test_split_rates_are_five_percent():
    """Of 10,000 names that nobody chose; the bounds are five standard deviations."""
    n = 10_000
    bound = 5 * (0.05 * 0.95 / n) ** 0.5
    rows = [[split_of(f"thing-{i}", style) for style in STYLES] for i in range(n)]
    whole = sum("heldout-concept" in row for row in rows)
    assert abs(whole / n - 0.05) < bound
    for k in range(len(STYLES)):
        others = [row[k] for row in rows if row[k] != "heldout-concept"]
        assert abs(others.count("heldout-pair") / len(others) - 0.05) < bound


def test_shipped_splits():
    pairs = defaultdict(set)
    for style in STYLES:
        for concept in index()[style]["blobs"]:
            pairs[split_of(concept, style)].add((concept, style))
    concepts = {split: {concept for concept, _ in some} for split, some in pairs.items()}
    styles = {split: {style for _, style in some} for split, some in pairs.items()}
    assert styles["train"] == styles["heldout-pair"] == set(STYLES)
    assert concepts["heldout-pair"] <= concepts["train"]
    assert not concepts["heldout-concept"] & concepts["train"]
    of_known_concepts = len(pairs["heldout-pair"]) + len(pairs["train"])
    assert 0.04 < len(pairs["heldout-pair"]) / of_known_concepts < 0.06
    assert 0.04 < len(concepts["heldout-concept"]) / 1653 < 0.06


# --- the emoji's images and captions ---


def test_packs_hold_what_the_index_says():
    captions = json.loads((ASSETS / "emoji" / "captions.json").read_text())
    assert len(captions) == 1653
    for style in STYLES:
        pack = (ASSETS / "emoji" / f"{style}.pack").read_bytes()
        end, blobs = 0, []
        for concept, (offset, length, colour) in index()[style]["blobs"].items():
            assert colour in ("", *COLOUR_WORDS)
            assert offset == end  # one image follows another, with no gap and no overlap
            assert concept in captions
            end = offset + length
            blobs.append(pack[offset:end])
            assert blobs[-1][:4] == b"RIFF" and blobs[-1][8:12] == b"WEBP"
        assert end == len(pack) == index()[style]["bytes"]
        assert len(set(blobs)) == len(blobs) > 1500


def ending_of(style):
    """How every caption of a style ends."""
    return f", {style.replace('-', ' ')} style"


def test_every_emoji_is_in_one_split_with_its_captions():
    names = []
    for split in datasets.SPLITS["emoji"]:
        for entry in emoji.find_emoji(split, 32, ASSETS):
            names.append(entry.name)
            style, concept = entry.name.split("/")
            assert split_of(concept, style) == ("heldout-pair" if split == "heldout" else split)
            assert len(entry.captions) == WAYS
            for caption in entry.captions:
                assert caption.endswith(ending_of(style)) and caption.isprintable()
                assert caption == caption.lower() and "  " not in caption
    assert len(names) == len(set(names)) == sum(len(index()[style]["blobs"]) for style in STYLES)


@pytest.mark.parametrize("side", [16, 20, 128])
def test_emoji_images(side):
    pixels = load("emoji", "train", side, count=300).pixels
    assert pixels.shape == (300, 3, side, side) and pixels.dtype == torch.uint8
    assert (pixels.flatten(1).float().std(1) > 2).all()  # none is blank
    assert (pixels[:, :, 0, 0] > 240).all(1).float().mean() > 0.9  # on white


def test_apple_is_red_in_every_style():
    entries = {}
    for split in ("train", "heldout"):
        entries |= {entry.name: entry for entry in emoji.find_emoji(split, 32, ASSETS)}
    for style in STYLES:
        apple = entries[f"{style}/red-apple"]
        red, green, blue = np.array(apple.read())[12:26, 10:22].mean((0, 1))
        assert red > 2 * blue and red > 1.5 * green
        ending = ending_of(style)
        assert apple.captions[:2] == (f"red apple{ending}", f"a red apple{ending}")


def test_smaller_emoji_are_halved_emoji():
    large = load("emoji", "heldout", 64, count=20)
    small = load("emoji", "heldout", 32, count=20)
    assert large.names == small.names
    halved = halve(large.batch(range(20)))
    # Both are rounded to whole levels, 2/255 apart: half a level of error each.
    assert (halved - small.batch(range(20))).abs().max() <= 2.001 / 255


def test_count_takes_a_fixed_choice():
    some, again, other = (load("emoji", "heldout", 16, count=10, seed=s) for s in (0, 0, 1))
    assert len(some) == 10 and some.names == again.names != other.names
    everything = [entry.name for entry in emoji.find_emoji("heldout", 16, ASSETS)]
    assert some.names == [name for name in everything if name in some.names]
    assert len(load("emoji", "heldout", 16, count=10**6)) == len(everything)
    with pytest.raises(ValueError, match="count is 0"):
        load("emoji", "train", 16, count=0)


def words_of_emoji(label, tags=(), things=(), group="objects", subgroup="tools"):
    """An entry as captions.json has it."""
    return {
        "label": label,
        "tags": list(tags),
        "things": list(things),
        "group": group,
        "subgroup": subgroup,
    }


def new_captions(words, style="noto", colour=""):
    """The second eight captions, without the style."""
    captions = emoji_captions(words, style, colour)
    return [caption.removesuffix(ending_of(style)) for caption in captions[8:]]


def test_captions_as_people_type():
    """The label and a tag with the colour; a tag, a picture of it, and two of them; and others."""
    tags = ["car", "vehicle", "driving"]
    for style in STYLES:
        automobile = words_of_emoji("automobile", tags, ["car", "vehicle"])
        captions = new_captions(automobile, style, "red")
        coloured, short, thing, picture, two, kind, reordered, several = captions
        assert coloured == "a red automobile" and reordered == "automobile in red"
        assert short in ("red car", "red vehicle") and thing in ("a car", "a vehicle")
        assert short != f"red {thing.removeprefix('a ')}"
        start, _, pictured = picture.partition(" of ")
        assert start in PICTURE_OF and pictured in ("a car", "a vehicle")
        assert set(two.split()) - {"and"} == {"car", "vehicle"}
        assert kind in ("a red vehicle", "automobile, a vehicle")
        assert several == "automobiles"


def test_captions_of_a_face():
    """A face has no tags that name it, but adjectives."""
    things = ["happy face", "cool face"]
    face = words_of_emoji("smiling face with sunglasses", ["happy", "cool", "face"], things)
    for style in STYLES:
        coloured, short, thing, _, two, kind, reordered, several = new_captions(
            face, style, "yellow"
        )
        assert coloured == "a yellow smiling face with sunglasses"
        assert short in ("happy yellow face", "cool yellow face")
        assert thing in ("a happy face", "a cool face")
        assert two in ("happy cool face", "cool happy face")
        assert kind == "a yellow face"
        assert reordered in ("face with sunglasses", "face, smiling, with sunglasses")
        assert several == "smiling faces with sunglasses"


def test_a_colour_is_said_only_where_it_is_true():
    heart = words_of_emoji("red heart", ["love"], ["heart"])
    for style in STYLES:  # the picture is orange, but everybody calls it red
        captions = new_captions(heart, style, "orange")
        assert captions[:2] == ["a red heart", "red heart"]
        assert not any("orange" in caption for caption in captions)
    for group, subgroup in (("people & body", "hands"), ("travel & places", "time")):
        words = words_of_emoji("baby", ["tool"], ["infant"], group, subgroup)
        assert not any("yellow" in caption for caption in new_captions(words, "noto", "yellow"))
    words = words_of_emoji("no smoking", ["sign"], group="symbols", subgroup="signs")
    assert not any("red" in caption for caption in new_captions(words, "noto", "red"))


def test_without_tags_and_colour_the_plainest_captions_are_repeated():
    for style in STYLES:
        captions = new_captions(words_of_emoji("rocket"), style)
        assert len(captions) == 8
        assert set(captions) - {captions[3]} == {"rocket", "a rocket", "rockets"}
        assert re.fullmatch("an? [a-z]+ of a rocket", captions[3])


@pytest.mark.parametrize(
    "label, expected",
    [
        ("strawberry", "strawberries"),
        ("knife", "knives"),
        ("tropical fish", "tropical fish"),
        ("crossed swords", "crossed swords"),
        ("scissors", "scissors"),
        ("bus", "buses"),
        ("compass", "compasses"),
        ("cactus", "cactuses"),
        ("toy", "toys"),
        ("smiling face with halo", "smiling faces with halo"),
        ("piece of cake", "pieces of cake"),
        ("bread", "bread"),
        ("police woman", "police women"),
        ("man rowing boat", "man rowing boat"),
        ("hammer and pick", "hammer and pick"),
        ("hourglass done", "hourglass done"),
        ("chart increasing", "chart increasing"),
        ("ring", "rings"),
        ("one o'clock", "one o'clock"),
        ("keycap: 8", "keycap: 8"),
    ],
)
def test_plurals(label, expected):
    assert plural(label) == expected


def test_no_label_has_a_plural_of_a_plural():
    captions = json.loads((ASSETS / "emoji" / "captions.json").read_text())
    plurals = [plural(concept["label"].lower()) for concept in captions.values()]
    assert [plural(label) for label in plurals] == plurals


@pytest.mark.parametrize(
    "thing, phrase",
    [
        ("bike", "a bike"),
        ("ale", "an ale"),
        ("cheese", "cheese"),
        ("french bread", "french bread"),
        ("teeth", "teeth"),
        ("crossed swords", "crossed swords"),
        ("face with big eyes", "a face with big eyes"),
    ],
)
def test_articles_of_things(thing, phrase):
    assert thing_with_article(thing) == phrase


def test_the_noun_of_a_label():
    assert head_of("smiling face with sunglasses") == "face" and head_of("red apple") == "apple"


def test_caption_forms():
    new_tags = {"diet", "food", "fruit", "health", "ripe"}
    tags = sorted(new_tags | {"apple", "red"})  # "apple" and "red" say nothing new
    first_tags = set()
    for style in STYLES:
        captions = emoji_captions(words_of_emoji("red apple", tags), style, "red")
        ending = ending_of(style)
        assert all(caption.endswith(ending) for caption in captions)
        plain, article, one, two, before, part, after_tag, tag = (
            caption.removesuffix(ending) for caption in captions[:8]
        )
        assert (plain, article) == ("red apple", "a red apple")
        first = one.removeprefix("red apple, ")
        second, third = two.removeprefix("a red apple, ").split(", ")
        assert len({first, second, third}) == 3
        assert {first, second, third} <= new_tags
        assert before.removesuffix(" red apple") in BEFORE
        assert re.sub("( a)? red apple$", "", part).removesuffix(" of") in OF
        assert {tag, after_tag.removesuffix(" red apple")} <= new_tags
        first_tags.add(first)
    assert len(first_tags) > 1  # each style has an order of its own


@pytest.mark.parametrize(
    "label, phrase",
    [
        ("orange square", "an orange square"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("hourglass done", "an hourglass done"),
        ("crossed swords", "crossed swords"),
        ("compass", "a compass"),
        ("cactus", "a cactus"),
        ("A button (blood type)", "an a button (blood type)"),
    ],
)
def test_articles(label, phrase):
    assert emoji_captions(words_of_emoji(label), "noto", "")[1] == f"{phrase}, noto style"


labels = words.filter(lambda text: text == text.strip())


@given(
    labels,
    st.lists(words, max_size=6),
    st.lists(labels.map(str.lower), max_size=3),
    st.sampled_from(STYLES),
    st.sampled_from(("", *COLOUR_WORDS)),
)
def test_every_emoji_has_as_many_captions(label, tags, things, style, colour):
    captions = emoji_captions(words_of_emoji(label, tags, things), style, colour)
    # The order of tags in the file plays no part.
    turned = words_of_emoji(label, tags[::-1], things[::-1])
    assert captions == emoji_captions(turned, style, colour)
    assert len(captions) == WAYS
    assert captions[0] == f"{label.lower()}{ending_of(style)}"
    assert captions[:8] == emoji_captions(turned, style, "")[:8]


def test_captions_are_short_enough_for_the_text_encoder():
    captions = set()
    for split in datasets.SPLITS["emoji"]:
        for entry in emoji.find_emoji(split, 32, ASSETS):
            captions.update(entry.captions)
    longest = sorted(captions, key=len)[-500:]
    tokenizer = load_t5("t5-toy").tokenizer
    ids, _ = tokenizer.encode(longest, max_length=10**4)
    assert ids.shape[1] < MAX_TOKENS


# --- damage ---


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ASSETS / "emoji", tmp_path / "emoji")
    return tmp_path


def one_line(error, *parts):
    """The message is one line that contains all parts."""
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@settings(max_examples=5, deadline=None)
@given(st.sampled_from(STYLES), st.integers(0, 10**9), st.integers(0, 7))
def test_a_flipped_bit_is_found(style, place, bit):
    pack = bytearray((ASSETS / "emoji" / f"{style}.pack").read_bytes())
    pack[place % len(pack)] ^= 1 << bit
    path = Path("/nowhere") / f"{style}.pack"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "_read_bytes", lambda _: bytes(pack))
        with pytest.raises(ValueError) as error:
            emoji._pack(path, index()[style])
    one_line(error, f"{style}.pack", "damaged", "git checkout")


def test_a_truncated_pack_is_named(copy):
    path = copy / "emoji" / "noto.pack"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError) as error:
        load("emoji", "heldout", 16, data_dir=copy)
    one_line(error, str(path), "git checkout data/emoji")


@pytest.mark.parametrize("name", ["fluent-3d.pack", "index.json", "captions.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / "emoji" / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load("emoji", "heldout", 16, data_dir=copy)
    one_line(error, str(copy / "emoji" / name), "git checkout data/emoji")


def test_a_missing_style_is_named(copy):
    path = copy / "emoji" / "index.json"
    damaged = json.loads(path.read_text())
    del damaged["noto"]
    path.write_text(json.dumps(damaged))
    with pytest.raises(ValueError) as error:
        load("emoji", "heldout", 16, data_dir=copy)
    one_line(error, str(path), "noto", "git checkout data/emoji")


@pytest.mark.parametrize("entry", [[0, 100], [0, 100, "mauve"], [0, 100, None], 7])
def test_a_damaged_entry_of_the_index_is_named(copy, entry):
    path = copy / "emoji" / "index.json"
    damaged = json.loads(path.read_text())
    damaged["noto"]["blobs"]["pizza"] = entry
    path.write_text(json.dumps(damaged))
    with pytest.raises(ValueError) as error:
        load("emoji", "heldout", 16, data_dir=copy)
    one_line(error, str(copy / "emoji"), "damaged at noto", "git checkout data/emoji")


def test_a_cut_index_is_named(copy):
    path = copy / "emoji" / "index.json"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError) as error:
        load("emoji", "heldout", 16, data_dir=copy)
    one_line(error, str(path), "damaged")


def test_no_data_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("emoji", "train", 16, data_dir=tmp_path / "data")
    one_line(error, str(tmp_path / "data"), "pip install -e .")


@pytest.mark.parametrize(
    "source, split, side, message",
    [
        ("emoji", "test", 32, "heldout-concept"),
        ("shapes", "test", 32, "validation"),
        ("emoji", "train", 256, "side=256"),
        ("emoij", "train", 32, "'emoij'"),
    ],
)
def test_what_does_not_exist_is_named(source, split, side, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(source, split, side)
    one_line(error, message)


# --- a folder of one's own ---


def save_image(path, size=(20, 16)):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path)


FORMS = ("txt", "csv")


def make_folder(root, form, names=("a.png", "b.jpg", "c.webp"), caption='a {} thing, "so" to say'):
    """A valid folder in one of the two forms."""
    rows = [(name, caption.format(Path(name).stem)) for name in names]
    for name, text in rows:
        save_image(root / name)
        if form == "txt":
            (root / name).with_suffix(".txt").write_text(text + "\n")
    if form == "csv":
        with open(root / "captions.csv", "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([("file", "caption"), *rows])
    return root


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_say_the_same(tmp_path, form):
    names = ["sub/x.png"]
    for i, suffix in enumerate(["png", "jpg", "webp", "JPEG"] * 6):
        names.append(f"{i:02}.{suffix}")
    make_folder(tmp_path, form, names)
    (tmp_path / "._00.png").write_bytes(b"a file that macOS makes and hides")
    train = load(str(tmp_path), "train", 8)
    heldout = load(str(tmp_path), "heldout", 8)
    assert sorted(train.names + heldout.names) == sorted(names)
    assert len(heldout) >= 1
    for images in (train, heldout):
        for name, captions in zip(images.names, images.captions, strict=True):
            assert captions == (f'a {Path(name).stem} thing, "so" to say',)
        error = images.pixels.float() - torch.tensor([200.0, 30, 30])[:, None, None]
        assert error.abs().max() < 8  # JPEG and WebP are lossy
    assert set(load(str(tmp_path), "train", 8, count=5).names) < set(train.names)


@given(st.sets(words, min_size=2, max_size=60))
@settings(max_examples=30)
def test_folder_split(names):
    train = names_of_split(names, "train")
    heldout = names_of_split(names, "heldout")
    later = names_of_split(names | {"one more"}, "heldout")
    assert train and heldout
    assert train | heldout == names
    assert not train & heldout
    # A new image moves no held-out image into training, once two are held out.
    if len(heldout) > 1:
        assert heldout <= later


def names_of_split(names, split):
    """The split of a folder that has these names."""
    ordered = sorted(names)
    return {ordered[i] for i in folder.rows_of_split(ordered, split)}


def test_training_is_never_left_empty():
    unlucky = [str(i) for i in range(100) if device.stable_hash(str(i)) % 10 == 0][:3]
    assert len(names_of_split(unlucky, "train")) == 1


def test_a_caption_file_has_one_caption_a_line(tmp_path):
    make_folder(tmp_path, "txt")
    (tmp_path / "a.txt").write_text("an a\n\n  the   letter a \n")
    assert find_pairs(tmp_path)["a.png"].captions == ("an a", "the letter a")


def test_cropped_in_the_middle_and_put_on_white(tmp_path):
    wide = np.zeros((10, 30, 4), np.uint8)
    wide[:, 10:20] = (0, 0, 255, 255)  # a blue middle; both sides must be cut off
    wide[:5, 10:20, 3] = 0  # its upper half is transparent, and must become white
    Image.fromarray(wide).save(tmp_path / "w.png")
    square = np.array(folder.read_square(tmp_path / "w.png", 10, 8))
    assert square.shape == (10, 10, 3)
    assert (square[:5] == 255).all() and (square[5:] == (0, 0, 255)).all()


def test_a_turned_photograph_is_turned_back(tmp_path):
    sideways = np.zeros((16, 16, 3), np.uint8)
    sideways[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise": the left half becomes the top
    Image.fromarray(sideways).save(tmp_path / "p.png", exif=exif)
    square = np.array(folder.read_square(tmp_path / "p.png", 16, 8))
    assert (square[:8] == 255).all() and (square[8:] == 0).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK"])
def test_other_kinds_of_image(tmp_path, mode):
    name = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (8, 8), "white").convert(mode).save(name)
    assert (np.array(folder.read_square(name, 8, 8)) > 250).all()


def chunk(kind, body):
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_empty_png(path, side):
    """A PNG of 70 bytes that says it has side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


# Functions that replace an image by one that must be refused.


def bomb(path):
    """So large that PIL raises an error."""
    write_empty_png(path, 60_000)


def smaller_bomb(path):
    """So large that PIL only warns."""
    write_empty_png(path, int((1.5 * Image.MAX_IMAGE_PIXELS) ** 0.5))


def cut(path):
    """Half of a file."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, path.suffix[1:].replace("jpg", "jpeg"))
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


def deep(path):
    """16 bits a channel."""
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(path)


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("no image")


def gif(path):
    Image.new("RGB", (9, 9)).save(path, "GIF")


def low(path):
    save_image(path, (40, 7))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name, spoil, message",
    [
        ("a.png", bomb, "pixels"),
        ("a.png", smaller_bomb, "pixels"),
        ("a.png", cut, "cannot be read"),
        ("b.jpg", cut, "cannot be read"),
        ("c.webp", cut, "cannot be read"),
        ("a.png", deep, "8 bits"),
        ("b.jpg", empty, "is empty"),
        ("c.webp", text, "cannot be read"),
        ("a.png", gif, "is a GIF file"),
        ("a.png", low, "40x7"),
    ],
)
def test_a_bad_image_is_named(tmp_path, form, name, spoil, message):
    make_folder(tmp_path, form)
    spoil(tmp_path / name)
    with pytest.raises(ValueError) as error:
        for split in ("train", "heldout"):
            load(str(tmp_path), split, 8, smallest=8)
    one_line(error, str(tmp_path / name), message, "remove it", "skip_unreadable=True")
    kept = []
    with pytest.warns(UserWarning, match=f"left out: .*{name}.*{message}"):
        for split in ("train", "heldout"):
            kept += load(str(tmp_path), split, 8, smallest=8, skip_unreadable=True).names
    assert sorted(kept) == sorted({"a.png", "b.jpg", "c.webp"} - {name})


def caption_file(form, stem):
    """Which file should have the caption of an image."""
    return f"{stem}.txt" if form == "txt" else "captions.csv"


@pytest.mark.parametrize("form", FORMS)
def test_an_image_without_caption_is_named(tmp_path, form):
    save_image(make_folder(tmp_path, form) / "extra.png")
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, "extra.png has no caption", caption_file(form, "extra"))


@pytest.mark.parametrize("form", FORMS)
def test_a_caption_without_image_is_named(tmp_path, form):
    (make_folder(tmp_path, form) / "b.jpg").unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, "b.txt" if form == "txt" else "captions.csv line")


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_caption_is_named(tmp_path, form):
    make_folder(tmp_path, form, caption=" ")
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, "empty", "a.txt" if form == "txt" else "captions.csv line")


@pytest.mark.parametrize("form", FORMS)
def test_one_image_is_too_few(tmp_path, form):
    make_folder(tmp_path, form, ["a.png"])
    with pytest.raises(ValueError, match="1 image to use"):
        load(str(tmp_path), "train", 8)


@pytest.mark.parametrize("form", FORMS)
def test_text_that_is_not_utf8_is_named(tmp_path, form):
    path = make_folder(tmp_path, form) / caption_file(form, "b")
    path.write_bytes(path.read_bytes().replace(b"thing", "Käse".encode("latin-1")))
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, str(path), "not UTF-8")


@pytest.mark.parametrize("form", FORMS)
def test_empty_folder(tmp_path, form):
    make_folder(tmp_path, form, [])
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, str(tmp_path), "0 images" if form == "txt" else "empty")


@pytest.mark.parametrize(
    "file, message",
    [
        ("../x.png", "leads out"),
        ("/etc/x.png", "leads out"),
        ("a/../../x.png", "leads out"),
        ("./a.png", "has a row already"),
        ("a.gif", "no PNG, JPEG or WebP 'a.gif'"),
        ("", "no PNG"),
    ],
)
def test_a_bad_row_is_named(tmp_path, file, message):
    make_folder(tmp_path, "csv")
    save_image(tmp_path.parent / "x.png")
    with open(tmp_path / "captions.csv", "a") as table:
        table.write(f'"{file}",x\n')
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, "captions.csv line 5", message)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "file,caption"),
        ("file;caption\na.png;x\n", "file,caption"),
        ("file,caption\n", "is empty"),
        ("file,caption\na.png\n", "line 2"),
        ("file,caption\na.png,red, round\n", "quotes"),
        ('file,caption\na.png,"red\n', "quotes"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, message):
    for file in ("a.png", "b.png"):
        save_image(tmp_path / file)
    table = tmp_path / "captions.csv"
    table.write_text(text)
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, str(table), message)


def test_two_images_for_one_text_are_refused(tmp_path):
    other = make_folder(tmp_path / "sub", "txt", ["a.png", "b.png"])
    save_image(other / "a.webp")
    with pytest.raises(ValueError, match="a.txt has 2 images"):
        load(str(other), "train", 8)


# --- Files that are no images ---
@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "empty", "text", "no permission"])
def test_a_file_that_is_no_image_is_called_what_it_is(tmp_path, monkeypatch, kind):
    path = tmp_path / "p.jpg"
    path.touch()
    if kind in ("GIF", "TIFF", "BMP"):
        Image.new("RGB", (40, 40)).save(path, kind)
        message = f"{path} is a {kind} file, whatever its name says; save it as PNG, JPEG or WebP"
    elif kind == "empty":
        message = f"{path} is empty; save it again"
    elif kind == "text":
        path.write_text("no image")
        message = f"{path} cannot be read (cannot identify"
    else:

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("minimuse.datasets.image_files.Image.open", refuse)
        message = f"{path} cannot be read (Permission denied); allow this user to read it"
    with pytest.raises(ValueError) as error:
        read_image(path)
    assert str(error.value).startswith(message)
    save_image(tmp_path / "q.png")
    (tmp_path / "captions.csv").write_text("file,caption\np.jpg,x\nq.png,y\n")
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    assert str(error.value).startswith(message)
    assert ", or remove it and its caption (skip_unreadable=True" in str(error.value)


def test_a_damaged_photograph_with_a_preview_is_no_other_format(tmp_path):
    path = tmp_path / "p.jpg"
    preview = Image.new("RGB", (40, 40))
    Image.effect_noise((64, 64), 50).convert("RGB").save(
        path, "MPO", save_all=True, append_images=[preview]
    )
    assert read_image(path).size == (64, 64)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match="cannot be read .*save it again"):
        read_image(path)


# --- load, as a library ---
def test_a_source_may_be_a_path_and_may_not_be_empty(tmp_path):
    assert load(Path("emoji"), "train", 16, 2).names == load("emoji", "train", 16, 2).names
    for source in ("", " "):
        with pytest.raises(ValueError, match="source is empty"):
            load(source, "train", 16)


def test_following_the_remedy_for_a_damaged_image_works(tmp_path):
    make_folder(tmp_path, "txt")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="skip_unreadable=True leaves out all such images"):
        load(str(tmp_path), "train", 8)
    with pytest.warns(UserWarning, match="left out"):
        load(str(tmp_path), "train", 8, skip_unreadable=True)


def test_training_scenes_are_drawn_once(monkeypatch):
    """A process that trains several stages would draw the same thousands of scenes for each."""
    config = replace(PRESETS["tiny"], scenes=7)
    runs_images.training_scenes.cache_clear()
    drawn = []

    def load_and_note(*arguments):
        drawn.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(runs_images, "load", load_and_note)
    first = runs_images.load_images(config, "shapes")
    assert runs_images.load_images(config, "shapes") is first
    assert drawn == [("shapes", "train", 32, 7)]
    expected = load("shapes", "train", 32, 7)
    assert torch.equal(first.pixels, expected.pixels) and first.captions == expected.captions
    other = runs_images.load_images(replace(config, scenes=5), "shapes")
    assert len(other) == 5
