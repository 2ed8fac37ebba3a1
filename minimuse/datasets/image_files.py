"""Image files from anywhere: read one safely, and describe one that is not read yet.

from minimuse.datasets.image_files import read_image
image = read_image(Path("cat.jpg"))      # RGB, upright, on white where it was transparent
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from minimuse.data import on_colour, on_white

FORMATS = ("PNG", "JPEG", "WEBP")
# What PIL calls a JPEG file that has more images behind the first, as phones write them.
JPEG_WITH_MORE = "MPO"


class Entry(NamedTuple):
    """One image of a data set, not read yet."""

    name: str  # unique in its data set
    captions: tuple[str, ...]  # one or more, the plainest first
    read: Callable[[], Image.Image]  # reads the file, as an RGB image of the size asked for


class UnusableImage(ValueError):
    """An image that cannot be read, or is too small; made of a reason and a remedy.

    In a data set there is a second remedy: to remove the image, and its caption.
    """

    def __str__(self) -> str:
        return "; ".join(self.args)


class Member(BytesIO):
    """The bytes of an image file inside a tar file, read already."""

    def __init__(self, contents: bytes, place: str):
        """place: the tar file and the name inside it, for messages."""
        super().__init__(contents)
        self.place = place

    def __str__(self) -> str:
        return self.place


# A JPEG may be decoded at a half, a quarter or an eighth of its size, which is far faster. Each
# side keeps at least this many times the pixels that are needed: then LANCZOS gives nearly the
# image that it makes of the whole one (tests/test_kept.py).
SPARE = 2


@contextmanager
def opened(path: Path | Member) -> Iterator[Image.Image]:
    """A PNG, JPEG or WebP file as an image, not decoded yet; errors inside become a ValueError."""
    # Members are read in threads, in which Python's filters of warnings must not be changed. The
    # command line has such filters for the whole process.
    quiet = nullcontext() if isinstance(path, Member) else without_warnings()
    try:
        with quiet, Image.open(path, formats=FORMATS) as image:
            # PIL only warns of images so large that they may be an attack.
            pixels = image.width * image.height
            if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"it has {pixels:,} pixels")
            yield image
    except Exception as error:  # PIL raises errors of many kinds for damaged files
        raise UnusableImage(*explain_unreadable(path, error)) from None


@contextmanager
def without_warnings() -> Iterator[None]:
    """Inside, PIL does not warn of what is an error here, or is harmless."""
    with warnings.catch_warnings():
        ignore_warnings()
        yield


def ignore_warnings() -> None:
    """From now on, PIL does not warn of what is an error here, or is harmless."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    # An image whose EXIF is damaged is taken for upright, as by other programs.
    warnings.filterwarnings("ignore", "Corrupt EXIF data")


def explain_unreadable(path: Path | Member, error: Exception) -> tuple[str, str]:
    """Why an image file cannot be read, and what to do."""
    if isinstance(path, Member):
        return f"{path} cannot be read ({describe_error(error)})", "pack a sound file instead"
    if isinstance(error, PermissionError):
        return (
            f"{path} cannot be read (Permission denied)",
            "allow this user to read it",
        )
    if isinstance(error, FileNotFoundError):
        return f"there is no file {path}", "check the name"
    if path.is_dir():
        return f"{path} is a folder", "give the name of an image file"
    if path.is_file() and path.stat().st_size == 0:
        return f"{path} is empty", "save it again"
    with suppress(Exception), Image.open(path) as image:
        if image.format not in (*FORMATS, JPEG_WITH_MORE):
            return (
                f"{path} is a {image.format} file, whatever its name says",
                "save it as PNG, JPEG or WebP",
            )
    remedy = "copy it again from where it came, or save it again as an 8-bit PNG"
    if isinstance(error, UnidentifiedImageError):
        remedy = "save it again as PNG, JPEG or WebP"
    elif isinstance(error, Image.DecompressionBombError):
        remedy = "save it again as a smaller PNG"
    return f"{path} cannot be read ({error})", remedy


def describe_error(error: Exception) -> str:
    """An error of PIL, without the address in memory that stands for a file without a name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no PNG, JPEG or WebP"
    return str(error)


def read_image(path: Path | Member) -> Image.Image:
    """Read a PNG, JPEG or WebP file as an upright RGB image; a ValueError if that fails."""
    with opened(path) as image:
        # A phone stores the image as its sensor saw it, and beside it how to rotate it.
        return as_rgb(ImageOps.exif_transpose(image))


def read_mask(path: Path) -> Image.Image:
    """Read a mask as an upright RGB image. What is transparent in it is black."""
    with opened(path) as image:
        return on_colour(ImageOps.exif_transpose(image), "black")


def read_square(path: Path | Member, side: int, smallest: int = 1) -> Image.Image:
    """The middle square of an image file, resized to side x side pixels.

    A ValueError if the file cannot be read, or if one of its sides is less than `smallest` pixels.
    """
    with opened(path) as image:
        square = read_scaled_square(image, side)
        if square is not None and min(image.size) >= smallest:
            return square
    whole = read_image(path)
    if min(whole.size) < smallest:
        raise UnusableImage(
            f"{path} is {whole.width}x{whole.height}, and the tokenizer needs at least "
            f"{smallest}x{smallest}",
            "enlarge it",
        )
    return ImageOps.fit(whole, (side, side), Image.Resampling.LANCZOS)


def read_scaled_square(image: Image.Image, side: int) -> Image.Image | None:
    """The middle square of a JPEG that is far larger, decoded at a fraction of its size, or None.

    Large is at least twice SPARE times the side; smaller images and other formats give None.
    """
    size = image.size
    scaled = image.draft(None, (SPARE * side, SPARE * side))
    if scaled is None or image.size == size:
        return None
    # The width may be a fraction of a pixel, 150.4 of 151: the rest of the last pixel is no image.
    _, (_, _, width, height) = scaled
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    # A JPEG has no transparency. Unlike `as_rgb`, this keeps what says how to rotate the image.
    square = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS, box=box)
    # Rotating the square is the same as rotating the image, and faster.
    return ImageOps.exif_transpose(square)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB, on white where it is transparent."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # `on_white` would give the same, more slowly
    return on_white(image)
