"""Lesson 01: which code, with which gradient, and how the codes move.

Write each function where it says so, then run `minimuse check 01`. Each docstring is a slow, plain
specification; your function may be faster. No exercise here needs a model.

Letters: D code width, K codes. `...` is any number of leading dimensions, also none.
"""

import torch

from minimuse.vq import TokenizerConfig


def nearest(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The code nearest to each latent: z (..., D), codebook (K, D) -> ids (...) int64.

    Slowly: for each latent, go through the codes, square the differences, sum them over D, and
    remember which code had the smallest sum. Where two are equally near, either is right.
    """
    raise NotImplementedError


def quantize(
    z: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z (..., D), codebook (K, D) -> (code (..., D), ids (...), commitment ()).

    ids: the nearest codes.
    code: its values are the vectors codebook[ids], but whatever gradient reaches `code` arrives at
        z unchanged.
    commitment: the mean over all entries of (z - codebook[ids])^2, with a gradient to z alone.

    The codebook gets no gradient from either.
    """
    raise NotImplementedError


def perplexity(ids: torch.Tensor, codes: int) -> tuple[float, int]:
    """How many codes `ids` (any shape, values 0 .. codes-1) use in effect, and how many occur.

    Slowly: p_k is the fraction of ids that equal k. Over the codes with p_k > 0, multiply all
    p_k ** -p_k. Compute in float64.
    """
    raise NotImplementedError


def ema_update(
    codebook: torch.Tensor,
    mass: torch.Tensor,
    total: torch.Tensor,
    z: torch.Tensor,
    ids: torch.Tensor,
    decay: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of the moving codebook: -> new (codebook (K, D), mass (K,), total (K, D)).

    The tensors that are given stay as they were. z (M, D) are latents, ids (M,) their codes.

    Slowly, for each code k: n is how many of the ids equal k, and s is the sum of their latents.
    mass[k] becomes decay * mass[k] + (1 - decay) * n. total[k] becomes the same with s. The code
    becomes total[k] / mass[k]. A code whose mass is 0 stays where it is. If the mass that is given
    is 0 for *all* codes, this is the first batch. It counts in full, as with decay 0.
    """
    raise NotImplementedError


def fsq(z: torch.Tensor, levels: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Finite scalar quantization: z (..., D) -> (code (..., D), ids (...) int64).

    levels: one number of levels L >= 2 for each dimension.

    Dimension i: b = sigmoid(z_i) * (L_i - 1), and the digit d_i is the whole number nearest to b.
    code_i is the digit, scaled so that 0 becomes -1 and L_i - 1 becomes 1. Its gradient is that of
    b, scaled in the same way. ids: d_0 + L_0 d_1 + L_0 L_1 d_2 + ...
    """
    raise NotImplementedError


def tokens_or_codes(side: int) -> list[TokenizerConfig]:
    """Open-ended: tokenizers that spend the same number of bits on an image.

    `minimuse check` does not look at it. The lesson says more.
    """
    raise NotImplementedError
