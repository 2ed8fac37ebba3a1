"""Lesson 07: the exercises on guidance, their properties, and broken versions of them."""

from fractions import Fraction

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimuse.checks import Exercise
from minimuse.checks.compare import assert_same
from minimuse.checks.properties import guidance
from minimuse.checks.properties import schedule as schedules

from minimuse import guidance as guidance_rule
from minimuse import schedule

TITLE = "guidance"
sixteenths = st.integers(-200, 200).map(lambda n: n / 16)


def close(a, b):
    b = torch.as_tensor(b, dtype=torch.float64)
    return torch.allclose(a.double(), b, rtol=1e-9, atol=1e-9)


def names_the_same_logits(from_other_convention):
    """(1 + t) c - t u equals u + scale (c - u), whatever c and u are.

    from_other_convention(scale) -> t.
    """

    @given(st.floats(0, 20), sixteenths, sixteenths)
    @example(1.0, 2.0, 1.0)  # neutral
    @example(0.0, 2.0, 1.0)  # no caption
    @example(7.5, 2.0, 1.0)
    def check(scale, c, u):
        t = from_other_convention(scale)
        ours = (1 + t) * c - t * u
        theirs = u + scale * (c - u)
        assert abs(ours - theirs) < 1e-9, (
            f"scale {scale}, cond {c}, uncond {u}: {theirs}, but t = {t} gives {ours}"
        )

    check()


# --- Guided probabilities ---
@st.composite
def tables(draw):
    """Whole-number weights of K codes in N rows, with and without a caption, and a strength t.

    Probabilities are then exact fractions.
    """
    N = draw(st.integers(1, 3))
    K = draw(st.integers(1, 4))
    weights = hnp.arrays(np.int64, (N, K), elements=st.integers(1, 20))
    return draw(weights), draw(weights), draw(st.integers(0, 8))


def probabilities(weights):
    return torch.from_numpy(weights / weights.sum(-1, keepdims=True))


def ratio_of_powers(cond, uncond, t):
    """p(x|c)^(1+t) / p(x)^t, normalised, in exact fractions; t is a whole number."""
    rows = []
    for c, u in zip(cond.tolist(), uncond.tolist(), strict=True):
        powers = []
        for a, b in zip(c, u, strict=True):
            powers.append(Fraction(a, sum(c)) ** (1 + t) / Fraction(b, sum(u)) ** t)
        rows.append([float(power / sum(powers)) for power in powers])
    return torch.tensor(rows, dtype=torch.float64)


def described(cond, uncond, t):
    with_caption = probabilities(cond).tolist()
    without = probabilities(uncond).tolist()
    return f"with caption {with_caption}, without {without}, t {t}"


def is_the_ratio_of_powers(guided_probabilities):
    """p(x|c)^(1+t) / p(x)^t, divided by the sum of its row, compared with exact fractions.

    guided_probabilities(p_cond, p_uncond, t).
    """

    @given(tables())
    @example((np.array([[1, 1]]), np.array([[1, 3]]), 1))
    @example((np.array([[3, 1]]), np.array([[1, 1]]), 0))
    # Rows are normalised one by one.
    @example((np.array([[1, 1], [1, 3]]), np.array([[1, 3], [1, 1]]), 1))
    def check(case):
        cond, uncond, t = case
        guided = guided_probabilities(probabilities(cond), probabilities(uncond), t)
        wanted = ratio_of_powers(cond, uncond, t)
        assert_same(guided, wanted, described(cond, uncond, t), rtol=1e-9, atol=1e-9)

    check()


def any_dimensions_before_the_last(guided_probabilities):
    """One row (K,) and images of rows (B, N, K): each row is normalised by itself."""
    cond = probabilities(np.array([[1, 1], [1, 3], [2, 5], [4, 1]]))
    uncond = probabilities(np.array([[1, 3], [1, 1], [1, 1], [2, 3]]))
    rows = guided_probabilities(cond, uncond, 2)
    one = guided_probabilities(cond[1], uncond[1], 2)
    assert_same(one, rows[1], "one row (2,) beside the same in (4, 2)", atol=1e-9)
    images = guided_probabilities(cond.view(2, 2, 2), uncond.view(2, 2, 2), 2)
    assert_same(images.reshape(4, 2), rows, "(2, 2, 2) beside the same as (4, 2)", atol=1e-9)


