"""Claim 10: where it fails: many things, several counts, what lies where (Muse, section 3.2 and appendix).

    python lessons/claims/counting.py --out runs/claims        # toy-shapes draws 1,536 pictures: a quarter of an hour of one core

Held-out captions (each with a combination of shape, colour and size that no training picture has) and captions of combinations that were
trained on, in other scenes; three seeds of drawing. The share of pictures that are right, by the number of things asked for and by how
two things lie to each other, as the detector reads it; "parts" are shape, colour, size and background.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from trial import SEEDS, arguments, finish, table, told, verdict, work_through

from minimuse import Muse
from minimuse.datasets import detector, load, shapes

KINDS = {"heldout": "held-out", "validation": "trained"}  # combinations of shape, colour and size
GROUPS = ("1", "2", "3", "4", *shapes.RELATIONS)


def group(scene: shapes.Scene) -> str:
    """How many things, or how two lie to each other."""
    return scene.relation or str(len(scene.things))


def work(model: str, split: str, seed: int, n: int) -> dict:
    begun, muse = time.monotonic(), Muse.load(model)
    captions = [
        variants[0] for variants in load("shapes", split, muse.config.tokenizer_hi.side, n).captions
    ]
    scenes = [shapes.parse(caption) for caption in captions]
    read = detector.detect(muse.draw(captions, seed=seed)[1])
    found: dict = {name: {"count": [], "relation": [], "parts": [], "all": []} for name in GROUPS}
    for scene, reading in zip(scenes, read):
        answer, into = detector.agree(scene, reading), found[group(scene)]
        into["count"].append(answer["count"])
        into["relation"].append(answer["relation"] is not False)  # None where none is asked for
        into["parts"].append(all(answer[part] for part in (*detector.PARTS, "background")))
        into["all"].append(answer["all"])
    return {"seconds": round(time.monotonic() - begun, 1)} | {
        name: {
            key: sum(right) / len(right) if right else float("nan") for key, right in rows.items()
        }
        | {"n": len(rows["all"])}
        for name, rows in found.items()
    }


def main():
    args = arguments(__doc__, model="toy-shapes", n=256)
    jobs = {
        f"{split}/{seed}": (args.model, split, seed, args.n) for split in KINDS for seed in SEEDS
    }
    done = work_through(args.out / "counting.json", jobs, work, args.workers)
    of = lambda split, name, key: [done[f"{split}/{seed}"][name][key] for seed in SEEDS]
    rows = []
    for name in GROUPS:
        what = (
            f"{name} thing{'s' * (name != '1')} alike" if name.isdigit() else f"one {name} another"
        )
        rows.append(
            [
                what,
                *(
                    f"{told(of(split, name, key))}"
                    for split in KINDS
                    for key in ("count", "parts", "relation", "all")
                ),
                str(of("heldout", name, "n")[0]),
            ]
        )
    head = [
        "asked for",
        *(
            f"{title}: {key}"
            for title in KINDS.values()
            for key in ("count", "parts", "relation", "all")
        ),
        "held-out captions",
    ]
    one, four = of("heldout", "1", "all"), of("heldout", "4", "all")
    verdicts = [
        f"- fewer held-out pictures of four things are right than of one: {verdict(one, four)}",
        f"- fewer pictures of two different things are right than of two alike: "
        f"{verdict(of('heldout', '2', 'all'), list(np.mean([of('heldout', r, 'all') for r in shapes.RELATIONS], axis=0)))}",
        f"- fewer held-out combinations are right than trained ones: "
        f"{verdict(*(list(np.mean([of(split, name, 'all') for name in GROUPS], axis=0)) for split in ('validation', 'heldout')))}",
    ]
    figure, axis = plt.subplots(figsize=(8, 3))
    for shift, (split, title) in zip((-0.2, 0.2), KINDS.items()):
        points = np.array([of(split, name, "all") for name in GROUPS])
        axis.bar(
            np.arange(len(GROUPS)) + shift,
            points.mean(1),
            0.4,
            yerr=points.std(1),
            capsize=2,
            label=title,
        )
    axis.set(
        xticks=range(len(GROUPS)),
        xticklabels=GROUPS,
        ylabel="right in all attributes",
        xlabel="things alike, or how two lie to each other",
    )
    axis.legend(fontsize=8)
    figure.savefig(args.out / "counting.png", dpi=110, bbox_inches="tight")
    finish(args.out, "counting", done, table(head, rows), "\n".join(verdicts))


if __name__ == "__main__":
    main()
