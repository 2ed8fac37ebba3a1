"""Lesson 00: first steps, to get used to how exercises work.

Write each function where it says so, then run `minimuse check 00`. Each docstring is a slow, plain
specification; your function may be faster. No exercise here needs a model.

Letters: B batch, N image tokens, h w token grid, f factor, K codes.
"""

import torch


def token_count(side: int, factor: int) -> int:
    """How many tokens a square image of side x side pixels has.

    Each token stands for a patch of factor x factor pixels.

    Slowly: lay patches without gaps and overlap, row by row, until the image is full, and count
    them. Where they do not fit, raise a ValueError whose message has both numbers in it.
    """
    raise NotImplementedError


def bits_per_picture(tokens: int, codes: int) -> int:
    """How many bits it takes to write down the tokens of an image.

    Each token is one of `codes` numbers, and each takes the same whole number of bits.

    Slowly: for one token, list all strings of 0 bits, of 1 bit, of 2 bits, ..., and stop at the
    first list that has one for each code.
    """
    raise NotImplementedError


def unflatten(ids: torch.Tensor, h: int) -> torch.Tensor:
    """Rows of ids (B, N), as a transformer sees them, -> grids (B, h, w).

    A grid has h rows and w = N / h columns.

    Slowly: the first w ids are the top row of the grid from left to right, the next w are the row
    below it, and so on. Each image is handled on its own.
    """
    raise NotImplementedError


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images as networks have them, float in [-1, 1], -> as files have them, uint8 in 0 .. 255.

    The shape stays. -1 becomes 0, 1 becomes 255, and the map between them is linear.

    Slowly: for each number, try all 256 bytes, and take the one whose own place in [-1, 1] is
    nearest. A network's numbers may lie a little outside of [-1, 1]: below is 0, above is 255.
    """
    raise NotImplementedError


def hard_captions() -> list[str]:
    """Open-ended: captions that the shipped model gets wrong.

    `minimuse check` does not look at it. The lesson says what to try.
    """
    raise NotImplementedError
