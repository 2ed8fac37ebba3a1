"""What a lesson shows below its code is what the code prints: lessons/outputs.py.

pytest tests/test_lesson_outputs.py
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import outputs
import pytest
from outputs import FENCE, ONE_RUN, check_output, run_fence, with_outputs

FOLDER = Path(outputs.__file__).parent
LESSONS = sorted(FOLDER.glob("[0-9][0-9]-*.md"))

LOSSES = 'print("with the caption:", 2.13)\nprint("without:", 2.5, "nats")\n'


def fence_text(code, shown=None, label=False):
    """A python fence, and a text fence if something is shown."""
    text = f"Words.\n\n```python\n{code}```\n"
    if shown is not None:
        text += "\n" + f"{ONE_RUN}\n\n" * label + f"```text\n{shown}```\n"
    return text + "\nMore words.\n"


def check(text):
    """Run the fences of a text, and compare each with its output."""
    namespace = {}
    for fence in FENCE.finditer(text):
        check_output(fence, run_fence(fence, Path("lesson.md"), namespace))


@pytest.mark.parametrize(
    "shown",
    [
        "with the caption: 2.13\nwithout: 2.5 nats\n",
        "with the caption: -17\nwithout: .031 nats\n",
        "with the caption:    1e-05\nwithout: 3 nats\n",
    ],
)
def test_other_digits_are_accepted_below_the_label(shown):
    check(fence_text(LOSSES, shown, label=True))


@pytest.mark.parametrize(
    "shown",
    [
        "with a caption: 2.13\nwithout: 2.5 nats\n",  # another word
        "with the caption: 2.13\nwithout: 2.5\n",  # a word too few
        "without: 2.5 nats\nwith the caption: 2.13\n",  # another order
        "with the caption: 2.13\n",  # a line too few
        "with the caption: 2.13\nwithout: 2.5 nats\nwithout: 2.5 nats\n",  # one too many
        "with the caption: 2.13 2.14\nwithout: 2.5 nats\n",  # a number too many
        "with the caption:\nwithout: 2.5 nats\n",  # a number too few
        "with the caption: nan\nwithout: 2.5 nats\n",  # no number
        "with the caption: 2.13 without: 2.5 nats\n",  # one line of two
    ],
)
def test_other_words_are_refused_below_the_label(shown):
    with pytest.raises(AssertionError, match="the words of one run"):
        check(fence_text(LOSSES, shown, label=True))


def test_nan_is_refused_where_a_number_stood():
    with pytest.raises(AssertionError, match="the words of one run"):
        check(fence_text('print("loss", float("nan"))\n', "loss 2.1\n", label=True))


def test_without_the_label_every_digit_counts():
    check(fence_text(LOSSES, "with the caption: 2.13\nwithout: 2.5 nats\n"))
    for wrong in ("with the caption: 2.14\nwithout: 2.5 nats\n", "with the caption:  2.13\n"):
        with pytest.raises(AssertionError, match="the lesson says"):
            check(fence_text(LOSSES, wrong))


def test_output_that_is_not_shown_is_refused():
    with pytest.raises(AssertionError, match="no ```text fence shows"):
        check(fence_text(LOSSES))
    # A text fence further down is not the output of this one.
    apart = fence_text(LOSSES) + "\n```text\nwith the caption: 2.13\nwithout: 2.5 nats\n```\n"
    with pytest.raises(AssertionError, match="no ```text fence shows"):
        check(apart)


def test_text_that_nothing_printed_is_refused():
    with pytest.raises(AssertionError):
        check(fence_text("x = 3\n", "3\n", label=True))


def test_a_progress_bar_is_no_output():
    check(fence_text('import sys\n\nprint("step 3", file=sys.stderr)\n'))


def test_fences_share_a_namespace_and_errors_name_the_line():
    text = fence_text("x = 3\n") + fence_text("print(x)\n", "3\n") + fence_text("\n1 / 0\n")
    with pytest.raises(ZeroDivisionError) as error:
        check(text)
    line = text[: text.index("1 / 0")].count("\n") + 1
    assert error.traceback[-1].lineno + 1 == line


def test_writing_fills_in_replaces_and_is_idempotent():
    missing = fence_text(LOSSES)
    exact = fence_text("print(3)\n", "4\n")
    sampled = fence_text("print(0.5)\n", "x\n", label=True)
    silent = fence_text("y = 3\n", "3\n")
    expected = [
        fence_text(LOSSES, "with the caption: 2.13\nwithout: 2.5 nats\n", label=True),
        fence_text("print(3)\n", "3\n"),
        fence_text("print(0.5)\n", "0.5\n", label=True),
        fence_text("y = 3\n"),
    ]
    *_, written = with_outputs(missing + exact + sampled + silent, Path("lesson.md"))
    assert written == "".join(expected)
    *_, again = with_outputs(written, Path("lesson.md"))
    assert again == written
    check(written)


def test_an_error_costs_no_output_that_was_there_before(tmp_path):
    lesson = tmp_path / "03-broken.md"
    broken = fence_text("1 / 0\n") + fence_text("print(4)\n")
    lesson.write_text(fence_text(LOSSES) + broken)
    with pytest.raises(ZeroDivisionError):
        outputs.write_outputs(lesson)
    shown = "with the caption: 2.13\nwithout: 2.5 nats\n"
    assert lesson.read_text() == fence_text(LOSSES, shown, label=True) + broken


def test_a_lesson_that_is_edited_meanwhile_is_left_alone(tmp_path):
    lesson = tmp_path / "03-edited.md"
    edit = f'from pathlib import Path\n\nPath({str(lesson)!r}).write_text("edited")\nprint(3)\n'
    lesson.write_text(fence_text(edit))
    with pytest.raises(RuntimeError, match="was edited"):
        outputs.write_outputs(lesson)
    assert lesson.read_text() == "edited"


@pytest.fixture
def lessons(tmp_path):
    """A folder of small lessons of its own, with the program that runs them."""
    folder = tmp_path / "lessons"
    folder.mkdir()
    for name in ("conftest.py", "outputs.py"):
        shutil.copy(FOLDER / name, folder / name)
    size = 'import os\n\nprint("steps", 5 if "LESSON_TINY" in os.environ else 5000)\n'
    (folder / "01-right.md").write_text(fence_text(size, "steps 5000\n", label=True))
    (folder / "02-wrong.md").write_text(fence_text(size, "step 5\n", label=True))
    (folder / "03-missing.md").write_text(fence_text(size))
    return folder


def test_pytest_runs_them_small_and_the_command_at_full_size(lessons, monkeypatch):
    monkeypatch.setenv("LESSON_TINY", "1")

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command], cwd=lessons, capture_output=True, text=True
        )
        return done.returncode, done.stdout

    code, out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", ".")
    assert code == 1 and "2 failed, 1 passed" in out, out
    assert run("outputs.py", "02", "03")[0] == 0
    for lesson in lessons.glob("*.md"):
        assert f"{ONE_RUN}\n\n```text\nsteps 5000\n```\n" in lesson.read_text()
    code, out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", ".")
    assert code == 0 and "3 passed" in out, out
    assert run("outputs.py", "04")[0] == 2


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_every_text_fence_stands_directly_below_code(lesson):
    text = lesson.read_text()
    fences = list(FENCE.finditer(text))
    assert len(fences) == len(re.findall(r"^\s*```python", text, flags=re.MULTILINE))
    shown = sum(fence["shown"] is not None for fence in fences)
    assert shown == len(re.findall(r"^\s*```text", text, flags=re.MULTILINE))
    labelled = sum(fence["label"] is not None for fence in fences)
    assert labelled == text.count(ONE_RUN)
