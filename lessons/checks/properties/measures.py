"""Properties of measures (`minimuse/metrics/`).

A measure is compared with its definition, written out slowly, and must behave as expected on
made-up data. A property takes what it checks:
    frechet(a (M, C), b (M', C)), kid(a, b), precision(generated, real, k) -> a number
    bits_per_token(model, ids (M, N), context, seed) -> {"value", "low", "high", "n"}
    ssim(images (B, 3, H, W), originals) -> a number
    interval_of(points (M, 1)) -> {"value", "low", "high", "n"}, the interval of their mean

Letters: M images, C features of each, N tokens of each, K codes, H W pixels.
"""

import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks.properties.masks import sets_come_as_often

seeds = st.integers(0, 2**32 - 1)


def features(seed, M, C, shift=0.0, scale=1.0):
    """Correlated features (M, C), float64."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(scale * rng.normal(size=(M, C)) @ rng.normal(size=(C, C)) + shift)


def normal(seed, *shape):
    """Independent normal numbers, float64."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# --- Properties of `frechet` ---
def slow_frechet(a, b):
    """Means and covariances; the trace of the product's root is the sum of its eigenvalues' roots.

    a (M, C) and b (M', C) are NumPy arrays.
    """
    of_means = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    S = np.atleast_2d(np.cov(a, rowvar=False))
    T = np.atleast_2d(np.cov(b, rowvar=False))
    eigenvalues = np.linalg.eigvals(S @ T).real.clip(min=0)
    return of_means + np.trace(S) + np.trace(T) - 2 * np.sqrt(eigenvalues).sum()


def frechet_is_its_formula(frechet):
    """The distance is |m - m'|^2 + tr(S + S' - 2 (S S')^1/2)."""

    @given(seeds, st.integers(2, 30), st.integers(2, 30), st.integers(1, 8), st.floats(-2, 2))
    @example(0, 40, 3, 6, 0.5)
    @example(0, 2, 2, 1, 1.0)
    def check(seed, M, other, C, shift):
        a = features(seed, M, C)
        b = features(seed + 1, other, C, shift, 0.5)
        expected = slow_frechet(a.numpy(), b.numpy())
        got = float(frechet(a, b))
        assert math.isclose(got, expected, rel_tol=1e-5, abs_tol=1e-5), (
            f"{M} and {other} points of {C} features, seed {seed}: {got}, not {expected}"
        )

    check()


def nothing_lies_between_a_set_and_itself(frechet):
    """The distance of a set to itself is 0; moving each of the C features by 1 makes it C."""

    @given(seeds, st.integers(2, 40), st.integers(1, 6))
    def check(seed, M, C):
        a = features(seed, M, C)
        got = float(frechet(a, a))
        assert abs(got) <= 1e-6 * float(a.square().sum()), (
            f"a set of {M} points of {C} features and itself, seed {seed}: {got}, not 0"
        )
        assert float(frechet(a, a + 1)) > 0.9 * C, "the means differ by 1 in each feature"

    check()


def grows_with_the_noise(frechet):
    """More noise gives a larger distance. The order of sets and of points does not matter."""
    a, noise = features(0, 200, 5), normal(1, 200, 5)
    distances = [float(frechet(a, a + sigma * noise)) for sigma in (0.0, 0.5, 1.0, 2.0, 4.0)]
    grows = distances == sorted(distances)
    assert grows and distances[0] < 1e-6 < distances[1], f"noise of 0, .5, 1, 2, 4: {distances}"
    b = features(2, 60, 5)
    forward, backward = float(frechet(a, b)), float(frechet(b.flip(0), a))
    assert math.isclose(forward, backward, rel_tol=1e-8), (
        f"{forward}; with the sets exchanged and one in another order {backward}"
    )


def frechet_is_computed_in_double(frechet):
    """Two sets that differ little, far from zero: float32 would lose the difference."""
    a = (features(0, 60, 5) + 100).float()
    b = a + 0.01 * normal(1, 60, 5).float()
    expected = slow_frechet(a.double().numpy(), b.double().numpy())
    got = float(frechet(a, b))
    assert math.isclose(got, expected, rel_tol=1e-3), (
        f"60 points near 100 in float32, and the same moved by .01: {got}, not {expected}"
    )


# --- Properties of `kid` ---
def slow_kernel(x, y):
    """(x.y / C + 1)^3 of two lists of C numbers."""
    dot = sum(u * v for u, v in zip(x, y, strict=True))
    return (dot / len(x) + 1) ** 3


