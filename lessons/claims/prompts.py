"""Two things as one prompt and as two composed prompts; and the effect of a negative prompt.
Judged by the detector.

    python lessons/claims/prompts.py --model toy-shapes --out runs/claims

Writes OUT/prompts.json. A composed prompt cannot say the relation of two things, so only the things
are judged: is there one of the shape, colour and size of each, on the right background, and no
other? The negative prompt is compared with images without any prompt.
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

ATTRIBUTES = (*detector.PARTS, "count", "background", "all")


# --- Composition ---


def captions_of_things(scene: Scene) -> list[str]:
    """A caption of each thing alone, on the scene's background."""
    return [caption(Scene(scene.background, (thing,), None)) for thing in scene.things]


def composed(scenes: list[Scene], weight: str = "") -> list[str]:
    """One composed prompt for each scene, with this weight behind each part."""
    prompts = []
    for scene in scenes:
        parts = [part + weight for part in captions_of_things(scene)]
        prompts.append(" AND ".join(parts))
    return prompts


def composition(muse: Muse, n: int) -> dict:
    candidates = [shapes.scene(i, "heldout") for i in range(4 * n)]
    scenes = [scene for scene in candidates if scene.relation][:n]
    ways = {
        "one prompt": [caption(scene) for scene in scenes],
        "two, weights 1": composed(scenes),
        "two, weights 0.5": composed(scenes, ":0.5"),
        "two, weights 0.7": composed(scenes, ":0.7"),
        "the first alone": [captions_of_things(scene)[0] for scene in scenes],
    }
    wanted = [replace(scene, relation=None) for scene in scenes]
    report = {}
    for way, prompts in ways.items():
        _, images = muse.draw(prompts, seed=0)
        readings = detector.detect(images)
        answers = [detector.agree(s, reading) for s, reading in zip(wanted, readings, strict=True)]
        report[way] = {
            attribute: proportion([answer[attribute] for answer in answers])
            for attribute in ATTRIBUTES
        }
    return report


# --- Negative prompts ---


def draw_and_read(muse: Muse, negative: str, n: int) -> list[Scene]:
    """What the detector sees in n images without a prompt, from each of three seeds."""
    images = [muse.draw([""] * n, negative=negative, seed=seed)[1] for seed in (0, 1, 2)]
    return detector.detect(torch.cat(images))


def with_colour(readings: list[Scene], colour: str) -> dict[str, float]:
    """How many images have a thing of this colour."""
    answers = []
    for reading in readings:
        answers.append(any(thing.colour == colour for thing in reading.things))
    return proportion(answers)


def with_background(readings: list[Scene], background: str) -> dict[str, float]:
    return proportion([reading.background == background for reading in readings])


def negative(muse: Muse, n: int) -> dict:
    """How many images without a prompt have a colour, or a background.

    It is measured with and without a negative prompt against it.
    """
    plain = draw_and_read(muse, "", n)
    report = {}
    for colour in ("red", "cyan"):
        readings = draw_and_read(muse, f"a large {colour} square on a white background", n)
        report[colour] = {
            "no negative prompt": with_colour(plain, colour),
            "against it": with_colour(readings, colour),
        }
    for background in shapes.BACKGROUNDS:
        readings = draw_and_read(muse, f"a large red square on a {background} background", n)
        report[background] = {
            "no negative prompt": with_background(plain, background),
            "against it": with_background(readings, background),
        }
    return report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="toy-shapes")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--n", type=int, default=96)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    muse = Muse.load(args.model)
    report = {"composition": composition(muse, args.n), "negative": negative(muse, args.n // 2)}
    (args.out / "prompts.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, cells in (report["composition"] | report["negative"]).items():
        print(f"{name:18}", *(f"{key} {cell['value']:.2f}" for key, cell in cells.items()))


if __name__ == "__main__":
    main()
