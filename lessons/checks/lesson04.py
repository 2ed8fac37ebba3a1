"""Lesson 04: the exercises on masks and schedules, their properties, and broken versions."""

import math

import numpy as np
import torch
from minimuse.checks import Exercise
from minimuse.checks.properties import masks
from minimuse.checks.properties import schedule as laws

from minimuse import schedule

TITLE = "masks and schedules"


# --- Broken versions, which `tests/test_schedule.py` plants too ---
def uniform(batch, generator):
    return torch.rand(batch, generator=generator, dtype=torch.float64)


def arccos_ratios(batch, generator):
    """The mean is right, 2/pi, but the tails are wrong."""
    return torch.arccos(uniform(batch, generator)) * 2 / math.pi


def bernoulli(counts, tokens, generator):
    """One coin per token: right on average only."""
    return torch.rand(len(counts), tokens, generator=generator) < counts[:, None] / tokens


def ranked_over_the_batch(counts, tokens, generator):
    """Rank each token against the same position of the other images.

    At batch 1 every rank is 0, so everything is masked.
    """
    noise = torch.rand(len(counts), tokens, generator=generator)
    ranks = noise.argsort(dim=0).argsort(dim=0)
    return ranks < counts[:, None]


def one_mask_for_the_batch(counts, tokens, generator):
    ranks = torch.rand(tokens, generator=generator).argsort().argsort()
    return ranks[None] < counts[:, None]


def runs(counts, tokens, generator):
    """A run of neighbours from a random position, wrapping around.

    Every position is masked equally often.
    """
    start = torch.randint(tokens, (len(counts), 1), generator=generator)
    return (torch.arange(tokens) - start) % tokens < counts[:, None]


def first_positions(counts, tokens, generator):
    return torch.arange(tokens)[None] < counts[:, None]


def one_too_many(counts, tokens, generator):
    ranks = torch.rand(len(counts), tokens, generator=generator).argsort(-1).argsort(-1)
    return ranks <= counts[:, None]


def cosine_angle(s, S):
    return math.pi / 2 * (s / S)


def counts(masked, steps, of=None, least=1, angle=cosine_angle, cap=True, last=True):
    """A masked_after with switches that break it; without any of them, it is right.

    `of` is the number that the schedule is a fraction of, `least` the smallest count before the
    end. Without `cap` a step may reveal nothing or hide more; without `last` one token stays
    masked.
    """
    if of is None:
        of = masked
    unknown = masked
    left = []
    for s in range(1, steps + 1):
        scheduled = math.floor(of * math.cos(angle(s, steps)))
        if cap:
            scheduled = max(least, min(unknown - 1, scheduled))
            unknown = min(unknown, scheduled)
        else:
            unknown = max(least, scheduled)
        left.append(unknown)
    if last:
        left[-1] = 0
    return left


def floored(masked, steps):
    """No minimum of one token a step, and the last bit of the angle is wrong."""
    return [math.floor(masked * math.cos(math.pi / 2 * (k + 1) / steps)) for k in range(steps)]


def linear_angle(s, S):
    """As many tokens with each step."""
    return math.acos(1 - s / S)


def in_float32(masked, steps):
    angles = [np.float32(np.pi / 2) * np.float32((k + 1) / steps) for k in range(steps)]
    return [int(masked * float(np.cos(angle))) for angle in angles]


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
        hint="invert the distribution function. The right mean (2 / pi) alone proves nothing: "
        "look at the tails.",
        wrong=(
            arccos_ratios,
            uniform,
            # one ratio for the batch
            lambda B, g: torch.cos(math.pi / 2 * uniform(1, g)).expand(B),
            lambda B, g: 1 - torch.cos(math.pi / 2 * uniform(B, g)),
            # not drawn at all
            lambda B, g: torch.cos(math.pi / 2 * torch.linspace(0, 1, B, dtype=torch.float64)),
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
            # In float32, a product just above a whole number is that number.
            lambda r, n: (r.float() * n).ceil().long().clamp(1, n),
            lambda r, n: (r * n).float().ceil().long().clamp(1, n),
            lambda r, n: (r * n).ceil().int().clamp(1, n),  # int32
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
        hint="a row of random numbers has a k-th smallest one. Mind the axis; try batches of one "
        "and of many.",
        wrong=(
            bernoulli,
            ranked_over_the_batch,
            one_mask_for_the_batch,
            first_positions,
            runs,
            one_too_many,
        ),
    ),
    Exercise(
        "masked_after",
        schedule.masked_after,
        (
            laws.reveals_everything_once,
            laws.reveals_follow_maskgit_up_to_ties,
        ),
        hint="N0 is what was masked at the start, not the size of the image. And which of the "
        "two limits, at most unknown - 1 and at least 1, wins where both cannot hold?",
        wrong=(
            lambda n, S: counts(n, S, of=256),  # counts from the whole image
            lambda n, S: counts(n, S, least=0),
            lambda n, S: counts(n, S, angle=lambda s, S: cosine_angle(s - 1, S)),  # one step late
            lambda n, S: counts(n, S, last=False),  # one token stays masked
            floored,
            in_float32,
            lambda n, S: counts(n, S, angle=linear_angle),
            lambda n, S: [unknown + 1 for unknown in counts(n, S)[:-1]] + [0],
        ),
    ),
]
