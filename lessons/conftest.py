"""`pytest --lessons` runs every fence of every lesson, in order, in one namespace for each lesson.

What a ```python fence prints is compared with the ```text fence below it: see outputs.py.
LESSON_TINY is set, so that training in a lesson is short. Figures go to a temporary folder.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from outputs import FENCE, check_output, run_fence
from sybil import Document, Example, Region, Sybil

os.environ.update(LESSON_TINY="1", LESSON_FIGURES=tempfile.mkdtemp(), MPLBACKEND="agg")
# Paths in a lesson are relative to the clone.
os.chdir(Path(__file__).parents[1])


def find_fences(document: Document) -> Iterator[Region]:
    """Each python fence with its output is one test."""
    for fence in FENCE.finditer(document.text):
        yield Region(fence.start(), fence.end(), parsed=fence, evaluator=run_and_check)


def run_and_check(example: Example) -> None:
    """Run a python fence, and compare what it prints."""
    printed = run_fence(example.parsed, Path(example.path), example.namespace)
    check_output(example.parsed, printed)


pytest_collect_file = Sybil(parsers=[find_fences], patterns=["[0-9][0-9]-*.md"]).pytest()
