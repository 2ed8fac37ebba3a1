"""Training otherwise than Muse: with soft targets, and with wrong tokens among those that are seen.

    python lessons/claims/otherwise.py --out runs/claims    # half an hour of one thread

Small super-resolution and base models as the demo's, on the tokens of toy-shapes' tokenizers, five
seeds each. All ways of a stage train for as many steps.

Super-resolution:
- as Muse: the target of a hidden token is its true code.
- soft targets: it is a distribution over codes; codes whose vectors are near the true one have a
  part of it. The mean true token keeps half of it.
- wrong low-res tokens: a tenth of the low-res tokens are those of another image at the same place
  (some have the same code there). So the model learns not to trust each of them, as the base
  model's have errors too.

Base model:
- as Muse: all visible tokens are true.
- wrong visible tokens: a tenth of the visible tokens are those of another image at the same place,
  and the model also has to say what belongs there. So it can judge what it has drawn.

Held-out captions are drawn with the trained model in place of toy-shapes' own, in two ways:

- Super-resolution gets the low-res tokens that toy-shapes draws. Its images are made of the
  likeliest codes, or of mean code vectors (minimuse/beyond/mean_vectors.py).
- The base model decodes as Muse in 16 passes; or in 12, and 4 more revise: the model looks at the
  complete grid, and draws the two tokens anew that it finds least likely (a token-critic as in
  2209.04439, but the model is its own critic). Guidance does not rise while it revises.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from corrected import draw_low, test_tokens
from frontier import BATCH
from pieces import make_superres
from torch import Tensor, nn
from trial import (
    SEEDS,
    arguments,
    cached_tokens,
    fit,
    grouped_bars,
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
from minimuse.decode import draw as draw_codes
from minimuse.decode import noise_of
from minimuse.guidance import guide
from minimuse.losses import draw_token_batch, hidden_logits
from minimuse.maskgit import MaskGit
from minimuse.metrics.alignment import alignment
from minimuse.metrics.outline import outline
from minimuse.plumbing.config import PRESETS
from minimuse.vq import EMAQuantizer

MODEL = "toy-shapes"
WRONG = 0.1  # the fraction of tokens that are another image's
KEPT = 0.5  # what the true code keeps of a soft target, on average
WAYS = {
    "superres": ("as Muse", "soft targets", "wrong low-res tokens"),
    "base": ("as Muse", "wrong visible tokens"),
}
ENDS = {"superres": ("likeliest", "mean vector"), "base": ("decoded", "revised")}
REVISIONS = 4  # of 16 passes
REVISED = 2  # tokens of 16, in each
MEASURES = ("shape", "count", "all", "outline")


# --- Targets, and wrong tokens ---


def soft_targets(codebook: Tensor, frequency: Tensor) -> Tensor:
    """For each true code (K) a distribution over all codes (K, K); near codes have more of it.

    `frequency` (K,) is how often tokens have each code. Codes that are often used lie close to each
    other, so the width is chosen for what a mean *token* keeps, by halving an interval.
    """
    squared = torch.cdist(codebook, codebook).square()  # K K
    share = frequency / frequency.sum()  # K
    narrow, wide = 0.0, float(squared.max())
    for _ in range(40):
        width = (narrow + wide) / 2
        targets = (-squared / width).softmax(dim=-1)
        if (share * targets.diagonal()).sum() > KEPT:
            narrow = width
        else:
            wide = width
    return targets


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of logits (M, K) and target distributions (M, K)."""
    return -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def with_wrong_tokens(
    ids: Tensor, where: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A tenth of ids (B, N) in `where` (B, N) become those of the image before it in the batch.

    Returns the ids, and where they were exchanged; some codes are the same.
    """
    chosen = torch.rand(ids.shape, generator=generator) < WRONG
    wrong = chosen & where
    return torch.where(wrong, ids.roll(1, dims=0), ids), wrong


# --- Training ---


def loss_of_way(
    way: str, model: nn.Module, tokens: Tokens, resolution: str, quantizer: EMAQuantizer
) -> Callable:
    """What `fit` takes as the loss of a model: the masked-token loss, changed in one way."""
    demo = replace(PRESETS["demo"], fully_hidden=0.0)  # every image draws a mask ratio, as in Muse
    targets = torch.eye(len(quantizer.codebook))
    if way == "soft targets":
        ids = tokens.ids(resolution).flatten()
        frequency = torch.bincount(ids, minlength=len(targets)).float()
        targets = soft_targets(quantizer.codebook, frequency)

    def parts_of(indices: Tensor, generator: torch.Generator, step: int):
        batch = draw_token_batch(model, tokens, indices, generator, demo, resolution, "cpu")
        learnt = batch.hidden  # B N, where the model learns
        if way == "wrong low-res tokens":
            everywhere = torch.ones_like(batch.low_ids, dtype=torch.bool)
            low_ids, _ = with_wrong_tokens(batch.low_ids, everywhere, generator)
            batch = batch._replace(low_ids=low_ids)
        if way == "wrong visible tokens":
            masked_ids, wrong = with_wrong_tokens(batch.ids, ~batch.hidden, generator)
            learnt = batch.hidden | wrong
            masked_ids = masked_ids.masked_fill(batch.hidden, model.mask_id)
            batch = batch._replace(masked_ids=masked_ids, hidden=learnt)
        logits = hidden_logits(model, batch, torch.arange(len(indices)), "cpu")  # M K
        loss = cross_entropy(logits, targets[batch.ids[learnt]])
        yield loss, {"hidden": learnt.float().mean()}

    return parts_of


def make_base(muse: Muse, tokens: Tokens) -> MaskGit:
    tokenizer = muse.tokenizer
    config = PRESETS["demo"].base
    model = MaskGit(config, tokenizer.config.codes, tokenizer.config.grid, muse.text.width)
    codebook = tokenizer.quantizer.lookup(torch.arange(tokenizer.config.codes))
    model.start(tokens.shards[0]["text"].float(), codebook)
    return model


def train(
    stage: str, way: str, seed: int, steps: int, pictures: int, out: Path
) -> tuple[nn.Module, float]:
    """The trained model, and the processor seconds that it took."""
    muse, demo = Muse.load(MODEL), PRESETS["demo"]
    tokens = cached_tokens(muse, "shapes", "train", pictures, out)
    resolution = "high" if stage == "superres" else "low"
    quantizer = muse.tokenizers[resolution].quantizer

    def make():
        if stage == "superres":
            model = make_superres(muse, demo.superres, tokens)
        else:
            model = make_base(muse, tokens)
        return model, loss_of_way(way, model, tokens, resolution, quantizer)

    # The rate of Muon is that of the demo when this was measured.
    settings = replace(getattr(demo.stages, stage), steps=steps, muon_lr=0.025)
    name = f"otherwise-{stage}-{way.replace(' ', '-')}-{seed}"
    model, _, seconds = fit(name, make, settings, len(tokens), seed, out)
    return model, seconds


# --- Drawing ---


@lru_cache
def held_out(n: int) -> tuple[list[shapes.Scene], list[str]]:
    scenes = [shapes.scene(i, "heldout") for i in range(n)]
    return scenes, [shapes.caption(scene) for scene in scenes]


def measured(images: Tensor, n: int) -> dict[str, float]:
    scenes, _ = held_out(n)
    right = {name: cell["value"] for name, cell in alignment(scenes, images).items()}
    return right | {"outline": outline(images)["value"]}


def draw(stage: str, model: nn.Module, seed: int, n: int) -> dict[str, dict[str, float]]:
    """The measures of held-out captions, by the end of the stage."""
    muse = Muse.load(MODEL)
    setattr(muse, stage, model)
    _, captions = held_out(n)
    results = {}
    for end in ENDS[stage]:
        # Without guidance, as it was when this was measured.
        one_pass = replace(muse.config.sampling_hi, steps=1, temperature=0.0, guidance=0.0)
        sampling_hi = replace(one_pass, mean_vectors=end != "likeliest")
        if stage == "superres":
            low = test_tokens(MODEL, n, seed)
        else:
            low = base_tokens(muse, captions, seed, end)
        _, images = muse.draw(captions, seed=10_000 * seed, low=low, sampling_hi=sampling_hi)
        results[end] = measured(images, n)
    return results


def base_tokens(muse: Muse, captions: list[str], seed: int, end: str) -> Tensor:
    """Low-res tokens (B, n), decoded in 16 passes, or in fewer and then revised."""
    revisions = REVISIONS if end == "revised" else 0
    steps = muse.config.sampling.steps - revisions
    sampling = replace(muse.config.sampling, steps=steps)
    batches = []
    for start in range(0, len(captions), BATCH):
        batch, first = captions[start : start + BATCH], 10_000 * seed + start
        ids = draw_low(muse, batch, first, sampling)
        generators = muse.generators("revision", first, len(batch))
        for _ in range(revisions):
            ids = revise_least_likely(muse, batch, ids, generators)
        batches.append(ids)
    return torch.cat(batches)


@torch.no_grad()
def revise_least_likely(
    muse: Muse, captions: list[str], ids: Tensor, generators: list[torch.Generator]
) -> Tensor:
    """Draw the least likely tokens of complete ids (B, N) anew, all in one pass."""
    sampling = muse.config.sampling
    prompts = muse.embed_prompts(captions)
    cond, uncond = muse.contexts(muse.base, prompts, sampling.guidance)
    logits = guide(muse.base(ids, cond), muse.base(ids, uncond), sampling.guidance)  # B N K
    log_p = logits.log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]  # B N
    least = torch.zeros_like(ids, dtype=torch.bool)
    least.scatter_(1, log_p.topk(REVISED, dim=1, largest=False).indices, True)
    noise, _ = noise_of(generators, *logits.shape[1:])  # B N K
    return torch.where(least, draw_codes(logits, noise, sampling.temperature), ids)


def work(stage: str, way: str, seed: int, steps: int, pictures: int, n: int, out: Path) -> dict:
    model, seconds = train(stage, way, seed, steps, pictures, out)
    return {"seconds": seconds, "drawn": draw(stage, model, seed, n)}


# --- The report ---


def verdicts(done: dict) -> list[str]:
    """Is a way better than Muse's, in each measure? And is it better to revise?"""

    def compared(text: str, stage: str, better: tuple[str, str], worse: tuple[str, str]) -> None:
        """better, worse: a way and an end."""
        for measure in MEASURES:
            groups = [
                values(done, f"{stage}/{way}", "drawn", end, measure)
                for way, end in (better, worse)
            ]
            lines.append(f"- {stage}, {measure}: {text}: {verdict(*groups)}")

    lines = []
    for stage, (first, *others) in WAYS.items():
        plain, better = ENDS[stage]
        for way in others:
            for end in ENDS[stage]:
                compared(f"{way} are better ({end})", stage, (way, end), (first, end))
            for end, other in ((better, plain), (plain, better)):
                text = f"{way}, {end}, are better than Muse's, {other}"
                compared(text, stage, (way, end), (first, other))
        for way in (first, *others):
            compared(f"{way}: {better} is better than {plain}", stage, (way, better), (way, plain))
    return lines


def make_table(done: dict) -> str:
    rows = []
    for stage, ways in WAYS.items():
        for way in ways:
            for end in ENDS[stage]:
                group = f"{stage}/{way}"
                seconds = mean_and_std(values(done, group, "seconds"))
                cells = [mean_and_std(values(done, group, "drawn", end, m)) for m in MEASURES[:-1]]
                outlines = values(done, group, "drawn", end, MEASURES[-1])
                # Outlines differ in the third place.
                cells.append(f"{np.mean(outlines):.3f} ± {np.std(outlines, ddof=1):.3f}")
                rows.append([stage, way, end, seconds, *cells])
    return table(["stage", "way", "end", "seconds", *MEASURES], rows)


def draw_figure(args: Namespace, done: dict) -> None:
    """What is right in all, and the outlines, of each way and end of a stage."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), layout="constrained")
    for row, (stage, ways) in zip(axes, WAYS.items(), strict=True):
        for axis, measure in zip(row, ("all", "outline"), strict=True):
            series = {
                end: [values(done, f"{stage}/{way}", "drawn", end, measure) for way in ways]
                for end in ENDS[stage]
            }
            grouped_bars(axis, ways, series)
            axis.set(title=f"{stage}: {'right in all' if measure == 'all' else measure}")
        row[0].set(ylim=(0.0, 0.75))
        row[1].set(ylim=(0.7, 0.9))  # outlines of quite wrong shapes have some .7
    figure.savefig(args.out / "otherwise.png", dpi=110)


def main():
    args = arguments(__doc__, superres=500, base=500, pictures=20_000, n=256)
    jobs = {}
    for seed in SEEDS:
        for stage, ways in WAYS.items():
            for way in ways:
                steps = getattr(args, stage)
                job = (stage, way, seed, steps, args.pictures, args.n, args.out)
                jobs[f"{stage}/{way}/{seed}"] = job
    done = run_jobs(args.out / "otherwise.json", jobs, work, args.workers)
    draw_figure(args, done)
    write_report(args.out, "otherwise", done, make_table(done), "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
