"""Two things as one prompt and as two composed prompts; and what a negative prompt takes away. Judged by the detector.

    python lessons/claims/prompts.py --model toy-shapes --out runs/claims

Writes OUT/prompts.json. A composed prompt cannot say how two things lie to each other, so only the things are judged: is there one of the
shape, colour and size of each, on the right background, and no other? The negative prompt is put against pictures without any prompt.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from minimuse import Muse
from minimuse.datasets import detector, shapes
from minimuse.datasets.shapes import Scene, caption
from minimuse.metrics.intervals import proportion


def composition(muse: Muse, n: int) -> dict:
    scenes = [s for s in (shapes.scene(i, "heldout") for i in range(4 * n)) if s.relation][:n]
    alone = lambda s, thing: caption(Scene(s.background, (thing,), None))
    ways = {
        "one prompt": [caption(s) for s in scenes],
        "two, weights 1": [" AND ".join(alone(s, t) for t in s.things) for s in scenes],
        "two, weights 0.5": [" AND ".join(alone(s, t) + ":0.5" for t in s.things) for s in scenes],
        "two, weights 0.7": [" AND ".join(alone(s, t) + ":0.7" for t in s.things) for s in scenes],
        "the first alone": [alone(s, s.things[0]) for s in scenes],
    }
    found = {}
    for way, prompts in ways.items():
        _, images = muse.draw(prompts, seed=0)
        answers = [
            detector.agree(replace(s, relation=None), got)
            for s, got in zip(scenes, detector.detect(images))
        ]
        found[way] = {
            part: proportion([a[part] for a in answers])
            for part in (*detector.PARTS, "count", "background", "all")
        }
    return found


def negative(muse: Muse, n: int) -> dict:
    """Share of pictures without a prompt that show a colour, or a background, with and without a prompt against it."""
    draw = lambda against: detector.detect(
        torch.cat([muse.draw([""] * n, negative=against, seed=seed)[1] for seed in (0, 1, 2)])
    )
    colour = lambda readings, c: proportion(
        [any(t.colour == c for t in r.things) for r in readings]
    )
    ground = lambda readings, b: proportion([r.background == b for r in readings])
    plain = draw("")
    found = {}
    for c in ("red", "cyan"):
        against = draw(f"a large {c} square on a white background")
        found[c] = {"no negative prompt": colour(plain, c), "against it": colour(against, c)}
    for b in shapes.BACKGROUNDS:
        against = draw(f"a large red square on a {b} background")
        found[b] = {"no negative prompt": ground(plain, b), "against it": ground(against, b)}
    return found


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default="toy-shapes")
    p.add_argument("--out", type=Path, default=Path("runs/claims"))
    p.add_argument("--n", type=int, default=96)
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    muse = Muse.load(args.model)
    report = {"composition": composition(muse, args.n), "negative": negative(muse, args.n // 2)}
    (args.out / "prompts.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, row in (report["composition"] | report["negative"]).items():
        print(f"{name:18}", *(f"{key} {cell['value']:.2f}" for key, cell in row.items()))


if __name__ == "__main__":
    main()
