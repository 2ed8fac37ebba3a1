"""Attention and the transformer block that the base and the super-resolution model share.

A block is self-attention over image tokens, cross-attention to the context (text, and for super-resolution the low-res tokens too),
and an MLP, each behind a pre-norm (Muse, 2301.00704, section 2.3 and figure 3). Over a fine grid, self-attention is *multi-axis*
(2106.07631, section 3.2): half of the heads look within local windows, the other half along a dilated grid that spans the picture.
Linear layers after the text's projection have no bias: where a caption is absent, cross-attention must add exactly zero.
Letters: B batch, N image tokens, T context tokens, D width, H heads, d width of a head, h w token grid.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
):
    """Softmax attention: q (..., N, d), k and v (..., T, d) -> (..., N, d). bias (H, N, T) is added to the scores. visible (B, T) bool,
    for q of (B, H, N, d): keys to look at; a row without any gets exactly zero, and a zero gradient, not NaN."""
    if visible is not None:
        alive = visible.any(dim=-1)[:, None, None, None]  # B 1 1 1
        visible = (
            visible[:, None, None, :] | ~alive
        )  # B 1 1 T: a dead row sees all, and is zeroed below
    if q.is_cuda:
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=visible
            if bias is None
            else (bias if visible is None else bias + visible.log()).to(q.dtype),
        )
    else:  # short sequences on a CPU: written out, its backward pass is several times quicker
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # ... N T
        if bias is not None:  # in bf16 as well, where a row fills a register: 32 numbers
            scores = scores + (bias if k.shape[-2] < 32 else bias.to(scores.dtype))
        if visible is not None:
            scores = scores + visible.log()  # 0 or -inf, in fp32
        with torch.autocast("cpu", enabled=False):  # it would take each softmax to fp32
            out = scores.softmax(dim=-1).to(v.dtype) @ v
    return out if visible is None else out * alive


class OffsetBias(nn.Module):
    """What each head adds to its scores for every 2-D offset between two tokens of a side x side grid; learned. Not in Muse. Each head
    starts by looking at the neighbour in a direction of its own (as in ConViT, 2103.10697)."""

    def __init__(self, heads: int, side: int):
        super().__init__()
        row, column = torch.arange(side**2) // side, torch.arange(side**2) % side
        offset = lambda place: place[:, None] - place[None, :] + side - 1  # N N, 0 .. 2 side - 2
        self.register_buffer(
            "offsets", offset(row) * (2 * side - 1) + offset(column), persistent=False
        )
        step, angle = (
            torch.arange(1 - side, side),
            2 * math.pi / max(heads, 4) * torch.arange(heads)[:, None, None],
        )
        distance = (
            (step[:, None] - angle.sin()) ** 2 + (step - angle.cos()) ** 2
        ).sqrt()  # H 2 side-1 2 side-1
        self.weight = nn.Parameter(-2 * distance.flatten(1))

    def forward(self) -> torch.Tensor:
        return self.weight.index_select(1, self.offsets.flatten()).unflatten(
            1, self.offsets.shape
        )  # H N N


class SelfAttention(nn.Module):
    """Over all tokens of a grid (of each, if there are several), or, given a window, multi-axis over windows of window x window tokens."""

    def __init__(self, width: int, heads: int, grid: int, window: int = 0):
        super().__init__()
        self.heads, self.grid, self.window = heads, grid, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        parts = [(heads // 2, window), (heads // 2, grid // window)] if window else [(heads, grid)]
        self.biases = nn.ModuleList(OffsetBias(*part) for part in parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pieces = math.isqrt(x.shape[1]) // self.grid  # along a side
        cut = dict(y=pieces, x=pieces, i=self.grid, j=self.grid)
        qkv = rearrange(
            self.qkv(x),
            "B (y i x j) (three H d) -> three (B y x) H (i j) d",
            three=3,
            H=self.heads,
            **cut,
        )
        biases = [bias() for bias in self.biases]
        mixed = (
            multi_axis(qkv, self.grid, self.window, *biases)
            if self.window
            else attend(*qkv, bias=biases[0])
        )
        return self.out(rearrange(mixed, "(B y x) H (i j) d -> B (y i x j) (H d)", **cut))


def multi_axis(qkv: torch.Tensor, grid: int, window: int, *biases: torch.Tensor) -> torch.Tensor:
    """Multi-axis self-attention over a square grid cut into windows: (3, B, H, N, d) -> (B, H, N, d). Half of the heads attends within
    each window, the other half among the tokens that have the same place in their windows. `biases`: one for each half."""
    local, dilated = qkv.chunk(2, dim=2)
    within, across = biases or (None, None)
    axes = dict(y=grid // window, x=grid // window, i=window, j=window)
    tokens = "three B H (y i x j) d"
    local = attend(*rearrange(local, f"{tokens} -> three (B y x) H (i j) d", **axes), bias=within)
    dilated = attend(
        *rearrange(dilated, f"{tokens} -> three (B i j) H (y x) d", **axes), bias=across
    )
    local = rearrange(local, "(B y x) H (i j) d -> B H (y i x j) d", **axes)
    dilated = rearrange(dilated, "(B i j) H (y x) d -> B H (y i x j) d", **axes)
    return torch.cat([local, dilated], dim=1)


class Context(NamedTuple):
    """What cross-attention looks at: keys and values of every layer, computed once per caption."""

    keys: list[torch.Tensor]  # per layer (B, H, T, d)
    values: list[torch.Tensor]
    visible: torch.Tensor  # (B, T) bool, True = real token
    below: torch.Tensor | float = (
        0.0  # (B, N, D) added to the tokens' embeddings: super-resolution's low-res picture
    )

    def join(self, other: "Context") -> "Context":
        """Stack the rows of two contexts of equal length, to run both through the model in one batch."""
        pairs = lambda a, b: [torch.cat(p) for p in zip(a, b)]
        below = torch.cat([self.below, other.below]) if torch.is_tensor(self.below) else 0.0
        return Context(
            pairs(self.keys, other.keys),
            pairs(self.values, other.values),
            torch.cat([self.visible, other.visible]),
            below,
        )


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def keys_values(self, context: torch.Tensor) -> torch.Tensor:
        """context (B, T, D) -> (2, B, H, T, d)."""
        return rearrange(self.kv(context), "B T (two H d) -> two B H T d", two=2, H=self.heads)

    def forward(
        self, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        q = rearrange(self.q(x), "B N (H d) -> B H N d", H=self.heads)
        return self.out(rearrange(attend(q, k, v, visible), "B H N d -> B N (H d)"))


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, bias=False)


class Block(nn.Module):
    """Self-attention, cross-attention (unless `cross` is False), MLP."""

    def __init__(self, width: int, heads: int, grid: int, window: int = 0, cross: bool = True):
        super().__init__()
        self.norm_self, self.self_attention = (
            layer_norm(width),
            SelfAttention(width, heads, grid, window),
        )
        self.cross = cross
        if cross:
            self.norm_cross, self.cross_attention = layer_norm(width), CrossAttention(width, heads)
        self.norm_mlp = layer_norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(
        self,
        x: torch.Tensor,
        k: torch.Tensor = None,
        v: torch.Tensor = None,
        visible: torch.Tensor = None,
    ) -> torch.Tensor:
        x = x + self.self_attention(self.norm_self(x))
        if self.cross:
            x = x + self.cross_attention(self.norm_cross(x), k, v, visible)
        return x + self.mlp(self.norm_mlp(x))


class GridPositions(nn.Module):
    """Learned 2-D positions: a vector per row plus a vector per column, the same ones in every piece of `pieces` x `pieces`."""

    def __init__(self, grid: int, width: int):
        super().__init__()
        self.rows, self.columns = (nn.Parameter(0.02 * torch.randn(grid, width)) for _ in range(2))

    def forward(self, pieces: int = 1) -> torch.Tensor:
        return rearrange(
            self.rows.repeat(pieces, 1)[:, None] + self.columns.repeat(pieces, 1),
            "h w D -> (h w) D",
        )


class TokenDecoder(nn.Module):
    """Masked tokens in, logits out: what both token models have in common. Id K, the mask, has an embedding but no logit."""

    def __init__(self, codes: int, grid: int, width: int, heads: int, layers: int, window: int = 0):
        super().__init__()
        if window and (grid % window or heads % 2):
            raise ValueError(
                f"multi-axis attention needs a grid ({grid}) in multiples of the window ({window}) and an even number of heads ({heads})"
            )
        self.grid, self.embedding = grid, nn.Embedding(codes + 1, width)
        self.positions = GridPositions(grid, width)
        self.blocks = nn.ModuleList(Block(width, heads, grid, window) for _ in range(layers))
        self.head = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.GELU(),
            layer_norm(width),
            nn.Linear(width, codes),
        )
        self.norm = layer_norm(width)

    def start(self, codes: torch.Tensor, std: float) -> None:
        """Begin with embeddings and logits alike for codes whose vectors (K, C) are."""
        start_like(self.embedding.weight, codes, std)
        start_like(self.head[-1].weight, codes, std=0.3)

    def keys_values(
        self, context: torch.Tensor, visible: torch.Tensor, below: torch.Tensor | float = 0.0
    ) -> Context:
        """context (B, T, D), visible (B, T) -> keys and values for each layer; 16 at the least: a CPU's softmax is far slower over fewer."""
        context, visible = (
            F.pad(context, (0, 0, 0, spare := max(0, 16 - context.shape[1]))),
            F.pad(visible, (0, spare)),
        )  # B T D, B T
        pairs = [block.cross_attention.keys_values(context) for block in self.blocks]
        return Context([k for k, _ in pairs], [v for _, v in pairs], visible, below)

    def forward(
        self, ids: torch.Tensor, context: Context, where: torch.Tensor | None = None
    ) -> torch.Tensor:
        """ids (B, N) in 0..K, K = masked -> logits (B, N, K); with where (B, N) bool only there: (M, K)."""
        x = (
            self.embedding(ids)
            + self.positions(math.isqrt(ids.shape[1]) // self.grid)
            + context.below
        )  # B N D
        for block, k, v in zip(self.blocks, context.keys, context.values):
            x = block(x, k, v, context.visible)  # B N D
        if where is None:
            return self.head(self.norm(x)).float()
        x = x[where]  # M D: the head is wide, run it only where it is needed
        spare = -len(x) % max(
            1, where.numel() // 16
        )  # at 16 sizes in all: a CPU builds kernels for each one, and keeps them
        return self.head(self.norm(F.pad(x, (0, 0, 0, spare))))[: len(x)].float()


def initialize_weights(model: nn.Module, layers: int) -> None:
    """Normal(0.02) in linear layers and embeddings; what writes to the residual stream is scaled down by its depth (GPT-2)."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            residual = name.endswith(("attention.out", "mlp.2"))
            nn.init.normal_(module.weight, std=0.02 / (3 * layers) ** 0.5 if residual else 0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def start_like(weight: nn.Parameter, codes: torch.Tensor, std: float) -> None:
    """Start the first K rows of a weight (.., D) as a random projection of K codes' vectors (K, C): codes that look alike start alike."""
    projected = codes @ torch.randn(codes.shape[1], weight.shape[1], device=codes.device)
    weight[: len(codes)] = std * (projected / projected.std() + 0.25 * torch.randn_like(projected))


@torch.no_grad()
def start_white(linear: nn.Linear, text: torch.Tensor) -> None:
    """Start a projection of text embeddings (M, E) such that all directions in which they differ weigh alike: T5's vectors have a large
    mean in common and a few long directions, which would drown what tells captions apart."""
    mean = text.mean(dim=0)
    lengths, directions = torch.linalg.eigh(
        torch.cov((text - mean).T)
    )  # variances, in ascending order
    lengths, directions = lengths[-len(linear.weight) :], directions[:, -len(linear.weight) :]
    turn = torch.linalg.qr(torch.randn(len(linear.weight), len(lengths), device=text.device))[
        0
    ]  # D min(D, E)
    linear.weight.copy_(turn @ (directions * (lengths + 0.05 * lengths.mean()).rsqrt()).T)
    linear.bias.copy_(-linear.weight @ mean)
