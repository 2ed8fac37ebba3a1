"""Properties of vector quantization (`minimuse/vq.py`).

A property takes what it checks:
    nearest(z (..., D), codebook (K, D)) -> ids (...)
    quantize(z, codebook) -> (code, ids, commitment)
    make(codes, width, decay, restart_below) -> a quantizer with the interface of `EMAQuantizer`

Papers: VQ-VAE (1711.00937) and its appendix A.1, FSQ (2309.15505).
"""

import itertools
import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimuse.checks.compare import assert_same

seeds = st.integers(0, 2**31 - 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


@st.composite
def latents_and_codes(draw):
    """z (M, D) and a codebook (K, D), float32 in eighths, so that ties occur."""
    D = draw(st.integers(1, 4))
    eighths = st.integers(-32, 32).map(lambda n: n / 8)
    M = draw(st.integers(1, 6))
    z = draw(hnp.arrays(np.float32, (M, D), elements=eighths))
    K = draw(st.integers(1, 6))
    codebook = draw(hnp.arrays(np.float32, (K, D), elements=eighths))
    return torch.from_numpy(z), torch.from_numpy(codebook)


# --- Which code ---


def is_the_nearest(nearest):
    """No code is closer than the chosen one, by Euclidean distance: brute force in float64."""

    @given(latents_and_codes())
    @example((torch.tensor([[1.0]]), torch.tensor([[1.0], [4.0]])))
    def check(case):
        z, codebook = case
        ids = nearest(z, codebook)
        assert ids.shape == z.shape[:-1] and ids.dtype == torch.int64, (
            f"z {tuple(z.shape)}: ids are {tuple(ids.shape)} {ids.dtype}"
        )
        distance = (z[:, None].double() - codebook[None].double()).square().sum(-1)
        chosen = distance.gather(1, ids[:, None])[:, 0]
        assert (chosen <= distance.amin(dim=1) + 1e-5).all(), (
            f"z {z.tolist()}, codes {codebook.tolist()}: {ids.tolist()}"
        )

    check()


def codes_are_their_own(nearest):
    """nearest(codebook[i]) = i where rows are distinct."""

    @given(seeds, st.integers(1, 40), st.integers(1, 6))
    def check(seed, K, D):
        distinct = np.random.default_rng(seed).permutation(max(K, 9))[:K, None] / 8
        codebook = torch.from_numpy(distinct + np.zeros((K, D))).float()
        assert_same(nearest(codebook, codebook), range(K), f"{K} codes as latents")

    check()


def follows_a_permutation(nearest):
    """Permuting the codebook permutes the ids, and the shape of the batch changes nothing."""

    @given(seeds, st.integers(1, 12))
    def check(seed, K):
        z = normal(2, 3, 4, seed=seed)
        codebook = normal(K, 4, seed=seed + 1)
        order = torch.randperm(K, generator=generator(seed))
        ids = nearest(z, codebook)
        permuted = order[nearest(z, codebook[order])]
        assert_same(permuted, ids, f"{K} codes in another order choose other codes")
        of_list = nearest(z.reshape(6, 4), codebook).view(2, 3)
        assert_same(of_list, ids, "latents (6, 4) have other ids than the same as (2, 3, 4)")

    check()


# --- Gradients ---


def gradient_or_none(output, z):
    """d output / d z; None if the output does not depend on z."""
    if not output.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(output, z, allow_unused=True)
    return gradient


def passes_straight_through(quantize):
    """The value is the code, and d code / d z is the identity (VQ-VAE, section 3.2)."""

    @given(latents_and_codes(), seeds)
    def check(case, seed):
        z, codebook = case
        z = z.clone().requires_grad_()
        code, ids, _ = quantize(z, codebook)
        assert torch.allclose(code, codebook[ids], atol=1e-5), (
            f"{code.tolist()} is not code {ids.tolist()}"
        )
        weights = normal(*z.shape, seed=seed)
        grad = gradient_or_none((code * weights).sum(), z)
        assert grad is not None and torch.equal(grad, weights), (
            f"gradient {grad}, not {weights.tolist()}"
        )

    check()


def commitment_moves_the_latents_only(quantize):
    """The mean of |z - sg(code)|^2 has a gradient for z, none for codes (VQ-VAE, equation 3)."""

    @given(latents_and_codes())
    @example((torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])))
    def check(case):
        z, codebook = case
        z = z.clone().requires_grad_()
        _, ids, commitment = quantize(z, codebook)
        grad = gradient_or_none(commitment, z)
        if grad is None:
            grad = torch.zeros_like(z)
        error = (z - codebook[ids]).detach()
        expected = 2 * error / z.numel()
        assert_same(
            commitment,
            error.square().mean(),
            f"z {z.tolist()}, codes {codebook[ids].tolist()}: the commitment is",
            rtol=1e-5,
            atol=1e-6,
        )
        assert torch.allclose(grad, expected, atol=1e-6), (
            f"z gets {grad.tolist()}, not {expected.tolist()}"
        )

    check()


