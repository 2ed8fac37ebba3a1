"""Training that is killed, interrupted, out of memory or out of disk: what is on the disk afterwards, and how it goes on.

    pytest tests/test_faults.py              # three runs killed with -9, and one of everything else
    pytest tests/test_faults.py -m slow      # each stage twenty times

Runs are processes of their own, made by a server that has imported everything: so that a kill is a kill, and starting costs nothing.
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
from multiprocessing import get_context

import pytest
import torch
from safetensors.torch import load_file

from minimuse import train
from minimuse.plumbing import checkpoint, lock, stopping
from minimuse.plumbing import config as configs
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import stages as ours
from minimuse.runs.stages import NEEDS, STAGES, train_all
from minimuse.train import training_loop

STEPS = 6
SETTINGS = [f"stages.{s}.{x}" for s in STAGES for x in (f"steps={STEPS}", "batch=4")] + [
    "scenes=12",
    "loss.adversarial_from=0.4",
]
CONFIG = configs.override(configs.PRESETS["tiny"], SETTINGS)
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["minimuse.train", "test_faults"])


def run(stage, out, config=CONFIG, under_way=None):
    """Train a stage in this process, with a checkpoint after each step; `under_way` is set after the first."""
    train.SAVE_EVERY, found = -1e9, []
    torch.set_num_threads(1)
    for record in train_all(
        (stage,), out, config, "shapes", load_t5("t5-toy"), "t5-toy", resume=True
    ):
        found.append(record.metrics)
        if under_way is not None:
            under_way.set()
    return found


def elsewhere(work, *arguments):
    """A process at work."""
    process = SERVER.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """What `run` changes is put back, in the processes that are not thrown away."""
    monkeypatch.setattr(ours, "SAVE_EVERY", train.SAVE_EVERY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model whose stages were trained without a stop, each in its process, and how many seconds each took after the first step."""
    out, took = tmp_path_factory.mktemp("whole") / "model", {}
    for stage in STAGES:
        process = elsewhere(run, stage, out, CONFIG, under_way := SERVER.Event())
        assert under_way.wait(120)
        begun = time.monotonic()
        process.join()
        took[stage] = time.monotonic() - begun
        assert process.exitcode == 0
    return out, took


@pytest.fixture
def begun(whole, tmp_path):
    """A directory with what a stage needs."""
    numbers = iter(range(99))

    def make(stage):
        (out := tmp_path / f"{stage}-{next(numbers)}").mkdir()
        for name in ("config.json", *(f"{part}.safetensors" for part in NEEDS[stage])):
            shutil.copy(whole[0] / name, out)
        return out

    return make


def readable(out, stage):
    """Whatever lies there under its own name can be read; the steps of its checkpoints."""
    json.loads((out / "config.json").read_text())
    for path in out.glob("*.safetensors"):
        load_file(path)
    return [
        int(checkpoint.read_checkpoint(path)[0]["step"])
        for path in checkpoint.checkpoints_at(out / f"{stage}.checkpoint.safetensors")
    ]


def goes_on(out, stage, whole):
    """Resumed, it ends in the weights of an undisturbed run, bit for bit, and nothing else is left behind."""
    (process := elsewhere(run, stage, out)).join()
    assert process.exitcode == 0
    ours_, theirs = (load_file(folder / f"{stage}.safetensors") for folder in (out, whole[0]))
    assert ours_.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in ours_.items()
    )
    assert {p.name for p in out.iterdir()} == {
        "config.json",
        *(f"{part}.safetensors" for part in (stage, *NEEDS[stage])),
    }


def killed(stage, whole, begun, chance):
    """Kill a run at a random moment, seldom before the end of its first step, and resume it; what was left of it."""
    out, moment = begun(stage), chance.uniform(-0.1, 1) * whole[1][stage]
    process = elsewhere(run, stage, out, CONFIG, under_way := SERVER.Event())
    assert moment < 0 or under_way.wait(120)
    time.sleep(abs(moment))
    process.kill()
    process.join()
    left = sorted(p.name for p in out.iterdir() if stage in p.name)
    steps = readable(out, stage)
    assert steps == sorted(steps, reverse=True)
    goes_on(out, stage, whole)
    return steps, left


@pytest.mark.parametrize("stage", ["tokenizer", "base", "decoder"])
def test_killed(stage, whole, begun):
    killed(stage, whole, begun, random.Random(stage))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_twenty_moments(stage, whole, begun):
    found = [killed(stage, whole, begun, chance) for chance in map(random.Random, range(20))]
    inside, killed_after = (
        sum(any(name.endswith(".tmp") for name in left) for _, left in found),
        sorted(max(steps, default=0) for steps, _ in found),
    )
    print(f"{stage}: killed after {killed_after} steps, {inside} of them inside a save")


def dies(stage, out, name, times):
    """Train, and be killed inside the call of os.NAME, on a checkpoint or an open file, that comes after so many."""
    left, real = iter(range(times)), getattr(os, name)

    def deadly(*arguments, **more):
        if isinstance(arguments[0], int) or "checkpoint" in str(arguments[0]):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)

    setattr(checkpoint.os, name, deadly)
    run(stage, out)


