"""Claim 8: super-resolution needs fewer passes than the base model (Muse, section 2.8).
And the quality of every sampler at each number of passes.

    python lessons/claims/frontier.py --model toy-shapes --out runs/claims   # toy: `eval` extra

Each sampler has temperatures of its own at each number of passes. They are tuned on other images
than those of the test. Five seeds of drawing. First come the base model's passes, with
super-resolution as the model's config.json has it. Then super-resolution's passes, from low-res
tokens that are drawn once. Then guidance that rises, is constant, or acts late only, at (nearly)
equal passes.

The quality of shapes is the fraction of images that are right in all attributes, by the detector,
for held-out combinations (tuned on the validation split). The quality of emoji is KID to the real
images of the same captions, held-out pairs (tuned on others). The tables also have how often the
concept is among the judge's ten most likely.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from trial import SEEDS, arguments, mean_and_std, run_jobs, table, write_report

from minimuse import Muse
from minimuse.datasets import load, shapes
from minimuse.decode import SAMPLERS, Sampling
from minimuse.metrics.alignment import alignment
from minimuse.metrics.distances import kid
from minimuse.metrics.judge import Judge, features
from minimuse.plumbing.lite0 import Lite0

PASSES = (1, 2, 4, 8, 16, 64)
# Temperature and choice temperature to tune: of the confidence sampler, and of the others.
CONFIDENCE_TEMPERATURES = [(t, c) for t in (0.5, 1.0) for c in (0.5, 2.0, 8.0)]
OTHER_TEMPERATURES = [(t, 1.0) for t in (0.25, 0.5, 1.0)]
# An unguided step is half a pass, so the interval takes more steps.
COURSES = {
    "ramp": dict(steps=8),
    "constant": dict(steps=8, ramp=False),
    "interval": dict(steps=11, ramp=False, guided=(0.5, 1.0)),
}
GUIDANCES = (1.0, 2.0, 4.0)
TUNING_SEED = 9  # no test has it
BATCH = 32

load_muse = lru_cache(Muse.load)


# --- Captions, and how their images are judged ---


def scenes(split: str, n: int) -> list[shapes.Scene]:
    """Held-out combinations for the test. Scenes to tune on have odd training numbers, as in the
    validation split."""
    if split == "train":
        return [shapes.scene(2 * i + 1, split) for i in range(n)]
    return [shapes.scene(i, split) for i in range(n)]


class Task(NamedTuple):
    """Captions, and what judges the images drawn for them."""

    captions: list[str]
    judge: Callable  # images (B, 3, H, W) -> measures by name; the first one is tuned for


@lru_cache
def task(model: str, part: str, n: int) -> Task:
    """n captions of the part "test", or half as many of the part "tune"."""
    if load_muse(model).about["data"] == "shapes":
        return shapes_task(part, n)
    return emoji_task(model, part, n)


def shapes_task(part: str, n: int) -> Task:
    wanted = scenes("heldout", n) if part == "test" else scenes("train", n // 2)

    def judge(images: torch.Tensor) -> dict[str, float]:
        return {"right": alignment(wanted, images)["all"]["value"]}

    return Task([shapes.caption(scene) for scene in wanted], judge)


def emoji_task(model: str, part: str, n: int) -> Task:
    images = load("emoji", "heldout", load_muse(model).config.tokenizer_hi.side)
    net = Lite0()
    emoji_judge = Judge.load()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    chosen = order[:n] if part == "test" else order[n : n + n // 2]
    rows = chosen.tolist()
    real = features(net, images.batch(rows))
    names = [images.names[i] for i in rows]

    def judge(images: torch.Tensor) -> dict[str, float]:
        drawn = features(net, images)
        shares = emoji_judge.accuracy(emoji_judge(drawn, names))
        return {"KID": kid(drawn, real), "ten": shares["ten"]["value"]}

    return Task([images.captions[i][0] for i in rows], judge)


def quality(measures: dict[str, float]) -> float:
    """What is tuned for: more is better."""
    return -measures["KID"] if "KID" in measures else measures["right"]


# --- Drawing ---


@lru_cache
def low_tokens(model: str, part: str, n: int, seed: int) -> list[torch.Tensor]:
    """Low-res tokens, a batch of images each, drawn as config.json says."""
    muse = load_muse(model)
    captions = task(model, part, n).captions
    batches = []
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        for name, step in muse.steps(batch, seed=seed * 10_000 + start):
            if name == "low":
                ids = step.ids
        batches.append(ids)
    return batches


def draw_and_judge(
    model: str, part: str, n: int, seed: int, stage: str, sampling: Sampling
) -> dict[str, float]:
    """Draw with `sampling` for one stage and config.json for the other; judge the images."""
    muse = load_muse(model)
    captions, judge = task(model, part, n)
    images = []
    for b, start in enumerate(range(0, len(captions), BATCH)):
        if stage == "base":
            settings = {"sampling": sampling}
        else:
            settings = {"sampling_hi": sampling, "low": low_tokens(model, part, n, seed)[b]}
        batch = captions[start : start + BATCH]
        last = dict(muse.steps(batch, seed=seed * 10_000 + start, **settings))
        # Images of codes, without mean vectors, as they were when this was measured.
        images.append(muse.pixels(last["high"].ids, "high"))
    return judge(torch.cat(images))


def work(model: str, stage: str, n: int, settings: dict) -> dict:
    """A point of the frontier. With a sampler among the settings, its temperatures are tuned."""
    begun = monotonic()
    config = load_muse(model).config
    usual = config.sampling if stage == "base" else config.sampling_hi
    if "sampler" in settings:
        best = tune(model, stage, n, replace(usual, **settings))
    else:
        best = replace(usual, **settings)
    results = [draw_and_judge(model, "test", n, seed, stage, best) for seed in SEEDS]
    point = {
        "tuned": {
            "temperature": best.temperature,
            "choice_temperature": best.choice_temperature,
        },
        "seconds": round(monotonic() - begun, 1),
    }
    for measure in results[0]:
        point[measure] = [result[measure] for result in results]
    return point


def tune(model: str, stage: str, n: int, sampling: Sampling) -> Sampling:
    """The same with the best of its sampler's temperatures."""
    if sampling.sampler == "confidence":
        temperatures = CONFIDENCE_TEMPERATURES
    else:
        temperatures = OTHER_TEMPERATURES
    candidates = [replace(sampling, temperature=t, choice_temperature=c) for t, c in temperatures]
    qualities = []
    for candidate in candidates:
        measures = draw_and_judge(model, "tune", n, TUNING_SEED, stage, candidate)
        qualities.append(quality(measures))
    return candidates[qualities.index(max(qualities))]


