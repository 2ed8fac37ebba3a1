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


def our_decision(n, p, q):
    """As lesson 11 has it; without the division, that shares of 0 and 1 don't trip over."""
    return n * (p - q) ** 2 > 1.96**2 * (p * (1 - p) + q * (1 - q))


# Properties


def ends_are_just_in_reach(wilson):
    """An end t inside (0, 1) is exactly z of its own standard errors from the measured share; 0 and 1 are for 0 of n and n of n."""

    @given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    @example((0, 1))
    @example((3, 4))
    @example((40, 40))
    def check(case):
        right, n = case
        low, high = wilson(right, n)
        said = f"{right} of {n}: {low} to {high}"
        assert 0 <= low <= right / n + 1e-9 and right / n - 1e-9 <= high <= 1, said
        for t, edge in ((low, right == 0), (high, right == n)):
            if edge:
                assert math.isclose(t, right / n, abs_tol=1e-9), (
                    f"{said}; nothing speaks against {right / n:.0f}"
                )
            else:
                wanted = 1.959964 * math.sqrt(t * (1 - t) / n)
                assert math.isclose(abs(t - right / n), wanted, rel_tol=1e-4), (
                    f"{said}; {t:.4f} is {abs(t - right / n):.4f} away, not {wanted:.4f}"
                )

    check()


def knows_nothing_of_nothing(wilson):
    assert tuple(wilson(0, 0)) == (0, 1), f"0 of 0: {wilson(0, 0)}"


def holds_nineteen_times_in_twenty(wilson):
    """All outcomes, with their chances."""
    for n, t in ((40, 0.5), (40, 0.8), (100, 0.9), (60, 0.98)):
        ends = [wilson(k, n) for k in range(n + 1)]
        holds = sum(
            math.comb(n, k) * t**k * (1 - t) ** (n - k)
            for k, (low, high) in enumerate(ends)
            if low <= t <= high
        )
        assert 0.92 < holds < 0.98, (
            f"of {n} pictures, with a true share of {t}, it holds the truth in {holds:.3f}"
        )


def is_the_ratio_to_the_error(tell_apart):
    """In fractions."""
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
        wanted = (p - q) ** 2 > Fraction(196, 100) ** 2 * (p * (1 - p) + q * (1 - q)) / n
        got = tell_apart(n, a / 100, b / 100)
        assert bool(got) == wanted, f"{n} pictures each, {a / 100} and {b / 100}: {got}"

    check()


def is_rarely_fooled(tell_apart):
    """Both shares are truly .7: of all outcomes of 60 pictures each, about 1 in 20 says that they differ."""
    chance = [math.comb(60, k) * 0.7**k * 0.3 ** (60 - k) for k in range(61)]
    fooled = sum(
        chance[i] * chance[j]
        for i in range(61)
        for j in range(61)
        if tell_apart(60, i / 60, j / 60)
    )
    assert 0.03 < fooled < 0.07, f"says so in {fooled:.3f} of the experiments"


def bits_have_an_interval(bits_per_token):
    """1.96 standard errors, of the pictures' own costs: here each picture costs 1 bit or 2."""
    model = measures.Says(
        8,
        lambda ids, where: torch.zeros(int(where.sum()), 8).index_fill_(
            1, torch.arange(2, 8), float("-inf")
        ),
    )
    found = bits_per_token(model, torch.zeros(20, 4, dtype=torch.int64), lambda rows: None, 0)
    assert found["n"] == 20 and all(
        math.isclose(found[key], 1, rel_tol=1e-6) for key in ("value", "low", "high")
    ), f"all cost 1 bit: {found}"
    uneven = measures.Says(
        2,
        lambda ids, where: torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])[
            (where.sum(1) > 1).long().repeat_interleave(where.sum(1))
        ],
    )
    found = bits_per_token(
        uneven, torch.zeros(40, 2, dtype=torch.int64), lambda rows: None, 0
    )  # half cost 1 bit, half 2
    wanted = 1.96 * (0.25 * 40 / 39) ** 0.5 / 40**0.5
    assert math.isclose(found["value"], 1.5, rel_tol=1e-5), (
        f"20 pictures cost 1 bit a token, 20 cost 2: {found}"
    )
    assert math.isclose(found["high"] - found["value"], wanted, rel_tol=1e-3), (
        f"20 cost 1, 20 cost 2: {found}, not {wanted:.3f} up"
    )
    assert math.isclose(found["value"] - found["low"], wanted, rel_tol=1e-3), (
        f"20 cost 1, 20 cost 2: {found}, not {wanted:.3f} down"
    )


