
from functools import partial
from torch import nn
from torch.utils.checkpoint import checkpoint
import gc
import os
import torch
import torch.distributed as dist
import warnings

from minimuse.plumbing.collectives import rank_and_size
from minimuse.transformer import Block


def begin(device: str) -> str:
    """Join the other processes, if torchrun started some; returns this one's device, a ValueError if it is not there."""
    several = "RANK" in os.environ and not dist.is_initialized()
    device = f"cuda:{os.environ['LOCAL_RANK']}" if several and device == "cuda" else device
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"device {device!r} is not there ({str(error).splitlines()[0]}); say cpu, cuda or mps"
        ) from None
    if several:
        torch.cuda.set_device(device) if "cuda" in device else None
        dist.init_process_group("cpu:gloo,cuda:nccl" if "cuda" in device else "gloo")
    return device


def end() -> None:
    """Leave them. What is still spread goes first: threads that serve it would abort the process at its end."""
    if dist.is_initialized():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def fit(model: nn.Module, compile: bool, recompute: bool, device: str) -> None:
    """Make a base or super-resolution model fit, block by block: compiled, recomputed in the backward pass, spread over the processes."""
    if mesh := rank_and_size()[1] > 1:
        from torch.distributed.fsdp import (
            fully_shard,
            register_fsdp_forward_method,
        )  # here: it takes a second, and few need it

        mesh = dist.init_device_mesh(torch.device(device).type, (rank_and_size()[1],))
    for block in (module for module in model.modules() if isinstance(module, Block)):
        if compile:
            block.forward = torch.compile(block.forward)
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if mesh:
            if block.cross:
                fully_shard(
                    block.cross_attention.kv, mesh=mesh
                )  # runs in `context`, outside of its block
            fully_shard(block, mesh=mesh)
    if mesh:
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "context")
        warnings.filterwarnings(
            "ignore", ".*returned a view tensor"
        )  # `context` does; nobody writes to it
