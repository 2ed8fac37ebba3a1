"""The range of every number and switch: of settings, of flags, and of arguments of functions.

    check_settings(sampling)              # all fields of a dataclass of settings
    check_arguments(n=n, seed=seed)       # arguments of a function

A value out of its range, NaN, infinity, or a value of another type is a ValueError that names the
key, the value and the range. What settings must be to each other is checked where they are
defined, in `check_tokenizer` and in `check_grids`. This file imports nothing of minimuse, so that
every other file may use it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Range(NamedTuple):
    """Which values are allowed."""

    kind: type  # int or float: how text on the command line is read; str or bool otherwise
    words: str  # such as "a whole number from 1 to 64"
    accepts: Callable[[Any], bool]


# --- Kinds of ranges ---
def whole(low: int, high: int, words: str = "") -> Range:
    """Whole numbers from `low` to `high`. True and 2.0 are none."""

    def accepts(value: Any) -> bool:
        is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        return is_whole and low <= value <= high

    return Range(int, words or f"a whole number from {low} to {high}", accepts)


def number(low: float, high: float, above: bool = False, below: bool = False) -> Range:
    """Numbers from `low` to `high`, with `above` without `low`, with `below` without `high`."""

    def accepts(value: Any) -> bool:
        is_number = isinstance(value, (int, float, np.integer, np.floating))
        if not is_number or isinstance(value, bool):
            return False
        # False for NaN, which is in no range.
        inside = low <= value <= high
        return inside and not (above and value == low) and not (below and value == high)

    words = f"a number from {low} to {high}"
    if above:
        words = f"a number above {low}, at most {high}"
    if below:
        words = f"a number from {low} to below {high}"
    return Range(float, words, accepts)


def each(element: Range, least: int, most: int) -> Range:
    """Tuples or lists of `least` to `most` elements, each in its range."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or not least <= len(value) <= most:
            return False
        return all(element.accepts(x) for x in value)

    count = str(most) if least == most else f"{least} to {most}"
    return Range(tuple, f"{count} values, each {element.words}", accepts)


SWITCH = Range(bool, "True or False", lambda value: isinstance(value, bool))
GENERATOR = Range(
    object,
    "a torch.Generator",
    # By name: this file is read before PyTorch is.
    lambda value: type(value).__module__.startswith("torch") and hasattr(value, "manual_seed"),
)
TEXT = Range(str, "a name", lambda value: isinstance(value, str))

# --- Settings, by the name of their dataclass ---
BLOCKS = each(whole(0, 32), 0, 12)
FRACTION = number(0, 1)
DECAY = number(0, 1, below=True)
WEIGHT = number(0, 1000)

