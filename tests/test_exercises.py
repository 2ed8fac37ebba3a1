"""Exercises check themselves: stubs fail, the package passes, and at least four planted bugs each are refused."""

import inspect
import math
import subprocess

import pytest
from minimuse.checks import EXERCISE_FOLDER, LESSONS, lesson, student
from minimuse.checks.check import PRINTED, check

ALL = [(number, exercise) for number in LESSONS for exercise in lesson(number).EXERCISES]
names = lambda case: f"{case[0]}-{case[1].name}"
CHANGED = (
    subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", EXERCISE_FOLDER], cwd=EXERCISE_FOLDER, capture_output=True
    ).returncode
    == 1
)
stubs = pytest.mark.skipif(CHANGED, reason="lessons/exercises has been worked on")


@pytest.mark.parametrize("case", ALL, ids=names)
def test_package_passes(case):
    for prop in case[1].properties:
        prop(case[1].ours)


@stubs
@pytest.mark.parametrize("case", ALL, ids=names)
def test_stub_is_not_written(case):
    number, exercise = case
    stub = getattr(student(number), exercise.name)
    assert stub.__doc__, "a stub says what to write"
    for prop in exercise.properties:
        with pytest.raises(NotImplementedError):
            prop(stub)


def refused_by(exercise, planted) -> list[str]:
    """The properties that a planted bug fails. Any error counts: so it does for a student."""
    found = []
    for prop in exercise.properties:
        try:
            prop(planted)
        except Exception:
            found.append(prop.__name__)
    return found


@pytest.mark.parametrize("case", ALL, ids=names)
def test_planted_bugs_are_refused(case, planted_profile, record_property):
    _, exercise = case
    assert len(exercise.wrong) >= 4, f"{exercise.name} has {len(exercise.wrong)} planted bugs"
    table = {
        planted.__name__ + str(i): refused_by(exercise, planted)
        for i, planted in enumerate(exercise.wrong)
    }
    record_property("refused by", table)  # in the report of --junitxml: bugs against properties
    assert all(table.values()), (
        f"{exercise.name}: passes {[name for name, by in table.items() if not by]}"
    )


@stubs
def test_every_function_of_a_stub_file_is_checked_or_open():
    for number in LESSONS:
        module = student(number)
        written = {
            n
            for n, f in vars(module).items()
            if inspect.isfunction(f) and f.__module__ == module.__name__
        }
        checked = {e.name for e in lesson(number).EXERCISES}
        assert written - checked <= {
            n for n in written if "Open-ended" in vars(module)[n].__doc__
        }, f"lesson {number}"
        assert checked <= written


def test_there_are_enough():
    assert len(ALL) == len({names(case) for case in ALL}) >= 30


@stubs
def test_check_tells_what_fails(capsys):
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
    module.mask_counts = lambda ratios, tokens: (ratios * tokens).ceil().long()  # may be none
    monkeypatch.setattr("minimuse.checks.check.student", lambda number: module)
    assert check("04", package=False) == 1
    out = capsys.readouterr().out
    assert "mask_counts                  fails: rounds up to at least one" in out
    assert "[0.0] of 1 tokens: [0]" in out and "hint: a row with nothing masked" in out


def test_check_shows_what_a_failing_function_printed(capsys, monkeypatch):
    """The last lines, which are those of the counterexample shown; and none of a function that holds."""
    module = student("04")

    def mask_counts(ratios, tokens):
        print("asked for", ratios.tolist(), tokens)
        return (ratios * tokens).ceil().long()  # may be none

    def cosine_gamma(ratio):
        print("not shown")
        return math.cos(math.pi / 2 * ratio)

    module.mask_counts, module.cosine_gamma = mask_counts, cosine_gamma
    monkeypatch.setattr("minimuse.checks.check.student", lambda number: module)
    assert check("04", package=False) == 1
    out = capsys.readouterr().out
    assert "cosine_gamma                 holds" in out and "not shown" not in out
    assert "      | asked for [0.0] 1\n      hint:" in out and out.count("asked for") <= PRINTED


def test_check_survives_a_file_that_python_cannot_read(capsys, monkeypatch, tmp_path):
    def broken(number):
        (tmp_path / f"ex{number}_x.py").write_text("import math\n\nx = (1\n")
        return student(number, tmp_path)

    monkeypatch.setattr("minimuse.checks.check.student", broken)
    assert check("4", package=False) == 1  # 4 is 04
    out = capsys.readouterr().out
    assert "cannot be read: SyntaxError" in out and "(line 3)" in out and "not written yet" in out


def test_check_says_where_a_function_failed(capsys, monkeypatch, tmp_path):
    def failing(number):
        (tmp_path / f"ex{number}_x.py").write_text("def cosine_gamma(ratio):\n    return {}['a']\n")
        return student(number, tmp_path)

    monkeypatch.setattr("minimuse.checks.check.student", failing)
    assert check("04", package=False) == 1
    out = capsys.readouterr().out
    assert "KeyError: 'a'" in out and "at line 2 of your file" in out
