"""The data sets: procedural scenes, the emoji that ship with minimuse, or images of your own.

    from minimuse.datasets import load
    images = load("emoji", "train", side=64)          # also "shapes", or the path of a folder
    images.captions[0]                                # a few captions of the first image

`shapes.py` draws scenes from seed numbers, and `detector.py` reads them back; `emoji.py` reads the
emoji; `folder.py` reads a folder, and `stream.py` reads tar files, which may be larger than the
memory. On the command line it is `--data shapes`, `--data emoji` or `--data PATH`. The splits:

- "train": what models learn from.
- "validation" (shapes): other scenes of the same kind as in training.
- "heldout": what training never shows. Of shapes, scenes with a combination of shape, colour and
  size that is held out; of emoji, held-out pairs of concept and style, where training has the
  concept in other styles; of a folder or of tar files, one image in ten.
- "heldout-concept" (emoji): concepts that training has in no style.

Of emoji and of folders, what is held out follows from a hash of the name. It does not depend on
which other images there are, so a new version of a data set moves no image into training. (Two
exceptions: the image with the largest hash always trains, and the one with the smallest is held
out if there is no other.)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from minimuse.data import ASSETS, Images
from minimuse.datasets import emoji, folder, shapes
from minimuse.datasets.image_files import Entry
from minimuse.datasets.progress import bar
from minimuse.datasets.stream import Stream, open_tars
from minimuse.datasets.tars import is_tars
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.ranges import check_arguments

# A new data set is a file in this folder, an entry here and a branch in `load`. The help of --data
# is in `cli/flags.py`. `metrics/report.py` has the measures of "shapes" and "emoji" alone.
SPLITS = {
    "shapes": ("train", "validation", "heldout"),
    "emoji": ("train", "heldout", "heldout-concept"),
    "folder": ("train", "heldout"),
}


def splits_of(source: str) -> tuple[str, ...]:
    """The splits of "shapes", "emoji", or a folder."""
    return SPLITS.get(source, SPLITS["folder"])


@in_usual_state
def load(
    source: str | Path,
    split: str,
    side: int,
    count: int | None = None,
    seed: int = 0,
    data_dir: Path = ASSETS,
    smallest: int = 8,
    skip_unreadable: bool = False,
) -> Images | Stream:
    """Load the images of one split, side x side pixels, with their captions.

    source: "shapes", "emoji", the path of a folder, or tar files as `tars.py` describes them: of
    those the images are read when they are asked for. split: see the top of this file.
    count: how many shapes to draw, from `seed`; of the other two, at most how many to take, chosen
    at random by `seed`, or all if it is None. data_dir: where the emoji are.
    For a folder or tar files only: smallest, the least side of an image in pixels (the tokenizer's
    factor f); skip_unreadable, to leave out damaged images with a warning.
    Raises a ValueError or a FileNotFoundError that names what is wrong.
    """
    source = str(source)
    if not source.strip():
        raise ValueError("source is empty; give shapes, emoji, or a folder of images")
    if split not in splits_of(source):
        choices = ", ".join(splits_of(source))
        raise ValueError(f"{source} has no split {split!r}; choose one of {choices}")
    check_arguments(side=side, seed=seed, smallest=smallest)
    if count is not None:
        check_arguments(count=count)
    if source == "shapes":
        return load_shapes(split, side, count, seed)
    if source == "emoji":
        entries = emoji.find_emoji(split, side, Path(data_dir))
        rows = choose(range(len(entries)), count, seed)
        return read_all([entries[i] for i in rows], side)
    if is_tars(source):
        images = open_tars(source, side, smallest, skip_unreadable)
    else:
        images = folder.read_folder(Path(source), side, smallest, skip_unreadable)
    return part_of(images, split, count, seed)


def part_of(
    images: Images | Stream, split: str, count: int | None = None, seed: int = 0
) -> Images | Stream:
    """One split of all images of a folder, in the order of their names; see `load` for the rest.

    Of tar files it is in the files' order. With a `count` it is read into memory.
    """
    if isinstance(images, Stream):
        rows = images.rows_of_split(split)
        if count is None:
            return images.take(rows)
        return images.take(rows[torch.as_tensor(choose(range(len(rows)), count, seed))]).in_memory()
    rows = choose(folder.rows_of_split(images.names, split), count, seed)
    return Images(
        pixels=images.pixels[rows],
        captions=[images.captions[i] for i in rows],
        names=[images.names[i] for i in rows],
    )


def load_shapes(split: str, side: int, count: int | None, seed: int) -> Images:
    """Draw `count` scenes. The first ones of a larger count are the same."""
    if count is None:
        raise ValueError("count=None; shapes have no end, so give a count of 1 or more")
    # Training takes the even scene numbers and validation the odd ones, so that no two seeds can
    # give the same scene to both.
    odd = 1 if split == "validation" else 0
    # A scene's number is not negative, as seeds from -1 down are.
    first = (int(seed) % 2**64) * 10**9
    numbers = [2 * (first + i) + odd for i in range(count)]
    scene_split = "heldout" if split == "heldout" else "train"
    pixels = torch.empty((count, 3, side, side), dtype=torch.uint8)
    captions = []
    for i, number in enumerate(bar(numbers, "drawing scenes", "scenes")):
        scene = shapes.scene(number, scene_split)
        pixels[i] = shapes.render([scene], side)[0]
        captions.append((shapes.caption(scene),))
    return Images(
        pixels=pixels,
        captions=captions,
        names=[f"shapes/{split}/{number}" for number in numbers],
    )


def choose(rows: Sequence[int], count: int | None, seed: int) -> Sequence[int]:
    """At most `count` of the rows, chosen at random, in their old order."""
    if count is None or count >= len(rows):
        return rows
    generator = torch.Generator().manual_seed(int(seed))
    chosen = torch.randperm(len(rows), generator=generator)[:count]
    return [rows[i] for i in sorted(chosen.tolist())]


def read_all(entries: list[Entry], side: int) -> Images:
    """Read the images of all entries into memory, as bytes."""
    pixels = torch.empty((len(entries), 3, side, side), dtype=torch.uint8)
    for i, entry in enumerate(bar(entries, "reading images")):
        image = np.array(entry.read())  # H W 3
        pixels[i] = torch.from_numpy(image).permute(2, 0, 1)
    return Images(
        pixels=pixels,
        captions=[entry.captions for entry in entries],
        names=[entry.name for entry in entries],
    )
