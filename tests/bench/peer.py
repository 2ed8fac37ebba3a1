"""Is it faster than what one would take instead? Our base model against muse-maskgit-pytorch's, alternating in one run.

    pip install transformers && pip install --no-deps muse-maskgit-pytorch memory-efficient-attention-pytorch vector-quantize-pytorch \\
        ema-pytorch beartype accelerate einx frozendict loguru torch-einops-utils
    OMP_NUM_THREADS=2 python tests/bench/peer.py                  # training and guided decoding, at equal shape: minutes
    OMP_NUM_THREADS=2 python tests/bench/peer.py --seconds 120    # instead: the same tokens, the same time, and what comes out of it

Equal: width, depth, heads, tokens, codes, batch, dtype, threads, optimizer (fused AdamW, gradients clipped), passes, guidance in every pass.
Text is embedded beforehand for both. The peer runs with the attention of its two that is quicker here, of those that run. In the comparison of quality both
train on the same low-res tokens of scenes; its learning rate is tuned (by the very validation loss that is compared), ours is the preset's,
and for both the guidance; the pictures are finished by the super-resolution and decoder of toy-shapes, for both.
"""

import argparse
import statistics
import sys
import tempfile
import time
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
from minimuse.datasets import load, shapes
from minimuse.decode import Sampling, decode
from minimuse.device import autocast, generator_at
from minimuse.maskgit import BaseConfig, MaskGit, drop_captions, hide, masked_token_loss
from minimuse.metrics import alignment
from minimuse.metrics.likelihood import hidden_nll
from minimuse.plumbing.config import PRESETS
from minimuse.runs.cache import tokens_of
from minimuse.schedule import mask_counts, random_masks
from minimuse.train import training_loop


def import_peer():
    """The peer; torchvision, which it needs for pictures alone, is stood in for where it is not there."""
    import accelerate  # noqa: F401
    import transformers

    (
        transformers.T5EncoderModel,
        transformers.T5Tokenizer,
        transformers.T5Config,
    )  # loaded before they can ask for torchvision
    if not find_spec("torchvision"):
        for name in (
            "torchvision",
            "torchvision.transforms",
            "torchvision.datasets",
            "torchvision.utils",
        ):
            sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
    import muse_maskgit_pytorch
    from muse_maskgit_pytorch import muse_maskgit_pytorch as inner
    from muse_maskgit_pytorch.t5 import T5_CONFIGS

    inner.tqdm = lambda steps, **_: steps  # no progress bar in its timings
    return muse_maskgit_pytorch, T5_CONFIGS


class Ours:
    """Our base model behind the few calls that are compared."""

    def __init__(self, shape, seed=0):
        torch.manual_seed(seed)
        self.model, self.shape = (
            MaskGit(
                BaseConfig(shape.width, shape.layers, shape.heads),
                shape.codes,
                shape.grid,
                shape.text_width,
            ),
            shape,
        )

    def loss(self, ids, text, visible, generator):
        context = self.model.context(text, drop_captions(visible, 0.1, generator))
        corrupted = hide(ids, self.model.mask_id, generator)
        return masked_token_loss(
            self.model(corrupted.ids, context, corrupted.hidden), ids, corrupted.hidden
        )[0]

    @torch.no_grad()
    def draw(self, text, visible, passes, guidance, seed=0):
        model, sampling = self.model, Sampling(steps=passes, guidance=guidance, ramp=False)
        ids = torch.full((len(text), self.shape.grid**2), model.mask_id)
        uncond = (
            model.context(torch.zeros_like(text), torch.zeros_like(visible)) if guidance else None
        )
        for step in decode(
            model,
            ids,
            model.mask_id,
            model.context(text, visible),
            uncond,
            sampling,
            torch.Generator().manual_seed(seed),
        ):
            ids = step.ids
        return ids

    def nll(self, ids, text, visible, hidden):
        return hidden_nll(
            self.model, ids, lambda rows: self.model.context(text[rows], visible[rows]), hidden
        )


