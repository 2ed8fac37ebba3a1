"""A function that makes a tensor once, and gives each caller a copy of its own.

@remembers_tensors
def order(tokens): ...
"""

from collections.abc import Callable
from functools import lru_cache, wraps

import torch


def remembers_tensors(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Decorate a function of hashable arguments. Tensors are on the CPU, whatever is the default.

    A caller may write to the copy: what is remembered stays as it is.
    """

    @lru_cache
    def remembered(*args: object) -> torch.Tensor:
        with torch.device("cpu"):
            return function(*args)

    return wraps(function)(lambda *args: remembered(*args).clone())