def between_whole_numbers(guided_probabilities):
    """t need not be a whole number.

    Squared, the powers for t + 1/2 are c^(3 + 2t) / u^(1 + 2t), which exact fractions can compute.
    """

    @given(tables())
    @example((np.array([[3, 1]]), np.array([[1, 1]]), 1))
    def check(case):
        cond, uncond, t = case
        half = guided_probabilities(probabilities(cond), probabilities(uncond), t + 0.5)
        # c^(3+2t) / u^(1+2t) is c times what guidance of 1 + 2t gives.
        square = half**2
        wanted = probabilities(cond) * ratio_of_powers(cond, uncond, 2 * t + 1)
        assert close(normalised(square), normalised(wanted)), (
            f"{described(cond, uncond, t + 0.5)}: {half.tolist()}"
        )

    check()


def has_no_nan_at_strong_guidance(guided_probabilities):
    """At t = 300 powers of probabilities leave the range of a float, but their ratio does not."""
    for cond, uncond in (([[1, 999]], [[10, 990]]), ([[1, 1, 998]], [[500, 1, 499]])):
        cond = np.array(cond)
        uncond = np.array(uncond)
        guided = guided_probabilities(probabilities(cond), probabilities(uncond), 300)
        wanted = ratio_of_powers(cond, uncond, 300)
        assert close(guided, wanted), (
            f"{described(cond, uncond, 300)}: {guided.tolist()}, not {wanted.tolist()}"
        )


def normalised(x):
    return x / x.sum(-1, keepdim=True)


