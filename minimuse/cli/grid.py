"""One sheet with all combinations of some settings: `minimuse generate --grid`.

    minimuse generate "a red apple, noto style" --grid steps=4,8 guided=0:1,0.5:1 -o grid.png

Several values of a setting stand behind its =, with commas between them; a ":" joins a pair.
"""

import argparse
import itertools
import math
import typing
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from minimuse import data
from minimuse.cli.figures import sheet
from minimuse.decode import Sampling
from minimuse.muse import Muse
from minimuse.plumbing.config import convert, parse_literal
from minimuse.plumbing.ranges import check_setting

SAMPLING_TYPES = typing.get_type_hints(Sampling)
# The most images on one sheet, the most pixels of one file, and the longest side of each format.
MAX_SHEET_IMAGES = 1000
MAX_PIXELS = 2**27
LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".gif": 65_535}
# About so many pixels does an image take on a sheet.
SHEET_CELL = 140


def parse_grid(axes: list[str], n: int) -> tuple[list[dict[str, Any]], int]:
    """Parse ["steps=4,8", "guided=0:1,0.5:1"]: all combinations, and how many to a row.

    A ":" joins the two numbers of a pair. `n` is how many images each combination has.
    """
    values_of_axes: dict[str, list[Any]] = {}
    for axis in axes:
        key, _, values = axis.partition("=")
        if key not in SAMPLING_TYPES or not values:
            known = ", ".join(SAMPLING_TYPES)
            raise ValueError(f"--grid {key}: write key=a,b with a key among {known}")
        if key in values_of_axes:
            raise ValueError(f"--grid {axis}: {key} is there twice; write all values after one =")
        values_of_axes[key] = [
            read_setting(key, value.replace(":", ","), f"--grid {key}")
            for value in values.split(",")
        ]
    images = n * math.prod(len(values) for values in values_of_axes.values())
    if images > MAX_SHEET_IMAGES:
        raise ValueError(
            f"--grid asks for {images} images; a sheet has at most {MAX_SHEET_IMAGES}: "
            "give fewer values, or a smaller --n"
        )
    combinations = itertools.product(*values_of_axes.values())
    cells = [dict(zip(values_of_axes, values, strict=True)) for values in combinations]
    return cells, len(values_of_axes[key])


def grid_size(cells: int, columns: int, n: int) -> tuple[int, int]:
    """About the width and height in pixels of a sheet with n images in each cell."""
    return columns * SHEET_CELL, math.ceil(cells / columns) * n * SHEET_CELL


def draw_grid(
    muse: Muse,
    args: argparse.Namespace,
    settings: dict[str, Any],
    cells: list[dict[str, Any]],
    columns: int,
) -> Image.Image:
    """A sheet with --n images, one below the other, for each cell's settings."""
    batches = []
    for cell in tqdm(cells, desc="grid"):
        images = muse.generate(args.prompt, args.n, args.negative, args.seed, **settings | cell)
        batches.append(torch.stack([data.from_pil(image) for image in images]))
    titles = [", ".join(f"{key} {value}" for key, value in cell.items()) for cell in cells]
    # (cells, n, 3, H, W) -> n batches of all cells
    rows = list(torch.stack(batches, dim=1))
    return sheet(rows, titles, columns=columns)


def check_image_size(
    path: Path, width: int, height: int, remedy: str = "ask for fewer images"
) -> None:
    """Raise a ValueError if an image of this size is too large for its file or for the memory."""
    longest = LONGEST_SIDE.get(path.suffix.lower(), MAX_PIXELS)
    if max(width, height) > longest or width * height > MAX_PIXELS:
        raise ValueError(
            f"{path} would have about {width}x{height} pixels; at most {longest} a side and "
            f"{MAX_PIXELS:,} in all can be written: {remedy}"
        )


def read_setting(name: str, text: str, key: str) -> Any:
    """Read the value of a field of `Sampling`; a ValueError begins with `key`."""
    value = convert(parse_literal(text), SAMPLING_TYPES[name], key)
    check_setting(Sampling, name, value, key)
    return value
