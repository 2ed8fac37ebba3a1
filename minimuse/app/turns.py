"""Visitors share one model, and take turns at it: a pass for one of them, a pass for the next."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A queue for the model. Whoever comes first has the first turn.

    A `threading.Lock` is not fair: a thread that gives it back may have it again at once.
    """

    def __init__(self):
        self.queue: deque[object] = deque()  # its first one has the turn
        self.moved = threading.Condition()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it inside the `with`."""
        ticket = object()
        with self.moved:
            self.queue.append(ticket)
            self.moved.wait_for(lambda: self.queue[0] is ticket)
        try:
            yield
        finally:
            with self.moved:
                self.queue.popleft()
                self.moved.notify_all()
