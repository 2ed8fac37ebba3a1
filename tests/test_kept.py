"""The images of a folder: decoded once, and the manifest that a model goes on with.

pytest tests/test_kept.py
"""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from minimuse.data import on_white
from minimuse.datasets import folder, image_files, load, part_of, progress
from minimuse.datasets.image_files import read_image, read_square
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import kept, manifest
from minimuse.runs.cache import embed_captions

SIDE = 16


def make_folder(root, count=6, suffix="png"):
    """Images of one colour each, with captions."""
    root.mkdir()
    for i in range(count):
        Image.new("RGB", (32, 32), (40 * i, 10, 0)).save(root / f"p{i}.{suffix}")
        (root / f"p{i}.txt").write_text(f"image {i}")
    return root


@pytest.fixture
def pics(tmp_path):
    return make_folder(tmp_path / "pics")


@pytest.fixture
def begun(tmp_path, pics):
    """OUT of a model that was begun with the folder: the manifest counts from config.json on."""
    out = tmp_path / "out"
    kept.open_images(out, pics, SIDE, 8)
    (out / "config.json").write_text("{}")
    return out


@pytest.fixture
def work(monkeypatch):
    """The names of the files that are decoded, and of those that are hashed."""
    done = {"decoded": [], "hashed": []}

    def read_pixels(path, side, smallest):
        done["decoded"].append(path.name)
        return folder.read_pixels(path, side, smallest)

    def sha256_of(path):
        done["hashed"].append(path.name)
        return hash_file(path)

    hash_file = manifest.sha256_of
    monkeypatch.setattr(kept, "read_pixels", read_pixels)
    monkeypatch.setattr(manifest, "sha256_of", sha256_of)
    return done


def touch(path, seconds=1000):
    stat = path.stat()
    os.utime(path, (stat.st_atime + seconds, stat.st_mtime + seconds))


