"""Claim 5: guidance that rises over the steps costs less diversity than constant guidance
(Muse, section 2.7).

    python lessons/claims/ramp.py --out runs/claims   # an hour of one core; `eval` extra

Both shipped models draw for held-out captions, with guidance that rises linearly to t (the paper's)
and with guidance t in all steps, for several t and five seeds. An image is faithful if all its
attributes are right, by the detector (shapes), or if its concept is among the ten most likely, by
the judge (emoji). Diversity is the recall of real images' features.

The ramp's mean is about t/2, so the two are not compared at equal t. The ramp costs less if it is
as faithful as some constant guidance and more diverse, or as diverse and more faithful. The table
has both numbers. The figure has one against the other.
"""

import time
from argparse import Namespace
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from trial import (
    SEEDS,
    arguments,
    first_captions,
    mean_and_std,
    run_jobs,
    table,
    verdict,
    write_report,
)

from minimuse import Muse
from minimuse.data import Images
from minimuse.datasets import load, shapes
from minimuse.metrics.alignment import alignment
from minimuse.metrics.distances import precision
from minimuse.metrics.judge import Judge, features
from minimuse.plumbing.lite0 import Lite0

MODELS = ("toy-shapes", "toy")
COURSES = ("ramp", "constant")
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
MEASURES = ("faithful", "recall", "precision")


def work(model: str, course: str, strength: float, seed: int, n: int) -> dict:
    begun = time.monotonic()
    muse = Muse.load(model)
    net = Lite0()
    images = load(muse.about["data"], "heldout", muse.config.tokenizer_hi.side, n)
    # Super-resolution keeps its own sampling.
    sampling = replace(muse.config.sampling, guidance=strength, ramp=course == "ramp")
    _, drawn = muse.draw(first_captions(images), seed=1000 * seed, sampling=sampling)
    drawn_features = features(net, drawn)  # M C
    real_features = features(net, images.batch(range(len(images))))  # M C
    if muse.about["data"] == "shapes":
        faithful = faithful_shapes(images, drawn)
    else:
        faithful = faithful_emoji(images, drawn_features)
    return {
        "faithful": faithful,
        "recall": precision(real_features, drawn_features),
        "precision": precision(drawn_features, real_features),
        "seconds": round(time.monotonic() - begun, 1),
    }


def faithful_shapes(images: Images, drawn: torch.Tensor) -> float:
    scenes = [shapes.parse(caption) for caption in first_captions(images)]
    return alignment(scenes, drawn)["all"]["value"]


def faithful_emoji(images: Images, drawn_features: torch.Tensor) -> float:
    judge = Judge.load()
    return judge.accuracy(judge(drawn_features, images.names))["ten"]["value"]


def of_seeds(done: dict, model: str, course: str, strength: float, measure: str) -> list[float]:
    return [done[f"{model}/{course}/{strength}/{seed}"][measure] for seed in SEEDS]


def curve(done: dict, model: str, course: str, measure: str) -> np.ndarray:
    """One measure by strength and seed."""
    return np.array([of_seeds(done, model, course, t, measure) for t in STRENGTHS])


def rows(done: dict, model: str) -> list[list[str]]:
    lines = []
    for course in COURSES:
        for t in STRENGTHS:
            cells = [mean_and_std(of_seeds(done, model, course, t, name)) for name in MEASURES]
            lines.append([f"{model}: {course} {t:g}", *cells])
    return lines


def recall_gains(done: dict, model: str) -> list[float]:
    """How much more recall the ramp has than constant guidance that is as faithful, for each seed.

    The recall of constant guidance is interpolated linearly between its strengths.
    """
    faithful, recall = (curve(done, model, "constant", m) for m in ("faithful", "recall"))
    ramp_faithful, ramp_recall = (curve(done, model, "ramp", m) for m in ("faithful", "recall"))
    gains = []
    for i in range(len(SEEDS)):
        order = np.argsort(faithful[:, i])
        equal = np.interp(ramp_faithful[:, i], faithful[order, i], recall[order, i])
        gains.append(float(np.mean(ramp_recall[:, i] - equal)))
    return gains


def verdicts(done: dict) -> list[str]:
    """Whether the ramp is more diverse: a paired test, since the gains are differences."""
    lines = []
    for model in MODELS:
        gains = recall_gains(done, model)
        answer = verdict(gains, [0.0] * len(SEEDS))
        lines.append(
            f"- {model}: as faithful, the ramp is more diverse: {answer} "
            f"(recall {mean_and_std(gains)})"
        )
    return lines


def draw_figure(args: Namespace, done: dict) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, model in zip(axes, MODELS, strict=True):
        for course in COURSES:
            x = curve(done, model, course, "faithful").mean(1)
            y = curve(done, model, course, "recall").mean(1)
            axis.plot(x, y, marker="o", markersize=4, label=course)
        axis.set(xlabel="faithful", ylabel="diverse (recall)", title=model)
    axes[0].legend(fontsize=8)
    figure.savefig(args.out / "ramp.png", dpi=110, bbox_inches="tight")


def main():
    args = arguments(__doc__, n=128)
    jobs = {
        f"{model}/{course}/{t}/{seed}": (model, course, t, seed, args.n)
        for model in MODELS
        for t in STRENGTHS
        for course in COURSES
        for seed in SEEDS
    }
    done = run_jobs(args.out / "ramp.json", jobs, work, args.workers)
    draw_figure(args, done)
    lines = [line for model in MODELS for line in rows(done, model)]
    head = ["guidance", *MEASURES]
    write_report(args.out, "ramp", done, table(head, lines), "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
