"""Splits, packs, captions and folders: `pytest tests/test_data.py` (ten seconds of one core)."""

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
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from minimuse import datasets, device
from minimuse.data import ASSETS, Images, halve
from minimuse.datasets import emoji, load, shapes
from minimuse.datasets import folder as folders
from minimuse.datasets.emoji import BEFORE, OF, STYLES, emoji_captions, split_of

words = st.text(string.ascii_letters + " é😀", min_size=1, max_size=12).filter(str.strip)


@cache
def index():
    return json.loads((ASSETS / "emoji" / "index.json").read_text())


# --- Pictures and halve ---


@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 4), st.just(3), st.integers(1, 5), st.integers(1, 5))
    ),
    st.data(),
)
def test_batch_maps_0_255_onto_minus_1_1(pixels, draw):
    M = len(pixels)
    pictures = Images(torch.from_numpy(pixels), [("x",)] * M, ["x"] * M)
    indices = draw.draw(st.lists(st.integers(0, M - 1), max_size=5))
    batch = pictures.batch(torch.tensor(indices, dtype=torch.int64))
    assert batch.dtype == torch.float32 and batch.shape == (len(indices), *pixels.shape[1:])
    expected = pixels[indices].astype(np.float64) / 255 * 2 - 1
    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-6)
    assert len(pictures) == M and all(-1 <= v <= 1 for v in batch.flatten().tolist())


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.just(3), st.integers(1, 4), st.integers(1, 4)).map(
            lambda s: (s[0], s[1], 2 * s[2], 2 * s[3])
        ),
        elements=st.floats(-1, 1, width=32),
    )
)
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


def test_shapes_are_a_function_of_the_seed_and_no_scene_is_in_two_splits():
    parts = {
        (p, s): load("shapes", p, 32, count=6, seed=s)
        for p in ("train", "validation", "heldout")
        for s in (0, 1)
    }
    names = [n for pictures in parts.values() for n in pictures.names]
    assert len(set(names)) == 6 * 6
    numbers = {
        p: {int(n.rsplit("/", 1)[1]) for s in (0, 1) for n in parts[p, s].names}
        for p in ("train", "validation")
    }
    assert not numbers["train"] & numbers["validation"]
    again = load("shapes", "train", 32, count=6, seed=1)
    assert (
        torch.equal(again.pixels, parts["train", 1].pixels)
        and again.captions == parts["train", 1].captions
    )
    assert not torch.equal(parts["train", 0].pixels, parts["train", 1].pixels)
    longer = load("shapes", "train", 32, count=8, seed=1)  # more scenes begin with the same ones
    assert torch.equal(longer.pixels[:6], again.pixels)


def test_heldout_shapes_show_what_training_does_not():
    # Rebuilt from the names: the caption tells which scene it was, and from which of the two pools.
    for part in ("train", "validation", "heldout"):
        pictures = load("shapes", part, 32, count=40)
        for name, captions in zip(pictures.names, pictures.captions):
            scene = shapes.scene(
                int(name.rsplit("/", 1)[1]), "heldout" if part == "heldout" else "train"
            )
            assert captions == (shapes.caption(scene),)
            unseen = {(t.shape, t.colour, t.size) for t in scene.things} & shapes.HELD_OUT
            assert bool(unseen) == (part == "heldout")


def test_shapes_need_a_count():
    with pytest.raises(ValueError, match="count="):
        load("shapes", "train", 32)


# --- the emoji's splits ---


def test_split_is_a_fixed_function_of_the_names():
    # Pinned: a changed hash would move pictures between training and test under trained weights.
    names = sorted({c for style in STYLES for c in index()[style]["blobs"]})
    table = "".join(f"{c} {s} {split_of(c, s)}\n" for c in names for s in STYLES)
    assert (
        hashlib.sha256(table.encode()).hexdigest()
        == "941f68a94618e2e2b9c3503f4e86581389068a4520f0f6817a4ad59377a3534d"
    )
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
    n = 10_000  # names that nobody chose; the bounds are five standard deviations
    parts = [[split_of(f"thing-{i}", s) for s in STYLES] for i in range(n)]
    whole = sum("heldout-concept" in p for p in parts)
    assert abs(whole / n - 0.05) < 5 * (0.05 * 0.95 / n) ** 0.5
    for k in range(len(STYLES)):
        kept = [p[k] for p in parts if p[k] != "heldout-concept"]
        assert abs(kept.count("heldout-pair") / len(kept) - 0.05) < 5 * (0.05 * 0.95 / n) ** 0.5


