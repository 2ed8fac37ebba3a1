"""Is minimuse faster than its alternative? Our base model against muse-maskgit-pytorch's.

    pip install transformers
    pip install --no-deps muse-maskgit-pytorch memory-efficient-attention-pytorch \\
        vector-quantize-pytorch ema-pytorch beartype accelerate einx frozendict loguru \\
        torch-einops-utils
    OMP_NUM_THREADS=2 python tests/bench/peer.py                  # speed: minutes
    OMP_NUM_THREADS=2 python tests/bench/peer.py --seconds 120    # quality after equal time

Speed is that of training and of guided decoding, in alternating rounds of one run. Equal for both:
width, depth, heads, tokens, codes, batch, dtype, threads, optimizer (fused AdamW, gradients
clipped), passes, and guidance in every pass. Text is embedded beforehand for both. The peer has two
kinds of attention. It is compared with the one that is faster here, of those that run.

For quality, both train on the same low-res tokens of scenes for the same time. The peer's learning
rate is tuned, by the validation loss that is compared. Ours is the preset's. Guidance is tuned for
both. toy-shapes' super-resolution and decoder finish the images for both.
"""

import argparse
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from minimuse import Muse
from minimuse.data import Images, Tokens
from minimuse.datasets import load, shapes
from minimuse.decode import Sampling, decode
from minimuse.device import autocast, generator_at
from minimuse.maskgit import BaseConfig, MaskGit, drop_captions, hide, masked_token_loss
from minimuse.metrics.alignment import alignment
from minimuse.metrics.likelihood import hidden_nll
from minimuse.plumbing.config import PRESETS, Stage
from minimuse.runs.cache import tokens_of
from minimuse.schedule import mask_counts, random_masks
from minimuse.train import training_loop

TORCHVISION = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.datasets",
    "torchvision.utils",
)
PEER_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
GUIDANCES = (0.0, 1.0, 3.0)


# --- The two sides ---


def import_peer():
    """The peer. It needs torchvision for images alone; without torchvision a mock replaces it."""
    import accelerate  # noqa: F401
    import transformers

    # transformers loads these lazily. Load them before the mock, which they would find.
    for name in ("T5EncoderModel", "T5Tokenizer", "T5Config"):
        getattr(transformers, name)
    if not find_spec("torchvision"):
        for name in TORCHVISION:
            sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
    import muse_maskgit_pytorch
    from muse_maskgit_pytorch import muse_maskgit_pytorch as inner
    from muse_maskgit_pytorch.t5 import T5_CONFIGS

    inner.tqdm = lambda steps, **_: steps  # no progress bar in its timings
    return muse_maskgit_pytorch, T5_CONFIGS


class Ours:
    """Our base model behind the few calls that are compared."""

    def __init__(self, shape: SimpleNamespace, seed: int = 0):
        torch.manual_seed(seed)
        size = BaseConfig(shape.width, shape.layers, shape.heads)
        self.model = MaskGit(size, shape.codes, shape.grid, shape.text_width)
        self.shape = shape

    def loss(self, ids, text, visible, generator) -> torch.Tensor:
        context = self.model.context(text, drop_captions(visible, 0.1, generator))
        corrupted = hide(ids, self.model.mask_id, generator)
        logits = self.model(corrupted.ids, context, corrupted.hidden)
        loss, _ = masked_token_loss(logits, ids, corrupted.hidden)
        return loss

    @torch.no_grad()
    def draw(self, text, visible, passes: int, guidance: float, seed: int = 0) -> torch.Tensor:
        model = self.model
        sampling = Sampling(steps=passes, guidance=guidance, ramp=False)
        ids = torch.full((len(text), self.shape.grid**2), model.mask_id)
        cond = model.context(text, visible)
        uncond = None
        if guidance:
            uncond = model.context(torch.zeros_like(text), torch.zeros_like(visible))
        generators = [generator_at(seed, i) for i in range(len(text))]
        for step in decode(model, ids, model.mask_id, cond, uncond, sampling, generators):
            ids = step.ids
        return ids

    def nll(self, ids, text, visible, hidden) -> torch.Tensor:
        def context(rows):
            return self.model.context(text[rows], visible[rows])

        return hidden_nll(self.model, ids, context, hidden)


