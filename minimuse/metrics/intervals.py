from collections.abc import Callable

import torch

from minimuse.device import generator_at


def mean_of(values: torch.Tensor) -> dict[str, float]:
    """The mean of what M pictures have each (M,), with its 95 % interval."""
    values = values.cpu().double()
    mean, error = (
        float(values.mean()),
        float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan"),
    )
    return {
        "value": mean,
        "low": mean - 1.96 * error,
        "high": mean + 1.96 * error,
        "n": len(values),
    }


def interval(
    measure: Callable[..., float], *sets: torch.Tensor, rounds: int = 20
) -> dict[str, float]:
    """A measure of sets (M, C), with a 95 % interval by random halves of each, without replacement: of a mean, they vary around the
    whole as much as it does around all there is; a bias they do not see (and a bootstrap's copies would pass for neighbours)."""
    halves = lambda i: [
        x[torch.randperm(len(x), generator=generator_at("halves", i, j))[: len(x) // 2]]
        for j, x in enumerate(sets)
    ]
    value, error = (
        measure(*sets),
        float(torch.tensor([measure(*halves(i)) for i in range(rounds)]).std()),
    )
    return {
        "value": value,
        "low": value - 1.96 * error,
        "high": value + 1.96 * error,
        "n": len(sets[0]),
    }


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927): it holds near 0 and 1 too."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, right / n  # 97.5 % of a normal distribution lies below z
    middle, spread = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, (middle - spread) / (1 + z * z / n)), min(
        1.0, (middle + spread) / (1 + z * z / n)
    )


def proportion(right: list[bool]) -> dict[str, float]:
    """How often, out of how many, with the interval."""
    low, high = wilson(sum(right), n := len(right))
    return {"value": sum(right) / n if n else float("nan"), "low": low, "high": high, "n": n}
