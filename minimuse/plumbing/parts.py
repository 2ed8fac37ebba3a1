"""The five trained parts of a model: build them, save them, load them.

A model directory holds config.json and one NAME.safetensors for each part; a part of more than
512 MiB has other files beside that (`pieces.py`). If config.json names another model that ships as
its "rest", the parts that are not there are those of the other one.
"""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from minimuse.data import ASSETS
from minimuse.maskgit import MaskGit
from minimuse.plumbing import config as configs
from minimuse.plumbing.arguments import check_dtype, check_paths, described
from minimuse.plumbing.initial_weights import WithoutInitialWeights
from minimuse.plumbing.pieces import load_pieces, save_in_pieces
from minimuse.plumbing.places import located, shipped
from minimuse.plumbing.ranges import check_arguments
from minimuse.superres import SuperRes
from minimuse.vq import Decoder, ImageTokenizer

PARTS = ("tokenizer", "tokenizer_hi", "base", "superres", "decoder")
TOKEN_PARTS = ("base", "superres")  # these train on tokens, the others on images

# In an int8 file, the tensor NAME is stored as integers, and NAME/scale as one factor for each row.
SCALE = "/scale"


def build(part: str, config: configs.Config, text_width: int) -> nn.Module:
    """Build one part, untrained. `text_width` is E, the width of the text embeddings."""
    low, high = config.tokenizer, config.tokenizer_hi
    if part == "base":
        return MaskGit(config.base, low.codes, low.grid, text_width)
    if part == "superres":
        return SuperRes(config.superres, low.codes, low.grid, high.codes, high.grid, text_width)
    # Convolutions on a CPU are faster with channels in the last dimension.
    if part == "decoder":
        return Decoder(config.decoder).to(memory_format=torch.channels_last)
    if part not in ("tokenizer", "tokenizer_hi"):
        raise ValueError(f"unknown part {part!r}; there is {', '.join(PARTS)}")
    tokenizer = ImageTokenizer(low if part == "tokenizer" else high)
    return tokenizer.to(memory_format=torch.channels_last)


def find_model(name: str | Path) -> Path:
    """Return the directory of a model: `name` is a directory, or a model that ships in data/."""
    check_paths(name=name)
    path = Path(name).expanduser()
    if str(name).strip() and (path / "config.json").is_file():
        return path
    if path.is_file():
        raise FileNotFoundError(f"{str(name)!r} is a file; give the directory of a model")
    directory = shipped(name, "base.safetensors")
    if directory is not None:
        return directory
    names = sorted(path.parent.name for path in ASSETS.glob("*/base.safetensors"))
    raise FileNotFoundError(
        f"no model {str(name)!r}; "
        f"give a directory with a config.json, or one of: {', '.join(names)}"
    )


def read_about(directory: Path) -> dict[str, Any]:
    """Read config.json: "config" (settings), "data", "seed", "text" (encoder name and fingerprint).

    Newer ones have a "vocabulary", too (see `plumbing/vocabulary.py`), and a distilled model that
    ships has a "rest" (see `part_file`).
    Settings that an older version did not know get today's defaults, and paths are where data and
    text encoder lie now. A FileNotFoundError or ValueError names the file.
    """
    path = directory / "config.json"
    try:
        about = json.loads(path.read_text())
        check_about(about)
        config = configs.from_json(about["config"])
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing; {directory} is not a model directory: give the --out of a training"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not a model's config.json ({error})") from None
    # Through JSON, so that tuples are lists, as they are in a file.
    about["config"] = json.loads(json.dumps(asdict(config)))
    return located(directory, about)


def check_about(about: Any) -> None:
    """Raise a ValueError if config.json lacks an entry that is not a setting."""
    if not isinstance(about, dict):
        raise ValueError("it holds no JSON object")
    for key in ("config", "data", "seed", "text"):
        if key not in about:
            raise ValueError(f"{key} is missing")
    check_arguments(seed=about["seed"])
    for key in ("name", "fingerprint"):
        if not isinstance(about["text"], dict) or key not in about["text"]:
            raise ValueError(f"text.{key} is missing")
    if not isinstance(about.get("vocabulary", ""), str):
        raise ValueError("vocabulary is not one text")
    check_rest(about)
    ways = about.get("ways", {})
    if not isinstance(ways, dict):
        raise ValueError(f"ways is {ways!r}")
    for place in (about["data"], about["text"]["name"], *ways.values()):
        if not isinstance(place, str):
            raise ValueError(f"{place!r} is no name and no path")


def check_rest(about: dict[str, Any]) -> None:
    """Raise a ValueError if config.json names a model for the rest that does not ship."""
    if "rest" in about and shipped(str(about["rest"]), "config.json") is None:
        raise ValueError(f"rest is {about['rest']!r}, and no such model ships with minimuse")


