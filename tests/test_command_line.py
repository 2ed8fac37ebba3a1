"""Command lines drawn at random, right and wrong: `pytest tests/test_command_line.py`.

Each ends with exit code 0, or with 2 and one line (1 is `check`'s alone), and leaves no file that
is half-written. 30 command lines by default, 2,000 with HYPOTHESIS_PROFILE=explore.
"""

import contextlib
import io
import json
import os
import shutil
import warnings

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from test_config import leaves

from minimuse.cli import main
from minimuse.cli.recipe import with_recipe
from minimuse.plumbing.config import PRESETS
from minimuse.runs.stages import STAGES, train_all

EXAMPLES = 2000 if os.environ.get("HYPOTHESIS_PROFILE") == "explore" else 30
TINY = PRESETS["tiny"]
FEW_STEPS = [f"stages.{stage}.steps=1" for stage in STAGES] + ["scenes=4"]

# --- Values ---
STRANGE = ["0", "-1", "nan", "inf", "-inf", "1e999", "9" * 30, "9" * 5000, "x", "", " ", "1.5"]
STRANGE += ["True", "None", "()", "1,", "0x10", "1_0", "٣", "½", "\udcff", "'", "[" * 200, "1j"]
strange = st.sampled_from(STRANGE) | st.text(max_size=5)


def usually(*right):
    """One of the right values, or in one case of four a strange one."""
    return st.integers(0, 3).flatmap(lambda i: strange if i == 0 else st.sampled_from(right))


prompts = st.text(max_size=30) | st.sampled_from(
    [
        "a red circle",
        "a AND b:0.5",
        "a:2 AND b:-.5",
        "a: 0.5 AND",
        "12:30",
        "",
        " ",
        "a\udcff",
        "\0",
    ]
)
outputs = st.sampled_from(
    ["out.png", "out.JPG", "out.webp", "out.gif", "ü.png", "new/out.png", "out", "out.txt", ".png"]
    + [
        "p.png",
        "m.png",
        "./p.png",
        "folder",
        "folder/x.png",
        "",
        ".",
        "x" * 300 + ".png",
        "a\0.png",
    ]
    + ["model/config.json", "text.txt/out.png", "-out.png", "/proc/out.png"]
)
inputs = st.sampled_from(
    ["p.png", "p.png", "m.png", "wide.png", "tall.jpg", "grey.png", "deep.png", "broken.png"]
    + ["text.txt", "folder", "none.png", "", "\0", "empty.png"]
)
models = st.sampled_from(["model"] * 8 + ["none", "", "folder", "p.png", "\0", "half-model"])

SAMPLING = {
    "--steps": usually("1", "2", "5", "100000"),
    "--guidance": usually("0", "1", "3.5", "1e30"),
    "--guided": usually("0,1", "0.5,1", "1,0", "0.5"),
    "--temperature": usually("0", "0.7", "2"),
    "--top-k": usually("0", "3", "100000"),
    "--sampler": usually("confidence", "halton", "random", "entropy"),
    "--choice-temperature": usually("0", "4.5"),
    "--entropy-bound": usually("0", "0.5"),
    "--law": usually("cosine", "linear"),
    "--ramp": None,
    "--no-ramp": None,
}
DRAWING = SAMPLING | {
    "--n": usually("1", "2", "3", "1000000"),
    "--seed": usually("0", "7", "-3", str(2**64 - 1), str(2**64)),
    "--negative": prompts,
    "--device": usually("cpu", "cuda:7", "meta"),
    "--t5": usually("t5-toy", "folder"),
    "-o": outputs,
}
AXES = st.sampled_from(
    ["steps=1,2", "guidance=0,2", "guided=0:1,0.5:1", "guided=0,1", "ramp=True,False", "steps=1,1"]
    + ["top_k=x", "steps", "=1", "size=3", "law=cosine,linear", "n=1", "steps=" + "1," * 2000 + "1"]
)


@st.composite
def flags(draw, table, most=4):
    """Some of the flags of a table, with values."""
    words = []
    for name in draw(st.lists(st.sampled_from(sorted(table)), max_size=most)):
        words.append(name)
        if table[name] is not None:
            words.append(draw(table[name]))
    return words


