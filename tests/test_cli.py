"""The command line: what works, and every mistake told in one line: `pytest tests/test_cli.py`."""

import argparse
import errno
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minimuse import checks
from minimuse.cli import draw, main
from minimuse.cli.flags import make_parser
from minimuse.cli.lessons import EXTRAS
from minimuse.data import ASSETS
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.parts import PARTS
from minimuse.runs import workers
from minimuse.runs.stages import NEEDS, STAGES

CIRCLE = "a small red circle on a grey background"
SQUARE = "a square number 3"


def run(*argv) -> int:
    """The exit code of a command; arguments may be paths or numbers."""
    return main([str(argument) for argument in argv])


def run_to_exit(*argv) -> int:
    """The exit code, also of a command that argparse ends."""
    try:
        return run(*argv)
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def fails(capsys):
    """Run a command that must end with exit code 2 and one line on stderr; returns the line."""

    def run_failing(*argv):
        capsys.readouterr()
        code = run_to_exit(*argv)
        lines = []
        for line in capsys.readouterr().err.splitlines():
            is_progress_bar = "%|" in line
            if line.strip() and not is_progress_bar:
                lines.append(line)
        assert code == 2 and len(lines) == 1, (code, lines)
        return lines[0]

    return run_failing


def folder(path, n=4, side=40):
    """A folder of images with captions."""
    path.mkdir()
    for i in range(n):
        Image.new("RGB", (side, side), (50 * i % 256, 30, 90)).save(path / f"p{i}.png")
        (path / f"p{i}.txt").write_text(f"a square number {i}\n")
    return path


def read_json(path):
    return json.loads(path.read_text())


