"""Checks of lesson 11: properties of its exercises, and planted bugs that they refuse."""

import math
from fractions import Fraction

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.properties import measures

from minimuse import schedule
from minimuse.metrics import distances, intervals, likelihood
from minimuse.metrics.intervals import mean_of
from minimuse.metrics.likelihood import hidden_nll

TITLE = "measuring"
Z = 1.959964  # 97.5 % of a normal distribution lie below Z


# --- The lesson's formula under the signature of the exercise ---
def tell_apart(n, p, q):
    """Compares squares, without a division: the variance of a proportion of 0 or 1 is 0."""
    return n * (p - q) ** 2 > 1.96**2 * (p * (1 - p) + q * (1 - q))


# --- Properties of `wilson` ---
def ends_are_just_in_reach(wilson):
    """An end t in (0, 1) is Z of its own standard errors away from the measured proportion.

    An end of exactly 0 or 1 is right for 0 of n and n of n only.
    """

    @given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    @example((0, 1))
    @example((3, 4))
    @example((40, 40))
    def check(case):
        right, n = case
        p = right / n
        low, high = wilson(right, n)
        answer = f"{right} of {n}: {low} to {high}"
        assert 0 <= low <= p + 1e-9 and p - 1e-9 <= high <= 1, answer
        for t, is_edge in ((low, right == 0), (high, right == n)):
            if is_edge:
                assert math.isclose(t, p, abs_tol=1e-9), f"{answer}; {p:.0f} is possible, too"
                continue
            expected = Z * math.sqrt(t * (1 - t) / n)
            assert math.isclose(abs(t - p), expected, rel_tol=1e-4), (
                f"{answer}; {t:.4f} is {abs(t - p):.4f} away, not {expected:.4f}"
            )

    check()


def knows_nothing_of_nothing(wilson):
    """Without images every proportion is possible."""
    assert tuple(wilson(0, 0)) == (0, 1), f"0 of 0: {wilson(0, 0)}"


def holds_nineteen_times_in_twenty(wilson):
    """Adds up the probabilities of all outcomes whose interval holds the true proportion."""
    for n, truth in ((40, 0.5), (40, 0.8), (100, 0.9), (60, 0.98)):
        holds = 0.0
        for k in range(n + 1):
            low, high = wilson(k, n)
            if low <= truth <= high:
                holds += math.comb(n, k) * truth**k * (1 - truth) ** (n - k)
        assert 0.92 < holds < 0.98, (
            f"{n} images, true proportion {truth}: "
            f"the interval holds it with probability {holds:.3f}, not about .95"
        )


# --- Properties of `tell_apart` ---
def is_the_ratio_to_the_error(tell_apart):
    """Compared with exact arithmetic in fractions."""
    hundredths = st.integers(0, 100)

    @given(st.integers(1, 2000), hundredths, hundredths)
    @example(421, 86, 81)
    @example(422, 86, 81)
    @example(422, 81, 86)
    @example(10, 0, 0)
    @example(1, 100, 0)
    @example(8, 0, 30)
    @example(9, 0, 30)
    def check(n, a, b):
        p, q = Fraction(a, 100), Fraction(b, 100)
        variance = (p * (1 - p) + q * (1 - q)) / n
        expected = (p - q) ** 2 > Fraction(196, 100) ** 2 * variance
        got = tell_apart(n, a / 100, b / 100)
        assert bool(got) == expected, f"{n} images each, {a / 100} and {b / 100}: {got}"

    check()


def is_rarely_fooled(tell_apart):
    """Where both true proportions are .7, it sees a difference in about 1 of 20 experiments.

    All outcomes of 60 images each, with their probabilities.
    """
    probability = [math.comb(60, k) * 0.7**k * 0.3 ** (60 - k) for k in range(61)]
    fooled = 0.0
    for i in range(61):
        for j in range(61):
            if tell_apart(60, i / 60, j / 60):
                fooled += probability[i] * probability[j]
    assert 0.03 < fooled < 0.07, (
        f"two proportions of .7: it sees a difference with probability {fooled:.3f}"
    )


# --- Properties of `bits_per_token` ---
def two_of_eight_codes(ids, hidden):
    """Codes 0 and 1 of 8 are equally likely and the others impossible: 1 bit per token."""
    logits = torch.full((int(hidden.sum()), 8), float("-inf"))
    logits[:, :2] = 0
    return logits


