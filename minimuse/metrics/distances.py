"""Measures: of tokenizers, of token models, and of sets of pictures, each a plain function with its interval.

Sets are compared by features (M, C) of their pictures, Lite0's in `minimuse evaluate`: no figure can be set beside a published FID.
Papers: Frechet distance (FID, 1706.08500), KID (1801.01401), precision and recall (1904.06991), SSIM (Wang et al. 2004), the bound on
bits (order-agnostic autoregression, 2110.02037). Letters: M pictures, N tokens of each, K codes, C features.
"""

import torch


# --- A set of pictures against another, by their features ---
def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Squared Frechet distance of the normal distributions with the means and covariances of features (M, C) and (M', C):
    |m - m'|^2 + tr(S + S' - 2 (S S')^1/2). Too large for few pictures: compare at equal M, and with what real ones have.

    S = A^T A and S' = B^T B for centred features over the root of M - 1, so that the root's trace is the sum of the singular values of A B^T."""
    (a, mean_a), (b, mean_b) = (
        ((x - x.mean(dim=0)) / (len(x) - 1) ** 0.5, x.mean(dim=0))
        for x in (a.cpu().double(), b.cpu().double())
    )
    shrink = lambda x: torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x  # R^T R = A^T A
    a, b = shrink(a), shrink(b)
    return float(
        (mean_a - mean_b).square().sum()
        + a.square().sum()
        + b.square().sum()
        - 2 * torch.linalg.svdvals(a @ b.T).sum()
    )


def kid(a: torch.Tensor, b: torch.Tensor) -> float:
    """Kernel distance, squared and unbiased: 0 on average over sets from one distribution, and often below it. Kernel of
    features (M, C) and (M', C): (x.y / C + 1)^3."""
    kernel = lambda x, y: (x.cpu().double() @ y.cpu().double().T / x.shape[1] + 1) ** 3
    within = lambda x: (
        (kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1))
    )  # no picture with itself
    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def precision(drawn: torch.Tensor, real: torch.Tensor, k: int = 3) -> float:
    """Share of drawn features (M, C) that lie among the real ones (M', C): no farther from one of them than its k-th nearest real
    neighbour. The other way round it is recall: the share of real pictures that lie among the drawn ones."""
    drawn, real = drawn.cpu(), real.cpu()
    reach = (
        torch.cdist(real.double(), real.double()).kthvalue(k + 1, dim=1).values
    )  # + 1: the nearest is itself
    return float((torch.cdist(drawn.double(), real.double()) <= reach).any(dim=1).double().mean())
