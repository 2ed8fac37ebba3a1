"""Claim 9: a larger codebook does not help (Muse, appendix: 8,192 codes, and no gain from more).

    python lessons/claims/codebook.py --out runs/claims        # half an hour of two cores

Low-res tokenizers of shapes with 128, 512 and 2,048 codes, and on each a base model as the demo's.
All are trained alike, with one seed. The low-res images of 32 pixels are judged without
super-resolution: what the tokenizer can show (reconstructed), and what the base model makes of
held-out captions (drawn). More codes allow better images, and make each token harder to predict.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from torch import nn
from trial import (
    Fitted,
    arguments,
    first_captions,
    fit,
    masked_loss,
    run_jobs,
    stage_settings,
    table,
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


def fit_tokenizer(config: Config, steps: int, images: Images, text_width: int, out: Path) -> Fitted:
    stage = replace(config.stages.tokenizer, steps=steps)

    def make():
        tokenizer = build("tokenizer", config, text_width)
        features = perceptual_network(config.loss.perceptual)
        model = nn.ModuleDict({"part": tokenizer, "loss": ImageLoss(config.loss, features)})
        return model, tokenizer_loss(model, images, config, stage, True, "cpu")

    name = f"codebook-tokenizer-{config.tokenizer.codes}"
    return fit(name, make, stage, len(images), 0, out)


def fit_base(
    tokenizer: ImageTokenizer, steps: int, tokens: Tokens, text_width: int, out: Path
) -> Fitted:
    codes, grid = tokenizer.config.codes, tokenizer.config.grid

    def make():
        model = MaskGit(BaseConfig(128, 3, 4), codes, grid, text_width)
        words = tokens.shards[0]["text"].float()
        model.start(words, tokenizer.quantizer.lookup(torch.arange(codes)))
        return model, masked_loss(model, tokens, "low")

    return fit(f"codebook-base-{codes}", make, stage_settings(steps, 48), len(tokens), 0, out)


def draw_ids(muse: Muse, base: MaskGit, captions: list[str]) -> torch.Tensor:
    """Low-res ids (B, N) for the captions, by this base model."""
    sampling = muse.config.sampling
    contexts = muse.contexts(base, muse.embed_prompts(captions), sampling.guidance)
    ids = torch.full((len(captions), len(base.decoder.positions())), base.mask_id)
    generators = muse.generators("low", 0, len(captions))
    for step in decode(base, ids, base.mask_id, *contexts, sampling, generators):
        ids = step.ids
    return ids


def work(codes: int, tokenizer_steps: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse = Muse.load("toy-shapes")
    config = replace(muse.config, tokenizer=replace(muse.config.tokenizer, codes=codes))
    images = load("shapes", "train", config.tokenizer_hi.side, pictures)
    heldout = load("shapes", "heldout", config.tokenizer_hi.side, n)
    fitted = fit_tokenizer(config, tokenizer_steps, images, muse.text.width, out)
    tokenizer = fitted.model["part"]
    # Without the high-res tokenizer no high-res ids are made. Nothing here looks at them.
    parts = {"tokenizer": tokenizer}
    tokens = tokens_of(parts, muse.text, images)
    heldout_tokens = tokens_of(parts, muse.text, heldout)
    base = fit_base(tokenizer, steps, tokens, muse.text.width, out)

    ids = heldout_tokens.ids("low")  # M N
    text, visible = heldout_tokens.captions(torch.arange(n))  # M T E, M T
    bits = bits_per_token(
        base.model, ids, lambda rows: base.model.context(text[rows], visible[rows])
    )
    captions = first_captions(heldout)
    grid = config.tokenizer.grid
    images_of = {}
    for kind, its_ids in zip(KINDS, (ids, draw_ids(muse, base.model, captions)), strict=True):
        images_of[kind] = tokenizer.decode(rearrange(its_ids, "M (h w) -> M h w", h=grid))
    scenes = [shapes.parse(caption) for caption in captions]
    results = {}
    for kind, its_images in images_of.items():
        cells = alignment(scenes, its_images)
        results[kind] = {attribute: cell["value"] for attribute, cell in cells.items()}
    entropy, used = perplexity(ids, codes)
    real = halve(heldout.batch(range(n)))
    return results | {
        "captions": n,
        "seconds": fitted.seconds + base.seconds,
        "psnr": psnr(images_of["reconstructed"], real),
        "perplexity": entropy,
        "used": used,
        "bits": bits["value"] * ids.shape[1],
    }


def size_table(done: dict) -> str:
    rows = []
    for codes, result in done.items():
        psnr_db = f"{result['psnr']:.1f} dB"
        effective = f"{result['perplexity']:.0f}"
        rows.append([codes, psnr_db, f"{result['used']}", effective, f"{result['bits']:.1f}"])
    return table(["codes", "PSNR", "used", "perplexity", "bits of a held-out image"], rows)


def attribute_table(done: dict) -> str:
    rows = []
    for codes, result in done.items():
        for kind in KINDS:
            right = [f"{result[kind][attribute]:.2f}" for attribute in ATTRIBUTES]
            rows.append([f"{codes}, {kind}", *right])
    return table(["low-res images, right in", *ATTRIBUTES], rows)


def draw_figure(args: Namespace, done: dict) -> None:
    figure, axis = plt.subplots(figsize=(5, 3))
    for kind in KINDS:
        for attribute, line in (("all", "-"), ("count", "--")):
            right = [result[kind][attribute] for result in done.values()]
            axis.plot(list(done), right, line, marker="o", label=f"{kind}: {attribute}")
    axis.set(xlabel="codes", ylabel="fraction of images that are right")
    axis.legend(fontsize=8)
    figure.savefig(args.out / "codebook.png", dpi=110, bbox_inches="tight")


def verdicts(done: dict) -> list[str]:
    """Whether the largest codebook does not help, by the standard error of two fractions.

    It speaks of other captions only: with one training each, nothing is said about another
    training. All sizes get the same captions, so a paired test (McNemar's) would be a better one,
    but the answer to each caption is not kept.
    """
    small, middle, large = (done[str(codes)]["drawn"]["all"] for codes in SIZES)
    captions = done[str(SIZES[1])]["captions"]
    error = (2 * middle * (1 - middle) / captions) ** 0.5
    if abs(large - middle) <= 2 * error:
        answer = "cannot be told"
    elif large > middle:
        answer = "does not hold"
    else:
        answer = "holds"
    line = (
        f"- {SIZES[2]:,} codes do not help against {SIZES[1]}: {answer} (right in all: "
        f"{small:.2f}, {middle:.2f}, {large:.2f}; one seed, standard error {error:.2f})"
    )
    return [line]


def main():
    args = arguments(__doc__, tokenizer_steps=3000, steps=2000, pictures=20_000, n=256)
    jobs = {
        str(codes): (codes, args.tokenizer_steps, args.steps, args.pictures, args.n, args.out)
        for codes in SIZES
    }
    done = run_jobs(args.out / "codebook.json", jobs, work, args.workers)
    draw_figure(args, done)
    tables = size_table(done), attribute_table(done)
    write_report(args.out, "codebook", done, *tables, "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
