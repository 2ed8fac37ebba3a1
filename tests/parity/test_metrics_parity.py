"""Metrics compared with other implementations.

    pip install '.[parity]' && python -m pytest -q tests/parity

The Frechet distance is compared with SciPy's square root of a matrix, PSNR and SSIM with
scikit-image, and KID with its sum over pairs.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from minimuse.metrics.distances import frechet, kid
from minimuse.metrics.images import psnr, ssim

seeds = st.integers(0, 2**32 - 1)


def covariance(x):
    """Of the columns of x (M, C), with full rank, which sqrtm needs."""
    return np.atleast_2d(np.cov(x, rowvar=False)) + 1e-9 * np.eye(x.shape[1])


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(14, 60), st.integers(14, 60), st.integers(1, 12))
def test_frechet(seed, M, other, C):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(M, C)) @ rng.normal(size=(C, C))
    b = rng.normal(size=(other, C)) + 0.5
    s, t = covariance(a), covariance(b)
    between_means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = between_means + np.trace(s + t - 2 * sqrtm(s @ t).real)
    got = frechet(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


def kernel(x, y):
    """The cubic kernel of KID, of two feature vectors."""
    return (x @ y / len(x) + 1) ** 3


def mean_within(x):
    """Mean kernel of all pairs of different rows."""
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    return sum(kernel(x[i], x[j]) for i, j in pairs) / len(pairs)


def mean_between(a, b):
    return sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 30), st.integers(2, 30), st.integers(1, 12))
def test_kid(seed, M, other, C):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(M, C))
    b = rng.normal(size=(other, C)) + 0.2
    expected = mean_within(a) + mean_within(b) - 2 * mean_between(a, b)
    got = kid(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(11, 40), st.integers(11, 40), st.floats(0.01, 1))
def test_psnr_and_ssim(seed, H, W, noise):
    rng = np.random.default_rng(seed)
    a = rng.uniform(-1, 1, (3, H, W))
    b = np.clip((1 - noise) * a + noise * rng.uniform(-1, 1, a.shape), -1, 1)
    pair = torch.from_numpy(a)[None], torch.from_numpy(b)[None]
    assert psnr(*pair) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=2), abs=1e-4)
    expected = structural_similarity(
        a,
        b,
        data_range=2,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(*pair) == pytest.approx(expected, abs=1e-4)
