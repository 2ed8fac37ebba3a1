import math
from collections import Counter
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.properties import losses

from minimuse import vq_loss
from minimuse.vq import perplexity

TITLE = "the VQGAN's other losses"
seeds = st.integers(0, 2**31 - 1)


# Properties


def is_the_hinge_of_maps(discriminator_loss):
    """As many fake logits as real ones, or not: each kind is averaged on its own."""

    @given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
    @example(0, 1, 1, 3)
    def check(seed, B, n, m):
        draw = torch.Generator().manual_seed(seed)
        real, fake = (2 * torch.randn(B, 1, side, side, generator=draw) for side in (n, m))
        costs = (
            [max(0.0, 1 - x) for x in real.flatten().tolist()],
            [max(0.0, 1 + x) for x in fake.flatten().tolist()],
        )
        wanted = sum(sum(c) / len(c) for c in costs) / 2
        got = float(discriminator_loss(real, fake))
        assert math.isclose(got, wanted, rel_tol=1e-5, abs_tol=1e-6), (
            f"real {real.flatten().tolist()}, fake {fake.flatten().tolist()}: {got}, not {wanted}"
        )

    check()


def leaves_the_losses_as_they_are(adaptive_weight):
    """Both losses can be differentiated afterwards, and no `.grad` has grown."""
    layer, other = (
        torch.tensor([0.5, -1.0], requires_grad=True),
        torch.tensor([2.0], requires_grad=True),
    )
    picture = torch.tanh(layer * other)
    reconstruction, adversarial = (picture - 1).square().sum(), -torch.exp(picture).sum()
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert layer.grad is None and other.grad is None, (
        "it left a gradient in .grad, which the optimizer would take"
    )
    grads = [
        torch.autograd.grad(loss, layer, retain_graph=True)[0]
        for loss in (reconstruction, adversarial)
    ]
    assert math.isclose(
        float(weight), float(grads[0].norm() / (grads[1].norm() + 1e-4)), rel_tol=1e-4
    )
    (reconstruction + weight * adversarial).backward()  # fails where the graph was freed
    assert torch.allclose(layer.grad, grads[0] + weight * grads[1])


def compares_unit_vectors(distance):
    """Against a loop over lists, pictures and positions, in Python's floats; maps of different sizes count alike."""

    @given(
        seeds,
        st.integers(1, 2),
        st.lists(
            st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
            min_size=1,
            max_size=3,
        ),
    )
    @example(0, 1, [(2, 1, 1)])
    @example(0, 2, [(1, 3, 3), (4, 1, 2)])
    def check(seed, B, shapes):
        draw = torch.Generator().manual_seed(seed)
        a, b = ([torch.randn(B, *shape, generator=draw) for shape in shapes] for _ in range(2))
        a[0][:, :, 0, 0] = 0  # nothing there
        unit = lambda v: [x / (math.hypot(*v) or 1) for x in v]
        means = []
        for x, y in zip(a, b):
            places = [
                (i, r, c) for i in range(B) for r in range(x.shape[2]) for c in range(x.shape[3])
            ]
            pairs = [
                (unit(x[i, :, r, c].tolist()), unit(y[i, :, r, c].tolist())) for i, r, c in places
            ]
            means.append(sum((p - q) ** 2 for u, v in pairs for p, q in zip(u, v)) / len(pairs))
        wanted, got = sum(means) / len(means), float(distance(a, b))
        assert math.isclose(got, wanted, rel_tol=1e-4, abs_tol=1e-5), (
            f"batch of {B}, maps {shapes}: {got}, not {wanted}"
        )

    check()


def does_not_care_how_loud_features_are(distance):
    """Scaling all features of one picture by a positive number changes nothing; a picture is at distance 0 from itself."""
    draw = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(2, 3, side, side, generator=draw) for side in (4, 2)] for _ in range(2))
    plain, scaled = float(distance(a, b)), float(distance([7 * x for x in a], b))
    assert math.isclose(plain, scaled, rel_tol=1e-4), (
        f"{plain}, and {scaled} with the features of one times 7"
    )
    assert abs(float(distance(a, [3 * x for x in a]))) < 1e-6


