"""`minimuse curves`: a plot of the log, whatever is in it so far.

pytest tests/test_curves.py
"""

import json
import sys

import pytest
from PIL import Image

from minimuse.cli import main
from minimuse.cli.curves import draw_curves, logged_stages, progress, running_mean
from minimuse.plumbing.files import append_line
from minimuse.runs.directory import log_path
from minimuse.runs.stages import STAGES


def write_log(out, stages=STAGES, steps=40, done=40):
    """A log of stages that are `done` steps far."""
    for stage in stages:
        name = "loss" if stage in ("base", "superres") else "pixel"
        for step in range(1, done + 1):
            value = 5.0 * 0.9**step + 0.01
            line = {"stage": stage, "step": step, "steps": steps, "seconds": 0.5 * step}
            line[name] = value
            if step % 4 == 0:
                line["heldout_loss"] = 1.1 * value
            append_line(log_path(out), json.dumps(line))


@pytest.fixture
def figure_of():
    pytest.importorskip("matplotlib", reason="of the lessons extra")
    return lambda out: draw_curves(logged_stages(out))


def shown(figure):
    return [panel for panel in figure.axes if panel.axison]


@pytest.mark.parametrize("count", range(1, 6))
def test_each_stage_has_a_panel_with_two_curves(tmp_path, figure_of, count):
    write_log(tmp_path, STAGES[:count])
    panels = shown(figure_of(tmp_path))
    assert [panel.get_title().split(",")[0] for panel in panels] == list(STAGES[:count])
    for panel in panels:
        raw, smooth, heldout = panel.get_lines()
        assert len(raw.get_xdata()) == len(smooth.get_xdata()) == 40
        assert list(heldout.get_xdata()) == list(range(4, 41, 4))
        assert panel.get_xlabel() == "step" and panel.get_ylabel()
        labels = [text.get_text() for text in panel.get_legend().get_texts()]
        assert labels == ["training", "held-out"]


def test_the_log_scale_is_for_losses_that_fall_far(tmp_path, figure_of):
    write_log(tmp_path, ["tokenizer"])
    write_log(tmp_path, ["base"], done=3)
    far, near = shown(figure_of(tmp_path))
    assert (far.get_yscale(), near.get_yscale()) == ("log", "linear")


@pytest.mark.parametrize("done", [1, 2, 5])
def test_while_it_still_trains(tmp_path, figure_of, done):
    write_log(tmp_path, ["base"], done=done)
    (panel,) = shown(figure_of(tmp_path))
    assert panel.get_xlim() == (0, 40), "what is left is empty"
    assert f"{done} of 40 steps" in panel.get_title()


def test_lines_without_a_loss(tmp_path, figure_of):
    """Steps that are skipped, and a stage without held-out images."""
    line = {"stage": "base", "step": 1, "steps": 9, "seconds": 1.0, "skipped": 1.0}
    append_line(log_path(tmp_path), json.dumps(line))
    (panel,) = shown(figure_of(tmp_path))
    assert panel.get_legend() is None
    append_line(log_path(tmp_path), json.dumps(line | {"step": 2, "loss": 3.0}))
    (panel,) = shown(figure_of(tmp_path))
    assert len(panel.get_lines()) == 2


def test_the_command_writes_the_plot_into_the_folder(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="of the lessons extra")
    write_log(tmp_path)
    assert main(["curves", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'curves.png'}\n"
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000
    assert main(["curves", str(tmp_path), "--out", str(tmp_path / "new" / "x.svg")]) == 0
    assert "<svg" in (tmp_path / "new" / "x.svg").read_text()


def test_it_draws_what_a_training_writes(tiny_model, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="of the lessons extra")
    assert main(["curves", str(tiny_model), "--out", str(tmp_path / "x.png")]) == 0
    assert list(logged_stages(tiny_model)) == list(STAGES)


def test_mistakes(tmp_path, fails):
    pytest.importorskip("matplotlib", reason="of the lessons extra")
    out = tmp_path / "out"
    assert f"{out}/log.jsonl is not there" in fails("curves", out)
    assert not out.exists()
    out.mkdir()
    log_path(out).write_text("half a li")
    assert "has no line of a stage yet" in fails("curves", out)
    write_log(out)
    line = fails("curves", out, "--out", out / "x.jpeg2000")
    assert "x.jpeg2000 cannot be written" in line
    assert "log.jsonl/x.png cannot be written" in fails(
        "curves", out, "--out", out / "log.jsonl/x.png"
    )
    assert [path.name for path in out.iterdir()] == ["log.jsonl"]


def test_without_matplotlib(tmp_path, fails, monkeypatch):
    write_log(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = fails("curves", tmp_path)
    assert "pip install 'minimuse[lessons]'" in line
    assert not (tmp_path / "curves.png").exists()


def test_running_mean():
    assert running_mean([]) == [] and running_mean([3.0]) == [3.0]
    values = [float(i) for i in range(20)]
    assert running_mean(values)[:-4] == pytest.approx(values[:-4]), "it does not lag"
    assert running_mean([0.0] * 9 + [5.0])[-1] == pytest.approx(1), "the last value is not alone"
    assert running_mean([0.0, 0.0, 9.0, 0.0, 0.0])[2] == pytest.approx(1.8)


@pytest.mark.parametrize(
    "step, seconds, text",
    [
        (2300, 95.2, "2,300 steps in 95 s"),
        (460, 119.4, "460 of 2,300 steps in 119 s"),
        (460, 600, "460 of 2,300 steps in 10 min"),
        (460, 9000, "460 of 2,300 steps in 2.5 h"),
    ],
)
def test_progress(step, seconds, text):
    assert progress({"step": step, "steps": 2300, "seconds": seconds}) == text