def test_shipped_splits():
    parts = defaultdict(set)
    for style in STYLES:
        for concept in index()[style]["blobs"]:
            parts[split_of(concept, style)].add((concept, style))
    total = sum(map(len, parts.values()))
    trained = {c for c, _ in parts["train"]}
    assert {s for _, s in parts["train"]} == {s for _, s in parts["heldout-pair"]} == set(STYLES)
    assert all(c in trained for c, _ in parts["heldout-pair"])
    assert not any(c in trained for c, _ in parts["heldout-concept"])
    assert 0.04 < len(parts["heldout-pair"]) / (total - len(parts["heldout-concept"])) < 0.06
    assert 0.04 < len({c for c, _ in parts["heldout-concept"]}) / 1653 < 0.06


# --- the emoji's pictures and captions ---


def test_packs_hold_what_the_index_says():
    captions = json.loads((ASSETS / "emoji" / "captions.json").read_text())
    assert len(captions) == 1653
    for style in STYLES:
        pack = (ASSETS / "emoji" / f"{style}.pack").read_bytes()
        end, blobs = 0, []
        for concept, (offset, length) in index()[style]["blobs"].items():
            assert (
                offset == end and concept in captions
            )  # end to end: nothing between, nothing twice
            end = offset + length
            blobs.append(pack[offset:end])
            assert blobs[-1][:4] == b"RIFF" and blobs[-1][8:12] == b"WEBP"
        assert end == len(pack) == index()[style]["bytes"]
        assert len(set(blobs)) == len(blobs) > 1500


def test_every_picture_is_in_one_split_with_its_captions():
    parts = {wanted: emoji.find_emoji(wanted, 32, ASSETS) for wanted in datasets.SPLITS["emoji"]}
    names = [name for found in parts.values() for name, _, _ in found]
    assert len(names) == len(set(names)) == sum(len(index()[s]["blobs"]) for s in STYLES)
    for wanted, found in parts.items():
        for name, captions, _ in found:
            style, concept = name.split("/")
            assert split_of(concept, style) == ("heldout-pair" if wanted == "heldout" else wanted)
            assert len(captions) == 8
            assert all(
                c.endswith(f", {style.replace('-', ' ')} style") and c.isprintable()
                for c in captions
            )


@pytest.mark.parametrize("side", [16, 20, 128])
def test_emoji_pictures(side):
    pictures = load("emoji", "train", side, count=300)
    assert pictures.pixels.shape == (300, 3, side, side) and pictures.pixels.dtype == torch.uint8
    assert (pictures.pixels.flatten(1).float().std(1) > 2).all()  # none is blank
    assert (pictures.pixels[:, :, 0, 0] > 240).all(1).float().mean() > 0.9  # on white


def test_apple_is_red_in_every_style():
    found = {
        name: (captions, read)
        for part in ("train", "heldout")
        for name, captions, read in emoji.find_emoji(part, 32, ASSETS)
    }
    for style in STYLES:
        captions, read = found[f"{style}/red-apple"]
        red, green, blue = np.array(read())[12:26, 10:22].mean((0, 1))
        assert red > 2 * blue and red > 1.5 * green
        assert captions[:2] == (
            f"red apple, {style.replace('-', ' ')} style",
            f"a red apple, {style.replace('-', ' ')} style",
        )


def test_smaller_emoji_are_halved_emoji():
    large, small = (load("emoji", "heldout", side, count=20) for side in (64, 32))
    assert large.names == small.names
    halved = halve(large.batch(range(20)))
    # Both are rounded to whole levels, 2/255 apart: half a level of error each.
    assert (halved - small.batch(range(20))).abs().max() <= 2.001 / 255


