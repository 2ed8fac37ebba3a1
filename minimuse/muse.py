"""Muse, put together: a caption in, a picture out.

    from minimuse import Muse
    muse = Muse.load("toy-shapes")                      # a name in data/, or a directory
    picture = muse.generate("a small red circle on a grey background", seed=0)[0]

caption -> frozen T5 -> base model: 16x16 tokens -> super-resolution: 64x64 tokens -> finetuned decoder -> pixels (Muse, 2301.00704,
figure 3; fewer in the toys). A model directory holds `config.json` and one safetensors file per part; the text encoder stays in its own.
"""

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from minimuse import config as configs
from minimuse.checkpoint import save_tensors, write_json
from minimuse.data import DATA
from minimuse.decode import Sampling, Step, decode
from minimuse.maskgit import MaskGit
from minimuse.superres import SuperRes
from minimuse.t5_frozen import FrozenT5
from minimuse.transformer import Context
from minimuse.vq import Decoder, Tokenizer

PARTS = ("tokenizer", "tokenizer_hi", "base", "superres", "decoder")


def autocast(device: str | torch.device, worth: bool = True) -> AbstractContextManager:
    """bf16 where it is `worth` it and the device is fast at it (CUDA; CPUs with AMX or AVX512-BF16, unless ATEN_CPU_CAPABILITY=avx2), else fp32."""
    kind, capability = torch.device(device).type, torch.backends.cpu.get_cpu_capability()
    fast = kind == "cuda" or (
        kind == "cpu"
        and "512" in capability
        and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    )
    return torch.autocast(kind, torch.bfloat16, enabled=worth and fast)


def build(part: str, config: configs.Config, text_width: int) -> nn.Module:
    """A fresh, untrained part."""
    low, high = config.tokenizer, config.tokenizer_hi
    if part == "base":
        return MaskGit(config.base, low.codes, low.grid, text_width)
    if part == "superres":
        return SuperRes(config.superres, low.codes, low.grid, high.codes, high.grid, text_width)
    if part == "decoder":
        return Decoder(config.decoder).to(memory_format=torch.channels_last)
    return Tokenizer(low if part == "tokenizer" else high).to(memory_format=torch.channels_last)


class Asked(NamedTuple):
    """What to draw, as the models see it: P prompts for each of B pictures, and what to steer away from."""

    text: torch.Tensor  # (P B, T, E), prompt by prompt
    visible: torch.Tensor  # (P B, T)
    against: tuple[
        torch.Tensor, torch.Tensor
    ]  # (B, T, E) and (B, T): the null caption, or a negative prompt
    weights: tuple[float, ...]  # of the P prompts


