import math

import numpy as np
import torch
from einops import rearrange
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise

from minimuse.data import to_pil
from minimuse.vq import TokenizerConfig

TITLE = "first steps"


# The package does these in passing: here as functions


def token_count(side, factor):
    halvings = int(math.log2(factor))
    return (
        TokenizerConfig(side, multipliers=(1,) * (halvings + 1), blocks=(0,) * (halvings + 1)).grid
        ** 2
    )


def bits_per_picture(tokens, codes):
    return tokens * (codes - 1).bit_length()


def unflatten(ids, h):
    return rearrange(ids, "B (h w) -> B h w", h=h)


def to_bytes(images):
    return torch.from_numpy(np.stack([np.asarray(p) for p in to_pil(images)])).permute(0, 3, 1, 2)


# What must hold

factors = st.integers(0, 5).map(lambda n: 2**n)


def counts_the_patches(token_count):
    """Against patches laid one by one."""

    @given(st.integers(1, 12), factors)
    @example(1, 1)
    @example(16, 16)  # Muse, low-res
    def check(grid, factor):
        side = grid * factor
        laid = sum(1 for y in range(0, side, factor) for x in range(0, side, factor))
        got = token_count(side, factor)
        assert got == laid and isinstance(got, int), (
            f"{side} pixels, factor {factor}: {got!r}, not {laid}"
        )

    check()


def refuses_what_does_not_fit(token_count):
    """A ValueError with both numbers: a picture that is cut off in silence is found late."""

    @given(st.integers(1, 100), factors)
    @example(65, 4)
    @example(66, 4)  # 66 x 66 is a multiple of 4, and 66 is none
    @example(3, 16)
    def check(side, factor):
        if side % factor == 0:
            return
        try:
            got = token_count(side, factor)
        except ValueError as error:
            said = str(error)
            assert str(side) in said and str(factor) in said, (
                f"side {side}, factor {factor}: the message {said!r} has not both numbers"
            )
        else:
            raise AssertionError(f"side {side}, factor {factor}: {got!r}, and no ValueError")

    check()


def is_enough_and_no_more(bits_per_picture):
    """The shortest strings of bits that give each code one of its own: counted, not computed by a logarithm."""

    @given(st.integers(0, 5000), st.integers(1, 10_000))
    @example(256, 8192)
    @example(1, 1)
    @example(1, 2)
    @example(1, 3)
    @example(3, 8193)
    def check(tokens, codes):
        strings, each = 1, 0
        while strings < codes:
            strings, each = 2 * strings, each + 1
        got = bits_per_picture(tokens, codes)
        assert got == tokens * each, f"{tokens} tokens of {codes} codes: {got}, not {tokens * each}"

    check()


def puts_rows_below_each_other(unflatten):
    """Token i of picture b is at row i // w, column i % w, of a grid that need not be square."""

    @given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
    @example(1, 2, 3)
    @example(2, 2, 2)
    def check(B, h, w):
        ids = torch.arange(B * h * w).view(B, h * w)
        grid = unflatten(ids, h)
        assert grid.shape == (B, h, w) and grid.dtype == ids.dtype, (
            f"ids {tuple(ids.shape)}, h = {h}: {tuple(grid.shape)} {grid.dtype}"
        )
        for b in range(B):
            want = [[int(ids[b, y * w + x]) for x in range(w)] for y in range(h)]
            assert grid[b].tolist() == want, (
                f"ids {ids[b].tolist()} became {grid[b].tolist()}, not {want}"
            )

    check()