class Peer:
    """The same of the peer. Its tokenizer is left out of all that is timed."""

    def __init__(self, shape, flash, seed=0):
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
        self.whole, self.shape = (
            package.MaskGit(
                image_size=2 * shape.grid, transformer=self.model, vae=tokenizer, cond_drop_prob=0.1
            ),
            shape,
        )
        del self.whole.vae, self.whole.cond_vae
        self.whole.vae = SimpleNamespace(
            get_encoded_fmap_size=lambda side: shape.grid, decode_from_ids=lambda ids: ids
        )

    def loss(self, ids, text, visible, generator):
        return self.whole(ids, text_embeds=text)

    def draw(self, text, visible, passes, guidance, seed=0):
        torch.manual_seed(seed)
        self.model.encode_text = lambda texts: text
        return self.whole.generate(
            texts=[""] * len(text), timesteps=passes, cond_scale=1 + guidance
        ).flatten(1)  # it counts from 1

    @torch.no_grad()
    def nll(self, ids, text, visible, hidden):
        logits = self.model(ids.masked_fill(hidden, self.model.mask_id), text_embeds=text)
        nll = F.cross_entropy(logits.transpose(1, 2).float(), ids, reduction="none")
        return (nll * hidden).sum(dim=1) / hidden.sum(dim=1)


