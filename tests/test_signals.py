"""Signals at any moment: every command ends soon, in one line, and leaves nothing half-written.

    pytest tests/test_signals.py               # what measures no time
    pytest tests/test_signals.py -m "alone and not slow"    # some moments of each command
    pytest tests/test_signals.py -m slow       # ten random moments of every command and signal
    MOMENTS=1 pytest tests/test_signals.py -m slow

The moments lie between the first line of our own code and the last write. Before that Python
itself starts, and prints a traceback when it is interrupted.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minimuse.cli import main
from minimuse.plumbing import checkpoint, stopping
from minimuse.runs.stages import STAGES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STEPS = 8
SETTINGS = ["scenes=12"]
for _stage in STAGES:
    SETTINGS += [f"stages.{_stage}.steps={STEPS}", f"stages.{_stage}.batch=4"]
TRAIN = ["--preset", "tiny", "--data", "shapes", *SETTINGS]


def hear_all_signals():
    """What a shell starts in the background ignores Ctrl-C, and under nohup SIGHUP; do not."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Command:
    """A command in a session of its own, and what it prints."""

    def __init__(self, *arguments):
        # Two processes train side by side with a thread each. Elsewhere one thread is enough.
        threads = "2" if "all" in arguments or "demo" in arguments else "1"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minimuse", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads},
            preexec_fn=hear_all_signals,
            start_new_session=True,
        )
        self.pid = self.process.pid
        wait_for(lambda: self.listens() or self.process.poll() is not None)

    def listens(self):
        """Whether our first lines have run: they set a handler of SIGTERM, and Python does not."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def end(self, seconds=120):
        """Wait for the end: exit code, seconds, and what it printed."""
        begin = time.monotonic()
        try:
            output, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            output, _ = self.process.communicate()
            pytest.fail(f"has not ended after {seconds} s: {output[-2000:]}")
        return self.process.returncode, time.monotonic() - begin, output

    def members(self):
        """The processes of its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.pid and state != "Z":
                found.append(int(path.parent.name))
        return found


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.005)


class Blow(NamedTuple):
    """A signal, or several with gaps (seconds) between them, and to whom each of them is sent.

    "parent" is the command alone, "group" it and its children, as a terminal does, and "child" one
    of its children, or the command itself if it has none at that moment.
    """

    number: int
    whom: tuple[str, ...] = ("group",)
    gaps: tuple[float, ...] = (0.0,)

    def hit(self, command):
        for whom, gap in zip(self.whom, self.gaps, strict=True):
            time.sleep(gap)
            self.send(command, whom)

    def send(self, command, whom):
        try:
            if whom == "parent":
                os.kill(command.pid, self.number)
            elif whom == "group":
                os.killpg(command.pid, self.number)
            else:
                children = [pid for pid in command.members() if pid != command.pid]
                os.kill(children[0] if children else command.pid, self.number)
        except ProcessLookupError:
            pass


CTRL_C = Blow(signal.SIGINT)
# A wrapper forwards the signal that a terminal has sent to it and to the command.
FORWARDED = Blow(signal.SIGINT, ("parent", "group"), (0.0, 0.02))
KILLED = Blow(signal.SIGKILL, ("parent",))

# Kinds of blows: for each a function that draws one.
KINDS = {
    "once": lambda chance: Blow(signal.SIGINT, (chance.choice(["parent", "group"]),)),
    "twice": lambda chance: Blow(
        signal.SIGINT,
        (chance.choice(["parent", "group"]), chance.choice(["parent", "group"])),
        (0.0, 0.005 * 200 ** chance.random()),  # 5 ms to 1 s
    ),
    "asked": lambda chance: Blow(
        chance.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGHUP]),
        (chance.choice(["parent", "group", "child"]),),
    ),
    "killed": lambda chance: Blow(signal.SIGKILL, (chance.choice(["parent", "child"]),)),
}


def ends_well(command, blow, seconds=5.0):
    """Hit a command; check its exit code, its last words and its time; returns the exit code."""
    blow.hit(command)
    code, took, output = command.end(30)
    assert took < seconds, (took, output)
    assert "Traceback" not in output and "Exception ignored" not in output, output
    allowed = (0, 2, -signal.SIGKILL) if blow.number == signal.SIGKILL else (0, 130)
    assert code in allowed, (code, output)
    check_last_words(code, output)
    wait_for(lambda: not command.members(), 3)
    return code


def check_last_words(code, output):
    """Check what a command said before it ended."""
    said = [line for line in output.replace("\r", "\n").split("\n") if "minimuse: " in line]
    if code == 130:
        assert sum("minimuse: stopped" in line for line in said) == 1, output
        assert "minimuse: stopped" in said[-1], output
    if code == 2:
        assert "killed" in said[-1], output