def test_count_takes_a_fixed_choice():
    some, again, other = (load("emoji", "heldout", 16, count=10, seed=s) for s in (0, 0, 1))
    assert len(some) == 10 and some.names == again.names != other.names
    everything = [name for name, _, _ in emoji.find_emoji("heldout", 16, ASSETS)]
    assert some.names == [n for n in everything if n in some.names]
    assert len(load("emoji", "heldout", 16, count=10**6)) == len(everything)
    with pytest.raises(ValueError, match="count=0"):
        load("emoji", "train", 16, count=0)


def test_caption_forms():
    tags = ["apple", "diet", "food", "fruit", "health", "red", "ripe"]
    for style in STYLES:
        plain, article, one, two, framed, part, tagged, tag = emoji_captions(
            "red apple", tags, style
        )
        tail = f", {style.replace('-', ' ')} style"
        assert (plain, article) == (f"red apple{tail}", f"a red apple{tail}")
        first = one.removeprefix("red apple, ").removesuffix(tail)
        second, third = two.removeprefix("a red apple, ").removesuffix(tail).split(", ")
        assert len({first, second, third}) == 3  # and "apple" and "red" say nothing new
        assert {first, second, third} <= {"diet", "food", "fruit", "health", "ripe"}
        assert (
            framed.removesuffix(f" red apple{tail}") in BEFORE
            and re.sub(f"( a)? red apple{tail}$", "", part).removesuffix(" of") in OF
        )
        assert {tag, tagged.replace(" red apple", "")} <= {
            f"{new}{tail}" for new in ("diet", "food", "fruit", "health", "ripe")
        }
    assert len({emoji_captions("red apple", tags, s)[2].split(", ")[1] for s in STYLES}) > 1


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
    assert emoji_captions(label, [], "noto")[1] == f"{phrase}, noto style"


@given(words, st.lists(words, max_size=6), st.sampled_from(STYLES))
def test_captions_without_tags_are_still_eight(label, tags, style):
    captions = emoji_captions(label, tags, style)
    assert captions == emoji_captions(
        label, tags[::-1], style
    )  # the order of the file plays no part
    assert len(captions) == 8 and captions[0] == f"{label.lower()}, {style.replace('-', ' ')} style"


# --- damage ---


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ASSETS / "emoji", tmp_path / "emoji")
    return tmp_path


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text and all(p in text for p in parts), text


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
    path.write_text(
        json.dumps(
            {
                style: entry
                for style, entry in json.loads(path.read_text()).items()
                if style != "noto"
            }
        )
    )
    with pytest.raises(ValueError) as error:
        load("emoji", "heldout", 16, data_dir=copy)
    one_line(error, str(path), "noto", "git checkout data/emoji")


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
    "source, part, side, said",
    [
        ("emoji", "test", 32, "heldout-concept"),
        ("shapes", "test", 32, "validation"),
        ("emoji", "train", 256, "side=256"),
        ("emoij", "train", 32, "'emoij'"),
    ],
)
def test_what_does_not_exist_is_named(source, part, side, said):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(source, part, side)
    one_line(error, said)


# --- a folder of one's own ---


def picture(path, size=(20, 16), colour=(200, 30, 30)):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(path)


FORMS = ("txt", "csv")


