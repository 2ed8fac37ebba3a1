"""Does editing do what was asked, and nothing else? Judged by the detector, on scenes of one thing.

    python lessons/claims/editing.py --model toy-shapes --out runs/claims

Writes OUT/editing.json and OUT/editing.png. Inpainting: a second thing is asked for in the half of the picture without the first.
Outpainting: to twice the width; the background should go on across the seam. Mask-free editing: another colour.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import trange

from minimuse import Muse, data, edit
from minimuse.cli.figures import beside
from minimuse.data import to_pil
from minimuse.datasets import detector, shapes
from minimuse.datasets.shapes import Scene
from minimuse.metrics.intervals import proportion


def singles(n: int) -> list[Scene]:
    """The first n training scenes of one thing in the left or right half, clear of the middle."""
    scenes = (shapes.scene(seed, "train") for seed in range(100 * n))
    return [
        s
        for s in scenes
        if len(s.things) == 1 and abs(s.things[0].x - 0.5) > shapes.SIZES[s.things[0].size] + 0.03
    ][:n]


def picture(scene: Scene, side: int) -> Image.Image:
    return to_pil(shapes.render([scene], side).float() / 127.5 - 1)[0]


def same(a, b) -> bool:
    return (a.shape, a.colour, a.size) == (b.shape, b.colour, b.size)


def read(image: Image.Image) -> Scene:
    return detector.detect(data.from_pil(image)[None])[0]


def inpainting(muse: Muse, scenes: list[Scene]) -> tuple[dict, list]:
    rng, found, shown = np.random.default_rng(0), [], []
    for i in trange(len(scenes), desc="inpaint"):
        first = scenes[i].things[0]
        others = [t for t in shapes.TRAIN_TRIPLES if t != (first.shape, first.colour, first.size)]
        asked = shapes.Thing(*others[rng.integers(len(others))], 0.5, 0.5)
        left = first.x < 0.5
        whole = Scene(scenes[i].background, (first, asked), "left of" if left else "right of")
        mask = np.zeros((64, 64), np.uint8)
        mask[:, 32:] = 255
        mask = Image.fromarray(mask if left else mask[:, ::-1].copy()).resize(
            (muse.config.tokenizer_hi.side,) * 2, Image.Resampling.NEAREST
        )
        before = picture(scenes[i], mask.width)
        after = edit.inpaint(muse, before, mask, shapes.caption(whole), seed=i)[0]
        got = read(after)
        inside = [t for t in got.things if (t.x > 0.5) == left]
        outside = [t for t in got.things if (t.x > 0.5) != left]
        parts = {
            part: any(getattr(t, part) == getattr(asked, part) for t in inside)
            for part in detector.PARTS
        }
        found.append(
            parts
            | {
                "asked": any(same(t, asked) for t in inside),
                "alone": len(inside) == 1,
                "outside": got.background == scenes[i].background
                and len(outside) == 1
                and same(outside[0], first),
            }
        )
        shown.append(beside([before, mask, after], [shapes.caption(whole)[:40], "", ""]))
    return {key: proportion([f[key] for f in found]) for key in found[0]}, shown


def outpainting(muse: Muse, scenes: list[Scene]) -> tuple[dict, list]:
    """Mean absolute difference of neighbouring columns, in levels of 255: across the seam, and elsewhere in the new half."""
    seam, elsewhere, same_background, shown = [], [], [], []
    side = muse.config.tokenizer_hi.side
    for i in trange(len(scenes), desc="outpaint"):
        before = picture(scenes[i], side)
        after = edit.outpaint(
            muse, before, shapes.caption(scenes[i]), (0, 0, side, 0), seed=i, keep_pixels=True
        )[0]
        steps = np.abs(np.diff(np.asarray(after).astype(float), axis=1)).mean(axis=(0, 2))  # W - 1
        seam.append(steps[side - 1])
        elsewhere.append(np.delete(steps, side - 1)[side - 1 :].mean())
        paint = np.array(shapes.BACKGROUNDS[scenes[i].background])
        same_background.append(
            np.abs(np.median(np.asarray(after)[:, side:].reshape(-1, 3), axis=0) - paint).max() < 16
        )
        shown.append(beside([before, after], [shapes.caption(scenes[i])[:40], ""]))
    return {
        "seam": float(np.mean(seam)),
        "elsewhere": float(np.mean(elsewhere)),
        "same background": proportion(same_background),
    }, shown


def mask_free(
    muse: Muse, scenes: list[Scene], iterations: tuple[int, ...], **how
) -> tuple[dict, list]:
    rng, found, shown = np.random.default_rng(1), {k: [] for k in iterations}, []
    side = muse.config.tokenizer_hi.side
    for i in trange(len(scenes), desc="edit"):
        thing = scenes[i].things[0]
        colours = [
            c
            for c in shapes.COLOURS
            if c != thing.colour and (thing.shape, c, thing.size) in shapes.TRAIN_TRIPLES
        ]
        wanted = replace(
            scenes[i], things=(replace(thing, colour=colours[rng.integers(len(colours))]),)
        )
        before, prompt = picture(scenes[i], side), shapes.caption(wanted)
        states = list(edit.edits(muse, before, prompt, max(iterations), seed=i, **how))
        after = edit.finish(
            muse, before, prompt, torch.cat([states[k] for k in iterations]), seed=i
        )
        for k, image in zip(iterations, after):
            got = read(image)
            one = got.things[0] if got.things else None
            found[k].append(
                {
                    "colour": one is not None and one.colour == wanted.things[0].colour,
                    "shape": one is not None and one.shape == thing.shape,
                    "size": one is not None and one.size == thing.size,
                    "count": len(got.things) == 1,
                    "background": got.background == scenes[i].background,
                    "place": one is not None
                    and float(np.hypot(one.x - thing.x, one.y - thing.y))
                    < shapes.SIZES[thing.size],
                }
            )
        shown.append(beside([before, *after], [prompt[:40], *map(str, iterations)]))
    return {
        k: {key: proportion([f[key] for f in row]) for key in row[0]} for k, row in found.items()
    }, shown


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default="toy-shapes")
    p.add_argument("--out", type=Path, default=Path("runs/claims"))
    p.add_argument("--n", type=int, default=200)
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    muse, scenes = Muse.load(args.model), singles(args.n)
    painted, sheets = inpainting(muse, scenes)
    wider, sheets_wide = outpainting(muse, scenes[: max(2, args.n // 4)])
    edited, sheets_edit = mask_free(muse, scenes, (2, 4, 8, 16, 32, 64))
    strong, _ = mask_free(muse, scenes, (2, 4, 8, 16, 32, 64), guidance=4.0)  # as in the paper
    report = {"inpaint": painted, "outpaint": wider, "edit": edited, "edit, guidance 4": strong}
    (args.out / "editing.json").write_text(json.dumps(report, indent=1) + "\n")
    rows = [*sheets[:6], *sheets_wide[:4], *sheets_edit[:6]]
    page = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    for i, row in enumerate(rows):
        page.paste(row, (0, sum(r.height for r in rows[:i])))
    page.save(args.out / "editing.png")
    for name, row in {
        "inpaint": painted,
        **{f"edit, {k} iterations": row for k, row in edited.items()},
        **{f"  guidance 4, {k}": row for k, row in strong.items()},
    }.items():
        print(f"{name:22}", *(f"{key} {cell['value']:.2f}" for key, cell in row.items()))
    print(
        f"outpaint: difference across the seam {wider['seam']:.2f}, elsewhere {wider['elsewhere']:.2f}; background as before {wider['same background']['value']:.2f}"
    )


if __name__ == "__main__":
    main()
