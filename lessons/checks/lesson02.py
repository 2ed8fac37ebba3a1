"""Checks of lesson 02: properties of its exercises, and planted bugs that they refuse."""

import math
from collections import Counter
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.compare import assert_same
from minimuse.checks.properties import losses

from minimuse import vq_loss
from minimuse.vq import perplexity

TITLE = "the VQGAN's other losses"
seeds = st.integers(0, 2**31 - 1)


# --- The package's functions under the signatures of the exercises ---
def unit_feature_distance(a, b):
    """perceptual_distance, which averages over five maps, for any number of them."""
    maps = iter((a, b))
    features = SimpleNamespace(stages=lambda images, count: next(maps))
    image = torch.zeros(())
    distance = vq_loss.perceptual_distance(features, image, image)
    return distance * vq_loss.FEATURE_MAPS / len(a)


def left_neighbour_bits(ids, codes):
    """H(left, right) - H(left), each the logarithm of a perplexity."""
    left, right = ids[..., :-1], ids[..., 1:]
    return entropy_of_pairs(left, right, codes) - entropy(left, codes)


def entropy(ids, codes):
    """In bits."""
    value, _ = perplexity(ids, codes)
    return math.log2(value)


def entropy_of_pairs(a, b, codes):
    """In bits."""
    return entropy(a * codes + b, codes * codes)


# --- Properties of `discriminator_loss` ---
def is_the_hinge_of_maps(discriminator_loss):
    """Real and fake logits are averaged on their own, whether there are as many of both or not."""

    @given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
    @example(0, 1, 1, 3)
    def check(seed, B, real_side, fake_side):
        draw = torch.Generator().manual_seed(seed)
        real = 2 * torch.randn(B, 1, real_side, real_side, generator=draw)
        fake = 2 * torch.randn(B, 1, fake_side, fake_side, generator=draw)
        real_costs = [max(0.0, 1 - x) for x in real.flatten().tolist()]
        fake_costs = [max(0.0, 1 + x) for x in fake.flatten().tolist()]
        real_mean = sum(real_costs) / len(real_costs)
        fake_mean = sum(fake_costs) / len(fake_costs)
        expected = (real_mean + fake_mean) / 2
        got = float(discriminator_loss(real, fake))
        assert math.isclose(got, expected, rel_tol=1e-5, abs_tol=1e-6), (
            f"real {real.flatten().tolist()}, fake {fake.flatten().tolist()}: {got}, not {expected}"
        )

    check()


def moves_both_sides(discriminator_loss):
    """Logits within the margin have a gradient, real ones upwards and fake ones downwards."""
    real = torch.tensor([-1.0, 0.5, 2.0, 3.0], requires_grad=True)
    fake = torch.tensor([-3.0, 0.5], requires_grad=True)
    loss = discriminator_loss(real, fake)
    assert torch.is_tensor(loss) and loss.requires_grad, "the loss has no gradient"
    gradients = torch.autograd.grad(loss, (real, fake), allow_unused=True)
    wanted = ("real", [-1 / 8, -1 / 8, 0, 0]), ("fake", [0, 1 / 4])
    for (name, expected), gradient in zip(wanted, gradients, strict=True):
        assert gradient is not None, f"the {name} logits get no gradient"
        assert_same(gradient, expected, f"the gradient of the {name} logits", atol=1e-6)


# --- Properties of `adaptive_weight` ---
def leaves_the_losses_as_they_are(adaptive_weight):
    """Both losses can be differentiated afterwards, and no `.grad` has changed."""
    layer = torch.tensor([0.5, -1.0], requires_grad=True)
    other = torch.tensor([2.0], requires_grad=True)
    image = torch.tanh(layer * other)
    reconstruction = (image - 1).square().sum()
    adversarial = -torch.exp(image).sum()
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert layer.grad is None and other.grad is None, (
        "it left a gradient in .grad, which the optimizer would take"
    )
    (of_reconstruction,) = torch.autograd.grad(reconstruction, layer, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, layer, retain_graph=True)
    expected = float(of_reconstruction.norm() / (of_adversarial.norm() + 1e-4))
    weight = weight.detach()
    assert math.isclose(float(weight), expected, rel_tol=1e-4), (
        f"the weight is {float(weight)}, not {expected}"
    )
    (reconstruction + weight * adversarial).backward()  # fails if the graph was freed
    both = of_reconstruction + weight * of_adversarial
    assert_same(layer.grad, both, "the gradient of both losses", rtol=1e-5, atol=1e-6)


# --- Properties of `unit_feature_distance` ---
def unit(vector):
    """A vector of length 1; zeros stay zeros."""
    length = math.hypot(*vector) or 1
    return [x / length for x in vector]


