import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.properties import quantizer as properties

from minimuse import vq

TITLE = "images as tokens"


# The package's functions are methods of its quantizers: here as plain functions


def ema(codebook, mass=None, total=None, decay=0.97):
    quantizer = vq.EMAQuantizer(*codebook.shape, decay=decay, restart_below=0.0)
    for buffer, value in (
        (quantizer.codebook, codebook),
        (quantizer.mass, mass),
        (quantizer.total, total),
    ):
        if value is not None:
            buffer.copy_(value)
    return quantizer


def nearest(z, codebook):
    return ema(codebook).nearest(z)


def quantize(z, codebook):
    return ema(codebook)(z)


def ema_update(codebook, mass, total, z, ids, decay):
    quantizer = ema(codebook, mass, total, decay)
    quantizer.update(z, ids, torch.Generator())
    return quantizer.codebook, quantizer.mass, quantizer.total


def fsq(z, levels):
    return vq.FSQuantizer(tuple(levels))(z)[:2]


# What must hold of them, where `properties.quantizer` speaks of a class


def ids_are_the_nearest(quantize):
    properties.is_the_nearest(lambda z, codebook: quantize(z, codebook)[1])


def takes_a_grid_of_latents(quantize):
    """Latents (B, h, w, D), as an encoder gives them: the same codes as for a list of them."""
    z, codebook = properties.normal(2, 3, 4, 5), properties.normal(7, 5, seed=1)
    code, ids, commitment = quantize(z, codebook)
    assert code.shape == (2, 3, 4, 5) and ids.shape == (2, 3, 4) and commitment.shape == (), (
        f"{code.shape}, {ids.shape}, {commitment.shape}"
    )
    assert torch.equal(ids.flatten(), quantize(z.reshape(24, 5), codebook)[1])


class Moving:
    """A function like `ema_update` as a quantizer with the interface of `EMAQuantizer`."""

    def __init__(self, update, codes, width, decay):
        self.step, self.decay = update, decay
        self.codebook, self.mass, self.total = (
            properties.normal(codes, width),
            torch.zeros(codes),
            torch.zeros(codes, width),
        )

    def update(self, z, ids, generator):
        self.codebook, self.mass, self.total = self.step(
            self.codebook, self.mass, self.total, z, ids, self.decay
        )
        return 0


def moves_codes_to_their_means(ema_update):
    properties.averages_latents(
        lambda codes, width, decay, restart_below: Moving(ema_update, codes, width, decay)
    )


def stays_among_its_latents(ema_update):
    properties.stays_in_the_hull(
        lambda codes, width, decay, restart_below: Moving(ema_update, codes, width, decay)
    )


def leaves_what_it_is_given(ema_update):
    """New tensors come back, those given keep their values: also where no code is used twice, or one takes all."""

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans())
    @example([1], False)
    def check(ids, first):
        state = (
            properties.normal(4, 2),
            torch.zeros(4) if first else torch.ones(4),
            torch.zeros(4, 2) if first else properties.normal(4, 2, seed=1),
        )
        given_to = *state, properties.normal(len(ids), 2, seed=2), torch.tensor(ids)
        before = [x.clone() for x in given_to]
        ema_update(*given_to, 0.9)
        for name, was, now in zip(("codebook", "mass", "total", "z", "ids"), before, given_to):
            assert torch.equal(was, now), (
                f"ids {ids}: {name} was changed in place, from {was.tolist()} to {now.tolist()}"
            )

    check()


def uses_what_the_entropy_says(perplexity):
    """exp of the entropy in nats, against a product over a plain list; any shape; more codes than ids."""
    properties.perplexity_is_bounded(perplexity)
    value, used = perplexity(torch.tensor([[[3, 3], [5, 3]]]), 1000)
    assert used == 2 and math.isclose(value, 0.75**-0.75 * 0.25**-0.25, rel_tol=1e-9), (
        f"ids 3, 3, 5, 3: perplexity {value}, {used} used"
    )