def is_news_beyond_the_left_neighbour(bits):
    """Against counting all pairs with a Counter; no pair runs from the end of one row to the start of the next."""

    @given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(1, 4))
    @example(0, 1, 2, 2, 3)
    @example(1, 2, 3, 4, 4)
    def check(seed, B, h, w, codes):
        ids = torch.randint(codes, (B, h, w), generator=torch.Generator().manual_seed(seed))
        pairs = [pair for picture in ids.tolist() for row in picture for pair in zip(row, row[1:])]
        both, left = Counter(pairs), Counter(l for l, _ in pairs)
        wanted = -sum(math.log2(both[p] / left[p[0]]) for p in pairs) / len(pairs)
        got = float(bits(ids, codes))
        assert math.isclose(got, wanted, abs_tol=1e-6), f"{ids.tolist()}: {got} bits, not {wanted}"

    check()


def knows_the_two_extremes(bits):
    """0 where the left neighbour tells all, log2(codes) where it tells nothing, though each id alone is as frequent in both."""
    cycle = torch.arange(17)[None, None].expand(1, 2, -1) % 4
    assert abs(float(bits(cycle, 4))) < 1e-6, (
        f"0, 1, 2, 3, 0, ...: {float(bits(cycle, 4))} bits, not 0"
    )
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]  # every pair once
    assert math.isclose(float(bits(pairs, 4)), 2.0, abs_tol=1e-6), (
        f"every pair of 4 codes once: {float(bits(pairs, 4))} bits, not 2"
    )
    one_way = torch.tensor([[[0, 1], [0, 2], [0, 3], [1, 1]]])  # the left says less than the right
    assert math.isclose(float(bits(one_way, 4)), 0.75 * math.log2(3), abs_tol=1e-6), (
        "is it the left neighbour that is known?"
    )


# What the package has under another signature


def unit_feature_distance(a, b):
    """perceptual_distance asks a network for the maps of five stages; here are those of another number."""
    maps = iter((a, b))
    net = SimpleNamespace(stages=lambda images, count: next(maps))
    return vq_loss.perceptual_distance(net, torch.zeros(()), torch.zeros(())) * 5 / len(a)


def left_neighbour_bits(ids, codes):
    """H(left, right) - H(left), each the logarithm of a perplexity."""
    left, right = ids[..., :-1], ids[..., 1:]
    return math.log2(
        perplexity(left * codes + right, codes * codes)[0] / perplexity(left, codes)[0]
    )


# What to refuse


def lengths(reconstruction, adversarial, layer, keep=True):
    return [
        torch.autograd.grad(x, layer, retain_graph=keep)[0].norm()
        for x in (reconstruction, adversarial)
    ]


def by_backward(reconstruction, adversarial, layer):
    found = []
    for loss in (reconstruction, adversarial):
        loss.backward(retain_graph=True)
        found.append(layer.grad.norm())
        layer.grad = None
    return (found[0] / (found[1] + 1e-4)).clamp(max=1e4)


def with_graph(reconstruction, adversarial, layer):
    rec, adv = (
        torch.autograd.grad(x, layer, create_graph=True)[0].norm()
        for x in (reconstruction, adversarial)
    )
    return (rec / (adv + 1e-4)).clamp(max=1e4)


def apart(a, b, scale=lambda x: F.normalize(x, dim=1), cost=lambda d: d.square().sum(dim=1).mean()):
    return sum(cost(scale(x) - scale(y)) for x, y in zip(a, b)) / len(a)


def entropy(ids, codes):
    return math.log2(perplexity(ids, codes)[0])


def joint(a, b, codes):
    return entropy(a * codes + b, codes * codes)


def flat_neighbours(ids, codes):
    flat = ids.flatten()
    return joint(flat[:-1], flat[1:], codes) - entropy(flat[:-1], codes)


