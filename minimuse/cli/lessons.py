"""`minimuse check` and `minimuse notebooks`: commands that need a clone, where the lessons are."""

import argparse


def run_check(args: argparse.Namespace) -> int:
    from minimuse.checks.check import check

    return check(args.lesson, args.package)


def run_notebooks(args: argparse.Namespace) -> None:
    from minimuse.cli.notebooks import write_notebooks

    write_notebooks(args.folder)
