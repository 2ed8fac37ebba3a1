"""The command line: thin. Every mistake a user can make ends in one line on stderr and exit code 2."""

import signal
import sys
import warnings

from minimuse.cli.flags import parser


def main(argv: list[str] | None = None) -> int:
    warnings.showwarning = lambda message, *_: print(f"minimuse: {message}", file=sys.stderr)
    args, rest = parser().parse_known_args(argv)
    if (
        args.command == "train"
    ):  # argparse takes positionals in one place only; key=value may stand anywhere
        args.settings += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        code = args.run(args)
        return code if args.command == "check" else 0
    except KeyboardInterrupt:
        print(
            "minimuse: stopped"
            + "; the same command with --resume goes on" * hasattr(args, "resume"),
            file=sys.stderr,
        )
        return 130
    except (ValueError, OSError, MemoryError, ModuleNotFoundError) as error:
        print("minimuse:", " ".join(str(error).split()), file=sys.stderr)
        return 2
