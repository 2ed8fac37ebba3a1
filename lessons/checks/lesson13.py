import itertools
import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise

from minimuse import decode, schedule
from minimuse.decode import Sampling

TITLE = "beyond Muse"

# Ours. The package has the sampler and the masks; the rest are references.


def our_weight(counts, tokens):
    share = (
        (torch.arange(tokens + 1, dtype=torch.float64) / tokens).asin().diff() * 2 / math.pi
    )  # P(n), n = 1 ..
    return 1 / share[counts - 1]


def marginal(joint, keep):
    """Of the places `keep`; the others' axes have length 1."""
    others = [i for i in range(joint.dim()) if i not in keep]
    return joint.sum(dim=others, keepdim=True) if others else joint


def our_dependence(joint):
    product = torch.ones_like(joint)
    for i in range(joint.dim()):
        product = product * marginal(joint, [i])
    return float(torch.special.xlogy(joint, joint / product.where(joint > 0, 1)).sum())


def our_count(entropies, bound):
    """As the entropy sampler has it: two codes, of which the rarer has the probability that gives each entropy."""
    M, low, high = (
        len(entropies),
        torch.zeros(len(entropies), dtype=torch.float64),
        torch.full((len(entropies),), 0.5, dtype=torch.float64),
    )
    for _ in range(60):
        middle = (low + high) / 2
        less = torch.special.entr(torch.stack([middle, 1 - middle])).sum(0) < entropies
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    logits = torch.stack([1 - low, low], dim=-1).log()[None]
    hidden = torch.ones(1, M, dtype=torch.bool)
    _, left = decode.entropy(
        logits,
        None,
        hidden,
        torch.tensor([M - 1]),
        None,
        Sampling(sampler="entropy", entropy_bound=bound),
    )
    return M - int(left)


def our_decoded(joint, passes):
    q, seen = torch.ones_like(joint), []
    for places in passes:
        for i in places:
            q = q * marginal(joint, [*seen, i]) / marginal(joint, seen)
        seen = [*seen, *places]
    return q


def our_revised(current, joint):
    N = joint.dim()
    return (
        sum(
            current.sum(dim=i, keepdim=True) * joint / joint.sum(dim=i, keepdim=True)
            for i in range(N)
        )
        / N
    )


def our_start(batch, tokens, codes, share, generator):
    hidden = schedule.random_masks(
        torch.full((batch,), math.ceil(share * tokens)), tokens, generator
    )
    return torch.randint(codes, (batch, tokens), generator=generator).masked_fill(hidden, codes)


# Properties


def table(weights, N, K):
    joint = torch.tensor(weights, dtype=torch.float64).reshape([K] * N)
    return joint / joint.sum()


@st.composite
def worlds(draw, least=1):
    """Of up to three tokens of up to three codes; small integers as weights, so that a counterexample can be read."""
    N, K = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    weights = draw(st.lists(st.integers(least, 9), min_size=K**N, max_size=K**N).filter(any))
    return table(weights, N, K)


TWINS = table([1, 0, 0, 1], 2, 2)  # 00 and 11
UNEVEN = table([4, 1, 1, 2, 3, 1, 1, 7], 3, 2)
shown = lambda joint: [round(float(x), 3) for x in joint.flatten()]


def undoes_the_law_of_the_masks(picture_weight):
    """For any losses L_n: the expectation, over a fine grid of u, is their sum."""

    @given(st.integers(1, 40), st.integers(0, 99))
    @example(1, 0)
    @example(16, 0)
    @example(256, 1)
    def check(tokens, seed):
        points = 200_000
        ratios = torch.cos(math.pi / 2 * (torch.arange(points, dtype=torch.float64) + 0.5) / points)
        counts = schedule.mask_counts(ratios, tokens)
        L = (
            torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            + 0.5
        )
        weight = picture_weight(counts, tokens)
        assert weight.shape == counts.shape and weight.dtype == torch.float64, (
            f"weights {tuple(weight.shape)} {weight.dtype}"
        )
        got, bound = float((weight * L[counts - 1]).mean()), float(L.sum())
        assert math.isclose(got, bound, rel_tol=1e-2), (
            f"{tokens} tokens: the expectation is {got:.4f}, the bound {bound:.4f}"
        )

    check()


