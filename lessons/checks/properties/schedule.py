"""Properties of the schedules, the reveal counts and the two ramps (`minimuse/schedule.py`)."""

import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks.compare import assert_same

unit = st.floats(0, 1)


def is_a_mask_schedule(gamma):
    """gamma(0) = 1, gamma(1) = 0, within [0, 1], never rising (MaskGIT, section 3.3).

    gamma(ratio) -> fraction masked.
    """
    assert abs(float(gamma(0.0)) - 1) < 1e-12, f"gamma(0) is {float(gamma(0.0))}, not 1"
    assert abs(float(gamma(1.0))) < 1e-12, f"gamma(1) is {float(gamma(1.0))}, not 0"

    @given(unit, unit)
    @example(0.0, 1.0)
    @example(0.0, 1e-9)
    def check(r, s):
        less, more = float(gamma(min(r, s))), float(gamma(max(r, s)))
        assert 0 <= more <= less + 1e-12 and less <= 1, (
            f"gamma({min(r, s)}) = {less}, gamma({max(r, s)}) = {more}"
        )

    check()


def is_the_cosine(gamma):
    """gamma(r) is cos(pi/2 r), to twelve digits (Muse, section 2.6)."""

    @given(unit)
    @example(1 / 3)
    def check(r):
        assert abs(float(gamma(r)) - math.cos(math.pi / 2 * r)) < 1e-12, (
            f"gamma({r}) is {float(gamma(r))}"
        )

    check()


def ratios_follow_the_arcsine_law(sample_ratios):
    """Ratios have the distribution function F(r) = (2/pi) arcsin(r), in one batch or in many.

    sample_ratios(batch, generator) -> (B,). Source: Muse, section 2.6. The mean is not enough:
    arccos(u) 2/pi has the same mean, 2/pi, but half as many ratios above .9. The bound on the
    largest gap to F is that of the Kolmogorov-Smirnov test at p = 1e-6.
    """
    generator = torch.Generator().manual_seed(0)
    for batch, times in ((8000, 1), (8, 1000), (1, 2000)):
        ratios = torch.cat([sample_ratios(batch, generator) for _ in range(times)])
        ratios = ratios.double().sort().values.numpy()
        assert ratios.shape == (batch * times,), (
            f"{times} batches of {batch}: the shape is {ratios.shape}"
        )
        assert 0 <= ratios.min() <= ratios.max() <= 1, (
            f"ratios from {ratios.min()} to {ratios.max()}"
        )
        law = 2 / np.pi * np.arcsin(ratios)
        gap = np.abs(law - (np.arange(len(ratios)) + 0.5) / len(ratios)).max()
        assert gap < 2.7 / len(ratios) ** 0.5, (
            f"batches of {batch}: the distribution is off by up to {gap:.3f}"
        )
    twice = [sample_ratios(3, torch.Generator().manual_seed(1)).tolist() for _ in range(2)]
    assert twice[0] == twice[1], f"one generator state gave {twice[0]} and then {twice[1]}"


def rounds_up_to_at_least_one(mask_counts):
    """ceil(ratio * tokens), at least 1 and at most all.

    mask_counts(ratios (B,), tokens) -> (B,) integers. A product that exceeds a whole number by less
    than 1e-9 may be rounded either way.
    """

    @given(
        st.lists(st.one_of(st.just(0.0), st.just(1.0), unit), min_size=1, max_size=5),
        st.integers(1, 300),
    )
    @example([0.0], 1)
    @example([1e-9, 0.5, 1.0], 4)
    @example([0.5 + 1e-8], 10)  # 5.0000001 is more than 5, and float32 does not see it
    @example([0.5 + 1e-8], 1024)
    def check(ratios, tokens):
        counts = mask_counts(torch.tensor(ratios, dtype=torch.float64), tokens)
        assert counts.dtype == torch.int64, f"counts are {counts.dtype}, not int64"
        counts = counts.tolist()
        assert len(counts) == len(ratios), f"{len(ratios)} ratios have {len(counts)} counts"
        for r, count in zip(ratios, counts, strict=True):
            exact, forgiving = math.ceil(r * tokens), math.ceil(r * tokens - 1e-9)
            assert count in (max(1, exact), max(1, forgiving)), (
                f"{ratios} of {tokens} tokens: {counts}; "
                f"{r} of them is {r * tokens:.9g}, so {max(1, exact)} and not {count}"
            )

    check()


def maskgit_counts(masked: int, steps: int) -> list[int]:
    """How many are masked after each step, by MaskGIT's rule (section 3.2), written out again."""
    unknown = masked
    counts = []
    for k in range(steps):
        if k == steps - 1:
            unknown = 0
        elif unknown > 0:
            by_law = math.floor(masked * math.cos(math.pi / 2 * ((k + 1) / steps)))
            unknown = max(1, min(unknown - 1, by_law))
        counts.append(unknown)
    return counts


def reveals(masked, left):
    """How many tokens each step reveals, from how many are left after it."""
    return [before - after for before, after in zip([masked, *left], left, strict=False)]


