"""Right solutions of lesson 12, in other ways."""

import bisect
import itertools
import math
from fractions import Fraction

import torch


# --- block_flops ---
def flops_matrix_by_matrix(tokens, text, width):
    N, T, D = tokens, text, width
    products = [
        *[(N, D, D)] * 3, (N, D, N), (N, N, D), (N, D, D),  # self-attention
        (N, D, D), (N, D, T), (N, T, D), (N, D, D),  # cross-attention
        (N, D, 4 * D), (N, 4 * D, D),
    ]  # fmt: skip
    return sum(2 * math.prod(product) for product in products)


def flops_by_formula(tokens, text, width):
    return 28 * tokens * width**2 + 4 * tokens * width * (tokens + text)


def flops_by_shapes(tokens, text, width):
    x = torch.zeros(tokens, width, device="meta")
    total = 0

    def product(a, rows, columns):
        nonlocal total
        total += 2 * a.shape[0] * rows * columns
        return torch.zeros(a.shape[0], columns, device="meta")

    for keys, projections in ((tokens, 4), (text, 2)):
        for _ in range(projections):
            product(x, width, width)
        product(product(x, width, keys), keys, width)
    product(product(x, width, 4 * width), 4 * width, width)
    return total


# --- bytes_per_gpu ---
def bytes_by_ceil(parameters, optimizer, gpus):
    numbers = 3 + {"adamw": 2, "adafactor": 0}[optimizer]
    return math.ceil(Fraction(parameters * numbers * 4, gpus))


def bytes_by_divmod(parameters, optimizer, gpus):
    each, rest = divmod(4 * parameters * (5 if optimizer == "adamw" else 3), gpus)
    return each + (rest > 0)


def bytes_rounded_up_first(parameters, optimizer, gpus):
    total = sum(4 * parameters for _ in ("weight", "gradient", "average"))
    if optimizer == "adamw":
        total += 8 * parameters
    return (total + gpus - 1) // gpus


# --- combine ---
def combine_by_weights(means, counts):
    weights = counts / counts.sum()
    return (weights * torch.where(counts > 0, means, 0)).sum()


def combine_what_is_there(means, counts):
    there = counts > 0
    return (means[there] * counts[there]).sum() / counts.sum()


def combine_part_by_part(means, counts):
    total, n = 0.0, 0
    for mean, count in zip(means, counts.tolist(), strict=True):
        if count:
            total = total + mean.double() * count
            n += count
    return total / n


# --- rows_of_pass ---
def rows_by_slices(batch, processes, size):
    each = batch // processes
    result = []
    for rank in range(processes):
        mine = list(range(rank * each, (rank + 1) * each))
        result.append([mine[i : i + size] for i in range(0, each, size)])
    return result


def rows_by_split(batch, processes, size):
    parts = torch.arange(batch).view(processes, -1)
    return [[rows.tolist() for rows in part.split(size)] for part in parts]


def rows_one_by_one(batch, processes, size):
    result = [[] for _ in range(processes)]
    for row in range(batch):
        rank, place = divmod(row, batch // processes)
        if place % size == 0:
            result[rank].append([])
        result[rank][-1].append(row)
    return result


# --- locate ---
def places_by_searchsorted(indices, sizes):
    ends = torch.tensor(sizes).cumsum(0)
    shards = torch.searchsorted(ends, indices, right=True)
    return shards, indices - (ends - torch.tensor(sizes))[shards]


def places_by_bisect(indices, sizes):
    ends = list(itertools.accumulate(sizes))
    shards = [bisect.bisect_right(ends, i) for i in indices.tolist()]
    rows = [
        i - ends[shard] + sizes[shard] for i, shard in zip(indices.tolist(), shards, strict=True)
    ]
    return torch.tensor(shards), torch.tensor(rows)


def places_by_a_table(indices, sizes):
    shards = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    rows = torch.cat([torch.arange(size) for size in sizes])
    return shards[indices], rows[indices]


def places_by_counting(indices, sizes):
    starts = torch.tensor([0, *sizes]).cumsum(0)
    shards = (indices[:, None] >= starts[1:]).sum(1)
    return shards, indices - starts[shards]


RIGHT = {
    "block_flops": (flops_matrix_by_matrix, flops_by_formula, flops_by_shapes),
    "bytes_per_gpu": (bytes_by_ceil, bytes_by_divmod, bytes_rounded_up_first),
    "combine": (combine_by_weights, combine_what_is_there, combine_part_by_part),
    "rows_of_pass": (rows_by_slices, rows_by_split, rows_one_by_one),
    "locate": (places_by_searchsorted, places_by_bisect, places_by_a_table, places_by_counting),
}
