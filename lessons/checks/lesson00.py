"""Lesson 00: properties and planted bugs of the exercises about tokens, codes and bytes."""

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


# --- The package's own code for this: parts of larger functions, here as functions ---
def token_count(side, factor):
    halvings = int(math.log2(factor))
    resolutions = halvings + 1
    config = TokenizerConfig(side, multipliers=(1,) * resolutions, blocks=(0,) * resolutions)
    return config.grid**2


def bits_per_picture(tokens, codes):
    return tokens * (codes - 1).bit_length()


def unflatten(ids, h):
    return rearrange(ids, "B (h w) -> B h w", h=h)


def to_bytes(images):
    arrays = np.stack([np.asarray(image) for image in to_pil(images)])
    return rearrange(torch.from_numpy(arrays), "B H W C -> B C H W")


# --- Properties ---
factors = st.integers(0, 5).map(lambda n: 2**n)


def counts_the_patches(token_count):
    """Against patches that are laid one by one."""

    @given(st.integers(1, 12), factors)
    @example(1, 1)
    @example(16, 16)  # Muse, low-res
    def check(grid, factor):
        side = grid * factor
        patches = sum(1 for y in range(0, side, factor) for x in range(0, side, factor))
        result = token_count(side, factor)
        assert result == patches and isinstance(result, int), (
            f"{side} pixels, factor {factor}: {result!r}, not {patches}"
        )

    check()


def refuses_what_does_not_fit(token_count):
    """A ValueError with both numbers, since an image that is silently cut off is noticed late."""

    @given(st.integers(1, 100), factors)
    @example(65, 4)
    @example(66, 4)  # 66 * 66 is a multiple of 4, and 66 is not
    @example(3, 16)
    def check(side, factor):
        if side % factor == 0:
            return
        try:
            result = token_count(side, factor)
        except ValueError as error:
            message = str(error)
            assert str(side) in message and str(factor) in message, (
                f"side {side}, factor {factor}: the message {message!r} lacks one of the numbers"
            )
        else:
            raise AssertionError(f"side {side}, factor {factor}: {result!r}, and no ValueError")

    check()


def is_enough_and_no_more(bits_per_picture):
    """The shortest strings of bits that give each code its own, counted without a logarithm."""

    @given(st.integers(0, 5000), st.integers(1, 10_000))
    @example(256, 8192)
    @example(1, 1)
    @example(1, 2)
    @example(1, 3)
    @example(3, 8193)
    def check(tokens, codes):
        strings, bits = 1, 0
        while strings < codes:
            strings *= 2
            bits += 1
        result = bits_per_picture(tokens, codes)
        assert result == tokens * bits, (
            f"{tokens} tokens of {codes} codes: {result}, not {tokens * bits}"
        )

    check()


def puts_rows_below_each_other(unflatten):
    """Token i of an image is at row i // w, column i % w, of a grid that need not be square."""

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
            expected = []
            for y in range(h):
                expected.append([int(ids[b, y * w + x]) for x in range(w)])
            assert grid[b].tolist() == expected, (
                f"ids {ids[b].tolist()} became {grid[b].tolist()}, not {expected}"
            )

    check()


def is_the_nearest_byte(to_bytes):
    """Each byte's own value gives this byte; others the nearest byte, 0 and 255 at the ends."""
    own_values = torch.arange(256).double().div(127.5).sub(1).float()
    for offset in (0.0, 0.4, -0.4):  # in steps of a byte
        images = (own_values + offset / 127.5).repeat(1, 3, 1, 1)
        result = to_bytes(images)
        assert result.dtype == torch.uint8 and result.shape == images.shape, (
            f"{result.dtype} {tuple(result.shape)}"
        )
        for byte in range(256):
            value, actual = float(images[0, 0, 0, byte]), int(result[0, 0, 0, byte])
            assert actual == byte, f"{value:.5f} became {actual}, not {byte}"
    for value, byte in ((-1.5, 0), (1.001, 255), (1.02, 255), (3.0, 255)):
        result = to_bytes(torch.full((1, 3, 2, 2), value))
        assert (result == byte).all(), f"{value} became {int(result.flatten()[0])}, not {byte}"


def leaves_the_picture_alone(to_bytes):
    """The images are not changed in place."""
    images = torch.tensor([-2.0, -0.5, 0.5, 2.0]).expand(2, 3, 1, 4).clone()
    before = images.clone()
    to_bytes(images)
    assert torch.equal(images, before), (
        f"the image was changed in place, to {images[0, 0, 0].tolist()}"
    )


# --- Planted bugs with more than one line or idea ---
def accepts_multiples_in_area(side, factor):
    """66 and 4 pass."""
    if side * side % factor == 0:
        return side * side // (factor * factor)
    return token_count(side, factor)


def error_without_numbers(side, factor):
    if side % factor:
        raise ValueError("does not fit")
    return token_count(side, factor)


def mixes_images(ids, h):
    return rearrange(ids.reshape(-1), "(h w B) -> B h w", h=h, B=len(ids))


def overflows(x):
    return ((x + 1) * 127.5).round().long().remainder(256).to(torch.uint8)


def has_256_steps(x):
    """There are 255 steps between 256 bytes."""
    return ((x.clamp(-1, 1) + 1) * 128).round().clamp(0, 255).to(torch.uint8)


def misses_the_middle(x):
    """The middle of [-1, 1] is 127.5."""
    return (x.clamp(-1, 1) * 127.5).round().add(127).clamp(0, 255).to(torch.uint8)


def clamps_in_place(images):
    return to_bytes(images.clamp_(-1, 1))


EXERCISES = [
    Exercise(
        "token_count",
        token_count,
        (counts_the_patches, refuses_what_does_not_fit),
        hint="patches lie in rows and columns; and what if the last one sticks out?",
        wrong=(
            lambda side, f: side // f,  # one row of them
            lambda side, f: (side // f) ** 2,  # cuts off silently
            lambda side, f: -((-side // f) ** 2),  # pads silently
            lambda side, f: side * side // f,
            lambda side, f: (side / f) ** 2,  # a float
            accepts_multiples_in_area,
            error_without_numbers,
        ),
    ),
    Exercise(
        "bits_per_picture",
        bits_per_picture,
        (is_enough_and_no_more,),
        hint="with 3 codes, one bit is too few and two are enough. What about one code?",
        wrong=(
            lambda n, K: n * math.log2(K),  # no integer
            lambda n, K: n * int(math.log2(K)),  # too few
            lambda n, K: n * K.bit_length(),  # one too many for powers of two
            lambda n, K: math.ceil(n * math.log2(K)),  # an integer for the image, not for a token
            lambda n, K: n * max(1, (K - 1).bit_length()),  # a bit where there is no choice
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
            mixes_images,
        ),
    ),
    Exercise(
        "to_bytes",
        to_bytes,
        (is_the_nearest_byte, leaves_the_picture_alone),
        hint="turning a float into an integer rounds towards zero, "
        "and a byte that overflows starts again at 0.",
        wrong=(
            lambda x: ((x.clamp(-1, 1) + 1) * 127.5).to(torch.uint8),  # towards zero
            overflows,
            has_256_steps,
            misses_the_middle,
            lambda x: (x.clamp(0, 1) * 255).round().to(torch.uint8),  # from [0, 1]
            clamps_in_place,
        ),
    ),
]