# The first file on the disk is config.json; from the second checkpoint on, two files change their names; at the end, both are removed
@pytest.mark.parametrize(
    "name, times, steps",
    [
        ("fsync", 1, []),
        ("fsync", 3, [2, 1]),
        ("replace", 3, [2, 1]),
        ("replace", 4, [2]),
        ("unlink", 0, [5, 4]),
    ],
)
def test_killed_inside_a_save(name, times, steps, whole, begun):
    out = begun("base")
    (process := elsewhere(dies, "base", out, name, times)).join()
    assert process.exitcode == -signal.SIGKILL
    assert readable(out, "base") == steps
    goes_on(out, "base", whole)


# Checkpoints that do not say what was written


@pytest.fixture
def two(whole, begun):
    """A run of the base model that has two checkpoints, of steps 3 and 2; its directory and the newer one."""
    out = begun("base")
    (process := elsewhere(dies, "base", out, "fsync", 4)).join()
    assert readable(out, "base") == [3, 2]
    return out, out / "base.checkpoint.safetensors"


def test_any_byte_counts(two):
    """A flipped bit anywhere, in the weights or in the header, is noticed."""
    _, path = two
    data, chance = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    at = data.index(b'"step":"3"') + 8
    for place in [
        at,
        *(chance.randrange(8, header) for _ in range(100)),
        *(chance.randrange(header, len(data)) for _ in range(100)),
    ]:
        path.write_bytes(
            data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
        )
        try:
            found = checkpoint.read_checkpoint(path)
        except ValueError as error:
            assert "base.checkpoint.safetensors" in str(error)
        else:  # JSON has bits that say nothing: a space may be a tab
            path.write_bytes(data)
            wanted = checkpoint.read_checkpoint(path)
            assert (
                found[0] == wanted[0]
                and all(torch.equal(x, wanted[1][k]) for k, x in found[1].items())
                and place < header
            )


def test_the_one_before_is_taken(two, whole):
    out, path = two
    path.write_bytes(path.read_bytes()[:-1])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        records = run("base", out)
    assert (
        "damaged" in str(said[0].message)
        and "one before" in str(said[0].message)
        and len(records) == STEPS - 2
    )
    assert all(
        torch.equal(x, load_file(whole[0] / "base.safetensors")[k])
        for k, x in load_file(out / "base.safetensors").items()
    )


def test_the_good_one_is_not_given_for_the_damaged(two, whole):
    """The first save after that: killed between its two changes of names, it leaves the good one still."""
    out, path = two
    path.write_bytes(path.read_bytes()[:-1])
    (process := elsewhere(dies, "base", out, "replace", 1)).join()
    assert process.exitcode == -signal.SIGKILL
    goes_on(out, "base", whole)


def test_both_are_damaged(two):
    out, path = two
    for p in checkpoint.checkpoints_at(path):
        p.write_bytes(p.read_bytes()[:-1])
    with (
        pytest.raises(ValueError, match="base.checkpoint.before is damaged"),
        warnings.catch_warnings(action="ignore"),
    ):
        run("base", out)


# One at a time


def holds(out, ready):
    with lock.only_process(out, "base"):
        ready.set()
        time.sleep(600)


def test_two_runs_in_one_directory(begun, whole):
    out, ready = begun("base"), SERVER.Event()
    process = elsewhere(holds, out, ready)
    assert ready.wait(60)
    with pytest.raises(ValueError, match=f"base is being trained in {out} by another process"):
        run("base", out)
    assert readable(out, "base") == [] and not (out / "base.safetensors").exists()
    process.kill()
    process.join()
    goes_on(out, "base", whole)  # what is left of the lock locks nobody out


# Gradients that are not finite


def small(folder, bad=(), steps=30, broken=lambda model: None):
    """A regression whose loss is not finite at some steps; its weights after each step, and its metrics."""
    model = torch.nn.Linear(3, 1)
    torch.nn.init.constant_(model.weight, 0.5)

    def parts_of(indices, generator, step):
        broken(model)
        yield (
            (
                model(torch.randn(4, 3, generator=generator)).square().mean()
                * (float("nan") if step in bad else 1.0)
            ),
            {},
        )

    run = training_loop(
        "small",
        model,
        parts_of,
        configs.Stage(steps, 4, 0.1),
        10,
        0,
        folder / "small.checkpoint.safetensors",
        {},
    )
    return [(model.weight.detach().clone(), record.metrics) for record in run]


def test_steps_that_are_skipped(tmp_path):
    found = small(tmp_path, bad := {3, 4, 10})
    for step in bad:
        assert torch.equal(found[step][0], found[step - 1][0]), (
            "a step without finite gradients moves nothing"
        )
    moved = [not torch.equal(now[0], then[0]) for then, now in zip(found, found[1:])]
    assert [i + 1 for i, moves in enumerate(moved) if not moves] == sorted(bad)
    assert [int(metrics.get("skipped", 0)) for _, metrics in found] == [
        0,
        0,
        0,
        1,
        *[2] * 6,
        *[3] * 20,
    ]
    assert all(
        torch.isfinite(torch.as_tensor(v)) for _, metrics in found for v in metrics.values()
    ), "a NaN would stay in a smoothed display"


