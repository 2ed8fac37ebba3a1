"""Every size and every training length, as frozen dataclasses; the presets; overriding from the command line.

    minimuse train all --preset toy --data shapes --out runs/mine base.width=256 stages.base.steps=4000

A preset is one `Config`: `tiny` (tests, seconds), `demo` (shapes in a quarter of an hour), `toy` (emoji in two hours), `small` (one GPU).
"""

import ast
import dataclasses
import typing
from dataclasses import dataclass, field
from functools import partial

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
    muon_lr: float = 0.0  # above 0: Muon for the matrices inside transformer blocks, AdamW for the rest
    weight_decay: float = 0.045  # Muse: .045 for the transformers, 1e-4 for the tokenizers
    betas: tuple[float, float] = (0.9, 0.96)  # Muse: (.9, .96) and (.9, .99)
    warmup: float = 0.05  # share of the steps; a cosine decay to 0 follows
    average_decay: float = 0.7  # Muse averages checkpoints with this decay, one every 5,000 of 1.5 M steps
    averages: int = 300  # how many such checkpoints a training has

    def __post_init__(self):
        if self.steps < 1 or self.batch < 1 or self.lr <= 0:
            raise ValueError(f"steps {self.steps}, batch {self.batch} and lr {self.lr} must be positive")


@dataclass(frozen=True)
class Stages:
    tokenizer: Stage
    tokenizer_hi: Stage
    base: Stage
    superres: Stage
    decoder: Stage


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
    skip_unreadable: bool = False  # leave out a folder's damaged or tiny pictures; else they are an error
    caption_dropout: float = 0.1
    loss: LossWeights = field(default_factory=LossWeights)
    sampling: Sampling = field(default_factory=Sampling)  # base model
    sampling_hi: Sampling = field(default_factory=lambda: Sampling(steps=8))  # super-resolution

    def __post_init__(self):
        if self.tokenizer_hi.side != 2 * self.tokenizer.side:
            raise ValueError(f"high-res side {self.tokenizer_hi.side} must be twice the low-res side {self.tokenizer.side}")
        if self.scenes < 2:
            raise ValueError(f"scenes is {self.scenes}; at least 2 are needed")

    @property
    def decoder(self) -> TokenizerConfig:
        """The high-res tokenizer with its finetuned, larger decoder."""
        return dataclasses.replace(self.tokenizer_hi, decoder_channels=self.decoder_channels, decoder_blocks=self.decoder_blocks)


vq_stage = partial(Stage, weight_decay=1e-4, betas=(0.9, 0.99))


def token_stage(steps: int, batch: int, lr: float = 3e-3) -> Stage:
    return Stage(steps, batch, lr, muon_lr=0.025)


TINY = Config(
    tokenizer=TokenizerConfig(side=16, codes=64, code_width=8, channels=8, multipliers=(1, 2, 2), blocks=(1, 1, 1)),
    tokenizer_hi=TokenizerConfig(side=32, codes=64, code_width=8, channels=8, multipliers=(1, 2, 2), blocks=(1, 1, 1)),
    base=BaseConfig(width=32, layers=2, heads=2),
    superres=SuperResConfig(width=32, encoder_layers=1, layers=2, heads=2, window=4),
    stages=Stages(vq_stage(8, 8, 2e-3), vq_stage(8, 8, 2e-3), token_stage(8, 8), token_stage(8, 4), vq_stage(8, 8, 1e-3)),
    decoder_channels=16, decoder_blocks=(1, 2, 2), scenes=32,
    loss=LossWeights(discriminator_channels=8, perceptual=0.0),
    sampling=Sampling(steps=4), sampling_hi=Sampling(steps=2),
)  # fmt: skip

# Encoders see nothing but the patch of a token: what lies elsewhere, written into a plain background, is hopeless to predict.
LOOK = dict(code_width=8, blocks=(0, 0, 0), decoder_blocks=(0, 1, 3), overlap=False)

TOY = Config(  # emoji
    tokenizer=TokenizerConfig(side=32, codes=512, channels=24, **LOOK),
    tokenizer_hi=TokenizerConfig(side=64, codes=1024, channels=24, **LOOK),
    base=BaseConfig(width=256, layers=4, heads=8),
    superres=SuperResConfig(width=128, encoder_layers=1, layers=3, heads=8, window=8),
    stages=Stages(vq_stage(8000, 8, 1.5e-3), vq_stage(8000, 8, 1.5e-3), token_stage(5500, 64), token_stage(6000, 16, 6e-3), vq_stage(3000, 8, 2e-4)),
    decoder_channels=48, decoder_blocks=(1, 1, 3), scenes=40_000, sampling=Sampling(guidance=2.0, choice_temperature=1.0),
    sampling_hi=Sampling(steps=4, guidance=0.5, temperature=0.7, choice_temperature=1.0),
)  # fmt: skip