class Muse:
    """All parts, on one device, ready to draw."""

    def __init__(
        self, config: configs.Config, text: FrozenT5, parts: dict[str, nn.Module], about: dict
    ):
        self.config, self.text, self.about = config, text, about
        self.parts = {name: part.eval().requires_grad_(False) for name, part in parts.items()}
        self.tokenizer, self.tokenizer_hi, self.base, self.superres, self.decoder = (
            parts[name] for name in PARTS
        )
        self.device = next(self.base.parameters()).device

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", t5: str | None = None) -> "Muse":
        """A model that ships in `data/`, by name, or a model directory; t5: where its text encoder is now. Errors name file and remedy."""
        about = read_about(directory := find(name))
        config = configs.from_json(about["config"])
        text = load_text(t5 or about["text"]["name"], device)
        if text.fingerprint != about["text"]["fingerprint"]:
            raise ValueError(
                f"{directory} was trained with text encoder {about['text']['fingerprint']}, not {text.fingerprint}; give its directory with --t5"
            )
        parts = {part: load_part(directory, part, config, text.width).to(device) for part in PARTS}
        return cls(config, text, parts, about)

    def save(self, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config and weights; bf16 halves the files, int8 quarters them (see `save_part`)."""
        (directory := Path(directory)).mkdir(parents=True, exist_ok=True)
        for name, part in self.parts.items():
            save_part(directory, name, part, dtype)
        write_json(directory / "config.json", self.about)

    def read(self, prompts: list[str], negative: str = "", plain: bool = False) -> Asked:
        """Prompts of B pictures, through the text encoder. "" is the null caption; "one thing AND another:0.5" composes two, unless `plain`."""
        if not prompts:
            raise ValueError("nothing to draw; ask for at least 1 picture")
        one = re.compile(
            r"(.*?)(?::(-?\d+(?:\.\d+)?))?", re.DOTALL
        )  # a prompt, and a number behind the last colon
        parts = [
            [(p, "1")]
            if plain or " AND " not in p
            else [one.fullmatch(x.strip()).groups("1") for x in p.split(" AND ")]
            for p in prompts
        ]
        weights = {tuple(float(weight) for _, weight in row) for row in parts}
        if len(weights) > 1:
            raise ValueError(
                f"prompts drawn together need the same weights; these have {sorted(weights)}"
            )
        texts = [row[i][0] for i in range(len(parts[0])) for row in parts]  # prompt by prompt
        text, visible = self.text([*texts, negative])  # together, so that all have one length
        against = text[-1:].expand(len(prompts), -1, -1), visible[-1:].expand(len(prompts), -1)
        return Asked(text[:-1], visible[:-1], against, weights.pop())

    @torch.no_grad()
    def contexts(
        self, model: nn.Module, asked: Asked, guidance: float, *low: torch.Tensor
    ) -> tuple[Context, Context | None]:
        """What a model looks at, and what it is steered away from, computed once for all steps; super-resolution's low-res ids (B, n) too."""
        with autocast(self.device):
            context = model.context(
                asked.text, asked.visible, *(ids.repeat(len(asked.weights), 1) for ids in low)
            )
            return context, model.context(*asked.against, *low) if guidance or asked.weights != (
                1.0,
            ) else None

    def steps(
        self,
        prompts: list[str],
        negative: str = "",
        sampling: Sampling | None = None,
        sampling_hi: Sampling | None = None,
        seed: int = 0,
        low: torch.Tensor | None = None,
        high: torch.Tensor | None = None,
        plain: bool = False,
    ) -> Iterator[tuple[str, Step]]:
        """Decode B pictures: ("low", step)... then ("high", step)..., ids (B, N). low, high: what is there already, mask ids where nothing is."""
        generator, asked, below = (
            torch.Generator().manual_seed(seed),
            self.read(prompts, negative, plain),
            (),
        )
        lower = "low", self.base, low, self.config.tokenizer.grid, sampling or self.config.sampling
        upper = (
            "high",
            self.superres,
            high,
            self.config.tokenizer_hi.grid,
            sampling_hi or self.config.sampling_hi,
        )
        for name, model, ids, grid, how in (lower, upper):
            ids = (
                torch.full((len(prompts), grid**2), model.mask_id, device=self.device)
                if ids is None
                else ids
            )
            contexts = self.contexts(model, asked, how.guidance, *below)
            quick = autocast(self.device)(
                model.__call__
            )  # around a pass: around the loop, it would hold for the caller's code as well
            for step in decode(quick, ids, model.mask_id, *contexts, how, generator, asked.weights):
                ids = step.ids
                yield name, step
            below = (ids,)

    @torch.no_grad()
    def pixels(self, ids: torch.Tensor, resolution: str, finetuned: bool = True) -> torch.Tensor:
        """Token ids (B, h, w), or (B, N) of a square, of resolution "low" or "high" -> images (B, 3, H, W) in [-1, 1]."""
        tokenizer = self.tokenizer if resolution == "low" else self.tokenizer_hi
        if ids.dim() == 2:
            ids = rearrange(ids, "B (h w) -> B h w", h=tokenizer.config.grid)
        with autocast(self.device):
            if resolution == "low" or not finetuned:
                return tokenizer.decode(ids)
            return (
                self.decoder(rearrange(tokenizer.quantizer.lookup(ids), "B h w D -> B D h w"))
                .float()
                .clamp(-1, 1)
            )

    def draw(
        self, prompts: list[str], batch: int = 32, **settings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-res (B, 3, H/2, W/2) and high-res (B, 3, H, W) pictures for the prompts, in batches."""
        lows, highs, seed = [], [], settings.pop("seed", 0)
        for start in range(0, max(1, len(prompts)), batch):  # of none, `read` complains
            last = dict(self.steps(prompts[start : start + batch], seed=seed + start, **settings))
            lows.append(self.pixels(last["low"].ids, "low"))
            highs.append(self.pixels(last["high"].ids, "high"))
        return torch.cat(lows), torch.cat(highs)

    def generate(
        self, prompt: str, n: int = 1, negative: str = "", seed: int = 0, **given
    ) -> list[Image.Image]:
        """n pictures of one prompt, as PIL images. `given`: steps=12, guidance=3.0 and whatever else `Sampling` has."""
        sampling, sampling_hi = self.sampling(**given)
        return to_pil(
            self.draw(
                [prompt] * n,
                negative=negative,
                seed=seed,
                sampling=sampling,
                sampling_hi=sampling_hi,
            )[1]
        )

    def sampling(self, **given) -> tuple[Sampling, Sampling]:
        """The configuration's sampling of both models, with what is given (and not None) in its place."""
        given = {k: v for k, v in given.items() if v is not None}
        high = {
            k: v for k, v in given.items() if k != "steps"
        }  # `steps` counts the base model's passes
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
    shipped = ", ".join(sorted(p.parent.name for p in DATA.glob("*/base.safetensors")))
    raise FileNotFoundError(
        f"no model {str(name)!r}; give a directory with a config.json, or one of: {shipped}"
    )


def load_text(name: str, device: str = "cpu") -> FrozenT5:
    """The text encoder in data/NAME, or in the directory NAME."""
    return FrozenT5.load(DATA / name if (DATA / name).is_dir() else name, device)


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
