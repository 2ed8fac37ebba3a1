"""Shards of token ids and text embeddings: what is written is what is read. Run: pytest tests/test_cache.py"""

import json

import pytest
import torch
from safetensors.torch import load_file

from minimuse.cli import main
from minimuse.data import Images
from minimuse.device import generator_at
from minimuse.runs import cache, stages
from minimuse.runs.cache import tokens_of
from minimuse.train import batch_at

SIDE, KEY = 16, {"data": "letters"}


class Text:
    """A frozen text encoder of 4 numbers per letter; counts what it embeds."""

    width = 4
    table = torch.randn(128, 4, generator=torch.Generator().manual_seed(1))

    def __init__(self):
        self.seen = []

    def __call__(self, texts):
        self.seen += texts
        T = max(map(len, texts))
        mask = torch.arange(T)[None] < torch.tensor([[len(t)] for t in texts])
        return self.table[torch.tensor([[ord(c) % 128 for c in t.ljust(T)] for t in texts])] * mask[
            ..., None
        ], mask


class Ids(torch.nn.Module):
    """A tokenizer whose ids are the red of its pixels."""

    def encode(self, images):
        return ((images[:, 0] + 1) * 127.5).round().long()


PARTS = {"tokenizer": Ids(), "tokenizer_hi": Ids()}


