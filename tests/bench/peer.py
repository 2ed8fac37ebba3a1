"""Is minimuse faster than its alternatives? Our base model against those of two libraries.

    pip install transformers diffusers
    pip install --no-deps muse-maskgit-pytorch memory-efficient-attention-pytorch \\
        vector-quantize-pytorch ema-pytorch beartype accelerate einx frozendict loguru \\
        torch-einops-utils
    OMP_NUM_THREADS=2 python tests/bench/peer.py                  # speed: minutes
    OMP_NUM_THREADS=2 python tests/bench/peer.py --seconds 120    # quality after equal time

Speed is that of training and of guided decoding, in alternating rounds of one run, against
muse-maskgit-pytorch and diffusers' UVit2DModel (aMUSEd). Equal for all: width, depth, heads,
tokens, codes, batch, dtype, threads, optimizer (fused AdamW, gradients clipped), passes, and
guidance in every pass. Text is embedded beforehand. muse-maskgit-pytorch has two kinds of
attention, and takes part with the one that is faster here. Finished rows are kept in --out, so that
the script can be stopped and started again.

For quality, ours and muse-maskgit-pytorch's train on the same low-res tokens of scenes for the same
time. The peer's learning rate is tuned, by the validation loss that is compared. Ours is the
preset's. Guidance is tuned for both. toy-shapes' super-resolution and decoder finish the images for
both.
"""

import argparse
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from kept_rows import KeptRows
from sides import Amused, MuseMaskgit, Ours, Side
from torch import nn
from tqdm import tqdm

from minimuse import Muse
from minimuse.data import Images, Tokens
from minimuse.datasets import load, shapes
from minimuse.metrics.alignment import alignment
from minimuse.plumbing.config import PRESETS, Stage
from minimuse.plumbing.device import autocast, generator_at
from minimuse.runs.cache import tokens_of
from minimuse.schedule import mask_counts, random_masks
from minimuse.train import training_loop

PEER_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
GUIDANCES = (0.0, 1.0, 3.0)


# --- Speed ---


def training_step(side: Side, ids, text, visible, lr: float) -> Callable[[], None]:
    """A function that takes one training step, the same for all sides."""
    model = side.model.train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.96), weight_decay=0.045, fused=True
    )

    def step():
        with autocast("cpu"):
            loss = side.loss(ids, text, visible, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def alternate(works: dict[str, Callable], rounds: int, repeat: int) -> dict[str, list[float]]:
    """Call each `repeat` times, in turns. Returns seconds per call of each round, by name."""
    times = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(seconds_of(work, repeat))
    # The first round warms up.
    return {name: seconds[1:] for name, seconds in times.items()}


def seconds_of(work: Callable, repeat: int) -> float:
    """Seconds of a call, the mean of some calls."""
    begun = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - begun) / repeat


def faster_attention(shape: SimpleNamespace, batch: tuple) -> str:
    """Which attention of muse-maskgit-pytorch trains faster here: "written out" or "flash"."""
    sides = {"written out": MuseMaskgit(shape, flash=False)}
    with autocast("cpu"):
        half_precision = torch.is_autocast_enabled("cpu")
    if not half_precision:
        # In bf16 its flash attention overflows: it masks with fp32's largest number.
        sides["flash"] = MuseMaskgit(shape, flash=True)
    steps = {name: training_step(side, *batch, 1e-4) for name, side in sides.items()}
    times = alternate(steps, rounds=2, repeat=1)
    return min(times, key=lambda name: min(times[name]))


def speed_rows(work: str, times: dict[str, list[float]], unit: str, count: int) -> list[str]:
    """One row for each peer: medians, spreads, rates, and how many times as fast ours is."""
    median = {name: statistics.median(seconds) for name, seconds in times.items()}

    def cell(name: str) -> str:
        low, high = min(times[name]), max(times[name])
        return f"{1000 * median[name]:.1f} ms ({1000 * low:.1f}-{1000 * high:.1f})"

    rows = []
    for peer in times:
        if peer == "ours":
            continue
        ratios = [theirs / ours for theirs, ours in zip(times[peer], times["ours"], strict=True)]
        rates = f"{count / median['ours']:,.1f}, {count / median[peer]:,.1f} {unit}"
        factor = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})"
        rows.append(f"| {work} | {cell('ours')} | {peer} | {cell(peer)} | {rates} | {factor} |")
    return rows


