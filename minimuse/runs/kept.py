"""The images of a folder, decoded once and kept, and the manifest of what a model is trained on.

    OUT/images.json          of each image: size and dates of its file, hashes of file and captions
    OUT/images.safetensors   the decoded images, and the hashes of their files

Whatever needs the images (five processes of `train all`, later stages, `cache`, `evaluate`) finds
them here, by the hash of their files. A file is hashed again only if its size or a date changed.

The manifest is what a model goes on with. The folder may move, be copied or get hidden files; but
if an image or a caption that is used has changed, is new or is gone, it is named, and refused.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from minimuse.data import Images
from minimuse.datasets.captions import Pair, find_pairs, warn_of_unread_texts
from minimuse.datasets.folder import check_enough, check_is_folder, read_pixels
from minimuse.datasets.image_files import UnusableImage
from minimuse.datasets.progress import bar
from minimuse.plumbing import collectives
from minimuse.plumbing.files import write_json, write_whole
from minimuse.plumbing.lock import one_process_at_a_time
from minimuse.plumbing.parts import read_about
from minimuse.plumbing.places import DATA_NAMES

MOST = 4  # so many changes are named

# What the manifest says of each image, by its name: "size" and "dates" (modified, and changed in
# any way) of its file, "sha256" of the file, "captions" (their hash), and why it is "unreadable",
# if it is left out.
Manifest = dict[str, dict[str, Any]]


def manifest_path(out: Path) -> Path:
    return out / "images.json"


def pixels_path(out: Path) -> Path:
    return out / "images.safetensors"


def open_images(
    out: Path, root: Path, side: int, smallest: int, skip: bool = False, strict: bool = True
) -> Images:
    """All images of a folder, of both splits, in the order of their names; decoded at most once.

    side, smallest, skip: see `datasets.load`. strict: refuse a folder that differs from the one
    that the model in OUT was begun with; otherwise only warn.
    Collective: every rank must call this. Raises a ValueError or FileNotFoundError.
    """
    check_is_folder(root)
    pairs = find_pairs(root)
    rank, _ = collectives.rank_and_size()
    with in_turn(out) if can_write(out) else nullcontext():
        with collectives.fail_together():
            if rank == 0:
                images = read_in_turn(out, root, pairs, side, smallest, skip, strict)
        if rank != 0:
            # The first process has decoded all images by now.
            images = read_in_turn(out, root, pairs, side, smallest, skip, strict)
    return images


def can_write(out: Path) -> bool:
    """Whether files can be written into OUT, or OUT can be made."""
    return os.access(out, os.W_OK) if out.exists() else True


@contextmanager
def in_turn(out: Path) -> Iterator[None]:
    """Inside, no other process reads images for this OUT: it waits, and finds them decoded.

    A folder that was made for nothing is removed again.
    """
    existed = out.exists()
    try:
        with one_process_at_a_time(out, "images", wait=-1):
            yield
    except BaseException:
        if not existed:
            with suppress(OSError):  # not empty
                out.rmdir()
        raise


def read_in_turn(
    out: Path,
    root: Path,
    pairs: dict[str, Pair],
    side: int,
    smallest: int,
    skip: bool,
    strict: bool,
) -> Images:
    """The images, from OUT or from their files; bring what OUT keeps up to date."""
    known = reference(out, root)
    if not known:
        warn_of_unread_texts(root)
    begun = bool(known) and (out / "config.json").is_file()
    files = describe_files(pairs, known)
    images = read_kept(out, side)
    kept = set(images)
    try:
        decode(pairs, files, images, side, smallest, skip, out if begun else None)
    except KeyboardInterrupt:
        # What is decoded by now need not be decoded again.
        keep(out, images)
        raise
    same = not begun or is_same(out, root, known, files, strict)
    names = [name for name in files if "unreadable" not in files[name]]
    check_enough(root, names)
    used = {files[name]["sha256"]: images[files[name]["sha256"]] for name in names}
    if same:
        if not kept.issuperset(used):
            keep(out, used)
        note(out, root, files, known)
    pixels = stack([used[files[name]["sha256"]] for name in names], side)
    return Images(pixels, [pairs[name].captions for name in names], names)


def decode(
    pairs: dict[str, Pair],
    files: Manifest,
    images: dict[str, torch.Tensor],
    side: int,
    smallest: int,
    skip: bool,
    begun: Path | None,
) -> None:
    """Decode the images that are not kept yet into `images`, by the SHA-256 of their files.

    Marks those that cannot be read in `files`. begun: the directory of the model that was begun
    with this folder, if one was.
    """
    names = [name for name in files if files[name]["sha256"] not in images]
    if skip:
        names = [name for name in names if "unreadable" not in files[name]]
    for name in bar(names, "reading images"):
        files[name].pop("unreadable", None)
        try:
            images[files[name]["sha256"]] = read_pixels(pairs[name].path, side, smallest)
        except UnusableImage as error:
            leave_out(files[name], error, skip, begun)


def leave_out(entry: dict[str, Any], error: UnusableImage, skip: bool, begun: Path | None) -> None:
    """Mark an image as unreadable; without `skip`, raise the error with a remedy."""
    if skip:
        entry["unreadable"] = str(error)
        warnings.warn(f"left out: {error}", stacklevel=4)
        return
    if begun is None:
        raise ValueError(f"{error} (skip_unreadable=True leaves out all such images)") from None
    reason, _ = error.args
    raise ValueError(
        f"{reason}. {begun} was begun with this image: put the old file back, or train with "
        "--resume skip_unreadable=True, which goes on without it"
    ) from None


# --- The manifest ---
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
        warnings.warn(
            f"{before} is gone, and {out} is of a version that did not note what it holds; "
            f"taking {root} to be the same",
            stacklevel=2,
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
    if "unreadable" in known and entry["sha256"] == known["sha256"]:
        entry["unreadable"] = known["unreadable"]
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
    warnings.warn(message, stacklevel=4)
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


# --- The decoded images ---
def read_kept(out: Path, side: int) -> dict[str, torch.Tensor]:
    """The images (3, side, side) that OUT keeps, by the SHA-256 of their files.

    None, if there is no such file or it is damaged: they are then decoded again.
    """
    try:
        # Not mapped: Windows does not let a mapped file be replaced.
        tensors = load(pixels_path(out).read_bytes())
        pixels, hashes = tensors["pixels"], tensors["sha256"]
    except (SafetensorError, OSError, KeyError):
        return {}
    right = (len(hashes), 3, side, side)
    if tuple(pixels.shape) != right or pixels.dtype != torch.uint8 or hashes.dtype != torch.uint8:
        return {}
    return {bytes(row.tolist()).hex(): pixels[i] for i, row in enumerate(hashes)}


def stack(images: list[torch.Tensor], side: int) -> torch.Tensor:
    """Images (3, side, side) -> (M, 3, side, side)."""
    pixels = torch.empty((len(images), 3, side, side), dtype=torch.uint8)
    for i, image in enumerate(images):
        pixels[i] = image
    return pixels


def keep(out: Path, images: dict[str, torch.Tensor]) -> None:
    """Write images into OUT, by the SHA-256 of their files."""
    rank, _ = collectives.rank_and_size()
    if not images or rank != 0 or not can_write(out):
        return
    side = next(iter(images.values())).shape[-1]
    hashes = [list(bytes.fromhex(sha256)) for sha256 in images]
    tensors = {
        "pixels": stack(list(images.values()), side),
        "sha256": torch.tensor(hashes, dtype=torch.uint8),
    }
    write_whole(pixels_path(out), lambda temporary: save_file(tensors, temporary))
