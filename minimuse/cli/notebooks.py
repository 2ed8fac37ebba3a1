"""`minimuse notebooks DIR`: the lessons as Jupyter notebooks.

They run the code of this clone, and write the figures that they draw into DIR/figures.
"""

import re
from pathlib import Path

import jupytext

from minimuse.checks import EXERCISE_FOLDER
from minimuse.plumbing.files import check_writable, copy_file, write_text

LESSONS = EXERCISE_FOLDER.parent

# The first lines of every notebook.
SETUP = """# Paths in the lesson are those of a clone
import os

# Figures go beside the notebook: reload it to see yours in the text
os.environ.setdefault("LESSON_FIGURES", {figures!r})
os.chdir({root!r})
"""


def write_notebooks(folder: Path) -> None:
    """Write one notebook for each lesson, and the figures that their text shows."""
    lessons = sorted(LESSONS.glob("[0-9][0-9]-*.md"))
    figures = folder / "figures"
    notebooks = [folder / f"{lesson.stem}.ipynb" for lesson in lessons]
    check_writable(figures / "figure.png", *notebooks)
    for figure in sorted((LESSONS / "figures").iterdir()):
        copy_file(figure, figures / figure.name)
    setup = SETUP.format(figures=str(figures.resolve()), root=str(LESSONS.parent))
    for lesson in lessons:
        notebook = jupytext.read(lesson)
        code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        code_cells[0].source = f"{setup}\n\n{code_cells[0].source}"
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = redirect_links(cell.source)
        path = folder / f"{lesson.stem}.ipynb"
        write_text(path, jupytext.writes(notebook, fmt="ipynb"))
        print(path)


def redirect_links(text: str) -> str:
    """Make links to lessons lead to their notebooks, and other links into the clone."""
    text = re.sub(r"\]\((\d\d-[\w-]+)\.md\)", r"](\1.ipynb)", text)
    text = text.replace("](../", f"]({LESSONS.parent}/")
    for page in ("claims", "answers.md"):
        text = text.replace(f"]({page}", f"]({LESSONS}/{page}")
    return text
