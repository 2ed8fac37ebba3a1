"""How certain a measure is: 95 % intervals of means, proportions, and measures of sets.

    from minimuse.metrics.intervals import interval, mean_of, proportion
    proportion([True, True, False])     # {"value": 0.67, "low": 0.21, "high": 0.94, "n": 3}
    interval(frechet, features, real)   # for any function of sets of features

Letters: M images, C features of each.
"""

from collections.abc import Callable, Sequence

import torch

from minimuse.plumbing.device import generator_at


def mean_of(values: torch.Tensor) -> dict[str, float]:
    """The mean of one value per image (M,), with its 95 % interval (not-a-number if M is 1)."""
    values = values.cpu().double()
    error = float("nan")
    if len(values) > 1:
        error = float(values.std() / len(values) ** 0.5)
    return around(float(values.mean()), error, len(values))


def interval(
    measure: Callable[..., float], *sets: torch.Tensor, rounds: int = 20
) -> dict[str, float]:
    """A measure of sets (M, C), with a 95 % interval from random halves of each set.

    The halves are drawn without replacement. The mean of a half varies around the mean of the set
    as much as that varies around the true one. Halves do not show a bias of the measure. A
    bootstrap would not do: it takes images twice, and a copy passes for a near neighbour.
    """
    value = measure(*sets)
    of_halves = []
    for i in range(rounds):
        halves = [random_half(x, i, j) for j, x in enumerate(sets)]
        of_halves.append(measure(*halves))
    return around(value, float(torch.tensor(of_halves).std()), len(sets[0]))


def random_half(x: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """Half of the rows of the j-th set, in the i-th round: the same rows in every run."""
    rows = torch.randperm(len(x), generator=generator_at("halves", i, j))[: len(x) // 2]
    return x[rows]


def around(value: float, error: float, n: int) -> dict[str, float]:
    """The interval of 1.96 standard errors: 95 % of a normal distribution lie within it."""
    return {
        "value": value,
        "low": value - 1.96 * error,
        "high": value + 1.96 * error,
        "n": n,
    }


def proportion(right: Sequence[bool]) -> dict[str, float]:
    """The fraction of True, with its 95 % interval; not-a-number if there are none."""
    n = len(right)
    low, high = wilson(sum(right), n)
    value = sum(right) / n if n else float("nan")
    return {"value": value, "low": low, "high": high, "n": n}


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of the proportion right / n (Wilson, 1927), also right near 0 and 1.

    It holds every true proportion t with |t - right / n| <= z sqrt(t (1 - t) / n).
    """
    if n == 0:
        return 0.0, 1.0
    z = 1.959964  # 97.5 % of a normal distribution lie below z
    p = right / n
    middle = p + z * z / (2 * n)
    spread = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
