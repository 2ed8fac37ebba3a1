"""`minimuse check 04`: the properties of a lesson's exercises, run by pytest on the student's functions or on ours.

Says for each function whether all that must hold of it does; and if not, the smallest counterexample, what the function
printed last, and a hint.
"""

import traceback
from pathlib import Path

import pytest
from minimuse.checks import EXERCISE_FOLDER, LESSONS, lesson, student

PRINTED = (
    12  # lines shown; a property calls a function many times, with the smallest counterexample last
)


def unwritten(*_, **__):
    raise NotImplementedError


def written(number: str):
    """The student's module; one that Python cannot read says so, and counts as not written."""
    try:
        return student(number)
    except Exception as error:
        print(
            f"lesson {number}: your file cannot be read: {traceback.format_exception_only(error)[-1].strip()} (line {line_of(error, number)})"
        )


def line_of(error: Exception, number: str) -> int:
    """Where in the student's file it happened."""
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name.startswith(f"ex{number}_")
    ]
    return lines[-1] if lines else 0


def test_exercise(function, prop):
    prop(function)


class Check:
    """A pytest plugin: it makes the cases, and takes down what becomes of each."""

    def __init__(self, lessons: tuple[str, ...], package: bool):
        self.exercises = [(number, e) for number in lessons for e in lesson(number).EXERCISES]
        mine = {number: None if package else written(number) for number in lessons}
        self.functions = [
            e.ours if package else getattr(mine[number], e.name, unwritten)
            for number, e in self.exercises
        ]
        self.failed: dict[
            int, tuple[str, Exception, list[str]]
        ] = {}  # exercise -> first property that fails, how, and lines printed
        self.ran = set()

    def pytest_generate_tests(self, metafunc):
        self.cases = [
            (i, f, prop)
            for i, ((_, e), f) in enumerate(zip(self.exercises, self.functions))
            for prop in e.properties
        ]
        metafunc.parametrize(
            "function, prop",
            [case[1:] for case in self.cases],
            ids=map(str, range(len(self.cases))),
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield  # it has what was printed
        if call.when == "call":
            i, _, prop = self.cases[int(item.callspec.id)]
            self.ran.add(i)
            if call.excinfo is not None:
                self.failed.setdefault(
                    i, (prop.__name__, call.excinfo.value, report.capstdout.splitlines())
                )
        return report

    def holds(self, number: str) -> list[bool]:
        return [
            i in self.ran and i not in self.failed
            for i, (n, _) in enumerate(self.exercises)
            if n == number
        ]

    def tell(self) -> None:
        """Each function, with what is wrong with it."""
        for i, (_, exercise) in enumerate(self.exercises):
            if i not in self.failed:
                print(f"  {exercise.name:28} holds")
                continue
            prop, error, printed = self.failed[i]
            if isinstance(error, NotImplementedError):
                print(f"  {exercise.name:28} not written yet")
                show(printed)
                continue
            print(f"  {exercise.name:28} fails: {prop.replace('_', ' ')}")
            said = (
                str(error).split("\nassert ")[0]
                if isinstance(error, AssertionError)
                else "".join(traceback.format_exception_only(error))
            )
            if not isinstance(error, AssertionError) and (
                line := line_of(error, self.exercises[i][0])
            ):
                print(f"      at line {line} of your file")
            for line in [
                *said.strip().splitlines(),
                *(line for note in getattr(error, "__notes__", ()) for line in note.splitlines()),
            ]:
                print(f"      {line}")
            show(printed)
            print(f"      hint: {exercise.hint}")


def show(printed: list[str]) -> None:
    if printed:
        print(
            f"      it printed{f', last of {len(printed)} lines' if len(printed) > PRINTED else ''}:"
        )
    for line in printed[-PRINTED:]:
        print(f"      | {line}")


def check(number: str | None, package: bool) -> int:
    """The exit code: 0 if all hold, 1 if some fail; an unknown lesson is a ValueError."""
    number = number and number.zfill(2)
    if number is not None and number not in LESSONS:
        raise ValueError(
            f"lesson {number!r} has no exercises to check; choose one of {', '.join(LESSONS)}"
        )
    found = Check(LESSONS if number is None else (number,), package)
    pytest.main(
        ["-p", "no:terminal", "-p", "no:cacheprovider", str(Path(__file__))], plugins=[found]
    )
    for lesson_number in LESSONS if number is None else (number,):
        right = found.holds(lesson_number)
        print(f"{lesson_number} {lesson(lesson_number).TITLE}: {sum(right)} of {len(right)} hold")
    if number is not None:
        found.tell()
        if not package and not all(right):
            print(f"your functions are in {next(EXERCISE_FOLDER.glob(f'ex{number}_*.py'))}")
    return 0 if all(all(found.holds(n)) for n in (LESSONS if number is None else (number,))) else 1