@st.composite
def latents_and_levels(draw):
    """Latents in eighths of a cell, so that counterexamples are short, and never half-way between two digits."""
    levels = draw(st.lists(st.integers(2, 6), min_size=1, max_size=4))
    shares = [
        [(draw(st.integers(0, L - 1)) + draw(st.integers(-3, 3)) / 8) / (L - 1) for L in levels]
        for _ in range(draw(st.integers(1, 4)))
    ]
    return torch.logit(
        torch.tensor(shares, dtype=torch.float64).clamp(1e-3, 1 - 1e-3)
    ).float(), tuple(levels)


def rounds_each_dimension(fsq):
    """Digits, codes and ids against a loop in plain Python."""

    @given(latents_and_levels())
    @example((torch.tensor([[5.0, -5.0]]), (3, 4)))
    def check(case):
        z, levels = case
        code, ids = fsq(z, levels)
        assert code.shape == z.shape and ids.shape == z.shape[:-1], (
            f"z {tuple(z.shape)}: code {tuple(code.shape)}, ids {tuple(ids.shape)}"
        )
        assert ids.dtype == torch.int64, f"ids are {ids.dtype}, not int64"
        for row, got, number in zip(z.tolist(), code.tolist(), ids.tolist()):
            digits = [math.floor((L - 1) / (1 + math.exp(-x)) + 0.5) for x, L in zip(row, levels)]
            want = sum(d * math.prod(levels[:i]) for i, d in enumerate(digits))
            assert number == want, (
                f"z {row}, levels {levels}: id {number}, not {want} (digits {digits})"
            )
            scaled = [2 * d / (L - 1) - 1 for d, L in zip(digits, levels)]
            assert all(abs(a - b) < 1e-5 for a, b in zip(got, scaled)), (
                f"z {row}, levels {levels}: code {got}, not {scaled}"
            )

    check()


def has_the_gradient_of_its_bound(fsq):
    """d code / d z is the derivative of the bound before rounding, 2 s (1 - s) with s = sigmoid(z): neither 0 nor 1."""

    @given(latents_and_levels())
    @example((torch.tensor([[0.25, -0.25]]), (3, 4)))
    def check(case):
        z, levels = case[0].clone().requires_grad_(), case[1]
        code, _ = fsq(z, levels)
        (grad,) = (
            torch.autograd.grad(code.sum(), z, allow_unused=True) if code.requires_grad else (None,)
        )
        s = torch.sigmoid(z.detach().double())
        want = (2 * s * (1 - s)).float()
        assert grad is not None, f"z {z.tolist()}: the code has no gradient"
        fits = torch.allclose(grad, want, rtol=1e-3, atol=1e-6)
        assert fits, (
            f"z {z.tolist()}, levels {levels}: gradient {grad.tolist()}, not {want.tolist()}"
        )

    check()


def digits_stay_in_range(fsq):
    """Any latent, however large, has an id in 0 .. K-1 and a finite gradient."""
    for levels in ((2,), (3, 4), (5, 2, 3)):
        z = torch.tensor([[1e6], [-1e6], [0.3]]).expand(3, len(levels)).clone().requires_grad_()
        code, ids = fsq(z, levels)
        assert ids[:2].tolist() == [math.prod(levels) - 1, 0], (
            f"levels {levels}: the ids of z = 1e6 and -1e6 are {ids[:2].tolist()}"
        )
        (grad,) = torch.autograd.grad(code.sum(), z)
        assert grad.isfinite().all(), f"levels {levels}: gradient {grad.tolist()}"


# Planted bugs


def quantized(z, codebook, value=None, ids=None, commitment=None):
    """`quantize` with one of its three answers replaced by what value(z, code), ids(z, codebook) or commitment(z, code) gives."""
    chosen = (ids or nearest)(z.detach(), codebook)
    code = codebook[chosen]
    return (
        value(z, code) if value else z + (code - z).detach(),
        chosen,
        commitment(z, code) if commitment else (z - code).square().mean(),
    )