def weights_are_finite_for_all_counts(picture_weight):
    """Each weight is one over how often its count occurs; a count of its own, in any order."""
    for tokens in (1, 2, 16, 256):
        order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0)) + 1
        got = picture_weight(order, tokens)
        for n, weight in zip(order.tolist(), got.tolist()):
            wanted = math.pi / 2 / (math.asin(n / tokens) - math.asin((n - 1) / tokens))
            assert math.isclose(weight, wanted, rel_tol=1e-9), (
                f"{n} of {tokens} hidden: {weight}, not {wanted}"
            )


def is_the_kl_to_the_product(dependence):
    @given(worlds(least=0))
    @example(TWINS)
    @example(UNEVEN)
    @example(table([1, 1, 1, 1], 2, 2))
    @example(table([0, 1], 1, 2))
    def check(joint):
        N, K = joint.dim(), joint.shape[0]
        alone = [
            [
                sum(float(joint[x]) for x in itertools.product(range(K), repeat=N) if x[i] == code)
                for code in range(K)
            ]
            for i in range(N)
        ]
        wanted = sum(
            float(joint[x])
            * math.log(float(joint[x]) / math.prod(alone[i][x[i]] for i in range(N)))
            for x in itertools.product(range(K), repeat=N)
            if joint[x] > 0
        )
        got = float(dependence(joint))
        assert math.isclose(got, wanted, abs_tol=1e-9), (
            f"world {shown(joint)}, {N} tokens: {got} nats, not {wanted}"
        )

    check()


def is_at_most_the_bound_of_entropies(dependence):
    """The inequality of section 2: at most all entropies but the largest."""

    @given(worlds(least=0))
    @example(TWINS)
    def check(joint):
        H = [float(torch.special.entr(marginal(joint, [i])).sum()) for i in range(joint.dim())]
        got = float(dependence(joint))
        assert -1e-9 <= got <= sum(H) - max(H) + 1e-9, (
            f"world {shown(joint)}: {got} nats, bound {sum(H) - max(H)}"
        )

    check()


def reveals_as_many_as_the_bound_allows(safe_to_reveal):
    """Against trying every number; entropies in any order, with equal ones and zeros, as far from the bound as rounding needs."""

    @given(st.lists(st.integers(0, 13), min_size=1, max_size=8), st.integers(0, 20))
    @example([5], 0)
    @example([0, 0, 0], 0)
    @example([3, 3, 3], 3)
    @example([12, 1], 1)
    @example([1, 2, 10], 3)
    @example([1, 1, 1, 13], 9)
    def check(twentieths, bound):
        entropies, limit = torch.tensor(twentieths, dtype=torch.float64) / 20, bound / 20 + 0.01
        ascending = sorted(twentieths)
        wanted = max(
            n for n in range(1, len(ascending) + 1) if n == 1 or sum(ascending[: n - 1]) <= bound
        )
        got = int(safe_to_reveal(entropies, limit))
        assert got == wanted, f"entropies {entropies.tolist()}, bound {limit}: {got}, not {wanted}"

    check()


@st.composite
def schedules(draw):
    joint = draw(worlds())
    order = draw(st.permutations(range(joint.dim())))
    cuts = sorted(draw(st.sets(st.integers(1, joint.dim())))) if joint.dim() > 1 else []
    edges = sorted({0, *cuts, joint.dim()})
    return joint, [list(order[a:b]) for a, b in zip(edges, edges[1:])]


