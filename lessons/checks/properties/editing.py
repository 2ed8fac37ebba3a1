"""Properties of editing: holes, windows, blending, and iterations without a mask.

They judge `minimuse/plumbing/holes.py` and `minimuse/edit.py` (Muse, section 3.3).
"""

import math

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimuse.checks.properties.masks import sets_come_as_often

seeds = st.integers(0, 2**31 - 1)
small = st.integers(1, 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def generators(rows, seed=0):
    """One for each row."""
    return [generator(1000 * seed + row) for row in range(rows)]


# --- Tokens of a hole ---
def pads_by_the_nearest_pixel(pad_to_tokens):
    """Sides become whole tokens, at least `least`, and no more; (y, x) is the nearest pixel.

    pad_to_tokens(pixels (B, 3, H, W), unit, least), `least` whole tokens too -> (B, 3, H', W').
    """

    units = st.sampled_from([1, 2, 3, 4, 6, 8, 16])

    @given(st.integers(1, 9), st.integers(1, 9), units, small, st.integers(1, 2), seeds)
    @example(4, 8, 4, 1, 1, 0)  # nothing to add
    @example(5, 2, 4, 1, 1, 0)
    @example(1, 9, 2, 3, 1, 0)
    @example(1, 1, 16, 4, 2, 0)
    def check(H, W, unit, tokens, B, seed):
        pixels = torch.rand(B, 3, H, W, generator=generator(seed))
        least = tokens * unit
        padded = pad_to_tokens(pixels, unit, least)
        height, width = (max(least, math.ceil(side / unit) * unit) for side in (H, W))
        assert tuple(padded.shape) == (B, 3, height, width), (
            f"{H} x {W}, tokens of {unit}, at least {least}: "
            f"{tuple(padded.shape)}, not {(B, 3, height, width)}"
        )
        nearest_row = torch.arange(height).clamp(max=H - 1)
        nearest_column = torch.arange(width).clamp(max=W - 1)
        wanted = pixels[:, :, nearest_row][..., nearest_column]
        off = (padded != wanted).any(0).any(0).nonzero().tolist()
        assert not off, (
            f"{H} x {W} became {height} x {width}: at {tuple(off[0])} is not the nearest pixel"
        )

    check()


@st.composite
def holes(draw):
    """A hole (H, W) of few pixels, so that some tokens stay, and the side of a token."""
    h, w = draw(small), draw(small)
    factor = draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    hole = np.zeros((h * factor, w * factor), bool)
    for _ in range(draw(st.integers(0, 3))):
        y = draw(st.integers(0, h * factor - 1))
        x = draw(st.integers(0, w * factor - 1))
        hole[y, x] = True
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
    @example((one_pixel(0, 2, 2, 4), 2))  # rows and columns may not be swapped
    # One pixel of 256 is a small part of a token, and hides it all the same.
    @example((one_pixel(7, 8, 8, 16), 8))
    @example((one_pixel(31, 0, 32, 16), 16))
    @example((one_pixel(0, 0, 32, 32), 32))
    @example((np.ones((2, 6), bool), 2))
    def check(case):
        hole, factor = case
        hidden = hidden_tokens(torch.from_numpy(hole), factor)
        h, w = (side // factor for side in hole.shape)
        assert hidden.dtype == torch.bool and hidden.shape == (h, w), (
            f"{tuple(hidden.shape)} {hidden.dtype}, not {(h, w)} bool"
        )
        pixels = np.argwhere(hole).tolist()
        wanted = sorted({(y // factor, x // factor) for y, x in pixels})
        positions = [tuple(position) for position in hidden.nonzero().tolist()]
        assert positions == wanted, (
            f"hole {pixels}, tokens of {factor} pixels: {positions} are hidden, not {wanted}"
        )

    check()


# --- Windows ---
def starts_half_a_window_apart(window_starts):
    """Starts rise from 0 to length - grid in steps of half a window; the last may be shorter.

    window_starts(length, grid).
    """

    @given(st.integers(1, 9), st.integers(0, 20))
    @example(4, 0)
    @example(4, 1)
    @example(4, 8)
    @example(1, 3)
    @example(5, 6)
    @example(16, 17)
    @example(64, 64)
    def check(grid, more):
        length = grid + more
        starts = [int(start) for start in window_starts(length, grid)]
        case = f"{length} tokens, windows of {grid}: {starts}"
        covered = set()
        for start in starts:
            covered |= set(range(start, start + grid))
        tokens = set(range(length))
        assert covered == tokens, (
            f"{case}: {sorted(tokens - covered)} in no window, {sorted(covered - tokens)} outside"
        )
        half = max(1, grid // 2)
        steps = [b - a for a, b in zip(starts, starts[1:], strict=False)]
        right = all(step == half for step in steps[:-1])
        right = right and all(0 < step <= half for step in steps[-1:])
        assert right, f"{case}: steps of {steps}, not {half}"

    check()


def places(hidden, grid):
    """Every window of hidden (h, w): how many tokens are hidden in it, and where it starts."""
    rows, columns = (
        sorted({*range(0, side - grid, max(1, grid // 2)), side - grid}) for side in hidden.shape
    )
    counted = []
    for y in rows:
        for x in columns:
            counted.append((int(hidden[y : y + grid, x : x + grid].sum()), y, x))
    return counted


@st.composite
def fields(draw):
    """Hidden tokens (h, w), many or few, and the side of a window."""
    grid = draw(small)
    shape = grid + draw(st.integers(0, 4)), grid + draw(st.integers(0, 4))
    many = draw(st.booleans())
    elements = [True, False] if many else [False] * 9 + [True]
    return draw(hnp.arrays(bool, shape, elements=st.sampled_from(elements))), grid


def goes_where_most_is_seen(next_window):
    """The next window has the fewest hidden tokens, but not none; of equals it is the first.

    next_window(hidden (h, w), grid) -> (row, column), or None if nothing is hidden.
    """
    middle = np.ones((6, 6), bool)
    middle[2:4, 2:4] = False
    between = np.zeros((4, 7), bool)
    between[0, [0, 4, 5]] = True
    between[1, 0] = True  # a window at column 1 would see most

    @given(fields())
    @example((middle, 2))
    @example((np.zeros((2, 3), bool), 2))
    @example((np.ones((3, 3), bool), 3))
    @example((np.ones((2, 5), bool), 2))
    @example((np.array([[True, True, False, False], [True, True, False, False]]), 2))
    @example((between, 4))
    def check(case):
        hidden, grid = case
        window = next_window(torch.from_numpy(hidden), grid)
        if window is not None:
            window = tuple(int(start) for start in window)
        candidates = [place for place in places(hidden, grid) if place[0] > 0]
        wanted = min(candidates)[1:] if candidates else None
        assert window == wanted, (
            f"hidden {hidden.astype(int).tolist()}, windows of {grid}: {window}, not {wanted}"
        )

    check()


# --- Blending ---
@st.composite
def seams(draw):
    """A hole (H, W) of rectangles, the width of the seam, and a seed."""
    H = draw(st.integers(1, 9))
    W = draw(st.integers(1, 9))
    width = draw(st.integers(1, 3))
    hole = np.full((H, W), draw(st.booleans()))
    for _ in range(draw(st.integers(0, 2))):
        y = draw(st.integers(0, H - 1))
        x = draw(st.integers(0, W - 1))
        hole[y : y + draw(st.integers(1, 5)), x : x + draw(st.integers(1, 5))] ^= True
    return hole, width, draw(seeds)


def blends_inside_only(feather):
    """Outside the hole pixels stay, bit for bit; far inside they are drawn; between, they blend.

    All channels and images have the same share of what is drawn.
    feather(drawn (B, 3, H, W), pixels (3, H, W), hole (H, W), width).
    """

    @given(seams())
    @example((np.ones((2, 3), bool), 3, 0))  # the border of the image is no edge
    @example((np.zeros((2, 3), bool), 3, 0))
    @example((np.arange(8)[None].repeat(3, 0) > 2, 3, 0))
    def check(case):
        hole, width, seed = case
        H, W = hole.shape
        pixels = torch.rand(3, H, W, generator=generator(seed))
        drawn = 2 + torch.rand(2, 3, H, W, generator=generator(seed + 1))
        blended = feather(drawn, pixels, torch.from_numpy(hole), width)
        assert blended.shape == drawn.shape, f"{tuple(drawn.shape)} became {tuple(blended.shape)}"
        text = f"hole {hole.astype(int).tolist()}, width {width}"
        outside = torch.from_numpy(~hole)
        assert torch.equal(blended[..., outside], pixels.expand_as(drawn)[..., outside]), (
            f"{text}: pixels outside are not those of the image, bit for bit"
        )
        share = ((blended - pixels) / (drawn - pixels)).flatten(0, 1)
        assert -1e-5 <= share.min() and share.max() <= 1 + 1e-5, (
            f"{text}: shares from {share.min():.3f} to {share.max():.3f}"
        )
        assert (share - share[0]).abs().max() < 1e-5, (
            f"{text}: channels or images are blended with other shares"
        )
        around = np.pad(hole, width - 1, mode="edge")
        for y, x in np.argwhere(hole).tolist():
            if around[y : y + 2 * width - 1, x : x + 2 * width - 1].all():
                assert abs(share[0, y, x] - 1) < 1e-5, (
                    f"{text}: ({y}, {x}) is far inside, and its share is {share[0, y, x]:.3f}"
                )

    check()


def rises_from_the_edge(feather):
    """At a straight edge, the share of what is drawn rises over `width` pixels, up to 1."""
    for width in (1, 2, 3, 5):
        for turn in range(4):
            hole = torch.rot90(torch.arange(14)[None].expand(14, 14) > 3, turn)
            blended = feather(torch.ones(1, 3, 14, 14), torch.zeros(3, 14, 14), hole, width)
            share = torch.rot90(blended[0, 0], -turn)[7, 4:]
            rising = [round(float(x), 3) for x in share[:width]]
            text = f"width {width}: from the edge on the shares are {rising}"
            assert all(a < b for a, b in zip([0.0, *rising], rising, strict=False)), text
            assert abs(rising[-1] - 1) < 1e-3, text
            assert width == 1 or rising[0] <= 0.5, text


# --- Without a mask ---
@st.composite
def iterations(draw):
    B = draw(st.integers(1, 3))
    N = draw(st.integers(1, 20))
    K = draw(st.integers(2, 5))
    share = draw(st.one_of(st.just(1.0), st.just(0.08), st.floats(0.01, 1)))
    return B, N, K, share, draw(seeds)


def resamples_the_share(resample):
    """ceil(share N) tokens of each row are hidden from `draw` and get its guesses; others stay.

    The ids given do not change. resample(ids (B, N), mask_id, share, generators, draw) -> (B, N);
    draw(ids) -> (B, N) a guess at every position.
    """

    @given(iterations())
    @example((1, 1, 2, 0.08, 0))
    @example((2, 16, 3, 0.08, 0))  # two, not one
    @example((1, 4, 2, 0.5, 0))  # two exactly
    @example((2, 3, 2, 1.0, 0))
    @example((2, 256, 512, 0.08, 0))
    def check(case):
        B, N, K, share, seed = case
        ids = torch.randint(K, (B, N), generator=generator(seed))
        before = ids.clone()
        seen = []

        def draw(given):
            """Guess a code that no token had, so that guesses can be told apart."""
            seen.append(given.clone())
            return torch.full_like(given, K)

        after = resample(ids, K + 1, share, generators(B, seed), draw)
        assert torch.equal(ids, before), "the ids given were changed in place"
        assert after.shape == (B, N), f"{(B, N)} became {tuple(after.shape)}"
        shown = torch.cat(seen)
        hidden = shown == K + 1
        # A product that exceeds a whole number by rounding may be rounded either way.
        count = max(1, math.ceil(share * N - 1e-9))
        exact = max(1, math.ceil(share * N))
        assert hidden.sum(-1).tolist() in ([count] * B, [exact] * B), (
            f"share {share} of {N} tokens: {hidden.sum(-1).tolist()} are hidden, "
            f"not {count} in each row"
        )
        assert torch.equal(shown, before.masked_fill(hidden, K + 1)), (
            f"{before.tolist()} was shown as {shown.tolist()}"
        )
        assert torch.equal(after, before.masked_fill(hidden, K)), (
            f"{before.tolist()} became {after.tolist()}; hidden were {hidden.int().tolist()}"
        )

    check()


def where_it_hides(resample, tokens, share, draws):
    """(B, tokens) bool: what a call of resample changes, with a generator for each of B rows."""
    zeros = torch.zeros(len(draws), tokens, dtype=torch.long)
    return resample(zeros, 2, share, draws, torch.ones_like) == 1


def every_position_gets_its_turn(resample):
    """Positions are hidden equally often, within 5 sigma; rows and calls hide different ones.

    The row's own generator alone decides which.
    """
    rows, tokens, share = 600, 8, 0.25
    frequencies = where_it_hides(resample, tokens, share, generators(rows)).double().mean(0)
    far = (frequencies - share).abs().max() / math.sqrt(share * (1 - share) / rows)
    assert far < 5, (
        f"positions are hidden with frequencies {[round(x, 2) for x in frequencies.tolist()]}"
    )
    # A run of neighbours has each position as often, too, and is no random choice.
    sets_come_as_often(where_it_hides(resample, 6, 0.5, generators(3000, seed=2)))
    draws = generators(3, seed=1)
    first, second = (where_it_hides(resample, 60, 0.5, draws) for _ in range(2))
    assert not torch.equal(first[0], first[1]), "all rows of a batch have the same tokens hidden"
    assert not torch.equal(first, second), "two iterations with one generator hid the same tokens"
    repeated = where_it_hides(resample, 60, 0.5, generators(3, seed=1))
    assert torch.equal(first, repeated), "the same generators hid other tokens"
    alone = where_it_hides(resample, 60, 0.5, generators(3, seed=1)[2:])
    assert torch.equal(first[2:], alone), "a row is another one without the rows before it"


@st.composite
def changes(draw):
    """Low-res ids (h, w) before and (B, h, w) after, and the high-res tokens along each."""
    B, h, w, ratio = (draw(st.integers(1, 4)) for _ in range(4))
    codes = st.integers(0, 2)
    before = draw(hnp.arrays(np.int64, (h, w), elements=codes))
    after = draw(hnp.arrays(np.int64, (B, h, w), elements=codes))
    return before, after, ratio


def redraws_what_lies_under_a_change(changed_below):
    """High-res token (y, x) is drawn anew if low-res token (y // ratio, x // ratio) has changed.

    changed_below(before (h, w), after (B, h, w), ratio) -> (B, h * ratio, w * ratio) bool.
    """

    @given(changes())
    @example((np.array([[0, 1, 2]]), np.array([[[0, 2, 2]], [[1, 1, 2]]]), 2))
    @example((np.array([[2], [0]]), np.array([[[1], [0]]]), 3))  # smaller than before
    @example((np.zeros((2, 2), np.int64), np.zeros((1, 2, 2), np.int64), 2))
    def check(case):
        before, after, ratio = case
        changed = changed_below(torch.from_numpy(before), torch.from_numpy(after), ratio)
        shape = (len(after), before.shape[0] * ratio, before.shape[1] * ratio)
        assert changed.dtype == torch.bool and changed.shape == shape, (
            f"{tuple(changed.shape)} {changed.dtype}, not {shape} bool"
        )
        for b, y, x in np.ndindex(shape):
            wanted = before[y // ratio, x // ratio] != after[b, y // ratio, x // ratio]
            assert bool(changed[b, y, x]) == wanted, (
                f"{before.tolist()} became {after[b].tolist()}, ratio {ratio}: "
                f"token ({y}, {x}) is {bool(changed[b, y, x])}"
            )

    check()
