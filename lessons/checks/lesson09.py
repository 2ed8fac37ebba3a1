"""Checks of lesson 09: properties of its exercises, and planted bugs that they refuse."""

import math

import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from torch import nn

from minimuse import losses
from minimuse.grow import grow
from minimuse.metrics import images
from minimuse.vq import ResidualBlock

TITLE = "decoder finetuning"
seeds = st.integers(0, 2**31 - 1)


def generator(seed):
    return torch.Generator().manual_seed(seed)


# --- The package's function under the signature of the exercise ---
def widen_linear(w1, b1, w2, copies, generator):
    """grow() takes convolutions; a linear layer is a convolution of one pixel."""
    (J, inputs), outputs = w1.shape, len(w2)
    small = [nn.Conv2d(inputs, J, 1), nn.Conv2d(J, outputs, 1)]
    large = [nn.Conv2d(inputs, copies * J, 1), nn.Conv2d(copies * J, outputs, 1)]
    with torch.no_grad():
        small[0].weight.copy_(w1[..., None, None])
        small[0].bias.copy_(b1)
        small[1].weight.copy_(w2[..., None, None])
    grow(small, large, generator)
    new_w1 = large[0].weight.detach()[..., 0, 0]
    new_b1 = large[0].bias.detach()
    new_w2 = large[1].weight.detach()[..., 0, 0]
    return new_w1, new_b1, new_w2


# --- Properties of `psnr` ---
def slow_psnr(a, b):
    """Decibels of two images as plain lists of numbers."""
    mse = sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / len(a)
    return 10 * math.log10(2**2 / max(mse, 1e-10))


def averages_decibels(psnr):
    """A batch has the mean of its images' decibels, not the decibels of its mean error."""

    @given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
    @example(0, 2, 2, 3)
    def check(seed, B, H, W):
        draw = generator(seed)
        a = torch.rand(B, 3, H, W, generator=draw) * 2 - 1
        noise = torch.tensor([0.5, 0.01, 0.1])[:B, None, None, None]
        b = a + torch.randn(B, 3, H, W, generator=draw) * noise
        pairs = zip(a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True)
        decibels_of_images = [slow_psnr(x, y) for x, y in pairs]
        expected = sum(decibels_of_images) / B
        got = float(psnr(a, b))
        assert math.isclose(got, expected, abs_tol=1e-3), (
            f"images with {[round(value, 2) for value in decibels_of_images]} dB: "
            f"{got}, not {expected}"
        )

    check()


def knows_black_from_white(psnr):
    """0 dB between black and white, 20 dB for a tenth of the peak, and finite for equal images."""
    black = torch.full((1, 3, 2, 2), -1.0)
    for shift, expected in ((2.0, 0.0), (0.2, 20.0), (0.02, 40.0), (0.0, 10 * math.log10(4e10))):
        got = float(psnr(black, black + shift))
        assert math.isclose(got, expected, abs_tol=1e-3), (
            f"black, and black + {shift}: {got} dB, not {expected}"
        )


# --- Properties of `crop` ---
def coordinates(B, H, W):
    """Images (B, 3, H, W) whose channels are the number of the image, the row and the column."""
    ranges = [torch.arange(float(n)) for n in (B, H, W)]
    return torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=1)


def is_one_piece_for_all(crop):
    """A piece is side x side neighbouring pixels, at one place for the batch.

    The place follows from the generator alone.
    """

    @given(seeds, st.integers(1, 4), st.integers(1, 5), st.integers(0, 4), st.integers(0, 4))
    @example(0, 3, 4, 4, 0)
    @example(0, 2, 5, 0, 0)
    def check(seed, B, side, down, right):
        H, W = side + down, side + right
        images = coordinates(B, H, W)
        piece = crop(images, side, generator(seed))
        assert piece.shape == (B, 3, side, side), f"{tuple(piece.shape)} of {B} images of {H}x{W}"
        y, x = (int(v) for v in piece[0, 1:, 0, 0])
        assert y + side <= H and x + side <= W, (
            f"{side}x{side} of {H}x{W}: the piece begins at {y}, {x}, and does not fit"
        )
        expected = images[:, :, y : y + side, x : x + side]
        assert torch.equal(piece, expected), (
            f"{side}x{side} of {B} images of {H}x{W}, of which the first begins at {y}, {x}: "
            f"{piece[:, :, 0, 0].tolist()}"
        )
        torch.manual_seed(seed + 1)
        assert torch.equal(crop(images, side, generator(seed)), piece), (
            "the same generator gives another piece"
        )

    check()