def slowly_decoded(joint, passes):
    N, K = joint.dim(), joint.shape[0]
    every = [*itertools.product(range(K), repeat=N)]
    q = torch.ones_like(joint)
    for x in every:
        seen = []
        for places in passes:
            fits = [y for y in every if all(y[j] == x[j] for j in seen)]
            total = sum(float(joint[y]) for y in fits)
            for i in places:
                q[x] *= sum(float(joint[y]) for y in fits if y[i] == x[i]) / total
            seen += places
    return q


def multiplies_what_each_pass_says(decoded):
    @given(schedules())
    @example((UNEVEN, [[0, 1, 2]]))
    @example((UNEVEN, [[2], [0, 1]]))
    @example((UNEVEN, [[1, 2], [0]]))
    @example((table([3], 1, 1), [[0]]))
    def check(case):
        joint, passes = case
        given_passes = [list(p) for p in passes]
        got, wanted = decoded(joint, given_passes), slowly_decoded(joint, passes)
        assert given_passes == passes, f"passes {passes} became {given_passes}"
        assert got.shape == joint.shape, f"shape {tuple(got.shape)}, not {tuple(joint.shape)}"
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12), (
            f"world {shown(joint)}, passes {passes}: {shown(got)}, not {shown(wanted)}"
        )

    check()


def one_by_one_is_the_world(decoded):
    for order in itertools.permutations(range(3)):
        got = decoded(UNEVEN, [[i] for i in order])
        assert torch.allclose(got, UNEVEN, rtol=1e-9), (
            f"order {order}: {shown(got)}, not the world {shown(UNEVEN)}"
        )


def redraws_one_token(revised):
    """Against all pictures, all places and all codes, one by one; `current` is another distribution."""

    @given(worlds(), st.integers(0, 99))
    @example(UNEVEN, 0)
    @example(table([1, 2], 1, 2), 0)
    def check(joint, seed):
        N, K = joint.dim(), joint.shape[0]
        current = torch.rand(
            joint.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        current, wanted = current / current.sum(), torch.zeros_like(joint)
        for x in itertools.product(range(K), repeat=N):
            for i in range(N):
                ways = [(*x[:i], code, *x[i + 1 :]) for code in range(K)]
                for y in ways:
                    wanted[y] += current[x] / N * joint[y] / sum(joint[z] for z in ways)
        before = current.clone(), joint.clone()
        got = revised(current, joint)
        assert torch.equal(current, before[0]) and torch.equal(joint, before[1]), (
            "what was given has changed"
        )
        assert got.shape == joint.shape, f"shape {tuple(got.shape)}, not {tuple(joint.shape)}"
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12), (
            f"world {shown(joint)}, from {shown(current)}: {shown(got)}, not {shown(wanted)}"
        )

    check()


def stays_with_the_world(revised):
    """The world itself is what revisions do not change, and where they lead."""
    assert torch.allclose(revised(UNEVEN, UNEVEN), UNEVEN, rtol=1e-9), (
        f"the world {shown(UNEVEN)} became {shown(revised(UNEVEN, UNEVEN))}"
    )
    current = torch.full_like(UNEVEN, 1 / 8)
    for _ in range(200):
        current = revised(current, UNEVEN)
    assert torch.allclose(current, UNEVEN, atol=1e-6), (
        f"200 revisions lead to {shown(current)}, not to {shown(UNEVEN)}"
    )


def hides_exactly_the_share(partly_random):
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
        ids = partly_random(batch, tokens, codes, share, torch.Generator().manual_seed(seed))
        said = f"{batch} x {tokens} tokens of {codes} codes, share {share}: {ids.tolist()}"
        assert ids.shape == (batch, tokens) and ids.dtype == torch.int64, (
            f"ids are {tuple(ids.shape)} {ids.dtype}"
        )
        assert int(ids.min()) >= 0 and int(ids.max()) <= codes, said
        assert (ids == codes).sum(-1).tolist() == [math.ceil(share * tokens)] * batch, said
        again = partly_random(batch, tokens, codes, share, torch.Generator().manual_seed(seed))
        assert torch.equal(ids, again), f"{said}; the same generator, again: {again.tolist()}"

    check()