def slow_mean_within(points):
    """The mean of the kernel over all pairs of two different points."""
    M = len(points)
    total = 0.0
    for i in range(M):
        for j in range(M):
            if i != j:
                total += slow_kernel(points[i], points[j])
    return total / (M * (M - 1))


def slow_mean_across(a, b):
    """The mean of the kernel over all pairs of a point of a and a point of b."""
    total = sum(slow_kernel(x, y) for x in a for y in b)
    return total / (len(a) * len(b))


def kid_is_its_sums(kid):
    """All pairs are summed, one by one; no image is paired with itself."""

    @given(seeds, st.integers(2, 8), st.integers(2, 8), st.integers(1, 5))
    @example(0, 2, 5, 3)
    def check(seed, M, other, C):
        a, b = features(seed, M, C), features(seed + 1, other, C)
        rows_a, rows_b = a.tolist(), b.tolist()
        within = slow_mean_within(rows_a) + slow_mean_within(rows_b)
        expected = within - 2 * slow_mean_across(rows_a, rows_b)
        got = float(kid(a, b))
        assert math.isclose(got, expected, rel_tol=1e-4, abs_tol=1e-4), (
            f"{M} and {other} points of {C} features, seed {seed}: {got}, not {expected}"
        )

    check()


def is_zero_on_average_for_halves(kid):
    """Two random parts of one set have a distance of 0 on average, and often a negative one.

    Parts of two different sets have a larger distance.
    """
    points = normal(0, 400, 4)
    of_one_set, of_two_sets = [], []
    for i in range(60):
        order = torch.from_numpy(np.random.default_rng(i).permutation(400))
        a, b = points[order[:60]], points[order[60:120]]
        of_one_set.append(float(kid(a, b)))
        of_two_sets.append(float(kid(a, b + 0.7)))
    mean, error = np.mean(of_one_set), np.std(of_one_set) / 60**0.5
    assert abs(mean) < 4 * error, f"mean {mean:.4f} with a standard error of {error:.4f}, not 0"
    negative = sum(distance < 0 for distance in of_one_set)
    assert 10 < negative < 50, f"{negative} of 60 are negative, not about half"
    assert min(of_two_sets) > max(of_one_set), (
        f"two sets: {min(of_two_sets):.4f} at least; one set: {max(of_one_set):.4f} at most"
    )


def kid_is_computed_in_double(kid):
    """Features of 30 have kernels of 10^9, of which the distance is a small difference."""
    a = (normal(0, 8, 3) + 30).float()
    b = (normal(1, 6, 3) + 30).float()
    rows_a, rows_b = a.tolist(), b.tolist()
    within = slow_mean_within(rows_a) + slow_mean_within(rows_b)
    expected = within - 2 * slow_mean_across(rows_a, rows_b)
    got = float(kid(a, b))
    assert math.isclose(got, expected, rel_tol=1e-5), (
        f"8 and 6 points near 30 in float32: {got}, not {expected}"
    )


# --- Properties of `precision` ---
def slow_precision(generated, real, k):
    """Both are lists of points. A real point reaches as far as its k-th nearest real neighbour."""
    reaches = []
    for i, x in enumerate(real):
        neighbours = real[:i] + real[i + 1 :]
        distances = sorted(math.dist(x, y) for y in neighbours)
        reaches.append(distances[k - 1])
    inside = 0
    for point in generated:
        inside += any(math.dist(point, x) <= r for x, r in zip(real, reaches, strict=True))
    return inside / len(generated)


def precision_counts_what_lies_inside(precision):
    """It is the fraction of generated points within the reach of at least one real point."""

    @given(seeds, st.integers(1, 8), st.integers(5, 9), st.integers(1, 3), st.integers(1, 3))
    @example(0, 5, 6, 2, 3)
    def check(seed, M, other, C, k):
        generated, real = features(seed, M, C), features(seed + 1, other, C)
        expected = slow_precision(generated.tolist(), real.tolist(), k)
        got = float(precision(generated, real, k))
        assert math.isclose(got, expected, abs_tol=1e-6), (
            f"{M} generated and {other} real points, k = {k}, seed {seed}: {got}, not {expected}"
        )

    check()


def reaches_as_far_as_its_neighbour(precision):
    """A generated point exactly as far away as the k-th neighbour is inside."""
    real = torch.arange(6.0, dtype=torch.float64)[:, None]
    generated = torch.tensor([[-1.0], [-2.0], [8.0]], dtype=torch.float64)
    for k, expected in ((1, 1 / 3), (2, 2 / 3), (3, 1.0)):
        got = float(precision(generated, real, k))
        assert math.isclose(got, expected, abs_tol=1e-6), (
            f"real points 0 to 5, generated ones -1, -2 and 8, k = {k}: {got}, not {expected}"
        )