def test_too_many(tmp_path):
    with pytest.raises(ValueError, match="not finite in 5 steps in a row.*lower stages.small.lr"):
        small(tmp_path, range(7, 30))
    assert len(small(tmp_path / "again", [*range(4), *range(5, 9)])) == 30, "four in a row, twice"


def test_no_bad_checkpoint(tmp_path, monkeypatch):
    """Weights that are not finite are not written over good ones."""
    monkeypatch.setattr(ours, "SAVE_EVERY", -1e9)
    calls = iter(range(99))
    broken = lambda model: next(calls) == 5 and model.bias.data.fill_(float("inf"))
    with pytest.raises(ValueError, match="bias is not finite"):
        small(tmp_path, broken=broken)
    path = tmp_path / "small.checkpoint.safetensors"
    assert [checkpoint.read_checkpoint(p)[0]["step"] for p in checkpoint.checkpoints_at(path)] == [
        "5",
        "4",
    ]


def test_a_rate_that_is_too_high(begun):
    """The real thing: whatever such a training does, what it writes is finite, or it ends in a sentence."""
    for stage in ("tokenizer", "base"):
        out = begun(stage)
        config = configs.override(
            CONFIG, [f"stages.{stage}.lr=1e30", f"stages.{stage}.steps=40", "stages.base.muon_lr=0"]
        )
        (out / "config.json").unlink()
        with pytest.raises(ValueError, match="finite.*[lL]ower"):
            run(stage, out, config)
        readable(out, stage)


# Too little room


def full(out, most):
    """Train where no file may be larger than so many bytes: what a full disk is like."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        run("base", out)
    except OSError as error:
        (out / "said").write_text(str(error)[:most])
        os._exit(3)


def test_a_full_disk(two, whole):
    out, path = two
    data = [p.read_bytes() for p in checkpoint.checkpoints_at(path)]
    (process := elsewhere(full, out, len(data[0]) // 2)).join()
    assert process.exitcode == 3
    said = (out / "said").read_text()
    (out / "said").unlink()
    assert "base.checkpoint.safetensors cannot be written" in said and "make room" in said
    assert [p.read_bytes() for p in checkpoint.checkpoints_at(path)] == data
    assert not list(out.glob("*.tmp"))
    goes_on(out, "base", whole)


def starved(stage, out, more, config):
    most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        run(stage, out, config)
    except MemoryError as error:
        (out / "said").write_text(str(error))
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
    (process := elsewhere(starved, stage, out, 1 << 30, config)).join()
    assert process.exitcode == 3
    said = (out / "said").read_text()
    assert f"train {stage}" in said and all(remedy in said for remedy in remedies)


# Interrupted


def command(stage, out, *more, by=()):
    arguments = [
        "train",
        stage,
        "--preset",
        "tiny",
        "--data",
        "shapes",
        "--out",
        str(out),
        *SETTINGS,
        *more,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    heard = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # what a shell starts in the background would not hear it
    return subprocess.Popen(
        [sys.executable, *by, "-m", "minimuse", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=heard,
    )


def wait_for(what, seconds=120):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number, begun):
    out = begun("base")
    (out / "config.json").unlink()
    process = command("base", out, "stages.base.steps=100000")
    wait_for((out / "base.lock").exists)
    time.sleep(1)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert (
        process.returncode == 130
        and "finishing this step" in said
        and said.endswith("with --resume goes on\n")
        and "Traceback" not in said
    )
    assert (
        len(readable(out, "base")) == 1
        and not list(out.glob("*.lock"))
        and not list(out.glob("*.tmp"))
    )


def test_interrupted_all(tmp_path):
    """Of stages that train side by side each finishes its step, and saves."""
    process = command(
        "all",
        out := tmp_path / "model",
        "stages.tokenizer.steps=100000",
        "stages.tokenizer_hi.steps=100000",
    )
    wait_for(lambda: all((out / f"{stage}.lock").exists() for stage in STAGES[:2]))
    time.sleep(1)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert (
        process.returncode == 130
        and "Traceback" not in said
        and said.endswith("with --resume goes on\n")
    )
    assert all(len(readable(out, stage)) == 1 for stage in STAGES[:2])
    assert (
        not list(out.glob("*.lock"))
        and not list(out.glob("*.tmp"))
        and not (out / "base.lock").exists()
    )


def test_interrupted_processes(begun):
    """Under torchrun, one that is told to stop stops all, at the same step."""
    out = begun("base")
    (out / "config.json").unlink()
    by = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = command("base", out, "stages.base.steps=100000", "stages.base.muon_lr=0", by=by)
    wait_for((out / "base.lock").exists)
    time.sleep(1)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert said.count("with --resume goes on") == 2 and len(readable(out, "base")) == 1, said


def test_the_second_does_not_wait():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    with pytest.raises(KeyboardInterrupt), stopping.finish_step_on_signal():
        signal.raise_signal(signal.SIGINT)
        assert stopping.stop_signals == {signal.SIGINT}
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with stopping.finish_step_on_signal():
        assert not stopping.stop_signals