def is_uniform_over_places_and_codes(partly_random):
    """20,000 rows, within five standard deviations; and no two tokens know of each other."""
    batch, tokens, codes = 20_000, 5, 3
    ids = partly_random(batch, tokens, codes, 0.4, torch.Generator().manual_seed(0)).numpy()

    def near(share, wanted, n, what):
        assert abs(share - wanted) < 5 * (wanted * (1 - wanted) / n) ** 0.5, (
            f"{what}: {share:.3f}, not {wanted:.3f}"
        )

    for i in range(tokens):
        near(float((ids[:, i] == codes).mean()), 0.4, batch, f"how often place {i} is hidden")
        there = ids[ids[:, i] < codes, i]
        for code in range(codes):
            near(
                float((there == code).mean()),
                1 / codes,
                len(there),
                f"how often place {i} has code {code}",
            )
    for i, j in itertools.combinations(range(tokens), 2):
        near(
            float(((ids[:, i] == codes) & (ids[:, j] == codes)).mean()),
            0.1,
            batch,
            f"how often places {i} and {j} are hidden together",
        )
        both = ids[(ids[:, i] < codes) & (ids[:, j] < codes)]
        near(
            float((both[:, i] == both[:, j]).mean()),
            1 / codes,
            len(both),
            f"how often places {i} and {j} have the same code",
        )
    same = float(np.mean((ids[:-1] == codes) == (ids[1:] == codes)))
    assert same < 0.6, f"neighbouring rows hide the same places in {same:.2f} of the cases"


# Planted bugs


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
    share = (
        (torch.arange(tokens + 2, dtype=torch.float64) / tokens).clamp(max=1).asin().diff()
        * 2
        / math.pi
    )
    return 1 / share[counts].clamp(min=1e-9)


def entropies_only(joint):
    return float(sum(torch.special.entr(marginal(joint, [i])).sum() for i in range(joint.dim())))


def other_way_round(joint):
    product = math.prod(
        (marginal(joint, [i]) for i in range(joint.dim())), start=torch.ones_like(joint)
    )
    return float((product * (product / joint.clamp(min=1e-12)).log()).nan_to_num().sum())


def in_bits(joint):
    return our_dependence(joint) / math.log(2)


def zeros_are_nan(joint):
    product = math.prod(
        (marginal(joint, [i]) for i in range(joint.dim())), start=torch.ones_like(joint)
    )
    return float((joint * (joint / product).log()).sum())


def first_two_only(joint):
    return (
        our_dependence(joint.sum(dim=[*range(2, joint.dim())]))
        if joint.dim() > 2
        else our_dependence(joint)
    )


def the_bound_itself(joint):
    H = [float(torch.special.entr(marginal(joint, [i])).sum()) for i in range(joint.dim())]
    return sum(H) - max(H)


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


def all_at_once(joint, passes):
    return our_decoded(joint, [[i for places in passes for i in places]])


def one_at_a_time(joint, passes):
    return our_decoded(joint, [[i] for places in passes for i in places])


def from_left_to_right(joint, passes):
    places, found = iter(range(joint.dim())), []
    for p in passes:
        found.append([next(places) for _ in p])
    return our_decoded(joint, found)


def joint_within_a_pass(joint, passes):
    """A pass draws its tokens together, which no product can: the result is the world."""
    return joint.clone()


def last_pass_only(joint, passes):
    """Given what the pass before revealed, and nothing earlier."""
    q, seen = torch.ones_like(joint), []
    for places in passes:
        for i in places:
            q = q * marginal(joint, [*seen, i]) / marginal(joint, seen)
        seen = places
    return q


def backwards(joint, passes):
    return our_decoded(joint, passes[::-1])


def all_places_in_turn(current, joint):
    for i in range(joint.dim()):
        current = current.sum(dim=i, keepdim=True) * joint / joint.sum(dim=i, keepdim=True)
    return current


