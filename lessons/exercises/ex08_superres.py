"""Lesson 08: from few tokens to many, and attention over a fine grid.

Write each function where it says so, then run `minimuse check 08`. Each docstring is a slow, plain
specification; your function should work on whole tensors. A grid is square, and flattened as one
reads a page: token n is in row n // grid, column n % grid.
"""

from collections.abc import Sequence

import torch


def halve(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) -> half as high and half as wide: (B, 3, H / 2, W / 2).

    An odd side is a ValueError that names it.

    Slowly: each pixel is the mean of the four that it covers.
    """
    raise NotImplementedError


def attention_pairs(grid: int, window: int) -> tuple[int, int, int]:
    """How many (query, key) pairs one head scores: in full, local and dilated attention.

    There are grid x grid tokens.

    Slowly: for each token count the tokens that it sees. In full attention that is every token
    (itself too). In local attention it is every token of the same window, where the grid is cut
    into windows of window x window tokens. In dilated attention it is every token that has the same
    place within its own window.
    """
    raise NotImplementedError


def sees_after(layers: Sequence[str], grid: int, window: int) -> torch.Tensor:
    """Which token has seen which after these layers: (N, N) bool, N = grid * grid.

    [n, m] is True if n has seen m. The first of `layers` comes first. In a "local" layer a token
    sees the tokens of its own window. In a "dilated" one it sees those with the same place in their
    windows. A "shifted" layer is a local one whose cuts between windows lie window // 2 rows
    further down and as many columns further to the right. Windows at the border are smaller there,
    and do not wrap around.

    Slowly: at first each token has seen itself. In each layer, for each token, go to every token
    that it sees there, and collect all that *these* have seen before this layer.
    """
    raise NotImplementedError


def spread(given: torch.Tensor, low_grid: int, grid: int) -> torch.Tensor:
    """Give each high-res token its piece of the low-res token that covers it.

    (B, n, i * i * D) -> (B, N, D), with n = low_grid * low_grid, N = grid * grid, and
    i = grid / low_grid: a low-res token covers i x i high-res tokens.

    Slowly: the first D of a low-res token's numbers go to the upper left one of those, the next D
    to its right neighbour, and so on, row by row.
    """
    raise NotImplementedError


def multi_axis(qkv: torch.Tensor, grid: int, window: int) -> torch.Tensor:
    """Queries, keys and values (3, B, H, N, d) of a grid x grid of tokens -> (B, H, N, d).

    H is even.

    Slowly: for each token and each head in the first half, softmax attention over the tokens of its
    window; for each head in the second half, over the tokens at its place in every window. Faster:
    move tokens into groups that attend among themselves, use `minimuse.transformer.attend` (or
    yours of lesson 05) on all groups at once, and move them back to where they were.
    """
    raise NotImplementedError


def mean_vectors(
    logits: torch.Tensor, ids: torch.Tensor, known: torch.Tensor, codebook: torch.Tensor
) -> torch.Tensor:
    """The code vectors (B, N, C) that the decoder gets after one pass.

    logits (B, N, K), the token ids before the pass (B, N), which of them were known (B, N) bool,
    and the codebook (K, C). A token that was not known has the mask id K.

    Slowly: a known token has the vector of its id. For any other token, multiply the vector of each
    code by the probability of that code, the plain softmax of the token's logits, and add up.
    """
    raise NotImplementedError


def other_low_res(low_ids: torch.Tensor) -> torch.Tensor:
    """Open-ended: edit low-res tokens (B, n) by hand: move, mirror, exchange, mix.

    The lesson says what to try with it.
    """
    raise NotImplementedError
