"""Claim 1: a pretrained text encoder is crucial (Muse, sections 1 and 2.1).

    PYTHONPATH=data/recipes python lessons/claims/encoders.py --out runs/claims

It takes half an hour of two cores. `data/recipes` has the initialization of T5.

Base models on the low-res tokens of emoji. They differ in what encodes the captions: the shipped
T5, pretrained and frozen; a T5 of the same shape with random weights, frozen; the same, trained
together with the base model. Three seeds each. They are measured on images of held-out pairs of
concept and style, and of held-out concepts, whose words are in no training caption. The measure is
nats per hidden token, with all tokens hidden and with the caption, and how many nats the caption
saves: against no caption, and against another image's caption.
"""

from argparse import Namespace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from t5_pretrain import initialize_weights
from torch import nn
from trial import (
    SEEDS,
    arguments,
    cached_tokens,
    first_captions,
    fit,
    mean_and_std,
    run_jobs,
    stage_settings,
    table,
    values,
    verdict,
    write_report,
)

from minimuse import Muse
from minimuse.data import Images
from minimuse.datasets import load
from minimuse.maskgit import BaseConfig, MaskGit, drop_captions, hide, masked_token_loss
from minimuse.metrics.likelihood import masked_nll
from minimuse.t5_frozen import T5Encoder
from minimuse.transformer import Context

# Is it pretrained? Is it trained? And the learning rate of AdamW: at 0.003 an encoder that is
# trained is no help at all (4.02 nats for held-out pairs, one seed).
ENCODERS = {
    "pretrained, frozen": (True, False, 3e-3),
    "random, frozen": (False, False, 3e-3),
    "random, learnt": (False, True, 1e-3),
}
PRETRAINED = "pretrained, frozen"
SPLITS = {"heldout": "held-out pairs", "heldout-concept": "held-out concepts"}
CASES = ("own", "none", "another")  # captions


class EncoderAndBase(nn.Module):
    """A base model with its text encoder."""

    def __init__(self, base: MaskGit, encoder: T5Encoder):
        super().__init__()
        self.base = base
        self.encoder = encoder

    def context(self, ids: torch.Tensor, visible: torch.Tensor) -> Context:
        """ids (B, T) of captions, visible (B, T): which of them are real."""
        return self.base.context(self.encoder(ids, visible), visible)


def make_model(muse: Muse, kind: str, seed: int, captions: list[str]) -> EncoderAndBase:
    """A fresh base model, started from the embeddings of some captions, and its encoder."""
    pretrained, learns, _ = ENCODERS[kind]
    encoder = T5Encoder(muse.text.encoder.config)
    initialize_weights(encoder, encoder.config, torch.Generator().manual_seed(seed))
    if pretrained:
        encoder.load_state_dict(muse.text.encoder.state_dict())
    config = muse.tokenizer.config
    base = MaskGit(BaseConfig(128, 3, 4), config.codes, config.grid, muse.text.width)
    with torch.no_grad():
        ids, visible = muse.text.tokenizer.encode(captions)  # B T, B T
        words = encoder(ids, visible)[visible]  # M E
        base.start(words, muse.tokenizer.quantizer.lookup(torch.arange(base.mask_id)))
    return EncoderAndBase(base, encoder.requires_grad_(learns))


def caption_loss(model: EncoderAndBase, muse: Muse, images: Images, ids: torch.Tensor):
    """The masked-token loss, with captions that go through the model's own encoder."""

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        # The first four captions of each emoji: there were no others when this was measured.
        variants = torch.randint(4, (len(indices),), generator=generator)
        chosen = zip(indices.tolist(), variants.tolist(), strict=True)
        captions = [images.captions[i][variant] for i, variant in chosen]
        words, visible = muse.text.tokenizer.encode(captions)  # B T, B T
        context = model.context(words, drop_captions(visible, 0.1, generator))
        corrupted = hide(ids[indices], model.base.mask_id, generator)
        logits = model.base(corrupted.ids, context, corrupted.hidden)
        loss, accuracy = masked_token_loss(logits, ids[indices], corrupted.hidden)
        yield loss, {"accuracy": accuracy}

    return parts_of


