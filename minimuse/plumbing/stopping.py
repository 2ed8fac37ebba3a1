"""Ctrl-C and SIGTERM end a training between two steps, after a checkpoint."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Signals that asked this process to stop. The training loop looks here after each step.
stop_signals: set[int] = set()


@contextmanager
def finish_step_on_signal() -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM only adds to `stop_signals`; a second one stops at once.

    The training loop then finishes its step, saves, and raises KeyboardInterrupt.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, frame: FrameType | None) -> None:
        stop_signals.add(number)
        signal.signal(number, handlers[number])
        # Not `print`: it is not reentrant, and the signal may have interrupted another print.
        os.write(2, b"\nminimuse: finishing this step, and saving; once more stops at once\n")

    for number, handler in handlers.items():
        # A job in the background ignores Ctrl-C, and has to go on ignoring it.
        if handler != signal.SIG_IGN:
            signal.signal(number, remember)
    try:
        yield
    finally:
        stop_signals.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)
