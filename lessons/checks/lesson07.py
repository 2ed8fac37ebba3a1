from fractions import Fraction

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimuse.checks import Exercise
from minimuse.checks.properties import guidance
from minimuse.checks.properties import schedule as laws

from minimuse import decode, schedule

TITLE = "guidance"
sixteenths = st.integers(-200, 200).map(lambda n: n / 16)


def close(got, wanted):
    return torch.allclose(
        got.double(), torch.as_tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def names_the_same_logits(from_other_convention):
    """(1 + t) c - t u is u + scale (c - u), whatever c and u are.

    from_other_convention(scale) -> t.
    """

    @given(st.floats(0, 20), sixteenths, sixteenths)
    @example(1.0, 2.0, 1.0)  # neutral
    @example(0.0, 2.0, 1.0)  # no caption
    @example(7.5, 2.0, 1.0)
    def check(scale, c, u):
        t = from_other_convention(scale)
        ours, theirs = (1 + t) * c - t * u, u + scale * (c - u)
        assert abs(ours - theirs) < 1e-9, (
            f"scale {scale}, cond {c}, uncond {u}: {theirs}, but t = {t} gives {ours}"
        )

    check()


@st.composite
def tables(draw):
    """Whole-number weights of K codes in N rows, with and without caption: their shares are exact fractions."""
    N, K = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    weights = hnp.arrays(np.int64, (N, K), elements=st.integers(1, 20))
    return draw(weights), draw(weights), draw(st.integers(0, 8))


def shares(weights):
    return torch.from_numpy(weights / weights.sum(-1, keepdims=True))


def ratio_of_powers(cond, uncond, t):
    """p(x|c)^(1+t) / p(x)^t, normalised, in fractions; t a whole number."""
    rows = []
    for c, u in zip(cond.tolist(), uncond.tolist(), strict=True):
        powers = [
            Fraction(a, sum(c)) ** (1 + t) / Fraction(b, sum(u)) ** t
            for a, b in zip(c, u, strict=True)
        ]
        rows.append([float(p / sum(powers)) for p in powers])
    return rows


def is_the_ratio_of_powers(guided_probabilities):
    """p(x|c)^(1+t) / p(x)^t over the sum of its row, compared with exact fractions.

    guided_probabilities(p_cond, p_uncond, t).
    """

    @given(tables())
    @example((np.array([[1, 1]]), np.array([[1, 3]]), 1))
    @example((np.array([[3, 1]]), np.array([[1, 1]]), 0))
    @example(
        (np.array([[1, 1], [1, 3]]), np.array([[1, 3], [1, 1]]), 1)
    )  # rows are normalised one by one
    def check(case):
        cond, uncond, t = case
        got, wanted = (
            guided_probabilities(shares(cond), shares(uncond), t),
            ratio_of_powers(cond, uncond, t),
        )
        assert close(got, wanted), (
            f"with caption {shares(cond).tolist()}, without {shares(uncond).tolist()}, t {t}: {got.tolist()}, not {wanted}"
        )

    check()


def between_whole_numbers(guided_probabilities):
    """t need not be whole. Squared, the powers for t + 1/2 are c^(3 + 2t) / u^(1 + 2t), which fractions know."""

    @given(tables())
    @example((np.array([[3, 1]]), np.array([[1, 1]]), 1))
    def check(case):
        cond, uncond, t = case
        half = guided_probabilities(shares(cond), shares(uncond), t + 0.5)
        # c^(3+2t) / u^(1+2t) is c times what guidance of 1 + 2t gives
        square, whole = (
            half**2,
            shares(cond)
            * torch.tensor(ratio_of_powers(cond, uncond, 2 * t + 1), dtype=torch.float64),
        )
        off = close(square / square.sum(-1, keepdim=True), whole / whole.sum(-1, keepdim=True))
        assert off, (
            f"with caption {shares(cond).tolist()}, without {shares(uncond).tolist()}, t {t + 0.5}: {half.tolist()}"
        )

    check()


def has_no_nan_at_strong_guidance(guided_probabilities):
    """t = 300: powers of single probabilities leave the range of a float, their ratio does not."""
    for cond, uncond in (([[1, 999]], [[10, 990]]), ([[1, 1, 998]], [[500, 1, 499]])):
        cond, uncond = np.array(cond), np.array(uncond)
        got, wanted = (
            guided_probabilities(shares(cond), shares(uncond), 300),
            ratio_of_powers(cond, uncond, 300),
        )
        assert close(got, wanted), (
            f"with caption {shares(cond).tolist()}, without {shares(uncond).tolist()}, t 300: {got.tolist()}, not {wanted}"
        )


@st.composite
def prompts(draw):
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    logits = hnp.arrays(np.float64, shape, elements=sixteenths)
    M = draw(st.integers(0, 3))
    return (
        draw(logits),
        [draw(logits) for _ in range(M)],
        [draw(st.integers(-8, 16)) / 4 for _ in range(M)],
    )


ONE = (np.array([[0.0, 1.0]]), [np.array([[2.0, 1.0]])], [3.0])
TWO = (np.array([[1.0, 1.0]]), [np.array([[2.0, 0.0]]), np.array([[0.0, 4.0]])], [1.0, 2.0])
AWAY = (np.array([[1.0, 1.0]]), [np.array([[2.0, 0.0]]), np.array([[0.0, 4.0]])], [2.0, -1.0])


def adds_every_pull(compose):
    """u + sum of w_i (c_i - u), each number on its own. compose(uncond, conds, weights)."""

    @given(prompts())
    @example(ONE)
    @example(TWO)
    @example(AWAY)
    @example((np.array([[1.0]]), [], []))
    def check(case):
        uncond, conds, weights = case
        got = compose(torch.from_numpy(uncond), [torch.from_numpy(c) for c in conds], weights)
        wanted = uncond.copy()
        for i in np.ndindex(*uncond.shape):
            for c, w in zip(conds, weights, strict=True):
                wanted[i] += w * (c[i] - uncond[i])
        assert close(got, wanted), (
            f"uncond {uncond.tolist()}, conds {[c.tolist() for c in conds]}, weights {weights}: {got.tolist()}, not {wanted.tolist()}"
        )

    check()


def a_negative_prompt_is_a_composition(compose):
    """Weights 1 + t and -t are Muse's guidance away from the second prompt: they sum to 1, and the null caption cancels."""

    @given(
        hnp.arrays(np.float64, (3, 4), elements=sixteenths), st.integers(0, 32).map(lambda n: n / 4)
    )
    @example(np.array([[1.0], [2.0], [4.0]]), 1.0)
    def check(rows, t):
        uncond, cond, negative = torch.from_numpy(rows)
        got, wanted = compose(uncond, [cond, negative], [1 + t, -t]), (1 + t) * cond - t * negative
        assert close(got, wanted), (
            f"uncond {uncond.tolist()}, cond {cond.tolist()}, negative {negative.tolist()}, t {t}: {got.tolist()}"
        )

    check()


# The package, with the signatures of the exercises


def package_guided_probabilities(p_cond, p_uncond, t):
    return decode.guide(p_cond.log(), p_uncond.log(), t).softmax(-1)


def package_compose(uncond, conds, weights):
    return uncond + sum(
        decode.guide(c, uncond, w - 1) - uncond for c, w in zip(conds, weights, strict=True)
    )


def normalised(x):
    return x / x.sum(-1, keepdim=True)


EXERCISES = [
    Exercise(
        "guide",
        decode.guide,
        (guidance.neutral_at_zero, guidance.extrapolates_by_t),
        hint="where does the line start: at cond or at uncond? And a sum that cancels on paper leaves a last bit in floats.",
        wrong=(
            lambda c, u, t: u + t * (c - u),  # the other convention
            lambda c, u, t: u + (1 + t) * (c - u),  # right but for the last bits at t = 0
            lambda c, u, t: (1 + t) * u - t * c,  # swapped
            lambda c, u, t: (1 + t) * c + t * u,
            lambda c, u, t: c - t * u,  # sums to another total
            lambda c, u, t: (1 + t * t) * c - t * t * u,
        ),
    ),
    Exercise(
        "from_other_convention",
        lambda scale: scale - 1,  # what guide's docstring says
        (names_the_same_logits,),
        hint="which number of theirs is your 0?",
        wrong=(
            lambda s: s,
            lambda s: s + 1,
            lambda s: max(s - 1, 0),  # forbids less than no guidance
            lambda s: 1 - s,
            lambda s: s / 2,
        ),
    ),
    Exercise(
        "guidance_at",
        schedule.guidance_at,
        (laws.ramp_reaches_its_value,),
        hint="write down all values for S = 1 and for S = 2.",
        wrong=(
            lambda k, S, t: t * k / S,  # reaches t (S-1)/S
            lambda k, S, t: t * k / max(1, S - 1),  # starts at 0, and stays there for S = 1
            lambda k, S, t: t,
            lambda k, S, t: t * (S - k) / S,  # falls
            lambda k, S, t: t * (k + 1) / (S + 1),
        ),
    ),
    Exercise(
        "guided_probabilities",
        package_guided_probabilities,
        (is_the_ratio_of_powers, between_whole_numbers, has_no_nan_at_strong_guidance),
        hint="in which numbers is a power a product? And which function ends with dividing by the sum?",
        wrong=(
            lambda c, u, t: c ** (1 + t) / u**t,  # sums to something
            lambda c, u, t: normalised(c ** (1 + t) / u**t),  # 0 / 0
            lambda c, u, t: normalised(c**t / u**t),
            lambda c, u, t: normalised(c ** (1 + t) * u**t),
            lambda c, u, t: normalised(
                ((1 + t) * c - t * u).clamp(min=0)
            ),  # of probabilities, not of logits
            lambda c, u, t: ((1 + t) * c - t * u).softmax(-1),
            lambda c, u, t: (
                ((1 + t) * c.log() - t * u.log()).flatten().softmax(0).view(c.shape)
            ),  # over all rows at once
            lambda c, u, t: ((1 + int(t)) * c.log() - int(t) * u.log()).softmax(-1),
        ),
    ),
    Exercise(
        "compose",
        package_compose,
        (adds_every_pull, a_negative_prompt_is_a_composition),
        hint="draw uncond and two prompts as points on paper. How often does uncond itself count?",
        wrong=(
            lambda u, cs, ws: (
                u + sum(w * (c - u) for c, w in zip(cs, ws, strict=True)) / max(1, len(cs))
            ),  # a mean
            lambda u, cs, ws: (
                u + sum(w * (c - u) for c, w in zip(cs, ws, strict=True)) / (sum(ws) or 1)
            ),  # weights normalised
            lambda u, cs, ws: sum(
                (u + w * (c - u) for c, w in zip(cs, ws, strict=True)), torch.zeros_like(u)
            ),  # uncond for every prompt
            lambda u, cs, ws: u + sum(w * c for c, w in zip(cs, ws, strict=True)),  # pulls from 0
            lambda u, cs, ws: (
                u + sum((1 + w) * (c - u) for c, w in zip(cs, ws, strict=True))
            ),  # the other count
            lambda u, cs, ws: u + sum(abs(w) * (c - u) for c, w in zip(cs, ws, strict=True)),
            lambda u, cs, ws: [u, *(u := u + w * (c - u) for c, w in zip(cs, ws, strict=True))][
                -1
            ],  # each pulls from where the last one left
        ),
    ),
]
