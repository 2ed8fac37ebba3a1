"""`pytest --lessons` runs every fence of every lesson, in order, one namespace per lesson.

A ```text fence is what the python fence before it printed, word for word. The suite hurries: LESSON_TINY is set, and
pictures go to a temporary folder instead of lessons/figures.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

os.environ.update(LESSON_TINY="1", LESSON_FIGURES=tempfile.mkdtemp(), MPLBACKEND="agg")
os.chdir(Path(__file__).parents[1])  # paths in a lesson are those of a reader in the clone
evaluate = PythonEvaluator()


def run(example):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluate(example)
    example.namespace["_printed"] = printed.getvalue()


def compare(example):
    printed, said = example.namespace["_printed"].rstrip(), example.parsed.rstrip()
    assert printed == said, f"the lesson says\n{said}\nbut its code prints\n{printed}"


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", run), CodeBlockParser("text", compare)],
    patterns=["[0-9][0-9]-*.md"],
).pytest()
