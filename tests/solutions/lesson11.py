"""Right solutions of lesson 11, in other ways."""

import itertools
import math
import statistics

import numpy as np
import torch

from minimuse.metrics.likelihood import hidden_nll

Z = 1.959964


# --- wilson ---
def by_the_quadratic_equation(right, n):
    """(1 + z^2/n) t^2 - (2 p + z^2/n) t + p^2 = 0."""
    if n == 0:
        return 0, 1
    p, q = right / n, Z**2 / n
    a, b, c = 1 + q, -(2 * p + q), p * p
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return max(0.0, (-b - root) / (2 * a)), min(1.0, (-b + root) / (2 * a))


def by_bisection(right, n):
    if n == 0:
        return 0.0, 1.0
    p = right / n

    def reaches(t):
        return abs(t - p) <= Z * math.sqrt(t * (1 - t) / n)

    ends = []
    for inside, outside in ((p, 0.0), (p, 1.0)):
        for _ in range(80):
            middle = (inside + outside) / 2
            if reaches(middle):
                inside = middle
            else:
                outside = middle
        ends.append(inside)
    if right == 0:
        ends[0] = 0.0
    if right == n:
        ends[1] = 1.0
    return tuple(ends)


def by_its_centre(right, n):
    if not n:
        return 0.0, 1.0
    centre = (right + Z * Z / 2) / (n + Z * Z)
    half = Z / (n + Z * Z) * math.sqrt(right * (n - right) / n + Z * Z / 4)
    return max(centre - half, 0.0), min(centre + half, 1.0)


# --- tell_apart ---
def apart_by_the_error(n, p, q):
    error = math.sqrt(p * (1 - p) / n + q * (1 - q) / n)
    return abs(p - q) > 1.96 * error


def apart_by_squares(n, p, q):
    return (p - q) ** 2 / 1.96**2 > (p - p * p + q - q * q) / n


def apart_on_both_sides(n, p, q):
    error = 1.96 * math.hypot(math.sqrt(p * (1 - p) / n), math.sqrt(q * (1 - q) / n))
    return not -error <= p - q <= error


# --- bits_per_token ---
def summary(bits):
    n = len(bits)
    value = float(bits.mean())
    error = 1.96 * float(bits.double().std()) / math.sqrt(n)
    return {"value": value, "low": value - error, "high": value + error, "n": n}


def bits_with_permutations(model, ids, context, seed=0):
    M, N = ids.shape
    generator = torch.Generator().manual_seed(seed)
    counts = (torch.arange(M) % N + 1)[torch.randperm(M, generator=generator)]
    hidden = torch.zeros(M, N, dtype=torch.bool)
    for row, count in zip(hidden, counts.tolist(), strict=True):
        row[torch.randperm(N, generator=generator)[:count]] = True
    return summary(hidden_nll(model, ids, context, hidden) / math.log(2))


def bits_with_ranks(model, ids, context, seed=0):
    M, N = ids.shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(M, N + 1, generator=generator)
    counts = 1 + noise[:, 0].argsort().argsort() * N // M
    hidden = noise[:, 1:].argsort(1).argsort(1) < counts[:, None]
    return summary(hidden_nll(model, ids, context, hidden) * math.log2(math.e))


def bits_with_repeated_counts(model, ids, context, seed=0):
    M, N = ids.shape
    generator = torch.Generator().manual_seed(seed)
    counts = list(itertools.islice(itertools.cycle(range(1, N + 1)), M))
    order = torch.randperm(M, generator=generator).tolist()
    counts = torch.tensor([counts[i] for i in order])
    places = torch.multinomial(torch.ones(M, N), N, generator=generator)
    hidden = torch.zeros(M, N, dtype=torch.bool)
    hidden.scatter_(1, places, torch.arange(N).expand(M, N) < counts[:, None])
    nats = hidden_nll(model, ids, context, hidden).tolist()
    bits = [x / math.log(2) for x in nats]
    value, error = statistics.fmean(bits), 1.96 * statistics.stdev(bits) / M**0.5
    return dict(value=value, low=value - error, high=value + error, n=M)


# --- frechet ---
def frechet_by_eigenvalues(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    S, T = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    roots = np.sqrt(np.linalg.eigvals(S @ T).astype(complex)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(S + T) - 2 * roots.sum())


def frechet_by_singular_values(a, b):
    a, b = a.double(), b.double()
    A = (a - a.mean(0)) / (len(a) - 1) ** 0.5
    B = (b - b.mean(0)) / (len(b) - 1) ** 0.5
    means = (a.mean(0) - b.mean(0)).square().sum()
    cross = torch.linalg.svdvals(A @ B.T).sum()
    return (means + A.square().sum() + B.square().sum() - 2 * cross).item()


def frechet_by_a_symmetric_root(a, b):
    """tr (S T)^1/2 = tr (S^1/2 T S^1/2)^1/2."""
    a, b = a.double(), b.double()
    S, T = torch.atleast_2d(a.T.cov()), torch.atleast_2d(b.T.cov())
    values, vectors = torch.linalg.eigh(S)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ T @ root).clamp(min=0).sqrt().sum()
    means = torch.dist(a.mean(0), b.mean(0)) ** 2
    return float(means + S.trace() + T.trace() - 2 * inner)


