"""Which images a folder has, and which captions belong to them. No image is opened here.

    my-images/cat.png  my-images/cat.txt       a text file beside each image, one caption a line
    my-images/cat.png  my-images/captions.csv  or one table, with the columns file,caption

Systems write one file name in several ways (Windows has "sub\\a.png"), so what a table or a text
file calls an image is compared with the names that `listing.py` gives; where that finds nothing,
letters may differ in case.
"""

import csv
import io
import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from minimuse.datasets.listing import Listing, normal, suffix, without_suffix
from minimuse.datasets.progress import bar

TABLE = "captions.csv"
# Files in which other programs keep the captions of a folder.
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xls", ".xlsx", ".ods")


class Pair(NamedTuple):
    """An image and its captions."""

    path: Path
    captions: tuple[str, ...]  # one or more


class Row(NamedTuple):
    """What a table or a text file says of one image."""

    place: str  # the file and perhaps the line, for messages
    name: str  # of the image
    captions: list[str]


def find_pairs(root: Path) -> dict[str, Pair]:
    """All images of a folder with their captions, by name. Every image must have some.

    Raises a ValueError or FileNotFoundError that names the file and the remedy.
    """
    listing = Listing(root)
    table = table_of(listing)
    rows = rows_of_texts(listing) if table is None else rows_of_table(root / table, listing)
    captions: dict[str, tuple[str, ...]] = {}
    for row in rows:
        if row.name in captions:
            raise ValueError(f"{row.place}: {row.name!r} has a row already; remove one of them")
        captions[row.name] = checked_captions(row)
    if table is not None and not captions:
        raise ValueError(f"{root / table} is empty; write a row for each image")
    without = sorted(listing.images.keys() - captions.keys())
    if without:
        raise ValueError(explain_missing(listing, table, without[0]))
    return {name: Pair(root / listing.images[name], captions[name]) for name in captions}


def explain_missing(listing: Listing, table: Path | None, name: str) -> str:
    """Why an image has no caption, and what to do."""
    image = f"{listing.root / listing.images[name]} has no caption"
    if table is not None:
        return f"{image}; write a line for it into {table}"
    text = PurePosixPath(name).with_suffix(".txt")
    message = f"{image}; write one into {text}, or lines of file,caption into {TABLE}"
    others = [other for other in listing.files if suffix(other) in TABLE_SUFFIXES]
    if others:
        message += f" ({others[0]} is not read: a table must be {listing.root / TABLE})"
    return message


def unread_texts(listing: Listing) -> str:
    """What to say of texts beside images if there is a table, which alone is read; or ""."""
    table = table_of(listing)
    names = [] if table is None else listing.files
    texts = [
        name for name in names if suffix(name) == ".txt" and without_suffix(name) in listing.by_stem
    ]
    if not texts:
        return ""
    return (
        f"the captions are those of {listing.root / table}; {len(texts)} text files beside "
        f"images, such as {texts[0]}, are not read"
    )


def checked_captions(row: Row) -> tuple[str, ...]:
    """The captions of a row, without empty ones and with single spaces."""
    captions = tuple(" ".join(line.split()) for line in row.captions if line.strip())
    if not captions:
        raise ValueError(f"{row.place}: the caption of {row.name!r} is empty; write one")
    return captions


# --- A text file for each image ---
def rows_of_texts(listing: Listing) -> Iterator[Row]:
    """A row for each text file, whose name must be that of exactly one image."""
    texts = [name for name in listing.files if suffix(name) == ".txt"]
    for text in bar(texts, "reading captions", "files"):
        path = listing.root / listing.files[text]
        stem = without_suffix(text)
        beside = listing.by_stem.get(stem) or listing.by_stem.get(f"any case {stem.casefold()}", [])
        if len(beside) != 1:
            raise ValueError(explain_text(listing, text, beside))
        yield Row(str(path), beside[0], read_text(path).splitlines())


def explain_text(listing: Listing, text: str, beside: list[str]) -> str:
    """Why a text file is the caption of no image, and what to do."""
    path = listing.root / listing.files[text]
    stem = without_suffix(text)
    if beside:
        return (
            f"{path} has {len(beside)} images of its name, not one ({', '.join(beside)}); "
            "rename all but one, and write a text for each"
        )
    if stem.casefold() == TABLE:  # made by an editor that hides endings
        return f"{path} is not read; rename it to {TABLE}, if it is the table of captions"
    if stem in listing.images:
        new = PurePosixPath(stem).with_suffix(".txt").name
        return f"{path} has 0 images of its name; rename it to {new}, if {stem} is its image"
    others = [n for n in listing.files if without_suffix(n) == stem and n != text]
    if others:
        return (
            f"{path} has 0 images of its name: {others[0]} is no PNG, JPEG or WebP; "
            "save it as one of these, or move both out of the folder"
        )
    return (
        f"{path} has 0 images of its name; if it is no caption, move it out of the folder or "
        f"rename it to {PurePosixPath(stem).name}.md; if it is one, add the image"
    )


