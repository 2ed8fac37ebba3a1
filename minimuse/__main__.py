"""`minimuse` and `python -m minimuse` begin here; torchrun needs the second form."""

import os
import sys


def main() -> int:
    """Run the command of sys.argv and return its exit code."""
    try:
        os.getcwd()
    except FileNotFoundError:  # PyTorch ends the process with another message
        print("minimuse: the current directory is gone; change to another one", file=sys.stderr)
        return 2
    try:
        # PyTorch takes seconds to import. Signals are heard before that.
        from minimuse.plumbing import stopping
        from minimuse.plumbing.status import status

        stopping.begin(starting=True)
        try:
            with status("loading PyTorch"):
                from minimuse.cli import main as run_command

            return run_command()
        finally:
            stopping.ignore()
            drop_output()
    except KeyboardInterrupt:
        print("minimuse: stopped", file=sys.stderr)
        return 130


def drop_output() -> None:
    """Drop what could not be printed, or Python would try again at its end, with a traceback.

    The reader has gone, as in `minimuse describe toy | head -1`, or the disk is full.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
