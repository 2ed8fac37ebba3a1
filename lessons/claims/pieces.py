"""Not in Muse: super-resolution trained on pieces of images, against one trained on whole images.

    python lessons/claims/pieces.py --out runs/claims        # half an hour of two cores

Super-resolution models as the demo's, on the tokens of toy-shapes' tokenizers. They train for as
many steps, with as many tokens in each: on whole images (multi-axis attention, as Muse has it), or
on a quarter each of four times as many images, in pieces of 4 x 4 tokens (as toy-shapes has it).
Pieces with something in them are chosen more often, and a piece does not see the others. Five
seeds. They are measured on held-out captions: what toy-shapes draws with this super-resolution in
place of its own.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from trial import (
    SEEDS,
    arguments,
    cached_tokens,
    first_captions,
    fit,
    fractions_right,
    mean_and_std,
    run_jobs,
    table,
    values,
    verdict,
    write_report,
)

from minimuse import Muse
from minimuse.data import Tokens
from minimuse.datasets import load
from minimuse.losses import token_loss
from minimuse.plumbing.config import PRESETS
from minimuse.superres import SuperRes, SuperResConfig

WAYS = {"whole images": dict(window=8, piece=0), "pieces": dict(window=0, piece=4)}
ATTRIBUTES = ("shape", "colour", "size", "count", "relation", "all")


def make_superres(muse: Muse, config: SuperResConfig, tokens: Tokens) -> SuperRes:
    low, high = muse.tokenizer, muse.tokenizer_hi
    model = SuperRes(
        config,
        low.config.codes,
        low.config.grid,
        high.config.codes,
        high.config.grid,
        muse.text.width,
    )
    model.start(
        tokens.shards[0]["text"].float(),
        low.quantizer.lookup(torch.arange(low.config.codes)),
        high.quantizer.lookup(torch.arange(high.config.codes)),
    )
    return model


def work(way: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse = Muse.load("toy-shapes")
    demo = PRESETS["demo"]
    tokens = cached_tokens(muse, "shapes", "train", pictures, out)
    batch = demo.stages.superres.batch
    if not WAYS[way]["piece"]:
        batch //= 4  # as many tokens as in pieces, which are a quarter of each image

    def make():
        model = make_superres(muse, replace(demo.superres, **WAYS[way]), tokens)
        return model, token_loss(model, tokens, demo, "high", "cpu")

    stage = replace(demo.stages.superres, steps=steps, batch=batch)
    model, steps, seconds = fit(f"{way}-{seed}", make, stage, len(tokens), seed, out)
    muse.config = replace(muse.config, sampling_hi=demo.sampling_hi)
    captions = first_captions(load("shapes", "heldout", muse.config.tokenizer_hi.side, n))
    drawn = fractions_right(muse, captions, seed, superres=model)
    return {"steps": steps, "seconds": seconds, "drawn": drawn}


def verdicts(done: dict) -> list[str]:
    whole = values(done, "whole images", "drawn", "shape")
    pieces = values(done, "pieces", "drawn", "shape")
    return [f"- pieces are better than whole images, right shapes: {verdict(pieces, whole)}"]


def main():
    args = arguments(__doc__, steps=800, pictures=20_000, n=256)
    jobs = {
        f"{way}/{seed}": (way, seed, args.steps, args.pictures, args.n, args.out)
        for way in WAYS
        for seed in SEEDS
    }
    done = run_jobs(args.out / "pieces.json", jobs, work, args.workers)
    rows = []
    for way in WAYS:
        seconds = np.mean(values(done, way, "seconds"))
        right = [mean_and_std(values(done, way, "drawn", a)) for a in ATTRIBUTES]
        rows.append([way, f"{seconds:.0f}", *right])
    head = ["drawn, right in", "seconds", *ATTRIBUTES]
    write_report(args.out, "pieces", done, table(head, rows), "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
