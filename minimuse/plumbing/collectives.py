"""What the training loop and its files need to know about several processes.

Without `torchrun` there is one process, and every function here is trivial. With it, weights,
gradients and optimizer state are spread over the processes (see `runs/parallel.py`), as DTensors.
Collective operations exchange data between all processes: if one rank does not call, all wait.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def rank_and_size() -> tuple[int, int]:
    """The number of this process (its rank), and how many processes there are."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the parts of all processes. Collective: every rank must call this."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor()
    return tensor


def copy_into(target: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Copy a whole tensor into one that may be spread. Collective: every rank must call this."""
    if hasattr(target, "device_mesh"):
        tensor = dist.tensor.distribute_tensor(tensor, target.device_mesh, target.placements)
    return target.copy_(tensor)


def sum_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The sum of the values of all processes. Collective: every rank must call this."""
    _, processes = rank_and_size()
    if processes > 1:
        dist.all_reduce(value)
    return value


@contextmanager
def fail_together() -> Iterator[None]:
    """Inside, one process works for all; at the end, all wait for it, or fail as it does.

    An error of one process is raised there as it is, and as an OSError in all others, which would
    otherwise wait for ever. Collective: every rank must call this.
    """
    error: BaseException | None = None
    try:
        yield
    except BaseException as caught:
        error = caught
    rank, processes = rank_and_size()
    errors: list[str | None] = [None] * processes
    if dist.is_initialized():
        description = None
        if error is not None:
            description = f"{type(error).__name__}: {error}"
        dist.all_gather_object(errors, description)
    if error is not None:
        raise error
    for number, description in enumerate(errors):
        if description is not None:
            raise OSError(f"process {rank} stops because process {number} failed ({description})")
