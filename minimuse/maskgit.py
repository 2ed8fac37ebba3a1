"""The base model: predict hidden image tokens from the visible ones and a caption.

Training hides a random fraction of an image's tokens and asks for them back (Muse, 2301.00704,
section 2.3). BERT always hides about 15 %; here the fraction lies anywhere between almost nothing
and everything. So the same model can start from an empty grid and can fill any hole. The model
never masks anything by itself: `hide` and `drop_captions` do, before it runs.

    masked_ids, hidden = hide(ids, model.mask_id, generator)          # ids (B, N)
    context = model.context(text, drop_captions(visible, 0.1, generator))
    logits = model(masked_ids, context, hidden)                       # (M, K)
    loss = masked_token_loss(logits, ids, hidden).loss

Letters: B batch, N image tokens, M hidden tokens of the batch, K codes, D width, T text tokens,
E text width, C width of a code vector, L words of captions.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimuse import schedule
from minimuse.plumbing.initialization import initialize_weights, start_white
from minimuse.plumbing.ranges import check_settings
from minimuse.transformer import Context, TokenDecoder, layer_norm


@dataclass(frozen=True)
class BaseConfig:
    """The size of the base model."""

    width: int  # D
    layers: int
    heads: int

    def __post_init__(self):
        check_settings(self)
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, not a multiple of {self.heads} heads")


class MaskGit(nn.Module):
    """Text-conditioned masked transformer over a grid x grid of tokens."""

    def __init__(self, config: BaseConfig, codes: int, grid: int, text_width: int):
        super().__init__()
        width = config.width
        self.text = nn.Sequential(nn.Linear(text_width, width), layer_norm(width))
        self.decoder = TokenDecoder(codes, grid, width, config.heads, config.layers)
        self.mask_id = codes
        initialize_weights(self, config.layers)

    def start(self, text: Tensor, vectors: Tensor) -> None:
        """Initialise from what is known before training.

        That is the embeddings of the captions' words (L, E) and the tokenizer's vectors (K, C).
        """
        start_white(self.text[0], text)
        self.decoder.start(vectors, std=0.3)

    def context(self, text: Tensor, visible: Tensor) -> Context:
        """Text embeddings (B, T, E) and their mask (B, T) -> what `forward` attends to."""
        return self.decoder.make_context(self.text(text), visible)

    def forward(self, ids: Tensor, context: Context, where: Tensor | None = None) -> Tensor:
        """ids (B, N), K = masked -> logits (B, N, K).

        With `where` (B, N) bool, only the logits of the M tokens where it is True: (M, K).
        """
        return self.decoder(ids, context, where)


class Corrupted(NamedTuple):
    """Ids in which some tokens are hidden."""

    ids: Tensor  # (B, N), hidden ones replaced by the mask id
    hidden: Tensor  # (B, N) bool


def hide(
    ids: Tensor,
    mask_id: int,
    generator: torch.Generator,
    law: str = "cosine",
    fully_hidden: float = 0.0,
) -> Corrupted:
    """Hide a random fraction of each row of ids (B, N), at random places.

    Each row draws a mask ratio of its own from the schedule `law` (Muse, section 2.6), and hides
    exactly that fraction of its N tokens, rounded up. With probability `fully_hidden`, a row hides
    all N tokens instead (not in Muse).
    """
    B, N = ids.shape
    ratios = schedule.sample_ratios(B, generator, law)  # B
    if fully_hidden:
        chosen = torch.rand(B, generator=generator, device=generator.device) < fully_hidden  # B
        ratios[chosen.cpu()] = 1.0
    counts = schedule.mask_counts(ratios, N)  # B
    hidden = schedule.random_masks(counts, N, generator).to(ids.device)  # B N
    return Corrupted(ids.masked_fill(hidden, mask_id), hidden)


def drop_captions(visible: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Blank each row of a text mask (B, T) with probability `fraction`.

    From rows without caption the model learns the unconditional distribution that guidance needs
    (10 % of rows in Muse, section 2.7). The text of a blanked row cannot leak: `attend` multiplies
    the attention of a row without visible keys by zero.
    """
    dropped = torch.rand(len(visible), generator=generator, device=generator.device) < fraction
    return visible & ~dropped.to(visible.device)[:, None]


class TokenLoss(NamedTuple):
    """How well the hidden tokens of a batch are predicted."""

    loss: Tensor  # mean cross-entropy of a hidden token, in nats
    correct: Tensor  # fraction of hidden tokens whose most likely code is right


def masked_token_loss(logits: Tensor, ids: Tensor, hidden: Tensor) -> TokenLoss:
    """Mean cross-entropy over the hidden tokens of the whole batch (Muse, section 2.3).

    logits (M, K) at the M hidden tokens, true ids (B, N), hidden (B, N) with M True. It is one mean
    over all M. A mean of the rows' means would give a token more weight the fewer are hidden
    beside it.
    """
    target = ids[hidden]  # M
    loss = F.cross_entropy(logits, target)
    correct = (logits.argmax(-1) == target).float().mean()
    return TokenLoss(loss, correct)
