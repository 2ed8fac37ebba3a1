"""Stages in processes of their own: who may start them, who ends them, and two runs at once.

pytest tests/test_workers.py
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimuse.cli import main
from minimuse.plumbing import config as configs
from minimuse.plumbing import t5_files
from minimuse.plumbing.t5_files import LazyT5, load_t5
from minimuse.runs import cache, workers
from minimuse.runs.stages import STAGES, fill_cache, train_all
from minimuse.runs.worker import STOP, as_plain_error

SETTINGS = ["scenes=12"]
for _stage in STAGES:
    SETTINGS += [f"stages.{_stage}.steps=1", f"stages.{_stage}.batch=4"]
CONFIG = configs.override(configs.PRESETS["tiny"], SETTINGS)
TRAIN = ["--preset", "tiny", "--data", "shapes", *SETTINGS]


def run(*argv):
    return main([str(argument) for argument in argv])


def start(*arguments, threads="2"):
    return subprocess.Popen(
        [sys.executable, "-m", "minimuse", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": threads},
    )


def last_line(errors):
    return errors.replace("\r", "\n").strip().split("\n")[-1]


# Who may start them

SCRIPT = """
import os
from pathlib import Path
from minimuse.cli.progress import show_progress
from minimuse.plumbing import config
from minimuse.runs.workers import TrainingJob, side_by_side

with open("runs.txt", "a") as file:
    file.write("the script runs\\n")
settings = {settings}
config = config.override(config.PRESETS["tiny"], settings)
side_by_side(TrainingJob(Path("out"), config, "shapes", "t5-toy", 0, False, show_progress))
"""


def test_a_script_without_a_guard(tmp_path):
    """It is run once, and not again in every process that it starts."""
    (tmp_path / "script.py").write_text(SCRIPT.format(settings=SETTINGS))
    # A file that a process must not take for a module of Python's.
    (tmp_path / "random.py").write_text("raise ImportError('the wrong module')")
    command = [sys.executable, "-P", "script.py"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "runs.txt").read_text().count("runs") == 1
    assert all((tmp_path / "out" / f"{stage}.safetensors").is_file() for stage in STAGES)


def show_nothing(records, row):
    for _ in records:
        pass


def test_in_a_thread_under_an_event_loop_beside_other_children(tmp_path, monkeypatch):
    """As in a notebook; what the caller has started goes on, also when a stage fails."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    bad_settings = ["stages.base.lr=100", "stages.base.steps=40", "stages.base.muon_lr=0"]
    bad = configs.override(CONFIG, bad_settings)
    errors = []

    def work():
        try:
            workers.side_by_side(
                workers.TrainingJob(
                    tmp_path / "bad", bad, "shapes", "t5-toy", 0, False, show_nothing
                )
            )
        except ValueError as error:
            errors.append(error)

    async def inside():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    try:
        asyncio.run(inside())
        assert len(errors) == 1 and "stages.base" in str(errors[0])
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert handlers == {number: signal.getsignal(number) for number in handlers}
    assert mask == signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_show_of_the_script_itself_is_refused(tmp_path):
    def show(records, row):
        pass

    show.__module__ = "__main__"
    with pytest.raises(ValueError, match="put it into a module"):
        workers.side_by_side(
            workers.TrainingJob(tmp_path / "out", CONFIG, "shapes", "t5-toy", 0, False, show)
        )
    assert not list(tmp_path.iterdir())


# Who ends them


@pytest.fixture
def process():
    """A worker process that has nothing to do yet."""
    process = workers.start_process()
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("after", [0.0, 0.05, 0.3, 3.0])
def test_a_process_ends_when_its_parent_has_gone(process, after):
    time.sleep(after)
    process.stdin.close()
    process.wait(5)


@pytest.mark.parametrize("after", [0.0, 0.05, 0.3, 3.0])
def test_a_process_ends_when_it_is_told_to(process, after):
    time.sleep(after)
    workers.send(process, STOP)
    process.wait(5)


@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.1, 0.3])
def test_a_process_does_not_hear_ctrl_c(process, after):
    """From its first moment on: the parent tells it."""
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)


class Strange(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    "error", [Strange("one", "two"), ValueError(lambda: 0), UnicodeDecodeError("a", b"", 0, 1, "b")]
)
def test_an_error_reaches_the_parent(error):
    assert str(error) in str(as_plain_error(error))


# Which of them needs the text encoder


def test_only_stages_that_embed_captions_load_the_text_encoder(tmp_path, monkeypatch):
    """T5-XXL takes 11 GB in each process that loads it."""
    loaded_for = []
    load = t5_files.load_t5

    def recording_load(name, device="cpu", dtype=None):
        if str(device) != "meta":
            loaded_for.append(stage)
        return load(name, device, dtype)

    monkeypatch.setattr(t5_files, "load_t5", recording_load)
    for stage in STAGES:
        text = LazyT5("t5-toy")
        list(train_all((stage,), tmp_path, CONFIG, "shapes", text, "t5-toy"))
    assert loaded_for == ["base", "superres"]
    (tmp_path / "base.safetensors").unlink()
    list(fill_cache(tmp_path, "cpu"))
    loaded_for.clear()
    stage = "base, with a cache"
    list(train_all(("base",), tmp_path, CONFIG, "shapes", LazyT5("t5-toy"), "t5-toy"))
    assert not loaded_for