def sums(z, ids, K):
    """Number of latents per code, and their sum."""
    return torch.bincount(ids, minlength=K).float(), torch.zeros(K, z.shape[1]).index_add(0, ids, z)


def moved(codebook, mass, total, n, s, decay):
    mass, total = decay * mass + (1 - decay) * n, decay * total + (1 - decay) * s
    return torch.where(mass[:, None] > 0, total / mass[:, None], codebook), mass, total


def keep(mass, decay):
    return decay if mass.any() else 0.0


def average_of_means(codebook, mass, total, z, ids, decay):
    """Moves each used code by its batch mean, however many latents that is of."""
    n, s = sums(z, ids, len(mass))
    _, mass, total = moved(codebook, mass, total, n, s, keep(mass, decay))
    mean = s / n[:, None].clamp(min=1)
    return torch.where(n[:, None] > 0, decay * codebook + (1 - decay) * mean, codebook), mass, total


def loses_duplicates(codebook, mass, total, z, ids, decay):
    n, s = torch.zeros_like(mass), torch.zeros_like(total)
    n[ids] += 1
    s[ids] += z
    return moved(codebook, mass, total, n, s, keep(mass, decay))


def in_place(codebook, mass, total, z, ids, decay):
    new = ema_update(codebook, mass, total, z, ids, decay)
    mass.copy_(new[1])
    return new


def divides_by_zero(codebook, mass, total, z, ids, decay):
    n, s = sums(z, ids, len(mass))
    _, mass, total = moved(codebook, mass, total, n, s, keep(mass, decay))
    return (
        total / mass[:, None].clamp(min=1e-5),
        mass,
        total,
    )  # a code that was never used goes to 0


def entropy(ids, K, out=math.exp, floor=0.0, share=None):
    """`perplexity` with switches that break it."""
    n = torch.bincount(ids.flatten(), minlength=K).double()
    p = share(n) if share else n / n.sum()
    p = p.clamp(min=floor)
    return out(float(-torch.special.xlogy(p, p).sum())), int((n > 0).sum())


def bounded_by(z, levels):
    sizes = torch.tensor(levels)
    return torch.sigmoid(z) * (sizes - 1), sizes


def fsq_with(z, levels, through=True, how=torch.round, reverse=False, full=False):
    """`fsq` with switches that break it."""
    bounded, sizes = bounded_by(z, levels)
    if full:  # levels 0 .. L
        bounded = torch.sigmoid(z) * sizes
    digits = how(bounded)
    order = list(levels)[::-1] if reverse else list(levels)
    radix = torch.tensor([math.prod(order[:i]) for i in range(len(order))])
    ids = (digits.detach().long() * (radix.flip(0) if reverse else radix)).sum(-1)
    digits = bounded + (digits - bounded).detach() if through else digits
    return digits / (sizes - 1) * 2 - 1, ids


def fsq_straight_to_z(z, levels):
    """The gradient of z itself, past the bound: latents run away."""
    code, ids = fsq(z.detach(), levels)
    return z + (code - z).detach(), ids


