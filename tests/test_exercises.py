"""The exercises are checked: stubs fail, the package passes, every planted bug is rejected.

Right solutions that are written in another way than the package's pass, too: see `solutions/`.

pytest tests/test_exercises.py
"""

import ast
import importlib
import inspect
import math
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from minimuse.checks import EXERCISE_FOLDER, LESSONS, lesson, student
from minimuse.checks.check import PRINTED, check, first_failure
from minimuse.checks.compare import difference

from minimuse import schedule

ALL = [(number, exercise) for number in LESSONS for exercise in lesson(number).EXERCISES]


def case_name(case):
    number, exercise = case
    return f"{number}-{exercise.name}"


def stubs_have_changed() -> bool:
    """Whether somebody has worked on the exercises of this clone."""
    command = ["git", "diff", "--quiet", "HEAD", "--", EXERCISE_FOLDER]
    return subprocess.run(command, cwd=EXERCISE_FOLDER, capture_output=True).returncode == 1


stubs = pytest.mark.skipif(stubs_have_changed(), reason="lessons/exercises has been worked on")


@pytest.mark.parametrize("case", ALL, ids=case_name)
def test_package_passes(case):
    _, exercise = case
    for prop in exercise.properties:
        prop(exercise.ours)


@stubs
@pytest.mark.parametrize("case", ALL, ids=case_name)
def test_stub_is_not_written(case):
    number, exercise = case
    stub = getattr(student(number), exercise.name)
    assert stub.__doc__, "a stub says what to write"
    for prop in exercise.properties:
        with pytest.raises(NotImplementedError):
            prop(stub)


def rejecting_properties(exercise, planted) -> list[str]:
    """The properties that a planted bug fails. Any error counts, as it does for a student."""
    names = []
    for prop in exercise.properties:
        try:
            prop(planted)
        except Exception:
            names.append(prop.__name__)
    return names


@pytest.mark.parametrize("case", ALL, ids=case_name)
def test_planted_bugs_are_rejected(case, planted_profile, record_property):
    _, exercise = case
    assert len(exercise.wrong) >= 4, f"{exercise.name} has {len(exercise.wrong)} planted bugs"
    table = {}
    for i, planted in enumerate(exercise.wrong):
        table[f"{planted.__name__}{i}"] = rejecting_properties(exercise, planted)
    # The report of --junitxml then has a table of bugs and properties.
    record_property("rejected by", table)
    accepted = [name for name, properties in table.items() if not properties]
    assert not accepted, f"{exercise.name}: passes {accepted}"


@pytest.mark.parametrize("case", ALL, ids=case_name)
def test_right_solutions_are_accepted(case, planted_profile):
    number, exercise = case
    right = importlib.import_module(f"solutions.lesson{number}").RIGHT[exercise.name]
    assert len(right) >= 3, f"{exercise.name} has {len(right)} right solutions"
    for i, solution in enumerate(right):
        for prop in exercise.properties:
            try:
                prop(solution)
            except Exception as error:
                name = f"{solution.__name__} ({i})"
                raise AssertionError(f"{prop.__name__} refuses {name}: {error}") from error


@stubs
def test_every_function_of_a_stub_file_is_checked_or_open():
    for number in LESSONS:
        module = student(number)
        written = {
            name
            for name, function in vars(module).items()
            if inspect.isfunction(function) and function.__module__ == module.__name__
        }
        checked = {exercise.name for exercise in lesson(number).EXERCISES}
        is_open = {name for name in written if "Open-ended" in vars(module)[name].__doc__}
        assert written - checked <= is_open, f"lesson {number}"
        assert checked <= written


def test_there_are_enough():
    assert len(ALL) == len({case_name(case) for case in ALL}) >= 30


@stubs
def test_check_says_what_fails(capsys):
    number = LESSONS[0]
    assert check(number, package=False) == 1
    assert "not written yet" in capsys.readouterr().out
    assert check(number, package=True) == 0
    out = capsys.readouterr().out
    assert "not written" not in out and out.count("holds") == len(lesson(number).EXERCISES)
    with pytest.raises(ValueError, match="99"):
        check("99", package=False)


def test_check_shows_the_counterexample_and_a_hint(capsys, monkeypatch):
    """A student's off-by-one: which property, on which input, and the idea."""
    module = student("04")
    # Too few: it may be zero.
    module.mask_counts = lambda ratios, tokens: (ratios * tokens).ceil().long()
    monkeypatch.setattr("minimuse.checks.check.student", lambda number: module)
    assert check("04", package=False) == 1
    out = capsys.readouterr().out
    assert "mask_counts                  fails: rounds up to at least one" in out
    assert "[0.0] of 1 tokens: [0]" in out and "hint: a row with nothing masked" in out


def test_check_shows_what_a_failing_function_printed(capsys, monkeypatch):
    """The last lines, which are those of the counterexample; nothing of a function that holds."""
    module = student("04")

    def mask_counts(ratios, tokens):
        print("called with", ratios.tolist(), tokens)
        return (ratios * tokens).ceil().long()

    def cosine_gamma(ratio):
        print("not shown")
        return math.cos(math.pi / 2 * ratio)

    module.mask_counts = mask_counts
    module.cosine_gamma = cosine_gamma
    monkeypatch.setattr("minimuse.checks.check.student", lambda number: module)
    assert check("04", package=False) == 1
    out = capsys.readouterr().out
    assert "cosine_gamma                 holds" in out and "not shown" not in out
    assert "      | called with [0.0] 1\n      hint:" in out
    assert out.count("called with") <= PRINTED


