"""The exercises of the lessons: which function, what must hold of it, and wrong ones that must not pass.

`lessonNN.py` has TITLE and EXERCISES, in the order of the lesson. `minimuse check NN` runs the properties on the
student's file, lessons/exercises/exNN_*.py, and `tests/test_exercises.py` on the stubs (which must fail), on the
package (which must pass), and on every planted bug (which must fail).
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

EXERCISE_FOLDER = Path(__file__).parents[1] / "exercises"  # of a clone; not in the wheel
LESSONS = tuple(
    sorted(path.stem[-2:] for path in Path(__file__).parent.glob("lesson[0-9][0-9].py"))
)


@dataclass(frozen=True)
class Exercise:
    name: str  # of the function in the student's file
    ours: Callable  # the package's
    properties: tuple[
        Callable, ...
    ]  # each takes the function, and raises an AssertionError with a counterexample
    hint: str  # names the idea, not the answer
    wrong: tuple[
        Callable, ...
    ]  # at least four planted bugs: each is refused by one of the properties


def lesson(number: str) -> ModuleType:
    return importlib.import_module(f"minimuse.checks.lesson{number}")


def student(number: str, folder: Path = EXERCISE_FOLDER) -> ModuleType:
    """The student's file of a lesson, as it stands now."""
    (path,) = folder.glob(f"ex{number}_*.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
