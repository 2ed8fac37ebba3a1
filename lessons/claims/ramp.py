"""Claim 5: guidance that rises over the steps costs less diversity than constant guidance (Muse, section 2.7).

    python lessons/claims/ramp.py --out runs/claims        # half an hour of two cores; needs the `eval` extra

Both shipped models draw for held-out captions with guidance that rises linearly to t (the paper's) and with guidance of t in all steps, for
several t; three seeds. Faithful: all attributes right, by the detector (shapes), or the own concept among the ten likeliest, by the judge (emoji).
Diverse: recall of real pictures' features. The ramp's mean is about t/2, so it is not compared at equal t: it costs less if it is as faithful
as some constant guidance and more diverse, or as diverse and more faithful. The table has both, the figure the one against the other.
"""

import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from trial import SEEDS, arguments, finish, table, told, verdict, work_through

from minimuse import Muse
from minimuse.datasets import load, shapes
from minimuse.metrics import alignment
from minimuse.metrics.distances import precision
from minimuse.metrics.judge import Judge, features
from minimuse.plumbing.lite0 import Lite0

STRENGTHS = (0.5, 1.0, 2.0, 4.0)


def work(model: str, course: str, strength: float, seed: int, n: int) -> dict:
    begun, muse, net = time.monotonic(), Muse.load(model), Lite0()
    pictures = load(muse.about["data"], "heldout", muse.config.tokenizer_hi.side, n)
    captions, real = (
        [variants[0] for variants in pictures.captions],
        pictures.batch(range(len(pictures))),
    )
    low = replace(muse.config.sampling, guidance=strength, ramp=course == "ramp")
    _, drawn = muse.draw(captions, seed=1000 * seed, sampling=low)  # super-resolution as it is
    look = features(net, drawn), features(net, real)
    if muse.about["data"] == "shapes":
        faithful = alignment.alignment([shapes.parse(caption) for caption in captions], drawn)[
            "all"
        ]["value"]
    else:
        judge = Judge.load()
        faithful = judge.shares(judge(look[0], pictures.names))["ten"]["value"]
    return {
        "faithful": faithful,
        "recall": precision(*look[::-1]),
        "precision": precision(*look),
        "seconds": round(time.monotonic() - begun, 1),
    }


def main():
    args, models, courses = arguments(__doc__, n=128), ("toy-shapes", "toy"), ("ramp", "constant")
    jobs = {
        f"{m}/{c}/{t}/{s}": (m, c, t, s, args.n)
        for m in models
        for t in STRENGTHS
        for c in courses
        for s in SEEDS
    }
    done = work_through(args.out / "ramp.json", jobs, work, args.workers)
    rows, verdicts = [], []
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, model in zip(axes, models):
        of = lambda course, t, key: [done[f"{model}/{course}/{t}/{seed}"][key] for seed in SEEDS]
        curve = lambda course, key: np.array(
            [of(course, t, key) for t in STRENGTHS]
        )  # strengths, seeds
        rows += [
            [
                f"{model}: {c} {t:g}",
                *(told(of(c, t, key)) for key in ("faithful", "recall", "precision")),
            ]
            for c in courses
            for t in STRENGTHS
        ]
        for course in courses:
            axis.plot(
                curve(course, "faithful").mean(1),
                curve(course, "recall").mean(1),
                marker="o",
                markersize=4,
                label=course,
            )
        axis.set(xlabel="faithful", ylabel="diverse (recall)", title=model)
        # at the ramp's strengths: the diversity that constant guidance has where it is as faithful, by straight lines between strengths
        beyond = []
        for i, _ in enumerate(SEEDS):
            faithful, recall = (
                curve("constant", "faithful")[:, i],
                curve("constant", "recall")[:, i],
            )
            order = np.argsort(faithful)
            beyond.append(
                float(
                    np.mean(
                        curve("ramp", "recall")[:, i]
                        - np.interp(curve("ramp", "faithful")[:, i], faithful[order], recall[order])
                    )
                )
            )
        verdicts.append(
            f"- {model}: as faithful, the ramp is more diverse: {verdict(beyond, [0.0] * len(SEEDS))} (recall {told(beyond)})"
        )
    axes[0].legend(fontsize=8)
    figure.savefig(args.out / "ramp.png", dpi=110, bbox_inches="tight")
    finish(
        args.out,
        "ramp",
        done,
        table(["guidance", "faithful", "recall", "precision"], rows),
        "\n".join(verdicts),
    )


if __name__ == "__main__":
    main()