def one_bit_or_two(ids, hidden):
    """Code 0 has probability 1/2 where one token is hidden, 1/4 where two are: 1 bit or 2."""
    table = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    counts = hidden.sum(dim=1)
    row_of_token = (counts > 1).long().repeat_interleave(counts)
    return table[row_of_token]


def bits_have_an_interval(bits_per_token):
    """The interval is 1.96 standard errors of the images' own costs."""
    model = measures.MaskedModel(8, two_of_eight_codes)
    ids = torch.zeros(20, 4, dtype=torch.int64)
    got = bits_per_token(model, ids, measures.no_context, 0)
    assert got["n"] == 20, f"n of 20 images is {got['n']}"
    for key in ("value", "low", "high"):
        assert math.isclose(got[key], 1, rel_tol=1e-6), f"all images cost 1 bit a token: {got}"

    # With two tokens, half of the images have one hidden, the others both.
    model = measures.MaskedModel(2, one_bit_or_two)
    ids = torch.zeros(40, 2, dtype=torch.int64)
    got = bits_per_token(model, ids, measures.no_context, 0)
    answer = f"20 images cost 1 bit a token, 20 cost 2: {got}"
    assert math.isclose(got["value"], 1.5, rel_tol=1e-5), answer
    expected = 1.96 * (0.25 * 40 / 39) ** 0.5 / 40**0.5
    above, below = got["high"] - got["value"], got["value"] - got["low"]
    assert math.isclose(above, expected, rel_tol=1e-3), f"{answer}, not {expected:.3f} up"
    assert math.isclose(below, expected, rel_tol=1e-3), f"{answer}, not {expected:.3f} down"


# --- Properties of `interval` ---
def interval_of_a_mean(interval):
    """The interval of a mean holds the true mean in about 95 % of samples."""

    def interval_of(points):
        return interval(lambda half: float(half.mean()), points)

    measures.holds_the_truth_19_times_in_20(interval_of)


def is_half_of(rows, size, first):
    """Whether rows are half of the numbers first, first + 1, ..., without repetition."""
    distinct = set(rows)
    return len(rows) == len(distinct) == size // 2 and distinct <= set(range(first, first + size))


def measures_halves_of_each_set(interval):
    """Measures everything once, then `rounds` times a half of each set.

    A half has no image twice, and each round has another half.
    """

    @given(st.integers(4, 15), st.integers(4, 15), st.integers(2, 6))
    @example(7, 12, 3)
    def check(M, other, rounds):
        pairs = []

        def measure(a, b):
            pairs.append((a[:, 0].tolist(), b[:, 0].tolist()))
            return float(len(pairs))

        first, second = torch.arange(M)[:, None], 100 + torch.arange(other)[:, None]
        got = interval(measure, first, second, rounds=rounds)
        case = f"sets of {M} and {other} images, {rounds} rounds"
        assert len(pairs) == rounds + 1, f"{case}: measured {len(pairs)} times"
        whole = [(a, b) for a, b in pairs if len(a) == M]
        halves = [(a, b) for a, b in pairs if len(a) != M]
        assert len(whole) == 1 and len(whole[0][1]) == other, f"{case}: everything once"
        for a, b in halves:
            assert is_half_of(a, M, 0), f"{case}: a half of 0 to {M - 1} is {a}"
            assert is_half_of(b, other, 100), f"{case}: a half of 100 to {99 + other} is {b}"
        assert got["n"] == M, f"{case}: n is {got['n']}"

    check()
    distinct = set()

    def measure(a):
        distinct.add(tuple(sorted(a[:, 0].tolist())))
        return 0.0

    interval(measure, torch.arange(40)[:, None], rounds=10)
    assert len(distinct) == 11, f"of 10 halves of 40 images only {len(distinct) - 1} differ"


def ends_are_around_the_value(interval):
    """Value: the measure of everything. Ends: 1.96 standard deviations of the halves from it."""
    values = []

    def measure(x):
        # About four times as large for everything as for a half.
        values.append(float(x.sum() ** 2))
        return values[-1]

    points = torch.arange(1, 21, dtype=torch.float64)[:, None]
    got = interval(measure, points, rounds=12)
    whole = max(values)
    halves = [value for value in values if value != whole]
    error = float(torch.tensor(halves).double().std())
    ends = {"value": whole, "low": whole - 1.96 * error, "high": whole + 1.96 * error}
    for name, expected in ends.items():
        assert math.isclose(got[name], expected, rel_tol=1e-4), (
            f"{name} is {got[name]}, not {expected}: halves {halves[:3]}..., whole {whole}"
        )
    again = interval(measure, points, rounds=12)
    assert again == got, f"the same set twice: {got}, then {again}"


