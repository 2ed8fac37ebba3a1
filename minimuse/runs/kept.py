"""The images of a folder, decoded once and kept beside the model that is trained on them.

    OUT/images.json          the manifest: what each image is, see `manifest.py`
    OUT/images.safetensors   the decoded images, and the hashes of their files

Whatever needs the images (five processes of `train all`, later stages, `cache`, `evaluate`) finds
them here, by the hash of their files.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from minimuse.data import Images
from minimuse.datasets.captions import Pair, find_pairs
from minimuse.datasets.folder import (
    check_enough,
    check_is_folder,
    read_pixels,
    warn_of_unread_files,
)
from minimuse.datasets.image_files import UnusableImage
from minimuse.datasets.progress import bar
from minimuse.plumbing import collectives
from minimuse.plumbing.files import write_whole
from minimuse.plumbing.lock import one_process_at_a_time
from minimuse.plumbing.messages import warn
from minimuse.runs.manifest import (
    Manifest,
    can_write,
    describe_files,
    is_same,
    manifest_path,
    note,
    reference,
)

T = TypeVar("T")


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

    def read() -> Images:
        rank, _ = collectives.rank_and_size()
        if rank == 0 and not manifest_path(out).is_file():  # told once
            warn_of_unread_files(root)
        return read_in_turn(out, root, pairs, side, smallest, skip, strict)

    return first_process_first(out, read)


def first_process_first(out: Path, read: Callable[[], T]) -> T:
    """Read something that OUT keeps: first the first process, which may write it, then all others.

    Collective: every rank must call this.
    """
    rank, _ = collectives.rank_and_size()
    with in_turn(out) if can_write(out) else nullcontext():
        with collectives.fail_together():
            if rank == 0:
                result = read()
        if rank != 0:
            result = read()
    return result


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
    names = [name for name in files if is_to_be_read(files[name], images, skip)]
    for name in bar(names, "reading images"):
        entry = files[name]
        was_left_out = entry.pop("unreadable", None) is not None
        try:
            if entry["sha256"] not in images:
                images[entry["sha256"]] = read_pixels(pairs[name].path, side, smallest)
        except UnusableImage as error:
            leave_out(entry, error, skip, begun, was_left_out)
            continue
        if was_left_out:
            warn(f"{name} was left out before, and can be read now: it is used from here on")


def is_to_be_read(entry: dict[str, Any], images: dict[str, torch.Tensor], skip: bool) -> bool:
    """Whether an image is not kept yet, or was left out and has to be tried again."""
    if "unreadable" in entry:
        # With `skip`, a file that has not changed stays left out.
        return not (skip and entry["unreadable"])
    return entry["sha256"] not in images


def leave_out(
    entry: dict[str, Any],
    error: UnusableImage,
    skip: bool,
    begun: Path | None,
    was_left_out: bool,
) -> None:
    """Mark an image as unreadable; without `skip`, raise the error with a remedy."""
    if skip:
        entry["unreadable"] = str(error)
        warn(f"left out: {error}")
        return
    if begun is None:
        raise ValueError(
            f"{error}, or remove it and its caption "
            "(skip_unreadable=True leaves out all such images)"
        ) from None
    reason, _ = error.args
    if was_left_out:
        raise ValueError(
            f"{reason}. {begun} was begun without this image: train with --resume "
            "skip_unreadable=True, which leaves it out again, or remove it and its caption"
        ) from None
    raise ValueError(
        f"{reason}. {begun} was begun with this image: put the old file back, or train with "
        "--resume skip_unreadable=True, which goes on without it"
    ) from None


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
