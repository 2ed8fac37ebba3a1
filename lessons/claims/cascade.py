"""Claim 2: a cascade beats predicting the fine grid directly (Muse, section 2.4).

    python lessons/claims/cascade.py --out runs/claims   # 75 minutes of two cores

The cascade is a base model of 4 x 4 tokens with super-resolution to 16 x 16. Its rival is one
masked model that predicts the 16 x 16 tokens from the caption. Both have as many parameters and
as many seconds of training, from five seeds each. `direct.py` says how they are trained, tuned
and measured.
"""

from argparse import Namespace

import matplotlib.pyplot as plt
import numpy as np
from direct import CASCADE, MASKED, Way, measure
from trial import (
    SEEDS,
    arguments,
    cached_tokens,
    grouped_bars,
    mean_and_std,
    run_jobs,
    table,
    verdict,
    write_report,
)

from minimuse import Muse

ATTRIBUTES = ("shape", "colour", "size", "count", "relation", "background", "all")


def fraction_right(done: dict, way: Way, attribute: str) -> list[float]:
    """For each training, at its own number of passes: the mean over the seeds of drawing."""
    fractions = []
    for seed in SEEDS:
        result = done[f"{way.name}/{seed}"]
        drawings = result["test"][str(result["passes"])]
        fractions.append(float(np.mean([drawing[attribute] for drawing in drawings])))
    return fractions


def row(done: dict, way: Way) -> list[str]:
    trainings = [done[f"{way.name}/{seed}"] for seed in SEEDS]
    steps = ", ".join(str(training["steps"]) for training in trainings)
    passes = ", ".join(str(training["passes"]) for training in trainings)
    right = [mean_and_std(fraction_right(done, way, attribute)) for attribute in ATTRIBUTES]
    return [way.name, f"{trainings[0]['parameters']:,}", steps, passes, *right]


def verdicts(done: dict) -> list[str]:
    lines = []
    for attribute in ("shape", "count", "all"):
        cascade = fraction_right(done, CASCADE, attribute)
        masked = fraction_right(done, MASKED, attribute)
        lines.append(f"- the cascade is better in {attribute}: {verdict(cascade, masked)}")
    return lines


def draw_figure(args: Namespace, done: dict, ways: tuple[Way, ...]) -> None:
    figure, axis = plt.subplots(figsize=(8, 3))
    series = {way.name: [fraction_right(done, way, a) for a in ATTRIBUTES] for way in ways}
    grouped_bars(axis, ATTRIBUTES, series)
    axis.set_ylabel("held-out images that are right")
    figure.savefig(args.out / "cascade.png", dpi=110, bbox_inches="tight")


def main():
    args = arguments(__doc__, seconds=500.0, pictures=20_000, n=96)
    ways = (CASCADE, MASKED)
    # Make the tokens before the processes start, or two of them would write the same file.
    cached_tokens(Muse.load("toy-shapes"), "shapes", "train", args.pictures, args.out)
    jobs = {f"{way.name}/{seed}": (way, seed, args) for seed in SEEDS for way in ways}
    done = run_jobs(args.out / "cascade.json", jobs, measure, args.workers)
    draw_figure(args, done, ways)
    head = ["", "parameters", "steps", "passes", *ATTRIBUTES]
    rows = [row(done, way) for way in ways]
    write_report(args.out, "cascade", done, table(head, rows), "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
