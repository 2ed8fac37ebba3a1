"""What a model distilled into one pass (`distill.py`) sees in place of an empty grid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minimuse import schedule


def random_start(
    ids: Tensor, mask_id: int, random_codes: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Put random codes at a fraction of the positions of an empty grid: ids (B, N) -> (B, N).

    `random_codes` is that fraction; `generators` is one for each image. The model cannot tell
    random codes from known ones, so a grid with some known tokens is a ValueError.
    """
    B, N = ids.shape
    hidden = (ids == mask_id).sum(dim=-1)  # B
    if ((hidden > 0) & (hidden < N)).any():
        raise ValueError("a model with random_codes above 0 fills no holes; take its teacher")
    rows = [partly_random(1, N, mask_id, 1 - random_codes, generator) for generator in generators]
    return torch.cat(rows)


def partly_random(B: int, N: int, K: int, hidden: float, generator: torch.Generator) -> Tensor:
    """Ids (B, N) that show nothing: exactly ceil(hidden N) of each row hidden, random codes else.

    K is the mask id. A model that draws in one pass starts from such a grid (Di[M]O, 2503.15457).
    The codes mean nothing, but all positions see them, so all can agree on one image.
    """
    codes = torch.randint(K, (B, N), generator=generator, device=generator.device)  # B N
    counts = torch.full((B,), math.ceil(hidden * N))
    mask = schedule.random_masks(counts, N, generator)  # B N
    return codes.masked_fill(mask.to(codes.device), K)
