"""Every loader, on ten thousand damaged files: `pytest tests/test_malformed.py`.

A loader either accepts a file or raises a ValueError or an OSError, which the command line prints
in one line. It raises nothing else, does not take seconds, writes nothing, and runs no code from a
file. MALFORMED=50 tries fifty times as many files.
"""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import warnings
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minimuse.data import ASSETS
from minimuse.datasets import emoji
from minimuse.datasets.captions import find_pairs
from minimuse.datasets.image_files import read_image
from minimuse.plumbing.checkpoint import restore_checkpoint, save_checkpoint
from minimuse.plumbing.config import PRESETS, override
from minimuse.plumbing.files import save_tensors, write_json
from minimuse.plumbing.parts import load_part, read_about
from minimuse.plumbing.t5_files import load_t5, read_t5_config
from minimuse.runs import cache, kept
from minimuse.t5_frozen import T5Encoder, TextTokenizer
from minimuse.train import make_optimizers

TIMES = float(os.environ.get("MALFORMED", 1))
REFUSALS = (ValueError, OSError)  # `cli.main` catches these, and ModuleNotFoundError
SECONDS = 10


class Hangs(BaseException):
    """Raised when a loader takes too long. No loader catches a BaseException by accident."""


@contextmanager
def in_time():
    """Raise Hangs if the body takes longer than SECONDS."""

    def ring(*_):
        raise Hangs(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- Damage ---
# Each function makes one fault in some bytes, near the position `at`. They draw from `rng`.
NUMBERS = (b"-1", b"0", b"9" * 30, b"NaN", b"1e999", b"null", b"[]", b'"x"', b"1.5", b"{}")


def cut(data: bytes, at: int, span: int, rng: random.Random) -> bytes:
    return data[:at]


def flip_bits(data: bytes, at: int, span: int, rng: random.Random) -> bytes:
    """One bit or many, anywhere or in the first bytes, where headers are."""
    if not data:
        return data
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 1, 8, 64))):
        anywhere = rng.randrange(len(data))
        near_the_start = rng.choice((16, 200, 10**9)) % len(data)
        flipped[min(anywhere, near_the_start)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def overwrite(data: bytes, at: int, span: int, rng: random.Random) -> bytes:
    return data[:at] + rng.randbytes(span) + data[at + span :]


def overwrite_evenly(data: bytes, at: int, span: int, rng: random.Random) -> bytes:
    return data[:at] + bytes([rng.choice((0, 255, 127, 128))]) * span + data[at + span :]


def leave_out(data: bytes, at: int, span: int, rng: random.Random) -> bytes:
    return data[:at] + data[at + span :]


def repeat(data: bytes, at: int, span: int, rng: random.Random) -> bytes:
    return data[:at] + data[at : at + span] * rng.choice((2, 50)) + data[at:]


def insert(data: bytes, at: int, span: int, rng: random.Random) -> bytes:
    return data[:at] + rng.randbytes(span) + data[at:]


def absurd_number(data: bytes, at: int, span: int, rng: random.Random) -> bytes:
    """Replace a digit in the first bytes by something absurd."""
    digits = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte < 58]
    if not digits:
        return data
    at = rng.choice(digits)
    return data[:at] + rng.choice(NUMBERS) + data[at + 1 :]


def noise(data: bytes, at: int, span: int, rng: random.Random) -> bytes:
    """Nothing of the file is left."""
    return rng.randbytes(rng.choice((0, 1, 7, 100, 5000)))