def is_whole(out):
    """Check that every file under its final name can be read."""
    for path in out.rglob("*"):
        if ".tmp" in str(path.relative_to(out)) or path.is_dir():
            continue
        if path.name.endswith((".checkpoint.safetensors", ".checkpoint.before")):
            checkpoint.read_checkpoint(path)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".png", ".gif"):
            with Image.open(path) as image:
                image.load()


def leftovers(out):
    return [path.name for path in out.rglob("*") if path.suffix in (".tmp", ".lock", ".before")]


def same_files(a, b):
    """Check that all images and all tensors are the same, bit for bit."""
    for suffix in (".png", ".gif", ".safetensors"):
        paths = sorted(path for path in a.rglob(f"*{suffix}"))
        names = [str(path.relative_to(a)) for path in paths]
        assert names == sorted(str(path.relative_to(b)) for path in b.rglob(f"*{suffix}"))
        for name in names:
            if suffix == ".safetensors":
                ours, theirs = load_file(a / name), load_file(b / name)
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
            else:
                assert (a / name).read_bytes() == (b / name).read_bytes(), name


class Case(NamedTuple):
    """A command, made by its output folder; whether it resumes; how long it may take to end."""

    arguments: object
    resumes: bool
    seconds: float


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A model with tokenizers only."""
    out = tmp_path_factory.mktemp("tokenized") / "model"
    for stage in ("tokenizer", "tokenizer-hi"):
        assert main(["train", stage, "--out", str(out), *TRAIN]) == 0
    return out


CASES = {
    "demo": Case(lambda out: ["demo", "--preset", "tiny", "--out", out], True, 5.0),
    "train all": Case(lambda out: ["train", "all", "--out", out, *TRAIN], True, 5.0),
    "train tokenizer": Case(lambda out: ["train", "tokenizer", "--out", out, *TRAIN], True, 5.0),
    "train base": Case(lambda out: ["train", "base", "--out", out, *TRAIN], True, 5.0),
    "cache": Case(lambda out: ["cache", "--out", out], False, 2.5),
    "generate": Case(
        lambda out: ["generate", "a red circle", "-o", out / "x.png", "--gif", out / "x.gif"],
        False,
        2.5,
    ),
    "evaluate": Case(
        lambda out: ["evaluate", "--model", "toy-shapes", "--n", "4", "--out", out], False, 2.5
    ),
}


@pytest.fixture(scope="module")
def prepared(tokenized, tmp_path_factory):
    """prepared(name): a new folder in which a command can run."""

    def make(name):
        folder = tmp_path_factory.mktemp("run") / "out"
        if name in ("train base", "cache"):
            copy_tree(tokenized, folder)
        elif name == "generate":
            folder.mkdir()
        return folder

    return make


def copy_tree(source, target):
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())


@pytest.fixture(scope="module")
def undisturbed(prepared):
    """undisturbed(name): the output of a command that ran to its end, and its seconds."""
    results = {}

    def run(name):
        if name not in results:
            out = prepared(name)
            command = Command(*CASES[name].arguments(out))
            code, seconds, output = command.end()
            assert code == 0, output
            results[name] = out, seconds
        return results[name]

    return run


def hit_and_resume(name, blow, moment, prepared, undisturbed, patience=1.0):
    """Hit a command at a moment (a fraction of its time), check what it leaves, and go on.

    It may take `patience` times as long to end as it should.
    """
    case = CASES[name]
    whole, seconds = undisturbed(name)
    out = prepared(name)
    command = Command(*case.arguments(out))
    time.sleep(moment * seconds)
    # A second Ctrl-C comes later, and the first may wait for a step.
    limit = patience * case.seconds + sum(blow.gaps)
    code = ends_well(command, blow, limit)
    if out.is_dir():
        is_whole(out)
        if code == 130:
            assert not [name for name in leftovers(out) if not name.endswith(".before")]
    again = [*case.arguments(out)]
    if case.resumes and (out / "config.json").is_file():
        again.append("--resume")
    assert Command(*again).end()[0] == 0
    same_files(whole, out)
    assert not leftovers(out)


# What is quick, in CI: a moment in the imports, some in the middle, one near the end
@pytest.mark.alone
@pytest.mark.parametrize(
    "name, blow, moment",
    [
        ("train all", FORWARDED, 0.5),
        ("train all", KILLED, 0.6),
        ("train base", Blow(signal.SIGINT, ("group", "group"), (0.0, 0.2)), 0.8),
        ("generate", CTRL_C, 0.05),
        ("cache", Blow(signal.SIGTERM), 0.9),
    ],
)
def test_some_moments(name, blow, moment, prepared, undisturbed):
    # CI may have a busy machine; the slow test below holds the five seconds.
    hit_and_resume(name, blow, moment, prepared, undisturbed, patience=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_random_moments(name, kind, prepared, undisturbed):
    chance = random.Random(f"{name} {kind}")
    for _ in range(int(os.environ.get("MOMENTS", "10"))):
        blow, moment = KINDS[kind](chance), chance.random()
        print(f"{name}: {blow} at {moment:.3f}")
        hit_and_resume(name, blow, moment, prepared, undisturbed)


@pytest.mark.alone
def test_a_long_training_says_that_it_finishes_the_step(prepared):
    """Also where the steps are those of worker processes."""
    out = prepared("train all")
    steps = [f"stages.{stage}.steps=100000" for stage in STAGES]
    command = Command(*CASES["train all"].arguments(out), *steps)
    shown = ""
    # A stage shows its bar after its first step.
    while not all(f"{stage}: " in shown for stage in STAGES[:2]):
        shown += os.read(command.process.stdout.fileno(), 4096).decode()
    CTRL_C.hit(command)
    code, seconds, output = command.end(30)
    assert code == 130 and seconds < 5
    assert output.count("finishing this step, and saving") == 1, output
    assert output.endswith("minimuse: stopped; the same command with --resume goes on\n")
    for stage in STAGES[:2]:
        checkpoint.read_checkpoint(out / f"{stage}.checkpoint.safetensors")
    assert not leftovers(out)


def test_an_early_stop_does_not_promise_that_resume_works(prepared):
    out = prepared("train all")
    command = Command(*CASES["train all"].arguments(out))
    CTRL_C.hit(command)
    code, _, output = command.end(30)
    assert code == 130 and output == "minimuse: stopped\n" and not out.exists()


# In this process


@pytest.fixture
def sigint():
    """Python's own handler of SIGINT: a shell's background job would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_outside_of_a_step_a_signal_interrupts(sigint):
    with stopping.listen():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the process ends already
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not stopping.stop_signals


