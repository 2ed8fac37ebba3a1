"""Write files so that a crash, a full disk or a power cut never leaves half a file.

A file is written under a temporary name, flushed to the disk, and then renamed. Readers see the old
file or the new one. Only a log grows in place: see `append_line`. `check_writable` tells before the
work whether a file can be written.
"""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from minimuse.plumbing import collectives

# `check_writable` writes so many: a full disk may still take a file of no length.
PROBE_BYTES = 2**16


def write_json(path: Path, data: dict) -> None:
    """Write a dict as JSON."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image in the format that the name ends in; `options` are those of `Image.save`."""
    try:
        write_whole(path, lambda temporary: image.save(temporary, **options))
    except ValueError as error:
        # For example, a WebP has at most 16,383 pixels on a side.
        raise ValueError(f"{path} cannot be written ({error}); write another format") from None


def copy_file(source: Path, path: Path) -> None:
    """Copy the contents of a file, but not its mode: it may be read-only."""
    write_whole(path, lambda temporary: shutil.copyfile(source, temporary))


def save_tensors(
    path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    before: Path | None = None,
) -> None:
    """Write a safetensors file. Collective: all ranks gather the tensors, the first one writes.

    before: keep the old file under this name. The header then gets a SHA-256 digest of the file's
        contents, so that damage is noticed.
    Raises a ValueError, and writes nothing, if a tensor is not finite. If the first process cannot
    write the file, every process raises an error.
    """
    rank, _ = collectives.rank_and_size()
    whole = {}
    for name, tensor in tensors.items():
        tensor = collectives.gather(tensor.detach())
        if rank == 0:
            whole[name] = tensor.cpu().contiguous().clone()
    # No process may read the file before it is complete, so all wait for the first.
    with collectives.fail_together():
        if rank == 0:
            write_tensors(path, whole, metadata, before)


def write_tensors(
    path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    before: Path | None = None,
) -> None:
    """`save_tensors` of this process alone; its tensors are whole, contiguous and on the CPU."""
    check_finite(path, tensors)
    header = metadata
    if before is not None:
        header = {**metadata, "sha256": digest(tensors, metadata)}
    write_whole(path, lambda temporary: save_file(tensors, temporary, header), before)


def check_finite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raise a ValueError if a tensor, to be written to `path`, has a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{path} is not written: {name} is not finite; a file from before is kept. In "
                "training, a lower learning rate may help, in another --out"
            )


def write_whole(path: Path, write: Callable[[Path], object], before: Path | None = None) -> None:
    """Call `write(temporary path)`, then rename the result to `path`; an old file goes to `before`.

    The file gets the mode that the process's umask says. If `path` is a link, the file that it
    leads to is replaced. Raises an OSError that names the file if it cannot be written; the old
    file is then kept.
    """
    try:
        target = path
        if before is None and path.is_symlink():
            target = path.resolve()
        with temporary_folder(target) as folder:
            temporary = folder / target.name
            # A library may give its file another mode, such as 600: take that of a new file.
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            write(temporary)
            os.chmod(temporary, mode)
            with open(temporary, "rb+") as file:
                # Without this, a power cut could leave the new name with nothing in the file.
                os.fsync(file.fileno())
            if before is not None and path.is_file():
                os.replace(path, before)
            os.replace(temporary, target)
    except (SafetensorError, OSError) as error:
        raise write_error(path, error) from None


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, in UTF-8 and in one write: other processes may append, too.

    A line that a killed process has left unfinished is ended first. Raises an OSError that names
    the file if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            data = f"{line}\n".encode()
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    data = b"\n" + data
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise write_error(path, error) from None


def write_error(path: Path, error: Exception) -> OSError:
    """The error of a file that cannot be written: its name, the reason and the remedy."""
    return OSError(
        f"{path} cannot be written ({error}); files written before are intact: {remedy(error)}"
    )


def remedy(error: Exception) -> str:
    """What to do about an error in writing."""
    # safetensors does not pass on the error's number.
    if re.search("no space|too large|quota", str(error), re.IGNORECASE):
        return "make room"
    return "see that its folder is there, and that you may write to it"


def check_writable(*paths: Path) -> None:
    """Raise an OSError if one of these files cannot be written, now that no work is lost yet.

    They may lie in folders that do not exist yet. Writes some bytes beside them, and removes them.
    """
    tried = set()
    for path in paths:
        try:
            check_place(path)
            target = path.resolve()
            folder = target.parent
            while not folder.exists():
                folder = folder.parent
            # One file stands for all in this folder whose names are as long.
            key = (folder, len(os.fsencode(target.name)))
            if key not in tried:
                with temporary_folder(folder / target.name) as temporary:
                    (temporary / target.name).write_bytes(bytes(PROBE_BYTES))
                tried.add(key)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(f"{path} cannot be written ({reason}); give another place") from None


def check_place(path: Path) -> None:
    """Raise an OSError if `path` cannot be the name of a file, or is something else already."""
    if os.path.exists(path):
        if not path.is_file():
            raise OSError("it is no file")
        if not os.access(path, os.W_OK):
            raise OSError("it is read-only")
    # Also raises an error if a part of the path is a file, or has too long a name.
    with suppress(FileNotFoundError):
        os.stat(path)
    for folder in path.parents:
        if folder.is_symlink() and not folder.exists():
            raise OSError(f"{folder} is a link to a folder that does not exist")


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, for a file that is not complete; it is removed at the end.

    First removes those of processes that were killed while they wrote this file.
    """
    # A name has at most 255 bytes, and `path` may use them all. Several machines may share a disk.
    name = os.fsencode(path.name)[:120].decode("utf-8", "ignore")
    prefix = f"{name}.{platform.node()[:40]}-"
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        number = old.name.removeprefix(prefix).split("-")[0]
        if number.isdecimal() and has_ended(int(number)):
            shutil.rmtree(old, ignore_errors=True)
    folder = path.with_name(f"{prefix}{os.getpid()}-{threading.get_ident()}.tmp")
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def has_ended(process: int) -> bool:
    """Whether there is no process of this number. Windows does not tell: there it is False."""
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)  # sends no signal
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    """SHA-256 of a header and of the names, types, shapes and values of tensors."""
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
