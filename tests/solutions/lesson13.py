"""Right solutions of lesson 13, in other ways."""

import itertools
import math

import numpy as np
import torch


# --- picture_weight ---
def weight_by_arcsines(counts, tokens):
    n = counts.double()
    return (math.pi / 2) / (torch.arcsin(n / tokens) - torch.arcsin((n - 1) / tokens))


def weight_by_arccosines(counts, tokens):
    """n tokens are hidden where u lies between two arccosines."""
    u = torch.linspace(0, 1, tokens + 1, dtype=torch.float64).arccos() / (math.pi / 2)
    return 1 / (u[counts - 1] - u[counts])


def weight_count_by_count(counts, tokens):
    weights = torch.zeros(len(counts), dtype=torch.float64)
    for n in range(1, tokens + 1):
        p = (math.asin(n / tokens) - math.asin((n - 1) / tokens)) * 2 / math.pi
        weights[counts == n] = 1 / p
    return weights


def weight_by_numpy(counts, tokens):
    law = 2 / np.pi * np.arcsin(np.arange(tokens + 1) / tokens)
    return torch.from_numpy(1 / np.diff(law)[counts.numpy() - 1])


# --- dependence ---
def alone(joint, i):
    """The marginal of place i, in the shape of the world."""
    others = [j for j in range(joint.dim()) if j != i]
    return joint.sum(others, keepdim=True) if others else joint


def entropy(p):
    return -sum(x * math.log(x) for x in p.flatten().tolist() if x > 0)


def dependence_by_entropies(joint):
    """The sum of the tokens' entropies minus that of the images."""
    of_tokens = sum(entropy(alone(joint, i)) for i in range(joint.dim()))
    return of_tokens - entropy(joint)


def dependence_by_xlogy(joint):
    total = torch.special.xlogy(joint, joint).sum()
    for i in range(joint.dim()):
        total = total - torch.special.xlogy(joint, alone(joint, i).expand_as(joint)).sum()
    return float(total)


def dependence_image_by_image(joint):
    nats = 0.0
    for x in np.ndindex(*joint.shape):
        p = joint[x].item()
        if p == 0:
            continue
        product = 1.0
        for i, code in enumerate(x):
            product *= joint.select(i, code).sum().item()
        nats += p * math.log(p / product)
    return nats


# --- safe_to_reveal ---
def safe_by_a_loop(entropies, bound):
    ascending = sorted(entropies.tolist())
    count = 1
    while count < len(ascending) and sum(ascending[:count]) <= bound:
        count += 1
    return count


def safe_by_cumsum(entropies, bound):
    ascending = entropies.sort().values
    before = torch.cat([torch.zeros(1), ascending.cumsum(0)[:-1]])
    return max(1, int((before <= bound).sum()))


def safe_by_trying_all(entropies, bound):
    best = 1
    for n in range(1, len(entropies) + 1):
        smallest = entropies.topk(n, largest=False).values
        if smallest.sum() - smallest.max() <= bound:
            best = n
    return torch.tensor(best)


# --- decoded ---
def marginal(joint, keep):
    others = [i for i in range(joint.dim()) if i not in keep]
    return joint.sum(others, keepdim=True) if others else joint


def decoded_by_conditionals(joint, passes):
    result, seen = torch.ones_like(joint), []
    for places in passes:
        for i in places:
            result = result * (marginal(joint, seen + [i]) / marginal(joint, seen))
        seen = seen + list(places)
    return result


def decoded_by_logarithms(joint, passes):
    log_q = torch.zeros_like(joint)
    for p, places in enumerate(passes):
        seen = list(itertools.chain(*passes[:p]))
        for i in places:
            log_q = log_q + marginal(joint, [*seen, i]).log() - marginal(joint, seen).log()
    return log_q.exp()


def decoded_image_by_image(joint, passes):
    images = list(np.ndindex(*joint.shape))
    q = torch.zeros_like(joint)
    for x in images:
        p, seen = 1.0, []
        for places in passes:
            fits = [y for y in images if all(y[i] == x[i] for i in seen)]
            total = sum(joint[y].item() for y in fits)
            for i in places:
                p *= sum(joint[y].item() for y in fits if y[i] == x[i]) / total
            seen = seen + places
        q[x] = p
    return q


