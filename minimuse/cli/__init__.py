"""The command line: `minimuse --help` lists the commands.

Exit codes: 0 done; 1 `check` found an exercise that fails; 2 a mistake of the user, which is
explained in one line on stderr; 130 stopped by Ctrl-C or SIGTERM.
"""

import argparse
import signal
import sys
import warnings

from minimuse.cli.console import escapes_on_console
from minimuse.cli.flags import make_parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is without the program's name."""
    warnings.showwarning = print_warning
    args = parse_arguments(argv)
    # SIGTERM then raises KeyboardInterrupt, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with escapes_on_console():
            exit_code = args.run(args)
    except KeyboardInterrupt:
        message = "minimuse: stopped"
        if hasattr(args, "resume"):
            message += "; the same command with --resume goes on"
        print(message, file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, ModuleNotFoundError) as error:
        print("minimuse:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    # Only `check` returns an exit code; all other commands return None.
    return 0 if exit_code is None else exit_code


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; a mistake prints one line and exits with code 2."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if args.command == "train":
        # argparse takes positional arguments from one place only, but key=value may stand anywhere.
        args.settings += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def print_warning(message: Warning | str, *details: object) -> None:
    """Print a Python warning in one line, without file and source."""
    print(f"minimuse: {message}", file=sys.stderr)
