"""`minimuse check 04`: run the properties of a lesson's exercises on the student's functions.

For each function it says whether all properties hold. If one does not, it shows the smallest
counterexample, what the function printed last, and a hint. An exercise stops at the first property
that does not hold. `minimuse check 04 --draw` then draws with the student's functions, by
`drawing.py`.
"""

import contextlib
import functools
import inspect
import io
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, Verbosity, settings
from hypothesis.errors import FlakyFailure
from minimuse.checks import LESSONS, Exercise, lesson, student, student_file

# How many printed lines are shown. A property calls a function many times, with the smallest
# counterexample last.
PRINTED = 12
# Tensors and lists with more numbers than this are shown by their shape or length.
SHORT = 12
settings.register_profile(
    "check",
    # The same examples each time, so that a function that held yesterday holds today.
    derandomize=True,
    database=None,
    # A slow function is no wrong one.
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    # The properties' own messages say more than Hypothesis's, which name lines of its own.
    verbosity=Verbosity.quiet,
)


def check(number: str | None, package: bool, draw: Path | None = None) -> int:
    """Check one lesson, or all for None; returns 0 if everything holds, else 1.

    `package`: check the package's own functions instead of the student's. `draw`: where to write a
    picture that the functions of the lesson draw. An unknown lesson is a ValueError.
    """
    number = known(number)
    if draw is not None:
        # Imported here, since it loads what draws images.
        from minimuse.checks import drawing

        # Before the checks, so that no time is lost if the lesson has nothing to draw.
        drawing.check_drawable(number, draw)
    if number is None:
        # A list, so that every lesson is checked and printed.
        return 0 if all([all_hold(check_lesson(n, package)) for n in LESSONS]) else 1

    results = check_lesson(number, package)
    for result in results:
        print_result(result, number)
    if not package and not all_hold(results):
        print(f"your functions are in {student_file(number)}")
    if draw is not None:
        drawing.draw_lesson(number, results, draw)
    return 0 if all_hold(results) else 1


def known(number: str | None) -> str | None:
    """The number of a lesson with two digits; a ValueError if there is no such lesson."""
    if number is None:
        return None
    number = number.zfill(2)
    if number not in LESSONS:
        raise ValueError(
            f"lesson {number!r} has no exercises to check; choose one of {', '.join(LESSONS)}"
        )
    return number


# --- Running the properties ---
class Failure(NamedTuple):
    """The first property of an exercise that does not hold."""

    prop: str
    error: Exception
    printed: list[str]
    called: str  # the arguments of the last call
    returned: str  # what it returned


class Result(NamedTuple):
    """An exercise, the function that was checked, and what is wrong with it."""

    exercise: Exercise
    function: Callable
    failure: Failure | None

    @property
    def is_written(self) -> bool:
        return self.failure is None or not isinstance(self.failure.error, NotImplementedError)


class ReturnedNone(Exception):
    """A function returned None, and should have returned something."""


class Recorded:
    """A function that remembers its last call, and refuses to return None unless it may."""

    def __init__(self, exercise: Exercise, function: Callable):
        self.exercise = exercise
        self.function = function
        self.called = ""
        self.returned = ""
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args, **kwargs):
        # Described before the call, which may change its arguments in place.
        self.called = described_call(self.exercise, args, kwargs)
        self.returned = ""
        result = self.function(*args, **kwargs)
        if result is None and not self.exercise.may_return_none:
            keyword = "yield" if inspect.isgeneratorfunction(self.exercise.ours) else "return"
            raise ReturnedNone(f"your function returned None; did you forget `{keyword}`?")
        self.returned = described(result)
        return result


def check_lesson(number: str, package: bool) -> list[Result]:
    """Run the properties of every exercise of a lesson, and print how many hold."""
    module = None if package else read_student(number)
    results = []
    with check_profile():
        for exercise in lesson(number).EXERCISES:
            function = exercise.ours
            if not package:
                function = getattr(module, exercise.name, not_written)
            results.append(Result(exercise, function, first_failure(exercise, function)))
    held = [result.failure is None for result in results]
    print(f"{number} {lesson(number).TITLE}: {sum(held)} of {len(held)} hold")
    return results


def all_hold(results: list[Result]) -> bool:
    return all(result.failure is None for result in results)


@contextlib.contextmanager
def check_profile() -> Iterator[None]:
    """Run Hypothesis with the settings of `minimuse check`, and restore the caller's."""
    before = settings.get_current_profile_name()
    settings.load_profile("check")
    try:
        yield
    finally:
        settings.load_profile(before)


def first_failure(exercise: Exercise, function: Callable) -> Failure | None:
    """Run the properties in order, up to the first that does not hold."""
    recorded = Recorded(exercise, function)
    for prop in exercise.properties:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                prop(recorded)
        except Exception as error:
            if isinstance(error, FlakyFailure):
                # The function is random, and did not fail again on the same input.
                error = error.exceptions[0]
            lines = printed.getvalue().splitlines()
            return Failure(prop.__name__, error, lines, recorded.called, recorded.returned)
    return None


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
def print_result(result: Result, number: str) -> None:
    """Print whether a function holds, and what is wrong with it."""
    name, failure = result.exercise.name, result.failure
    if failure is None:
        print(f"  {name:28} holds")
    elif not result.is_written:
        print(f"  {name:28} not written yet")
        print_output(failure.printed)
    elif isinstance(failure.error, ReturnedNone):
        print(f"  {name:28} fails: {failure.error}")
        print_output(failure.printed)
    else:
        print(f"  {name:28} fails: {failure.prop.replace('_', ' ')}")
        print_error(failure, number)
        print_output(failure.printed)
        print(f"      hint: {result.exercise.hint}")


def print_error(failure: Failure, number: str) -> None:
    """Print the counterexample of a property, or any other error with its line and its input."""
    error = failure.error
    line = line_of(error, number)
    if line:
        print(f"      at line {line} of your file")
    if isinstance(error, AssertionError) and not line:
        message = str(error)
    else:
        message = "".join(traceback.format_exception_only(error)).strip()
    for text in message.splitlines():
        # Hypothesis adds notes about its own examples and lines below an error.
        if text and text not in getattr(error, "__notes__", ()):
            print(f"      {text}")
    if not isinstance(error, AssertionError) or line:
        print(f"      it was called with {failure.called}")
        if failure.returned:
            print(f"      and returned {failure.returned}")


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


def described_call(exercise: Exercise, args: tuple, kwargs: dict) -> str:
    """The arguments of a call, by their names in the package's function."""
    try:
        names = list(inspect.signature(exercise.ours).parameters)
    except (TypeError, ValueError):
        names = []
    names += ["?"] * (len(args) - len(names))
    named = list(zip(names, args, strict=False)) + list(kwargs.items())
    return ", ".join(f"{name} = {described(value)}" for name, value in named)


def described(value: object) -> str:
    """A value, or what it is if it is long."""
    if torch.is_tensor(value):
        numbers = value.tolist() if value.numel() <= SHORT else f"a tensor {tuple(value.shape)}"
        return f"{numbers} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        if len(value) > SHORT:
            return f"a {type(value).__name__} of {len(value)}"
        inside = ", ".join(described(item) for item in value)
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"a {type(value).__name__}"
