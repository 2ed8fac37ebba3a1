import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from minimuse import schedule
from minimuse.device import autocast, generator_at
from minimuse.metrics.intervals import mean_of
from minimuse.transformer import Context


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
