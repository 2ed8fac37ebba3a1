import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

stop_signals: set[int] = set()  # signals that asked this process to stop


@contextmanager
def finish_step_on_signal() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM, if not repeated, wait for the end of a step: `optimize` looks at `asked`, saves, raises KeyboardInterrupt."""

    def remember(number: int, frame) -> None:
        stop_signals.add(number)
        signal.signal(number, was[number])
        os.write(
            2, b"\nminimuse: finishing this step, and saving; once more stops at once\n"
        )  # print could meet itself in a handler

    was = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in was.items():
        signal.signal(
            number, handler if handler == signal.SIG_IGN else remember
        )  # ignored: a job in the background
    try:
        yield
    finally:
        stop_signals.clear()
        for number, handler in was.items():
            signal.signal(number, handler)
