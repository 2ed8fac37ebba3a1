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


# Properties: PSNR


def averages_decibels(psnr):
    """Against a loop over pictures in Python's floats: a mean of decibels, not the decibels of a mean."""

    @given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
    @example(0, 2, 2, 3)
    def check(seed, B, H, W):
        draw = generator(seed)
        a = torch.rand(B, 3, H, W, generator=draw) * 2 - 1
        b = (
            a
            + torch.randn(B, 3, H, W, generator=draw)
            * torch.tensor([0.5, 0.01, 0.1])[:B, None, None, None]
        )
        each = []
        for x, y in zip(a.flatten(1).tolist(), b.flatten(1).tolist()):
            mse = sum((p - q) ** 2 for p, q in zip(x, y)) / len(x)
            each.append(10 * math.log10(2**2 / max(mse, 1e-10)))
        got = float(psnr(a, b))
        assert math.isclose(got, sum(each) / B, abs_tol=1e-3), (
            f"pictures with {[round(e, 2) for e in each]} dB: {got}, not {sum(each) / B}"
        )

    check()


def knows_black_from_white(psnr):
    """0 dB between black and white, 20 dB for a tenth of the peak, and a number for equal pictures."""
    black = torch.full((1, 3, 2, 2), -1.0)
    for shift, wanted in ((2.0, 0.0), (0.2, 20.0), (0.02, 40.0), (0.0, 10 * math.log10(4e10))):
        got = float(psnr(black, black + shift))
        assert math.isclose(got, wanted, abs_tol=1e-3), (
            f"black, and black + {shift}: {got} dB, not {wanted}"
        )


# Properties: crop


def maps(B, H, W):
    """Pictures (B, 3, H, W) that know where they are: picture, row and column."""
    return torch.stack(
        torch.meshgrid(*(torch.arange(float(n)) for n in (B, H, W)), indexing="ij"), dim=1
    )


def is_one_piece_for_all(crop):
    """side x side neighbouring pixels of each picture, at one place for the batch, that follows from the generator alone."""

    @given(seeds, st.integers(1, 4), st.integers(1, 5), st.integers(0, 4), st.integers(0, 4))
    @example(0, 3, 4, 4, 0)
    @example(0, 2, 5, 0, 0)
    def check(seed, B, side, down, right):
        H, W = side + down, side + right
        images = maps(B, H, W)
        piece = crop(images, side, generator(seed))
        assert piece.shape == (B, 3, side, side), f"{tuple(piece.shape)} of {B} pictures of {H}x{W}"
        y, x = (int(v) for v in piece[0, 1:, 0, 0])
        assert y + side <= H and x + side <= W
        wanted = images[:, :, y : y + side, x : x + side]
        assert torch.equal(piece, wanted), (
            f"{side}x{side} of {B} pictures of {H}x{W}, of which the first begins at {y}, {x}: {piece[:, :, 0, 0].tolist()}"
        )
        torch.manual_seed(seed + 1)
        assert torch.equal(crop(images, side, generator(seed)), piece), (
            "the same generator gives another piece"
        )

    check()


def is_anywhere_alike(crop, draws=3000, H=6, W=5, side=3):
    """Every place that fits comes as often as any other, within five standard deviations."""
    images, draw = maps(1, H, W), generator(0)
    count = torch.zeros(H - side + 1, W - side + 1)
    for _ in range(draws):
        _, y, x = (int(v) for v in crop(images, side, draw)[0, :, 0, 0])
        count[y, x] += 1
    p = 1 / count.numel()
    off = (count - draws * p).abs().max()
    assert off < 5 * math.sqrt(draws * p * (1 - p)), (
        f"a 3x3 piece of 6x5 pixels should begin {draws * p:.0f} times at each place: {count.int().tolist()}"
    )


# Properties: wider

PHI = {"tanh": torch.tanh, "relu": torch.relu, "square": torch.square, "silu": F.silu}


def small_network(seed, J, I, O):
    draw = generator(seed)
    return [
        torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((J, I), (J,), (O, J))
    ]


def run(phi, w1, b1, w2, x):
    return phi(x @ w1.T + b1) @ w2.T


