"""Five broken trainings to debug: `debug.md` shows what they look like.

python lessons/debug.py new 1             # write case-1.py, a broken overture, here
python case-1.py --out case-1.png         # see for yourself (90 seconds of two cores)
python lessons/debug.py check case-1.py   # have you found it?
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from faults import CASES, with_fault


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    new = commands.add_parser("new", help="write a broken file")
    new.add_argument("number", type=int, choices=range(1, len(CASES) + 1))
    new.set_defaults(run=write_case)
    check = commands.add_parser("check", help="say whether a file is right")
    check.add_argument("file", type=Path)
    check.set_defaults(run=check_file)
    args = parser.parse_args()
    return args.run(args)


def write_case(args: argparse.Namespace) -> int:
    """Write the overture with one fault into the current folder, but never over a file."""
    path = Path(f"case-{args.number}.py")
    if path.exists():
        print(f"{path} exists already; move it away to begin anew", file=sys.stderr)
        return 2
    path.write_text(with_fault(CASES[f"case-{args.number}"]))
    print(f"{path} is written; it has one fault")
    return 0


def check_file(args: argparse.Namespace) -> int:
    """Say whether every function of a file is right, without training."""
    from minimuse.checks.overture import first_fault  # with PyTorch, which takes seconds to import

    try:
        module = load(args.file)
    except (OSError, SyntaxError) as error:
        print(f"{args.file} cannot be read: {error}", file=sys.stderr)
        return 2
    fault = first_fault(module)
    if fault is None:
        print(f"{args.file} is right")
        return 0
    print(f"{args.file} is not right yet. {fault}")
    return 1


def load(path: Path) -> ModuleType:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