# --- All points ---


def passes_of_stages(model: str, most: int) -> dict[str, list[int]]:
    """The numbers of passes of each stage. More passes than tokens would do nothing."""
    config = load_muse(model).config
    tokens = {"base": config.tokenizer.grid**2, "superres": config.tokenizer_hi.grid**2}
    return {
        stage: [passes for passes in PASSES if passes <= min(most, N)]
        for stage, N in tokens.items()
    }


def make_jobs(model: str, n: int, passes: dict[str, list[int]]) -> dict[str, tuple]:
    """By name, the arguments of `work`; those with few steps first."""
    jobs = {}
    for stage, counts in passes.items():
        for sampler in SAMPLERS:
            for steps in counts:
                settings = dict(sampler=sampler, steps=steps)
                jobs[f"{stage}/{sampler}/{steps}"] = (model, stage, n, settings)
    for guidance in GUIDANCES:  # of the base model
        for course, settings in COURSES.items():
            settings = settings | {"guidance": guidance}
            jobs[f"guidance {guidance:g}/{course}"] = (model, "base", n, settings)

    def steps_of(job: tuple[str, tuple]) -> int:
        _, (_, _, _, settings) = job
        return settings["steps"]

    return dict(sorted(jobs.items(), key=steps_of))


def make_tables(done: dict, passes: dict[str, list[int]], measures: list[str]) -> list[str]:
    tables = []
    for stage, counts in passes.items():
        for measure in measures:
            rows = []
            for sampler in SAMPLERS:
                points = [done[f"{stage}/{sampler}/{steps}"][measure] for steps in counts]
                rows.append([sampler, *map(mean_and_std, points)])
            tables.append(table([f"{measure}, passes of {stage}", *map(str, counts)], rows))
    for measure in measures:
        rows = []
        for guidance in GUIDANCES:
            points = [done[f"guidance {guidance:g}/{course}"][measure] for course in COURSES]
            rows.append([f"{guidance:g}", *map(mean_and_std, points)])
        tables.append(table([f"{measure}, guidance", *COURSES], rows))
    return tables


def draw_figure(path: Path, done: dict, passes: dict[str, list[int]], measure: str) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    for axis, (stage, counts) in zip(axes, passes.items(), strict=True):
        for sampler in SAMPLERS:
            points = [done[f"{stage}/{sampler}/{steps}"][measure] for steps in counts]
            points = np.array(points)  # passes, seeds
            mean, std = points.mean(1), points.std(1, ddof=1)
            axis.errorbar(counts, mean, std, label=sampler, marker="o", markersize=3, capsize=2)
        axis.set(xscale="log", xticks=counts, xticklabels=counts)
        axis.set(xlabel=f"passes of {stage}", ylabel=measure)
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main():
    args = arguments(__doc__, model="toy-shapes", n=64, passes=64)
    name = f"frontier-{Path(args.model).name}"
    passes = passes_of_stages(args.model, args.passes)
    jobs = make_jobs(args.model, args.n, passes)
    done = run_jobs(args.out / f"{name}.json", jobs, work, args.workers)
    first = next(iter(done.values()))
    measures = [key for key in first if key not in ("tuned", "seconds")]
    draw_figure(args.out / f"{name}.png", done, passes, measures[0])
    write_report(args.out, name, done, *make_tables(done, passes, measures))


if __name__ == "__main__":
    main()
