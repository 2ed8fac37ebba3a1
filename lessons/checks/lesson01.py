"""Checks of lesson 01: properties of its exercises, and planted bugs that they refuse."""

import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.compare import assert_same
from minimuse.checks.properties import quantizer as properties

from minimuse import vq

TITLE = "images as tokens"


# --- The package's quantizers as plain functions ---
def ema(codebook, mass=None, total=None, decay=0.97):
    quantizer = vq.EMAQuantizer(*codebook.shape, decay=decay, restart_below=0.0)
    # A quantizer's codebook moves without gradients.
    quantizer.codebook.copy_(codebook.detach())
    if mass is not None:
        quantizer.mass.copy_(mass)
    if total is not None:
        quantizer.total.copy_(total)
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
    code, ids, _ = vq.FSQuantizer(tuple(levels))(z)
    return code, ids


# --- Properties of `nearest` ---
def takes_any_latents(nearest):
    """One latent (D,), a list (M, D) and a grid (B, h, w, D) have the ids of their latents."""
    z = properties.normal(2, 3, 4, 5)
    codebook = properties.normal(7, 5, seed=1)
    of_list = nearest(z.reshape(24, 5), codebook)
    assert_same(nearest(z, codebook), of_list.view(2, 3, 4), "latents (2, 3, 4, 5)")
    assert_same(nearest(z[0, 0, 0], codebook), of_list[0], "one latent (5,)")


# --- Properties of `quantize` ---
def ids_are_the_nearest(quantize):
    """The ids of `quantize` are those of the nearest codes."""

    def ids_of(z, codebook):
        _, ids, _ = quantize(z, codebook)
        return ids

    properties.is_the_nearest(ids_of)


def takes_a_grid_of_latents(quantize):
    """Latents (B, h, w, D), as an encoder gives them, have the same codes as a list of them."""
    z = properties.normal(2, 3, 4, 5)
    codebook = properties.normal(7, 5, seed=1)
    code, ids, commitment = quantize(z, codebook)
    assert code.shape == (2, 3, 4, 5) and ids.shape == (2, 3, 4) and commitment.shape == (), (
        f"{code.shape}, {ids.shape}, {commitment.shape}"
    )
    _, ids_of_list, _ = quantize(z.reshape(24, 5), codebook)
    assert_same(ids.flatten(), ids_of_list, "ids of a grid, and of a list of its latents")
    code, id, _ = quantize(z[0, 0, 0], codebook)
    assert code.shape == (5,) and id.shape == (), (
        f"one latent (5,): code {tuple(code.shape)}, id {tuple(id.shape)}"
    )


def gives_the_codebook_no_gradient(quantize):
    """Neither the code nor the commitment has a gradient for the codebook."""
    z = properties.normal(3, 2).requires_grad_()
    codebook = properties.normal(4, 2, seed=1).requires_grad_()
    code, _, commitment = quantize(z, codebook)
    for name, output in (("code", code.sum()), ("commitment", commitment)):
        gradient = properties.gradient_or_none(output, codebook)
        assert gradient is None or not gradient.any(), (
            f"the {name} gives the codebook a gradient: {gradient.tolist()}"
        )


# --- Properties of `ema_update` ---
class Moving:
    """A function like `ema_update` as a quantizer with the interface of `EMAQuantizer`."""

    def __init__(self, ema_update, codes, width, decay):
        self.ema_update = ema_update
        self.decay = decay
        self.codebook = properties.normal(codes, width)
        self.mass = torch.zeros(codes)
        self.total = torch.zeros(codes, width)

    def update(self, z, ids, generator):
        state = self.ema_update(self.codebook, self.mass, self.total, z, ids, self.decay)
        self.codebook, self.mass, self.total = state
        return 0


def maker(ema_update):
    """What the properties of a quantizer class take, from a function."""

    def make(codes, width, decay, restart_below):
        return Moving(ema_update, codes, width, decay)

    return make


def moves_codes_to_their_means(ema_update):
    """Each code is the moving average of its latents' sum over that of their number."""
    properties.averages_latents(maker(ema_update))


def stays_among_its_latents(ema_update):
    """A code that was used lies among its latents."""
    properties.stays_in_the_hull(maker(ema_update))


