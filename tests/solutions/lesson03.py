"""Right solutions of lesson 03, in other ways."""

import math

import torch
import torch.nn.functional as F


# --- pad_batch ---
def with_pad_sequence(rows, max_length):
    closed = [torch.tensor((row[: max_length - 1] + [1]) if row else [], dtype=torch.int64)
              for row in rows]  # fmt: skip
    ids = torch.nn.utils.rnn.pad_sequence(closed, batch_first=True)
    if ids.shape[1] == 0:
        ids = torch.zeros(len(rows), 1, dtype=torch.int64)
    return ids, ids != 0


def place_by_place(rows, max_length):
    lengths = [min(len(row) + 1, max_length) if row else 0 for row in rows]
    T = max([1, *lengths])
    ids = torch.zeros(len(rows), T, dtype=torch.long)
    for b, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        for t in range(length):
            ids[b, t] = 1 if t == length - 1 else row[t]
    return ids, torch.arange(T) < torch.tensor(lengths)[:, None]


def with_lists(rows, max_length):
    rows = [[*row, 1] if row else [] for row in rows]
    rows = [row if len(row) <= max_length else [*row[: max_length - 1], 1] for row in rows]
    T = max(max(map(len, rows)), 1)
    ids = [row + [0] * (T - len(row)) for row in rows]
    mask = [[t < len(row) for t in range(T)] for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


# --- masked_mean ---
def mean_by_rows(embeddings, mask):
    means = []
    for vectors, real in zip(embeddings, mask, strict=True):
        means.append(vectors[real].mean(0) if real.any() else torch.zeros_like(vectors[0]))
    return torch.stack(means)


def mean_by_weights(embeddings, mask):
    weights = mask.to(embeddings.dtype)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,bte->be", weights, embeddings)


def mean_by_where(embeddings, mask):
    total = torch.where(mask.unsqueeze(-1), embeddings, 0).sum(1)
    return (total / mask.sum(1, keepdim=True)).nan_to_num(0)


# --- rms_norm ---
def norm_in_float64(x, weight, eps):
    wide = x.double()
    scale = (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    return (wide / scale * weight.double()).to(weight.dtype)


def norm_in_float32(x, weight, eps):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(weight.dtype)


def norm_vector_by_vector(x, weight, eps):
    rows = []
    for vector in x.reshape(-1, x.shape[-1]).tolist():
        scale = math.sqrt(sum(n * n for n in vector) / len(vector) + eps)
        rows.append([n / scale * w for n, w in zip(vector, weight.tolist(), strict=True)])
    return torch.tensor(rows, dtype=torch.float64).view(x.shape).to(weight.dtype)


# --- relative_position_bucket ---
def bucket_by_counting(distance, num_buckets, max_distance):
    n = num_buckets // 4
    begins = [float(b) for b in range(n)] + [
        n * (max_distance / n) ** (i / n) * (1 - 1e-12) for i in range(n)
    ]
    far = distance.abs()
    bucket = sum((far >= begin).long() for begin in begins) - 1
    return bucket + (distance > 0) * (num_buckets // 2)


def bucket_by_logarithm(distance, num_buckets, max_distance):
    n = num_buckets // 4
    far = distance.abs().double()
    wide = n + (far.clamp(min=1) / n).log() / math.log(max_distance / n) * n + 1e-9
    inside = torch.where(far < n, far, wide.clamp(max=2 * n - 1)).floor().long()
    return torch.where(distance > 0, inside + 2 * n, inside)


def bucket_by_searching(distance, num_buckets, max_distance):
    n = num_buckets // 4
    exponents = torch.arange(n, dtype=torch.float64) / n
    begins = torch.cat([torch.arange(n).double(), n * (max_distance / n) ** exponents - 1e-9])
    found = torch.searchsorted(begins, distance.abs().double(), right=True) - 1
    return found + 2 * n * (distance > 0).long()


# --- t5_attention ---
def attention_by_sdpa(q, k, v, bias):
    B, H, T, _ = q.shape
    bias = bias.expand(B, H, T, k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)


def attention_by_einsum(q, k, v, bias):
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) + bias
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhts,bhsd->bhtd", weights / weights.sum(-1, keepdim=True), v)


def attention_in_float64(q, k, v, bias):
    scores = q.double() @ k.double().mT + bias.double()
    return (scores.softmax(-1) @ v.double()).to(q.dtype)


def attention_query_by_query(q, k, v, bias):
    out = torch.zeros_like(q)
    B, H, T, _ = q.shape
    bias = bias.expand(B, H, T, k.shape[2])
    for b in range(B):
        for h in range(H):
            for t in range(T):
                weights = torch.softmax(k[b, h] @ q[b, h, t] + bias[b, h, t], 0)
                out[b, h, t] = weights @ v[b, h]
    return out


RIGHT = {
    "pad_batch": (with_pad_sequence, place_by_place, with_lists),
    "masked_mean": (mean_by_rows, mean_by_weights, mean_by_where),
    "rms_norm": (norm_in_float64, norm_in_float32, norm_vector_by_vector),
    "relative_position_bucket": (bucket_by_counting, bucket_by_logarithm, bucket_by_searching),
    "t5_attention": (
        attention_by_sdpa,
        attention_by_einsum,
        attention_in_float64,
        attention_query_by_query,
    ),
}