def damage(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n")


# --- Decoded once ---
def test_kept_images_are_those_of_the_loader(tmp_path, pics):
    for _ in range(2):
        images = kept.open_images(tmp_path / "out", pics, SIDE, 8)
        for split in ("train", "heldout"):
            part, loaded = part_of(images, split), load(str(pics), split, SIDE)
            assert part.names == loaded.names and part.captions == loaded.captions
            assert torch.equal(part.pixels, loaded.pixels)


def test_nothing_is_decoded_or_hashed_twice(tmp_path, pics, work):
    out = tmp_path / "out"
    for _ in range(3):
        kept.open_images(out, pics, SIDE, 8)
    assert sorted(work["decoded"]) == sorted(work["hashed"]) == [f"p{i}.png" for i in range(6)]


def test_the_loader_decodes_each_image_once(pics, monkeypatch):
    decoded = []

    def counted(path, side, smallest):
        decoded.append(path.name)
        return read_square(path, side, smallest)

    monkeypatch.setattr(folder, "read_square", counted)
    load(str(pics), "train", SIDE)
    assert len(decoded) == len(set(decoded)) == 6


def test_a_touched_file_is_hashed_and_not_decoded(pics, begun, work):
    touch(pics / "p2.png")
    for _ in range(2):
        kept.open_images(begun, pics, SIDE, 8)
    assert work == {"decoded": [], "hashed": ["p2.png"]}


def test_only_new_images_are_decoded(tmp_path, pics, work):
    """Before a model is begun, images may come and go."""
    out = tmp_path / "out"
    kept.open_images(out, pics, SIDE, 8)
    shutil.copy(pics / "p0.png", pics / "same.png")
    Image.new("RGB", (32, 32), "blue").save(pics / "q.png")
    for name in ("same", "q"):
        (pics / f"{name}.txt").write_text(name)
    assert len(kept.open_images(out, pics, SIDE, 8).names) == 8
    assert work["decoded"][6:] == ["q.png"]


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x" * 99)])
def test_kept_images_that_are_lost_are_made_again(pics, begun, spoil):
    before = kept.open_images(begun, pics, SIDE, 8)
    spoil(begun / "images.safetensors")
    for _ in range(2):
        again = kept.open_images(begun, pics, SIDE, 8)
        assert torch.equal(again.pixels, before.pixels)


def test_kept_images_of_another_size_are_not_taken(tmp_path, pics):
    kept.open_images(tmp_path, pics, SIDE, 8)
    assert kept.open_images(tmp_path, pics, 8, 8).pixels.shape == (6, 3, 8, 8)


def test_a_directory_that_cannot_be_written_is_only_read(pics, begun, monkeypatch, work):
    for module in (kept, manifest):
        monkeypatch.setattr(module, "can_write", lambda out: False)
    (begun / "images.safetensors").unlink()
    before = sorted(begun.iterdir())
    assert len(kept.open_images(begun, pics, SIDE, 8).names) == 6
    assert sorted(begun.iterdir()) == before and len(work["decoded"]) == 6


def test_what_is_decoded_before_ctrl_c_is_kept(tmp_path, pics, monkeypatch, work):
    count = kept.read_pixels

    def interrupted(path, side, smallest):
        if path.name == "p4.png":
            raise KeyboardInterrupt
        return count(path, side, smallest)

    monkeypatch.setattr(kept, "read_pixels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept.open_images(tmp_path / "out", pics, SIDE, 8)
    monkeypatch.setattr(kept, "read_pixels", count)
    kept.open_images(tmp_path / "out", pics, SIDE, 8)
    assert sorted(work["decoded"]) == [f"p{i}.png" for i in range(6)]


def test_nothing_is_left_of_a_folder_that_is_refused(tmp_path, pics):
    damage(pics / "p3.png")
    with pytest.raises(ValueError, match="p3.png cannot be read"):
        kept.open_images(tmp_path / "out", pics, SIDE, 8)
    assert not (tmp_path / "out").exists()


# --- Scaled decoding ---
def photograph(path, size=(1203, 902), mode="RGB", **options):
    """Smooth noise, as large as is fast, saved as a JPEG."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype("uint8")
    image = Image.fromarray(noise).convert(mode)
    image.resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def whole_square(path, side):
    """The middle square of an image that is decoded whole, as a slow and obvious reference."""
    return np.array(ImageOps.fit(read_image(path), (side, side), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("side", [16, 64, 100])
@pytest.mark.parametrize("size", [(1203, 902), (902, 1203), (1600, 800)])
def test_a_photograph_looks_as_if_it_was_decoded_whole(tmp_path, size, side):
    path = photograph(tmp_path / "p.jpg", size, quality=90)
    scaled = np.array(read_square(path, side))
    assert scaled.shape == (side, side, 3)
    assert np.abs(whole_square(path, side).astype(float) - scaled).mean() < 0.8


def test_a_photograph_is_decoded_at_a_fraction_of_its_size(tmp_path, monkeypatch):
    path = photograph(tmp_path / "p.jpg")
    decoded = []

    def recorded(image, mode):
        decoded.append(image.size)
        return convert(image, mode)

    convert = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", recorded)
    for side in (32, 112):
        read_square(path, side)
    # At least twice as many pixels as are needed.
    assert decoded == [(151, 113), (301, 226)]
    # More than a half of its pixels are needed.
    with Image.open(path) as image:
        assert image_files.read_scaled_square(image, 300) is None


@pytest.mark.parametrize("size", [(64, 64), (127, 90), (40, 33)])
def test_small_images_are_read_whole(tmp_path, size):
    """So what earlier versions made of them has not changed."""
    path = photograph(tmp_path / "p.jpg", size)
    for side in (32, 64):
        assert np.array_equal(np.array(read_square(path, side)), whole_square(path, side))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_turned_photograph_is_turned_back(tmp_path, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = photograph(tmp_path / "p.jpg", (800, 600), mode, exif=exif, quality=95)
    scaled = np.array(read_square(path, 32))
    assert np.abs(whole_square(path, 32).astype(float) - scaled).mean() < 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_png_files_are_read_as_before(tmp_path, mode):
    """Also transparent ones: what is white, and what lies behind, has not changed."""
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 4)).astype("uint8")
    image = Image.fromarray(noise).convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    image.save(tmp_path / "p.png", **options)
    with Image.open(tmp_path / "p.png") as image:
        expected = ImageOps.fit(on_white(image), (16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(np.array(read_square(tmp_path / "p.png", 16)), np.array(expected))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_large_photographs_of_other_modes(tmp_path, mode):
    Image.new("RGB", (900, 700), "white").convert(mode).save(tmp_path / "p.jpg")
    assert (np.array(read_square(tmp_path / "p.jpg", 16, 8)) > 250).all()


@pytest.mark.parametrize("format", ["MPO", "progressive"])
def test_photographs_as_phones_write_them(tmp_path, format):
    """Some put a second image into the file; some write it coarse to fine."""
    path = photograph(tmp_path / "p.jpg", quality=95)
    with Image.open(path) as image:
        image.load()
    if format == "MPO":
        image.save(path, "MPO", save_all=True, append_images=[image.rotate(180)], quality=95)
    else:
        image.save(path, progressive=True, quality=95)
    scaled = np.array(read_square(path, 32))
    assert np.abs(whole_square(path, 32).astype(float) - scaled).mean() < 1


def test_half_a_photograph_is_refused(tmp_path):
    path = photograph(tmp_path / "p.jpg")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="p.jpg cannot be read"):
        read_square(path, 16, 8)


def test_a_thin_photograph_is_measured_whole(tmp_path):
    """An eighth of its width would be less than the tokenizer needs."""
    path = photograph(tmp_path / "p.jpg", (40, 900))
    assert np.array(read_square(path, 2, 33)).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="40x900"):
        read_square(path, 2, 41)


# --- What a model goes on with ---
def hide(root):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._p0.png"):
        (root / name).write_bytes(b"\0")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "p0.png").write_bytes(b"\0")


def touch_all(root):
    for path in root.iterdir():
        touch(path)


def other_line_ends(root):
    for path in root.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\r\n")


def to_table(root):
    """The same captions in the other form."""
    rows = [f"{text.stem}.png,{text.read_text()}" for text in sorted(root.glob("*.txt"))]
    for text in root.glob("*.txt"):
        text.unlink()
    (root / "captions.csv").write_text("\n".join(["file,caption", *rows]))


def rewrite(root):
    data = (root / "p1.png").read_bytes()
    (root / "p1.png").unlink()
    (root / "p1.png").write_bytes(data)


def add_a_model(root):
    """An --out inside of the folder, in which `evaluate` has drawn."""
    (root / "run").mkdir()
    for name in ("config.json", "base.safetensors", "samples.png"):
        (root / "run" / name).write_bytes(b"\0")


@pytest.mark.parametrize(
    "harmless", [hide, touch_all, other_line_ends, to_table, rewrite, add_a_model]
)
def test_what_is_not_used_does_not_count(pics, begun, harmless, work):
    harmless(pics)
    with warnings.catch_warnings(action="error"):
        assert len(kept.open_images(begun, pics, SIDE, 8).names) == 6
    assert work["decoded"] == []


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_folder_may_move(tmp_path, pics, begun, move, work):
    move(pics, tmp_path / "moved")
    assert len(kept.open_images(begun, tmp_path / "moved", SIDE, 8).names) == 6
    assert work["decoded"] == []
    if move is shutil.move:
        assert work["hashed"] == []


def other_image(root):
    Image.new("RGB", (32, 32), "white").save(root / "p1.png")


def other_caption(root):
    (root / "p1.txt").write_text("another image")


def second_caption(root):
    (root / "p1.txt").write_text("image 1\nanother\n")


def new_image(root):
    for suffix in ("png", "txt"):
        shutil.copy(root / f"p0.{suffix}", root / f"p9.{suffix}")


def no_image(root):
    for suffix in ("png", "txt"):
        (root / f"p1.{suffix}").unlink()


def renamed(root):
    for suffix in ("png", "txt"):
        (root / f"p1.{suffix}").rename(root / f"p9.{suffix}")


def exchanged(root):
    (root / "p1.png").rename(root / "x")
    (root / "p2.png").rename(root / "p1.png")
    (root / "x").rename(root / "p2.png")


CHANGES = [
    (other_image, "p1.png has changed"),
    (other_caption, "the captions of p1.png have changed"),
    (second_caption, "the captions of p1.png have changed"),
    (new_image, "p9.png is new"),
    (no_image, "p1.png is gone"),
    (renamed, "p1.png is gone, p9.png is new"),
    (exchanged, "p1.png has changed, p2.png has changed"),
]


@pytest.mark.parametrize("change, message", CHANGES)
@pytest.mark.parametrize("moved", [False, True])
def test_what_is_used_and_has_changed_is_named(tmp_path, pics, begun, change, message, moved):
    if moved:
        pics = shutil.move(pics, tmp_path / "moved")
    before = (begun / "images.json").read_bytes()
    change(pics)
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            kept.open_images(begun, pics, SIDE, 8)
        assert f"{message}; make the folder as it was" in str(error.value) and str(pics) in str(
            error.value
        )
    assert (begun / "images.json").read_bytes() == before
    with pytest.warns(UserWarning, match=message):  # `evaluate` only warns
        kept.open_images(begun, pics, SIDE, 8, skip=True, strict=False)


def test_many_changes_are_counted(tmp_path, pics, begun):
    for i in range(6):
        (pics / f"p{i}.txt").write_text("other")
    with pytest.raises(ValueError, match="have changed, 2 more; make the folder"):
        kept.open_images(begun, pics, SIDE, 8)


def test_a_damaged_manifest_is_named(pics, begun):
    manifest = begun / "images.json"
    whole = json.loads(manifest.read_text())
    for text in ("", "[]", '{"files": 3}', json.dumps(whole | {"files": {"p0.png": {}}})):
        manifest.write_text(text)
        with pytest.raises(ValueError, match="images.json is damaged .* remove it"):
            kept.open_images(begun, pics, SIDE, 8)
    manifest.unlink()
    (begun / "config.json").unlink()
    assert len(kept.open_images(begun, pics, SIDE, 8).names) == 6


def test_the_digest_is_that_of_what_is_used(tmp_path, pics, begun):
    before = manifest.digest_of_images(begun)
    hide(pics)
    touch_all(pics)
    moved = shutil.move(pics, tmp_path / "moved")
    kept.open_images(begun, moved, SIDE, 8)
    assert manifest.digest_of_images(begun) == before
    (begun / "config.json").unlink()
    other_caption(moved)
    kept.open_images(begun, moved, SIDE, 8)
    assert manifest.digest_of_images(begun) != before


# --- skip_unreadable ---
@pytest.mark.parametrize("new", ["repaired", "a copy of another"])
def test_a_damaged_image_is_left_out_and_may_come_back(pics, begun, new):
    whole = (pics / "p3.png").read_bytes()
    damage(pics / "p3.png")
    with pytest.raises(ValueError, match="p3.png cannot be read.*--resume skip_unreadable=True"):
        kept.open_images(begun, pics, SIDE, 8)
    with pytest.warns(UserWarning, match="left out: .*p3.png"):
        images = kept.open_images(begun, pics, SIDE, 8, skip=True)
    assert "p3.png" not in images.names and len(images.names) == 5
    with warnings.catch_warnings(action="error"):  # told once
        assert kept.open_images(begun, pics, SIDE, 8, skip=True).names == images.names
    with pytest.raises(ValueError, match="was begun without this image: .* skip_unreadable=True"):
        kept.open_images(begun, pics, SIDE, 8)
    # Whatever comes in its place is told, also a copy of an image that is known.
    (pics / "p3.png").write_bytes(whole if new == "repaired" else (pics / "p4.png").read_bytes())
    with pytest.warns(UserWarning, match="p3.png was left out before, .* used from here on"):
        assert len(kept.open_images(begun, pics, SIDE, 8, skip=True).names) == 6
    with warnings.catch_warnings(action="error"):  # told once
        assert len(kept.open_images(begun, pics, SIDE, 8, skip=True).names) == 6
    assert len(kept.open_images(begun, pics, SIDE, 8).names) == 6


def test_skip_unreadable_leaves_out_nothing_else(pics, begun):
    damage(pics / "p3.png")
    other_image(pics)
    with pytest.warns(UserWarning, match="left out"):
        with pytest.raises(ValueError, match=": p1.png has changed; make the folder"):
            kept.open_images(begun, pics, SIDE, 8, skip=True)


@pytest.mark.parametrize("kind", ["too small", "no permission", "cut short"])
def test_other_images_that_cannot_be_used_are_left_out(tmp_path, pics, monkeypatch, kind):
    path = pics / "p3.png"
    if kind == "too small":
        Image.new("RGB", (5, 5)).save(path)
    elif kind == "cut short":
        path.write_bytes(path.read_bytes()[:60])
    else:
        if os.geteuid() == 0:
            pytest.skip("root may read every file")
        path.chmod(0)
    with pytest.raises(ValueError, match="p3.png .*skip_unreadable=True"):
        kept.open_images(tmp_path / "out", pics, SIDE, 8)
    with pytest.warns(UserWarning, match="left out: .*p3.png"):
        assert len(kept.open_images(tmp_path / "out", pics, SIDE, 8, skip=True).names) == 5


# --- Signs of life ---
def test_a_bar_appears_when_reading_takes_longer(tmp_path, pics, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    kept.open_images(tmp_path / "out", pics, SIDE, 8)
    said = capsys.readouterr().err
    assert "checking images" in said and "reading images" in said


def test_no_bar_appears_before(tmp_path, pics, capsys):
    kept.open_images(tmp_path / "out", pics, SIDE, 8)
    assert capsys.readouterr().err == ""


def test_bars_everywhere(tmp_path, pics, monkeypatch, capsys):
    """Wherever a second may pass: each of these is its own loop over small pieces of work."""
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    load("shapes", "train", 16, count=3)
    load("emoji", "heldout", 16, count=3)
    load(str(pics), "train", SIDE)
    text = load_t5("t5-toy")
    assert len(embed_captions(text, ["a cat"])) == 1
    said = capsys.readouterr().err
    for what in (
        "drawing scenes",
        "reading captions",
        "reading images",
        "checking text encoder",
        "reading text encoder",
        "captions",
    ):
        assert f"{what}: " in said, what