def nll_by_case(
    model: EncoderAndBase, muse: Muse, captions: list[str], ids: torch.Tensor
) -> dict[str, float]:
    """Nats per hidden token, all hidden: with the own caption, without, with another image's."""
    words, visible = muse.text.tokenizer.encode(captions)  # M T, M T
    inputs = {
        "own": (words, visible),
        "none": (words, torch.zeros_like(visible)),
        "another": (words.roll(1, 0), visible.roll(1, 0)),
    }
    nll = {}
    for case, (its_words, its_visible) in inputs.items():

        def context(rows: torch.Tensor, words=its_words, visible=its_visible) -> Context:
            return model.context(words[rows], visible[rows])

        nll[case] = masked_nll(model.base, ids, context, 1.0)
    return nll


def work(kind: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse = Muse.load("toy")
    *_, lr = ENCODERS[kind]
    side = muse.config.tokenizer_hi.side
    images = load("emoji", "train", side, pictures)
    ids = cached_tokens(muse, "emoji", "train", pictures, out).ids("low")  # M N
    captions = [variants[3] for variants in images.captions[:2000]]

    def make():
        model = make_model(muse, kind, seed, captions)
        return model, caption_loss(model, muse, images, ids)

    stage = stage_settings(steps, 32, lr)
    model, steps, seconds = fit(f"encoders-{kind}-{seed}", make, stage, len(images), seed, out)
    result = {"steps": steps, "seconds": seconds}
    for split in SPLITS:
        heldout = load("emoji", split, side, n)
        heldout_ids = cached_tokens(muse, "emoji", split, n, out).ids("low")
        result[split] = nll_by_case(model, muse, first_captions(heldout), heldout_ids)
    return result


def nats_saved(done: dict, kind: str, split: str) -> list[float]:
    """How many nats the own caption saves, for each seed."""
    own = values(done, kind, split, "own")
    none = values(done, kind, split, "none")
    return [without - with_caption for with_caption, without in zip(own, none, strict=True)]


def row(done: dict, kind: str, split: str) -> list[str]:
    nll = [mean_and_std(values(done, kind, split, case)) for case in CASES]
    return [f"{SPLITS[split]}: {kind}", *nll, mean_and_std(nats_saved(done, kind, split))]


def verdict_line(done: dict, kind: str, split: str) -> str:
    """Whether the pretrained encoder is better; fewer nats are, so the signs change."""
    pretrained = [-nats for nats in values(done, PRETRAINED, split, "own")]
    other = [-nats for nats in values(done, kind, split, "own")]
    return f"- {SPLITS[split]}: pretrained better than {kind}: {verdict(pretrained, other)}"


def verdicts(done: dict) -> list[str]:
    others = [kind for kind in ENCODERS if kind != PRETRAINED]
    return [verdict_line(done, kind, split) for split in SPLITS for kind in others]


def draw_figure(args: Namespace, done: dict) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    names = [kind.replace(", ", "\n") for kind in ENCODERS]
    for axis, (split, title) in zip(axes, SPLITS.items(), strict=True):
        saved = [nats_saved(done, kind, split) for kind in ENCODERS]
        axis.bar(names, np.mean(saved, axis=1), yerr=np.std(saved, axis=1), capsize=3)
        axis.set_title(title)
        axis.tick_params(axis="x", labelsize=8)
    axes[0].set_ylabel("nats that a caption saves")
    figure.savefig(args.out / "encoders.png", dpi=110, bbox_inches="tight")


def main():
    args = arguments(__doc__, steps=1000, pictures=7235, n=256)
    jobs = {
        f"{kind}/{seed}": (kind, seed, args.steps, args.pictures, args.n, args.out)
        for kind in ENCODERS
        for seed in SEEDS
    }
    done = run_jobs(args.out / "encoders.json", jobs, work, args.workers)
    draw_figure(args, done)
    rows = [row(done, kind, split) for split in SPLITS for kind in ENCODERS]
    head = [
        "nats per hidden token, all hidden",
        "own caption",
        "none",
        "another's",
        "own caption saves",
    ]
    write_report(args.out, "encoders", done, table(head, rows), "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