def interval_of_a_mean(interval):
    measures.holds_the_truth_19_times_in_20(lambda x: interval(lambda half: float(half.mean()), x))


def measures_halves_of_each_set(interval):
    """Once everything, then `rounds` times a half of each set: no picture twice, and another half each time."""

    @given(st.integers(4, 15), st.integers(4, 15), st.integers(2, 6))
    @example(7, 12, 3)
    def check(M, other, rounds):
        asked = []
        got = interval(
            lambda a, b: asked.append((a, b)) or len(asked) * 1.0,
            torch.arange(M)[:, None],
            100 + torch.arange(other)[:, None],
            rounds=rounds,
        )
        said = f"sets of {M} and {other} pictures, {rounds} rounds"
        assert len(asked) == rounds + 1, f"{said}: measured {len(asked)} times"
        whole = [pair for pair in asked if len(pair[0]) == M]
        halves = [pair for pair in asked if len(pair[0]) != M]
        assert len(whole) == 1 and len(whole[0][1]) == other, f"{said}: everything once"
        for pair in halves:
            for x, size, first in zip(pair, (M, other), (0, 100)):
                rows = x[:, 0].tolist()
                assert len(rows) == len({*rows}) == size // 2, f"{said}: a half is {rows}"
                assert {*rows} <= {*range(first, first + size)}, (
                    f"{said}: a half of the wrong set, {rows}"
                )
        assert got["n"] == M, f"{said}: n is {got['n']}"

    check()
    seen = []
    interval(
        lambda a: seen.append(tuple(sorted(a[:, 0].tolist()))) or 0.0,
        torch.arange(40)[:, None],
        rounds=10,
    )
    assert len({*seen}) == 11, f"of 10 halves of 40 pictures only {len({*seen}) - 1} differ"


def ends_are_around_the_value(interval):
    """The halves' standard deviation, around the measure of everything, wherever the halves lie."""
    asked = []

    def measure(x):
        asked.append(float(x.sum() ** 2))  # four times as large for the whole
        return asked[-1]

    points = torch.arange(1, 21, dtype=torch.float64)[:, None]
    got = interval(measure, points, rounds=12)
    whole = max(asked)
    error = float(torch.tensor([x for x in asked if x != whole]).double().std())
    for name, wanted in (
        ("value", whole),
        ("low", whole - 1.96 * error),
        ("high", whole + 1.96 * error),
    ):
        assert math.isclose(got[name], wanted, rel_tol=1e-4), (
            f"{name} is {got[name]}, not {wanted}: halves {asked[1:4]}..., whole {whole}"
        )
    again = interval(measure, points, rounds=12)
    assert again == got, f"the same set twice: {got}, then {again}"


# Planted bugs


def wald(right, n):
    if n == 0:
        return 0.0, 1.0
    p = right / n
    error = 1.959964 * (p * (1 - p) / n) ** 0.5
    return max(0.0, p - error), min(1.0, p + error)


def wilson_with(z=1.959964, inside=4, centre=2, shrink=True, nothing=(0.0, 1.0)):
    def wrong(right, n):
        if n == 0:
            return nothing
        p = right / n
        middle, spread, whole = (
            p + z * z / (centre * n),
            z * (p * (1 - p) / n + z * z / (inside * n * n)) ** 0.5,
            1 + z * z / n if shrink else 1,
        )
        return max(0.0, (middle - spread) / whole), min(1.0, (middle + spread) / whole)

    return wrong


def of_one_share(n, p, q):
    return n * (p - q) ** 2 > 1.96**2 * p * (1 - p)


def pooled(n, p, q):
    mean = (p + q) / 2
    return n * (p - q) ** 2 > 1.96**2 * 2 * mean * (1 - mean)


def one_error(n, p, q):
    return n * (p - q) ** 2 > p * (1 - p) + q * (1 - q)