def without_the_others(current, joint):
    """The new token comes from its own distribution, whatever the others are."""
    N = joint.dim()
    return sum(current.sum(dim=i, keepdim=True) * marginal(joint, [i]) for i in range(N)) / N


def the_world_at_once(current, joint):
    return joint.clone()


def first_place_only(current, joint):
    return current.sum(dim=0, keepdim=True) * joint / joint.sum(dim=0, keepdim=True)


def not_divided(current, joint):
    return our_revised(current, joint) * joint.dim()


def redrawn_by_current(current, joint):
    return our_revised(joint, current)


def nothing_moves(current, joint):
    return current.clone()


def coin_for_each(batch, tokens, codes, share, generator):
    hidden = torch.rand(batch, tokens, generator=generator) < share
    return torch.randint(codes, (batch, tokens), generator=generator).masked_fill(hidden, codes)


def counted_down(batch, tokens, codes, share, generator):
    return our_start(batch, tokens, codes, math.floor(share * tokens) / tokens, generator)


def random_hidden(batch, tokens, codes, share, generator):
    """The other way round: the share is random, the rest is hidden."""
    return our_start(batch, tokens, codes, 1 - share, generator)


def same_places(batch, tokens, codes, share, generator):
    hidden = schedule.random_masks(torch.tensor([math.ceil(share * tokens)]), tokens, generator)
    return torch.randint(codes, (batch, tokens), generator=generator).masked_fill(hidden, codes)


def left_ones(batch, tokens, codes, share, generator):
    hidden = torch.arange(tokens) < math.ceil(share * tokens)
    return torch.randint(codes, (batch, tokens), generator=generator).masked_fill(hidden, codes)


def the_mask_among_them(batch, tokens, codes, share, generator):
    hidden = our_start(batch, tokens, codes, share, generator) == codes
    return torch.randint(codes + 1, (batch, tokens), generator=generator).masked_fill(hidden, codes)


def one_die_a_row(batch, tokens, codes, share, generator):
    hidden = our_start(batch, tokens, codes, share, generator) == codes
    return (
        torch.randint(codes, (batch, 1), generator=generator)
        .repeat(1, tokens)
        .masked_fill(hidden, codes)
    )


def global_dice(batch, tokens, codes, share, generator):
    hidden = our_start(batch, tokens, codes, share, generator) == codes
    return torch.randint(codes, (batch, tokens)).masked_fill(hidden, codes)


EXERCISES = (
    Exercise(
        "picture_weight",
        our_weight,
        (undoes_the_law_of_the_masks, weights_are_finite_for_all_counts),
        "how often are exactly n hidden? Between which two ratios does r lie then, and what is the law's distribution function (lesson 04)?",
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
        "sums over all axes but one are the marginals; keepdim=True lets them be multiplied; torch.special.xlogy knows 0 log 0",
        (entropies_only, other_way_round, in_bits, zeros_are_nan, first_two_only, the_bound_itself),
    ),
    Exercise(
        "safe_to_reveal",
        our_count,
        (reveals_as_many_as_the_bound_allows,),
        "in ascending order the largest is the last: the sum without it is the sum of those before it",
        (with_the_largest, perhaps_none, unsorted, descending, each_below, first_left_out),
    ),
    Exercise(
        "decoded",
        our_decoded,
        (multiplies_what_each_pass_says, one_by_one_is_the_world),
        "p(token i | seen) = p(i and seen) / p(seen), two marginals; `seen` grows after a pass, not within it",
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
        "hide place i: sum `current` over axis i. Draw it: multiply with what `joint` says of it, given the others. Then the mean over i",
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
        (hides_exactly_the_share, is_uniform_over_places_and_codes),
        "lesson 04 hides exactly so many in each row; dice first, masks on top",
        (
            coin_for_each,
            counted_down,
            random_hidden,
            same_places,
            left_ones,
            the_mask_among_them,
            one_die_a_row,
            global_dice,
        ),
    ),
)
