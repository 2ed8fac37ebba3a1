"""Claim 2: a cascade beats predicting the fine grid directly (Muse, section 2.4).

    python lessons/claims/cascade.py --out runs/claims        # three quarters of an hour of two cores

A base model of 4 x 4 tokens with super-resolution to 16 x 16, against one masked model that predicts the 16 x 16 from the caption: as many
parameters, as many seconds of training, three seeds each. How they are trained, tuned and measured is in `direct.py`.
"""

import matplotlib.pyplot as plt
import numpy as np
from direct import CASCADE, MASKED, Way, measured
from trial import SEEDS, arguments, finish, table, tokens_of, told, verdict, work_through

from minimuse import Muse

PARTS = ("shape", "colour", "size", "count", "relation", "background", "all")


def main():
    args, ways = arguments(__doc__, seconds=500.0, pictures=20_000, n=96), (CASCADE, MASKED)
    tokens_of(
        Muse.load("toy-shapes"), "shapes", "train", args.pictures, args.out
    )  # here, or two processes would make the same file
    done = work_through(
        args.out / "cascade.json",
        {f"{way.name}/{s}": (way, s, args) for s in SEEDS for way in ways},
        measured,
        args.workers,
    )

    def of(way: Way, part: str) -> list[float]:
        """Of each training the mean over the seeds of drawing, at its own number of passes."""
        trainings = [done[f"{way.name}/{seed}"] for seed in SEEDS]
        return [
            float(np.mean([found[part] for found in r["test"][str(r["passes"])]]))
            for r in trainings
        ]

    rows = []
    for way in ways:
        trainings = [done[f"{way.name}/{s}"] for s in SEEDS]
        said = [", ".join(str(r[key]) for r in trainings) for key in ("steps", "passes")]
        rows.append(
            [
                way.name,
                f"{trainings[0]['parameters']:,}",
                *said,
                *(told(of(way, part)) for part in PARTS),
            ]
        )
    figure, axis = plt.subplots(figsize=(8, 3))
    for shift, way in zip((-0.2, 0.2), ways):
        points = np.array([of(way, part) for part in PARTS])
        axis.bar(
            np.arange(len(PARTS)) + shift,
            points.mean(1),
            0.4,
            yerr=points.std(1),
            capsize=2,
            label=way.name,
        )
    axis.set(xticks=range(len(PARTS)), xticklabels=PARTS, ylabel="held-out pictures that are right")
    axis.legend(fontsize=8)
    figure.savefig(args.out / "cascade.png", dpi=110, bbox_inches="tight")
    verdicts = [
        f"- the cascade is better in {part}: {verdict(of(CASCADE, part), of(MASKED, part))}"
        for part in ("shape", "count", "all")
    ]
    finish(
        args.out,
        "cascade",
        done,
        table(["", "parameters", "steps", "passes", *PARTS], rows),
        "\n".join(verdicts),
    )


if __name__ == "__main__":
    main()
