"""Can the same weights draw better? Four ideas that came after Muse, against its own decoding.

    python lessons/claims/corrected.py --model toy-shapes --out runs/claims   # toy: `eval` extra

All ways have equally many passes of the base model, temperatures of their own for each number of
passes, tuned on other captions than those of the test, and five seeds of drawing.

- confidence: as Muse. A guess is drawn for every hidden token, and the likeliest guesses are kept.
- certainty: positions are chosen before tokens are drawn, those with the largest probability
  first (2510.04525). In `confidence` a likely guess is kept sooner, which sharpens what is drawn.
- entropy: tokens of low entropy first, and more of them in one pass while that is safe
  (2505.24857). It has at most as many passes as the others.
- revision: three quarters of the passes draw an image; each of the others hides some tokens again,
  at random, and draws them anew, with all others visible (as ReMDM, 2503.00307).

Then, from the same tokens of the base model, three ways to end super-resolution: the likeliest code
in one pass, drawn codes in one pass, and the mean code vector, which no single code stands for.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from time import monotonic

import matplotlib.pyplot as plt
import torch
from frontier import BATCH, TUNING_SEED, load_muse, low_tokens, quality, task
from torch import Tensor
from trial import SEEDS, arguments, mean_and_std, run_jobs, table, verdict, write_report

from minimuse import Muse, decode
from minimuse.data import to_pil
from minimuse.decode import Sampling
from minimuse.metrics.outline import outline
from minimuse.schedule import random_masks

PASSES = (4, 8, 16)
TEMPERATURES = (0.6, 0.8, 1.0)
CHOICE_TEMPERATURES = (0.5, 2.0, 8.0)
REVISED = (1 / 16, 1 / 8, 1 / 4)  # the fraction of tokens that one revision hides, to tune
ENTROPY_BOUNDS = (0.5, 2.0, 8.0)  # nats
WAYS = ("confidence", "certainty", "entropy", "revision")
ENDS = ("likeliest", "drawn", "mean vector")


def certainty(
    logits: Tensor, log_p: Tensor, hidden: Tensor, left: Tensor, noise: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Keep the positions where the model is surest, whatever was drawn there (2510.04525)."""
    return logits.log_softmax(dim=-1).amax(dim=-1) + noise, left


# --- The base model: four ways, at equal passes ---


def draw_low(muse: Muse, captions: list[str], seed: int, sampling: Sampling) -> Tensor:
    """Low-res tokens (B, n) of some captions."""
    # A high-res grid that is complete already takes no pass.
    complete = torch.zeros(len(captions), muse.config.tokenizer_hi.grid**2, dtype=torch.long)
    *_, (_, step) = muse.steps(captions, seed=seed, sampling=sampling, high=complete)
    return step.ids


def revise(
    muse: Muse, captions: list[str], ids: Tensor, seed: int, sampling: Sampling, fraction: float
) -> Tensor:
    """Hide a random fraction of the tokens of ids (B, n), and draw them anew in one pass."""
    B, n = ids.shape
    counts = torch.full((B,), max(1, round(fraction * n)))
    hidden = random_masks(counts, n, torch.Generator().manual_seed(seed))  # B n
    masked = ids.masked_fill(hidden, muse.base.mask_id)
    _, step = next(muse.steps(captions, seed=seed, low=masked, sampling=sampling))
    return step.ids


def low_ids(
    muse: Muse, captions: list[str], seed: int, way: str, passes: int, setting: tuple
) -> Tensor:
    """Low-res tokens (B, n) that one of the WAYS draws in so many passes."""
    temperature, second = setting
    sampling = replace(muse.config.sampling, temperature=temperature, steps=passes)
    if way == "certainty":
        decode.SAMPLERS[way] = certainty
    if way == "entropy":
        return draw_low(muse, captions, seed, replace(sampling, sampler=way, entropy_bound=second))
    if way != "revision":
        sampling = replace(sampling, sampler=way, choice_temperature=second)
        return draw_low(muse, captions, seed, sampling)
    revisions = passes // 4
    ids = draw_low(muse, captions, seed, replace(sampling, steps=passes - revisions))
    # A revision has one step, in which guidance has risen to its full strength.
    one_step = replace(sampling, steps=1)
    for k in range(revisions):
        ids = revise(muse, captions, ids, seed + 100_000 * (k + 1), one_step, second)
    return ids


def settings_of(way: str) -> list[tuple[float, float]]:
    """What is tuned: temperature, and one more setting of the way."""
    seconds = {"revision": REVISED, "entropy": ENTROPY_BOUNDS}.get(way, CHOICE_TEMPERATURES)
    return [(temperature, second) for temperature in TEMPERATURES for second in seconds]


def judged(model: str, part: str, n: int, seed: int, way: str, passes: int, setting: tuple) -> dict:
    """Draw all captions of a part in one way, and judge the images."""
    muse = load_muse(model)
    captions, judge = task(model, part, n)
    images = []
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        first = seed * 10_000 + start
        ids = low_ids(muse, batch, first, way, passes, setting)
        *_, (_, last) = muse.steps(batch, seed=first, low=ids)
        # Images of codes, without mean vectors, as they were when this was measured.
        images.append(muse.pixels(last.ids, "high"))
    return judge(torch.cat(images))


