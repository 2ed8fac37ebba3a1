"""A model that is too large for one GPU: the same loop in several processes, each with a share of every tensor (FSDP2).

    torchrun --nproc-per-node 8 -m minimuse train base --out runs/big --device cuda        # after tokenizers and cache: README

`fully_shard` cuts parameters, gradients and optimizer state into a piece for each process; a block's are put together while it runs.
Each process takes its part of the batch, for all of which masks and captions were drawn. The first writes the files: those of one process.
"""

import torch
import torch.distributed as dist


def rank_and_size() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor. Every process has to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def copy_into(target: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Copy all of a tensor into one that may be spread."""
    return target.copy_(
        dist.tensor.distribute_tensor(tensor, target.device_mesh, target.placements)
        if hasattr(target, "device_mesh")
        else tensor
    )


def sum_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' values; nobody has it before all have asked."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(value)
    return value
