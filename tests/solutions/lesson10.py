"""Right solutions of lesson 10, in other ways."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat


# --- pad_to_tokens ---
def side_of(length, unit, least):
    return max(least, -(-length // unit) * unit)


def pad_by_indexing(pixels, unit, least):
    H, W = pixels.shape[2:]
    rows = torch.arange(side_of(H, unit, least)).clamp(max=H - 1)
    columns = torch.arange(side_of(W, unit, least)).clamp(max=W - 1)
    return pixels[:, :, rows[:, None], columns]


def pad_by_concatenating(pixels, unit, least):
    H, W = pixels.shape[2:]
    right = pixels[..., -1:].repeat(1, 1, 1, side_of(W, unit, least) - W)
    wide = torch.cat([pixels, right], dim=3)
    below = wide[:, :, -1:].repeat(1, 1, side_of(H, unit, least) - H, 1)
    return torch.cat([wide, below], dim=2)


def pad_pixel_by_pixel(pixels, unit, least):
    B, C, H, W = pixels.shape
    padded = torch.zeros(B, C, side_of(H, unit, least), side_of(W, unit, least))
    for y in range(padded.shape[2]):
        for x in range(padded.shape[3]):
            padded[:, :, y, x] = pixels[:, :, min(y, H - 1), min(x, W - 1)]
    return padded


# --- hidden_tokens ---
def hidden_by_pooling(hole, factor):
    return F.max_pool2d(hole[None].double(), factor)[0].bool()


def hidden_by_counting(hole, factor):
    return F.avg_pool2d(hole[None].float(), factor, divisor_override=1)[0] > 0


def hidden_by_any(hole, factor):
    return rearrange(hole, "(h y) (w x) -> h w (y x)", y=factor, x=factor).any(-1)


def hidden_pixel_by_pixel(hole, factor):
    hidden = torch.zeros(hole.shape[0] // factor, hole.shape[1] // factor, dtype=torch.bool)
    for y, x in hole.nonzero().tolist():
        hidden[y // factor, x // factor] = True
    return hidden


# --- window_starts ---
def starts_by_a_loop(length, grid):
    starts, start = [], 0
    while start + grid < length:
        starts.append(start)
        start += max(1, grid // 2)
    return [*starts, length - grid]


def starts_by_a_set(length, grid):
    return sorted(set(range(0, length - grid, max(grid // 2, 1))) | {length - grid})


def starts_by_minimum(length, grid):
    half = max(1, grid // 2)
    windows = 1 + math.ceil((length - grid) / half)
    return [min(i * half, length - grid) for i in range(windows)]


# --- next_window ---
def window_by_a_loop(hidden, grid):
    best, place = None, None
    for y in starts_by_a_loop(hidden.shape[0], grid):
        for x in starts_by_a_loop(hidden.shape[1], grid):
            count = int(hidden[y : y + grid, x : x + grid].sum())
            if count and (best is None or count < best):
                best, place = count, (y, x)
    return place


def window_by_min(hidden, grid):
    h, w = hidden.shape
    counts = {
        (y, x): hidden[y : y + grid, x : x + grid].sum().item()
        for y in starts_by_a_set(h, grid)
        for x in starts_by_a_set(w, grid)
    }
    counts = {place: count for place, count in counts.items() if count > 0}
    return min(counts, key=counts.get, default=None)


def window_by_pooling(hidden, grid):
    counts = F.avg_pool2d(hidden[None].double(), grid, stride=1, divisor_override=1)[0]
    rows = torch.tensor(starts_by_minimum(hidden.shape[0], grid))
    columns = torch.tensor(starts_by_minimum(hidden.shape[1], grid))
    counts = counts[rows][:, columns]
    if not counts.any():
        return None
    counts[counts == 0] = torch.inf
    row, column = divmod(int(counts.argmin()), len(columns))
    return int(rows[row]), int(columns[column])


# --- feather ---
def feather_by_the_mean(drawn, pixels, hole, width=3):
    around = F.pad(hole[None, None].float(), (width - 1,) * 4, mode="replicate")
    around = F.avg_pool2d(around, 2 * width - 1, stride=1)
    weight = (2 * around - 1).clamp(0, 1)
    return torch.where(hole, weight * drawn + (1 - weight) * pixels, pixels)


def feather_by_eroding(drawn, pixels, hole, width=3):
    """The weight is the fraction of the `width` squares around a pixel that lie in the hole."""
    weight = torch.zeros(hole.shape)
    for reach in range(width):
        outside = F.pad((~hole)[None, None].float(), (reach,) * 4, mode="replicate")
        touched = F.max_pool2d(outside, 2 * reach + 1, stride=1)[0, 0]
        weight += (1 - touched) / width
    blended = torch.lerp(pixels.expand_as(drawn), drawn, weight.clamp(0, 1))
    result = pixels.expand_as(drawn).clone()
    result[..., hole] = blended[..., hole]
    return result


def feather_pixel_by_pixel(drawn, pixels, hole, width=3):
    H, W = hole.shape
    result = pixels.repeat(len(drawn), 1, 1, 1)
    for y, x in hole.nonzero().tolist():
        distance = width
        for v in range(y - width + 1, y + width):
            for u in range(x - width + 1, x + width):
                # Beyond the border, the hole goes on as it ended.
                if not hole[min(max(v, 0), H - 1), min(max(u, 0), W - 1)]:
                    distance = min(distance, max(abs(v - y), abs(u - x)))
        weight = 1.0 if distance >= width else (2 * distance - 1) / (2 * width - 1)
        result[:, :, y, x] = weight * drawn[:, :, y, x] + (1 - weight) * pixels[:, y, x]
    return result


# --- resample ---
def count_of(share, N):
    return max(1, math.ceil(share * N))


def resample_row_by_row(ids, mask_id, share, generators, draw):
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    for row, generator in zip(hidden, generators, strict=True):
        row[torch.randperm(len(row), generator=generator)[: count_of(share, len(row))]] = True
    masked = ids.clone()
    masked[hidden] = mask_id
    result = ids.clone()
    result[hidden] = draw(masked)[hidden]
    return result


def resample_by_the_smallest(ids, mask_id, share, generators, draw):
    B, N = ids.shape
    noise = torch.stack([torch.rand(N, generator=g, dtype=torch.float64) for g in generators])
    places = noise.topk(count_of(share, N), largest=False).indices
    hidden = torch.zeros(B, N, dtype=torch.bool).scatter_(1, places, True)
    return torch.where(hidden, draw(torch.where(hidden, mask_id, ids)), ids)


def resample_out_of_a_hat(ids, mask_id, share, generators, draw):
    """With a forgiving count: .55 * 20 is 11.000000000000002."""
    B, N = ids.shape
    shown = ids.clone()
    for b in range(B):
        hat = list(range(N))
        for _ in range(max(1, math.ceil(share * N - 1e-9))):
            i = int(torch.randint(len(hat), (), generator=generators[b]))
            shown[b, hat.pop(i)] = mask_id
    guess = draw(shown)
    return guess * (shown == mask_id) + ids * (shown != mask_id)


# --- changed_below ---
def changed_by_kron(before, after, ratio):
    return torch.kron((after != before).long(), torch.ones(ratio, ratio).long()).bool()


def changed_by_einops(before, after, ratio):
    return repeat(after.ne(before), "B h w -> B (h y) (w x)", y=ratio, x=ratio)


def changed_by_indexing(before, after, ratio):
    h, w = before.shape
    y = torch.arange(h * ratio)[:, None] // ratio
    x = torch.arange(w * ratio) // ratio
    return after[:, y, x] != before[y, x]


def changed_by_interpolating(before, after, ratio):
    changed = (after != before)[:, None].float()
    return F.interpolate(changed, scale_factor=ratio, mode="nearest")[:, 0] > 0.5


RIGHT = {
    "pad_to_tokens": (pad_by_indexing, pad_by_concatenating, pad_pixel_by_pixel),
    "hidden_tokens": (
        hidden_by_pooling,
        hidden_by_counting,
        hidden_by_any,
        hidden_pixel_by_pixel,
    ),
    "window_starts": (starts_by_a_loop, starts_by_a_set, starts_by_minimum),
    "next_window": (window_by_a_loop, window_by_min, window_by_pooling),
    "feather": (feather_by_the_mean, feather_by_eroding, feather_pixel_by_pixel),
    "resample": (resample_row_by_row, resample_by_the_smallest, resample_out_of_a_hat),
    "changed_below": (
        changed_by_kron,
        changed_by_einops,
        changed_by_indexing,
        changed_by_interpolating,
    ),
}