def only_if_p_is_larger(n, p, q):
    return p > q and our_decision(n, p, q)


def errors_added(n, p, q):
    return abs(p - q) > 1.96 * ((p * (1 - p) / n) ** 0.5 + (q * (1 - q) / n) ** 0.5)


def divides(n, p, q):
    return abs(p - q) / ((p * (1 - p) + q * (1 - q)) / n) ** 0.5 > 1.96


def of_the_mean_variance(n, p, q):
    return our_decision(2 * n, p, q)


def bits_with(
    counts=lambda M, N, g: 1 + torch.randperm(M, generator=g) * N // M,
    unit=math.log(2),
    summary=mean_of,
    weigh=False,
):
    def wrong(model, ids, context, seed=0):
        M, N = ids.shape
        generator = torch.Generator().manual_seed(seed)
        hidden = schedule.random_masks(counts(M, N, generator), N, generator)
        nats = hidden_nll(model, ids, context, hidden)
        if weigh:
            nats = nats * hidden.sum(1) * M / hidden.sum()
        return summary(nats / unit)

    return wrong


def no_error(values):
    return mean_of(values) | {"low": float(values.mean()), "high": float(values.mean())}


def of_one_picture(values):
    mean, error = float(values.mean()), 1.96 * float(values.std())
    return {"value": mean, "low": mean - error, "high": mean + error, "n": len(values)}


def frechet_with(
    unbiased=True, centred=True, root=2, means="sum", covariance=lambda x: x, product=None
):
    def wrong(a, b):
        a, b = a.double(), b.double()
        mean = (a.mean(0) - b.mean(0)).square()
        x, y = (v - v.mean(0) if centred else v for v in (a, b))
        s, t = (covariance(v.T @ v / (len(v) - (1 if unbiased else 0))) for v in (x, y))
        whole = (
            product(s, t) if product else torch.linalg.eigvals(s @ t).real.clamp(min=0).sqrt().sum()
        )
        return float(
            (
                mean.sum()
                if means == "sum"
                else mean.mean()
                if means == "mean"
                else mean.sum().sqrt()
            )
            + s.trace()
            + t.trace()
            - root * whole
        )

    return wrong


def kid_with(power=3, one=1, scale=True, itself=False, across=2, within=2, divide=1):
    def wrong(a, b):
        kernel = lambda x, y: (
            (x.double() @ y.double().T / (x.shape[1] if scale else 1) + one) ** power
        )
        inside = lambda x: float(
            (kernel(x, x).sum() - (0 if itself else kernel(x, x).trace()))
            / (len(x) * (len(x) - (0 if itself else divide)))
        )
        return (
            inside(a)
            + (inside(b) if within == 2 else inside(a))
            - across * float(kernel(a, b).mean())
        )

    return wrong


def precision_with(skip=1, of="real", many="any", reach=lambda x: x, swap=False):
    def wrong(drawn, real, k=3):
        drawn, real = drawn.double(), real.double()
        if swap:
            drawn, real = real, drawn
        far = torch.cdist(real, real).sort(dim=1).values
        if k + skip > far.shape[1]:
            return 0.0
        inside = torch.cdist(drawn, real) <= reach(far[:, k + skip - 1])
        return float(
            (
                inside.any(1)
                if many == "any"
                else inside.all(1)
                if many == "all"
                else inside[:, :1].any(1)
            )
            .double()
            .mean()
        )

    return wrong


def interval_with(
    part=2,
    again=False,
    z=1.96,
    root=False,
    middle=False,
    fixed=False,
    only_first=False,
    n=lambda sets: len(sets[0]),
    fewer=0,
    seeded=True,
):
    def wrong(measure, *sets, rounds=20):
        g = torch.Generator()
        g.manual_seed(0) if seeded else g.seed()

        def half(x):
            size = len(x) // part
            rows = (
                torch.randint(len(x), (size,), generator=g)
                if again
                else torch.arange(size)
                if fixed
                else torch.randperm(len(x), generator=g)[:size]
            )
            return x[rows]

        values = torch.tensor(
            [
                measure(*(half(x) if j == 0 or not only_first else x for j, x in enumerate(sets)))
                for _ in range(rounds - fewer)
            ]
        ).double()
        value, error = measure(*sets), float(values.std()) / (rounds**0.5 if root else 1)
        centre = float(values.mean()) if middle else value
        return {"value": value, "low": centre - z * error, "high": centre + z * error, "n": n(sets)}

    return wrong