def halves_are_any_halves(interval):
    """Every half of a set is drawn as often as any other."""
    rows = []

    def measure(x):
        rows.append(x[:, 0].tolist())
        return 0.0

    interval(measure, torch.arange(6)[:, None], rounds=1500)
    masks = torch.zeros(1500, 6, dtype=torch.bool)
    for mask, row in zip(masks, [row for row in rows if len(row) == 3], strict=True):
        mask[row] = True
    measures.sets_come_as_often(masks)


# --- Planted bugs: wilson ---
def wald(right, n):
    """The usual interval, too narrow near 0 and 1."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    error = Z * (p * (1 - p) / n) ** 0.5
    return max(0.0, p - error), min(1.0, p + error)


def wilson_with(right, n, z=Z, inside=4, centre=2, scaled=True):
    """Wilson's interval, with switches that break it."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    middle = p + z * z / (centre * n)
    spread = z * (p * (1 - p) / n + z * z / (inside * n * n)) ** 0.5
    scale = 1 + z * z / n if scaled else 1
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def ninety_percent(right, n):
    """Takes z of a 90 % interval."""
    return wilson_with(right, n, z=1.644854)


def root_without_the_four(right, n):
    """Forgets the 4 below the root."""
    return wilson_with(right, n, inside=1)


def middle_without_the_two(right, n):
    """Forgets the 2 of the middle."""
    return wilson_with(right, n, centre=1)


def not_scaled(right, n):
    """Forgets to divide by 1 + z^2 / n."""
    return wilson_with(right, n, scaled=False)


def zero_of_nothing(right, n):
    """Is certain of 0 where there are no images."""
    return (0.0, 0.0) if n == 0 else wilson_with(right, n)


# --- Planted bugs: tell_apart ---
def error_of_one_proportion(n, p, q):
    """Takes q as if it were known exactly."""
    return n * (p - q) ** 2 > 1.96**2 * p * (1 - p)


def pooled(n, p, q):
    """Takes the variance of the mean proportion for both."""
    mean = (p + q) / 2
    return n * (p - q) ** 2 > 1.96**2 * 2 * mean * (1 - mean)


def one_error(n, p, q):
    """Asks for one standard error, not 1.96."""
    return n * (p - q) ** 2 > p * (1 - p) + q * (1 - q)


def only_if_p_is_larger(n, p, q):
    """Forgets that q may be the larger one."""
    return p > q and tell_apart(n, p, q)


def errors_added(n, p, q):
    """Adds standard errors, where variances add."""
    return abs(p - q) > 1.96 * ((p * (1 - p) / n) ** 0.5 + (q * (1 - q) / n) ** 0.5)


def divides(n, p, q):
    """Divides by 0 where both proportions are 0 or 1."""
    return abs(p - q) / ((p * (1 - p) + q * (1 - q)) / n) ** 0.5 > 1.96


def mean_of_variances(n, p, q):
    """Takes the mean of the variances instead of their sum."""
    return tell_apart(2 * n, p, q)


# --- Planted bugs: bits_per_token ---
def even_counts(M, N, generator):
    """The correct counts of hidden tokens (M,): 1 to N, equally often."""
    return 1 + (2 * torch.randperm(M, generator=generator) + 1) * N // (2 * M)


def cosine_counts(M, N, generator):
    return schedule.mask_counts(schedule.sample_ratios(M, generator), N)


def random_counts(M, N, generator):
    return torch.randint(1, N + 1, (M,), generator=generator)


def all_tokens(M, N, generator):
    return torch.full((M,), N)


def one_token(M, N, generator):
    return torch.ones(M, dtype=torch.long)


def nats_and_masks(model, ids, context, seed, counts=even_counts):
    """Mean nats of each image's hidden tokens (M,), and which tokens are hidden (M, N)."""
    M, N = ids.shape
    generator = torch.Generator().manual_seed(seed)
    hidden = schedule.random_masks(counts(M, N, generator), N, generator)
    return hidden_nll(model, ids, context, hidden), hidden


