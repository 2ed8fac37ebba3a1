"""Lesson 12: counting what a model costs, and cutting a batch into parts.

Write each function where it says so, then run `minimuse check 12`. Each docstring is a slow, plain specification; yours
should work on whole tensors where it can.
"""

import torch


def block_flops(tokens: int, text: int, width: int) -> int:
    """FLOPs of the matrix products of one block of the base model, in a pass over one picture of `tokens` tokens.

    Count two FLOPs for each multiplication that a product of matrices takes: 2 m n k for (m, n) times (n, k). The block has self-attention
    over all tokens, cross-attention to `text` tokens, and an MLP that is four times as wide. Queries, keys, values and output of both
    attentions are width x width; the keys and values of the text were computed before, and are not counted. The scores and the mixture
    of values are products too. Heads don't matter: H heads of width / H cost together what one of full width does.
    """
    raise NotImplementedError


def bytes_per_gpu(parameters: int, optimizer: str, gpus: int) -> int:
    """What fully sharded training holds of a model on each of `gpus` GPUs, in fp32, activations not counted: all bytes, shared
    by the GPUs, and then rounded up to a whole byte.

    Weight, gradient and average of each parameter, and what the optimizer keeps: two moments for "adamw"; for "adafactor" (rows and
    columns of a matrix are few) count nothing.
    """
    raise NotImplementedError


def combine(means: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The loss of a batch from its P parts: `means` (P,) of the losses of each part's hidden tokens, `counts` (P,) int64 of these tokens.

    Slowly: write down every token's loss, of all parts, and take the mean. A part without any hidden token counts for nothing, even
    if its mean is not a number.
    """
    raise NotImplementedError


def rows_of_pass(batch: int, processes: int, size: int) -> list[list[list[int]]]:
    """Which rows of a batch run where, and when: [process][pass][row]. `batch` is a multiple of `processes`.

    Each process takes as many rows as any other, in the batch's order: the first process the first ones. It runs them in passes of
    `size`, in order too; the last pass may be shorter.
    """
    raise NotImplementedError


def locate(indices: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where pictures are: numbers (B,) of pictures -> their shards (B,) and their rows there (B,), both int64.

    Shard i has sizes[i] pictures, perhaps none; pictures are numbered through all shards.
    """
    raise NotImplementedError


def plan():
    """Open-ended: what to train on eight GPUs of 24 GB in a week. `minimuse check` does not look at it; the lesson says what to try."""
    raise NotImplementedError