# --- Composed prompts ---
@st.composite
def prompts(draw):
    """Logits without a caption, logits of M prompts, and the weights of these."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    logits = hnp.arrays(np.float64, shape, elements=sixteenths)
    M = draw(st.integers(0, 3))
    uncond = draw(logits)
    conds = [draw(logits) for _ in range(M)]
    weights = [draw(st.integers(-8, 16)) / 4 for _ in range(M)]
    return uncond, conds, weights


ONE = (np.array([[0.0, 1.0]]), [np.array([[2.0, 1.0]])], [3.0])
TWO = (np.array([[1.0, 1.0]]), [np.array([[2.0, 0.0]]), np.array([[0.0, 4.0]])], [1.0, 2.0])
AWAY = (np.array([[1.0, 1.0]]), [np.array([[2.0, 0.0]]), np.array([[0.0, 4.0]])], [2.0, -1.0])


def adds_every_pull(compose):
    """u + the sum of w_i (c_i - u), number by number. compose(uncond, conds, weights)."""

    @given(prompts())
    @example(ONE)
    @example(TWO)
    @example(AWAY)
    @example((np.array([[1.0]]), [], []))
    def check(case):
        uncond, conds, weights = case
        composed = compose(torch.from_numpy(uncond), [torch.from_numpy(c) for c in conds], weights)
        wanted = uncond.copy()
        for i in np.ndindex(*uncond.shape):
            for c, w in zip(conds, weights, strict=True):
                wanted[i] += w * (c[i] - uncond[i])
        case = f"uncond {uncond.tolist()}, conds {[c.tolist() for c in conds]}, weights {weights}"
        assert_same(composed, wanted, case, rtol=1e-9, atol=1e-9)

    check()


def a_negative_prompt_is_a_composition(compose):
    """Weights 1 + t and -t are Muse's guidance away from the second prompt.

    The weights sum to 1, so the null caption cancels.
    """

    @given(
        hnp.arrays(np.float64, (3, 4), elements=sixteenths), st.integers(0, 32).map(lambda n: n / 4)
    )
    @example(np.array([[1.0], [2.0], [4.0]]), 1.0)
    def check(rows, t):
        uncond, cond, negative = torch.from_numpy(rows)
        composed = compose(uncond, [cond, negative], [1 + t, -t])
        assert close(composed, (1 + t) * cond - t * negative), (
            f"uncond {uncond.tolist()}, cond {cond.tolist()}, negative {negative.tolist()}, t {t}: "
            f"{composed.tolist()}"
        )

    check()


# --- The package, with the signatures of the exercises ---
def package_guided_probabilities(p_cond, p_uncond, t):
    return guidance_rule.guide(p_cond.log(), p_uncond.log(), t).softmax(-1)


def package_from_other_convention(scale):
    """As the docstring of `guidance.guide` says."""
    return scale - 1


# --- Broken versions ---
def pulls(uncond, conds, weights):
    """w_i (c_i - u), summed; 0 without prompts."""
    return sum(w * (c - uncond) for c, w in zip(conds, weights, strict=True))


def mean_of_pulls(uncond, conds, weights):
    return uncond + pulls(uncond, conds, weights) / max(1, len(conds))


def weights_normalised(uncond, conds, weights):
    return uncond + pulls(uncond, conds, weights) / (sum(weights) or 1)


def uncond_for_every_prompt(uncond, conds, weights):
    total = torch.zeros_like(uncond)
    for c, w in zip(conds, weights, strict=True):
        total = total + uncond + w * (c - uncond)
    return total


def pulls_from_zero(uncond, conds, weights):
    return uncond + sum(w * c for c, w in zip(conds, weights, strict=True))


def one_more_than_the_weight(uncond, conds, weights):
    return uncond + pulls(uncond, conds, [1 + w for w in weights])


def without_signs(uncond, conds, weights):
    return uncond + pulls(uncond, conds, [abs(w) for w in weights])


def one_after_the_other(uncond, conds, weights):
    """Each prompt pulls from where the one before has left."""
    total = uncond
    for c, w in zip(conds, weights, strict=True):
        total = total + w * (c - total)
    return total


def over_all_rows(p_cond, p_uncond, t):
    """Normalised over all rows at once."""
    logits = (1 + t) * p_cond.log() - t * p_uncond.log()
    return logits.flatten().softmax(0).view(p_cond.shape)


def guided_without_logarithm(p_cond, p_uncond, t):
    """The line through probabilities, not through logits."""
    return normalised(((1 + t) * p_cond - t * p_uncond).clamp(min=0))


EXERCISES = [
    Exercise(
        "guide",
        guidance_rule.guide,
        (guidance.neutral_at_zero, guidance.extrapolates_by_t),
        hint="where does the line start: at cond or at uncond? And a sum that cancels on paper may "
        "leave a last bit in floats.",
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
        package_from_other_convention,
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
        (schedules.ramp_reaches_its_value,),
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
        (
            is_the_ratio_of_powers,
            between_whole_numbers,
            has_no_nan_at_strong_guidance,
            any_dimensions_before_the_last,
        ),
        hint="in which numbers is a power a product? And which function ends by dividing by the "
        "sum?",
        wrong=(
            lambda c, u, t: c ** (1 + t) / u**t,  # sums to something
            lambda c, u, t: normalised(c ** (1 + t) / u**t),  # 0 / 0
            lambda c, u, t: normalised(c**t / u**t),
            lambda c, u, t: normalised(c ** (1 + t) * u**t),
            guided_without_logarithm,
            lambda c, u, t: ((1 + t) * c - t * u).softmax(-1),
            over_all_rows,
            lambda c, u, t: ((1 + t) * c.log() - t * u.log()).softmax(min(1, c.dim() - 1)),
            lambda c, u, t: ((1 + int(t)) * c.log() - int(t) * u.log()).softmax(-1),
        ),
    ),
    Exercise(
        "compose",
        guidance_rule.compose,
        (adds_every_pull, a_negative_prompt_is_a_composition),
        hint="draw uncond and two prompts as points on paper. How often does uncond itself count?",
        wrong=(
            mean_of_pulls,
            weights_normalised,
            uncond_for_every_prompt,
            pulls_from_zero,
            one_more_than_the_weight,
            without_signs,
            one_after_the_other,
        ),
    ),
]
