"""Rows of a measurement, kept in a file: a script that was stopped goes on where it was.

rows = KeptRows(Path("runs/peer.json"), about={"rounds": 7})
cells = rows.row("training", measure)      # calls measure() unless the file has that row
"""

import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minimuse.cli.versions import cpu_instructions
from minimuse.plumbing.files import write_json

ROOT = Path(__file__).resolve().parents[2]


class KeptRows:
    """Rows by name. A file of another machine, commit or setting is overwritten.

    Where files differ from the commit, all is measured anew.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path = path
        self.about = about | {"machine": machine(), "code": code_version()}
        self.rows: dict[str, Any] = {}
        if path.is_file():
            kept = json.loads(path.read_text())
            if kept["about"] == self.about and not self.about["code"].endswith("-dirty"):
                self.rows = kept["rows"]

    def row(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` returned, now or in an earlier call of the script."""
        if name not in self.rows:
            self.rows[name] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"about": self.about, "rows": self.rows})
        return self.rows[name]


def machine() -> str:
    """What a time depends on: the CPU's instructions, threads, and PyTorch's version."""
    instructions = ", ".join(cpu_instructions())
    threads = torch.get_num_threads()
    return f"CPU: {cpu_model()}, {instructions}; {threads} threads; PyTorch {torch.__version__}"


def cpu_model() -> str:
    """The name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def code_version() -> str:
    """The commit, and whether files differ from it."""
    line = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() or "unknown"