def is_anywhere_alike(crop, draws=3000, H=6, W=5, side=3):
    """Every place that fits comes as often as any other, within five standard deviations."""
    images, draw = coordinates(1, H, W), generator(0)
    count = torch.zeros(H - side + 1, W - side + 1)
    for _ in range(draws):
        _, y, x = (int(v) for v in crop(images, side, draw)[0, :, 0, 0])
        count[y, x] += 1
    p = 1 / count.numel()
    largest_gap = (count - draws * p).abs().max()
    assert largest_gap < 5 * math.sqrt(draws * p * (1 - p)), (
        f"a 3x3 piece of 6x5 pixels should begin {draws * p:.0f} times at each place: "
        f"{count.int().tolist()}"
    )


# --- Properties of `widen_linear` ---
PHI = {"tanh": torch.tanh, "relu": torch.relu, "square": torch.square, "silu": F.silu}
sizes = (st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


def small_network(seed, J, inputs, outputs):
    """w1 (J, inputs), b1 (J,), w2 (outputs, J) of a network with J hidden units."""
    draw = generator(seed)
    shapes = ((J, inputs), (J,), (outputs, J))
    return [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes]


def run(phi, w1, b1, w2, x):
    return phi(x @ w1.T + b1) @ w2.T


def widened_in_double(widen, old, copies, seed):
    return [w.double() for w in widen(*old, copies, generator(seed))]


def computes_the_same(widen):
    """The outputs stay, for any elementwise nonlinearity; equal generators give equal weights."""

    @given(seeds, *sizes, st.sampled_from(sorted(PHI)))
    @example(0, 2, 2, 1, 3, "tanh")
    def check(seed, J, inputs, outputs, copies, phi):
        old = small_network(seed, J, inputs, outputs)
        new = widen(*old, copies, generator(seed))
        shapes = [tuple(w.shape) for w in new]
        assert shapes == [(copies * J, inputs), (copies * J,), (outputs, copies * J)], (
            f"{J} units times {copies}: shapes {shapes}"
        )
        x = torch.randn(5, inputs, generator=generator(seed + 1), dtype=torch.float64)
        before = run(PHI[phi], *old, x)
        after = run(PHI[phi], *(w.double() for w in new), x)
        gap = float((before - after).abs().max())
        assert gap < 1e-4, f"{J} units times {copies}, {phi}: outputs differ by up to {gap:.2g}"
        torch.manual_seed(seed + 2)
        again = widen(*old, copies, generator(seed))
        assert all(torch.equal(a, b) for a, b in zip(new, again, strict=True)), (
            "the same generator gives other weights"
        )

    check()


def copies_of(w1, b1, new_w1, new_b1):
    """For each old unit, which of the new units read what it reads."""
    weight_gaps = (new_w1[None] - w1[:, None]).abs().amax(-1)  # (J, copies * J)
    bias_gaps = (new_b1[None] - b1[:, None]).abs()
    gaps = weight_gaps + bias_gaps
    return [(row < 1e-5).nonzero()[:, 0].tolist() for row in gaps]


def has_every_unit_as_often(widen):
    """Each unit has `copies` copies; each is read with a fraction above 0 of the weight."""

    @given(seeds, *sizes)
    @example(0, 2, 1, 1, 2)
    @example(0, 3, 2, 2, 4)
    def check(seed, J, inputs, outputs, copies):
        w1, b1, w2 = small_network(seed, J, inputs, outputs)
        new_w1, new_b1, new_w2 = widened_in_double(widen, (w1, b1, w2), copies, seed)
        for j, units in enumerate(copies_of(w1, b1, new_w1, new_b1)):
            assert len(units) == copies, (
                f"{J} units times {copies}: {len(units)} units read what unit {j} did"
            )
            fractions = new_w2[:, units] / w2[:, j : j + 1]
            sums = fractions.sum(dim=1)
            sum_to_one = torch.allclose(sums, torch.ones(outputs).double(), atol=1e-4)
            assert (fractions > 0).all() and sum_to_one, (
                f"unit {j} is divided into fractions {fractions.tolist()}"
            )

    check()


def smallest_gap(rows):
    """The smallest largest difference between two rows."""
    gaps = []
    for a in range(len(rows)):
        for b in range(a):
            gaps.append(float((rows[a] - rows[b]).abs().max()))
    return min(gaps)


def copies_get_different_gradients(widen):
    """No two copies of a unit get one gradient, or they would stay equal for ever."""

    @given(seeds, st.integers(2, 4))
    @example(0, 2)
    def check(seed, copies):
        old = small_network(seed, 3, 4, 2)
        new = [w.clone().requires_grad_() for w in widened_in_double(widen, old, copies, seed)]
        x = torch.randn(20, 4, generator=generator(seed + 1), dtype=torch.float64)
        y = torch.randn(20, 2, generator=generator(seed + 1), dtype=torch.float64)
        (run(torch.tanh, *new, x) - y).square().mean().backward()
        w1, b1, _ = old
        for j, units in enumerate(copies_of(w1, b1, new[0].detach(), new[1].detach())):
            assert len(units) > 1, f"unit {j} has no copies"
            grads = new[0].grad[units]
            assert smallest_gap(grads) > 1e-6 * float(grads.abs().max()), (
                f"two copies of unit {j} get the same gradient: they stay equal for ever"
            )

    check()


def fractions_are_drawn(widen):
    """Another generator gives every unit other fractions, in whatever order the copies are."""

    def fractions_of_units(copies, seed):
        w1, b1, w2 = small_network(0, 3, 2, 3)
        new_w1, new_b1, new_w2 = widened_in_double(widen, (w1, b1, w2), copies, seed)
        fractions = []
        for j, units in enumerate(copies_of(w1, b1, new_w1, new_b1)):
            fractions.append(sorted((new_w2[:, units] / w2[:, j : j + 1]).T.tolist()))
        return fractions

    for copies in (2, 3):
        first, second = fractions_of_units(copies, 0), fractions_of_units(copies, 1)
        for j, (one, other) in enumerate(zip(first, second, strict=True)):
            assert not torch.allclose(torch.tensor(one), torch.tensor(other), atol=1e-5), (
                f"two generators give unit {j} the same fractions, copy by copy: {one}"
            )


# --- Properties of `identity_block` ---
def block_of(make, channels, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(channels)


def changes_nothing_yet(make):
    """A new block gives x exactly, for any x, channels and size."""

    @given(seeds, st.integers(1, 4), st.integers(1, 2), st.integers(1, 5))
    @example(0, 1, 1, 1)
    def check(seed, channels, B, side):
        x = torch.randn(B, channels, side, side + 1, generator=generator(seed)) * 3
        y = block_of(make, channels, seed)(x).detach()
        assert y.shape == x.shape, f"{tuple(x.shape)} becomes {tuple(y.shape)}"
        gap = float((y - x).abs().max())
        assert torch.equal(y, x), f"{tuple(x.shape)} changes by up to {gap:.2g}"

    check()


def descend(block, x, y, steps=3, lr=0.1):
    """Gradient descent on the squared error."""
    for _ in range(steps):
        loss = (block(x) - y).square().mean()
        block.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in block.parameters():
                if p.grad is not None:
                    p -= lr * p.grad


def wakes_up(make):
    """Three steps of gradient descent move every parameter."""
    for seed in range(3):
        block, draw = block_of(make, 3, seed), generator(seed)
        x, y = (torch.randn(4, 3, 7, 7, generator=draw) for _ in range(2))
        before = {name: p.detach().clone() for name, p in block.named_parameters()}
        assert before, "it has no parameters"
        descend(block, x, y)
        unmoved = [name for name, p in block.named_parameters() if torch.equal(p, before[name])]
        assert not unmoved, f"not moved after three steps: {', '.join(unmoved)}"


def sees_two_pixels_far(make):
    """With random weights, an output depends on inputs up to two pixels away in each direction."""
    block, draw = block_of(make, 2).double(), generator(0)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.5)
    x = torch.randn(1, 2, 9, 9, generator=draw).double().requires_grad_()
    (gradient,) = torch.autograd.grad(block(x)[0, :, 4, 4].sum(), x)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0].tolist()
    columns = gradient.abs().sum(dim=(0, 1, 2)).nonzero()[:, 0].tolist()
    assert rows == columns == list(range(2, 7)), (
        f"output 4, 4 of 9x9 depends on rows {rows} and columns {columns}"
    )


