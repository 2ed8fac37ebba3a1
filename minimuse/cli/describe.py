"""What a preset or a model costs: parameters, arithmetic and memory, computed from shapes alone.

    minimuse describe muse-3b            # --json: plain numbers
    minimuse describe toy-shapes         # also the words of its training captions

Every part is built on PyTorch's meta device, where a tensor has a shape and no memory. A forward
pass is run there while PyTorch's counter adds up its matrix products, with 2 FLOPs for a
multiplication and its addition. Not counted: all that is no matrix product, and the memory of
activations.
"""

import argparse
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from minimuse.data import ASSETS
from minimuse.decode import Sampling
from minimuse.plumbing.config import PRESETS, Config, Stage, from_json
from minimuse.plumbing.parts import PARTS, build, find_model, read_about
from minimuse.plumbing.places import shipped
from minimuse.plumbing.t5_files import read_t5_config
from minimuse.plumbing.vocabulary import MOST_WORDS
from minimuse.t5_frozen import MAX_TOKENS, T5Config, T5Encoder

# So many GPUs share a model, its gradients and its optimizer.
GPUS = (1, 8, 64)

# T5 v1.1 XXL, the paper's text encoder
XXL = T5Config(
    vocab_size=32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj="gated-gelu",
)

# Bytes for each parameter in training, all in float32: weight, gradient and average (12 bytes).
# AdamW adds two moments. Adafactor adds almost nothing: two vectors for each matrix.
TRAINING_BYTES = {"adamw": 20, "adafactor": 12}

# How `minimuse describe` prints each group of numbers.
UNITS = {"parameters": (1e6, "M"), "flops": (1e12, "TFLOP"), "memory": (1e9, "GB")}

# Of a larger vocabulary, `minimuse describe` prints about so many words, from all of the alphabet.
MOST_PRINTED = 60


def run_describe(args: argparse.Namespace) -> None:
    """`minimuse describe`: print what a preset or a model costs, and which words a model has read.

    "toy" is the name of both: the costs are those of the preset.
    """
    about = about_model(args.name)
    if args.name in PRESETS:
        costs = describe(args.name, args.t5)
    else:
        t5 = args.t5 or text_encoder_directory(about["text"]["name"])
        costs = costs_of(from_json(about["config"]), read_t5_config(t5 / "config.json"))
    words = None  # of a preset, and of a model that keeps none
    if about is not None and "vocabulary" in about:
        words = about["vocabulary"].split()
    if args.json:
        print(json.dumps(costs if about is None else costs | {"vocabulary": words}, indent=1))
        return
    for group, values in costs.items():
        divisor, unit = UNITS[group]
        for name, value in values.items():
            print(f"{group:<12}{name:<28}{value / divisor:>14,.3f} {unit}")
    if about is not None:
        print_words(words)


def about_model(name: str) -> dict[str, Any] | None:
    """What config.json says of a model; None if this is the name of a preset alone."""
    if name in PRESETS:
        directory = shipped(name, "base.safetensors")
        return None if directory is None else read_about(directory)
    try:
        return read_about(find_model(name))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; presets are {', '.join(PRESETS)}") from None


def text_encoder_directory(name: str) -> Path:
    """The directory of a text encoder that a model's config.json names."""
    return shipped(name, "config.json") or Path(name)


