"""`minimuse check 04`: run the properties of a lesson's exercises on the student's functions.

For each function it says whether all properties hold. If one does not, it shows the smallest
counterexample, what the function printed last, and a hint. pytest runs the properties:
`test_exercise` is the only test; the plugin `Check` supplies its cases and collects the results.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from hypothesis import settings
from minimuse.checks import LESSONS, Exercise, lesson, student, student_file

# How many printed lines are shown. A property calls a function many times, with the smallest
# counterexample last.
PRINTED = 12


def check(number: str | None, package: bool) -> int:
    """Check one lesson, or all for None; returns 0 if everything holds, else 1.

    `package`: check the package's own functions instead of the student's. An unknown lesson is a
    ValueError.
    """
    if number is not None:
        number = number.zfill(2)
        if number not in LESSONS:
            raise ValueError(
                f"lesson {number!r} has no exercises to check; choose one of {', '.join(LESSONS)}"
            )
    numbers = LESSONS if number is None else (number,)
    plugin = Check(numbers, package)
    options = ["-p", "no:terminal", "-p", "no:cacheprovider", str(Path(__file__))]
    # Hypothesis fails an example that takes longer than 200 ms. A busy laptop may need longer.
    settings.register_profile("check", parent=settings.default, deadline=None)
    settings.load_profile("check")
    pytest.main(options, plugins=[plugin])
    for n in numbers:
        results = plugin.results(n)
        print(f"{n} {lesson(n).TITLE}: {sum(results)} of {len(results)} hold")
    all_hold = all(all(plugin.results(n)) for n in numbers)
    if number is not None:
        plugin.print_details()
        if not package and not all_hold:
            print(f"your functions are in {student_file(number)}")
    return 0 if all_hold else 1


def test_exercise(function, prop):
    prop(function)


class Case(NamedTuple):
    """One run of `test_exercise`."""

    exercise: int  # index in Check.exercises
    function: Callable
    prop: Callable


class Failure(NamedTuple):
    """The first property of an exercise that does not hold."""

    prop: str
    error: Exception
    printed: list[str]


class Check:
    """A pytest plugin that makes the cases and remembers the first failure of each exercise."""

    def __init__(self, numbers: tuple[str, ...], package: bool):
        self.exercises: list[tuple[str, Exercise]] = []
        self.cases: list[Case] = []
        for number in numbers:
            module = None if package else read_student(number)
            for exercise in lesson(number).EXERCISES:
                function = exercise.ours
                if not package:
                    function = getattr(module, exercise.name, not_written)
                index = len(self.exercises)
                self.exercises.append((number, exercise))
                self.cases += [Case(index, function, prop) for prop in exercise.properties]
        self.failures: dict[int, Failure] = {}
        self.has_run: set[int] = set()

    def pytest_generate_tests(self, metafunc):
        arguments = [(case.function, case.prop) for case in self.cases]
        ids = [str(i) for i in range(len(self.cases))]
        metafunc.parametrize("function, prop", arguments, ids=ids)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield  # has what the function printed
        if call.when != "call":
            return report
        case = self.cases[int(item.callspec.id)]
        self.has_run.add(case.exercise)
        if call.excinfo is not None and case.exercise not in self.failures:
            self.failures[case.exercise] = Failure(
                case.prop.__name__, call.excinfo.value, report.capstdout.splitlines()
            )
        return report

    def results(self, number: str) -> list[bool]:
        """For each exercise of a lesson: whether all its properties hold."""
        return [
            i in self.has_run and i not in self.failures
            for i, (n, _) in enumerate(self.exercises)
            if n == number
        ]

    def print_details(self) -> None:
        """Print every function, and what is wrong with it."""
        for i, (number, exercise) in enumerate(self.exercises):
            failure = self.failures.get(i)
            if failure is None:
                print(f"  {exercise.name:28} holds")
            elif isinstance(failure.error, NotImplementedError):
                print(f"  {exercise.name:28} not written yet")
                print_output(failure.printed)
            else:
                print(f"  {exercise.name:28} fails: {failure.prop.replace('_', ' ')}")
                print_error(failure.error, number)
                print_output(failure.printed)
                print(f"      hint: {exercise.hint}")


# --- The student's file ---
def not_written(*_, **__):
    """Stands for a function that is not in the student's file."""
    raise NotImplementedError


def read_student(number: str) -> ModuleType | None:
    """The student's module; None, after a message, if Python cannot read it."""
    try:
        return student(number)
    except Exception as error:
        reason = traceback.format_exception_only(error)[-1].strip()
        line = line_of(error, number)
        print(f"lesson {number}: your file cannot be read: {reason} (line {line})")
        return None


def line_of(error: Exception, number: str) -> int:
    """The line of the student's file where an error occurred; 0 if it was elsewhere."""
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name.startswith(f"ex{number}_")
    ]
    return lines[-1] if lines else 0


# --- Printing ---
def print_error(error: Exception, number: str) -> None:
    """Print the counterexample of a property, or any other error with its line."""
    if isinstance(error, AssertionError):
        # pytest adds the compared values below the property's own message.
        message = str(error).split("\nassert ")[0]
    else:
        message = "".join(traceback.format_exception_only(error))
        line = line_of(error, number)
        if line:
            print(f"      at line {line} of your file")
    # Hypothesis puts the counterexample into notes.
    notes = getattr(error, "__notes__", ())
    for text in [message.strip(), *notes]:
        for line in text.splitlines():
            print(f"      {line}")


def print_output(printed: list[str]) -> None:
    """Print the last lines that a function printed."""
    if not printed:
        return
    if len(printed) > PRINTED:
        print(f"      it printed, last of {len(printed)} lines:")
    else:
        print("      it printed:")
    for line in printed[-PRINTED:]:
        print(f"      | {line}")