class Peer:
    """The same calls of the peer. Its tokenizer is left out of all that is timed."""

    def __init__(self, shape: SimpleNamespace, flash: bool, seed: int = 0):
        package, configs = import_peer()
        torch.manual_seed(seed)
        configs["none"] = {"config": SimpleNamespace(d_model=shape.text_width)}
        self.model = package.MaskGitTransformer(
            num_tokens=shape.codes,
            seq_len=shape.grid**2,
            dim=shape.width,
            depth=shape.layers,
            dim_head=shape.width // shape.heads,
            heads=shape.heads,
            ff_mult=4,
            flash=flash,
            t5_name="none",
        )
        tokenizer = package.VQGanVAE(
            dim=16, layers=1, codebook_size=shape.codes, use_vgg_and_gan=False
        )
        self.whole = package.MaskGit(
            image_size=2 * shape.grid,
            transformer=self.model,
            vae=tokenizer,
            cond_drop_prob=0.1,
        )
        del self.whole.vae, self.whole.cond_vae
        self.whole.vae = SimpleNamespace(
            get_encoded_fmap_size=lambda side: shape.grid, decode_from_ids=lambda ids: ids
        )
        self.shape = shape

    def loss(self, ids, text, visible, generator) -> torch.Tensor:
        return self.whole(ids, text_embeds=text)

    def draw(self, text, visible, passes: int, guidance: float, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(seed)
        self.model.encode_text = lambda texts: text
        grids = self.whole.generate(
            texts=[""] * len(text),
            timesteps=passes,
            cond_scale=1 + guidance,  # its scale 1 is no guidance
        )
        return grids.flatten(1)

    @torch.no_grad()
    def nll(self, ids, text, visible, hidden) -> torch.Tensor:
        logits = self.model(ids.masked_fill(hidden, self.model.mask_id), text_embeds=text)
        nll = F.cross_entropy(logits.transpose(1, 2).float(), ids, reduction="none")  # B N
        return (nll * hidden).sum(dim=1) / hidden.sum(dim=1)


Side = Ours | Peer


# --- Speed ---


def training_step(side: Side, ids, text, visible, lr: float) -> Callable[[], None]:
    """A function that takes one training step, the same for both sides."""
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
            begun = time.perf_counter()
            for _ in range(repeat):
                work()
            times[name].append((time.perf_counter() - begun) / repeat)
    # The first round warms up.
    return {name: seconds[1:] for name, seconds in times.items()}


def speed_cells(times: dict[str, list[float]], unit: str, count: int) -> str:
    """Medians and spreads, and how many times as fast ours is as the faster of the peer's."""
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    peers = [name for name in times if name != "ours"]
    best = min(peers, key=lambda name: median[name])
    ratios = [peer / ours for peer, ours in zip(times[best], times["ours"], strict=True)]

    def cell(name: str) -> str:
        low, high = min(times[name]), max(times[name])
        return f"{1000 * median[name]:.1f} ms ({1000 * low:.1f}-{1000 * high:.1f})"

    rates = f"{count / median['ours']:,.0f} against {count / median[best]:,.0f} {unit}"
    factor = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})"
    return f"{cell('ours')} | {cell(best)}, {best} | {rates} | {factor}"


def compare_speed(title: str, shape: SimpleNamespace, args: Namespace) -> None:
    sides = {"ours": Ours(shape), "written out": Peer(shape, flash=False)}
    with autocast("cpu"):
        half_precision = torch.is_autocast_enabled("cpu")
    if not half_precision:
        # In bf16 its flash attention overflows: it masks with fp32's largest number.
        sides["flash"] = Peer(shape, flash=True)
    parameters = []
    for name in ("ours", "written out"):
        count = sum(p.numel() for p in sides[name].model.parameters())
        parameters.append(f"{name}: {count:,}")
    print(
        f"\n{title}: {shape.grid**2} tokens, width {shape.width}, {shape.layers} layers; "
        f"parameters {', '.join(parameters)}\n"
    )
    print("| | ours | muse-maskgit-pytorch, its attention | a second | times as fast |")
    print("|---|---|---|---|---|")

    generator = torch.Generator().manual_seed(1)
    B, N = shape.batch, shape.grid**2
    ids = torch.randint(shape.codes, (B, N), generator=generator)
    text = torch.randn(B, shape.words, shape.text_width, generator=generator)
    visible = torch.ones(B, shape.words).bool()
    steps = {name: training_step(side, ids, text, visible, 1e-4) for name, side in sides.items()}
    times = alternate(steps, args.rounds, args.repeat)
    print(f"| training, batch {B} | {speed_cells(times, 'tokens', ids.numel())} |", flush=True)

    for side in sides.values():
        side.model.eval()
    for batch in (1, 8):
        draws = {name: drawing(side, text[:batch], visible[:batch]) for name, side in sides.items()}
        with autocast("cpu"):
            times = alternate(draws, args.rounds, 1)
        cells = speed_cells(times, "images", batch)
        print(f"| 12 guided passes, batch {batch} | {cells} |", flush=True)


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
        sides[f"muse-maskgit-pytorch, rate {lr:g}"] = (Peer(shape, flash=False), settings)
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
    parser.add_argument("--repeat", type=int, default=4, help="training steps in a round")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="of training, to compare quality in place of speed",
    )
    parser.add_argument("--pictures", type=int, default=10_000)
    return parser.parse_args()


def main():
    args = arguments()
    if args.seconds:
        with tempfile.TemporaryDirectory() as folder:
            compare_quality(args, Path(folder))
        return
    toy = PRESETS["toy"]
    text = dict(text_width=256, words=16)
    toy_shape = SimpleNamespace(
        **vars(toy.base), codes=toy.tokenizer.codes, grid=toy.tokenizer.grid, batch=32, **text
    )
    muse_shape = SimpleNamespace(width=256, layers=6, heads=4, codes=1024, grid=16, batch=8, **text)
    compare_speed("The toy's base model", toy_shape, args)
    compare_speed("Muse's grid", muse_shape, args)


if __name__ == "__main__":
    main()