def silu(z):
    return z / (1 + math.exp(-z))


def is_two_convolutions_after_silu(make):
    """f(x) = a silu(a silu(x)) per pixel, if kernels are a in the middle and else 0, biases 0."""
    block = block_of(make, 1).double()
    x = torch.linspace(-4, 4, 15, dtype=torch.float64).view(1, 1, 3, 5)
    for a in (1.0, -2.0):
        with torch.no_grad():
            for p in block.parameters():
                p.zero_()
                if p.dim() == 4:
                    p[..., p.shape[-2] // 2, p.shape[-1] // 2] = a
            f_of_x = block(x) - x
        for number, got in zip(x.flatten().tolist(), f_of_x.flatten().tolist(), strict=True):
            expected = a * silu(a * silu(number))
            assert math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-6), (
                f"kernels {a:g} in the middle, no biases: "
                f"f({number:.3f}) = {got:.4f}, not {expected:.4f}"
            )


# --- Planted bugs: psnr ---
def mse_of_images(a, b):
    return (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)


def as_if_between_0_and_1(a, b):
    return float((10 * torch.log10(1 / mse_of_images(a, b))).mean())


def natural_logarithm(a, b):
    return float((10 * torch.log(4 / mse_of_images(a, b))).mean())


def decibels_of_the_mean_error(a, b):
    return float(10 * torch.log10(4 / (a - b).square().mean().clamp(min=1e-10)))


