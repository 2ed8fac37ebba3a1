"""Which images a folder has, and which captions belong to them. No image is opened here.

    my-images/cat.png  my-images/cat.txt       a text file beside each image, one caption a line
    my-images/cat.png  my-images/captions.csv  or one table, with the columns file,caption

The name of an image is its path inside the folder, with "/" and composed Unicode. Systems write
one file name in several ways (macOS decomposes "é", Windows writes "sub\\a.png"), so names are
compared in that form; where that finds nothing, letters may differ in case.
"""

import csv
import io
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from minimuse.datasets.progress import bar

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# Formats of images that are not read. A folder of them alone would seem to be empty.
OTHER_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".svg", ".tif", ".tiff")

# Folders that systems and archives put among one's own files.
SYSTEM_FOLDERS = (
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)

TABLE = "captions.csv"


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
        place = table or PurePosixPath(without[0]).with_suffix(".txt")
        raise ValueError(
            f"{root / listing.images[without[0]]} has no caption; write one into {place}"
        )
    return {name: Pair(root / listing.images[name], captions[name]) for name in captions}


def checked_captions(row: Row) -> tuple[str, ...]:
    """The captions of a row, without empty ones and with single spaces."""
    captions = tuple(" ".join(line.split()) for line in row.captions if line.strip())
    if not captions:
        raise ValueError(f"{row.place}: the caption of {row.name!r} is empty; write one")
    return captions


# --- Files ---
def normal(inside: str) -> str:
    """A path inside the folder as a name: composed Unicode, so that "é" is one letter."""
    # Where Python was told that file names are not UTF-8, it could not read their letters.
    with suppress(UnicodeError):
        inside = os.fsencode(inside).decode()
    return unicodedata.normalize("NFC", inside)


class Listing:
    """The files of a folder and of its subfolders, also linked ones, by name."""

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, Path] = {}  # name -> path inside the folder
        for path in sorted(visible_files(root)):
            inside = path.relative_to(root)
            name = normal(inside.as_posix())
            if name in self.files:
                raise ValueError(
                    f"{root} has two files called {name!r}, with composed and with decomposed "
                    "letters; rename one of them"
                )
            self.files[name] = inside
        self.images = {name: path for name, path in self.files.items() if suffix(name) in SUFFIXES}

    @cached_property
    def by_case(self) -> dict[str, list[str]]:
        """The names of the images that differ in case only, by their form in lower case."""
        names = defaultdict(list)
        for name in self.images:
            names[name.casefold()].append(name)
        return names

    @cached_property
    def by_real_path(self) -> dict[str, str]:
        """The names of the images by the paths of their files, links resolved."""
        return {os.path.realpath(self.root / path): name for name, path in self.images.items()}

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """The names of the images without their suffixes, and the same in lower case."""
        names = defaultdict(list)
        for name in self.images:
            stem = without_suffix(name)
            for key in {stem, f"any case {stem.casefold()}"}:
                names[key].append(name)
        return names


def suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def is_hidden(name: str) -> bool:
    """Whether a system made a file or folder of this name and hides it, as .DS_Store."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


def holds_model(folder: Path) -> bool:
    """Whether a folder is an --out of ours: images in it are drawn ones."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def visible_files(root: Path) -> Iterator[Path]:
    """Yield all files below a folder but hidden ones and those of models.

    Folders that are linked come after all others. Each real folder is listed once, and none around
    the root, so links that lead in a circle do no harm.
    """
    seen = {str(folder) for folder in Path(os.path.realpath(root)).parents}
    folders, links = [root], []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen or (folder != root and holds_model(folder)):
            continue
        seen.add(real)
        for path in entries_of(folder):
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif is_file(path):
                yield path


def entries_of(folder: Path) -> list[Path]:
    """What a folder holds but hidden things, in alphabetical order."""
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be listed ({error.strerror}); allow reading it, or move it away"
        ) from None


def is_file(path: Path) -> bool:
    """Whether this is a file; a ValueError if it should be one, and is a link to nothing."""
    if path.is_file():
        return True
    if suffix(path.name) in (*SUFFIXES, ".txt", ".csv"):
        raise ValueError(
            f"{path} is no file, perhaps a link to nothing; restore what it links to, "
            "or remove it and its caption"
        )
    return False


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
    reader = csv.DictReader(io.StringIO(read_text(table)), strict=True)
    try:
        # Spreadsheets change the case of headings, and people put spaces after commas.
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        if not {"file", "caption"} <= set(reader.fieldnames):
            raise ValueError(
                f"{table} is empty or has other columns; its first line must be file,caption"
            )
        for row in reader:
            place = f"{table} line {reader.line_num}"
            # More fields than columns: a comma without quotes would cut the caption in two.
            if None in row:
                raise ValueError(f'{place}: a caption with a comma needs "quotes"')
            # Fewer fields than columns give None.
            name = name_in_row(place, row["file"] or "", listing)
            yield Row(place, name, [row["caption"] or ""])
    except csv.Error as error:
        raise ValueError(f"{table} line {reader.line_num}: {error}; repair the quotes") from None


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
    """The text of a file in UTF-8. Spreadsheets put a byte-order mark first, which goes."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}); save it again as UTF-8"
        ) from None
