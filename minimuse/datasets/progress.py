"""A bar on the screen for work that takes more than a second, before and between trainings."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from minimuse.plumbing.collectives import rank_and_size

T = TypeVar("T")

SILENCE = 1.0  # seconds after which a bar appears

# The line of the screen where bars stand. Processes that share a screen each have their own.
row = 0


class Bar(tqdm):
    """A bar without tqdm's thread, which would stay: a process with threads cannot fork safely."""

    monitor_interval = 0


def bar(items: Iterable[T], what: str, unit: str = "images") -> Iterator[T]:
    """Yield the items; after a second, a bar on stderr says how many are done.

    Under torchrun, only the first process shows one.
    Keep the work between two items short: bar and Ctrl-C wait for it.
    """
    rank, _ = rank_and_size()
    options = {"delay": SILENCE, "leave": False, "mininterval": 0.2, "miniters": 1}
    # Without a position, a bar that another one is waiting for stands below it.
    return iter(Bar(items, desc=what, unit=unit, position=row or None, disable=rank > 0, **options))
