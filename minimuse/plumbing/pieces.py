"""A finished part as one safetensors file or, if it is large, as several.

    base.1-of-3.safetensors   base.2-of-3.safetensors   base.safetensors

NAME.safetensors is there as soon as the part is complete. Of a large part it is the last piece, and
its header lists the other pieces with their SHA-256. A model that is spread over several processes
is gathered one piece at a time, so that it need not fit into the memory of any of them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from minimuse.plumbing import collectives
from minimuse.plumbing.files import copy_file, file_sha256, save_tensors

PIECE_BYTES = 2**29


def save_in_pieces(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors to `path` and, if they take more than PIECE_BYTES, to other files beside it.

    Collective. Raises a ValueError if a tensor is not finite. `path` itself is written last.
    """
    *others, last = pieces_of(tensors, PIECE_BYTES)
    names = [f"{path.stem}.{i + 1}-of-{len(others) + 1}{path.suffix}" for i in range(len(others))]
    for name, piece in zip(names, others, strict=True):
        save_tensors(path.with_name(name), piece)
    rank, _ = collectives.rank_and_size()
    metadata = None
    with collectives.fail_together():
        if rank == 0 and names:
            digests = {name: file_sha256(path.with_name(name)) for name in names}
            metadata = {"others": json.dumps(digests)}
    save_tensors(path, last, metadata)
    if rank == 0:
        remove_others(path, names)


def pieces_of(tensors: dict[str, torch.Tensor], largest: int) -> Iterator[dict[str, torch.Tensor]]:
    """Cut a dict into consecutive ones of at most so many bytes; a larger tensor is one alone."""
    piece: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if piece and size + tensor.nbytes > largest:
            yield piece
            piece, size = {}, 0
        piece[name] = tensor
        size += tensor.nbytes
    yield piece


def remove_others(path: Path, names: list[str]) -> None:
    """Remove pieces that an earlier part of this name has left, of another size."""
    for other in path.parent.glob(f"{path.stem}.*-of-*{path.suffix}"):
        if other.name not in names:
            other.unlink(missing_ok=True)


def others_of(path: Path) -> dict[Path, str]:
    """The other pieces of a part, and the SHA-256 of each; none if it is one file."""
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    digests = json.loads(header.get("others", "{}"))
    if not isinstance(digests, dict):
        raise ValueError(f"its other pieces are {digests!r}")
    # Path(...).name drops folders, so that a header cannot point outside its own directory.
    return {path.with_name(Path(name).name): sha256 for name, sha256 in digests.items()}


def load_pieces(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a part, those of other pieces first; a ValueError if one does not belong."""
    tensors: dict[str, torch.Tensor] = {}
    for other, sha256 in others_of(path).items():
        if not other.is_file():
            raise ValueError(f"{other.name} is missing")
        if file_sha256(other) != sha256:
            raise ValueError(f"{other.name} is damaged, or of another training")
        tensors |= load_file(other)
    return tensors | load_file(path)


def copy_part(source: Path, path: Path) -> None:
    """Copy a part, with all its pieces, to another directory under the same name."""
    for other in others_of(source):
        copy_file(other, path.with_name(other.name))
    copy_file(source, path)
