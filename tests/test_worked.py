"""lessons/worked.md explains every exercise, and `minimuse check` accepts its solutions.

pytest tests/test_worked.py              # the properties, on few examples
pytest tests/test_worked.py -m slow      # `minimuse check` itself, as a student runs it
"""

import re
from pathlib import Path
from types import ModuleType

import pytest
from minimuse.checks import LESSONS, lesson, student_file
from minimuse.checks.check import check

PAGE = Path(__file__).parents[1] / "lessons/worked.md"
PARTS = ("**Idea.** ", "**On paper.** ", "```python\n", "**Common mistake.** ")


def split_at(heading: str, text: str) -> dict[str, str]:
    """The text below each heading that the pattern matches, by the group of the pattern."""
    _, *parts = re.split(heading, text, flags=re.M)
    names, texts = parts[::2], parts[1::2]
    assert len(set(names)) == len(names), f"a heading stands twice: {names}"
    return dict(zip(names, texts, strict=True))


def sections(number: str) -> dict[str, str]:
    """The section of each function of a lesson."""
    lessons = split_at(r"^## (\d\d)\. .*$", PAGE.read_text())
    return split_at(r"^### `(\w+)`$", lessons[number])


def code_of(section: str) -> str:
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```$", section, flags=re.M | re.S))


def worked_module(number: str) -> ModuleType:
    """A student's file with all solutions of the page below the stubs."""
    path = student_file(number)
    module = ModuleType(path.stem)
    exec(compile(path.read_text(), path, "exec"), vars(module))
    for name, section in sections(number).items():
        # The asserts of the page run here, too.
        exec(compile(code_of(section), f"worked.md, {name}", "exec"), vars(module))
    for name in sections(number):
        # A solution may import the package's function of an earlier lesson, not of its own.
        origin = getattr(module, name).__code__.co_filename
        assert origin == f"worked.md, {name}", f"{name} comes from {origin}"
    return module


@pytest.mark.parametrize("number", LESSONS)
def test_every_exercise_has_its_section(number):
    names = [exercise.name for exercise in lesson(number).EXERCISES]
    written = sections(number)
    assert sorted(written) == sorted(names)
    for name, section in written.items():
        places = [section.find(part) for part in PARTS]
        assert places == sorted(places) and places[0] >= 0, f"{name} lacks a part, or its order"
        code = code_of(section)
        assert f"def {name}(" in code, f"{name} is not written"
        assert "\nassert " in code, f"the example of {name} is not in its code"
        assert len(code.splitlines()) <= 30, f"{name} is long"


@pytest.mark.parametrize("number", LESSONS)
def test_the_solutions_have_the_properties(number, planted_profile):
    module = worked_module(number)
    for exercise in lesson(number).EXERCISES:
        for prop in exercise.properties:
            prop(getattr(module, exercise.name))


@pytest.mark.slow
@pytest.mark.parametrize("number", LESSONS)
def test_check_accepts_the_solutions(number, capsys, monkeypatch):
    module = worked_module(number)
    monkeypatch.setattr("minimuse.checks.check.student", lambda number: module)
    result = check(number, package=False)
    out = capsys.readouterr().out
    names = [exercise.name for exercise in lesson(number).EXERCISES]
    assert result == 0 and out.count(" holds\n") == len(names), out
