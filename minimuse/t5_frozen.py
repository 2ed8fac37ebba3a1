"""The frozen text encoder: T5, from the characters of a caption to one vector per token.

Muse does not learn to read. It takes the encoder half of a T5 that was trained on text alone, freezes it, and looks at its output
(Muse paper, section 2.1). Module names are those of the published Hugging Face checkpoints, so that T5 v1.1 (and v1.0) from small to
XXL load without renaming a key; `data/t5-toy` is one of a few megabytes that `data/t5_pretrain.py` trained.

    python -c "from minimuse.t5_frozen import FrozenT5; print(FrozenT5.load('data/t5-toy')(['a red apple']))"
Papers: T5 (1910.10683), section 2.1; the gated MLP of v1.1 is 2002.05202. Left out: the decoder, and dropout.
Letters: B batch, T text tokens, S tokens attended to, E text width, H heads.
"""

import math
import warnings
from dataclasses import dataclass

import sentencepiece
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

PAD, EOS, UNK = 0, 1, 2


MAX_TOKENS = 77


@dataclass(frozen=True)
class T5Config:
    """The fields of a T5 checkpoint's `config.json` that its encoder depends on."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"  # the oldest v1.0 files do not say; v1.1 says "gated-gelu"

    def __post_init__(self):
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise ValueError(
                f"feed_forward_proj is {self.feed_forward_proj!r}; T5 has 'relu' (v1.0) or 'gated-gelu' (v1.1)"
            )


def relative_position_bucket(distance, bidirectional, num_buckets, max_distance):
    """The bucket of each `distance` = key position - query position (T5 paper, section 2.1): half of the buckets hold one distance each,
    the others logarithmically wider ranges, to `max_distance`. When attention looks both ways, one half is for keys after the query."""
    if bidirectional:
        num_buckets //= 2
        first, distance = (distance > 0) * num_buckets, distance.abs()
    else:
        first, distance = 0, (-distance).clamp(min=0)
    exact = num_buckets // 2
    octaves = torch.log(distance.clamp(min=1).float() / exact) / math.log(
        max_distance / exact
    )  # clamp: no log(0)
    wide = exact + (octaves * (num_buckets - exact)).long()
    return first + torch.where(distance < exact, distance, wide.clamp(max=num_buckets - 1))


class Attention(nn.Module):
    """Multi-head attention without biases and, as in T5, without the 1/sqrt(d) scale: with it, embeddings are plausible and wrong."""

    def __init__(self, config, owns_bias, bidirectional):
        super().__init__()
        self.config, self.bidirectional = config, bidirectional
        inner = config.num_heads * config.d_kv  # need not be d_model: 384 for 512 in v1.1 small
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in "qkv")
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if owns_bias:
            self.relative_attention_bias = nn.Embedding(
                config.relative_attention_num_buckets, config.num_heads
            )

    def position_bias(self, length):
        """-> (1, H, T, T): what each head adds to its scores for each distance."""
        position = torch.arange(length, device=self.q.weight.device)
        distance = position[None, :] - position[:, None]  # key - query
        ranges = (
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        )
        bucket = relative_position_bucket(distance, self.bidirectional, *ranges)
        return rearrange(self.relative_attention_bias(bucket), "T S H -> 1 H T S")

    def forward(self, x, source, bias):
        """x (B, T, E) looks at source (B, S, E), itself in self-attention; bias broadcasts to (B, H, T, S)."""
        q, k, v = (
            self.q(x),
            self.k(source),
            self.v(source),
        )  # (B, T, inner), and twice (B, S, inner)
        q, k, v = (rearrange(y, "B T (H d) -> B H T d", H=self.config.num_heads) for y in (q, k, v))
        scores = q @ k.transpose(-1, -2) + bias  # (B, H, T, S)
        weights = scores.float().softmax(-1).to(v.dtype)  # (B, H, T, S)
        return self.o(rearrange(weights @ v, "B H T d -> B T (H d)"))


def mask_bias(bias, mask):
    """Hide the keys where `mask`, which broadcasts to bias, is False."""
    return bias.masked_fill(
        ~mask, torch.finfo(bias.dtype).min
    )  # not -inf: the null caption, with no key at all, would be NaN


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated = config.feed_forward_proj == "gated-gelu"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            self.add_module(name, nn.Linear(config.d_model, config.d_ff, bias=False))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        return self.wo(
            F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
            if self.gated
            else F.relu(self.wi(x))
        )


def rms_norm(config):
    """LayerNorm without the mean and without the bias. Its variance is in fp32: T5's residual stream grows to thousands."""
    return nn.RMSNorm(config.d_model, config.layer_norm_epsilon)


