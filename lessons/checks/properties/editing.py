"""Properties of editing: holes, windows, seams, and iterations without a mask (`minimuse/edit.py`; Muse, section 3.3)."""

import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

seeds, small = st.integers(0, 2**31 - 1), st.integers(1, 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Tokens of a hole


def pads_by_the_nearest_pixel(pad_to_tokens):
    """Whole tokens, at least `least`, no more than that; at (y, x) is the picture's pixel nearest to it.

    pad_to_tokens(pixels (B, 3, H, W), unit, least), `least` whole tokens too -> (B, 3, H', W').
    """

    @given(
        st.integers(1, 9), st.integers(1, 9), st.integers(1, 3).map(lambda n: 2 * n), small, seeds
    )
    @example(4, 8, 4, 1, 0)  # nothing to add
    @example(5, 2, 4, 1, 0)
    @example(1, 9, 2, 3, 0)
    def check(H, W, unit, tokens, seed):
        pixels, least = torch.rand(1, 3, H, W, generator=generator(seed)), tokens * unit
        out = pad_to_tokens(pixels, unit, least)
        sides = [max(least, math.ceil(length / unit) * unit) for length in (H, W)]
        assert list(out.shape) == [1, 3, *sides], (
            f"{H} x {W}, tokens of {unit}, at least {least}: {tuple(out.shape)}, not {(1, 3, *sides)}"
        )
        rows, columns = (
            torch.arange(side).clamp(max=length - 1)
            for side, length in zip(sides, (H, W), strict=True)
        )
        off = (out != pixels[:, :, rows][..., columns])[0].any(0).nonzero().tolist()
        assert not off, (
            f"{H} x {W} became {sides[0]} x {sides[1]}: at {tuple(off[0])} is not the nearest pixel"
        )

    check()


@st.composite
def holes(draw):
    h, w, factor = draw(small), draw(small), draw(small)
    hole = np.zeros((h * factor, w * factor), bool)
    for _ in range(draw(st.integers(0, 3))):  # few pixels, so that some tokens stay
        hole[draw(st.integers(0, h * factor - 1)), draw(st.integers(0, w * factor - 1))] = True
    return hole, factor


def one_pixel(y, x, H, W):
    hole = np.zeros((H, W), bool)
    hole[y, x] = True
    return hole


def one_pixel_hides_its_token(hidden_tokens):
    """A token is hidden if any of its pixels is in the hole, and no other is.

    hidden_tokens(hole (H, W), factor) -> (h, w) bool.
    """

    @given(holes())
    @example((one_pixel(0, 0, 4, 4), 2))
    @example((one_pixel(1, 3, 2, 4), 2))  # the last pixel of its token
    @example((one_pixel(0, 2, 2, 4), 2))  # the first of one that is not square with its place
    @example((np.ones((2, 6), bool), 2))
    def check(case):
        hole, factor = case
        got = hidden_tokens(torch.from_numpy(hole), factor)
        h, w = (side // factor for side in hole.shape)
        assert got.dtype == torch.bool and got.shape == (h, w), (
            f"{tuple(got.shape)} {got.dtype}, not {(h, w)} bool"
        )
        wanted = sorted({(y // factor, x // factor) for y, x in np.argwhere(hole).tolist()})
        mine = [tuple(place) for place in got.nonzero().tolist()]
        assert mine == wanted, (
            f"hole {np.argwhere(hole).tolist()}, tokens of {factor} pixels: {mine} are hidden, not {wanted}"
        )

    check()


# Windows


def starts_half_a_window_apart(window_starts):
    """From 0 to length - grid, rising, half a window apart but for the last step, which may be shorter. window_starts(length, grid)."""

    @given(st.integers(1, 9), st.integers(0, 20))
    @example(4, 0)
    @example(4, 1)
    @example(4, 8)
    @example(1, 3)
    @example(5, 6)
    def check(grid, more):
        length, starts = grid + more, [int(s) for s in window_starts(grid + more, grid)]
        said = f"{length} tokens, windows of {grid}: {starts}"
        seen = {n for s in starts for n in range(s, s + grid)}
        assert seen == set(range(length)), (
            f"{said}: {sorted(set(range(length)) - seen)} in no window, {sorted(seen - set(range(length)))} outside"
        )
        half, steps = max(1, grid // 2), [b - a for a, b in zip(starts, starts[1:], strict=False)]
        assert all(step == half for step in steps[:-1]) and all(
            0 < step <= half for step in steps[-1:]
        ), f"{said}: steps of {steps}, not {half}"

    check()


def places(hidden, grid):
    """Every window that may be next: how many tokens are hidden in it, and where it starts."""
    rows, columns = (
        sorted({*range(0, side - grid, max(1, grid // 2)), side - grid}) for side in hidden.shape
    )
    return [(int(hidden[y : y + grid, x : x + grid].sum()), y, x) for y in rows for x in columns]


@st.composite
def fields(draw):
    grid = draw(small)
    shape = grid + draw(st.integers(0, 4)), grid + draw(st.integers(0, 4))
    return draw(
        hnp.arrays(
            bool,
            shape,
            elements=st.sampled_from(
                [True, False] if draw(st.booleans()) else [False] * 9 + [True]
            ),
        )
    ), grid


def goes_where_most_is_seen(next_window):
    """The fewest hidden tokens, but not none; the first of equals; None when all is there.

    next_window(hidden (h, w), grid).
    """
    middle = np.ones((6, 6), bool)
    middle[2:4, 2:4] = False
    between = np.zeros((4, 7), bool)
    between[0, [0, 4, 5]] = between[1, 0] = True  # a window at column 1 would see most

    @given(fields())
    @example((middle, 2))
    @example((np.zeros((2, 3), bool), 2))
    @example((np.ones((3, 3), bool), 3))
    @example((np.ones((2, 5), bool), 2))
    @example((np.array([[True, True, False, False], [True, True, False, False]]), 2))
    @example((between, 4))
    def check(case):
        hidden, grid = case
        got = next_window(torch.from_numpy(hidden), grid)
        wanted = min((place for place in places(hidden, grid) if place[0]), default=(0, None))[1:]
        mine = (None,) if got is None else tuple(int(x) for x in got)
        assert mine == wanted, (
            f"hidden {hidden.astype(int).tolist()}, windows of {grid}: {got}, not {wanted if len(wanted) > 1 else None}"
        )

    check()


# Seams


@st.composite
def seams(draw):
    H, W, width = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    hole = np.ones((H, W), bool) if draw(st.booleans()) else np.zeros((H, W), bool)
    for _ in range(draw(st.integers(0, 2))):
        y, x = draw(st.integers(0, H - 1)), draw(st.integers(0, W - 1))
        hole[y : y + draw(st.integers(1, 5)), x : x + draw(st.integers(1, 5))] ^= True
    return hole, width, draw(seeds)


def blends_inside_only(feather):
    """Outside bit for bit, deep inside what was drawn, between them a blend of both with one share for all channels and pictures.

    feather(drawn (B, 3, H, W), pixels (3, H, W), hole (H, W), width).
    """

    @given(seams())
    @example((np.ones((2, 3), bool), 3, 0))  # the border of the picture is no edge
    @example((np.zeros((2, 3), bool), 3, 0))
    @example((np.arange(8)[None].repeat(3, 0) > 2, 3, 0))
    def check(case):
        hole, width, seed = case
        H, W = hole.shape
        pixels, drawn = (
            torch.rand(3, H, W, generator=generator(seed)),
            2 + torch.rand(2, 3, H, W, generator=generator(seed + 1)),
        )
        out, outside = (
            feather(drawn, pixels, torch.from_numpy(hole), width),
            torch.from_numpy(~hole),
        )
        assert out.shape == drawn.shape, f"{tuple(drawn.shape)} became {tuple(out.shape)}"
        said = f"hole {hole.astype(int).tolist()}, width {width}"
        assert torch.equal(out[..., outside], pixels.expand_as(drawn)[..., outside]), (
            f"{said}: pixels outside are not those of the picture, bit for bit"
        )
        share = ((out - pixels) / (drawn - pixels)).flatten(0, 1)
        assert -1e-5 <= share.min() and share.max() <= 1 + 1e-5, (
            f"{said}: shares from {share.min():.3f} to {share.max():.3f}"
        )
        assert (share - share[0]).abs().max() < 1e-5, (
            f"{said}: channels or pictures are blended with other shares"
        )
        around = np.pad(hole, width - 1, mode="edge")
        for y, x in np.argwhere(hole).tolist():
            if around[y : y + 2 * width - 1, x : x + 2 * width - 1].all():
                assert abs(share[0, y, x] - 1) < 1e-5, (
                    f"{said}: ({y}, {x}) is far inside, and its share is {share[0, y, x]:.3f}"
                )

    check()


def rises_from_the_edge(feather):
    """At a straight edge, each of the first `width` pixels has more of what was drawn than the one before; the last has all of it."""
    for width in (1, 2, 3, 5):
        for turn in range(4):
            hole = torch.rot90(torch.arange(14)[None].expand(14, 14) > 3, turn)
            out = feather(torch.ones(1, 3, 14, 14), torch.zeros(3, 14, 14), hole, width)
            share = torch.rot90(out[0, 0], -turn)[7, 4:]
            rising = [round(float(x), 3) for x in share[:width]]
            assert all(a < b for a, b in zip([0.0, *rising], rising, strict=False)), (
                f"width {width}: from the edge on the shares are {rising}"
            )
            assert abs(rising[-1] - 1) < 1e-3 and (width == 1 or rising[0] <= 0.5), (
                f"width {width}: from the edge on the shares are {rising}"
            )


# Without a mask


@st.composite
def iterations(draw):
    B, N, K = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(2, 5))
    return B, N, K, draw(st.one_of(st.just(1.0), st.just(0.08), st.floats(0.01, 1))), draw(seeds)


def resamples_the_share(resample):
    """ceil(share N) tokens of each row are hidden from `draw` and get its guesses; all others stay, and so do the ids given.

    resample(ids (B, N), mask_id, share, generator, draw) -> (B, N); draw(ids) -> (B, N) a guess at
    every position.
    """

    @given(iterations())
    @example((1, 1, 2, 0.08, 0))
    @example((2, 16, 3, 0.08, 0))  # two, not one
    @example((1, 4, 2, 0.5, 0))  # two exactly
    @example((2, 3, 2, 1.0, 0))
    def check(case):
        B, N, K, share, seed = case
        ids, seen = torch.randint(K, (B, N), generator=generator(seed)), []
        before = ids.clone()

        def draw(given):
            seen.append(given.clone())
            return torch.full_like(
                given, K
            )  # a code that no token had, so that one sees where it went

        out = resample(ids, K + 1, share, generator(seed), draw)
        assert torch.equal(ids, before), "the ids given were changed in place"
        assert out.shape == (B, N), f"{(B, N)} became {tuple(out.shape)}"
        given, count = torch.cat(seen), max(1, math.ceil(share * N))
        hidden = given == K + 1
        assert hidden.sum(-1).tolist() == [count] * B, (
            f"share {share} of {N} tokens: {hidden.sum(-1).tolist()} are hidden, not {count} in each row"
        )
        assert torch.equal(given, before.masked_fill(hidden, K + 1)), (
            f"{before.tolist()} was shown as {given.tolist()}"
        )
        assert torch.equal(out, before.masked_fill(hidden, K)), (
            f"{before.tolist()} became {out.tolist()}; hidden were {hidden.int().tolist()}"
        )

    check()


def where_it_hides(resample, rows, tokens, share, draw):
    """(rows, tokens) bool: what a call of resample changes."""
    return (
        resample(torch.zeros(rows, tokens, dtype=torch.long), 2, share, draw, torch.ones_like) == 1
    )


def every_position_gets_its_turn(resample):
    """Positions are hidden equally often, within 5 sigma; rows and calls hide others; and the generator alone decides which."""
    rows, tokens, share = 600, 8, 0.25
    hits = where_it_hides(resample, rows, tokens, share, generator()).double().mean(0)
    far = (hits - share).abs().max() / math.sqrt(share * (1 - share) / rows)
    assert far < 5, f"positions are hidden with shares {[round(x, 2) for x in hits.tolist()]}"
    draw = generator(1)
    first, second = (where_it_hides(resample, 3, 60, 0.5, draw) for _ in range(2))
    assert not torch.equal(first[0], first[1]), "all rows of a batch have the same tokens hidden"
    assert not torch.equal(first, second), "two iterations with one generator hid the same tokens"
    assert torch.equal(first, where_it_hides(resample, 3, 60, 0.5, generator(1))), (
        "the same generator hid other tokens"
    )


@st.composite
def changes(draw):
    B, h, w, ratio = (draw(st.integers(1, 3)) for _ in range(4))
    codes = st.integers(0, 2)
    return (
        draw(hnp.arrays(np.int64, (h, w), elements=codes)),
        draw(hnp.arrays(np.int64, (B, h, w), elements=codes)),
        ratio,
    )


def redraws_what_lies_under_a_change(changed_below):
    """High-res token (y, x) is drawn anew if low-res token (y // ratio, x // ratio) is another one than before.

    changed_below(before (h, w), after (B, h, w), ratio) -> (B, h * ratio, w * ratio) bool.
    """

    @given(changes())
    @example((np.array([[0, 1, 2]]), np.array([[[0, 2, 2]], [[1, 1, 2]]]), 2))
    @example((np.array([[2], [0]]), np.array([[[1], [0]]]), 3))  # smaller than before
    @example((np.zeros((2, 2), np.int64), np.zeros((1, 2, 2), np.int64), 2))
    def check(case):
        before, after, ratio = case
        got = changed_below(torch.from_numpy(before), torch.from_numpy(after), ratio)
        shape = (len(after), before.shape[0] * ratio, before.shape[1] * ratio)
        assert got.dtype == torch.bool and got.shape == shape, (
            f"{tuple(got.shape)} {got.dtype}, not {shape} bool"
        )
        for b, y, x in np.ndindex(shape):
            wanted = before[y // ratio, x // ratio] != after[b, y // ratio, x // ratio]
            assert bool(got[b, y, x]) == wanted, (
                f"{before.tolist()} became {after[b].tolist()}, ratio {ratio}: token ({y}, {x}) is {bool(got[b, y, x])}"
            )

    check()
