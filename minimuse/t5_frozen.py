"""The frozen text encoder: T5, from the characters of a caption to one vector per token.

Muse does not learn to read. It takes the encoder half of a T5 that was trained on text alone, freezes it, and looks at its output
(Muse paper, section 2.1). Module names are those of the published Hugging Face checkpoints, so that T5 v1.1 (and v1.0) from small to
XXL load without renaming a key; `data/t5-toy` is one of a few megabytes that `data/t5_pretrain.py` trained.

    python -c "from minimuse.t5_frozen import FrozenT5; print(FrozenT5.load('data/t5-toy')(['a red apple']))"
Papers: T5 (1910.10683), section 2.1; the gated MLP of v1.1 is 2002.05202. Left out: the decoder, and dropout.
Letters: B batch, T text tokens, S tokens attended to, E text width, H heads.
"""

import hashlib
import json
import math
import pickle
import warnings
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import nn

PAD, EOS, UNK = 0, 1, 2
DECODER = (
    "decoder.",
    "lm_head.",
)  # how the names of a checkpoint's other half begin: it is never read
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

    @classmethod
    def from_json(cls, path):
        try:
            values = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not JSON ({error}); download it again") from None
        strange = lambda value, kind: (
            type(value) is not kind or (kind is int and not 0 < value < 2**31)
        )
        if wrong := [f.name for f in fields(cls) if strange(values.get(f.name, f.default), f.type)]:
            raise ValueError(
                f"{path} lacks {', '.join(wrong)}, or says something else there than a T5's config.json"
            )
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


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


def norm(config):
    """LayerNorm without the mean and without the bias. Its variance is in fp32: T5's residual stream grows to thousands."""
    return nn.RMSNorm(config.d_model, config.layer_norm_epsilon)


def residual(config, **part):
    """The part and the norm of x + part(norm(x)), by their names in the checkpoints, whose the capitals are."""
    return nn.ModuleDict(part | {"layer_norm": norm(config)})


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
        self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": norm(config)})

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


class Tokenizer:
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


def weight_files(directory):
    """The file of a checkpoint's weights, or the shards of it that have some of the encoder's."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return [directory / name]
        if (index := directory / f"{name}.index.json").is_file():
            try:
                shards = {
                    shard
                    for tensor, shard in json.loads(index.read_text())["weight_map"].items()
                    if not tensor.startswith(DECODER)
                }
                return [
                    directory / Path(shard).name for shard in sorted(shards)
                ]  # its name alone: an index cannot lead out of here
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index} is damaged ({error!r}); download it again") from None
    raise FileNotFoundError(
        f"{directory} has no model.safetensors and no pytorch_model.bin, whole or in shards; give the directory that has them (--t5)"
    )


def tensors(path):
    """(name, tensor) of each of a file's tensors that is not a decoder's."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                yield from (
                    (name, file.get_tensor(name))
                    for name in file.keys()
                    if not name.startswith(DECODER)
                )
        elif zipfile.is_zipfile(
            path
        ):  # mmap: read when it is looked at; weights_only: no code in it is run
            state = torch.load(path, "cpu", weights_only=True, mmap=True)
            yield from ((name, x) for name, x in state.items() if not name.startswith(DECODER))
        else:
            raise OSError(
                "no zip archive; if it is from before PyTorch 1.6, load and save it with a newer one"
            )
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({' '.join(str(error).split())[:200]}); download it again"
        ) from None


def read_weights(path, files, expected, dtype, device):
    """The tensors of an encoder whose state dict looks like `expected`, from files in the directory `path`, one after the other."""
    weights = {name: x.to(device, dtype) for file in files for name, x in tensors(file)}
    if (
        "encoder.embed_tokens.weight" in weights
    ):  # the embedding's second name; some files have both
        weights.setdefault("shared.weight", weights.pop("encoder.embed_tokens.weight"))
    for name in [*expected, *weights]:
        if name not in weights:
            raise ValueError(
                f"{path} lacks {name}; {'is it a T5 of the size that config.json says?' if weights else 'it has a decoder alone'}"
            )
        if name not in expected:
            raise ValueError(f"{path} has {name}, which no T5 encoder of config.json's size has")
        if (here := tuple(weights[name].shape)) != (asked := tuple(expected[name].shape)):
            raise ValueError(f"{path}: {name} is {here}, config.json asks for {asked}")
    if not weights["shared.weight"].any():
        raise ValueError(
            f"{path}: shared.weight is all zero, a faulty conversion; take another copy"
        )
    return weights


class FrozenT5:
    """Captions in, embeddings and mask out. Not an nn.Module: a model that holds one must not train, count or save it."""

    def __init__(self, encoder, tokenizer, weight_paths):
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer, self.weight_paths = tokenizer, weight_paths
        self.width, self.device = encoder.config.d_model, encoder.shared.weight.device

    @classmethod
    def load(cls, directory, device="cpu", dtype=None):
        """A directory with config.json, spiece.model, and weights as model.safetensors or pytorch_model.bin, whole or in shards; by
        default in float32, or in bfloat16 from a billion parameters on: XXL then fits into 11 GB."""
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(
                f"dtype is {dtype}, in which the inner values of T5's MLP overflow (float16 ends at 65504); take torch.bfloat16"
            )
        paths = [Path(directory) / name for name in ("config.json", "spiece.model")] + weight_files(
            Path(directory)
        )
        if missing := [path for path in paths if not path.is_file()]:
            raise FileNotFoundError(
                f"{missing[0]} is missing; the directory of a T5 holds {', '.join(p.name for p in paths)}"
            )
        config, tokenizer = T5Config.from_json(paths[0]), Tokenizer(paths[1])
        if (pieces := tokenizer.pieces.get_piece_size()) > config.vocab_size:
            raise ValueError(
                f"{directory}: {pieces} pieces in spiece.model, vocab_size {config.vocab_size} in config.json"
            )
        with torch.device(
            "meta"
        ):  # shapes without memory: the file's tensors are put in, not copied
            encoder = T5Encoder(config)
        dtype = dtype or (
            torch.bfloat16 if sum(p.numel() for p in encoder.parameters()) > 1e9 else torch.float32
        )
        encoder.load_state_dict(
            read_weights(directory, paths[2:], encoder.state_dict(), dtype, device), assign=True
        )
        return cls(encoder, tokenizer, paths[2:])

    @cached_property
    def fingerprint(self):
        """Twelve hex digits of the weights' SHA-256: the encoder that another model was trained with."""
        digest = hashlib.sha256()
        for path in self.weight_paths:
            with open(path, "rb") as file:
                hashlib.file_digest(
                    file, lambda: digest
                )  # piece by piece: XXL's files are larger than most memories
        return digest.hexdigest()[:12]

    @torch.no_grad()
    def __call__(self, texts, max_length=MAX_TOKENS):
        """B texts -> embeddings (B, T, E), zero where padded, and mask (B, T) bool."""
        ids, mask = (tensor.to(self.device) for tensor in self.tokenizer.encode(texts, max_length))
        return self.encoder(ids, mask).float(), mask