def trainer(side, batches, lr):
    """A function that takes one training step, alike for both."""
    model, generator = side.model.train(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.96), weight_decay=0.045, fused=True
    )

    def step():
        with autocast("cpu"):
            loss = side.loss(*batches(generator), generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def alternate(works, rounds, repeat):
    """Seconds of `repeat` calls of each, in turns: {name: [a second per call, of each round]}."""
    times = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            begun = time.perf_counter()
            for _ in range(repeat):
                work()
            times[name].append((time.perf_counter() - begun) / repeat)
    return {name: seconds[1:] for name, seconds in times.items()}  # the first warms up


def said(times, what, count):
    """A row of the table: medians, spreads, and how many times as fast ours is than the quicker of the peer's."""
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    best = min((name for name in times if name != "ours"), key=middle.get)
    ratios = [theirs / ours for theirs, ours in zip(times[best], times["ours"])]
    cell = lambda name: (
        f"{1000 * middle[name]:.1f} ms ({1000 * min(times[name]):.1f}-{1000 * max(times[name]):.1f})"
    )
    rates = f"{count / middle['ours']:,.0f} against {count / middle[best]:,.0f} {what}"
    print(
        f"| {cell('ours')} | {cell(best)}, {best} | {rates} | **{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f}) |",
        flush=True,
    )


def speed(name, shape, args):
    sides = {"ours": Ours(shape), "written out": Peer(shape, False)}
    with autocast("cpu"):
        if not torch.is_autocast_enabled(
            "cpu"
        ):  # in bf16 its flash attention overflows: it masks with fp32's largest number
            sides["flash"] = Peer(shape, True)
    print(
        f"\n{name}: {shape.grid**2} tokens, width {shape.width}, {shape.layers} layers; parameters "
        + ", ".join(
            f"{side}: {sum(p.numel() for p in sides[side].model.parameters()):,}"
            for side in ("ours", "written out")
        )
    )
    print(
        "\n| | ours | muse-maskgit-pytorch, its attention | a second | times as fast |\n|---|---|---|---|---|"
    )
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(shape.codes, (shape.batch, shape.grid**2), generator=generator)
    text, visible = (
        torch.randn(shape.batch, shape.words, shape.text_width, generator=generator),
        torch.ones(shape.batch, shape.words).bool(),
    )
    steps = {
        name: trainer(side, lambda _: (ids, text, visible), 1e-4) for name, side in sides.items()
    }
    print(f"| training, batch {shape.batch} ", end="")
    said(alternate(steps, args.rounds, args.repeat), "tokens", ids.numel())
    for side in sides.values():
        side.model.eval()
    for batch in (1, 8):
        draws = {
            name: lambda side=side: side.draw(text[:batch], visible[:batch], 12, 3.0)
            for name, side in sides.items()
        }
        with autocast("cpu"):
            print(f"| 12 guided passes, batch {batch} ", end="")
            said(alternate(draws, args.rounds, 1), "pictures", batch)


def quality(args, folder):
    """The same tokens, the same seconds, the same loop (warm-up, decay, averaged weights): validation NLL, and what the detector says."""
    muse, preset = Muse.load("toy-shapes"), PRESETS["demo"]
    low, ours = (
        muse.config.tokenizer,
        replace(preset.stages.base, batch=48),
    )  # for both; the peer's rates were chosen with it
    counts = {"train": args.pictures, "validation": 256, "heldout": 256}
    sets = {
        split: load("shapes", split, muse.config.tokenizer_hi.side, count)
        for split, count in counts.items()
    }
    tokens = {split: tokens_of(muse.parts, muse.text, pictures) for split, pictures in sets.items()}
    shape = SimpleNamespace(
        **vars(preset.base), codes=low.codes, grid=low.grid, text_width=muse.text.width
    )
    sides = {
        f"muse-maskgit-pytorch, rate {lr:g}": (
            Peer(shape, False),
            replace(ours, lr=lr, muon_lr=0.0),
        )
        for lr in (3e-4, 1e-3, 3e-3, 1e-2)
    }
    sides["minimuse"] = Ours(shape), ours
    sides["minimuse"][0].model.start(
        tokens["train"].shards[0]["text"].float(),
        muse.tokenizer.quantizer.lookup(torch.arange(low.codes)),
    )

    def training(name, side, settings):
        def parts_of(rows, generator, step):
            yield (
                side.loss(
                    tokens["train"].ids("low", rows),
                    *tokens["train"].captions(rows, generator),
                    generator,
                ),
                {},
            )

        return training_loop(
            name,
            side.model.train(),
            parts_of,
            settings,
            len(tokens["train"]),
            0,
            folder / f"{name}.safetensors",
            {},
        )

    running = {
        name: training(name, deepcopy(side), replace(settings, steps=10**6))
        for name, (side, settings) in sides.items()
    }
    pace = alternate(
        {name: lambda records=records: next(records) for name, records in running.items()},
        args.rounds,
        20,
    )
    print(
        f"\nTokens of {args.pictures:,} scenes, {args.seconds:.0f} seconds of training each, batch {ours.batch}; captions of held-out scenes\n"
    )
    print(
        "| | steps | nats a token, all hidden | half hidden | guidance | right in all | in shape | in count |\n|---|---|---|---|---|---|---|---|"
    )
    for name, (side, settings) in sides.items():
        steps = round(args.seconds / statistics.median(pace[name]))
        for _ in tqdm(
            training(f"{name} at length", side, replace(settings, steps=steps)),
            total=steps,
            desc=name,
            mininterval=5,
        ):
            pass
        side.model.eval()
        nll, ids = {}, tokens["validation"].ids("low")
        for ratio in (1.0, 0.5):
            counts = mask_counts(torch.full((len(ids),), ratio, dtype=torch.float64), ids.shape[1])
            hidden = random_masks(counts, ids.shape[1], generator_at("bench", ratio))
            nll[ratio] = float(
                side.nll(ids, *tokens["validation"].captions(torch.arange(len(ids))), hidden).mean()
            )
        found = {
            guidance: right(muse, side, tokens["validation"], sets["validation"], guidance)
            for guidance in (0.0, 1.0, 3.0)
        }
        best = max(found, key=lambda guidance: sum(found[guidance].values()))
        share = right(muse, side, tokens["heldout"], sets["heldout"], best)
        drawn = " | ".join(f"{share[part]:.2f}" for part in ("all", "shape", "count"))
        print(
            f"| {name} | {steps} | {nll[1.0]:.2f} | {nll[0.5]:.2f} | {best:g} | {drawn} |",
            flush=True,
        )


def right(muse, side, tokens, pictures, guidance, passes=12):
    """Share of the pictures for captions that are right in each attribute; finished by toy-shapes' own super-resolution and decoder."""
    rows, captions = torch.arange(len(pictures)), [variants[0] for variants in pictures.captions]
    low = torch.cat(
        [
            side.draw(*tokens.captions(part), passes, guidance, seed=int(part[0]))
            for part in rows.split(64)
        ]
    )
    images = []
    for part in rows.split(32):
        for _, step in muse.steps([captions[i] for i in part], seed=int(part[0]), low=low[part]):
            high = step.ids
        images.append(muse.pixels(high, "high"))
    return {
        part: share["value"]
        for part, share in alignment.alignment(
            [shapes.parse(caption) for caption in captions], torch.cat(images)
        ).items()
    }


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=7, help="alternating rounds, after one to warm up")
    p.add_argument("--repeat", type=int, default=4, help="training steps in a round")
    p.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="of training, to compare quality in place of speed",
    )
    p.add_argument("--pictures", type=int, default=10_000)
    args = p.parse_args()
    if args.seconds:
        with tempfile.TemporaryDirectory() as folder:
            quality(args, Path(folder))
    else:
        toy, text = PRESETS["toy"], dict(text_width=256, words=16)
        speed(
            "The toy's base model",
            SimpleNamespace(
                **vars(toy.base),
                codes=toy.tokenizer.codes,
                grid=toy.tokenizer.grid,
                batch=32,
                **text,
            ),
            args,
        )
        speed(
            "Muse's grid",
            SimpleNamespace(width=256, layers=6, heads=4, codes=1024, grid=16, batch=8, **text),
            args,
        )
