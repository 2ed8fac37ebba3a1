"""Right solutions of lesson 01, in other ways."""

import math
from collections import Counter

import torch
import torch.nn.functional as F


# --- nearest ---
def by_loops(z, codebook):
    ids = []
    for latent in z.reshape(-1, z.shape[-1]):
        distances = [float((latent - code).square().sum()) for code in codebook]
        ids.append(distances.index(min(distances)))
    return torch.tensor(ids, dtype=torch.int64).view(z.shape[:-1])


def by_cdist(z, codebook):
    flat = z.reshape(-1, z.shape[-1])
    return torch.cdist(flat, codebook).argmin(-1).view(z.shape[:-1])


def by_three_terms(z, codebook):
    z, codebook = z.double(), codebook.double()
    distances = z.square().sum(-1, keepdim=True) - 2 * z @ codebook.T + codebook.square().sum(-1)
    return distances.argmin(-1)


def by_the_largest_score(z, codebook):
    return (z @ codebook.T - codebook.square().sum(-1) / 2).max(-1).indices


# --- quantize ---
def with_detached_difference(z, codebook):
    ids = by_cdist(z, codebook)
    code = codebook[ids].detach()
    return z + (code - z).detach(), ids, F.mse_loss(z, code)


def with_difference_of_itself(z, codebook):
    ids = by_three_terms(z.detach(), codebook.detach())
    code = codebook.data[ids]
    return code + (z - z.detach()), ids, ((z - code) ** 2).sum() / z.numel()


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, code):
        return code.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def with_its_own_backward(z, codebook):
    with torch.no_grad():
        ids = by_the_largest_score(z, codebook)
        code = F.embedding(ids, codebook)
    return StraightThrough.apply(z, code), ids, (code - z).square().mean()


# --- perplexity ---
def product_of_powers(ids, codes):
    counts = Counter(ids.flatten().tolist())
    n = ids.numel()
    return math.prod((c / n) ** -(c / n) for c in counts.values()), len(counts)


def exponential_of_entropy(ids, codes):
    p = torch.bincount(ids.flatten(), minlength=codes).double() / ids.numel()
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum())), len(p)


def two_to_the_bits(ids, codes):
    _, counts = ids.unique(return_counts=True)
    p = counts.double() / counts.sum()
    return 2 ** float(-(p * p.log2()).sum()), int(counts.numel())


# --- ema_update ---
def code_by_code(codebook, mass, total, z, ids, decay):
    first = bool((mass == 0).all())
    old = 0.0 if first else decay
    new = codebook.clone(), mass.clone(), total.clone()
    for k in range(len(mass)):
        latents = z[ids == k]
        new[1][k] = old * mass[k] + (1 - old) * len(latents)
        new[2][k] = old * total[k] + (1 - old) * latents.sum(0)
        if new[1][k] > 0:
            new[0][k] = new[2][k] / new[1][k]
    return new


def by_one_hot(codebook, mass, total, z, ids, decay):
    one_hot = F.one_hot(ids, len(mass)).to(z.dtype)
    if not mass.any():
        decay = 0.0
    mass = torch.lerp(one_hot.sum(0), mass, decay)
    total = torch.lerp(one_hot.T @ z, total, decay)
    used = mass > 0
    new = codebook.clone()
    new[used] = total[used] / mass[used, None]
    return new, mass, total


def in_float64(codebook, mass, total, z, ids, decay):
    decay = decay if mass.sum() > 0 else 0
    mass, total, z = mass.double(), total.double(), z.double()
    n = torch.bincount(ids, minlength=len(mass))
    s = torch.zeros_like(total).scatter_add_(0, ids[:, None].expand_as(z), z)
    mass = decay * mass + (1 - decay) * n
    total = decay * total + (1 - decay) * s
    means = total / mass.clamp(min=1e-300)[:, None]
    new = torch.where(mass[:, None] > 0, means, codebook.double())
    return new.float(), mass.float(), total.float()


# --- fsq ---
def digit_by_digit(z, levels):
    codes, ids, place = [], 0, 1
    for i, L in enumerate(levels):
        b = torch.sigmoid(z[..., i]) * (L - 1)
        digit = b + (b.round() - b).detach()
        codes.append(2 * digit / (L - 1) - 1)
        ids = ids + b.detach().round().long() * place
        place *= L
    return torch.stack(codes, dim=-1), ids


def between_minus_one_and_one(z, levels):
    """sigmoid(z) = (1 + tanh(z / 2)) / 2: the code before rounding is tanh(z / 2)."""
    L = torch.tensor(levels)
    bounded = torch.tanh(z / 2)
    digits = ((bounded.detach() + 1) / 2 * (L - 1) + 0.5).floor()
    code = digits / (L - 1) * 2 - 1
    places = torch.cumprod(torch.cat([torch.ones(1).long(), L[:-1]]), 0)
    return bounded + (code - bounded).detach(), (digits.long() * places).sum(-1)


def in_horner_form(z, levels):
    steps = torch.tensor([L - 1 for L in levels], dtype=z.dtype)
    b = torch.special.expit(z.double()).to(z.dtype) * steps
    digits = torch.round(b.detach())
    ids = torch.zeros(z.shape[:-1], dtype=torch.int64)
    for i in reversed(range(len(levels))):
        ids = ids * levels[i] + digits[..., i].long()
    return (b - b.detach() + digits) * 2 / steps - 1, ids


RIGHT = {
    "nearest": (by_loops, by_cdist, by_three_terms, by_the_largest_score),
    "quantize": (with_detached_difference, with_difference_of_itself, with_its_own_backward),
    "perplexity": (product_of_powers, exponential_of_entropy, two_to_the_bits),
    "ema_update": (code_by_code, by_one_hot, in_float64),
    "fsq": (digit_by_digit, between_minus_one_and_one, in_horner_form),
}
