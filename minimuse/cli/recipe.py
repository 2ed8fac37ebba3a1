"""How an image was drawn, kept inside its file, so that `--like` can draw it again.

    minimuse generate "a red apple, noto style" --n 4 --seed 7 -o apple.png
    minimuse generate --like apple-2.png -o again.png            # the same image
    minimuse generate --like apple-2.png --guidance 5 --n 3      # others like it

A PNG has it as a text under "minimuse", a JPEG and a WebP as the description in their EXIF, a GIF
as its comment. It is JSON: the command, the prompts, the seed of this one image, the model and the
settings that were given.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from minimuse.cli.grid import SAMPLING_TYPES
from minimuse.plumbing.places import model_place
from minimuse.plumbing.ranges import later_seed

KEY = "minimuse"
IMAGE_DESCRIPTION = 0x010E  # a field of EXIF
# What PIL, JSON and `check_recipe` raise for a file that is no image, or has no recipe.
BAD_FILES = (OSError, ValueError, TypeError, KeyError, SyntaxError, Image.DecompressionBombError)

# What a recipe holds of the flags, and what each is if neither a flag nor a recipe says it.
DEFAULTS = {"negative": "", "seed": 0, "model": "toy"}


# --- Write ---
def recipe(args: argparse.Namespace, settings: dict[str, Any], number: int) -> dict[str, Any]:
    """How image `number` (from 0) of a command is drawn; `settings` are the flags of sampling."""
    return {
        "command": args.command,
        "prompt": args.prompt,
        "negative": args.negative,
        "seed": later_seed(args.seed, number),
        "model": model_place(args.model),
        "settings": settings,
    }


def with_recipe(path: Path, what: dict[str, Any]) -> dict[str, Any]:
    """The options of `save_image` that write a recipe into the file `path`."""
    text = json.dumps(what)
    if path.suffix.lower() == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_text(KEY, text)
        return {"pnginfo": info}
    if path.suffix.lower() == ".gif":
        return {"comment": text.encode()}
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = text
    return {"exif": exif}


# --- Read ---
def fill_from_like(args: argparse.Namespace) -> None:
    """Complete what flags do not say: from the image of --like, or else by the defaults."""
    known = dict(DEFAULTS)
    if args.like is not None:
        found = read_recipe(args.like)
        known |= found
        for name, value in found["settings"].items():
            if getattr(args, f"sampling.{name}") is None:
                # As on the command line, where all but switches are texts.
                is_switch = SAMPLING_TYPES[name] is bool
                setattr(args, f"sampling.{name}", value if is_switch else as_flag(value))
    if args.prompt is None and args.like is None:
        raise ValueError('say what to draw, such as "a red apple, noto style"')
    for name in ("prompt", *DEFAULTS):
        if getattr(args, name) is None:
            setattr(args, name, known[name])


def as_flag(value: Any) -> str:
    """A value of a setting as it is written on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in an image file; a ValueError that names the file if there is none to use."""
    with explained(path):
        with Image.open(path) as image:
            text = image.info.get(KEY) or image.info.get("comment")
            text = text or image.getexif().get(IMAGE_DESCRIPTION) or ""
        found = json.loads(text)
        check_recipe(path, found)
        return found


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of reading into one that says what --like needs."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"--like {path}: there is no such file") from None
    except BAD_FILES as error:
        if isinstance(error, ValueError) and str(error).startswith("--like"):
            raise
        raise ValueError(
            f"--like {path}: the file does not say how it was drawn; give an image that minimuse "
            "wrote, as it was written (other programs may drop what stands in it)"
        ) from None


def check_recipe(path: Path, found: Any) -> None:
    """Raise a ValueError if this is no recipe that `generate` can follow."""
    texts = [found["command"], found["prompt"], found["negative"], found["model"]]
    if not all(isinstance(text, str) for text in texts) or not isinstance(found["seed"], int):
        raise TypeError
    if found["command"] != "generate":
        raise ValueError(
            f"--like {path}: it was made with `minimuse {found['command']}`, from another image; "
            "give one that `minimuse generate` made"
        )
    unknown = [name for name in found["settings"] if name not in SAMPLING_TYPES]
    if unknown:
        raise ValueError(f"--like {path}: there is no setting {unknown[0]!r}")
