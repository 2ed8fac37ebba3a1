"""The cache of token ids and text embeddings: what is read back is what was written.

pytest tests/test_cache.py
"""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from minimuse.cli import main
from minimuse.data import Images
from minimuse.plumbing.device import generator_at
from minimuse.runs import cache, images
from minimuse.runs.cache import tokens_of
from minimuse.runs.stages import open_tokens
from minimuse.train import batch_at

SIDE, KEY = 16, {"data": "letters"}


class Text:
    """A frozen text encoder of 4 numbers per letter; counts what it embeds."""

    width = 4
    dtype = torch.float32
    table = torch.randn(128, 4, generator=torch.Generator().manual_seed(1))

    def __init__(self):
        self.embedded = []

    def __call__(self, texts):
        self.embedded += texts
        T = max(len(t) for t in texts)
        mask = torch.arange(T)[None] < torch.tensor([[len(t)] for t in texts])
        letters = torch.tensor([list(t.ljust(T).encode("ascii")) for t in texts])
        return self.table[letters] * mask[..., None], mask


class Ids(torch.nn.Module):
    """A tokenizer whose ids are the red of its pixels."""

    def encode(self, images):
        return ((images[:, 0] + 1) * 127.5).round().long()


PARTS = {"tokenizer": Ids(), "tokenizer_hi": Ids()}


def sample_images(count=23):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    captions = []
    for i in range(count):
        lengths = [1 + (i * k) % 7 for k in range(1, 2 + i % 3)]
        captions.append(tuple("abcdefgh"[:length] + str(i % 5) for length in lengths))
    return Images(pixels, captions, [str(i) for i in range(count)])


def written(folder, per_shard=7, images=None, text=None):
    """The tokens that are read from a cache, just written."""
    text, images = text or Text(), images or sample_images()
    list(cache.write_cache(folder, KEY, PARTS, text, images, "cpu", per_shard))
    return cache.read_cache(folder, KEY)


@pytest.mark.parametrize("per_shard", [1, 7, 23, 100])
def test_ids_are_read_as_they_were_written(tmp_path, per_shard):
    images, tokens = sample_images(), written(tmp_path, per_shard)
    memory = tokens_of(PARTS, Text(), images)
    assert len(tokens) == len(memory) == 23
    assert len(tokens.shards) == math.ceil(23 / per_shard)
    high = images.batch(range(23))
    low = torch.nn.functional.avg_pool2d(high, 2)
    some = torch.tensor([22, 0, 7, 6, 7])
    for resolution, pixels in (("low", low), ("high", high)):
        assert torch.equal(tokens.ids(resolution), memory.ids(resolution))
        assert torch.equal(tokens.ids(resolution), Ids().encode(pixels).flatten(1))
        assert torch.equal(tokens.ids(resolution, some), memory.ids(resolution)[some])


@pytest.mark.parametrize("per_shard", [1, 7, 23, 100])
def test_captions_are_read_as_they_were_written(tmp_path, per_shard):
    images, tokens = sample_images(), written(tmp_path, per_shard)
    memory = tokens_of(PARTS, Text(), images)
    for step in range(5):
        indices = batch_at(0, "base", step, 9, 23)
        from_files = tokens.captions(indices, generator_at(step))
        from_memory = memory.captions(indices, generator_at(step))
        assert torch.equal(from_files[0], from_memory[0])
        assert torch.equal(from_files[1], from_memory[1])
    embeddings, visible = tokens.captions(torch.arange(23))
    for i, captions in enumerate(images.captions):
        expected = Text()([captions[0]])[0][0]
        assert torch.equal(embeddings[i][visible[i]], expected)


def test_a_shared_caption_is_embedded_once(tmp_path):
    text = Text()
    written(tmp_path, 100, text=text)
    different = set().union(*sample_images().captions)
    assert sorted(text.embedded) == sorted(different)


def test_empty_captions(tmp_path):
    images = sample_images(3)
    images = Images(images.pixels, [("",), ("",), ("ab",)], images.names)
    tokens = written(tmp_path, images=images)
    embeddings, visible = tokens.captions(torch.tensor([0, 1]))
    assert embeddings.shape == (2, 1, 4) and not visible.any() and not embeddings.any()
    embeddings, visible = tokens.captions(torch.tensor([2, 0]))
    assert visible.tolist() == [[True, True], [False, False]]


def test_files_are_mapped(tmp_path):
    """A caption that is not looked at costs no memory: its embedding shares the file's."""
    tokens = written(tmp_path)
    files = {shard["text"].untyped_storage().data_ptr() for shard in tokens.shards}
    for embedding in tokens.choose_captions(torch.arange(5)):
        assert embedding.untyped_storage().data_ptr() in files


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_see_disjoint_samples_and_together_all(processes):
    seen = []
    for rank in range(processes):
        for step in range(3):
            seen.append(batch_at(3, "base", step, 8, 24).chunk(processes)[rank])
    assert torch.cat(seen).sort().values.tolist() == list(range(24))


