"""Images in tar files: found, indexed, read in threads, and trained from.

pytest tests/test_stream.py
"""

import gzip
import io
import json
import os
import shutil
import tarfile
import warnings

import pytest
import torch
from PIL import Image
from spread import start

from minimuse.cli import main
from minimuse.datasets import load, stream, tars
from minimuse.datasets.stream import Stream, open_tars, order_in_windows
from minimuse.datasets.tars import expand, find_tars, is_tars
from minimuse.losses import tokenizer_loss
from minimuse.plumbing import collectives
from minimuse.plumbing.config import PRESETS, Stage
from minimuse.plumbing.device import generator_at
from minimuse.plumbing.parts import build
from minimuse.plumbing.places import data_place, find_folder
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import cache, tar_index
from minimuse.runs.cache import tokens_of
from minimuse.runs.images import load_images
from minimuse.runs.kept import open_images
from minimuse.runs.pack import pack
from minimuse.runs.read_ahead import AHEAD, reading_ahead
from minimuse.runs.tar_index import open_stream
from minimuse.runs.training_words import training_vocabulary
from minimuse.train import batch_at

SIDE = 16


def picture(i, format="PNG", side=32):
    """The bytes of an image file of one colour; `i` is below 60."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (4 * i, 255 - 4 * i, 0)).save(buffer, format)
    return buffer.getvalue()


def write_tar(path, files):
    """A tar file of (name, contents) pairs."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, contents in files:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return path


def samples(first, count):
    """Files of images with captions."""
    files = []
    for i in range(first, first + count):
        files += [(f"p{i:02}.png", picture(i)), (f"p{i:02}.txt", f"image {i}\n".encode())]
    return files


@pytest.fixture
def shards(tmp_path):
    """A folder of four tar files with six images each."""
    for number in range(4):
        write_tar(tmp_path / "tars" / f"{number:03}.tar", samples(6 * number, 6))
    return tmp_path / "tars"


@pytest.fixture
def folder(tmp_path):
    """A folder of images in all formats, with names that are not plain."""
    root = tmp_path / "pics"
    (root / "sub").mkdir(parents=True)
    formats = [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("JPEG", "JPEG")]
    for i in range(30):
        ending, format = formats[i % 4]
        name = f"{'sub/' if i % 3 else ''}é{i}.{ending}"
        (root / name).write_bytes(picture(i, format, side=40 + i))
        (root / name).with_suffix(".txt").write_text(f"image {i}\nthe  same {i}\n")
    return root


# --- Which files ---
def test_patterns():
    names = [str(path) for path in expand("a/{000..002}.tar")]
    assert names == ["a/000.tar", "a/001.tar", "a/002.tar"]
    assert [str(p) for p in expand("{x,y}/{9..10}.tar")] == [
        "x/9.tar",
        "x/10.tar",
        "y/9.tar",
        "y/10.tar",
    ]
    assert [str(p) for p in expand("one.tar")] == ["one.tar"]


def test_what_is_taken_for_tar_files(shards, folder):
    assert is_tars(shards)
    assert is_tars(shards / "000.tar")
    assert is_tars("nowhere/{0..3}.tar")
    assert not is_tars(folder)
    assert not is_tars("shapes")
    shutil.copy(shards / "000.tar", folder)
    assert not is_tars(folder)  # its images were read before, and still are
    (folder / "sub").rename(shards / "sub")
    assert not is_tars(shards)
    assert is_tars(shards / "{000..003}.tar")


