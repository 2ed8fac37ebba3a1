"""The manifest of a folder: which images and captions a model is trained on.

    OUT/images.json     of each image: size and dates of its file, hashes of file and captions

The manifest is what a model goes on with. The folder may move, be copied or get hidden files; but
if an image or a caption that is used has changed, is new or is gone, it is named, and refused.
A file is hashed again only if its size or a date changed. Of tar files, the manifest has an entry
for each tar file, and not for each image: see `tar_index.py`.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from minimuse.datasets.captions import Pair, find_pairs
from minimuse.datasets.progress import bar
from minimuse.plumbing import collectives
from minimuse.plumbing.files import write_json
from minimuse.plumbing.messages import warn
from minimuse.plumbing.parts import read_about
from minimuse.plumbing.places import DATA_NAMES

MOST = 4  # so many changes are named

# What the manifest says of each image, by its name: "size" and "dates" (modified, and changed in
# any way) of its file, "sha256" of the file, "captions" (their hash), and why it is "unreadable",
# if it is left out.
Manifest = dict[str, dict[str, Any]]


def manifest_path(out: Path) -> Path:
    return out / "images.json"


def can_write(out: Path) -> bool:
    """Whether files can be written into OUT, or OUT can be made."""
    return os.access(out, os.W_OK) if out.exists() else True


def reference(out: Path, root: Path) -> Manifest:
    """The manifest in OUT: of the folder that the model was begun with, if one was begun.

    Older versions wrote none. Then it is made from the folder in config.json, if that is another.
    """
    path = manifest_path(out)
    if path.is_file():
        return read_manifest(path)
    if not (out / "config.json").is_file():
        return {}
    before = read_about(out)["data"]
    if before in DATA_NAMES or Path(before) == root:
        return {}
    if not Path(before).is_dir():
        warn(
            f"{before} is gone, and {out} is of a version that did not note what it holds; "
            f"taking {root} to be the same"
        )
        return {}
    return {} if os.path.samefile(before, root) else describe_files(find_pairs(Path(before)), {})


def read_manifest(path: Path) -> Manifest:
    """The manifest of a file; a ValueError names the file if it is damaged."""
    try:
        files = json.loads(path.read_text())["files"]
        for entry in files.values():
            if not {"size", "dates", "sha256", "captions"} <= entry.keys():
                raise ValueError("an image lacks an entry")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and the folder is taken as it is now"
        ) from None
    return files


def note(out: Path, root: Path, files: Manifest, known: Manifest) -> None:
    """Write the manifest into OUT, if it is not the one that is known already."""
    rank, _ = collectives.rank_and_size()
    if files != known and rank == 0 and can_write(out):
        write_json(manifest_path(out), {"folder": str(root), "files": files})


def describe_files(pairs: dict[str, Pair], known: Manifest) -> Manifest:
    """The manifest of a folder. `known` has hashes of files that have not changed since."""
    files = {}
    for name in bar(sorted(pairs), "checking images"):
        files[name] = describe_file(pairs[name], known.get(name, {}))
    return files


def describe_file(pair: Pair, known: dict[str, Any]) -> dict[str, Any]:
    """The manifest's entry of one image; its file is read if size or dates differ from `known`."""
    stat = pair.path.stat()
    entry: dict[str, Any] = {"size": stat.st_size, "dates": [stat.st_mtime_ns, stat.st_ctime_ns]}
    if all(known.get(key) == value for key, value in entry.items()):
        entry["sha256"] = known["sha256"]
    else:
        entry["sha256"] = sha256_of(pair.path)
    if "unreadable" in known:
        # Why it could not be read; "" of a file that has changed since, and may be right now.
        same = entry["sha256"] == known["sha256"]
        entry["unreadable"] = known["unreadable"] if same else ""
    captions = "\n".join(pair.captions)
    entry["captions"] = hashlib.sha256(captions.encode()).hexdigest()[:16]
    return entry


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file; of one that may not be read, none: decoding it says why."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "cannot be read"


def is_same(out: Path, root: Path, known: Manifest, files: Manifest, strict: bool) -> bool:
    """Whether a folder holds what OUT was begun with; if not, raise a ValueError, or only warn."""
    different = changes(known, files)
    if not different:
        return True
    message = f"{root} differs from the images that {out} was begun with: {different}"
    if strict:
        raise ValueError(f"{message}; make the folder as it was, or train in another --out")
    warn(message)
    return False


def changes(known: Manifest, files: Manifest) -> str:
    """What differs between two folders, such as "a.png is new"; "" if nothing that is used does."""
    found = []
    for name in sorted(known.keys() | files.keys()):
        before, now = known.get(name, {}), files.get(name, {})
        if "unreadable" in before or "unreadable" in now:
            continue  # left out, or repaired
        if not now:
            found.append(f"{name} is gone")
        elif not before:
            found.append(f"{name} is new")
        elif before["sha256"] != now["sha256"]:
            found.append(f"{name} has changed")
        elif before["captions"] != now["captions"]:
            found.append(f"the captions of {name} have changed")
    more = [f"{len(found) - MOST} more"] if len(found) > MOST else []
    return ", ".join(found[:MOST] + more)


def digest_of_images(out: Path) -> str:
    """A hash of all images and captions in OUT's manifest, without those that are left out."""
    path = manifest_path(out)
    files = read_manifest(path) if path.is_file() else {}
    used = []
    for name, entry in sorted(files.items()):
        if "unreadable" not in entry:
            used.append([name, entry["sha256"], entry["captions"]])
    return hashlib.sha256(json.dumps(used).encode()).hexdigest()[:16]
