"""What is told to the user in one line."""

import os
import sys
import warnings
from types import FrameType

# Files of minimuse and of PyTorch, whose decorators stand between functions of minimuse.
OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
PYTORCH = os.sep + "torch" + os.sep + "utils" + os.sep


def one_line(message: object) -> str:
    """A message in one line: what cannot be printed, of a value that it names, is escaped.

    Of a very long one the middle is left out: the remedy stands at the end.
    """
    text = " ".join(str(message).split())
    if len(text) > 800:
        text = f"{text[:300]} ... {text[-400:]}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def print_warning(message: Warning | str, *details: object) -> None:
    """Print a Python warning in one line, without file and source: for `warnings.showwarning`."""
    print(f"minimuse: {one_line(message)}", file=sys.stderr)


def warn(message: str) -> None:
    """Warn at the line of the caller's own code: the first one outside of minimuse."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and is_inside(frame.f_code.co_filename):
        frame = frame.f_back
        level += 1
    # Level 1 is this function.
    warnings.warn(message, stacklevel=level)


def is_inside(file: str) -> bool:
    """Whether a file belongs to minimuse or to PyTorch's decorators."""
    return file.startswith(OURS) or PYTORCH in file


def drop_output() -> None:
    """Drop what could not be printed, or Python would try again at its end, with a traceback.

    The reader has gone, as in `minimuse describe toy | head -1`, or the disk is full.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