# --- kid ---
def kernel(x, y):
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def kid_without_the_diagonal(a, b):
    within = []
    for x in (a, b):
        pairs = kernel(x, x)
        different = ~torch.eye(len(x), dtype=torch.bool)
        within.append(pairs[different].mean())
    return float(sum(within) - 2 * kernel(a, b).mean())


def kid_of_pairs_once(a, b):
    within = 0.0
    for x in (a, b):
        i, j = torch.triu_indices(len(x), len(x), offset=1)
        within += ((x[i].double() * x[j].double()).mean(1) + 1).pow(3).mean().item()
    across = ((a.double()[:, None] * b.double()[None]).mean(-1) + 1).pow(3)
    return within - 2 * across.mean().item()


def kid_by_sums(a, b):
    n, m = len(a), len(b)
    of_a, of_b = kernel(a, a).fill_diagonal_(0), kernel(b, b).fill_diagonal_(0)
    value = of_a.sum() / (n * (n - 1)) + of_b.sum() / (m * (m - 1))
    return (value - kernel(a, b).sum() * 2 / (n * m)).item()


# --- precision ---
def precision_by_cdist(drawn, real, k=3):
    reach = torch.cdist(real, real).kthvalue(k + 1, dim=1).values
    return (torch.cdist(drawn, real) <= reach).any(1).double().mean().item()


def precision_point_by_point(drawn, real, k=3):
    real, inside = real.tolist(), 0
    reaches = []
    for i, x in enumerate(real):
        others = sorted(math.dist(x, y) for j, y in enumerate(real) if j != i)
        reaches.append(others[k - 1])
    for point in drawn.tolist():
        inside += any(math.dist(point, x) <= r for x, r in zip(real, reaches, strict=True))
    return inside / len(drawn)


def precision_by_squares(drawn, real, k=3):
    def squares(x, y):
        return (x.double()[:, None] - y.double()[None]).square().sum(-1)

    between = squares(real, real).fill_diagonal_(torch.inf)
    reach = between.topk(k, largest=False).values[:, -1]
    return float((squares(drawn, real) <= reach[None]).any(dim=1).float().mean())


# --- interval ---
def around(value, measures, n):
    error = 1.96 * statistics.stdev(measures)
    return {"value": value, "low": value - error, "high": value + error, "n": n}


def interval_by_permutations(measure, *sets, rounds=20):
    generator = torch.Generator().manual_seed(0)
    measures = []
    for _ in range(rounds):
        halves = []
        for x in sets:
            halves.append(x[torch.randperm(len(x), generator=generator)[: len(x) // 2]])
        measures.append(measure(*halves))
    return around(measure(*sets), measures, len(sets[0]))


def interval_in_order(measure, *sets, rounds=20):
    """Halves in the order of the set, and the value first."""
    value = measure(*sets)
    generator = torch.Generator().manual_seed(123)
    measures = []
    for _ in range(rounds):
        noises = [torch.rand(len(x), generator=generator) for x in sets]
        masks = [noise.argsort().argsort() < len(noise) // 2 for noise in noises]
        measures.append(measure(*(x[mask] for x, mask in zip(sets, masks, strict=True))))
    return around(value, measures, len(sets[0]))


def interval_with_numpy(measure, *sets, rounds=20):
    """Another generator is as good, if it starts anew each time."""
    rng = np.random.default_rng(1)
    measures = torch.zeros(rounds, dtype=torch.float64)
    for i in range(rounds):
        rows = [rng.choice(len(x), len(x) // 2, replace=False) for x in sets]
        measures[i] = measure(*(x[torch.from_numpy(r)] for x, r in zip(sets, rows, strict=True)))
    value = measure(*sets)
    error = 1.96 * measures.std().item()
    return dict(value=value, low=value - error, high=value + error, n=sets[0].shape[0])


RIGHT = {
    "wilson": (by_the_quadratic_equation, by_bisection, by_its_centre),
    "tell_apart": (apart_by_the_error, apart_by_squares, apart_on_both_sides),
    "bits_per_token": (bits_with_permutations, bits_with_ranks, bits_with_repeated_counts),
    "frechet": (frechet_by_eigenvalues, frechet_by_singular_values, frechet_by_a_symmetric_root),
    "kid": (kid_without_the_diagonal, kid_of_pairs_once, kid_by_sums),
    "precision": (precision_by_cdist, precision_point_by_point, precision_by_squares),
    "interval": (interval_by_permutations, interval_in_order, interval_with_numpy),
}
