"""A worker process, seen from inside: calls the functions that its parent sends, one by one.

`runs/workers.py` starts it and sends messages to its standard input: pickled functions, or STOP.
The process answers on its standard output. It ends when its input does, so it never outlives its
parent. No signal is needed for that, since Windows has none that a process could hear.
"""

import importlib
import os
import pickle
import signal
import sys
import traceback
import typing
import warnings
from _thread import interrupt_main
from queue import SimpleQueue
from threading import Thread

from minimuse.plumbing import stopping
from minimuse.plumbing.messages import print_warning
from minimuse.plumbing.status import status

STOP = b""  # the message; all others are pickled functions without arguments


def serve() -> typing.NoReturn:
    """Work until the parent says stop, or ends."""
    stopping.begin(starting=True, quiet=True)
    if hasattr(signal, "pthread_sigmask"):
        # The parent started this process with its signals blocked. Ctrl-C stays so: it reaches all
        # processes of a terminal, and the parent alone decides.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(stopping.SIGNALS) - {signal.SIGINT})
    warnings.showwarning = print_warning
    warnings.simplefilter("default", UserWarning)
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    jobs: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=read_messages, args=(jobs,), daemon=True).start()

    exit_code = 0
    try:
        with status("starting a process for each stage"):
            # What the functions need, and PyTorch with it: that takes seconds.
            importlib.import_module("minimuse.runs.workers")
        with answers:
            message = jobs.get()
            while message != STOP:
                pickle.dump(answer_to(message), answers)
                answers.flush()
                message = jobs.get()
    except KeyboardInterrupt:  # also where the process only waits
        exit_code = stopping.EXIT_CODE
    # All files are closed. Python's own end would fail, since `read_messages` still reads.
    sys.stdout.flush()
    os._exit(exit_code)


def read_messages(jobs: SimpleQueue) -> None:
    """Read what the parent sends, in a thread of its own; end the process if the parent ends."""
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(1)
        if message == STOP:
            # As if the process had got a signal: a training finishes its step, and saves.
            interrupt_main(signal.SIGTERM)
        jobs.put(message)


def answer_to(message: bytes) -> tuple[str, typing.Any]:
    """Call a function: ("finished", its result), ("stopped", None) or ("failed", the error)."""
    try:
        function = pickle.loads(message)
        stopping.state.starting = False
        return "finished", function()
    except KeyboardInterrupt:
        return "stopped", None
    except Exception as error:
        error.add_note(traceback.format_exc())
        return "failed", as_plain_error(error)


def as_plain_error(error: Exception) -> Exception:
    """The error, or a RuntimeError with its message if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
