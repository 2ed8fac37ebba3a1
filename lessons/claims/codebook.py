"""Claim 9: a larger codebook does not help (Muse, appendix: 8,192 codes, and no gain from more).

    python lessons/claims/codebook.py --out runs/claims        # two hours of one core

Low-res tokenizers of shapes with 128, 512 and 2,048 codes, and on each a base model as the demo's.
All are trained alike, five of each size: a seed is that of a tokenizer and of its base model. The
low-res images of 32 pixels are judged without super-resolution: what the tokenizer can show
(reconstructed), and what the base model makes of held-out captions (drawn). More codes allow better
images, and make each token harder to predict.
"""

from argparse import Namespace
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from torch import nn
from trial import (
    SEEDS,
    Fitted,
    arguments,
    first_captions,
    fit,
    masked_loss,
    mean_and_std,
    run_jobs,
    stage_settings,
    table,
    values,
    verdict,
    write_report,
)

from minimuse import Muse
from minimuse.data import Images, Tokens, halve
from minimuse.datasets import load, shapes
from minimuse.decode import decode
from minimuse.losses import tokenizer_loss
from minimuse.maskgit import BaseConfig, MaskGit
from minimuse.metrics.alignment import alignment
from minimuse.metrics.images import psnr
from minimuse.metrics.likelihood import bits_per_token
from minimuse.plumbing.config import Config
from minimuse.plumbing.lite0 import perceptual_network
from minimuse.plumbing.parts import build
from minimuse.runs.cache import tokens_of
from minimuse.vq import ImageTokenizer, perplexity
from minimuse.vq_loss import ImageLoss

SIZES = (128, 512, 2048)
ATTRIBUTES = ("shape", "colour", "size", "count", "all")
KINDS = ("reconstructed", "drawn")
MEASURES = ("psnr", "used", "perplexity", "bits")


def fit_tokenizer(
    config: Config, steps: int, seed: int, images: Images, text_width: int, out: Path
) -> Fitted:
    stage = replace(config.stages.tokenizer, steps=steps)

    def make():
        tokenizer = build("tokenizer", config, text_width)
        features = perceptual_network(config.loss.perceptual)
        model = nn.ModuleDict({"part": tokenizer, "loss": ImageLoss(config.loss, features)})
        return model, tokenizer_loss(model, images, config, stage, True, "cpu")

    name = f"codebook-tokenizer-{config.tokenizer.codes}-{seed}"
    return fit(name, make, stage, len(images), seed, out)


def fit_base(
    tokenizer: ImageTokenizer, steps: int, seed: int, tokens: Tokens, text_width: int, out: Path
) -> Fitted:
    codes, grid = tokenizer.config.codes, tokenizer.config.grid

    def make():
        model = MaskGit(BaseConfig(128, 3, 4), codes, grid, text_width)
        words = tokens.shards[0]["text"].float()
        model.start(words, tokenizer.quantizer.lookup(torch.arange(codes)))
        return model, masked_loss(model, tokens, "low")

    name = f"codebook-base-{codes}-{seed}"
    return fit(name, make, stage_settings(steps, 48), len(tokens), seed, out)


def draw_ids(muse: Muse, base: MaskGit, captions: list[str], seed: int) -> torch.Tensor:
    """Low-res ids (B, N) for the captions, by this base model."""
    sampling = muse.config.sampling
    contexts = muse.contexts(base, muse.embed_prompts(captions), sampling.guidance)
    ids = torch.full((len(captions), len(base.decoder.positions())), base.mask_id)
    generators = muse.generators("low", 1000 * seed, len(captions))
    for step in decode(base, ids, base.mask_id, *contexts, sampling, generators):
        ids = step.ids
    return ids