EXERCISES = [
    Exercise(
        "discriminator_loss",
        vq_loss.discriminator_loss,
        (losses.is_the_hinge, is_the_hinge_of_maps),
        hint="on which side of 1 does a real logit stop costing? And on which side of -1 a fake one?",
        wrong=(
            lambda real, fake: vq_loss.discriminator_loss(fake, real),  # sides exchanged
            lambda real, fake: 2 * vq_loss.discriminator_loss(real, fake),
            lambda real, fake: ((1 - real).mean() + (1 + fake).mean()) / 2,  # no hinge
            lambda real, fake: (F.relu(-real).mean() + F.relu(fake).mean()) / 2,  # no margin
            lambda real, fake: (
                (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
            ),  # another loss
            lambda real, fake: torch.cat(
                [F.relu(1 - real).flatten(), F.relu(1 + fake).flatten()]
            ).mean(),  # one average for both
            lambda real, fake: (
                (F.relu(1 - real.mean()) + F.relu(1 + fake.mean())) / 2
            ),  # hinge of the mean
        ),
    ),
    Exercise(
        "generator_loss",
        vq_loss.generator_loss,
        (losses.raises_the_judged_logits,),
        hint="the decoder has no margin: a better logit is always better, by as much.",
        wrong=(
            lambda fake: fake.mean(),  # the wrong way
            lambda fake: -fake.sum(),
            lambda fake: F.relu(1 - fake).mean(),  # a hinge
            lambda fake: F.softplus(-fake).mean(),
            lambda fake: (1 - fake).square().mean(),
            lambda fake: 1 - fake.mean(),
            lambda fake: -fake.detach().mean(),
        ),
    ),
    Exercise(
        "adaptive_weight",
        vq_loss.adaptive_weight,
        (losses.balances_gradients, leaves_the_losses_as_they_are),
        hint="autograd can tell you a gradient without writing it anywhere, and without throwing the graph away. What if one of them is zero?",
        wrong=(
            lambda *a: (lengths(*a)[0] / lengths(*a)[1]).detach(),  # divides by 0
            lambda *a: (lengths(*a)[1] / (lengths(*a)[0] + 1e-4)).clamp(max=1e4),  # upside down
            lambda rec, adv, layer: (
                (rec / (adv.abs() + 1e-4)).detach().clamp(max=1e4)
            ),  # of the losses
            lambda *a: lengths(*a)[0] / (lengths(*a)[1] + 1e-4),  # no ceiling
            lambda *a: torch.tensor(1.0),
            lambda *a: (lambda l: (l[0] / (l[1] + 1e-4)).clamp(max=1e4))(
                lengths(*a, keep=False)
            ),  # frees the graph
            by_backward,  # through every other .grad too
            with_graph,  # not a constant
            lambda *a: (
                (lengths(*a)[0] / (lengths(*a)[1] + 1e-4)).square().clamp(max=1e4)
            ),  # of squared lengths
        ),
    ),
    Exercise(
        "unit_feature_distance",
        unit_feature_distance,
        (compares_unit_vectors, does_not_care_how_loud_features_are),
        hint="the vector of a position runs along the channels. Each map of the list counts alike, however many positions it has.",
        wrong=(
            lambda a, b: apart(a, b, scale=lambda x: x),  # not normalised
            lambda a, b: apart(
                a, b, scale=lambda x: F.normalize(x, dim=-1)
            ),  # along a row of pixels
            lambda a, b: apart(
                a, b, scale=lambda x: F.normalize(x.flatten(1), dim=1).view_as(x)
            ),  # the whole map
            lambda a, b: apart(a, b, cost=lambda d: d.square().mean()),  # over channels too
            lambda a, b: apart(a, b, cost=lambda d: d.square().sum(dim=1).sum()),
            lambda a, b: apart(a, b, cost=lambda d: d.abs().sum(dim=1).mean()),
            lambda a, b: apart(a, b) * len(a),  # summed over the maps
            lambda a, b: apart(
                a, b, scale=lambda x: x / x.norm(dim=1, keepdim=True)
            ),  # NaN where there is nothing
            lambda a, b: apart(a[:1], b[:1]),
        ),
    ),
    Exercise(
        "left_neighbour_bits",
        left_neighbour_bits,
        (is_news_beyond_the_left_neighbour, knows_the_two_extremes),
        hint="count pairs, then divide by how often each left id begins one; which tokens have no left neighbour?",
        wrong=(
            lambda ids, codes: entropy(ids, codes),  # of a token alone
            lambda ids, codes: joint(ids[..., :-1], ids[..., 1:], codes),  # of a pair
            lambda ids, codes: (
                joint(ids[..., :-1], ids[..., 1:], codes) - entropy(ids[..., 1:], codes)
            ),  # the right is known
            lambda ids, codes: (
                joint(ids[..., :-1], ids[..., 1:], codes) - entropy(ids, codes)
            ),  # counts the last column as left
            lambda ids, codes: left_neighbour_bits(ids, codes) * math.log(2),  # nats
            lambda ids, codes: (
                joint(ids[:, :-1], ids[:, 1:], codes) - entropy(ids[:, :-1], codes)
                if ids.shape[1] > 1
                else 0.0
            ),  # the upper
            flat_neighbours,  # runs on into the next row
        ),
    ),
]
