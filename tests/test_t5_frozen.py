"""The T5 encoder, its tokenizer and loader, and span corruption, against slow oracles.

pytest tests/test_t5_frozen.py
"""

import json
import math
import os
import pickletools
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from build_t5 import linear_probe, words_in_relations
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save_file
from t5_pretrain import T5Decoder, T5Pretrainer, corrupt, corrupt_row, initialize_weights

from minimuse.plumbing.t5_files import load_t5, weight_files
from minimuse.t5_frozen import (
    FrozenT5,
    T5Config,
    T5Encoder,
    TextTokenizer,
    relative_position_bucket,
)

TOY = Path(__file__).parents[1] / "data" / "t5-toy"
# The inner width is 3 * 8 = 24, not d_model: taking one for the other must fail.
CONFIG = T5Config(
    vocab_size=60,
    d_model=32,
    d_kv=8,
    d_ff=40,
    num_layers=3,
    num_heads=3,
    feed_forward_proj="gated-gelu",
)


def build(config, seed=0):
    """Random weights. Biases and norms are far from their defaults: leaving one out is noticed."""
    generator = torch.Generator().manual_seed(seed)
    model = T5Encoder(config)
    initialize_weights(model, config, generator)
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        elif "relative_attention_bias" in name:
            parameter.data.normal_(std=2.0, generator=generator)
    return model.eval().requires_grad_(False)


def some_ids(config, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, config.vocab_size, mask.shape, generator=generator)
    return ids.masked_fill(~mask, 0), mask


# --- Relative position buckets ----------------------------------------------------------------


def slow_bucket(distance, bidirectional):
    """Count the boundaries that the distance has passed, in whole numbers.

    Of 2n buckets, boundary n + i is at n * (128 / n)^(i / n).
    """
    if bidirectional:
        n, far = 8, abs(distance)
    else:
        n, far = 16, max(-distance, 0)
    bucket = far
    if far >= n:
        bucket = n + sum(far**n >= n ** (n - i) * 128**i for i in range(1, n))
    if bidirectional and distance > 0:
        bucket += 16
    return bucket


def test_buckets_match_the_table():
    starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]  # of buckets 0 to 15
    distance = torch.arange(-600, 601)
    bucket = relative_position_bucket(distance, True, 32, 128)
    for d, b in zip(distance.tolist(), bucket.tolist(), strict=True):
        expected = sum(abs(d) >= start for start in starts) - 1
        if d > 0:
            expected += 16
        assert b == expected, d


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_match_exact_integer_arithmetic(bidirectional):
    distance = torch.arange(-600, 601)
    bucket = relative_position_bucket(distance, bidirectional, 32, 128)
    assert bucket.tolist() == [slow_bucket(d, bidirectional) for d in distance.tolist()]


# --- The encoder ------------------------------------------------------------------------------