def leaves_what_it_is_given(ema_update):
    """The tensors that are given keep their values, also if no code is used twice or one always."""

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans())
    @example([1], False)
    def check(ids, first):
        arguments = {
            "codebook": properties.normal(4, 2),
            "mass": torch.zeros(4) if first else torch.ones(4),
            "total": torch.zeros(4, 2) if first else properties.normal(4, 2, seed=1),
            "z": properties.normal(len(ids), 2, seed=2),
            "ids": torch.tensor(ids),
        }
        before = {name: x.clone() for name, x in arguments.items()}
        ema_update(*arguments.values(), 0.9)
        for name, now in arguments.items():
            assert torch.equal(before[name], now), (
                f"ids {ids}: {name} was changed in place, "
                f"from {before[name].tolist()} to {now.tolist()}"
            )

    check()


# --- Properties of `perplexity` ---
def is_the_exponential_of_the_entropy(perplexity):
    """Compared with a product over a plain list; for any shape, and more codes than ids."""
    properties.perplexity_is_bounded(perplexity)
    value, used = perplexity(torch.tensor([[[3, 3], [5, 3]]]), 1000)
    expected = 0.75**-0.75 * 0.25**-0.25
    assert used == 2 and math.isclose(value, expected, rel_tol=1e-9), (
        f"ids 3, 3, 5, 3: perplexity {value}, {used} used"
    )


# --- Properties of `fsq` ---
def takes_any_shape(fsq):
    """One latent (D,) and a grid (B, h, w, D) have the codes and ids of their latents."""
    z = properties.normal(2, 3, 4, 3)
    levels = (3, 4, 5)
    code, ids = fsq(z, levels)
    code_of_list, ids_of_list = fsq(z.reshape(24, 3), levels)
    assert_same(ids, ids_of_list.view(2, 3, 4), "ids of latents (2, 3, 4, 3)")
    assert_same(code, code_of_list.view(2, 3, 4, 3), "codes of latents (2, 3, 4, 3)")
    _, id = fsq(z[0, 0, 0], levels)
    assert_same(id, ids_of_list[0], "the id of one latent (3,)")


@st.composite
def latents_and_levels(draw):
    """Latents z (M, D) and levels (D,); never half-way between two digits.

    They are multiples of an eighth of a cell, so that counterexamples are short.
    """
    levels = draw(st.lists(st.integers(2, 6), min_size=1, max_size=4))
    bounded = []  # between 0 and 1
    for _ in range(draw(st.integers(1, 4))):
        row = []
        for L in levels:
            digit = draw(st.integers(0, L - 1))
            offset = draw(st.integers(-3, 3)) / 8
            row.append((digit + offset) / (L - 1))
        bounded.append(row)
    bounded = torch.tensor(bounded, dtype=torch.float64).clamp(1e-3, 1 - 1e-3)
    return torch.logit(bounded).float(), tuple(levels)


def nearest_digit(x, L):
    """The digit of one number x, by the definition."""
    return math.floor((L - 1) / (1 + math.exp(-x)) + 0.5)


def rounds_each_dimension(fsq):
    """Digits, codes and ids are those of a loop in plain Python."""

    @given(latents_and_levels())
    @example((torch.tensor([[5.0, -5.0]]), (3, 4)))
    def check(case):
        z, levels = case
        code, ids = fsq(z, levels)
        assert code.shape == z.shape and ids.shape == z.shape[:-1], (
            f"z {tuple(z.shape)}: code {tuple(code.shape)}, ids {tuple(ids.shape)}"
        )
        assert ids.dtype == torch.int64, f"ids are {ids.dtype}, not int64"
        for row, row_code, row_id in zip(z.tolist(), code.tolist(), ids.tolist(), strict=True):
            digits = [nearest_digit(x, L) for x, L in zip(row, levels, strict=True)]
            expected = sum(d * math.prod(levels[:i]) for i, d in enumerate(digits))
            assert row_id == expected, (
                f"z {row}, levels {levels}: id {row_id}, not {expected} (digits {digits})"
            )
            scaled = [2 * d / (L - 1) - 1 for d, L in zip(digits, levels, strict=True)]
            errors = [abs(a - b) for a, b in zip(row_code, scaled, strict=True)]
            assert max(errors) < 1e-5, f"z {row}, levels {levels}: code {row_code}, not {scaled}"

    check()


