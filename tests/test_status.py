"""What a terminal shows while a command works: `pytest tests/test_status.py`."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from minimuse.cli import main
from minimuse.cli.progress import passes_shown
from minimuse.datasets import progress
from minimuse.muse import Muse
from minimuse.plumbing.status import ERASE, status

if sys.platform != "win32":
    import pty


@pytest.fixture
def terminal():
    """terminal(*argv): run a program on a terminal of its own; what it showed on stderr."""

    def run(*argv):
        shown, inside = pty.openpty()
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=inside)
        os.close(inside)
        parts = []
        while True:
            try:
                part = os.read(shown, 4096)
            except OSError:  # the other end is closed
                part = b""
            if not part:
                break
            parts.append(part)
        process.wait()
        os.close(shown)
        return b"".join(parts).decode()

    return run


needs_terminals = pytest.mark.skipif(sys.platform == "win32", reason="has no pty")


@needs_terminals
def test_a_terminal_says_what_goes_on_from_the_start(terminal):
    shown = terminal(sys.executable, "-m", "minimuse", "--version")
    assert shown.startswith(f"{ERASE}minimuse: loading PyTorch ...{ERASE}")


@needs_terminals
def test_nothing_of_it_stays(terminal):
    code = "from minimuse.plumbing.status import status\nwith status('x'): 1 / 0"
    shown = terminal(sys.executable, "-c", code)
    assert shown.startswith(f"{ERASE}minimuse: x ...{ERASE}Traceback")


def test_a_file_gets_nothing(capfd):
    with status("working"):
        pass
    assert capfd.readouterr().err == ""


def test_a_training_says_what_goes_on_before_its_first_bar(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("minimuse.plumbing.status.os.isatty", lambda _: True)
    monkeypatch.setattr("minimuse.plumbing.status.write", said.append)
    train = ["train", "tokenizer", "--preset", "tiny", "--out", tmp_path / "out"]
    settings = ["--data", "shapes", "scenes=12", "stages.tokenizer.steps=1"]
    assert main([str(part) for part in [*train, *settings]]) == 0
    assert said == [f"{ERASE}minimuse: checking that the model fits into memory ...", ERASE]


# --- Drawing ---
def test_a_long_drawing_shows_a_bar(tmp_path, monkeypatch, capsys):
    image = tmp_path / "x.png"
    Image.new("RGB", (32, 32)).save(image)
    monkeypatch.setattr("minimuse.cli.progress.SILENCE", 0)
    toy = ["--model", "toy-shapes", "--seed", "1"]
    out = str(tmp_path / "out.png")
    commands = [
        ["generate", "a red circle", *toy, "--steps", "2", "-o", out],
        ["edit", str(image), "a red circle", *toy, "--iterations", "2", "-o", out],
        ["outpaint", str(image), "a red circle", *toy, "--pad", "8", "--steps", "2", "-o", out],
    ]
    for command in commands:
        assert main(command) == 0
        printed = capsys.readouterr()
        assert "drawing:" in printed.err and " passes" in printed.err
        assert printed.out == f"{out}\n"


def test_a_short_drawing_shows_none(monkeypatch, capsys):
    assert progress.SILENCE == 1.0
    monkeypatch.setattr("minimuse.cli.progress.SILENCE", 1000)  # however slow the machine is
    muse = Muse.load("toy-shapes")
    with passes_shown(muse):
        muse.generate("a red circle", steps=1)
    assert capsys.readouterr().err == ""
    assert not muse.base._forward_hooks and not muse.superres._forward_hooks
