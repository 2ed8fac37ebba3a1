"""Run lessons, and write what each of their fences prints into the ```text fence below it.

python lessons/outputs.py            # every lesson, at full size: minutes each
python lessons/outputs.py 05 07      # these two
python lessons/outputs.py 05 --figures   # and draw its figures into lessons/figures

A ```text fence is one of two kinds. Directly below the code it must be exactly what the code
prints. Below the line "One run; yours may differ:" only its words must be the same, and how many
numbers each line has: use it where the numbers come from training, sampling or a clock. What must
be larger than what, the code asserts. `pytest --lessons` compares both kinds, with short trainings.

A fence that prints and has no output yet gets one of the second kind. Remove the line to make it
exact. What goes to stderr, such as a progress bar, is not output.
"""

import argparse
import contextlib
import io
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings

FOLDER = Path(__file__).resolve().parent
ONE_RUN = "One run; yours may differ:"

# A python fence, and the text fence below it if there is one.
FENCE = re.compile(
    r"^```python\n(?P<code>.*?)^```\n"
    rf"(?P<output>\n(?P<label>{ONE_RUN}\n\n)?```text\n(?P<shown>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
# "nan" and "inf" are words: a run that prints them is not one like the others.
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?")


def run_fence(fence: re.Match, lesson: Path, namespace: dict) -> str:
    """Run the code of a fence in the lesson's namespace, and return what it prints to stdout."""
    # With the empty lines, a traceback names the line of the lesson.
    lines_above = fence.string.count("\n", 0, fence.start("code"))
    code = compile("\n" * lines_above + fence["code"], str(lesson), "exec", dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue().rstrip()


def check_output(fence: re.Match, printed: str) -> None:
    """Compare what a fence printed with the text below it."""
    shown = (fence["shown"] or "").rstrip()
    if printed and not shown:
        raise AssertionError(f"no ```text fence shows what the code prints:\n{printed}")
    same = words(printed) == words(shown) if fence["label"] else printed == shown
    if not same:
        kind = "the words of one run are" if fence["label"] else "the lesson says"
        raise AssertionError(f"{kind}\n{shown}\nbut the code prints\n{printed}")


def words(text: str) -> list[list[str]]:
    """The words of each line, with # for every number. Columns may be wider or narrower."""
    return [NUMBER.sub("#", line).split() for line in text.splitlines()]


def with_outputs(text: str, lesson: Path) -> Iterator[str]:
    """Run a lesson's code; after each fence, yield the text with the outputs so far."""
    namespace = {}
    done, rest = "", 0
    for fence in FENCE.finditer(text):
        started = time.monotonic()
        printed = run_fence(fence, lesson, namespace)
        line = text.count("\n", 0, fence.start()) + 1
        print(f"{lesson.name}:{line} {time.monotonic() - started:.1f} s", flush=True)
        done += text[rest : fence.start()] + with_output(fence, printed)
        rest = fence.end()
        yield done + text[rest:]


def with_output(fence: re.Match, printed: str) -> str:
    """A python fence, and below it what it printed, if it did."""
    code = f"```python\n{fence['code']}```\n"
    if not printed:
        return code
    exact = fence["output"] and not fence["label"]
    label = "" if exact else f"{ONE_RUN}\n\n"
    return f"{code}\n{label}```text\n{printed}\n```\n"


def write_outputs(lesson: Path) -> None:
    """Run a lesson, and rewrite its text fences one by one: a later error costs no output."""
    text = lesson.read_text(encoding="utf-8")
    for new_text in with_outputs(text, lesson):
        if lesson.read_text(encoding="utf-8") != text:
            raise RuntimeError(f"{lesson} was edited while its code ran; it is left as it is")
        lesson.write_text(new_text, encoding="utf-8")
        text = new_text


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what the lessons' code prints below it.")
    parser.add_argument("numbers", nargs="*", help="lessons such as 05 and 07; all without any")
    parser.add_argument(
        "--figures", action="store_true", help="draw into lessons/figures, which is left else"
    )
    args = parser.parse_args()
    lessons = sorted(FOLDER.glob("[0-9][0-9]-*.md"))
    unknown = set(args.numbers) - {lesson.name[:2] for lesson in lessons}
    if unknown:
        parser.error(f"there is no lesson {', '.join(sorted(unknown))}")
    # Paths in a lesson are relative to the clone.
    os.chdir(FOLDER.parent)
    os.environ.pop("LESSON_TINY", None)
    # On a busy machine a property of a lesson may be slow, which is no fault of the lesson.
    settings.register_profile(
        "outputs",
        max_examples=25,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("outputs")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LESSON_FIGURES"] = "lessons/figures" if args.figures else folder
        os.environ["MPLBACKEND"] = "agg"
        for lesson in lessons:
            if not args.numbers or lesson.name[:2] in args.numbers:
                write_outputs(lesson)


if __name__ == "__main__":
    main()
