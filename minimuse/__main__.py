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
        from minimuse.plumbing.messages import drop_output
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


if __name__ == "__main__":
    raise SystemExit(main())
