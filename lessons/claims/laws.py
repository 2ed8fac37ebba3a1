"""Claim 4: mask ratios drawn by the cosine law make a better model than a fixed ratio (Muse, section 2.6).

    python lessons/claims/laws.py --out runs/claims        # half an hour of two cores

Base models as the demo's, on the tokens of toy-shapes' tokenizers, trained alike but for the law of mask ratios: the cosine law, the
uniform one, always 15 % (BERT's), always 64 % (the cosine law's mean). Each from three seeds. Measured on held-out captions: nats per
hidden token at five ratios, and what toy-shapes draws with this base model in place of its own, in 1, 4 and 16 passes.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from trial import (
    SEEDS,
    aligned,
    arguments,
    finish,
    fit,
    masked_loss,
    settings,
    table,
    tokens_of,
    told,
    values,
    verdict,
    work_through,
)

from minimuse import Muse
from minimuse.datasets import load
from minimuse.maskgit import BaseConfig, MaskGit
from minimuse.metrics.likelihood import masked_nll
from minimuse.schedule import sample_ratios

RATIOS = {
    "cosine": sample_ratios,
    "uniform": lambda B, generator: sample_ratios(B, generator, "linear"),
    "15 %": lambda B, generator: torch.full((B,), 0.15, dtype=torch.float64),
    "64 %": lambda B, generator: torch.full((B,), 0.64, dtype=torch.float64),
}
PASSES, HIDDEN = (1, 4, 16), (1.0, 0.75, 0.5, 0.25, 0.1)


def work(law: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse = Muse.load("toy-shapes")
    tokens, unseen = (
        tokens_of(muse, "shapes", split, count, out)
        for split, count in (("train", pictures), ("heldout", n))
    )

    def make():
        model = MaskGit(
            BaseConfig(128, 3, 4),
            muse.tokenizer.config.codes,
            muse.tokenizer.config.grid,
            muse.text.width,
        )
        model.start(
            tokens.shards[0]["text"].float(),
            muse.tokenizer.quantizer.lookup(torch.arange(model.mask_id)),
        )
        return model, masked_loss(model, tokens, "low", RATIOS[law])

    model, steps, seconds = fit(
        f"laws-{law}-{seed}", make, settings(steps, 48), len(tokens), seed, out
    )
    text, visible = unseen.captions(torch.arange(len(unseen)))
    nll = {
        r: masked_nll(
            model, unseen.ids("low"), lambda rows: model.context(text[rows], visible[rows]), r
        )
        for r in HIDDEN
    }
    captions = [variants[0] for variants in load("shapes", "heldout", 64, n).captions]
    drawn = {}
    for passes in PASSES:
        muse.config = replace(
            muse.config,
            sampling=replace(muse.config.sampling, steps=passes),
            sampling_hi=replace(muse.config.sampling_hi, steps=1),
        )
        drawn[passes] = aligned(muse, captions, seed, base=model)
    return {"steps": steps, "seconds": seconds, "nll": nll, "drawn": drawn}


def main():
    args = arguments(__doc__, steps=1200, pictures=20_000, n=128)
    jobs = {
        f"{law}/{seed}": (law, seed, args.steps, args.pictures, args.n, args.out)
        for law in RATIOS
        for seed in SEEDS
    }
    done = work_through(args.out / "laws.json", jobs, work, args.workers)
    laws = [*RATIOS]
    nll = [[law, *(told(values(done, law, "nll", r)) for r in HIDDEN)] for law in laws]
    drawn = [
        [law, *(told(values(done, law, "drawn", p, a)) for p in PASSES for a in ("count", "all"))]
        for law in laws
    ]
    best = values(done, "cosine", "drawn", 16, "all")
    verdicts = [
        f"- cosine against {law}, 16 passes, right in all: {verdict(best, values(done, law, 'drawn', 16, 'all'))}"
        for law in laws[1:]
    ]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for law in laws:
        for axis, name, places in zip(axes, ("nll", "drawn"), (HIDDEN, PASSES)):
            points = np.array(
                [values(done, law, name, x, *(["all"] if name == "drawn" else [])) for x in places]
            )
            axis.errorbar(
                places,
                points.mean(1),
                points.std(1),
                label=law,
                marker="o",
                markersize=3,
                capsize=2,
            )
    axes[0].set(xlabel="share of hidden tokens", ylabel="nats per hidden token")
    axes[1].set(
        xlabel="passes",
        ylabel="right in all attributes",
        xscale="log",
        xticks=PASSES,
        xticklabels=PASSES,
    )
    axes[1].minorticks_off()
    axes[0].legend(fontsize=8)
    figure.savefig(args.out / "laws.png", dpi=110, bbox_inches="tight")
    finish(
        args.out,
        "laws",
        done,
        table(["nats per hidden token", *(f"{r:.0%} hidden" for r in HIDDEN)], nll),
        table(
            ["drawn, right in", *(f"{a}, {p} passes" for p in PASSES for a in ("count", "all"))],
            drawn,
        ),
        "\n".join(verdicts),
    )


if __name__ == "__main__":
    main()