def test_a_lazy_encoder_is_the_encoder():
    lazy, whole = LazyT5("t5-toy"), load_t5("t5-toy")
    assert (lazy.width, lazy.fingerprint) == (whole.width, whole.fingerprint)
    for ours, theirs in zip(lazy(["a red apple", ""]), whole(["a red apple", ""]), strict=True):
        assert torch.equal(ours, theirs)


def test_a_damaged_encoder_is_known_before_the_first_stage(tmp_path, fails):
    for name in ("config.json", "spiece.model", "model.safetensors"):
        data = (t5_files.find_t5("t5-toy") / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-1] if name == "model.safetensors" else data)
    out = tmp_path / "out"
    assert "model.safetensors" in fails("train", "all", "--t5", tmp_path, "--out", out, *TRAIN)
    assert not out.exists()


# Two at once


def two_at_once(gap, arguments):
    """Start a command twice; returns both exit codes, and what both said."""
    # Two threads of two busy processes would wait for each other.
    threads = "2" if "all" in arguments else "1"
    first = start(*arguments, threads=threads)
    time.sleep(gap)
    second = start(*arguments, threads=threads)
    said = [process.communicate(timeout=120)[1] for process in (first, second)]
    return [first.returncode, second.returncode], said


def check_tidy(out):
    """Every file of weights can be read, and nothing else is left."""
    for path in out.glob("*.safetensors"):
        load_file(path)
    assert not [path for path in out.iterdir() if path.suffix in (".tmp", ".lock")]


@pytest.mark.parametrize("gap", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", [pytest.param("all", marks=pytest.mark.slow), "tokenizer"])
def test_of_two_at_once_one_wins(stage, gap, tmp_path):
    out = tmp_path / "out"
    steps = "stages.tokenizer.steps=60"
    codes, said = two_at_once(gap, ["train", stage, *TRAIN, steps, "--out", out])
    assert sorted(codes) == [0, 2], said
    loser = said[codes.index(2)]
    assert last_line(loser).startswith("minimuse: ") and "Traceback" not in loser
    assert "wait for it" in loser or "--resume" in loser
    check_tidy(out)


def test_two_caches_at_once(tmp_path):
    out = tmp_path / "out"
    for stage in ("tokenizer", "tokenizer-hi"):
        assert run("train", stage, "--out", out, *TRAIN) == 0
    codes, said = two_at_once(0.0, ["cache", "--out", out])
    assert set(codes) <= {0, 2} and 0 in codes, said  # it is quick: they may not meet
    assert cache.index_path(out).is_file()
    check_tidy(out)


def test_the_cache_is_not_written_while_a_stage_reads_it(tmp_path, fails):
    out = tmp_path / "out"
    for stage in ("tokenizer", "tokenizer-hi"):
        assert run("train", stage, "--out", out, *TRAIN) == 0
    assert run("cache", "--out", out) == 0
    index = cache.index_path(out).read_bytes()
    loop = train_all(("base",), out, CONFIG, "shapes", LazyT5("t5-toy"), "t5-toy")
    next(loop)
    assert "still writes the base" in fails("cache", "--out", out)
    assert cache.index_path(out).read_bytes() == index
    loop.close()
    assert run("cache", "--out", out) == 0


@pytest.mark.parametrize("left", ["base.lock", "model.lock", "base.safetensors.7.8.tmp/half"])
def test_what_an_earlier_run_left_is_not_in_the_way(left, tmp_path):
    out = tmp_path / "out"
    (out / left).parent.mkdir(parents=True)
    (out / left).write_text("left")
    assert run("train", "all", "--out", out, *TRAIN) == 0
    assert not [path for path in out.iterdir() if path.suffix in (".tmp", ".lock")]


# A slip of the pen


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "all", "--resume"],
        ["train", "tokenizer", "--resume"],
        ["train", "base", "--resume", "--start", "toy"],
        ["train", "base", "--start", "tyo"],
        ["demo", "--preset", "tiny", "--resume"],
        ["cache"],
    ],
)
def test_a_directory_that_is_not_there(arguments, tmp_path, fails):
    """Nothing there to resume, to cache, or to start from: refused, and nothing is created."""
    out = tmp_path / "rnus" / "mine"
    line = fails(*arguments, "--out", out)
    assert "tyo" in line or str(out) in line
    assert not list(tmp_path.iterdir())


def test_following_the_remedy_works(tmp_path, fails):
    """Without --resume, it begins; and then --resume goes on."""
    out = tmp_path / "mine"
    train = ["train", "tokenizer", "--out", out, *TRAIN]
    assert "leave --resume out" in fails(*train, "--resume")
    assert run(*train) == 0
    assert run(*train, "--resume") == 0
    assert json.loads((out / "config.json").read_text())["data"] == "shapes"
    assert Path(out / "tokenizer.safetensors").is_file()