def folder(root, form, names=("a.png", "b.jpg", "c.webp"), caption='a {} thing, "so" to say'):
    """A sound folder in one of the two forms."""
    rows = [(name, caption.format(Path(name).stem)) for name in names]
    for name, text in rows:
        picture(root / name)
        if form == "txt":
            (root / name).with_suffix(".txt").write_text(text + "\n")
    if form == "csv":
        with open(root / "captions.csv", "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([("file", "caption"), *rows])
    return root


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_say_the_same(tmp_path, form):
    names = [f"{i:02}.{suffix}" for i, suffix in enumerate(["png", "jpg", "webp", "JPEG"] * 6)] + [
        "sub/x.png"
    ]
    folder(tmp_path, form, names)
    (tmp_path / "._00.png").write_bytes(b"what a system hides")
    train, heldout = (load(str(tmp_path), part, 8) for part in ("train", "heldout"))
    assert sorted(train.names + heldout.names) == sorted(names) and len(heldout) >= 1
    for pictures in (train, heldout):
        assert pictures.captions == [
            (f'a {Path(n).stem} thing, "so" to say',) for n in pictures.names
        ]
        red = pictures.pixels.float() - torch.tensor([200.0, 30, 30])[:, None, None]
        assert red.abs().max() < 8  # JPEG and WebP are lossy
    assert set(load(str(tmp_path), "train", 8, count=5).names) < set(train.names)


@given(st.sets(words, min_size=2, max_size=60))
@settings(max_examples=30)
def test_folder_split(names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "captions_of", lambda root: {n: (n,) for n in names})
        patch.setattr(folders, "read_square", lambda path, side, smallest: None)
        train, heldout = (
            {n for n, _, _ in folders.find_images(Path("."), part, 8, 8)}
            for part in ("train", "heldout")
        )
        assert train and heldout and train | heldout == names and not train & heldout
        names = names | {"one more"}  # moves no held-out picture into training, once there are two
        later = {n for n, _, _ in folders.find_images(Path("."), "heldout", 8, 8)}
    if len(heldout) > 1:
        assert heldout <= later


def test_training_is_never_left_empty(monkeypatch):
    unlucky = [n for n in map(str, range(100)) if device.stable_hash(n) % 10 == 0][:3]
    monkeypatch.setattr(folders, "captions_of", lambda root: {n: (n,) for n in unlucky})
    monkeypatch.setattr(folders, "read_square", lambda path, side, smallest: None)
    assert len(folders.find_images(Path("."), "train", 8, 8)) == 1


def test_a_caption_file_has_one_variant_a_line(tmp_path):
    folder(tmp_path, "txt")
    (tmp_path / "a.txt").write_text("an a\n\n  the   letter a \n")
    assert folders.captions_of(tmp_path)["a.png"] == ("an a", "the letter a")


def test_cropped_in_the_middle_and_put_on_white(tmp_path):
    wide = np.zeros((10, 30, 4), np.uint8)
    wide[:, 10:20] = (0, 0, 255, 255)  # blue in the middle; the wings must go
    wide[:5, 10:20, 3] = 0  # transparent above, over a blue that must not show
    Image.fromarray(wide).save(tmp_path / "w.png")
    square = np.array(folders.read_square(tmp_path / "w.png", 10, 8))
    assert square.shape == (10, 10, 3)
    assert (square[:5] == 255).all() and (square[5:] == (0, 0, 255)).all()


def test_a_turned_photograph_is_turned_back(tmp_path):
    sideways = np.zeros((16, 16, 3), np.uint8)
    sideways[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it: the left half becomes the top
    Image.fromarray(sideways).save(tmp_path / "p.png", exif=exif)
    square = np.array(folders.read_square(tmp_path / "p.png", 16, 8))
    assert (square[:8] == 255).all() and (square[8:] == 0).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK"])
def test_other_kinds_of_picture(tmp_path, mode):
    name = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (8, 8), "white").convert(mode).save(name)
    assert (np.array(folders.read_square(name, 8, 8)) > 250).all()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(path):
    """A PNG of 70 bytes that says it is 60,000 pixels square."""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def smaller_bomb(path):  # between PIL's warning and its error
    side = int((1.5 * Image.MAX_IMAGE_PIXELS) ** 0.5)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def cut(path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, path.suffix[1:].replace("jpg", "jpeg"))
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


def deep(path):
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name, spoil, said",
    [
        ("a.png", bomb, "pixels"),
        ("a.png", smaller_bomb, "pixels"),
        ("a.png", cut, "cannot be read"),
        ("b.jpg", cut, "cannot be read"),
        ("c.webp", cut, "cannot be read"),
        ("a.png", deep, "8 bits"),
        ("b.jpg", lambda p: p.write_bytes(b""), "cannot be read"),
        ("c.webp", lambda p: p.write_text("no picture"), "cannot be read"),
        ("a.png", lambda p: Image.new("RGB", (9, 9)).save(p, "GIF"), "cannot be read"),
        ("a.png", lambda p: picture(p, (40, 7)), "40x7"),
    ],
)
def test_a_bad_picture_is_named(tmp_path, form, name, spoil, said):
    folder(tmp_path, form)
    spoil(tmp_path / name)
    with pytest.raises(ValueError) as error:
        for part in ("train", "heldout"):
            load(str(tmp_path), part, 8, smallest=8)
    one_line(error, str(tmp_path / name), said, "remove it", "skip_unreadable=True")
    with pytest.warns(UserWarning, match=f"left out: .*{name}.*{said}"):
        kept = [
            load(str(tmp_path), part, 8, smallest=8, skip=True).names
            for part in ("train", "heldout")
        ]
    assert sorted(sum(kept, [])) == sorted({"a.png", "b.jpg", "c.webp"} - {name})


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_without_caption_is_named(tmp_path, form):
    picture(folder(tmp_path, form) / "extra.png")
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(
        error, "extra.png has no caption", "extra.txt" if form == "txt" else f"captions.{form}"
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_caption_without_picture_is_named(tmp_path, form):
    (folder(tmp_path, form) / "b.jpg").unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, "b.txt" if form == "txt" else f"captions.{form} line")


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_caption_is_named(tmp_path, form):
    folder(tmp_path, form, caption=" ")
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, "empty", "a.txt" if form == "txt" else f"captions.{form} line")


