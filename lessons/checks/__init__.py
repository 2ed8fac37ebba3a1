"""The exercises of the lessons: functions to write, what must be true of them, and wrong versions.

Each `lessonNN.py` has a TITLE and EXERCISES, in the order of the lesson. `minimuse check NN` runs
the properties on the student's file, lessons/exercises/exNN_*.py. `tests/test_exercises.py` runs
them on the stubs (which must fail), on the package's own functions (which must pass) and on every
planted bug (which must fail).
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

# Only a clone has this folder; an installed wheel has not.
EXERCISE_FOLDER = Path(__file__).parents[1] / "exercises"
# The numbers of the lessons, as text: "00", "01", ...
LESSONS = tuple(
    sorted(path.stem[-2:] for path in Path(__file__).parent.glob("lesson[0-9][0-9].py"))
)


@dataclass(frozen=True)
class Exercise:
    """One function for the student to write."""

    # Of the function in the student's file.
    name: str
    # The package's own function.
    ours: Callable
    # Each takes the function, and raises an AssertionError with a counterexample.
    properties: tuple[Callable, ...]
    # Names the idea, and not the answer.
    hint: str
    # Planted bugs, at least four. One of the properties must reject each.
    wrong: tuple[Callable, ...]
    # Whether None is an answer. Otherwise it means that a `return` was forgotten.
    may_return_none: bool = False


def lesson(number: str) -> ModuleType:
    """The module with a lesson's exercises."""
    return importlib.import_module(f"minimuse.checks.lesson{number}")


def student_file(number: str, folder: Path = EXERCISE_FOLDER) -> Path:
    """The student's file of a lesson; a FileNotFoundError if it was removed."""
    for path in folder.glob(f"ex{number}_*.py"):
        return path
    raise FileNotFoundError(
        f"{folder}/ex{number}_*.py is missing; git checkout lessons/exercises restores it"
    )


def student(number: str, folder: Path = EXERCISE_FOLDER) -> ModuleType:
    """Import the student's file of a lesson, as it is now."""
    path = student_file(number, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
