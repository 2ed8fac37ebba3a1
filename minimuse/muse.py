"""Muse, put together: a caption in, a picture out.

    from minimuse import Muse
    muse = Muse.load("toy-shapes")                      # a name in data/, or a directory
    picture = muse.generate("a small red circle on a grey background", seed=0)[0]

caption -> frozen T5 -> base model: 4x4 tokens -> super-resolution: 16x16 tokens -> finetuned decoder ->
pixels. (Grids of the toy; 16x16 and 64x64 in the paper, 2301.00704, figure 3.)

A model directory holds `config.json` and one safetensors file per part; the text encoder stays in its
own directory and is remembered by name and fingerprint. Training is `train.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from minimuse import config as configs
from minimuse.config import Config
from minimuse.data import DATA
from minimuse.decode import Sampling, Step, decode
from minimuse.maskgit import MaskGit
from minimuse.superres import SuperRes
from minimuse.t5_frozen import FrozenT5
from minimuse.transformer import Context
from minimuse.vq import Decoder, Tokenizer

PARTS = ("tokenizer", "tokenizer_hi", "base", "superres", "decoder")


def autocast(device: str | torch.device) -> AbstractContextManager:
    """bf16 where the device is fast at it (CUDA; CPUs with AMX or AVX512-BF16), else fp32."""
    kind = torch.device(device).type
    fast = kind == "cuda" or (kind == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast(kind, torch.bfloat16, enabled=fast)


def build(part: str, config: Config, text_width: int) -> nn.Module:
    """A fresh, untrained part."""
    low, high = config.tokenizer, config.tokenizer_hi
    if part == "base":
        return MaskGit(config.base, low.codes, low.grid, text_width)
    if part == "superres":
        return SuperRes(config.superres, low.codes, low.grid, high.codes, high.grid, text_width)
    if part == "decoder":
        return Decoder(config.decoder).to(memory_format=torch.channels_last)
    return Tokenizer(low if part == "tokenizer" else high).to(memory_format=torch.channels_last)


class Muse:
    """All parts, on one device, ready to draw."""

    def __init__(self, config: Config, text: FrozenT5, parts: dict[str, nn.Module], about: dict):
        self.config, self.text, self.about = config, text, about
        self.parts = {name: part.eval().requires_grad_(False) for name, part in parts.items()}
        self.tokenizer, self.tokenizer_hi = parts["tokenizer"], parts["tokenizer_hi"]
        self.base, self.superres, self.decoder = parts["base"], parts["superres"], parts["decoder"]
        self.device = next(self.base.parameters()).device

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", text: FrozenT5 | None = None) -> Muse:
        """A model that ships in `data/`, by name, or a model directory. Errors name the file and the remedy."""
        directory = find(name)
        about = read_about(directory)
        config = configs.from_json(about["config"])
        text = text or load_text(about["text"]["name"], device)
        if text.fingerprint != about["text"]["fingerprint"]:
            raise ValueError(f"{directory} was trained with text encoder {about['text']['fingerprint']}, not {text.fingerprint}; give its directory with --t5")
        parts = {part: load_part(directory, part, config, text.width).to(device) for part in PARTS}
        return cls(config, text, parts, about)

    def save(self, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config and weights; bf16 halves the files."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, part in self.parts.items():
            save_part(directory, name, part, dtype)
        write_json(directory / "config.json", self.about)

    @torch.no_grad()
    def steps(
        self, prompts: list[str], negative: str = "", sampling: Sampling | None = None, sampling_hi: Sampling | None = None, seed: int = 0
    ) -> Iterator[tuple[str, Step]]:
        """Decode B pictures: ("low", step)... then ("high", step)... with (B, N) ids. An empty prompt is the null caption."""
        sampling, sampling_hi = sampling or self.config.sampling, sampling_hi or self.config.sampling_hi
        generator = torch.Generator().manual_seed(seed)
        text, visible = self.text([*prompts, negative])  # together, so that all have one length
        B = len(prompts)
        against = text[-1:].expand(B, -1, -1), visible[-1:].expand(B, -1)

        def contexts(model: nn.Module, guidance: float, *low: torch.Tensor) -> tuple[Context, Context | None]:
            conditional = model.context(text[:B], visible[:B], *low)
            return conditional, model.context(*against, *low) if guidance else None

        with autocast(self.device):
            blank = torch.full((B, self.config.tokenizer.grid**2), self.base.mask_id, device=self.device)
            low = blank
            for step in decode(self.base, blank, self.base.mask_id, *contexts(self.base, sampling.guidance), sampling, generator):
                low = step.ids
                yield "low", step
            blank = torch.full((B, self.config.tokenizer_hi.grid**2), self.superres.mask_id, device=self.device)
            pair = contexts(self.superres, sampling_hi.guidance, low)
            for step in decode(self.superres, blank, self.superres.mask_id, *pair, sampling_hi, generator):
                yield "high", step

    @torch.no_grad()
    def pixels(self, ids: torch.Tensor, resolution: str, finetuned: bool = True) -> torch.Tensor:
        """Token ids (B, N) of resolution "low" or "high" -> images (B, 3, H, W) in [-1, 1]."""
        tokenizer = self.tokenizer if resolution == "low" else self.tokenizer_hi
        ids = rearrange(ids, "B (h w) -> B h w", h=tokenizer.config.grid)
        with autocast(self.device):
            if resolution == "low" or not finetuned:
                return tokenizer.decode(ids)
            code = rearrange(tokenizer.quantizer.lookup(ids), "B h w D -> B D h w")
            return self.decoder(code).float().clamp(-1, 1)

    def draw(self, prompts: list[str], batch: int = 32, **settings) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-res (B, 3, H/2, W/2) and high-res (B, 3, H, W) pictures for the prompts, in batches."""
        lows, highs, seed = [], [], settings.pop("seed", 0)
        for start in range(0, len(prompts), batch):
            last = {}
            for resolution, step in self.steps(prompts[start : start + batch], seed=seed + start, **settings):
                last[resolution] = step.ids
            lows.append(self.pixels(last["low"], "low"))
            highs.append(self.pixels(last["high"], "high"))
        return torch.cat(lows), torch.cat(highs)

    def generate(
        self, prompt: str, n: int = 1, steps: int | None = None, guidance: float | None = None,
        negative: str = "", temperature: float | None = None, seed: int = 0,
    ) -> list[Image.Image]:  # fmt: skip
        """n pictures of one prompt, as PIL images. Arguments left out take the model's configuration."""
        if n < 1:
            raise ValueError(f"n is {n}; draw at least 1 picture")
        sampling, sampling_hi = self.sampling(steps, guidance, temperature)
        return to_pil(self.draw([prompt] * n, negative=negative, seed=seed, sampling=sampling, sampling_hi=sampling_hi)[1])

    def sampling(self, steps: int | None, guidance: float | None, temperature: float | None) -> tuple[Sampling, Sampling]:
        """The configuration's sampling of both models, with what is given in its place."""
        given = {k: v for k, v in dict(steps=steps, guidance=guidance, temperature=temperature).items() if v is not None}
        high = {k: v for k, v in given.items() if k != "steps"}  # `steps` counts the base model's passes
        return replace(self.config.sampling, **given), replace(self.config.sampling_hi, **high)


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """images (B, 3, H, W) in [-1, 1] -> PIL."""
    bytes_ = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    return [Image.fromarray(x.numpy()) for x in rearrange(bytes_, "B C H W -> B H W C")]