def print_words(words: list[str] | None) -> None:
    """Print a model's vocabulary, or of a long one every n-th word."""
    if words is None:
        text = f"not kept: by an older version, or there are more than {MOST_WORDS:,}"
    elif len(words) <= MOST_PRINTED:
        text = f"{len(words)}: {', '.join(words)}"
    else:
        every = -(-len(words) // MOST_PRINTED)  # rounded up
        text = f"{len(words):,} (--json lists all), such as {', '.join(words[::every])}"
    print(textwrap.fill(text, 100, initial_indent=f"{'words':<12}", subsequent_indent=" " * 12))


def describe(preset: str, t5: Path | None = None) -> dict[str, dict[str, int]]:
    """`costs_of` a preset. The text encoder is the one whose config.json is in the directory `t5`.

    By default it is T5-XXL for a base model wider than 512, else the one that ships with minimuse.
    """
    config = PRESETS[preset]
    return costs_of(config, text_encoder_config(config, t5))


@torch.no_grad()
def costs_of(config: Config, t5_config: T5Config) -> dict[str, dict[str, int]]:
    """Return {"parameters": ..., "flops": ..., "memory": ...} of a model, each {name: number}.

    Parameters of each part; FLOPs of an image, guided in all steps, and of a training step; memory
    in bytes.
    """
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"text": T5Encoder(t5_config)}
        for name in PARTS:
            parts[name] = build(name, config, t5_config.d_model)
        flops = count_flops(parts, config, t5_config.d_model)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return {"parameters": sizes, "flops": flops, "memory": memory(sizes)}


def text_encoder_config(config: Config, t5: Path | None) -> T5Config:
    if t5 is not None:
        return read_t5_config(t5 / "config.json")
    if config.base.width > 512:
        return XXL
    return read_t5_config(ASSETS / "t5-toy" / "config.json")


def count_flops(parts: dict[str, nn.Module], config: Config, E: int) -> dict[str, int]:
    """FLOPs of all parts, for one image and the longest caption; E is the width of the text."""
    ids = torch.zeros(1, MAX_TOKENS, dtype=torch.long)
    visible = torch.ones(1, MAX_TOKENS, dtype=torch.bool)
    text = torch.zeros(1, MAX_TOKENS, E)  # (1, T, E)
    low_config, high_config = config.tokenizer, config.tokenizer_hi
    low = torch.zeros(1, low_config.grid**2, dtype=torch.long)  # (1, n)
    high = torch.zeros(1, high_config.grid**2, dtype=torch.long)  # (1, N)
    z = torch.zeros(1, high_config.code_width, high_config.grid, high_config.grid)
    flops = {"text": count(lambda: parts["text"](ids, visible))}
    flops |= transformer_flops(
        "base", parts["base"], low, (text, visible), config.sampling, config.stages.base
    )
    flops |= transformer_flops(
        "superres",
        parts["superres"],
        high,
        (text, visible, low),
        config.sampling_hi,
        config.stages.superres,
    )
    flops["decoder_image"] = count(lambda: parts["decoder"](z))
    return flops


def transformer_flops(
    name: str,
    model: nn.Module,
    ids: torch.Tensor,
    inputs: tuple[torch.Tensor, ...],
    sampling: Sampling,
    stage: Stage,
) -> dict[str, int]:
    """FLOPs of the base or the super-resolution model, for one image.

    `inputs` are the arguments of `model.context`, which is computed once for all steps.
    """
    context = model.context(*inputs)
    once = count(lambda: model.context(*inputs))
    each_pass = count(lambda: model(ids, context))
    # Guidance takes two passes in each step: with the caption, and without.
    passes = 2 * sampling.steps
    # In training, the backward pass takes two matrix products for each one of the forward pass: for
    # the gradient of the input, and for that of the weight.
    return {
        f"{name}_pass": once + each_pass,
        f"{name}_image": 2 * once + passes * each_pass,
        f"{name}_image_uncached": passes * (once + each_pass),
        f"{name}_train_step": 3 * stage.batch * (once + each_pass),
    }


def count(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def memory(sizes: dict[str, int]) -> dict[str, int]:
    """Bytes to hold all parts in bfloat16, and for each GPU to train one of the transformers.

    `sizes` are numbers of parameters. Only AdamW is given for several GPUs.
    """
    bytes_needed = {"hold": 2 * sum(sizes.values())}
    for part in ("base", "superres"):
        for optimizer, bytes_each in TRAINING_BYTES.items():
            for n in GPUS if optimizer == "adamw" else (1,):
                total = sizes[part] * bytes_each
                bytes_needed[f"{part}_{optimizer}_on_{n}"] = -(-total // n)  # rounded up
    return bytes_needed
