"""What is told to the user in one line."""

import sys


def print_warning(message: Warning | str, *details: object) -> None:
    """Print a Python warning in one line, without file and source: for `warnings.showwarning`."""
    print(f"minimuse: {message}", file=sys.stderr)