SETTINGS: dict[str, dict[str, Range]] = {
    "TokenizerConfig": {
        "side": whole(1, 4096),
        "codes": whole(2, 2**20),
        "code_width": whole(1, 4096),
        "channels": whole(1, 4096),
        "multipliers": each(whole(1, 64), 1, 12),
        "blocks": each(whole(0, 32), 1, 12),
        "overlap": SWITCH,
        "quantizer": TEXT,
        "levels": each(whole(2, 1024), 0, 64),
        "decoder_channels": whole(0, 4096),
        "decoder_blocks": BLOCKS,
    },
    "BaseConfig": {
        "width": whole(1, 2**14),
        "layers": whole(1, 128),
        "heads": whole(1, 1024),
    },
    "SuperResConfig": {
        "encoder_layers": whole(0, 128),
        "window": whole(0, 4096),
        "piece": whole(0, 4096),
    },
    "LossWeights": {
        "commitment": WEIGHT,
        "perceptual": WEIGHT,
        "adversarial": WEIGHT,
        "quantize_from": FRACTION,
        "adversarial_from": FRACTION,
        "discriminator_channels": whole(1, 4096),
    },
    "Sampling": {
        "steps": whole(1, 10_000),
        "guidance": number(0, 1000),
        "ramp": SWITCH,
        "guided": each(FRACTION, 2, 2),
        "temperature": number(0, 1000),
        "top_k": whole(0, 2**20),
        "sampler": TEXT,
        "choice_temperature": number(0, 1000),
        "entropy_bound": number(0, 1_000_000),
        "law": TEXT,
        "random_codes": number(0, 1, below=True),
        "mean_vectors": SWITCH,
    },
    "Stage": {
        "steps": whole(1, 10**9),
        "batch": whole(1, 2**16),
        "lr": number(0, 100, above=True),
        "optimizer": TEXT,
        "muon_lr": number(0, 100),
        "muon_every": whole(1, 100),
        "weight_decay": number(0, 1),
        "betas": each(DECAY, 2, 2),
        "discriminator_lr": number(0, 100),
        "discriminator_betas": each(DECAY, 2, 2),
        "warmup": FRACTION,
        "average_decay": DECAY,
        "averages": whole(1, 10**6),
    },
    "Scale": {
        "micro_batch": whole(0, 2**16),
        "recompute": SWITCH,
        "compile": SWITCH,
    },
    "Config": {
        "decoder_channels": whole(0, 4096),
        "decoder_blocks": BLOCKS,
        "scenes": whole(2, 10**7),
        "skip_unreadable": SWITCH,
        "caption_dropout": FRACTION,
        "fully_hidden": FRACTION,
    },
    "T5Config": {
        "vocab_size": whole(3, 2**24),
        "d_model": whole(1, 2**16),
        "d_kv": whole(1, 2**16),
        "d_ff": whole(1, 2**20),
        "num_layers": whole(1, 512),
        "num_heads": whole(1, 1024),
        "relative_attention_num_buckets": whole(4, 2**16),
        "relative_attention_max_distance": whole(1, 2**20),
        "layer_norm_epsilon": number(0, 1),
        "feed_forward_proj": TEXT,
    },
}

# --- Arguments of functions, and flags ---
# The largest seed that PyTorch takes; from -1 down, seeds count backwards from there.
MAX_SEED = 2**64 - 1

ARGUMENTS: dict[str, Range] = {
    "n": whole(1, 100_000),
    "seed": whole(-(2**63), MAX_SEED, "a whole number from -2^63 to 2^64 - 1"),
    "batch": whole(1, 2**16),
    "iterations": whole(0, 10_000),
    "share": number(0, 1, above=True),
    "pad": each(whole(0, 2**20), 4, 4),
    "side": whole(1, 4096),
    "count": whole(1, 10**7),
    "images_per_tar": whole(1, 10**6),
    "smallest": whole(1, 4096),
    "masked": whole(0, 2**31),
    "steps": whole(1, 10**6),
    "max_length": whole(1, 10_000),
    "columns": whole(1, 10_000),
    "cell": whole(8, 4096),
    "plain": SWITCH,
    "finetuned": SWITCH,
    "keep_pixels": SWITCH,
    "tile": SWITCH,
    "resume": SWITCH,
    "generator": GENERATOR,
    "ratio": number(0, 1, above=True),
    "port": whole(1, 65_535),
}


# --- Checks ---
def check_settings(settings: Any) -> None:
    """Check every field of a dataclass that SETTINGS has; make numpy's numbers and lists plain.

    Raises a ValueError that begins with the name of the field.
    """
    for name, allowed in ranges_of(type(settings)).items():
        value = getattr(settings, name)
        check(name, value, allowed)
        # JSON cannot hold numpy's numbers, and a list has no hash. The dataclass is frozen.
        object.__setattr__(settings, name, plain(value))


def check_setting(kind: type, name: str, value: Any, key: str) -> None:
    """Check the value of one field of a dataclass; the message begins with `key`."""
    check(key, value, ranges_of(kind)[name])


def check_arguments(**values: Any) -> None:
    """Check arguments of a function, by the ranges of their names in ARGUMENTS."""
    for name, value in values.items():
        check(name, value, ARGUMENTS[name])


