"""Where data, text encoders and models lie: a name that ships with minimuse, or a folder.

"emoji", "shapes" and "t5-toy" are names. Everything else is a path, also "./emoji" and "emoji/", or
a pattern of paths, such as "shards/{000000..000331}.tar".
A path is stored absolute, with links resolved, and so means the same in every directory. Beside
it stands the way there from the model's own directory: both may be moved together, or one may lie
inside the other.
"""

import os
import unicodedata
from pathlib import Path
from typing import Any

from minimuse.data import ASSETS
from minimuse.datasets import SPLITS
from minimuse.datasets.tars import has_tars, is_tars

DATA_NAMES = tuple(name for name in SPLITS if name != "folder")


def shipped(name: str | Path, file: str) -> Path | None:
    """The directory that ships under this name, if it has such a file; None for a path."""
    name = str(name)
    if name in ("", ".", "..") or Path(name).name != name:
        return None
    directory = ASSETS / name
    return Path(str(directory)) if (directory / file).is_file() else None


def data_place(name: str | Path) -> str:
    """ "shapes", "emoji", or the absolute path of a folder."""
    return str(name) if str(name) in DATA_NAMES else absolute(name, "--data")


def text_place(name: str | Path) -> str:
    """The name of a text encoder that ships, or the absolute path of its directory."""
    return str(name) if shipped(name, "spiece.model") else absolute(name, "--t5")


def model_place(name: str | Path) -> str:
    """The absolute path of a model's directory, or the name of a model that ships."""
    is_here = (Path(name).expanduser() / "config.json").is_file()
    return absolute(name, "--model") if is_here else str(name)


def absolute(path: str | Path, flag: str) -> str:
    """The absolute path of what is there, with links resolved; "~" is the home directory."""
    text = os.fspath(path)
    if not text.strip():
        raise ValueError(f"{flag} is empty; give a name or a path, or leave {flag} out")
    # macOS decomposes "é" in the names of files; they keep that where they are copied to.
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    for candidate in (text, *forms, os.path.expanduser(text)):
        if os.path.lexists(candidate):
            return os.path.realpath(candidate)
    return os.path.realpath(os.path.expanduser(text))


def check_apart(out: Path, data: str) -> None:
    """Raise a ValueError if images are to be written among those of a data set."""
    if data not in DATA_NAMES and os.path.realpath(out) == data:
        raise ValueError(
            f"--out {out} is the folder of images; give another, such as {out / 'out'}: "
            "what is written there would be taken for an image of yours"
        )


def with_ways(directory: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The contents of config.json, with the way from its directory to data and text encoder."""
    ways = {}
    for key, place in (("data", about["data"]), ("text", about["text"]["name"])):
        if os.path.isabs(place):
            try:
                way = os.path.relpath(place, os.path.realpath(directory))
            except ValueError:  # another drive of Windows
                continue
            ways[key] = Path(way).as_posix()
    return about | {"ways": ways} if ways else about


def located(directory: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The contents of config.json with paths that exist now, where they can be found."""
    ways = about.get("ways", {})
    found = {key: value for key, value in about.items() if key != "ways"}
    if about["data"] not in DATA_NAMES:
        found["data"] = find_folder(directory, about["data"], ways.get("data"))
    text = about["text"]
    if not shipped(text["name"], "spiece.model"):
        name = find_folder(directory, text["name"], ways.get("text"))
        found["text"] = text | {"name": name}
    return found


def find_folder(directory: Path, place: str, way: str | None) -> str:
    """The folder at `place`, else the one that lies as before beside the directory of the model.

    Older versions stored a path as it was typed: relative to where the command was run, which was
    the directory here or one around the model's.
    """
    candidates = [Path(place)]
    if way is not None:
        candidates.append(directory / way)
    elif not os.path.isabs(place):
        candidates += [parent / place for parent in Path(os.path.realpath(directory)).parents]
    for candidate in candidates:
        if candidate.is_dir() or (is_tars(candidate) and has_tars(candidate)):
            return os.path.realpath(candidate)
    return place
