"""The commands that draw: `minimuse generate`, `inpaint`, `outpaint` and `edit`.

    minimuse generate "a red apple, noto style" -o apple.png

Each command checks first that its output can be written, so that no minutes of drawing are lost.
"""

import argparse
import itertools
import typing
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from minimuse import data, edit
from minimuse.cli.figures import beside, decoding_gif, sheet
from minimuse.datasets.image_files import read_image
from minimuse.decode import Sampling
from minimuse.muse import Muse
from minimuse.plumbing.config import convert, parse_literal
from minimuse.plumbing.files import check_writable, save_image
from minimuse.runs import parallel

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
SAMPLING_TYPES = typing.get_type_hints(Sampling)
# So many images of a decoding fit beside each other.
MAX_GIF_IMAGES = 32


# --- generate ---
def run_generate(args: argparse.Namespace) -> None:
    """`minimuse generate`: draw images of a prompt, or one sheet with a grid of settings."""
    paths = output_paths(args, args.gif)
    settings = sampling_settings(args)
    cells, columns = parse_grid(args.grid) if args.grid else ([], 0)
    muse = load_model(args)
    if args.grid:
        images = [draw_grid(muse, args, settings, cells, columns)]
    else:
        images = muse.generate(args.prompt, args.n, args.negative, args.seed, **settings)
    save_images(images, paths)
    if args.gif is not None:
        write_gif(muse, args, settings)
        print(args.gif)


def write_gif(muse: Muse, args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Draw the same images again, and show all steps of their decoding."""
    sampling, sampling_hi = muse.sampling(**settings)
    decoding_gif(
        muse,
        [args.prompt] * min(args.n, MAX_GIF_IMAGES),
        args.gif,
        negative=args.negative,
        seed=args.seed,
        sampling=sampling,
        sampling_hi=sampling_hi,
    )


def parse_grid(axes: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Parse ["steps=4,8", "guidance=0,2"]: all combinations of settings, and how many to a row."""
    values_of_axes = []
    for axis in axes:
        key, _, values = axis.partition("=")
        if key not in SAMPLING_TYPES or not values:
            known = ", ".join(SAMPLING_TYPES)
            raise ValueError(f"--grid {key}: write key=a,b with a key among {known}")
        kind = SAMPLING_TYPES[key]
        values_of_axes.append(
            [(key, convert(parse_literal(value), kind, key)) for value in values.split(",")]
        )
    cells = [dict(combination) for combination in itertools.product(*values_of_axes)]
    return cells, len(values_of_axes[-1])


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


# --- inpaint, outpaint, edit ---
def run_inpaint(args: argparse.Namespace) -> None:
    """`minimuse inpaint`: draw again what is white in a mask."""
    paths = output_paths(args, args.sheet)
    settings = edit_settings(args)
    image, mask = read_image(args.image), read_image(args.mask)
    drawn = edit.inpaint(
        load_model(args),
        image,
        mask,
        args.prompt,
        keep_pixels=args.keep_pixels,
        tile=args.tile,
        **settings,
    )
    save_images(drawn, paths)
    save_sheet(args.sheet, {"before": image, "mask": mask}, drawn)


def run_outpaint(args: argparse.Namespace) -> None:
    """`minimuse outpaint`: draw around an image."""
    paths = output_paths(args, args.sheet)
    settings = edit_settings(args)
    pad = parse_pad(args.pad)
    image = read_image(args.image)
    drawn = edit.outpaint(
        load_model(args),
        image,
        args.prompt,
        pad,
        keep_pixels=args.keep_pixels,
        tile=args.tile,
        **settings,
    )
    save_images(drawn, paths)
    save_sheet(args.sheet, {"before": image}, drawn)


def run_edit(args: argparse.Namespace) -> None:
    """`minimuse edit`: change an image towards a prompt, without a mask."""
    paths = output_paths(args, args.sheet)
    settings = edit_settings(args)
    image = read_image(args.image)
    drawn = edit.edit(load_model(args), image, args.prompt, args.iterations, args.share, **settings)
    save_images(drawn, paths)
    save_sheet(args.sheet, {"before": image}, drawn)


def edit_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that all editing functions have."""
    settings = {"n": args.n, "negative": args.negative, "seed": args.seed}
    return settings | sampling_settings(args)


def parse_pad(text: str) -> tuple[int, ...]:
    """Parse --pad, "8" or "8,0,8,0", to the pixels at left, top, right and bottom."""
    pad = convert(parse_literal(f"({text},)"), tuple[int, ...], "--pad")
    if len(pad) == 1:
        return pad * 4
    if len(pad) != 4:
        raise ValueError(f"--pad {text}: give one number, or left,top,right,bottom")
    return pad


# --- What they have in common ---
def load_model(args: argparse.Namespace) -> Muse:
    """The model that --model, --device and --t5 say."""
    return Muse.load(args.model, parallel.begin(args.device), args.t5)


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Sampling` for which there is a flag on the command line."""
    settings = {}
    for name, kind in SAMPLING_TYPES.items():
        value = getattr(args, f"sampling.{name}")
        if value is None:
            continue
        # argparse has made a bool of --NAME and --no-NAME. All other values are text still.
        if kind is not bool:
            value = convert(parse_literal(value), kind, name)
        settings[name] = value
    return settings


def output_paths(args: argparse.Namespace, extra: Path | None) -> list[Path]:
    """The files that images are saved to.

    Raises an error if one of them cannot be written, or `extra`, the GIF or the sheet.
    """
    if args.n < 1:
        raise ValueError(f"--n is {args.n}; draw at least 1 image")
    if args.n == 1 or getattr(args, "grid", None):
        paths = [args.output]
    else:
        stem = args.output.stem
        paths = [args.output.with_stem(f"{stem}-{i}") for i in range(args.n)]
    written = [*paths, extra] if extra is not None else paths
    read = [getattr(args, "image", None), getattr(args, "mask", None)]
    resolved = [path.resolve() for path in [*written, *read] if path is not None]
    for path in written:
        check_suffix(path)
        if resolved.count(path.resolve()) > 1:
            raise ValueError(
                f"{path}: give each file a name of its own, other than that of an input image"
            )
        check_folder(path)
    check_writable(*written)
    return paths


def check_suffix(path: Path) -> None:
    """Raise a ValueError if the name does not end as that of an image."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(
            f"{path}: write a .png, .jpg or .webp; or a .gif, of all steps of a decoding"
        )


def check_folder(path: Path) -> None:
    """Raise a FileNotFoundError if the folder of this file does not exist."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{path} cannot be written: {folder} is no folder; "
            "make it, or give a file name in a directory that exists"
        )


def save_images(images: list[Image.Image], paths: list[Path]) -> None:
    """Save images and print their names."""
    for image, path in zip(images, paths, strict=True):
        save_image(image, path)
        print(path)


def save_sheet(path: Path | None, before: dict[str, Image.Image], after: list[Image.Image]) -> None:
    """Save the images before and after editing side by side, if --sheet gives a name."""
    if path is None:
        return
    titles = [*before, *["after"] * len(after)]
    save_images([beside([*before.values(), *after], titles)], [path])