def slow_norm(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def slow_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def slow_attention(h, w, name, table, config):
    """One row (T, E), position by position and head by head. w has all weights, by name."""
    T, d = len(h), config.d_kv
    q, k, v = (h @ w[f"{name}.{part}.weight"].T for part in "qkv")
    out = np.zeros((T, config.num_heads * d))
    for head in range(config.num_heads):
        part = slice(head * d, (head + 1) * d)
        for t in range(T):
            bias = np.array([table[slow_bucket(s - t, True), head] for s in range(T)])
            score = k[:, part] @ q[t, part] + bias
            weight = np.exp(score - score.max())
            out[t, part] = (weight / weight.sum()) @ v[:, part]
    return out @ w[f"{name}.o.weight"].T


def slow_mlp(h, w, name, config):
    if config.feed_forward_proj == "relu":
        hidden = np.maximum(h @ w[f"{name}.wi.weight"].T, 0)
    else:
        hidden = slow_gelu(h @ w[f"{name}.wi_0.weight"].T) * (h @ w[f"{name}.wi_1.weight"].T)
    return hidden @ w[f"{name}.wo.weight"].T


def slow_encoder(weights, config, tokens):
    """One row without padding, in float64."""
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    table = w["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    x = w["shared.weight"][tokens]
    for i in range(config.num_layers):
        block = f"encoder.block.{i}.layer"
        h = slow_norm(x, w[f"{block}.0.layer_norm.weight"])
        x = x + slow_attention(h, w, f"{block}.0.SelfAttention", table, config)
        h = slow_norm(x, w[f"{block}.1.layer_norm.weight"])
        x = x + slow_mlp(h, w, f"{block}.1.DenseReluDense", config)
    return slow_norm(x, w["encoder.final_layer_norm.weight"])


@pytest.mark.parametrize("mlp", ["relu", "gated-gelu"])
def test_equals_slow_encoder(mlp):
    config = replace(CONFIG, feed_forward_proj=mlp)
    model = build(config)
    lengths = [1, 2, 9, 40]
    ids, mask = some_ids(config, lengths)
    out = model(ids, mask)
    for row, length in enumerate(lengths):
        expected = slow_encoder(model.state_dict(), config, ids[row, :length].tolist())
        np.testing.assert_allclose(out[row, :length].numpy(), expected, rtol=0, atol=1e-5)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_padding_changes_nothing(lengths, extra, junk):
    model = build(CONFIG)
    ids, mask = some_ids(CONFIG, [*lengths, 1])
    wider_ids = torch.nn.functional.pad(ids, (0, extra), value=junk % CONFIG.vocab_size)
    wider_mask = torch.nn.functional.pad(mask, (0, extra), value=False)
    out, wider = model(ids, mask), model(wider_ids, wider_mask)
    torch.testing.assert_close(wider[:, : ids.shape[1]], out, rtol=0, atol=2e-5)
    assert wider[~wider_mask].eq(0).all() and wider.isfinite().all()


def test_the_one_table_acts_in_every_block():
    """Every block gets the same bias, and without it adds something else."""
    model = build(CONFIG)
    ids, mask = some_ids(CONFIG, [12])
    inputs = []  # of each block's attention
    for block in model.encoder.block:
        block.layer[0].SelfAttention.register_forward_pre_hook(lambda _, args: inputs.append(args))
    model(ids, mask)
    assert len(inputs) == CONFIG.num_layers
    first_bias = inputs[0][2]
    for block, (h, source, bias) in zip(model.encoder.block, inputs, strict=True):
        attention = block.layer[0].SelfAttention
        assert torch.equal(bias, first_bias)
        difference = attention.forward(h, source, bias) - attention.forward(h, source, 0 * bias)
        assert difference.abs().max() > 1e-2


def test_a_null_caption_leaves_no_nan_in_the_gradients():
    model = build(CONFIG).requires_grad_(True)
    model(*some_ids(CONFIG, [4, 0])).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_half_precision_is_close():
    model = build(CONFIG)
    ids, mask = some_ids(CONFIG, [5, 0, 20])
    exact = model(ids, mask)
    rough = model.bfloat16()(ids, mask)
    assert rough.dtype == torch.bfloat16
    assert rough.isfinite().all()
    assert rough[1].eq(0).all()
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


# --- The tokenizer ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5():
    return load_t5(TOY)


def test_eos_closes_every_text_but_the_empty_one(t5):
    ids, mask = t5.tokenizer.encode(["a red apple", "", "a"])
    assert mask.sum(1).tolist() == [4, 0, 2]
    assert ids[0, 3] == 1 and ids[2, 1] == 1
    assert ids[1].tolist() == [0, 0, 0, 0] and ids.dtype == torch.int64 and mask.dtype == torch.bool
    ids, mask = t5.tokenizer.encode(["", " "])
    assert ids.shape == (2, 1) and not mask.any()
    # A text that names special tokens only spells them.
    ids, mask = t5.tokenizer.encode(["<pad> </s> \u4e2d"])
    assert mask.all() and ids[0].eq(1).sum() == 1 and (ids == 2).any()
    with pytest.raises(ValueError, match="red.*list of texts"):
        t5.tokenizer.encode("a red apple")


def test_truncation_keeps_eos_and_warns_once(t5):
    texts = ["a red apple " * 20, "a red apple " * 9, "a"]
    with pytest.warns(UserWarning, match="61 tokens was cut to 10") as caught:
        ids, mask = t5.tokenizer.encode(texts, max_length=10)
    assert len(caught) == 1 and ids.shape == (3, 10)
    full, _ = t5.tokenizer.encode(texts[:1], max_length=61)
    assert ids[0].tolist() == full[0, :9].tolist() + [1] and mask.sum(1).tolist() == [10, 10, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        t5.tokenizer.encode(texts[:1], max_length=61)


SHAPE_WORDS = "red green blue yellow circle circles crosses rings above left small two grey".split()


@pytest.mark.parametrize("word", SHAPE_WORDS)
def test_words_of_the_shapes_are_single_pieces(t5, word):
    assert len(t5.tokenizer.pieces.encode(word)) == 1


# --- The shipped encoder ----------------------------------------------------------------------


def test_batch_equals_single(t5):
    texts = ["a red apple, noto style", "two small red crosses on a grey background", "", "dog"]
    embeddings, mask = t5(texts)
    assert embeddings.shape == (4, mask.shape[1], t5.width)
    for text, row, real in zip(texts, embeddings, mask, strict=True):
        alone, alone_mask = t5([text])
        assert alone_mask.sum() == real.sum()
        torch.testing.assert_close(row[real], alone[alone_mask], rtol=0, atol=1e-5)
        assert row[~real].eq(0).all()


def test_shipped_encoder_is_small_frozen_and_quick(t5):
    start = time.process_time()  # the machine may be busy with other things
    again = load_t5(TOY)
    assert time.process_time() - start < 1.0
    assert again.fingerprint == t5.fingerprint and len(t5.fingerprint) == 12
    parameters = list(t5.encoder.parameters())
    assert sum(p.numel() for p in parameters) == 3_680_640
    assert not any(p.requires_grad for p in parameters) and not t5.encoder.training
    assert not t5(["a"])[0].requires_grad
    assert sum(file.stat().st_size for file in TOY.iterdir()) < 8e6
    # So no model that holds one can train or save it.
    assert torch.nn.Module not in FrozenT5.__mro__


@pytest.mark.parametrize(
    "one, two",
    [
        ("a red apple", "a green apple"),
        (
            "a small red ring above a large blue square",
            "a small red ring below a large blue square",
        ),
    ],
)
def test_attributes_can_be_told_apart(t5, one, two):
    """Captions that differ in one word differ at the other words, too: they see their context."""
    (a, b), mask = t5([one, two])
    assert mask[0].equal(mask[1])
    ids, _ = t5.tokenizer.encode([one, two])
    shared = ids[0] == ids[1]
    cosine = torch.cosine_similarity(a, b, dim=-1)
    assert cosine[~shared].max() < cosine[shared].min()
    assert cosine[shared].max() < 0.9999


def test_words_bind(t5):
    """The vector of a shape's word tells its colour, and where the other object lies.

    A linear probe reads both, for combinations that T5 has not been trained on.
    """
    seen, unseen = words_in_relations(t5, "train", 700), words_in_relations(t5, "heldout", 700)
    for question in ("colour at shape", "relation at shape"):
        assert linear_probe(*seen[question], *unseen[question]) > 0.9


# --- Loading ----------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path):
    """A tiny T5 with random weights and the shipped tokenizer."""
    config = replace(CONFIG, vocab_size=4128)
    published = asdict(config) | {"model_type": "t5", "dropout_rate": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(published))
    shutil.copy(TOY / "spiece.model", tmp_path)
    save_file(build(config).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def change(directory, edit):
    path = directory / "model.safetensors"
    weights = load(path.read_bytes())  # copies, since the file is written again
    edit(weights)
    save_file(weights, path)


def fails(directory, error, *words):
    with pytest.raises(error) as caught:
        load_t5(directory)
    message = str(caught.value)
    assert "\n" not in message, message
    for word in words:
        assert word in message, message


def test_a_checkpoint_with_a_decoder_or_the_other_embedding_name_loads(directory):
    expected, _ = load_t5(directory)(["a red apple"])

    def add_a_decoder_and_rename(weights):
        weights["decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.ones(2, 2)
        weights["lm_head.weight"] = torch.zeros(4128, 32)
        weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")

    change(directory, add_a_decoder_and_rename)
    torch.testing.assert_close(load_t5(directory)(["a red apple"])[0], expected, rtol=0, atol=0)


FORMS = ("model.safetensors", "pytorch_model.bin")


def write_tensors(tensors, path):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def publish(directory, form, shards):
    """Write the checkpoint in another form, with a decoder.

    In shards, an index says which tensor is where, and the last shard has the decoder alone.
    """
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    decoder = {"lm_head.weight": torch.ones(2, 2)}
    for i in range(3):
        decoder[f"decoder.block.{i}.layer.0.SelfAttention.q.weight"] = torch.ones(2, 2)
    if shards == 1:
        write_tensors(state | decoder, directory / form)
        return
    parts = [dict(list(state.items())[i::shards]) for i in range(shards)]
    parts.append(decoder)
    stem, suffix = form.split(".")
    index = {}
    for i, part in enumerate(parts):
        name = f"{stem}-{i + 1:05}-of-{len(parts):05}.{suffix}"
        write_tensors(part, directory / name)
        index |= dict.fromkeys(part, name)
    (directory / f"{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def shards_of(directory, form):
    return sorted(directory.glob(f"{form.split('.')[0]}-*"))


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_loads_in_all_its_forms(directory, form, shards):
    first = load_t5(directory)
    expected, _ = first(["a red apple"])
    publish(directory, form, shards)
    if shards > 1:  # the shard of the decoder is not even opened
        shards_of(directory, form)[-1].unlink()
    again = load_t5(directory)
    torch.testing.assert_close(again(["a red apple"])[0], expected, rtol=0, atol=0)
    assert again.fingerprint != first.fingerprint, "it is a hash of files, not of tensors"
    assert len(weight_files(directory)) == shards
    assert load_t5(directory, dtype=torch.bfloat16).encoder.shared.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_or_cut_shard_or_index_is_named(directory, form):
    publish(directory, form, 3)
    shard = shards_of(directory, form)[1]
    index = directory / f"{form}.index.json"
    whole, whole_index = shard.read_bytes(), index.read_text()
    shard.write_bytes(whole[: len(whole) // 2])
    fails(directory, ValueError, shard.name, "cut short")
    shard.unlink()
    fails(directory, FileNotFoundError, shard.name, "missing")
    shard.write_bytes(whole)
    for damage in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"shared.weight": 3}}'):
        index.write_text(damage)
        fails(directory, ValueError, index.name, "damaged")
    # A path out of the directory is not followed.
    index.write_text(whole_index.replace(shard.name, f"../{shard.name}"))
    assert shard in weight_files(directory)
    load_t5(directory)


class Hostile:
    """Unpickling it would create a file."""

    victim = None

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(directory, tmp_path):
    hostile = Hostile()
    hostile.victim = tmp_path / "victim"
    (directory / "model.safetensors").unlink()
    torch.save({"shared.weight": hostile}, directory / "pytorch_model.bin")
    fails(directory, ValueError, "pytorch_model.bin", "damaged")
    assert not (tmp_path / "victim").exists()
    # The file does contain the call: read its instructions, without carrying one out.
    with zipfile.ZipFile(directory / "pytorch_model.bin") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        instructions = [
            (code.name, argument) for code, argument, _ in pickletools.genops(archive.read(name))
        ]
    call = instructions.index(("GLOBAL", f"{os.system.__module__} system"))
    assert ("BINUNICODE", f"touch {hostile.victim}") in instructions[call:]
    assert ("REDUCE", None) in instructions[call:]


def test_a_file_from_before_zip_archives_is_refused_with_a_hint(directory):
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    fails(directory, ValueError, "pytorch_model.bin", "before PyTorch 1.6")


@pytest.mark.parametrize("name", ["config.json", "spiece.model", "model.safetensors"])
def test_missing_file(directory, name):
    (directory / name).unlink()
    fails(directory, FileNotFoundError, name, "missing")


@pytest.mark.parametrize("keep", [0.9, 0.01, 0.0])
def test_truncated_weights(directory, keep):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    fails(directory, ValueError, "model.safetensors", "cut short", "download it again")


def test_damaged_tokenizer_and_config(directory):
    (directory / "spiece.model").write_bytes(b"nonsense")
    fails(directory, ValueError, "spiece.model", "not a SentencePiece model")
    (directory / "config.json").write_text("{")
    fails(directory, ValueError, "config.json", "not JSON")
    (directory / "config.json").write_text('{"d_model": 4}')
    fails(directory, ValueError, "config.json", "lacks vocab_size")
    other_mlp = asdict(CONFIG) | {"feed_forward_proj": "gated-silu"}
    (directory / "config.json").write_text(json.dumps(other_mlp))
    fails(directory, ValueError, "gated-silu")


def test_wrong_weights(directory):
    q = "encoder.block.1.layer.0.SelfAttention.q.weight"
    original = (directory / "model.safetensors").read_bytes()

    def broken(edit, *words):
        (directory / "model.safetensors").write_bytes(original)
        change(directory, edit)
        fails(directory, ValueError, str(directory), *words)

    broken(lambda w: w.pop(q), "lacks", q)
    broken(lambda w: w.update({q: torch.ones(32, 32)}), q, "(32, 32)", "(24, 32)")
    broken(
        lambda w: w.update({"encoder.block.3.layer_norm.weight": torch.ones(32)}),
        "encoder.block.3.layer_norm.weight",
    )
    broken(lambda w: w["shared.weight"].zero_(), "shared.weight is all zero")
    broken(lambda w: w.update({"lm_head.weight": w.pop("shared.weight")}), "lacks shared.weight")


def test_a_decoder_alone_is_named(directory):
    decoder = {
        "decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2),
        "lm_head.weight": torch.ones(2, 2),
    }
    save_file(decoder, directory / "model.safetensors")
    fails(directory, ValueError, "lacks shared.weight", "it has a decoder only")


def test_other_tokenizer_or_precision(directory):
    with pytest.raises(ValueError, match="float16"):
        load_t5(directory, dtype=torch.float16)
    rough = load_t5(directory, dtype=torch.bfloat16)
    assert rough.encoder.shared.weight.dtype == torch.bfloat16
    assert rough(["a"])[0].dtype == torch.float32, "embeddings are float32 in any case"
    assert load_t5(directory).encoder.shared.weight.dtype == torch.float32
    (directory / "config.json").write_text(json.dumps(asdict(CONFIG)))
    fails(directory, ValueError, "4096 pieces", "vocab_size 60")


# --- Span corruption --------------------------------------------------------------------------

V = 200
texts = st.lists(st.integers(3, 99), min_size=1, max_size=70)
rates = st.sampled_from([0.15, 0.25, 0.5])
seeds = st.integers(0, 2**31)


def restore(inputs, targets):
    """Put each hidden span back where its sentinel stands."""
    spans = {}
    for token in targets:
        if token >= 100:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    restored = []
    for token in inputs:
        if token >= 100:
            restored += spans[token]
        else:
            restored.append(token)
    return restored


@given(texts, rates, seeds)
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost(tokens, rate, seed):
    inputs, targets = corrupt_row(tokens, V, torch.Generator().manual_seed(seed), rate, 3.0)
    assert inputs[-1] == 1
    assert restore(inputs[:-1], targets) == tokens
    marks = [token for token in inputs if token >= 100]
    target_marks = [token for token in targets if token >= 100]
    assert target_marks == list(range(V - 1, V - 2 - len(marks), -1))
    assert marks == target_marks[:-1]
    hidden = len(targets) - len(target_marks)
    # Python rounds halves to even, hence the margin; one token is always hidden, one always left.
    assert hidden == max(1, min(round(rate * len(tokens)), len(tokens) - 1))
    assert len(marks) == max(1, min(round(hidden / 3), len(tokens) - hidden + 1))


@given(st.lists(texts, min_size=1, max_size=5), seeds)
@settings(max_examples=30, deadline=None)
def test_a_batch_is_its_rows(rows, seed):
    width = max(map(len, rows)) + 1
    ids = torch.tensor([row + [1] + [0] * (width - len(row) - 1) for row in rows])
    batch = corrupt(ids, ids != 0, V, torch.Generator().manual_seed(seed))
    again = corrupt(ids, ids != 0, V, torch.Generator().manual_seed(seed))
    for one, two in zip(batch, again, strict=True):
        assert torch.equal(one, two)
    encoder_ids, encoder_mask, decoder_inputs, targets = batch
    assert torch.equal(encoder_mask, encoder_ids != 0)
    assert decoder_inputs[:, 0].eq(0).all()
    assert torch.equal(decoder_inputs[:, 1:], targets[:, :-1])
    generator = torch.Generator().manual_seed(seed)
    for i, row in enumerate(rows):
        inputs, target = corrupt_row(row, V, generator, 0.15, 3.0)
        assert encoder_ids[i][encoder_mask[i]].tolist() == inputs
        assert targets[i][targets[i] != 0].tolist() == target


def test_every_position_is_hidden_about_equally_often():
    """T5's own code would always hide the last tokens of a short text and never the first."""
    generator, times, draws = torch.Generator().manual_seed(0), torch.zeros(12), 3000
    for _ in range(draws):
        inputs, _ = corrupt_row(list(range(3, 15)), V, generator, 0.25, 3.0)
        times += torch.tensor([float(token not in inputs) for token in range(3, 15)])
    assert times.sum() / draws == 3
    # One span of three among ten places: an end token is in one of them, a middle one in three.
    expected = draws * torch.tensor([1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 2, 1]) / 10
    assert ((times - expected).abs() < 5 * expected.sqrt()).all()


def test_an_empty_text_is_refused():
    ids = torch.tensor([[3, 4, 1], [0, 0, 0]])
    with pytest.raises(ValueError, match="0 tokens"):
        corrupt(ids, ids != 0, V, torch.Generator())


# --- The decoder ------------------------------------------------------------------------------


def test_decoder_cannot_look_ahead_or_at_padding():
    decoder = T5Decoder(CONFIG, 2)
    initialize_weights(decoder, CONFIG, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 9, 32, generator=generator), torch.randn(2, 7, 32, generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    with torch.no_grad():
        out = decoder(x, text, mask)
        for first in range(9):
            later = x.clone()
            later[:, first:] += 1.0
            changed = (decoder(later, text, mask) - out).abs().amax((0, 2)) > 1e-6
            assert changed.tolist() == [i >= first for i in range(9)]
        other = text.clone()
        other[1, 4:] += 1.0
        torch.testing.assert_close(decoder(x, other, mask), out, rtol=0, atol=0)
        other[1, 3] += 1.0
        assert (decoder(x, other, mask) - out)[1].abs().max() > 1e-3


def test_pretraining_starts_at_chance_and_learns():
    model = T5Pretrainer(CONFIG, 1, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (16, 12), generator=generator)
    ids[:, 6:] = ids[:, :6]  # the second half repeats the first: hidden tokens can be looked up
    ids = torch.nn.functional.pad(ids, (0, 1), value=1)
    batch = corrupt(ids, ids != 0, CONFIG.vocab_size, generator)
    targets = batch[3]
    losses = model.token_losses(*batch)
    assert len(losses) == (targets != 0).sum()
    torch.testing.assert_close(model(*batch), losses.mean())
    chance = math.log(CONFIG.vocab_size)
    assert abs(model(*batch).item() - chance) < 0.25 * chance
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * chance
    assert all(p.grad is not None for p in model.parameters())


def test_tokenizer_with_other_special_ids_is_refused(tmp_path):
    (tmp_path / "text").write_text("a red apple\na green pear\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "m"),
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match=r"pad, eos, unk = \(-1, 2, 0\)"):
        TextTokenizer(tmp_path / "m.model")


# --- The real size ----------------------------------------------------------------------------


def random_tensor(shape, generator):
    """bfloat16: ones for a norm, else normal numbers that keep the size of what they multiply."""
    if len(shape) == 1:
        return torch.ones(shape).bfloat16()
    return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).bfloat16()


def write_xxl(folder):
    """A checkpoint of T5-XXL's shape in bf16, 9.5 GB in five shards, with random weights."""
    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    shutil.copy(TOY / "spiece.model", folder)
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in T5Encoder(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    names, weight_map = list(shapes), {}
    for i in range(5):
        file = f"model-{i + 1:05}-of-00005.safetensors"
        part = names[i * len(names) // 5 : (i + 1) * len(names) // 5]
        save_file({name: random_tensor(shapes[name], generator) for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.slow
def test_xxl_fits_into_11_gb(tmp_path):
    """Load and embed one prompt in a process of its own.

    Its peak resident memory counts, with the mapped file.
    """
    write_xxl(tmp_path)
    code = f"""
import resource
from minimuse.plumbing.t5_files import load_t5
t5 = load_t5({str(tmp_path)!r})
embeddings, mask = t5(["a red apple on a wooden table"])
assert embeddings.shape[2] == 4096 and embeddings.isfinite().all() and embeddings.std() > 0
assert len(t5.fingerprint) == 12
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    print(f"peak resident memory {float(done.stdout):.2f} GB")
    assert float(done.stdout) < 11
