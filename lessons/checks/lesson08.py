from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.properties import attention

from minimuse import data
from minimuse.superres import SuperRes
from minimuse.transformer import attend, multi_axis

TITLE = "super-resolution"
seeds, small = st.integers(0, 2**31 - 1), st.integers(1, 4)


# Properties that are not in tests/properties


def is_the_mean_of_each_four(halve):
    """Pixel (y, x) is the mean of the four pixels that it covers, in every picture and channel."""

    @given(st.integers(1, 2), small, small, seeds)
    @example(1, 1, 2, 0)
    def check(B, h, w, seed):
        images = torch.randint(
            -8, 9, (B, 3, 2 * h, 2 * w), generator=torch.Generator().manual_seed(seed)
        ).float()
        out = halve(images)
        assert out.shape == (B, 3, h, w), f"{tuple(images.shape)} became {tuple(out.shape)}"
        for b, c, y, x in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
            four = [images[b, c, 2 * y + dy, 2 * x + dx].item() for dy in (0, 1) for dx in (0, 1)]
            got = out[b, c, y, x].item()
            assert abs(got - sum(four) / 4) < 1e-5, (
                f"pixels {four} became {got}, at {(y, x)} of a picture of {2 * h} x {2 * w}"
            )

    check()


def refuses_odd_sides(halve):
    """A side that cannot be halved is a ValueError that says how long it is."""
    for H, W in ((3, 4), (4, 5), (1, 2)):
        try:
            halve(torch.zeros(1, 3, H, W))
        except ValueError as error:
            assert str(H if H % 2 else W) in str(error), (
                f"the error does not name the side: {error}"
            )
        else:
            raise AssertionError(f"a picture of {H} x {W} was halved")


KINDS = ("local", "dilated", "shifted")


