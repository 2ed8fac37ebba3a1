"""The checkpoint of a model that is spread over several processes: a folder, not a file.

    base.checkpoint.step-000120/
        shard-00001-model-00001-of-00001.safetensors    what the first process holds
        shard-00002-model-00001-of-00001.safetensors    what the second process holds
        manifest.json                                   step, key, and a SHA-256 of each file

Of a large model each process writes several files, one after the other. No process ever holds the
whole model. PyTorch's distributed checkpoint writes the files in its safetensors storage: each
header says where in the whole tensors its pieces belong. So any number of processes can read them,
one included. (The default storage of PyTorch keeps a pickle, which could run code.) The folder has
a temporary name until the manifest, the last file, is written.

Every function that is called "collective" must be called by all processes.
"""

import glob
import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minimuse.plumbing import collectives, pieces
from minimuse.plumbing.files import check_finite, file_sha256, write_error, write_json

MANIFEST = "manifest.json"


def is_spread(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors are spread over several processes, as DTensors."""
    return any(hasattr(tensor, "device_mesh") for tensor in tensors.values())


def folders_at(path: Path) -> list[Path]:
    """The folders of the checkpoints of a stage, the newest first.

    path: the file that one process would save to, such as OUT/base.checkpoint.safetensors.
    """
    pattern = f"{glob.escape(path.stem)}.step-*"
    found = [p for p in path.parent.glob(pattern) if re.fullmatch(r"\.step-\d+", p.suffix)]
    return sorted(found, key=step_of, reverse=True)


def folder_at(path: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return path.with_suffix(f".step-{step:06}")


def step_of(folder: Path) -> int:
    """The number of steps that the name of a folder tells."""
    return int(folder.suffix.removeprefix(".step-"))


# --- Save ---
def save(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    """Write a checkpoint, each process its own part of the tensors. Collective.

    header: "step", "key" and "format". Raises a ValueError, and writes nothing, if a tensor is not
    finite; an OSError if any process cannot write. The checkpoints from before are then kept.
    """
    folder = folder_at(path, int(header["step"]))
    temporary = folder.with_name(f"{folder.name}.tmp")
    rank, _ = collectives.rank_and_size()
    try:
        with collectives.fail_together():
            check_finite(folder, {name: local(tensor) for name, tensor in tensors.items()})
            if rank == 0:
                make_empty(temporary)
        write_parts(temporary, tensors)
        files = digests_of_all(temporary)
        with collectives.fail_together():
            if rank == 0:
                write_manifest(temporary, header, files)
                # There is one already if this step was saved before.
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
    except BaseException:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    if hasattr(tensor, "to_local"):
        return tensor.to_local()
    return tensor


def make_empty(folder: Path) -> None:
    """Make a folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise write_error(folder, error) from None


def write_parts(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the safetensors files of each process, of at most about 512 MiB. Collective."""
    # Imported where they are needed, here and below, because this takes a second.
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    # PyTorch copies all that goes into a file, and then the file: so let a process write several.
    _, processes = collectives.rank_and_size()
    file_of = {}
    for number, piece in enumerate(pieces.pieces_of(tensors, processes * pieces.PIECE_BYTES)):
        file_of |= dict.fromkeys(piece, number + 1)
    writer = checkpoint.HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=file_of, save_distributed=True
    )
    try:
        checkpoint.save(tensors, storage_writer=writer)
    except CheckpointException as error:
        raise write_error(folder, first_reason(error)) from None


def first_reason(error: Any) -> BaseException:
    """What went wrong in the first of the processes that failed."""
    reason, _ = next(iter(error.failures.values()))
    return reason


def digests_of_all(folder: Path) -> dict[str, str]:
    """The SHA-256 of every part by its file's name; each process reads its own. Collective."""
    rank, processes = collectives.rank_and_size()
    own = {}
    with collectives.fail_together():
        for file in folder.glob(f"shard-{rank + 1:05}-*.safetensors"):
            own[file.name] = file_sha256(file)
    parts = [own] * processes
    dist.all_gather_object(parts, own)
    return {name: sha256 for part in parts for name, sha256 in part.items()}


def write_manifest(folder: Path, header: dict[str, str], files: dict[str, str]) -> None:
    """Write the manifest, with a SHA-256 of its own contents."""
    contents = {"header": header, "files": files}
    write_json(folder / MANIFEST, contents | {"sha256": digest_of(contents)})


def digest_of(contents: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


# --- Read ---
def read(folder: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The header of a checkpoint, and its tensors without their values, on the meta device.

    Collective. First compares every file with the manifest; each process reads some of them. All
    processes raise the same ValueError if one of them finds damage.
    """
    rank, processes = collectives.rank_and_size()
    header, fault = {}, ""
    try:
        header, files = read_manifest(folder)
        check_parts(folder, sorted(files), dict(sorted(files.items())[rank::processes]))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        fault = str(error)
    faults = [fault] * processes
    if processes > 1:
        dist.all_gather_object(faults, fault)
    for found in faults:
        if found:
            raise ValueError(found)
    return header, shapes(folder)


def read_manifest(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The header, and the SHA-256 of each file; a ValueError if the manifest is damaged."""
    try:
        contents = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}") from None
    sha256 = contents.pop("sha256")
    if sha256 != digest_of(contents):
        raise ValueError(f"the SHA-256 of {MANIFEST} is another")
    return contents["header"], contents["files"]


def check_parts(folder: Path, names: list[str], files: dict[str, str]) -> None:
    """Raise a ValueError if not exactly these files are there, or if one has another SHA-256."""
    there = sorted(file.name for file in folder.glob("*.safetensors"))
    if there != names:
        different = sorted({*there} ^ {*names})
        raise ValueError(f"{different[0]} is missing or too many")
    for name, sha256 in files.items():
        if file_sha256(folder / name) != sha256:
            raise ValueError(f"the SHA-256 of {name} is another")


def shapes(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by name, on the meta device: shapes and types."""
    from torch.distributed import checkpoint

    found = checkpoint.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(tensor.size, dtype=tensor.properties.dtype, device="meta")
        for name, tensor in found.items()
    }


def fill(folder: Path, targets: dict[str, torch.Tensor]) -> None:
    """Read values into tensors, which may be spread over another number of processes. Collective.

    Each process reads only what it keeps.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    _, processes = collectives.rank_and_size()
    reader = checkpoint.HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is the intent
        try:
            checkpoint.load(targets, storage_reader=reader, no_dist=processes == 1)
        except CheckpointException as error:
            raise ValueError(f"{folder} cannot be read ({first_reason(error)})") from None
