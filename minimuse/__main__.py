"""`minimuse` and `python -m minimuse` begin here; torchrun needs the second form."""

import sys


def main() -> int:
    """Run the command of sys.argv and return its exit code."""
    try:
        # PyTorch takes a second to import. Signals are heard before that.
        from minimuse.plumbing import stopping

        stopping.begin(starting=True)
        try:
            from minimuse.cli import main as run_command

            return run_command()
        finally:
            stopping.ignore()
    except KeyboardInterrupt:
        print("minimuse: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
