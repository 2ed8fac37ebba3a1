"""Attention and the transformer block that the base and the super-resolution model share.

A block is self-attention over image tokens, cross-attention to the context (the text, and in
super-resolution the low-res tokens too), and an MLP (Muse, 2301.00704, section 2.3 and figure 3).
Here a layer norm precedes each of the three. Over a fine grid self-attention is *multi-axis*
(2106.07631, section 3.2): half of the heads attend within local windows, the other half along a
dilated grid that spans the image.

No linear layer of a block has a bias. So where there is nothing to attend to (in the base model, a
caption that is absent), cross-attention adds exactly zero.

Letters: B batch, N image tokens, K codes, T context tokens, D width, H heads, d width of a head,
h w token grid.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimuse.plumbing.initialization import start_like


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Softmax attention: softmax(q k^T / sqrt(d) + bias) v.

    q (..., N, d), k and v (..., T, d) -> (..., N, d). The bias is (H, N, T). `visible` (B, T) bool,
    for a q of (B, H, N, d): True where a key may be attended to. A row of the batch without any
    visible key gets exactly zero, and sends a gradient of zero, not NaN.
    """
    attention = attend_fused if q.is_cuda else attend_plain
    if visible is None:
        return attention(q, k, v, None, bias)
    has_keys = visible.any(dim=-1)[:, None, None, None]  # (B, 1, 1, 1)
    # A softmax over no keys is 0 / 0. So let a row without a visible key attend to all of them, and
    # multiply its result by zero.
    key_mask = visible[:, None, None, :] | ~has_keys  # (B, 1, 1, T)
    return attention(q, k, v, key_mask, bias) * has_keys


