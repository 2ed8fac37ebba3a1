"""Training that is killed, interrupted, out of memory or out of disk: what it leaves, and resuming.

    pytest tests/test_faults.py              # three runs killed with -9, and one of everything else
    pytest tests/test_faults.py -m slow      # each stage twenty times

Each training is a process of its own, so that a kill is a kill. A fork server that has imported
everything starts them, so that starting takes no time.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from itertools import count, pairwise
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimuse.plumbing import checkpoint, lock
from minimuse.plumbing import config as configs
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs.log import read_log
from minimuse.runs.stages import NEEDS, STAGES, train_all
from minimuse.train import training_loop

STEPS = 6


def make_settings():
    settings = ["scenes=12", "loss.adversarial_from=0.4"]
    for stage in STAGES:
        settings += [f"stages.{stage}.steps={STEPS}", f"stages.{stage}.batch=4"]
    return settings


SETTINGS = make_settings()
CONFIG = configs.override(configs.PRESETS["tiny"], SETTINGS)
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["minimuse.train", "test_faults"])


def run(stage, out, config=CONFIG, under_way=None):
    """Train a stage in this process, with a checkpoint after each step; the metrics of every step.

    under_way: an event that is set after the first step.
    """
    checkpoint.SAVE_EVERY = -1e9
    torch.set_num_threads(1)
    metrics = []
    for record in train_all(
        (stage,), out, config, "shapes", load_t5("t5-toy"), "t5-toy", resume=True
    ):
        metrics.append(record.metrics)
        if under_way is not None:
            under_way.set()
    return metrics


def elsewhere(work, *arguments):
    """Start a process that calls work(*arguments)."""
    process = SERVER.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def exit_code(work, *arguments):
    """Call work(*arguments) in a process of its own, and wait for its end."""
    process = elsewhere(work, *arguments)
    process.join()
    return process.exitcode


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Restore what `run` changes, where it runs in this process."""
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", checkpoint.SAVE_EVERY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model trained without a stop, and the seconds of each stage after its first step."""
    out = tmp_path_factory.mktemp("whole") / "model"
    seconds = {}
    for stage in STAGES:
        under_way = SERVER.Event()
        process = elsewhere(run, stage, out, CONFIG, under_way)
        assert under_way.wait(120)
        begin = time.monotonic()
        process.join()
        seconds[stage] = time.monotonic() - begin
        assert process.exitcode == 0
    return out, seconds


@pytest.fixture
def begun(whole, tmp_path):
    """begun(stage): a directory with what a stage needs."""
    numbers = count()

    def make(stage):
        out = tmp_path / f"{stage}-{next(numbers)}"
        out.mkdir()
        shutil.copy(whole[0] / "config.json", out)
        for part in NEEDS[stage]:
            shutil.copy(whole[0] / f"{part}.safetensors", out)
        return out

    return make


def readable(out, stage):
    """Check that every file under its final name can be read; the steps of its checkpoints."""
    json.loads((out / "config.json").read_text())
    for path in out.glob("*.safetensors"):
        load_file(path)
    steps = []
    for path in checkpoint.checkpoints_at(out / f"{stage}.checkpoint.safetensors"):
        header, _ = checkpoint.read_checkpoint(path)
        steps.append(int(header["step"]))
    return steps