def check_tokenizer(config: Any) -> None:
    """Raise a ValueError if settings of a `TokenizerConfig` do not fit each other."""
    decoder_blocks = config.decoder_blocks or config.blocks
    if not len(config.multipliers) == len(config.blocks) == len(decoder_blocks):
        raise ValueError(
            f"multipliers {config.multipliers}, blocks {config.blocks} and decoder_blocks "
            f"{config.decoder_blocks} must be of one length"
        )
    if config.quantizer not in ("ema", "fsq"):
        raise ValueError(f"quantizer is {config.quantizer!r}; choose ema or fsq")
    if config.quantizer == "fsq":
        if math.prod(config.levels) != config.codes or len(config.levels) != config.code_width:
            raise ValueError(
                f"levels is {config.levels}; FSQ's must multiply to codes={config.codes}, "
                f"one per code_width={config.code_width}"
            )
    elif config.code_width < 2:  # the latents are normalized: all would be 0
        raise ValueError(f"code_width is {config.code_width}; ema needs 2 or more")
    if config.side % config.factor != 0:
        raise ValueError(f"side is {config.side}, not a multiple of the factor {config.factor}")


def check_grids(low_grid: int, grid: int, piece: int) -> None:
    """Raise a ValueError if super-resolution cannot have these sides of grids, in tokens."""
    if grid % low_grid:
        raise ValueError(
            f"the high-res grid ({grid}) is not a multiple of the low-res one ({low_grid})"
        )
    scale = grid // low_grid
    if grid % piece or piece % scale:
        raise ValueError(
            f"a grid of {grid} tokens cannot be cut into pieces of {piece}: the grid must be a "
            f"multiple of the piece, and the piece a multiple of {scale}, the side of what one "
            "low-res token covers"
        )
    if piece < grid and grid // piece % 2:
        raise ValueError(
            f"{grid // piece} pieces along a side of {grid} tokens; a training step samples a "
            "quarter of them, so their number must be even"
        )


def check(name: str, value: Any, allowed: Range) -> None:
    """Raise a ValueError that names key, value and range."""
    if not allowed.accepts(value):
        raise ValueError(f"{name} is {typed(value)}, not {allowed.words}")


def ranges_of(kind: type) -> dict[str, Range]:
    """The ranges of all fields of a dataclass; those that it inherits come first."""
    ranges: dict[str, Range] = {}
    for parent in reversed(kind.__mro__):
        ranges |= SETTINGS.get(parent.__name__, {})
    return ranges


def typed(value: Any) -> str:
    """A value in a message, with its type where that is what may be wrong."""
    if isinstance(value, str):
        return repr(shown(value))
    if value is None or type(value) in (bool, int, float, tuple, list, dict):
        return shown(value)
    return f"{shown(value)}, of type {type(value).__module__}.{type(value).__name__}"


def shown(value: Any) -> str:
    """A value in a message: in one line, and not longer than a line."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length()} bits"
    text = " ".join(str(value).split())
    if not text.isprintable():
        text = ascii(text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(value: Any) -> Any:
    """A numpy number as Python's, and a list as a tuple."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (tuple, list)):
        return tuple(plain(x) for x in value)
    return value


def argument_from_text(name: str, text: str) -> int | float:
    """Read the value of a flag, such as "3" of --n, and check it."""
    allowed = ARGUMENTS[name]
    try:
        value = allowed.kind(text)
    except ValueError:
        raise ValueError(f"'{shown(text)}' is not {allowed.words}") from None
    if not allowed.accepts(value):
        raise ValueError(f"{shown(value)} is not {allowed.words}")
    return value


def later_seed(seed: int, steps: int) -> int:
    """The seed `steps` after this one; after the largest one they begin again at 0."""
    later = int(seed) + steps
    return later if later <= MAX_SEED else later - MAX_SEED - 1
