"""Not in Muse: which parameters decay, what Muon trains, and a discriminator that is clipped apart.

    python lessons/claims/optimizers.py --out runs/claims        # two hours of two cores

Two questions about `minimuse/plumbing/optimizers.py`. Each is answered by training the same model
in several ways, from five seeds:

- the demo's base model, on scenes: bits of a held-out token, and what toy-shapes draws with it in
  place of its own base model
- the toy's low-res tokenizer, on emoji, with a discriminator: the error of held-out images
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
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

from minimuse import Muse, train
from minimuse.data import Tokens, halve
from minimuse.datasets import load
from minimuse.losses import token_loss, tokenizer_loss
from minimuse.maskgit import MaskGit
from minimuse.metrics.images import psnr
from minimuse.metrics.likelihood import bits_per_token
from minimuse.plumbing import optimizers
from minimuse.plumbing.config import PRESETS, Stage
from minimuse.plumbing.muon import Muon
from minimuse.vq import ImageTokenizer, perplexity
from minimuse.vq_loss import ImageLoss, PatchDiscriminator

ATTRIBUTES = ("shape", "colour", "size", "count", "relation", "all")


# --- Ways of training ---
def everything_decays(
    model: nn.Module, settings: Stage, tables_in_muon: bool
) -> list[torch.optim.Optimizer]:
    """AdamW with weight decay for all that it trains, and Muon, as minimuse had them at first."""
    inside = optimizers.parameters_inside(model, optimizers.Block)
    tables = [] if tables_in_muon else optimizers.parameters_inside(model, optimizers.TABLES)
    matrices = []
    if settings.muon_lr:
        matrices = optimizers.without([p for p in inside if p.ndim == 2], tables)
    adamw = torch.optim.AdamW(
        optimizers.without(model.parameters(), matrices),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    if not matrices:
        return [adamw]
    return [adamw, Muon(matrices, settings.muon_lr)]


def tables_in_muon(model: nn.Module, settings: Stage) -> list[torch.optim.Optimizer]:
    return everything_decays(model, settings, tables_in_muon=True)


def tables_as_vectors(model: nn.Module, settings: Stage) -> list[torch.optim.Optimizer]:
    return everything_decays(model, settings, tables_in_muon=False)


def clip_together(model: nn.Module) -> bool:
    """One norm for all gradients, a discriminator's among them."""
    return bool(nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite())


BASE_WAYS = {
    "tables in Muon, vectors decay": tables_in_muon,
    "tables as vectors, vectors decay": tables_as_vectors,
    "tables as vectors, matrices decay": optimizers.make_optimizers,
}
TOKENIZER_WAYS = {
    "one norm": clip_together,
    "a norm each": optimizers.clip_gradients,
}


