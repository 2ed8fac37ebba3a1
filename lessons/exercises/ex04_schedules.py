"""Lesson 04: how many tokens are hidden, and which.

Write each function where it says so, then run `minimuse check 04`. Each docstring is a slow, plain
specification; your function may be faster. No exercise here needs a model.
"""

import torch


def cosine_gamma(ratio: float) -> float:
    """The fraction of tokens still masked after a fraction `ratio` of the decoding.

    It is the cosine schedule, a quarter of a cosine wave: 1 at the start (ratio 0), 0 at the end
    (ratio 1), and falling all the way.
    """
    raise NotImplementedError


def sample_ratios(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Mask ratios for training, one for each image of a batch: (batch,) in [0, 1].

    Their density is 2 / (pi sqrt(1 - r^2)), so P(ratio <= r) = (2 / pi) arcsin(r).

    Slowly: draw a uniform u, and look for the r at which P(ratio <= r) reaches u.
    """
    raise NotImplementedError


def mask_counts(ratios: torch.Tensor, tokens: int) -> torch.Tensor:
    """How many of `tokens` tokens to mask, for each ratio: (B,) float64 -> (B,) int64.

    Slowly: count up from 1 until the count is no smaller than ratio * tokens.
    """
    raise NotImplementedError


def random_masks(counts: torch.Tensor, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Masks (B, tokens) bool with exactly counts[b] True in row b.

    Slowly: for each row, put the numbers of all positions into a hat, and draw counts[b] of them.
    Every set of positions is equally likely, and rows are independent of each other.
    """
    raise NotImplementedError


def masked_after(masked: int, steps: int) -> list[int]:
    """How many tokens are still masked after each of `steps` steps, with `masked` at the start.

    MaskGIT's rule for step k = 0, 1, ..., with N0 = `masked`, and `unknown` tokens masked before
    the step: floor(N0 cos(pi/2 (k+1)/steps)), but at most unknown - 1 and at least 1. After the
    last step it is 0. Once no token is masked, it stays 0. Where the cosine is a whole number of
    tokens, floats may fall just below it: one token less is accepted there. (The package computes
    (k + 1) / steps first and is exact, so that images do not depend on how a formula is written.)
    """
    raise NotImplementedError


def law_of_your_own(ratio: float) -> float:
    """Open-ended: another mask schedule.

    `minimuse check` does not look at it. The lesson says what to try with it.
    """
    raise NotImplementedError
