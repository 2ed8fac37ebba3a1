"""Settings of a model and of its training, as frozen dataclasses; presets from data/presets.toml.

    minimuse train all --preset toy --out runs/mine base.width=256 stages.base.steps=4000

A preset is a `Config`. On the command line, `key=value` overrides one setting of it; a model's
config.json holds the settings that it was trained with.
"""

import ast
import dataclasses
import tomllib
import typing
from dataclasses import dataclass, field
from typing import Any

from minimuse.data import ASSETS
from minimuse.decode import Sampling
from minimuse.maskgit import BaseConfig
from minimuse.plumbing.arguments import check_texts
from minimuse.plumbing.ranges import check_settings, shown
from minimuse.superres import SuperResConfig
from minimuse.vq import TokenizerConfig
from minimuse.vq_loss import LossWeights


@dataclass(frozen=True)
class Stage:
    """How long and how to train one part. Comments give Muse's values (2301.00704)."""

    steps: int
    batch: int
    lr: float
    # adamw or adafactor
    optimizer: str = "adamw"
    # Above 0: Muon trains the matrices inside transformer blocks, and AdamW all other parameters.
    muon_lr: float = 0.0
    # A step updates one in `muon_every` of these matrices, `muon_every` times as far. 1: all.
    muon_every: int = 1
    # Muse: 0.045 for the transformers, 1e-4 for the tokenizers
    weight_decay: float = 0.045
    # Muse: (0.9, 0.96) for the transformers, (0.9, 0.99) for the tokenizers
    betas: tuple[float, float] = (0.9, 0.96)
    # A rival that trains beside the part has its own: a discriminator, or the auxiliary model of a
    # student that is distilled. 0: the same as `lr`.
    discriminator_lr: float = 0.0
    discriminator_betas: tuple[float, float] = (0.9, 0.99)
    # The fraction of the steps in which the learning rate rises; a cosine decay to 0 follows.
    warmup: float = 0.05
    # Muse averages checkpoints with this decay, one every 5,000 of 1.5 million steps.
    average_decay: float = 0.7
    # How many such checkpoints one training has.
    averages: int = 300

    def __post_init__(self):
        check_settings(self)
        if self.optimizer not in ("adamw", "adafactor"):
            raise ValueError(f"optimizer is {self.optimizer!r}; choose adamw or adafactor")


@dataclass(frozen=True)
class Stages:
    """One `Stage` for each part, in the order of training."""

    tokenizer: Stage
    tokenizer_hi: Stage
    base: Stage
    superres: Stage
    decoder: Stage


@dataclass(frozen=True)
class Scale:
    """How to fit a large transformer into memory. None of it changes what is computed."""

    # Images in one forward pass; gradients add up over a batch. 0: all that the process has.
    micro_batch: int = 0
    # Activation checkpointing: compute a block again in the backward pass instead of keeping it.
    recompute: bool = False
    # Compile each block with torch.compile.
    compile: bool = False

    def __post_init__(self):
        check_settings(self)


@dataclass(frozen=True)
class Config:
    """All settings of a model. There are two VQGANs: `tokenizer`, low-res, and `tokenizer_hi`."""

    tokenizer: TokenizerConfig
    tokenizer_hi: TokenizerConfig
    base: BaseConfig
    superres: SuperResConfig
    stages: Stages
    # Width and residual blocks of the finetuned high-res decoder.
    decoder_channels: int
    decoder_blocks: tuple[int, ...]
    # How many training images to draw where the data are procedural scenes.
    scenes: int
    # Leave out damaged or tiny images of a folder; otherwise they are an error.
    skip_unreadable: bool = False
    caption_dropout: float = 0.1
    # The fraction of images whose tokens are all hidden when super-resolution trains, as they are
    # in the first pass of drawing. All other images draw a mask ratio. Muse: 0.
    fully_hidden: float = 0.0
    scale: Scale = field(default_factory=Scale)
    loss: LossWeights = field(default_factory=LossWeights)
    # Decoding of the base model, and of the super-resolution model.
    sampling: Sampling = field(default_factory=Sampling)
    sampling_hi: Sampling = field(default_factory=lambda: Sampling(steps=8))

    def __post_init__(self):
        check_settings(self)
        low, high = self.tokenizer, self.tokenizer_hi
        if high.side != 2 * low.side:
            raise ValueError(f"tokenizer_hi.side is {high.side}, not twice {low.side}")
        check_decoder(high, self.decoder)
        check_loss(self)

    @property
    def decoder(self) -> TokenizerConfig:
        """The high-res tokenizer with its finetuned, larger decoder."""
        return dataclasses.replace(
            self.tokenizer_hi,
            decoder_channels=self.decoder_channels,
            decoder_blocks=self.decoder_blocks,
        )


def check_decoder(small: TokenizerConfig, large: TokenizerConfig) -> None:
    """Raise a ValueError if the decoder `small` cannot grow into `large` (see `grow.py`)."""
    channels = small.decoder_channels or small.channels
    wide_channels = large.decoder_channels or large.channels
    if wide_channels % channels:
        raise ValueError(
            f"decoder_channels is {wide_channels}, "
            f"not a multiple of the {channels} channels of tokenizer_hi's decoder"
        )
    blocks = small.decoder_blocks or small.blocks
    more_blocks = large.decoder_blocks or large.blocks
    if any(more < few for few, more in zip(blocks, more_blocks, strict=True)):
        raise ValueError(
            f"decoder_blocks is {more_blocks}; "
            f"give at least the {blocks} of tokenizer_hi's decoder, which it grows from"
        )


