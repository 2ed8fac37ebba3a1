"""`pytest --lessons` runs every fence of every lesson, in order, in one namespace for each lesson.

A ```text fence must be what the ```python fence before it printed, word for word. LESSON_TINY is
set, so that training in a lesson is short. Figures go to a temporary folder.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

os.environ.update(LESSON_TINY="1", LESSON_FIGURES=tempfile.mkdtemp(), MPLBACKEND="agg")
# Paths in a lesson are relative to the clone.
os.chdir(Path(__file__).parents[1])
evaluate = PythonEvaluator()


def run_python(example: Example) -> None:
    """Run a python fence, and keep what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluate(example)
    example.namespace["_printed"] = printed.getvalue()


def compare_text(example: Example) -> None:
    """Compare a text fence with what the last python fence printed."""
    printed = example.namespace["_printed"].rstrip()
    expected = example.parsed.rstrip()
    assert printed == expected, f"the lesson says\n{expected}\nbut its code prints\n{printed}"


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", run_python), CodeBlockParser("text", compare_text)],
    patterns=["[0-9][0-9]-*.md"],
).pytest()
