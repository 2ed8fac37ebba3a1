"""The command line: what works, and every mistake in one line. Run: pytest tests/test_cli.py"""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from minimuse.cli import main
from minimuse.data import ASSETS
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.parts import PARTS
from minimuse.runs.stages import NEEDS, STAGES
from minimuse.runs.workers import side_by_side


@pytest.fixture
def fails(capsys):
    """Run a command that must end with exit code 2 and one line on stderr; returns the line."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = stop.code
        lines = [
            line
            for line in capsys.readouterr().err.splitlines()
            if line.strip() and "%|" not in line
        ]
        assert code == 2 and len(lines) == 1, (code, lines)
        return lines[0]

    return run


def folder(path, n=4, side=40):
    path.mkdir()
    for i in range(n):
        Image.new("RGB", (side, side), (50 * i % 256, 30, 90)).save(path / f"p{i}.png")
        (path / f"p{i}.txt").write_text(f"a square number {i}\n")
    return path


def test_demo_writes_what_it_promises(tiny_model):
    report = json.loads((tiny_model / "report.json").read_text())
    assert set(report["alignment"]) == {
        "real",
        "reconstructed",
        "reconstructed_low",
        "generated",
        "generated_low",
        "shuffled",
    }
    for row in report["alignment"].values():
        assert set(row) == {"shape", "colour", "size", "count", "relation", "background", "all"}
        assert all(
            cell["low"] <= cell["value"] <= cell["high"] for cell in row.values() if cell["n"]
        )
    assert set(report["seconds"]) == {
        "tokenizer",
        "tokenizer_hi",
        "base",
        "superres",
        "decoder",
        "report",
        "total",
    }
    assert report["alignment"]["real"]["all"]["value"] > 0.99  # the detector, not the model
    with (
        Image.open(tiny_model / "samples.png") as sheet,
        Image.open(tiny_model / "decoding.gif") as gif,
    ):
        assert sheet.width > 500
        assert gif.n_frames == 4 + 2  # passes of the tiny preset, low-res and high-res


def test_a_stage_of_the_demo_begins_when_what_it_needs_is_there(monkeypatch, tmp_path):
    ended, finetuning = set(), Event()

    def work(stage, row, **_):
        assert {*NEEDS[stage]} <= ended, stage
        if stage == "decoder":
            finetuning.set()
        if (
            stage == "tokenizer"
        ):  # does not end before finetuning has begun, which needs the other one only
            assert finetuning.wait(30)
        ended.add(stage)
        return stage, 1.0, {}

    monkeypatch.setattr("minimuse.runs.workers.train_in_worker", work)
    monkeypatch.setattr(
        "minimuse.runs.workers.ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(workers)
    )
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    seconds, stages = side_by_side(tmp_path, PRESETS["tiny"], "shapes", "t5-toy", 0, False, print)
    assert seconds.keys() == stages.keys() == ended == {*STAGES}


def test_evaluate_repeats_what_demo_measured(tiny_model, tmp_path, capsys):
    out = tmp_path / "figures"
    assert main(["evaluate", "--model", str(tiny_model), "--out", str(out)]) == 0
    table = capsys.readouterr().out
    measured, before = (
        json.loads((directory / "report.json").read_text()) for directory in (out, tiny_model)
    )
    seen = measured.pop(
        "validation"
    )  # combinations that were trained on, in other scenes; the demo has no time for them
    assert measured.keys() == seen.keys() and measured == {
        k: v for k, v in before.items() if k not in ("seconds", "stages")
    }
    assert measured["nll"] != seen["nll"]
    assert (out / "samples.png").read_bytes() == (tiny_model / "samples.png").read_bytes()
    assert table == (out / "report.md").read_text() and "| alignment, generated, shape |" in table
    shape = measured["alignment"]["generated"]["shape"]
    assert f"| {shape['value']:.3f} ({shape['low']:.3f} to {shape['high']:.3f}) |" in table
    assert (
        main(["evaluate", "--model", str(tiny_model), "--out", str(out), "--n", "4", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out) == json.loads((out / "report.json").read_text())
    assert main(["evaluate", "--model", str(tiny_model), "--out", str(out), "--n", "0"]) == 2


def test_generate(tiny_model, tmp_path, capsys):
    out = tmp_path / "apple.png"
    assert (
        main(
            [
                "generate",
                "a small red circle on a grey background",
                "--model",
                str(tiny_model),
                "-o",
                str(out),
                "--n",
                "2",
                "--gif",
                str(tmp_path / "a.gif"),
            ]
        )
        == 0
    )
    first, second = Image.open(tmp_path / "apple-0.png"), Image.open(tmp_path / "apple-1.png")
    assert first.size == (32, 32) and first.tobytes() != second.tobytes()
    with Image.open(
        tmp_path / "a.gif"
    ) as moving:  # it shows the same two, 160 pixels wide, in a palette
        moving.seek(moving.n_frames - 1)
        shown = [
            np.array(moving.convert("RGB").crop((6 + 166 * i, 6, 166 + 166 * i, 166)), dtype=float)
            for i in range(2)
        ]
    apart = lambda a, b: np.abs(a - np.array(b.resize((160, 160), Image.Resampling.NEAREST))).mean()
    assert apart(shown[0], first) < 0.5 * apart(shown[0], second) and apart(
        shown[1], second
    ) < 0.5 * apart(shown[1], first)
    assert (
        main(
            [
                "generate",
                "a small red circle on a grey background",
                "--model",
                str(tiny_model),
                "-o",
                str(out),
            ]
        )
        == 0
    )
    assert (
        main(["generate", "", "--model", str(tiny_model), "-o", str(tmp_path / "empty.png")]) == 0
    )  # the null caption
    capsys.readouterr()
    assert (
        main(
            [
                "generate",
                "red " * 10_000,
                "--model",
                str(tiny_model),
                "-o",
                str(tmp_path / "long.png"),
            ]
        )
        == 0
    )
    warning = capsys.readouterr().err.splitlines()
    assert len(warning) == 1 and "cut to 77" in warning[0]


@pytest.mark.parametrize(
    "argv, names",
    [
        (["--n", "0"], "--n is 0"),
        (["--n", "-3"], "--n is -3"),
        (["--steps", "0"], "steps is 0"),
        (["--steps", "-1"], "steps is -1"),
        (["--guidance", "-1"], "guidance is -1"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--temperature", "warm"], "temperature=warm"),
        (["--guided", "0.5"], "guided=0.5"),
        (["--guided", "0.5,0.2"], "two fractions"),
        (["--sampler", "best"], "'best'"),
        (["--top-k", "0.5"], "top_k=0.5"),
        (["--grid", "steps=1,2", "size=3"], "--grid size"),
        (["--grid", "steps"], "key=a,b"),
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


def test_a_drawing_does_not_replace_what_it_is_drawn_from(fails, tiny_model, tmp_path):
    pictures = folder(tmp_path / "pictures", n=2, side=32)
    first, second = pictures / "p0.png", pictures / "p1.png"
    for argv in (
        ["edit", first, "red", "-o", first],
        ["outpaint", first, "red", "--pad", "8", "-o", first],
        ["inpaint", second, first, "red", "-o", first],
        ["edit", second, "red", "--sheet", second],
        ["edit", first, "red", "-o", pictures / ".." / "pictures" / "p0.png"],
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
    (model / "config.json").write_text("{}")
    assert "config.json" in fails(*draw)
    about = json.loads((tiny_model / "config.json").read_text())
    about["config"]["base"]["colour"] = 3
    (model / "config.json").write_text(json.dumps(about))
    assert "colour" in fails(*draw)
    about = json.loads((tiny_model / "config.json").read_text())
    about["text"]["fingerprint"] = "0123456789ab"
    (model / "config.json").write_text(json.dumps(about))
    assert "0123456789ab" in fails(*draw)
    about = json.loads((tiny_model / "config.json").read_text())
    about["text"]["name"] = "moved"
    (model / "config.json").write_text(json.dumps(about))
    assert "moved" in fails(*draw)
    shutil.copy(tiny_model / "base.safetensors", model)
    moved = shutil.copytree(ASSETS / "t5-toy", tmp_path / "there")
    assert main([*map(str, draw), "--t5", str(moved)]) == 0


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(fails, tmp_path, device):
    assert device in fails(
        "train",
        "tokenizer",
        "--preset",
        "tiny",
        "--data",
        "shapes",
        "--out",
        tmp_path / "out",
        "--device",
        device,
    )
    assert device in fails(
        "generate",
        "a red circle",
        "--model",
        "toy-shapes",
        "-o",
        tmp_path / "x.png",
        "--device",
        device,
    )
    assert device in fails(
        "evaluate", "--model", "toy-shapes", "--out", tmp_path / "out", "--device", device
    )
    assert not (tmp_path / "out").exists()


def test_train_a_folder_of_ones_own(tmp_path):
    pictures, out = folder(tmp_path / "mine", n=10), tmp_path / "out"
    assert (
        main(["train", "all", "--preset", "tiny", "--data", str(pictures), "--out", str(out)]) == 0
    )
    assert (
        main(["generate", "a square number 3", "--model", str(out), "-o", str(tmp_path / "x.png")])
        == 0
    )
    before = load_file(out / "base.safetensors")
    assert main(["train", "all", "--out", str(out), "--resume"]) == 0  # all there: nothing to do
    after = load_file(out / "base.safetensors")
    assert all(bool((before[k] == after[k]).all()) for k in before)


@pytest.mark.parametrize(
    "argv, names",
    [
        (["all", "--preset", "huge"], "huge"),
        (["all", "base.depth=3"], "base.depth"),
        (["all", "base.width"], "base.width"),
        (["all", "base.width=wide"], "base.width=wide"),
        (["all", "stages.base.steps=0"], "steps 0"),
        (["all", "stages.base.batch=-4"], "batch -4"),
        (["all", "scenes=0"], "scenes is 0"),
        (["some"], "some"),
        (["base"], "minimuse train tokenizer"),
        (["all", "--t5", "no-such-text-encoder"], "no-such-text-encoder"),
    ],
)
def test_train_refuses(fails, tmp_path, argv, names):
    argv = argv if "--preset" in argv else [argv[0], "--preset", "tiny", *argv[1:]]
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
    assert "file" in fails(
        "train", "all", "--preset", "tiny", "--data", "shapes", "--out", tmp_path / "file" / "out"
    )


def test_a_model_is_trained_further_on_other_pictures(tiny_model, tmp_path, fails):
    """--start: its tokenizers stay, bit for bit; the other parts begin with its weights, and then move."""
    pictures, out = folder(tmp_path / "mine", n=10), tmp_path / "out"
    few = [
        "stages.base.steps=1",
        "stages.superres.steps=1",
        "stages.decoder.steps=1",
        "stages.base.lr=1e-9",
        "stages.base.muon_lr=1e-9",
    ]
    assert (
        main(
            [
                "train",
                "all",
                "--start",
                str(tiny_model),
                "--data",
                str(pictures),
                "--out",
                str(out),
                *few,
            ]
        )
        == 0
    )
    parts = {
        name: (
            load_file(tiny_model / f"{name}.safetensors"),
            load_file(out / f"{name}.safetensors"),
        )
        for name in PARTS
    }
    for name, (was, now) in parts.items():
        moved = max(float((was[k] - now[k]).abs().max()) for k in was)
        assert (
            moved == 0
            if name.startswith("tokenizer")
            else 0 < moved < (1e-6 if name == "base" else 0.1)
        ), (name, moved)
    about = json.loads((out / "config.json").read_text())
    assert about["config"]["base"]["width"] == 32 and about["data"] == str(
        pictures
    )  # of the model, and of what was asked for
    assert (
        main(["generate", "a square number 3", "--model", str(out), "-o", str(tmp_path / "x.png")])
        == 0
    )
    alone = tmp_path / "alone"
    assert (
        main(
            [
                "train",
                "base",
                "--start",
                str(tiny_model),
                "--data",
                str(pictures),
                "--out",
                str(alone),
                *few,
            ]
        )
        == 0
    )
    assert (alone / "superres.safetensors").read_bytes() == (
        tiny_model / "superres.safetensors"
    ).read_bytes()  # and the others, so that it draws
    assert (alone / "base.safetensors").read_bytes() == (out / "base.safetensors").read_bytes()
    assert (
        main(
            ["generate", "a square number 3", "--model", str(alone), "-o", str(tmp_path / "x.png")]
        )
        == 0
    )
    assert "--resume" in fails(
        "train", "base", "--start", tiny_model, "--out", out
    )  # nothing is overwritten
    assert "no model" in fails(
        "train", "base", "--start", tmp_path / "none", "--out", tmp_path / "new"
    )
    (alone / "superres.safetensors").unlink()
    assert (
        main(["train", "superres", "--start", str(tiny_model), "--out", str(alone), "--resume"])
        == 0
    )  # a second stage, further as well
    again = load_file(
        alone / "superres.safetensors"
    )  # of as many threads as there are, and so not in all digits as in `all`
    assert max(float((again[k] - v).abs().max()) for k, v in parts["superres"][1].items()) < 1e-3
    (alone / "base.safetensors").unlink()
    assert "--resume" in fails(
        "train", "base", "--start", tiny_model, "--out", alone
    )  # and not trained from nothing either
    assert "keeps the tokenizers" in fails(
        "train", "tokenizer", "--start", tiny_model, "--out", tmp_path / "new"
    )
    assert (
        "no base" in fails("train", "base", "--start", alone, "--out", tmp_path / "new")
        and not (tmp_path / "new").exists()
    )
    shutil.copytree(
        alone, tmp_path / "left", ignore=shutil.ignore_patterns("config.json")
    )  # of a try that came to nothing
    assert "--resume" in fails(
        "train", "superres", "--start", tiny_model, "--out", tmp_path / "left"
    )
    (alone / "superres.safetensors").unlink()  # nobody needs it
    shutil.copy(tiny_model / "base.safetensors", alone)
    assert (
        main(["train", "base", "--start", str(alone), "--out", str(tmp_path / "new"), few[0]]) == 0
    )


def test_settings_that_do_not_go_together_are_told_before_anything_is_trained(fails, tmp_path):
    for setting, word in (
        ("superres.window=3", "window"),
        ("superres.piece=3", "pieces"),
        ("decoder_channels=12", "decoder_channels"),
        ("tokenizer_hi.multipliers=1,1,1,1", "multipliers"),
    ):
        assert word in fails(
            "train",
            "all",
            "--preset",
            "tiny",
            "--data",
            "shapes",
            "--out",
            tmp_path / "out",
            setting,
        )
    coarse = [
        f"tokenizer_hi.{name}={value}"
        for name, value in (("multipliers", "1,1,1,1,1"), ("blocks", "0,0,0,0,0"))
    ]
    assert "grid" in fails(
        "train", "all", "--preset", "tiny", "--data", "shapes", "--out", tmp_path / "out", *coarse
    )
    assert not (tmp_path / "out").exists()


def test_training_goes_on_where_the_text_encoder_has_moved(fails, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(ASSETS / "t5-toy", here)
    train = lambda stage, *more: ["train", stage, "--out", str(tmp_path / "out"), *more]
    few = [
        "--preset",
        "tiny",
        "--data",
        "shapes",
        "scenes=12",
        "stages.tokenizer.steps=1",
        "stages.tokenizer_hi.steps=1",
    ]
    assert main(train("tokenizer", "--t5", str(here), *few)) == 0
    here.rename(there)
    assert "--t5" in fails(*train("tokenizer-hi"))
    assert main(train("tokenizer-hi", "--t5", str(there))) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["text"]["name"] == str(there)


def test_a_run_in_the_way_is_not_overwritten(fails, tiny_model, tmp_path):
    out = tmp_path / "model"
    shutil.copytree(tiny_model, out)
    assert "--resume" in fails("train", "all", "--out", out)
    assert "other settings" in fails(
        "train", "all", "--out", out, "--preset", "tiny", "--resume", "base.layers=3"
    )
    assert "other settings" in fails("train", "all", "--out", out, "--seed", "5", "--resume")


def test_check(capsys):
    """0: all hold, 1: some do not, 2: no such lesson."""
    assert main(["check", "00", "--package"]) == 0
    assert main(["check", "99"]) == 2
    assert "'99'" in capsys.readouterr().err


def test_notebooks(tmp_path):
    jupytext = pytest.importorskip("jupytext", reason="of the lessons extra")
    assert main(["notebooks", str(tmp_path / "new")]) == 0
    lessons = sorted(Path("lessons").glob("[0-9]*.md"))
    written = sorted((tmp_path / "new").glob("*.ipynb"))
    assert [p.stem for p in written] == [p.stem for p in lessons] and len(written) >= 10
    for lesson, notebook in zip(lessons, written):
        cells = jupytext.read(notebook).cells
        assert sum(cell.cell_type == "code" for cell in cells) == lesson.read_text().count(
            "```python\n"
        )
        for cell in cells:  # what the text shows lies beside the notebook
            for figure in re.findall(r"\]\((figures/[^)]+)\)", cell.source):
                assert (tmp_path / "new" / figure).is_file(), figure
