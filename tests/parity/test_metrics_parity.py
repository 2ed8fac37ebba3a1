"""Measures against other people's implementations: SciPy's root of a matrix, scikit-image's PSNR and SSIM, and a direct KID sum.

pip install '.[parity]' && python -m pytest -q tests/parity
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


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(14, 60), st.integers(14, 60), st.integers(1, 12))
def test_frechet(seed, M, other, C):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(M, C)) @ rng.normal(size=(C, C)), rng.normal(size=(other, C)) + 0.5
    s, t = (
        np.atleast_2d(np.cov(x, rowvar=False)) + 1e-9 * np.eye(C) for x in (a, b)
    )  # sqrtm wants full rank
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(
        wanted, rel=1e-4, abs=1e-4
    )


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 30), st.integers(2, 30), st.integers(1, 12))
def test_kid(seed, M, other, C):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(M, C)), rng.normal(size=(other, C)) + 0.2
    total = 0.0
    for x, n in ((a, M), (b, other)):
        total += sum((x[i] @ x[j] / C + 1) ** 3 for i in range(n) for j in range(n) if i != j) / (
            n * (n - 1)
        )
    total -= 2 * sum((x @ y / C + 1) ** 3 for x in a for y in b) / (M * other)
    assert kid(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(total, rel=1e-4, abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(11, 40), st.integers(11, 40), st.floats(0.01, 1))
def test_psnr_and_ssim(seed, H, W, noise):
    rng = np.random.default_rng(seed)
    a = rng.uniform(-1, 1, (3, H, W))
    b = np.clip((1 - noise) * a + noise * rng.uniform(-1, 1, a.shape), -1, 1)
    pair = torch.from_numpy(a)[None], torch.from_numpy(b)[None]
    assert psnr(*pair) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=2), abs=1e-4)
    wanted = structural_similarity(
        a,
        b,
        data_range=2,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(*pair) == pytest.approx(wanted, abs=1e-4)
