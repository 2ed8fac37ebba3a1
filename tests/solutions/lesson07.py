"""Right solutions of lesson 07, in other ways."""

import math

import numpy as np
import torch


# --- guided_probabilities ---
def by_log_softmax(p_cond, p_uncond, t):
    logits = torch.log(p_cond) + t * (torch.log(p_cond) - torch.log(p_uncond))
    return logits.log_softmax(-1).exp()


def by_the_ratio(p_cond, p_uncond, t):
    scores = t * (p_cond / p_uncond).log() + p_cond.log()
    powers = (scores - scores.max(-1, keepdim=True).values).exp()
    return powers / powers.sum(-1, keepdim=True)


def number_by_number(p_cond, p_uncond, t):
    rows = []
    K = p_cond.shape[-1]
    pairs = zip(p_cond.reshape(-1, K).tolist(), p_uncond.reshape(-1, K).tolist(), strict=True)
    for cond, uncond in pairs:
        logs = [(1 + t) * math.log(c) - t * math.log(u) for c, u in zip(cond, uncond, strict=True)]
        powers = [math.exp(x - max(logs)) for x in logs]
        rows.append([power / sum(powers) for power in powers])
    return torch.tensor(rows, dtype=torch.float64).view(p_cond.shape)


# --- compose ---
def pull_by_pull(uncond, conds, weights):
    total = uncond.clone()
    for cond, weight in zip(conds, weights, strict=True):
        total += weight * (cond - uncond)
    return total


def with_the_weight_of_uncond(uncond, conds, weights):
    total = (1 - sum(weights)) * uncond
    for i in range(len(conds)):
        total = total + conds[i] * weights[i]
    return total


def stacked(uncond, conds, weights):
    if len(conds) == 0:
        return uncond
    pulls = torch.stack(list(conds)) - uncond
    return uncond + torch.tensordot(torch.tensor(weights, dtype=uncond.dtype), pulls, 1)


RIGHT = {
    "guide": (
        lambda c, u, t: c + t * (c - u),
        lambda c, u, t: (1 + t) * c - t * u,
        lambda c, u, t: torch.lerp(u, c, 1 + t),
        lambda c, u, t: c - (u - c).mul(t),
        lambda c, u, t: torch.add(c, c - u, alpha=t),
    ),
    "from_other_convention": (
        lambda scale: -1 + scale,
        lambda scale: float(np.float64(scale) - 1.0),
        lambda scale: (scale * 2 - 2) / 2,
    ),
    "guidance_at": (
        lambda k, S, t: t * ((k + 1) / S),
        lambda k, S, t: t - t * (S - 1 - k) / S,
        lambda k, S, t: float(np.linspace(0, t, S + 1)[k + 1]),
        lambda k, S, t: math.fsum([t / S] * (k + 1)),
    ),
    "guided_probabilities": (by_log_softmax, by_the_ratio, number_by_number),
    "compose": (pull_by_pull, with_the_weight_of_uncond, stacked),
}