def pictures(count=23):
    pixels = torch.randint(
        256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    captions = [
        tuple("abcdefgh"[: 1 + (i * k) % 7] + str(i % 5) for k in range(1, 2 + i % 3))
        for i in range(count)
    ]
    return Images(pixels, captions, [str(i) for i in range(count)])


def written(folder, per_shard=7, some=None, text=None):
    list(
        cache.write_cache(folder, KEY, PARTS, text or Text(), some or pictures(), "cpu", per_shard)
    )
    return cache.read_cache(folder, KEY)


@pytest.mark.parametrize("per_shard", [1, 7, 23, 100])
def test_reading_back_is_what_was_written(tmp_path, per_shard):
    some, tokens = pictures(), written(tmp_path, per_shard)
    memory = tokens_of(PARTS, Text(), some)
    assert len(tokens) == len(memory) == 23 and len(tokens.shards) == -(-23 // per_shard)
    for resolution, images in (
        ("low", torch.nn.functional.avg_pool2d(some.batch(range(23)), 2)),
        ("high", some.batch(range(23))),
    ):
        assert torch.equal(tokens.ids(resolution), memory.ids(resolution))
        assert torch.equal(tokens.ids(resolution), Ids().encode(images).flatten(1))
        assert torch.equal(
            tokens.ids(resolution, torch.tensor([22, 0, 7, 6, 7])),
            memory.ids(resolution)[[22, 0, 7, 6, 7]],
        )
    for step in range(5):
        indices = batch_at(0, "base", step, 9, 23)
        for ours, wanted in zip(
            tokens.captions(indices, generator_at(step)),
            memory.captions(indices, generator_at(step)),
        ):
            assert torch.equal(ours, wanted)
    embeddings, visible = tokens.captions(torch.arange(23))
    for i, variants in enumerate(some.captions):
        assert torch.equal(
            embeddings[i][visible[i]], Text()([variants[0]])[0][0].bfloat16().float()
        )


def test_a_shared_caption_is_embedded_once(tmp_path):
    text = Text()
    written(tmp_path, 100, text=text)
    assert (
        len(text.seen) == len(set(text.seen)) == len({c for cs in pictures().captions for c in cs})
    )


def test_empty_captions(tmp_path):
    some = pictures(3)
    tokens = written(tmp_path, some=Images(some.pixels, [("",), ("",), ("ab",)], some.names))
    embeddings, visible = tokens.captions(torch.tensor([0, 1]))
    assert embeddings.shape == (2, 1, 4) and not visible.any() and not embeddings.any()
    embeddings, visible = tokens.captions(torch.tensor([2, 0]))
    assert visible.tolist() == [[True, True], [False, False]]


def test_files_are_mapped(tmp_path):
    """A caption that is not looked at costs no memory: its embedding shares the file's."""
    tokens = written(tmp_path)
    chosen = tokens.choose(torch.arange(5))
    assert all(
        any(
            x.untyped_storage().data_ptr() == shard["text"].untyped_storage().data_ptr()
            for shard in tokens.shards
        )
        for x in chosen
    )


def test_processes_see_disjoint_samples_and_together_all():
    for processes in (1, 2, 4):
        seen = [
            torch.cat(
                [batch_at(3, "base", step, 8, 24).chunk(processes)[rank] for step in range(3)]
            )
            for rank in range(processes)
        ]
        assert torch.cat(seen).sort().values.tolist() == list(range(24))


def test_an_unfinished_cache_is_none(tmp_path):
    for done, shards in cache.write_cache(tmp_path, KEY, PARTS, Text(), pictures(), "cpu", 7):
        assert shards == 4 and (tmp_path / "cache" / "index.json").exists() == (done == 4)
    list(cache.write_cache(tmp_path, {"data": "others"}, PARTS, Text(), pictures(), "cpu", 7))
    with pytest.raises(ValueError, match="made from other data, tokenizers or text encoder"):
        cache.read_cache(tmp_path, KEY)
    next(cache.write_cache(tmp_path, KEY, PARTS, Text(), pictures(), "cpu", 7))
    assert not (tmp_path / "cache" / "index.json").exists(), "begun again, it is not the old one"


@pytest.mark.parametrize("shard", range(4))
def test_damaged_shards_are_named(tmp_path, shard):
    written(tmp_path)
    path = sorted((tmp_path / "cache").glob("*.safetensors"))[shard]
    data = path.read_bytes()
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(
            ValueError, match=f"{path.name} is missing or damaged .*run minimuse cache again"
        ):
            cache.read_cache(tmp_path, KEY)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing"):
        cache.read_cache(tmp_path, KEY)
    written(tmp_path)
    assert path.read_bytes() == data, "made again"


def test_a_damaged_index(tmp_path):
    written(tmp_path)
    index = tmp_path / "cache" / "index.json"
    for text in ("", "[]", "{}", '{"shards": 3}', "\0"):
        index.write_text(text)
        with pytest.raises(
            ValueError, match="(index.json|000000.safetensors) is missing or damaged"
        ):
            cache.read_cache(tmp_path, KEY)
    index.write_text(json.dumps({"key": KEY, "shards": [8]}))
    with pytest.raises(ValueError, match="000000.safetensors .*7 pictures, not 8"):
        cache.read_cache(tmp_path, KEY)


def test_training_from_a_cache_is_training_from_memory(tmp_path, tiny_model, capsys, monkeypatch):
    """From the command line, and bit for bit; with no picture in memory."""

    about = json.loads((tiny_model / "config.json").read_text())
    settings = ["stages.base.steps=3", f"scenes={about['config']['scenes']}"]
    weights = []
    for cached in (False, True):
        out = tmp_path / f"cached-{cached}"
        assert (
            main(
                [
                    "train",
                    "tokenizer",
                    "--preset",
                    "tiny",
                    "--data",
                    "shapes",
                    "--out",
                    str(out),
                    *settings,
                ]
            )
            == 0
        )
        assert (
            main(["cache", "--out", str(out)]) == 2
            and "train tokenizer-hi" in capsys.readouterr().err
        )
        assert main(["train", "tokenizer-hi", "--out", str(out)]) == 0
        if cached:
            assert main(["cache", "--out", str(out)]) == 0
            monkeypatch.setattr(stages, "load", None)
        assert main(["train", "base", "--out", str(out)]) == 0
        weights.append(load_file(out / "base.safetensors"))
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    (out / "tokenizer.safetensors").write_bytes(
        (tiny_model / "tokenizer_hi.safetensors").read_bytes()
    )
    assert main(["train", "superres", "--out", str(out)]) == 2
    assert "made from other data, tokenizers or text encoder" in capsys.readouterr().err
