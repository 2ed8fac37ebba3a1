"""The commands that draw: `minimuse generate`, `inpaint`, `outpaint` and `edit`.

    minimuse generate "a red apple, noto style" -o apple.png

Each command checks first that its output can be written, so that no minutes of drawing are lost.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from minimuse import edit
from minimuse.cli.figures import beside, decoding_gif
from minimuse.cli.grid import (
    SAMPLING_TYPES,
    check_image_size,
    draw_grid,
    grid_size,
    parse_grid,
    read_setting,
)
from minimuse.cli.progress import passes_shown
from minimuse.cli.recipe import fill_from_like, recipe, with_recipe
from minimuse.datasets.image_files import read_image, read_mask
from minimuse.muse import Muse
from minimuse.plumbing.config import parse_literal
from minimuse.plumbing.files import check_writable, save_image
from minimuse.plumbing.messages import print_warning
from minimuse.plumbing.ranges import ARGUMENTS, check, later_seed
from minimuse.runs import parallel

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
# About so many pixels does an image take in the strip of a decoding.
STRIP_CELL = 90
# So many images of a decoding fit beside each other.
MAX_GIF_IMAGES = 32
# So many images are drawn at a time; fewer if they are larger than this together, in pixels.
BATCH = 32
BATCH_PIXELS = 2**23
# From so many images on a GPU, --compile is mentioned. How much it gains has not been measured.
MANY_IMAGES = 256


# --- generate ---
def run_generate(args: argparse.Namespace) -> None:
    """`minimuse generate`: draw images of a prompt, or one sheet with a grid of settings."""
    fill_from_like(args)
    paths = output_paths(args, args.gif)
    settings = sampling_settings(args)
    cells, columns = parse_grid(args.grid, args.n) if args.grid else ([], 0)
    if args.grid:
        check_image_size(args.output, *grid_size(len(cells), columns, args.n))
    muse = load_model(args)
    if args.gif is not None:
        check_gif_size(muse, args, settings)
    if args.grid:
        save_images([draw_grid(muse, args, settings, cells, columns)], paths)
    else:
        for start, n, seed in batches(args, BATCH):
            with passes_shown(muse):
                images = muse.generate(args.prompt, n, args.negative, seed, **settings)
            recipes = [recipe(args, settings, start + i) for i in range(n)]
            save_images(images, paths[start : start + n], recipes)
    if args.gif is not None:
        with passes_shown(muse):
            write_gif(muse, args, settings)
        print(args.gif)


def batches(args: argparse.Namespace, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut --n images into batches: yields (number of the first image, how many, seed)."""
    for start in range(0, args.n, size):
        yield start, min(size, args.n - start), later_seed(args.seed, start)


def write_gif(muse: Muse, args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Draw the first images again, and show all steps of their decoding."""
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


# --- inpaint, outpaint, edit ---
def run_inpaint(args: argparse.Namespace) -> None:
    """`minimuse inpaint`: draw again what is white in a mask."""
    paths = output_paths(args, args.sheet)
    settings = edit_settings(args)
    image, mask = read_image(args.image), read_mask(args.mask)
    before = {"before": image, "mask": mask}
    muse = load_model(args)

    def draw(n: int, seed: int) -> list[Image.Image]:
        return edit.inpaint(
            muse,
            image,
            mask,
            args.prompt,
            n=n,
            seed=seed,
            keep_pixels=args.keep_pixels,
            tile=args.tile,
            **settings,
        )

    draw_edited(args, muse, image.size, before, draw, paths)


def run_outpaint(args: argparse.Namespace) -> None:
    """`minimuse outpaint`: draw around an image."""
    paths = output_paths(args, args.sheet)
    settings = edit_settings(args)
    image = read_image(args.image)
    left, top, right, bottom = args.pad
    size = (left + image.width + right, top + image.height + bottom)
    muse = load_model(args)

    def draw(n: int, seed: int) -> list[Image.Image]:
        return edit.outpaint(
            muse,
            image,
            args.prompt,
            args.pad,
            n=n,
            seed=seed,
            keep_pixels=args.keep_pixels,
            tile=args.tile,
            **settings,
        )

    draw_edited(args, muse, size, {"before": image}, draw, paths)


def run_edit(args: argparse.Namespace) -> None:
    """`minimuse edit`: change an image towards a prompt, without a mask."""
    paths = output_paths(args, args.sheet)
    settings = edit_settings(args)
    image = read_image(args.image)
    muse = load_model(args)

    def draw(n: int, seed: int) -> list[Image.Image]:
        return edit.edit(
            muse, image, args.prompt, args.iterations, args.share, n=n, seed=seed, **settings
        )

    draw_edited(args, muse, image.size, {"before": image}, draw, paths)


def draw_edited(
    args: argparse.Namespace,
    muse: Muse,
    size: tuple[int, int],
    before: dict[str, Image.Image],
    draw: Callable[[int, int], list[Image.Image]],
    paths: list[Path],
) -> None:
    """Draw --n images of (width, height) `size` in batches, and save them and the sheet.

    draw(n, seed) draws a batch; `before` is what the sheet shows beside them.
    """
    width, height = size
    if args.sheet is not None:
        inputs = sum(image.width for image in before.values())
        remedy = "ask for fewer images, or leave --sheet out"
        check_image_size(args.sheet, 2 * (inputs + args.n * width), 2 * height, remedy)
    at_a_time = max(1, min(BATCH, BATCH_PIXELS // (width * height)))
    shown = []
    for start, n, seed in batches(args, at_a_time):
        with passes_shown(muse):
            images = draw(n, seed)
        recipes = [recipe(args, sampling_settings(args), start + i) for i in range(n)]
        save_images(images, paths[start : start + n], recipes)
        if args.sheet is not None:
            shown += images
    save_sheet(args.sheet, before, shown)


def edit_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that all editing functions have, besides n and seed."""
    return {"negative": args.negative} | sampling_settings(args)


def parse_pad(text: str) -> tuple[int, ...]:
    """Read --pad, "8" or "8,0,8,0": the pixels at left, top, right and bottom."""
    pad = parse_literal(f"({text},)")
    if isinstance(pad, tuple) and len(pad) == 1:
        pad = pad * 4
    try:
        check(f"'{text}'", pad, ARGUMENTS["pad"])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not one number, or left,top,right,bottom; {ARGUMENTS['pad'].words}"
        ) from None
    return pad


