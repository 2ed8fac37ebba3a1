"""Our T5 encoder compared with that of transformers, on the same random weights.

pip install transformers; pytest tests/parity/test_t5_parity.py
"""

from pathlib import Path

import pytest
import torch

from minimuse.plumbing.t5_files import load_t5
from minimuse.t5_frozen import T5Config, T5Encoder

transformers = pytest.importorskip("transformers")

TOY_DIRECTORY = Path(__file__).parents[2] / "data" / "t5-toy"

# d_model, d_kv, num_heads, where num_heads * d_kv is not d_model. This is so in T5 v1.1 small
# (6 * 64 = 384 for 512) and in v1.0 3B.
SHAPES = {"narrower inside": (64, 8, 6), "wider inside": (48, 16, 8)}


def pair(mlp, d_model, d_kv, num_heads, num_layers=3):
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=120,
        d_model=d_model,
        d_kv=d_kv,
        num_heads=num_heads,
        d_ff=80,
        num_layers=num_layers,
    )
    theirs = transformers.T5EncoderModel(
        transformers.T5Config(**sizes, feed_forward_proj=mlp)
    ).eval()
    for name, parameter in theirs.named_parameters():
        if "layer_norm" in name:
            # The default, ones, would hide a norm that forgets its weight.
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif "relative_attention_bias" in name:
            torch.nn.init.normal_(parameter, std=2.0)  # as strong as in a trained T5
    ours = T5Encoder(T5Config(**sizes, feed_forward_proj=mlp)).eval()
    weights = theirs.state_dict()
    weights.pop("encoder.embed_tokens.weight", None)
    ours.load_state_dict(weights)  # strict: no key renamed, none left over
    return theirs, ours


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mlp", ["relu", "gated-gelu"])
@torch.no_grad()
def test_equal_at_every_length(mlp, shape):
    theirs, ours = pair(mlp, *SHAPES[shape])
    for length in (1, 2, 7, 8, 9, 33, 77, 127, 128, 129, 512):
        ids = torch.randint(3, 120, (2, length))
        mask = torch.ones(2, length, dtype=torch.bool)
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        assert (ours(ids, mask) - expected).abs().max() <= 1e-5, length


@pytest.mark.parametrize("mlp", ["relu", "gated-gelu"])
@torch.no_grad()
def test_equal_under_padding(mlp):
    theirs, ours = pair(mlp, 64, 8, 6)
    ids = torch.randint(3, 120, (6, 40))
    mask = torch.arange(40) < torch.tensor([1, 2, 9, 25, 39, 40])[:, None]
    ids = ids.masked_fill(~mask, 0)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert (ours(ids, mask) - expected)[mask].abs().max() <= 1e-5


@pytest.mark.parametrize("mlp", ["relu", "gated-gelu"])
@torch.no_grad()
def test_equal_with_twelve_layers(mlp):
    theirs, ours = pair(mlp, 64, 8, 6, num_layers=12)
    ids = torch.randint(3, 120, (4, 77))
    mask = torch.arange(77) < torch.tensor([77, 60, 12, 1])[:, None]
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert (ours(ids, mask) - expected)[mask].abs().max() <= 1e-5


@pytest.mark.parametrize("num_layers", [3, 12])
@pytest.mark.parametrize("mlp", ["relu", "gated-gelu"])
@torch.no_grad()
def test_bf16_is_as_near_to_fp32_as_theirs(mlp, num_layers):
    """The relative L2 error to float32 is at most 1.25 times that of transformers."""
    theirs, ours = pair(mlp, 256, 32, 8, num_layers)
    ids = torch.randint(3, 120, (16, 40))
    mask = torch.ones(16, 40, dtype=torch.bool)
    exact = ours(ids, mask)

    def relative_error(embeddings):
        return float((embeddings.float() - exact).norm() / exact.norm())

    their_output = theirs.bfloat16()(input_ids=ids, attention_mask=mask.long())
    their_error = relative_error(their_output.last_hidden_state)
    our_error = relative_error(ours.bfloat16()(ids, mask))
    print(f"{mlp}, {num_layers} layers: {our_error:.4f}, theirs {their_error:.4f}")
    assert 0 < our_error <= 1.25 * their_error


@pytest.mark.parametrize("size", ["50KB", "10GB"])
@torch.no_grad()
def test_a_whole_t5_that_they_wrote(tmp_path, size):
    """A checkpoint of encoder and decoder loads, in small shards or in one file."""
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=4128,
        d_model=16,
        d_kv=8,
        num_heads=3,
        d_ff=24,
        num_layers=2,
        num_decoder_layers=2,
    )
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 1 or size == "10GB"
    (tmp_path / "spiece.model").write_bytes((TOY_DIRECTORY / "spiece.model").read_bytes())
    ours = load_t5(tmp_path)
    ids, mask = ours.tokenizer.encode(["a red apple", "two small red crosses on a grey background"])
    expected = theirs.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert (ours.encoder(ids, mask) - expected)[mask].abs().max() <= 1e-5


@torch.no_grad()
def test_a_directory_they_wrote(tmp_path):
    """An encoder saved by transformers loads with its tokenizer and gives the same embeddings."""
    theirs = transformers.T5EncoderModel.from_pretrained(TOY_DIRECTORY).eval().float()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes((TOY_DIRECTORY / "spiece.model").read_bytes())
    ours = load_t5(tmp_path)
    texts = ["a red apple, noto style", "two small red crosses on a grey background", "x"]
    embeddings, mask = ours(texts)
    ids, _ = ours.tokenizer.encode(texts)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert (embeddings - expected)[mask].abs().max() <= 1e-5
