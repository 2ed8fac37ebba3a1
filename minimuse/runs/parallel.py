"""Train a model that is too large for one GPU: several processes, each with a part of every tensor.

    torchrun --nproc-per-node 8 -m minimuse train base --out runs/big --device cuda

Train the tokenizers and make the cache first, in one process. PyTorch's FSDP2 (`fully_shard`) cuts
weights, gradients and optimizer state into one piece per process. The weights of a block are
gathered only while it runs. Every process draws masks and captions for the whole batch and computes
its own rows. Each writes its part of a checkpoint (`plumbing/sharded.py`). All other files are the
same as those of a single process, and the first process writes them.
"""

import gc
import os
import warnings
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from minimuse.plumbing.arguments import chosen_device
from minimuse.plumbing.collectives import rank_and_size
from minimuse.transformer import Block


def begin(device: str) -> str:
    """Join the other processes, if torchrun started any; return the device of this one.

    Raises a ValueError if there is no such device. Collective: every rank must call this.
    """
    several = "RANK" in os.environ and not dist.is_initialized()
    device = chosen_device(device)
    if several and device == "cuda":
        device = chosen_device(f"cuda:{os.environ['LOCAL_RANK']}")
    if several:
        if "cuda" in device:
            torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl")
        else:
            dist.init_process_group("gloo")
    return device


def end() -> None:
    """Leave the other processes, if there are any. Collective: every rank must call this."""
    if dist.is_initialized():
        # Free sharded tensors first: the threads that serve them would abort the process at exit.
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def fit(model: nn.Module, compile: bool, recompute: bool, device: str) -> None:
    """Prepare a base or super-resolution model, in place, to be trained at a large size.

    compile: compile every block (the last one in parts, since its number of rows varies).
    recompute: run every block again in the backward pass, instead of keeping its activations.
    With several processes, spread all weights over them.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        if compile:
            block.forward = torch.compile(block.forward)
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    _, processes = rank_and_size()
    if processes > 1:
        spread(model, blocks, processes, device)


def spread(model: nn.Module, blocks: list[Block], processes: int, device: str) -> None:
    """Cut all weights of a model into one piece for each process, block by block (FSDP2)."""
    # Imported here because it takes a second, and few runs need it.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = dist.init_device_mesh(torch.device(device).type, (processes,))
    for block in blocks:
        if block.cross:
            # `context` computes the keys and values of the text, outside of the block's forward.
            fully_shard(block.cross_attention.kv, mesh=mesh)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "context")
    # FSDP warns that `context` returns a view. Nothing writes to it, so that is harmless.
    warnings.filterwarnings("ignore", ".*returned a view tensor")
