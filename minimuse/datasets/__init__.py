"""Data sets: procedural scenes, the emoji that ship with minimuse, or a folder of images."""

from pathlib import Path

import numpy as np
import torch

from minimuse.data import ASSETS, Images
from minimuse.datasets import emoji, folder, shapes

SPLITS = {
    "shapes": ("train", "validation", "heldout"),
    "emoji": ("train", "heldout", "heldout-concept"),
    "folder": ("train", "heldout"),
}


def load(
    source: str,
    split: str,
    side: int,
    count: int | None = None,
    seed: int = 0,
    data_dir: Path = ASSETS,
    smallest: int = 8,
    skip: bool = False,
) -> Images:
    """The pictures of one split, side x side: `count` shapes, or at most `count` of emoji or a folder, chosen by `seed`. In a folder,
    `smallest` is the least side (the tokenizer's factor f), and `skip` drops damaged ones."""
    if split not in (splits := SPLITS[kind := source if source in SPLITS else "folder"]):
        raise ValueError(f"split {split!r} of {source}; there is {', '.join(splits)}")
    if (count is None and kind == "shapes") or (count is not None and count < 1):
        raise ValueError(
            f"count={count}; give 1 or more (shapes are endless, so they need a count)"
        )
    if (
        kind == "shapes"
    ):  # training takes the even scene numbers and validation the odd ones, so no seeds can meet
        numbers = [2 * (seed * 10**9 + i) + (split == "validation") for i in range(count)]
        drawn = [shapes.scene(n, "heldout" if split == "heldout" else "train") for n in numbers]
        return Images(
            shapes.render(drawn, side),
            [(shapes.caption(s),) for s in drawn],
            [f"shapes/{split}/{n}" for n in numbers],
        )
    found = (
        emoji.find_emoji(split, side, Path(data_dir))
        if kind == "emoji"
        else folder.find_images(Path(source), split, side, smallest, skip)
    )
    if count is not None and count < len(found):
        chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count]
        found = [found[i] for i in sorted(chosen.tolist())]
    pixels = torch.empty((len(found), 3, side, side), dtype=torch.uint8)
    for i, (_, _, read) in enumerate(found):
        pixels[i] = torch.from_numpy(np.array(read())).permute(2, 0, 1)
    return Images(pixels, [captions for _, captions, _ in found], [name for name, _, _ in found])
