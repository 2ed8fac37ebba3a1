"""Claim 4: mask ratios drawn from the cosine schedule make a better model than a fixed ratio
(Muse, section 2.6).

    python lessons/claims/laws.py --out runs/claims        # an hour of one core

Base models as the demo's, on the tokens of toy-shapes' tokenizers. They differ in the distribution
of mask ratios only: the cosine schedule, the uniform one, always 15 % (BERT's), always 64 % (the
mean of the cosine schedule). Five seeds each. They are measured on held-out captions: nats per
hidden token at five ratios, and what toy-shapes draws with this base model in place of its own, in
1, 4 and 16 passes.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from trial import (
    SEEDS,
    arguments,
    cached_tokens,
    first_captions,
    fit,
    fractions_right,
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
from minimuse.data import Tokens
from minimuse.datasets import load
from minimuse.maskgit import BaseConfig, MaskGit
from minimuse.metrics.likelihood import masked_nll
from minimuse.schedule import sample_ratios

PASSES = (1, 4, 16)
HIDDEN = (1.0, 0.75, 0.5, 0.25, 0.1)  # fractions of tokens, to measure nats at
ATTRIBUTES = ("count", "all")


def uniform(batch: int, generator: torch.Generator) -> torch.Tensor:
    return sample_ratios(batch, generator, "linear")


def always_15(batch: int, generator: torch.Generator) -> torch.Tensor:
    return torch.full((batch,), 0.15, dtype=torch.float64)


def always_64(batch: int, generator: torch.Generator) -> torch.Tensor:
    return torch.full((batch,), 0.64, dtype=torch.float64)


RATIOS = {"cosine": sample_ratios, "uniform": uniform, "15 %": always_15, "64 %": always_64}


def make_base(muse: Muse, tokens: Tokens) -> MaskGit:
    config = muse.tokenizer.config
    model = MaskGit(BaseConfig(128, 3, 4), config.codes, config.grid, muse.text.width)
    words = tokens.shards[0]["text"].float()
    model.start(words, muse.tokenizer.quantizer.lookup(torch.arange(model.mask_id)))
    return model


def work(law: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse = Muse.load("toy-shapes")
    tokens = cached_tokens(muse, "shapes", "train", pictures, out)
    heldout = cached_tokens(muse, "shapes", "heldout", n, out)

    def make():
        model = make_base(muse, tokens)
        return model, masked_loss(model, tokens, "low", RATIOS[law])

    stage = stage_settings(steps, 48)
    model, steps, seconds = fit(f"laws-{law}-{seed}", make, stage, len(tokens), seed, out)
    ids = heldout.ids("low")  # M N
    text, visible = heldout.captions(torch.arange(len(heldout)))  # M T E, M T

    def context(rows: torch.Tensor):
        return model.context(text[rows], visible[rows])

    nll = {ratio: masked_nll(model, ids, context, ratio) for ratio in HIDDEN}
    captions = first_captions(load("shapes", "heldout", 64, n))
    usual = muse.config
    drawn = {}
    for passes in PASSES:
        muse.config = replace(
            usual,
            sampling=replace(usual.sampling, steps=passes),
            sampling_hi=replace(usual.sampling_hi, steps=1),
        )
        drawn[passes] = fractions_right(muse, captions, seed, base=model)
    return {"steps": steps, "seconds": seconds, "nll": nll, "drawn": drawn}


def nll_table(done: dict) -> str:
    rows = []
    for law in RATIOS:
        cells = [mean_and_std(values(done, law, "nll", ratio)) for ratio in HIDDEN]
        rows.append([law, *cells])
    titles = [f"{ratio:.0%} hidden" for ratio in HIDDEN]
    return table(["nats per hidden token", *titles], rows)


def drawn_table(done: dict) -> str:
    columns = [(passes, attribute) for passes in PASSES for attribute in ATTRIBUTES]
    rows = []
    for law in RATIOS:
        cells = [mean_and_std(values(done, law, "drawn", *column)) for column in columns]
        rows.append([law, *cells])
    titles = [f"{attribute}, {passes} passes" for passes, attribute in columns]
    return table(["drawn, right in", *titles], rows)


def verdicts(done: dict) -> list[str]:
    cosine = values(done, "cosine", "drawn", 16, "all")
    lines = []
    for law in RATIOS:
        if law != "cosine":
            answer = verdict(cosine, values(done, law, "drawn", 16, "all"))
            lines.append(f"- cosine against {law}, 16 passes, right in all: {answer}")
    return lines


def draw_figure(args: Namespace, done: dict) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for law in RATIOS:
        nll = [values(done, law, "nll", ratio) for ratio in HIDDEN]
        drawn = [values(done, law, "drawn", passes, "all") for passes in PASSES]
        for axis, x, points in ((axes[0], HIDDEN, nll), (axes[1], PASSES, drawn)):
            mean, std = np.mean(points, axis=1), np.std(points, axis=1)
            axis.errorbar(x, mean, std, label=law, marker="o", markersize=3, capsize=2)
    axes[0].set(xlabel="fraction of hidden tokens", ylabel="nats per hidden token")
    axes[0].legend(fontsize=8)
    axes[1].set(xlabel="passes", ylabel="right in all attributes")
    axes[1].set(xscale="log", xticks=PASSES, xticklabels=PASSES)
    axes[1].minorticks_off()
    figure.savefig(args.out / "laws.png", dpi=110, bbox_inches="tight")


def main():
    args = arguments(__doc__, steps=1200, pictures=20_000, n=128)
    jobs = {
        f"{law}/{seed}": (law, seed, args.steps, args.pictures, args.n, args.out)
        for law in RATIOS
        for seed in SEEDS
    }
    done = run_jobs(args.out / "laws.json", jobs, work, args.workers)
    draw_figure(args, done)
    tables = nll_table(done), drawn_table(done)
    write_report(args.out, "laws", done, *tables, "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
