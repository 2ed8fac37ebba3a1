"""A folder of your own images, in one of two forms.

    my-images/cat.png  my-images/cat.txt       a text file beside each image, one caption a line
    my-images/cat.png  my-images/captions.csv  or one table, with the columns file,caption

    from minimuse.datasets import load
    images = load("my-images", "train", side=64)

Images (PNG, JPEG or WebP) may lie in subfolders. One image in ten is held out, by a hash of its
name. All images are read once before training, so that a damaged one is reported at once.
"""

import csv
import io
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from minimuse.datasets.image_files import Entry, read_image
from minimuse.device import stable_hash

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def find_images(
    root: Path, split: str, side: int, smallest: int, skip: bool = False
) -> list[Entry]:
    """List the images of one split. Each is cropped to its middle square when it is read."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {str(root)!r}; give shapes, emoji, or a folder of images"
        )
    captions = captions_of(root)
    for name, reason in unreadable(root, captions, side, smallest):
        if not skip:
            raise ValueError(f"{reason} (skip_unreadable=True leaves out all such images)")
        # Level 4 is the caller of `load_images`, which calls `load`, which calls this function.
        warnings.warn(f"left out: {reason}", stacklevel=4)
        del captions[name]
    if len(captions) < 2:
        raise ValueError(
            f"{root} has {len(captions)} images; it needs at least two, one of them to hold out"
        )
    heldout = heldout_names(captions)
    names = heldout if split == "heldout" else captions.keys() - heldout
    return [
        Entry(name, captions[name], partial(read_square, root / name, side, smallest))
        for name in sorted(names)
    ]


def unreadable(
    root: Path, captions: dict[str, tuple[str, ...]], side: int, smallest: int
) -> Iterator[tuple[str, str]]:
    """Read every image of both splits; yield (name, reason) of each that cannot be used."""
    for name in sorted(captions):
        try:
            read_square(root / name, side, smallest)
        except ValueError as error:
            yield name, str(error)


def heldout_names(names: dict[str, tuple[str, ...]]) -> set[str]:
    """The names whose hash holds them out: about one in ten, but never all and never none."""
    by_hash = sorted(names, key=stable_hash)
    # The name with the largest hash always stays in training.
    heldout = {name for name in by_hash[:-1] if stable_hash(name) % 10 == 0}
    if not heldout:
        heldout = {by_hash[0]}
    return heldout


def read_square(path: Path, side: int, smallest: int) -> Image.Image:
    """The middle square of an image, resized to side x side pixels."""
    image = read_image(path)
    if min(image.size) < smallest:
        raise ValueError(
            f"{path} is {image.width}x{image.height}; the tokenizer needs at least "
            f"{smallest}x{smallest}: enlarge it or remove it"
        )
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


# --- Captions ---
class Row(NamedTuple):
    """What a table or a text file says of one image."""

    place: str  # the file and perhaps the line, for messages
    file: str  # the image's path inside the folder
    captions: list[str]


def captions_of(root: Path) -> dict[str, tuple[str, ...]]:
    """Path of each image inside the folder -> its captions. Every image must have some."""
    files = visible_files(root)
    images = {file.as_posix() for file in files if file.suffix.lower() in SUFFIXES}
    table = root / "captions.csv"
    has_table = table.is_file()
    rows = rows_of_table(table) if has_table else rows_of_text_files(root, files, images)
    captions = {}
    for row in rows:
        name = checked_name(row, images)
        if name in captions:
            raise ValueError(f"{row.place}: {row.file!r} has a row already; remove one of them")
        captions[name] = checked_captions(row)
    if has_table and not captions:
        raise ValueError(f"{table} is empty; write a row for each image")
    without = sorted(images - captions.keys())
    if without:
        place = table.name if has_table else Path(without[0]).with_suffix(".txt")
        raise ValueError(f"{root / without[0]} has no caption; write one into {place}")
    return captions


def visible_files(root: Path) -> list[Path]:
    """All files, by their path inside the folder, without what operating systems hide in it."""
    files = []
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not hidden:
            files.append(inside)
    return files


def checked_name(row: Row, images: set[str]) -> str:
    """The path of a row's image, in the one way in which `images` has it."""
    path = Path(row.file)
    if path.anchor or ".." in path.parts:
        raise ValueError(
            f"{row.place}: {row.file!r} leads out of the folder; move the image into the folder"
        )
    name = path.as_posix()
    if name not in images:
        raise FileNotFoundError(
            f"{row.place}: the folder has no PNG, JPEG or WebP {row.file!r}; "
            "add it or remove the row"
        )
    return name


def checked_captions(row: Row) -> tuple[str, ...]:
    """The captions of a row, without empty ones and with single spaces."""
    captions = tuple(" ".join(line.split()) for line in row.captions if line.strip())
    if not captions:
        raise ValueError(f"{row.place}: the caption of {row.file!r} is empty; write one")
    return captions


def rows_of_text_files(root: Path, files: list[Path], images: set[str]) -> Iterator[Row]:
    """A row for each text file, whose name must be that of exactly one image."""
    images_by_stem = defaultdict(list)
    for name in images:
        images_by_stem[Path(name).with_suffix("")].append(name)
    for file in files:
        if file.suffix.lower() != ".txt":
            continue
        beside = images_by_stem[file.with_suffix("")]
        if len(beside) != 1:
            raise ValueError(
                f"{root / file} has {len(beside)} images of its name, not one; rename it"
            )
        yield Row(str(root / file), beside[0], read_text(root / file).splitlines())


def rows_of_table(table: Path) -> Iterator[Row]:
    """A row for each line of captions.csv but the first."""
    reader = csv.DictReader(io.StringIO(read_text(table)), strict=True)
    try:
        columns = set(reader.fieldnames or ())
        if not {"file", "caption"} <= columns:
            raise ValueError(
                f"{table} is empty or has other columns; its first line must be file,caption"
            )
        for row in reader:
            place = f"{table} line {reader.line_num}"
            # More fields than columns: a comma without quotes would cut the caption in two.
            if None in row:
                raise ValueError(f'{place}: a caption with a comma needs "quotes"')
            # Fewer fields than columns give None.
            yield Row(place, row["file"] or "", [row["caption"] or ""])
    except csv.Error as error:
        raise ValueError(f"{table} line {reader.line_num}: {error}; repair the quotes") from None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8. Spreadsheets put a byte-order mark first, which goes."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}); save it again as UTF-8"
        ) from None
