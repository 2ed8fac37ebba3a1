"""Claim 8: super-resolution needs fewer passes than the base model (Muse, section 2.8); and quality against passes for every sampler.

    python lessons/claims/frontier.py --model toy-shapes --out runs/claims        # toy: needs the `eval` extra

Each sampler and each number of passes has temperatures of its own, tuned on other pictures than are shown; three seeds of drawing. First
the base model's passes, with super-resolution as the model's config.json says; then super-resolution's, from low-res tokens drawn once;
then guidance that rises, is constant, or acts late only, at (nearly) equal passes. Quality is, of shapes, the share of pictures that are
right in all attributes, by the detector, for held-out combinations (tuned on the validation split); of emoji, KID to the real pictures of the
same captions, held-out pairs (tuned on others), and beside it how often the concept is among the judge's ten likeliest.
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
from trial import SEEDS, arguments, finish, table, told, work_through

from minimuse import Muse
from minimuse.datasets import load, shapes
from minimuse.decode import SAMPLERS, Sampling
from minimuse.metrics import alignment
from minimuse.metrics.distances import kid
from minimuse.metrics.judge import Judge, features
from minimuse.plumbing.lite0 import Lite0

PASSES = (1, 2, 4, 8, 16, 64)
CONFIDENCE = [
    (t, c) for t in (0.5, 1.0) for c in (0.5, 2.0, 8.0)
]  # temperature, choice temperature
OTHERS = [(t, 1.0) for t in (0.25, 0.5, 1.0)]
COURSES = {
    "ramp": dict(steps=8),
    "constant": dict(steps=8, ramp=False),
    "interval": dict(steps=11, ramp=False, guided=(0.5, 1.0)),
}
TUNING = 9  # a seed that no test has
loaded = lru_cache(Muse.load)


def scenes(split: str, n: int) -> list:
    """Held-out combinations for the test; for tuning others, of the validation split: odd training numbers."""
    return [shapes.scene(2 * i + 1 if split == "train" else i, split) for i in range(n)]


class Asked(NamedTuple):
    captions: list[str]
    judge: Callable  # pictures (B, 3, H, W) -> measures by name; what is tuned for comes first


@lru_cache
def asked(model: str, part: str, n: int) -> Asked:
    """n captions of the part "test", half as many to tune on."""
    muse = loaded(model)
    if muse.about["data"] == "shapes":
        wanted = scenes("heldout", n) if part == "test" else scenes("train", n // 2)
        return Asked(
            [shapes.caption(s) for s in wanted],
            lambda images: {"right": alignment.alignment(wanted, images)["all"]["value"]},
        )
    pictures, net, judge = (
        load("emoji", "heldout", muse.config.tokenizer_hi.side),
        Lite0(),
        Judge.load(),
    )
    rows = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    rows = (rows[:n] if part == "test" else rows[n : n + n // 2]).tolist()
    real, names = features(net, pictures.batch(rows)), [pictures.names[i] for i in rows]

    def look(images: torch.Tensor) -> dict[str, float]:
        found = features(net, images)
        return {"KID": kid(found, real), "ten": judge.shares(judge(found, names))["ten"]["value"]}

    return Asked([pictures.captions[i][0] for i in rows], look)


@lru_cache
def low_tokens(model: str, part: str, n: int, seed: int) -> list[torch.Tensor]:
    """Low-res tokens, 32 pictures each, drawn as config.json says."""
    captions = asked(model, part, n).captions
    steps = lambda i: (
        step.ids
        for name, step in loaded(model).steps(captions[i : i + 32], seed=seed * 10_000 + i)
        if name == "low"
    )
    return [list(steps(i))[-1] for i in range(0, len(captions), 32)]


def drawn(model: str, part: str, n: int, seed: int, stage: str, how: Sampling) -> dict[str, float]:
    """Draw with `how` for one stage and config.json for the other; what the pictures are worth."""
    muse, (captions, judge) = loaded(model), asked(model, part, n)
    given = {"sampling" if stage == "base" else "sampling_hi": how}
    images = []
    for b, i in enumerate(range(0, len(captions), 32)):
        low = low_tokens(model, part, n, seed)[b] if stage == "superres" else None
        ids = dict(muse.steps(captions[i : i + 32], seed=seed * 10_000 + i, low=low, **given))[
            "high"
        ].ids
        images.append(muse.pixels(ids, "high"))
    return judge(torch.cat(images))


def work(model: str, stage: str, n: int, settings: dict) -> dict:
    """A point of the frontier: tune, if settings leave something to tune, and test."""
    begun, muse = monotonic(), loaded(model)
    usual = muse.config.sampling if stage == "base" else muse.config.sampling_hi
    if "sampler" in settings:
        temperatures = CONFIDENCE if settings["sampler"] == "confidence" else OTHERS
        ways = [
            replace(usual, temperature=t, choice_temperature=c, **settings) for t, c in temperatures
        ]
        scores = [drawn(model, "tune", n, TUNING, stage, way) for way in ways]
        value = lambda score: -score["KID"] if "KID" in score else score["right"]
        best = max(range(len(ways)), key=lambda i: value(scores[i]))
    else:
        ways, best = [replace(usual, **settings)], 0
    found = [drawn(model, "test", n, seed, stage, ways[best]) for seed in SEEDS]
    tuned = {
        "temperature": ways[best].temperature,
        "choice_temperature": ways[best].choice_temperature,
    }
    return {"tuned": tuned, "seconds": round(monotonic() - begun, 1)} | {
        key: [f[key] for f in found] for key in found[0]
    }


def main():
    args = arguments(__doc__, model="toy-shapes", n=64, passes=64)
    config, name = loaded(args.model).config, f"frontier-{Path(args.model).name}"
    jobs, passes = {}, {}
    for stage, tokenizer in (
        ("base", config.tokenizer),
        ("superres", config.tokenizer_hi),
    ):  # more passes than tokens do nothing
        passes[stage] = [steps for steps in PASSES if steps <= min(args.passes, tokenizer.grid**2)]
        for sampler in SAMPLERS:
            jobs |= {
                f"{stage}/{sampler}/{steps}": (
                    args.model,
                    stage,
                    args.n,
                    dict(sampler=sampler, steps=steps),
                )
                for steps in passes[stage]
            }
    for guidance in (
        1.0,
        2.0,
        4.0,
    ):  # of the base model; an unguided step is half a pass: the interval takes more of them
        jobs |= {
            f"guidance {guidance:g}/{course}": (
                args.model,
                "base",
                args.n,
                how | {"guidance": guidance},
            )
            for course, how in COURSES.items()
        }
    done = work_through(
        args.out / f"{name}.json",
        dict(sorted(jobs.items(), key=lambda job: job[1][3]["steps"])),
        work,
        args.workers,
    )
    measures = [key for key in next(iter(done.values())) if key not in ("tuned", "seconds")]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    paragraphs = []
    for axis, (stage, counts) in zip(axes, passes.items()):
        for sampler in SAMPLERS:
            values = np.array([done[f"{stage}/{sampler}/{steps}"][measures[0]] for steps in counts])
            axis.errorbar(
                counts,
                values.mean(1),
                values.std(1, ddof=1),
                label=sampler,
                marker="o",
                markersize=3,
                capsize=2,
            )
        axis.set(
            xscale="log",
            xticks=counts,
            xticklabels=counts,
            xlabel=f"passes of {stage}",
            ylabel=measures[0],
        )
        axis.minorticks_off()
        for key in measures:
            rows = [
                [sampler, *(told(done[f"{stage}/{sampler}/{steps}"][key]) for steps in counts)]
                for sampler in SAMPLERS
            ]
            paragraphs.append(table([f"{key}, passes of {stage}", *map(str, counts)], rows))
    for key in measures:
        rows = [
            [
                f"{guidance:g}",
                *(told(done[f"guidance {guidance:g}/{course}"][key]) for course in COURSES),
            ]
            for guidance in (1.0, 2.0, 4.0)
        ]
        paragraphs.append(table([f"{key}, guidance", *COURSES], rows))
    axes[0].legend(fontsize=8)
    figure.savefig(args.out / f"{name}.png", dpi=110, bbox_inches="tight")
    finish(args.out, name, done, *paragraphs)


if __name__ == "__main__":
    main()
