"""How fast a preset's base model is on this machine, with random weights: a guided picture, and a training step.

    python tests/bench/large.py --preset muse-3b --device cuda --peak 989        # bf16 TFLOP/s of an H100 or H200: for the share in use
    python tests/bench/large.py --preset tiny                                    # the same script on a CPU, to see that it runs

What to expect of 3 B: a pass with and without caption is 3 TFLOP for 256 tokens, 24 of them are 75 ms at 989 TFLOP/s, in which 6 GB of
weights are read 24 times (30 ms at 4.8 TB/s); the paper's TPUv4 takes 500 ms. Text is embedded beforehand, and T5 not counted.
Training: the preset's settings, but AdamW alone or Adafactor; recomputed blocks and torch.compile by flags.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from minimuse.cli.describe import describe
from minimuse.data import Tokens, offsets
from minimuse.decode import decode
from minimuse.device import autocast
from minimuse.losses import token_loss
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.parts import build
from minimuse.runs import parallel
from minimuse.train import training_loop


def timed(work, rounds: int, device: str) -> list[float]:
    """Seconds of each round, after two to warm up."""
    seconds = []
    for _ in range(rounds + 2):
        begun = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds[2:]


def said(what: str, seconds: list[float], flops: float, peak: float) -> None:
    middle = statistics.median(seconds)
    share = f", {flops / middle / peak / 1e12:.0%} of {peak:g} TFLOP/s" if peak else ""
    spread = f"{1000 * min(seconds):,.1f} to {1000 * max(seconds):,.1f}"
    print(
        f"{what}: {1000 * middle:,.1f} ms ({spread}), {flops / middle / 1e12:.3f} TFLOP/s{share}",
        flush=True,
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", default="tiny", choices=PRESETS)
    p.add_argument("--device", default="cpu")
    p.add_argument(
        "--batch", type=int, default=0, help="of the training step; default the preset's"
    )
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--peak", type=float, default=0.0, help="TFLOP/s that the device could reach")
    p.add_argument("--optimizer", default="adamw", choices=("adamw", "adafactor"))
    p.add_argument("--micro-batch", type=int, default=0)
    p.add_argument("--recompute", action="store_true")
    p.add_argument("--compile", action="store_true")
    args = p.parse_args()
    config, costs, words = PRESETS[args.preset], describe(args.preset), 32
    config = replace(config, scale=replace(config.scale, micro_batch=args.micro_batch))
    width = 4096 if config.base.width > 512 else 256
    torch.manual_seed(0)
    with torch.device(args.device):
        model = build("base", config, width)
    parallel.fit(model, args.compile, args.recompute, args.device)
    print(
        f"{args.preset}: {costs['parameters']['base']:,} parameters, {config.tokenizer.grid**2} tokens, {config.sampling.steps} passes"
    )

    drawing = (
        model.bfloat16() if args.device != "cpu" else model
    )  # half of the bytes to read; autocast would convert them in every pass
    text, visible = (
        torch.randn(1, words, width, device=args.device),
        torch.ones(1, words, dtype=torch.bool, device=args.device),
    )
    ids = torch.full((1, config.tokenizer.grid**2), model.mask_id, device=args.device)

    @torch.no_grad()
    def draw():
        with autocast(args.device):
            contexts = (
                drawing.context(text.to(next(model.parameters()).dtype), seen)
                for seen in (visible, torch.zeros_like(visible))
            )
            for _ in decode(
                drawing,
                ids,
                model.mask_id,
                *contexts,
                replace(config.sampling, ramp=False),
                torch.Generator().manual_seed(0),
            ):
                pass

    said(
        "a guided picture, batch 1",
        timed(draw, args.rounds, args.device),
        costs["flops"]["base_image"],
        args.peak,
    )

    model = model.float()
    settings = replace(
        config.stages.base,
        optimizer=args.optimizer,
        muon_lr=0.0,
        steps=args.rounds + 2,
        batch=args.batch or config.stages.base.batch,
    )
    M, flat = 4 * settings.batch, torch.arange(4 * settings.batch)
    rows = {
        "low": torch.randint(config.tokenizer.codes, (M, ids.shape[1])),
        "text": torch.randn(M * words, width).bfloat16(),
        "starts": offsets([words] * M),
    }
    tokens = Tokens([rows | {"variants": flat, "owns": offsets([1] * M)}])
    with tempfile.TemporaryDirectory() as folder:
        steps = training_loop(
            "base",
            model,
            token_loss(model, tokens, config, "low", args.device),
            settings,
            M,
            0,
            Path(folder) / "checkpoint",
            {},
        )
        seconds = timed(lambda: next(steps), args.rounds, args.device)
        next(steps, None)  # to its end: closed before, it would save
        flops = costs["flops"]["base_train_step"] / config.stages.base.batch * settings.batch
        said(f"a training step, batch {settings.batch}", seconds, flops, args.peak)
        tokens_a_second = settings.batch * ids.shape[1] / statistics.median(seconds)
        print(f"{tokens_a_second:,.0f} tokens a second")
        if args.device != "cpu":
            print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")
