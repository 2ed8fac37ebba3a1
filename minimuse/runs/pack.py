"""Pack a folder of images into tar files, from which a training may read what fits in no memory.

    minimuse pack --data my-images --out my-tars    # then: minimuse train all --data my-tars ...

The files are in WebDataset's format (`datasets/tars.py`) and hold the image files as they are, with
a text file of captions for each. The names stay, and so does what is held out.
"""

import io
import os
import tarfile
from pathlib import Path, PurePosixPath

from minimuse.datasets.captions import Pair, find_pairs
from minimuse.datasets.folder import check_is_folder, warn_of_unread_files
from minimuse.datasets.progress import bar
from minimuse.plumbing.device import stable_hash
from minimuse.plumbing.files import temporary_folder, write_whole
from minimuse.plumbing.ranges import check_arguments


def pack(root: Path, out: Path, images_per_tar: int) -> int:
    """Write tar files of all images of a folder into a new folder `out`; return how many.

    Images come in a random order that follows from their names. So every tar file has some of all
    kinds, and images that follow each other in training are not alike.
    The folder appears when it is complete. Raises a ValueError or an OSError.
    """
    check_arguments(images_per_tar=images_per_tar)
    check_is_folder(root)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out} exists already and is not empty; give another --out")
    pairs = find_pairs(root)
    if not pairs:
        raise ValueError(f"{root} has no images to pack; give a folder of images (--data)")
    warn_of_unread_files(root)
    names = packed_names(pairs)
    order = sorted(pairs, key=stable_hash)
    parts = [order[i : i + images_per_tar] for i in range(0, len(order), images_per_tar)]
    with temporary_folder(out) as folder:
        for number, part in enumerate(bar(parts, "packing", "files")):
            files = {names[name]: pairs[name] for name in part}
            path = folder / "tars" / f"{number:06}.tar"
            write_whole(path, lambda temporary, files=files: write_tar(temporary, files))
        if out.is_dir():
            out.rmdir()  # Windows renames nothing to the name of a folder
        os.replace(folder / "tars", out)
    return len(parts)


def packed_names(pairs: dict[str, Pair]) -> dict[str, str]:
    """What each image is called in a tar file: there, only the ending may have a dot before it.

    Raises a ValueError if two images would get the same text file.
    """
    names = {}
    seen: dict[PurePosixPath, str] = {}
    for name in sorted(pairs):
        path = PurePosixPath(name)
        path = path.with_name(path.stem.replace(".", "_") + path.suffix)
        key = path.with_suffix("")
        if key in seen:
            raise ValueError(
                f"{seen[key]} and {name} would share {key}.txt in a tar file; rename one of them"
            )
        seen[key] = name
        names[name] = str(path)
    return names


def write_tar(path: Path, files: dict[str, Pair]) -> None:
    """Write images and their captions into a tar file; the same ones give the same bytes."""
    with tarfile.open(path, "w") as tar:
        for name, pair in files.items():
            text = "\n".join(pair.captions) + "\n"
            add(tar, name, pair.path.read_bytes())
            add(tar, str(PurePosixPath(name).with_suffix(".txt")), text.encode())


def add(tar: tarfile.TarFile, name: str, contents: bytes) -> None:
    """Add a file to a tar file, with no date and no owner."""
    info = tarfile.TarInfo(name)
    info.size = len(contents)
    tar.addfile(info, io.BytesIO(contents))
