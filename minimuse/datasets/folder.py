"""A folder of your own pictures: `cat.png` beside `cat.txt` (one caption a line), or one table, `captions.csv` (columns file,caption).

`minimuse.data.load("my-pictures", ...)` calls `find`. One picture in ten is held out, by its name.
"""

import csv
import io
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from minimuse.datasets.image_files import read_image
from minimuse.device import stable_hash


def find_images(
    root: Path, wanted: str, side: int, smallest: int, skip: bool = False
) -> list[tuple[str, tuple[str, ...], partial]]:
    """Every picture centre-cropped to a square; one in ten is held out, and never all or none."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {str(root)!r}: say shapes, emoji, or a folder of pictures"
        )
    captions = captions_of(root)
    for name in sorted(
        captions
    ):  # of either split: a damaged picture should be known before the training, not after
        try:
            read_square(root / name, side, smallest)
        except ValueError as error:
            if not skip:
                raise ValueError(
                    f"{error} (skip_unreadable=True leaves out all such pictures)"
                ) from None
            warnings.warn(f"left out: {error}", stacklevel=4)
            del captions[name]
    by_hash = sorted(captions, key=stable_hash)
    if len(by_hash) < 2:
        raise ValueError(
            f"{root} has {len(by_hash)} pictures; it needs at least two, one to hold out"
        )
    heldout = {n for n in by_hash[:-1] if stable_hash(n) % 10 == 0} or {by_hash[0]}
    names = sorted(heldout if wanted == "heldout" else captions.keys() - heldout)
    return [
        (name, captions[name], partial(read_square, root / name, side, smallest)) for name in names
    ]


def captions_of(root: Path) -> dict[str, tuple[str, ...]]:
    """Picture -> its captions, for every picture in the folder, by its path inside it."""
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    files = [
        f for f in files if not any(part.startswith(".") for part in f.parts)
    ]  # what systems hide
    pictures = {
        f.as_posix() for f in files if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    }
    table, captions = root / "captions.csv", {}
    for where, file, lines in _rows(table) if table.is_file() else _sidecars(root, files, pictures):
        path = Path(file)
        if path.anchor or ".." in path.parts:
            raise ValueError(f"{where}: {file!r} leads out of the folder; move the picture in")
        if path.as_posix() not in pictures:
            raise FileNotFoundError(
                f"{where}: no PNG, JPEG or WebP {file!r} here; add it or remove the row"
            )
        if path.as_posix() in captions:
            raise ValueError(f"{where}: {file!r} has a row already; remove one")
        captions[path.as_posix()] = tuple(" ".join(line.split()) for line in lines if line.strip())
        if not captions[path.as_posix()]:
            raise ValueError(f"{where}: the caption of {file!r} is empty; write one")
    if table.is_file() and not captions:
        raise ValueError(f"{table} is empty; write a row for each picture")
    if left := sorted(pictures - captions.keys()):
        raise ValueError(
            f"{root / left[0]} has no caption; write one into {table.name if table.is_file() else Path(left[0]).with_suffix('.txt')}"
        )
    return captions


def _sidecars(root: Path, files: list[Path], pictures: set[str]):
    """(place, picture, captions) of each text file."""
    owners = defaultdict(list)
    for name in pictures:
        owners[Path(name).with_suffix("")].append(name)
    for file in (f for f in files if f.suffix.lower() == ".txt"):
        beside = owners[file.with_suffix("")]
        if len(beside) != 1:
            raise ValueError(
                f"{root / file} has {len(beside)} pictures of its name, not one; rename it"
            )
        yield str(root / file), beside[0], _text(root / file).splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte-order mark first
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}); save it again as UTF-8"
        ) from None


def _rows(table: Path):
    """(place, picture, its one caption) of each row."""
    rows = csv.DictReader(io.StringIO(_text(table)), strict=True)
    try:
        if not {"file", "caption"} <= set(rows.fieldnames or ()):
            raise ValueError(
                f"{table} is empty or has other columns; its first line must be file,caption"
            )
        for row in rows:
            if None in row:  # more fields than columns: half the caption would be lost
                raise ValueError(
                    f'{table} line {rows.line_num}: a caption with a comma needs "quotes"'
                )
            yield f"{table} line {rows.line_num}", row["file"] or "", [row["caption"] or ""]
    except csv.Error as error:
        raise ValueError(f"{table} line {rows.line_num}: {error}; repair the quotes") from None


def read_square(path: Path, side: int, smallest: int) -> Image.Image:
    """The picture's middle square, side x side."""
    image = read_image(path)
    if min(image.size) < smallest:
        raise ValueError(
            f"{path} is {image.width}x{image.height}; the tokenizer needs {smallest}x{smallest}: enlarge it or remove it"
        )
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
