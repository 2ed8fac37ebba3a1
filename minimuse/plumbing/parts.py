import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from minimuse.data import ASSETS
from minimuse.maskgit import MaskGit
from minimuse.plumbing import config as configs
from minimuse.plumbing.files import save_tensors
from minimuse.superres import SuperRes
from minimuse.vq import Decoder, ImageTokenizer

PARTS = ("tokenizer", "tokenizer_hi", "base", "superres", "decoder")


def build(part: str, config: configs.Config, text_width: int) -> nn.Module:
    """A fresh, untrained part."""
    low, high = config.tokenizer, config.tokenizer_hi
    if part == "base":
        return MaskGit(config.base, low.codes, low.grid, text_width)
    if part == "superres":
        return SuperRes(config.superres, low.codes, low.grid, high.codes, high.grid, text_width)
    if part == "decoder":
        return Decoder(config.decoder).to(memory_format=torch.channels_last)
    return ImageTokenizer(low if part == "tokenizer" else high).to(
        memory_format=torch.channels_last
    )


def find_model(name: str | Path) -> Path:
    """A directory, or the name of a model in data/."""
    for directory in (Path(name), ASSETS / str(name)):
        if (directory / "config.json").is_file():
            return directory
    shipped = ", ".join(sorted(p.parent.name for p in ASSETS.glob("*/base.safetensors")))
    raise FileNotFoundError(
        f"no model {str(name)!r}; give a directory with a config.json, or one of: {shipped}"
    )


def read_about(directory: Path) -> dict:
    """config.json: settings, data, text encoder and its fingerprint."""
    path = directory / "config.json"
    try:
        about = json.loads(path.read_text())
        about["config"] = json.loads(
            json.dumps(asdict(configs.from_json(about["config"])))
        )  # with today's defaults
        about["text"]["name"], about["text"]["fingerprint"], about["data"], about["seed"]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing; {directory} is not a model directory"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a model's config.json ({type(error).__name__}: {error})"
        ) from None
    return about


def save_part(
    directory: Path, name: str, part: nn.Module, dtype: torch.dtype = torch.float32
) -> None:
    """Write NAME.safetensors. torch.int8 keeps a matrix as multiples of a 127th of each row's largest value, and in fp16 all else:
    tokenizers too, since an encoder that is a little different gives other ids than the transformers were trained on."""
    state = {}
    for k, v in part.state_dict().items():
        if whole := dtype == torch.int8 and v.dim() > 1 and not name.startswith("tokenizer"):
            state[f"{k}/scale"] = scale = (
                v.abs().amax(dim=tuple(range(1, v.dim())), keepdim=True).clamp(min=1e-9) / 127
            )
        state[k] = (
            (v / scale).round().to(dtype)
            if whole
            else v.to(torch.float16 if dtype == torch.int8 else dtype)
        )
    save_tensors(directory / f"{name}.safetensors", state)


def load_part(directory: Path, name: str, config: configs.Config, text_width: int) -> nn.Module:
    """Build a part and fill it from NAME.safetensors."""
    path = directory / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; make it with: minimuse train {name.replace('_', '-')} --out {directory}"
        )
    part = build(name, config, text_width)
    try:
        state = load_file(path)
        part.load_state_dict(
            {
                k: v.float() * state.get(f"{k}/scale", 1)
                for k, v in state.items()
                if not k.endswith("/scale")
            }
        )
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({error}); train or copy it again"
        ) from None
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit config.json ({str(error).splitlines()[-1].strip()}); it belongs to another model"
        ) from None
    return part
