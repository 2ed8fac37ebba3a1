"""Super-resolution: from the low-res tokens and the caption to the tokens of a picture twice as large.

Not pixels are scaled up but tokens translated (Muse, 2301.00704, section 2.4): a small transformer reads the low-res tokens, none of
them hidden; its output is concatenated with the text embeddings; a decoder over the masked high-res grid, with multi-axis attention,
looks at both by cross-attention. Loss and decoding are the base model's. Not in Muse: each low-res token also spreads over the high-res
tokens that it covers, which begin with a vector from it: cross-attention alone takes long to find out what lies where. And, for those
in a hurry, `piece`: high-res tokens see only those of their piece, and it is learnt from a quarter of the pieces, with little background.
Letters: as in `maskgit.py`; n low-res tokens, N high-res tokens.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from minimuse.maskgit import BaseConfig
from minimuse.transformer import (
    Block,
    Context,
    GridPositions,
    TokenDecoder,
    initialize_weights,
    layer_norm,
    start_like,
    start_white,
)


@dataclass(frozen=True)
class SuperResConfig(BaseConfig):
    encoder_layers: int  # self-attention over the low-res tokens
    window: int  # side of a local window, in tokens; 0: attention over the whole grid
    piece: int = 0  # side, in tokens, of the pieces that are learnt and drawn without a look at each other; 0: the whole grid is one


class SuperRes(nn.Module):
    """Low-res tokens on a low_grid x low_grid, high-res tokens on a grid x grid."""

    def __init__(
        self,
        config: SuperResConfig,
        low_codes: int,
        low_grid: int,
        codes: int,
        grid: int,
        text_width: int,
    ):
        super().__init__()
        width, self.low_grid, self.grid, self.piece = (
            config.width,
            low_grid,
            grid,
            config.piece or grid,
        )
        if grid < low_grid or grid % self.piece or self.piece % (grid // low_grid):
            raise ValueError(
                f"a grid of {grid} tokens cannot be cut into pieces of {self.piece}, each what some low-res tokens cover"
            )
        self.text = nn.Sequential(nn.Linear(text_width, width), layer_norm(width))
        self.low_embedding = nn.Embedding(low_codes, width)
        self.low_positions = GridPositions(low_grid, width)
        self.low_blocks = nn.ModuleList(
            Block(width, config.heads, low_grid, cross=False) for _ in range(config.encoder_layers)
        )
        self.low_norm = layer_norm(width)
        self.spread = nn.Linear(width, (grid // low_grid) ** 2 * width, bias=False)
        self.decoder, self.mask_id = (
            TokenDecoder(codes, self.piece, width, config.heads, config.layers, config.window),
            codes,
        )
        initialize_weights(self, config.layers)
        nn.init.normal_(
            self.spread.weight, std=width**-0.5
        )  # what it gives weighs as much as what it gets

    def start(self, text: torch.Tensor, low_codes: torch.Tensor, codes: torch.Tensor) -> None:
        """As the base model's, with both tokenizers' code vectors, (k, C) and (K, C); embeddings weigh as much as `below`."""
        start_white(self.text[0], text)
        start_like(self.low_embedding.weight, low_codes, std=0.5)
        self.decoder.start(codes, std=0.5)

    def context(
        self,
        text: torch.Tensor,
        visible: torch.Tensor,
        low_ids: torch.Tensor,
        places: torch.Tensor | None = None,
    ) -> Context:
        """Text (B, T, E) with its mask (B, T), low-res ids (B, n), always visible -> what `forward` looks at, or what it does at `places` (B, M)."""
        low = self.low_embedding(low_ids) + self.low_positions()  # B n D
        for block in self.low_blocks:
            low = block(low)  # B n D
        low = self.low_norm(low)
        both = torch.cat([low, self.text(text).to(low.dtype)], dim=1)  # B n+T D
        i = self.grid // self.low_grid
        if (
            places is not None
        ):  # of the low-res tokens, those above them: each square of i x i lies under one
            first = rearrange(
                places, "B (y i x j) -> B (y x) (i j)", i=i, j=i, x=math.isqrt(places.shape[1]) // i
            )[..., 0]
            low = low[
                torch.arange(len(low))[:, None],
                first // self.grid // i * self.low_grid + first % self.grid // i,
            ]  # B m D
        below = rearrange(
            self.spread(low),
            "B (y x) (i j D) -> B (y i x j) D",
            y=math.isqrt(low.shape[1]),
            i=i,
            j=i,
        )  # B N D, or B M D
        return self.decoder.keys_values(
            both, torch.cat([torch.ones_like(low_ids, dtype=torch.bool), visible], dim=1), below
        )

    def forward(
        self, ids: torch.Tensor, context: Context, where: torch.Tensor | None = None
    ) -> torch.Tensor:
        """High-res ids (B, N), K = masked -> logits (B, N, K), or (M, K) where `where` is True."""
        return self.decoder(ids, context, where)

    def places(self, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Where a random quarter of the pieces of each picture (B, N) is, as a picture half as wide (B, M). The more tokens of a piece are
        not its commonest, the likelier it is to be taken: there is little to learn where all are alike."""
        pieces = rearrange(
            torch.arange(self.grid**2),
            "(y i x j) -> (y x) (i j)",
            i=self.piece,
            j=self.piece,
            x=self.grid // self.piece,
        )
        busy = (
            (ids[:, pieces] != ids[:, pieces].mode(dim=-1, keepdim=True).values)
            .sum(dim=-1)
            .float()
            .cpu()
        )  # B P
        side = max(1, self.grid // self.piece // 2)
        taken = pieces[torch.multinomial(busy + 1, side**2, generator=generator)].to(ids.device)
        return rearrange(taken, "B (y x) (i j) -> B (y i x j)", y=side, i=self.piece)
