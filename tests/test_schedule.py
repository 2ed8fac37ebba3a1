"""Schedules, masks, counts and ramps, and broken versions of them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from minimuse.checks.lesson04 import (
    arccos_ratios,
    bernoulli,
    counts,
    first_positions,
    one_mask_for_the_batch,
    ranked_over_the_batch,
    runs,
    uniform,
)
from minimuse.checks.properties import masks
from minimuse.checks.properties import schedule as properties

from minimuse import schedule


# --- The schedules ---
@pytest.mark.parametrize("law", schedule.LAWS)
def test_every_law_is_a_mask_schedule(law):
    properties.is_a_mask_schedule(partial(schedule.gamma, law=law))


WAVES = (
    lambda r: np.sin(np.pi / 2 * r),
    lambda r: np.cos(np.pi * r),
    lambda r: 1 - 0.9 * r,
    lambda r: np.cos(2.5 * np.pi * r),
)


@pytest.mark.parametrize("planted", WAVES)
def test_other_functions_are_not(planted, refuses):
    refuses(properties.is_a_mask_schedule, planted)


def test_laws_halfway():
    halfway = {law: float(schedule.gamma(0.5, law)) for law in schedule.LAWS}
    by_hand = {
        "exp": 240 / 255,
        "cubic": 0.875,
        "square": 0.75,
        "cosine": 0.5**0.5,
        "linear": 0.5,
        "sqrt": 1 - 0.5**0.5,
        "log": 0.125,
    }
    assert halfway == pytest.approx(by_hand)
    grid = np.linspace(0, 1, 7)
    for law in schedule.LAWS:
        one_by_one = [float(schedule.gamma(r, law)) for r in grid]
        assert schedule.gamma(grid, law).tolist() == one_by_one
    with pytest.raises(ValueError, match="'cosin'.*cosine"):
        schedule.gamma(0.5, "cosin")


# --- Ratios and masks for training ---
def one_ratio_for_the_batch(batch, generator):
    return schedule.sample_ratios(1, generator).expand(batch)


def test_ratios():
    properties.ratios_follow_the_arcsine_law(schedule.sample_ratios)
    properties.rounds_up_to_at_least_one(schedule.mask_counts)


@pytest.mark.parametrize("percent", [7, 14, 28, 29, 55, 56, 57, 58])
def test_a_percentage_of_100_tokens_is_that_many(percent):
    """.07 * 100 and a few others are above a whole number in float64, by rounding."""
    ratios = torch.tensor([percent / 100], dtype=torch.float64)
    assert schedule.mask_counts(ratios, 100).tolist() == [percent]


def test_fractions_out_of_range_are_refused():
    for u in (-0.5, 1.5, float("nan"), np.array([0.5, 2.0])):
        with pytest.raises(ValueError, match="^u is .*, not numbers from 0 to 1"):
            schedule.gamma(u)
    for ratios in ([0.5, -0.1], [1.1], [float("nan")]):
        with pytest.raises(ValueError, match="^ratios is .*, not numbers from 0 to 1"):
            schedule.mask_counts(torch.tensor(ratios), 16)
    with pytest.raises(ValueError, match="^steps is 0"):
        schedule.guidance_at(0, 0, 1.0)


def test_arccos_has_the_right_mean_and_is_wrong(refuses):
    ratios = arccos_ratios(100_000, torch.Generator().manual_seed(0))
    assert abs(float(ratios.mean()) - 2 / math.pi) < 0.005
    assert float((ratios > 0.9).double().mean()) == pytest.approx(0.157, abs=0.005)
    ours = schedule.sample_ratios(100_000, torch.Generator().manual_seed(0))
    assert float((ours > 0.9).double().mean()) == pytest.approx(0.287, abs=0.005)
    for planted in (arccos_ratios, uniform, one_ratio_for_the_batch):
        refuses(properties.ratios_follow_the_arcsine_law, planted)


@pytest.mark.parametrize("law", schedule.LAWS)
def test_ratios_of_every_law(law):
    """Each ratio is gamma of a uniform number, drawn from the same generator."""
    ratios = schedule.sample_ratios(500, torch.Generator().manual_seed(3), law)
    u = uniform(500, torch.Generator().manual_seed(3))
    assert ratios.dtype == torch.float64
    assert ratios.tolist() == [float(schedule.gamma(x, law)) for x in u.tolist()]


@pytest.mark.parametrize(
    "planted",
    [
        lambda r, n: (r * n).long().clamp(1, n),  # rounded down
        lambda r, n: (r * n).round().long().clamp(1, n),
        lambda r, n: (r * n).ceil().long(),  # may be none
    ],
)
def test_broken_counts(planted, refuses):
    refuses(properties.rounds_up_to_at_least_one, planted)


MASK_PROPERTIES = (
    masks.exact_count_in_every_row,
    masks.uniform_over_positions,
    masks.every_set_is_as_likely,
    masks.rows_are_independent,
)


@pytest.mark.parametrize("prop", MASK_PROPERTIES)
def test_masks(prop):
    prop(schedule.random_masks)


def ranked_twice(counts, tokens, generator):
    """Rank over the batch, and then within the row.

    Exact, and uniform in a large batch, but at batch 1 all noise is equal.
    """
    noise = torch.rand(len(counts), tokens, generator=generator)
    ranks = noise.argsort(dim=0).argsort(dim=-1)
    return ranks < counts[:, None]


def ranked_over_all(counts, tokens, generator):
    """Exact over the whole batch, but in a row only by chance; batch 1 does not show it."""
    noise = torch.rand(len(counts) * tokens, generator=generator)
    return (noise.argsort().argsort() < counts.sum()).view(len(counts), tokens)


def one_argsort(counts, tokens, generator):
    """Positions in place of ranks. No bug: both are uniform random permutations."""
    return torch.rand(len(counts), tokens, generator=generator).argsort(dim=-1) < counts[:, None]


def with_ties(counts, tokens, generator):
    """Noise of a few levels against a cutoff."""
    noise = torch.randint(4, (len(counts), tokens), generator=generator)
    cutoff = noise.sort(dim=-1).values.gather(1, (counts[:, None] - 1).clamp(min=0))
    return noise <= cutoff


@pytest.mark.parametrize(
    "prop, planted",
    [
        (masks.exact_count_in_every_row, bernoulli),
        (masks.exact_count_in_every_row, ranked_over_the_batch),
        (masks.exact_count_in_every_row, ranked_over_all),
        (masks.exact_count_in_every_row, with_ties),
        (masks.uniform_over_positions, first_positions),
        (masks.uniform_over_positions, ranked_over_the_batch),
        (masks.uniform_over_positions, ranked_twice),
        (masks.uniform_over_positions, one_mask_for_the_batch),
        (masks.every_set_is_as_likely, runs),
        (masks.rows_are_independent, one_mask_for_the_batch),
        (masks.rows_are_independent, first_positions),
    ],
)
def test_broken_masks(prop, planted, refuses):
    refuses(prop, planted)


def test_what_single_rows_do_not_show():
    """Ranking over the whole batch passes at batch 1, so the property draws several sizes."""
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        assert int(ranked_over_all(torch.tensor([3]), 8, draw).sum()) == 3
    for prop in MASK_PROPERTIES:
        prop(one_argsort)


# --- Counts for decoding ---
COUNT_PROPERTIES = (
    properties.reveals_everything_once,
    properties.reveals_follow_maskgit,
    properties.halves_exactly_at_two_thirds,
)


@pytest.mark.parametrize("prop", COUNT_PROPERTIES)
def test_counts(prop):
    prop(schedule.masked_after)


@pytest.mark.parametrize("law", schedule.LAWS)
def test_counts_of_every_law(law):
    properties.reveals_everything_once(partial(schedule.masked_after, law=law))


def test_counts_follow_the_law_that_is_asked_for():
    assert schedule.masked_after(16, 4, "linear") == [12, 8, 4, 0]
    assert schedule.masked_after(16, 4, "square") == [15, 12, 7, 0]


def test_right_counts_pass():
    for prop in COUNT_PROPERTIES:
        prop(counts)


def one_step_late(s, S):
    return math.pi / 2 * ((s - 1) / S)


def another_last_bit(s, S):
    return math.pi / 2 * s / S


def in_float32(s, S):
    return np.float32(np.pi / 2) * np.float32(s / S)


@pytest.mark.parametrize(
    "prop, switches",
    [
        (properties.reveals_follow_maskgit, {"of": 256}),  # counts from N, not from the hole
        (properties.reveals_follow_maskgit, {"least": 0}),
        (properties.reveals_everything_once, {"least": -1}),
        (properties.reveals_everything_once, {"cap": False}),  # hides what was never hidden
        (properties.reveals_everything_once, {"last": False}),  # one token stays hidden
        (properties.reveals_follow_maskgit, {"angle": one_step_late}),
        (properties.halves_exactly_at_two_thirds, {"angle": another_last_bit}),
        (properties.reveals_follow_maskgit, {"angle": another_last_bit}),
        (properties.halves_exactly_at_two_thirds, {"angle": in_float32}),
    ],
)
def test_broken_counts_for_decoding(prop, switches, refuses):
    refuses(prop, partial(counts, **switches))


def test_counting_from_the_whole_image_leaves_the_hole_to_the_last_step():
    left = counts(51, 8, of=256)
    assert properties.reveals(51, left) == [1, 1, 1, 1, 1, 1, 1, 44]
    left = schedule.masked_after(51, 8)
    assert properties.reveals(51, left) == [1, 3, 5, 6, 8, 9, 10, 9]


def test_impossible_counts():
    with pytest.raises(ValueError, match="-1"):
        schedule.masked_after(-1, 3)
    with pytest.raises(ValueError, match="steps is 0"):
        schedule.masked_after(3, 0)


# --- Ramps ---
def test_ramps():
    properties.ramp_reaches_its_value(schedule.guidance_at)
    properties.noise_falls_linearly_to_zero(schedule.noise_at)
    assert [schedule.guidance_at(k, 4, 3.0, ramp=False) for k in range(4)] == [3.0] * 4
    assert schedule.noise_at(5, 12, 1.0) == 0.5


def annealed_twice(k, steps, temperature):
    """Multiplied down inside the loop, step after step."""
    for j in range(k + 1):
        temperature *= 1 - (j + 1) / steps
    return temperature


def test_broken_ramps(refuses):
    assert annealed_twice(5, 12, 1.0) == pytest.approx(0.11, abs=0.005)
    for planted in (
        lambda k, S, t: t * k / S,
        lambda k, S, t: t * k / max(1, S - 1),
        lambda k, S, t: t,
    ):
        refuses(properties.ramp_reaches_its_value, planted)
    for planted in (annealed_twice, lambda k, S, t: t * (1 - k / S), lambda k, S, t: t):
        refuses(properties.noise_falls_linearly_to_zero, planted)
