"""Load a T5 text encoder from the files that Hugging Face publishes.

    from minimuse.plumbing.t5_files import load_t5
    text = load_t5("t5-toy")                  # a name that ships with minimuse, or a directory
    embeddings, mask = text(["a red apple"])

A directory holds `config.json`, `spiece.model`, and the weights as `model.safetensors` or
`pytorch_model.bin`, in one file or in several with an index. Only the encoder half is read. Each
problem is a ValueError or FileNotFoundError that names the file and the remedy.
"""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from minimuse.datasets.progress import bar
from minimuse.plumbing.arguments import check_paths
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.initial_weights import WithoutInitialWeights
from minimuse.plumbing.places import shipped
from minimuse.t5_frozen import MAX_TOKENS, FrozenT5, T5Config, T5Encoder, TextTokenizer

# Names of decoder tensors in a checkpoint begin so. The decoder is never read.
DECODER_PREFIXES = ("decoder.", "lm_head.")
BILLION = 10**9


@in_usual_state
def load_t5(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> FrozenT5:
    """Load the text encoder that ships under this name, or the one in this directory.

    The default `dtype` is float32, or bfloat16 from a billion parameters on: XXL then takes 10 GB.
    float16 is refused, because the inner values of T5's MLP exceed its largest number, 65504.
    """
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(
            f"dtype is {dtype!r}; take torch.float32 or torch.bfloat16 (in float16, which ends at "
            "65504, the inner values of T5's MLP overflow)"
        )
    directory = find_t5(name)
    config_path, pieces_path, *weight_paths = t5_paths(directory)
    config = read_t5_config(config_path)
    tokenizer = TextTokenizer(pieces_path)
    pieces = tokenizer.pieces.get_piece_size()
    if pieces > config.vocab_size:
        raise ValueError(
            f"{directory}: {pieces} pieces in spiece.model, "
            f"vocab_size {config.vocab_size} in config.json"
        )
    # On the meta device tensors have a shape and no memory. load_state_dict(assign=True) then puts
    # the file's tensors in their place, without a copy.
    with torch.device("meta"), WithoutInitialWeights():
        encoder = T5Encoder(config)
    if dtype is None:
        size = sum(p.numel() for p in encoder.parameters())
        dtype = torch.bfloat16 if size > BILLION else torch.float32
    weights = read_weights(directory, weight_paths, encoder.state_dict(), dtype, device)
    encoder.load_state_dict(weights, assign=True)
    encoder.eval().requires_grad_(False)
    return FrozenT5(encoder, tokenizer, fingerprint_of(weight_paths))


class LazyT5:
    """A text encoder whose weights are loaded when it embeds the first caption.

    Most stages of a training only need to know which encoder it is, and T5-XXL takes 10 GB. A
    damaged file is found at once: all is checked but the values. Otherwise like `FrozenT5`.
    """

    def __init__(self, name: str | Path, device: str | torch.device = "cpu"):
        self.name = name
        self.device = device
        # On the meta device a tensor has no values, so none are read.
        known = load_t5(name, "meta")
        self.width = known.width
        self.fingerprint = known.fingerprint
        self.dtype = known.dtype
        self.loaded: FrozenT5 | None = None

    def __call__(
        self, texts: Sequence[str], max_length: int = MAX_TOKENS
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed texts: see `FrozenT5`."""
        if self.loaded is None:
            self.loaded = load_t5(self.name, self.device)
        return self.loaded(texts, max_length)


def t5_paths(directory: Path) -> list[Path]:
    """The files of a text encoder: config.json, spiece.model and those of the weights."""
    paths = [directory / "config.json", directory / "spiece.model", *weight_files(directory)]
    for path in paths:
        if not path.is_file():
            needed = ", ".join(p.name for p in paths)
            raise FileNotFoundError(f"{path} is missing; the directory of a T5 holds {needed}")
    return paths


def find_t5(name: str | Path) -> Path:
    """The directory of a text encoder that ships with minimuse, or the directory of this name."""
    check_paths(t5=name)
    return shipped(name, "spiece.model") or Path(name)


def read_t5_config(path: Path) -> T5Config:
    """The encoder's settings from a T5 checkpoint's config.json; other keys are ignored."""
    try:
        values = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from None
    wrong = []
    for field in fields(T5Config):
        value = values.get(field.name, field.default)
        if type(value) is not field.type or (field.type is int and not 0 < value < 2**31):
            wrong.append(field.name)
    if wrong:
        raise ValueError(
            f"{path} lacks {', '.join(wrong)}, or has values there that no T5's config.json has"
        )
    known = {f.name: values[f.name] for f in fields(T5Config) if f.name in values}
    try:
        return T5Config(**known)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def weight_files(directory: Path) -> list[Path]:
    """The file with a checkpoint's weights, or those of its shards that hold encoder tensors."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            return shards_in(index)
    raise FileNotFoundError(
        f"{directory} has no model.safetensors and no pytorch_model.bin, whole or in shards; "
        "give the directory that has them (--t5)"
    )


def shards_in(index: Path) -> list[Path]:
    """The shards that an index.json names for the encoder's tensors, in order."""
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
        shards = {
            shard for name, shard in shard_of.items() if not name.startswith(DECODER_PREFIXES)
        }
        # Path(...).name drops folders, so that an index cannot point outside its own directory.
        return [index.parent / Path(shard).name for shard in sorted(shards)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({error!r}); download it again") from None


def encoder_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) for each of a file's tensors that does not belong to the decoder."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    if not name.startswith(DECODER_PREFIXES):
                        yield name, file.get_tensor(name)
        elif zipfile.is_zipfile(path):
            # weights_only: no code in the file is run. mmap: a tensor is read when it is used.
            state = torch.load(path, "cpu", weights_only=True, mmap=True)
            for name, tensor in state.items():
                if not name.startswith(DECODER_PREFIXES):
                    yield name, tensor
        else:
            raise OSError(
                "no zip archive; if it is from before PyTorch 1.6, "
                "load and save it with a newer one"
            )
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged or cut short ({reason}); download it again") from None


def read_weights(
    directory: Path,
    files: list[Path],
    expected: dict[str, torch.Tensor],
    dtype: torch.dtype,
    device: str | torch.device,
) -> dict[str, torch.Tensor]:
    """Read the encoder's tensors, one after the other, and check names and shapes.

    `expected` is the state dict of an encoder of the right size; its values are used for shapes.
    """
    weights = {}
    for file in files:
        for name, tensor in bar(encoder_tensors(file), "reading text encoder", "tensors"):
            weights[name] = tensor.to(device, dtype)
    # The embedding has two names; some files have one of them, some both.
    second_name = weights.pop("encoder.embed_tokens.weight", None)
    if second_name is not None:
        weights.setdefault("shared.weight", second_name)
    for name in expected:
        if name not in weights:
            reason = "it has a decoder only"
            if weights:
                reason = "is it a T5 of the size that config.json says?"
            raise ValueError(f"{directory} lacks {name}; {reason}")
    for name, tensor in weights.items():
        if name not in expected:
            raise ValueError(
                f"{directory} has {name}, which no T5 encoder of config.json's size has"
            )
        shape, expected_shape = tuple(tensor.shape), tuple(expected[name].shape)
        if shape != expected_shape:
            raise ValueError(
                f"{directory}: {name} is {shape}, config.json asks for {expected_shape}"
            )
    embedding = weights["shared.weight"]
    if not embedding.is_meta and not embedding.any():
        raise ValueError(
            f"{directory}: shared.weight is all zero, a faulty conversion; take another copy"
        )
    return weights


def fingerprint_of(files: list[Path]) -> str:
    """Twelve hex digits of the files' SHA-256: which encoder a model was trained with."""
    digest = hashlib.sha256()
    for piece in bar(pieces_of(files), "checking text encoder", "MiB"):
        digest.update(piece)
    return digest.hexdigest()[:12]


def pieces_of(files: list[Path]) -> Iterator[bytes]:
    """The contents of all files, a MiB at a time: XXL's files are large."""
    for path in files:
        with open(path, "rb") as file:
            yield from iter(partial(file.read, 2**20), b"")
