"""Muse, the whole pipeline: a caption in, an image out.

    from minimuse import Muse
    muse = Muse.load("toy-shapes")                      # a name in data/, or a directory
    image = muse.generate("a small red circle on a grey background", seed=0)[0]    # PIL

caption -> frozen T5 -> base model: 16x16 tokens -> super-resolution: 64x64 tokens -> finetuned
decoder -> pixels (Muse, 2301.00704, figure 3; the toy models have fewer tokens). A model directory
holds `config.json` and one safetensors file for each part. The text encoder is kept elsewhere.
Letters: B images, P prompts of each image, N image tokens, h w token grid, H W pixels, T text
tokens, E text width.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from minimuse.beyond.mean_vectors import vectors_of
from minimuse.data import to_pil
from minimuse.decode import Sampling, Step, decode, one_pass
from minimuse.plumbing import arguments as checks
from minimuse.plumbing import config as configs
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.compiled import compile_pass, round_weights
from minimuse.plumbing.device import autocast, generator_at
from minimuse.plumbing.files import write_json
from minimuse.plumbing.parts import PARTS, check_model, find_model, load_part, read_about, save_part
from minimuse.plumbing.prompts import Prompts, check_prompts, common_weights, read_prompts
from minimuse.plumbing.ranges import check_arguments, later_seed
from minimuse.plumbing.t5_files import load_t5
from minimuse.plumbing.vocabulary import each_word_once, say_unknown_words
from minimuse.t5_frozen import FrozenT5
from minimuse.transformer import Context
from minimuse.vq import ImageTokenizer


class Muse:
    """All parts of a model, on the device that `load` was given, ready to draw.

    Weights are in float32, until `compile` rounds some of them.
    """

    def __init__(
        self, config: configs.Config, text: FrozenT5, parts: dict[str, nn.Module], about: dict
    ):
        check_model(config, parts, about)
        self.config = config
        self.text = text
        self.about = about
        self.tokenizer = parts["tokenizer"]
        self.tokenizer_hi = parts["tokenizer_hi"]
        self.base = parts["base"]
        self.superres = parts["superres"]
        self.decoder = parts["decoder"]
        self.device = next(self.base.parameters()).device
        self.run_pass = one_pass  # `compile` replaces it
        self.is_rounded = False
        self.name = "MODEL"  # as messages call it; `load` replaces it

    @property
    def parts(self) -> MappingProxyType:
        """The parts by name. To replace one, assign to its attribute: `muse.base = ...`."""
        return MappingProxyType({name: getattr(self, name) for name in PARTS})

    @property
    def tokenizers(self) -> dict[str, ImageTokenizer]:
        """Both tokenizers, by the resolution of their tokens."""
        return {"low": self.tokenizer, "high": self.tokenizer_hi}

    @classmethod
    @in_usual_state
    def load(cls, name: str | Path, device: str = "cpu", t5: str | None = None) -> "Muse":
        """Load a model that ships in `data/`, by name, or a model directory.

        `device` is "cpu", "cuda", "mps" or "auto" (CUDA, else MPS, else the CPU). `t5` is the
        directory of the text encoder, if that has moved. Errors name the file and the remedy:
        FileNotFoundError for a missing file, ValueError for a wrong one.
        """
        device = checks.chosen_device(device)
        directory = find_model(name)
        about = read_about(directory)
        config = configs.from_json(about["config"])
        text = load_t5(t5 or about["text"]["name"], device)
        expected = about["text"]["fingerprint"]
        if text.fingerprint != expected:
            raise ValueError(
                f"{directory} was trained with text encoder {expected}, not {text.fingerprint}; "
                f"give its directory as t5 (--t5)"
            )
        parts = {}
        for part_name in PARTS:
            part = load_part(directory, part_name, config, text.width).to(device)
            parts[part_name] = part.eval().requires_grad_(False)
        about.pop("rest", None)  # all parts are here now, and `save` writes them all
        muse = cls(config, text, parts, about)
        muse.name = str(name)
        return muse

    def save(self, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and the weights; bf16 halves the files, int8 quarters them.

        See `save_part` for int8. The dtype is one of these, float32 or float16. Another is a
        ValueError, and so is a model that `compile` has rounded.
        """
        if self.is_rounded:
            raise ValueError("compile() has rounded the weights; load the model again to save it")
        checks.check_dtype(dtype)
        directory = checks.directory_at(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, part in self.parts.items():
            save_part(directory, name, part, dtype)
        write_json(directory / "config.json", self.about | {"config": asdict(self.config)})

    def compile(self) -> None:
        """Compile decoding: see `plumbing/compiled.py`. The first images then take longer.

        Where the device is fast at bfloat16, weights are rounded to it. After that the model can
        draw, and cannot be saved or trained.
        """
        self.is_rounded = round_weights(self.base, self.superres)
        self.run_pass = compile_pass(one_pass)

    # --- Drawing ---
    def generate(
        self, prompt: str, n: int = 1, negative: str = "", seed: int = 0, **settings: Any
    ) -> list[Image.Image]:
        """Draw n PIL images for one prompt: image i has the seed `seed` + i.

        `settings` are fields of `Sampling`, such as guidance=3.0; None is the model's own value.
        `steps` is for the base model only.
        """
        check_arguments(n=n, seed=seed)
        sampling, sampling_hi = self.sampling(**settings)
        _, images = self.draw(
            [prompt] * n, seed=seed, negative=negative, sampling=sampling, sampling_hi=sampling_hi
        )
        return to_pil(images)

    @in_usual_state
    @each_word_once
    def draw(
        self,
        prompts: list[str],
        batch: int = 32,
        seed: int = 0,
        low: Tensor | None = None,
        high: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Draw low-res (B, 3, H/2, W/2) and high-res images (B, 3, H, W), one for each prompt.

        Image i has the seed `seed` + i, and is the same whatever is drawn beside it. `batch` images
        are drawn at a time. `settings` are `negative`, `sampling`, `sampling_hi` and `plain`, as in
        `steps`.
        """
        known = ("negative", "sampling", "sampling_hi", "plain")
        checks.check_draw_arguments(settings, known, Sampling.__dataclass_fields__)
        check_arguments(batch=batch, seed=seed)
        check_prompts(prompts)
        checks.check_start(self, len(prompts), low, high)
        drawn = {"low": [], "high": []}
        for start in range(0, len(prompts), batch):
            rows = slice(start, start + batch)
            ids = {
                "low": None if low is None else low[rows],
                "high": None if high is None else high[rows],
            }
            # A dict keeps the last step of each resolution. Ids that are complete have none.
            last = dict(self.steps(prompts[rows], seed=later_seed(seed, start), **ids, **settings))
            for resolution, images in drawn.items():
                if resolution in last:
                    vectors = vectors_of(last[resolution], self.tokenizers[resolution])
                    images.append(self.decode_vectors(vectors, resolution))
                else:
                    images.append(self.pixels(ids[resolution], resolution))
        return torch.cat(drawn["low"]), torch.cat(drawn["high"])

    @in_usual_state
    def steps(
        self,
        prompts: list[str],
        negative: str = "",
        sampling: Sampling | None = None,
        sampling_hi: Sampling | None = None,
        seed: int = 0,
        low: Tensor | None = None,
        high: Tensor | None = None,
        plain: bool = False,
        place: tuple[int, int] = (0, 0),
    ) -> Iterator[tuple[str, Step]]:
        """Decode B images and yield every step: ("low", step) ..., then ("high", step) ...

        Image i has the seed `seed` + i. `low` and `high` are token ids (B, N) to start from, with
        mask ids where tokens are hidden; None hides all. With `plain`, prompts are taken literally:
        see `embed_prompts`. `place` tells apart the windows of a large image: see `generators`.
        """
        check_arguments(seed=seed, plain=plain)
        check_prompts(prompts, negative)
        checks.check_samplings(Sampling, sampling=sampling, sampling_hi=sampling_hi)
        B = len(prompts)
        checks.check_start(self, B, low, high)
        sampling = sampling or self.config.sampling
        sampling_hi = sampling_hi or self.config.sampling_hi
        embedded = self.embed_prompts(prompts, negative, plain)
        if low is None:
            low = self.hidden_grid(self.base, self.config.tokenizer.grid, B)
        if high is None:
            high = self.hidden_grid(self.superres, self.config.tokenizer_hi.grid, B)

        def decoding(
            stage: str, model: nn.Module, ids: Tensor, sampling: Sampling, low: Tensor | None = None
        ) -> Iterator[Step]:
            contexts = self.contexts(model, embedded, sampling.guidance, low)
            generators = self.generators(stage, seed, B, place)
            arguments = (sampling, generators, embedded.weights, self.run_pass)
            return decode(model, ids, model.mask_id, *contexts, *arguments)

        # A generator of its own, so that wrong arguments are refused before its first step.
        @in_usual_state
        def decoded(low: Tensor) -> Iterator[tuple[str, Step]]:
            for step in decoding("low", self.base, low, sampling):
                low = step.ids
                yield "low", step
            for step in decoding("high", self.superres, high, sampling_hi, low):
                yield "high", step

        return decoded(low)

    def generators(
        self, stage: str, seed: int, B: int, place: tuple[int, int] = (0, 0)
    ) -> list[torch.Generator]:
        """A random generator for each of B images, whose seeds are `seed`, seed + 1, ...

        `stage` and `place` tell apart what draws with one seed: "low" or "high" tokens, of the
        window at this row and column of low-res tokens.
        """
        seeds = [later_seed(seed, i) for i in range(B)]
        return [generator_at(seed, stage, *place, device=self.device) for seed in seeds]

    def hidden_grid(self, model: nn.Module, grid: int, batch: int) -> Tensor:
        """Token ids (B, N) of grids in which every token is hidden."""
        return torch.full((batch, grid**2), model.mask_id, device=self.device)

    @in_usual_state
    @torch.no_grad()
    def pixels(self, ids: Tensor, resolution: str, finetuned: bool = True) -> Tensor:
        """Turn token ids into images (B, 3, H, W) in [-1, 1].

        ids (B, h, w), or (B, N) of a square grid, are of `resolution` "low" or "high". Without
        `finetuned`, high-res ids go through the tokenizer's own decoder.
        """
        checks.check_choice("resolution", resolution, ("low", "high"))
        tokenizer = self.tokenizers[resolution]
        checks.check_grid(ids, tokenizer.config.grid, tokenizer.config.codes - 1, self.device)
        if ids.dim() == 2:
            ids = rearrange(ids, "B (h w) -> B h w", h=tokenizer.config.grid)
        return self.decode_vectors(tokenizer.quantizer.lookup(ids), resolution, finetuned)

    @in_usual_state
    @torch.no_grad()
    def decode_vectors(self, vectors: Tensor, resolution: str, finetuned: bool = True) -> Tensor:
        """Turn vectors (B, h, w, C), as from `vectors_of`, into images. See `pixels`."""
        check_arguments(finetuned=finetuned)
        checks.check_choice("resolution", resolution, ("low", "high"))
        tokenizer = self.tokenizers[resolution]
        checks.check_vectors(vectors, tokenizer.config.code_width, self.device)
        decoder = self.decoder if resolution == "high" and finetuned else tokenizer.decoder
        with autocast(self.device):
            return decoder(rearrange(vectors, "B h w C -> B C h w")).float().clamp(-1, 1)

    # --- Settings and prompts ---
    def sampling(self, **settings: Any) -> tuple[Sampling, Sampling]:
        """The sampling of both models: that of the configuration, with the given settings replaced.

        A setting that is None is not replaced. `steps` is for the base model only.
        """
        checks.check_setting_names(settings, Sampling.__dataclass_fields__)
        given = {name: value for name, value in settings.items() if value is not None}
        low = replace(self.config.sampling, **given)
        given.pop("steps", None)
        high = replace(self.config.sampling_hi, **given)
        return low, high

    @in_usual_state
    def embed_prompts(self, prompts: list[str], negative: str = "", plain: bool = False) -> Prompts:
        """Embed the prompts of B images with the text encoder. "" is the null caption.

        "one thing AND another:0.5" composes two prompts. For a model of emoji, a prompt gets a
        style if it names none, the label for other words, and lower case: `plumbing/prompts.py`.
        Words that no training caption had are a warning. `plain` takes prompts as they are, without
        all this. No prompts, or prompts whose weights differ from image to image, are ValueErrors.
        """
        check_arguments(plain=plain)
        check_prompts(prompts, negative, plain)
        parsed = [[(prompt, 1.0)] for prompt in prompts]
        if not plain:
            parsed, negative = read_prompts(prompts, negative, self.about.get("data"))
        weights = common_weights(parsed)

        texts = []
        for p in range(len(weights)):
            texts += [parts[p][0] for parts in parsed]
        texts.append(negative)
        if not plain:
            say_unknown_words(self.name, self.about.get("vocabulary"), texts)
        # One call, so that all texts are padded to one length T.
        text, visible = self.text(texts)  # P B + 1 rows
        B = len(prompts)
        return Prompts(
            text=text[:-1],
            visible=visible[:-1],
            weights=weights,
            negative_text=text[-1:].expand(B, -1, -1),
            negative_visible=visible[-1:].expand(B, -1),
        )

    @in_usual_state
    @torch.no_grad()
    def contexts(
        self, model: nn.Module, prompts: Prompts, guidance: float, low_ids: Tensor | None = None
    ) -> tuple[Context, Context | None]:
        """Compute what a model looks at in all steps: for the prompts, and for the negative prompt.

        The first has P B rows, the second B. The second is None where it is not needed: one prompt
        without guidance. Super-resolution looks at the low-res ids (B, n), too.
        """
        P = len(prompts.weights)
        is_guided = guidance != 0 or prompts.weights != (1.0,)
        of_each_prompt, of_each_image = [], []  # a third argument, for super-resolution
        if low_ids is not None:
            of_each_prompt, of_each_image = [low_ids.repeat(P, 1)], [low_ids]
        with autocast(self.device):
            context = model.context(prompts.text, prompts.visible, *of_each_prompt)
            uncond = None
            if is_guided:
                uncond = model.context(
                    prompts.negative_text, prompts.negative_visible, *of_each_image
                )
        return context, uncond
