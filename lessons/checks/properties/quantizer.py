"""Properties of vector quantization (`minimuse/vq.py`; VQ-VAE, 1711.00937, and its appendix A.1; FSQ, 2309.15505).

Functions: nearest(z (..., D), codebook (K, D)) -> ids; quantize(z, codebook) -> (code, ids, commitment).
Classes with the interface of `EMAQuantizer`: make(codes, width, decay, restart_below).
"""

import itertools
import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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
    z, codebook = (
        draw(hnp.arrays(np.float32, (draw(st.integers(1, 6)), D), elements=eighths))
        for _ in range(2)
    )
    return torch.from_numpy(z), torch.from_numpy(codebook)


# Which code


def is_the_nearest(nearest):
    """No code is closer than the one chosen, by brute force in float64: Euclidean distance, not the largest product."""

    @given(latents_and_codes())
    @example((torch.tensor([[1.0]]), torch.tensor([[1.0], [4.0]])))
    def check(case):
        z, codebook = case
        ids = nearest(z, codebook)
        assert ids.shape == z.shape[:-1] and ids.dtype == torch.int64
        distance = (z[:, None].double() - codebook[None].double()).square().sum(-1)
        chosen = distance.gather(1, ids[:, None])[:, 0]
        assert (chosen <= distance.amin(dim=1) + 1e-5).all(), (
            f"z {z.tolist()}, codes {codebook.tolist()}: {ids.tolist()}"
        )

    check()


def codes_are_their_own(nearest):
    """quantize(codebook[i]) = i where rows are distinct."""

    @given(seeds, st.integers(1, 40), st.integers(1, 6))
    def check(seed, K, D):
        codebook = torch.from_numpy(
            np.random.default_rng(seed).permutation(max(K, 9))[:K, None] / 8 + np.zeros((K, D))
        ).float()
        assert nearest(codebook, codebook).tolist() == list(range(K))

    check()


def follows_a_permutation(nearest):
    """Permuting the codebook permutes the ids and nothing else; so does no batch shape."""

    @given(seeds, st.integers(1, 12))
    def check(seed, K):
        z, codebook = normal(2, 3, 4, seed=seed), normal(K, 4, seed=seed + 1)
        order = torch.randperm(K, generator=generator(seed))
        ids = nearest(z, codebook)
        assert torch.equal(order[nearest(z, codebook[order])], ids)
        assert torch.equal(nearest(z.reshape(6, 4), codebook).view(2, 3), ids)

    check()


# Gradients


def passes_straight_through(quantize):
    """The value is the code, the gradient is the identity: d code / d z = 1 (VQ-VAE, section 3.2)."""

    @given(latents_and_codes(), seeds)
    def check(case, seed):
        z, codebook = case[0].clone().requires_grad_(), case[1]
        code, ids, _ = quantize(z, codebook)
        assert torch.allclose(code, codebook[ids], atol=1e-5), (
            f"{code.tolist()} is not code {ids.tolist()}"
        )
        weights = normal(*z.shape, seed=seed)
        (grad,) = (
            torch.autograd.grad((code * weights).sum(), z, allow_unused=True)
            if code.requires_grad
            else (None,)
        )
        assert grad is not None and torch.equal(grad, weights), (
            f"gradient {grad}, not {weights.tolist()}"
        )

    check()


def commitment_moves_the_latents_only(quantize):
    """|z - sg(code)|^2, averaged: its gradient reaches z, and the codes take none (VQ-VAE, equation 3)."""

    @given(latents_and_codes())
    @example((torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])))
    def check(case):
        z, codebook = case[0].clone().requires_grad_(), case[1]
        _, ids, commitment = quantize(z, codebook)
        (grad,) = (
            torch.autograd.grad(commitment, z, allow_unused=True)
            if commitment.requires_grad
            else (None,)
        )
        grad = torch.zeros_like(z) if grad is None else grad
        error = (z - codebook[ids]).detach()
        assert torch.allclose(commitment, error.square().mean(), atol=1e-6)
        assert torch.allclose(grad, 2 * error / z.numel(), atol=1e-6), (
            f"z gets {grad.tolist()}, not {(2 * error / z.numel()).tolist()}"
        )
        assert not codebook.requires_grad

    check()


# The moving codebook