def slow_map_distance(a, b):
    """Mean squared distance of unit vectors of maps (B, C, h, w), in Python's floats."""
    # (B, h, w, C) -> one vector per image and position
    vectors_of_a = a.permute(0, 2, 3, 1).flatten(0, 2).tolist()
    vectors_of_b = b.permute(0, 2, 3, 1).flatten(0, 2).tolist()
    total = 0.0
    for u, v in zip(vectors_of_a, vectors_of_b, strict=True):
        total += sum((p - q) ** 2 for p, q in zip(unit(u), unit(v), strict=True))
    return total / len(vectors_of_a)


def compares_unit_vectors(distance):
    """Compared with a loop over images and positions; maps of different sizes count alike."""
    map_shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))

    @given(seeds, st.integers(1, 2), st.lists(map_shapes, min_size=1, max_size=3))
    @example(0, 1, [(2, 1, 1)])
    @example(0, 2, [(1, 3, 3), (4, 1, 2)])
    def check(seed, B, shapes):
        draw = torch.Generator().manual_seed(seed)
        a = [torch.randn(B, *shape, generator=draw) for shape in shapes]
        b = [torch.randn(B, *shape, generator=draw) for shape in shapes]
        a[0][:, :, 0, 0] = 0  # a vector without length
        distances = [slow_map_distance(x, y) for x, y in zip(a, b, strict=True)]
        expected = sum(distances) / len(distances)
        got = float(distance(a, b))
        assert math.isclose(got, expected, rel_tol=1e-4, abs_tol=1e-5), (
            f"batch of {B}, maps {shapes}: {got}, not {expected}"
        )

    check()


def ignores_the_scale_of_features(distance):
    """Scaling the features of one image changes nothing; an image is at distance 0 from itself."""
    draw = torch.Generator().manual_seed(0)
    a = [torch.randn(2, 3, side, side, generator=draw) for side in (4, 2)]
    b = [torch.randn(2, 3, side, side, generator=draw) for side in (4, 2)]
    plain = float(distance(a, b))
    scaled = float(distance([7 * x for x in a], b))
    assert math.isclose(plain, scaled, rel_tol=1e-4), (
        f"{plain}, and {scaled} with the features of one times 7"
    )
    of_itself = float(distance(a, [3 * x for x in a]))
    assert abs(of_itself) < 1e-6, f"an image and itself, with features times 3: {of_itself}, not 0"


