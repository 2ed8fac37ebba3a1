"""Train on several GPUs: several processes, each with a part of every batch.

    torchrun --nproc-per-node 8 -m minimuse train base --out runs/big --device cuda

A step does the same whatever the number of processes: each draws the random numbers of the whole
batch, and then computes its own rows. A transformer may be too large for one GPU. PyTorch's FSDP2
(`fully_shard`) cuts its weights, gradients and optimizer state into one piece per process, and
gathers the weights of a block only while it runs. Each process then writes its part of a checkpoint
(`plumbing/sharded.py`). Tokenizers and decoders are small, so each process has all of theirs. The
first process writes all other files, as a single process would.
"""

import gc
import os
import warnings
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from minimuse.plumbing.arguments import chosen_device
from minimuse.plumbing.collectives import mean_over_processes, rank_and_size
from minimuse.transformer import Block

# From this version on, each process can write its part of a checkpoint as safetensors.
SAVES_IN_PARTS = "2.9"
# The first process may read the index of millions of images, while all others wait for it.
PATIENCE = timedelta(days=1)


def begin(device: str) -> str:
    """Join the other processes, if torchrun started any; return the device of this one.

    Raises a ValueError if there is no such device, or PyTorch is too old for several processes.
    Collective: every rank must call this.
    """
    several = "RANK" in os.environ and not dist.is_initialized()
    if several and torch.__version__ < SAVES_IN_PARTS:
        raise ValueError(
            f"several processes need PyTorch {SAVES_IN_PARTS} or newer, to save what is spread "
            f"over them; this is {torch.__version__}: update torch, or train in one process"
        )
    device = chosen_device(device)
    if several and device == "cuda":
        device = chosen_device(f"cuda:{os.environ['LOCAL_RANK']}")
    if several:
        if "cuda" in device:
            torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
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


def replicate(model: nn.Module) -> None:
    """Prepare a model of images, in place, to be trained by several processes, which all have it.

    The gradients of a backward pass become their means over the processes, as with FSDP. So all
    processes move the weights alike. (PyTorch's DistributedDataParallel would do the same, but not
    for a loss that takes gradients of its own, as the adaptive weight of `vq_loss.py` does.)
    """
    _, processes = rank_and_size()
    if processes > 1:
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(average_gradient)


def average_gradient(parameter: nn.Parameter) -> None:
    """Replace a gradient by its mean over the processes. Collective: every rank must call this."""
    parameter.grad = mean_over_processes(parameter.grad)


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
