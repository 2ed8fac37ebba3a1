"""What a message advises works: each test reads the remedy in a message, and follows it.

`pytest tests/test_remedies.py`. Remedies of several processes are in test_parallel.py, those of
damaged checkpoints in test_faults.py, those of data sets in test_malformed.py.
"""

import contextlib
import io
import re
import shlex
import shutil
from importlib.metadata import metadata

import pytest
from PIL import Image

from minimuse.cli import main
from minimuse.plumbing.parts import PARTS

FEW_STEPS = [f"stages.{part}.steps=1" for part in PARTS] + ["scenes=12"]
TINY = ["--preset", "tiny", "--data", "shapes"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test in a folder of its own, with a picture."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), (200, 40, 40)).save("p.png")


@pytest.fixture
def model(tiny_model, tmp_path):
    """A model in a folder whose name needs quotes."""
    return shutil.copytree(tiny_model, tmp_path / "my model")


def run(*argv):
    """The exit code, and what stands on stderr."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
    return code, stderr.getvalue()


def refused(*argv):
    """The message of a command that must fail."""
    code, stderr = run(*argv)
    assert code == 2, stderr
    return stderr.splitlines()[-1]


def works(*argv):
    code, stderr = run(*argv)
    assert code == 0, stderr


def command_in(message):
    """The words of the command that a message names."""
    return shlex.split(re.search(r"minimuse (train .*)", message)[1])


def test_a_part_is_missing(model):
    (model / "base.safetensors").unlink()
    draw = ["generate", "x", "--model", model]
    works(*command_in(refused(*draw)))
    works(*draw)


@pytest.mark.parametrize(
    "stage, part", [("base", "tokenizer"), ("decoder", "tokenizer-hi"), ("superres", "tokenizer")]
)
def test_a_stage_needs_another(stage, part):
    """The remedy keeps the preset, the data and the settings."""
    rest = ["--out", "run", *TINY, *FEW_STEPS]
    message = refused("train", stage, *rest)
    assert f"the same command with {part} in place of {stage}" in message
    works("train", part, *rest)
    if stage == "superres":
        assert "with tokenizer-hi in place of superres" in refused("train", stage, *rest)
        works("train", "tokenizer-hi", *rest)
    works("train", stage, *rest)


def test_a_run_in_the_way():
    train = ["train", "tokenizer", *TINY, *FEW_STEPS, "--out"]
    works(*train, "run")
    message = refused(*train, "run")
    assert "add --resume" in message and "another --out" in message
    works(*train, "run", "--resume")
    works(*train, "other")


def test_other_settings(model):
    message = refused("train", "base", "--out", model, "--resume", "base.layers=3")
    assert "give the same" in message and "another --out" in message
    works("train", "base", "--out", model, "--resume", "base.layers=2")


def test_a_model_to_start_from_is_in_the_way(model):
    start = ["train", "base", "--start", model, "--data", "shapes", *FEW_STEPS, "--out"]
    works(*start, "new")
    message = refused(*start, "new")
    assert "add --resume" in message and "another --out" in message
    works(*start, "new", "--resume")
    works(*start, "newer")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "setting", ["sampling.steps=3", "sampling_hi.guidance=0", "scale.micro_batch=2"]
)
def test_how_images_are_drawn_may_change(model, setting, finished):
    """It decides on no weights, so a run goes on with it, and a finished model takes it."""
    if not finished:
        (model / "base.safetensors").unlink()
    works("train", "base", "--out", model, "--resume", setting)
    key, value = setting.split("=")
    group, name = key.split(".")
    about = (model / "config.json").read_text()
    assert re.search(rf'"{group}": {{[^}}]*"{name}": {float(value):g}(\.0)?\b', about), about
    works("generate", "x", "--model", model)


def test_a_text_encoder_that_has_moved(model):
    from minimuse.data import ASSETS

    shutil.copytree(ASSETS / "t5-toy", "moved")
    text = (model / "config.json").read_text().replace('"t5-toy"', '"nowhere"')
    (model / "config.json").write_text(text)
    draw = ["generate", "x", "--model", model]
    assert "--t5" in refused(*draw)
    works(*draw, "--t5", "moved")


@pytest.mark.parametrize(
    "settings, remedy",
    [
        (["tokenizer.side=8", "tokenizer_hi.side=16"], r"loss.adversarial=0"),
        (["scenes=10000000"], None),
        (["stages.base.batch=65536", "base.width=512"], None),
        (["stages.base.batch=65536", "scale.micro_batch=60000", "base.width=512"], None),
    ],
)
def test_settings_that_do_not_fit(monkeypatch, settings, remedy):
    monkeypatch.setattr("minimuse.runs.rehearsal.memory_of", lambda device: 4e9)
    rest = ["--out", "run", *TINY, *FEW_STEPS]
    stage = "tokenizer" if settings[0].startswith(("tokenizer", "scenes")) else "base"
    message = refused("train", stage, *rest, *settings)
    if remedy is not None:
        assert remedy in message
        works("train", stage, *rest, *settings, remedy)
        return
    key = re.search(r"(\S+) is \d", message)[1]
    fits = int(re.search(r"at most (\d+)", message)[1])
    # The next check is whether the tokenizers are there.
    assert "needs" in refused("train", "base", *rest, *settings, f"{key}={fits}")
    assert f"{key} is {fits + 1}" in refused("train", "base", *rest, *settings, f"{key}={fits + 1}")


@pytest.mark.parametrize(
    "argv, told, fixed",
    [
        (["--grid", "steps=1", "steps=2"], "after one =", ["--grid", "steps=1,2"]),
        (["--device", "gpu"], "say auto, cpu", ["--device", "cpu"]),
        (["--sampler", "best"], "choose one of", ["--sampler", "halton"]),
        (["--law", "circle"], "choose one of", ["--law", "linear"]),
        (["--guided", "1,0"], "smaller fraction first", ["--guided", "0,1"]),
        (["-o", "x.txt"], "write a .png", ["-o", "x.png"]),
        (["--seed", str(2**64)], "to 2^64 - 1", ["--seed", str(2**64 - 1)]),
        (["--n", "0"], "from 1", ["--n", "1"]),
        (["--steps", "10001"], "to 10000", ["--steps", "10000"]),
    ],
)
def test_flags(model, argv, told, fixed):
    draw = ["generate", "x", "--model", model]
    assert told in refused(*draw, *argv)
    works(*draw, *fixed)


@pytest.mark.parametrize(
    "prompt, told, fixed",
    [
        ("a red circle:0.5", r"\:", r"a red circle\:0.5"),
        ("a: 0.5 AND b", r"\:", r"a\: 0.5 AND b"),
        ("a: 0.5 AND b", ":0.5", "a:0.5 AND b"),
        ("a AND", r"\AND", r"a \AND"),
        ("a AND b:1000", "to 100", "a AND b:100"),
    ],
)
def test_prompts(model, prompt, told, fixed):
    _, stderr = run("generate", prompt, "--model", model)
    assert told in stderr
    code, stderr = run("generate", fixed, "--model", model)
    # All that is still said is which words are unknown, such as "b".
    assert code == 0 and stderr.count("\n") == stderr.count("may not know") == 1


def test_an_unknown_word():
    draw = ["--model", "toy", "--steps", "1"]
    _, stderr = run("generate", "a hamburgr, noto style", *draw)
    (near,) = re.findall(r"near words are (\w+)", stderr)
    _, stderr_of_near = run("generate", f"a {near}, noto style", *draw)
    assert "may not know" in stderr and "may not know" not in stderr_of_near
    (command,) = re.findall(r"minimuse (describe .*) lists all", stderr)
    works(*shlex.split(command))


def test_a_large_image(model):
    Image.new("RGB", (200, 32)).save("wide.png")
    Image.new("L", (200, 32)).save("mask.png")
    inpaint = ["inpaint", "wide.png", "mask.png", "x", "--model", model]
    assert "--tile" in refused(*inpaint)
    works(*inpaint, "--tile")


@pytest.mark.parametrize("extra", ["test", "lessons", "eval"])
def test_the_extras_that_messages_name_exist(extra):
    """`pip install 'minimuse[EXTRA]'` needs nothing else."""
    assert extra in metadata("minimuse").get_all("Provides-Extra")
