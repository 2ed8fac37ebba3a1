"""Lesson 08, super-resolution: what must hold of its exercises, and wrong solutions."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.compare import assert_same
from minimuse.checks.properties import attention

from minimuse import data, decode
from minimuse.beyond.mean_vectors import vectors_of
from minimuse.superres import spread_over_squares
from minimuse.transformer import attend, multi_axis

TITLE = "super-resolution"
seeds, small = st.integers(0, 2**31 - 1), st.integers(1, 4)


# --- Properties that only this lesson needs; the others are in properties/ ---


def is_the_mean_of_each_four(halve):
    """Pixel (y, x) is the mean of the four pixels it covers, in every image and channel."""

    @given(st.integers(1, 2), small, small, seeds)
    @example(1, 1, 2, 0)
    def check(B, h, w, seed):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(-8, 9, (B, 3, 2 * h, 2 * w), generator=generator).float()
        out = halve(images)
        assert out.shape == (B, 3, h, w), f"{tuple(images.shape)} became {tuple(out.shape)}"
        for b, c, y, x in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
            four = [images[b, c, 2 * y + dy, 2 * x + dx].item() for dy in (0, 1) for dx in (0, 1)]
            result = out[b, c, y, x].item()
            assert abs(result - sum(four) / 4) < 1e-5, (
                f"pixels {four} became {result}, at {(y, x)} of an image of {2 * h} x {2 * w}"
            )

    check()


def refuses_odd_sides(halve):
    """A side that cannot be halved is a ValueError that names its length."""
    for H, W in ((3, 4), (4, 5), (1, 2)):
        odd = H if H % 2 else W
        try:
            halve(torch.zeros(1, 3, H, W))
        except ValueError as error:
            assert str(odd) in str(error), f"the error does not name the side: {error}"
        else:
            raise AssertionError(f"an image of {H} x {W} was halved")


KINDS = ("local", "dilated", "shifted")


def attends(kind, one, other, window):
    """True if a row (or column) number attends to another one in this kind of attention."""
    if kind == "local":
        return one // window == other // window
    if kind == "dilated":
        return one % window == other % window
    shift = window // 2
    return (one - shift) // window == (other - shift) // window


def seen_by(n, kind, grid, window):
    """The tokens that token n attends to in this kind of attention, by walking over the grid."""
    y, x = divmod(n, grid)
    seen = set()
    for m in range(grid * grid):
        row, column = divmod(m, grid)
        if attends(kind, y, row, window) and attends(kind, x, column, window):
            seen.add(m)
    return seen


def counts_every_pair(attention_pairs):
    """As many pairs as one counts on the grid, for windows from one token to the whole grid."""

    @given(small, small)
    @example(2, 3)
    @example(1, 4)
    @example(4, 1)
    def check(windows, window):
        grid = windows * window
        counts = dict.fromkeys(("local", "dilated"), 0)
        for kind in counts:
            for n in range(grid * grid):
                counts[kind] += len(seen_by(n, kind, grid, window))
        expected = (grid**4, counts["local"], counts["dilated"])
        result = tuple(int(x) for x in attention_pairs(grid, window))
        assert result == expected, (
            f"grid {grid}, window {window}: {result}, not {expected} (full, local, dilated)"
        )

    check()


def sees_through_others(sees_after):
    """In each layer, a token also sees what the tokens it attends to have seen before.

    Compared with sets, token by token.
    """

    @given(st.lists(st.sampled_from(KINDS), max_size=3), st.integers(1, 3), st.integers(1, 3))
    @example(["local"], 2, 2)
    @example(["dilated"], 2, 3)
    @example(["shifted"], 2, 3)  # half of an odd window
    @example(["local", "shifted"], 3, 2)  # another order is another mask
    @example([], 2, 1)
    # 4,096 ways lead from each token to some others: a count in bytes overflows.
    @example(["local", "local", "local", "shifted", "shifted", "shifted"], 1, 4)
    def check(layers, windows, window):
        grid = windows * window
        N = grid * grid
        expected = [{n} for n in range(N)]
        for kind in layers:
            before = expected
            expected = []
            for n in range(N):
                attended = seen_by(n, kind, grid, window)
                expected.append(set().union(*(before[m] for m in attended)))
        mask = sees_after(layers, grid, window)
        assert mask.dtype == torch.bool and mask.shape == (N, N), (
            f"{mask.dtype}, {tuple(mask.shape)}"
        )
        for n in range(N):
            result = mask[n].nonzero()[:, 0].tolist()
            assert result == sorted(expected[n]), (
                f"grid {grid}, window {window}, layers {layers}: "
                f"token {n} has seen {result}, not {sorted(expected[n])}"
            )

    check()


def gives_each_token_its_piece(spread):
    """High-res token (y, x) gets piece (y % i, x % i) of low-res token (y // i, x // i)."""

    @given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
    @example(1, 2, 2, 1)
    @example(1, 2, 2, 2)
    @example(1, 1, 3, 2)
    def check(B, low_grid, i, D):
        grid, n = low_grid * i, low_grid**2
        vectors = torch.arange(B * n * i * i * D).view(B, n, i * i * D).float()
        out = spread(vectors, low_grid, grid)
        assert out.shape == (B, grid**2, D), f"{tuple(vectors.shape)} became {tuple(out.shape)}"
        for b, y, x in torch.cartesian_prod(*map(torch.arange, (B, grid, grid))).tolist():
            low_token = y // i * low_grid + x // i
            piece = y % i * i + x % i
            expected = vectors[b, low_token, piece * D : (piece + 1) * D].tolist()
            case = f"{low_grid} x {low_grid} to {grid} x {grid}, D = {D}: token {(y, x)}"
            assert_same(out[b, y * grid + x], expected, case)

    check()


def passes_the_gradient_on(spread):
    """The pieces are made by a layer that is trained: each number has a gradient of its own."""
    given = torch.arange(16.0).view(1, 4, 4).requires_grad_()
    out = spread(given, 2, 4)
    assert out.requires_grad, "the pieces have no gradient"
    (gradient,) = torch.autograd.grad(out.square().sum() / 2, given)
    assert_same(gradient, given, "the gradient of half the sum of squares")


def trains_queries_keys_and_values(multi_axis):
    """Its gradient is that of the same attention over all tokens, with the unseen ones hidden."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 1, 2, 16, 2, generator=generator, dtype=torch.float64).requires_grad_()
    visible = [layer_masks(4, 2, None)[kind] for kind in ("local", "dilated")]
    scores = qkv[0] @ qkv[1].transpose(-1, -2) / 2**0.5  # (1, 2, 16, 16)
    weights = scores.masked_fill(~torch.stack(visible), -torch.inf).softmax(-1)
    (wanted,) = torch.autograd.grad((weights @ qkv[2]).square().sum(), qkv)
    out = multi_axis(qkv, 4, 2)
    assert out.requires_grad, "the result has no gradient"
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
    assert_same(gradient, wanted, "the gradient of qkv", rtol=1e-9, atol=1e-9)


def mixes_the_codes(mean_vectors):
    """A known token has the vector of its id, any other the mean of all by their probabilities."""

    @given(small, small, st.integers(1, 5), small, seeds)
    @example(2, 2, 3, 2, 0)
    @example(1, 1, 1, 1, 0)
    def check(B, side, K, C, seed):
        generator = torch.Generator().manual_seed(seed)
        N = side * side
        logits = 3 * torch.randn(B, N, K, generator=generator)
        known = torch.rand(B, N, generator=generator) < 0.4
        ids = torch.randint(K, (B, N), generator=generator).masked_fill(~known, K)
        codebook = torch.randn(K, C, generator=generator)
        out = mean_vectors(logits, ids, known, codebook)
        assert out.shape == (B, N, C), f"{tuple(logits.shape)} became {tuple(out.shape)}"
        for b, n in torch.cartesian_prod(torch.arange(B), torch.arange(N)).tolist():
            expected = torch.zeros(C)
            parts = [math.exp(x) for x in logits[b, n].tolist()]
            for code in range(K):
                expected += parts[code] / sum(parts) * codebook[code]
            if known[b, n]:
                expected = codebook[ids[b, n]]
            kind = f"known, with id {int(ids[b, n])}" if known[b, n] else "not known"
            case = f"a token that is {kind}, of {K} codes"
            assert_same(out[b, n], expected.tolist(), case, rtol=1e-4, atol=1e-4)

    check()


def takes_large_logits(mean_vectors):
    """exp(1000) is infinite. The code whose logit is larger by far has all the probability."""
    logits = torch.tensor([[[1000.0, 0.0]]])
    hidden = torch.tensor([[2]]), torch.tensor([[False]])
    out = mean_vectors(logits, *hidden, torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    assert_same(out[0, 0], [5.0, 6.0], "logits of 1000 and 0, codes (5, 6) and (7, 8)")


# --- The package's functions, with the signatures of the exercises ---


def averages(values, grid, window):
    """The outputs of a local and a dilated head for values (N, d) if all queries are zero.

    Each token then averages the values that it attends to.
    """
    zeros = torch.zeros(1, 2, *values.shape)
    qkv = torch.stack([zeros, zeros, values.expand(1, 2, -1, -1)])
    return multi_axis(qkv, grid, window)[0]


def pairs_in_the_package(grid, window):
    """Each token's value is a 1 at a place of its own: it arrives where the token is seen."""
    local, dilated = averages(torch.eye(grid * grid), grid, window)
    return grid**4, int((local > 0).sum()), int((dilated > 0).sum())


def shifted_averages(values, grid, window):
    """Averages over shifted windows are those over the windows of a grid with a margin."""
    before, after = window - window // 2, window // 2
    wide = grid + window
    image = rearrange(values, "(y x) d -> d y x", y=grid)
    with_margin = F.pad(image, (before, after, before, after))
    local, _ = averages(rearrange(with_margin, "d y x -> (y x) d"), wide, window)
    local = rearrange(local, "(y x) d -> y x d", y=wide)
    inside = slice(before, before + grid)
    return local[inside, inside].flatten(0, 1)


def sees_after_in_the_package(layers, grid, window):
    """Each token starts with a value of its own, and averages those it attends to."""
    seen = torch.eye(grid * grid)
    for kind in layers:
        if kind == "shifted":
            seen = shifted_averages(seen, grid, window)
        else:
            local, dilated = averages(seen, grid, window)
            seen = local if kind == "local" else dilated
        seen = (seen > 0).float()
    return seen > 0


def spread_in_the_package(vectors, low_grid, grid):
    return spread_over_squares(vectors, grid // low_grid)


def mean_vectors_in_the_package(logits, ids, known, codebook):
    """What `decode.step` and `vectors_of` make of a pass that reveals all tokens."""
    left = torch.zeros(len(ids), dtype=torch.long)
    sampling = decode.Sampling(mean_vectors=True)
    noises = torch.zeros_like(logits), torch.zeros(ids.shape)
    step = decode.step(logits, ids, ~known, left, *noises, sampling)
    # The package rounds means to sixteenths, which is too coarse to be compared.
    scale = 2.0**20
    quantizer = SimpleNamespace(lookup=lambda ids: scale * F.embedding(ids, codebook))
    return vectors_of(step, SimpleNamespace(quantizer=quantizer)).flatten(1, 2) / scale


# --- Planted bugs: halving ---


def no_check(images):
    return F.avg_pool2d(images, 2)  # drops the last row without a word


def check_sides(images):
    """The other planted bugs do refuse odd sides, and take a wrong mean."""
    H, W = images.shape[-2:]
    if H % 2 or W % 2:
        raise ValueError(f"image is {H}x{W}")


def every_second_pixel(images):
    check_sides(images)
    return images[..., ::2, ::2]


def the_largest(images):
    check_sides(images)
    return F.max_pool2d(images, 2)


def mean_transposed(images):
    check_sides(images)
    return F.avg_pool2d(images, 2).transpose(-1, -2)


def bicubic(images):
    check_sides(images)
    return F.interpolate(images, scale_factor=0.5, mode="bicubic")


def one_side_only(images):
    check_sides(images)
    return F.avg_pool2d(images, (2, 1))


# --- Planted bugs: counting pairs. g is the grid, w the window. ---


def pairs_of_one_token(g, w):
    return g**2, w**2, (g // w) ** 2


def pairs_exchanged(g, w):
    return g**4, g**2 * (g // w) ** 2, g**2 * w**2


def pairs_alike(g, w):
    """Right only where the square of the window is the grid."""
    return g**4, g**2 * w**2, g**2 * w**2


def pairs_of_one_group(g, w):
    return g**4, w**4, (g // w) ** 4


def sides_for_areas(g, w):
    return g**4, g**2 * w, g**2 * (g // w)


def without_itself(g, w):
    """A token attends to itself, too."""
    return g**4 - g**2, g**2 * (w**2 - 1), g**2 * ((g // w) ** 2 - 1)


# --- Planted bugs: what a token has seen ---


def same(*keys):
    """(N, N) bool: pairs of tokens that agree in all keys (N,)."""
    return torch.stack([key[:, None] == key[None] for key in keys]).all(0)


def near(y, x, window):
    """A window that slides: the neighbours of each token."""
    return ((y[:, None] - y).abs() < window) & ((x[:, None] - x).abs() < window)


def shift_of(window, bug):
    """By how much shifted windows are moved down and right."""
    if bug == "shifted by a whole":
        return window
    if bug == "shifted up and left":
        return -(window // 2)
    if bug == "half is rounded up":
        return (window + 1) // 2
    return window // 2


def layer_masks(grid, window, bug):
    """(N, N) bool for each kind of attention, with switches that break it."""
    y, x = torch.arange(grid * grid) // grid, torch.arange(grid * grid) % grid
    shift = shift_of(window, bug)
    local = same(y // window, x // window)
    if bug == "slides":
        local = near(y, x, window)
    if bug == "rows only":
        local = same(y // window)
    dilated = same(y % window, x % window)
    shifted = same((y - shift) // window, (x - shift) // window)
    if bug == "goes round":
        shifted = same((y - shift) % grid // window, (x - shift) % grid // window)
    if bug == "exchanged":
        local, dilated = dilated, local
    return {"local": local, "dilated": dilated, "shifted": shifted}


def seen_after(layers, grid, window, bug=None):
    """sees_after with switches that break it."""
    masks = layer_masks(grid, window, bug)
    dtype = torch.uint8 if bug == "counts in bytes" else torch.float64
    seen = torch.eye(grid * grid, dtype=dtype)
    if bug == "last layer first":
        layers = layers[::-1]
    for kind in layers:
        mask = masks[kind].to(dtype)
        if bug == "one step each":
            seen = (seen + mask).clamp(max=1)
        else:
            seen = mask @ seen
    return seen > 0


def with_seen_bug(bug):
    def sees_after(layers, grid, window):
        return seen_after(layers, grid, window, bug)

    return sees_after


SEEN_BUGS = (
    "exchanged",
    "rows only",
    "slides",
    "last layer first",
    "one step each",
    "goes round",
    "shifted by a whole",
    "shifted up and left",
    "half is rounded up",
    "counts in bytes",
)


# --- Planted bugs: spreading ---


def spread_by(pattern):
    def spread(vectors, low_grid, grid):
        i = grid // low_grid
        return rearrange(vectors, pattern, y=low_grid, x=low_grid, i=i, j=i)

    return spread


def only_a_view(vectors, low_grid, grid):
    """Pieces one after another."""
    return vectors.reshape(len(vectors), grid * grid, -1)


def the_first_piece_for_all(vectors, low_grid, grid):
    pieces = (grid // low_grid) ** 2
    first = vectors[..., : vectors.shape[-1] // pieces]
    return spread_in_the_package(first.repeat(1, 1, pieces), low_grid, grid)


def spread_without_gradient(vectors, low_grid, grid):
    return spread_in_the_package(vectors.detach(), low_grid, grid)


SPREAD_BUGS = (
    "B (y x) (j i D) -> B (y i x j) D",  # each piece is transposed
    "B (y x) (D i j) -> B (y i x j) D",  # the vector's axis comes first
    "B (y x) (i j D) -> B (i y j x) D",  # dilated
    "B (x y) (i j D) -> B (y i x j) D",  # low-res rows for columns
)


# --- Planted bugs: multi-axis attention ---


def attend_in_groups(qkv, tokens, groups, back, sizes):
    """Move tokens into groups, attend within each, and move them back, by einops patterns."""
    grouped = rearrange(qkv, f"three {tokens} -> three {groups}", **sizes)
    return rearrange(attend(*grouped), f"{groups} -> {back}", **sizes)


def axes(qkv, grid, window, swap=False, blocks=False, stay=False):
    """multi_axis with switches that break it."""
    sizes = dict(y=grid // window, x=grid // window, i=window, j=window)
    tokens = "B H (y i x j) d"
    if blocks:  # cut along the wrong axes
        tokens = "B H (i y j x) d"
    back = tokens
    if stay:  # tokens do not return to their places
        back = "B H (y x i j) d"
    groups = ["(B y x) H (i j) d", "(B i j) H (y x) d"]  # local, dilated
    if swap:
        groups.reverse()
    halves = []
    for half, group in zip(qkv.chunk(2, dim=2), groups, strict=True):
        halves.append(attend_in_groups(half, tokens, group, back, sizes))
    return torch.cat(halves, dim=1)


def halves_exchanged(qkv, grid, window):
    return axes(qkv, grid, window, swap=True)


def wrong_axes(qkv, grid, window):
    return axes(qkv, grid, window, blocks=True)


def left_in_groups(qkv, grid, window):
    return axes(qkv, grid, window, stay=True)


def full_attention(qkv, grid, window):
    return attend(*qkv)


def without_gradient(qkv, grid, window):
    return multi_axis(qkv.detach(), grid, window)


def weights_are_constants(qkv, grid, window):
    """The values learn, and queries and keys do not."""
    q, k, v = qkv
    return multi_axis(torch.stack([q.detach(), k.detach(), v]), grid, window)


def windows_only(qkv, grid, window):
    local = axes(qkv, grid, window)[:, : qkv.shape[2] // 2]
    return torch.cat([local, local], dim=1)


def number_for_size(qkv, grid, window):
    """As many windows as a window should have tokens along a side."""
    return axes(qkv, grid, grid // window)


# --- Planted bugs: mean vectors ---


def mixed(logits, ids, known, codebook, bug):
    """mean_vectors with switches that break it."""
    axis = 1 if bug == "softmax over tokens" else -1
    weights = logits.softmax(dim=axis)
    if bug == "likeliest":
        weights = F.one_hot(logits.argmax(-1), len(codebook)).float()
    if bug == "logits":
        weights = logits
    if bug == "no sum of 1":
        weights = logits.exp()
    if bug == "exp":
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    if bug == "tempered":
        weights = (logits / 0.5).softmax(dim=-1)
    means = weights @ codebook
    if bug == "known are mixed":
        return means
    codes = codebook[ids % len(codebook)]
    if bug == "all are known":
        return codes
    return torch.where(known[..., None], codes, means)


def with_mean_bug(bug):
    def mean_vectors(logits, ids, known, codebook):
        return mixed(logits, ids, known, codebook, bug)

    return mean_vectors


MEAN_BUGS = (
    "softmax over tokens",
    "likeliest",
    "logits",
    "no sum of 1",
    "exp",
    "tempered",
    "known are mixed",
    "all are known",
)


EXERCISES = [
    Exercise(
        "halve",
        data.halve,
        (is_the_mean_of_each_four, refuses_odd_sides),
        hint="there is a pooling that takes means. And what does it do with a row that is left "
        "over?",
        wrong=(
            no_check,
            every_second_pixel,
            the_largest,
            mean_transposed,
            bicubic,
            one_side_only,
        ),
    ),
    Exercise(
        "attention_pairs",
        pairs_in_the_package,
        (counts_every_pair,),
        hint="how many tokens are in a window, and how many windows are there? Each of the N "
        "tokens has a query.",
        wrong=(
            pairs_of_one_token,
            pairs_exchanged,
            pairs_alike,
            pairs_of_one_group,
            sides_for_areas,
            without_itself,
        ),
    ),
    Exercise(
        "sees_after",
        sees_after_in_the_package,
        (sees_through_others,),
        hint="which token attends to which in one layer is a matrix, and dividing a row number by "
        "the window gives a quotient and a remainder. Two layers in a row are a product of two "
        "matrices: which one stands on the left? A count of ways may be large.",
        wrong=tuple(with_seen_bug(bug) for bug in SEEN_BUGS),
    ),
    Exercise(
        "spread",
        spread_in_the_package,
        (gives_each_token_its_piece, passes_the_gradient_on),
        hint="name all six axes (B, y, x, i, j, D), and write down their order before and after. "
        "view() alone cannot exchange two.",
        wrong=(
            only_a_view,
            *(spread_by(pattern) for pattern in SPREAD_BUGS),
            the_first_piece_for_all,
            spread_without_gradient,
        ),
    ),
    Exercise(
        "multi_axis",
        multi_axis,
        (attention.is_multi_axis, trains_queries_keys_and_values),
        hint="a token has four coordinates: the row and column of its window, and its row and "
        "column within the window. Two of them name the group, the other two its members. On the "
        "way back all four must return to where they came from.",
        wrong=(
            full_attention,
            halves_exchanged,
            wrong_axes,
            left_in_groups,
            windows_only,
            number_for_size,
            without_gradient,
            weights_are_constants,
        ),
    ),
    Exercise(
        "mean_vectors",
        mean_vectors_in_the_package,
        (mixes_the_codes, takes_large_logits),
        hint="a weighted sum over all codes is a product of two matrices. And a mask id is no row "
        "of the codebook.",
        wrong=tuple(with_mean_bug(bug) for bug in MEAN_BUGS),
    ),
]