def test_a_pattern_is_stored_absolute_and_found_beside_the_model(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = data_place("tars/{000..003}.tar")
    assert place == os.path.realpath(tmp_path / "tars" / "{000..003}.tar")
    shards.rename(tmp_path / "moved")
    (tmp_path / "out").mkdir()
    found = find_folder(tmp_path / "out", place, "../moved/{000..003}.tar")
    assert found == os.path.realpath(tmp_path / "moved" / "{000..003}.tar")


# --- The same as the folder ---
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_packed_images_are_those_of_the_folder(folder, tmp_path, split):
    assert pack(folder, tmp_path / "tars", 7) == 5
    plain = load(folder, split, SIDE)
    packed = load(tmp_path / "tars", split, SIDE)
    assert sorted(packed.names) == sorted(plain.names)
    for i in range(len(packed)):
        j = plain.names.index(packed.names[i])
        assert packed.captions[i] == plain.captions[j]
        assert torch.equal(packed.batch([i]), plain.batch([j]))


def test_the_same_folder_gives_the_same_files(folder, tmp_path):
    for name in ("a", "b"):
        pack(folder, tmp_path / name, 16)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_packing_that_fails_leaves_nothing(folder, tmp_path, monkeypatch, capsys):
    text = folder / "sub" / "é1.txt"
    text.write_bytes(b"\xff\xfe")
    assert main(["pack", "--data", str(folder), "--out", str(tmp_path / "tars")]) == 2
    assert "é1.txt is not UTF-8" in capsys.readouterr().err
    text.write_text("fine")
    real = tar_index.write_whole
    calls = []

    def full_disk(path, write):
        calls.append(path)
        if len(calls) == 3:
            raise OSError("no space")
        real(path, write)

    monkeypatch.setattr("minimuse.runs.pack.write_whole", full_disk)
    with pytest.raises(OSError):
        pack(folder, tmp_path / "tars", 7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pics"]


def test_pack_refuses_what_it_would_mix_up(folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="full exists already"):
        pack(folder, tmp_path / "full", 7)
    for name in ("x.y.png", "x_y.png"):
        (folder / name).write_bytes(picture(0))
        (folder / name).with_suffix(".txt").write_text("a caption")
    with pytest.raises(ValueError, match="x.y.png and x_y.png would share x_y.txt"):
        pack(folder, tmp_path / "tars", 7)
    (folder / "x_y.png").unlink()
    (folder / "x_y.txt").unlink()
    assert main(["pack", "--data", str(folder), "--out", str(tmp_path / "tars")]) == 0
    assert "has 1 tar file;" in capsys.readouterr().out
    assert "x_y.png" in open_tars(tmp_path / "tars", SIDE, 8).names


def test_what_belongs_together(tmp_path):
    """WebDataset's convention: names are the same up to the first dot; other files are not read."""
    both = json.dumps({"caption": ["in json", "twice"]}).encode()
    one = json.dumps({"caption": "one", "width": 3}).encode()
    files = [
        ("./a/cat.JPG", picture(1, "JPEG")),
        ("a/cat.cls", b"3"),
        ("a/cat.json", one),
        ("b/cat.txt", b"\xef\xbb\xbffirst\r\n\r\n second  one\r\n"),
        ("b/cat.mask.png", b"no image"),
        ("b/cat.json", both),
        ("b/cat.webp", picture(2, "WEBP")),
        ("dog.png", picture(3)),
        ("dog.json", both),
        ("._dog.png", b"of macOS"),
        ("__MACOSX/dog.png", b"of macOS"),
    ]
    images = open_tars(write_tar(tmp_path / "t" / "a.tar", files), SIDE, 8)
    assert list(images.names) == ["a/cat.JPG", "b/cat.webp", "dog.png"]
    assert list(images.captions) == [("one",), ("first", "second one"), ("in json", "twice")]


# --- Bad files: one line each ---
def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def missing(shards):
    (shards / "001.tar").unlink()
    return shards / "{000..003}.tar"


def truncated(shards):
    cut(shards / "001.tar", 2000)


def truncated_between_members(shards):
    cut(shards / "001.tar", 4 * 1024)


def damaged_header(shards):
    contents = bytearray((shards / "001.tar").read_bytes())
    contents[2048 + 150] ^= 255  # in the checksum of the second sample
    (shards / "001.tar").write_bytes(contents)


def compressed(shards):
    path = shards / "001.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))


def empty(shards):
    (shards / "001.tar").write_bytes(b"")


def without_images(shards):
    write_tar(shards / "001.tar", [("a.cls", b"1")])


def without_caption(shards):
    write_tar(shards / "001.tar", [*samples(6, 2), ("x.png", picture(9))])


def with_empty_caption(shards):
    write_tar(shards / "001.tar", [*samples(6, 2), ("x.png", picture(9)), ("x.txt", b" \n")])


def not_utf8(shards):
    write_tar(shards / "001.tar", [*samples(6, 2), ("x.png", picture(9)), ("x.txt", b"caf\xe9")])


def json_without_caption(shards):
    write_tar(shards / "001.tar", [*samples(6, 2), ("x.png", picture(9)), ("x.json", b'{"a": 1}')])


def no_json(shards):
    write_tar(shards / "001.tar", [*samples(6, 2), ("x.png", picture(9)), ("x.json", b"{")])


def without_image(shards):
    write_tar(shards / "001.tar", [*samples(6, 2), ("x.txt", b"no image")])


def two_images(shards):
    files = [("x.png", picture(9)), ("x.jpg", picture(9, "JPEG")), ("x.txt", b"which?")]
    write_tar(shards / "001.tar", [*samples(6, 2), *files])


def twice_in_a_file(shards):
    write_tar(shards / "001.tar", [*samples(6, 2), *samples(7, 1)])


def twice_in_two_files(shards):
    write_tar(shards / "001.tar", samples(5, 2))


def listed_twice(shards):
    return shards / "{000,001,000}.tar"


def linked_twice(shards):
    (shards / "004.tar").symlink_to(shards / "002.tar")


BAD = {
    missing: "there is no file .*001.tar .1 of 4 tar files",
    truncated: "001.tar is truncated",
    truncated_between_members: "001.tar is truncated or damaged: byte 4096",
    damaged_header: "001.tar is truncated or damaged: byte 2048",
    compressed: "001.tar is truncated, or no tar file without compression",
    empty: "001.tar is truncated",
    without_images: "001.tar has no images",
    twice_in_two_files: "001.tar and .*000.tar both have an image called 'p05.png'",
    listed_twice: "000.tar is the same tar file as .*000.tar",
    linked_twice: "004.tar is the same tar file as .*002.tar",
}
BAD_SAMPLES = {
    without_caption: "001.tar: 'x.png' has no caption",
    with_empty_caption: "001.tar: x.txt: the caption of 'x.png' is empty",
    not_utf8: "001.tar: x.txt is not UTF-8 .byte 3",
    json_without_caption: "001.tar: x.json has no caption",
    no_json: "001.tar: x.json has no caption",
    without_image: "001.tar has 'x.txt', but no image",
    two_images: "001.tar has x.png and x.jpg, with one caption",
    twice_in_a_file: "001.tar has two files called 'p07.png'",
}


@pytest.mark.parametrize("make", [*BAD, *BAD_SAMPLES], ids=lambda make: make.__name__)
def test_bad_files_are_named(shards, tmp_path, make):
    data = make(shards) or shards
    out = tmp_path / "out"
    with pytest.raises((ValueError, FileNotFoundError), match={**BAD, **BAD_SAMPLES}[make]) as info:
        open_stream(out, str(data), SIDE, 8)
    assert "\n" not in str(info.value)
    assert ";" in str(info.value), "no remedy"
    assert not (out / "images.json").exists()


@pytest.mark.parametrize("make", BAD_SAMPLES, ids=lambda make: make.__name__)
def test_bad_samples_are_left_out_with_a_count(shards, tmp_path, make):
    make(shards)
    for _ in range(2):  # indexed, and then as kept
        with pytest.warns(UserWarning, match=f"left out, 1 of .*{BAD_SAMPLES[make]}"):
            images = open_stream(tmp_path / "out", str(shards), SIDE, 8, skip=True)
        assert len(images) == 18 + (1 if make is twice_in_a_file else 2)
    with pytest.raises(ValueError, match="skip_unreadable=True"):
        open_stream(tmp_path / "out", str(shards), SIDE, 8)


def bomb():
    buffer = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(buffer, "PNG")
    return buffer.getvalue()


BAD_IMAGES = {
    "truncated": (picture(1, "JPEG", 64)[:-200], "cannot be read"),
    "empty": (b"", "cannot be read"),
    "text": (b"a text", "it is no PNG, JPEG or WebP"),
    "GIF": (picture(1, "GIF"), "it is no PNG, JPEG or WebP"),
    "bomb": (bomb(), "169,000,000 pixels"),
    "small": (picture(1, side=4), "is 4x4, and the tokenizer needs at least 8x8"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_damaged_images_are_named_or_replaced(shards, kind):
    contents, message = BAD_IMAGES[kind]
    files = [*samples(6, 2), ("x.png", contents), ("x.txt", b"damaged"), *samples(8, 2)]
    write_tar(shards / "001.tar", files)
    filters = list(warnings.filters)
    images = open_tars(shards, SIDE, 8)
    with pytest.raises(ValueError, match=f"001.tar: x.png .*{message}"):
        images.batch([7, 8, 9])
    images = open_tars(shards, SIDE, 8, skip=True)
    assert len(images) == 23
    assert images.names[8] == "x.png"
    with pytest.warns(UserWarning, match=f"left out, 1 so far: .*001.tar: x.png .*{message}"):
        batch = images.batch([7, 8, 9])
    # The next image stands in, with its caption.
    assert torch.equal(batch[1], batch[2])
    assert not torch.equal(batch[0], batch[1])
    assert [images.captions[i] for i in (7, 8, 9)] == [("image 7",), ("image 8",), ("image 8",)]
    assert images.in_memory().names == [name for name in images.names if name != "x.png"]
    # Threads must not change Python's filters.
    assert warnings.filters == filters


def test_a_whole_file_of_damaged_images_is_an_error(shards, monkeypatch):
    monkeypatch.setattr(stream, "MOST_DAMAGED", 3)
    files = [(name, b"" if name.endswith("png") else text) for name, text in samples(6, 6)]
    write_tar(shards / "001.tar", files)
    with pytest.raises(ValueError, match="3 images in a row cannot be used: .*001.tar: p06.png"):
        open_tars(shards, SIDE, 8, skip=True).batch([6])


def test_a_tar_file_that_changes_meanwhile(shards):
    images = open_tars(shards, SIDE, 8, skip=True)
    cut(shards / "003.tar", 3000)
    with pytest.raises(ValueError, match="003.tar has become shorter"):
        images.batch([23])
    (shards / "003.tar").unlink()
    with pytest.raises(FileNotFoundError, match="003.tar"):
        images.batch([23])


def train_tokenizer(out, *flags):
    """Run `minimuse train tokenizer`; its exit code."""
    return main(["train", "tokenizer", "--out", str(out), "--device", "cpu", *flags])


def test_the_command_line_explains_a_bad_caption_in_one_line(shards, tmp_path, capsys):
    not_utf8(shards)
    out = tmp_path / "out"
    assert train_tokenizer(out, "--preset", "tiny", "--data", str(shards)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "x.txt is not UTF-8" in line
    assert not (out / "config.json").exists()


def test_the_command_line_explains_a_bad_image_in_one_line_and_resumes_without_it(
    shards, tmp_path, capsys
):
    """An image is only read when a step asks for it."""
    out = tmp_path / "out"
    files = [(name, bomb() if name == "p06.png" else contents) for name, contents in samples(6, 6)]
    write_tar(shards / "001.tar", files)
    assert train_tokenizer(out, "--preset", "tiny", "--data", str(shards)) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("minimuse:")]
    assert "p06.png cannot be read" in line
    assert train_tokenizer(out, "--resume", "skip_unreadable=True") == 0
    assert "left out, 1 so far" in capsys.readouterr().err
    assert (out / "tokenizer.safetensors").is_file()


# --- The index in OUT ---
@pytest.fixture
def begun(tmp_path, shards):
    """OUT of a model that was begun with the tar files."""
    out = tmp_path / "out"
    open_stream(out, str(shards), SIDE, 8)
    (out / "config.json").write_text("{}")
    return out


@pytest.fixture
def indexed(monkeypatch):
    """The names of the tar files that are indexed."""
    done = []

    def index_tar(path):
        done.append(path.name)
        return tars.index_tar(path)

    monkeypatch.setattr(tar_index, "index_tar", index_tar)
    return done


def test_tar_files_are_indexed_once(begun, shards, tmp_path, indexed):
    before = open_tars(shards, SIDE, 8)
    for data in (str(shards), str(shards / "{000..003}.tar")):
        images = open_stream(begun, data, SIDE, 8)
        assert list(images.names) == list(before.names)
        assert list(images.captions) == list(before.captions)
        assert torch.equal(images.batch(range(24)), before.batch(range(24)))
    assert not indexed
    os.utime(shards / "002.tar", (1, 1))
    (begun / "index" / "001.safetensors").unlink(missing_ok=True)
    (begun / "index" / "000001.safetensors").write_bytes(b"damaged")
    open_stream(begun, str(shards), SIDE, 8)
    assert indexed == ["001.tar", "002.tar"]
    moved = shutil.copytree(shards, tmp_path / "moved")
    open_stream(begun, str(moved), SIDE, 8)


def another_caption(shards):
    files = [(name, b"new" if name == "p07.txt" else old) for name, old in samples(6, 6)]
    write_tar(shards / "001.tar", files)


def another_order(shards):
    write_tar(shards / "001.tar", samples(6, 6)[2:] + samples(6, 1))


CHANGES = {
    another_caption: "the captions of 001.tar have changed",
    another_order: "001.tar has changed",
    lambda shards: (shards / "003.tar").unlink(): "003.tar is gone",
    lambda shards: write_tar(shards / "004.tar", samples(30, 2)): "004.tar is new",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused(begun, shards, change):
    change(shards)
    with pytest.raises(ValueError, match=CHANGES[change]):
        open_stream(begun, str(shards), SIDE, 8)
    with pytest.warns(UserWarning, match=CHANGES[change]):
        open_stream(begun, str(shards), SIDE, 8, strict=False)


def test_a_folder_does_not_go_on_as_tar_files(folder, tmp_path):
    out = tmp_path / "out"
    open_images(out, folder, SIDE, 8)
    (out / "config.json").write_text("{}")
    pack(folder, tmp_path / "tars", 7)
    with pytest.raises(ValueError, match="differs from the images"):
        open_stream(out, str(tmp_path / "tars"), SIDE, 8)


def test_the_vocabulary_is_that_of_the_folder(folder, tmp_path):
    pack(folder, tmp_path / "tars", 7)
    of_folder = training_vocabulary(tmp_path / "a", str(folder))
    assert training_vocabulary(tmp_path / "b", str(tmp_path / "tars")) == of_folder
    assert "image" in of_folder


# --- Order ---
@pytest.mark.parametrize("count, window", [(1, 16), (5, 16), (40, 4)])
def test_every_epoch_has_each_image_once_and_a_few_files_at_a_time(monkeypatch, count, window):
    monkeypatch.setattr(stream, "WINDOW", window)
    counts = torch.randint(0, 30, (count,), generator=generator_at("counts"))
    counts[0] = 7
    orders = [order_in_windows(counts, generator_at(seed)) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    file_of = torch.repeat_interleave(torch.arange(count), counts)
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(len(file_of)))
        # A file is read from its first image to its last one; the others meanwhile are few.
        files = file_of[order].tolist()
        for number in set(files):
            first, last = files.index(number), len(files) - files[::-1].index(number)
            assert len(set(files[first:last])) <= window


def test_a_few_files_are_shuffled_as_a_whole():
    order = order_in_windows(torch.tensor([50, 50]), generator_at(0))
    from_first = (order < 50).tolist()
    assert 15 < sum(from_first[:50]) < 35


def test_the_order_is_another_in_each_epoch_and_stage(shards):
    images = load(shards, "train", SIDE)
    keys = [(0, "tokenizer", 0), (0, "tokenizer", 1), (1, "tokenizer", 0), (0, "decoder", 0)]
    orders = [tuple(images.epoch_order(*key, len(images)).tolist()) for key in keys]
    assert len(set(orders)) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(len(images)))}


# --- Reading ahead ---
def test_expected_images_are_the_right_ones(shards):
    images = load(shards, "train", SIDE)
    plain = images.in_memory()
    assert plain.names == list(images.names)
    images.expect([3, 4, 5, 4])
    for rows in ([5, 3], [4, 4, 0], [-1 + len(images)], torch.tensor([3, 5])):
        assert torch.equal(images.batch(rows), plain.batch(rows))
    assert not images.expected


def test_a_step_reads_the_rows_of_its_process_ahead_and_no_more(shards, monkeypatch):
    monkeypatch.setattr(collectives, "rank_and_size", lambda: (1, 2))
    images = load(shards, "train", SIDE)
    asked = []
    loss_of, order = reading_ahead(
        lambda indices, generator, step: iter(asked.append(indices) or ()),
        images,
        Stage(steps=5, batch=4, lr=0.1),
        "tokenizer",
        0,
    )
    for step in range(5):
        indices = batch_at(0, "tokenizer", step, 4, len(images), order)
        list(loss_of(indices, None, step))
        ahead = range(step, min(step + AHEAD + 1, 5))
        batches = [batch_at(0, "tokenizer", s, 4, len(images), order) for s in ahead]
        assert set(images.expected) == {i for batch in batches for i in batch[2:].tolist()}
        images.batch(indices[2:])


def run_tokenizer(data, out, *more):
    command = ["train", "tokenizer", "--preset", "tiny", "--device", "cpu", "--out", str(out)]
    return main([*command, "--data", str(data), *more])


def weights(out):
    return (out / "tokenizer.safetensors").read_bytes()


def test_a_resumed_training_reads_the_same_images_in_the_same_order(
    shards, tmp_path, monkeypatch, capsys
):
    read = []
    batch = Stream.batch

    def noted(self, indices):
        read.append(torch.as_tensor(indices).tolist())
        if len(read) == 3 and stop:
            raise ValueError("the third batch")
        return batch(self, indices)

    monkeypatch.setattr(Stream, "batch", noted)
    stop = False
    assert run_tokenizer(shards, tmp_path / "whole") == 0
    whole, read = read, []
    stop = True
    # Save at every step: the step that fails has one before it.
    monkeypatch.setattr("minimuse.plumbing.checkpoint.SAVE_EVERY", -100.0)
    assert run_tokenizer(shards, tmp_path / "parts") == 2
    stop = False
    assert run_tokenizer(shards, tmp_path / "parts", "--resume") == 0
    assert read[:2] + read[3:] == whole
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    # 8 steps of 8 images, three epochs; besides, 8 batches of 32 to place the codes.
    images = load(shards, "train", SIDE)
    steps = [batch_at(0, "tokenizer", k, 8, len(images), images.epoch_order) for k in range(8)]
    assert [batch for batch in whole if len(batch) == 8] == [step.tolist() for step in steps]
    assert len(whole) == 8 + 8


def test_the_loss_is_that_of_images_in_memory(shards):
    config = PRESETS["tiny"]
    images = load(shards, "train", config.tokenizer_hi.side)
    settings = config.stages.decoder
    tokenizer = build("tokenizer", config, 8)

    def losses_of(some_images):
        model = torch.nn.ModuleDict({"part": tokenizer, "loss": PlainLoss()})
        loss_of = tokenizer_loss(model, some_images, config, settings, True, "cpu")
        loss_of, _ = reading_ahead(loss_of, some_images, settings, "tokenizer", 0)
        losses = []
        for step in range(2):
            indices = batch_at(0, "tokenizer", step, 8, len(images), images.epoch_order)
            losses += [
                float(loss.detach()) for loss, _ in loss_of(indices, generator_at(step), step)
            ]
        return losses

    assert losses_of(images) == losses_of(images.in_memory())


class PlainLoss(torch.nn.Module):
    def forward(self, fake, real, last_layer, adversarial):
        return (fake - real).square().mean(), {}


def test_tokens_are_those_of_images_in_memory(shards):
    write_tar(shards / "001.tar", [("x.png", b""), ("x.txt", b"damaged"), *samples(6, 3)])
    config = PRESETS["tiny"]
    images = open_tars(shards, config.tokenizer_hi.side, 8, skip=True)
    parts = {name: build(name, config, 8).eval() for name in ("tokenizer", "tokenizer_hi")}
    text = load_t5("t5-toy")
    with pytest.warns(UserWarning, match="x.png"):
        tokens = tokens_of(parts, text, images, batch=4)
    plain = tokens_of(parts, text, images.in_memory(), batch=4)
    rows = torch.tensor([i for i in range(len(images)) if i != 6])
    assert len(tokens) == len(plain) + 1 == 22
    for resolution in ("low", "high"):
        assert torch.equal(tokens.ids(resolution, rows), plain.ids(resolution))
        # The damaged image has the tokens of the next one, and its caption.
        assert torch.equal(*tokens.ids(resolution, torch.tensor([6, 7])))
    captions = tokens.choose_captions(torch.tensor([6, 7]))
    assert torch.equal(*captions)


def test_several_processes_write_the_cache_of_one(shards, tmp_path, monkeypatch):
    """Also if one of two was killed, and another number of processes goes on."""
    monkeypatch.setattr(cache, "IMAGES_PER_SHARD", 4)
    out = tmp_path / "out"
    assert run_tokenizer(shards, out) == 0
    assert main(["train", "tokenizer-hi", "--device", "cpu", "--out", str(out)]) == 0
    alone = shutil.copytree(out, tmp_path / "alone")
    assert main(["cache", "--device", "cpu", "--out", str(alone)]) == 0
    # 22 images to train on: six shards, in rounds of two and then of three.
    assert start(2, f"cache:4={out}", "--die").returncode != 0
    left = {path.name for path in (out / "cache").iterdir()}
    assert {"unfinished.json", "000000.safetensors", "000001.safetensors"} <= left
    assert not left & {"index.json", "000003.safetensors"}
    begun = (out / "cache" / "000001.safetensors").stat()
    done = start(3, f"cache:4={out}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "cache" / "000001.safetensors").stat().st_mtime_ns == begun.st_mtime_ns
    assert contents(out / "cache") == contents(alone / "cache")


def test_cache_leaves_out_a_damaged_image_if_asked(shards, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_tokenizer(shards, out) == 0
    assert main(["train", "tokenizer-hi", "--device", "cpu", "--out", str(out)]) == 0
    with (shards / "001.tar").open("r+b") as tar:  # the size and the captions stay
        tar.seek(512)
        tar.write(bytes(60))
    capsys.readouterr()
    command = ["cache", "--device", "cpu", "--out", str(out)]
    assert main(command) == 2
    assert "skip_unreadable=True leaves out all such images" in capsys.readouterr().err
    assert main([*command, "base.width=64"]) == 2
    assert "base" in capsys.readouterr().err
    assert main([*command, "skip_unreadable=True"]) == 0
    assert "left out, 1 so far" in capsys.readouterr().err
    assert (out / "cache" / "index.json").is_file()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_held_out_images_and_those_to_measure_are_in_memory(shards, tmp_path):
    config = PRESETS["tiny"]
    images = load_images(config, str(shards), "train", 5, out=tmp_path / "out", strict=False)
    assert images.pixels.shape == (5, 3, 32, 32)
    heldout = load(shards, "heldout", SIDE)
    train = load(shards, "train", SIDE)
    assert not {*heldout.names} & {*train.names}
    assert len(heldout) + len(train) == 24
    assert find_tars(shards) == [shards / f"{n:03}.tar" for n in range(4)]
