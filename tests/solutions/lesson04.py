"""Right solutions of lesson 04, in other ways."""

import math

import numpy as np
import torch


# --- sample_ratios ---
def ratios_by_sine(batch, generator):
    return torch.sin(torch.rand(batch, generator=generator) * math.pi / 2)


def ratios_by_bisection(batch, generator):
    u = torch.rand(batch, generator=generator, dtype=torch.float64)
    low, high = torch.zeros(batch).double(), torch.ones(batch).double()
    for _ in range(16):
        middle = (low + high) / 2
        below = 2 / math.pi * middle.arcsin() < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


def ratios_one_by_one(batch, generator):
    draws = [torch.rand((), generator=generator).item() for _ in range(batch)]
    return torch.tensor([math.cos(math.pi / 2 * u) for u in draws])


# --- mask_counts ---
def counts_one_by_one(ratios, tokens):
    counts = []
    for ratio in ratios.tolist():
        count = 1
        while count < ratio * tokens:
            count += 1
        counts.append(count)
    return torch.tensor(counts, dtype=torch.int64)


def counts_by_negative_floor(ratios, tokens):
    return torch.clamp(-torch.floor(-ratios * tokens), min=1).to(torch.int64)


def counts_by_numpy(ratios, tokens):
    return torch.from_numpy(np.maximum(np.ceil(ratios.numpy() * tokens), 1).astype(np.int64))


# --- random_masks ---
def masks_row_by_row(counts, tokens, generator):
    masks = torch.zeros(len(counts), tokens, dtype=torch.bool)
    for row, count in zip(masks, counts.tolist(), strict=True):
        row[torch.randperm(tokens, generator=generator)[:count]] = True
    return masks


def masks_by_the_kth_smallest(counts, tokens, generator):
    noise = torch.rand(len(counts), tokens, generator=generator, dtype=torch.float64)
    ascending = torch.cat([noise.sort(-1).values, torch.ones(len(counts), 1)], dim=1)
    return noise < ascending.gather(1, counts[:, None])


def masks_by_scatter(counts, tokens, generator):
    order = torch.randn(len(counts), tokens, generator=generator).argsort(-1)
    first = torch.arange(tokens).expand(len(counts), -1) < counts[:, None]
    return torch.zeros(len(counts), tokens, dtype=torch.bool).scatter(1, order, first)


# --- masked_after ---
def as_the_docstring_reads(masked, steps):
    unknown, left = masked, []
    for k in range(steps):
        if k == steps - 1 or unknown == 0:
            unknown = 0
        else:
            by_law = math.floor(masked * math.cos(math.pi / 2 * (k + 1) / steps))
            unknown = max(1, min(unknown - 1, by_law))
        left.append(unknown)
    return left


def with_the_sine(masked, steps):
    """cos(x) = sin(pi/2 - x)."""
    left = [masked]
    for k in range(steps):
        by_law = int(masked * math.sin(math.pi / 2 * (steps - k - 1) / steps))
        left.append(max(min(left[-1] - 1, by_law), min(1, left[-1])))
    return [*left[1:-1], 0]


def with_numpy(masked, steps):
    law = np.floor(masked * np.cos(np.linspace(0, np.pi / 2, steps + 1)[1:]))
    left = []
    for by_law in law.tolist():
        before = left[-1] if left else masked
        left.append(max(1, min(before - 1, int(by_law))) if before else 0)
    left[-1] = 0
    return left


def with_half_angles(masked, steps):
    """cos(x) = 1 - 2 sin(x / 2)^2."""

    def law(k):
        return math.floor(masked * (1 - 2 * math.sin(math.pi / 4 * (k + 1) / steps) ** 2))

    left, unknown = [], masked
    for k in range(steps - 1):
        unknown = max(1, min(unknown - 1, law(k))) if unknown else 0
        left.append(unknown)
    return left + [0]


RIGHT = {
    "cosine_gamma": (
        lambda r: math.sin(math.pi / 2 * (1 - r)),
        lambda r: float(np.cos(np.pi * r / 2).clip(0, 1)),
        lambda r: torch.cos(torch.tensor(math.pi / 2 * r, dtype=torch.float64)).item(),
        lambda r: 1 - 2 * math.sin(math.pi / 4 * r) ** 2,
    ),
    "sample_ratios": (ratios_by_sine, ratios_by_bisection, ratios_one_by_one),
    "mask_counts": (counts_one_by_one, counts_by_negative_floor, counts_by_numpy),
    "random_masks": (masks_row_by_row, masks_by_the_kth_smallest, masks_by_scatter),
    "masked_after": (
        as_the_docstring_reads,
        with_the_sine,
        with_numpy,
        with_half_angles,
    ),
}
