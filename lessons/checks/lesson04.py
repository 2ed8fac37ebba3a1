import math

import numpy as np
import torch
from minimuse.checks import Exercise
from minimuse.checks.properties import masks
from minimuse.checks.properties import schedule as laws

from minimuse import schedule

TITLE = "masks and schedules"


# Broken ones, which `tests/test_schedule.py` plants too


def uniform(batch, generator):
    return torch.rand(batch, generator=generator, dtype=torch.float64)


def arccos_ratios(batch, generator):
    """The same mean, 2/pi, and the wrong tails."""
    return torch.arccos(uniform(batch, generator)) * 2 / math.pi


def bernoulli(counts, tokens, generator):
    """A coin per token: right on average."""
    return torch.rand(len(counts), tokens, generator=generator) < counts[:, None] / tokens


def ranked_over_the_batch(counts, tokens, generator):
    """Every token against the same place in the other images: at batch 1, where rank 0 is all there is, everything."""
    return (
        torch.rand(len(counts), tokens, generator=generator).argsort(dim=0).argsort(dim=0)
        < counts[:, None]
    )


def one_mask_for_the_batch(counts, tokens, generator):
    return torch.rand(tokens, generator=generator).argsort().argsort()[None] < counts[:, None]


def runs(counts, tokens, generator):
    """Neighbours, from a place that is drawn, around the end: each position as often as any other."""
    start = torch.randint(tokens, (len(counts), 1), generator=generator)
    return (torch.arange(tokens) - start) % tokens < counts[:, None]


def first_positions(counts, tokens, generator):
    return torch.arange(tokens)[None] < counts[:, None]


def counts(
    masked, steps, of=None, least=1, angle=lambda s, S: math.pi / 2 * (s / S), cap=True, last=True
):
    """masked_after with switches; without any, it is right."""
    unknown, left = masked, []
    for s in range(1, steps + 1):
        n = math.floor((masked if of is None else of) * math.cos(angle(s, steps)))
        n = max(least, min(unknown - 1, n) if cap else n)
        unknown = min(unknown, n) if cap else n
        left.append(0 if last and s == steps else unknown)
    return left


EXERCISES = [
    Exercise(
        "cosine_gamma",
        schedule.gamma,
        (laws.is_a_mask_schedule, laws.is_the_cosine),
        hint="which quarter of the wave falls from 1 to 0?",
        wrong=(
            lambda r: math.sin(math.pi / 2 * r),  # backwards
            lambda r: math.cos(math.pi * r),  # half a wave
            lambda r: 1 - r,  # another law
            lambda r: math.cos(math.pi / 2 * r) ** 2,
            lambda r: (1 + math.cos(math.pi * r)) / 2,
        ),
    ),
    Exercise(
        "sample_ratios",
        schedule.sample_ratios,
        (laws.ratios_follow_the_arcsine_law,),
        hint="invert the distribution function. The right mean alone (2 / pi) proves nothing: look at the tails.",
        wrong=(
            arccos_ratios,
            uniform,
            lambda B, g: torch.cos(math.pi / 2 * uniform(1, g)).expand(
                B
            ),  # one ratio for the batch
            lambda B, g: 1 - torch.cos(math.pi / 2 * uniform(B, g)),
            lambda B, g: torch.cos(
                math.pi / 2 * torch.linspace(0, 1, B, dtype=torch.float64)
            ),  # not drawn at all
        ),
    ),
    Exercise(
        "mask_counts",
        schedule.mask_counts,
        (laws.rounds_up_to_at_least_one,),
        hint="a row with nothing masked has nothing to learn from.",
        wrong=(
            lambda r, n: (r * n).long().clamp(1, n),  # rounded down
            lambda r, n: (r * n).round().long().clamp(1, n),
            lambda r, n: (r * n).ceil().long(),  # may be none
            lambda r, n: ((r * n).long() + 1).clamp(1, n),  # off by one where it fits
        ),
    ),
    Exercise(
        "random_masks",
        schedule.random_masks,
        (
            masks.exact_count_in_every_row,
            masks.uniform_over_positions,
            masks.every_set_is_as_likely,
            masks.rows_are_independent,
        ),
        hint="a row of random numbers has a k-th smallest. Mind the axis, and try batches of one and of many.",
        wrong=(
            bernoulli,
            ranked_over_the_batch,
            one_mask_for_the_batch,
            first_positions,
            runs,
            lambda c, n, g: (
                torch.rand(len(c), n, generator=g).argsort(-1).argsort(-1) <= c[:, None]
            ),  # one too many
        ),
    ),
    Exercise(
        "masked_after",
        schedule.masked_after,
        (
            laws.reveals_everything_once,
            laws.reveals_follow_maskgit,
            laws.halves_exactly_at_two_thirds,
        ),
        hint="N0 is what was masked at the start, not the size of the picture. And (k + 1) / steps is computed first: floor() sees the last bit.",
        wrong=(
            lambda n, S: counts(n, S, of=256),  # counts from the picture
            lambda n, S: counts(n, S, least=0),
            lambda n, S: counts(
                n, S, angle=lambda s, S: math.pi / 2 * ((s - 1) / S)
            ),  # off by one step
            lambda n, S: counts(n, S, last=False),  # one token stays masked
            lambda n, S: [
                math.floor(n * math.cos(math.pi / 2 * (k + 1) / S)) for k in range(S)
            ],  # no floor of one a step, and the last bit
            lambda n, S: [
                int(n * float(np.cos(np.float32(np.pi / 2) * np.float32((k + 1) / S))))
                for k in range(S)
            ],
        ),
    ),
]