def test_check_survives_a_file_that_python_cannot_read(capsys, monkeypatch, tmp_path):
    def broken(number):
        (tmp_path / f"ex{number}_x.py").write_text("import math\n\nx = (1\n")
        return student(number, tmp_path)

    monkeypatch.setattr("minimuse.checks.check.student", broken)
    # 4 is the same as 04.
    assert check("4", package=False) == 1
    out = capsys.readouterr().out
    assert "cannot be read: SyntaxError" in out and "(line 3)" in out and "not written yet" in out


def test_a_file_that_was_removed(tmp_path):
    with pytest.raises(FileNotFoundError, match="ex04.*is missing"):
        student("04", tmp_path)


def test_check_says_where_a_function_failed(capsys, monkeypatch, tmp_path):
    def failing(number):
        (tmp_path / f"ex{number}_x.py").write_text("def cosine_gamma(ratio):\n    return {}['a']\n")
        return student(number, tmp_path)

    monkeypatch.setattr("minimuse.checks.check.student", failing)
    assert check("04", package=False) == 1
    out = capsys.readouterr().out
    assert "KeyError: 'a'" in out and "at line 2 of your file" in out


def checked(number, capsys, monkeypatch, **functions):
    """What `minimuse check` prints of a student's functions; the others are stubs."""
    module = student(number)
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setattr("minimuse.checks.check.student", lambda number: module)
    assert check(number, package=False) == 1
    return capsys.readouterr().out


def test_check_says_that_a_return_was_forgotten(capsys, monkeypatch):
    """And nothing else: no example, no hint about something else. None may be an answer, too."""

    def cosine_gamma(ratio):
        math.cos(ratio)

    out = checked("04", capsys, monkeypatch, cosine_gamma=cosine_gamma)
    line = (
        "cosine_gamma                 fails: your function returned None; did you forget `return`?"
    )
    assert line in out and "hint" not in out and "Error" not in out
    out = checked("06", capsys, monkeypatch, decode=lambda *arguments: None)
    assert "decode                       fails: your function returned None" in out
    assert "did you forget `yield`?" in out
    out = checked("10", capsys, monkeypatch, next_window=lambda hidden, grid: None)
    assert "next_window                  fails: goes where most is seen" in out
    assert "None, not (" in out


def test_check_points_at_the_number_that_differs(capsys, monkeypatch):
    def masked_after(masked, steps):
        left = schedule.masked_after(masked, steps)
        if steps == 39:
            left[5] += 1
        return left

    out = checked("04", capsys, monkeypatch, masked_after=masked_after)
    expected = schedule.masked_after(256, 39)[5]
    assert f"at index 5, {expected + 1}, where {expected} is expected" in out


def test_check_does_not_show_the_insides_of_hypothesis(capsys, monkeypatch):
    """The input of the last call, and not which lines of numpy ran."""

    def mask_counts(ratios, tokens):
        return ratios["first"]

    out = checked(
        "04", capsys, monkeypatch, mask_counts=mask_counts, cosine_gamma=lambda ratio: ratio
    )
    assert "it was called with ratios = [0.0] float64, tokens = 1" in out
    assert "xample" not in out and "site-packages" not in out and "numpy" not in out


def test_check_stops_at_the_first_property_that_fails(monkeypatch):
    calls = []

    def fails(function):
        raise AssertionError("no")

    def is_not_run(function):
        calls.append(function)

    exercise = replace(lesson("04").EXERCISES[0], properties=(fails, is_not_run))
    failure = first_failure(exercise, exercise.ours)
    assert failure.prop == "fails" and not calls


@stubs
@pytest.mark.alone
def test_a_bare_check_of_stubs_is_quick():
    """At most 10 seconds of a processor, most of which is importing PyTorch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-m", "minimuse", "check"], capture_output=True)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert seconds < 10


def test_every_refusal_says_something():
    """No assertion of a property that exercises use is without a message."""
    bare = []
    folder = Path(lesson("04").__file__).parent
    for path in [*folder.glob("lesson*.py"), *(folder / "properties").glob("*.py")]:
        if path.name in ("models.py", "training.py"):  # of the package alone
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert) and node.msg is None:
                bare.append(f"{path.name}:{node.lineno}")
    assert not bare


def test_the_number_of_everything(record_property):
    """What the project says of its exercises: --junitxml has the counts."""
    counts = {"exercises": len(ALL), "planted bugs": 0, "right solutions": 0}
    for number, exercise in ALL:
        counts["planted bugs"] += len(exercise.wrong)
        right = importlib.import_module(f"solutions.lesson{number}").RIGHT
        counts["right solutions"] += len(right[exercise.name])
    for name, count in counts.items():
        record_property(name, count)
    assert counts["right solutions"] >= 3 * len(ALL)
    assert counts["planted bugs"] >= 4 * len(ALL)


@pytest.mark.parametrize(
    "result, expected, text",
    [
        ([1, 2], [1, 2], ""),
        (1.5, 2.0, "1.5, where 2 is expected"),
        ([1, 2, 4], [1, 2, 3], "at index 2: 4, where 3 is expected; the other 2 of 3 numbers"),
        ([[1, 2], [5, 6]], [[1, 2], [3, 4]], "at index 1, 0: 5, where 3 is expected; 2 of 4"),
        ([1], [1, 2], "the shape is (1,), not (2,)"),
        (torch.tensor([True]), [False], "at index 0: True, where False is expected"),
    ],
)
def test_differences(result, expected, text):
    said = difference(result, expected)
    assert said.startswith(text) and bool(said) == bool(text), said
