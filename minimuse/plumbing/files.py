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


def write_whole(path: Path, write: Callable[[Path], None], before: Path | None = None) -> None:
    """write(a path aside), then put it at `path`: a reader sees the old file or the new one, never half of one. The old goes to `before`."""
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        write(new := aside / path.name)
        with open(new, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name and nothing in it
        if before and path.is_file():
            os.replace(path, before)
        os.replace(new, path)
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"{path} cannot be written ({error}); what was written before is whole: make room"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, data: dict) -> None:
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(data, indent=1) + "\n"))


def save_tensors(
    path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    before: Path | None = None,
) -> None:
    """One safetensors file; if it has one to go `before` it, with a digest. Of several processes all gather, and the first writes."""
    held, writes = {}, collectives.rank_and_size()[0] == 0
    for name, tensor in tensors.items():
        tensor = collectives.gather(tensor.detach())
        held |= {name: tensor.cpu().contiguous().clone()} if writes else {}
    if broken := [k for k, v in held.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(
            f"{path} is not written: {broken[0]} is not finite; what was there before is kept. Lower the learning rate, in another --out"
        )
    if writes:
        header = metadata | {"sha256": digest(held, metadata)} if before else metadata
        write_whole(path, lambda temporary: save_file(held, temporary, header), before)
    collectives.sum_over_processes(torch.zeros(()))  # nobody goes on before it is there


def digest(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    """SHA-256 of all that a file says."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        found.update(
            f"{name} {x.dtype} {[*x.shape]}".encode() + x.reshape(-1).view(torch.uint8).numpy().data
        )
    return found.hexdigest()