def bits_hiding(model, ids, context, seed, masks, counts=even_counts):
    """Bits with the tokens that masks(counts, N, generator) hides."""
    M, N = ids.shape
    generator = torch.Generator().manual_seed(seed)
    hidden = masks(counts(M, N, generator), N, generator)
    return mean_of(hidden_nll(model, ids, context, hidden) / math.log(2))


def first_tokens_hidden(model, ids, context, seed=0):
    """Hides the first tokens: another order of tokens may have another price."""

    def masks(counts, N, generator):
        return torch.arange(N) < counts[:, None]

    return bits_hiding(model, ids, context, seed, masks)


def runs_of_tokens_hidden(model, ids, context, seed=0):
    """Hides neighbours, which are harder to guess than tokens here and there."""

    def masks(counts, N, generator):
        first = torch.randint(N, (len(counts), 1), generator=generator)
        return (torch.arange(N) - first) % N < counts[:, None]

    return bits_hiding(model, ids, context, seed, masks)


def counts_in_order(model, ids, context, seed=0):
    """The first images have few tokens hidden, always."""

    def counts(M, N, generator):
        return 1 + torch.arange(M) * N // M

    return bits_hiding(model, ids, context, seed, schedule.random_masks, counts)


def bits_with_counts(model, ids, context, seed, counts):
    nats, _ = nats_and_masks(model, ids, context, seed, counts)
    return mean_of(nats / math.log(2))


def nats_for_bits(model, ids, context, seed=0):
    """Gives nats, not bits."""
    return mean_of(nats_and_masks(model, ids, context, seed)[0])


def counts_of_training(model, ids, context, seed=0):
    """Weighs the counts as training does."""
    return bits_with_counts(model, ids, context, seed, cosine_counts)


def always_all_hidden(model, ids, context, seed=0):
    """Never shows the model a token."""
    return bits_with_counts(model, ids, context, seed, all_tokens)


def counts_even_on_average(model, ids, context, seed=0):
    """Draws each count on its own: they are even only on average, and the result varies more."""
    return bits_with_counts(model, ids, context, seed, random_counts)


def always_one_hidden(model, ids, context, seed=0):
    """Gives a price below the entropy."""
    return bits_with_counts(model, ids, context, seed, one_token)


def mean_over_tokens(model, ids, context, seed=0):
    """Images with more hidden tokens count more."""
    nats, hidden = nats_and_masks(model, ids, context, seed)
    nats = nats * hidden.sum(dim=1) * len(ids) / hidden.sum()
    return mean_of(nats / math.log(2))


def bits_without_error(model, ids, context, seed=0):
    """Gives an interval without width."""
    nats, _ = nats_and_masks(model, ids, context, seed)
    result = mean_of(nats / math.log(2))
    return result | {"low": result["value"], "high": result["value"]}


def error_of_one_image(model, ids, context, seed=0):
    """Takes the standard deviation of one image for the error of the mean."""
    bits = nats_and_masks(model, ids, context, seed)[0] / math.log(2)
    return intervals.around(float(bits.mean()), float(bits.std()), len(bits))


# --- Planted bugs: frechet ---
def squared_distance(a, b):
    """Between the means of features (M, C) and (M', C)."""
    return (a.mean(dim=0) - b.mean(dim=0)).square().sum()


def covariance(x):
    centred = x - x.mean(dim=0)
    return centred.T @ centred / (len(x) - 1)


def trace_of_root(S, T):
    return torch.linalg.eigvals(S @ T).real.clamp(min=0).sqrt().sum()


def frechet_with(
    a, b, of_means=squared_distance, covariance=covariance, trace_of_root=trace_of_root, times=2
):
    """The distance, with any part replaced."""
    a, b = a.double(), b.double()
    S, T = covariance(a), covariance(b)
    return float(of_means(a, b) + S.trace() + T.trace() - times * trace_of_root(S, T))


def frechet_with_biased_covariance(a, b):
    """Divides by M, not M - 1."""
    return frechet_with(a, b, covariance=lambda x: covariance(x) * (len(x) - 1) / len(x))


def frechet_not_centred(a, b):
    """Forgets to subtract the mean."""
    return frechet_with(a, b, covariance=lambda x: x.T @ x / (len(x) - 1))


def frechet_with_one_root(a, b):
    """Forgets the 2 before the root."""
    return frechet_with(a, b, times=1)


