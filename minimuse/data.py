"""Pictures with captions: procedural shapes, the emoji that ship with the project, or your own folder.

Muse learns from (picture, caption) pairs and from nothing else, so one small class holds them all:

    emoji = load("emoji", "train", side=64)  # emoji.captions[0] holds a few ways to say it; training draws one
    images = emoji.batch([0, 1, 2])          # (3, 3, 64, 64) in [-1, 1]

Each source has its file in `data/`: `shapes.py`, `emoji_pack.py`, and `folder.py`. What is held out follows from names by a hash, not
from a shuffle: nothing moves a picture into training. Left out: augmentation, and streaming (all pictures are in memory as uint8).
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from minimuse import shapes

DATA = Path(__file__).resolve().parents[1] / "data"
SPLITS = {
    "shapes": ("train", "validation", "heldout"),
    "emoji": ("train", "heldout", "heldout-concept"),
    "folder": ("train", "heldout"),
}


@dataclass(frozen=True, eq=False)  # eq: two tensors have no single truth value
class Pictures:
    pixels: torch.Tensor  # (M, 3, H, W) uint8
    captions: list[tuple[str, ...]]  # one or more variants per picture, the plainest first
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices) -> torch.Tensor:
        """(B,) -> (B, 3, H, W) float in [-1, 1]."""
        return self.pixels[torch.as_tensor(indices)].float() / 127.5 - 1


def halve(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, H/2, W/2): the picture that the base model sees, by 2x2 means."""
    H, W = images.shape[-2:]
    if H % 2 or W % 2:  # pooling would drop the last row without a word
        raise ValueError(f"image is {H}x{W}; halving needs even sides")
    return F.avg_pool2d(images, 2)


def load(
    source: str,
    split: str,
    side: int,
    count: int | None = None,
    seed: int = 0,
    data_dir: Path = DATA,
    smallest: int = 8,
    skip: bool = False,
) -> Pictures:
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
        scenes = [shapes.scene(n, "heldout" if split == "heldout" else "train") for n in numbers]
        return Pictures(
            shapes.render(scenes, side),
            [(shapes.caption(s),) for s in scenes],
            [f"shapes/{split}/{n}" for n in numbers],
        )
    from minimuse import emoji_pack, folder  # here, for they need this file

    found = (
        emoji_pack.find(split, side, Path(data_dir))
        if kind == "emoji"
        else folder.find(Path(source), split, side, smallest, skip)
    )
    if count is not None and count < len(found):
        chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count]
        found = [found[i] for i in sorted(chosen.tolist())]
    pixels = torch.empty((len(found), 3, side, side), dtype=torch.uint8)
    for i, (_, _, read) in enumerate(found):
        pixels[i] = torch.from_numpy(np.array(read())).permute(2, 0, 1)
    return Pictures(pixels, [captions for _, captions, _ in found], [name for name, _, _ in found])


def stable_hash(text: str) -> int:
    """An even spread over the integers that is the same everywhere (Python's hash() is not)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_picture(path: Path) -> Image.Image:
    """A PNG, JPEG or WebP file as RGB, turned as it was taken."""
    try:
        with warnings.catch_warnings(
            action="error", category=Image.DecompressionBombWarning
        ):  # refuse, do not only warn
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                return on_white(
                    ImageOps.exif_transpose(image)
                )  # phones store the turn, not the turned pixels
    except Exception as error:  # PIL's readers raise whatever a broken file makes them trip over
        raise ValueError(
            f"{path} cannot be read ({error}); save it again as a smaller 8-bit PNG, or remove it"
        ) from None


def on_white(image: Image.Image) -> Image.Image:
    """Any 8-bit picture as RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):  # PIL would clip these to white
        raise ValueError("more than 8 bits a channel")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