def base_work(model: str, n: int, way: str, passes: int) -> dict:
    """One way at one number of passes: tune it, then draw the test with every seed."""
    begun = monotonic()

    def tuning(setting: tuple) -> float:
        return quality(judged(model, "tune", n, TUNING_SEED, way, passes, setting))

    best = max(settings_of(way), key=tuning)
    results = [judged(model, "test", n, seed, way, passes, best) for seed in SEEDS]
    return summary(results, begun) | {"tuned": best}


# --- Super-resolution: three ways to end it ---


@lru_cache
def test_tokens(model: str, n: int, seed: int) -> Tensor:
    return torch.cat(low_tokens(model, "test", n, seed))


@torch.no_grad()
def end_work(model: str, n: int, end: str) -> dict:
    """One pass of super-resolution, from the same low-res tokens for every end."""
    begun = monotonic()
    muse = load_muse(model)
    captions, judge = task(model, "test", n)
    results = []
    for seed in SEEDS:
        images = []
        for batch, rows in batches(captions, test_tokens(model, n, seed)):
            images.append(ended(muse, batch, rows, seed, end))
        drawn = torch.cat(images)
        results.append(judge(drawn) | {"outline": outline(drawn)["value"]})
    return summary(results, begun)


def batches(captions: list[str], ids: Tensor):
    """Captions and their low-res tokens, BATCH at a time."""
    for start in range(0, len(captions), BATCH):
        yield captions[start : start + BATCH], ids[start : start + BATCH]


def ended(muse: Muse, captions: list[str], low: Tensor, seed: int, end: str) -> Tensor:
    """Images (B, 3, H, W) after one pass of super-resolution."""
    temperature = 1.0 if end == "drawn" else 0.0
    sampling = replace(muse.config.sampling_hi, steps=1, temperature=temperature)
    if end != "mean vector":
        *_, (_, step) = muse.steps(captions, seed=seed, low=low, sampling_hi=sampling)
        return muse.pixels(step.ids, "high")
    sampling = replace(sampling, mean_vectors=True)
    return muse.draw(captions, len(captions), seed=seed, low=low, sampling_hi=sampling)[1]


# --- All of it ---


def summary(results: list[dict], begun: float) -> dict:
    """The measures of all seeds, each as a list, and the seconds since `begun`."""
    measures = {name: [result[name] for result in results] for name in results[0]}
    return measures | {"seconds": round(monotonic() - begun, 1)}


def work(model: str, n: int, stage: str, *rest) -> dict:
    return base_work(model, n, *rest) if stage == "base" else end_work(model, n, *rest)


def make_jobs(model: str, n: int, passes: tuple[int, ...]) -> dict[str, tuple]:
    """By name, the arguments of `work`."""
    jobs = {}
    for end in ENDS:
        jobs[f"end/{end}"] = (model, n, "end", end)
    for count in passes:
        for way in WAYS:
            jobs[f"base/{count}/{way}"] = (model, n, "base", way, count)
    return jobs


def measure_of(done: dict) -> tuple[str, int]:
    """The measure that decides, and 1 if more of it is better, -1 if less is."""
    first = next(iter(done.values()))
    return ("KID", -1) if "KID" in first else ("right", 1)


def verdicts(done: dict) -> list[str]:
    """Is a way better than confidence, or an end better than the likeliest code?"""
    lines = []
    for job, result in done.items():
        group, _, way = job.rpartition("/")
        is_end = group == "end"
        rival = done[f"{group}/{ENDS[0] if is_end else WAYS[0]}"]
        if result is rival:
            continue
        measures = [measure_of(done)]
        if is_end:
            measures.append(("outline", 1))
        for name, sign in measures:
            scores = [[sign * value for value in each[name]] for each in (result, rival)]
            lines.append(f"- {name}, {group}: {way} is better than the first: {verdict(*scores)}")
    return lines


def tables(done: dict, passes: tuple[int, ...]) -> list[str]:
    name, _ = measure_of(done)
    rows = []
    for way in WAYS:
        points = [done[f"base/{count}/{way}"][name] for count in passes]
        rows.append([way, *map(mean_and_std, points)])
    first = table([f"{name}, passes of base", *map(str, passes)], rows)
    rows = []
    for end in ENDS:
        result = done[f"end/{end}"]
        rows.append([end, mean_and_std(result[name]), mean_and_std(result["outline"])])
    return [first, table(["end of super-resolution", name, "outline"], rows)]


def draw_figure(path: Path, model: str, n: int) -> None:
    """The first images of the test, a row for each end of super-resolution, with labels."""
    muse = load_muse(model)
    captions, _ = task(model, "test", n)
    captions, low = captions[:8], test_tokens(model, n, SEEDS[0])[:8]
    figure, axes = plt.subplots(len(ENDS), 8, figsize=(9.6, 3.8), layout="constrained")
    for row, end in zip(axes, ENDS, strict=True):
        row[0].set_ylabel(end)
        images = to_pil(ended(muse, captions, low, SEEDS[0], end))
        for axis, image in zip(row, images, strict=False):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def main():
    args = arguments(__doc__, model="toy-shapes", n=128, passes=16)
    name = f"corrected-{Path(args.model).name}"
    passes = tuple(count for count in PASSES if count <= args.passes)
    jobs = make_jobs(args.model, args.n, passes)
    done = run_jobs(args.out / f"{name}.json", jobs, work, args.workers)
    draw_figure(args.out / f"{name}.png", args.model, args.n)
    write_report(args.out, name, done, *tables(done, passes), "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
