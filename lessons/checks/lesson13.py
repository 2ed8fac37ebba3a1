"""Lesson 13: masked models as diffusion, parallel passes, revisions, and a partly random start.

A world is a table `joint` with N axes of K codes: the probability of every image of N tokens.
"""

import itertools
import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise

from minimuse import decode, schedule
from minimuse.beyond import distill
from minimuse.decode import Sampling

TITLE = "beyond Muse"


# --- Our solutions. The package has the sampler and the masks; the rest are references. ---


def our_weight(counts, tokens):
    """One over the probability that n tokens are hidden, n = 1 .. tokens."""
    ratios = torch.arange(tokens + 1, dtype=torch.float64) / tokens
    probabilities = ratios.asin().diff() * 2 / math.pi
    return 1 / probabilities[counts - 1]


def marginal(joint, keep):
    """The marginal of the places `keep`. The axes of the others have length 1."""
    others = [i for i in range(joint.dim()) if i not in keep]
    if not others:
        return joint
    return joint.sum(dim=others, keepdim=True)


def product_of_marginals(joint):
    product = torch.ones_like(joint)
    for i in range(joint.dim()):
        product = product * marginal(joint, [i])
    return product


def marginal_entropies(joint):
    """The entropy of each token alone, in nats."""
    return [float(torch.special.entr(marginal(joint, [i])).sum()) for i in range(joint.dim())]


def our_dependence(joint):
    product = product_of_marginals(joint).where(joint > 0, 1)
    return float(torch.special.xlogy(joint, joint / product).sum())


