"""Claim 10: where it fails: many things, several counts, spatial relations
(Muse, section 3.2 and appendix).

    python lessons/claims/counting.py --out runs/claims   # a quarter of an hour of one core

toy-shapes draws 2,560 images, with five seeds: for held-out captions (no training image has their
combination of shape, colour and size), and for captions of combinations it was trained on, in other
scenes. The tables give the fraction of images that are right, by the number of things in the
caption and by the spatial relation of two things, as the detector reads them. "parts" are shape,
colour, size and background.
"""

import time
from argparse import Namespace

import matplotlib.pyplot as plt
import numpy as np
from trial import (
    SEEDS,
    arguments,
    first_captions,
    grouped_bars,
    mean_and_std,
    run_jobs,
    table,
    verdict,
    write_report,
)

from minimuse import Muse
from minimuse.datasets import detector, load, shapes

KINDS = {"heldout": "held-out", "validation": "trained"}  # combinations of shape, colour and size
GROUPS = ("1", "2", "3", "4", *shapes.RELATIONS)
MEASURES = ("count", "parts", "relation", "all")


def group(scene: shapes.Scene) -> str:
    """The relation of two things, or how many things there are."""
    return scene.relation or str(len(scene.things))


def fraction(answers: list[bool]) -> float:
    return sum(answers) / len(answers) if answers else float("nan")


def work(model: str, split: str, seed: int, n: int) -> dict:
    begun = time.monotonic()
    muse = Muse.load(model)
    captions = first_captions(load("shapes", split, muse.config.tokenizer_hi.side, n))
    scenes = [shapes.parse(caption) for caption in captions]
    _, images = muse.draw(captions, seed=seed)
    answers: dict = {name: {measure: [] for measure in MEASURES} for name in GROUPS}
    for scene, reading in zip(scenes, detector.detect(images), strict=True):
        answer = detector.agree(scene, reading)
        right = {
            "count": answer["count"],
            "parts": all(answer[part] for part in (*detector.PARTS, "background")),
            "relation": answer["relation"] is not False,  # None where the caption has no relation
            "all": answer["all"],
        }
        for measure in MEASURES:
            answers[group(scene)][measure].append(right[measure])
    result = {"seconds": round(time.monotonic() - begun, 1)}
    for name, of_group in answers.items():
        result[name] = {measure: fraction(of_group[measure]) for measure in MEASURES}
        result[name]["n"] = len(of_group["all"])
    return result


def of_seeds(done: dict, split: str, name: str, measure: str) -> list[float]:
    """One measure of a group of captions, for each seed."""
    return [done[f"{split}/{seed}"][name][measure] for seed in SEEDS]


def mean_over_groups(done: dict, split: str, groups: tuple[str, ...]) -> list[float]:
    """The mean over some groups of what is right in all, for each seed."""
    return list(np.mean([of_seeds(done, split, name, "all") for name in groups], axis=0))


def row(done: dict, name: str) -> list[str]:
    if name == "1":
        title = "1 thing alike"
    elif name.isdigit():
        title = f"{name} things alike"
    else:
        title = f"one {name} another"
    cells = [
        mean_and_std(of_seeds(done, split, name, measure))
        for split in KINDS
        for measure in MEASURES
    ]
    return [title, *cells, str(of_seeds(done, "heldout", name, "n")[0])]


def verdicts(done: dict) -> list[str]:
    one = of_seeds(done, "heldout", "1", "all")
    two = of_seeds(done, "heldout", "2", "all")
    four = of_seeds(done, "heldout", "4", "all")
    different = mean_over_groups(done, "heldout", shapes.RELATIONS)
    trained = mean_over_groups(done, "validation", GROUPS)
    heldout = mean_over_groups(done, "heldout", GROUPS)
    return [
        "- fewer held-out images of four things are right than of one: " + verdict(one, four),
        "- fewer images of two different things are right than of two alike: "
        + verdict(two, different),
        "- fewer held-out combinations are right than trained ones: " + verdict(trained, heldout),
    ]


def draw_figure(args: Namespace, done: dict) -> None:
    figure, axis = plt.subplots(figsize=(8, 3))
    series = {
        title: [of_seeds(done, split, name, "all") for name in GROUPS]
        for split, title in KINDS.items()
    }
    grouped_bars(axis, GROUPS, series)
    axis.set(ylabel="right in all attributes", xlabel="things alike, or the relation of two things")
    figure.savefig(args.out / "counting.png", dpi=110, bbox_inches="tight")


def main():
    args = arguments(__doc__, model="toy-shapes", n=256)
    jobs = {
        f"{split}/{seed}": (args.model, split, seed, args.n) for split in KINDS for seed in SEEDS
    }
    done = run_jobs(args.out / "counting.json", jobs, work, args.workers)
    draw_figure(args, done)
    titles = [f"{title}: {measure}" for title in KINDS.values() for measure in MEASURES]
    head = ["in the caption", *titles, "held-out captions"]
    rows = [row(done, name) for name in GROUPS]
    write_report(args.out, "counting", done, table(head, rows), "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