def has_the_gradient_of_its_bound(fsq):
    """d code / d z is the derivative of the bound before rounding, 2 s (1 - s), s = sigmoid(z)."""

    @given(latents_and_levels())
    @example((torch.tensor([[0.25, -0.25]]), (3, 4)))
    def check(case):
        z, levels = case
        z = z.clone().requires_grad_()
        code, _ = fsq(z, levels)
        grad = properties.gradient_or_none(code.sum(), z)
        s = torch.sigmoid(z.detach().double())
        expected = (2 * s * (1 - s)).float()
        assert grad is not None, f"z {z.tolist()}: the code has no gradient"
        assert torch.allclose(grad, expected, rtol=1e-3, atol=1e-6), (
            f"z {z.tolist()}, levels {levels}: gradient {grad.tolist()}, not {expected.tolist()}"
        )

    check()


def digits_stay_in_range(fsq):
    """Any latent, however large, has an id in 0..K-1 and a finite gradient."""
    for levels in ((2,), (3, 4), (5, 2, 3)):
        z = torch.tensor([[1e6], [-1e6], [0.3]]).expand(3, len(levels)).clone().requires_grad_()
        code, ids = fsq(z, levels)
        assert ids[:2].tolist() == [math.prod(levels) - 1, 0], (
            f"levels {levels}: the ids of z = 1e6 and -1e6 are {ids[:2].tolist()}"
        )
        (grad,) = torch.autograd.grad(code.sum(), z)
        assert grad.isfinite().all(), f"levels {levels}: gradient {grad.tolist()}"


# --- Planted bugs: nearest ---
def largest_product(z, codebook):
    return (z @ codebook.T).argmax(-1)


def half_the_middle_term(z, codebook):
    return (codebook.square().sum(-1) - z @ codebook.T).argmin(-1)


def largest_cosine(z, codebook):
    return torch.nn.functional.cosine_similarity(z[..., None, :], codebook, dim=-1).argmax(-1)


def city_block(z, codebook):
    return (z[..., None, :] - codebook).abs().sum(-1).argmin(-1)


def never_the_last(z, codebook):
    return nearest(z, codebook[: max(1, len(codebook) - 1)])


def one_list_only(z, codebook):
    return torch.cdist(z, codebook).argmin(1)


def farthest(z, codebook):
    return (z[..., None, :] - codebook).square().sum(-1).argmax(-1)


# --- Planted bugs: quantize ---
def without_straight_through(z, codebook):
    _, ids, commitment = quantize(z, codebook)
    return codebook[ids], ids, commitment


def not_quantized(z, codebook):
    _, ids, commitment = quantize(z, codebook)
    return z, ids, commitment


def twice_the_gradient(z, codebook):
    _, ids, commitment = quantize(z, codebook)
    return 2 * z + (codebook[ids] - 2 * z).detach(), ids, commitment


def moves_the_codes(z, codebook):
    code, ids, _ = quantize(z, codebook)
    return code, ids, (z.detach() - codebook[ids]).square().mean()


def commitment_summed_over_width(z, codebook):
    code, ids, _ = quantize(z, codebook)
    return code, ids, (z - codebook[ids]).square().sum(-1).mean()


def commitment_to_the_straight_through_code(z, codebook):
    code, ids, _ = quantize(z, codebook)
    return code, ids, (z - code).square().mean()


def ids_of_the_largest_product(z, codebook):
    ids = largest_product(z.detach(), codebook)
    code = codebook[ids]
    return z + (code - z).detach(), ids, (z - code).square().mean()


def codebook_is_pulled_by_the_commitment(z, codebook):
    code, ids, _ = quantize(z, codebook)
    return code, ids, (z - codebook[ids]).square().mean()


def codebook_gets_the_straight_through_gradient(z, codebook):
    _, ids, commitment = quantize(z, codebook)
    return codebook[ids] + z - z.detach(), ids, commitment