@st.composite
def drawing(draw):
    command = draw(st.sampled_from(["generate", "inpaint", "outpaint", "edit"]))
    words = [command]
    table = dict(DRAWING)
    if command == "generate":
        table["--gif"] = outputs
        table["--like"] = st.one_of(inputs, st.sampled_from(["drawn.png", "drawn.jpg"]))
    else:
        words.append(draw(inputs))
        table["--sheet"] = outputs
    if command == "inpaint":
        words.append(draw(inputs))
    if command in ("inpaint", "outpaint"):
        table |= {"--keep-pixels": None, "--tile": None}
    if command == "outpaint":
        words += ["--pad", draw(usually("8", "0", "4,0,8,0", "1,2", "40", "100000", "-8", "1e3"))]
    if command == "edit":
        table |= {"--iterations": usually("0", "2", "10000000"), "--share": usually("0.1", "1")}
    if command != "generate" or draw(st.integers(0, 3)) > 0:
        words.append(draw(prompts))
    words += ["--model", draw(models), *draw(flags(table))]
    if command == "generate" and draw(st.integers(0, 3)) == 0:
        words += ["--grid", *draw(st.lists(AXES, max_size=3))]
    return words


KEYS = dict(leaves(TINY))


@st.composite
def assignments(draw):
    """key=value: the value in the preset, or another."""
    key = draw(st.sampled_from(sorted(KEYS)))
    same = str(KEYS[key])
    value = draw(
        st.sampled_from([same, "1", "2", "0.5", "(1, 1, 1)", *STRANGE]) | st.text(max_size=4)
    )
    return f"{key}={value}"


@st.composite
def training(draw):
    stage = draw(
        st.sampled_from(["tokenizer", "tokenizer-hi", "base", "superres", "decoder", "all"])
    )
    if draw(st.integers(0, 9)) == 0:
        stage = draw(strange)
    words = [
        "train",
        stage,
        "--out",
        draw(st.sampled_from(["run", "run/x", "model", "p.png", "half"])),
    ]
    table = {
        "--preset": usually("tiny"),
        "--data": usually("shapes", "folder", "folder/", "none", "emoji", "empty-folder"),
        "--t5": usually("t5-toy", "folder"),
        "--seed": usually("0", "-3", str(2**64)),
        "--device": usually("cpu", "cuda:7"),
        "--resume": None,
        "--start": models,
    }
    words += draw(flags(table))
    if "--preset" not in words and "--start" not in words:
        words += ["--preset", "tiny"]
    if "--data" not in words:
        words += ["--data", "shapes"]
    return [*words, *FEW_STEPS, *draw(st.lists(assignments(), max_size=2))]


@st.composite
def other(draw):
    command = draw(
        st.sampled_from(
            ["evaluate", "cache", "curves", "describe", "notebooks", "check", "demo", ""]
        )
    )
    words = [command]
    if command == "evaluate":
        words += [
            "--model",
            draw(models),
            "--out",
            draw(st.sampled_from(["new", "p.png", "model"])),
        ]
        words += draw(flags({"--n": usually("2", "3", "100000000"), "--json": None}))
    if command == "cache":
        words += ["--out", draw(st.sampled_from(["model", "half-model", "new", "p.png"]))]
    if command == "curves":
        words += [
            draw(st.sampled_from(["model", "new", "p.png"])),
            *draw(flags({"--out": outputs})),
        ]
    if command == "describe":
        words += [draw(usually("tiny", "toy")), *draw(flags({"--t5": models, "--json": None}))]
    if command == "notebooks":
        words += ["text.txt/x"]
    if command == "check":
        words += [draw(strange)]
    if command == "demo":  # refused in any case: a whole demo takes long
        words += ["--preset", "tiny", "--out", draw(st.sampled_from(["model", "p.png"]))]
        words += draw(flags({"--seed": usually("0", str(2**64))}))
    return words + draw(
        st.lists(st.sampled_from(["--help", "--version", "-x", "--seed", ""]), max_size=1)
    )


command_lines = drawing() | drawing() | training() | other()