def reveals_everything_once(masked_after):
    """What the steps reveal sums to N0, is never negative, and nothing is left at the end.

    masked_after(masked, steps) -> tokens still masked after each step. Also for N0 = 0 and 1, one
    step, and more steps than tokens.
    """

    @given(st.integers(0, 300), st.integers(1, 40))
    @example(0, 1)
    @example(0, 5)
    @example(1, 1)
    @example(1, 5)
    @example(3, 12)
    def check(masked, steps):
        left = masked_after(masked, steps)
        revealed = reveals(masked, left)
        assert len(left) == steps and left[-1] == 0, f"left {left}"
        assert min(revealed) >= 0 and sum(revealed) == masked, f"reveals {revealed}"

    check()


def reveals_follow_maskgit(masked_after):
    """Counts follow MaskGIT's rule: max(1, min(unknown - 1, floor(N0 cos(pi/2 (k+1)/S)))).

    N0 is the number masked at the start; after the last step it is 0 (section 3.2). One case is
    written out: N0 = 256 in 8 steps.
    """
    left = masked_after(256, 8)
    assert reveals(256, left) == [5, 15, 24, 31, 39, 45, 48, 49], f"left {left}"

    @given(st.integers(0, 300), st.integers(1, 40))
    @example(51, 8)
    @example(256, 39)  # the last bit decides, see halves_exactly_at_two_thirds
    @example(1, 3)
    @example(2, 5)
    def check(masked, steps):
        left = masked_after(masked, steps)
        wanted = maskgit_counts(masked, steps)
        assert_same(left, wanted, f"{masked} masked, {steps} steps, {left} left")

    check()


def reveals_follow_maskgit_up_to_ties(masked_after):
    """As `reveals_follow_maskgit`, with one token less allowed at an exact tie.

    Where N0 cos(pi/2 (k+1)/S) is a whole number, floor() sees the last bit of a float, and (pi/2 *
    (k+1)) / S may give one token less than pi/2 * ((k+1) / S). The package has to be exact there,
    because an image must not depend on how a formula is written.
    """
    assert_same(masked_after(256, 8), maskgit_counts(256, 8), "256 masked, 8 steps")

    @given(st.integers(0, 300), st.integers(1, 40))
    @example(51, 8)
    @example(256, 39)  # after 26 steps, half of them: a tie
    @example(1, 3)
    @example(2, 5)
    @example(1024, 12)
    def check(masked, steps):
        left = masked_after(masked, steps)
        assert len(left) == steps, f"{masked} masked, {steps} steps: {len(left)} numbers"
        before = masked
        for k, after in enumerate(left):
            allowed = allowed_after(masked, steps, k, before)
            assert after in allowed, (
                f"{masked} masked, {steps} steps: at index {k}, {after}, where {allowed[0]} is "
                f"expected; {before} were left before. All of them: {left}"
            )
            before = after

    check()


def allowed_after(masked, steps, k, before):
    """How many may be masked after step k, if `before` were: MaskGIT's number comes first."""
    if k == steps - 1 or before == 0:
        return [0]
    by_law = masked * math.cos(math.pi / 2 * ((k + 1) / steps))
    counts = [math.floor(by_law), math.floor(by_law - 1e-9), math.floor(by_law + 1e-9)]
    return [max(1, min(before - 1, count)) for count in counts]


def halves_exactly_at_two_thirds(masked_after):
    """After two thirds of the steps exactly half of an even N0 is left: cos(pi/2 * 2/3) = 1/2.

    floor() sees the last bit: (pi/2 * 26) / 39 gives .4999999999999999 and one token less, and so
    does float32.
    """

    @given(st.integers(1, 512), st.integers(1, 100))
    @example(128, 13)  # 39 steps
    @example(128, 1)
    @example(300, 26)
    def check(half, third):
        masked, steps = 2 * half, 3 * third
        if half >= steps:  # with fewer tokens, "at least one a step" decides
            left = masked_after(masked, steps)[2 * third - 1]
            assert left == half, f"{masked} tokens in {steps} steps: {left} left after two thirds"

    check()


def ramp_reaches_its_value(guidance_at):
    """The ramp is t_k = t (k+1)/S: it starts at t/S, rises evenly, and ends at t.

    A single step has t. Source: Muse, section 2.7.

    guidance_at(k, steps, guidance) -> t_k.
    """

    @given(st.integers(1, 64), st.floats(0, 10))
    @example(1, 3.0)
    def check(steps, guidance):
        ramp = [guidance_at(k, steps, guidance) for k in range(steps)]
        assert math.isclose(ramp[-1], guidance, rel_tol=1e-12), (
            f"the last of {steps} steps has {ramp[-1]}, not {guidance}"
        )
        assert np.allclose(
            ramp, [guidance * (k + 1) / steps for k in range(steps)], rtol=1e-12, atol=0
        ), f"{ramp}"

    check()


def noise_falls_linearly_to_zero(noise_at):
    """The scale is tau (1 - (k+1)/S): it falls evenly and is 0 at the last step.

    Each step starts from tau, not from the scale of the step before: annealed twice, step 6 of 12
    has .11 instead of .50. noise_at(k, steps, choice_temperature) -> scale. Source: MaskGIT,
    section 3.2.
    """

    @given(st.integers(1, 64), st.floats(0, 10))
    @example(12, 1.0)
    def check(steps, temperature):
        scales = [noise_at(k, steps, temperature) for k in range(steps)]
        assert abs(scales[-1]) < 1e-12, f"the last of {steps} steps has noise {scales[-1]}"
        assert np.allclose(
            scales,
            [temperature * (steps - 1 - k) / steps for k in range(steps)],
            rtol=1e-9,
            atol=1e-12,
        ), f"{scales}"

    check()