def compare_speed(title: str, shape: SimpleNamespace, args: Namespace, kept: KeptRows) -> None:
    """Print a table of training and drawing, row by row as they are measured."""
    generator = torch.Generator().manual_seed(1)
    B, N = shape.batch, shape.grid**2
    ids = torch.randint(shape.codes, (B, N), generator=generator)
    text = torch.randn(B, shape.words, shape.text_width, generator=generator)
    visible = torch.ones(B, shape.words).bool()
    batch = (ids, text, visible)
    attention = kept.row(f"{title}, attention", partial(faster_attention, shape, batch))
    muse_maskgit = MuseMaskgit(shape, flash=attention == "flash")
    sides = {
        "ours": Ours(shape),
        f"muse-maskgit-pytorch, attention {attention}": muse_maskgit,
        "diffusers, UVit2DModel": Amused(shape),
    }
    print(f"\n{title}: {N} tokens, width {shape.width}, {shape.layers} layers\n")
    for name, side in sides.items():
        print(f"- {name}: {sum(p.numel() for p in side.model.parameters()):,} parameters")
    print("\n| | ours | peer | the peer's | per second: ours, peer | times as fast |")
    print("|---|---|---|---|---|---|", flush=True)

    def training() -> list[str]:
        steps = {
            name: training_step(side, ids, text, visible, 1e-4) for name, side in sides.items()
        }
        times = alternate(steps, args.rounds, args.repeat)
        return speed_rows(f"training, batch {B}", times, "tokens", ids.numel())

    def drawing_of(batch: int) -> list[str]:
        for side in sides.values():
            side.model.eval()
        draws = {name: drawing(side, text[:batch], visible[:batch]) for name, side in sides.items()}
        with autocast("cpu"):
            times = alternate(draws, args.rounds, 1)
        return speed_rows(f"12 guided passes, batch {batch}", times, "images", batch)

    print("\n".join(kept.row(f"{title}, training", training)), flush=True)
    for batch in (1, 8):
        rows = kept.row(f"{title}, drawing {batch}", partial(drawing_of, batch))
        print("\n".join(rows), flush=True)