FAULTS = (
    cut,
    flip_bits,
    flip_bits,
    overwrite,
    overwrite_evenly,
    leave_out,
    repeat,
    insert,
    absurd_number,
    noise,
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three faults."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        span = rng.choice((1, 2, 4, 8, 32, 200))
        fault = rng.choice(FAULTS)
        data = fault(data, at, span, rng)
    return data


def image_file(format: str) -> bytes:
    """A small image of noise in a file format."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (24, 20, 3), generator=generator, dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format)
    return file.getvalue()


def files_beside(path) -> list:
    """All files in the folder of `path`."""
    return sorted(file.relative_to(path.parent) for file in path.parent.rglob("*"))


def try_all(path, whole: bytes, read, count: int) -> None:
    """Damage the file at `path` in many ways and call `read` each time.

    A fifth of the files must be refused, or the damage tests nothing.
    """
    warnings.simplefilter("ignore")
    path.write_bytes(whole)
    before = files_beside(path)
    refused = 0
    for i in range(round(TIMES * count)):
        data = damaged(whole, random.Random(f"{path.name} {i}"))
        path.write_bytes(data)
        case = f"case {i} of {path.name}, {len(data)} bytes, {data[:60]!r}..."
        try:
            with in_time():
                read()
        except REFUSALS as error:
            refused += 1
            assert str(error).strip(), f"{case}: refused without a message"
        except BaseException as error:
            pytest.fail(f"{case}: {type(error).__name__}: {error}")
    assert refused > 0.2 * TIMES * count, f"only {refused} of {count} were refused"
    assert files_beside(path) == before, "something was written"
    path.write_bytes(whole)


# --- Data sets ---


@pytest.mark.parametrize("format", ("PNG", "JPEG", "WEBP"))
def test_images(tmp_path, format):
    path = tmp_path / f"a.{format.lower()}"
    try_all(path, image_file(format), lambda: read_image(path), 1000)


@pytest.mark.parametrize(
    "name, text",
    [
        ("captions.csv", 'file,caption\na.png,"a cat, sitting"\nb.png,a dog\n'),
        ("a.txt", "a cat\nit sits\n"),
    ],
)
def test_captions(tmp_path, name, text):
    for image_name in ("a.png", "b.png"):
        (tmp_path / image_name).write_bytes(image_file("PNG"))
    if name == "a.txt":
        (tmp_path / "b.txt").write_text("a dog")

    def read():
        pairs = find_pairs(tmp_path)
        assert pairs.keys() == {"a.png", "b.png"}
        assert all(pair.captions for pair in pairs.values())

    whole = text.encode()
    # Nearly any text is a caption, so add letters of two bytes: cut in half, they are not UTF-8.
    if name == "a.txt":
        whole += "é".encode() * 200
    try_all(tmp_path / name, whole, read, 600)


def small_packs(tmp_path):
    """Packs, index and captions of three emoji in each style; their folder."""
    shipped = ASSETS / "emoji"
    folder = tmp_path / "emoji"
    folder.mkdir()
    index = json.loads((shipped / "index.json").read_text())
    words = json.loads((shipped / "captions.json").read_text())
    known = {}  # in the order of the packs, so that each run damages the same bytes
    for style in emoji.STYLES:
        blobs = dict(list(index[style]["blobs"].items())[:3])
        end = max(offset + length for offset, length, _ in blobs.values())
        data = (shipped / f"{style}.pack").read_bytes()[:end]
        (folder / f"{style}.pack").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        index[style] |= {"blobs": blobs, "bytes": len(data), "sha256": digest}
        known |= {name: words[name] for name in blobs}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "captions.json").write_text(json.dumps(known))
    return folder


@pytest.mark.parametrize("key", ["label", "things"])
@pytest.mark.parametrize("text", ["", " ", " of "])
def test_a_label_without_a_noun_is_refused(tmp_path, key, text):
    path = small_packs(tmp_path) / "captions.json"
    words = json.loads(path.read_text())
    for concept in words.values():
        concept[key] = [text] * 3 if key == "things" else text
    path.write_text(json.dumps(words))
    with pytest.raises(ValueError, match="captions.json are damaged"):
        emoji.find_emoji("train", 32, tmp_path)


def test_packs(tmp_path):
    folder = small_packs(tmp_path)

    def read():
        for split in ("train", "heldout", "heldout-concept"):
            for entry in emoji.find_emoji(split, 32, tmp_path):
                assert entry.captions and entry.read().size == (32, 32)

    read()
    for name, count in (("index.json", 500), ("captions.json", 500), ("noto.pack", 300)):
        path = folder / name
        try_all(path, path.read_bytes(), read, count)


# --- Models ---


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """A copy to spoil."""
    return shutil.copytree(tiny_model, tmp_path_factory.mktemp("spoilt") / "model")


def test_configurations(model):
    path = model / "config.json"
    try_all(path, path.read_bytes(), lambda: read_about(model), 1200)


@pytest.mark.parametrize("part", ("tokenizer", "base"))
def test_weights(model, part):
    path = model / f"{part}.safetensors"
    try_all(path, path.read_bytes(), lambda: load_part(model, part, PRESETS["tiny"], 256), 500)


def test_checkpoints(tmp_path):
    path = tmp_path / "base.checkpoint.safetensors"
    key = {"of": "a test"}
    model = torch.nn.Linear(3, 2)
    optimizers = make_optimizers(model, PRESETS["tiny"].stages.base)
    model(torch.ones(1, 3)).sum().backward()
    optimizers[0].step()
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_checkpoint(path, 3, model, average, optimizers, key)

    def read():
        restore_checkpoint(path, model, average, optimizers, key)

    try_all(path, path.read_bytes(), read, 1000)


# --- Text encoders ---


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A T5 so small that its files load in a millisecond; the tokenizer is the shipped one."""
    folder = tmp_path_factory.mktemp("t5")
    shutil.copy(ASSETS / "t5-toy" / "spiece.model", folder)
    config = json.loads((ASSETS / "t5-toy" / "config.json").read_text())
    config |= {"d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 1, "num_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    encoder = T5Encoder(read_t5_config(folder / "config.json"))
    save_tensors(folder / "model.safetensors", encoder.state_dict())
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_text_encoders(t5, name):
    load_t5(t5)
    try_all(t5 / name, (t5 / name).read_bytes(), lambda: load_t5(t5), 400)


def test_pickled_text_encoders(t5, tmp_path):
    """The one format that could hold code: zip files of pickles, as they were published."""
    folder = shutil.copytree(t5, tmp_path / "t5")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(state, path)
    load_t5(folder)
    try_all(path, path.read_bytes(), lambda: load_t5(folder), 300)


def test_shards_of_text_encoders(t5, tmp_path):
    folder = shutil.copytree(t5, tmp_path / "t5")
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    names = ["shared.weight", "encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    load_t5(folder)
    try_all(path, path.read_bytes(), lambda: load_t5(folder), 300)


def test_sentencepiece_models(t5, tmp_path):
    path = tmp_path / "spiece.model"

    def read():
        TextTokenizer(path).encode(["a red apple"])

    try_all(path, (t5 / "spiece.model").read_bytes(), read, 500)


# --- Caches and settings ---


def test_caches(tmp_path):
    """A cache of two images: its index and its shard."""
    folder = tmp_path / "cache"
    folder.mkdir()
    shard = {
        "low": torch.zeros(2, 4, dtype=torch.int32),
        "high": torch.zeros(2, 16, dtype=torch.int32),
        "text": torch.zeros(5, 8, dtype=torch.bfloat16),
        "starts": torch.tensor([0, 2, 5]),
        "variants": torch.tensor([0, 1]),
        "owns": torch.tensor([0, 1, 2]),
    }
    save_tensors(folder / "000000.safetensors", shard)
    write_json(folder / "index.json", {"key": {"of": "a test"}, "shards": [2]})

    def read():
        tokens = cache.read_cache(tmp_path, {"of": "a test"})
        tokens.ids("low")
        tokens.ids("high")

    read()
    for name in ("index.json", "000000.safetensors"):
        path = folder / name
        try_all(path, path.read_bytes(), read, 500)


@pytest.mark.parametrize("name", ["images.json", "images.safetensors"])
def test_kept_images(tmp_path, name):
    """The manifest and the decoded images of a folder. Damaged images are decoded again."""
    folder, out = tmp_path / "pics", tmp_path / "out"
    folder.mkdir()
    for stem in "ab":
        (folder / f"{stem}.png").write_bytes(image_file("PNG"))
        (folder / f"{stem}.txt").write_text(f"a cat {stem}\n")
    kept.open_images(out, folder, 8, 8)
    whole = (out / name).read_bytes()
    if name == "images.json":
        (out / "config.json").write_text("{}")
        try_all(out / name, whole, lambda: kept.open_images(out, folder, 8, 8, strict=False), 300)
        return
    for i in range(round(100 * TIMES)):
        data = damaged(whole, random.Random(i))
        (out / name).write_bytes(data)
        assert kept.open_images(out, folder, 8, 8).names == ["a.png", "b.png"]


SETTINGS = (
    "base.width",
    "stages.base.steps",
    "tokenizer.multipliers",
    "loss.perceptual",
    "sampling.sampler",
    "stages.base.betas",
    "base",
    "nothing.here",
)

ODD_VALUES = (
    "",
    "x",
    "-1",
    "0",
    "1e400",
    "nan",
    "[]",
    "()",
    "(1,)",
    "{}",
    "None",
    "True",
    "9" * 4000,
    "(" * 500,
    "'",
    "\0",
    "1,2",
    "[[[1]]]",
    "inf",
    "0.5",
)


def test_settings():
    """key=value on the command line, with an odd value or damaged as a whole."""
    rng = random.Random(0)
    refused = 0
    for i in range(round(800 * TIMES)):
        odd = f"{rng.choice(SETTINGS)}={rng.choice(ODD_VALUES)}"
        spoilt = damaged(f"{rng.choice(SETTINGS)}=12".encode(), rng).decode("latin-1")
        text = rng.choice([odd, spoilt])
        try:
            with in_time():
                override(PRESETS["tiny"], [text])
        except REFUSALS:
            refused += 1
        except BaseException as error:
            pytest.fail(f"case {i}, {text[:80]!r}: {type(error).__name__}: {error}")
    assert refused > 400 * TIMES
