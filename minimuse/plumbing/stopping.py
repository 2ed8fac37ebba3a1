"""Ctrl-C, SIGTERM and SIGHUP: a training finishes its step and saves, everything else ends at once.

    with listen():                # `minimuse` does this before its first slow import
        ...                       # a signal raises KeyboardInterrupt here,
        with finish_first():
            ...                   # and is remembered here, until the training loop has saved

Outside of `listen` nothing here has an effect: a program that imports minimuse keeps its signals.
Only the standard library is imported here, so that a signal is heard while PyTorch is imported.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock, Thread, current_thread, main_thread
from types import FrameType
from typing import Any

from minimuse.plumbing.status import is_first

# Windows has no SIGHUP (the terminal was closed), and only Windows has SIGBREAK.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]

RESUME = "the same command with --resume goes on"

# Two signals within half a second are one wish: a wrapper forwards the Ctrl-C that a terminal has
# sent to all of its processes already.
ONE_WISH = 0.5  # seconds

# A process that should end, and has not done so after this time, is ended. KeyboardInterrupt is not
# raised while the main thread is inside a long operation, and some libraries swallow it.
GRACE = 1.5  # seconds

EXIT_CODE = 130

# Signals that asked this process to stop. The training loop looks here after each step.
stop_signals: set[int] = set()


class Listening:
    """How this process hears signals. There is one such object, `state`."""

    def __init__(self) -> None:
        self.active = False
        self.starting = False  # nothing has begun yet that would have to be cleaned up
        self.quiet = False  # a worker: its parent tells the user
        self.unfinished = 0  # how many `finish_first` are open
        self.raised = False  # the process is ending already
        self.heard_at = 0.0
        self.told = False
        self.resumable: str | None = None  # where this file exists, `remedy` works
        self.remedy = RESUME
        self.before: dict[int, Any] = {}  # signal -> the handler from before
        self.sockets: tuple[socket.socket, ...] = ()
        self.wakeup_before = -1  # the file that an event loop has asked to be told in
        self.unraisable: Any = None


state = Listening()
telling = RLock()  # two threads may want to tell that the command was stopped


@contextmanager
def listen() -> Iterator[None]:
    """Inside, signals raise KeyboardInterrupt, or wait as `finish_first` says.

    Restores the handlers from before. Does nothing in a thread, which cannot have handlers.
    """
    here = begin()
    state.starting = False
    state.told = False
    state.resumable = None
    state.remedy = RESUME
    try:
        yield
    finally:
        if here:
            end()


def begin(starting: bool = False, quiet: bool = False) -> bool:
    """Begin to listen; returns whether this call did. See `listen` and `Listening`."""
    global state
    if state.active or current_thread() is not main_thread():
        return False
    state = Listening()
    stop_signals.clear()
    state.active = True
    state.starting = starting
    state.quiet = quiet
    state.unraisable = sys.unraisablehook
    sys.unraisablehook = print_unraisable
    # Python's handlers run between two instructions of the main thread. This socket tells another
    # thread at once.
    state.sockets = socket.socketpair()
    for end_of_pair in state.sockets:
        end_of_pair.setblocking(False)
    fd = state.sockets[1].fileno()
    state.wakeup_before = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    Thread(target=watch, args=(state,), daemon=True).start()
    for number in SIGNALS:
        handler = signal.getsignal(number)
        # A job in the background ignores Ctrl-C, and one under nohup SIGHUP: go on ignoring it.
        # None is a handler that was not set by Python.
        if handler not in (signal.SIG_IGN, None):
            state.before[number] = handler
            signal.signal(number, hear)
    return True


def end() -> None:
    """Stop listening, and restore what `begin` found."""
    for number, handler in state.before.items():
        signal.signal(number, handler)
    with suppress(ValueError):  # it is closed by now
        signal.set_wakeup_fd(state.wakeup_before)
    sys.unraisablehook = state.unraisable
    state.active = False
    state.sockets[1].close()  # ends `watch`
    stop_signals.clear()


def ignore() -> None:
    """Ignore all signals from now on: the work is done, and the process ends."""
    state.raised = True
    for number in state.before:
        signal.signal(number, signal.SIG_IGN)
    if state.active:
        signal.set_wakeup_fd(-1)
        state.sockets[1].close()


def hear(number: int, frame: FrameType | None = None) -> None:
    """The handler of all signals: end now, or remember the wish until the step is finished."""
    first = not stop_signals
    stop_signals.add(number)
    if state.raised:
        return
    if state.starting:
        state.raised = True
        end_now()
    if first:
        state.heard_at = time.monotonic()
    if state.unfinished == 0:
        stop_now()
    if first:
        tell("finishing this step, and saving; once more stops at once")
    elif not state.quiet and time.monotonic() - state.heard_at > ONE_WISH:
        # Only where a user can wish it: a worker's parent ends it by force.
        stop_now()


def stop_now() -> None:
    """Raise KeyboardInterrupt; signals that follow are ignored, since the process is ending."""
    state.raised = True
    raise KeyboardInterrupt


@contextmanager
def finish_first() -> Iterator[None]:
    """Inside, the first signal only adds to `stop_signals`; one half a second later stops at once.

    The code inside has to look at `stop_signals`. If it did not, KeyboardInterrupt comes at the
    end.
    """
    state.unfinished += 1
    try:
        yield
    finally:
        state.unfinished -= 1
        if stop_signals and state.unfinished == 0:
            state.raised = True
    if stop_signals and state.active:
        stop_now()


def watch(listening: Listening) -> None:
    """End the process if it has not ended itself some time after a signal. Runs in a thread."""
    wakeup = listening.sockets[0]
    wakeup.setblocking(True)
    with wakeup:
        byte = wakeup.recv(1)
        # The caller of `main` may have handlers of other signals; nothing comes at the end.
        while byte and byte[0] not in listening.before:
            byte = wakeup.recv(1)
        if not byte:
            return
        due_since = None
        while listening.active:
            time.sleep(0.1)  # the handler comes first, if the main thread can run it
            if not listening.active:
                return
            if listening.starting:
                end_now()
            if listening.unfinished and not listening.raised:
                due_since = None
            elif due_since is None:
                due_since = time.monotonic()
            elif time.monotonic() - due_since > GRACE:
                end_now()


def end_now() -> None:
    """End this process without any cleaning up."""
    tell_stopped()
    os._exit(EXIT_CODE)


def tell_stopped() -> None:
    """Tell the user, once, that the command was stopped, and how to go on with it."""
    with telling:
        if state.told:
            return
        message = "stopped"
        if state.resumable is not None and os.path.isfile(state.resumable):
            message += f"; {state.remedy}"
        tell(message)
        state.told = True


def tell(message: str) -> None:
    """Write a line to stderr. Not `print`: the signal may have interrupted another print."""
    if not state.quiet and is_first():
        # A progress bar may stand in this line.
        start = "\n" if os.isatty(2) else ""
        with suppress(OSError):  # the terminal may be closed
            os.write(2, f"{start}minimuse: {message}\n".encode())


def print_unraisable(details: Any) -> None:
    """Print errors that Python cannot raise, but not a KeyboardInterrupt: `watch` ends the process.

    It may have been raised inside the removal of an object, where Python only prints it.
    """
    if not issubclass(details.exc_type, KeyboardInterrupt):
        state.unraisable(details)