def is_the_nearest_byte(to_bytes):
    """Every byte's own value gives it back, what lies between goes to the nearer, what lies outside to the end."""
    own = torch.arange(256).double().div(127.5).sub(1).float()
    for off in (0.0, 0.4, -0.4):  # in steps of a byte
        images = (own + off / 127.5).repeat(1, 3, 1, 1)
        got = to_bytes(images)
        assert got.dtype == torch.uint8 and got.shape == images.shape, (
            f"{got.dtype} {tuple(got.shape)}"
        )
        wrong = (got[0, 0, 0] != torch.arange(256)).nonzero()[:, 0].tolist()
        assert not wrong, (
            f"{float(images[0, 0, 0, wrong[0]]):.5f} became {int(got[0, 0, 0, wrong[0]])}, not {wrong[0]}"
        )
    for value, byte in ((-1.5, 0), (1.001, 255), (1.02, 255), (3.0, 255)):
        got = to_bytes(torch.full((1, 3, 2, 2), value))
        assert (got == byte).all(), f"{value} became {int(got.flatten()[0])}, not {byte}"


def leaves_the_picture_alone(to_bytes):
    images = torch.tensor([-2.0, -0.5, 0.5, 2.0]).expand(2, 3, 1, 4).clone()
    before = images.clone()
    to_bytes(images)
    assert torch.equal(images, before), (
        f"the picture given was changed in place, to {images[0, 0, 0].tolist()}"
    )


def clamps_in_place(images):
    return to_bytes(images.clamp_(-1, 1))


EXERCISES = [
    Exercise(
        "token_count",
        token_count,
        (counts_the_patches, refuses_what_does_not_fit),
        hint="patches lie in rows and columns; and what if the last one sticks out?",
        wrong=(
            lambda side, f: side // f,  # a row of them
            lambda side, f: (side // f) ** 2,  # cuts off in silence
            lambda side, f: -((-side // f) ** 2),  # pads in silence
            lambda side, f: side * side // f,
            lambda side, f: (side / f) ** 2,  # a float
            lambda side, f: (
                side * side // (f * f) if side * side % f == 0 else token_count(side, f)
            ),  # lets 66 and 4 pass
            lambda side, f: (
                token_count(side, f) if side % f == 0 else int("not a number")
            ),  # an error that says nothing
        ),
    ),
    Exercise(
        "bits_per_picture",
        bits_per_picture,
        (is_enough_and_no_more,),
        hint="with 3 codes, one bit is too few and two are enough. What about one code?",
        wrong=(
            lambda n, K: n * math.log2(K),  # not whole
            lambda n, K: n * int(math.log2(K)),  # too few
            lambda n, K: n * K.bit_length(),  # one too many for powers of two
            lambda n, K: math.ceil(n * math.log2(K)),  # whole for the picture, not for a token
            lambda n, K: n * max(1, (K - 1).bit_length()),  # a bit for no choice
        ),
    ),
    Exercise(
        "unflatten",
        unflatten,
        (puts_rows_below_each_other,),
        hint="h counts rows. Try it on a grid that is not square.",
        wrong=(
            lambda ids, h: rearrange(ids, "B (w h) -> B h w", h=h),  # column by column
            lambda ids, h: rearrange(ids, "B (w h) -> B w h", h=h),  # h columns
            lambda ids, h: ids.view(len(ids), h, h),  # squares only
            lambda ids, h: rearrange(ids, "B (h w) -> B h w", h=h).flip(1),  # from below
            lambda ids, h: rearrange(
                ids.reshape(-1), "(h w B) -> B h w", h=h, B=len(ids)
            ),  # pictures mixed
        ),
    ),
    Exercise(
        "to_bytes",
        to_bytes,
        (is_the_nearest_byte, leaves_the_picture_alone),
        hint="turning a float into an integer rounds towards zero, and a byte that overflows starts again at 0.",
        wrong=(
            lambda x: ((x.clamp(-1, 1) + 1) * 127.5).to(torch.uint8),  # towards zero
            lambda x: ((x + 1) * 127.5).round().long().remainder(256).to(torch.uint8),  # overflows
            lambda x: (
                ((x.clamp(-1, 1) + 1) * 128).round().clamp(0, 255).to(torch.uint8)
            ),  # 256 steps for 255
            lambda x: (
                (x.clamp(-1, 1) * 127.5).round().add(127).clamp(0, 255).to(torch.uint8)
            ),  # the middle is off
            lambda x: (x.clamp(0, 1) * 255).round().to(torch.uint8),  # from [0, 1]
            clamps_in_place,
        ),
    ),
]
