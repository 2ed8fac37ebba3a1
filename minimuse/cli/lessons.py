"""`minimuse check` and `minimuse notebooks`: the two commands that need a clone of the project.

The lessons and the student's files are there, and not in an installed wheel.
"""

import argparse
import importlib.util

from minimuse import checks


def run_check(args: argparse.Namespace) -> int:
    """Check the functions of a lesson's exercises; returns 0 if all are right, else 1."""
    require_clone("check", "the exercises are in lessons/exercises")
    require_packages("check", ("pytest", "hypothesis"), extra="test")
    # Imported here, since these packages are optional.
    from minimuse.checks.check import check

    return check(args.lesson, args.package)


def run_notebooks(args: argparse.Namespace) -> None:
    """Write every lesson as a Jupyter notebook into a folder."""
    require_clone("notebooks", "the lessons are in its folder lessons/")
    require_packages("notebooks", ("jupytext",), extra="lessons")
    from minimuse.cli.notebooks import write_notebooks

    write_notebooks(args.folder)


def require_clone(command: str, where: str) -> None:
    """Raise a FileNotFoundError if this is not a clone."""
    if not checks.EXERCISE_FOLDER.is_dir():
        raise FileNotFoundError(f"`{command}` needs a clone of the project: {where}")


def require_packages(command: str, packages: tuple[str, ...], extra: str) -> None:
    """Raise a ModuleNotFoundError that says how to install the packages, if one is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"`{command}` needs {package}; "
                f"install it, in the clone, with: pip install -e '.[{extra}]'"
            )
