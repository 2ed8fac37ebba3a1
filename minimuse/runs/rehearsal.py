"""Try settings before they are trained: do the parts fit each other, and into memory?

    check_trainable(config, STAGES, "shapes", "cpu")    # a ValueError or MemoryError, or nothing

Every part is built on PyTorch's meta device, where a tensor has a shape and no memory, and runs
once for one image there. Otherwise what does not fit would end a training when its stage begins,
perhaps hours later. If memory runs out all the same, `explain_out_of_memory` says what to change.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from minimuse.plumbing import collectives
from minimuse.plumbing.config import Config
from minimuse.plumbing.parts import PARTS, TOKEN_PARTS, build
from minimuse.t5_frozen import MAX_TOKENS

GB = 10**9
# Weights, gradients and their average in float32, which every optimizer needs.
TRAINING_BYTES = 12
# The text encoder is not loaded yet. Only shapes count, and those fit for any width.
TEXT_WIDTH = 64
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_trainable(config: Config, stages: tuple[str, ...], data: str, device: str) -> None:
    """Raise an error if parts do not fit each other, or the given stages into memory.

    A ValueError or MemoryError names the setting and the size that fits.
    """
    room = memory_of(device)
    if data == "shapes":
        check_scenes(config, room)
    for name in PARTS:
        with torch.device("meta"):
            part = build(name, config, TEXT_WIDTH)
        if name in stages:
            check_part(name, part, config, room)
            saved = saved_bytes(name, part, config)
            if not device.startswith("cuda"):  # attention on a GPU saves much less
                check_batch(name, saved, config, room)


def memory_of(device: str) -> float:
    """Bytes of memory of a device, of all processes together; infinity if it is not known."""
    _, processes = collectives.rank_and_size()
    if device.startswith("cuda"):
        return processes * torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return float("inf")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if CGROUP_LIMIT.is_file():  # a container may have less than its machine
        limit = CGROUP_LIMIT.read_text().strip()
        if limit.isdecimal():
            total = min(total, int(limit))
    return total


def check_scenes(config: Config, room: float) -> None:
    """Raise a MemoryError if the drawn scenes, all held as bytes, are larger than the memory."""
    bytes_each = 3 * config.tokenizer_hi.side**2
    if config.scenes * bytes_each > room:
        raise MemoryError(
            f"scenes is {config.scenes}, which take {gigabytes(config.scenes * bytes_each)}; "
            f"there are {gigabytes(room)}: give at most {int(room // bytes_each)}"
        )


def check_part(name: str, part: nn.Module, config: Config, room: float) -> None:
    """Raise a MemoryError if a part cannot be trained in this memory whatever the batch is."""
    parameters = sum(p.numel() for p in part.parameters())
    constants = sum(b.numel() * b.element_size() for b in part.buffers())
    needed = TRAINING_BYTES * parameters + constants
    if needed > room:
        settings = {"base": config.base, "superres": config.superres}.get(name)
        where = f"{name}={settings}" if settings else f"the settings of {name}"
        raise MemoryError(
            f"{name} has {parameters / 1e6:,.0f} million parameters: training takes "
            f"{gigabytes(needed)} at least, and there are {gigabytes(room)}; make it smaller "
            f"({where})"
        )


def check_batch(name: str, saved: int, config: Config, room: float) -> None:
    """Raise a MemoryError if what a training step keeps of its batch is larger than the memory.

    `saved` is what it keeps of one image, in float32. In bfloat16 it is half of that, so this
    refuses only what can never fit.
    """
    batch = getattr(config.stages, name).batch
    at_once = batch
    if name in TOKEN_PARTS:
        if config.scale.recompute:
            return  # keeps almost nothing
        at_once = min(batch, config.scale.micro_batch or batch)
    fits = int(room // (saved / 2))
    if at_once > fits:
        what = f"stages.{name}.batch is {batch}"
        if at_once < batch:
            what = f"scale.micro_batch is {at_once}"
        raise MemoryError(
            f"{what}, and a step of {name} keeps {gigabytes(saved / 2)} of each image; there are "
            f"{gigabytes(room)}: give at most {max(1, fits)}, or make the part smaller"
        )


def saved_bytes(name: str, part: nn.Module, config: Config) -> int:
    """Bytes that the forward pass of one image keeps for the backward pass, in float32.

    `part` is on the meta device. A part that cannot run raises the error that training would.
    """
    weights = {p.untyped_storage()._cdata for p in (*part.parameters(), *part.buffers())}
    kept: dict[int, torch.Tensor] = {}  # by storage: views share one, and it must not be freed

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    run = forward_pass(name, part, config)
    with torch.device("meta"), saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def forward_pass(name: str, part: nn.Module, config: Config) -> Callable[[], object]:
    """A function that runs a part for one image, as in training.

    The loss of images is left out: their discriminator keeps more, and `plumbing/config.py` checks
    that they are large enough for it.
    """

    def run() -> object:
        if name == "decoder":
            high = config.tokenizer_hi
            grid = config.tokenizer.side // high.factor
            latents = torch.zeros(1, high.code_width, grid, grid)
            return part(latents).square().mean()
        if name in ("tokenizer", "tokenizer_hi"):
            side = config.tokenizer.side
            images = torch.zeros(1, 3, side, side)
            return part.autoencode(images).square().mean()
        text = torch.zeros(1, MAX_TOKENS, TEXT_WIDTH)
        visible = torch.ones(1, MAX_TOKENS, dtype=torch.bool)
        low = torch.zeros(1, config.tokenizer.grid**2, dtype=torch.long)
        if name == "base":
            return part(low, part.context(text, visible))
        places = training_places(config)
        context = part.context(text, visible, low, places)
        return part(torch.zeros_like(places), context)

    return run


def training_places(config: Config) -> torch.Tensor:
    """As many token numbers (1, M) as a training step of super-resolution takes of an image."""
    grid = config.tokenizer_hi.grid
    piece = config.superres.piece or grid
    side = piece * max(1, grid // piece // 2)
    return torch.zeros(1, side**2, dtype=torch.long)


@contextmanager
def explain_out_of_memory(name: str, config: Config) -> Iterator[None]:
    """Turn an out-of-memory error into a MemoryError that says which settings need less."""
    batch = getattr(config.stages, name).batch
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = f"lower stages.{name}.batch={batch} in another --out"
        if name in TOKEN_PARTS:
            half = max(1, (config.scale.micro_batch or batch) // 2)
            remedy = f"say scale.micro_batch={half} scale.recompute=True with --resume, or {remedy}"
        raise MemoryError(f"too little memory to train {name}; {remedy}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is about memory. PyTorch raises RuntimeErrors for other reasons, too."""
    if isinstance(error, MemoryError):
        return True
    return re.search("out of memory|allocate memory|bad_alloc", str(error)) is not None


def gigabytes(count: float) -> str:
    """Bytes in words, such as "1.5 GB"."""
    return f"{count / GB:,.3g} GB"
