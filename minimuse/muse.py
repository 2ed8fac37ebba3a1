"""Muse, put together: a caption in, a picture out.

    from minimuse import Muse
    muse = Muse.load("toy-shapes")                      # a name in data/, or a directory
    picture = muse.generate("a small red circle on a grey background", seed=0)[0]

caption -> frozen T5 -> base model: 16x16 tokens -> super-resolution: 64x64 tokens -> finetuned decoder -> pixels (Muse, 2301.00704,
figure 3; fewer in the toys). A model directory holds `config.json` and one safetensors file per part; the text encoder stays in its own.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from PIL import Image
from torch import nn

from minimuse.data import to_pil
from minimuse.decode import Sampling, Step, decode
from minimuse.device import autocast
from minimuse.plumbing import config as configs
from minimuse.plumbing.files import write_json
from minimuse.plumbing.parts import PARTS, find_model, load_part, read_about, save_part
from minimuse.plumbing.t5_files import load_t5
from minimuse.t5_frozen import FrozenT5
from minimuse.transformer import Context


class Prompts(NamedTuple):
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
        about = read_about(directory := find_model(name))
        config = configs.from_json(about["config"])
        text = load_t5(t5 or about["text"]["name"], device)
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

    def read(self, prompts: list[str], negative: str = "", plain: bool = False) -> Prompts:
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
        return Prompts(text[:-1], visible[:-1], against, weights.pop())

    @torch.no_grad()
    def contexts(
        self, model: nn.Module, asked: Prompts, guidance: float, *low: torch.Tensor
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
