"""Claim 1: a pretrained text encoder is crucial (Muse, sections 1 and 2.1).

    python lessons/claims/encoders.py --out runs/claims        # half an hour of two cores

Base models on the low-res tokens of emoji, alike but for what reads the captions: the shipped T5, pretrained and frozen; one of the
same shape with random weights, frozen; the same, learnt together with the base model. Each from three seeds. Measured on pictures of
held-out pairs of concept and style, and of held-out concepts, whose words no training caption says: nats per hidden token, everything
hidden, with the caption, and how many of them the caption is worth: against no caption, and against another picture's.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from minimuse.t5_pretrain import initialize_weights
from torch import nn
from trial import (
    SEEDS,
    arguments,
    finish,
    fit,
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
from minimuse.maskgit import BaseConfig, MaskGit, drop_captions, hide, masked_token_loss
from minimuse.metrics.likelihood import masked_nll
from minimuse.t5_frozen import T5Encoder

# Pretrained? Learns? And the rate of AdamW: at .003 a reader that learns is no help at all (4.02 nats for held-out pairs, one seed).
READERS = {
    "pretrained, frozen": (True, False, 3e-3),
    "random, frozen": (False, False, 3e-3),
    "random, learnt": (False, True, 1e-3),
}
KINDS = {"heldout": "held-out pairs", "heldout-concept": "held-out concepts"}


class Reading(nn.Module):
    """A base model with what reads for it."""

    def __init__(self, base: MaskGit, reader: T5Encoder):
        super().__init__()
        self.base, self.reader = base, reader

    def context(self, captions: tuple[torch.Tensor, torch.Tensor]):
        """Ids of captions (B, T) and what of them is there."""
        return self.base.context(self.reader(*captions), captions[1])


def work(kind: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse, (pretrained, learns, lr) = Muse.load("toy"), READERS[kind]
    data = load("emoji", "train", muse.config.tokenizer_hi.side, pictures)
    ids = tokens_of(muse, "emoji", "train", pictures, out).ids("low")

    def make():
        reader = T5Encoder(muse.text.encoder.config)
        initialize_weights(reader, reader.config, torch.Generator().manual_seed(seed))
        if pretrained:
            reader.load_state_dict(muse.text.encoder.state_dict())
        base = MaskGit(
            BaseConfig(128, 3, 4),
            muse.tokenizer.config.codes,
            muse.tokenizer.config.grid,
            muse.text.width,
        )
        with torch.no_grad():
            some, there = muse.text.tokenizer.encode(
                [variants[-1] for variants in data.captions[:2000]]
            )
            base.start(
                reader(some, there)[there],
                muse.tokenizer.quantizer.lookup(torch.arange(base.mask_id)),
            )
        model = Reading(base, reader.requires_grad_(learns))

        def parts_of(indices, generator, step):
            which = torch.randint(4, (len(indices),), generator=generator)
            said, there = muse.text.tokenizer.encode(
                [data.captions[i][w] for i, w in zip(indices.tolist(), which.tolist())]
            )
            context = model.context((said, drop_captions(there, 0.1, generator)))
            corrupted = hide(ids[indices], base.mask_id, generator)
            loss, correct = masked_token_loss(
                base(corrupted.ids, context, corrupted.hidden), ids[indices], corrupted.hidden
            )
            yield loss, {"accuracy": correct}

        return model, parts_of

    model, steps, seconds = fit(
        f"encoders-{kind}-{seed}", make, settings(steps, 32, lr), len(data), seed, out
    )
    found = {"steps": steps, "seconds": seconds}
    for split in KINDS:
        unseen = load("emoji", split, muse.config.tokenizer_hi.side, n)
        low = tokens_of(muse, "emoji", split, n, out).ids("low")
        said, there = muse.text.tokenizer.encode([variants[0] for variants in unseen.captions])
        cases = {
            "own": (said, there),
            "none": (said, torch.zeros_like(there)),
            "another": (said.roll(1, 0), there.roll(1, 0)),
        }
        found[split] = {
            case: masked_nll(
                model.base, low, lambda rows: model.context(tuple(x[rows] for x in given)), 1.0
            )
            for case, given in cases.items()
        }
    return found


def main():
    args = arguments(__doc__, steps=1000, pictures=7235, n=256)
    jobs = {
        f"{kind}/{seed}": (kind, seed, args.steps, args.pictures, args.n, args.out)
        for kind in READERS
        for seed in SEEDS
    }
    done = work_through(args.out / "encoders.json", jobs, work, args.workers)
    rows, verdicts = [], []
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for axis, (split, title) in zip(axes, KINDS.items()):
        nll = {
            kind: {case: values(done, kind, split, case) for case in ("own", "none", "another")}
            for kind in READERS
        }
        worth = {
            kind: [none - own for own, none in zip(found["own"], found["none"])]
            for kind, found in nll.items()
        }
        rows += [
            [f"{title}: {kind}", *(told(nll[kind][case]) for case in nll[kind]), told(worth[kind])]
            for kind in READERS
        ]
        less = {kind: [-x for x in found["own"]] for kind, found in nll.items()}  # more is better
        verdicts += [
            f"- {title}: pretrained better than {kind}: {verdict(less['pretrained, frozen'], less[kind])}"
            for kind in list(READERS)[1:]
        ]
        axis.bar(
            [kind.replace(", ", "\n") for kind in READERS],
            [np.mean(worth[kind]) for kind in READERS],
            yerr=[np.std(worth[kind]) for kind in READERS],
            capsize=3,
        )
        axis.set_title(title)
        axis.tick_params(axis="x", labelsize=8)
    axes[0].set_ylabel("nats that a caption is worth")
    figure.savefig(args.out / "encoders.png", dpi=110, bbox_inches="tight")
    head = [
        "nats per hidden token, everything hidden",
        "own caption",
        "none",
        "another's",
        "own is worth",
    ]
    finish(args.out, "encoders", done, table(head, rows), "\n".join(verdicts))


if __name__ == "__main__":
    main()