# --- revised ---
def revised_by_sums(current, joint):
    result = 0
    for i in range(joint.dim()):
        of_others = current.sum(i, keepdim=True)
        result = result + of_others * joint / joint.sum(i, keepdim=True)
    return result / joint.dim()


def revised_by_stacking(current, joint):
    redrawn = []
    for i in range(joint.dim()):
        conditional = joint.moveaxis(i, 0) / joint.sum(i)
        redrawn.append((current.sum(i) * conditional).moveaxis(0, i))
    return torch.stack(redrawn).mean(0)


def revised_image_by_image(current, joint):
    N, K = joint.dim(), joint.shape[0]
    result = torch.zeros_like(current)
    for x in np.ndindex(*joint.shape):
        for i in range(N):
            line = [x[:i] + (code,) + x[i + 1 :] for code in range(K)]
            chance = joint[x] / sum(joint[y] for y in line)
            result[x] += sum(current[y] for y in line) * chance / N
    return result


# --- partly_random ---
def start_row_by_row(batch, tokens, codes, share, generator):
    count = math.ceil(share * tokens)
    ids = torch.randint(codes, (batch, tokens), generator=generator)
    for row in ids:
        row[torch.randperm(tokens, generator=generator)[:count]] = codes
    return ids


def start_by_ranks(batch, tokens, codes, share, generator):
    noise = torch.rand(batch, tokens, generator=generator)
    hidden = noise.argsort(1).argsort(1) < math.ceil(share * tokens - 1e-9)
    ids = torch.randint(0, codes, (batch, tokens), generator=generator)
    return torch.where(hidden, codes, ids)


def start_by_uniform_numbers(batch, tokens, codes, share, generator):
    u = torch.rand(batch, tokens, generator=generator, dtype=torch.float64)
    ids = (u * codes).long().clamp(max=codes - 1)
    places = torch.rand(batch, tokens, generator=generator).topk(math.ceil(share * tokens)).indices
    return ids.scatter(1, places, codes)


# --- matching_gradient ---
@torch.no_grad()
def gradient_without_grad(student, teacher, auxiliary, seeking):
    s, p, q = (torch.softmax(x, -1) for x in (student, teacher, auxiliary))
    excess = torch.log(q / p)
    mean = torch.einsum("mk,mk->m", s, excess)
    return (1 - seeking) * (q - p) + seeking * s * (excess - mean[:, None])


def gradient_by_autograd(student, teacher, auxiliary, seeking):
    """The derivative of a cross-entropy, and that of the mean excess."""
    p = teacher.detach().softmax(-1)
    logits = auxiliary.detach().requires_grad_()
    (covering,) = torch.autograd.grad(-(p * logits.log_softmax(-1)).sum(), logits)
    excess = (auxiliary.log_softmax(-1) - teacher.log_softmax(-1)).detach()
    mine = student.detach().requires_grad_()
    (seek,) = torch.autograd.grad((mine.softmax(-1) * excess).sum(), mine)
    return covering.lerp(seek, seeking)


def gradient_token_by_token(student, teacher, auxiliary, seeking):
    rows = []
    for logits in zip(student.detach(), teacher.detach(), auxiliary.detach(), strict=True):
        s, p, q = ((x - x.max()).exp() / (x - x.max()).exp().sum() for x in logits)
        row = []
        mean = sum(s[k] * (q[k].log() - p[k].log()) for k in range(len(s)))
        for k in range(len(s)):
            own = s[k] * (q[k].log() - p[k].log() - mean)
            row.append((1 - seeking) * (q[k] - p[k]) + seeking * own)
        rows.append(torch.stack(row))
    return torch.stack(rows)


RIGHT = {
    "picture_weight": (
        weight_by_arcsines,
        weight_by_arccosines,
        weight_count_by_count,
        weight_by_numpy,
    ),
    "dependence": (dependence_by_entropies, dependence_by_xlogy, dependence_image_by_image),
    "safe_to_reveal": (safe_by_a_loop, safe_by_cumsum, safe_by_trying_all),
    "decoded": (decoded_by_conditionals, decoded_by_logarithms, decoded_image_by_image),
    "revised": (revised_by_sums, revised_by_stacking, revised_image_by_image),
    "partly_random": (start_row_by_row, start_by_ranks, start_by_uniform_numbers),
    "matching_gradient": (gradient_without_grad, gradient_by_autograd, gradient_token_by_token),
}
