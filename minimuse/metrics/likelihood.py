"""Likelihoods: how well a token model predicts hidden tokens of real images.

    from minimuse.metrics.likelihood import bits_per_token
    bits_per_token(muse.base, ids, lambda rows: muse.base.context(text[rows], visible[rows]))

A lower value is better. Values compare only between models of the same tokens. No image is
generated, so guidance, temperature and the number of steps have no influence.
Papers: the bound on bits (order-agnostic autoregression, 2110.02037).
Letters: M images, N tokens of each, K codes.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from minimuse import schedule
from minimuse.maskgit import MaskGit
from minimuse.metrics.intervals import mean_of
from minimuse.plumbing.device import autocast, generator_at
from minimuse.plumbing.ranges import check_arguments
from minimuse.superres import SuperRes
from minimuse.transformer import Context


@torch.no_grad()
def hidden_nll(
    model: MaskGit | SuperRes,
    ids: torch.Tensor,
    context: Callable[[slice], Context],
    hidden: torch.Tensor,
    batch: int = 64,
) -> torch.Tensor:
    """Mean negative log-likelihood of each image's hidden tokens: (M,), in nats.

    ids and hidden are (M, N), with at least one hidden token in each row. context(rows) gives what
    the model attends to for a slice of rows.
    """
    means = []
    for start in range(0, len(ids), batch):
        rows = slice(start, start + batch)
        true_ids, is_hidden = ids[rows].long(), hidden[rows]  # B N
        with autocast(ids.device):
            masked_ids = true_ids.masked_fill(is_hidden, model.mask_id)
            logits = model(masked_ids, context(rows), is_hidden)  # all hidden tokens, K
        nll = logits.new_zeros(is_hidden.shape)  # B N
        nll[is_hidden] = F.cross_entropy(logits, true_ids[is_hidden], reduction="none")
        means.append(nll.sum(dim=1) / is_hidden.sum(dim=1))
    return torch.cat(means).cpu()


def masked_nll(
    model: MaskGit | SuperRes,
    ids: torch.Tensor,
    context: Callable[[slice], Context],
    ratio: float,
    seed: int = 0,
    batch: int = 64,
) -> float:
    """Mean nats per hidden token when a fraction `ratio` of the ids (M, N) is hidden.

    The same seed hides the same tokens. A uniform guess costs ln K.
    """
    check_arguments(ratio=ratio)
    N = ids.shape[1]
    ratios = torch.full((len(ids),), ratio, dtype=torch.float64)
    counts = schedule.mask_counts(ratios, N)
    hidden = schedule.random_masks(counts, N, generator_at(seed, "nll", ratio))
    return float(hidden_nll(model, ids, context, hidden.to(ids.device), batch).mean())


def bits_per_token(
    model: MaskGit | SuperRes,
    ids: torch.Tensor,
    context: Callable[[slice], Context],
    seed: int = 0,
) -> dict[str, float]:
    """Bits that a token of the images (M, N) costs at most, given its context; a guess: log2 K.

    Let a masked model draw one token after another in a random order. That gives an image a
    probability, whose logarithm is at least the mean of the orders' logarithms (2110.02037, eq. 2).
    The next token may be any of those still hidden, so the bound of an image is `hidden_nll`
    averaged over all counts from 1 to N of hidden tokens, with equal weights. Here each image gets
    one count, and the counts are spread evenly over the images.
    """
    M, N = ids.shape
    generator = generator_at(seed, "bits")
    counts = 1 + (2 * torch.randperm(M, generator=generator) + 1) * N // (2 * M)
    hidden = schedule.random_masks(counts, N, generator).to(ids.device)
    return mean_of(hidden_nll(model, ids, context, hidden) / math.log(2))