def tells_dull_from_strange(precision):
    """Copies of one real image are all inside, but reach few real images. Far ones are outside."""
    real = normal(0, 100, 3)
    dull = real[:1] + 1e-3 * normal(1, 100, 3)
    of_dull, of_real = float(precision(dull, real, 3)), float(precision(real, dull, 3))
    assert of_dull == 1.0 and of_real <= 0.02, (
        f"one real image, generated a hundred times: precision {of_dull}, recall {of_real}"
    )
    assert precision(real + 50, real, 3) == 0.0, "images far from all real ones"
    assert precision(real, real, 3) == 1.0, "the real images themselves"


# --- Properties of `bits_per_token` ---
class MaskedModel:
    """A stand-in for a masked model of K codes.

    logits(ids (B, N), hidden (B, N) bool) -> the logits of all hidden tokens, (number of them, K).
    """

    def __init__(self, K, logits):
        self.mask_id, self.logits = K, logits

    def __call__(self, ids, context, hidden):
        return self.logits(ids, hidden)


def no_context(rows):
    return None


def uniform_model(K):
    """Every code is equally likely, always."""

    def logits(ids, hidden):
        return torch.zeros(int(hidden.sum()), K)

    return MaskedModel(K, logits)


def exact_model(joint):
    """A model with the exact conditionals of a joint distribution: an array, N axes of K codes."""
    N, K = joint.ndim, joint.shape[0]

    def log_conditional(row, i):
        """log p(token i | the visible tokens of a row): (K,)."""
        index = tuple(slice(None) if code == K else slice(code, code + 1) for code in row)
        possible = joint[index]
        other_axes = tuple(j for j in range(N) if j != i)
        return np.log(possible.sum(axis=other_axes) / possible.sum())

    def logits(ids, hidden):
        rows = [log_conditional(ids[b].tolist(), i) for b, i in hidden.nonzero().tolist()]
        return torch.from_numpy(np.stack(rows))

    return MaskedModel(K, logits)


def bits_are_those_of_an_exact_model(bits_per_token):
    """With the true conditionals, an image x costs -log2 p(x), in whatever order its tokens come.

    This holds only if all counts of hidden tokens have the same weight.
    """
    joint = np.random.default_rng(0).random((3, 3, 3)) ** 4
    joint /= joint.sum()
    for ids in ((0, 1, 2), (2, 2, 0)):
        expected = -math.log2(joint[ids]) / 3
        got = bits_per_token(exact_model(joint), torch.tensor([ids] * 3000), no_context, 0)
        assert got["low"] - 0.02 < expected < got["high"] + 0.02, (
            f"an exact model, image {ids}: "
            f"{got['value']:.3f} ({got['low']:.3f} to {got['high']:.3f}), not {expected:.3f}"
        )


def a_guess_costs_log2_of_k(bits_per_token):
    """A model that gives all K codes the same probability costs log2 K bits per token."""
    for K, N, M in ((2, 5, 7), (8, 3, 20), (512, 16, 3)):
        ids = torch.zeros(M, N, dtype=torch.int64)
        got = bits_per_token(uniform_model(K), ids, no_context, 0)
        assert math.isclose(got["value"], math.log2(K), rel_tol=1e-5), (
            f"a uniform guess of {K} codes: {got['value']}, not {math.log2(K)}"
        )


def counts_are_spread_evenly(bits_per_token):
    """Every count of hidden tokens from 1 to N occurs equally often, up to one image."""
    for M, N in ((64, 16), (30, 10), (7, 7)):
        seen = []

        def logits(ids, hidden, seen=seen):
            seen.extend(hidden.sum(dim=1).tolist())
            return torch.zeros(int(hidden.sum()), 4)

        ids = torch.zeros(M, N, dtype=torch.int64)
        bits_per_token(MaskedModel(4, logits), ids, no_context, 1)
        frequencies = [seen.count(n) for n in range(1, N + 1)]
        assert len(seen) == M and max(frequencies) - min(frequencies) <= 1, (
            f"{M} images of {N} tokens: 1 to {N} hidden tokens occur {frequencies} times"
        )


