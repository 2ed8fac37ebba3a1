"""Every size and every training length, as frozen dataclasses; the presets, from `data/presets.toml`; overriding them.

minimuse train all --preset toy --data shapes --out runs/mine base.width=256 stages.base.steps=4000
"""

import ast
import dataclasses
import tomllib
import typing
from dataclasses import dataclass, field

from minimuse.data import ASSETS
from minimuse.decode import Sampling
from minimuse.maskgit import BaseConfig
from minimuse.superres import SuperResConfig
from minimuse.vq import TokenizerConfig
from minimuse.vq_loss import LossWeights


@dataclass(frozen=True)
class Stage:
    """How long and how to train one part."""

    steps: int
    batch: int
    lr: float
    optimizer: str = "adamw"  # or adafactor
    muon_lr: float = (
        0.0  # above 0: Muon for the matrices inside transformer blocks, AdamW for the rest
    )
    weight_decay: float = 0.045  # Muse: .045 for the transformers, 1e-4 for the tokenizers
    betas: tuple[float, float] = (0.9, 0.96)  # Muse: (.9, .96) and (.9, .99)
    warmup: float = 0.05  # share of the steps; a cosine decay to 0 follows
    average_decay: float = (
        0.7  # Muse averages checkpoints with this decay, one every 5,000 of 1.5 M steps
    )
    averages: int = 300  # how many such checkpoints a training has

    def __post_init__(self):
        if min(self.steps, self.batch, self.averages) < 1 or self.lr <= 0:
            raise ValueError(
                f"steps {self.steps}, batch {self.batch}, averages {self.averages} and lr {self.lr} must be positive"
            )
        if self.optimizer not in ("adamw", "adafactor"):
            raise ValueError(f"unknown optimizer {self.optimizer!r}; choose adamw or adafactor")


@dataclass(frozen=True)
class Stages:
    tokenizer: Stage
    tokenizer_hi: Stage
    base: Stage
    superres: Stage
    decoder: Stage


@dataclass(frozen=True)
class Scale:
    """How to fit a large transformer. None of it changes what is computed."""

    micro_batch: int = 0  # pictures in a pass; gradients of a batch add up. 0: all of a process's
    recompute: bool = False  # blocks in the backward pass, in place of keeping what is inside (activation checkpointing)
    compile: bool = False  # blocks, by torch.compile


@dataclass(frozen=True)
class Config:
    tokenizer: TokenizerConfig
    tokenizer_hi: TokenizerConfig
    base: BaseConfig
    superres: SuperResConfig
    stages: Stages
    decoder_channels: int  # of the finetuned high-res decoder
    decoder_blocks: tuple[int, ...]
    scenes: int  # training pictures to draw where the data are procedural
    skip_unreadable: bool = (
        False  # leave out a folder's damaged or tiny pictures; else they are an error
    )
    caption_dropout: float = 0.1
    scale: Scale = field(default_factory=Scale)
    loss: LossWeights = field(default_factory=LossWeights)
    sampling: Sampling = field(default_factory=Sampling)  # base model
    sampling_hi: Sampling = field(default_factory=lambda: Sampling(steps=8))  # super-resolution

    def __post_init__(self):
        if (
            self.tokenizer_hi.side != 2 * self.tokenizer.side
            or self.decoder_channels % self.tokenizer_hi.channels
        ):
            raise ValueError(
                f"side {self.tokenizer_hi.side} is not twice {self.tokenizer.side}, or decoder_channels no multiple of {self.tokenizer_hi.channels}"
            )
        if self.scenes < 2 or self.scale.micro_batch < 0:
            raise ValueError(
                f"scenes is {self.scenes}, scale.micro_batch {self.scale.micro_batch}; at least 2 and 0 are needed"
            )

    @property
    def decoder(self) -> TokenizerConfig:
        """The high-res tokenizer with its finetuned, larger decoder."""
        return dataclasses.replace(
            self.tokenizer_hi,
            decoder_channels=self.decoder_channels,
            decoder_blocks=self.decoder_blocks,
        )


def merge(old: dict, new: dict) -> dict:
    """The old tables with what the new ones say in its place."""
    return {
        **old,
        **{
            k: merge(old[k], v) if isinstance(v, dict) and isinstance(old.get(k), dict) else v
            for k, v in new.items()
        },
    }


def override(config: Config, assignments: list[str]) -> Config:
    """Apply "base.width=256"-like assignments, all of them before any is checked against the others: their order does not matter."""
    data = dataclasses.asdict(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"cannot read {assignment!r}; write key=value, such as base.width=256")
        table = literal(text)
        for name in reversed(key.split(".")):
            table = {name: table}
        data = merge(data, table)
    return from_json(data)


def literal(text: str):
    """A number, a bool, a tuple; anything else is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def typed(value, kind, key: str):
    """The value as one of type `kind`: str, bool, int, float, or a tuple of one of them; a ValueError names what is neither."""
    inner, several = (
        typing.get_args(kind),
        isinstance(value, (tuple, list)),
    )  # (int, ...) or (float, float)
    fits = lambda x, k: (
        (type(x) is k or (k is float and type(x) is int)) and (type(x) is not int or abs(x) < 2**31)
    )
    if (
        inner
        and several
        and (inner[-1] is ... or len(value) == len(inner))
        and all(fits(x, inner[0]) for x in value)
    ):
        return tuple(map(inner[0], value))
    if inner or not fits(value, kind):
        raise ValueError(f"{key}={value}: expected {kind if inner else kind.__name__}")
    return kind(value)


def from_json(data: dict, kind: type = Config, within: str = ""):
    """The inverse of `dataclasses.asdict`; what is left out has its default. Whatever else is wrong is a ValueError that names it."""
    if not isinstance(data, dict):
        raise ValueError(
            f"{within.strip('.')}={data}: expected a group of settings, {', '.join(f.name for f in dataclasses.fields(kind))}"
        )
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    missing = {
        f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING
    } - set(data)
    if wrong := missing | (set(data) - set(hints)):
        raise ValueError(
            f"unknown or missing: {', '.join(repr(f'{within}{name}') for name in sorted(wrong, key=str))}; there is {', '.join(hints)}"
        )
    whole = {name: dataclasses.is_dataclass(hint) for name, hint in hints.items()}
    return kind(
        **{
            k: from_json(v, hints[k], f"{within}{k}.")
            if whole[k]
            else typed(v, hints[k], within + k)
            for k, v in data.items()
        }
    )


def preset(name: str) -> dict:
    """A table of presets.toml, over those that it is like."""
    own = dict(TABLES[name])
    return merge(preset(parent), own) if (parent := own.pop("like", None)) else own


TABLES = tomllib.loads((ASSETS / "presets.toml").read_text())


PRESETS = {name: from_json(preset(name)) for name in TABLES}