def attend_fused(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Attention on a GPU: one call that never writes the scores to memory."""
    mask = key_mask
    if bias is not None:
        mask = bias  # (H, N, T)
        if key_mask is not None:
            mask = mask + key_mask.log()  # log(True) = 0, log(False) = -inf
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_plain(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Attention on a CPU: written out, since for short sequences its backward pass is several
    times faster than that of PyTorch's fused function."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (..., N, T)
    if bias is not None:
        # Adding in bfloat16 is faster, but only if a row of keys fills a 512-bit vector register.
        if k.shape[-2] >= 32:
            bias = bias.to(scores.dtype)
        scores = scores + bias
    if key_mask is not None:
        scores = scores + key_mask.log()  # log(True) = 0, log(False) = -inf
    # Autocast would run the softmax in float32, on a copy of the scores.
    with torch.autocast("cpu", enabled=False):
        weights = scores.softmax(dim=-1).to(v.dtype)  # (..., N, T)
        return weights @ v  # (..., N, d)


class OffsetBias(nn.Module):
    """Learned relative positions: a number per head and 2-D offset, added to the scores.

    The offset is query minus key, in rows and columns of a side x side grid. Not in Muse.
    At first the bias of a head is highest near a point at distance 1, and the heads have different
    directions (as in ConViT, 2103.10697).
    """

    def __init__(self, heads: int, side: int):
        super().__init__()
        row = torch.arange(side**2) // side  # (N,)
        column = torch.arange(side**2) % side
        # Offsets are at least 1 - side: add side - 1, so that they can index a table.
        rows = row[:, None] - row[None, :] + side - 1  # (N, N)
        columns = column[:, None] - column[None, :] + side - 1
        self.register_buffer("offsets", rows * (2 * side - 1) + columns, persistent=False)
        # The weight is minus twice the distance of each offset from the head's point.
        step = torch.arange(1 - side, side)  # all offsets along one axis
        angle = 2 * math.pi / max(heads, 4) * torch.arange(heads)[:, None, None]  # (H, 1, 1)
        row_gap = step[:, None] - angle.sin()  # (H, 2 side - 1, 1)
        column_gap = step - angle.cos()  # (H, 1, 2 side - 1)
        distance = (row_gap**2 + column_gap**2).sqrt()  # (H, 2 side - 1, 2 side - 1)
        self.weight = nn.Parameter(-2 * distance.flatten(1))

    def forward(self) -> Tensor:
        """-> (H, N, N): the bias of each pair of tokens."""
        bias = self.weight.index_select(1, self.offsets.flatten())  # (H, N * N)
        return bias.unflatten(1, self.offsets.shape)  # (H, N, N)


class SelfAttention(nn.Module):
    """Self-attention over the tokens of a grid x grid; with a window, multi-axis.

    The input may consist of several grids side by side. Each then attends to itself alone.
    """

    def __init__(self, width: int, heads: int, grid: int, window: int = 0):
        super().__init__()
        self.heads, self.grid, self.window = heads, grid, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        if window:
            local = OffsetBias(heads // 2, window)
            dilated = OffsetBias(heads // 2, grid // window)
            self.biases = nn.ModuleList([local, dilated])
        else:
            self.biases = nn.ModuleList([OffsetBias(heads, grid)])

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        grids = math.isqrt(x.shape[1]) // self.grid  # along one side
        # Several grids occur only in super-resolution by pieces: (i, j) is a token of grid (y, x).
        sizes = dict(y=grids, x=grids, i=self.grid, j=self.grid)
        into_grids = "B (y i x j) (three H d) -> three (B y x) H (i j) d"
        qkv = rearrange(self.qkv(x), into_grids, three=3, H=self.heads, **sizes)
        biases = [bias() for bias in self.biases]
        if self.window:
            mixed = multi_axis(qkv, self.grid, self.window, biases)  # (B y x) H (i j) d
        else:
            mixed = attend(*qkv, bias=biases[0])  # (B y x) H (i j) d
        return self.out(rearrange(mixed, "(B y x) H (i j) d -> B (y i x j) (H d)", **sizes))


def multi_axis(
    qkv: Tensor, grid: int, window: int, biases: Sequence[Tensor | None] = (None, None)
) -> Tensor:
    """Multi-axis self-attention over a square grid of windows (2106.07631, section 3.2).

    qkv (3, B, H, N, d) -> (B, H, N, d). The first half of the heads is local: a token attends to
    its window. The second half is dilated: a token attends to the tokens that have its place in
    their windows. The biases, if given, are one for each half. A grid of 4 with windows of 2:

        A A B B     local: the     a b a b     dilated: the
        A A B B     four A attend  c d c d     four a attend
        C C D D     to each other  a b a b     to each other
        C C D D                    c d c d
    """
    local_bias, dilated_bias = biases
    # Token (y, i, x, j) lies in row i and column j of window (y, x).
    sizes = dict(y=grid // window, x=grid // window, i=window, j=window)
    local, dilated = qkv.chunk(2, dim=2)  # 3 B H/2 N d
    local = rearrange(local, "three B H (y i x j) d -> three (B y x) H (i j) d", **sizes)
    local = attend(*local, bias=local_bias)
    local = rearrange(local, "(B y x) H (i j) d -> B H (y i x j) d", **sizes)

    dilated = rearrange(dilated, "three B H (y i x j) d -> three (B i j) H (y x) d", **sizes)
    dilated = attend(*dilated, bias=dilated_bias)
    dilated = rearrange(dilated, "(B i j) H (y x) d -> B H (y i x j) d", **sizes)
    return torch.cat([local, dilated], dim=1)  # B H N d


class Context(NamedTuple):
    """What a model knows besides its own tokens: keys and values for each layer's cross-attention.

    They do not depend on the tokens being decoded, so decoding computes them once for all steps.
    """

    keys: list[Tensor]  # per layer (B, H, T, d)
    values: list[Tensor]  # per layer (B, H, T, d)
    visible: Tensor  # (B, T) bool, True = real token, False = padding
    # (B, N, D): super-resolution adds it to the embeddings of its tokens. Each vector is made from
    # the low-res token that covers the high-res token. In the base model it is 0.
    from_low: Tensor | float = 0.0

    def join(self, other: "Context") -> "Context":
        """Stack the rows of two contexts of equal length: one batch for both."""
        keys = [torch.cat(pair) for pair in zip(self.keys, other.keys, strict=True)]
        values = [torch.cat(pair) for pair in zip(self.values, other.values, strict=True)]
        visible = torch.cat([self.visible, other.visible])
        if not torch.is_tensor(self.from_low):
            return Context(keys, values, visible)
        return Context(keys, values, visible, torch.cat([self.from_low, other.from_low]))


class CrossAttention(nn.Module):
    """Image tokens attend to the tokens of the context."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def keys_values(self, context: Tensor) -> Tensor:
        """context (B, T, D) -> (2, B, H, T, d): keys and values."""
        return rearrange(self.kv(context), "B T (two H d) -> two B H T d", two=2, H=self.heads)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """x (B, N, D), k and v (B, H, T, d), visible (B, T) -> (B, N, D)."""
        q = rearrange(self.q(x), "B N (H d) -> B H N d", H=self.heads)
        mixed = attend(q, k, v, visible)  # B H N d
        return self.out(rearrange(mixed, "B H N d -> B N (H d)"))


def layer_norm(width: int) -> nn.LayerNorm:
    """A layer norm without bias."""
    return nn.LayerNorm(width, bias=False)


class Block(nn.Module):
    """Self-attention, cross-attention (unless `cross` is False), MLP."""

    def __init__(self, width: int, heads: int, grid: int, window: int = 0, cross: bool = True):
        super().__init__()
        self.norm_self = layer_norm(width)
        self.self_attention = SelfAttention(width, heads, grid, window)
        self.cross = cross
        if cross:
            self.norm_cross = layer_norm(width)
            self.cross_attention = CrossAttention(width, heads)
        self.norm_mlp = layer_norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(
        self,
        x: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        visible: Tensor | None = None,
        where: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, D), k and v (B, H, T, d), visible (B, T) -> (B, N, D).

        With `where` (B, N) bool, the MLP sees only the M tokens where it is True -> (M', D): those
        M rows, then rows of zeros, see `rows_where`.
        """
        x = x + self.self_attention(self.norm_self(x))  # B N D
        if self.cross:
            x = x + self.cross_attention(self.norm_cross(x), k, v, visible)  # B N D
        if where is not None:
            x = rows_where(x, where)  # M' D
        return x + self.mlp(self.norm_mlp(x))  # B N D or M' D


class GridPositions(nn.Module):
    """Learned 2-D positions: a vector per row plus a vector per column."""

    def __init__(self, grid: int, width: int):
        super().__init__()
        self.rows = nn.Parameter(0.02 * torch.randn(grid, width))
        self.columns = nn.Parameter(0.02 * torch.randn(grid, width))

    def forward(self, grids: int = 1) -> Tensor:
        """-> (N, D), for grids x grids copies of the grid side by side, with the same positions."""
        rows = self.rows.repeat(grids, 1)  # h D
        columns = self.columns.repeat(grids, 1)  # w D
        return rearrange(rows[:, None] + columns, "h w D -> (h w) D")


class TokenDecoder(nn.Module):
    """Partly masked tokens in, logits out: what the base and the super-resolution model share.

    Ids are 0 .. K - 1 for codes and K for the mask, which has an embedding but no logit. With a
    window, self-attention is multi-axis.
    """

    def __init__(self, codes: int, grid: int, width: int, heads: int, layers: int, window: int = 0):
        super().__init__()
        if window and (grid % window or heads % 2):
            raise ValueError(
                f"multi-axis attention needs a grid ({grid}) that is a multiple of the window "
                f"({window}) and an even number of heads ({heads})"
            )
        self.grid = grid
        self.embedding = nn.Embedding(codes + 1, width)
        self.positions = GridPositions(grid, width)
        self.blocks = nn.ModuleList(Block(width, heads, grid, window) for _ in range(layers))
        self.head = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.GELU(),
            layer_norm(width),
            nn.Linear(width, codes),
        )
        self.norm = layer_norm(width)

    def start(self, vectors: Tensor, std: float) -> None:
        """Initialise embeddings and head from the tokenizer's code vectors (K, C)."""
        start_like(self.embedding.weight, vectors, std)
        start_like(self.head[-1].weight, vectors, std=0.3)

    def make_context(
        self, context: Tensor, visible: Tensor, from_low: Tensor | float = 0.0
    ) -> Context:
        """context (B, T, D), visible (B, T) -> the keys and values of each layer."""
        # A CPU's softmax over 5 numbers takes 2.5 times as long as over 16: add invisible keys.
        missing = max(0, 16 - context.shape[1])
        context = F.pad(context, (0, 0, 0, missing))  # B T' D, T' = max(T, 16)
        visible = F.pad(visible, (0, missing))  # B T'
        keys, values = [], []
        for block in self.blocks:
            k, v = block.cross_attention.keys_values(context)  # B H T' d
            keys.append(k)
            values.append(v)
        return Context(keys, values, visible, from_low)

    def forward(self, ids: Tensor, context: Context, where: Tensor | None = None) -> Tensor:
        """ids (B, N) in 0 .. K, K = masked -> logits (B, N, K).

        With `where` (B, N) bool, only the logits of the M tokens where it is True: (M, K).
        """
        grids = math.isqrt(ids.shape[1]) // self.grid
        x = self.embedding(ids) + self.positions(grids) + context.from_low  # B N D
        *layers, last = zip(self.blocks, context.keys, context.values, strict=True)
        for block, k, v in layers:
            x = block(x, k, v, context.visible)  # B N D
        # Only hidden tokens need logits. After its attention the last block works on each token by
        # itself. So its MLP and the head leave out the known tokens.
        block, k, v = last
        x = block(x, k, v, context.visible, where)  # B N D or M' D
        logits = self.head(self.norm(x)).float()  # B N K or M' K
        return logits if where is None else logits[: int(where.sum())]


def rows_where(x: Tensor, where: Tensor) -> Tensor:
    """Select the M tokens of x (B, N, D) where `where` (B, N) is True, and add rows of zeros.

    -> (M', D). M differs from step to step, and a CPU's matrix library builds and keeps a kernel
    for each number of rows. Rounding up to a multiple of a 16th of all tokens leaves some 16 sizes.
    """
    rows = x[where]  # M D
    multiple = max(1, where.numel() // 16)
    return F.pad(rows, (0, 0, 0, -len(rows) % multiple))  # M' D