def drawing(side: Side, text: torch.Tensor, visible: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that draws with 12 guided passes."""
    return lambda: side.draw(text, visible, 12, 3.0)


# --- Quality ---


def train_side(name: str, side: Side, settings: Stage, tokens: Tokens, checkpoint: Path):
    """The package's training loop, the same for both: warm-up, decay, averaged weights."""

    def parts_of(rows, generator, step):
        ids = tokens.ids("low", rows)
        text, visible = tokens.captions(rows, generator)
        yield side.loss(ids, text, visible, generator), {}

    model = side.model.train()
    return training_loop(name, model, parts_of, settings, len(tokens), 0, checkpoint, {})


def make_sides(muse: Muse, shape: SimpleNamespace, tokens: Tokens) -> dict[str, tuple[Side, Stage]]:
    """The peer with four learning rates, and ours with the preset's."""
    # The same batch for both; the peer's rates were chosen with it.
    ours = replace(PRESETS["demo"].stages.base, batch=48)
    sides = {}
    for lr in PEER_RATES:
        settings = replace(ours, lr=lr, muon_lr=0.0)
        sides[f"muse-maskgit-pytorch, rate {lr:g}"] = (MuseMaskgit(shape, flash=False), settings)
    minimuse = Ours(shape)
    codes = muse.tokenizer.quantizer.lookup(torch.arange(shape.codes))
    minimuse.model.start(tokens.shards[0]["text"].float(), codes)
    sides["minimuse"] = (minimuse, ours)
    return sides


def measure_pace(
    sides: dict[str, tuple[Side, Stage]], tokens: Tokens, rounds: int, folder: Path
) -> dict[str, float]:
    """Seconds of a training step of each side, of copies that train in turns."""
    works = {}
    for name, (side, settings) in sides.items():
        settings = replace(settings, steps=10**6)
        checkpoint = folder / f"{name}.safetensors"
        loop = train_side(name, deepcopy(side), settings, tokens, checkpoint)
        works[name] = loop.__next__
    times = alternate(works, rounds, 20)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def nll_at(side: Side, tokens: Tokens, ratio: float) -> float:
    """Nats per hidden token, with this fraction of tokens hidden."""
    ids = tokens.ids("low")  # M N
    M, N = ids.shape
    counts = mask_counts(torch.full((M,), ratio, dtype=torch.float64), N)
    hidden = random_masks(counts, N, generator_at("bench", ratio))  # M N
    text, visible = tokens.captions(torch.arange(M))
    return float(side.nll(ids, text, visible, hidden).mean())


def fractions_right(
    muse: Muse, side: Side, tokens: Tokens, images: Images, guidance: float, passes: int = 12
) -> dict[str, float]:
    """The fraction of images for the captions that are right in each attribute.

    toy-shapes' own super-resolution and decoder finish the images.
    """
    rows = torch.arange(len(images))
    captions = [variants[0] for variants in images.captions]
    low = []
    for part in rows.split(64):
        text, visible = tokens.captions(part)
        low.append(side.draw(text, visible, passes, guidance, seed=int(part[0])))
    low = torch.cat(low)
    drawn = []
    for part in rows.split(32):
        prompts = [captions[i] for i in part]
        last = dict(muse.steps(prompts, seed=int(part[0]), low=low[part]))
        drawn.append(muse.pixels(last["high"].ids, "high"))
    scenes = [shapes.parse(caption) for caption in captions]
    return {name: cell["value"] for name, cell in alignment(scenes, torch.cat(drawn)).items()}


def quality_row(
    name: str, steps: int, muse: Muse, side: Side, images: dict[str, Images], tokens: dict
) -> str:
    """Validation NLL, and what the detector says of held-out captions with the best guidance."""
    nll = {ratio: nll_at(side, tokens["validation"], ratio) for ratio in (1.0, 0.5)}
    scores = {}
    for guidance in GUIDANCES:
        right = fractions_right(muse, side, tokens["validation"], images["validation"], guidance)
        scores[guidance] = sum(right.values())
    best = max(scores, key=lambda guidance: scores[guidance])
    right = fractions_right(muse, side, tokens["heldout"], images["heldout"], best)
    cells = " | ".join(f"{right[name]:.2f}" for name in ("all", "shape", "count"))
    return f"| {name} | {steps} | {nll[1.0]:.2f} | {nll[0.5]:.2f} | {best:g} | {cells} |"


def compare_quality(args: Namespace, folder: Path) -> None:
    """The same tokens, the same seconds, the same training loop."""
    muse = Muse.load("toy-shapes")
    counts = {"train": args.pictures, "validation": 256, "heldout": 256}
    images = {}
    tokens = {}
    for split, count in counts.items():
        images[split] = load("shapes", split, muse.config.tokenizer_hi.side, count)
        tokens[split] = tokens_of(muse.parts, muse.text, images[split])
    shape = SimpleNamespace(
        **vars(PRESETS["demo"].base),
        codes=muse.config.tokenizer.codes,
        grid=muse.config.tokenizer.grid,
        text_width=muse.text.width,
    )
    sides = make_sides(muse, shape, tokens["train"])
    pace = measure_pace(sides, tokens["train"], args.rounds, folder)
    batch = sides["minimuse"][1].batch
    print(
        f"\nTokens of {args.pictures:,} scenes, {args.seconds:.0f} seconds of training each, "
        f"batch {batch}; captions of held-out scenes\n"
    )
    head = "steps | nats a token, all hidden | half hidden | guidance | right in all"
    print(f"| | {head} | in shape | in count |\n|---|---|---|---|---|---|---|---|")
    for name, (side, settings) in sides.items():
        steps = round(args.seconds / pace[name])
        full = f"{name} at length"
        settings = replace(settings, steps=steps)
        loop = train_side(full, side, settings, tokens["train"], folder / f"{full}.safetensors")
        for _ in tqdm(loop, total=steps, desc=name, mininterval=5):
            pass
        side.model.eval()
        print(quality_row(name, steps, muse, side, images, tokens), flush=True)


def arguments() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="alternating rounds, after one to warm up"
    )
    parser.add_argument("--repeat", type=int, default=2, help="training steps in a round")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="of training, to compare quality in place of speed",
    )
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("runs/peer.json"), help="finished rows")
    return parser.parse_args()


def main():
    args = arguments()
    if args.seconds:
        with tempfile.TemporaryDirectory() as folder:
            compare_quality(args, Path(folder))
        return
    about = {name: version(name) for name in ("muse-maskgit-pytorch", "diffusers")}
    kept = KeptRows(args.out, about | {"rounds": args.rounds, "repeat": args.repeat})
    print(kept.about["machine"])
    toy = PRESETS["toy"]
    text = dict(text_width=256, words=16)
    toy_shape = SimpleNamespace(
        **vars(toy.base), codes=toy.tokenizer.codes, grid=toy.tokenizer.grid, batch=32, **text
    )
    muse_shape = SimpleNamespace(width=256, layers=6, heads=4, codes=1024, grid=16, batch=8, **text)
    compare_speed("The toy's base model", toy_shape, args, kept)
    compare_speed("Muse's grid", muse_shape, args, kept)


if __name__ == "__main__":
    main()
