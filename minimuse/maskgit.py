"""The base model: predict hidden image tokens from the visible ones and a caption.

Training hides a random share of an image's tokens and asks for them back (Muse, 2301.00704, section 2.3): like BERT, but from almost
nothing to everything, so that the same model starts from an empty grid and fills any hole. The model never masks anything by itself.
Letters: B batch, N image tokens, K codes, D width, T text tokens, E text width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from minimuse import schedule
from minimuse.transformer import Context, TokenDecoder, initialize_weights, layer_norm, start_white


@dataclass(frozen=True)
class BaseConfig:
    width: int  # D
    layers: int
    heads: int

    def __post_init__(self):
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")


class MaskGit(nn.Module):
    """Text-conditioned masked transformer over a grid x grid of tokens."""

    def __init__(self, config: BaseConfig, codes: int, grid: int, text_width: int):
        super().__init__()
        self.text = nn.Sequential(nn.Linear(text_width, config.width), layer_norm(config.width))
        self.decoder, self.mask_id = (
            TokenDecoder(codes, grid, config.width, config.heads, config.layers),
            codes,
        )
        initialize_weights(self, config.layers)

    def start(self, text: torch.Tensor, codes: torch.Tensor) -> None:
        """Begin with what is known before training: embeddings of the captions' words (M, E), the tokenizer's code vectors (K, C)."""
        start_white(self.text[0], text)
        self.decoder.start(codes, std=0.3)

    def context(self, text: torch.Tensor, visible: torch.Tensor) -> Context:
        """Frozen text embeddings (B, T, E) and their mask (B, T) -> what `forward` looks at."""
        return self.decoder.keys_values(self.text(text), visible)

    def forward(
        self, ids: torch.Tensor, context: Context, where: torch.Tensor | None = None
    ) -> torch.Tensor:
        """ids (B, N), K = masked -> logits (B, N, K), or (M, K) for the M tokens `where` (B, N) is True."""
        return self.decoder(ids, context, where)


class Corrupted(NamedTuple):
    ids: torch.Tensor  # (B, N), hidden ones replaced by the mask id
    hidden: torch.Tensor  # (B, N) bool


def hide(
    ids: torch.Tensor, mask_id: int, generator: torch.Generator, law: str = "cosine"
) -> Corrupted:
    """Hide a random share of each row's tokens (B, N): its own ratio from `law`, an exact count, random places."""
    counts = schedule.mask_counts(
        schedule.sample_ratios(len(ids), generator, law), ids.shape[1]
    )  # B
    hidden = schedule.random_masks(counts, ids.shape[1], generator).to(ids.device)  # B N
    return Corrupted(ids.masked_fill(hidden, mask_id), hidden)


def drop_captions(visible: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Blank a random `share` of the rows of a text mask (B, T): those images are learnt without caption, as guidance
    needs (10 % in Muse, section 2.7). Applied to the mask, after embedding: a dropped row's text cannot leak."""
    dropped = torch.rand(len(visible), generator=generator) < share
    return visible & ~dropped.to(visible.device)[:, None]


class TokenLoss(NamedTuple):
    loss: torch.Tensor  # mean cross-entropy over the hidden tokens of the whole batch, in nats
    correct: torch.Tensor  # share of hidden tokens whose most likely code is right


def masked_token_loss(logits: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor) -> TokenLoss:
    """logits (M, K) at the M hidden tokens, true ids (B, N), hidden (B, N) with M True -> one mean over all M: a mean
    of the rows' means would weigh a token by how few others were hidden beside it."""
    target = ids[hidden]
    return TokenLoss(F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean())
