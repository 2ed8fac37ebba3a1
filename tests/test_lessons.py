"""What can be checked in the lessons' text without running it; `pytest --lessons` runs its code.

pytest tests/test_lessons.py
"""

import json
import re
import tomllib
from pathlib import Path

import pytest
from outputs import ONE_RUN

ROOT = Path(__file__).parents[1]
LESSONS = sorted(ROOT.glob("lessons/[0-9][0-9]-*.md"))
NOTES = sorted(ROOT.glob("lessons/notes/*.md"))
CARDS = ROOT.glob("data/*/README.md")  # of the models that ship
# The pages of the course that are no lessons: glossary, projects and so on.
OTHERS = sorted(set(ROOT.glob("lessons/*.md")) - set(LESSONS))
PAGES = [ROOT / "README.md", *OTHERS, *LESSONS, *NOTES, *CARDS]


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


def test_notation_has_the_shapes_of_the_models():
    """The glossary's table of letters, against config.json and the presets."""
    rows = {}
    for line in (ROOT / "lessons/glossary.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6:
            rows[cells[1]] = cells[3:5]
    toy = json.loads((ROOT / "data/toy-shapes/config.json").read_text())["config"]
    paper = tomllib.loads((ROOT / "data/presets.toml").read_text())["muse-3b"]
    for column, config in enumerate((toy, paper)):
        low, high = (
            part["side"] // 2 ** (len(part["multipliers"]) - 1)
            for part in (config["tokenizer"], config["tokenizer_hi"])
        )
        assert rows["H, W"][column] == str(config["tokenizer_hi"]["side"])
        assert rows["h, w"][column] == f"{low}, then {high}"
        assert rows["N"][column].startswith(f"{low**2:,}, then {high**2:,}")
        widths = f"{config['base']['width']:,}, then {config['superres']['width']:,}"
        assert rows["D"][column] == widths
        steps = f"{config['sampling']['steps']}, then {config['sampling_hi']['steps']}"
        assert rows["S"][column] == steps
        codes = [config[part]["codes"] for part in ("tokenizer", "tokenizer_hi")]
        assert rows["K"][column] == ", then ".join(dict.fromkeys(f"{k:,}" for k in codes))
