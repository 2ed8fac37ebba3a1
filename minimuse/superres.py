"""Super-resolution: from the low-res tokens and the caption to the tokens of a picture twice as large.

Not pixels are scaled up but tokens translated (Muse, 2301.00704, section 2.4): a small transformer reads the low-res tokens, none of
them hidden; its output is concatenated with the text embeddings; a decoder over the masked high-res grid, with multi-axis attention,
looks at both by cross-attention. Loss and decoding are the base model's. Not in Muse: each low-res token also spreads over the high-res
tokens that it covers, which begin with a vector from it: cross-attention alone takes long to find out what lies where.
Letters: as in `maskgit.py`; n low-res tokens, N high-res tokens.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from minimuse.maskgit import BaseConfig
from minimuse.transformer import Block, Context, GridPositions, TokenDecoder, initialize_weights, norm, start_like, start_white


@dataclass(frozen=True)
class SuperResConfig(BaseConfig):
    encoder_layers: int  # self-attention over the low-res tokens
    window: int  # side of a local window, in tokens


class SuperRes(nn.Module):
    """Low-res tokens on a low_grid x low_grid, high-res tokens on a grid x grid."""

    def __init__(self, config: SuperResConfig, low_codes: int, low_grid: int, codes: int, grid: int, text_width: int):
        super().__init__()
        width = config.width
        self.low_grid, self.grid = low_grid, grid
        self.text = nn.Sequential(nn.Linear(text_width, width), norm(width))
        self.low_embedding = nn.Embedding(low_codes, width)
        self.low_positions = GridPositions(low_grid, width)
        self.low_blocks = nn.ModuleList(Block(width, config.heads, low_grid, cross=False) for _ in range(config.encoder_layers))
        self.low_norm = norm(width)
        self.spread = nn.Linear(width, (grid // low_grid) ** 2 * width, bias=False)
        self.decoder = TokenDecoder(codes, grid, width, config.heads, config.layers, config.window)
        self.mask_id = codes
        initialize_weights(self, config.layers)
        nn.init.normal_(self.spread.weight, std=width**-0.5)  # what it gives weighs as much as what it gets

    def start(self, text: torch.Tensor, low_codes: torch.Tensor, codes: torch.Tensor) -> None:
        """As the base model's, with both tokenizers' code vectors, (k, C) and (K, C); embeddings weigh as much as `below`."""
        start_white(self.text[0], text)
        start_like(self.low_embedding.weight, low_codes, std=0.5)
        self.decoder.start(codes, std=0.5)

    def context(self, text: torch.Tensor, visible: torch.Tensor, low_ids: torch.Tensor) -> Context:
        """Text (B, T, E) with its mask (B, T), low-res ids (B, n), which are always visible -> what `forward` looks at."""
        low = self.low_embedding(low_ids) + self.low_positions()  # B n D
        for block in self.low_blocks:
            low = block(low)  # B n D
        low = self.low_norm(low)
        both = torch.cat([low, self.text(text).to(low.dtype)], dim=1)  # B n+T D
        seen = torch.ones_like(low_ids, dtype=torch.bool)
        y, i = self.low_grid, self.grid // self.low_grid
        below = rearrange(self.spread(low), "B (y x) (i j D) -> B (y i x j) D", y=y, i=i, j=i)  # B N D
        return self.decoder.keys_values(both, torch.cat([seen, visible], dim=1), below)

    def forward(self, ids: torch.Tensor, context: Context, where: torch.Tensor | None = None) -> torch.Tensor:
        """High-res ids (B, N), K = masked -> logits (B, N, K), or (M, K) where `where` is True."""
        return self.decoder(ids, context, where)