def no_detach_at_all(z, codebook):
    """The values are right, and the gradient goes to the codebook alone."""
    ids = nearest(z, codebook)
    return z + (codebook[ids] - z), ids, (z - codebook[ids]).square().mean()


# --- Planted bugs: perplexity ---
def frequencies_of(ids, K):
    return torch.bincount(ids.flatten(), minlength=K).double() / ids.numel()


def entropy_of(p):
    return float(-torch.special.xlogy(p, p).sum())


def entropy_itself(ids, K):
    return entropy_of(frequencies_of(ids, K)), len(ids.unique())


def power_of_two_of_nats(ids, K):
    return 2 ** entropy_of(frequencies_of(ids, K)), len(ids.unique())


def unused_codes_count_a_little(ids, K):
    p = frequencies_of(ids, K).clamp(min=1e-3)
    return math.exp(entropy_of(p)), len(ids.unique())


def largest_id_for_the_number_used(ids, K):
    value, _ = vq.perplexity(ids, K)
    return value, int(ids.max()) + 1


def inverse_simpson_index(ids, K):
    return float(1 / frequencies_of(ids, K).square().sum()), len(ids.unique())


def divides_by_the_number_of_codes(ids, K):
    p = frequencies_of(ids, K) * ids.numel() / K
    return math.exp(entropy_of(p)), len(ids.unique())


# --- Planted bugs: ema_update ---
def counts_and_sums(z, ids, K):
    """Number of latents per code, and their sum."""
    counts = torch.bincount(ids, minlength=K).float()
    return counts, torch.zeros(K, z.shape[1]).index_add(0, ids, z)


def moved(codebook, mass, total, counts, sums, decay):
    """A correct update with the decay that is given, also for the first batch."""
    mass = decay * mass + (1 - decay) * counts
    total = decay * total + (1 - decay) * sums
    return torch.where(mass[:, None] > 0, total / mass[:, None], codebook), mass, total


def decay_of(mass, decay):
    """0 for the first batch."""
    return decay if mass.any() else 0.0


def average_of_means(codebook, mass, total, z, ids, decay):
    """Moves each used code by its batch mean, however many latents that is of."""
    counts, sums = counts_and_sums(z, ids, len(mass))
    _, mass, total = moved(codebook, mass, total, counts, sums, decay_of(mass, decay))
    means = sums / counts[:, None].clamp(min=1)
    averages = decay * codebook + (1 - decay) * means
    return torch.where(counts[:, None] > 0, averages, codebook), mass, total


def loses_duplicates(codebook, mass, total, z, ids, decay):
    """Indexing with a repeated id writes once."""
    counts, sums = torch.zeros_like(mass), torch.zeros_like(total)
    counts[ids] += 1
    sums[ids] += z
    return moved(codebook, mass, total, counts, sums, decay_of(mass, decay))


def in_place(codebook, mass, total, z, ids, decay):
    new = ema_update(codebook, mass, total, z, ids, decay)
    mass.copy_(new[1])
    return new


def unused_codes_go_to_zero(codebook, mass, total, z, ids, decay):
    """Divides by a mass of 0, clamped."""
    counts, sums = counts_and_sums(z, ids, len(mass))
    _, mass, total = moved(codebook, mass, total, counts, sums, decay_of(mass, decay))
    return total / mass[:, None].clamp(min=1e-5), mass, total


def decay_the_other_way_round(codebook, mass, total, z, ids, decay):
    counts, sums = counts_and_sums(z, ids, len(mass))
    return moved(codebook, mass, total, counts, sums, 1 - decay_of(mass, decay))


def first_batch_counts_in_part(codebook, mass, total, z, ids, decay):
    counts, sums = counts_and_sums(z, ids, len(mass))
    return moved(codebook, mass, total, counts, sums, decay)


def no_memory(codebook, mass, total, z, ids, decay):
    counts, sums = counts_and_sums(z, ids, len(mass))
    return moved(codebook, mass, total, counts, sums, 0.0)


# --- Planted bugs: fsq ---
def radix_of(levels):
    return torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])


def fsq_of_digits(digits, bounded, levels):
    """Codes and ids of digits (M, D); rounding goes straight through to `bounded`."""
    ids = (digits.detach().long() * radix_of(levels)).sum(-1)
    digits = bounded + (digits - bounded).detach()
    return digits / (torch.tensor(levels) - 1) * 2 - 1, ids


