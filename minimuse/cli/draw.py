import itertools
import os
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minimuse import data, edit
from minimuse.cli.figures import beside, decoding_gif, sheet
from minimuse.datasets.image_files import read_image
from minimuse.decode import Sampling
from minimuse.muse import Muse
from minimuse.plumbing import config as configs
from minimuse.runs import parallel


def given(args) -> dict:
    """The sampling that was asked for."""
    asked = {
        name: (getattr(args, f"sampling.{name}"), kind)
        for name, kind in typing.get_type_hints(Sampling).items()
    }
    return {
        name: text if kind is bool else configs.typed(configs.literal(text), kind, name)
        for name, (text, kind) in asked.items()
        if text is not None
    }


def outputs(args, *also: Path | None) -> list[Path]:
    """The files that a drawing goes to; what is wrong with them is said before anything is drawn."""
    if args.n < 1:
        raise ValueError(f"--n is {args.n}; draw at least 1 picture")
    names = (
        [args.output]
        if args.n == 1 or getattr(args, "grid", None)
        else [args.output.with_stem(f"{args.output.stem}-{i}") for i in range(args.n)]
    )
    taken = [
        path.resolve()
        for path in (*names, *also, getattr(args, "image", None), getattr(args, "mask", None))
        if path
    ]
    for path in (*names, *(path for path in also if path)):
        if (
            path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".gif")
            or taken.count(path.resolve()) > 1
        ):
            raise ValueError(
                f"{path}: write a .png, .jpg or .webp (a .gif of frames), each under a name of its own, not a given picture's"
            )
        if path.is_dir() or not os.access(
            path if path.exists() else path.resolve().parent, os.W_OK
        ):
            raise OSError(
                f"{path} cannot be written; give a file name, in a directory that exists and is yours"
            )
    return names


def save_images(pictures: list, paths: list[Path]) -> None:
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
        print(path)


def run_generate(args) -> None:
    names, muse = (
        outputs(args, args.gif),
        Muse.load(args.model, parallel.begin(args.device), args.t5),
    )
    draw = partial(muse.generate, args.prompt, args.n, args.negative, args.seed)
    save_images([grid(draw, args.grid, given(args))] if args.grid else draw(**given(args)), names)
    if args.gif:
        sampling, sampling_hi = muse.sampling(**given(args))
        decoding_gif(
            muse,
            [args.prompt] * min(args.n, 32),
            args.gif,
            negative=args.negative,
            seed=args.seed,
            sampling=sampling,
            sampling_hi=sampling_hi,
        )
        print(args.gif)


def grid(draw: Callable[..., list], axes: list[str], settings: dict):
    """A sheet with a picture (n, above one another) for each combination of ["steps=4,8", "guidance=0,2"]."""
    names = typing.get_type_hints(Sampling)
    pairs = [text.partition("=")[::2] for text in axes]
    if wrong := [key for key, values in pairs if key not in names or not values]:
        raise ValueError(f"--grid {wrong[0]}: write key=a,b with a key among {', '.join(names)}")
    cells = list(
        itertools.product(
            *(
                [
                    (key, configs.typed(configs.literal(value), names[key], key))
                    for value in values.split(",")
                ]
                for key, values in pairs
            )
        )
    )
    drawn = [
        torch.stack([data.from_pil(picture) for picture in draw(**settings | dict(cell))])
        for cell in tqdm(cells, desc="grid")
    ]
    titles = [", ".join(f"{key} {value}" for key, value in cell) for cell in cells]
    return sheet(list(torch.stack(drawn, dim=1)), titles, columns=pairs[-1][1].count(",") + 1)


def run_edit(args) -> None:
    """inpaint, outpaint, edit."""
    names, muse, before = (
        outputs(args, args.sheet),
        Muse.load(args.model, parallel.begin(args.device), args.t5),
        [read_image(args.image)],
    )
    how = dict(n=args.n, negative=args.negative, seed=args.seed, **given(args))
    if args.command == "edit":
        drawn = edit.edit(muse, *before, args.prompt, args.iterations, args.share, **how)
    else:
        how |= dict(keep_pixels=args.keep_pixels, tile=args.tile)
        if args.command == "inpaint":
            before.append(read_image(args.mask))
            drawn = edit.inpaint(muse, *before, args.prompt, **how)
        else:
            pad = configs.typed(configs.literal(f"({args.pad},)"), tuple[int, ...], "--pad")
            if len(pad) not in (1, 4):
                raise ValueError(f"--pad {args.pad}: give one number, or left,top,right,bottom")
            drawn = edit.outpaint(muse, *before, args.prompt, pad * (4 // len(pad)), **how)
    save_images(drawn, names)
    if args.sheet:
        save_images(
            [beside([*before, *drawn], ["before", "mask"][: len(before)] + ["after"] * len(drawn))],
            [args.sheet],
        )
