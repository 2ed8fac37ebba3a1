"""How fast a preset's transformers are on this machine, with random weights.

    python tests/bench/large.py --preset muse-3b --device cuda --peak 989   # H100, H200: bf16
    python tests/bench/large.py --preset tiny    # the same script on a CPU, to see that it runs

Times an image of the base model and the same with super-resolution, each with a plain and with a
compiled pass, and a training step. Prints how many tokens of the first pass are the same with both.
--only and --passes choose some of these. --peak, in TFLOP/s, is for the fraction of it in use.
`minimuse demo --device cuda` prints its own time.

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
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from minimuse.cli.describe import describe
from minimuse.data import Tokens, offsets
from minimuse.decode import Sampling, decode, one_pass
from minimuse.losses import token_loss
from minimuse.plumbing.compiled import compile_pass, round_weights
from minimuse.plumbing.config import PRESETS, Config
from minimuse.plumbing.device import autocast, generator_at
from minimuse.plumbing.parts import build
from minimuse.runs import parallel
from minimuse.train import training_loop

WORDS = 32  # text tokens of a caption
WORKS = ("drawing", "training")
PASSES = ("plain", "compiled")


def timed(work: Callable[[], object], rounds: int, device: str) -> list[float]:
    """Seconds of each round, after two to warm up."""
    seconds = [seconds_of(work, device) for _ in range(rounds + 2)]
    return seconds[2:]


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Seconds until the work is done, on the device too."""
    begun = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def print_times(title: str, seconds: list[float], flops: float, peak: float) -> None:
    median = statistics.median(seconds)
    spread = f"{1000 * min(seconds):,.1f} to {1000 * max(seconds):,.1f}"
    speed = flops / median / 1e12
    line = f"{title}: {1000 * median:,.1f} ms ({spread}), {speed:.3f} TFLOP/s"
    if peak:
        line += f", {speed / peak:.0%} of {peak:g} TFLOP/s"
    print(line, flush=True)


class Drawing:
    """Draws one image of random text with guidance: base model, then super-resolution."""

    def __init__(self, parts: dict[str, nn.Module], config: Config, width: int, device: str):
        self.base, self.superres = parts["base"], parts["superres"]
        self.config = config
        self.device = device
        self.text = torch.randn(1, WORDS, width, device=device)
        self.visible = torch.ones(1, WORDS, dtype=torch.bool, device=device)

    @torch.no_grad()
    def tokens(
        self, model: nn.Module, sampling: Sampling, grid: int, run_pass: Callable, *low: Tensor
    ) -> Iterator[Tensor]:
        """Yield the ids (1, N) after each step."""
        with autocast(self.device):
            cond = model.context(self.text, self.visible, *low)
            uncond = model.context(self.text, torch.zeros_like(self.visible), *low)
        ids = torch.full((1, grid**2), model.mask_id, device=self.device)
        generators = [generator_at("bench", device=self.device)]
        every_pass = replace(sampling, ramp=False)
        for step in decode(
            model, ids, model.mask_id, cond, uncond, every_pass, generators, run_pass=run_pass
        ):
            yield step.ids

    def passes(self, run_pass: Callable) -> Iterator[Tensor]:
        """The ids after each pass of the base model."""
        config = self.config
        return self.tokens(self.base, config.sampling, config.tokenizer.grid, run_pass)

    def small(self, run_pass: Callable) -> Tensor:
        """The low-res ids of an image."""
        *_, low = self.passes(run_pass)
        return low

    def whole(self, run_pass: Callable) -> Tensor:
        """The high-res ids of an image."""
        config = self.config
        low = self.small(run_pass)
        grid = config.tokenizer_hi.grid
        *_, high = self.tokens(self.superres, config.sampling_hi, grid, run_pass, low)
        return high


def measure_drawing(
    parts: dict[str, nn.Module], config: Config, width: int, costs: dict, args: Namespace
) -> None:
    """Print the times of an image, and how far the compiled pass agrees with the plain one."""
    drawing = Drawing(parts, config, width, args.device)
    # For both, so that their tokens can be compared. `generate` rounds weights with --compile only,
    # so without it an image takes longer than "plain" here.
    round_weights(drawing.base, drawing.superres)
    passes = {"plain": one_pass, "compiled": compile_pass(one_pass)}
    flops = costs["flops"]["base_image"]
    both = flops + costs["flops"]["superres_image"]
    for name, run_pass in passes.items():
        if name not in args.passes:
            continue
        first = seconds_of(partial(drawing.whole, run_pass), args.device)
        print(f"{name}: the first image took {first:.1f} s", flush=True)
        seconds = timed(partial(drawing.small, run_pass), args.rounds, args.device)
        print_times(f"{name}: a guided image of the base model", seconds, flops, args.peak)
        seconds = timed(partial(drawing.whole, run_pass), args.rounds, args.device)
        print_times(f"{name}: with super-resolution", seconds, both, args.peak)
    if set(args.passes) == set(passes):
        plain, compiled = (next(drawing.passes(run_pass)) for run_pass in passes.values())
        print(f"the same tokens after the first pass: {(plain == compiled).float().mean():.3f}")


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
    parser.add_argument("--only", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
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
    # Each builds its models anew: drawing rounds weights, and training changes them.
    if "drawing" in args.only:
        parts = built(("base", "superres"), config, width, args)
        measure_drawing(parts, config, width, costs, args)
        del parts
        print_memory(args.device)
    if "training" in args.only:
        model = built(("base",), config, width, args)["base"]
        measure_training(model, config, width, costs, args)
        print_memory(args.device)


def built(
    names: tuple[str, ...], config: Config, width: int, args: Namespace
) -> dict[str, nn.Module]:
    """Models with random weights, on the device; prints their sizes."""
    torch.manual_seed(0)
    with torch.device(args.device):
        parts = {name: build(name, config, width) for name in names}
    for name, model in parts.items():
        print(f"{args.preset}: {name} of {sum(p.numel() for p in model.parameters()):,} parameters")
    return parts


def print_memory(device: str) -> None:
    """Print the most memory of a GPU that was in use since the last call."""
    if device != "cpu":
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")
        torch.cuda.reset_peak_memory_stats()


def measure_training(
    model: nn.Module, config: Config, width: int, costs: dict, args: Namespace
) -> None:
    """Print the time of a training step of the base model."""
    parallel.fit(model, args.compile, args.recompute, args.device)
    batch = args.batch or config.stages.base.batch
    seconds = time_training(model, config, width, batch, args)
    flops = costs["flops"]["base_train_step"] / config.stages.base.batch * batch
    print_times(f"a training step, batch {batch}", seconds, flops, args.peak)
    tokens = batch * config.tokenizer.grid**2
    print(f"{tokens / statistics.median(seconds):,.0f} tokens a second")


if __name__ == "__main__":
    main()
