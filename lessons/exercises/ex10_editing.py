"""Lesson 10: holes, windows, seams, and editing without a mask.

Write each function where it says so, then run `minimuse check 10`. Each docstring is a slow, plain
specification; your function should work on whole tensors where it can. A hole is an image of bools,
True where something is to be drawn.
"""

from collections.abc import Callable, Sequence

import torch


def pad_to_tokens(pixels: torch.Tensor, unit: int, least: int) -> torch.Tensor:
    """Images (B, 3, H, W) -> (B, 3, H', W'), where both sides are whole tokens.

    A token has `unit` pixels. Both sides have at least `least` pixels (whole tokens too). No more
    is added than that, and only on the right and below: the image stays in the upper left corner.

    Slowly: each new pixel takes the value of the pixel of the image that is nearest to it.
    """
    raise NotImplementedError


def hidden_tokens(hole: torch.Tensor, factor: int) -> torch.Tensor:
    """A hole (H, W) bool -> which tokens are hidden: (H / factor, W / factor) bool.

    Both sides are whole tokens.

    Slowly: a token of factor x factor pixels is hidden if at least one of them lies in the hole.
    """
    raise NotImplementedError


def window_starts(length: int, grid: int) -> list[int]:
    """Where windows of `grid` tokens start along a side of `length` >= grid tokens.

    In rising order, none twice.

    Slowly: start at 0, and move by half a window at a time (rounded down, at least one token) as
    long as the window ends before the side does. Then comes one more that ends where the side ends.
    """
    raise NotImplementedError


def next_window(hidden: torch.Tensor, grid: int) -> tuple[int, int] | None:
    """The row and column in which the next window to be filled starts.

    hidden: which tokens are hidden (h, w) bool. The result is None if none is.

    Slowly: look at every window of grid x grid tokens, at all pairs of `window_starts`. Of those
    with a hidden token take the one with the fewest hidden tokens; of equals, the one that comes
    first, row by row.
    """
    raise NotImplementedError


def feather(
    drawn: torch.Tensor, pixels: torch.Tensor, hole: torch.Tensor, width: int = 3
) -> torch.Tensor:
    """Drawn pixels inside of the hole, the image's own outside, without a seam: (B, 3, H, W).

    drawn: (B, 3, H, W). pixels: the image's own (3, H, W). hole: (H, W).

    Outside of the hole, the result is `pixels` bit for bit. Inside, it is
    weight * drawn + (1 - weight) * pixels, with a weight in [0, 1] that is the same for all
    channels. Where all pixels within width - 1 rows and columns lie in the hole, the weight is 1.
    At a straight edge it rises with each pixel from the edge on, until the width-th has 1:
    (2k - 1) / (2 width - 1) at the k-th is one solution. The border of the image is no edge: beyond
    it, the hole goes on as it ended. At corners you are free.

    Slowly: for each pixel of the hole count how many of the (2 width - 1)^2 around it lie in the
    hole too. In the middle of a straight edge, one beyond it would see just under half of them, and
    one far inside sees all.
    """
    raise NotImplementedError


def resample(
    ids: torch.Tensor,
    mask_id: int,
    share: float,
    generators: Sequence[torch.Generator],
    draw: Callable,
) -> torch.Tensor:
    """One iteration of mask-free editing: tokens (B, N) -> tokens (B, N).

    `ids` itself stays as it is. `draw` takes ids (B, N) with mask_id where they are hidden, and
    returns (B, N) with a guess at *every* position.

    Slowly: in each row hide ceil(share * N) tokens, at least one, at random. Every position is
    equally likely, and all randomness of a row comes from its own generator, of which `generators`
    has one for each row. The hidden tokens get their guess; all others stay.
    """
    raise NotImplementedError


def changed_below(before: torch.Tensor, after: torch.Tensor, ratio: int) -> torch.Tensor:
    """Which high-res tokens to draw anew -> (B, h * ratio, w * ratio) bool.

    before: low-res ids (h, w). after: low-res ids (B, h, w).

    Slowly: a low-res token covers ratio x ratio high-res ones. Row y and column x cover those from
    y * ratio and x * ratio on. They are drawn anew if it has changed.
    """
    raise NotImplementedError


def editing_of_your_own(ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Open-ended: which tokens (B, N) to hide next, as (B, N) bool.

    The lesson says what to try, and how to judge it.
    """
    raise NotImplementedError
