"""`minimuse check --draw`: images by the package's functions do not change, by wrong ones they do.

pytest tests/test_check_draw.py
"""

import pytest
from minimuse.checks import check, drawing, lesson, student
from PIL import Image

from minimuse import guidance
from minimuse.cli import main
from minimuse.muse import Muse

ALL = [(number, name) for number, seams in drawing.SEAMS.items() for name in seams]


@pytest.fixture(scope="module")
def tiny_muse(tiny_model):
    return Muse.load(tiny_model)


@pytest.fixture(scope="module")
def ours(tiny_muse):
    """The images of each lesson, drawn by the package."""
    return {number: drawing.PICTURES[number](tiny_muse) for number in drawing.SEAMS}


def exercise_of(number, name):
    (exercise,) = (e for e in lesson(number).EXERCISES if e.name == name)
    return exercise


def differ(images, others):
    return [a.tobytes() for a in images] != [b.tobytes() for b in others]


def draws_otherwise(number, name, function, model, ours):
    """Whether a function draws other images than ours, or none."""
    try:
        with drawing.replaced(drawing.SEAMS[number][name], function):
            images = drawing.draw_quietly(drawing.PICTURES[number], model)
    except Exception:
        return True
    return differ(images, ours)


@pytest.mark.parametrize("number, name", ALL)
def test_the_packages_own_function_draws_the_same(number, name, tiny_muse, ours):
    seam = drawing.SEAMS[number][name]
    with drawing.replaced(seam, exercise_of(number, name).ours):
        images = drawing.PICTURES[number](tiny_muse)
    assert not differ(images, ours[number])


@pytest.mark.parametrize("number, name", ALL)
def test_a_planted_bug_draws_otherwise(number, name, tiny_muse, ours):
    """At least one of each function's; some bugs are of inputs that drawing does not have."""
    for planted in exercise_of(number, name).wrong:
        if draws_otherwise(number, name, planted, tiny_muse, ours[number]):
            break
    else:
        raise AssertionError(f"no planted bug of {name} changes an image")
    assert not differ(drawing.PICTURES[number](tiny_muse), ours[number]), "it was not put back"


def test_the_seams_are_exercises():
    assert drawing.SEAMS.keys() == drawing.PICTURES.keys()
    for number, name in ALL:
        assert exercise_of(number, name)


def test_replaced_puts_ours_back_after_an_error():
    guide = guidance.guide
    with pytest.raises(KeyError):
        with drawing.replaced(drawing.SEAMS["07"]["guide"], lambda cond, uncond, t: {}["a"]):
            assert guidance.guide is not guide
            guidance.guide(1.0, 2.0, 3.0)
    assert guidance.guide is guide


@pytest.fixture
def students(monkeypatch, tiny_model):
    """students(number, name=function, ...): the functions of a student; others are stubs."""
    monkeypatch.setattr(drawing, "MODEL", tiny_model)

    def write(number, **functions):
        module = student(number)
        for name, function in functions.items():
            setattr(module, name, function)
        monkeypatch.setattr("minimuse.checks.check.student", lambda number: module)

    return write


def test_check_draws(students, tmp_path, capsys, monkeypatch):
    """A right function, a wrong one, one that cannot draw, and a stub, which has no row."""
    monkeypatch.chdir(tmp_path)
    students(
        "07",
        guide=lambda cond, uncond, t: cond + t * (cond - uncond),
        guidance_at=lambda k, steps, guidance: 30 * guidance,
    )
    assert main(["check", "07", "--draw"]) == 1
    out = capsys.readouterr().out
    assert "guide                        holds" in out
    assert "with your guide" in out
    assert "with your guidance_at, WHICH FAILS ITS CHECK: 4 of 4 images differ" in out
    assert "compose                      not written yet" in out and "with your compose" not in out
    assert "check-07.png" in out
    with Image.open("check-07.png") as image:
        width, three_rows = image.size
    students("07", guide=lambda cond, uncond, t: cond[:0])
    assert main(["check", "07", "--draw", "one.png"]) == 1
    assert "draws nothing: RuntimeError" in capsys.readouterr().out
    with Image.open("one.png") as image:
        assert image.width == width and 2 * image.height < three_rows


@pytest.mark.parametrize(
    "argv, words",
    [
        (["check", "--draw"], "--draw needs a lesson"),
        (["check", "02", "--draw"], "lesson 02 has nothing to draw"),
        (["check", "06", "--draw", "new.txt"], "new.txt: write a .png"),
        (["check", "06", "--draw", "none/new.png"], "none is no folder"),
    ],
)
def test_mistakes_are_refused_before_the_check(fails, monkeypatch, argv, words):
    monkeypatch.setattr(check, "check_lesson", None)
    assert words in fails(*argv)
