"""A folder of your own images; `captions.py` says in which two forms.

    from minimuse.datasets import load
    images = load("my-images", "train", side=64)

Images (PNG, JPEG or WebP) may lie in subfolders. One image in ten is held out, by a hash of its
name. All images are read before training, so that a damaged one is reported at once.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from minimuse.data import Images
from minimuse.datasets.captions import find_pairs, unread_texts
from minimuse.datasets.image_files import Member, UnusableImage, read_square
from minimuse.datasets.listing import OTHER_SUFFIXES, Listing, suffix
from minimuse.datasets.progress import bar
from minimuse.plumbing.device import stable_hash
from minimuse.plumbing.messages import warn


def read_folder(root: Path, side: int, smallest: int, skip: bool = False) -> Images:
    """Read all images of a folder, of both splits, in the order of their names.

    Each is cropped to its middle square and resized to side x side pixels. smallest: the least side
    of an image file. skip: leave out images that cannot be used, with a warning.
    Raises a ValueError or a FileNotFoundError that names what is wrong.
    """
    check_is_folder(root)
    pairs = find_pairs(root)
    warn_of_unread_files(root)
    pixels, names = [], []
    for name in bar(sorted(pairs), "reading images"):
        try:
            pixels.append(read_pixels(pairs[name].path, side, smallest))
            names.append(name)
        except UnusableImage as error:
            if not skip:
                raise ValueError(
                    f"{error}, or remove it and its caption "
                    "(skip_unreadable=True leaves out all such images)"
                ) from None
            warn(f"left out: {error}")
    check_enough(root, names)
    return Images(torch.stack(pixels), [pairs[name].captions for name in names], names)


def check_is_folder(root: Path) -> None:
    """Raise a FileNotFoundError if there is no such folder."""
    if root.is_file():
        raise FileNotFoundError(
            f"{str(root)!r} is a file; give shapes, emoji, or a folder of images (--data)"
        )
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {str(root)!r}; give shapes, emoji, or a folder of images (--data)"
        )


def check_enough(root: Path, names: Iterable[str]) -> None:
    """Raise a ValueError if there are too few images to hold one out."""
    count = len(list(names))
    if count >= 2:
        return
    images = "1 image" if count == 1 else f"{count} images"
    message = f"{root} has {images} to use; it needs at least two, one of them to hold out"
    others = other_formats(Listing(root))
    raise ValueError(f"{message}. {others}" if others else message)


def warn_of_unread_files(root: Path) -> None:
    """Warn of files in a folder that a user may think are read: texts, and other formats."""
    listing = Listing(root)
    for message in (unread_texts(listing), other_formats(listing)):
        if message:
            warn(message)


def other_formats(listing: Listing) -> str:
    """What to say of images of formats that are not read; "" if there are none."""
    others = [name for name in listing.files if suffix(name) in OTHER_SUFFIXES]
    if not others:
        return ""
    return (
        f"{len(others)} files, such as {others[0]}, have formats that are not read: "
        "save them as PNG, JPEG or WebP"
    )


def rows_of_split(names: list[str], split: str) -> list[int]:
    """Where the images of "train" or of "heldout" stand among all names, in the names' order."""
    heldout = heldout_names(names)
    rows = [i for i, name in enumerate(names) if (name in heldout) == (split == "heldout")]
    return sorted(rows, key=lambda i: names[i])


def heldout_names(names: Iterable[str]) -> set[str]:
    """The names whose hash holds them out: about one in ten, but never all and never none."""
    by_hash = sorted(names, key=stable_hash)
    # The name with the largest hash always stays in training.
    heldout = {name for name in by_hash[:-1] if stable_hash(name) % 10 == 0}
    if not heldout:
        heldout = {by_hash[0]}
    return heldout


def read_pixels(path: Path | Member, side: int, smallest: int) -> torch.Tensor:
    """The middle square of an image file as bytes: (3, side, side) uint8. See `read_square`."""
    square = np.array(read_square(path, side, smallest))  # side side 3
    return torch.from_numpy(square).permute(2, 0, 1)