def seen_by(n, grid, window):
    """The tokens that token n sees in each kind of attention, by walking over the grid."""
    found, cut = {kind: set() for kind in KINDS}, window // 2
    for m in range(grid * grid):
        pairs = list(zip(divmod(n, grid), divmod(m, grid)))  # rows, columns
        same = {
            "local": all(a // window == b // window for a, b in pairs),
            "dilated": all(a % window == b % window for a, b in pairs),
            "shifted": all((a - cut) // window == (b - cut) // window for a, b in pairs),
        }
        for kind in KINDS:
            if same[kind]:
                found[kind].add(m)
    return found


def counts_every_pair(attention_pairs):
    """As many pairs as one counts on the grid, for windows from a single token to the whole grid."""

    @given(small, small)
    @example(2, 3)
    @example(1, 4)
    @example(4, 1)
    def check(windows, window):
        grid = windows * window
        seen = [seen_by(n, grid, window) for n in range(grid * grid)]
        wanted = (
            grid**4,
            *(sum(len(sees[kind]) for sees in seen) for kind in ("local", "dilated")),
        )
        got = tuple(int(x) for x in attention_pairs(grid, window))
        assert got == wanted, (
            f"grid {grid}, window {window}: {got}, not {wanted} (full, local, dilated)"
        )

    check()


def sees_through_others(sees_after):
    """Layer by layer, a token has seen all that those whom it sees had seen. Compared with sets, token by token."""

    @given(st.lists(st.sampled_from(KINDS), max_size=3), st.integers(1, 3), st.integers(1, 3))
    @example(["local"], 2, 2)
    @example(["dilated"], 2, 3)
    @example(["shifted"], 2, 3)  # half of an odd window
    @example(["local", "shifted"], 3, 2)  # another order is another mask
    @example([], 2, 1)
    @example(["local"] * 3 + ["shifted"] * 3, 1, 4)  # 4,096 ways from each token to some
    def check(layers, windows, window):
        grid = windows * window
        sees = [seen_by(n, grid, window) for n in range(grid * grid)]
        wanted = [{n} for n in range(grid * grid)]
        for kind in layers:
            wanted = [set().union(*(wanted[m] for m in sees[n][kind])) for n in range(grid * grid)]
        mask = sees_after(layers, grid, window)
        assert mask.dtype == torch.bool and mask.shape == (grid**2, grid**2), (
            f"{mask.dtype}, {tuple(mask.shape)}"
        )
        for n in range(grid * grid):
            got = mask[n].nonzero()[:, 0].tolist()
            assert got == sorted(wanted[n]), (
                f"grid {grid}, window {window}, layers {layers}: token {n} has seen {got}, not {sorted(wanted[n])}"
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
        given = torch.arange(B * n * i * i * D).view(B, n, i * i * D).float()
        out = spread(given, low_grid, grid)
        assert out.shape == (B, grid**2, D), f"{tuple(given.shape)} became {tuple(out.shape)}"
        for b in range(B):
            for y in range(grid):
                for x in range(grid):
                    piece = y % i * i + x % i
                    wanted = given[
                        b, y // i * low_grid + x // i, piece * D : (piece + 1) * D
                    ].tolist()
                    got = out[b, y * grid + x].tolist()
                    assert got == wanted, (
                        f"{low_grid} x {low_grid} to {grid} x {grid}, D = {D}: token {(y, x)} has {got}, not {wanted}"
                    )

    check()


# The package's functions


def sees_in_the_package(grid, window):
    """Where `multi_axis` takes its values from: each token's value is a 1 at a place of its own."""
    return [heads > 0 for heads in averages(torch.eye(grid * grid), grid, window)]


def averages(values, grid, window):
    """What a local head and a dilated one make of values (N, d) if all queries are zero."""
    zeros = torch.zeros(1, 2, *values.shape)
    return multi_axis(torch.stack([zeros, zeros, values.expand(1, 2, -1, -1)]), grid, window)[0]


def sees_after_in_the_package(layers, grid, window):
    """Everybody begins with a value of its own, and averages what it sees; shifted windows are those of a grid with a margin."""
    seen, up, down = torch.eye(grid * grid), window - window // 2, window // 2
    for kind in layers:
        if kind == "shifted":
            inside = F.pad(rearrange(seen, "(y x) d -> d y x", y=grid), (up, down, up, down))
            out = averages(rearrange(inside, "d y x -> (y x) d"), grid + window, window)[0]
            out = rearrange(out, "(y x) d -> y x d", y=grid + window)[
                up : -down or None, up : -down or None
            ].flatten(0, 1)
        else:
            out = averages(seen, grid, window)[("local", "dilated").index(kind)]
        seen = (out > 0).float()
    return seen > 0


def pairs_in_the_package(grid, window):
    local, dilated = sees_in_the_package(grid, window)
    return grid**4, int(local.sum()), int(dilated.sum())


def spread_in_the_package(given, low_grid, grid):
    """`SuperRes.context` of a stand-in whose low-res tokens are such that its `spread` gives `given`; what comes out as `below`."""
    B, n, _ = given.shape
    same = lambda x: x
    stand_in = SimpleNamespace(
        low_embedding=lambda ids: torch.zeros(B, n, 1),
        low_positions=lambda: 0.0,
        low_blocks=[],
        low_norm=same,
        text=same,
        spread=lambda low: given,
        low_grid=low_grid,
        grid=grid,
        decoder=SimpleNamespace(keys_values=lambda both, visible, below: below),
    )
    return SuperRes.context(
        stand_in,
        torch.zeros(B, 1, 1),
        torch.ones(B, 1, dtype=torch.bool),
        torch.zeros(B, n, dtype=torch.long),
    )


# Planted bugs


def no_check(images):
    return F.avg_pool2d(images, 2)  # drops the last row without a word


def checked(function):
    def halve(images):
        if images.shape[-1] % 2 or images.shape[-2] % 2:
            raise ValueError(f"image is {images.shape[-2]}x{images.shape[-1]}")
        return function(images)

    return halve


def same(*keys):
    return torch.stack([k[:, None] == k[None] for k in keys]).all(0)


def near(y, x, window):
    """A window that slides: the neighbours of each token."""
    return ((y[:, None] - y).abs() < window) & ((x[:, None] - x).abs() < window)


def seen_after(layers, grid, window, bug=None):
    """sees_after with switches that break it."""
    y, x = torch.arange(grid * grid) // grid, torch.arange(grid * grid) % grid
    s = {
        "shifted by a whole": window,
        "shifted up and left": -(window // 2),
        "half is rounded up": (window + 1) // 2,
    }.get(bug, window // 2)
    masks = {
        "local": near(y, x, window)
        if bug == "slides"
        else same(y // window)
        if bug == "rows only"
        else same(y // window, x // window),
        "dilated": same(y % window, x % window),
        "shifted": same((y - s) // window, (x - s) // window),
    }
    if bug == "goes round":
        masks["shifted"] = same((y - s) % grid // window, (x - s) % grid // window)
    if bug == "exchanged":
        masks["local"], masks["dilated"] = masks["dilated"], masks["local"]
    seen = torch.eye(grid * grid, dtype=torch.uint8 if bug == "counts in bytes" else torch.float64)
    for kind in layers[::-1] if bug == "last layer first" else layers:
        now = masks[kind].to(seen.dtype)
        seen = (seen + now).clamp(max=1) if bug == "one step each" else now @ seen
    return seen > 0


def spread_planted(pattern):
    def spread(given, low_grid, grid):
        i = grid // low_grid
        return rearrange(given, pattern, y=low_grid, x=low_grid, i=i, j=i)

    return spread


def the_first_piece_for_all(given, low_grid, grid):
    pieces = (grid // low_grid) ** 2
    return spread_in_the_package(
        given[..., : given.shape[-1] // pieces].repeat(1, 1, pieces), low_grid, grid
    )


def axes(qkv, grid, window, swap=False, blocks=False, stay=False):
    """multi_axis with switches that break it."""
    first, second = qkv.chunk(2, dim=2)
    sizes = dict(y=grid // window, x=grid // window, i=window, j=window)
    tokens = "three B H (i y j x) d" if blocks else "three B H (y i x j) d"
    back = "B H (y x i j) d" if stay else tokens[6:]
    grouped = lambda x, groups: attend(*rearrange(x, f"{tokens} -> three {groups} d", **sizes))
    attended = lambda x, groups: rearrange(grouped(x, groups), f"{groups} d -> {back}", **sizes)
    local, dilated = (
        (lambda x: attended(x, "(B y x) H (i j)")),
        (lambda x: attended(x, "(B i j) H (y x)")),
    )
    return torch.cat(
        [dilated(first), local(second)] if swap else [local(first), dilated(second)], dim=1
    )


EXERCISES = [
    Exercise(
        "halve",
        data.halve,
        (is_the_mean_of_each_four, refuses_odd_sides),
        hint="there is a pooling that takes means. And what does it do with a row that is left over?",
        wrong=(
            no_check,
            checked(lambda x: x[..., ::2, ::2]),  # every second pixel
            checked(lambda x: F.max_pool2d(x, 2)),
            checked(lambda x: F.avg_pool2d(x, 2).transpose(-1, -2)),
            checked(lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic")),
            checked(lambda x: F.avg_pool2d(x, (2, 1))),  # one side only
        ),
    ),
    Exercise(
        "attention_pairs",
        pairs_in_the_package,
        (counts_every_pair,),
        hint="how many tokens are in a window, and how many windows are there? Every one of the N tokens asks.",
        wrong=(
            lambda g, w: (g**2, w**2, (g // w) ** 2),  # of one token
            lambda g, w: (g**4, g**2 * (g // w) ** 2, g**2 * w**2),  # exchanged
            lambda g, w: (g**4, g**2 * w**2, g**2 * w**2),  # right where window^2 = grid only
            lambda g, w: (g**4, w**4, (g // w) ** 4),  # of one group
            lambda g, w: (g**4, g**2 * w, g**2 * (g // w)),  # sides for areas
            lambda g, w: (
                g**4 - g**2,
                g**2 * (w**2 - 1),
                g**2 * ((g // w) ** 2 - 1),
            ),  # a token sees itself too
        ),
    ),
    Exercise(
        "sees_after",
        sees_after_in_the_package,
        (sees_through_others,),
        hint="who sees whom in one layer is a matrix, and dividing a row by the window says two things. What is a step after a step, and which of two matrices "
        "stands on the left? A count of ways may be large.",
        wrong=tuple(
            lambda layers, grid, window, bug=bug: seen_after(layers, grid, window, bug)
            for bug in (
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
        ),
    ),
    Exercise(
        "spread",
        spread_in_the_package,
        (gives_each_token_its_piece,),
        hint="name all six axes (B, y, x, i, j, D), and write down in which order they come before and after. view() alone cannot exchange two.",
        wrong=(
            lambda x, low, g: x.reshape(len(x), g * g, -1),  # a view: pieces one after another
            spread_planted("B (y x) (j i D) -> B (y i x j) D"),  # each piece turned over
            spread_planted("B (y x) (D i j) -> B (y i x j) D"),
            spread_planted("B (y x) (i j D) -> B (i y j x) D"),  # dilated
            spread_planted("B (x y) (i j D) -> B (y i x j) D"),  # low-res rows for columns
            the_first_piece_for_all,
        ),
    ),
    Exercise(
        "multi_axis",
        multi_axis,
        (attention.is_multi_axis,),
        hint="a token has four coordinates: the row and column of its window, and those of its place in it. Two of them name the "
        "group, the other two its members; and on the way back all four must return to where they came from.",
        wrong=(
            lambda qkv, grid, window: attend(*qkv),  # over everything
            lambda qkv, grid, window: axes(qkv, grid, window, swap=True),
            lambda qkv, grid, window: axes(
                qkv, grid, window, blocks=True
            ),  # cut along the wrong axes
            lambda qkv, grid, window: axes(
                qkv, grid, window, stay=True
            ),  # tokens do not return to their places
            lambda qkv, grid, window: torch.cat(
                [axes(qkv, grid, window)[:, : qkv.shape[2] // 2]] * 2, dim=1
            ),  # windows only
            lambda qkv, grid, window: axes(
                qkv, grid, grid // window
            ),  # windows as many as they should be large
        ),
    ),
]
