"""Measures: of tokenizers, of token models, and of sets of pictures, each a plain function with its interval.

Sets are compared by features (M, C) of their pictures, Lite0's in `minimuse evaluate`: no figure can be set beside a published FID.
Papers: Frechet distance (FID, 1706.08500), KID (1801.01401), precision and recall (1904.06991), SSIM (Wang et al. 2004), the bound on
bits (order-agnostic autoregression, 2110.02037). Letters: M pictures, N tokens of each, K codes, C features.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from minimuse import schedule
from minimuse.muse import autocast
from minimuse.train import generator_at
from minimuse.transformer import Context


def mean_of(values: torch.Tensor) -> dict[str, float]:
    """The mean of what M pictures have each (M,), with its 95 % interval."""
    values = values.cpu().double()
    mean, error = (
        float(values.mean()),
        float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan"),
    )
    return {
        "value": mean,
        "low": mean - 1.96 * error,
        "high": mean + 1.96 * error,
        "n": len(values),
    }


def interval(
    measure: Callable[..., float], *sets: torch.Tensor, rounds: int = 20
) -> dict[str, float]:
    """A measure of sets (M, C), with a 95 % interval by random halves of each, without replacement: of a mean, they vary around the
    whole as much as it does around all there is; a bias they do not see (and a bootstrap's copies would pass for neighbours)."""
    halves = lambda i: [
        x[torch.randperm(len(x), generator=generator_at("halves", i, j))[: len(x) // 2]]
        for j, x in enumerate(sets)
    ]
    value, error = (
        measure(*sets),
        float(torch.tensor([measure(*halves(i)) for i in range(rounds)]).std()),
    )
    return {
        "value": value,
        "low": value - 1.96 * error,
        "high": value + 1.96 * error,
        "n": len(sets[0]),
    }


# --- Pictures against the same pictures ---
def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over images (B, 3, H, W) in [-1, 1] of the peak signal-to-noise ratio, in dB."""
    return float(
        (10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))).mean()
    )


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean structural similarity of images (B, 3, H, W) in [-1, 1], at least 11 pixels a side: 1 for equal ones. Means, variances and
    covariance in a Gaussian window (sigma 1.5, 11 x 11), wherever it lies inside."""
    a, b, offset = (
        a.cpu().double(),
        b.cpu().double(),
        torch.arange(-5.0, 6, dtype=torch.float64),
    )  # an Apple GPU has no doubles
    row = torch.softmax(-(offset**2) / (2 * 1.5**2), dim=0)
    blur = lambda x: F.conv2d(
        x, (row[:, None] * row).expand(x.shape[1], 1, -1, -1), groups=x.shape[1]
    )
    mean_a, mean_b, c1, c2 = blur(a), blur(b), (0.01 * 2) ** 2, (0.03 * 2) ** 2  # 2: from -1 to 1
    spread_a, spread_b, both = (
        blur(a * a) - mean_a**2,
        blur(b * b) - mean_b**2,
        blur(a * b) - mean_a * mean_b,
    )
    same = (
        (2 * mean_a * mean_b + c1)
        * (2 * both + c2)
        / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2))
    )
    return float(same.mean())


# --- Token models ---
@torch.no_grad()
def hidden_nll(
    model,
    ids: torch.Tensor,
    context: Callable[[slice], Context],
    hidden: torch.Tensor,
    batch: int = 64,
) -> torch.Tensor:
    """Mean negative log-likelihood (M,), in nats, of each picture's hidden tokens: ids and hidden (M, N), at least one hidden in a row.
    context(rows) gives what the model looks at for a slice of rows."""
    found = []
    for rows in (slice(start, start + batch) for start in range(0, len(ids), batch)):
        true, asked = ids[rows], hidden[rows]
        with autocast(ids.device):
            logits = model(true.masked_fill(asked, model.mask_id), context(rows), asked)
        nll = logits.new_zeros(asked.shape)
        nll[asked] = F.cross_entropy(logits, true[asked], reduction="none")
        found.append(nll.sum(dim=1) / asked.sum(dim=1))
    return torch.cat(found).cpu()


def masked_nll(
    model,
    ids: torch.Tensor,
    context: Callable[[slice], Context],
    ratio: float,
    seed: int = 0,
    batch: int = 64,
) -> float:
    """Mean nats per token of a share `ratio` of the ids (M, N), hidden, the same ones for the same seed; chance is ln K."""
    counts = schedule.mask_counts(torch.full((len(ids),), ratio, dtype=torch.float64), ids.shape[1])
    hidden = schedule.random_masks(counts, ids.shape[1], generator_at(seed, "nll", ratio)).to(
        ids.device
    )
    return float(hidden_nll(model, ids, context, hidden, batch).mean())


def bits_per_token(
    model, ids: torch.Tensor, context: Callable[[slice], Context], seed: int = 0
) -> dict[str, float]:
    """How many bits a token of the pictures (M, N) costs at most, told what the context says; chance is log2 K.

    A masked model that draws one token after the other, in random order, gives a picture some probability; its logarithm's mean over
    orders bounds it from below (2110.02037, eq. 2). The next token may be any of those hidden, so that a picture's bound is `hidden_nll`,
    averaged over all counts from 1 to N alike: here one count for each picture, spread evenly."""
    M, N = ids.shape
    generator = generator_at(seed, "bits")
    counts = 1 + torch.randperm(M, generator=generator) * N // M
    hidden = schedule.random_masks(counts, N, generator).to(ids.device)
    return mean_of(hidden_nll(model, ids, context, hidden) / math.log(2))


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
