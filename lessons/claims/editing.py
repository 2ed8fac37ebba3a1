"""Does editing do what the prompt says, and nothing else? Judged by the detector, on scenes of one
thing.

    python lessons/claims/editing.py --model toy-shapes --out runs/claims

Writes OUT/editing.json and OUT/editing.png. Inpainting: the prompt adds a second thing in the half
of the image without the first. Outpainting: to twice the width; the background should continue
across the seam. Mask-free editing: the prompt changes the colour.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import trange

from minimuse import Muse, edit
from minimuse.cli.figures import beside
from minimuse.data import from_pil, to_pil
from minimuse.datasets import detector, shapes
from minimuse.datasets.shapes import Scene, Thing
from minimuse.metrics.intervals import proportion

ITERATIONS = (2, 4, 8, 16, 32, 64)  # of mask-free editing


# --- Scenes ---


def single_scenes(n: int) -> list[Scene]:
    """The first n training scenes of one thing in the left or right half, clear of the middle."""
    scenes = []
    for seed in range(100 * n):
        scene = shapes.scene(seed, "train")
        thing = scene.things[0]
        clear = abs(thing.x - 0.5) > shapes.SIZES[thing.size] + 0.03
        if len(scene.things) == 1 and clear:
            scenes.append(scene)
    return scenes[:n]


def image_of(scene: Scene, side: int) -> Image.Image:
    return to_pil(shapes.render([scene], side).float() / 127.5 - 1)[0]


def read(image: Image.Image) -> Scene:
    """The scene that the detector sees."""
    return detector.detect(from_pil(image)[None])[0]


def same_thing(a, b) -> bool:
    return (a.shape, a.colour, a.size) == (b.shape, b.colour, b.size)


def proportions(answers: list[dict[str, bool]]) -> dict[str, dict]:
    """How often each answer is yes, with its interval."""
    return {key: proportion([answer[key] for answer in answers]) for key in answers[0]}


# --- Inpainting ---


def half_mask(right: bool, side: int) -> Image.Image:
    """White (to be drawn) in the right or left half."""
    mask = np.zeros((64, 64), np.uint8)
    if right:
        mask[:, 32:] = 255
    else:
        mask[:, :32] = 255
    return Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST)


def judge_inpainting(scene: Scene, wanted: Thing, image: Image.Image) -> dict[str, bool]:
    first = scene.things[0]
    left = first.x < 0.5
    reading = read(image)
    inside = [thing for thing in reading.things if (thing.x > 0.5) == left]
    outside = [thing for thing in reading.things if (thing.x > 0.5) != left]
    answer = {
        part: any(getattr(thing, part) == getattr(wanted, part) for thing in inside)
        for part in detector.PARTS
    }
    answer["asked"] = any(same_thing(thing, wanted) for thing in inside)
    answer["alone"] = len(inside) == 1
    answer["outside"] = (
        reading.background == scene.background
        and len(outside) == 1
        and same_thing(outside[0], first)
    )
    return answer


def inpainting(muse: Muse, scenes: list[Scene]) -> tuple[dict, list[Image.Image]]:
    """Ask for a second thing in the empty half. Returns proportions and rows for the figure."""
    rng = np.random.default_rng(0)
    side = muse.config.tokenizer_hi.side
    answers = []
    rows = []
    for i in trange(len(scenes), desc="inpaint"):
        scene = scenes[i]
        first = scene.things[0]
        others = [t for t in shapes.TRAIN_TRIPLES if t != (first.shape, first.colour, first.size)]
        wanted = Thing(*others[rng.integers(len(others))], 0.5, 0.5)
        left = first.x < 0.5
        relation = "left of" if left else "right of"
        prompt = shapes.caption(Scene(scene.background, (first, wanted), relation))
        mask = half_mask(left, side)
        before = image_of(scene, side)
        after = edit.inpaint(muse, before, mask, prompt, seed=i)[0]
        answers.append(judge_inpainting(scene, wanted, after))
        rows.append(beside([before, mask, after], [prompt[:40], "", ""]))
    return proportions(answers), rows


# --- Outpainting ---


def outpainting(muse: Muse, scenes: list[Scene]) -> tuple[dict, list[Image.Image]]:
    """Continue each image to the right.

    Measures the mean absolute difference of neighbouring columns, in levels of 255: across the
    seam, and elsewhere in the new half.
    """
    side = muse.config.tokenizer_hi.side
    seam = []
    elsewhere = []
    same_background = []
    rows = []
    for i in trange(len(scenes), desc="outpaint"):
        prompt = shapes.caption(scenes[i])
        before = image_of(scenes[i], side)
        border = (0, 0, side, 0)
        after = edit.outpaint(muse, before, prompt, border, seed=i, keep_pixels=True)[0]
        pixels = np.asarray(after)  # H W 3
        differences = np.abs(np.diff(pixels.astype(float), axis=1)).mean(axis=(0, 2))  # W - 1
        seam.append(differences[side - 1])
        elsewhere.append(np.delete(differences, side - 1)[side - 1 :].mean())
        paint = np.array(shapes.BACKGROUNDS[scenes[i].background])
        median = np.median(pixels[:, side:].reshape(-1, 3), axis=0)
        same_background.append(np.abs(median - paint).max() < 16)
        rows.append(beside([before, after], [prompt[:40], ""]))
    report = {
        "seam": float(np.mean(seam)),
        "elsewhere": float(np.mean(elsewhere)),
        "same background": proportion(same_background),
    }
    return report, rows


# --- Mask-free editing ---


def with_another_colour(scene: Scene, rng: np.random.Generator) -> Scene:
    thing = scene.things[0]
    colours = [
        colour
        for colour in shapes.COLOURS
        if colour != thing.colour and (thing.shape, colour, thing.size) in shapes.TRAIN_TRIPLES
    ]
    colour = colours[rng.integers(len(colours))]
    return replace(scene, things=(replace(thing, colour=colour),))


def judge_edit(scene: Scene, wanted: Scene, image: Image.Image) -> dict[str, bool]:
    thing = scene.things[0]
    reading = read(image)
    answer = {
        "colour": False,
        "shape": False,
        "size": False,
        "count": len(reading.things) == 1,
        "background": reading.background == scene.background,
        "place": False,
    }
    if reading.things:
        first = reading.things[0]
        distance = float(np.hypot(first.x - thing.x, first.y - thing.y))
        answer["colour"] = first.colour == wanted.things[0].colour
        answer["shape"] = first.shape == thing.shape
        answer["size"] = first.size == thing.size
        answer["place"] = distance < shapes.SIZES[thing.size]
    return answer


def mask_free(
    muse: Muse, scenes: list[Scene], iterations: tuple[int, ...], **settings
) -> tuple[dict, list[Image.Image]]:
    """Change the colour. Returns proportions by number of iterations, and rows for the figure."""
    rng = np.random.default_rng(1)
    side = muse.config.tokenizer_hi.side
    answers = {k: [] for k in iterations}
    rows = []
    for i in trange(len(scenes), desc="edit"):
        wanted = with_another_colour(scenes[i], rng)
        before = image_of(scenes[i], side)
        prompt = shapes.caption(wanted)
        states = list(edit.edits(muse, before, prompt, max(iterations), seed=i, **settings))
        chosen = torch.cat([states[k] for k in iterations])
        after = edit.finish(muse, before, prompt, chosen, seed=i)
        for k, image in zip(iterations, after, strict=True):
            answers[k].append(judge_edit(scenes[i], wanted, image))
        rows.append(beside([before, *after], [prompt[:40], *map(str, iterations)]))
    return {k: proportions(of_k) for k, of_k in answers.items()}, rows


# --- Report ---


def stacked(rows: list[Image.Image]) -> Image.Image:
    """The rows below one another, on white."""
    size = (max(row.width for row in rows), sum(row.height for row in rows))
    page = Image.new("RGB", size, "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page


def print_report(report: dict) -> None:
    lines = {"inpaint": report["inpaint"]}
    for k, cells in report["edit"].items():
        lines[f"edit, {k} iterations"] = cells
    for k, cells in report["edit, guidance 4"].items():
        lines[f"  guidance 4, {k}"] = cells
    for name, cells in lines.items():
        print(f"{name:22}", *(f"{key} {cell['value']:.2f}" for key, cell in cells.items()))
    wider = report["outpaint"]
    print(
        f"outpaint: difference across the seam {wider['seam']:.2f}, "
        f"elsewhere {wider['elsewhere']:.2f}; "
        f"background as before {wider['same background']['value']:.2f}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="toy-shapes")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--n", type=int, default=200)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    muse = Muse.load(args.model)
    scenes = single_scenes(args.n)
    inpainted, rows = inpainting(muse, scenes)
    outpainted, rows_wide = outpainting(muse, scenes[: max(2, args.n // 4)])
    edited, rows_edit = mask_free(muse, scenes, ITERATIONS)
    edited_strongly, _ = mask_free(muse, scenes, ITERATIONS, guidance=4.0)  # the paper's guidance
    report = {
        "inpaint": inpainted,
        "outpaint": outpainted,
        "edit": edited,
        "edit, guidance 4": edited_strongly,
    }
    (args.out / "editing.json").write_text(json.dumps(report, indent=1) + "\n")
    stacked([*rows[:6], *rows_wide[:4], *rows_edit[:6]]).save(args.out / "editing.png")
    print_report(report)


if __name__ == "__main__":
    main()
