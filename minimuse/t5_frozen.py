"""The frozen text encoder: T5, from the characters of a caption to one vector per token.

Muse does not learn to read. It takes the encoder half of a T5 that was trained on text alone,
freezes it, and uses its output (Muse, 2301.00704, section 2.1).

    from minimuse.plumbing.t5_files import load_t5
    text = load_t5("t5-toy")                          # a FrozenT5
    embeddings, mask = text(["a red apple"])          # (1, 4, 256) and (1, 4)

Modules are named as in the checkpoints that Hugging Face publishes, so that T5 v1.1 (and v1.0) from
small to XXL load without renaming a tensor. `t5-toy` ships with minimuse and was trained by
`data/recipes/build_t5.py`.

Papers: T5 (1910.10683), section 2.1; the gated MLP of v1.1 is 2002.05202. Left out: the decoder,
and dropout.
Letters: B batch, T text tokens, S tokens attended to, E text width, H heads, d width of a head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minimuse.plumbing.arguments import check_list, check_texts
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.messages import warn
from minimuse.plumbing.precision import full_precision
from minimuse.plumbing.ranges import check_arguments, check_settings

# T5's special ids: padding, end of a text, unknown piece.
PAD, EOS, UNK = 0, 1, 2
# Longer captions are cut.
MAX_TOKENS = 77


@dataclass(frozen=True)
class T5Config:
    """The fields of a T5 checkpoint's `config.json` that its encoder depends on."""

    vocab_size: int
    d_model: int  # E
    d_kv: int  # d
    d_ff: int
    num_layers: int
    num_heads: int  # H
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"  # the oldest v1.0 files do not say; v1.1 says "gated-gelu"

    def __post_init__(self):
        check_settings(self)
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise ValueError(
                f"feed_forward_proj is {self.feed_forward_proj!r}; "
                "T5 has 'relu' (v1.0) or 'gated-gelu' (v1.1)"
            )


# --- The encoder ---


def relative_position_bucket(
    distance: torch.Tensor, bidirectional: bool, num_buckets: int, max_distance: int
) -> torch.Tensor:
    """The bucket of each distance = key position - query position (T5, section 2.1).

    Half of the buckets hold one distance each. The others hold wider and wider ranges, of equal
    width in the logarithm, up to `max_distance`; all larger distances share the last bucket.
    If attention looks both ways, the first half of all buckets is for keys before the query, and
    the second half for keys after it.
    """
    if bidirectional:
        num_buckets //= 2
        first = (distance > 0) * num_buckets
        distance = distance.abs()
    else:
        first = 0
        distance = (-distance).clamp(min=0)
    exact = num_buckets // 2
    # Distances below `exact` do not use the logarithm. The clamp only avoids log(0).
    log_distance = torch.log(distance.clamp(min=1).float() / exact)
    fraction = log_distance / math.log(max_distance / exact)  # 0 at `exact`, 1 at `max_distance`
    far_bucket = exact + (fraction * (num_buckets - exact)).long()
    far_bucket = far_bucket.clamp(max=num_buckets - 1)
    return first + torch.where(distance < exact, distance, far_bucket)


class Attention(nn.Module):
    """Multi-head attention without biases and, as in T5, without the 1 / sqrt(d) scale.

    Adding the scale by habit gives embeddings that look plausible and are wrong. In T5 one
    attention layer owns the table of relative position biases, which all layers use.
    """

    def __init__(self, config: T5Config, owns_bias: bool, bidirectional: bool):
        super().__init__()
        self.config, self.bidirectional = config, bidirectional
        inner = config.num_heads * config.d_kv  # need not be d_model: 384 for 512 in v1.1 small
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if owns_bias:
            self.relative_attention_bias = nn.Embedding(
                config.relative_attention_num_buckets, config.num_heads
            )

    def position_bias(self, length: int) -> torch.Tensor:
        """-> (1, H, T, T): what each head adds to its scores for each distance."""
        position = torch.arange(length, device=self.q.weight.device)
        distance = position[None, :] - position[:, None]  # (T, T), key - query
        bucket = relative_position_bucket(
            distance,
            self.bidirectional,
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        )
        return rearrange(self.relative_attention_bias(bucket), "T S H -> 1 H T S")

    def forward(self, x: torch.Tensor, source: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x (B, T, E) attends to source (B, S, E) -> (B, T, E).

        In self-attention the source is x. The bias broadcasts to (B, H, T, S).
        """
        H = self.config.num_heads
        q = rearrange(self.q(x), "B T (H d) -> B H T d", H=H)
        k = rearrange(self.k(source), "B S (H d) -> B H S d", H=H)
        v = rearrange(self.v(source), "B S (H d) -> B H S d", H=H)
        scores = q @ k.transpose(-1, -2) + bias  # (B, H, T, S)
        weights = scores.float().softmax(-1).to(v.dtype)  # (B, H, T, S)
        return self.o(rearrange(weights @ v, "B H T d -> B T (H d)"))  # (B, T, E)


def mask_bias(bias: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hide the keys where `mask`, which broadcasts to the bias, is False.

    The lowest number, not -inf: in a row without any key, the null caption, -inf would give NaN.
    """
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)


