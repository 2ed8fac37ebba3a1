import warnings
from pathlib import Path

from PIL import Image, ImageOps

from minimuse.data import on_white


def read_image(path: Path) -> Image.Image:
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