# --- A table for all images ---
def table_of(listing: Listing) -> Path | None:
    """The path of captions.csv inside the folder, also in upper case; None if there is none."""
    tables = [name for name in sorted(listing.files) if name.casefold() == TABLE]
    if len(tables) > 1:
        raise ValueError(f"{listing.root} has {' and '.join(tables)}; keep one of them")
    return listing.files[tables[0]] if tables else None


def rows_of_table(table: Path, listing: Listing) -> Iterator[Row]:
    """A row for each line of captions.csv but the first."""
    lines = lines_of_table(table)
    _, header = next(lines, (1, []))
    # Spreadsheets change the case of headings.
    columns = [heading.strip().lower() for heading in header]
    if not {"file", "caption"} <= set(columns):
        raise ValueError(
            f"{table} is empty or has other columns; its first line must be file,caption"
        )
    for column in ("file", "caption"):
        if columns.count(column) > 1:
            raise ValueError(
                f"{table} has {columns.count(column)} columns called {column}; keep one of them"
            )
    for number, fields in lines:
        place = f"{table} line {number}"
        # More fields than columns: a comma without quotes would cut the caption in two.
        if any(fields[len(columns) :]):
            raise ValueError(
                f"{place} has {len(fields)} fields, and the first line {len(columns)}; "
                'put a caption that has a comma into "quotes"'
            )
        # Fewer fields than columns: a name without a caption.
        row = dict(zip_longest(columns, fields[: len(columns)], fillvalue=""))
        yield Row(place, name_in_row(place, row["file"], listing), [row["caption"]])


def lines_of_table(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row of a table that is not empty, after the number of its first line.

    People put spaces after commas, also before a quote.
    """
    reader = csv.reader(io.StringIO(read_text(table)), strict=True, skipinitialspace=True)
    while True:
        # A field in quotes may have several lines. The reader counts those that it has read.
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            # Where quotes do not end, all that follows is one field, and perhaps too long for one.
            raise ValueError(
                f"{table} line {number}: {error}; repair the quotes, or shorten the caption"
            ) from None
        if fields is None:
            return
        if any(field.strip() for field in fields):
            yield number, fields


def name_in_row(place: str, file: str, listing: Listing) -> str:
    """The name of the image that a row calls `file`, perhaps as another system writes it."""
    file = normal(file.strip())
    # Windows paths have both kinds of slashes, so this is also right for all others.
    windows = PureWindowsPath(file)
    for name in (file, windows.as_posix()):
        if name in listing.images:
            return name
    path = real_path(listing.root, file)
    if path in listing.by_real_path:
        return listing.by_real_path[path]
    same_but_for_case = listing.by_case.get(windows.as_posix().casefold(), [])
    if len(same_but_for_case) == 1:
        return same_but_for_case[0]
    if windows.anchor or ".." in windows.parts:
        raise ValueError(
            f"{place}: {file!r} leads out of the folder; move the image into the folder"
        )
    if windows.as_posix() in listing.files:
        raise ValueError(
            f"{place}: {file!r} is no PNG, JPEG or WebP; save it as one of these "
            "and write its new name, or remove the row"
        )
    raise FileNotFoundError(
        f"{place}: the folder has no PNG, JPEG or WebP {file!r}; add it or remove the row"
    )


def real_path(root: Path, file: str) -> str | None:
    """The path of a file, links resolved; None of a text that can be no path."""
    try:
        return os.path.realpath(root / file)
    except (ValueError, OSError):
        return None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with "\\n" at the end of each line."""
    text = decoded(path, path.read_bytes())
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decoded(place: Path | str, contents: bytes) -> str:
    """The text of bytes in UTF-8. Spreadsheets put a byte-order mark first; it is removed.

    place: where the bytes are, for messages.
    """
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place} is not UTF-8 (byte {error.start}); save it again as UTF-8"
        ) from None
    # In UTF-16 most letters have a zero byte. UTF-8 would accept it, but no text has one.
    if "\0" in text:
        raise ValueError(f"{place} is not UTF-8 (it has zero bytes); save it again as UTF-8")
    return text
