"""The command line: `minimuse --help` lists the commands.

Exit codes: 0 done; 1 `check` found an exercise that fails; 2 a mistake of the user, which is
explained in one line on stderr; 130 stopped by Ctrl-C or SIGTERM.
"""

import argparse
import errno
import sys
import warnings

from minimuse.cli.console import escapes_on_console
from minimuse.cli.flags import make_parser
from minimuse.cli.lessons import install_hint
from minimuse.datasets.image_files import ignore_warnings
from minimuse.plumbing import stopping
from minimuse.plumbing.messages import one_line, print_warning
from minimuse.plumbing.vocabulary import each_word_once
from minimuse.runs.rehearsal import is_out_of_memory

# What helps against errors that the system reports.
REMEDIES = {
    errno.EACCES: "allow this user to open it, and the folders above it",
    errno.EPERM: "allow this user to change it",
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EROFS: "write to another disk",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "check the name",
}

USERS_ERRORS = (ValueError, OSError, MemoryError, ModuleNotFoundError)


@each_word_once
def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is without the program's name.

    It may be called from a program of one's own: handlers of signals and warnings are as before
    when it returns.
    """
    with warnings.catch_warnings(), stopping.listen():
        warnings.showwarning = print_warning
        # Ours are what a user is told. Under `python -W error` they would end the command.
        warnings.simplefilter("default", UserWarning)
        ignore_warnings()
        return run_command(argv)


def run_command(argv: list[str] | None) -> int:
    """Run one command; its exit code. Errors that a user can cause are printed in one line."""
    try:
        args = parse_arguments(argv)
        if hasattr(args, "resume"):
            stopping.state.resumable = str(args.out / "config.json")
        with escapes_on_console():
            exit_code = args.run(args)
        sys.stdout.flush()  # it may be a file on a full disk
        # Only `check` returns an exit code; all other commands return None.
        if not stopping.stop_signals:
            return 0 if exit_code is None else exit_code
    except BaseException as error:
        # After a signal, some libraries turn KeyboardInterrupt into an error of their own.
        if not stopping.stop_signals and not isinstance(error, KeyboardInterrupt):
            if not isinstance(error, USERS_ERRORS) and not is_out_of_memory(error):
                raise
            print("minimuse:", explanation(error), file=sys.stderr)
            return 2
    stopping.state.raised = True  # signals that follow change nothing
    stopping.tell_stopped()
    return stopping.EXIT_CODE


def explanation(error: BaseException) -> str:
    """An error of the user in one line, with the remedy."""
    if isinstance(error, ModuleNotFoundError):
        return install_hint(error)
    if isinstance(error, OSError) and error.strerror is not None:
        return one_line(explain_system_error(error))
    message = one_line(error)
    if isinstance(error, RuntimeError):
        return f"too little memory; ask for fewer or smaller images ({message[:100]})"
    return message


def explain_system_error(error: OSError) -> str:
    """What the system says of a file, such as "Permission denied", and the remedy if one helps."""
    remedy = REMEDIES.get(error.errno)
    # Only what is printed has no name.
    message = f"{error.filename or 'the output'}: {error.strerror}"
    return message if remedy is None else f"{message}; {remedy}"


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
