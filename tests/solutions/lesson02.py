"""Right solutions of lesson 02, in other ways."""

import math
from collections import Counter

import torch
import torch.nn.functional as F


# --- discriminator_loss ---
def with_clamp(real, fake):
    return 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())


def with_maximum(real, fake):
    zero = torch.zeros(())
    of_real = torch.maximum(1 - real, zero).sum() / real.numel()
    of_fake = torch.maximum(1 + fake, zero).sum() / fake.numel()
    return (of_real + of_fake) / 2


def with_minimum(real, fake):
    return -(torch.minimum(real - 1, real * 0).mean() + (-1 - fake).clamp(max=0).mean()) / 2


def cost_by_cost(real, fake):
    of_real = [F.relu(1 - x) for x in real.flatten()]
    of_fake = [F.relu(1 + x) for x in fake.flatten()]
    return (sum(of_real) / len(of_real) + sum(of_fake) / len(of_fake)) / 2


# --- adaptive_weight ---
def length(loss, layer):
    (gradient,) = torch.autograd.grad(loss, layer, retain_graph=True)
    return gradient.square().sum().sqrt()


def with_norms(reconstruction, adversarial, layer):
    a = torch.autograd.grad(reconstruction, layer, retain_graph=True)[0].norm()
    b = torch.autograd.grad(adversarial, layer, retain_graph=True)[0].norm()
    return torch.clamp(a / (b + 1e-4), max=1e4).detach()


def with_a_minimum(reconstruction, adversarial, layer):
    ratio = length(reconstruction, layer) / (length(adversarial, layer) + 1e-4)
    return torch.tensor(min(ratio.item(), 1e4))


def with_keeping_the_graph(reconstruction, adversarial, layer):
    keep = dict(create_graph=True, retain_graph=True)
    (a,) = torch.autograd.grad(reconstruction, layer, **keep)
    (b,) = torch.autograd.grad(adversarial, layer, **keep)
    return (a.detach().norm() / (1e-4 + b.detach().norm())).clamp(0, 1e4)


# --- unit_feature_distance ---
def with_normalize(a, b):
    distances = []
    for x, y in zip(a, b, strict=True):
        difference = F.normalize(x, dim=1) - F.normalize(y, dim=1)
        distances.append(difference.square().sum(1).mean())
    return torch.stack(distances).mean()


def by_the_cosine(a, b):
    """|u - v|^2 = |u|^2 + |v|^2 - 2 u v, and a vector of zeros has |u| = 0."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        u = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
        v = y / y.norm(dim=1, keepdim=True).clamp(min=1e-12)
        total = total + ((u * u).sum(1) + (v * v).sum(1) - 2 * (u * v).sum(1)).mean()
    return total / len(a)


def position_by_position(a, b):
    means = []
    for x, y in zip(a, b, strict=True):
        B, C, h, w = x.shape
        total = 0.0
        for u, v in zip(
            x.permute(0, 2, 3, 1).reshape(-1, C), y.permute(0, 2, 3, 1).reshape(-1, C), strict=True
        ):
            u = u / u.norm() if u.any() else u
            v = v / v.norm() if v.any() else v
            total = total + (u - v).pow(2).sum()
        means.append(total / (B * h * w))
    return sum(means) / len(means)


# --- generator_loss: one line each, below ---


# --- left_neighbour_bits ---
def by_counting(ids, codes):
    pairs = Counter()
    lefts = Counter()
    for row in ids.reshape(-1, ids.shape[-1]).tolist():
        for left, right in zip(row[:-1], row[1:], strict=True):
            pairs[left, right] += 1
            lefts[left] += 1
    n = sum(pairs.values())
    return sum(-c / n * math.log2(c / lefts[left]) for (left, _), c in pairs.items())


def by_a_table(ids, codes):
    table = torch.zeros(codes, codes, dtype=torch.float64)
    left, right = ids[..., :-1].flatten(), ids[..., 1:].flatten()
    table.index_put_((left, right), torch.ones(len(left)).double(), accumulate=True)
    p = table / table.sum(1, keepdim=True).clamp(min=1)
    return float(-(table * p.clamp(min=1e-300).log2()).sum() / table.sum())


def pair_by_pair_in_float32(ids, codes):
    left, right = ids[..., :-1].flatten(), ids[..., 1:].flatten()
    same_left = left[:, None] == left
    same_pair = same_left & (right[:, None] == right)
    return float(-(same_pair.sum(1) / same_left.sum(1)).double().log2().mean())


RIGHT = {
    "discriminator_loss": (with_clamp, with_maximum, with_minimum, cost_by_cost),
    "generator_loss": (
        lambda fake: -(fake.sum() / fake.numel()),
        lambda fake: (-fake).flatten().double().mean().float(),
        lambda fake: torch.stack([-x for x in fake.flatten()]).mean(),
    ),
    "adaptive_weight": (with_norms, with_a_minimum, with_keeping_the_graph),
    "unit_feature_distance": (with_normalize, by_the_cosine, position_by_position),
    "left_neighbour_bits": (by_counting, by_a_table, pair_by_pair_in_float32),
}
