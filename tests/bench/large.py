"""How fast a preset's base model is on this machine, with random weights.

    python tests/bench/large.py --preset muse-3b --device cuda --peak 989   # H100, H200: bf16
    python tests/bench/large.py --preset tiny    # the same script on a CPU, to see that it runs

Measures a guided image and a training step. --peak, in TFLOP/s, is for the fraction of it in use.

What to expect of 3 B: a pass with and without caption is 3 TFLOP for 256 tokens. 24 of them take
75 ms at 989 TFLOP/s. Reading 6 GB of weights 24 times takes 30 ms of that at 4.8 TB/s. The paper's
TPUv4 takes 500 ms. Text is embedded beforehand, and T5 is not counted. Training has the preset's
settings, but AdamW alone or Adafactor. Recomputed blocks and torch.compile have flags.
"""

import argparse
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minimuse.cli.describe import describe
from minimuse.data import Tokens, offsets
from minimuse.decode import decode
from minimuse.device import autocast, generator_at
from minimuse.losses import token_loss
from minimuse.plumbing.config import PRESETS, Config
from minimuse.plumbing.parts import build
from minimuse.runs import parallel
from minimuse.train import training_loop

WORDS = 32  # text tokens of a caption


def timed(work: Callable[[], object], rounds: int, device: str) -> list[float]:
    """Seconds of each round, after two to warm up."""
    seconds = []
    for _ in range(rounds + 2):
        begun = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds[2:]


def print_times(title: str, seconds: list[float], flops: float, peak: float) -> None:
    median = statistics.median(seconds)
    spread = f"{1000 * min(seconds):,.1f} to {1000 * max(seconds):,.1f}"
    speed = flops / median / 1e12
    line = f"{title}: {1000 * median:,.1f} ms ({spread}), {speed:.3f} TFLOP/s"
    if peak:
        line += f", {speed / peak:.0%} of {peak:g} TFLOP/s"
    print(line, flush=True)


def time_drawing(model: nn.Module, config: Config, width: int, args: Namespace) -> list[float]:
    """Seconds of each guided image, batch 1."""
    # Half as many bytes to read; autocast would convert the weights in every pass.
    drawing = model.bfloat16() if args.device != "cpu" else model
    dtype = next(drawing.parameters()).dtype
    text = torch.randn(1, WORDS, width, device=args.device).to(dtype)
    visible = torch.ones(1, WORDS, dtype=torch.bool, device=args.device)
    ids = torch.full((1, config.tokenizer.grid**2), model.mask_id, device=args.device)
    sampling = replace(config.sampling, ramp=False)

    @torch.no_grad()
    def draw():
        with autocast(args.device):
            cond = drawing.context(text, visible)
            uncond = drawing.context(text, torch.zeros_like(visible))
        generators = [generator_at("bench", device=args.device)]
        for _ in decode(drawing, ids, model.mask_id, cond, uncond, sampling, generators):
            pass

    return timed(draw, args.rounds, args.device)


def random_tokens(config: Config, images: int, width: int) -> Tokens:
    """Random ids and captions of WORDS words, one for each image."""
    return Tokens(
        [
            {
                "low": torch.randint(config.tokenizer.codes, (images, config.tokenizer.grid**2)),
                "text": torch.randn(images * WORDS, width).bfloat16(),
                "starts": offsets([WORDS] * images),
                "variants": torch.arange(images),
                "owns": offsets([1] * images),
            }
        ]
    )


def time_training(
    model: nn.Module, config: Config, width: int, batch: int, args: Namespace
) -> list[float]:
    """Seconds of each training step."""
    settings = replace(
        config.stages.base,
        optimizer=args.optimizer,
        muon_lr=0.0,
        steps=args.rounds + 2,
        batch=batch,
    )
    images = 4 * batch
    loss = token_loss(model, random_tokens(config, images, width), config, "low", args.device)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        steps = training_loop("base", model, loss, settings, images, 0, checkpoint, {})
        seconds = timed(lambda: next(steps), args.rounds, args.device)
        next(steps, None)  # run to the end: a loop that is closed before saves a checkpoint
    return seconds


def arguments() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--batch", type=int, default=0, help="of the training step; default the preset's"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--peak", type=float, default=0.0, help="TFLOP/s that the device could reach"
    )
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "adafactor"))
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def main():
    args = arguments()
    config = PRESETS[args.preset]
    config = replace(config, scale=replace(config.scale, micro_batch=args.micro_batch))
    costs = describe(args.preset)
    width = 4096 if config.base.width > 512 else 256
    N = config.tokenizer.grid**2
    torch.manual_seed(0)
    with torch.device(args.device):
        model = build("base", config, width)
    parallel.fit(model, args.compile, args.recompute, args.device)
    print(
        f"{args.preset}: {costs['parameters']['base']:,} parameters, {N} tokens, "
        f"{config.sampling.steps} passes"
    )
    seconds = time_drawing(model, config, width, args)
    print_times("a guided image, batch 1", seconds, costs["flops"]["base_image"], args.peak)

    batch = args.batch or config.stages.base.batch
    seconds = time_training(model.float(), config, width, batch, args)
    flops = costs["flops"]["base_train_step"] / config.stages.base.batch * batch
    print_times(f"a training step, batch {batch}", seconds, flops, args.peak)
    print(f"{batch * N / statistics.median(seconds):,.0f} tokens a second")
    if args.device != "cpu":
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")


if __name__ == "__main__":
    main()
