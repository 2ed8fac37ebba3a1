"""Properties of measures (`metrics.py`): each against its definition, written out slowly in NumPy, and as it must behave."""

import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)


def cloud(seed: int, M: int, C: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """Features (M, C) in double precision, correlated."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(scale * rng.normal(size=(M, C)) @ rng.normal(size=(C, C)) + shift)


# --- frechet(a, b) ---
def frechet_is_its_formula(frechet):
    """Means and covariances, and the root of their product by its eigenvalues."""

    @given(seeds, st.integers(2, 30), st.integers(2, 30), st.integers(1, 8), st.floats(-2, 2))
    @example(0, 40, 3, 6, 0.5)
    @example(0, 2, 2, 1, 1.0)
    def check(seed, M, other, C, shift):
        a, b = cloud(seed, M, C), cloud(seed + 1, other, C, shift, 0.5)
        s, t = (np.atleast_2d(np.cov(x.numpy(), rowvar=False)) for x in (a, b))
        root = np.sqrt(np.clip(np.linalg.eigvals(s @ t).real, 0, None)).sum()
        wanted = float(((a.mean(0) - b.mean(0)) ** 2).sum()) + np.trace(s) + np.trace(t) - 2 * root
        got = float(frechet(a, b))
        assert math.isclose(got, wanted, rel_tol=1e-5, abs_tol=1e-5), (
            f"{M} and {other} points of {C} features, seed {seed}: {got}, not {wanted}"
        )

    check()


def nothing_lies_between_a_set_and_itself(frechet):
    @given(seeds, st.integers(2, 40), st.integers(1, 6))
    def check(seed, M, C):
        a = cloud(seed, M, C)
        assert abs(float(frechet(a, a))) <= 1e-6 * float(a.square().sum()), (
            f"{M} points of {C} features, seed {seed}: {float(frechet(a, a))}"
        )
        assert float(frechet(a, a + 1)) > 0.9 * C, "the means differ by 1 in each feature"

    check()


def grows_with_the_noise(frechet):
    """And is the same both ways round, and in another order."""
    a = cloud(0, 200, 5)
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(200, 5)))
    found = [float(frechet(a, a + sigma * noise)) for sigma in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert found == sorted(found) and found[0] < 1e-6 < found[1], (
        f"noise of 0, .5, 1, 2, 4: {found}"
    )
    b = cloud(2, 60, 5)
    assert math.isclose(float(frechet(a, b)), float(frechet(b.flip(0), a)), rel_tol=1e-8), (
        "not the same both ways round"
    )


# --- kid(a, b) ---
def kid_is_its_sums(kid):
    """All pairs, one by one; no picture with itself."""

    @given(seeds, st.integers(2, 8), st.integers(2, 8), st.integers(1, 5))
    @example(0, 2, 5, 3)
    def check(seed, M, other, C):
        a, b = (cloud(seed + i, m, C).tolist() for i, m in enumerate((M, other)))
        k = lambda x, y: (sum(u * v for u, v in zip(x, y)) / C + 1) ** 3
        within = lambda x: (
            sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j)
            / (len(x) * (len(x) - 1))
        )
        wanted = within(a) + within(b) - 2 * sum(k(x, y) for x in a for y in b) / (M * other)
        got = float(kid(torch.tensor(a).double(), torch.tensor(b).double()))
        assert math.isclose(got, wanted, rel_tol=1e-4, abs_tol=1e-4), (
            f"{M} and {other} points of {C} features, seed {seed}: {got}, not {wanted}"
        )

    check()


def is_zero_on_average_for_halves(kid):
    """Over many cuts of one set in two, its mean is about 0, and it is often negative; of another set it is neither."""
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 4)))
    found, other = [], []
    for i in range(60):
        order = torch.from_numpy(np.random.default_rng(i).permutation(400))
        found.append(float(kid(points[order[:60]], points[order[60:120]])))
        other.append(float(kid(points[order[:60]], points[order[60:120]] + 0.7)))
    error = np.std(found) / 60**0.5
    assert abs(np.mean(found)) < 4 * error, (
        f"mean {np.mean(found):.4f} with a standard error of {error:.4f}"
    )
    assert min(other) > max(found) and 10 < sum(x < 0 for x in found) < 50, (
        f"{sum(x < 0 for x in found)} of 60 are negative"
    )


# --- precision(drawn, real, k) ---
def precision_counts_what_lies_inside(precision):
    @given(seeds, st.integers(1, 8), st.integers(5, 9), st.integers(1, 3), st.integers(1, 3))
    @example(0, 5, 6, 2, 3)
    def check(seed, M, other, C, k):
        drawn, real = cloud(seed, M, C), cloud(seed + 1, other, C)
        far = lambda x, y: math.dist(x, y)
        reach = [
            sorted(far(x, y) for j, y in enumerate(real.tolist()) if i != j)[k - 1]
            for i, x in enumerate(real.tolist())
        ]
        inside = [any(far(d, x) <= r for x, r in zip(real.tolist(), reach)) for d in drawn.tolist()]
        got, wanted = float(precision(drawn, real, k)), sum(inside) / M
        assert math.isclose(got, wanted, abs_tol=1e-6), (
            f"{M} drawn and {other} real points, k = {k}, seed {seed}: {got}, not {wanted}"
        )

    check()


def tells_dull_from_strange(precision):
    """All drawn like one real picture: all real, little of it all. Drawn far away: nothing real."""
    real = torch.from_numpy(np.random.default_rng(0).normal(size=(100, 3)))
    dull = real[:1] + 1e-3 * torch.from_numpy(np.random.default_rng(1).normal(size=(100, 3)))
    assert precision(dull, real, 3) == 1.0 and precision(real, dull, 3) <= 0.02, (
        "one picture, drawn a hundred times"
    )
    assert precision(real + 50, real, 3) == 0.0 and precision(real, real, 3) == 1.0


# --- bits_per_token(model, ids, context, seed) ---
class Says:
    """A masked model of K codes: logits(ids, where) -> (M, K), of the tokens `where` is True."""

    def __init__(self, K: int, logits):
        self.mask_id, self.logits = K, logits

    def __call__(self, ids, context, where):
        return self.logits(ids, where)


def knows(joint: np.ndarray) -> Says:
    """With the exact conditionals of a joint distribution, an array of N axes of K codes."""
    N, K = joint.ndim, joint.shape[0]

    def logits(ids, where):
        rows = []
        for row, asked in zip(ids.tolist(), where.tolist()):
            possible = joint[
                tuple(slice(None) if code == K else slice(code, code + 1) for code in row)
            ]
            for i in (i for i in range(N) if asked[i]):
                rows.append(
                    np.log(possible.sum(axis=tuple(j for j in range(N) if j != i)) / possible.sum())
                )
        return torch.from_numpy(np.stack(rows))

    return Says(K, logits)


def bits_are_those_of_an_exact_model(bits_per_token):
    """A model that knows the true conditionals costs what is written: -log2 p of a picture, however its tokens are ordered. With the mean
    of any other law of counts it would not."""
    rng = np.random.default_rng(0)
    joint = rng.random((3, 3, 3)) ** 4
    joint /= joint.sum()
    for ids in ((0, 1, 2), (2, 2, 0)):
        wanted = -math.log2(joint[ids]) / 3
        got = bits_per_token(knows(joint), torch.tensor([ids] * 3000), lambda rows: None, 0)
        assert got["low"] - 0.02 < wanted < got["high"] + 0.02, (
            f"{ids}: {got['value']:.3f} ({got['low']:.3f} to {got['high']:.3f}), not {wanted:.3f}"
        )


def a_guess_costs_log2_of_k(bits_per_token):
    for K, N, M in ((2, 5, 7), (8, 3, 20), (512, 16, 3)):
        uniform = Says(K, lambda ids, where, K=K: torch.zeros(int(where.sum()), K))
        got = bits_per_token(uniform, torch.zeros(M, N, dtype=torch.int64), lambda rows: None, 0)
        assert math.isclose(got["value"], math.log2(K), rel_tol=1e-5), (
            f"{K} codes: {got['value']}, not {math.log2(K)}"
        )


def counts_are_spread_evenly(bits_per_token):
    """Every count from 1 to N is asked for, and all of them alike."""
    for M, N in ((64, 16), (30, 10), (7, 7)):
        seen = []
        model = Says(
            4,
            lambda ids, where: (
                seen.extend(where.sum(1).tolist()) or torch.zeros(int(where.sum()), 4)
            ),
        )
        bits_per_token(model, torch.zeros(M, N, dtype=torch.int64), lambda rows: None, 1)
        counts = [seen.count(n) for n in range(1, N + 1)]
        assert len(seen) == M and max(counts) - min(counts) <= 1, (
            f"{M} pictures of {N} tokens: counts 1 to {N} came {counts} times"
        )


# --- ssim(a, b) ---
def ssim_is_its_windows(ssim):
    """Window by window, channel by channel."""

    @given(seeds, st.integers(11, 15), st.integers(11, 14), st.floats(0, 1))
    @example(0, 11, 11, 0.3)
    def check(seed, H, W, noise):
        rng = np.random.default_rng(seed)
        a = rng.uniform(-1, 1, (1, 3, H, W))
        b = np.clip((1 - noise) * a + noise * rng.uniform(-1, 1, a.shape), -1, 1)
        g = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
        w, found = np.outer(g, g) / g.sum() ** 2, []
        for c in range(3):
            for y in range(H - 10):
                for x in range(W - 10):
                    p, q = (z[0, c, y : y + 11, x : x + 11] for z in (a, b))
                    m, n = (w * p).sum(), (w * q).sum()
                    v, u, both = (
                        (w * (p - m) ** 2).sum(),
                        (w * (q - n) ** 2).sum(),
                        (w * (p - m) * (q - n)).sum(),
                    )
                    found.append(
                        (2 * m * n + 4e-4)
                        * (2 * both + 36e-4)
                        / ((m * m + n * n + 4e-4) * (v + u + 36e-4))
                    )
        got = float(ssim(torch.from_numpy(a), torch.from_numpy(b)))
        assert math.isclose(got, np.mean(found), abs_tol=1e-4), (
            f"{H} x {W}, seed {seed}, noise {noise}: {got}, not {np.mean(found)}"
        )

    check()


def falls_with_the_noise(ssim):
    rng = np.random.default_rng(0)
    a = torch.from_numpy(np.cumsum(rng.normal(size=(2, 3, 24, 24)), axis=-1)).clamp(-1, 1)
    noise = torch.from_numpy(rng.normal(size=a.shape))
    found = [float(ssim(a, (a + sigma * noise).clamp(-1, 1))) for sigma in (0.0, 0.1, 0.3, 1.0)]
    assert abs(found[0] - 1) < 1e-6 and found == sorted(found, reverse=True), (
        f"noise of 0, .1, .3, 1: {found}"
    )


# --- mean_of(values), interval(measure, *sets) ---
def holds_the_truth_19_times_in_20(interval_of):
    """interval_of(points (M, 1)) of their mean: over many samples from one distribution, the true mean is inside in about 95 %."""
    inside, widths = 0, []
    for i in range(200):
        points = torch.from_numpy(np.random.default_rng(i).exponential(size=(100, 1)))
        got = interval_of(points)
        assert math.isclose(got["value"], float(points.mean()), abs_tol=1e-6) and got["n"] == 100
        inside += got["low"] <= 1 <= got["high"]
        widths.append(got["high"] - got["low"])
    assert 0.86 <= inside / 200 <= 0.99, f"in {inside} of 200"
    assert 0.3 < np.mean(widths) < 0.5, (
        f"mean width {np.mean(widths):.3f}; 2 x 1.96 / sqrt(100) = 0.392"
    )
