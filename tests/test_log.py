"""The log of a training: what is appended is read, whatever was stopped, killed or repeated.

pytest tests/test_log.py
"""

import importlib.util
import json
import os
import resource
import signal
import sys
from multiprocessing import get_context
from types import ModuleType, SimpleNamespace

import pytest
import torch

from minimuse.plumbing import config as configs
from minimuse.plumbing.files import append_line
from minimuse.plumbing.t5_files import LazyT5
from minimuse.runs.directory import log_path
from minimuse.runs.log import (
    LINES,
    TrainingLog,
    finite_numbers,
    has_tensorboard,
    is_moment,
    read_log,
)
from minimuse.runs.stages import STAGES, train_all
from minimuse.runs.watch import LOOKS
from minimuse.train import Record


def add(out, stage, step, **others):
    line = {"stage": stage, "step": step, "steps": 9, "seconds": float(step)} | others
    append_line(log_path(out), json.dumps(line))


def steps_of(out, stage):
    return [line["step"] for line in read_log(out)[stage]]


# --- Which steps ---
@pytest.mark.parametrize("steps", [1, 2, 9, 10, 99, 100, 101, 250, 2300, 1_500_000])
def test_moments_are_evenly_spaced_and_the_last_step_is_one(steps):
    moments = [step for step in range(1, steps + 1) if is_moment(step, steps, LINES)]
    assert len(moments) == min(steps, LINES) and moments[-1] == steps
    gaps = {b - a for a, b in zip([0, *moments], moments, strict=False)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("steps", [7, 25, 100, 2300, 3333])
def test_every_look_has_a_line(steps):
    for step in range(1, steps + 1):
        if is_moment(step, steps, LOOKS):
            assert is_moment(step, steps, LINES)


# --- What a reader gets ---
def test_a_repeated_step_replaces_the_earlier_lines_from_it_on(tmp_path):
    for step in (1, 2, 3, 4, 5):
        add(tmp_path, "base", step, run=1)
    add(tmp_path, "decoder", 9, run=1)
    add(tmp_path, "base", 3, run=2)  # resumed from a checkpoint of step 2
    assert [(line["step"], line["run"]) for line in read_log(tmp_path)["base"]] == [
        (1, 1),
        (2, 1),
        (3, 2),
    ]
    assert steps_of(tmp_path, "decoder") == [9]
    add(tmp_path, "base", 1, run=3)  # trained anew
    assert [line["run"] for line in read_log(tmp_path)["base"]] == [3]


@pytest.mark.parametrize("left", [b'{"stage": "base", "st', b"{", b"\xff\xfe", b'{"stage"'])
def test_half_a_line_is_left_out_and_ended(tmp_path, left):
    add(tmp_path, "base", 1)
    with open(log_path(tmp_path), "ab") as file:
        file.write(left)
    assert steps_of(tmp_path, "base") == [1]
    add(tmp_path, "base", 2)
    add(tmp_path, "base", 3)
    assert steps_of(tmp_path, "base") == [1, 2, 3]


@pytest.mark.parametrize(
    "line", ["", "[]", "3", "null", "{}", '{"stage": 1, "step": 2, "steps": 3, "seconds": 4}']
)
def test_what_is_no_line_is_left_out(tmp_path, line):
    append_line(log_path(tmp_path), line)
    add(tmp_path, "base", 1)
    assert steps_of(tmp_path, "base") == [1]


def test_a_killed_line_anywhere_in_the_file(tmp_path):
    """Cut after any byte: all lines before the cut are read, and the next one is."""
    for step in (1, 2):
        add(tmp_path, "base", step)
    whole = log_path(tmp_path).read_bytes()
    for length in range(len(whole) + 1):
        log_path(tmp_path).write_bytes(whole[:length])
        add(tmp_path, "base", 3)
        complete = [1, 2][: whole[: length + 1].count(b"}")]
        if length < len(whole) and whole[length : length + 1] == b"}":
            complete = complete[:-1]
        assert steps_of(tmp_path, "base") == [*complete, 3], length


def append_many(path, letter):
    for _ in range(300):
        append_line(path, letter * 200)


def test_two_processes_append_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    context = get_context("spawn")
    processes = [context.Process(target=append_many, args=(path, letter)) for letter in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = [line for line in path.read_text().splitlines() if line]
    assert sorted(lines) == ["a" * 200] * 300 + ["b" * 200] * 300


# --- What cannot be written ---
def append_on_full_disk(path, answers):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        for _ in range(10):
            append_line(path, "x" * 30)
    except OSError as error:
        answers.put(str(error))


def test_a_full_disk(tmp_path):
    context = get_context("spawn")
    answers = context.Queue()
    path = tmp_path / "log.jsonl"
    process = context.Process(target=append_on_full_disk, args=(path, answers))
    process.start()
    message = answers.get(timeout=60)
    process.join()
    assert message.startswith(f"{path} cannot be written (") and message.endswith("make room")
    assert path.stat().st_size <= 100


def test_a_log_that_is_a_folder_is_refused_before_the_first_step(tmp_path):
    log_path(tmp_path).mkdir()
    with pytest.raises(OSError, match="log.jsonl cannot be written .*no file"):
        next(trained(tmp_path, "tokenizer"))
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every file")
def test_a_read_only_log_is_refused_before_the_first_step(tmp_path):
    log_path(tmp_path).touch(mode=0o400)
    with pytest.raises(OSError, match="log.jsonl cannot be written .*read-only"):
        next(trained(tmp_path, "tokenizer"))


# --- A training ---
STEPS = 6
SETTINGS = ["scenes=8"]
for _stage in STAGES:
    SETTINGS += [f"stages.{_stage}.steps={STEPS}", f"stages.{_stage}.batch=4"]
CONFIG = configs.override(configs.PRESETS["tiny"], SETTINGS)


def trained(out, stage, resume=False):
    return train_all((stage,), out, CONFIG, "shapes", LazyT5("t5-toy"), "t5-toy", resume=resume)


def test_every_line_has_the_metrics_of_its_record(tmp_path):
    records = list(trained(tmp_path, "tokenizer"))
    lines = read_log(tmp_path)["tokenizer"]
    assert len(lines) == STEPS == len(records)
    for line, record in zip(lines, records, strict=True):
        assert (line["stage"], line["step"], line["steps"]) == record[:3]
        for name, value in record.metrics.items():
            assert line[name] == pytest.approx(float(value), rel=1e-5)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and seconds[0] > 0
    # One object a line, which any reader of JSON understands.
    assert [json.loads(text) for text in log_path(tmp_path).read_text().splitlines()] == lines


def test_a_resumed_training_goes_on_in_the_log(tmp_path):
    for record in trained(tmp_path, "tokenizer"):
        if record.step == 3:
            record.save()
        if record.step == 5:
            break
    before = read_log(tmp_path)["tokenizer"]
    assert [line["step"] for line in before] == [1, 2, 3, 4, 5]
    list(trained(tmp_path, "tokenizer", resume=True))
    lines = read_log(tmp_path)["tokenizer"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[:3] == before[:3]
    # The first steps count, though another run did them.
    assert lines[3]["seconds"] > lines[2]["seconds"]
    assert len(log_path(tmp_path).read_text().splitlines()) == 5 + 3, "old lines stay"


def test_a_stage_that_is_trained_anew_replaces_its_lines_at_once(tmp_path):
    list(trained(tmp_path, "tokenizer"))
    list(trained(tmp_path, "tokenizer_hi"))
    (tmp_path / "tokenizer.safetensors").unlink()
    next(trained(tmp_path, "tokenizer"))
    assert steps_of(tmp_path, "tokenizer") == [1]
    assert steps_of(tmp_path, "tokenizer_hi") == [1, 2, 3, 4, 5, 6]


def test_a_skipped_step_has_no_loss_and_nothing_is_nan():
    metrics = {"loss": torch.tensor(1.23456789), "psnr": float("inf"), "x": float("nan")}
    assert finite_numbers(metrics) == {"loss": 1.23457}


def test_a_long_stage_gets_about_a_hundred_lines_and_its_first(tmp_path):
    log = TrainingLog(tmp_path, "base")
    log.begin(1)
    for step in range(1, 961):
        record = Record("base", step, 960, {"loss": 1.0})
        if log.is_due(record):
            log.write(record, record.metrics)
    assert steps_of(tmp_path, "base") == [1, *range(10, 961, 10)]


# --- TensorBoard ---
class Writer:
    """Stands for torch.utils.tensorboard.SummaryWriter."""

    made: list["Writer"] = []

    def __init__(self, folder, purge_step):
        self.folder = folder
        self.purge_step = purge_step
        self.scalars = []
        self.flushed = 0
        self.closed = False
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


@pytest.fixture
def board(monkeypatch):
    """TensorBoard seems to be installed; the writers that are made."""
    Writer.made = []
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    found = SimpleNamespace(origin="tensorboard/__init__.py")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer.made


def test_tensorboard_gets_the_same_numbers(tmp_path, board):
    for record in trained(tmp_path, "tokenizer"):
        if record.step == 2:
            record.save()
            break
    list(trained(tmp_path, "tokenizer", resume=True))
    first, second = board
    assert first.folder == second.folder == str(tmp_path / "tensorboard" / "tokenizer")
    assert (first.purge_step, second.purge_step) == (1, 3)
    assert first.closed and second.closed and second.flushed == STEPS - 2
    expected = []
    for line in read_log(tmp_path)["tokenizer"]:
        own = ("stage", "step", "steps", "seconds")
        expected += [(k, v, line["step"]) for k, v in line.items() if k not in own]
    assert first.scalars + second.scalars == expected


def test_without_tensorboard_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    list(trained(tmp_path, "tokenizer"))
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.skipif(has_tensorboard(), reason="it is installed here")
def test_a_folder_called_tensorboard_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "tensorboard").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("tensorboard") is not None and not has_tensorboard()
