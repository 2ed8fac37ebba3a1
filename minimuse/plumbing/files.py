"""Write files so that a crash, a full disk or a power cut never leaves half a file.

A file is written under a temporary name, flushed to the disk, and then renamed. Readers see the old
file or the new one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from minimuse.plumbing import collectives


def write_json(path: Path, data: dict) -> None:
    """Write a dict as JSON."""
    text = json.dumps(data, indent=1) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text))


def save_tensors(
    path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    before: Path | None = None,
) -> None:
    """Write a safetensors file. Collective: all ranks gather the tensors, the first one writes.

    before: keep the old file under this name. The header then gets a SHA-256 digest of the file's
        contents, so that damage is noticed.
    Raises a ValueError, and writes nothing, if a tensor is not finite.
    """
    rank, _ = collectives.rank_and_size()
    whole = {}
    for name, tensor in tensors.items():
        tensor = collectives.gather(tensor.detach())
        if rank == 0:
            whole[name] = tensor.cpu().contiguous().clone()
    for name, tensor in whole.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{path} is not written: {name} is not finite; the file from before is kept. "
                "Lower the learning rate, in another --out"
            )
    if rank == 0:
        header = metadata
        if before is not None:
            header = {**metadata, "sha256": digest(whole, metadata)}
        write_whole(path, lambda temporary: save_file(whole, temporary, header), before)
    collectives.wait_for_all()  # no process may read the file before it is complete


def write_whole(path: Path, write: Callable[[Path], object], before: Path | None = None) -> None:
    """Call `write(temporary path)`, then rename the result to `path`; an old file goes to `before`.

    Raises an OSError that names the file if it cannot be written; the old file is then kept.
    """
    folder = path.with_name(path.name + ".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / path.name
        write(temporary)
        with open(temporary, "rb+") as file:
            # Without this, a power cut could leave the new name with nothing in the file.
            os.fsync(file.fileno())
        if before is not None and path.is_file():
            os.replace(path, before)
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"{path} cannot be written ({error}); files written before are intact: make room"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def digest(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    """SHA-256 of a header and of the names, types, shapes and values of tensors."""
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
