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

    Nothing is written if stderr is a file or a pipe: nobody waits in front of those.
    """
    if not os.isatty(STDERR):
        yield
        return
    write(f"{ERASE}minimuse: {what} ...")
    try:
        yield
    finally:
        write(ERASE)


def write(text: str) -> None:
    """Write to stderr at once."""
    with suppress(OSError):  # the terminal may be closed
        os.write(STDERR, text.encode())