def check_model(config: Any, parts: Any, about: Any) -> None:
    """Raise a ValueError if a `Muse` cannot be made of these: settings, parts, and config.json."""
    if not isinstance(config, configs.Config):
        raise ValueError(
            f"config is {described(config)}, not a Config; plumbing.config.from_json makes one"
        )
    lacking = [name for name in PARTS if name not in parts]
    if lacking:
        raise ValueError(f"parts lacks {', '.join(lacking)}; a model has {', '.join(PARTS)}")
    for name, tokenizer in (("base", "tokenizer"), ("superres", "tokenizer_hi")):
        settings = getattr(config, tokenizer)
        own = parts[tokenizer].config
        if (own.codes, own.grid) != (settings.codes, settings.grid):
            raise ValueError(
                f"{tokenizer} has {own.codes} codes in {own.grid}x{own.grid} tokens, config says "
                f"{settings.codes} in {settings.grid}x{settings.grid}: it is of another model"
            )
        if parts[name].mask_id != settings.codes:
            raise ValueError(
                f"{name} knows {parts[name].mask_id} codes, and {tokenizer} has "
                f"{settings.codes}: it is of another model"
            )
    try:
        check_about(about if isinstance(about, dict) else None)
    except ValueError as error:
        raise ValueError(f"about is not that of a model ({error}); see its config.json") from None


def save_part(
    directory: Path, name: str, part: nn.Module, dtype: torch.dtype = torch.float32
) -> None:
    """Write NAME.safetensors, with every tensor in this dtype.

    torch.int8 quantizes the matrices and keeps all other tensors in float16. Tokenizers are kept in
    float16 as a whole: a slightly different encoder would give other ids than the transformers were
    trained on.
    """
    check_dtype(dtype)
    tensors = {}
    for key, tensor in part.state_dict().items():
        if dtype != torch.int8:
            tensors[key] = tensor.to(dtype)
        elif name.startswith("tokenizer") or tensor.dim() < 2:
            tensors[key] = tensor.to(torch.float16)
        else:
            tensors[key], tensors[key + SCALE] = quantize(tensor)
    save_in_pieces(directory / f"{name}.safetensors", tensors)


def quantize(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row (index of the first dimension) to multiples of a 127th of its largest value.

    Returns int8 integers of the tensor's shape, and float scales (rows, 1, ...).
    """
    other_dims = tuple(range(1, tensor.dim()))
    largest = tensor.abs().amax(dim=other_dims, keepdim=True)
    scale = largest.clamp(min=1e-9) / 127
    return (tensor / scale).round().to(torch.int8), scale


def dequantize(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return all tensors of a file in float32, quantized ones multiplied by their scales.

    A ValueError names a tensor that is damaged.
    """
    state = {}
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{key} is not finite")
        if key.endswith(SCALE):
            if key.removesuffix(SCALE) not in tensors:
                raise ValueError(f"{key} is the scale of nothing")
            continue
        scale = tensors.get(key + SCALE)
        check_scale(key, tensor, scale)
        # int8 * float32 gives float32.
        state[key] = tensor.float() if scale is None else tensor * scale.float()
    return state


def check_scale(key: str, tensor: torch.Tensor, scale: torch.Tensor | None) -> None:
    """Raise a ValueError unless a tensor is of int8 with a scale for each row, or of floats."""
    if scale is None:
        if not tensor.is_floating_point():
            raise ValueError(f"{key} is of {tensor.dtype} without {key}{SCALE}")
        return
    rows = (len(tensor), *[1] * (tensor.dim() - 1))
    if tensor.dtype != torch.int8 or tuple(scale.shape) != rows:
        raise ValueError(
            f"{key} is of {tensor.dtype}, and {key}{SCALE} is {tuple(scale.shape)}; "
            f"torch.int8 and {rows} belong together"
        )


def part_file(directory: Path, name: str) -> Path:
    """The file of a part: in the directory of the model, or in that of its "rest"."""
    path = directory / f"{name}.safetensors"
    if path.is_file():
        return path
    rest = read_about(directory).get("rest")
    return path if rest is None else shipped(rest, "config.json") / path.name


def load_part(directory: Path, name: str, config: configs.Config, text_width: int) -> nn.Module:
    """Build a part and load NAME.safetensors into it. Errors name the file and the remedy."""
    path = part_file(directory, name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; "
            f"make it with: minimuse train {name.replace('_', '-')} "
            f"--out {shlex.quote(str(directory))}"
        )
    # Some modules call torch.randn: fork_rng keeps the caller's random state.
    with torch.random.fork_rng(devices=[]), WithoutInitialWeights():
        part = build(name, config, text_width)
    try:
        state = dequantize(load_pieces(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); train or copy it again") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({error}); train or copy it again"
        ) from None
    try:
        part.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"{path} does not fit config.json ({reason}); it belongs to another model"
        ) from None
    return part
