"""Super-resolution: translate low-res tokens and a caption to the tokens of a larger image.

It scales up tokens, not pixels (Muse, 2301.00704, section 2.4). A small transformer encodes all
low-res tokens, none of them masked: the true ones in training, those of the base model in drawing.
Its output is concatenated with the text embeddings. A `TokenDecoder` over the partly masked
high-res grid attends to both. The loss and the decoding are those of the base model.

Not in Muse:

- Each high-res token starts from a vector made from the low-res token that covers it.
  Cross-attention alone takes long to find out which low-res token lies where.
- Optional and faster: `piece`. Self-attention then stays inside a piece of the grid
  (cross-attention still sees everything), and a step trains on a quarter of them, mostly busy ones.

    context = model.context(text, visible, low_ids)    # low_ids (B, n)
    logits = model(ids, context)                       # ids (B, N), K = masked -> (B, N, K)

Letters: B C D E K L M T as in `maskgit.py`; n low-res tokens, N high-res tokens, Q of them sampled
for a training step, P pieces.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from minimuse.maskgit import BaseConfig
from minimuse.plumbing.initialization import initialize_weights, start_like, start_white
from minimuse.plumbing.ranges import check_grids
from minimuse.transformer import Block, Context, GridPositions, TokenDecoder, layer_norm


@dataclass(frozen=True)
class SuperResConfig(BaseConfig):
    """The size of the super-resolution model: its own width, layers and heads, and these."""

    encoder_layers: int  # self-attention over the low-res tokens
    window: int  # side of a local window, in tokens; 0: full attention
    piece: int = 0  # side of a piece that attends to itself only, in tokens; 0: the whole grid


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
        width, heads = config.width, config.heads
        self.low_grid, self.grid = low_grid, grid
        self.piece = config.piece or grid
        check_grids(low_grid, grid, self.piece)
        scale = grid // low_grid  # each low-res token covers scale x scale high-res tokens
        self.text = nn.Sequential(nn.Linear(text_width, width), layer_norm(width))
        self.low_embedding = nn.Embedding(low_codes, width)
        self.low_positions = GridPositions(low_grid, width)
        self.low_blocks = nn.ModuleList(
            Block(width, heads, low_grid, cross=False) for _ in range(config.encoder_layers)
        )
        self.low_norm = layer_norm(width)
        self.spread = nn.Linear(width, scale**2 * width, bias=False)
        self.decoder = TokenDecoder(codes, self.piece, width, heads, config.layers, config.window)
        self.mask_id = codes
        initialize_weights(self, config.layers)
        # The output of `spread` then has the same variance as its input.
        nn.init.normal_(self.spread.weight, std=width**-0.5)

    def start(self, text: Tensor, low_vectors: Tensor, vectors: Tensor) -> None:
        """Initialise from what is known before training, as the base model does.

        That is the embeddings of the captions' words (L, E) and the code vectors (K, C) of both
        tokenizers. Token embeddings start larger than in the base model (0.5 and not 0.3), because
        vectors of standard deviation 1, from the low-res tokens, are added to them.
        """
        start_white(self.text[0], text)
        start_like(self.low_embedding.weight, low_vectors, std=0.5)
        self.decoder.start(vectors, std=0.5)

    def context(
        self, text: Tensor, visible: Tensor, low_ids: Tensor, places: Tensor | None = None
    ) -> Context:
        """Text (B, T, E), its mask (B, T), low-res ids (B, n) -> what `forward` attends to.

        `places` (B, Q) are token numbers from `sample_places`, for a training step on only those
        Q tokens of each image. Cross-attention sees all low-res tokens in any case.
        """
        low = self.low_embedding(low_ids) + self.low_positions()  # B n D
        for block in self.low_blocks:
            low = block(low)  # B n D
        low = self.low_norm(low)  # B n D
        both = torch.cat([low, self.text(text).to(low.dtype)], dim=1)  # B n+T D
        # Low-res tokens are visible even if the caption is absent.
        low_visible = torch.ones_like(low_ids, dtype=torch.bool)  # B n
        both_visible = torch.cat([low_visible, visible], dim=1)  # B n+T
        # One vector for each square of high-res tokens that a low-res token covers.
        low_of_squares = low  # B n D
        if places is not None:
            rows = torch.arange(len(low))[:, None]  # B 1
            low_of_squares = low[rows, covering(places, self.grid, self.low_grid)]  # B Q/scale^2 D
        scale = self.grid // self.low_grid
        from_low = spread_over_squares(self.spread(low_of_squares), scale)  # B N D or B Q D
        return self.decoder.make_context(both, both_visible, from_low)

    def forward(self, ids: Tensor, context: Context, where: Tensor | None = None) -> Tensor:
        """High-res ids (B, N), K = masked -> logits (B, N, K).

        With `where` (B, N) bool, only the logits of the M tokens where it is True: (M, K).
        """
        return self.decoder(ids, context, where)

    def sample_places(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Sample a quarter of the pieces of each row of ids (B, N) -> their token numbers (B, Q).

        The more tokens of a piece differ from its most common one, the likelier it is sampled:
        there is little to learn from a plain background. The decoder needs a square grid, so the
        sampled pieces are laid out as one, in the order in which they are sampled:

            0  1  2  3
            4  5  6  7       16 pieces, of which       6  9
            8  9 10 11       6, 9, 2, 13 are sampled   2 13
           12 13 14 15

        Without pieces it is all tokens, in order.
        """
        pieces = piece_tokens(self.grid, self.piece)  # P, tokens of a piece
        side = max(1, self.grid // self.piece // 2)  # of the new image, in pieces
        # On the CPU, because Apple's GPUs have no mode in PyTorch.
        weights = differing_tokens(ids.cpu()[:, pieces]).float() + 1  # B P
        sampled = torch.multinomial(weights, side**2, generator=generator)  # B side^2
        tokens = pieces[sampled].to(ids.device)  # B side^2 tokens
        return rearrange(tokens, "B (y x) (i j) -> B (y i x j)", y=side, i=self.piece)


# --- What lies where. Tokens of a grid are numbered as one reads a page. ---


def spread_over_squares(vectors: Tensor, scale: int) -> Tensor:
    """Lay out the vectors that each low-res token has for the high-res tokens it covers.

    vectors (B, n, scale * scale * D) -> (B, N, D). Here 4 low-res tokens, and a scale of 2:

        low-res      high-res
                      0  1 |  2  3
         0   1        4  5 |  6  7      the four vectors of low-res token 1
                     ------+-------     go to high-res tokens 2, 3, 6, 7
         2   3        8  9 | 10 11
                     12 13 | 14 15
    """
    side = math.isqrt(vectors.shape[1])  # of the low-res grid
    return rearrange(vectors, "B (y x) (i j D) -> B (y i x j) D", y=side, i=scale, j=scale)


def covering(places: Tensor, grid: int, low_grid: int) -> Tensor:
    """The low-res token that covers each square of sampled high-res tokens.

    places (B, Q): numbers of high-res tokens, an image made of q whole squares. -> (B, q). Here a
    low-res grid of 2, a grid of 4, and its squares in another order:

        low-res      high-res           places             covered by
                      0  1 |  2  3      10 11 |  2  3
         0   1        4  5 |  6  7      14 15 |  6  7      3   1
                     ------+-------     ------+-------
         2   3        8  9 | 10 11       0  1 |  8  9      0   2
                     12 13 | 14 15       4  5 | 12 13
    """
    scale = grid // low_grid
    side = math.isqrt(places.shape[1]) // scale  # of the sampled image, in squares
    squares = rearrange(places, "B (y i x j) -> B (y x) (i j)", i=scale, j=scale, x=side)
    upper_left = squares[..., 0]  # B m
    row, column = upper_left // grid, upper_left % grid
    return row // scale * low_grid + column // scale


def piece_tokens(grid: int, piece: int) -> Tensor:
    """The numbers of the tokens of each piece: (P, piece * piece).

    Here a grid of 4 with pieces of 2:

         0  1 |  2  3
         4  5 |  6  7      [[ 0,  1,  4,  5], [ 2,  3,  6,  7],
        ------+-------      [ 8,  9, 12, 13], [10, 11, 14, 15]]
         8  9 | 10 11
        12 13 | 14 15
    """
    numbers = torch.arange(grid**2)
    return rearrange(numbers, "(y i x j) -> (y x) (i j)", i=piece, j=piece, x=grid // piece)


def differing_tokens(ids: Tensor) -> Tensor:
    """How many tokens of each piece differ from its most common one: (B, P, tokens) -> (B, P)."""
    most_common = ids.mode(dim=-1, keepdim=True).values  # B P 1
    return (ids != most_common).sum(dim=-1)
