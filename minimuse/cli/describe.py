"""What a preset costs: parameters, arithmetic and memory, from shapes alone.

    minimuse describe muse-3b            # --json: plain numbers

Every part is built on PyTorch's meta device, where a tensor has a shape and no memory, and a pass is run there while a counter adds up
its matrix products: 2 FLOPs for a multiplication with its addition. Left out: all that is no matrix product, and activations.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from minimuse.data import ASSETS
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.parts import PARTS, build
from minimuse.plumbing.t5_files import read_t5_config
from minimuse.t5_frozen import MAX_TOKENS, T5Config, T5Encoder

GPUS = (1, 8, 64)


XXL = T5Config(
    32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj="gated-gelu",
)  # T5 v1.1


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@torch.no_grad()
def describe(preset: str, t5: Path | None = None) -> dict:
    """Plain numbers: parameters of each part; FLOPs of a picture, guided in all steps, and of a training step; bytes of memory.

    The text encoder is T5-XXL for a base model wider than 512, else the toy's; or that of the directory `t5`.
    """
    config = PRESETS[preset]
    encoder = (
        XXL
        if config.base.width > 512 and not t5
        else read_t5_config((t5 or ASSETS / "t5-toy") / "config.json")
    )
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"text": T5Encoder(encoder)} | {
            part: build(part, config, encoder.d_model) for part in PARTS
        }
        text, seen = (
            torch.zeros(1, MAX_TOKENS, encoder.d_model),
            torch.ones(1, MAX_TOKENS, dtype=torch.bool),
        )
        low, high = (
            torch.zeros(1, t.grid**2, dtype=torch.long)
            for t in (config.tokenizer, config.tokenizer_hi)
        )
        found = {
            "text": flops(lambda: parts["text"](torch.zeros(1, MAX_TOKENS, dtype=torch.long), seen))
        }
        for name, ids, sampling, *below in (
            ("base", low, config.sampling),
            ("superres", high, config.sampling_hi, low),
        ):
            context = parts[name].context(text, seen, *below)
            once, again = (
                flops(lambda: parts[name].context(text, seen, *below)),
                flops(lambda: parts[name](ids, context)),
            )
            passes = 2 * sampling.steps  # guided: with the caption, and without
            # the backward pass takes two products for each one: by the input, and by the weight
            found |= {
                f"{name}_pass": once + again,
                f"{name}_image": 2 * once + passes * again,
                f"{name}_image_uncached": passes * (once + again),
            }
            found |= {f"{name}_train_step": 3 * getattr(config.stages, name).batch * (once + again)}
        z = torch.zeros(
            1, config.tokenizer_hi.code_width, config.tokenizer_hi.grid, config.tokenizer_hi.grid
        )
        found |= {"decoder_image": flops(lambda: parts["decoder"](z))}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    hold = 2 * sum(sizes.values())  # bf16
    # of each parameter in fp32: weight, gradient, average; AdamW's two moments; Adafactor's second moment is two vectors of a matrix
    train = {
        f"{name}_{how}": sizes[name] * each
        for name in ("base", "superres")
        for how, each in (("adamw", 20), ("adafactor", 12))
    }
    per_gpu = {
        f"{name}_on_{n}": -(-size // n)
        for name, size in train.items()
        for n in GPUS
        if n == 1 or name.endswith("adamw")
    }
    return {"parameters": sizes, "flops": found, "memory": {"hold": hold, **per_gpu}}


def show_costs(preset: str, t5: Path | None, plain: bool) -> None:
    found, units = (
        describe(preset, t5),
        {"parameters": (1e6, "M"), "flops": (1e12, "TFLOP"), "memory": (1e9, "GB")},
    )
    if plain:
        print(json.dumps(found, indent=1))
        return
    for kind, row in found.items():
        for name, value in row.items():
            print(f"{kind:<12}{name:<28}{value / units[kind][0]:>14,.3f} {units[kind][1]}")
