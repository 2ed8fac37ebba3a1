"""The frozen text encoder: T5, from the characters of a caption to one vector per token.

Muse does not learn to read. It takes the encoder half of a T5 that somebody else trained
on text alone, freezes it, and lets the image transformer look at its output (Muse paper,
section 2.1). This file is that encoder, the SentencePiece tokenizer before it, and the
loader. Module names are those of the published Hugging Face checkpoints, so that T5 v1.1
(and v1.0) from small to XXL load without renaming a key; `data/t5-toy` is one of a few
megabytes that `data/t5_pretrain.py` trained.

    python -c "from minimuse.t5_frozen import FrozenT5; print(FrozenT5.load('data/t5-toy')(['a red apple']))"

Papers: T5 (1910.10683), section 2.1; the gated MLP of v1.1 is 2002.05202.
Left out: the decoder (data/t5_pretrain.py has one) and dropout (the encoder is frozen).
Letters: B batch, T text tokens, S tokens attended to, E text width, H heads.
"""

import hashlib
import json
import math
import warnings
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
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
        mlp = self.feed_forward_proj
        if mlp not in ("relu", "gated-gelu"):
            raise ValueError(f"feed_forward_proj is {mlp!r}; T5 has 'relu' (v1.0) or 'gated-gelu' (v1.1)")

    @property
    def inner_width(self):
        return self.num_heads * self.d_kv  # need not be d_model: 384 for 512 in v1.1 small

    @classmethod
    def from_json(cls, path):
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing; {path.parent} is not the directory of a T5") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); download it again") from None
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; is it the config.json of a T5?")
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


class RMSNorm(nn.Module):
    """LayerNorm without the mean and without the bias."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        # The variance in fp32: T5's residual stream grows to thousands, whose squares bf16 sums badly.
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (x * scale).to(self.weight.dtype)


def relative_position_bucket(distance, bidirectional, num_buckets, max_distance):
    """The bucket of each `distance` = key position - query position (T5 paper, section 2.1).

    Half of the buckets hold one distance each, the other half logarithmically wider ranges,
    and the last everything from `max_distance` on. When attention looks both ways, one half
    of all buckets is for keys before the query, the other for keys after it.
    """
    bucket = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        bucket += (distance > 0) * num_buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = num_buckets // 2
    # log(0) below is in the branch that where() discards; clamp keeps it finite all the same.
    octaves = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    wide = exact + (octaves * (num_buckets - exact)).long()
    return bucket + torch.where(distance < exact, distance, wide.clamp(max=num_buckets - 1))


class Attention(nn.Module):
    """Multi-head attention without biases and, as T5 wants it, without the 1/sqrt(d) scale.

    T5 starts from a smaller `q` instead. With the scale a checkpoint still gives plausible
    embeddings, and they are wrong.
    """

    def __init__(self, config, owns_bias, bidirectional):
        super().__init__()
        self.config, self.bidirectional = config, bidirectional
        width, inner = config.d_model, config.inner_width
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        if owns_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def position_bias(self, length):
        """-> (1, H, T, T): what each head adds to its scores for each distance."""
        position = torch.arange(length, device=self.q.weight.device)
        bucket = relative_position_bucket(
            position[None, :] - position[:, None],  # key - query
            self.bidirectional,
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        )
        return rearrange(self.relative_attention_bias(bucket), "T S H -> 1 H T S")

    def forward(self, x, source, bias):
        """x (B, T, E) looks at source (B, S, E), itself in self-attention; bias broadcasts to (B, H, T, S)."""
        q = rearrange(self.q(x), "B T (H d) -> B H T d", H=self.config.num_heads)
        k = rearrange(self.k(source), "B S (H d) -> B H S d", H=self.config.num_heads)
        v = rearrange(self.v(source), "B S (H d) -> B H S d", H=self.config.num_heads)
        scores = q @ k.transpose(-1, -2) + bias             # (B, H, T, S)
        weights = scores.float().softmax(-1).to(v.dtype)    # (B, H, T, S)
        x = rearrange(weights @ v, "B H T d -> B T (H d)")  # (B, T, inner)
        return self.o(x)                                    # (B, T, E)


def mask_bias(bias, mask):
    """Hide the keys where `mask`, which broadcasts to bias, is False.

    Not with -inf: a row without any key, the null caption, would become NaN.
    """
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated = config.feed_forward_proj == "gated-gelu"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            self.add_module(name, nn.Linear(config.d_model, config.d_ff, bias=False))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        if self.gated:
            return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))
        return self.wo(F.relu(self.wi(x)))


class SelfAttentionLayer(nn.Module):
    """x + attention(norm(x)). The capitals of `SelfAttention` are the checkpoints'."""

    def __init__(self, config, owns_bias, bidirectional):
        super().__init__()
        self.SelfAttention = Attention(config, owns_bias, bidirectional)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x, bias):
        h = self.layer_norm(x)
        return x + self.SelfAttention(h, h, bias)


class FeedForwardLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.DenseReluDense = FeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x):
        return x + self.DenseReluDense(self.layer_norm(x))


class EncoderBlock(nn.Module):
    def __init__(self, config, owns_bias):
        super().__init__()
        attention = SelfAttentionLayer(config, owns_bias, bidirectional=True)
        self.layer = nn.ModuleList([attention, FeedForwardLayer(config)])

    def forward(self, x, bias):
        return self.layer[1](self.layer[0](x, bias))


class T5Encoder(nn.Module):
    """Its state dict has exactly the encoder keys of a published checkpoint."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        blocks = nn.ModuleList(EncoderBlock(config, owns_bias=i == 0) for i in range(config.num_layers))
        norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": norm})

    def forward(self, ids, mask):
        """ids (B, T) int64, mask (B, T) bool, True = real token -> (B, T, E), zero where padded."""
        x = self.shared(ids)                                # (B, T, E), not scaled by sqrt(E)
        # Block 0 owns the only table of position biases; every block adds it.
        attention = self.encoder.block[0].layer[0].SelfAttention
        bias = attention.position_bias(ids.shape[1])        # (1, H, T, T)
        bias = mask_bias(bias, mask[:, None, None, :])      # (B, H, T, T)
        for block in self.encoder.block:
            x = block(x, bias)                              # (B, T, E)
        x = self.encoder.final_layer_norm(x)                # (B, T, E)
        return x.masked_fill(~mask[:, :, None], 0.0)        # (B, T, E)


def initialize_weights(model, config, generator):
    """T5's initialisation, for an encoder, a decoder or both."""
    narrow = config.d_model**-0.5
    std = dict.fromkeys(("k", "v", "wi", "wi_0", "wi_1", "relative_attention_bias"), narrow)
    std |= {"shared": 1.0, "o": config.inner_width**-0.5, "wo": config.d_ff**-0.5}
    std |= {"q": narrow * config.d_kv**-0.5}  # the 1/sqrt(d) that attention leaves out
    for name, parameter in model.named_parameters():
        module = name.split(".")[-2]
        if module.endswith("layer_norm"):
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=std[module], generator=generator)


class Tokenizer:
    """Text to ids with a SentencePiece model: pad 0, eos 1 at the end, unknown 2."""

    def __init__(self, path):
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; copy the T5's SentencePiece model there")
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise ValueError(f"{path} is not a SentencePiece model; download it again") from None
        special = (self.pieces.pad_id(), self.pieces.eos_id(), self.pieces.unk_id())
        if special != (PAD, EOS, UNK):
            raise ValueError(f"{path} has pad, eos, unk = {special}; T5's are {(PAD, EOS, UNK)}")

    def encode(self, texts, max_length=MAX_TOKENS):
        """-> ids (B, T) int64, mask (B, T) bool. An empty text is an all-False row: the null caption."""
        if isinstance(texts, str):
            raise ValueError(f"encode takes a list of texts, not the one text {texts!r}")
        # T5 closes every text with eos and was trained so; leaving it out moves all embeddings.
        rows = [row + [EOS] if row else [] for row in self.pieces.encode(list(texts))]
        longest = max((len(row) for row in rows), default=0)
        if longest > max_length:
            warnings.warn(f"a caption of {longest} tokens was cut to {max_length}", stacklevel=2)
            rows = [row[: max_length - 1] + [EOS] if len(row) > max_length else row for row in rows]
        width = max(1, min(longest, max_length))
        rows = [row + [PAD] * (width - len(row)) for row in rows]
        ids = torch.tensor(rows, dtype=torch.int64).reshape(-1, width)
        return ids, ids != PAD  # no text encodes to the pad