def frechet_with_mean_over_features(a, b):
    """Averages the squared differences of the means, where the formula sums."""
    return frechet_with(a, b, of_means=lambda x, y: squared_distance(x, y) / x.shape[1])


def frechet_with_distance_not_squared(a, b):
    """Takes the distance of the means without its square."""
    return frechet_with(a, b, of_means=lambda x, y: squared_distance(x, y).sqrt())


def frechet_with_variances_only(a, b):
    """Takes the features as independent."""
    return frechet_with(a, b, covariance=lambda x: covariance(x).diag().diag())


def frechet_with_roots_of_elements(a, b):
    """The root of a matrix is not the matrix of roots."""
    return frechet_with(a, b, trace_of_root=lambda S, T: (S @ T).abs().sqrt().trace())


def frechet_in_float32(a, b):
    a, b = a.float(), b.float()
    S, T = torch.cov(a.T).view(a.shape[1], -1), torch.cov(b.T).view(a.shape[1], -1)
    return float(squared_distance(a, b) + S.trace() + T.trace() - 2 * trace_of_root(S, T))


def frechet_with_root_of_traces(a, b):
    """The trace of a root is not the root of traces."""
    return frechet_with(a, b, trace_of_root=lambda S, T: (S.trace() * T.trace()).sqrt())


# --- Planted bugs: kid ---
def kernel_with(a, b, power=3, one=1):
    return (a.double() @ b.double().T / a.shape[1] + one) ** power


def kernel_not_scaled(a, b):
    return (a.double() @ b.double().T + 1) ** 3


def mean_within(x, kernel):
    """The correct mean over pairs of two different images."""
    pairs = kernel(x, x)
    return (pairs.sum() - pairs.trace()) / (len(x) * (len(x) - 1))


def kid_with(a, b, kernel=kernel_with, within=mean_within, across=2):
    """The squared kernel distance, with any part replaced."""
    return float(within(a, kernel) + within(b, kernel) - across * kernel(a, b).mean())


def kid_with_pairs_of_itself(a, b):
    """Biased: pairs each image with itself, too."""
    return kid_with(a, b, within=lambda x, kernel: kernel(x, x).mean())


def kid_divided_by_all_pairs(a, b):
    """Leaves the diagonal out of the sum, but not out of the number of pairs."""

    def within(x, kernel):
        return mean_within(x, kernel) * (len(x) - 1) / len(x)

    return kid_with(a, b, within=within)


def kid_with_square(a, b):
    """Takes the power 2, not 3."""
    return kid_with(a, b, kernel=lambda x, y: kernel_with(x, y, power=2))


def kid_without_the_one(a, b):
    """Forgets + 1 in the kernel."""
    return kid_with(a, b, kernel=lambda x, y: kernel_with(x, y, one=0))


def kid_not_scaled(a, b):
    """Forgets to divide by the number of features."""
    return kid_with(a, b, kernel=kernel_not_scaled)


def kid_with_one_across(a, b):
    """Forgets the 2 before the mean across the sets."""
    return kid_with(a, b, across=1)


def kid_in_float32(a, b):
    return kid_with(a, b, kernel=lambda x, y: (x.float() @ y.float().T / x.shape[1] + 1) ** 3)


def kid_with_first_set_twice(a, b):
    """Takes the first set's own pairs twice."""
    within = mean_within(a, kernel_with)
    return float(2 * within - 2 * kernel_with(a, b).mean())


# --- Planted bugs: precision ---
def reaches(real, place):
    """The distance of each real image to the one at `place` of its sorted neighbours: (M',).

    Place 0 is the image itself, so place k is the right one.
    """
    return torch.cdist(real, real).sort(dim=1).values[:, place]


def within_reach(generated, real, reach):
    """Which generated images lie within the reach (M',) of which real ones: (M, M')."""
    return torch.cdist(generated.double(), real.double()) <= reach


def precision_with_reach(generated, real, reach):
    return float(within_reach(generated, real, reach).any(dim=1).double().mean())


def counts_itself_as_neighbour(generated, real, k=3):
    """Takes each image as its own nearest neighbour."""
    return precision_with_reach(generated, real, reaches(real.double(), k - 1))


def one_neighbour_too_far(generated, real, k=3):
    """Reaches to neighbour k + 1."""
    return precision_with_reach(generated, real, reaches(real.double(), k + 1))


def within_reach_of_all(generated, real, k=3):
    """Asks every real image to reach it, not any."""
    inside = within_reach(generated, real, reaches(real.double(), k))
    return float(inside.all(dim=1).double().mean())


