"""What is printed can be printed on every console."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def escapes_on_console() -> Iterator[None]:
    """Inside, letters that the console cannot show are printed as escapes, such as \\xe9.

    Otherwise a folder's name would end the command with an error, after all of its work.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)