def batches(seed, codes, width, updates):
    """Latents and ids per update, the ids far from uniform, and some codes never used."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(codes, 0.3))
    sizes = rng.integers(3, 12, size=updates)
    return [
        (
            torch.from_numpy(rng.normal(size=(n, width))).float(),
            torch.from_numpy(rng.choice(codes, n, p=share)),
        )
        for n in sizes
    ]


def averages_latents(make):
    """Code = moving average of its latents' sum / of their number, over several updates with uneven counts (appendix A.1).

    Against a NumPy recurrence in float64: mass <- decay mass + (1 - decay) n, total likewise, and the first
    batch, which has nothing to average with, counts in full. A code without latents stays where it is.
    """

    @given(seeds, st.integers(1, 5), st.sampled_from([0.5, 0.9, 0.97]))
    @example(0, 4, 0.9)
    def check(seed, updates, decay):
        K, D = 5, 2
        quantizer = make(K, D, decay, 0.0)
        codebook, mass, total = (
            quantizer.codebook.double().numpy().copy(),
            np.zeros(K),
            np.zeros((K, D)),
        )
        for i, (z, ids) in enumerate(batches(seed, K, D, updates)):
            restarted = quantizer.update(z, ids, generator())
            keep = decay if i else 0.0
            for k in range(K):
                mine = z[ids == k].double().numpy()
                mass[k] = keep * mass[k] + (1 - keep) * len(mine)
                total[k] = keep * total[k] + (1 - keep) * mine.sum(axis=0)
                if mass[k] > 0:
                    codebook[k] = total[k] / mass[k]
            assert restarted == 0
            assert np.allclose(quantizer.codebook, codebook, atol=1e-4), (
                f"after update {i}: {quantizer.codebook.tolist()}, not {codebook.tolist()}"
            )
            assert np.allclose(quantizer.mass, mass, atol=1e-4) and np.allclose(
                quantizer.total, total, atol=1e-4
            )

    check()


def stays_in_the_hull(make):
    """Without restarts a code that was ever used is a convex combination of latents it has seen, and mass is conserved."""

    @given(seeds, st.integers(1, 6))
    def check(seed, updates):
        K, decay, size = 4, 0.8, 0.0
        quantizer = make(K, 2, decay, 0.0)
        seen = [[] for _ in range(K)]
        for i, (z, ids) in enumerate(batches(seed, K, 2, updates)):
            quantizer.update(z, ids, generator())
            size = (decay * size + (1 - decay) * len(z)) if i else len(z)
            for k in range(K):
                seen[k] += z[ids == k]
                if seen[k]:
                    points = torch.stack(seen[k])
                    low, high = points.amin(0) - 1e-4, points.amax(0) + 1e-4
                    assert (
                        (quantizer.codebook[k] >= low) & (quantizer.codebook[k] <= high)
                    ).all(), f"code {k} left its latents"
        assert abs(float(quantizer.mass.sum()) - size) < 1e-3 * size, (
            f"mass {float(quantizer.mass.sum())}, not {size}"
        )

    check()


def restarts_dead_codes_only(make):
    """A code that lost its share is put on a latent of the batch; every other code moves as without restarts."""

    @given(seeds)
    @example(0)
    def check(seed):
        K, D, below = 8, 3, 0.3
        with_restarts, without = make(K, D, 0.9, below), make(K, D, 0.9, 0.0)
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
        assert len(with_restarts.codebook[dead].unique(dim=0)) == int(dead.sum()), (
            "two codes restarted on one latent"
        )
        again = with_restarts.mass >= below * 40 / K
        assert again.all(), "a restarted code is dead at once"

    check()


def starts_among_the_latents(make):
    """start(z, generator) puts the codes where the latents are: at home in their hull, and close.

    A function of z and the generator. Codes that start among the latents of an untrained encoder quantize noise.
    """

    @given(seeds)
    @example(0)
    def check(seed):
        K, D = 12, 2
        centres = normal(6, D, seed=seed) * 5
        z = centres[torch.randint(6, (8, 10), generator=generator(seed))] + 0.1 * normal(
            8, 10, D, seed=seed + 1
        )
        near, again = make(K, D, 0.9, 0.1), make(K, D, 0.9, 0.1)
        near.start(z, generator(seed))
        again.start(z, generator(seed))
        error = float((z - near.lookup(near.nearest(z))).norm(dim=-1).mean())
        spread = float((z - z.mean(dim=(0, 1))).norm(dim=-1).mean())
        assert error < 0.25 * spread, (
            f"mean distance to the nearest code {error:.2f}, to the mean of all {spread:.2f}"
        )
        low, high = z.flatten(0, 1).amin(0) - 1e-3, z.flatten(0, 1).amax(0) + 1e-3
        assert ((near.codebook >= low) & (near.codebook <= high)).all(), (
            "codes outside of the latents"
        )
        assert torch.equal(near.codebook, again.codebook)
        assert torch.isfinite(near.codebook).all() and (near.mass > 0).all()

    check()


def perplexity_is_bounded(perplexity):
    """1 <= perplexity <= used <= K; K where all are used alike, 1 where one is; the exponential of the entropy."""

    @given(st.lists(st.integers(0, 7), min_size=1, max_size=30))
    @example([0])
    @example(list(range(8)))
    @example([0, 0, 0, 7])
    def check(ids):
        value, used = perplexity(torch.tensor(ids), 8)
        shares = [ids.count(i) / len(ids) for i in set(ids)]
        assert used == len(shares) and 1 - 1e-9 <= value <= used + 1e-9 <= 8 + 1e-9, (
            f"perplexity {value}, {used} used"
        )
        assert math.isclose(value, math.prod(p**-p for p in shares), rel_tol=1e-9)

    check()


# FSQ


def every_id_is_reachable(make):
    """ids are 0 .. K-1, one per combination of digits; the code of an id is its own nearest, and codes are distinct. make(levels)."""

    @given(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    @example([3])
    @example([2, 3, 5])
    def check(levels):
        quantizer, K = make(tuple(levels)), math.prod(levels)
        ids = torch.arange(K)
        codes = quantizer.lookup(ids)
        assert (
            codes.shape == (K, len(levels))
            and codes.abs().max() <= 1
            and len(codes.unique(dim=0)) == K
        )
        # a latent per combination of digits, in the middle of its cell
        digits = torch.tensor(list(itertools.product(*(range(n) for n in levels))))
        middle = (digits / (torch.tensor(levels) - 1)).clamp(1e-4, 1 - 1e-4)
        got = quantizer.nearest(torch.logit(middle))
        assert sorted(got.tolist()) == list(range(K)), (
            f"levels {levels}: ids {sorted(set(got.tolist()))} of {K}"
        )
        assert torch.allclose(quantizer.lookup(got), middle * 2 - 1, atol=1e-3)

    check()


def rounds_with_a_gradient(make):
    """Any latent, however large, has a valid id; the value is that id's code, and the gradient that of the bound, not 0."""

    @given(st.lists(st.integers(2, 5), min_size=1, max_size=4), seeds)
    def check(levels, seed):
        quantizer, K = make(tuple(levels)), math.prod(levels)
        z = normal(6, len(levels), seed=seed) * 2
        z[0], z[1] = 1e6, -1e6
        code, ids, commitment = quantizer(z.requires_grad_())
        assert 0 <= int(ids.min()) <= int(ids.max()) < K and float(commitment) == 0
        assert torch.equal(ids, quantizer.nearest(z)) and torch.allclose(
            code, quantizer.lookup(ids), atol=1e-5
        )
        code.sum().backward()
        assert (z.grad[2:] > 0).all() and z.grad.isfinite().all()

    check()


# The encoder around it


def is_local(encode, factor, radius):
    """A token is a function of the pixels within `radius` of its patch: change what is farther, and it stays.

    encode(images) -> latents (B, h, w, D). Norms over the whole picture break it, and a token that depends on
    everything is hard to predict.
    """
    images = normal(1, 3, 8 * factor, 24 * factor)
    plain = encode(images)
    cut = 12 * factor
    changed = images.clone()
    changed[..., cut:] = -3 * changed[..., cut:] + 1
    assert cut - radius >= factor, "the picture is too small for this radius"
    near = (cut - radius) // factor  # tokens whose field ends before the cut
    moved = (encode(changed) - plain).abs().amax(dim=(0, 1, 3))
    assert moved[near - 1] < 1e-5 and moved[:near].max() < 1e-5, (
        f"columns left of {near} move by up to {moved[:near].max():.2g}"
    )
    assert moved[cut // factor :].min() > 1e-3, "changed pixels change nothing"