def two_codes_with_entropy(entropies):
    """Logits (1, M, 2) of two codes each, with these entropies, by bisection."""
    low = torch.zeros_like(entropies)  # of the probability of the rarer code
    high = torch.full_like(entropies, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        entropy = torch.special.entr(torch.stack([middle, 1 - middle])).sum(0)
        low = torch.where(entropy < entropies, middle, low)
        high = torch.where(entropy < entropies, high, middle)
    return torch.stack([1 - low, low], dim=-1).log()[None]


def our_count(entropies, bound):
    """What the package's entropy sampler reveals."""
    M = len(entropies)
    hidden = torch.ones(1, M, dtype=torch.bool)
    left = torch.tensor([M - 1])
    sampling = Sampling(sampler="entropy", entropy_bound=bound)
    logits = two_codes_with_entropy(entropies)
    _, left = decode.entropy(logits, None, hidden, left, None, sampling)
    return M - int(left)


def our_decoded(joint, passes):
    q = torch.ones_like(joint)
    seen = []
    for places in passes:
        for i in places:
            q = q * marginal(joint, [*seen, i]) / marginal(joint, seen)
        seen = [*seen, *places]
    return q


def redrawn(current, joint, i):
    """The distribution after place i is hidden and drawn anew."""
    return current.sum(dim=i, keepdim=True) * joint / joint.sum(dim=i, keepdim=True)


def our_revised(current, joint):
    N = joint.dim()
    return sum(redrawn(current, joint, i) for i in range(N)) / N


def random_codes(batch, tokens, codes, generator):
    return torch.randint(codes, (batch, tokens), generator=generator)


def our_start(batch, tokens, codes, share, generator):
    counts = torch.full((batch,), math.ceil(share * tokens))
    hidden = schedule.random_masks(counts, tokens, generator)
    return random_codes(batch, tokens, codes, generator).masked_fill(hidden, codes)


# --- Worlds to check on ---


def table(weights, N, K):
    joint = torch.tensor(weights, dtype=torch.float64).reshape([K] * N)
    return joint / joint.sum()


@st.composite
def worlds(draw, least=1):
    """Worlds of up to three tokens of up to three codes.

    The weights are small integers, so that a counterexample can be read.
    """
    N = draw(st.integers(1, 3))
    K = draw(st.integers(2, 3))
    weights = draw(st.lists(st.integers(least, 9), min_size=K**N, max_size=K**N).filter(any))
    return table(weights, N, K)


TWINS = table([1, 0, 0, 1], 2, 2)  # 00 and 11
UNEVEN = table([4, 1, 1, 2, 3, 1, 1, 7], 3, 2)


def images_of(joint):
    """Every image of a world, as a tuple of codes."""
    return list(itertools.product(range(joint.shape[0]), repeat=joint.dim()))


def shown(joint):
    return [round(float(x), 3) for x in joint.flatten()]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- Properties of picture_weight ---


def undoes_the_law_of_the_masks(picture_weight):
    """For any losses L_n: the expectation, over a fine grid of u, is their sum."""

    @given(st.integers(1, 40), st.integers(0, 99))
    @example(1, 0)
    @example(16, 0)
    @example(256, 1)
    def check(tokens, seed):
        points = 200_000
        u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        counts = schedule.mask_counts(torch.cos(math.pi / 2 * u), tokens)
        L = torch.rand(tokens, generator=seeded(seed), dtype=torch.float64) + 0.5
        weight = picture_weight(counts, tokens)
        assert weight.shape == counts.shape and weight.dtype == torch.float64, (
            f"weights {tuple(weight.shape)} {weight.dtype}"
        )
        expectation = float((weight * L[counts - 1]).mean())
        bound = float(L.sum())
        assert math.isclose(expectation, bound, rel_tol=1e-2), (
            f"{tokens} tokens: the expectation is {expectation:.4f}, the bound {bound:.4f}"
        )

    check()


def weights_are_finite_for_all_counts(picture_weight):
    """Each weight is one over how often its count occurs, whatever the order of the counts."""
    for tokens in (1, 2, 16, 256):
        order = torch.randperm(tokens, generator=seeded(0)) + 1
        weights = picture_weight(order, tokens)
        for n, weight in zip(order.tolist(), weights.tolist(), strict=True):
            wanted = math.pi / 2 / (math.asin(n / tokens) - math.asin((n - 1) / tokens))
            assert math.isclose(weight, wanted, rel_tol=1e-9), (
                f"{n} of {tokens} hidden: {weight}, not {wanted}"
            )


# --- Properties of dependence ---


def slow_dependence(joint):
    """The KL divergence to the product of marginals, image by image."""
    N = joint.dim()
    images = images_of(joint)
    alone = []  # for each place, the probability of each code
    for i in range(N):
        probabilities = [0.0] * joint.shape[0]
        for x in images:
            probabilities[x[i]] += float(joint[x])
        alone.append(probabilities)
    total = 0.0
    for x in images:
        p = float(joint[x])
        if p > 0:
            total += p * math.log(p / math.prod(alone[i][x[i]] for i in range(N)))
    return total


def is_the_kl_to_the_product(dependence):
    @given(worlds(least=0))
    @example(TWINS)
    @example(UNEVEN)
    @example(table([1, 1, 1, 1], 2, 2))
    @example(table([0, 1], 1, 2))
    def check(joint):
        nats = float(dependence(joint))
        wanted = slow_dependence(joint)
        assert math.isclose(nats, wanted, abs_tol=1e-9), (
            f"world {shown(joint)}, {joint.dim()} tokens: {nats} nats, not {wanted}"
        )

    check()


def is_at_most_the_bound_of_entropies(dependence):
    """The inequality of section 2: at most all entropies but the largest."""

    @given(worlds(least=0))
    @example(TWINS)
    def check(joint):
        H = marginal_entropies(joint)
        bound = sum(H) - max(H)
        nats = float(dependence(joint))
        assert -1e-9 <= nats <= bound + 1e-9, f"world {shown(joint)}: {nats} nats, bound {bound}"

    check()


# --- Properties of safe_to_reveal ---


def reveals_as_many_as_the_bound_allows(safe_to_reveal):
    """Against trying every number.

    The entropies come in any order, some are equal, some are zero. Their sums are as far from the
    bound as rounding needs.
    """

    @given(st.lists(st.integers(0, 13), min_size=1, max_size=8), st.integers(0, 20))
    @example([5], 0)
    @example([0, 0, 0], 0)
    @example([3, 3, 3], 3)
    @example([12, 1], 1)
    @example([1, 2, 10], 3)
    @example([1, 1, 1, 13], 9)
    def check(twentieths, bound):
        entropies = torch.tensor(twentieths, dtype=torch.float64) / 20
        limit = bound / 20 + 0.01
        ascending = sorted(twentieths)
        wanted = 1
        for n in range(2, len(ascending) + 1):
            if sum(ascending[: n - 1]) <= bound:
                wanted = n
        count = int(safe_to_reveal(entropies, limit))
        assert count == wanted, (
            f"entropies {entropies.tolist()}, bound {limit}: {count}, not {wanted}"
        )

    check()


# --- Properties of decoded ---


@st.composite
def worlds_and_passes(draw):
    """A world, and its places in random order, cut into passes."""
    joint = draw(worlds())
    N = joint.dim()
    order = draw(st.permutations(range(N)))
    cuts = draw(st.sets(st.integers(1, N))) if N > 1 else set()
    edges = sorted({0, *cuts, N})
    passes = [list(order[start:end]) for start, end in itertools.pairwise(edges)]
    return joint, passes


def slowly_decoded(joint, passes):
    images = images_of(joint)
    q = torch.ones_like(joint)
    for x in images:
        seen = []
        for places in passes:
            fits = [y for y in images if all(y[j] == x[j] for j in seen)]
            total = sum(float(joint[y]) for y in fits)
            for i in places:
                q[x] *= sum(float(joint[y]) for y in fits if y[i] == x[i]) / total
            seen += places
    return q


def multiplies_what_each_pass_says(decoded):
    @given(worlds_and_passes())
    @example((UNEVEN, [[0, 1, 2]]))
    @example((UNEVEN, [[2], [0, 1]]))
    @example((UNEVEN, [[1, 2], [0]]))
    @example((table([3], 1, 1), [[0]]))
    def check(case):
        joint, passes = case
        given_passes = [list(p) for p in passes]
        q = decoded(joint, given_passes)
        wanted = slowly_decoded(joint, passes)
        assert given_passes == passes, f"passes {passes} became {given_passes}"
        assert q.shape == joint.shape, f"shape {tuple(q.shape)}, not {tuple(joint.shape)}"
        assert torch.allclose(q, wanted, rtol=1e-9, atol=1e-12), (
            f"world {shown(joint)}, passes {passes}: {shown(q)}, not {shown(wanted)}"
        )

    check()


def one_by_one_is_the_world(decoded):
    for order in itertools.permutations(range(3)):
        q = decoded(UNEVEN, [[i] for i in order])
        assert torch.allclose(q, UNEVEN, rtol=1e-9), (
            f"order {order}: {shown(q)}, not the world {shown(UNEVEN)}"
        )


# --- Properties of revised ---


def slowly_revised(current, joint):
    """All images, all places and all codes, one by one."""
    N, K = joint.dim(), joint.shape[0]
    revised = torch.zeros_like(joint)
    for x in images_of(joint):
        for i in range(N):
            candidates = [(*x[:i], code, *x[i + 1 :]) for code in range(K)]
            total = sum(joint[y] for y in candidates)
            for y in candidates:
                revised[y] += current[x] / N * joint[y] / total
    return revised


def redraws_one_token(revised):
    """Against the slow way, from a distribution that is not the world."""

    @given(worlds(), st.integers(0, 99))
    @example(UNEVEN, 0)
    @example(table([1, 2], 1, 2), 0)
    def check(joint, seed):
        current = torch.rand(joint.shape, generator=seeded(seed), dtype=torch.float64)
        current = current / current.sum()
        wanted = slowly_revised(current, joint)
        before = current.clone(), joint.clone()
        q = revised(current, joint)
        assert torch.equal(current, before[0]) and torch.equal(joint, before[1]), (
            "the given distributions have changed"
        )
        assert q.shape == joint.shape, f"shape {tuple(q.shape)}, not {tuple(joint.shape)}"
        assert torch.allclose(q, wanted, rtol=1e-9, atol=1e-12), (
            f"world {shown(joint)}, from {shown(current)}: {shown(q)}, not {shown(wanted)}"
        )

    check()


def stays_with_the_world(revised):
    """Revisions do not change the world, and they lead to it."""
    once = revised(UNEVEN, UNEVEN)
    assert torch.allclose(once, UNEVEN, rtol=1e-9), (
        f"the world {shown(UNEVEN)} became {shown(once)}"
    )
    current = torch.full_like(UNEVEN, 1 / 8)
    for _ in range(200):
        current = revised(current, UNEVEN)
    assert torch.allclose(current, UNEVEN, atol=1e-6), (
        f"200 revisions lead to {shown(current)}, not to {shown(UNEVEN)}"
    )


# --- Properties of partly_random ---


def hides_exactly_the_fraction(partly_random):
    @given(
        st.integers(1, 4),
        st.integers(1, 12),
        st.integers(1, 5),
        st.integers(0, 20),
        st.integers(0, 99),
    )
    @example(2, 16, 3, 12, 0)
    @example(1, 5, 2, 0, 0)
    @example(1, 5, 2, 20, 0)
    @example(3, 7, 1, 1, 0)
    def check(batch, tokens, codes, twentieths, seed):
        share = twentieths / 20
        ids = partly_random(batch, tokens, codes, share, seeded(seed))
        case = f"{batch} x {tokens} tokens of {codes} codes, share {share}: {ids.tolist()}"
        assert ids.shape == (batch, tokens) and ids.dtype == torch.int64, (
            f"ids are {tuple(ids.shape)} {ids.dtype}"
        )
        assert int(ids.min()) >= 0, case
        assert int(ids.max()) <= codes, case
        # 0.55 * 20 is 11.000000000000002 in floats, and may be rounded up to 11 or to 12.
        allowed = {math.ceil(share * tokens), math.ceil(share * tokens - 1e-9)}
        hidden = set((ids == codes).sum(-1).tolist())
        assert len(hidden) == 1 and hidden <= allowed, (
            f"{case}: {sorted(hidden)} are hidden in a row, where {max(allowed)} are expected"
        )
        again = partly_random(batch, tokens, codes, share, seeded(seed))
        assert torch.equal(ids, again), f"{case}; the same generator, again: {again.tolist()}"

    check()


def assert_near(events, wanted, description):
    """A fraction of events (booleans), within five standard deviations."""
    fraction = float(events.mean())
    limit = 5 * (wanted * (1 - wanted) / len(events)) ** 0.5
    assert abs(fraction - wanted) < limit, f"{description}: {fraction:.3f}, not {wanted:.3f}"


def is_uniform_over_places_and_codes(partly_random):
    """20,000 rows, within five standard deviations. No two tokens depend on each other."""
    batch, tokens, codes = 20_000, 5, 3
    ids = partly_random(batch, tokens, codes, 0.4, seeded(0)).numpy()
    for i in range(tokens):
        assert_near(ids[:, i] == codes, 0.4, f"how often place {i} is hidden")
        visible = ids[ids[:, i] < codes, i]
        for code in range(codes):
            assert_near(visible == code, 1 / codes, f"how often place {i} has code {code}")
    for i, j in itertools.combinations(range(tokens), 2):
        both_hidden = (ids[:, i] == codes) & (ids[:, j] == codes)
        assert_near(both_hidden, 0.1, f"how often places {i} and {j} are hidden together")
        visible = ids[(ids[:, i] < codes) & (ids[:, j] < codes)]
        same_code = visible[:, i] == visible[:, j]
        assert_near(same_code, 1 / codes, f"how often places {i} and {j} have the same code")
    same = float(np.mean((ids[:-1] == codes) == (ids[1:] == codes)))
    assert same < 0.6, f"neighbouring rows hide the same places in {same:.2f} of the cases"


# --- Properties of matching_gradient ---


def our_gradient(student, teacher, auxiliary, seeking):
    with torch.no_grad():
        return distill.matching_gradient(student, teacher, auxiliary, seeking)


def three_models(tokens, codes, scale, seed):
    """Logits of student, teacher and auxiliary model: three of (tokens, codes)."""
    logits = scale * torch.randn(3, tokens, codes, generator=seeded(seed), dtype=torch.float64)
    return tuple(logits.clamp(-10, 10))


def some_models(check):
    """Run a check on models of several sizes, from unsure ones to sure ones."""
    scales = st.sampled_from([0.1, 1.0, 5.0])
    cases = given(st.integers(1, 5), st.integers(2, 6), scales, st.integers(0, 99))
    example(1, 2, 1.0, 0)(cases(check))()


def covers_by_the_difference_of_probabilities(matching_gradient):
    def check(tokens, codes, scale, seed):
        models = three_models(tokens, codes, scale, seed)
        _, p, q = (logits.softmax(dim=-1) for logits in models)
        gradient = matching_gradient(*models, 0.0)
        case = f"seeking 0, p = {shown(p)}, q = {shown(q)}"
        assert gradient.shape == p.shape, f"{case}: the shape is {tuple(gradient.shape)}"
        assert torch.allclose(gradient, q - p, atol=1e-6), f"{case}: {shown(gradient)}"

    some_models(check)


def seeks_by_the_derivative(matching_gradient):
    """The derivative by PyTorch, and a mixture that is half of each."""

    def check(tokens, codes, scale, seed):
        models = three_models(tokens, codes, scale, seed)
        student, teacher, auxiliary = models
        student = student.clone().requires_grad_()
        excess = auxiliary.log_softmax(dim=-1) - teacher.log_softmax(dim=-1)
        total = (student.softmax(dim=-1) * excess).sum()
        (wanted,) = torch.autograd.grad(total, student)
        gradient = matching_gradient(*models, 1.0)
        case = f"seeking 1, logits {[shown(logits) for logits in models]}"
        assert torch.allclose(gradient, wanted, atol=1e-5), (
            f"{case}: {shown(gradient)}, not {shown(wanted)}"
        )
        half = matching_gradient(*models, 0.5)
        mean = (gradient + matching_gradient(*models, 0.0)) / 2
        assert torch.allclose(half, mean, atol=1e-5), f"seeking 0.5 is {shown(half)}, not the mean"

    some_models(check)


def lets_no_gradient_through(matching_gradient):
    models = [logits.clone().requires_grad_() for logits in three_models(2, 3, 1.0, 0)]
    gradient = matching_gradient(*models, 0.5)
    assert not gradient.requires_grad, (
        "the result requires a gradient, which would flow into the models"
    )


# --- Planted bugs: picture_weight ---


def weight_of(change):
    def wrong(counts, tokens):
        n = counts.double()
        return change(n, tokens, our_weight(counts, tokens))

    return wrong


def density_instead(counts, tokens):
    """The density at n / N, which has a pole at 1."""
    return tokens * math.pi / 2 * (1 - (counts.double() / tokens).square()).clamp(min=1e-3).sqrt()


def looked_up_by_row(counts, tokens):
    return our_weight(counts.sort().values, tokens)


def rounded_down(counts, tokens):
    """floor(r N) in place of ceil(r N)."""
    ratios = (torch.arange(tokens + 2, dtype=torch.float64) / tokens).clamp(max=1)
    probabilities = ratios.asin().diff() * 2 / math.pi
    return 1 / probabilities[counts].clamp(min=1e-9)


# --- Planted bugs: dependence ---


def entropies_only(joint):
    return sum(marginal_entropies(joint))


def other_way_round(joint):
    product = product_of_marginals(joint)
    return float((product * (product / joint.clamp(min=1e-12)).log()).nan_to_num().sum())


def in_bits(joint):
    return our_dependence(joint) / math.log(2)


def zeros_are_nan(joint):
    product = product_of_marginals(joint)
    return float((joint * (joint / product).log()).sum())


def first_two_only(joint):
    if joint.dim() > 2:
        joint = joint.sum(dim=list(range(2, joint.dim())))
    return our_dependence(joint)


def the_bound_itself(joint):
    H = marginal_entropies(joint)
    return sum(H) - max(H)


# --- Planted bugs: safe_to_reveal ---


def with_the_largest(entropies, bound):
    return max(1, int((entropies.sort().values.cumsum(0) <= bound).sum()))


def perhaps_none(entropies, bound):
    return int((entropies.sort().values.cumsum(0) <= bound).sum())


def unsorted(entropies, bound):
    return int((entropies.cumsum(0) - entropies <= bound).sum())


def descending(entropies, bound):
    ordered = entropies.sort(descending=True).values
    return int((ordered.cumsum(0) - ordered <= bound).sum())


def each_below(entropies, bound):
    return max(1, int((entropies <= bound).sum()))


def first_left_out(entropies, bound):
    ordered = entropies.sort().values
    return int((ordered.cumsum(0) - ordered[0] <= bound).sum())


# --- Planted bugs: decoded ---


def all_at_once(joint, passes):
    return our_decoded(joint, [[i for places in passes for i in places]])


def one_at_a_time(joint, passes):
    return our_decoded(joint, [[i] for places in passes for i in places])


def from_left_to_right(joint, passes):
    in_order = iter(range(joint.dim()))
    ordered_passes = [[next(in_order) for _ in places] for places in passes]
    return our_decoded(joint, ordered_passes)


def joint_within_a_pass(joint, passes):
    """A pass draws its tokens together, which no product can: the result is the world."""
    return joint.clone()


def last_pass_only(joint, passes):
    """Given what the last pass revealed, and nothing earlier."""
    q = torch.ones_like(joint)
    seen = []
    for places in passes:
        for i in places:
            q = q * marginal(joint, [*seen, i]) / marginal(joint, seen)
        seen = places
    return q


def backwards(joint, passes):
    return our_decoded(joint, passes[::-1])


# --- Planted bugs: revised ---


def all_places_in_turn(current, joint):
    for i in range(joint.dim()):
        current = redrawn(current, joint, i)
    return current


def without_the_others(current, joint):
    """The new token comes from its own distribution, whatever the others are."""
    N = joint.dim()
    total = torch.zeros_like(joint)
    for i in range(N):
        total = total + current.sum(dim=i, keepdim=True) * marginal(joint, [i])
    return total / N


def the_world_at_once(current, joint):
    return joint.clone()


def first_place_only(current, joint):
    return redrawn(current, joint, 0)


def not_divided(current, joint):
    return our_revised(current, joint) * joint.dim()


def redrawn_by_current(current, joint):
    return our_revised(joint, current)


def nothing_moves(current, joint):
    return current.clone()


# --- Planted bugs: partly_random ---


def hidden_places(batch, tokens, codes, share, generator):
    return our_start(batch, tokens, codes, share, generator) == codes


def coin_for_each(batch, tokens, codes, share, generator):
    hidden = torch.rand(batch, tokens, generator=generator) < share
    return random_codes(batch, tokens, codes, generator).masked_fill(hidden, codes)


def counted_down(batch, tokens, codes, share, generator):
    return our_start(batch, tokens, codes, math.floor(share * tokens) / tokens, generator)


def random_hidden(batch, tokens, codes, share, generator):
    """The other way round: the fraction `share` is random, the rest is hidden."""
    return our_start(batch, tokens, codes, 1 - share, generator)


def same_places(batch, tokens, codes, share, generator):
    hidden = schedule.random_masks(torch.tensor([math.ceil(share * tokens)]), tokens, generator)
    return random_codes(batch, tokens, codes, generator).masked_fill(hidden, codes)


def left_ones(batch, tokens, codes, share, generator):
    hidden = torch.arange(tokens) < math.ceil(share * tokens)
    return random_codes(batch, tokens, codes, generator).masked_fill(hidden, codes)


def the_mask_among_them(batch, tokens, codes, share, generator):
    hidden = hidden_places(batch, tokens, codes, share, generator)
    return random_codes(batch, tokens, codes + 1, generator).masked_fill(hidden, codes)


def one_code_a_row(batch, tokens, codes, share, generator):
    hidden = hidden_places(batch, tokens, codes, share, generator)
    of_row = random_codes(batch, 1, codes, generator)
    return of_row.repeat(1, tokens).masked_fill(hidden, codes)


def global_randomness(batch, tokens, codes, share, generator):
    hidden = hidden_places(batch, tokens, codes, share, generator)
    return random_codes(batch, tokens, codes, None).masked_fill(hidden, codes)


# --- Planted bugs: matching_gradient ---


def seeking_part(student, excess):
    s = student.softmax(-1)
    return s * (excess - (s * excess).sum(-1, keepdim=True))


def gradient_with(covering=None, excess=None, seek=seeking_part):
    """The gradient, with another covering part, excess, or seeking part."""

    def gradient(student, teacher, auxiliary, seeking):
        p, q = teacher.softmax(-1), auxiliary.softmax(-1)
        cover = q - p if covering is None else covering(p, q)
        e = q.log() - p.log() if excess is None else excess(p, q)
        return ((1 - seeking) * cover + seeking * seek(student, e)).detach()

    return gradient


def uphill(student, teacher, auxiliary, seeking):
    return -our_gradient(student, teacher, auxiliary, seeking)


def shares_exchanged(student, teacher, auxiliary, seeking):
    return our_gradient(student, teacher, auxiliary, 1 - seeking)


def models_exchanged(student, teacher, auxiliary, seeking):
    return our_gradient(student, auxiliary, teacher, seeking)


def over_the_tokens(student, teacher, auxiliary, seeking):
    return our_gradient(student.T, teacher.T, auxiliary.T, seeking).T


def mean_already(student, teacher, auxiliary, seeking):
    return our_gradient(student, teacher, auxiliary, seeking) / (1 + len(teacher))


def through_the_models(student, teacher, auxiliary, seeking):
    p, q = teacher.softmax(-1), auxiliary.softmax(-1)
    return (1 - seeking) * (q - p) + seeking * seeking_part(student, q.log() - p.log())


# --- Exercises ---


EXERCISES = (
    Exercise(
        "picture_weight",
        our_weight,
        (undoes_the_law_of_the_masks, weights_are_finite_for_all_counts),
        "how often are exactly n hidden? Between which two ratios does r lie then, and what is the "
        "distribution function of the cosine schedule (lesson 04)?",
        (
            weight_of(lambda n, N, w: torch.ones_like(n)),
            weight_of(lambda n, N, w: 1 / w),
            weight_of(lambda n, N, w: w / N),
            weight_of(lambda n, N, w: w / n),
            weight_of(lambda n, N, w: N / n),
            density_instead,
            looked_up_by_row,
            rounded_down,
        ),
    ),
    Exercise(
        "dependence",
        our_dependence,
        (is_the_kl_to_the_product, is_at_most_the_bound_of_entropies),
        "sums over all axes but one are the marginals; with keepdim=True you can multiply them; "
        "torch.special.xlogy handles 0 log 0",
        (entropies_only, other_way_round, in_bits, zeros_are_nan, first_two_only, the_bound_itself),
    ),
    Exercise(
        "safe_to_reveal",
        our_count,
        (reveals_as_many_as_the_bound_allows,),
        "in ascending order the largest is the last: the sum without it is the sum of those before",
        (with_the_largest, perhaps_none, unsorted, descending, each_below, first_left_out),
    ),
    Exercise(
        "decoded",
        our_decoded,
        (multiplies_what_each_pass_says, one_by_one_is_the_world),
        "p(token i | seen) = p(i and seen) / p(seen), two marginals; `seen` grows after a pass, "
        "not within it",
        (
            all_at_once,
            one_at_a_time,
            from_left_to_right,
            joint_within_a_pass,
            last_pass_only,
            backwards,
        ),
    ),
    Exercise(
        "revised",
        our_revised,
        (redraws_one_token, stays_with_the_world),
        "hide place i: sum `current` over axis i. Draw it: multiply by its probability in `joint`, "
        "given the others. Then take the mean over i",
        (
            all_places_in_turn,
            without_the_others,
            the_world_at_once,
            first_place_only,
            not_divided,
            redrawn_by_current,
            nothing_moves,
        ),
    ),
    Exercise(
        "partly_random",
        our_start,
        (hides_exactly_the_fraction, is_uniform_over_places_and_codes),
        "lesson 04 hides exactly so many in each row; draw random codes first, then mask them",
        (
            coin_for_each,
            counted_down,
            random_hidden,
            same_places,
            left_ones,
            the_mask_among_them,
            one_code_a_row,
            global_randomness,
        ),
    ),
    Exercise(
        "matching_gradient",
        our_gradient,
        (
            covers_by_the_difference_of_probabilities,
            seeks_by_the_derivative,
            lets_no_gradient_through,
        ),
        "softmax over the codes; for the second part, first the mean of e under s for each token "
        "(sum with keepdim=True), then s times the difference; detach the result",
        (
            uphill,
            shares_exchanged,
            models_exchanged,
            over_the_tokens,
            mean_already,
            through_the_models,
            gradient_with(covering=lambda p, q: q.log() - p.log()),
            gradient_with(covering=lambda p, q: -p),
            gradient_with(covering=lambda p, q: q),
            gradient_with(excess=lambda p, q: q - p),
            gradient_with(excess=lambda p, q: -p.log()),
            gradient_with(seek=lambda student, e: student.softmax(-1) * e),
            gradient_with(seek=lambda student, e: e - e.mean(-1, keepdim=True)),
            gradient_with(seek=lambda student, e: student.softmax(-1) * (e - e.mean())),
        ),
    ),
)