def same_part(stage, out, whole):
    """Whether a stage ended with the weights of an undisturbed run, bit for bit."""
    ours = load_file(out / f"{stage}.safetensors")
    theirs = load_file(whole[0] / f"{stage}.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def resumes(out, stage, whole):
    """Check that resuming ends with the undisturbed weights, and leaves no other files."""
    assert exit_code(run, stage, out) == 0
    assert same_part(stage, out, whole)
    parts = [f"{part}.safetensors" for part in (stage, *NEEDS[stage])]
    to_watch = {"log.jsonl", "watch"}
    assert {path.name for path in out.iterdir()} == {"config.json", *parts, *to_watch}
    log = read_log(out)[stage]
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    sheets = [f"{stage}-{step:06}.png" for step in range(1, STEPS + 1)]
    assert sorted(path.name for path in (out / "watch").iterdir()) == sheets


def killed(stage, whole, begun, chance):
    """Kill a run at a random moment and resume it; the steps of its checkpoints, and its files.

    The moment is seldom before the end of the first step.
    """
    out = begun(stage)
    moment = chance.uniform(-0.1, 1) * whole[1][stage]
    under_way = SERVER.Event()
    process = elsewhere(run, stage, out, CONFIG, under_way)
    if moment >= 0:
        assert under_way.wait(120)
    time.sleep(abs(moment))
    process.kill()
    process.join()
    files = sorted(path.name for path in out.iterdir() if stage in path.name)
    steps = readable(out, stage)
    assert steps == sorted(steps, reverse=True)
    resumes(out, stage, whole)
    return steps, files


@pytest.mark.parametrize("stage", ["tokenizer", "base", "decoder"])
def test_killed(stage, whole, begun):
    killed(stage, whole, begun, random.Random(stage))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_twenty_moments(stage, whole, begun):
    killed_after = []
    inside_a_save = 0
    for seed in range(20):
        steps, files = killed(stage, whole, begun, random.Random(seed))
        killed_after.append(max(steps, default=0))
        inside_a_save += any(name.endswith(".tmp") for name in files)
    print(f"{stage}: killed after {sorted(killed_after)} steps, {inside_a_save} inside a save")


def dies(stage, out, name, times):
    """Train, and be killed in the call of os.NAME number `times`, counted from 0.

    Only calls count whose first argument is a checkpoint's path or an open file.
    """
    calls = count()
    real = getattr(os, name)

    def deadly(*arguments, **options):
        if isinstance(arguments[0], int) or "checkpoint" in str(arguments[0]):
            if next(calls) == times:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(os, name, deadly)
    run(stage, out)


# The first file that is written is config.json. Each step then writes a sheet of pictures and a
# checkpoint. From the second checkpoint on, a save renames two files. At the end, both checkpoints
# are removed; the first file that is removed has only shown that a checkpoint can be written.
@pytest.mark.parametrize(
    "name, times, steps",
    [
        ("fsync", 2, []),
        pytest.param("fsync", 6, [2, 1], marks=pytest.mark.slow),
        ("replace", 3, [2, 1]),
        pytest.param("replace", 4, [2], marks=pytest.mark.slow),
        ("unlink", 1, [5, 4]),
    ],
)
def test_killed_inside_a_save(name, times, steps, whole, begun):
    out = begun("base")
    assert exit_code(dies, "base", out, name, times) == -signal.SIGKILL
    assert readable(out, "base") == steps
    resumes(out, "base", whole)


# Damaged checkpoints


@pytest.fixture
def two(begun):
    """A directory with two checkpoints of the base model, of steps 3 and 2, and the newer one."""
    out = begun("base")
    assert exit_code(dies, "base", out, "fsync", 8) == -signal.SIGKILL
    assert readable(out, "base") == [3, 2]
    return out, out / "base.checkpoint.safetensors"


def cut_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def same_contents(a, b):
    (header_a, tensors_a), (header_b, tensors_b) = a, b
    return header_a == header_b and all(torch.equal(x, tensors_b[k]) for k, x in tensors_a.items())


def test_any_byte_counts(two):
    """A flipped bit anywhere, in the weights or in the header, is noticed."""
    _, path = two
    data = path.read_bytes()
    contents = checkpoint.read_checkpoint(path)
    header_end = 8 + int.from_bytes(data[:8], "little")
    chance = random.Random(0)
    places = [data.index(b'"step":"3"') + 8]
    places += [chance.randrange(8, header_end) for _ in range(100)]
    places += [chance.randrange(header_end, len(data)) for _ in range(100)]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        try:
            read = checkpoint.read_checkpoint(path)
        except ValueError as error:
            assert "base.checkpoint.safetensors" in str(error)
        else:
            # Some bits of JSON have no meaning: a space may be a tab.
            assert place < header_end
            assert same_contents(read, contents)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(two, whole):
    out, path = two
    cut_last_byte(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = run("base", out)
    message = str(caught[0].message)
    assert "damaged" in message and "one before" in message
    assert len(metrics) == STEPS - 2
    assert same_part("base", out, whole)


def test_a_damaged_checkpoint_does_not_replace_the_intact_one(two, whole):
    """The first save after that, killed between its two renames, leaves the intact one."""
    out, path = two
    cut_last_byte(path)
    assert exit_code(dies, "base", out, "replace", 1) == -signal.SIGKILL
    resumes(out, "base", whole)


def test_both_are_damaged(two):
    out, path = two
    for p in checkpoint.checkpoints_at(path):
        cut_last_byte(p)
    with (
        pytest.raises(ValueError, match="base.checkpoint.before is damaged"),
        warnings.catch_warnings(action="ignore"),
    ):
        run("base", out)


# One process at a time


def hold_lock(out, ready):
    with lock.one_process_at_a_time(out, "base"):
        ready.set()
        time.sleep(600)


def test_two_runs_in_one_directory(begun, whole):
    out, ready = begun("base"), SERVER.Event()
    process = elsewhere(hold_lock, out, ready)
    assert ready.wait(60)
    with pytest.raises(ValueError, match=f"another process writes the base in {out}"):
        run("base", out)
    assert readable(out, "base") == [] and not (out / "base.safetensors").exists()
    process.kill()
    process.join()
    resumes(out, "base", whole)  # the file of the lock is left, but locks nobody out


def test_two_runs_of_one_process_in_one_directory(begun):
    """As in a notebook, where an iterator that was left alone still holds the lock."""
    out = begun("base")
    text = load_t5("t5-toy")
    left_alone = train_all(("base",), out, CONFIG, "shapes", text, "t5-toy", resume=True)
    next(left_alone)
    with pytest.raises(ValueError, match="a training of this process still writes the base"):
        run("base", out)
    left_alone.close()
    run("base", out)


# Gradients that are not finite


def run_small(folder, bad=(), steps=30, before_step=None):
    """Train a regression whose loss is NaN at some steps: its weights and metrics after each step.

    before_step: called with the model before each step.
    """
    model = torch.nn.Linear(3, 1)
    torch.nn.init.constant_(model.weight, 0.5)

    def loss_of(indices, generator, step):
        if before_step is not None:
            before_step(model)
        loss = model(torch.randn(4, 3, generator=generator)).square().mean()
        yield loss * (float("nan") if step in bad else 1.0), {}

    settings = configs.Stage(steps, 4, 0.1)
    path = folder / "small.checkpoint.safetensors"
    weights, metrics = [], []
    for record in training_loop("small", model, loss_of, settings, 10, 0, path, {}):
        weights.append(model.weight.detach().clone())
        metrics.append(record.metrics)
    return weights, metrics


def test_steps_that_are_skipped(tmp_path):
    bad = [3, 4, 10]
    weights, metrics = run_small(tmp_path, bad)
    unchanged = [
        step for step, (old, new) in enumerate(pairwise(weights), start=1) if torch.equal(old, new)
    ]
    assert unchanged == bad, "a step changes the weights if and only if its gradients are finite"
    skipped = [int(m.get("skipped", 0)) for m in metrics]
    assert skipped == [0] * 3 + [1] + [2] * 6 + [3] * 20
    for m in metrics:
        for value in m.values():
            assert torch.as_tensor(value).isfinite(), "a NaN would stay in a smoothed display"


def test_too_many(tmp_path):
    with pytest.raises(ValueError, match="not finite in the last 5 steps.*lower stages.small.lr"):
        run_small(tmp_path, range(7, 30))


def test_four_in_a_row_twice_are_not_too_many(tmp_path):
    weights, _ = run_small(tmp_path, [*range(4), *range(5, 9)])
    assert len(weights) == 30


def test_no_bad_checkpoint(tmp_path, monkeypatch):
    """Weights that are not finite are not written over good ones."""
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", -1e9)
    calls = count()

    def break_the_sixth_step(model):
        if next(calls) == 5:
            model.bias.data.fill_(float("inf"))

    with pytest.raises(ValueError, match="bias is not finite"):
        run_small(tmp_path, before_step=break_the_sixth_step)
    paths = checkpoint.checkpoints_at(tmp_path / "small.checkpoint.safetensors")
    headers = [checkpoint.read_checkpoint(path)[0] for path in paths]
    assert [header["step"] for header in headers] == ["5", "4"]


@pytest.mark.parametrize("stage", ["tokenizer", "base"])
def test_a_rate_that_is_too_high(stage, begun):
    """Such a training writes finite weights only, or it ends with an error."""
    out = begun(stage)
    settings = [f"stages.{stage}.lr=100", f"stages.{stage}.steps=40", "stages.base.muon_lr=0"]
    (out / "config.json").unlink()
    with pytest.raises(ValueError, match="finite.*[lL]ower"):
        run(stage, out, configs.override(CONFIG, settings))
    readable(out, stage)


# Too little room


def train_on_full_disk(out, largest):
    """Train where no file may be larger than so many bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        run("base", out)
    except OSError as error:
        (out / "message").write_text(str(error)[:largest])
        os._exit(3)


def test_a_full_disk(two, whole):
    out, path = two
    before = [p.read_bytes() for p in checkpoint.checkpoints_at(path)]
    assert exit_code(train_on_full_disk, out, len(before[0]) // 2) == 3
    message = (out / "message").read_text()
    (out / "message").unlink()
    assert "base.checkpoint.safetensors cannot be written" in message and "make room" in message
    assert [p.read_bytes() for p in checkpoint.checkpoints_at(path)] == before
    assert not list(out.glob("*.tmp"))
    resumes(out, "base", whole)


def train_with_little_memory(stage, out, extra, config):
    """Train with so many bytes of address space more than this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        run(stage, out, config)
    except MemoryError as error:
        (out / "message").write_text(str(error))
        os._exit(3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "stage, remedies",
    [
        ("base", ("stages.base.batch=", "scale.micro_batch=25000")),
        ("tokenizer", ("stages.tokenizer.batch=",)),
    ],
)
def test_too_little_memory(stage, remedies, begun):
    out = begun(stage)
    (out / "config.json").unlink()
    config = configs.override(CONFIG, [f"stages.{stage}.batch=50000"])
    assert exit_code(train_with_little_memory, stage, out, 1 << 30, config) == 3
    message = (out / "message").read_text()
    assert f"train {stage}" in message
    assert all(remedy in message for remedy in remedies)


# Interrupted


def hear_ctrl_c():
    """What a shell starts in the background ignores Ctrl-C; do not ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_command(stage, out, *settings, launcher=()):
    """Start `minimuse train`."""
    arguments = ["train", stage, "--preset", "tiny", "--data", "shapes", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "minimuse", *arguments, *SETTINGS, *settings],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        preexec_fn=hear_ctrl_c,
    )


def interrupt(process, number, stages):
    """Send a signal when stages are under way: its exit code, and what it printed to stderr."""
    errors = ""
    # A stage shows its bar after its first step.
    while not all(f"{stage}: " in errors for stage in stages):
        text = os.read(process.stderr.fileno(), 4096).decode()
        assert text, errors
        errors += text
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    return process.returncode, errors + rest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number, begun):
    out = begun("base")
    (out / "config.json").unlink()
    process = start_command("base", out, "stages.base.steps=100000")
    code, errors = interrupt(process, number, ["base"])
    assert code == 130
    assert "finishing this step" in errors and "Traceback" not in errors
    assert errors.endswith("with --resume goes on\n")
    assert len(readable(out, "base")) == 1
    assert not list(out.glob("*.lock")) and not list(out.glob("*.tmp"))


def test_interrupted_all(tmp_path):
    """Of stages that train side by side each finishes its step, and saves."""
    out = tmp_path / "model"
    tokenizers = STAGES[:2]
    steps = [f"stages.{stage}.steps=100000" for stage in tokenizers]
    process = start_command("all", out, *steps)
    code, errors = interrupt(process, signal.SIGTERM, tokenizers)
    assert code == 130
    assert "Traceback" not in errors and errors.endswith("with --resume goes on\n")
    assert all(len(readable(out, stage)) == 1 for stage in tokenizers)
    assert not list(out.glob("*.lock")) and not list(out.glob("*.tmp"))


def test_interrupted_processes(begun):
    """Under torchrun, a signal to one process stops all, at the same step. The first tells it."""
    out = begun("base")
    (out / "config.json").unlink()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ["stages.base.steps=100000", "stages.base.muon_lr=0"]
    process = start_command("base", out, *settings, launcher=launcher)
    _, errors = interrupt(process, signal.SIGTERM, ["base"])
    assert errors.count("with --resume goes on") == 1, errors
    assert len(readable(out, "base")) == 1, errors