# --- The world ---
@pytest.fixture(scope="module")
def world(tiny_model, tmp_path_factory):
    """A folder with all that the command lines name."""
    root = tmp_path_factory.mktemp("world")
    Image.new("RGB", (32, 32), (200, 40, 40)).save(root / "p.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    mask.save(root / "m.png")
    Image.new("RGB", (50, 20)).save(root / "wide.png")
    recipe = {"command": "generate", "prompt": "a red circle", "negative": "", "seed": 3}
    recipe |= {"model": "model", "settings": {"steps": 2, "guided": [0.0, 0.5], "ramp": False}}
    for name in ("drawn.png", "drawn.jpg"):
        options = with_recipe(root / name, recipe)
        Image.new("RGB", (32, 32), (9, 90, 90)).save(root / name, **options)
    Image.new("RGB", (9, 140)).save(root / "tall.jpg")
    Image.new("L", (5, 7), 90).save(root / "grey.png")
    Image.new("I;16", (8, 8)).save(root / "deep.png")
    (root / "broken.png").write_bytes((root / "p.png").read_bytes()[:50])
    (root / "empty.png").touch()
    (root / "text.txt").write_text("a text")
    (root / "empty-folder").mkdir()
    (root / "folder").mkdir()
    for i in range(10):
        Image.new("RGB", (40, 32), (20 * i, 30, 90)).save(root / "folder" / f"{i}.png")
        (root / "folder" / f"{i}.txt").write_text(f"a square number {i}")
    shutil.copytree(tiny_model, root / "model")
    shutil.copytree(tiny_model, root / "half-model")
    (root / "half-model" / "superres.safetensors").unlink()
    return root


def train_here(job):
    """What `side_by_side` does, in this process."""
    from minimuse.plumbing.t5_files import load_t5

    out, config, data, text, seed, resume, _ = job
    for _ in train_all(STAGES, out, config, data, load_t5(text), text, seed, "cpu", resume):
        pass


def run(argv):
    """The exit code, and what was written on stdout and stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
    return code, stdout.getvalue(), stderr.getvalue()


def snapshot(root):
    """Size and time of every file."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file():
            stat = path.stat()
            found[path] = (stat.st_size, stat.st_mtime_ns)
    return found


def check_whole(path):
    """No file is a temporary one, and each can be read."""
    assert ".tmp" not in str(path), path
    if path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix.lower() in (".png", ".jpg", ".webp", ".gif"):
        with Image.open(path) as image:
            image.load()


def lines_of(stderr):
    """Lines that are no progress bar; a bar begins at the start of its line, after a return."""
    lines = []
    for line in stderr.replace("\r", "\n").splitlines():
        is_bar = "it/s" in line or "%|" in line or "?it" in line or "s/it" in line
        if line.strip() and not is_bar:
            lines.append(line)
    return lines


@given(command_lines)
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(["generate", "a", "--model", "model", "--grid", "guided=0:1,0.5:1", "steps=1,2"])
@example(["edit", "p.png", "a", "--model", "model", "--n", "2", "--sheet", "out.webp"])
@example(["train", "all", "--out", "run", "--preset", "tiny", "--data", "folder", *FEW_STEPS])
def test_any_command_line(world, tmp_path_factory, monkeypatch, argv):
    root = tmp_path_factory.mktemp("run") / "world"
    shutil.copytree(world, root)
    try:
        with monkeypatch.context() as patch:
            patch.chdir(root)
            patch.setattr("minimuse.cli.train.side_by_side", train_here)
            patch.setattr(warnings, "showwarning", warnings.showwarning)  # restored afterwards
            before = snapshot(root)
            code, stdout, stderr = run(argv)
        check_end(argv, code, stdout, stderr)
        check_files(argv, code, stdout, before, root)
    finally:
        shutil.rmtree(root.parent)


def check_end(argv, code, stdout, stderr):
    """Exit code 0, or 2 and one line, or 1 of `check`."""
    assert code in (0, 2) or (argv[0] == "check" and code == 1), (code, stderr)
    assert "Traceback" not in stderr
    if code == 2:
        # Warnings may come before the one line that says what is wrong.
        lines = lines_of(stderr)
        assert lines and all(line.startswith("minimuse: ") for line in lines), lines
        assert len(lines[-1]) < 1500 and lines[-1].isprintable(), lines[-1]


def check_files(argv, code, stdout, before, root):
    """What was written is whole; a command that fails writes nothing, but a training its parts."""
    after = snapshot(root)
    changed = [path for path in after if after[path] != before.get(path)]
    for path in changed:
        check_whole(path)
    assert set(before) <= set(after)
    if code == 2:
        assert argv[0] == "train" or not changed, changed
    if argv[0] in ("generate", "inpaint", "outpaint", "edit") and code == 0:
        check_printed(stdout, changed, root)


def check_printed(stdout, changed, root):
    """A command that draws prints the names of the files that it wrote, or help, or versions."""
    if "usage:" in stdout or "PyTorch" in stdout:
        return
    for path in stdout.splitlines():
        assert root / path in changed, path
