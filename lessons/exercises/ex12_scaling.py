"""Lesson 12: counting what a model costs, and cutting a batch into parts.

Write each function where it says so, then run `minimuse check 12`. Each docstring is a slow, plain
specification; your function should work on whole tensors where it can.
"""

import torch


def block_flops(tokens: int, text: int, width: int) -> int:
    """FLOPs of the matrix products of one block of the base model, for one image.

    The image has `tokens` tokens. Count two FLOPs for each multiplication that a product of
    matrices takes: 2 m n k for (m, n) times (n, k). The block has self-attention over all tokens,
    cross-attention to `text` tokens, and an MLP that is four times as wide. Queries, keys, values
    and output of both attentions are width x width. The keys and values of the text were computed
    before, and are not counted. The scores and the mixture of values are products too. The number
    of heads does not matter: H heads of width / H cost together what one of full width does.
    """
    raise NotImplementedError


def bytes_per_gpu(parameters: int, optimizer: str, gpus: int) -> int:
    """What fully sharded training keeps of a model on each of `gpus` GPUs, in fp32.

    Activations are not counted. All bytes are divided among the GPUs, and then rounded up to a
    whole byte. They are weight, gradient and average of each parameter, and what the optimizer
    keeps: two moments for "adamw". For "adafactor" (rows and columns of a matrix are few) count
    nothing.
    """
    raise NotImplementedError


def combine(means: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The loss of a batch from its P parts.

    means: (P,), the mean loss of each part's hidden tokens. counts: (P,) int64, their numbers.

    Slowly: write down every token's loss, of all parts, and take the mean. A part without any
    hidden token counts for nothing, even if its mean is not a number.
    """
    raise NotImplementedError


def rows_of_pass(batch: int, processes: int, size: int) -> list[list[list[int]]]:
    """Which rows of a batch run where, and when: [process][pass][row].

    `batch` is a multiple of `processes`. Each process takes as many rows as any other, in the
    batch's order: the first process takes the first ones. It runs them in passes of `size`, in
    order too. The last pass may be shorter.
    """
    raise NotImplementedError


def locate(indices: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where images are: numbers (B,) of images -> their shards (B,) and their rows there (B,).

    Both are int64. Shard i has sizes[i] images, perhaps none. Images are numbered through all
    shards.
    """
    raise NotImplementedError


def plan():
    """Open-ended: what to train on eight GPUs of 24 GB in a week.

    `minimuse check` does not look at it. The lesson says what to try.
    """
    raise NotImplementedError