def bounded_by(z, levels):
    return torch.sigmoid(z) * (torch.tensor(levels) - 1)


def rounding_without_gradient(z, levels):
    _, ids = fsq(z, levels)
    return torch.round(bounded_by(z, levels)) / (torch.tensor(levels) - 1) * 2 - 1, ids


def rounds_down(z, levels):
    """The last level is reached only at infinity."""
    bounded = bounded_by(z, levels)
    return fsq_of_digits(torch.floor(bounded), bounded, levels)


def last_digit_counts_least(z, levels):
    code, _ = fsq(z, levels)
    digits = torch.round(bounded_by(z, levels)).long()
    return code, (digits * radix_of(levels[::-1]).flip(0)).sum(-1)


def one_digit_too_many(z, levels):
    """Levels 0..L."""
    bounded = torch.sigmoid(z) * torch.tensor(levels)
    return fsq_of_digits(torch.round(bounded), bounded, levels)


def not_rounded(z, levels):
    _, ids = fsq(z, levels)
    return bounded_by(z, levels) / (torch.tensor(levels) - 1) * 2 - 1, ids


def first_dimension_is_a_list(z, levels):
    code, _ = fsq(z, levels)
    digits = torch.round(bounded_by(z, levels)).long()
    return code, (digits * radix_of(levels)).sum(1)


def straight_to_z(z, levels):
    """The gradient of z itself, without the bound: latents run away."""
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
            takes_any_latents,
        ),
        hint=(
            "|z - c|^2 has three terms. One of them is the same for all codes; the length of a "
            "code is not."
        ),
        wrong=(
            largest_product,
            half_the_middle_term,
            largest_cosine,
            city_block,
            never_the_last,
            one_list_only,
            farthest,
        ),
    ),
    Exercise(
        "quantize",
        quantize,
        (
            ids_are_the_nearest,
            properties.passes_straight_through,
            properties.commitment_moves_the_latents_only,
            gives_the_codebook_no_gradient,
            takes_a_grid_of_latents,
        ),
        hint=(
            "add to z a difference that autograd takes for a constant. And which side should the "
            "commitment loss move?"
        ),
        wrong=(
            without_straight_through,
            not_quantized,
            twice_the_gradient,
            moves_the_codes,
            commitment_summed_over_width,
            commitment_to_the_straight_through_code,
            ids_of_the_largest_product,
            codebook_is_pulled_by_the_commitment,
            codebook_gets_the_straight_through_gradient,
            no_detach_at_all,
        ),
    ),
    Exercise(
        "perplexity",
        vq.perplexity,
        (is_the_exponential_of_the_entropy,),
        hint=(
            "entropy and exponential need the same base; a code that never occurs adds nothing, "
            "though its logarithm is infinite."
        ),
        wrong=(
            entropy_itself,
            power_of_two_of_nats,
            unused_codes_count_a_little,
            largest_id_for_the_number_used,
            inverse_simpson_index,
            divides_by_the_number_of_codes,
        ),
    ),
    Exercise(
        "ema_update",
        ema_update,
        (moves_codes_to_their_means, stays_among_its_latents, leaves_what_it_is_given),
        hint=(
            "average sums and numbers, then divide. Indexing with a repeated id writes once, "
            "not twice."
        ),
        wrong=(
            average_of_means,
            loses_duplicates,
            in_place,
            unused_codes_go_to_zero,
            decay_the_other_way_round,
            first_batch_counts_in_part,
            no_memory,
        ),
    ),
    Exercise(
        "fsq",
        fsq,
        (
            rounds_each_dimension,
            has_the_gradient_of_its_bound,
            digits_stay_in_range,
            takes_any_shape,
        ),
        hint=(
            "bound, then round; only the rounding goes straight through. The id is a number whose "
            "digits have different bases."
        ),
        wrong=(
            rounding_without_gradient,
            rounds_down,
            last_digit_counts_least,
            one_digit_too_many,
            not_rounded,
            first_dimension_is_a_list,
            straight_to_z,
        ),
    ),
]
