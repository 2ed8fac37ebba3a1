"""Not in Muse: super-resolution trained on pieces of images, and with most images fully hidden.

    python lessons/claims/pieces.py --out runs/claims        # 36 minutes of one thread

Super-resolution models as the demo's, on the tokens of toy-shapes' tokenizers. They train for as
many steps, with as many tokens in each, in four ways:

    whole images     multi-axis attention, as Muse has it
    pieces           a quarter each of four times as many images, in pieces of 4 x 4 tokens; pieces
                     with something in them are chosen more often, and a piece does not see others
    mostly hidden    the same pieces, and 93 % of the tokens of each image are hidden
    fully hidden     the same pieces, and in 80 % of the images all tokens are hidden, as they are
                     in the only pass of drawing (as the demo has it)

The first two draw mask ratios as Muse does, with a mean of 64 %. The last two hide 93 % on average,
so they have 45 % more tokens to learn from in each step.

Five seeds. They are measured on held-out captions: what toy-shapes draws with this super-resolution
in place of its own; and nats per hidden token when all, half or a tenth of the tokens are hidden.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from trial import (
    SEEDS,
    arguments,
    cached_tokens,
    fit,
    mean_and_std,
    run_jobs,
    table,
    values,
    verdict,
    write_report,
)

from minimuse import Muse
from minimuse.data import Tokens
from minimuse.datasets import shapes
from minimuse.losses import LossOf, draw_token_batch, hidden_logits, token_loss
from minimuse.maskgit import masked_token_loss
from minimuse.metrics.alignment import alignment
from minimuse.metrics.likelihood import masked_nll
from minimuse.metrics.outline import outline
from minimuse.plumbing.config import PRESETS
from minimuse.schedule import mask_counts, random_masks
from minimuse.superres import SuperRes, SuperResConfig

WAYS = ("whole images", "pieces", "mostly hidden", "fully hidden")
FULLY_HIDDEN = 0.8  # of the images
MOSTLY_HIDDEN = 0.93  # of the tokens: as many as by FULLY_HIDDEN, on average
ATTRIBUTES = ("shape", "colour", "size", "count", "relation", "all", "outline")
HIDDEN = (1.0, 0.5, 0.1)  # fractions of tokens, to measure nats at


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


def size_and_batch(way: str) -> tuple[SuperResConfig, int]:
    demo = PRESETS["demo"]
    size, batch = replace(demo.superres, window=0, piece=4), demo.stages.superres.batch
    if way == "whole images":
        size = replace(size, window=8, piece=0)
        batch //= 4  # as many tokens as in pieces, which are a quarter of each image
    return size, batch


def loss_of_way(way: str, model: SuperRes, tokens: Tokens) -> LossOf:
    fully_hidden = FULLY_HIDDEN if way == "fully hidden" else 0.0
    config = replace(PRESETS["demo"], fully_hidden=fully_hidden)
    if way != "mostly hidden":
        return token_loss(model, tokens, config, "high", "cpu")

    def loss_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        batch = draw_token_batch(model, tokens, indices, generator, config, "high", "cpu")
        B, N = batch.ids.shape
        counts = mask_counts(torch.full((B,), MOSTLY_HIDDEN), N)
        hidden = random_masks(counts, N, generator)  # B N
        masked_ids = batch.ids.masked_fill(hidden, model.mask_id)
        batch = batch._replace(masked_ids=masked_ids, hidden=hidden)
        logits = hidden_logits(model, batch, torch.arange(B), "cpu")  # M K
        loss, accuracy = masked_token_loss(logits, batch.ids, hidden)
        yield loss, {"accuracy": accuracy}

    return loss_of


def work(way: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse, demo = Muse.load("toy-shapes"), PRESETS["demo"]
    tokens = cached_tokens(muse, "shapes", "train", pictures, out)
    heldout = cached_tokens(muse, "shapes", "heldout", n, out)
    size, batch = size_and_batch(way)

    def make():
        model = make_superres(muse, size, tokens)
        return model, loss_of_way(way, model, tokens)

    # The rate of Muon that the demo has now was chosen for one of the four ways.
    stage = replace(demo.stages.superres, steps=steps, batch=batch, muon_lr=0.025)
    model, steps, seconds = fit(f"{way}-{seed}", make, stage, len(tokens), seed, out)
    ids, low = heldout.ids("high"), heldout.ids("low")  # M N, M n
    text, visible = heldout.captions(torch.arange(len(heldout)))  # M T E, M T

    def context(rows: torch.Tensor):
        return model.context(text[rows], visible[rows], low[rows])

    nll = {ratio: masked_nll(model, ids, context, ratio) for ratio in HIDDEN}
    muse.config = replace(muse.config, sampling_hi=demo.sampling_hi)
    muse.superres = model
    scenes = [shapes.scene(i, "heldout") for i in range(n)]
    _, images = muse.draw([shapes.caption(scene) for scene in scenes], seed=seed)
    drawn = {name: cell["value"] for name, cell in alignment(scenes, images).items()}
    drawn["outline"] = outline(images)["value"]
    return {"steps": steps, "seconds": seconds, "nll": nll, "drawn": drawn}


def verdicts(done: dict) -> list[str]:
    lines = []
    pairs = zip(WAYS[1:], WAYS[:-1], strict=True)
    for way, other in (*pairs, ("fully hidden", "pieces")):
        for name, what in (("shape", "more right shapes"), ("outline", "better outlines")):
            both = (values(done, each, "drawn", name) for each in (way, other))
            lines.append(f"- {way} has {what} than {other}: {verdict(*both)}")
        both = (values(done, each, "nll", 0.1) for each in (other, way))
        lines.append(f"- {way} has fewer nats than {other}, 10 % hidden: {verdict(*both)}")
    return lines


def main():
    args = arguments(__doc__, steps=800, pictures=20_000, n=256)
    jobs = {
        f"{way}/{seed}": (way, seed, args.steps, args.pictures, args.n, args.out)
        for way in WAYS
        for seed in SEEDS
    }
    done = run_jobs(args.out / "pieces.json", jobs, work, args.workers)
    drawn, nats = [], []
    for way in WAYS:
        seconds = np.mean(values(done, way, "seconds"))
        right = [mean_and_std(values(done, way, "drawn", a)) for a in ATTRIBUTES]
        drawn.append([way, f"{seconds:.0f}", *right])
        nats.append([way, *(mean_and_std(values(done, way, "nll", r)) for r in HIDDEN)])
    tables = (
        table(["drawn, right in", "seconds", *ATTRIBUTES], drawn),
        table(["nats per hidden token", *(f"{r:.0%} hidden" for r in HIDDEN)], nats),
    )
    write_report(args.out, "pieces", done, *tables, "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