def residual(config, **part):
    """The part and the norm of x + part(norm(x)), by their names in the checkpoints, whose the capitals are."""
    return nn.ModuleDict(part | {"layer_norm": rms_norm(config)})


class T5Encoder(nn.Module):
    """Its state dict has exactly the encoder keys of a published checkpoint."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        layer = lambda first: nn.ModuleList(
            [
                residual(
                    config, SelfAttention=Attention(config, owns_bias=first, bidirectional=True)
                ),
                residual(config, DenseReluDense=FeedForward(config)),
            ]
        )
        blocks = nn.ModuleList(
            nn.ModuleDict({"layer": layer(i == 0)}) for i in range(config.num_layers)
        )
        self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": rms_norm(config)})

    def forward(self, ids, mask):
        """ids (B, T) int64, mask (B, T) bool, True = real token -> (B, T, E), zero where padded."""
        x = self.shared(ids)  # (B, T, E), not scaled by sqrt(E)
        owner = (
            self.encoder.block[0].layer[0].SelfAttention
        )  # of the only table of biases; every block adds it
        bias = owner.position_bias(ids.shape[1])  # (1, H, T, T)
        bias = mask_bias(bias, mask[:, None, None, :])  # (B, H, T, T)
        for block in self.encoder.block:
            attention, mlp = block.layer
            h = attention.layer_norm(x)  # (B, T, E)
            x = x + attention.SelfAttention(h, h, bias)
            x = x + mlp.DenseReluDense(mlp.layer_norm(x))
        return self.encoder.final_layer_norm(x).masked_fill(~mask[:, :, None], 0.0)


class TextTokenizer:
    """Text to ids with a SentencePiece model: pad 0, eos 1 at the end, unknown 2."""

    def __init__(self, path):
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise ValueError(f"{path} is not a SentencePiece model; download it again") from None
        if (special := (self.pieces.pad_id(), self.pieces.eos_id(), self.pieces.unk_id())) != (
            PAD,
            EOS,
            UNK,
        ):
            raise ValueError(f"{path} has pad, eos, unk = {special}; T5's are {(PAD, EOS, UNK)}")

    def encode(self, texts, max_length=MAX_TOKENS):
        """-> ids (B, T) int64, mask (B, T) bool. An empty text is an all-False row: the null caption."""
        if isinstance(texts, str):
            raise ValueError(f"encode takes a list of texts, not the one text {texts!r}")
        rows = self.pieces.encode(list(texts))
        if (longest := max(map(len, rows), default=0) + 1) > max_length:
            warnings.warn(f"a caption of {longest} tokens was cut to {max_length}", stacklevel=2)
        # T5 closes every text with eos and was trained so; leaving it out moves all embeddings.
        rows = [row[: max_length - 1] + [EOS] if row else [] for row in rows]
        width = max([1, *map(len, rows)])
        ids = torch.tensor(
            [row + [PAD] * (width - len(row)) for row in rows], dtype=torch.int64
        ).reshape(-1, width)
        return ids, ids != PAD  # no text encodes to the pad


class FrozenT5:
    """Captions in, embeddings and mask out. Not an nn.Module: a model that holds one must not train, count or save it."""

    def __init__(self, encoder, tokenizer, fingerprint=""):
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer, self.fingerprint = tokenizer, fingerprint
        self.width, self.device = encoder.config.d_model, encoder.shared.weight.device

    @torch.no_grad()
    def __call__(self, texts, max_length=MAX_TOKENS):
        """B texts -> embeddings (B, T, E), zero where padded, and mask (B, T) bool."""
        ids, mask = (tensor.to(self.device) for tensor in self.tokenizer.encode(texts, max_length))
        return self.encoder(ids, mask).float(), mask