sizes = (st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


def computes_the_same(widen):
    """For any elementwise nonlinearity; equal generators give equal weights."""

    @given(seeds, *sizes, st.sampled_from(sorted(PHI)))
    @example(0, 2, 2, 1, 3, "tanh")
    def check(seed, J, I, O, copies, phi):
        old = small_network(seed, J, I, O)
        new = widen(*old, copies, generator(seed))
        shapes = [tuple(w.shape) for w in new]
        assert shapes == [(copies * J, I), (copies * J,), (O, copies * J)], (
            f"{J} units times {copies}: shapes {shapes}"
        )
        x = torch.randn(5, I, generator=generator(seed + 1), dtype=torch.float64)
        gap = float(
            (run(PHI[phi], *old, x) - run(PHI[phi], *(w.double() for w in new), x)).abs().max()
        )
        assert gap < 1e-4, f"{J} units times {copies}, {phi}: outputs differ by up to {gap:.2g}"
        torch.manual_seed(seed + 2)
        again = widen(*old, copies, generator(seed))
        assert all(torch.equal(a, b) for a, b in zip(new, again)), (
            "the same generator gives other weights"
        )

    check()


def copies_of(w1, b1, new1, newb):
    """For each old unit, which of the new ones read what it reads."""
    same = (new1[None] - w1[:, None]).abs().amax(-1) + (newb[None] - b1[:, None]).abs()
    return [(row < 1e-5).nonzero()[:, 0].tolist() for row in same]


def has_every_unit_as_often(widen):
    """`copies` of each unit, each read with a share above 0 of the weight."""

    @given(seeds, *sizes)
    @example(0, 2, 1, 1, 2)
    @example(0, 3, 2, 2, 4)
    def check(seed, J, I, O, copies):
        w1, b1, w2 = small_network(seed, J, I, O)
        new1, newb, new2 = (w.double() for w in widen(w1, b1, w2, copies, generator(seed)))
        for j, found in enumerate(copies_of(w1, b1, new1, newb)):
            assert len(found) == copies, (
                f"{J} units times {copies}: {len(found)} units read what unit {j} did"
            )
            shares = new2[:, found] / w2[:, j : j + 1]
            assert (shares > 0).all() and torch.allclose(
                shares.sum(dim=1), torch.ones(O).double(), atol=1e-4
            ), f"unit {j} has shares {shares.tolist()}"

    check()


def copies_part(widen):
    """No two copies of a unit get one gradient, so that they will not be twins for ever."""

    @given(seeds, st.integers(2, 4))
    @example(0, 2)
    def check(seed, copies):
        J, I, O = 3, 4, 2
        old = small_network(seed, J, I, O)
        new = [w.double().clone().requires_grad_() for w in widen(*old, copies, generator(seed))]
        x, y = (
            torch.randn(20, n, generator=generator(seed + 1), dtype=torch.float64) for n in (I, O)
        )
        (run(torch.tanh, *new, x) - y).square().mean().backward()
        for j, found in enumerate(copies_of(*old[:2], *(w.detach() for w in new[:2]))):
            grads = new[0].grad[found]
            gaps = [
                float((grads[a] - grads[b]).abs().max())
                for a in range(len(found))
                for b in range(a)
            ]
            assert gaps and min(gaps) > 1e-6 * float(grads.abs().max()), (
                f"two copies of unit {j} get the same gradient: they stay equal for ever"
            )

    check()


def shares_are_drawn(widen):
    """Another state of the generator, other shares, for every unit. In which order the copies stand is not asked."""
    w1, b1, w2 = small_network(0, 3, 2, 3)
    for copies in (2, 3):
        columns = []
        for seed in (0, 1):
            new1, newb, new2 = (w.double() for w in widen(w1, b1, w2, copies, generator(seed)))
            columns.append(
                [
                    sorted((new2[:, found] / w2[:, j : j + 1]).T.tolist())
                    for j, found in enumerate(copies_of(w1, b1, new1, newb))
                ]
            )
        for j, (one, other) in enumerate(zip(*columns)):
            assert not torch.allclose(torch.tensor(one), torch.tensor(other), atol=1e-5), (
                f"two generators, one set of shares for unit {j}, copy by copy: {one}"
            )


# Properties: deeper


def block_of(make, channels, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(channels)


def changes_nothing_yet(make):
    """x exactly, for any x, channels and size."""

    @given(seeds, st.integers(1, 4), st.integers(1, 2), st.integers(1, 5))
    def check(seed, channels, B, side):
        x = torch.randn(B, channels, side, side + 1, generator=generator(seed)) * 3
        y = block_of(make, channels, seed)(x).detach()
        assert y.shape == x.shape and torch.equal(y, x), (
            f"{tuple(x.shape)} becomes {tuple(y.shape)}, off by up to {float((y - x).abs().max()) if y.shape == x.shape else math.nan:.2g}"
        )

    check()


def wakes_up(make):
    """Three steps of gradient descent move every parameter."""
    for seed in range(3):
        block, draw = block_of(make, 3, seed), generator(seed)
        x, y = (torch.randn(4, 3, 7, 7, generator=draw) for _ in range(2))
        before = {name: p.detach().clone() for name, p in block.named_parameters()}
        assert before, "it has no parameters"
        for _ in range(3):
            loss = (block(x) - y).square().mean()
            block.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in block.parameters():
                    p -= 0.1 * p.grad if p.grad is not None else 0
        still = [name for name, p in block.named_parameters() if torch.equal(p, before[name])]
        assert not still, (
            f"after three steps, {', '.join(still)} {'has' if len(still) == 1 else 'have'} not moved"
        )


def sees_two_pixels_far(make):
    """With random weights: an output depends on the input two pixels away, in each direction, and no farther."""
    block, draw = block_of(make, 2).double(), generator(0)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.5)
    x = torch.randn(1, 2, 9, 9, generator=draw).double().requires_grad_()
    (gradient,) = torch.autograd.grad(block(x)[0, :, 4, 4].sum(), x)
    rows, columns = (gradient.abs().sum(dim=(0, 1, d)).nonzero()[:, 0].tolist() for d in (3, 2))
    assert rows == columns == list(range(2, 7)), (
        f"output 4, 4 of 9x9 depends on rows {rows} and columns {columns}"
    )


def is_two_convolutions_after_silu(make):
    """If both kernels let only their middle through, times a, and no bias is left, f(x) = a silu(a silu(x)), pixel by pixel."""
    block, x = (
        block_of(make, 1).double(),
        torch.linspace(-4, 4, 15, dtype=torch.float64).view(1, 1, 3, 5),
    )
    for a in (1.0, -2.0):
        with torch.no_grad():
            for p in block.parameters():
                p.zero_()
                if p.dim() == 4:
                    p[..., p.shape[-2] // 2, p.shape[-1] // 2] = a
            got = (block(x) - x).flatten().tolist()
        silu = lambda z: z / (1 + math.exp(-z))
        for number, y in zip(x.flatten().tolist(), got):
            wanted = a * silu(a * silu(number))
            assert math.isclose(y, wanted, rel_tol=1e-6, abs_tol=1e-6), (
                f"kernels {a:g} in the middle, no biases: f({number:.3f}) = {y:.4f}, not {wanted:.4f}"
            )


# What the package has under another signature


def widen_linear(w1, b1, w2, copies, generator):
    """grow() takes convolutions: of one pixel, here."""
    J, I, O = *w1.shape, len(w2)
    small, large = ([nn.Conv2d(I, width, 1), nn.Conv2d(width, O, 1)] for width in (J, copies * J))
    with torch.no_grad():
        for target, weight in (
            (small[0].weight, w1[..., None, None]),
            (small[0].bias, b1),
            (small[1].weight, w2[..., None, None]),
        ):
            target.copy_(weight)
    grow(small, large, generator)
    return (
        large[0].weight.detach()[..., 0, 0],
        large[0].bias.detach(),
        large[1].weight.detach()[..., 0, 0],
    )


# What to refuse


def widened(
    even=False,
    total=1.0,
    first_only=False,
    where="w2",
    bias=True,
    global_draw=False,
    rows="copies",
    fixed=False,
):
    """widen_linear with one bug at a time."""

    def widen(w1, b1, w2, copies, g):
        J = len(w1)
        u = 0.5 * torch.rand(
            copies, len(w2), J, generator=None if global_draw else g, dtype=torch.float64
        )
        if fixed:
            u = torch.arange(copies, dtype=torch.float64)[:, None, None].expand_as(u) / 2
        shares = torch.softmax(u * (not even), dim=0) * total
        if first_only:
            shares = torch.zeros_like(shares)
            shares[0] = 1
        new1, newb = (
            w1.repeat(copies, 1),
            b1.repeat(copies)
            if bias
            else torch.cat([b1, torch.zeros((copies - 1) * J, dtype=b1.dtype)]),
        )
        if rows == "interleaved":  # w1 in one order, w2 in the other
            new1, newb = w1.repeat_interleave(copies, 0), b1.repeat_interleave(copies)
        if rows == "random":
            new1 = torch.cat(
                [w1, torch.randn((copies - 1) * J, w1.shape[1], generator=g, dtype=w1.dtype)]
            )
        if where == "w1":
            return (
                new1 * shares[:, 0].reshape(-1, 1),
                newb * shares[:, 0].flatten(),
                w2.repeat(1, copies),
            )
        return new1, newb, torch.cat([w2 * s for s in shares], dim=1)

    return widen


def decibels(a, b, peak=2.0, log=torch.log10, least=1e-10, dim=(1, 2, 3), times=10):
    return float((times * log(peak**2 / (a - b).square().mean(dim=dim).clamp(min=least))).mean())


def places(images, side, g, last=1):
    return [
        int(torch.randint(length - side + last, (), generator=g)) if length > side else 0
        for length in images.shape[-2:]
    ]


def each_its_own(images, side, g):
    return torch.cat([losses.crop(image[None], side, g) for image in images])


def along_the_diagonal(images, side, g):
    y = int(torch.randint(min(images.shape[-2:]) - side + 1, (), generator=g))
    return images[..., y : y + side, y : y + side]


def never_the_last(images, side, g):
    y, x = places(images, side, g, last=0)
    return images[..., y : y + side, x : x + side]


def in_the_middle(images, side, g):
    y, x = ((length - side) // 2 for length in images.shape[-2:])
    return images[..., y : y + side, x : x + side]


def sides_exchanged(images, side, g):
    x, y = (int(torch.randint(length - side + 1, (), generator=g)) for length in images.shape[-2:])
    return images[..., y : y + side, x : x + side]


def rolled(images, side, g):
    y, x = (int(torch.randint(length, (), generator=g)) for length in images.shape[-2:])
    return images.roll((-y, -x), dims=(-2, -1))[..., :side, :side]


class Block(nn.Module):
    """x + f(x), with switches that break it."""

    def __init__(
        self,
        channels,
        zero=("conv2",),
        kernels=(3, 3),
        skip=True,
        scale=1.0,
        frozen=False,
        acts=(F.silu, F.silu),
    ):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, k, padding=k // 2) for k in kernels)
        for p in (p for name in zero for p in getattr(self, name).parameters()):
            nn.init.zeros_(p)
        self.conv2.requires_grad_(not frozen)
        self.skip, self.scale, self.acts = skip, scale, acts

    def forward(self, x):
        first, second = self.acts
        return self.skip * x + self.scale * self.conv2(second(self.conv1(first(x))))


EXERCISES = [
    Exercise(
        "psnr",
        images.psnr,
        (averages_decibels, knows_black_from_white),
        hint="how far apart are -1 and 1? And what is averaged first: squares within a picture, or decibels over pictures?",
        wrong=(
            lambda a, b: decibels(a, b, peak=1.0),  # as if in [0, 1]
            lambda a, b: decibels(a, b, log=torch.log),  # natural
            lambda a, b: decibels(a, b, dim=(0, 1, 2, 3)),  # decibels of the batch's mean
            lambda a, b: -decibels(a, b),
            lambda a, b: decibels(a, b, least=0.0),  # infinite for equal pictures
            lambda a, b: decibels(a, b, times=20),
            lambda a, b: float(
                (20 * torch.log10(2 / (a - b).abs().mean(dim=(1, 2, 3)).clamp(min=1e-5))).mean()
            ),  # of absolute errors
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
            sides_exchanged,  # rows drawn by the height of columns
            rolled,  # around the border
            lambda images, side, g: losses.crop(
                images, side, torch.Generator().manual_seed(int(torch.randint(99, ())))
            ),  # another generator
            lambda images, side, g: losses.crop(images, side, g).transpose(-1, -2),
        ),
    ),
    Exercise(
        "widen_linear",
        widen_linear,
        (computes_the_same, has_every_unit_as_often, copies_part, shares_are_drawn),
        hint="a copy has the value of its unit, so what must the weights that read all the copies add up to? And what would keep two of them equal?",
        wrong=(
            widened(even=True),  # twins for ever
            widened(fixed=True),  # uneven, and not drawn
            widened(total=2.0),
            lambda w1, b1, w2, copies, g: (
                w1.repeat(copies, 1),
                b1.repeat(copies),
                w2.repeat(1, copies),
            ),  # nothing divided
            widened(where="w1"),  # phi is not linear
            widened(bias=False),
            widened(rows="interleaved"),
            widened(rows="random"),
            widened(first_only=True),  # shares of 0
            widened(global_draw=True),
        ),
    ),
    Exercise(
        "identity_block",
        ResidualBlock,
        (changes_nothing_yet, wakes_up, sees_two_pixels_far, is_two_convolutions_after_silu),
        hint="f(x) is zero if one of its factors is; if two are, nothing moves. Which one gets a gradient all the same?",
        wrong=(
            lambda c: Block(c, zero=()),  # not the identity
            lambda c: Block(c, zero=("conv1", "conv2")),  # never wakes up
            lambda c: Block(c, skip=False),  # zero, not x
            lambda c: Block(c, scale=0.0),  # a constant zero
            lambda c: Block(c, frozen=True),
            lambda c: Block(c, kernels=(3, 1)),  # sees one pixel far
            lambda c: Block(c, kernels=(1, 1)),
            lambda c: nn.Identity(),
            lambda c: Block(c, acts=(nn.Identity(), nn.Identity())),  # linear
            lambda c: Block(c, acts=(F.silu, nn.Identity())),
            lambda c: Block(c, acts=(nn.Identity(), F.silu)),
            lambda c: Block(c, acts=(F.relu, F.relu)),
            lambda c: Block(c, zero=("conv1",)),  # the bias of the second one remains
        ),
    ),
]
