"""Image files from anywhere: read one safely, and describe one that is not read yet.

from minimuse.datasets.image_files import read_image
image = read_image(Path("cat.jpg"))      # RGB, upright, on white where it was transparent
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from minimuse.data import on_white


class Entry(NamedTuple):
    """One image of a data set, not read yet."""

    name: str  # unique in its data set
    captions: tuple[str, ...]  # one or more, the plainest first
    read: Callable[[], Image.Image]  # reads the file, as an RGB image of the size asked for


def read_image(path: Path) -> Image.Image:
    """Read a PNG, JPEG or WebP file as an upright RGB image; a ValueError if that fails."""
    # PIL only warns of images so large that they may be an attack; here the warning is an error.
    refuse_huge = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
    try:
        with refuse_huge, Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            # A phone stores the image as its sensor saw it, and beside it how to rotate it.
            return on_white(ImageOps.exif_transpose(image))
    except Exception as error:  # PIL raises errors of many kinds for damaged files
        raise ValueError(
            f"{path} cannot be read ({error}); save it again as a smaller 8-bit PNG, or remove it"
        ) from None
