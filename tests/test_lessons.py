"""What can be checked in the lessons' text without running it; `pytest --lessons` runs its code.

pytest tests/test_lessons.py
"""

import json
import re
import textwrap
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

# Lessons whose exercises are in the file of another lesson.
CHECKED_BY = {"14": "11", "15": "13"}

# Code of the package that a lesson quotes: a fence directly below "From `minimuse/vq.py`:".
QUOTED_FROM = r"^From `(minimuse/[\w/]+\.py)`:$"
QUOTE = re.compile(QUOTED_FROM + r"\n\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page_name(path):
    return str(path.relative_to(ROOT))


def headings(page):
    """The headings of a page as links have them: small letters and hyphens."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere_and_figures_say_what_they_show(page):
    text_without_fences = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", text_without_fences)
    for is_image, words, target in links:
        if not target.startswith("http"):
            file, _, heading = target.partition("#")
            other = page.parent / file if file else page
            assert other.exists(), f"{file} does not exist"
            assert not heading or heading in headings(other), f"no heading is {target}"
        if is_image:
            assert len(words) > 15, f"{target} has no alt text"


@pytest.mark.parametrize("lesson", LESSONS, ids=page_name)
def test_lessons_have_one_form(lesson):
    text, number = lesson.read_text(), lesson.name[:2]
    checked_by = CHECKED_BY.get(number, number)
    for part in (
        "*Time:",
        "**What you will do.**",
        "**What you will learn.**",
        "## Exercises",
        "*Warm-up.*",
        "*Open-ended.*",
        "## To read next",
        f"minimuse check {checked_by}",
    ):
        assert part in text, f"no {part}"
    figures = re.findall(r"!\[[^\]]+\]\(figures/([^)]+)\)", text)
    assert 2 <= len(figures) <= 5
    for figure in figures:
        assert f'FIGURES / "{figure}"' in text, f"{figure} is drawn by no fence"
    assert "<details" not in text and "```bash" not in text and not text.startswith("---")
    assert 1300 <= words_of_prose(text) <= 1900, f"{words_of_prose(text)} words"
    for code in re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        assert code.count("\n") <= 30, f"a fence of more than 30 lines:\n{code}"


def words_of_prose(text):
    """How many words stand beside fences and tables."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\|.*\|$", "", text, flags=re.MULTILINE)
    return len(text.replace(ONE_RUN, "").split())


def quoted(text):
    """The (file, code) of each quote. Two empty lines part the pieces of one fence."""
    quotes = QUOTE.findall(text)
    assert len(quotes) == len(re.findall(QUOTED_FROM, text, re.MULTILINE)), "a quote without code"
    return [(file, piece) for file, code in quotes for piece in code.strip("\n").split("\n\n\n")]


def occurs_in(piece, source):
    """Whether the lines of a piece stand in the source, one after another, maybe further in."""
    length = piece.count("\n") + 1
    lines = source.splitlines()
    return any(
        piece == textwrap.dedent("\n".join(lines[start : start + length]))
        for start in range(len(lines))
    )


@pytest.mark.parametrize("lesson", LESSONS, ids=page_name)
def test_quoted_code_is_the_packages(lesson):
    for file, piece in quoted(lesson.read_text()):
        source = (ROOT / file).read_text()
        assert occurs_in(piece, source), f"{file} does not have\n{piece}"


def test_a_quote_that_differs_is_found():
    source = (ROOT / "minimuse/vq_loss.py").read_text()
    method = 'def forward(self, weight: torch.Tensor) -> torch.Tensor:\n    """weight (m, ...)'
    (line,) = [line for line in source.splitlines() if "relu(1 - real_logits)" in line]
    text = f"From `minimuse/vq_loss.py`:\n\n```python\n{line.strip()}\n```\n"
    ((file, piece),) = quoted(text)
    assert file == "minimuse/vq_loss.py" and occurs_in(piece, source)
    assert not occurs_in(piece.replace("1 -", "1 +"), source)
    assert not occurs_in(method, source), "half a line is no quote"
    with pytest.raises(AssertionError, match="a quote without code"):
        quoted(text.replace("```python", "```text"))


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
        for letter, expected in shapes_of(config).items():
            assert rows[letter][column] == expected
    # The paper does not say how wide its codes are.
    widths = (toy["tokenizer"]["code_width"], toy["tokenizer_hi"]["code_width"])
    assert rows["C"] == ["{}, then {}".format(*widths), ""]


def shapes_of(config):
    """What the table of letters must say of a model, as in "16, then 256"."""
    tokenizers = (config["tokenizer"], config["tokenizer_hi"])
    grids = [part["side"] // 2 ** (len(part["multipliers"]) - 1) for part in tokenizers]
    codes = dict.fromkeys(part["codes"] for part in tokenizers)  # one number if they are equal
    models = (config["base"], config["superres"])
    samplings = (config["sampling"], config["sampling_hi"])
    numbers = {
        "h, w": grids,
        "N": [grid**2 for grid in grids],
        "K": codes,
        "D": [model["width"] for model in models],
        "S": [sampling["steps"] for sampling in samplings],
    }
    expected = {"H, W": str(config["tokenizer_hi"]["side"])}
    for letter, pair in numbers.items():
        expected[letter] = ", then ".join(f"{number:,}" for number in pair)
    return expected


def test_the_readme_can_be_read_in_a_few_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 1200