# --- What they have in common ---
def load_model(args: argparse.Namespace) -> Muse:
    """The model that --model, --device and --t5 say."""
    muse = Muse.load(args.model, parallel.begin(args.device), args.t5)
    if args.compile:
        print_warning("compiling: the first images of each batch size take a minute or more longer")
        muse.compile()
    elif args.n >= MANY_IMAGES and muse.device.type == "cuda":
        print_warning(f"with --compile, {args.n} images may take less time on this GPU")
    return muse


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Sampling` for which there is a flag on the command line."""
    settings = {}
    for name, kind in SAMPLING_TYPES.items():
        value = getattr(args, f"sampling.{name}")
        if value is None:
            continue
        # argparse has made a bool of --NAME and --no-NAME. All other values are text still.
        if kind is not bool:
            value = read_setting(name, value, f"--{name.replace('_', '-')}")
        settings[name] = value
    return settings


def output_paths(args: argparse.Namespace, extra: Path | None) -> list[Path]:
    """The files that images are saved to.

    Raises an error if one of them cannot be written, or `extra`, the GIF or the sheet.
    """
    if args.n == 1 or getattr(args, "grid", None):
        paths = [args.output]
    else:
        stem = args.output.stem
        paths = [args.output.with_stem(f"{stem}-{i}") for i in range(args.n)]
    written = [*paths, extra] if extra is not None else paths
    read = [getattr(args, name, None) for name in ("image", "mask", "like")]
    resolved = Counter(path.resolve() for path in [*written, *read] if path is not None)
    for path in written:
        check_suffix(path)
        if resolved[path.resolve()] > 1:
            raise ValueError(
                f"{path}: give each file a name of its own, other than that of an input image"
            )
        check_folder(path)
    check_writable(*written)
    return paths


def check_gif_size(muse: Muse, args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Raise a ValueError if the steps of decoding do not fit beside each other in a strip."""
    if args.gif.suffix.lower() == ".gif":
        return
    sampling, sampling_hi = muse.sampling(**settings)
    # A step that reveals no token is not shown.
    frames = min(sampling.steps, muse.config.tokenizer.grid**2)
    frames += min(sampling_hi.steps, muse.config.tokenizer_hi.grid**2)
    images = min(args.n, MAX_GIF_IMAGES)
    remedy = "take fewer steps or images, or a name that ends in .gif"
    check_image_size(args.gif, frames * images * STRIP_CELL, 3 * STRIP_CELL, remedy)


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


def save_images(
    images: list[Image.Image], paths: list[Path], recipes: list[dict[str, Any]] | None = None
) -> None:
    """Save images, with how each was drawn if `recipes` are given, and print their names."""
    for i, (image, path) in enumerate(zip(images, paths, strict=True)):
        options = {} if recipes is None else with_recipe(path, recipes[i])
        save_image(image, path, **options)
        print(path)


def save_sheet(path: Path | None, before: dict[str, Image.Image], after: list[Image.Image]) -> None:
    """Save the images before and after editing side by side, if --sheet gives a name."""
    if path is None:
        return
    titles = [*before, *["after"] * len(after)]
    save_images([beside([*before.values(), *after], titles)], [path])