def test_inside_a_step_the_first_signal_waits_for_its_end(sigint, capfd):
    with stopping.listen():
        with pytest.raises(KeyboardInterrupt), stopping.finish_first():
            signal.raise_signal(signal.SIGINT)
            assert stopping.stop_signals == {signal.SIGINT}
            signal.raise_signal(signal.SIGINT)  # forwarded by a wrapper: the same wish
            reached = True
        assert reached
    assert capfd.readouterr().err.count("finishing this step") == 1


def test_a_second_wish_stops_at_once(sigint, monkeypatch):
    monkeypatch.setattr(stopping, "ONE_WISH", 0.0)
    reached = []
    with stopping.listen(), pytest.raises(KeyboardInterrupt), stopping.finish_first():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)
        reached.append("here")
    assert not reached


def test_nothing_is_heard_that_was_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.listen():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


SWALLOWS = """
import signal, sys, time
sys.argv = ["minimuse", "describe", "tiny"]
from minimuse.cli import describe
def swallow(preset, t5):
    print("here", flush=True)
    for _ in range(1000):
        try:
            time.sleep(0.05)
        except BaseException:
            pass
describe.describe = swallow
from minimuse.__main__ import main
raise SystemExit(main())
"""


@pytest.mark.alone
def test_a_library_that_swallows_the_interrupt_does_not_keep_the_process():
    process = subprocess.Popen(
        [sys.executable, "-c", SWALLOWS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_all_signals,
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 130 and errors == "minimuse: stopped\n"


def global_state():
    handlers = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    state = (warnings.showwarning, list(warnings.filters), sys.unraisablehook, wakeup)
    return handlers, state, torch.get_default_dtype(), torch.get_num_threads()


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["describe", "tiny", "--json"], 0),
        (["generate", "a cat", "--model", "none"], 2),
        (["generate", "a cat", "--steps", "2", "-o", "x.png"], 0),
    ],
)
def test_main_leaves_the_process_as_it_was(arguments, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = global_state()
    assert main(arguments) == code
    assert global_state() == before


def test_main_runs_in_a_thread_and_under_an_event_loop(tmp_path):
    """As in a notebook. A thread cannot have handlers of signals."""
    codes = []
    arguments = ["generate", "a cat", "--steps", "2", "-o", str(tmp_path / "x.png")]
    thread = threading.Thread(target=lambda: codes.append(main(arguments)))
    thread.start()
    thread.join()

    async def inside():
        codes.append(main(arguments))

    asyncio.run(inside())
    assert codes == [0, 0]