def read_weights(path, dtype, device):
    """The encoder's tensors, one at a time: a decoder in the same file is never read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; put a T5 checkpoint's model.safetensors there")
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.startswith(("decoder.", "lm_head."))]
            weights = {name: file.get_tensor(name).to(device, dtype) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); download it again") from None
    if "encoder.embed_tokens.weight" in weights:  # the embedding's second name; some files have both
        weights.setdefault("shared.weight", weights.pop("encoder.embed_tokens.weight"))
    return weights


def check_weights(path, weights, expected):
    """Every key consumed, every shape right, the embedding not zero: else one line that says which."""
    for name in expected:
        if name not in weights:
            raise ValueError(f"{path} lacks {name}; is it a T5 of the size that config.json says?")
    for name, tensor in weights.items():
        if name not in expected:
            raise ValueError(f"{path} has {name}, which no T5 encoder of config.json's size has")
        if tensor.shape != expected[name].shape:
            asked = tuple(expected[name].shape)
            raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}, config.json asks for {asked}")
    if not weights["shared.weight"].any():
        raise ValueError(f"{path}: shared.weight is all zero, a faulty conversion; take another copy")


class FrozenT5:
    """Captions in, embeddings and mask out. No parameter of it ever gets a gradient.

    Deliberately not an nn.Module: a model that holds one must neither train it, nor count it
    among its parameters, nor write it into its checkpoints.
    """

    def __init__(self, encoder, tokenizer, weights_path):
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.weights_path = weights_path
        self.width = encoder.config.d_model
        self.device = encoder.shared.weight.device

    @classmethod
    def load(cls, directory, device="cpu", dtype=torch.float32):
        """A directory with config.json, spiece.model and model.safetensors."""
        directory = Path(directory)
        if dtype not in (torch.float32, torch.bfloat16):  # T5's MLP overflows in float16
            raise ValueError(f"dtype is {dtype}; T5 needs torch.bfloat16 or torch.float32")
        config = T5Config.from_json(directory / "config.json")
        tokenizer = Tokenizer(directory / "spiece.model")
        pieces = tokenizer.pieces.get_piece_size()
        if pieces > config.vocab_size:
            raise ValueError(f"{directory}: {pieces} pieces in spiece.model, vocab_size {config.vocab_size} in config.json")
        with torch.device("meta"):  # shapes without memory: the file's tensors are put in, not copied
            encoder = T5Encoder(config)
        path = directory / "model.safetensors"
        weights = read_weights(path, dtype, device)
        check_weights(path, weights, encoder.state_dict())
        encoder.load_state_dict(weights, assign=True)
        return cls(encoder, tokenizer, path)

    @cached_property
    def fingerprint(self):
        """Twelve hex digits of the weights' SHA-256: the encoder that another model was trained with."""
        digest = hashlib.sha256()
        with open(self.weights_path, "rb") as file:
            while chunk := file.read(2**20):  # XXL's file is larger than most memories
                digest.update(chunk)
        return digest.hexdigest()[:12]

    @torch.no_grad()
    def __call__(self, texts, max_length=MAX_TOKENS):
        """B texts -> embeddings (B, T, E), zero where padded, and mask (B, T) bool."""
        ids, mask = self.tokenizer.encode(texts, max_length)
        ids, mask = ids.to(self.device), mask.to(self.device)
        return self.encoder(ids, mask), mask