def within_reach_of_the_first(generated, real, k=3):
    """Looks at the first real image only."""
    inside = within_reach(generated, real, reaches(real.double(), k))
    return float(inside[:, 0].double().mean())


def recall(generated, real, k=3):
    """Exchanges the sets."""
    if k + 1 > len(generated):
        return 0.0
    return precision_with_reach(real, generated, reaches(generated.double(), k))


def mean_reach_for_all(generated, real, k=3):
    """Gives all real images the same reach."""
    mean = reaches(real.double(), k).mean()
    return precision_with_reach(generated, real, mean.expand(len(real)))


def strictly_within(generated, real, k=3):
    """Leaves out what is exactly as far away as the neighbour."""
    real = real.double()
    inside = torch.cdist(generated.double(), real) < reaches(real, k)
    return float(inside.any(dim=1).double().mean())


def half_the_reach(generated, real, k=3):
    """Takes the distance to the neighbour for a diameter."""
    return precision_with_reach(generated, real, reaches(real.double(), k) / 2)


# --- Planted bugs: interval ---
def random_half(x, generator):
    """A correct half."""
    return x[torch.randperm(len(x), generator=generator)[: len(x) // 2]]


def half_with_repetition(x, generator):
    return x[torch.randint(len(x), (len(x) // 2,), generator=generator)]


def random_quarter(x, generator):
    return x[torch.randperm(len(x), generator=generator)[: len(x) // 4]]


def run_of_half(x, generator):
    """Neighbours, which in a set that is sorted look alike."""
    first = int(torch.randint(len(x), (), generator=generator))
    return x.roll(-first, dims=0)[: len(x) // 2]


def first_half(x, generator):
    return x[: len(x) // 2]


def measures_of_parts(measure, sets, rounds, part=random_half, generator=None):
    """The measure of random parts of each set, `rounds` times: (rounds,)."""
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(rounds):
        parts = [part(x, generator) for x in sets]
        values.append(measure(*parts))
    return torch.tensor(values).double()


def interval_with_part(measure, sets, rounds, part):
    of_parts = measures_of_parts(measure, sets, rounds, part)
    return intervals.around(measure(*sets), float(of_parts.std()), len(sets[0]))


def bootstrap(measure, *sets, rounds=20):
    """Takes images twice, and a copy passes for a near neighbour."""
    return interval_with_part(measure, sets, rounds, half_with_repetition)


def quarters(measure, *sets, rounds=20):
    """A quarter of a set varies more than the set itself does."""
    return interval_with_part(measure, sets, rounds, random_quarter)


def one_standard_error(measure, *sets, rounds=20):
    """Gives an interval of 68 %."""
    error = float(measures_of_parts(measure, sets, rounds).std()) / 1.96
    return intervals.around(measure(*sets), error, len(sets[0]))


def divides_by_root_of_rounds(measure, *sets, rounds=20):
    """More rounds would make the interval as narrow as one likes."""
    error = float(measures_of_parts(measure, sets, rounds).std()) / rounds**0.5
    return intervals.around(measure(*sets), error, len(sets[0]))


def around_the_mean_of_halves(measure, *sets, rounds=20):
    """Halves have a bias of their own."""
    halves = measures_of_parts(measure, sets, rounds)
    around_mean = intervals.around(float(halves.mean()), float(halves.std()), len(sets[0]))
    return around_mean | {"value": measure(*sets)}


def runs(measure, *sets, rounds=20):
    return interval_with_part(measure, sets, rounds, run_of_half)


def same_half_each_time(measure, *sets, rounds=20):
    """Nothing varies."""
    return interval_with_part(measure, sets, rounds, first_half)


def halves_of_the_first_set_only(measure, *sets, rounds=20):
    """Misses what the other sets add to the error."""

    def measure_with_others(half):
        return measure(half, *sets[1:])

    halves = measures_of_parts(measure_with_others, sets[:1], rounds)
    return intervals.around(measure(*sets), float(halves.std()), len(sets[0]))


def n_of_a_half(measure, *sets, rounds=20):
    """Gives the size of a half as n."""
    result = interval_with_part(measure, sets, rounds, random_half)
    return result | {"n": len(sets[0]) // 2}


def other_halves_each_run(measure, *sets, rounds=20):
    """The same sets get another interval in the next call."""
    generator = torch.Generator()
    generator.seed()
    halves = measures_of_parts(measure, sets, rounds, generator=generator)
    return intervals.around(measure(*sets), float(halves.std()), len(sets[0]))


EXERCISES = [
    Exercise(
        "wilson",
        intervals.wilson,
        (ends_are_just_in_reach, knows_nothing_of_nothing, holds_nineteen_times_in_twenty),
        hint=(
            "square |t - p| = z sqrt(t (1 - t) / n): it is a quadratic equation in t, and its two "
            "solutions are the ends"
        ),
        wrong=(
            wald,
            ninety_percent,
            root_without_the_four,
            middle_without_the_two,
            not_scaled,
            zero_of_nothing,
        ),
    ),
    Exercise(
        "tell_apart",
        tell_apart,
        (is_the_ratio_to_the_error, is_rarely_fooled),
        hint="compare squares: then nothing is divided by a variance that may be 0",
        wrong=(
            error_of_one_proportion,
            pooled,
            one_error,
            only_if_p_is_larger,
            errors_added,
            divides,
            mean_of_variances,
        ),
    ),
    Exercise(
        "bits_per_token",
        likelihood.bits_per_token,
        (
            measures.bits_are_those_of_an_exact_model,
            measures.a_guess_costs_log2_of_k,
            measures.counts_are_spread_evenly,
            bits_have_an_interval,
            measures.hides_random_tokens_of_random_images,
        ),
        hint="spread the numbers 0 to M - 1 over N counts, then shuffle; a nat is 1 / ln 2 bits",
        wrong=(
            nats_for_bits,
            counts_of_training,
            always_all_hidden,
            counts_even_on_average,
            always_one_hidden,
            mean_over_tokens,
            bits_without_error,
            error_of_one_image,
            first_tokens_hidden,
            runs_of_tokens_hidden,
            counts_in_order,
        ),
    ),
    Exercise(
        "frechet",
        distances.frechet,
        (
            measures.frechet_is_its_formula,
            measures.nothing_lies_between_a_set_and_itself,
            measures.grows_with_the_noise,
            measures.frechet_is_computed_in_double,
        ),
        hint=(
            "the root of a matrix is not the matrix of roots; for its trace you need the "
            "eigenvalues only"
        ),
        wrong=(
            frechet_with_biased_covariance,
            frechet_not_centred,
            frechet_with_one_root,
            frechet_with_mean_over_features,
            frechet_with_distance_not_squared,
            frechet_with_variances_only,
            frechet_with_roots_of_elements,
            frechet_with_root_of_traces,
            frechet_in_float32,
        ),
    ),
    Exercise(
        "kid",
        distances.kid,
        (
            measures.kid_is_its_sums,
            measures.is_zero_on_average_for_halves,
            measures.kid_is_computed_in_double,
        ),
        hint=(
            "there are M (M - 1) pairs of different images: take the diagonal out of the sum, and "
            "out of the number you divide by"
        ),
        wrong=(
            kid_with_pairs_of_itself,
            kid_divided_by_all_pairs,
            kid_with_square,
            kid_without_the_one,
            kid_not_scaled,
            kid_with_one_across,
            kid_with_first_set_twice,
            kid_in_float32,
        ),
    ),
    Exercise(
        "precision",
        distances.precision,
        (
            measures.precision_counts_what_lies_inside,
            measures.tells_dull_from_strange,
            measures.reaches_as_far_as_its_neighbour,
        ),
        hint=(
            "in the table of distances between real images, each image has one neighbour too many: "
            "which?"
        ),
        wrong=(
            counts_itself_as_neighbour,
            one_neighbour_too_far,
            within_reach_of_all,
            within_reach_of_the_first,
            recall,
            mean_reach_for_all,
            half_the_reach,
            strictly_within,
        ),
    ),
    Exercise(
        "interval",
        intervals.interval,
        (
            interval_of_a_mean,
            measures_halves_of_each_set,
            ends_are_around_the_value,
            halves_are_any_halves,
        ),
        hint="the first entries of a permutation are a draw without replacement",
        wrong=(
            bootstrap,
            quarters,
            one_standard_error,
            divides_by_root_of_rounds,
            around_the_mean_of_halves,
            same_half_each_time,
            runs,
            halves_of_the_first_set_only,
            n_of_a_half,
            other_halves_each_run,
        ),
    ),
]