SMALL = dataclasses.replace(
    TOY,
    tokenizer=TokenizerConfig(side=64, codes=1024, channels=64, **LOOK),
    tokenizer_hi=TokenizerConfig(side=128, codes=1024, channels=64, **LOOK),
    base=BaseConfig(width=512, layers=8, heads=8),
    superres=SuperResConfig(width=384, encoder_layers=2, layers=6, heads=8, window=8),
    stages=Stages(vq_stage(20000, 32, 1e-3), vq_stage(20000, 32, 1e-3), token_stage(20000, 256), token_stage(20000, 64), vq_stage(10000, 32, 2e-4)),
    decoder_channels=128, decoder_blocks=(1, 2, 4),
)  # fmt: skip

DEMO = dataclasses.replace(
    TOY,  # but low-res tokens of 8 x 8 pixels say what is where, and leave to super-resolution how it looks
    tokenizer=TokenizerConfig(side=32, codes=512, channels=24, **LOOK | dict(multipliers=(1, 2, 4, 6), blocks=(0,) * 4, decoder_blocks=(0, 0, 2, 2))),
    tokenizer_hi=dataclasses.replace(TOY.tokenizer_hi, codes=256),
    base=BaseConfig(width=128, layers=3, heads=4),
    superres=SuperResConfig(width=128, encoder_layers=2, layers=2, heads=8, window=8),
    stages=Stages(vq_stage(2200, 8, 1.5e-3), vq_stage(2200, 8, 1.5e-3), token_stage(2600, 48), token_stage(1300, 16, 6e-3), vq_stage(700, 8, 2e-4)),
    scenes=20_000,
    sampling=Sampling(steps=16, guidance=2.0, choice_temperature=10.0),
    sampling_hi=Sampling(steps=6, guidance=1.0, temperature=0.5, choice_temperature=1.0),
    loss=LossWeights(perceptual=0.0, adversarial=0.0),  # edges of flat shapes can be predicted: there is no texture to invent
)

PRESETS = {"tiny": TINY, "demo": DEMO, "toy": TOY, "small": SMALL}


def override(config: Config, assignments: list[str]) -> Config:
    """Apply "base.width=256"-like assignments; a key or a value that does not fit is a ValueError that names it.

    All are applied before any is checked against the others, so that their order does not matter.
    """
    data = dataclasses.asdict(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"cannot read {assignment!r}; write key=value, such as base.width=256")
        node, kind, *path = data, Config, *key.split(".")
        for i, name in enumerate(path):
            hints = typing.get_type_hints(kind)
            if name not in hints:
                raise ValueError(f"unknown key {key!r}; {name!r} is none of {', '.join(hints) or 'the keys of a plain value'}")
            kind, last = hints[name], i + 1 == len(path)
            if last == dataclasses.is_dataclass(kind):
                raise ValueError(f"key {key!r} names {'a group of settings' if last else 'something inside a plain value'}")
            node[name] = parse(text, kind, key) if last else node[name]
            node = node[name]
    return from_json(data)


def parse(text: str, kind, key: str):
    """A value of type `kind`: str, int, float, or a tuple of one of them."""
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    inner = typing.get_args(kind)  # (int, ...) or (float, float)
    fits = lambda x, k: type(x) is k or (k is float and type(x) is int)
    whole = isinstance(value, tuple) and (inner[-1:] == (...,) or len(value) == len(inner))
    if not (whole and all(fits(x, inner[0]) for x in value) if inner else fits(value, kind)):
        raise ValueError(f"{key}={text}: expected {kind if inner else kind.__name__}")
    return tuple(map(inner[0], value)) if inner else kind(value)


def from_json(data: dict, kind: type = Config):
    """The inverse of `dataclasses.asdict`; unknown or missing keys are a ValueError that names them."""
    if not isinstance(data, dict):
        raise ValueError(f"expected settings for {kind.__name__}, found {data!r}")
    hints, names = typing.get_type_hints(kind), {f.name for f in dataclasses.fields(kind)}
    if set(data) != names:
        raise ValueError(f"settings of {kind.__name__}: unknown or missing {', '.join(sorted(set(data) ^ names))}")
    read = lambda value, hint: from_json(value, hint) if dataclasses.is_dataclass(hint) else tuple(value) if isinstance(value, list) else value
    return kind(**{name: read(value, hints[name]) for name, value in data.items()})