def hides_random_tokens_of_random_images(bits_per_token):
    """Every set of tokens is hidden as often, and the counts come in random order.

    An exact model does not see the difference: any fixed order of tokens has the same price.
    """

    def hidden_tokens(M, N, seed):
        seen = []

        def logits(ids, hidden):
            seen.append(hidden.clone())
            return torch.zeros(int(hidden.sum()), 4)

        ids = torch.zeros(M, N, dtype=torch.int64)
        bits_per_token(MaskedModel(4, logits), ids, no_context, seed)
        return torch.cat(seen)

    sets_come_as_often(hidden_tokens(4000, 5, 0))
    counts = [hidden_tokens(60, 6, seed).sum(dim=1).tolist() for seed in (0, 1, 0)]
    assert counts[0] != counts[1], f"two seeds give images the same counts: {counts[0][:12]}, ..."
    assert counts[0] == counts[2], "one seed gives other counts the second time"


# --- Properties of `ssim` ---
def slow_window_ssim(p, q, weights):
    """The SSIM of two windows (11, 11) of one channel."""
    mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
    variance_p = (weights * (p - mean_p) ** 2).sum()
    variance_q = (weights * (q - mean_q) ** 2).sum()
    covariance = (weights * (p - mean_p) * (q - mean_q)).sum()
    # Pixels are in [-1, 1], so the constants are (0.01 * 2)^2 and (0.03 * 2)^2.
    c1, c2 = 4e-4, 36e-4
    above = (2 * mean_p * mean_q + c1) * (2 * covariance + c2)
    below = (mean_p * mean_p + mean_q * mean_q + c1) * (variance_p + variance_q + c2)
    return above / below


def slow_ssim(a, b):
    """The mean over all windows of all channels of two images (3, H, W), NumPy arrays."""
    gauss = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(gauss, gauss) / gauss.sum() ** 2
    values = []
    for c in range(3):
        for y in range(a.shape[1] - 10):
            for x in range(a.shape[2] - 10):
                window = (c, slice(y, y + 11), slice(x, x + 11))
                values.append(slow_window_ssim(a[window], b[window], weights))
    return float(np.mean(values))


def ssim_is_its_windows(ssim):
    """It is computed window by window and channel by channel, then averaged."""

    @given(seeds, st.integers(11, 15), st.integers(11, 14), st.floats(0, 1))
    @example(0, 11, 11, 0.3)
    def check(seed, H, W, noise):
        rng = np.random.default_rng(seed)
        a = rng.uniform(-1, 1, (1, 3, H, W))
        b = np.clip((1 - noise) * a + noise * rng.uniform(-1, 1, a.shape), -1, 1)
        expected = slow_ssim(a[0], b[0])
        got = float(ssim(torch.from_numpy(a), torch.from_numpy(b)))
        assert math.isclose(got, expected, abs_tol=1e-4), (
            f"{H} x {W} pixels, seed {seed}, noise {noise}: {got}, not {expected}"
        )

    check()


def falls_with_the_noise(ssim):
    """It is 1 for equal images, and smaller with more noise."""
    rng = np.random.default_rng(0)
    a = torch.from_numpy(np.cumsum(rng.normal(size=(2, 3, 24, 24)), axis=-1)).clamp(-1, 1)
    noise = torch.from_numpy(rng.normal(size=a.shape))
    values = []
    for sigma in (0.0, 0.1, 0.3, 1.0):
        noisy = (a + sigma * noise).clamp(-1, 1)
        values.append(float(ssim(a, noisy)))
    falls = values == sorted(values, reverse=True)
    assert falls and abs(values[0] - 1) < 1e-6, f"noise of 0, .1, .3, 1: {values}"


# --- Properties of `mean_of` and `interval` ---
def holds_the_truth_19_times_in_20(interval_of):
    """Over 200 samples from one distribution, about 95 % of the intervals hold the true mean."""
    inside, widths = 0, []
    for i in range(200):
        points = torch.from_numpy(np.random.default_rng(i).exponential(size=(100, 1)))
        got = interval_of(points)
        mean = float(points.mean())
        assert math.isclose(got["value"], mean, abs_tol=1e-6), f"{got['value']}, not {mean}"
        assert got["n"] == 100, f"n of 100 points is {got['n']}"
        inside += got["low"] <= 1 <= got["high"]
        widths.append(got["high"] - got["low"])
    assert 0.86 <= inside / 200 <= 0.99, f"the true mean is inside in {inside} of 200"
    width = np.mean(widths)
    assert 0.3 < width < 0.5, f"mean width {width:.3f}; 2 x 1.96 / sqrt(100) = 0.392"
