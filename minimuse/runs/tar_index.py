"""The indices of tar files, made once and kept beside the model that is trained on them.

    OUT/index/000000.safetensors    the index of the first tar file, see `datasets/tars.py`
    OUT/images.json                 the manifest: what each tar file holds, see `manifest.py`

An index is made again if the size or the date of its tar file changes. Files are mapped into
memory: what a process does not look up takes none of its memory. The manifest has a hash of the
names, sizes and captions of all images in a tar file; their pixels are not compared.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from minimuse.datasets.progress import bar
from minimuse.datasets.stream import Stream, Tar, checked_stream, say_left_out
from minimuse.datasets.tars import Index, find_tars, index_tar
from minimuse.plumbing.files import write_whole
from minimuse.runs import kept
from minimuse.runs.manifest import Manifest, can_write, is_same, note, reference

FORMAT = "1"
# What the two hashes in a manifest are of.
CONTENTS = ("names", "name_starts", "size", "owns")
CAPTIONS = ("captions", "caption_starts")


class Kept(NamedTuple):
    """An index, and what is noted beside it."""

    tar: Tar
    entry: dict[str, Any]  # of the manifest
    left_out: int  # samples that cannot be used
    problems: list[str]  # what is wrong with the first of them


def open_stream(
    out: Path, data: str, side: int, smallest: int, skip: bool = False, strict: bool = True
) -> Stream:
    """All images of tar files, of both splits, in the files' order; what is indexed is kept in OUT.

    side, smallest, skip: see `datasets.load`. strict: refuse tar files that differ from those that
    the model in OUT was begun with; otherwise only warn.
    Collective: every rank must call this. Raises a ValueError or FileNotFoundError.
    """
    find_tars(data)  # before a folder is made

    def read() -> Stream:
        return read_in_turn(out, data, side, smallest, skip, strict)

    return kept.first_process_first(out, read)


def read_in_turn(
    out: Path, data: str, side: int, smallest: int, skip: bool, strict: bool
) -> Stream:
    """The images; bring what OUT keeps up to date."""
    root = Path(data)
    known = reference(out, root)
    begun = bool(known) and (out / "config.json").is_file()
    indices = read_indices(out, data)
    for index in indices:
        say_left_out(index.tar.path, index.problems, index.left_out, skip)
    stream = checked_stream([index.tar for index in indices], side, smallest, skip)
    files: Manifest = {}
    for name, index in zip(names_of(indices), indices, strict=True):
        files[name] = index.entry
    if not begun or is_same(out, root, known, files, strict):
        note(out, root, files, known)
    return stream


def names_of(indices: list[Kept]) -> list[str]:
    """What a manifest calls tar files: their paths inside the folder that all of them are in."""
    paths = [index.tar.path for index in indices]
    folder = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(folder).as_posix() for path in paths]


def read_tars(out: Path, data: str) -> list[Tar]:
    """All tar files with their indices, from OUT if it has them. Not collective."""
    return [index.tar for index in read_indices(out, data)]


def read_indices(out: Path, data: str) -> list[Kept]:
    """The indices of all tar files, each from OUT, or made and written there."""
    indices = []
    for number, path in enumerate(bar(find_tars(data), "indexing tar files", "files")):
        file = out / "index" / f"{number:06}.safetensors"
        stat = path.stat()
        dates = [stat.st_mtime_ns, stat.st_ctime_ns]
        about = {"format": FORMAT, "tar": path.name, "size": stat.st_size, "dates": dates}
        index = read_index(file, path, about)
        if index is None:
            index = make_index(path, about)
            if can_write(out):
                write_index(file, index, about)
                # The file is mapped, and takes no memory until something is looked up.
                index = read_index(file, path, about) or index
        indices.append(index)
    return indices


def make_index(path: Path, about: dict[str, Any]) -> Kept:
    """Read a tar file once, from its beginning to its end."""
    index, problems = index_tar(path)
    entry = {
        "size": about["size"],
        "dates": about["dates"],
        "sha256": digest(index, CONTENTS),
        "captions": digest(index, CAPTIONS)[:16],
    }
    return Kept(Tar(path, index), entry, len(problems), problems[:1])


def digest(index: Index, names: tuple[str, ...]) -> str:
    """SHA-256 of some tensors of an index."""
    sha = hashlib.sha256()
    for name in names:
        sha.update(index[name].numpy().tobytes())
    return sha.hexdigest()


def write_index(file: Path, index: Kept, about: dict[str, Any]) -> None:
    """Write an index into OUT, with what is noted beside it in the header."""
    noted = {"entry": index.entry, "left_out": index.left_out, "problems": index.problems}
    header = {"about": json.dumps(about), "noted": json.dumps(noted)}
    write_whole(file, lambda temporary: save_file(index.tar.index, temporary, header))


def read_index(file: Path, path: Path, about: dict[str, Any]) -> Kept | None:
    """The index in a file; None if there is none, if it is damaged or of another tar file."""
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
        if json.loads(header["about"]) != about:
            return None
        return Kept(Tar(path, load_file(file)), **json.loads(header["noted"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
