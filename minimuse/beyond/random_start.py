"""What a model distilled into one pass (`distill.py`) sees in place of an empty grid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minimuse.maskgit import partly_random


def random_start(
    ids: Tensor, mask_id: int, fraction: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Put random codes at a `fraction` of the positions of an empty grid: ids (B, N) -> (B, N).

    `generators` is one for each image. The model cannot tell random codes from known ones, so a
    grid with some known tokens is a ValueError.
    """
    B, N = ids.shape
    hidden = (ids == mask_id).sum(dim=-1)  # B
    if ((hidden > 0) & (hidden < N)).any():
        raise ValueError("a model with random_codes above 0 fills no holes; take its teacher")
    rows = [partly_random(1, N, mask_id, 1 - fraction, generator) for generator in generators]
    return torch.cat(rows)
