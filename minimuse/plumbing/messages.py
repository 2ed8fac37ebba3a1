"""What is told to the user in one line."""

import sys


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