def work(
    codes: int, seed: int, tokenizer_steps: int, steps: int, pictures: int, n: int, out: Path
) -> dict:
    muse = Muse.load("toy-shapes")
    config = replace(muse.config, tokenizer=replace(muse.config.tokenizer, codes=codes))
    images = load("shapes", "train", config.tokenizer_hi.side, pictures)
    heldout = load("shapes", "heldout", config.tokenizer_hi.side, n)
    fitted = fit_tokenizer(config, tokenizer_steps, seed, images, muse.text.width, out)
    tokenizer = fitted.model["part"]
    # Without the high-res tokenizer no high-res ids are made. Nothing here looks at them.
    parts = {"tokenizer": tokenizer}
    tokens = tokens_of(parts, muse.text, images)
    heldout_tokens = tokens_of(parts, muse.text, heldout)
    base = fit_base(tokenizer, steps, seed, tokens, muse.text.width, out)

    ids = heldout_tokens.ids("low")  # M N
    text, visible = heldout_tokens.captions(torch.arange(n))  # M T E, M T
    bits = bits_per_token(
        base.model, ids, lambda rows: base.model.context(text[rows], visible[rows])
    )
    captions = first_captions(heldout)
    grid = config.tokenizer.grid
    drawn_ids = draw_ids(muse, base.model, captions, seed)
    images_of = {}
    for kind, its_ids in zip(KINDS, (ids, drawn_ids), strict=True):
        images_of[kind] = tokenizer.decode(rearrange(its_ids, "M (h w) -> M h w", h=grid))
    scenes = [shapes.parse(caption) for caption in captions]
    results = {}
    for kind, its_images in images_of.items():
        cells = alignment(scenes, its_images)
        results[kind] = {attribute: cell["value"] for attribute, cell in cells.items()}
    entropy, used = perplexity(ids, codes)
    real = halve(heldout.batch(range(n)))
    return results | {
        "seconds": fitted.seconds + base.seconds,
        "psnr": psnr(images_of["reconstructed"], real),
        "perplexity": entropy,
        "used": used,
        "bits": bits["value"] * ids.shape[1],
    }


def size_table(done: dict) -> str:
    rows = []
    for codes in SIZES:
        cells = [mean_and_std(values(done, str(codes), name)) for name in MEASURES]
        rows.append([str(codes), *cells])
    return table(["codes", "PSNR, dB", "used", "perplexity", "bits of a held-out image"], rows)


def attribute_table(done: dict) -> str:
    rows = []
    for codes in SIZES:
        for kind in KINDS:
            right = [
                mean_and_std(values(done, str(codes), kind, attribute)) for attribute in ATTRIBUTES
            ]
            rows.append([f"{codes}, {kind}", *right])
    return table(["low-res images, right in", *ATTRIBUTES], rows)


def draw_figure(args: Namespace, done: dict) -> None:
    figure, axis = plt.subplots(figsize=(5, 3))
    for kind in KINDS:
        for attribute, line in (("all", "-"), ("count", "--")):
            right = [values(done, str(codes), kind, attribute) for codes in SIZES]
            mean, std = np.mean(right, axis=1), np.std(right, axis=1)
            label = f"{kind}: {attribute}"
            axis.errorbar(range(len(SIZES)), mean, std, ls=line, marker="o", capsize=2, label=label)
    axis.set(xlabel="codes", ylabel="fraction of images that are right")
    axis.set(xticks=range(len(SIZES)), xticklabels=SIZES)
    axis.legend(fontsize=8)
    figure.savefig(args.out / "codebook.png", dpi=110, bbox_inches="tight")


def verdicts(done: dict) -> list[str]:
    """Whether fewer codes are as good: each size is compared with the next smaller one."""
    lines = []
    for few, many in pairwise(SIZES):
        drawn = [values(done, str(codes), "drawn", "all") for codes in (many, few)]
        means = f"{np.mean(drawn[1]):.2f}, {np.mean(drawn[0]):.2f}"
        lines.append(
            f"- {many:,} codes help against {few:,}: {verdict(*drawn)} (right in all: {means})"
        )
    return lines


def main():
    args = arguments(__doc__, tokenizer_steps=3000, steps=2000, pictures=20_000, n=256)
    lengths = (args.tokenizer_steps, args.steps, args.pictures, args.n, args.out)
    jobs = {f"{codes}/{seed}": (codes, seed, *lengths) for codes in SIZES for seed in SEEDS}
    done = run_jobs(args.out / "codebook.json", jobs, work, args.workers)
    draw_figure(args, done)
    tables = size_table(done), attribute_table(done)
    write_report(args.out, "codebook", done, *tables, "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
