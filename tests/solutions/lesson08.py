"""Right solutions of lesson 08, in other ways."""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce

from solutions.lesson05 import attend_by_einsum, attend_by_sdpa


# --- halve ---
def check_even(images):
    H, W = images.shape[2:]
    for side in (H, W):
        if side % 2:
            raise ValueError(f"a side of {side} pixels is odd")


def mean_by_slices(images):
    check_even(images)
    return (
        images[..., ::2, ::2]
        + images[..., 1::2, ::2]
        + images[..., ::2, 1::2]
        + images[..., 1::2, 1::2]
    ) / 4


def mean_by_einops(images):
    check_even(images)
    return reduce(images, "B C (h y) (w x) -> B C h w", "mean", y=2, x=2)


def mean_by_convolution(images):
    check_even(images)
    kernel = torch.full((images.shape[1], 1, 2, 2), 0.25)
    return F.conv2d(images, kernel, stride=2, groups=images.shape[1])


def mean_by_area(images):
    check_even(images)
    H, W = images.shape[2:]
    return F.interpolate(images, (H // 2, W // 2), mode="area")


# --- attention_pairs ---
def pairs_by_counting(grid, window):
    places = [(y, x) for y in range(grid) for x in range(grid)]
    local = dilated = 0
    for y, x in places:
        for v, u in places:
            local += y // window == v // window and x // window == u // window
            dilated += y % window == v % window and x % window == u % window
    return len(places) ** 2, local, dilated


def pairs_by_formula(grid, window):
    N = grid * grid
    return N * N, N * window**2, N * (grid // window) ** 2


def pairs_by_groups(grid, window):
    """So many groups, each with all pairs of its members."""
    windows = (grid // window) ** 2
    members = window * window
    return (windows * members) ** 2, windows * members**2, members * windows**2


# --- sees_after ---
def one_layer(kind, grid, window):
    n = torch.arange(grid * grid)
    y, x = n // grid, n % grid
    if kind == "local":
        keys = y // window, x // window
    elif kind == "dilated":
        keys = y % window, x % window
    else:
        shift = window - window // 2
        keys = (y + shift) // window, (x + shift) // window
    return (keys[0][:, None] == keys[0]) & (keys[1][:, None] == keys[1])


def seen_by_products(layers, grid, window):
    seen = torch.eye(grid**2).double()
    for kind in layers:
        seen = ((one_layer(kind, grid, window).double() @ seen) > 0).double()
    return seen.bool()


def seen_by_sets(layers, grid, window):
    N = grid**2
    seen = [{n} for n in range(N)]
    for kind in layers:
        attends = one_layer(kind, grid, window).tolist()
        seen = [
            {x for m in range(N) if attends[n][m] for x in seen[m]} for n in range(N)
        ]  # fmt: skip
    return torch.tensor([[m in seen[n] for m in range(N)] for n in range(N)])


def seen_by_any(layers, grid, window):
    seen = torch.eye(grid**2, dtype=torch.bool)
    for kind in layers:
        attends = one_layer(kind, grid, window)
        seen = (attends[:, :, None] & seen[None]).any(1)
    return seen


# --- spread ---
def spread_by_einops(given, low_grid, grid):
    i = grid // low_grid
    pattern = "B (y x) (i j D) -> B (y i x j) D"
    return rearrange(given, pattern, y=low_grid, x=low_grid, i=i, j=i)


def spread_token_by_token(given, low_grid, grid):
    i = grid // low_grid
    B, D = given.shape[0], given.shape[2] // i**2
    out = torch.zeros(B, grid * grid, D, dtype=given.dtype)
    for y in range(grid):
        for x in range(grid):
            piece = (y % i) * i + x % i
            low_token = (y // i) * low_grid + x // i
            out[:, y * grid + x] = given[:, low_token, piece * D : (piece + 1) * D]
    return out


def spread_by_permuting(given, low_grid, grid):
    i = grid // low_grid
    pieces = given.reshape(len(given), low_grid, low_grid, i, i, -1)
    return pieces.permute(0, 1, 3, 2, 4, 5).reshape(len(given), grid * grid, -1)


def spread_by_pixel_shuffle(given, low_grid, grid):
    i = grid // low_grid
    image = rearrange(given, "B (y x) (p D) -> B (D p) y x", y=low_grid, p=i * i)
    return F.pixel_shuffle(image, i).flatten(2).transpose(1, 2)


# --- multi_axis ---
def axes_by_masks(qkv, grid, window):
    q, k, v = qkv
    H = q.shape[1]
    kinds = ["local"] * (H // 2) + ["dilated"] * (H // 2)
    visible = torch.stack([one_layer(kind, grid, window) for kind in kinds])
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v


def axes_group_by_group(qkv, grid, window):
    H = qkv.shape[2]
    out = torch.zeros_like(qkv[0])
    halves = (("local", slice(0, H // 2)), ("dilated", slice(H // 2, H)))
    for kind, heads in halves:
        groups = {tuple(row) for row in one_layer(kind, grid, window).tolist()}
        for group in sorted(groups):
            members = torch.tensor(group).nonzero()[:, 0]
            q, k, v = qkv[:, :, heads][:, :, :, members]
            out[:, heads, members] = attend_by_einsum(q, k, v)
    return out


def axes_by_moving(qkv, grid, window):
    sizes = dict(y=grid // window, x=grid // window, i=window, j=window)
    whole = "B H (y i x j) d"
    out = []
    groups = ("(B y x) H (i j) d", "(B i j) H (y x) d")
    for half, group in zip(qkv.chunk(2, dim=2), groups, strict=True):
        q, k, v = (rearrange(x, f"{whole} -> {group}", **sizes) for x in half)
        out.append(rearrange(attend_by_sdpa(q, k, v), f"{group} -> {whole}", **sizes))
    return torch.cat(out, dim=1)


# --- mean_vectors ---
def means_by_einsum(logits, ids, known, codebook):
    mixed = torch.einsum("bnk,kc->bnc", logits.softmax(-1), codebook)
    inside = ids.clamp(max=len(codebook) - 1)
    return torch.where(known.unsqueeze(-1), codebook[inside], mixed)


def means_in_place(logits, ids, known, codebook):
    out = torch.softmax(logits, dim=2) @ codebook
    out[known] = codebook[ids[known]]
    return out


def means_token_by_token(logits, ids, known, codebook):
    B, N, _ = logits.shape
    out = torch.zeros(B, N, codebook.shape[1])
    for b in range(B):
        for n in range(N):
            p = (logits[b, n] - logits[b, n].max()).exp()
            mean = (p[:, None] * codebook).sum(0) / p.sum()
            out[b, n] = codebook[ids[b, n]] if known[b, n] else mean
    return out


RIGHT = {
    "halve": (mean_by_slices, mean_by_einops, mean_by_convolution, mean_by_area),
    "attention_pairs": (pairs_by_counting, pairs_by_formula, pairs_by_groups),
    "sees_after": (seen_by_products, seen_by_sets, seen_by_any),
    "spread": (
        spread_by_einops,
        spread_token_by_token,
        spread_by_permuting,
        spread_by_pixel_shuffle,
    ),
    "multi_axis": (axes_by_masks, axes_group_by_group, axes_by_moving),
    "mean_vectors": (means_by_einsum, means_in_place, means_token_by_token),
}