class FeedForward(nn.Module):
    """The MLP: with ReLU in v1.0, with a GELU that gates a second projection in v1.1."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.gated = config.feed_forward_proj == "gated-gelu"
        if self.gated:
            self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, E) -> (B, T, E)."""
        if self.gated:
            hidden = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)  # (B, T, d_ff)
        else:
            hidden = F.relu(self.wi(x))  # (B, T, d_ff)
        return self.wo(hidden)


def rms_norm(config: T5Config) -> nn.RMSNorm:
    """A layer norm without mean and bias.

    PyTorch computes the variance in float32, which matters: the values of T5's residual stream grow
    to thousands, and in bfloat16 a sum of their squares would lose most of its digits.
    """
    return nn.RMSNorm(config.d_model, config.layer_norm_epsilon)


def sublayer(config: T5Config, **module: nn.Module) -> nn.ModuleDict:
    """One module and its norm, for x + module(norm(x)), under their names in a checkpoint."""
    return nn.ModuleDict(module | {"layer_norm": rms_norm(config)})


def encoder_block(config: T5Config, owns_bias: bool) -> nn.ModuleDict:
    """Self-attention and MLP, under their names in a checkpoint."""
    attention = Attention(config, owns_bias, bidirectional=True)
    layers = [
        sublayer(config, SelfAttention=attention),
        sublayer(config, DenseReluDense=FeedForward(config)),
    ]
    return nn.ModuleDict({"layer": nn.ModuleList(layers)})


class T5Encoder(nn.Module):
    """T5's encoder. Its state dict has exactly the encoder keys of a published checkpoint."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        blocks = [encoder_block(config, owns_bias=i == 0) for i in range(config.num_layers)]
        self.encoder = nn.ModuleDict(
            {"block": nn.ModuleList(blocks), "final_layer_norm": rms_norm(config)}
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ids (B, T) int64, mask (B, T) bool, True = real -> (B, T, E), zero where padded."""
        x = self.shared(ids)  # (B, T, E), not scaled by sqrt(E)
        # The first block owns the only table of position biases; every block adds it.
        first_attention = self.encoder.block[0].layer[0].SelfAttention
        bias = first_attention.position_bias(ids.shape[1])  # (1, H, T, T)
        bias = mask_bias(bias, mask[:, None, None, :])  # (B, H, T, T)
        for block in self.encoder.block:
            attention, mlp = block.layer
            h = attention.layer_norm(x)  # (B, T, E)
            x = x + attention.SelfAttention(h, h, bias)  # (B, T, E)
            x = x + mlp.DenseReluDense(mlp.layer_norm(x))  # (B, T, E)
        return self.encoder.final_layer_norm(x).masked_fill(~mask[:, :, None], 0.0)


# --- From text to embeddings ---


class TextTokenizer:
    """Text to ids with a SentencePiece model: pad 0, eos 1 at the end, unknown 2."""

    def __init__(self, path: str | Path):
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise ValueError(f"{path} is not a SentencePiece model; download it again") from None
        special = (self.pieces.pad_id(), self.pieces.eos_id(), self.pieces.unk_id())
        if special != (PAD, EOS, UNK):
            raise ValueError(f"{path} has pad, eos, unk = {special}; T5's are {(PAD, EOS, UNK)}")

    def encode(
        self, texts: Sequence[str], max_length: int = MAX_TOKENS
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """B texts -> ids (B, T) int64, mask (B, T) bool, True = real token.

        An empty text is an all-False row, the null caption. A text of more than `max_length` tokens
        is cut, with a warning.
        """
        check_list("texts", texts)
        check_arguments(max_length=max_length)
        rows = [with_eos(row) for row in self.pieces.encode(list(texts))]
        longest = max((len(row) for row in rows), default=0)
        if longest > max_length:
            warn(f"a caption of {longest} tokens was cut to {max_length}")
            rows = [cut(row, max_length) for row in rows]
        T = max(1, min(longest, max_length))
        ids = torch.full((len(rows), T), PAD, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids, ids != PAD  # no text encodes to the pad


def with_eos(row: list[int]) -> list[int]:
    """T5 was trained on texts that end with eos: without it, all embeddings would change."""
    return [*row, EOS] if row else []


def cut(row: list[int], max_length: int) -> list[int]:
    """At most `max_length` tokens, the last of them eos."""
    if len(row) <= max_length:
        return row
    return [*row[: max_length - 1], EOS]


class FrozenT5:
    """A text encoder that is never trained: captions in, embeddings and mask out.

    It takes an encoder, which it only reads, with its tokenizer. `load_t5` reads both from files.
    `fingerprint` is a hash of the weight files: a model stores it, and refuses another encoder than
    the one it was trained with. It is not an nn.Module, so that a model that holds one does not
    train, count or save its weights.
    """

    def __init__(self, encoder: T5Encoder, tokenizer: TextTokenizer, fingerprint: str = ""):
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.width = encoder.config.d_model  # E
        self.device = encoder.shared.weight.device
        self.dtype = encoder.shared.weight.dtype

    @in_usual_state
    @torch.no_grad()
    def __call__(
        self, texts: Sequence[str], max_length: int = MAX_TOKENS
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """B texts -> embeddings (B, T, E) float32, zero where padded, and mask (B, T) bool.

        Computes in the precision of the weights, in training as in drawing.
        """
        check_texts("texts", texts)
        ids, mask = self.tokenizer.encode(texts, max_length)
        ids, mask = ids.to(self.device), mask.to(self.device)
        with full_precision(self.device):
            return self.encoder(ids, mask).float(), mask
