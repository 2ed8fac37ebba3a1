"""Files that are not what they should be: `pytest tests/test_malformed.py`. Every loader, ten thousand damaged files.

A file is either accepted, or refused by a ValueError or an OSError, which the command line tells in one line. Nothing else is raised,
nothing takes seconds, nothing is written, and nothing in a file is run. MALFORMED=50 tries fifty times as many.
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
from minimuse.datasets import emoji, folder
from minimuse.datasets.image_files import read_image
from minimuse.plumbing.checkpoint import restore_checkpoint, save_checkpoint
from minimuse.plumbing.config import PRESETS, override
from minimuse.plumbing.files import save_tensors, write_json
from minimuse.plumbing.parts import load_part, read_about
from minimuse.plumbing.t5_files import load_t5, read_t5_config
from minimuse.runs import cache
from minimuse.t5_frozen import T5Encoder, TextTokenizer
from minimuse.train import make_optimizers

TIMES = float(os.environ.get("MALFORMED", 1))
TELLING = (ValueError, OSError)  # with ModuleNotFoundError, what `cli.main` catches
SECONDS = 10


class Hangs(BaseException):
    """No loader can catch it by accident."""


@contextmanager
def in_time():
    def ring(*_):
        raise Hangs(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three faults: cut, bits flipped, a piece overwritten, left out, doubled, or put in; a number made absurd; or all of it noise."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, span = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 32, 200))
        fault, noise = rng.randrange(10), rng.randbytes(span)
        if fault == 0:
            data = data[:at]
        elif fault in (1, 2) and data:
            spoilt = bytearray(data)
            for _ in range(rng.choice((1, 1, 8, 64))):
                spoilt[min(rng.randrange(len(data)), rng.choice((16, 200, 10**9)) % len(data))] ^= (
                    1 << rng.randrange(8)
                )
            data = bytes(spoilt)
        elif fault == 3:
            data = data[:at] + noise + data[at + span :]
        elif fault == 4:
            data = data[:at] + bytes([rng.choice((0, 255, 127, 128))]) * span + data[at + span :]
        elif fault == 5:
            data = data[:at] + data[at + span :]
        elif fault == 6:
            data = data[:at] + data[at : at + span] * rng.choice((2, 50)) + data[at:]
        elif fault == 7:
            data = data[:at] + noise + data[at:]
        elif fault == 8:
            digits = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte < 58]
            if digits:
                at = rng.choice(digits)
                data = (
                    data[:at]
                    + rng.choice(
                        (
                            b"-1",
                            b"0",
                            b"9" * 30,
                            b"NaN",
                            b"1e999",
                            b"null",
                            b"[]",
                            b'"x"',
                            b"1.5",
                            b"{}",
                        )
                    )
                    + data[at + 1 :]
                )
        else:
            data = rng.randbytes(rng.choice((0, 1, 7, 100, 5000)))
    return data


def picture(format: str) -> bytes:
    file = io.BytesIO()
    pixels = torch.randint(
        256, (24, 20, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    Image.fromarray(pixels.numpy()).save(file, format)
    return file.getvalue()


def try_all(path, whole: bytes, read, count: int) -> None:
    """Damage the file at `path` in many ways and read it, each time; it has to be refused at least now and then, or nothing is tried."""
    refused, folder_before = 0, None
    warnings.simplefilter("ignore")
    for i in range(round(TIMES * count)):
        path.write_bytes(data := damaged(whole, random.Random(f"{path.name} {i}")))
        folder_before = folder_before or sorted(
            p.relative_to(path.parent) for p in path.parent.rglob("*")
        )
        try:
            with in_time():
                read()
        except TELLING as error:
            refused += 1
            assert str(error).strip(), f"case {i}, {data[:60]!r}...: refused without a word"
        except BaseException as error:
            pytest.fail(
                f"case {i} of {path.name}, {len(data)} bytes, {data[:60]!r}...: {type(error).__name__}: {error}"
            )
    assert refused > 0.2 * TIMES * count, f"only {refused} of {count} were refused"
    assert sorted(p.relative_to(path.parent) for p in path.parent.rglob("*")) == folder_before, (
        "something was written"
    )
    path.write_bytes(whole)


@pytest.mark.parametrize("format", ("PNG", "JPEG", "WEBP"))
def test_pictures(tmp_path, format):
    path = tmp_path / f"a.{format.lower()}"
    try_all(path, picture(format), lambda: read_image(path), 1000)


@pytest.mark.parametrize(
    "name, text",
    [
        ("captions.csv", 'file,caption\na.png,"a cat, sitting"\nb.png,a dog\n'),
        ("a.txt", "a cat\nit sits\n"),
    ],
)
def test_captions(tmp_path, name, text):
    for picture_name in ("a.png", "b.png"):
        (tmp_path / picture_name).write_bytes(picture("PNG"))
    if name == "a.txt":
        (tmp_path / "b.txt").write_text("a dog")

    def read():
        captions = folder.captions_of(tmp_path)
        assert captions.keys() == {"a.png", "b.png"} and all(captions.values())

    whole = text.encode()
    if name == "a.txt":  # nearly any text is a caption
        whole += "é".encode() * 200
    try_all(tmp_path / name, whole, read, 600)


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """A copy to spoil."""
    return shutil.copytree(tiny_model, tmp_path_factory.mktemp("spoilt") / "model")


def test_configurations(model):
    try_all(
        model / "config.json", (model / "config.json").read_bytes(), lambda: read_about(model), 1200
    )


@pytest.mark.parametrize("part", ("tokenizer", "base"))
def test_weights(model, part):
    path, config = model / f"{part}.safetensors", PRESETS["tiny"]
    try_all(path, path.read_bytes(), lambda: load_part(model, part, config, 256), 500)


def test_checkpoints(tmp_path):
    net, path, key = (
        torch.nn.Linear(3, 2),
        tmp_path / "base.checkpoint.safetensors",
        {"of": "a test"},
    )
    optimizers = make_optimizers(net, PRESETS["tiny"].stages.base)
    net(torch.ones(1, 3)).sum().backward()
    optimizers[0].step()
    save_checkpoint(
        path,
        3,
        net,
        average := {k: v.clone() for k, v in net.state_dict().items()},
        optimizers,
        key,
    )
    try_all(
        path,
        path.read_bytes(),
        lambda: restore_checkpoint(path, net, average, optimizers, key),
        1000,
    )


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A T5 so small that its files load in a millisecond; the tokenizer is the shipped one."""
    where = tmp_path_factory.mktemp("t5")
    shutil.copy(ASSETS / "t5-toy" / "spiece.model", where)
    config = json.loads((ASSETS / "t5-toy" / "config.json").read_text()) | dict(
        d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2
    )
    (where / "config.json").write_text(json.dumps(config))
    save_tensors(
        where / "model.safetensors",
        T5Encoder(read_t5_config(where / "config.json")).state_dict(),
    )
    return where


