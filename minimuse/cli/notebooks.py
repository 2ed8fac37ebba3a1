"""`minimuse notebooks DIR`: the lessons as Jupyter notebooks.

They run the code of this clone, and write the figures that they draw into DIR/figures.
"""

import re
import shutil
from pathlib import Path

import jupytext

from minimuse.checks import EXERCISE_FOLDER

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
    figures = folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(LESSONS / "figures", figures, dirs_exist_ok=True)
    setup = SETUP.format(figures=str(figures.resolve()), root=str(LESSONS.parent))
    for lesson in sorted(LESSONS.glob("[0-9][0-9]-*.md")):
        notebook = jupytext.read(lesson)
        code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        code_cells[0].source = f"{setup}\n\n{code_cells[0].source}"
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = redirect_links(cell.source)
        path = folder / f"{lesson.stem}.ipynb"
        jupytext.write(notebook, path)
        print(path)


def redirect_links(text: str) -> str:
    """Make links to lessons lead to their notebooks, and other links into the clone."""
    text = re.sub(r"\]\((\d\d-[\w-]+)\.md\)", r"](\1.ipynb)", text)
    text = text.replace("](../", f"]({LESSONS.parent}/")
    return text.replace("](claims", f"]({LESSONS}/claims")