EXERCISES = [
    Exercise(
        "nearest",
        nearest,
        (
            properties.is_the_nearest,
            properties.codes_are_their_own,
            properties.follows_a_permutation,
        ),
        hint="|z - c|^2 has three terms. One of them is the same for all codes; the length of a code is not.",
        wrong=(
            lambda z, c: (z @ c.T).argmax(-1),  # the largest product
            lambda z, c: (c.square().sum(-1) - z @ c.T).argmin(-1),  # half of the middle term
            lambda z, c: torch.nn.functional.cosine_similarity(z[..., None, :], c, dim=-1).argmax(
                -1
            ),
            lambda z, c: (z[..., None, :] - c).abs().sum(-1).argmin(-1),  # city blocks
            lambda z, c: nearest(z, c[: max(1, len(c) - 1)]),  # never the last
            lambda z, c: (z[..., None, :] - c).square().sum(-1).argmax(-1),  # the farthest
        ),
    ),
    Exercise(
        "quantize",
        quantize,
        (
            ids_are_the_nearest,
            properties.passes_straight_through,
            properties.commitment_moves_the_latents_only,
            takes_a_grid_of_latents,
        ),
        hint="z plus a difference that autograd takes for a constant. And which side of the commitment should move?",
        wrong=(
            lambda z, c: quantized(z, c, value=lambda z, code: code),  # no straight-through
            lambda z, c: quantized(z, c, value=lambda z, code: z),  # not quantized
            lambda z, c: quantized(
                z, c, value=lambda z, code: 2 * z + (code - 2 * z).detach()
            ),  # twice the gradient
            lambda z, c: quantized(
                z, c, commitment=lambda z, code: (z.detach() - code).square().mean()
            ),  # the wrong side
            lambda z, c: quantized(
                z, c, commitment=lambda z, code: (z - code).square().sum(-1).mean()
            ),  # summed over D
            lambda z, c: quantized(
                z, c, commitment=lambda z, code: (z - (z + (code - z).detach())).square().mean()
            ),  # of what went straight through
            lambda z, c: quantized(z, c, ids=lambda z, c: (z @ c.T).argmax(-1)),
        ),
    ),
    Exercise(
        "perplexity",
        vq.perplexity,
        (uses_what_the_entropy_says,),
        hint="entropy and exponential need one base; a code that never occurs adds nothing, though its logarithm is infinite.",
        wrong=(
            lambda ids, K: entropy(ids, K, out=lambda h: h),  # the entropy itself
            lambda ids, K: entropy(ids, K, out=lambda h: 2**h),  # nats into bits
            lambda ids, K: entropy(ids, K, floor=1e-3),  # unused codes count a little
            lambda ids, K: (
                entropy(ids, K)[0],
                int(ids.max()) + 1,
            ),  # the largest id for the number of ids
            lambda ids, K: (
                float(1 / (torch.bincount(ids.flatten()).double() / ids.numel()).square().sum()),
                len(ids.unique()),
            ),  # Simpson's
            lambda ids, K: entropy(ids, K, share=lambda n: n / K),
        ),
    ),
    Exercise(
        "ema_update",
        ema_update,
        (moves_codes_to_their_means, stays_among_its_latents, leaves_what_it_is_given),
        hint="average sums and numbers, then divide. Indexing with a repeated id writes once, not twice.",
        wrong=(
            average_of_means,
            loses_duplicates,
            in_place,
            divides_by_zero,
            lambda c, m, t, z, i, decay: moved(
                c, m, t, *sums(z, i, len(m)), 1 - keep(m, decay)
            ),  # decay the other way round
            lambda c, m, t, z, i, decay: moved(
                c, m, t, *sums(z, i, len(m)), decay
            ),  # the first batch counts in part
            lambda c, m, t, z, i, decay: moved(c, m, t, *sums(z, i, len(m)), 0.0),  # no memory
        ),
    ),
    Exercise(
        "fsq",
        fsq,
        (rounds_each_dimension, has_the_gradient_of_its_bound, digits_stay_in_range),
        hint="bound, then round; only the rounding goes straight through. The id is a number whose digits have different bases.",
        wrong=(
            lambda z, levels: fsq_with(z, levels, through=False),  # rounding has gradient 0
            lambda z, levels: fsq_with(
                z, levels, how=torch.floor
            ),  # the last level only at infinity
            lambda z, levels: fsq_with(z, levels, reverse=True),  # the last digit least
            lambda z, levels: fsq_with(z, levels, full=True),  # L + 1 digits
            lambda z, levels: (
                bounded_by(z, levels)[0] / (torch.tensor(levels) - 1) * 2 - 1,
                fsq(z, levels)[1],
            ),  # not rounded
            fsq_straight_to_z,
        ),
    ),
]