def find(name: str | Path) -> Path:
    """A directory, or the name of a model in data/."""
    for directory in (Path(name), DATA / str(name)):
        if (directory / "config.json").is_file():
            return directory
    shipped = sorted(p.parent.name for p in DATA.glob("*/base.safetensors"))
    raise FileNotFoundError(f"no model {str(name)!r}; give a directory with a config.json, or one of: {', '.join(shipped) or 'none shipped'}")


def load_text(name: str, device: str = "cpu") -> FrozenT5:
    """The text encoder in data/NAME, or in the directory NAME."""
    shipped = DATA / name
    return FrozenT5.load(shipped if shipped.is_dir() else name, device)


def read_about(directory: Path) -> dict:
    """config.json: settings, data, text encoder and its fingerprint."""
    path = directory / "config.json"
    try:
        about = json.loads(path.read_text())
        configs.from_json(about["config"])
        about["text"]["name"], about["text"]["fingerprint"], about["data"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; {directory} is not a model directory") from None
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a model's config.json ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return about


def write_json(path: Path, data: dict) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(temporary, path)


def save_part(directory: Path, name: str, part: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Write NAME.safetensors under a temporary name first, so that no half-written file bears the name."""
    state = {k: v.to(dtype if v.is_floating_point() else v.dtype).contiguous().cpu() for k, v in part.state_dict().items()}
    path = directory / f"{name}.safetensors"
    save_file(state, path.with_name(path.name + ".tmp"))
    os.replace(path.with_name(path.name + ".tmp"), path)


def load_part(directory: Path, name: str, config: Config, text_width: int) -> nn.Module:
    """Build a part and fill it from NAME.safetensors."""
    path = directory / f"{name}.safetensors"
    if not path.is_file():
        stage = name.replace("_", "-")
        raise FileNotFoundError(f"{path} is missing; make it with: minimuse train {stage} --out {directory}")
    part = build(name, config, text_width)
    try:
        state = load_file(path)
        part.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); train or copy it again") from None
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit config.json ({str(error).splitlines()[-1].strip()}); it belongs to another model") from None
    return part
