"""`minimuse notebooks DIR`: the lessons as Jupyter notebooks, which run in this clone and draw into DIR."""

import re
import shutil
from importlib.resources import files
from pathlib import Path

import jupytext

LESSONS = Path(str(files("minimuse.checks"))).parent


SETUP = """# Paths in the lesson are those of a clone
import os

os.environ.setdefault("LESSON_FIGURES", {figures!r})  # beside the notebook: reload it to see yours in the text
os.chdir({root!r})
"""


def write_notebooks(folder: Path) -> None:
    """One notebook per lesson, and the figures that their text shows."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(LESSONS / "figures", folder / "figures", dirs_exist_ok=True)
    for path in sorted(LESSONS.glob("[0-9][0-9]-*.md")):
        notebook = jupytext.read(path)
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        first.source = (
            SETUP.format(figures=str((folder / "figures").resolve()), root=str(LESSONS.parent))
            + "\n\n"
            + first.source
        )
        for cell in (
            cell for cell in notebook.cells if cell.cell_type == "markdown"
        ):  # links to lessons, and into the clone
            cell.source = (
                re.sub(r"\]\((\d\d-[\w-]+)\.md\)", r"](\1.ipynb)", cell.source)
                .replace("](../", f"]({LESSONS.parent}/")
                .replace("](claims", f"]({LESSONS}/claims")
            )
        jupytext.write(notebook, folder / f"{path.stem}.ipynb")
        print(folder / f"{path.stem}.ipynb")
