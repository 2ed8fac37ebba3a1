"""Claim 9: a larger codebook does not help (Muse, appendix: 8,192 codes, and no gain from more).

    python lessons/claims/codebook.py --out runs/claims        # half an hour of two cores

Low-res tokenizers of shapes with 128, 512 and 2,048 codes, and on each a base model as the demo's, trained alike; one seed. The low-res
pictures are judged as they are, 32 pixels, without super-resolution: what the tokenizer can show (reconstructed), and what the base model
makes of held-out captions (drawn). More codes make better pictures possible, and each token harder to predict.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from torch import nn
from trial import arguments, finish, fit, masked_loss, settings, table, work_through

from minimuse import Muse
from minimuse.data import halve
from minimuse.datasets import load, shapes
from minimuse.decode import decode
from minimuse.device import autocast
from minimuse.losses import tokenizer_loss
from minimuse.maskgit import BaseConfig, MaskGit
from minimuse.metrics import alignment
from minimuse.metrics.images import psnr
from minimuse.metrics.likelihood import bits_per_token
from minimuse.plumbing.lite0 import perceptual_network
from minimuse.plumbing.parts import build
from minimuse.runs.cache import tokens_of
from minimuse.vq import perplexity
from minimuse.vq_loss import ImageLoss

SIZES = (128, 512, 2048)


def work(codes: int, tokenizer_steps: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse = Muse.load("toy-shapes")
    config = replace(muse.config, tokenizer=replace(muse.config.tokenizer, codes=codes))
    how = replace(config.stages.tokenizer, steps=tokenizer_steps)
    data, unseen = (
        load("shapes", "train", config.tokenizer_hi.side, pictures),
        load("shapes", "heldout", config.tokenizer_hi.side, n),
    )

    def make_tokenizer():
        tokenizer = build("tokenizer", config, muse.text.width)
        features = perceptual_network(config.loss.perceptual)
        model = nn.ModuleDict({"part": tokenizer, "loss": ImageLoss(config.loss, features)})
        return model, tokenizer_loss(model, data, config, how, True, "cpu")

    fitted = fit(f"codebook-tokenizer-{codes}", make_tokenizer, how, len(data), 0, out)
    tokenizer = fitted.model["part"]
    # the high-res ids are not looked at: without that tokenizer, none are made
    tokens, seen = (tokens_of({"tokenizer": tokenizer}, muse.text, x) for x in (data, unseen))

    def make_base():
        model = MaskGit(BaseConfig(128, 3, 4), codes, config.tokenizer.grid, muse.text.width)
        model.start(
            tokens.shards[0]["text"].float(), tokenizer.quantizer.lookup(torch.arange(codes))
        )
        return model, masked_loss(model, tokens, "low")

    base = fit(f"codebook-base-{codes}", make_base, settings(steps, 48), len(data), 0, out)
    captions, ids, (text, visible) = (
        [variants[0] for variants in unseen.captions],
        seen.ids("low"),
        seen.captions(torch.arange(n)),
    )
    bits = bits_per_token(
        base.model, ids, lambda rows: base.model.context(text[rows], visible[rows])
    )
    contexts, blank = (
        muse.contexts(base.model, muse.embed_prompts(captions), config.sampling.guidance),
        torch.full_like(ids, codes),
    )
    with autocast("cpu"):  # as the contexts
        for step in decode(
            base.model, blank, codes, *contexts, config.sampling, torch.Generator().manual_seed(0)
        ):
            drawn = step.ids
    grid = lambda ids: rearrange(ids, "M (h w) -> M h w", h=config.tokenizer.grid)
    made = {"reconstructed": tokenizer.decode(grid(ids)), "drawn": tokenizer.decode(grid(drawn))}
    entropy, used = perplexity(ids, codes)
    scenes = [shapes.parse(caption) for caption in captions]
    read = {
        way: {name: share["value"] for name, share in alignment.alignment(scenes, images).items()}
        for way, images in made.items()
    }
    return read | {
        "seconds": fitted.seconds + base.seconds,
        "psnr": psnr(made["reconstructed"], halve(unseen.batch(range(n)))),
        "perplexity": entropy,
        "used": used,
        "bits": bits["value"] * ids.shape[1],
    }


def main():
    args = arguments(__doc__, tokenizer_steps=3000, steps=2000, pictures=20_000, n=256)
    jobs = {
        str(codes): (codes, args.tokenizer_steps, args.steps, args.pictures, args.n, args.out)
        for codes in SIZES
    }
    done = work_through(args.out / "codebook.json", jobs, work, args.workers)
    parts = ("shape", "colour", "size", "count", "all")
    numbers = [
        [
            name,
            f"{of['psnr']:.1f} dB",
            f"{of['used']}",
            f"{of['perplexity']:.0f}",
            f"{of['bits']:.1f}",
        ]
        for name, of in done.items()
    ]
    right = [
        [f"{name}, {way}", *(f"{of[way][part]:.2f}" for part in parts)]
        for name, of in done.items()
        for way in ("reconstructed", "drawn")
    ]
    figure, axis = plt.subplots(figsize=(5, 3))
    for way in ("reconstructed", "drawn"):
        for part, line in (("all", "-"), ("count", "--")):
            axis.plot(
                [*done],
                [of[way][part] for of in done.values()],
                line,
                marker="o",
                label=f"{way}: {part}",
            )
    axis.set(xlabel="codes", ylabel="share of pictures that are right")
    axis.legend(fontsize=8)
    figure.savefig(args.out / "codebook.png", dpi=110, bbox_inches="tight")
    small, middle, large = (done[str(codes)]["drawn"]["all"] for codes in SIZES)
    error = (2 * middle * (1 - middle) / args.n) ** 0.5
    gain = (
        "cannot be told"
        if abs(large - middle) <= 2 * error
        else "does not hold"
        if large > middle
        else "holds"
    )
    finish(
        args.out,
        "codebook",
        done,
        table(["codes", "PSNR", "used", "perplexity", "bits of a held-out picture"], numbers),
        table(["low-res pictures, right in", *parts], right),
        f"- {SIZES[2]:,} codes do not help against {SIZES[1]}: {gain} (right in all: {small:.2f}, {middle:.2f}, {large:.2f}; one seed, standard error {error:.2f})",
    )


if __name__ == "__main__":
    main()
