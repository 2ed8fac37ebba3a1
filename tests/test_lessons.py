"""What can be checked in the lessons' text without running it; `pytest --lessons` runs its code.

pytest tests/test_lessons.py
"""

import re
import textwrap
from pathlib import Path

import pytest
from outputs import ONE_RUN

ROOT = Path(__file__).parents[1]
LESSONS = sorted(ROOT.glob("lessons/[0-9][0-9]-*.md"))
NOTES = sorted(ROOT.glob("lessons/notes/*.md"))
CARDS = ROOT.glob("data/*/README.md")  # of the models that ship
PAGES = [ROOT / "README.md", ROOT / "lessons/claims.md", *LESSONS, *NOTES, *CARDS]


def page_name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere_and_figures_say_what_they_show(page):
    text_without_fences = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", text_without_fences)
    for is_image, words, target in links:
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{target} does not exist"
        if is_image:
            assert len(words) > 15, f"{target} has no alt text"


QUOTED = re.compile(r"^From `(minimuse/[\w/]+\.py)`:\n\n```python\n(.*?)^```", re.S | re.M)


@pytest.mark.parametrize("lesson", LESSONS, ids=page_name)
def test_quoted_code_is_the_package_s(lesson):
    """A fence below "From `minimuse/file.py`:" is found in that file, indented or not."""
    for file, code in QUOTED.findall(lesson.read_text()):
        source = "\n" + (ROOT / file).read_text()
        indented = (textwrap.indent(code, " " * n) for n in (0, 4, 8))
        assert any("\n" + text in source for text in indented), f"not in {file}:\n{code}"


@pytest.mark.parametrize("lesson", LESSONS, ids=page_name)
def test_lessons_have_one_form(lesson):
    text, number = lesson.read_text(), lesson.name[:2]
    for part in (
        "*Time:",
        "**What you will do.**",
        "**What you will learn.**",
        "## Exercises",
        "*Warm-up.*",
        "*Open-ended.*",
        "## To read next",
        f"minimuse check {number}",
    ):
        assert part in text, f"no {part}"
    figures = re.findall(r"!\[[^\]]+\]\(figures/([^)]+)\)", text)
    assert 2 <= len(figures) <= 5
    for figure in figures:
        assert f'FIGURES / "{figure}"' in text, f"{figure} is drawn by no fence"
    assert "<details" not in text and "```bash" not in text and not text.startswith("---")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace(ONE_RUN, "")
    assert 1300 <= len(prose.split()) <= 2000, f"{len(prose.split())} words beside the code"


def test_no_figure_is_left_over():
    pages = "".join(page.read_text() for page in PAGES)
    for figure in ROOT.glob("lessons/figures/*"):
        assert figure.name in pages, f"no page shows {figure.name}"