@pytest.mark.parametrize("name, count", [("config.json", 400), ("model.safetensors", 400)])
def test_text_encoders(t5, name, count):
    load_t5(t5)
    try_all(t5 / name, (t5 / name).read_bytes(), lambda: load_t5(t5), count)


def test_pickled_text_encoders(t5, tmp_path):
    """The one format that could hold code: zip files of pickles, as they were published."""
    where = shutil.copytree(t5, tmp_path / "t5")
    state = load_file(where / "model.safetensors")
    (where / "model.safetensors").unlink()
    torch.save(state, where / "pytorch_model.bin")
    load_t5(where)
    try_all(
        where / "pytorch_model.bin",
        (where / "pytorch_model.bin").read_bytes(),
        lambda: load_t5(where),
        300,
    )


def test_shards_of_text_encoders(t5, tmp_path):
    where = shutil.copytree(t5, tmp_path / "t5")
    (where / "model.safetensors").rename(where / "model-00001-of-00001.safetensors")
    names = ["shared.weight", "encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    path = where / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    load_t5(where)
    try_all(path, path.read_bytes(), lambda: load_t5(where), 300)


def test_sentencepiece_models(t5, tmp_path):
    path, whole = tmp_path / "spiece.model", (t5 / "spiece.model").read_bytes()

    def read():
        TextTokenizer(path).encode(["a red apple"])

    try_all(path, whole, read, 500)


def test_packs(tmp_path, monkeypatch):
    """The emoji's index, their words, and a pack, of three concepts."""
    index, words = (
        json.loads((ASSETS / "emoji" / name).read_text())
        for name in ("index.json", "captions.json")
    )
    (here := tmp_path / "emoji").mkdir()
    for style in emoji.STYLES:
        few = dict([*index[style]["blobs"].items()][:3])
        data = (ASSETS / "emoji" / f"{style}.pack").read_bytes()[
            : max(sum(place) for place in few.values())
        ]
        index[style] |= {
            "blobs": few,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        (here / f"{style}.pack").write_bytes(data)
    known = {concept for style in emoji.STYLES for concept in index[style]["blobs"]}
    (here / "index.json").write_text(json.dumps(index))
    (here / "captions.json").write_text(json.dumps({concept: words[concept] for concept in known}))

    def read():
        for wanted in ("train", "heldout", "heldout-concept"):
            for _, captions, picture in emoji.find_emoji(wanted, 32, tmp_path):
                assert captions and picture().size == (32, 32)

    read()
    for name, count in (("index.json", 500), ("captions.json", 500), ("noto.pack", 300)):
        try_all(here / name, (here / name).read_bytes(), read, count)


def test_caches(tmp_path):
    """A cache of two pictures: its index and its shard."""
    (folder := tmp_path / "cache").mkdir()
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
        tokens.ids("low"), tokens.ids("high")

    read()
    try_all(folder / "index.json", (folder / "index.json").read_bytes(), read, 500)
    try_all(folder / "000000.safetensors", (folder / "000000.safetensors").read_bytes(), read, 500)


def test_settings():
    """key=value, as they are typed; and whole configurations with something else in their place."""
    keys = [
        "base.width",
        "stages.base.steps",
        "tokenizer.multipliers",
        "loss.perceptual",
        "sampling.sampler",
        "stages.base.betas",
        "base",
        "nothing.here",
    ]
    rng, refused = random.Random(0), 0
    odd = [
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
    ]
    for i in range(round(800 * TIMES)):
        text = rng.choice(
            [
                f"{rng.choice(keys)}={rng.choice(odd)}",
                damaged(f"{rng.choice(keys)}=12".encode(), rng).decode("latin-1"),
            ]
        )
        try:
            with in_time():
                override(PRESETS["tiny"], [text])
        except TELLING:
            refused += 1
        except BaseException as error:
            pytest.fail(f"case {i}, {text[:80]!r}: {type(error).__name__}: {error}")
    assert refused > 400 * TIMES