@contextmanager
def loop_with(**functions: Callable) -> Iterator[None]:
    """Inside, the training loop calls these functions in place of its own."""
    before = {name: getattr(train, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(train, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(train, name, function)


# --- The base model ---
def make_base(muse: Muse, tokens: Tokens) -> MaskGit:
    config = PRESETS["demo"].base
    codes, grid = muse.tokenizer.config.codes, muse.tokenizer.config.grid
    model = MaskGit(config, codes, grid, muse.text.width)
    text = tokens.shards[0]["text"].float()
    model.start(text, muse.tokenizer.quantizer.lookup(torch.arange(codes)))
    return model


def train_base(way: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    muse = Muse.load("toy-shapes")
    demo = PRESETS["demo"]
    tokens = cached_tokens(muse, "shapes", "train", pictures, out)
    held_out = cached_tokens(muse, "shapes", "heldout", n, out)

    def make():
        model = make_base(muse, tokens)
        return model, token_loss(model, tokens, demo, "low", "cpu")

    stage = replace(demo.stages.base, steps=steps)
    with loop_with(make_optimizers=BASE_WAYS[way]):
        name = f"base-{list(BASE_WAYS).index(way)}-{seed}"
        model, _, seconds = fit(name, make, stage, len(tokens), seed, out)
    text, visible = held_out.captions(torch.arange(len(held_out)))
    bits = bits_per_token(
        model, held_out.ids("low"), lambda rows: model.context(text[rows], visible[rows])
    )
    captions = first_captions(load("shapes", "heldout", muse.config.tokenizer_hi.side, n))
    drawn = fractions_right(muse, captions, seed, base=model)
    return {"seconds": seconds, "bits": bits["value"], "drawn": drawn}


# --- The tokenizer ---
def train_tokenizer(way: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    toy = PRESETS["toy"]
    side = toy.tokenizer_hi.side
    images = load("emoji", "train", side, pictures)
    stage = replace(toy.stages.tokenizer, steps=steps)
    norms = {"tokenizer": [], "discriminator": []}

    def make():
        weights = replace(toy.loss, perceptual=0.0)
        parts = {"part": ImageTokenizer(toy.tokenizer), "loss": ImageLoss(weights, None)}
        model = nn.ModuleDict(parts).to(memory_format=torch.channels_last)
        return model, tokenizer_loss(model, images, toy, stage, True, "cpu")

    def clip_and_note(model: nn.Module) -> bool:
        for name, network in (("tokenizer", nn.Module), ("discriminator", PatchDiscriminator)):
            parameters = optimizers.parameters_inside(model, network)
            if name == "tokenizer":
                judges = optimizers.parameters_inside(model, PatchDiscriminator)
                parameters = optimizers.without(parameters, judges)
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                norms[name].append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return TOKENIZER_WAYS[way](model)

    with loop_with(clip_gradients=clip_and_note):
        name = f"tokenizer-{list(TOKENIZER_WAYS).index(way)}-{seed}"
        model, _, seconds = fit(name, make, stage, len(images), seed, out)
    tokenizer = model["part"]
    held_out = load("emoji", "heldout", side, n)
    real = halve(held_out.batch(range(len(held_out))))
    ids = tokenizer.encode(real)
    return {
        "seconds": seconds,
        "psnr": psnr(tokenizer.decode(ids), real),
        "perplexity": perplexity(ids, tokenizer.config.codes)[0],
        "norm of tokenizer": float(np.median(norms["tokenizer"])),
        "norm of discriminator": float(np.median(norms["discriminator"] or [0.0])),
    }


# --- Both ---
def work(kind: str, way: str, seed: int, steps: int, *rest) -> dict:
    function = {"base": train_base, "tokenizer": train_tokenizer}[kind]
    return function(way, seed, steps, *rest)


def verdicts(done: dict) -> list[str]:
    lines = []
    first, *others = BASE_WAYS
    for way in others:
        right = [values(done, f"base/{w}", "drawn", "all") for w in (way, first)]
        lines.append(f"- right in all, {way} above {first}: {verdict(*right)}")
    right = [values(done, f"tokenizer/{way}", "psnr") for way in ("a norm each", "one norm")]
    lines.append(f"- PSNR, a norm each above one norm: {verdict(*right)}")
    return lines


def report(out: Path, done: dict) -> None:
    rows = []
    for way in BASE_WAYS:
        right = [mean_and_std(values(done, f"base/{way}", "drawn", a)) for a in ATTRIBUTES]
        rows.append([way, mean_and_std(values(done, f"base/{way}", "bits")), *right])
    of_base = table(["base model", "bits per token", *ATTRIBUTES], rows)
    measures = ("psnr", "perplexity", "norm of tokenizer", "norm of discriminator")
    rows = [
        [way, *(mean_and_std(values(done, f"tokenizer/{way}", m)) for m in measures)]
        for way in TOKENIZER_WAYS
    ]
    of_tokenizer = table(["tokenizer", *measures], rows)
    write_report(out, "optimizers", done, of_base, of_tokenizer, "\n".join(verdicts(done)))


def main():
    args = arguments(__doc__, steps=800, pictures=20_000, n=256, seeds=len(SEEDS))
    jobs = {}
    for kind, ways in (("base", BASE_WAYS), ("tokenizer", TOKENIZER_WAYS)):
        for seed in range(args.seeds):
            for way in ways:
                rest = (args.steps, args.pictures, args.n, args.out)
                jobs[f"{kind}/{way}/{seed}"] = (kind, way, seed, *rest)
    done = run_jobs(args.out / "optimizers.json", jobs, work, args.workers)
    report(args.out, done)


if __name__ == "__main__":
    main()
