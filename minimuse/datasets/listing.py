"""The files of a folder of images, and their names. No file is opened here.

The name of an image is its path inside the folder, with "/" and composed Unicode: macOS decomposes
"é" into two letters.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

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


def is_output(entries: list[Path]) -> bool:
    """Whether a folder with these entries is an --out of ours: images in it are drawn ones."""
    names = {path.name for path in entries}
    has_weights = any(path.suffix == ".safetensors" for path in entries)
    is_model = "config.json" in names and (has_weights or "log.jsonl" in names)
    return {"report.json", "report.md"} <= names or is_model


def visible_files(root: Path) -> Iterator[Path]:
    """Yield all files below a folder but hidden ones and those of models and of their reports.

    Folders that are linked come after all others. Each real folder is listed once, and none around
    the root, so links that lead in a circle do no harm.
    """
    seen = {str(folder) for folder in Path(os.path.realpath(root)).parents}
    folders, links = [root], []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        entries = entries_of(folder)
        if folder != root and is_output(entries):
            continue
        for path in entries:
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
