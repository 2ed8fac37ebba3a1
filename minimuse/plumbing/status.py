"""A line on the terminal that says what goes on while there is no progress bar yet.

Only the standard library is imported here, so that it is shown while PyTorch is imported.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDERR = 2  # the number of its file
ERASE = "\r\x1b[K"  # back to the first column, and clear the line


@contextmanager
def status(what: str) -> Iterator[None]:
    """Inside, the terminal shows "minimuse: WHAT ..."; afterwards the line is empty again.

    Nothing is written if stderr is a file or a pipe: nobody waits in front of those. Under torchrun
    the first process writes for all.
    """
    if not os.isatty(STDERR) or not is_first():
        yield
        return
    write(f"{ERASE}minimuse: {what} ...")
    try:
        yield
    finally:
        write(ERASE)


def is_first() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def write(text: str) -> None:
    """Write to stderr at once."""
    with suppress(OSError):  # the terminal may be closed
        os.write(STDERR, text.encode())