# --- The moving codebook ---


def batches(seed, codes, width, updates):
    """Latents and ids per update. The ids are far from uniform, and some codes are never used."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(codes, 0.3))
    result = []
    for n in rng.integers(3, 12, size=updates):
        z = torch.from_numpy(rng.normal(size=(n, width))).float()
        ids = torch.from_numpy(rng.choice(codes, n, p=probabilities))
        result.append((z, ids))
    return result


def averages_latents(make):
    """Code = moving average of its latents' sum / that of their number (VQ-VAE, appendix A.1).

    Compared with a NumPy recurrence in float64, over updates with uneven counts: mass becomes
    decay * mass + (1 - decay) * n, and total likewise. The first batch has nothing to average with
    and counts in full. A code without latents stays where it is.
    """

    @given(seeds, st.integers(1, 5), st.sampled_from([0.5, 0.9, 0.97]))
    @example(0, 4, 0.9)
    def check(seed, updates, decay):
        K, D = 5, 2
        quantizer = make(K, D, decay, 0.0)
        codebook = quantizer.codebook.double().numpy().copy()
        mass = np.zeros(K)
        total = np.zeros((K, D))
        for i, (z, ids) in enumerate(batches(seed, K, D, updates)):
            restarted = quantizer.update(z, ids, generator())
            old = decay if i > 0 else 0.0
            for k in range(K):
                latents = z[ids == k].double().numpy()
                mass[k] = old * mass[k] + (1 - old) * len(latents)
                total[k] = old * total[k] + (1 - old) * latents.sum(axis=0)
                if mass[k] > 0:
                    codebook[k] = total[k] / mass[k]
            assert restarted == 0, f"{restarted} codes were restarted"
            case = f"update {i + 1}, ids {ids.tolist()}, decay {decay}"
            assert_same(quantizer.mass, mass, f"{case}: mass", atol=1e-4)
            assert_same(quantizer.total, total, f"{case}: total", atol=1e-4)
            assert_same(quantizer.codebook, codebook, f"{case}: codebook", atol=1e-4)

    check()


def is_within(codes, latents, tolerance=1e-4):
    """Whether codes (..., D) are in the smallest box around latents (M, D)."""
    low, high = latents.amin(0) - tolerance, latents.amax(0) + tolerance
    return bool(((codes >= low) & (codes <= high)).all())


def stays_in_the_hull(make):
    """Without restarts a used code lies among its latents, and mass is conserved."""

    @given(seeds, st.integers(1, 6))
    def check(seed, updates):
        K, decay = 4, 0.8
        quantizer = make(K, 2, decay, 0.0)
        latents_of = [[] for _ in range(K)]
        expected_mass = 0.0
        for i, (z, ids) in enumerate(batches(seed, K, 2, updates)):
            quantizer.update(z, ids, generator())
            old = decay if i > 0 else 0.0
            expected_mass = old * expected_mass + (1 - old) * len(z)
            for k in range(K):
                latents_of[k] += z[ids == k]
                if latents_of[k]:
                    assert is_within(quantizer.codebook[k], torch.stack(latents_of[k])), (
                        f"code {k} left its latents"
                    )
        mass = float(quantizer.mass.sum())
        assert abs(mass - expected_mass) < 1e-3 * expected_mass, f"mass {mass}, not {expected_mass}"

    check()


def restarts_dead_codes_only(make):
    """A code with too few latents is put on a latent of the batch; all others move as usual."""

    @given(seeds)
    @example(0)
    def check(seed):
        K, D, below = 8, 3, 0.3
        with_restarts = make(K, D, 0.9, below)
        without = make(K, D, 0.9, 0.0)
        without.codebook.copy_(with_restarts.codebook)
        z = normal(40, D, seed=seed)
        ids = torch.randint(3, (40,), generator=generator(seed))  # codes 3 .. 7 are never used
        count = with_restarts.update(z, ids, generator(seed))
        without.update(z, ids, generator(seed))
        dead = without.mass < below * 40 / K
        assert count == int(dead.sum()) >= 5, f"{count} restarts, {int(dead.sum())} dead codes"
        moved = (with_restarts.codebook != without.codebook).any(dim=1)
        assert torch.equal(moved, dead), f"dead {dead.tolist()}, moved {moved.tolist()}"
        for code in with_restarts.codebook[dead]:
            assert (z == code).all(dim=1).any(), (
                f"restarted at {code.tolist()}, which is no latent of the batch"
            )
        places = with_restarts.codebook[dead].unique(dim=0)
        assert len(places) == int(dead.sum()), "two codes restarted on one latent"
        alive = with_restarts.mass >= below * 40 / K
        assert alive.all(), "a restarted code is dead at once"

    check()


def starts_among_the_latents(make):
    """start(z, generator) puts the codes close to the latents; equal generators, equal codes.

    Codes that start among the latents of an untrained encoder quantize noise. From one start in a
    thousand k-means misses a cluster, so the distance is averaged over four generators.
    """

    @given(seeds)
    @example(0)
    def check(seed):
        K, D = 12, 2
        centres = normal(6, D, seed=seed) * 5
        clusters = torch.randint(6, (8, 10), generator=generator(seed))
        z = centres[clusters] + 0.1 * normal(8, 10, D, seed=seed + 1)
        errors = []
        for start_seed in range(seed, seed + 4):
            quantizer, again = make(K, D, 0.9, 0.1), make(K, D, 0.9, 0.1)
            quantizer.start(z, generator(start_seed))
            again.start(z, generator(start_seed))
            assert torch.equal(quantizer.codebook, again.codebook), "one generator, other codes"
            used = torch.isfinite(quantizer.codebook).all() and (quantizer.mass > 0).all()
            assert used, f"a code without mass: {quantizer.mass.tolist()}"
            assert is_within(quantizer.codebook, z.flatten(0, 1), 1e-3), "codes outside the latents"
            nearest_codes = quantizer.lookup(quantizer.nearest(z))
            errors.append(float((z - nearest_codes).norm(dim=-1).mean()))
        error = sum(errors) / len(errors)
        spread = float((z - z.mean(dim=(0, 1))).norm(dim=-1).mean())
        assert error < 0.25 * spread, (
            f"mean distance to the nearest code {error:.2f}, to the mean of all {spread:.2f}"
        )

    check()


def perplexity_is_bounded(perplexity):
    """The exponential of the entropy of frequencies; 1 <= perplexity <= used <= K."""

    @given(st.lists(st.integers(0, 7), min_size=1, max_size=30))
    @example([0])
    @example(list(range(8)))
    @example([0, 0, 0, 7])
    def check(ids):
        value, used = perplexity(torch.tensor(ids), 8)
        frequencies = [ids.count(i) / len(ids) for i in set(ids)]
        case = f"ids {ids} of 8 codes"
        assert used == len(frequencies), f"{case}: {used} occur, not {len(frequencies)}"
        expected = math.prod(p**-p for p in frequencies)
        assert math.isclose(value, expected, rel_tol=1e-9), (
            f"{case}: perplexity {value}, not {expected}"
        )
        assert 1 - 1e-9 <= value <= used + 1e-9, f"{case}: perplexity {value}, {used} occur"

    check()


# --- FSQ ---


def every_id_is_reachable(make):
    """There is one id of 0..K-1 and one code per combination of digits. make(levels) -> quantizer.

    The latent in the middle of a cell has the id whose code is there.
    """

    @given(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    @example([3])
    @example([2, 3, 5])
    def check(levels):
        quantizer = make(tuple(levels))
        K = math.prod(levels)
        codes = quantizer.lookup(torch.arange(K))
        assert codes.shape == (K, len(levels)), f"levels {levels}: codes {tuple(codes.shape)}"
        assert codes.abs().max() <= 1, f"levels {levels}: a code of {codes.abs().max()}"
        assert len(codes.unique(dim=0)) == K, f"levels {levels}: two ids have one code"
        # A latent per combination of digits, in the middle of its cell.
        ranges = [range(L) for L in levels]
        digits = torch.tensor(list(itertools.product(*ranges)))
        middle = (digits / (torch.tensor(levels) - 1)).clamp(1e-4, 1 - 1e-4)
        got = quantizer.nearest(torch.logit(middle))
        assert sorted(got.tolist()) == list(range(K)), (
            f"levels {levels}: ids {sorted(set(got.tolist()))} of {K}"
        )
        assert_same(quantizer.lookup(got), middle * 2 - 1, f"levels {levels}", atol=1e-3)

    check()


def rounds_with_a_gradient(make):
    """Any latent, however large, has a valid id, that id's code, and the gradient of the bound."""

    @given(st.lists(st.integers(2, 5), min_size=1, max_size=4), seeds)
    def check(levels, seed):
        quantizer = make(tuple(levels))
        K = math.prod(levels)
        z = normal(6, len(levels), seed=seed) * 2
        z[0] = 1e6
        z[1] = -1e6
        code, ids, commitment = quantizer(z.requires_grad_())
        assert 0 <= int(ids.min()) <= int(ids.max()) < K, f"levels {levels}: ids {ids.tolist()}"
        assert float(commitment) == 0, f"commitment {float(commitment)}, not 0"
        assert_same(ids, quantizer.nearest(z), "ids")
        assert_same(code, quantizer.lookup(ids), "codes", atol=1e-5)
        code.sum().backward()
        has_gradient = (z.grad[2:] > 0).all() and z.grad.isfinite().all()
        assert has_gradient, f"gradient {z.grad.tolist()}"

    check()


# --- The encoder around it ---


def is_local(encode, factor, radius):
    """A token depends only on the pixels within `radius` of its patch.

    encode(images) -> latents (B, h, w, D). A norm over the whole image breaks this, and a token
    that depends on the whole image is hard to predict.
    """
    images = normal(1, 3, 8 * factor, 24 * factor)
    plain = encode(images)
    cut = 12 * factor
    changed = images.clone()
    changed[..., cut:] = -3 * changed[..., cut:] + 1
    assert cut - radius >= factor, "the image is too small for this radius"
    near = (cut - radius) // factor  # columns of tokens whose receptive field ends before the cut
    moved = (encode(changed) - plain).abs().amax(dim=(0, 1, 3))
    assert moved[:near].max() < 1e-5, (
        f"columns left of {near} move by up to {moved[:near].max():.2g}"
    )
    assert moved[cut // factor :].min() > 1e-3, "changed pixels change nothing"
