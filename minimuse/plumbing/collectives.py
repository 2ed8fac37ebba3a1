"""What the training loop and its files need to know about several processes.

Without `torchrun` there is one process, and every function here is trivial. With it, each process
computes some rows of every batch. The weights, gradients and optimizer state of a transformer are
spread over the processes, as DTensors; those of a tokenizer or a decoder are in every process (see
`runs/parallel.py`).
Collective operations exchange data between all processes: if one rank does not call, all wait.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F

T = TypeVar("T")


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


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean of the values of all processes. Collective: every rank must call this."""
    _, processes = rank_and_size()
    return sum_over_processes(value) / processes


def own_rows(rows: torch.Tensor) -> torch.Tensor:
    """Those rows (B / processes, ...) of a batch (B, ...) that this process computes."""
    rank, processes = rank_and_size()
    return rows.chunk(processes)[rank]


def share(mean: torch.Tensor, metrics: dict) -> tuple[torch.Tensor, dict]:
    """The part of this process, which has means over its rows, in the means over the whole batch.

    The parts of all processes add up to those means, as the loss of a batch must (`losses.py`).
    """
    _, processes = rank_and_size()
    return mean / processes, {name: value / processes for name, value in metrics.items()}


def rows_of_all(rows: torch.Tensor) -> torch.Tensor:
    """The rows (B, ...) of all processes, in their order; each has as many, (B / processes, ...).

    Collective: every rank must call this.
    """
    _, processes = rank_and_size()
    if processes == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(processes)]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def copy_from_first(*tensors: torch.Tensor) -> None:
    """Overwrite tensors with those of the first process. Collective: every rank must call this."""
    _, processes = rank_and_size()
    if processes > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def value_of_first(value: T) -> T:
    """The value that the first process has. Collective: every rank must call this."""
    _, processes = rank_and_size()
    if processes == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def each_on_one_process(
    function: Callable[[torch.Tensor], torch.Tensor], matrices: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Apply a function to matrices (m, n) that are spread, but which it must see whole.

    The first process computes the first matrix, the second the second, and so on, at the same time.
    So give as many matrices as there are processes, or fewer. The results are spread as they are.
    Collective: every rank must call this.
    """
    rank, processes = rank_and_size()
    if processes == 1:
        return [function(matrix) for matrix in matrices]
    wholes = [gather_at(owner, matrix) for owner, matrix in enumerate(matrices)]
    mine = None
    if rank < len(matrices):
        mine = function(wholes[rank])
    return [scatter_from(owner, mine, matrix) for owner, matrix in enumerate(matrices)]


def gather_at(owner: int, matrix: torch.Tensor) -> torch.Tensor | None:
    """A spread matrix (m, n), whole, at the process `owner`; None at the others. Collective."""
    rank, processes = rank_and_size()
    part = matrix.to_local()
    # The last processes may have fewer rows, or none.
    part = F.pad(part, (0, 0, 0, rows_of_part(matrix) - len(part))).contiguous()
    if rank != owner:
        dist.gather(part, dst=owner)
        return None
    parts = [torch.empty_like(part) for _ in range(processes)]
    dist.gather(part, parts, dst=owner)
    return torch.cat(parts)[: len(matrix)]


def scatter_from(owner: int, whole: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """A matrix (m, n) that the process `owner` has whole, spread as another one is. Collective."""
    rank, processes = rank_and_size()
    spread = torch.empty_like(like)
    part = spread.to_local()
    rows = rows_of_part(like)
    received = part.new_empty(rows, like.shape[1])
    parts = None
    if rank == owner:
        whole = F.pad(whole.to(part.dtype), (0, 0, 0, rows * processes - len(whole)))
        # A process sends the memory of a tensor as it lies, that of a transposed matrix, too.
        parts = list(whole.contiguous().split(rows))
    dist.scatter(received, parts, src=owner)
    part.copy_(received[: len(part)])
    return spread


def rows_of_part(matrix: torch.Tensor) -> int:
    """How many rows of a spread matrix (m, n) the first process has, which has most."""
    _, processes = rank_and_size()
    return math.ceil(len(matrix) / processes)


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