def test_version(capsys):
    assert run_to_exit("--version") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"minimuse {version('minimuse')}" and len(lines) == 5
    assert f"PyTorch {torch.__version__}" in lines[1] and platform.python_version() in lines[1]
    assert f"pillow {version('pillow')}" in lines[2]
    assert torch.backends.cpu.get_cpu_capability() in lines[3]
    assert lines[4].startswith("other devices: ")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command. argparse has no public way to ask for them."""
    for action in make_parser()._actions:
        if action.dest == "command":
            return action.choices


@pytest.mark.parametrize("command", parsers())
def test_help_of_every_flag_says_its_default(command, capsys):
    """Or that the flag is required. Positional arguments only need a help text."""
    for action in parsers()[command]._actions:
        assert action.help, action.dest
        is_flag = bool(action.option_strings)
        if is_flag and action.dest != "help":
            assert "(default" in action.help or "(required)" in action.help, action.option_strings
    assert run_to_exit(command, "--help") == 0
    assert command in capsys.readouterr().out


def test_the_report_of_the_demo_has_outlines(tiny_model):
    report = read_json(tiny_model / "report.json")["alignment"]
    outlines = {kind for kind, row in report.items() if "outline" in row}
    assert outlines == set(report) - {"shuffled"}
    assert report["real"]["outline"]["value"] > 0.99


def test_demo_writes_what_it_promises(tiny_model):
    report = read_json(tiny_model / "report.json")
    assert set(report["alignment"]) == {
        "real",
        "reconstructed",
        "reconstructed_low",
        "generated",
        "generated_low",
        "shuffled",
    }
    for row in report["alignment"].values():
        attributes = {"shape", "colour", "size", "count", "relation", "background", "all"}
        assert set(row) - {"outline"} == attributes
        for cell in row.values():
            assert not cell["n"] or cell["low"] <= cell["value"] <= cell["high"]
    assert set(report["seconds"]) == {*STAGES, "report", "total"}
    # Real images show that the detector is right, whatever the model draws.
    assert report["alignment"]["real"]["all"]["value"] > 0.99
    with Image.open(tiny_model / "samples.png") as sheet:
        assert sheet.width > 500
    low_steps, high_steps = 4, 2  # of the tiny preset
    with Image.open(tiny_model / "decoding.gif") as gif:
        assert gif.n_frames == low_steps + high_steps


class Threads:
    """Stands in for `Team`: every function runs in a thread."""

    def __init__(self, size):
        self.free = size
        self.answers = Queue()

    def __enter__(self):
        return self

    def __exit__(self, *details):
        pass

    def has_room(self):
        return self.free > 0

    def submit(self, function):
        self.free -= 1
        Thread(target=lambda: self.answers.put(function())).start()

    def next_result(self):
        result = self.answers.get(timeout=60)
        self.free += 1
        return result


def test_a_stage_of_the_demo_begins_when_what_it_needs_is_trained(monkeypatch, tmp_path):
    ended = set()
    decoder_has_begun = Event()

    def work(stage, row, **_):
        assert {*NEEDS[stage]} <= ended, stage
        if stage == "decoder":
            decoder_has_begun.set()
        if stage == "tokenizer":
            # The decoder needs only the other tokenizer, so it must begin before this one ends.
            assert decoder_has_begun.wait(30)
        ended.add(stage)
        return stage, 1.0, {}

    monkeypatch.setattr(workers, "train_in_worker", work)
    monkeypatch.setattr(workers, "Team", Threads)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    seconds, stages = workers.side_by_side(
        workers.TrainingJob(tmp_path, PRESETS["tiny"], "shapes", "t5-toy", 0, False, print)
    )
    assert seconds.keys() == stages.keys() == ended == {*STAGES}


@pytest.mark.slow
def test_evaluate_repeats_what_demo_measured(tiny_model, tmp_path, capsys):
    out = tmp_path / "figures"
    assert run("evaluate", "--model", tiny_model, "--out", out) == 0
    table = capsys.readouterr().out
    measured = read_json(out / "report.json")
    demo_report = read_json(tiny_model / "report.json")
    # Combinations that were trained on, in other scenes; the demo leaves this split out.
    validation = measured.pop("validation")
    del demo_report["seconds"], demo_report["stages"]
    assert measured.keys() == validation.keys() and measured == demo_report
    assert measured["nll"] != validation["nll"]
    assert (out / "samples.png").read_bytes() == (tiny_model / "samples.png").read_bytes()
    assert table == (out / "report.md").read_text() and "| alignment, generated, shape |" in table
    shape = measured["alignment"]["generated"]["shape"]
    assert f"| {shape['value']:.3f} ({shape['low']:.3f} to {shape['high']:.3f}) |" in table
    assert run("evaluate", "--model", tiny_model, "--out", out, "--n", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out) == read_json(out / "report.json")
    assert run_to_exit("evaluate", "--model", tiny_model, "--out", out, "--n", 0) == 2


def difference(shown: np.ndarray, image: Image.Image) -> float:
    """The mean difference of an enlarged image in a frame from an image."""
    return np.abs(shown - np.array(image.resize((160, 160), Image.Resampling.NEAREST))).mean()


def test_generate(tiny_model, tmp_path, capsys):
    out, gif = tmp_path / "apple.png", tmp_path / "a.gif"
    draw = ["generate", CIRCLE, "--model", tiny_model, "-o", out]
    assert run(*draw, "--n", 2, "--gif", gif) == 0
    first, second = Image.open(tmp_path / "apple-0.png"), Image.open(tmp_path / "apple-1.png")
    assert first.size == (32, 32) and first.tobytes() != second.tobytes()
    # The GIF's last frame shows the same two, 160 pixels wide, in a palette.
    with Image.open(gif) as frames:
        frames.seek(frames.n_frames - 1)
        page = np.array(frames.convert("RGB"), dtype=float)
    shown_first, shown_second = page[6:166, 6:166], page[6:166, 172:332]
    assert difference(shown_first, first) < 0.5 * difference(shown_first, second)
    assert difference(shown_second, second) < 0.5 * difference(shown_second, first)
    assert run(*draw) == 0
    # An empty prompt is the null caption.
    assert run("generate", "", "--model", tiny_model, "-o", tmp_path / "empty.png") == 0
    capsys.readouterr()
    long = "red " * 10_000
    assert run("generate", long, "--model", tiny_model, "-o", tmp_path / "long.png") == 0
    warning = capsys.readouterr().err.splitlines()
    assert len(warning) == 1 and "cut to 77" in warning[0]


def test_a_grid_shows_all_combinations(tiny_model, tmp_path):
    """One cell is what `generate` draws with these settings; a strip is written for a .png."""
    sheet, strip, single = (tmp_path / f"{name}.png" for name in ("sheet", "strip", "single"))
    draw = ["generate", CIRCLE, "--model", tiny_model, "--seed", 1]
    axes = ["steps=1,4", "ramp=True,False", "guidance=0,2,3"]
    assert run(*draw, "-o", sheet, "--gif", strip, "--grid", *axes) == 0
    settings = ["--steps", 4, "--no-ramp", "--guidance", 2]
    assert run(*draw, "-o", single, *settings) == 0
    page = np.array(Image.open(sheet).convert("RGB"))
    cell, gap = 128, 6
    columns, rows = 3, 4  # the last axis gives the columns
    assert page.shape[1] == columns * (cell + gap) + gap
    block = (page.shape[0] - gap) // rows
    row, column = 3, 1
    y, x = gap + row * block, gap + column * (cell + gap)
    enlarged = Image.open(single).resize((cell, cell), Image.Resampling.NEAREST)
    assert np.array_equal(page[y : y + cell, x : x + cell], np.array(enlarged))
    with Image.open(strip) as image:
        assert image.format == "PNG" and image.width > 6 * 80


@pytest.mark.parametrize(
    "argv, names",
    [
        (["--n", "0"], "--n: 0 is not a whole number from 1 to 100000"),
        (["--n", "-3"], "--n: -3 is not"),
        (["--n", "100000000"], "--n: 100000000 is not"),
        (["--n", "1.5"], "--n: '1.5' is not"),
        (["--seed", str(2**64)], "--seed: 18446744073709551616 is not"),
        (["--seed", "1e3"], "--seed: '1e3' is not"),
        (["--steps", "0"], "--steps is 0, not a whole number from 1 to 10000"),
        (["--steps", "-1"], "--steps is -1"),
        (["--steps", "1000000"], "--steps is 1000000"),
        (["--guidance", "-1"], "--guidance is -1"),
        (["--guidance", "1e999"], "--guidance is inf"),
        (["--temperature", "-1"], "--temperature is -1"),
        (["--temperature", "warm"], "--temperature=warm"),
        (["--temperature", "nan"], "--temperature=nan"),
        (["--guided", "0.5"], "--guided=0.5"),
        (["--guided", "0.5,0.2"], "smaller fraction first"),
        (["--guided", "0,2"], "--guided is (0.0, 2.0)"),
        (["--sampler", "best"], "'best'"),
        (["--top-k", "0.5"], "--top-k=0.5"),
        (["--grid", "steps=0,1"], "--grid steps is 0"),
        (["--grid", "guided=0,1"], "--grid guided"),
        (["--grid", "steps=1,2", "steps=3"], "steps is there twice"),
        (["--grid", "steps=" + ",".join("1" * 2000)], "2000 images; a sheet has at most 1000"),
        (["--n", "600", "--grid", "ramp=True,False"], "1200 images"),
        (["--grid", "steps=" + ",".join("1" * 900), "-o", "wide.webp"], "16383 a side"),
        (["--steps", "9999", "--n", "32", "--gif", "strip.webp"], "16383 a side"),
        (["--grid", "steps=1,2", "size=3"], "--grid size"),
        (["--grid", "steps"], "key=a,b"),
        (["--grid", "steps=1,x"], "steps=x"),
        (["-o", "nowhere/at/all.png"], "nowhere"),
        (["-o", "picture.txt"], "picture.txt"),
        (["--model", "no-such-model"], "no-such-model"),
        (
            ["--n", "2", "--grid", "steps=1,2", "-o", "same.png", "--gif", "same.png"],
            "name of its own",
        ),
        (["--seed", "one"], "one"),
    ],
)
def test_generate_refuses(fails, tiny_model, tmp_path, monkeypatch, argv, names):
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in argv else ["--model", tiny_model]
    assert names in fails("generate", "a red circle", *model, *argv)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_drawing_does_not_replace_its_own_input(fails, tiny_model, tmp_path):
    images = folder(tmp_path / "images", n=2, side=32)
    first, second = images / "p0.png", images / "p1.png"
    for argv in (
        ["edit", first, "red", "-o", first],
        ["outpaint", first, "red", "--pad", "8", "-o", first],
        ["inpaint", second, first, "red", "-o", first],
        ["edit", second, "red", "--sheet", second],
        ["edit", first, "red", "-o", images / ".." / "images" / "p0.png"],
    ):
        assert "name of its own" in fails(*argv, "--model", tiny_model)


def test_damaged_models_are_refused(fails, tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    draw = ["generate", "a red circle", "--model", model, "-o", tmp_path / "x.png"]
    data = (model / "base.safetensors").read_bytes()
    (model / "base.safetensors").write_bytes(data[: len(data) // 2])
    assert "base.safetensors is truncated" in fails(*draw)
    shutil.copy(model / "superres.safetensors", model / "base.safetensors")
    assert "does not fit config.json" in fails(*draw)
    (model / "base.safetensors").unlink()
    assert "minimuse train base" in fails(*draw)


def test_damaged_configurations_are_refused(fails, tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    draw = ["generate", "a red circle", "--model", model, "-o", tmp_path / "x.png"]

    def change(group, key, value):
        about = read_json(tiny_model / "config.json")
        entries = about["config"]["base"] if group == "base" else about[group]
        entries[key] = value
        (model / "config.json").write_text(json.dumps(about))

    (model / "config.json").write_text("{}")
    assert "config.json" in fails(*draw)
    change("base", "colour", 3)
    assert "colour" in fails(*draw)
    change("text", "fingerprint", "0123456789ab")
    assert "0123456789ab" in fails(*draw)
    change("text", "name", "moved")
    assert "moved" in fails(*draw)
    moved = shutil.copytree(ASSETS / "t5-toy", tmp_path / "t5")
    assert run(*draw, "--t5", moved) == 0


@pytest.mark.parametrize("missing", ["config", "data", "seed", "text", "name", "fingerprint"])
def test_a_configuration_without_an_entry_is_refused(fails, tiny_model, tmp_path, missing):
    about = read_json(tiny_model / "config.json")
    entries = about["text"] if missing in ("name", "fingerprint") else about
    del entries[missing]
    (tmp_path / "config.json").write_text(json.dumps(about))
    line = fails("generate", "a red circle", "--model", tmp_path, "-o", tmp_path / "x.png")
    assert "config.json" in line and f"{missing} is missing" in line


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_does_not_exist(fails, tmp_path, device):
    out, at_device = tmp_path / "out", ["--device", device]
    train = ["train", "tokenizer", "--preset", "tiny", "--data", "shapes", "--out", out]
    draw = ["generate", "a red circle", "--model", "toy-shapes", "-o", tmp_path / "x.png"]
    evaluate = ["evaluate", "--model", "toy-shapes", "--out", out]
    assert device in fails(*train, *at_device)
    assert device in fails(*draw, *at_device)
    assert device in fails(*evaluate, *at_device)
    assert not out.exists()


def test_train_a_folder_of_ones_own(tmp_path):
    images, out = folder(tmp_path / "mine", n=10), tmp_path / "out"
    assert run("train", "all", "--preset", "tiny", "--data", images, "--out", out) == 0
    assert run("generate", SQUARE, "--model", out, "-o", tmp_path / "x.png") == 0
    before = load_file(out / "base.safetensors")
    # All parts exist, so there is nothing to do.
    assert run("train", "all", "--out", out, "--resume") == 0
    after = load_file(out / "base.safetensors")
    for key, tensor in before.items():
        assert bool((tensor == after[key]).all()), key


@pytest.mark.parametrize(
    "argv, names",
    [
        (["all", "--preset", "huge"], "huge"),
        (["all", "base.depth=3"], "base.depth"),
        (["all", "base.width"], "base.width"),
        (["all", "base.width=wide"], "base.width=wide"),
        (["all", "stages.base.steps=0"], "stages.base.steps is 0"),
        (["all", "stages.base.batch=-4"], "stages.base.batch is -4"),
        (["all", "scenes=0"], "scenes is 0"),
        (["all", "--seed", str(2**64)], "--seed"),
        (["some"], "some"),
        (["base"], "with tokenizer in place of base"),
        (["all", "--t5", "no-such-text-encoder"], "no-such-text-encoder"),
        (["all", "--no-such-flag", "base.width=32"], "--no-such-flag"),
    ],
)
def test_train_refuses(fails, tmp_path, argv, names):
    if "--preset" not in argv:
        argv = [argv[0], "--preset", "tiny", *argv[1:]]
    assert names in fails("train", *argv, "--data", "shapes", "--out", tmp_path / "out")


def test_bad_folders_are_refused(fails, tmp_path):
    train = ["train", "tokenizer", "--preset", "tiny", "--out", tmp_path / "out", "--data"]
    assert "nowhere" in fails(*train, tmp_path / "nowhere")
    one = folder(tmp_path / "one", n=1)
    assert "at least two" in fails(*train, one)
    silent = folder(tmp_path / "silent")
    (silent / "p2.txt").unlink()
    assert "p2.png has no caption" in fails(*train, silent)
    broken = folder(tmp_path / "broken")
    (broken / "p1.png").write_bytes((broken / "p1.png").read_bytes()[:40])
    assert "p1.png" in fails(*train, broken)
    small = folder(tmp_path / "small", side=3)
    assert "p0.png" in fails(*train, small)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    train = ["train", "all", "--preset", "tiny", "--data", "shapes", "--out", out]
    assert "file" in fails(*train)


# --- train --start: keep the tokenizers of another model, train its other parts further ---
ONE_STEP = [
    "stages.base.steps=1",
    "stages.superres.steps=1",
    "stages.decoder.steps=1",
    "stages.base.lr=1e-9",
    "stages.base.muon_lr=1e-9",
]


@pytest.fixture(scope="module")
def further_trained(tiny_model, tmp_path_factory):
    """`train all --start` for one step: the folder of images, and the new model."""
    images = folder(tmp_path_factory.mktemp("start") / "mine", n=10)
    out = images.with_name("out")
    train = ["train", "all", "--start", tiny_model, "--data", images, "--out", out]
    assert run(*train, *ONE_STEP) == 0
    return images, out


@pytest.fixture(scope="module")
def further_base(tiny_model, further_trained):
    """`train base --start` for one step."""
    images, out = further_trained
    alone = images.with_name("alone")
    train = ["train", "base", "--start", tiny_model, "--data", images, "--out", alone]
    assert run(*train, *ONE_STEP) == 0
    return alone


def largest_difference(a: dict, b: dict) -> float:
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def test_start_keeps_the_tokenizers_and_trains_the_rest(tiny_model, further_trained, tmp_path):
    """Tokenizers stay, bit for bit; the other parts begin with the weights of --start, and move."""
    images, out = further_trained
    for name in PARTS:
        before = load_file(tiny_model / f"{name}.safetensors")
        moved = largest_difference(before, load_file(out / f"{name}.safetensors"))
        if name.startswith("tokenizer"):
            assert moved == 0, name
        else:
            assert 0 < moved < (1e-6 if name == "base" else 0.1), (name, moved)
    about = read_json(out / "config.json")
    # The sizes are those of --start, the data those of the command line.
    assert about["config"]["base"]["width"] == 32 and about["data"] == str(images)
    assert run("generate", SQUARE, "--model", out, "-o", tmp_path / "x.png") == 0


def test_start_with_one_stage_keeps_all_others(tiny_model, further_trained, further_base, tmp_path):
    """So that the result is a whole model, which can draw."""
    _, out = further_trained
    kept = (further_base / "superres.safetensors").read_bytes()
    assert kept == (tiny_model / "superres.safetensors").read_bytes()
    trained = (further_base / "base.safetensors").read_bytes()
    assert trained == (out / "base.safetensors").read_bytes()
    assert run("generate", SQUARE, "--model", further_base, "-o", tmp_path / "x.png") == 0


def test_start_overwrites_nothing(tiny_model, further_trained, fails, tmp_path):
    _, out = further_trained
    new = tmp_path / "new"
    assert "--resume" in fails("train", "base", "--start", tiny_model, "--out", out)
    assert "no model" in fails("train", "base", "--start", tmp_path / "none", "--out", new)
    # A folder without config.json is left over from a run that failed.
    left = shutil.copytree(out, tmp_path / "left", ignore=shutil.ignore_patterns("config.json"))
    assert "--resume" in fails("train", "superres", "--start", tiny_model, "--out", left)


def test_start_again_with_other_stages(tiny_model, further_trained, further_base, fails, tmp_path):
    _, out = further_trained
    alone = shutil.copytree(further_base, tmp_path / "alone")
    new = tmp_path / "new"
    (alone / "superres.safetensors").unlink()
    # A second stage is trained further as well.
    assert run("train", "superres", "--start", tiny_model, "--out", alone, "--resume") == 0
    again = load_file(alone / "superres.safetensors")
    # `all` trains with another number of threads, so the last digits differ.
    assert largest_difference(load_file(out / "superres.safetensors"), again) < 1e-3
    (alone / "base.safetensors").unlink()
    # A part that is missing is not trained from random weights either.
    assert "--resume" in fails("train", "base", "--start", tiny_model, "--out", alone)
    tokenizer = fails("train", "tokenizer", "--start", tiny_model, "--out", new)
    assert "keeps the tokenizers" in tokenizer
    assert "no base" in fails("train", "base", "--start", alone, "--out", new)
    assert not new.exists()
    # The base model does not need super-resolution.
    (alone / "superres.safetensors").unlink()
    shutil.copy(tiny_model / "base.safetensors", alone)
    assert run("train", "base", "--start", alone, "--out", new, ONE_STEP[0]) == 0


def test_settings_that_do_not_fit_are_refused_before_training(fails, tmp_path):
    out = tmp_path / "out"
    train = ["train", "all", "--preset", "tiny", "--data", "shapes", "--out", out]
    for setting, word in (
        ("superres.window=3", "window"),
        ("superres.piece=3", "pieces"),
        ("decoder_channels=12", "decoder_channels"),
        ("tokenizer_hi.multipliers=1,1,1,1", "multipliers"),
    ):
        assert word in fails(*train, setting)
    coarse = ["tokenizer_hi.multipliers=1,1,1,1,1", "tokenizer_hi.blocks=0,0,0,0,0"]
    coarse.append("decoder_blocks=0,0,0,0,0")
    assert "grid" in fails(*train, *coarse)
    assert not out.exists()


def test_training_goes_on_where_the_text_encoder_has_moved(fails, tmp_path):
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "out"
    shutil.copytree(ASSETS / "t5-toy", old)
    few_steps = ["scenes=12", "stages.tokenizer.steps=1", "stages.tokenizer_hi.steps=1"]
    start = ["--preset", "tiny", "--data", "shapes", *few_steps]
    assert run("train", "tokenizer", "--out", out, "--t5", old, *start) == 0
    old.rename(new)
    assert "--t5" in fails("train", "tokenizer-hi", "--out", out)
    assert run("train", "tokenizer-hi", "--out", out, "--t5", new) == 0
    assert read_json(out / "config.json")["text"]["name"] == str(new)


def test_a_run_in_the_way_is_not_overwritten(fails, tiny_model, tmp_path):
    out = tmp_path / "model"
    shutil.copytree(tiny_model, out)
    train = ["train", "all", "--out", out]
    assert "--resume" in fails(*train)
    assert "other settings" in fails(*train, "--preset", "tiny", "--resume", "base.layers=3")
    assert "other settings" in fails(*train, "--seed", "5", "--resume")


# --- Commands that need a clone ---
def test_check(capsys):
    """0: all are right, 1: some are not, 2: no such lesson."""
    assert run("check", "00", "--package") == 0
    assert run("check", "99") == 2
    assert "'99'" in capsys.readouterr().err


def test_notebooks(tmp_path):
    jupytext = pytest.importorskip("jupytext", reason="of the lessons extra")
    out = tmp_path / "new"
    assert run("notebooks", out) == 0
    lessons = sorted(Path("lessons").glob("[0-9]*.md"))
    written = sorted(out.glob("*.ipynb"))
    assert [p.stem for p in written] == [p.stem for p in lessons] and len(written) >= 10
    for lesson, notebook in zip(lessons, written, strict=True):
        cells = jupytext.read(notebook).cells
        code_cells = sum(cell.cell_type == "code" for cell in cells)
        assert code_cells == lesson.read_text().count("```python\n")
        # The figures that the text shows lie beside the notebook.
        for cell in cells:
            for figure in re.findall(r"\]\((figures/[^)]+)\)", cell.source):
                assert (out / figure).is_file(), figure


NEED_A_CLONE = [
    (["check", "04"], "`check` needs a clone of the project: the exercises are in"),
    (["notebooks", "new"], "`notebooks` needs a clone of the project: the lessons are in"),
]


@pytest.mark.parametrize("argv, words", NEED_A_CLONE)
def test_without_a_clone(fails, monkeypatch, tmp_path, argv, words):
    """As in an installed wheel: there is no folder lessons/exercises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "EXERCISE_FOLDER", tmp_path / "exercises")
    assert words in fails(*argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["check", "04"], ["notebooks", "new"]])