@pytest.mark.parametrize("form", FORMS)
def test_one_picture_is_too_few(tmp_path, form):
    folder(tmp_path, form, ["a.png"])
    with pytest.raises(ValueError, match="1 images"):
        load(str(tmp_path), "train", 8)


@pytest.mark.parametrize("form", FORMS)
def test_text_that_is_not_utf8_is_named(tmp_path, form):
    path = folder(tmp_path, form) / ("b.txt" if form == "txt" else f"captions.{form}")
    path.write_bytes(path.read_bytes().replace(b"thing", "Käse".encode("latin-1")))
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, str(path), "not UTF-8")


@pytest.mark.parametrize("form", FORMS)
def test_empty_folder(tmp_path, form):
    folder(tmp_path, form, [])
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, str(tmp_path), "0 images" if form == "txt" else "empty")


@pytest.mark.parametrize(
    "file, said",
    [
        ("../x.png", "leads out"),
        ("/etc/x.png", "leads out"),
        ("a/../../x.png", "leads out"),
        ("./a.png", "has a row already"),
        ("a.gif", "no PNG, JPEG or WebP 'a.gif'"),
        ("", "no PNG"),
    ],
)
def test_a_bad_row_is_named(tmp_path, file, said):
    folder(tmp_path, "csv")
    picture(tmp_path.parent / "x.png")
    with open(tmp_path / "captions.csv", "a") as table:
        table.write(f'"{file}",x\n')
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, "captions.csv line 5", said)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("captions.csv", "", "file,caption"),
        ("captions.csv", "file;caption\na.png;x\n", "file,caption"),
        ("captions.csv", "file,caption\n", "is empty"),
        ("captions.csv", "file,caption\na.png\n", "line 2"),
        ("captions.csv", "file,caption\na.png,red, round\n", "quotes"),
        ("captions.csv", 'file,caption\na.png,"red\n', "quotes"),
    ],
)
def test_a_bad_table_is_named(tmp_path, name, text, said):
    for file in ("a.png", "b.png"):
        picture(tmp_path / file)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        load(str(tmp_path), "train", 8)
    one_line(error, str(tmp_path / name), said)


def test_two_pictures_for_one_text_are_refused(tmp_path):
    other = folder(tmp_path / "sub", "txt", ["a.png", "b.png"])
    picture(other / "a.webp")
    with pytest.raises(ValueError, match="a.txt has 2 images"):
        load(str(other), "train", 8)