def stopped(folder, shards, key=KEY, per_shard=7):
    """Write a cache, and stop after so many shards."""
    writing = cache.write_cache(folder, key, PARTS, Text(), sample_images(), "cpu", per_shard)
    for _ in range(shards):
        next(writing)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_stopped_cache_goes_on_after_its_last_shard(tmp_path, shards):
    stopped(tmp_path, shards)
    text = Text()
    tokens = written(tmp_path, text=text)
    rows = range(7 * shards, 23)
    left = {caption for i in rows for caption in sample_images().captions[i]}
    assert set(text.embedded) == left, "what it embedded is not what was left"
    undisturbed = written(tmp_path / "another")
    for shard, expected in zip(tokens.shards, undisturbed.shards, strict=True):
        assert shard.keys() == expected.keys()
        assert all(torch.equal(shard[name], expected[name]) for name in shard)
    assert not (tmp_path / "cache" / "unfinished.json").exists()


@pytest.mark.parametrize("change", [{"key": {"data": "others"}}, {"per_shard": 6}])
def test_a_stopped_cache_of_another_key_or_plan_is_made_anew(tmp_path, change):
    stopped(tmp_path, 3, **change)
    text = Text()
    written(tmp_path, text=text)
    assert set(text.embedded) == {c for captions in sample_images().captions for c in captions}


def test_a_damaged_plan_is_none(tmp_path):
    stopped(tmp_path, 2)
    (tmp_path / "cache" / "unfinished.json").write_text("{")
    text = Text()
    written(tmp_path, text=text)
    assert set(text.embedded) == {c for captions in sample_images().captions for c in captions}


def test_a_finished_cache_is_kept(tmp_path):
    written(tmp_path)
    text = Text()
    written(tmp_path, text=text)
    assert not text.embedded


def test_only_damaged_and_missing_shards_are_made_anew(tmp_path):
    written(tmp_path)
    paths = sorted((tmp_path / "cache").glob("0*.safetensors"))
    right = [path.read_bytes() for path in paths]
    paths[1].write_bytes(right[1][:-1])
    paths[2].unlink()
    text = Text()
    written(tmp_path, text=text)
    rows = range(7, 21)
    assert set(text.embedded) == {c for i in rows for c in sample_images().captions[i]}
    assert [path.read_bytes() for path in paths] == right


def test_training_does_not_begin_beside_an_unfinished_cache(tmp_path):
    stopped(tmp_path, 2)
    with pytest.raises(ValueError, match="cache is unfinished; run minimuse cache again"):
        open_tokens(tmp_path, {}, PARTS, Text(), sample_images(), "cpu")


def test_an_unfinished_cache_is_none(tmp_path):
    for done, shards in cache.write_cache(tmp_path, KEY, PARTS, Text(), sample_images(), "cpu", 7):
        assert shards == 4 and (tmp_path / "cache" / "index.json").exists() == (done == 4)
    list(cache.write_cache(tmp_path, {"data": "others"}, PARTS, Text(), sample_images(), "cpu", 7))
    with pytest.raises(ValueError, match="made from other data, tokenizers or text encoder"):
        cache.read_cache(tmp_path, KEY)
    next(cache.write_cache(tmp_path, KEY, PARTS, Text(), sample_images(), "cpu", 7))
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
    with pytest.raises(ValueError, match="000000.safetensors .*7 images, not 8"):
        cache.read_cache(tmp_path, KEY)


def test_training_from_a_cache_is_training_from_memory(tmp_path, tiny_model, monkeypatch):
    """From the command line, and bit for bit; with a cache, no image is loaded."""
    about = json.loads((tiny_model / "config.json").read_text())
    settings = ["stages.base.steps=3", f"scenes={about['config']['scenes']}"]
    weights = []
    for cached in (False, True):
        out = tmp_path / f"cached-{cached}"
        arguments = ["--preset", "tiny", "--data", "shapes", "--out", str(out), *settings]
        assert main(["train", "tokenizer", *arguments]) == 0
        assert main(["train", "tokenizer-hi", "--out", str(out)]) == 0
        if cached:
            assert main(["cache", "--out", str(out)]) == 0
            monkeypatch.setattr(images, "load", None)
        assert main(["train", "base", "--out", str(out)]) == 0
        weights.append(load_file(out / "base.safetensors"))
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_cache_needs_both_tokenizers(tmp_path, tiny_model, capsys):
    for name in ("config.json", "tokenizer.safetensors"):
        shutil.copy(tiny_model / name, tmp_path)
    assert main(["cache", "--out", str(tmp_path)]) == 2
    assert "train tokenizer-hi" in capsys.readouterr().err


def test_a_cache_of_another_tokenizer_is_refused(tmp_path, tiny_model, capsys):
    for name in ("config.json", "tokenizer.safetensors", "tokenizer_hi.safetensors"):
        shutil.copy(tiny_model / name, tmp_path)
    assert main(["cache", "--out", str(tmp_path)]) == 0
    shutil.copy(tmp_path / "tokenizer_hi.safetensors", tmp_path / "tokenizer.safetensors")
    assert main(["train", "base", "--out", str(tmp_path)]) == 2
    assert "made from other data, tokenizers or text encoder" in capsys.readouterr().err