def test_without_a_clone_no_extra_is_imported(tmp_path, argv):
    """The message about the clone comes first, also where no extra is installed."""
    code = f"""
import sys
from pathlib import Path
from minimuse import checks
from minimuse.cli import main

checks.EXERCISE_FOLDER = Path("none")
assert main({argv}) == 2
imported = {{"pytest", "hypothesis", "jupytext"}} & set(sys.modules)
assert not imported, imported
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    "argv, package, extra",
    [
        (["check", "04"], "hypothesis", "test"),
        (["notebooks", "new"], "jupytext", "lessons"),
        (["notebooks", "new"], "matplotlib", "lessons"),
    ],
)
def test_without_an_extra(fails, monkeypatch, tmp_path, argv, package, extra):
    monkeypatch.chdir(tmp_path)
    # Python then neither finds nor imports the package.
    monkeypatch.setitem(sys.modules, package, None)
    line = fails(*argv)
    # Another package of the same extra may be missing as well, and is named with it.
    needed = line.split("needs ")[1].split(";")[0]
    assert package in needed.split(" and ") and f"pip install -e '.[{extra}]'" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, extra", EXTRAS.items())
def test_a_module_that_is_missing_anywhere(fails, monkeypatch, tmp_path, name, extra):
    """The command that installs it is named, whoever imports it; and the extra has the package."""

    def import_it(*_):
        raise ModuleNotFoundError(f"No module named '{name}'", name=f"{name}.inner")

    monkeypatch.setattr("minimuse.cli.draw.output_paths", import_it)
    line = fails("generate", "x", "-o", tmp_path / "x.png")
    assert f"No module named '{name}'" in line and f"pip install 'minimuse[{extra}]'" in line
    wanted = [text for text in requires("minimuse") if f'"{extra}"' in text]
    assert any(text.startswith(name.replace("_", "-")) for text in wanted), wanted


@pytest.mark.parametrize("text", ["\x1b[31m", "\x85", "\udcff", "\u2028", "a\nb\tc", "\0"])
def test_what_cannot_be_printed_is_escaped(fails, text):
    for argv in (["generate", "x", "--n", text], ["train", text], ["generate", "x", "-o", text]):
        line = fails(*argv)
        assert line.isprintable()


def test_a_long_value_does_not_fill_the_screen(fails):
    line = fails("check", "9" * 5000)
    assert len(line) < 1000 and "choose one of" in line


@pytest.mark.parametrize("stage", ["all", "base"])
def test_a_training_that_is_finished_says_so(monkeypatch, capsys, tiny_model, stage):
    monkeypatch.setattr("minimuse.cli.train.side_by_side", None)  # nothing is started
    about = json.loads((tiny_model / "config.json").read_text())
    assert run("train", stage, "--resume", "--out", tiny_model, "--data", about["data"]) == 0
    names = "tokenizer, base, tokenizer_hi, superres, decoder" if stage == "all" else "base"
    printed = capsys.readouterr().out
    assert sorted(printed.split(" holds ")[1].split(" already")[0].split(", ")) == sorted(
        names.split(", ")
    )
    assert "nothing is left to train" in printed


@pytest.mark.parametrize(
    "number, remedy",
    [
        (errno.EACCES, "; allow this user to open it, and the folders above it"),
        (errno.ENOSPC, "; free some space, or write to another disk"),
        (errno.ENAMETOOLONG, "; give a shorter name"),
        (errno.EIO, ""),
    ],
)
@pytest.mark.parametrize("name", ["some/file", None])
def test_what_the_system_says_is_told_with_the_remedy(fails, monkeypatch, number, remedy, name):
    def refuse(*_):
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr("minimuse.cli.draw.output_paths", refuse)
    line = fails("generate", "x", "-o", "x.png")
    # Only what is printed has no name.
    assert line == f"minimuse: {name or 'the output'}: {os.strerror(number)}{remedy}"


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize(
    "argv",
    [
        ("train", "tokenizer", "--preset", "tiny", "--data", "shapes", "--out"),
        ("demo", "--preset", "tiny", "--out"),
        ("cache", "--out"),
        ("evaluate", "--model", "toy", "--out"),
        ("generate", "a cat", "-o"),
        ("generate", "a cat", "--gif"),
        ("notebooks",),
        ("curves",),
        ("curves", "runs/demo", "--out"),
    ],
)
def test_an_empty_path_is_not_the_current_directory(capsys, monkeypatch, tmp_path, argv, empty):
    monkeypatch.chdir(tmp_path)
    assert run_to_exit(*argv, empty) == 2
    assert "the path is empty; give a name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_model_or_report_is_written_among_the_images(fails, tmp_path):
    pics = tmp_path / "pics"
    pics.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (80 * i, 0, 0)).save(pics / f"{i}.png")
        (pics / f"{i}.txt").write_text("red")
    tiny = ["train", "tokenizer", "--preset", "tiny", "--data", pics]
    line = fails(*tiny, "--out", pics)
    assert f"--out {pics} is the folder of images; give another, such as {pics / 'out'}" in line
    assert len(list(pics.iterdir())) == 6
    assert run(*tiny, "stages.tokenizer.steps=1", "--out", pics / "out") == 0  # the remedy
    assert "is the folder of images" in fails(
        "evaluate", "--model", "toy", "--data", pics, "--out", pics
    )


@pytest.mark.parametrize("layer", ["white strokes", "black with a hole", "grey"])
def test_what_is_transparent_in_a_mask_is_not_white(tmp_path, capsys, layer):
    image, mask, out = (tmp_path / name for name in ("image.png", "mask.png", "out.png"))
    Image.new("RGB", (64, 64), "red").save(image)
    right = (32, 0, 64, 64)
    drawn = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    drawn.paste("white" if layer == "white strokes" else "black", right)
    if layer == "grey":
        drawn = Image.new("LA", (64, 64), (255, 0))
        drawn.paste((255, 255), right)
    drawn.save(mask)
    options = ["--steps", 1, "--keep-pixels", "-o", out]
    line = ["inpaint", image, mask, "a red apple, noto style", *options]
    if layer == "black with a hole":
        assert run(*line) == 0
        assert "nothing in the mask is white" in capsys.readouterr().err
        return
    assert run(*line) == 0
    with Image.open(out) as after:
        assert np.array(after)[:, :24].tolist() == np.array(Image.open(image))[:, :24].tolist()
        assert np.array(after)[:, 40:].tolist() != np.array(Image.open(image))[:, 40:].tolist()


@pytest.mark.parametrize("wrong", ["image", "mask"])
def test_an_input_that_is_no_image_is_named(fails, tmp_path, wrong):
    right = tmp_path / "right.png"
    Image.new("RGB", (64, 64)).save(right)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    messages = {
        "none.png": f"there is no file {tmp_path / 'none.png'}; check the name",
        "folder.png": f"{tmp_path / 'folder.png'} is a folder; give the name of an image file",
        "empty.png": f"{tmp_path / 'empty.png'} is empty; save it again",
    }
    for name, message in messages.items():
        files = [tmp_path / name, right] if wrong == "image" else [right, tmp_path / name]
        assert fails("inpaint", *files, "x", "-o", tmp_path / "o.png") == f"minimuse: {message}"


def test_warnings_as_errors_do_not_end_a_command(tmp_path):
    """`python -W error`: what we tell a user is no error."""
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("red")
    (tmp_path / "1.png").write_bytes(b"no image")
    line = ["train", "tokenizer", "--preset", "tiny", "--data", ".", "--out", "out"]
    settings = ["stages.tokenizer.steps=1", "skip_unreadable=True"]
    command = [sys.executable, "-W", "error::UserWarning", "-m", "minimuse", *line, *settings]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "minimuse: left out: " in result.stderr and "Traceback" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="there a current directory cannot be removed")
def test_a_current_directory_that_is_gone(tmp_path):
    code = "import os, sys; os.mkdir('x'); os.chdir('x'); os.rmdir('../x'); "
    code += "from minimuse.__main__ import main; sys.argv[1:] = ['--version']; sys.exit(main())"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == ("minimuse: the current directory is gone; change to another one\n")


def test_a_name_that_begins_with_a_dash(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_to_exit("train", "--data", "-pics", "--out", "x") == 2
    assert "write a file whose name begins with - as ./-name" in capsys.readouterr().err
    assert run_to_exit("train", "all", "--data", "./-pics", "--out", "x") == 2
    assert "no folder" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "device, n, compile, said",
    [
        ("cpu", 1000, False, ""),
        ("cuda", 2, False, ""),
        ("cuda", 1000, False, "with --compile, 1000 images may take less time"),
        ("cuda", 1000, True, "compiling: the first images"),
        ("cpu", 1, True, "compiling: the first images"),
    ],
)
def test_what_is_said_of_compiling(monkeypatch, capsys, device, n, compile, said):
    compiled = []
    muse = SimpleNamespace(device=torch.device(device), compile=lambda: compiled.append(True))
    monkeypatch.setattr(draw.Muse, "load", lambda *arguments: muse)
    draw.load_model(argparse.Namespace(model="toy", device="cpu", t5=None, n=n, compile=compile))
    printed = capsys.readouterr().err
    assert said in printed and bool(said) == bool(printed)
    assert bool(compiled) == compile