def moves_the_images(distance):
    """It is a loss: its gradient for the features of one image is that of its definition."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(2, 3, 2, 2, generator=draw).requires_grad_()
    b = torch.randn(2, 3, 2, 2, generator=draw)
    expected = distance_with([a], [b])
    (wanted,) = torch.autograd.grad(expected, a)
    result = distance([a], [b])
    assert torch.is_tensor(result) and result.requires_grad, "the distance has no gradient"
    (gradient,) = torch.autograd.grad(result, a)
    assert_same(gradient, wanted, "the gradient of the first features", rtol=1e-3, atol=1e-5)


# --- Properties of `left_neighbour_bits` ---
def horizontal_pairs(ids):
    """All (left, right) of ids (B, h, w), as a list."""
    lefts = ids[..., :-1].flatten().tolist()
    rights = ids[..., 1:].flatten().tolist()
    return list(zip(lefts, rights, strict=True))


def is_the_entropy_given_the_left_neighbour(bits):
    """Compared with counting pairs; none runs from the end of a row to the start of the next."""

    @given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(1, 4))
    @example(0, 1, 2, 2, 3)
    @example(1, 2, 3, 4, 4)
    def check(seed, B, h, w, codes):
        ids = torch.randint(codes, (B, h, w), generator=torch.Generator().manual_seed(seed))
        pairs = horizontal_pairs(ids)
        times_of_pair = Counter(pairs)
        times_of_left = Counter(left for left, _ in pairs)
        total = 0.0
        for pair in pairs:
            left, _ = pair
            total -= math.log2(times_of_pair[pair] / times_of_left[left])
        expected = total / len(pairs)
        got = float(bits(ids, codes))
        assert math.isclose(got, expected, abs_tol=1e-6), (
            f"{ids.tolist()}: {got} bits, not {expected}"
        )

    check()


def knows_the_two_extremes(bits):
    """0 if the left neighbour determines the id, log2(codes) if it says nothing about it."""
    cycle = torch.arange(17)[None, None].expand(1, 2, -1) % 4
    got = float(bits(cycle, 4))
    assert abs(got) < 1e-6, f"0, 1, 2, 3, 0, ...: {got} bits, not 0"

    every_pair = torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]
    got = float(bits(every_pair, 4))
    assert math.isclose(got, 2.0, abs_tol=1e-6), f"every pair of 4 codes once: {got} bits, not 2"

    # The left neighbour says less about the right one than the other way round.
    one_way = torch.tensor([[[0, 1], [0, 2], [0, 3], [1, 1]]])
    got = float(bits(one_way, 4))
    assert math.isclose(got, 0.75 * math.log2(3), abs_tol=1e-6), (
        "is it the left neighbour that is known?"
    )


# --- Planted bugs: discriminator_loss ---
def sides_exchanged(real, fake):
    return vq_loss.discriminator_loss(fake, real)


def doubled(real, fake):
    return 2 * vq_loss.discriminator_loss(real, fake)


def without_hinge(real, fake):
    return ((1 - real).mean() + (1 + fake).mean()) / 2


def without_margin(real, fake):
    return (F.relu(-real).mean() + F.relu(fake).mean()) / 2


def logistic_loss(real, fake):
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def one_average_for_both(real, fake):
    return torch.cat([F.relu(1 - real).flatten(), F.relu(1 + fake).flatten()]).mean()


def real_ones_are_constants(real, fake):
    return vq_loss.discriminator_loss(real.detach(), fake)


def a_number(real, fake):
    """Right, and without a gradient."""
    return vq_loss.discriminator_loss(real, fake).detach()


def hinge_of_the_mean(real, fake):
    return (F.relu(1 - real.mean()) + F.relu(1 + fake.mean())) / 2


# --- Planted bugs: generator_loss ---
def lowers_the_logits(fake):
    return fake.mean()


def sum_of_logits(fake):
    return -fake.sum()


def hinge(fake):
    return F.relu(1 - fake).mean()


def softplus(fake):
    return F.softplus(-fake).mean()


def squared(fake):
    return (1 - fake).square().mean()


def shifted_by_one(fake):
    return 1 - fake.mean()


def without_gradient(fake):
    return -fake.detach().mean()


# --- Planted bugs: adaptive_weight ---
def gradient_norms(reconstruction, adversarial, layer, keep=True):
    return [
        torch.autograd.grad(loss, layer, retain_graph=keep)[0].norm()
        for loss in (reconstruction, adversarial)
    ]


def divides_by_zero(reconstruction, adversarial, layer):
    of_reconstruction, of_adversarial = gradient_norms(reconstruction, adversarial, layer)
    return (of_reconstruction / of_adversarial).detach()


def upside_down(reconstruction, adversarial, layer):
    of_reconstruction, of_adversarial = gradient_norms(reconstruction, adversarial, layer)
    return (of_adversarial / (of_reconstruction + 1e-4)).clamp(max=1e4)


def ratio_of_losses(reconstruction, adversarial, layer):
    return (reconstruction / (adversarial.abs() + 1e-4)).detach().clamp(max=1e4)


def without_maximum(reconstruction, adversarial, layer):
    of_reconstruction, of_adversarial = gradient_norms(reconstruction, adversarial, layer)
    return of_reconstruction / (of_adversarial + 1e-4)


def always_one(reconstruction, adversarial, layer):
    return torch.tensor(1.0)


def frees_the_graph(reconstruction, adversarial, layer):
    of_reconstruction, of_adversarial = gradient_norms(
        reconstruction, adversarial, layer, keep=False
    )
    return (of_reconstruction / (of_adversarial + 1e-4)).clamp(max=1e4)


def by_backward(reconstruction, adversarial, layer):
    """Adds to the `.grad` of every other weight."""
    norms = []
    for loss in (reconstruction, adversarial):
        loss.backward(retain_graph=True)
        norms.append(layer.grad.norm())
        layer.grad = None
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)


def not_a_constant(reconstruction, adversarial, layer):
    (of_reconstruction,) = torch.autograd.grad(reconstruction, layer, create_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, layer, create_graph=True)
    return (of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)).clamp(max=1e4)


def ratio_of_squares(reconstruction, adversarial, layer):
    of_reconstruction, of_adversarial = gradient_norms(reconstruction, adversarial, layer)
    return (of_reconstruction / (of_adversarial + 1e-4)).square().clamp(max=1e4)


# --- Planted bugs: unit_feature_distance ---
def normalized(x):
    return F.normalize(x, dim=1)


def mean_square(difference):
    return difference.square().sum(dim=1).mean()


def distance_with(a, b, scale=normalized, cost=mean_square):
    return sum(cost(scale(x) - scale(y)) for x, y in zip(a, b, strict=True)) / len(a)


def not_normalized(a, b):
    return distance_with(a, b, scale=lambda x: x)


def normalized_along_a_row(a, b):
    return distance_with(a, b, scale=lambda x: F.normalize(x, dim=-1))


def normalized_over_the_map(a, b):
    return distance_with(a, b, scale=lambda x: F.normalize(x.flatten(1), dim=1).view_as(x))


def nan_for_zeros(a, b):
    return distance_with(a, b, scale=lambda x: x / x.norm(dim=1, keepdim=True))


def mean_over_channels(a, b):
    return distance_with(a, b, cost=lambda d: d.square().mean())


def sum_over_positions(a, b):
    return distance_with(a, b, cost=lambda d: d.square().sum(dim=1).sum())


def absolute_differences(a, b):
    return distance_with(a, b, cost=lambda d: d.abs().sum(dim=1).mean())


def sum_over_maps(a, b):
    return distance_with(a, b) * len(a)


def distance_without_gradient(a, b):
    return distance_with(a, b).detach()


def lengths_are_constants(a, b):
    """The gradient of a vector then has a part along itself, which the distance does not have."""
    return distance_with(a, b, scale=lambda x: x / x.norm(dim=1, keepdim=True).detach())


def first_map_only(a, b):
    return distance_with(a[:1], b[:1])


# --- Planted bugs: left_neighbour_bits ---
def entropy_of_a_token(ids, codes):
    return entropy(ids, codes)


def entropy_of_a_pair(ids, codes):
    return entropy_of_pairs(ids[..., :-1], ids[..., 1:], codes)


def right_neighbour_is_known(ids, codes):
    return entropy_of_pairs(ids[..., :-1], ids[..., 1:], codes) - entropy(ids[..., 1:], codes)


def last_column_counts_as_left(ids, codes):
    return entropy_of_pairs(ids[..., :-1], ids[..., 1:], codes) - entropy(ids, codes)


def in_nats(ids, codes):
    return left_neighbour_bits(ids, codes) * math.log(2)


def upper_neighbour_is_known(ids, codes):
    if ids.shape[1] == 1:
        return 0.0
    return entropy_of_pairs(ids[:, :-1], ids[:, 1:], codes) - entropy(ids[:, :-1], codes)


def runs_into_the_next_row(ids, codes):
    flat = ids.flatten()
    return entropy_of_pairs(flat[:-1], flat[1:], codes) - entropy(flat[:-1], codes)


EXERCISES = [
    Exercise(
        "discriminator_loss",
        vq_loss.discriminator_loss,
        (losses.is_the_hinge, is_the_hinge_of_maps, moves_both_sides),
        hint=(
            "on which side of 1 does a real logit stop costing? And on which side of -1 a fake one?"
        ),
        wrong=(
            sides_exchanged,
            doubled,
            without_hinge,
            without_margin,
            logistic_loss,
            one_average_for_both,
            hinge_of_the_mean,
            real_ones_are_constants,
            a_number,
        ),
    ),
    Exercise(
        "generator_loss",
        vq_loss.generator_loss,
        (losses.raises_the_judged_logits,),
        hint="the decoder has no margin: a better logit is always better, by as much.",
        wrong=(
            lowers_the_logits,
            sum_of_logits,
            hinge,
            softplus,
            squared,
            shifted_by_one,
            without_gradient,
        ),
    ),
    Exercise(
        "adaptive_weight",
        vq_loss.adaptive_weight,
        (losses.balances_gradients, leaves_the_losses_as_they_are),
        hint=(
            "autograd can compute a gradient without writing it to .grad and without freeing the "
            "graph. What if one of the gradients is zero?"
        ),
        wrong=(
            divides_by_zero,
            upside_down,
            ratio_of_losses,
            without_maximum,
            always_one,
            frees_the_graph,
            by_backward,
            not_a_constant,
            ratio_of_squares,
        ),
    ),
    Exercise(
        "unit_feature_distance",
        unit_feature_distance,
        (compares_unit_vectors, ignores_the_scale_of_features, moves_the_images),
        hint=(
            "the vector of a position runs along the channels. Each map of the list counts alike, "
            "however many positions it has."
        ),
        wrong=(
            not_normalized,
            normalized_along_a_row,
            normalized_over_the_map,
            mean_over_channels,
            sum_over_positions,
            absolute_differences,
            sum_over_maps,
            nan_for_zeros,
            first_map_only,
            distance_without_gradient,
            lengths_are_constants,
        ),
    ),
    Exercise(
        "left_neighbour_bits",
        left_neighbour_bits,
        (is_the_entropy_given_the_left_neighbour, knows_the_two_extremes),
        hint=(
            "count pairs, then divide by how often each left id begins one; which tokens have no "
            "left neighbour?"
        ),
        wrong=(
            entropy_of_a_token,
            entropy_of_a_pair,
            right_neighbour_is_known,
            last_column_counts_as_left,
            in_nats,
            upper_neighbour_is_known,
            runs_into_the_next_row,
        ),
    ),
]