EXERCISES = (
    Exercise(
        "wilson",
        intervals.wilson,
        (ends_are_just_in_reach, knows_nothing_of_nothing, holds_nineteen_times_in_twenty),
        "square |t - p| = z sqrt(t (1 - t) / n): it is a quadratic equation in t, and both solutions are wanted",
        (
            wald,
            wilson_with(z=1.644854),
            wilson_with(inside=1),
            wilson_with(centre=1),
            wilson_with(shrink=False),
            wilson_with(nothing=(0.0, 0.0)),
        ),
    ),
    Exercise(
        "tell_apart",
        our_decision,
        (is_the_ratio_to_the_error, is_rarely_fooled),
        "compare squares: nothing has to be divided by a variance that may be 0",
        (
            of_one_share,
            pooled,
            one_error,
            only_if_p_is_larger,
            errors_added,
            divides,
            of_the_mean_variance,
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
        ),
        "spread the numbers 0 to M - 1 over N counts, then shuffle; a nat is 1 / ln 2 bits",
        (
            bits_with(unit=1),
            bits_with(
                counts=lambda M, N, g: schedule.mask_counts(schedule.sample_ratios(M, g), N)
            ),  # as in training
            bits_with(counts=lambda M, N, g: torch.full((M,), N)),
            bits_with(
                counts=lambda M, N, g: torch.randint(1, N + 1, (M,), generator=g)
            ),  # right on average only
            bits_with(counts=lambda M, N, g: torch.ones(M, dtype=torch.long)),
            bits_with(weigh=True),  # a mean over tokens
            bits_with(summary=no_error),
            bits_with(summary=of_one_picture),
        ),
    ),
    Exercise(
        "frechet",
        distances.frechet,
        (
            measures.frechet_is_its_formula,
            measures.nothing_lies_between_a_set_and_itself,
            measures.grows_with_the_noise,
        ),
        "the root of a matrix is not the matrix of roots; its trace needs the eigenvalues only",
        (
            frechet_with(unbiased=False),
            frechet_with(centred=False),
            frechet_with(root=1),
            frechet_with(means="mean"),
            frechet_with(means="root"),
            frechet_with(covariance=lambda x: x.diag().diag()),
            frechet_with(
                product=lambda s, t: (s @ t).abs().sqrt().trace()
            ),  # the roots of the elements
            frechet_with(product=lambda s, t: (s.trace() * t.trace()).sqrt()),
        ),
    ),
    Exercise(
        "kid",
        distances.kid,
        (measures.kid_is_its_sums, measures.is_zero_on_average_for_halves),
        "M (M - 1) pairs: take the diagonal out of the sum, and out of what it is divided by",
        (
            kid_with(itself=True),
            kid_with(divide=0),
            kid_with(power=2),
            kid_with(one=0),
            kid_with(scale=False),
            kid_with(across=1),
            kid_with(within=1),
        ),
    ),
    Exercise(
        "precision",
        distances.precision,
        (measures.precision_counts_what_lies_inside, measures.tells_dull_from_strange),
        "in the table of distances among the real pictures each has one neighbour too many: which?",
        (
            precision_with(skip=0),
            precision_with(skip=2),
            precision_with(many="all"),
            precision_with(many="first"),
            precision_with(swap=True),  # recall
            precision_with(reach=lambda x: x.mean().expand_as(x)),
            precision_with(reach=lambda x: x / 2),
        ),
    ),
    Exercise(
        "interval",
        intervals.interval,
        (interval_of_a_mean, measures_halves_of_each_set, ends_are_around_the_value),
        "the first entries of a permutation are a draw without replacement",
        (
            interval_with(again=True),  # a bootstrap
            interval_with(part=4),
            interval_with(z=1.0),
            interval_with(root=True),
            interval_with(middle=True),
            interval_with(fixed=True),
            interval_with(only_first=True),
            interval_with(n=lambda sets: len(sets[0]) // 2),
            interval_with(seeded=False),
        ),
    ),
)