def negative(a, b):
    return -images.psnr(a, b)


def infinite_for_equal_images(a, b):
    return float((10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)))).mean())


def twice_the_decibels(a, b):
    return 2 * images.psnr(a, b)


def of_absolute_errors(a, b):
    errors = (a - b).abs().mean(dim=(1, 2, 3)).clamp(min=1e-5)
    return float((20 * torch.log10(2 / errors)).mean())


# --- Planted bugs: crop ---
def each_its_own(images, side, g):
    return torch.cat([losses.crop(image[None], side, g) for image in images])


def along_the_diagonal(images, side, g):
    y = int(torch.randint(min(images.shape[-2:]) - side + 1, (), generator=g))
    return images[..., y : y + side, y : y + side]


def never_the_last(images, side, g):
    H, W = images.shape[-2:]
    y = int(torch.randint(H - side, (), generator=g)) if H > side else 0
    x = int(torch.randint(W - side, (), generator=g)) if W > side else 0
    return images[..., y : y + side, x : x + side]


def in_the_middle(images, side, g):
    y, x = ((length - side) // 2 for length in images.shape[-2:])
    return images[..., y : y + side, x : x + side]


def sides_exchanged(images, side, g):
    """Draws the row by the width and the column by the height."""
    x, y = (int(torch.randint(length - side + 1, (), generator=g)) for length in images.shape[-2:])
    return images[..., y : y + side, x : x + side]


def rolled(images, side, g):
    """Goes on at the other border."""
    y, x = (int(torch.randint(length, (), generator=g)) for length in images.shape[-2:])
    return images.roll((-y, -x), dims=(-2, -1))[..., :side, :side]


def another_generator(images, side, g):
    seed = int(torch.randint(99, ()))
    return losses.crop(images, side, torch.Generator().manual_seed(seed))


def transposed(images, side, g):
    return losses.crop(images, side, g).transpose(-1, -2)


# --- Planted bugs: widen_linear ---
def drawn_fractions(copies, w2, g):
    """(copies, outputs, J), summing to 1 over the copies."""
    noise = 0.5 * torch.rand(copies, *w2.shape, generator=g, dtype=torch.float64)
    return torch.softmax(noise, dim=0)


def widened_by(fractions, w1, b1, w2):
    """A correct widening with these fractions of w2 (copies, outputs, J)."""
    copies = len(fractions)
    return w1.repeat(copies, 1), b1.repeat(copies), torch.cat([w2 * f for f in fractions], dim=1)


def correct(w1, b1, w2, copies, g):
    return widened_by(drawn_fractions(copies, w2, g), w1, b1, w2)


def even_fractions(w1, b1, w2, copies, g):
    fractions = torch.full((copies, *w2.shape), 1 / copies, dtype=torch.float64)
    return widened_by(fractions, w1, b1, w2)


def uneven_and_not_drawn(w1, b1, w2, copies, g):
    ramp = torch.arange(copies, dtype=torch.float64)[:, None, None].expand(copies, *w2.shape)
    return widened_by(torch.softmax(ramp / 2, dim=0), w1, b1, w2)


def fractions_sum_to_two(w1, b1, w2, copies, g):
    return widened_by(2 * drawn_fractions(copies, w2, g), w1, b1, w2)


def nothing_divided(w1, b1, w2, copies, g):
    return w1.repeat(copies, 1), b1.repeat(copies), w2.repeat(1, copies)


def divides_the_first_layer(w1, b1, w2, copies, g):
    """Phi is not linear."""
    fractions = drawn_fractions(copies, w2, g)[:, 0].flatten()
    new_w1 = w1.repeat(copies, 1) * fractions[:, None]
    return new_w1, b1.repeat(copies) * fractions, w2.repeat(1, copies)


def copies_without_bias(w1, b1, w2, copies, g):
    new_w1, _, new_w2 = correct(w1, b1, w2, copies, g)
    no_bias = torch.zeros((copies - 1) * len(b1), dtype=b1.dtype)
    return new_w1, torch.cat([b1, no_bias]), new_w2


def layers_in_different_order(w1, b1, w2, copies, g):
    _, _, new_w2 = correct(w1, b1, w2, copies, g)
    return w1.repeat_interleave(copies, 0), b1.repeat_interleave(copies), new_w2


def random_rows(w1, b1, w2, copies, g):
    J, inputs = w1.shape
    _, new_b1, new_w2 = correct(w1, b1, w2, copies, g)
    added = torch.randn((copies - 1) * J, inputs, generator=g, dtype=w1.dtype)
    return torch.cat([w1, added]), new_b1, new_w2


def first_copy_gets_everything(w1, b1, w2, copies, g):
    fractions = torch.zeros(copies, *w2.shape, dtype=torch.float64)
    fractions[0] = 1
    return widened_by(fractions, w1, b1, w2)


def global_random_numbers(w1, b1, w2, copies, g):
    return correct(w1, b1, w2, copies, None)


# --- Planted bugs: identity_block ---
class Block(nn.Module):
    """x + f(x), with switches that break it."""

    def __init__(
        self,
        channels,
        zero=("conv2",),
        kernels=(3, 3),
        skip=1.0,
        scale=1.0,
        frozen=False,
        acts=(F.silu, F.silu),
    ):
        super().__init__()
        first, second = kernels
        self.conv1 = nn.Conv2d(channels, channels, first, padding=first // 2)
        self.conv2 = nn.Conv2d(channels, channels, second, padding=second // 2)
        for name in zero:
            for p in getattr(self, name).parameters():
                nn.init.zeros_(p)
        self.conv2.requires_grad_(not frozen)
        self.skip, self.scale, self.acts = skip, scale, acts

    def forward(self, x):
        first, second = self.acts
        return self.skip * x + self.scale * self.conv2(second(self.conv1(first(x))))


def not_the_identity(channels):
    return Block(channels, zero=())


def never_wakes_up(channels):
    return Block(channels, zero=("conv1", "conv2"))


def bias_remains(channels):
    """The bias of the second convolution is not zero."""
    return Block(channels, zero=("conv1",))


def without_skip(channels):
    return Block(channels, skip=0.0)


def always_scaled_by_zero(channels):
    return Block(channels, scale=0.0)


def frozen_second_convolution(channels):
    return Block(channels, frozen=True)


def sees_one_pixel_far(channels):
    return Block(channels, kernels=(3, 1))


def sees_its_own_pixel(channels):
    return Block(channels, kernels=(1, 1))


def nothing_but_the_identity(channels):
    return nn.Identity()


def linear(channels):
    return Block(channels, acts=(nn.Identity(), nn.Identity()))


def first_silu_only(channels):
    return Block(channels, acts=(F.silu, nn.Identity()))


def second_silu_only(channels):
    return Block(channels, acts=(nn.Identity(), F.silu))


def relu_for_silu(channels):
    return Block(channels, acts=(F.relu, F.relu))


EXERCISES = [
    Exercise(
        "psnr",
        images.psnr,
        (averages_decibels, knows_black_from_white),
        hint=(
            "how far apart are -1 and 1? And what is averaged first: squares within an image, or "
            "decibels over images?"
        ),
        wrong=(
            as_if_between_0_and_1,
            natural_logarithm,
            decibels_of_the_mean_error,
            negative,
            infinite_for_equal_images,
            twice_the_decibels,
            of_absolute_errors,
        ),
    ),
    Exercise(
        "crop",
        losses.crop,
        (is_one_piece_for_all, is_anywhere_alike),
        hint="how many rows are there at which a piece may begin? If side is H, one.",
        wrong=(
            each_its_own,
            along_the_diagonal,
            never_the_last,
            in_the_middle,
            sides_exchanged,
            rolled,
            another_generator,
            transposed,
        ),
    ),
    Exercise(
        "widen_linear",
        widen_linear,
        (
            computes_the_same,
            has_every_unit_as_often,
            copies_get_different_gradients,
            fractions_are_drawn,
        ),
        hint=(
            "a copy has the value of its unit, so what must the weights that read all the copies "
            "add up to? And what would keep two of them equal?"
        ),
        wrong=(
            even_fractions,
            uneven_and_not_drawn,
            fractions_sum_to_two,
            nothing_divided,
            divides_the_first_layer,
            copies_without_bias,
            layers_in_different_order,
            random_rows,
            first_copy_gets_everything,
            global_random_numbers,
        ),
    ),
    Exercise(
        "identity_block",
        ResidualBlock,
        (changes_nothing_yet, wakes_up, sees_two_pixels_far, is_two_convolutions_after_silu),
        hint=(
            "f(x) is zero if one of its factors is; if two are, nothing moves. Which one gets a "
            "gradient all the same?"
        ),
        wrong=(
            not_the_identity,
            never_wakes_up,
            without_skip,
            always_scaled_by_zero,
            frozen_second_convolution,
            sees_one_pixel_far,
            sees_its_own_pixel,
            nothing_but_the_identity,
            linear,
            first_silu_only,
            second_silu_only,
            relu_for_silu,
            bias_remains,
        ),
    ),
]
