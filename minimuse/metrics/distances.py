"""Distances between two sets of images, by their features: Frechet distance, KID, precision.

    from minimuse.metrics.distances import frechet, kid, precision
    frechet(features_of_generated, features_of_real)      # (M, C) and (M', C) -> a number

These compare sets, not images one by one, and know no captions. FID and published KID use
Inception's features; `minimuse evaluate` uses EfficientNet-Lite0's, so its numbers cannot be
compared with published ones.
Papers: Frechet distance (FID, 1706.08500), KID (1801.01401), precision and recall (1904.06991).
Letters: M images, C features of each.
"""

import torch


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Squared Frechet distance of the normal distributions fitted to features (M, C) and (M', C).

    |m - m'|^2 + tr(S + S' - 2 (S S')^1/2), with means m and covariances S. With few images it
    comes out too large, so compare only values at equal M.

    With roots A and B of the covariances, S = A^T A and S' = B^T B, the trace of (S S')^1/2 is the
    sum of the singular values of A B^T: their squares are the eigenvalues of A B^T B A^T, which has
    the nonzero ones of A^T A B^T B = S S'. So no root of a (C, C) matrix is needed.
    """
    a, b = a.cpu().double(), b.cpu().double()
    of_means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    root_a, root_b = covariance_root(a), covariance_root(b)
    trace_a, trace_b = root_a.square().sum(), root_b.square().sum()
    trace_of_root = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return float(of_means + trace_a + trace_b - 2 * trace_of_root)


def covariance_root(x: torch.Tensor) -> torch.Tensor:
    """A matrix A with A^T A the covariance of features (M, C). It has at most C rows."""
    root = (x - x.mean(dim=0)) / (len(x) - 1) ** 0.5  # M C
    if len(x) > x.shape[1]:
        root = torch.linalg.qr(root, mode="r").R  # C C, with the same R^T R
    return root


def kid(a: torch.Tensor, b: torch.Tensor) -> float:
    """Squared kernel distance of features (M, C) and (M', C), unbiased.

    For two sets from one distribution it is 0 on average, and often negative.
    """
    return float(mean_within(a) + mean_within(b) - 2 * kernel(a, b).mean())


def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """KID's polynomial kernel of features (M, C) and (M', C): (x.y / C + 1)^3, (M, M')."""
    return (a.cpu().double() @ b.cpu().double().T / a.shape[1] + 1) ** 3


def mean_within(x: torch.Tensor) -> torch.Tensor:
    """Mean of the kernel over all pairs of two different images of one set (M, C)."""
    pairs = kernel(x, x)  # M M
    # The diagonal pairs each image with itself.
    return (pairs.sum() - pairs.trace()) / (len(x) * (len(x) - 1))


def precision(generated: torch.Tensor, real: torch.Tensor, k: int = 3) -> float:
    """Fraction of generated features (M, C) that lie among the real ones (M', C).

    That is: no farther from some real one than its k-th nearest real neighbour. With the two sets
    exchanged, this is recall: the fraction of real images that lie among the generated ones.
    """
    generated, real = generated.cpu().double(), real.cpu().double()
    # The nearest of all is the image itself, hence k + 1.
    reach = torch.cdist(real, real).kthvalue(k + 1, dim=1).values  # M'
    within_reach = torch.cdist(generated, real) <= reach  # M M'
    return float(within_reach.any(dim=1).double().mean())
