"""Not in Muse: super-resolution that is learnt from pieces with something in them, which see no others, against one of whole pictures.

    python lessons/claims/pieces.py --out runs/claims        # a quarter of an hour of two cores

Super-resolution models as the demo's, on the tokens of toy-shapes' tokenizers, for as many steps, each with as many tokens: whole
pictures (multi-axis attention, as Muse and toy-shapes have it), or a quarter each of four times as many, in pieces of 4 x 4 tokens.
Three seeds. Measured on held-out captions: what toy-shapes draws with this super-resolution in place of its own.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from trial import (
    SEEDS,
    aligned,
    arguments,
    finish,
    fit,
    table,
    tokens_of,
    told,
    values,
    verdict,
    work_through,
)

from minimuse import Muse
from minimuse.datasets import load
from minimuse.losses import token_loss
from minimuse.plumbing.config import PRESETS
from minimuse.superres import SuperRes

WAYS = {"whole pictures": dict(window=8, piece=0), "pieces": dict(window=0, piece=4)}
ATTRIBUTES = ("shape", "colour", "size", "count", "relation", "all")


def work(way: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse, demo = Muse.load("toy-shapes"), PRESETS["demo"]
    tokens = tokens_of(muse, "shapes", "train", pictures, out)
    batch = demo.stages.superres.batch // (1 if WAYS[way]["piece"] else 4)
    sizes = [
        size
        for t in (muse.tokenizer.config, muse.tokenizer_hi.config)
        for size in (t.codes, t.grid)
    ]

    def make():
        model = SuperRes(replace(demo.superres, **WAYS[way]), *sizes, muse.text.width)
        codes = (
            t.quantizer.lookup(torch.arange(t.config.codes))
            for t in (muse.tokenizer, muse.tokenizer_hi)
        )
        model.start(tokens.shards[0]["text"].float(), *codes)
        return model, token_loss(model, tokens, demo, "high", "cpu")

    model, steps, seconds = fit(
        f"{way}-{seed}",
        make,
        replace(demo.stages.superres, steps=steps, batch=batch),
        len(tokens),
        seed,
        out,
    )
    muse.config = replace(muse.config, sampling_hi=demo.sampling_hi)
    captions = [
        variants[0]
        for variants in load("shapes", "heldout", muse.config.tokenizer_hi.side, n).captions
    ]
    return {
        "steps": steps,
        "seconds": seconds,
        "drawn": aligned(muse, captions, seed, superres=model),
    }


def main():
    args = arguments(__doc__, steps=800, pictures=20_000, n=256)
    jobs = {
        f"{way}/{seed}": (way, seed, args.steps, args.pictures, args.n, args.out)
        for way in WAYS
        for seed in SEEDS
    }
    done = work_through(args.out / "pieces.json", jobs, work, args.workers)
    seconds = lambda way: f"{np.mean(values(done, way, 'seconds')):.0f}"
    rows = [
        [way, seconds(way), *(told(values(done, way, "drawn", a)) for a in ATTRIBUTES)]
        for way in WAYS
    ]
    whole, pieces = (values(done, way, "drawn", "shape") for way in WAYS)
    finish(
        args.out,
        "pieces",
        done,
        table(["drawn, right in", "seconds", *ATTRIBUTES], rows),
        f"- pieces are better than whole pictures, right shapes: {verdict(pieces, whole)}",
    )


if __name__ == "__main__":
    main()