def check_loss(config: Config) -> None:
    """Raise a ValueError if the losses do not fit the length of a training or the size of images.

    All stages that train on images have images of tokenizer.side pixels.
    """
    loss, side = config.loss, config.tokenizer.side
    for name in ("tokenizer", "tokenizer_hi"):
        steps = getattr(config.stages, name).steps
        if round(loss.quantize_from * steps) >= steps:
            raise ValueError(
                f"loss.quantize_from is {loss.quantize_from}, which leaves none of the {steps} "
                f"steps of stages.{name} to train the codes; give less"
            )
    if loss.adversarial > 0 and side < 12:
        raise ValueError(
            f"tokenizer.side is {side}; the discriminator needs 12 pixels (or loss.adversarial=0)"
        )
    if loss.perceptual > 0 and side < 16:
        raise ValueError(
            f"tokenizer.side is {side}; "
            "the perceptual distance needs 16 pixels (or loss.perceptual=0)"
        )


def override(config: Config, assignments: list[str]) -> Config:
    """Apply assignments such as "base.width=256". A ValueError names key, value and remedy.

    All are applied before any is checked against the others, so their order does not matter.
    """
    check_texts("assignments", assignments)
    values = dataclasses.asdict(config)
    for assignment in assignments:
        values = merge(values, parse_assignment(assignment))
    return from_json(values)


def parse_assignment(assignment: str) -> dict[str, Any]:
    """Parse "base.width=256" to {"base": {"width": 256}}."""
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"cannot read {assignment!r}; write key=value, such as base.width=256")
    value = parse_literal(text)
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def parse_literal(text: str) -> Any:
    """Parse a Python number, bool or tuple. Any other text is returned as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of nested dicts `old` in which the values of `new` replace the old ones."""
    merged = dict(old)
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            merged[key] = merge(old[key], value)
        else:
            merged[key] = value
    return merged


def from_json(values: Any, kind: type = Config, prefix: str = "") -> Any:
    """Build a dataclass (by default a `Config`) from nested dicts: the inverse of `asdict`.

    Keys that are left out get their defaults. Anything else that is wrong raises a ValueError.
    `prefix` is where in the whole configuration `values` stands, such as "stages.base.".
    """
    types = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(
            f"{prefix.strip('.')}={values}: expected a group of settings, {', '.join(types)}"
        )
    check_keys(values, kind, prefix)
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(types[name]):
            arguments[name] = from_json(value, types[name], f"{prefix}{name}.")
        else:
            arguments[name] = convert(value, types[name], f"{prefix}{name}")
    try:
        return kind(**arguments)
    except ValueError as error:
        # Its message begins with the name of a field.
        raise ValueError(f"{prefix}{error}") from None


def check_keys(values: dict[str, Any], kind: type, prefix: str) -> None:
    """Raise a ValueError if a key is no field of the dataclass, or if a needed field is missing."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = [name for name in values if name not in fields]
    missing = []
    for name, f in fields.items():
        has_default = (
            f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        )
        if name not in values and not has_default:
            missing.append(name)
    # Keys of a dict that a user typed need not be strings: base={1: 2}.
    if unknown:
        names = ", ".join(repr(f"{prefix}{name}") for name in sorted(unknown, key=str))
        raise ValueError(f"unknown: {names}; choose among {', '.join(fields)}")
    if missing:
        names = ", ".join(repr(f"{prefix}{name}") for name in missing)
        raise ValueError(f"missing: {names}; give each a value, since it has no default")


def convert(value: Any, kind: Any, key: str) -> Any:
    """Return the value as `kind`: str, bool, int, float, or a tuple of one of them.

    An int is accepted where a float is expected, and a list where a tuple is expected. Otherwise a
    ValueError names the key, the value and the expected type.
    """
    elements = typing.get_args(kind)  # (int, ...) of tuple[int, ...]; () of int
    if elements:
        if not fits_tuple(value, elements):
            raise ValueError(f"{key}={shown(value)}: expected {kind}")
        return tuple(as_kind(x, elements[0]) for x in value)
    if not fits(value, kind):
        raise ValueError(f"{key}={shown(value)}: expected {kind.__name__}")
    return as_kind(value, kind)


def as_kind(value: Any, kind: type) -> Any:
    """An int as a float where a float is expected, unless it is too large; else the value."""
    if kind is float and abs(value) < 2**1000:
        return float(value)
    return value


def fits_tuple(value: Any, elements: tuple[Any, ...]) -> bool:
    """Whether a tuple or list has the length and the element type of (int, ...) or (int, int)."""
    if not isinstance(value, (tuple, list)):
        return False
    any_length = elements[-1] is ...
    if not any_length and len(value) != len(elements):
        return False
    return all(fits(x, elements[0]) for x in value)


def fits(value: Any, kind: type) -> bool:
    """Whether a plain value has this type, or is an int where a float is expected."""
    # `type(value) is`, because True is an instance of int.
    if type(value) is int:
        return kind in (int, float)
    return type(value) is kind


def preset_values(name: str) -> dict[str, Any]:
    """One table of presets.toml, merged over the table that it is `like`."""
    values = dict(TABLES[name])
    parent = values.pop("like", None)
    if parent is None:
        return values
    return merge(preset_values(parent), values)


TABLES = tomllib.loads((ASSETS / "presets.toml").read_text())

PRESETS: dict[str, Config] = {name: from_json(preset_values(name)) for name in TABLES}
