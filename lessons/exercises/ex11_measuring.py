"""Lesson 11: measures, each against its definition.

Write each function where it says so, then run `minimuse check 11`. Each docstring is a slow, plain
specification; your function should work on whole tensors where it can. You may use
`minimuse.schedule` (lesson 04) and `minimuse.metrics.likelihood.hidden_nll`.
"""

from collections.abc import Callable

import torch


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion, `right` of n: its lower and its upper end.

    Slowly: try every true proportion t in [0, 1]. Keep those of which the measured proportion lies
    no more than z = 1.959964 standard errors away. The error is that of the *true* proportion,
    sqrt(t (1 - t) / n). The ends are the least and the largest t kept: solve for them. If n is 0
    nothing is known: (0, 1). No end is outside [0, 1].
    """
    raise NotImplementedError


def tell_apart(n: int, p: float, q: float) -> bool:
    """Whether the proportions p and q differ by more than 1.96 standard errors.

    Each was measured on n images, not the same ones. A proportion p of n has the variance
    p (1 - p) / n, and the variances of two independent numbers add up to that of their difference.
    Either proportion may be the larger. Equal ones are never told apart.
    """
    raise NotImplementedError


def bits_per_token(model, ids: torch.Tensor, context: Callable, seed: int = 0) -> dict[str, float]:
    """How many bits a token of the images (M, N) costs at most: {"value", "low", "high", "n"}.

    Slowly: give each image a count from 1 to N of tokens to hide, all counts equally often (or as
    nearly as M allows: they differ by one at most), in random order. Hide that many random tokens
    of it. Take the mean negative log-likelihood of its hidden tokens, in bits. The value is the
    mean over images, low and high are 1.96 standard errors away from it, and n is M.

    `hidden_nll(model, ids, context, hidden)` gives that mean (M,), in nats; hidden (M, N) is True
    for hidden tokens. Draw by a torch.Generator with the given seed.
    """
    raise NotImplementedError


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Squared Frechet distance of two normal distributions.

    They have the means and covariances of features (M, C) and (M', C):
    |m - m'|^2 + tr(S) + tr(S') - 2 tr((S S')^1/2), with covariances over M - 1.

    The last trace is the sum of the square roots of the eigenvalues of S S', which are real and not
    negative but for rounding. It is also the sum of the singular values of A B^T, where A and B are
    the features minus their mean, over the root of M - 1 and M' - 1. Compute in double precision.
    """
    raise NotImplementedError


def kid(a: torch.Tensor, b: torch.Tensor) -> float:
    """Squared kernel distance of features (M, C) and (M', C), unbiased.

    It is 0 on average over sets from one distribution. With k(x, y) = (x . y / C + 1)^3, it is the
    mean of k over all pairs of two different images of a, plus that over all such pairs of b, minus
    twice the mean over all pairs of one of a and one of b. Two different images may look the same.
    Compute in double precision.
    """
    raise NotImplementedError


def precision(drawn: torch.Tensor, real: torch.Tensor, k: int = 3) -> float:
    """The fraction of the drawn features (M, C) that lie within the reach of a real one (M', C).

    Slowly: sort the distances of a real image to all *other* real ones; the k-th is its reach. A
    drawn image counts if there is any real one whose reach is at least their distance.
    """
    raise NotImplementedError


def interval(
    measure: Callable[..., float], *sets: torch.Tensor, rounds: int = 20
) -> dict[str, float]:
    """A measure of one or more sets (M, C), with its interval: {"value", "low", "high", "n"}.

    The value is measure(*sets), with everything. Then, `rounds` times: draw a random half of each
    set (half of an odd number is rounded down), no image twice, and measure those. Low and high are
    1.96 standard deviations of these measures below and above the value. n is the size of the first
    set. The answer is the same each time: use a torch.Generator of your own.
    """
    raise NotImplementedError


def diversity(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """Open-ended: how much of the real features (M', C) the drawn ones (M, C) reach.

    The lesson says what must not fool it.
    """
    raise NotImplementedError
